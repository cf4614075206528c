//! Keys whose holders break the protocol again and again. Pure.
//!
//! To come back after a refusal costs whoever holds a key next to nothing, and the server a peer each time. So a key that did so too
//! often from an address is let in from there at a pace at which it disturbs nobody. Who is inside already stays, and so does the
//! pace of everybody else, with the same key at another address too: thousands of workers may have one key, and one of them be broken.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::admission::network_of;
use crate::clock::Moment;
use crate::keys::KeyId;
use crate::limits::{BREACH_TIME, BREACHES, SUSPECT_PACE, SUSPECTS};

/// What its holders at an address have done.
#[derive(Debug, Default)]
pub(crate) struct Suspects(BTreeMap<(KeyId, IpAddr), Record>);

#[derive(Debug)]
struct Record {
    /// Breaches of the protocol, each within [`BREACH_TIME`] of the one before.
    breaches: u32,
    last: Moment,
    /// When the next newcomer may enter, once there are too many.
    next: Moment,
}

impl Suspects {
    /// A holder of the key has broken the protocol.
    pub(crate) fn note(&mut self, key: KeyId, from: IpAddr, now: Moment) {
        let at = (key, network_of(from));
        if self.0.len() >= SUSPECTS && !self.0.contains_key(&at) {
            return;
        }
        let record = self.0.entry(at).or_insert(Record { breaches: 0, last: now, next: now });
        record.breaches = if record.is_old(now) { 1 } else { record.breaches.saturating_add(1) };
        record.last = now;
    }

    /// Lets a newcomer with the key in, or says when to ask again.
    pub(crate) fn enter(&mut self, key: KeyId, from: IpAddr, now: Moment) -> Result<(), Moment> {
        let Some(record) = self.0.get_mut(&(key, network_of(from))) else { return Ok(()) };
        if record.breaches < BREACHES || record.is_old(now) {
            return Ok(());
        }
        if now < record.next {
            return Err(record.next);
        }
        record.next = now + SUSPECT_PACE;
        Ok(())
    }

    /// Forgets what is long ago.
    pub(crate) fn forget(&mut self, now: Moment) {
        self.0.retain(|_, record| !record.is_old(now));
    }
}

impl Record {
    fn is_old(&self, now: Moment) -> bool {
        now.since(self.last) > BREACH_TIME
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
    const T0: Moment = Moment::from_nanos(1_000_000_000_000);

    fn key(number: u64) -> KeyId {
        format!("{number:016x}").parse().unwrap()
    }

    /// One that broke the protocol so often, at once.
    fn after(breaches: u32) -> Suspects {
        let mut suspects = Suspects::default();
        (0..breaches).for_each(|_| suspects.note(key(1), HERE, T0));
        suspects
    }

    #[test]
    fn who_breaks_the_protocol_now_and_then_waits_for_nothing() {
        let mut suspects = after(BREACHES - 1);
        assert_eq!(suspects.enter(key(1), HERE, T0), Ok(()));
        let mut now = T0;
        for _ in 0..10 * BREACHES {
            now = now + BREACH_TIME + Duration::from_millis(1);
            suspects.note(key(1), HERE, now);
            assert_eq!(suspects.enter(key(1), HERE, now), Ok(()));
            assert_eq!(suspects.enter(key(1), HERE, now), Ok(()));
        }
    }

    #[test]
    fn who_does_it_again_and_again_is_let_in_at_a_pace_and_others_at_once() {
        let mut suspects = after(BREACHES);
        let mut now = T0;
        for _ in 0..100 {
            assert_eq!(suspects.enter(key(1), HERE, now), Ok(()));
            for waiting in [Duration::ZERO, SUSPECT_PACE / 2] {
                assert_eq!(suspects.enter(key(1), HERE, now + waiting), Err(now + SUSPECT_PACE));
            }
            suspects.note(key(1), HERE, now);
            assert_eq!(suspects.enter(key(1), THERE, now), Ok(()));
            assert_eq!(suspects.enter(key(2), HERE, now), Ok(()));
            now = now + SUSPECT_PACE;
        }
        now = now + BREACH_TIME;
        assert_eq!(suspects.enter(key(1), HERE, now), Ok(()), "it was good for a while");
        assert_eq!(suspects.enter(key(1), HERE, now), Ok(()));
    }

    #[test]
    fn what_is_long_ago_is_forgotten_and_there_is_an_end_to_what_is_remembered() {
        let mut suspects = Suspects::default();
        for number in 1..=SUSPECTS as u64 + 10 {
            suspects.note(key(number), HERE, T0);
        }
        assert_eq!(suspects.0.len(), SUSPECTS);
        suspects.forget(T0 + BREACH_TIME);
        assert_eq!(suspects.0.len(), SUSPECTS);
        suspects.forget(T0 + BREACH_TIME + Duration::from_millis(1));
        assert!(suspects.0.is_empty());
    }
}
