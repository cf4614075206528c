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

/// A file of the directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum FileId {
    Complete(BundleDigest),
    /// One of those that have come of a bundle, by its number.
    Part(BundleDigest, u64),
}

/// Who needs a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Need {
    /// Applications or jobs.
    InUse,
    /// Whoever is sending it.
    Sent,
    Nobody(Spare),
}

/// What a file takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Charge {
    pub(super) bytes: u64,
    pub(super) need: Need,
}

impl Charge {
    fn room(self) -> u64 {
        room_of(self.bytes)
    }
}

/// Even a small file takes so much, so that there are few of them. One that hasn't begun takes nothing.
fn room_of(bytes: u64) -> u64 {
    if bytes == 0 { 0 } else { bytes.max(BUNDLE_ROOM_MIN) }
}

/// The room of a directory.
#[derive(Debug)]
pub(super) struct Room {
    /// Most bytes of all files.
    limit: u64,
    charges: BTreeMap<FileId, Charge>,
    spare: BTreeSet<(Spare, FileId)>,
    /// What all files take, those that are in use, and those that are being sent.
    used: u64,
    in_use: u64,
    sent: u64,
}

impl Room {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, charges: BTreeMap::new(), spare: BTreeSet::new(), used: 0, in_use: 0, sent: 0 }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Takes in what a file takes from now on; none if there is no file.
    pub(super) fn set(&mut self, file: FileId, charge: Option<Charge>) {
        let before = match charge {
            Some(charge) => self.charges.insert(file, charge),
            None => self.charges.remove(&file),
        };
        if let Some(before) = before {
            self.used -= before.room();
            match before.need {
                Need::InUse => self.in_use -= before.room(),
                Need::Sent => self.sent -= before.room(),
                Need::Nobody(spare) => drop(self.spare.remove(&(spare, file))),
            }
        }
        if let Some(charge) = charge {
            self.used += charge.room();
            match charge.need {
                Need::InUse => self.in_use += charge.room(),
                Need::Sent => self.sent += charge.room(),
                Need::Nobody(spare) => drop(self.spare.insert((spare, file))),
            }
        }
    }

    /// What a file takes now.
    pub(super) fn taken_by(&self, file: FileId) -> u64 {
        self.charges.get(&file).map_or(0, |charge| charge.room())
    }

    /// Whether a file may have this length, as things are.
    pub(super) fn has(&self, file: FileId, bytes: u64) -> bool {
        self.used - self.taken_by(file) + room_of(bytes) <= self.limit
    }

    /// How much is missing for a file of this length even once all that nobody needs is gone.
    pub(super) fn lacks(&self, file: FileId, bytes: u64) -> u64 {
        let is_needed = self.charges.get(&file).is_some_and(|charge| !matches!(charge.need, Need::Nobody(_)));
        let own = if is_needed { self.taken_by(file) } else { 0 };
        (self.in_use + self.sent - own + room_of(bytes)).saturating_sub(self.limit)
    }

    /// Whether a bundle of this length that isn't here finds no room however long it waits, unless what is in use isn't any more.
    pub(super) fn is_too_small_for(&self, bytes: u64) -> bool {
        self.in_use + room_of(bytes) > self.limit
    }

    /// What goes first.
    pub(super) fn first_spare(&self) -> Option<FileId> {
        self.spare.first().map(|&(_, file)| file)
    }

    /// Something that nobody has needed since before this moment.
    pub(super) fn spare_since(&self, before: Duration) -> Option<FileId> {
        let first_complete = (Spare::Complete(Duration::ZERO), FileId::Complete(BundleDigest([0; 32])));
        let oldest = [self.spare.first(), self.spare.range(first_complete..).next()];
        let is_old = |&&(spare, _): &&(Spare, FileId)| spare.since() < before;
        oldest.into_iter().flatten().find(is_old).map(|&(_, file)| file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 10 * BUNDLE_ROOM_MIN;

    fn file(byte: u8) -> FileId {
        FileId::Part(BundleDigest([byte; 32]), 1)
    }

    fn charge(bytes: u64, need: Need) -> Option<Charge> {
        Some(Charge { bytes, need })
    }

    fn spare(bytes: u64, spare: Spare) -> Option<Charge> {
        charge(bytes, Need::Nobody(spare))
    }

    #[test]
    fn what_is_here_counts_small_files_too() {
        let mut room = Room::new(LIMIT);
        room.set(file(1), charge(0, Need::Sent));
        assert!(room.has(file(2), LIMIT), "what was only announced takes nothing");
        room.set(file(1), charge(1, Need::Sent));
        assert!(
            room.has(file(2), LIMIT - BUNDLE_ROOM_MIN) && !room.has(file(2), LIMIT - BUNDLE_ROOM_MIN + 1)
        );
        assert!(room.has(file(1), LIMIT) && !room.has(file(1), LIMIT + 1), "its own room is its own");
        room.set(file(1), None);
        assert!(room.has(file(2), LIMIT));
    }

    #[test]
    fn what_is_being_sent_is_in_the_way_for_a_while_and_what_is_in_use_for_good() {
        let mut room = Room::new(LIMIT);
        room.set(file(1), charge(LIMIT / 2, Need::Sent));
        assert_eq!((room.lacks(file(2), LIMIT / 2), room.lacks(file(2), LIMIT)), (0, LIMIT / 2));
        assert_eq!(room.lacks(file(1), LIMIT), 0);
        assert!(!room.is_too_small_for(LIMIT));
        room.set(file(1), charge(LIMIT / 2, Need::InUse));
        assert!(!room.is_too_small_for(LIMIT / 2) && room.is_too_small_for(LIMIT / 2 + 1));
    }

    #[test]
    fn halves_go_first_then_what_was_used_longest_ago() {
        let mut room = Room::new(LIMIT);
        let seconds = Duration::from_secs;
        let part = LIMIT / 4;
        room.set(file(1), spare(part, Spare::Complete(seconds(1))));
        room.set(file(2), spare(part, Spare::Complete(seconds(2))));
        room.set(file(3), spare(part, Spare::Half(seconds(3))));
        room.set(file(4), charge(part, Need::InUse));
        assert!(!room.has(file(5), 1) && room.lacks(file(5), LIMIT - part) == 0);
        assert_eq!(room.lacks(file(5), LIMIT - part + 1), 1, "what is needed stays");
        assert_eq!(room.spare_since(seconds(1)), None);
        assert_eq!(room.spare_since(seconds(2)), Some(file(1)));
        for next in [3, 1, 2] {
            assert_eq!(room.first_spare(), Some(file(next)));
            room.set(file(next), None);
        }
        assert_eq!(room.first_spare(), None);
        // Used again, it is newer.
        room.set(file(1), spare(1, Spare::Complete(seconds(1))));
        room.set(file(2), spare(1, Spare::Complete(seconds(2))));
        room.set(file(1), spare(1, Spare::Complete(seconds(3))));
        assert_eq!(room.first_spare(), Some(file(2)));
        room.set(file(2), charge(1, Need::InUse));
        assert_eq!(room.first_spare(), Some(file(1)));
    }
}
