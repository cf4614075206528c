//! How much room files take, and which of them may go to make room for others.
//!
//! What counts is what is here, never what somebody says will come.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lrts_core::ids::BundleDigest;
use lrts_core::limits::BUNDLE_ROOM_MIN;

/// What nobody needs now, in the order in which it makes room. Moments are of the wall clock, since files outlive the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Spare {
    /// A part that nobody sends, since then.
    Half(Duration),
    /// A bundle, which was used last then.
    Complete(Duration),
}

impl Spare {
    fn since(self) -> Duration {
        match self {
            Spare::Half(since) | Spare::Complete(since) => since,
        }
    }
}

/// What a file takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Charge {
    pub(super) bytes: u64,
    /// None if it is needed.
    pub(super) spare: Option<Spare>,
}

impl Charge {
    /// Even a small file takes so much, so that there are few of them. One that hasn't begun takes nothing.
    fn room(self) -> u64 {
        if self.bytes == 0 { 0 } else { self.bytes.max(BUNDLE_ROOM_MIN) }
    }
}

/// The room of a directory.
#[derive(Debug)]
pub(super) struct Room {
    /// Most bytes of all files.
    limit: u64,
    charges: BTreeMap<BundleDigest, Charge>,
    spare: BTreeSet<(Spare, BundleDigest)>,
    /// What all files take, and those that are needed.
    used: u64,
    needed: u64,
}

impl Room {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, charges: BTreeMap::new(), spare: BTreeSet::new(), used: 0, needed: 0 }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Takes in what a bundle's file takes from now on; none if there is no file.
    pub(super) fn set(&mut self, digest: BundleDigest, charge: Option<Charge>) {
        let before = match charge {
            Some(charge) => self.charges.insert(digest, charge),
            None => self.charges.remove(&digest),
        };
        if let Some(before) = before {
            self.used -= before.room();
            match before.spare {
                Some(spare) => drop(self.spare.remove(&(spare, digest))),
                None => self.needed -= before.room(),
            }
        }
        if let Some(charge) = charge {
            self.used += charge.room();
            match charge.spare {
                Some(spare) => drop(self.spare.insert((spare, digest))),
                None => self.needed += charge.room(),
            }
        }
    }

    /// Whether a bundle's file may have this length, as things are.
    pub(super) fn has(&self, digest: BundleDigest, bytes: u64) -> bool {
        let own = self.charges.get(&digest).map_or(0, |charge| charge.room());
        self.used - own + Charge { bytes, spare: None }.room() <= self.limit
    }

    /// Whether it may once all that nobody needs is gone.
    pub(super) fn could_have(&self, digest: BundleDigest, bytes: u64) -> bool {
        let own = self.charges.get(&digest).filter(|charge| charge.spare.is_none());
        self.needed - own.map_or(0, |charge| charge.room()) + Charge { bytes, spare: None }.room()
            <= self.limit
    }

    /// What goes first.
    pub(super) fn first_spare(&self) -> Option<BundleDigest> {
        self.spare.first().map(|&(_, digest)| digest)
    }

    /// Something that nobody has needed since before this moment.
    pub(super) fn spare_since(&self, before: Duration) -> Option<BundleDigest> {
        let first_complete = (Spare::Complete(Duration::ZERO), BundleDigest([0; 32]));
        let oldest = [self.spare.first(), self.spare.range(first_complete..).next()];
        let is_old = |&&(spare, _): &&(Spare, BundleDigest)| spare.since() < before;
        oldest.into_iter().flatten().find(is_old).map(|&(_, digest)| digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 10 * BUNDLE_ROOM_MIN;

    fn digest(byte: u8) -> BundleDigest {
        BundleDigest([byte; 32])
    }

    fn charge(bytes: u64, spare: Option<Spare>) -> Option<Charge> {
        Some(Charge { bytes, spare })
    }

    #[test]
    fn what_is_here_counts_small_files_too() {
        let mut room = Room::new(LIMIT);
        room.set(digest(1), charge(0, None));
        assert!(room.has(digest(2), LIMIT), "what was only announced takes nothing");
        room.set(digest(1), charge(1, None));
        assert!(
            room.has(digest(2), LIMIT - BUNDLE_ROOM_MIN) && !room.has(digest(2), LIMIT - BUNDLE_ROOM_MIN + 1)
        );
        assert!(room.has(digest(1), LIMIT) && !room.has(digest(1), LIMIT + 1), "its own room is its own");
        room.set(digest(1), None);
        assert!(room.has(digest(2), LIMIT));
    }

    #[test]
    fn halves_go_first_then_what_was_used_longest_ago() {
        let mut room = Room::new(LIMIT);
        let seconds = Duration::from_secs;
        let part = LIMIT / 4;
        room.set(digest(1), charge(part, Some(Spare::Complete(seconds(1)))));
        room.set(digest(2), charge(part, Some(Spare::Complete(seconds(2)))));
        room.set(digest(3), charge(part, Some(Spare::Half(seconds(3)))));
        room.set(digest(4), charge(part, None));
        assert!(!room.has(digest(5), 1) && room.could_have(digest(5), LIMIT - part));
        assert!(!room.could_have(digest(5), LIMIT - part + 1), "what is needed stays");
        assert_eq!(room.spare_since(seconds(1)), None);
        assert_eq!(room.spare_since(seconds(2)), Some(digest(1)));
        for next in [3, 1, 2] {
            assert_eq!(room.first_spare(), Some(digest(next)));
            room.set(digest(next), None);
        }
        assert_eq!(room.first_spare(), None);
        // Used again, it is newer.
        room.set(digest(1), charge(1, Some(Spare::Complete(seconds(1)))));
        room.set(digest(2), charge(1, Some(Spare::Complete(seconds(2)))));
        room.set(digest(1), charge(1, Some(Spare::Complete(seconds(3)))));
        assert_eq!(room.first_spare(), Some(digest(2)));
        room.set(digest(2), charge(1, None));
        assert_eq!(room.first_spare(), Some(digest(1)));
    }
}
