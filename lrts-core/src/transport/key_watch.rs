//! The watch over a server's keys: new ones and revocations reach connected peers.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::peers::Shared;
use crate::clock::{Moment, sleep_until};
use crate::keys::{KeyRing, KeySource};
use crate::limits::{KEYS_CHECK_INTERVAL, KEYS_INTERVAL};

/// Looks for new keys and revocations, from the keys on that the server began with.
pub(crate) async fn run(source: KeySource, ring: Arc<KeyRing>, shared: Arc<Shared>, stop: CancellationToken) {
    let mut watch = Watch::new(ring, Moment::now());
    let mut trouble = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep_until(Some(watch.next_look())) => {}
        }
        let found = source.current();
        // A handshake may have found newer ones, which can't be read any more.
        let Ok(known) = source.current_or_last() else { continue };
        let due = watch.looked(&known, Moment::now());
        match found {
            Ok(ring) => {
                trouble = None;
                if due == Due::Changed {
                    info!(identity = %ring.identity(), "keys have changed");
                }
            }
            Err(error) => {
                let text = error.to_string();
                if trouble.as_ref() != Some(&text) {
                    warn!(%error, "keys can't be read, those from before go on");
                    trouble = Some(text);
                }
            }
        }
        if due != Due::Nothing {
            shared.check_keys(&source).await;
        }
    }
}

/// Decides when the key file is looked at, and when everybody who is connected is checked by it. Pure; `K` is what it holds.
pub(crate) struct Watch<K> {
    seen: Arc<K>,
    looked: Moment,
    checked: Moment,
}

/// Why all connected peers must be checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    Nothing,
    /// The file has changed.
    Changed,
    /// Keys expire.
    Time,
}

impl<K> Watch<K> {
    pub(crate) fn new(seen: Arc<K>, now: Moment) -> Self {
        Self { seen, looked: now, checked: now }
    }

    fn next_look(&self) -> Moment {
        self.looked + KEYS_INTERVAL
    }

    /// The file was looked at: these are the last keys that were found in it.
    pub(crate) fn looked(&mut self, found: &Arc<K>, now: Moment) -> Due {
        self.looked = now;
        let due = if !Arc::ptr_eq(&self.seen, found) {
            self.seen = found.clone();
            Due::Changed
        } else if now.since(self.checked) >= KEYS_CHECK_INTERVAL {
            Due::Time
        } else {
            return Due::Nothing;
        };
        self.checked = now;
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const T0: Moment = Moment::from_nanos(1_000_000_000_000);

    #[test]
    fn a_change_is_followed_at_the_next_look_and_that_is_within_the_interval() {
        for millis in [0, 1, 999, 1_000, 1_001, 2_500, 700_000] {
            let (old, new) = (Arc::new(()), Arc::new(()));
            let changed = T0 + Duration::from_millis(millis);
            let mut watch = Watch::new(old.clone(), T0);
            let followed = loop {
                let now = watch.next_look();
                match watch.looked(if now < changed { &old } else { &new }, now) {
                    Due::Changed => break now,
                    Due::Nothing | Due::Time => assert!(now < changed, "changed {millis} ms after the start"),
                }
            };
            assert!(followed >= changed && followed.since(changed) <= KEYS_INTERVAL, "{millis}");
            assert_eq!(watch.looked(&new, watch.next_look()), Due::Nothing);
        }
    }

    #[test]
    fn keys_that_expire_are_looked_for_without_a_change_too() {
        let keys = Arc::new(());
        let mut watch = Watch::new(keys.clone(), T0);
        let due = |watch: &mut Watch<()>| {
            loop {
                let now = watch.next_look();
                match watch.looked(&keys, now) {
                    Due::Nothing => {}
                    due @ (Due::Changed | Due::Time) => return (due, now),
                }
            }
        };
        assert_eq!(due(&mut watch), (Due::Time, T0 + KEYS_CHECK_INTERVAL));
        assert_eq!(due(&mut watch), (Due::Time, T0 + 2 * KEYS_CHECK_INTERVAL));
    }
}
