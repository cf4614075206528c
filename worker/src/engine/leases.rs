//! The worker's lease, as the worker counts it: from when it sent what the scheduler has answered. The scheduler counts from when
//! it received it, so an exclusive attempt has ended here before it is placed anywhere else.

use std::collections::VecDeque;
use std::time::Duration;

use lrts_core::clock::Moment;

/// Heartbeats that are remembered until they are answered. A lease is at least four intervals long, and the answer to an older
/// one would extend nothing.
const UNANSWERED: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Lease {
    until: Option<Moment>,
    length: Duration,
    last_number: u64,
    /// Heartbeats of this connection that have had no answer: number and when it was sent, ascending.
    sent: VecDeque<(u64, Moment)>,
}

impl Lease {
    /// The scheduler has answered a registration that was sent then.
    pub(super) fn begin(&mut self, sent: Moment, length: Duration) {
        self.length = length;
        self.extend(sent);
    }

    /// A heartbeat goes out. Returns its number.
    pub(super) fn send_heartbeat(&mut self, now: Moment) -> u64 {
        self.last_number += 1;
        if self.sent.len() == UNANSWERED {
            self.sent.pop_front();
        }
        self.sent.push_back((self.last_number, now));
        self.last_number
    }

    /// The scheduler has answered this heartbeat. Returns whether the lease is longer now.
    pub(super) fn renew(&mut self, number: u64) -> bool {
        while let Some(&(sent_number, sent)) = self.sent.front().filter(|(sent, _)| *sent <= number) {
            self.sent.pop_front();
            if sent_number == number {
                return self.extend(sent);
            }
        }
        false
    }

    /// The connection is gone, and with it what was sent on it.
    pub(super) fn forget_heartbeats(&mut self) {
        self.sent.clear();
    }

    /// Until when it reaches, which may be long ago.
    pub(super) fn until(&self) -> Option<Moment> {
        self.until
    }

    /// Until when it reaches, unless it has lapsed.
    pub(super) fn at(&self, now: Moment) -> Option<Moment> {
        self.until.filter(|&until| now < until)
    }

    fn extend(&mut self, sent: Moment) -> bool {
        let until = sent + self.length;
        let is_longer = self.until.is_none_or(|before| before < until);
        if is_longer {
            self.until = Some(until);
        }
        is_longer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_the_heartbeat_that_was_answered() {
        let second = |number| Moment::from(Duration::from_secs(number));
        let mut lease = Lease::default();
        assert!(lease.at(second(0)).is_none());
        lease.begin(second(10), Duration::from_secs(20));
        assert_eq!((lease.at(second(29)), lease.at(second(30))), (Some(second(30)), None));
        let numbers: Vec<_> = (15..18).map(|number| lease.send_heartbeat(second(number))).collect();
        assert!(lease.renew(numbers[1]));
        assert_eq!(lease.until(), Some(second(36)));
        assert!(!lease.renew(numbers[0]), "an older answer is late");
        lease.forget_heartbeats();
        assert!(!lease.renew(numbers[2]), "sent on another connection");
        assert_eq!(lease.until(), Some(second(36)));
    }
}
