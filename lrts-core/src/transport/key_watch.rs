//! The watch over a server's keys: new ones and revocations reach connected peers.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::peers::Shared;
use crate::clock::{Moment, sleep_until};
use crate::keys::KeySource;
use crate::limits::{KEYS_CHECK_INTERVAL, KEYS_INTERVAL};

/// Looks for new keys and revocations.
pub(crate) async fn run(source: KeySource, shared: Arc<Shared>, stop: CancellationToken) {
    let mut watch = Watch::new(source.current_or_last().ok(), Moment::now());
    let mut trouble = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep_until(Some(watch.next_look())) => {}
        }
        let found = source.current();
        let due = watch.looked(found.as_ref().ok(), Moment::now());
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
struct Watch<K> {
    seen: Option<Arc<K>>,
    looked: Moment,
    checked: Moment,
}

/// Why all connected peers must be checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Due {
    Nothing,
    /// The file has changed.
    Changed,
    /// Keys expire.
    Time,
}

impl<K> Watch<K> {
    fn new(seen: Option<Arc<K>>, now: Moment) -> Self {
        Self { seen, looked: now, checked: now }
    }

    fn next_look(&self) -> Moment {
        self.looked + KEYS_INTERVAL
    }

    /// The file was looked at, and holds this, unless it can't be read.
    fn looked(&mut self, found: Option<&Arc<K>>, now: Moment) -> Due {
        self.looked = now;
        let changed =
            found.is_some_and(|found| !self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, found)));
        let due = if changed {
            self.seen = found.cloned();
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
            let mut watch = Watch::new(Some(old.clone()), T0);
            let followed = loop {
                let now = watch.next_look();
                match watch.looked(Some(if now < changed { &old } else { &new }), now) {
                    Due::Changed => break now,
                    Due::Nothing | Due::Time => assert!(now < changed, "changed {millis} ms after the start"),
                }
            };
            assert!(followed >= changed && followed.since(changed) <= KEYS_INTERVAL, "{millis}");
            assert_eq!(watch.looked(Some(&new), watch.next_look()), Due::Nothing);
        }
    }

    #[test]
    fn what_cannot_be_read_is_no_change_and_what_is_read_again_is_none_either() {
        let (old, new) = (Arc::new(()), Arc::new(()));
        let mut watch = Watch::new(Some(old.clone()), T0);
        assert_eq!(watch.looked(None, T0 + KEYS_INTERVAL), Due::Nothing);
        assert_eq!(watch.looked(Some(&old), T0 + 2 * KEYS_INTERVAL), Due::Nothing);
        assert_eq!(watch.looked(None, T0 + 3 * KEYS_INTERVAL), Due::Nothing);
        assert_eq!(watch.looked(Some(&new), T0 + 4 * KEYS_INTERVAL), Due::Changed);
    }

    #[test]
    fn keys_that_expire_are_looked_for_without_a_change_too() {
        let keys = Arc::new(());
        let mut watch = Watch::new(Some(keys.clone()), T0);
        let due = |watch: &mut Watch<()>| {
            loop {
                let now = watch.next_look();
                match watch.looked(Some(&keys), now) {
                    Due::Nothing => {}
                    due @ (Due::Changed | Due::Time) => return (due, now),
                }
            }
        };
        assert_eq!(due(&mut watch), (Due::Time, T0 + KEYS_CHECK_INTERVAL));
        assert_eq!(due(&mut watch), (Due::Time, T0 + 2 * KEYS_CHECK_INTERVAL));
    }
}
