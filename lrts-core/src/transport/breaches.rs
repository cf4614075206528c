//! Keys whose holders break the protocol again and again. Pure.
//!
//! To come back after a refusal costs whoever holds a key next to nothing, and the server a peer each time. So who did so too often
//! makes others with the same key wait outside for a while, as far as they come from the same address: who can't be told from them.
//! One broken worker among thousands behind an address, which tries again every few seconds, takes a part of their time to come in.
//! Who is inside stays there. A HELLO in a role that the key is not for is such a breach too; one in another version of the protocol
//! is none, since a supervisor may start an honest worker again each second.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::admission::network_of;
use crate::clock::Moment;
use crate::keys::KeyId;
use crate::limits::{BREACH_KEYS, BREACH_PAUSE, BREACH_SPACING, BREACH_TIME, BREACHES};

/// What its holders at an address have done.
#[derive(Debug, Default)]
pub(crate) struct Breaches(BTreeMap<(KeyId, IpAddr), Record>);

#[derive(Debug)]
struct Record {
    /// Breaches of the protocol, each within [`BREACH_TIME`] of the one before.
    count: u32,
    last: Moment,
    /// Until then newcomers wait.
    until: Moment,
}

impl Breaches {
    /// A holder of the key has broken the protocol. Whether newcomers wait for that.
    pub(crate) fn note(&mut self, key: KeyId, from: IpAddr, now: Moment) -> bool {
        let at = (key, network_of(from));
        if self.0.len() >= BREACH_KEYS && !self.0.contains_key(&at) {
            return false;
        }
        let record = self.0.entry(at).or_insert(Record { count: 0, last: now, until: now });
        record.count = if record.is_old(now) { 1 } else { record.count.saturating_add(1) };
        record.last = now;
        let they_wait = record.count >= BREACHES;
        if they_wait {
            record.until = (record.until.max(now) + BREACH_PAUSE).min(now + BREACH_TIME);
        }
        they_wait
    }

    /// Lets a newcomer with the key in, or says when to ask again.
    pub(crate) fn enter(&mut self, key: KeyId, from: IpAddr, now: Moment) -> Result<(), Moment> {
        let Some(record) = self.0.get_mut(&(key, network_of(from))) else { return Ok(()) };
        if record.count < BREACHES || record.is_old(now) {
            return Ok(());
        }
        if now < record.until {
            return Err(record.until);
        }
        // One after another, so that the first who does it again holds up the others.
        record.until = now + BREACH_SPACING;
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

    /// One key with so many breaches at once.
    fn after(breaches: u32) -> Breaches {
        let mut all = Breaches::default();
        (1..=breaches).for_each(|number| assert_eq!(all.note(key(1), HERE, T0), number >= BREACHES));
        all
    }

    #[test]
    fn who_breaks_the_protocol_now_and_then_waits_for_nothing() {
        let mut breaches = after(BREACHES - 1);
        assert_eq!(breaches.enter(key(1), HERE, T0), Ok(()));
        let mut now = T0;
        for _ in 0..10 * BREACHES {
            now = now + BREACH_TIME + Duration::from_millis(1);
            assert!(!breaches.note(key(1), HERE, now));
            assert_eq!(breaches.enter(key(1), HERE, now), Ok(()));
            assert_eq!(breaches.enter(key(1), HERE, now), Ok(()));
        }
    }

    #[test]
    fn who_does_it_again_and_again_waits_each_time_and_others_do_not() {
        let mut breaches = after(BREACHES);
        let mut now = T0;
        for _ in 0..100 {
            let later = breaches.enter(key(1), HERE, now).unwrap_err();
            assert!(later >= now + BREACH_PAUSE && later <= now + BREACH_PAUSE + BREACH_SPACING);
            assert_eq!(breaches.enter(key(1), HERE, now + BREACH_PAUSE / 2), Err(later));
            assert_eq!(breaches.enter(key(1), THERE, now), Ok(()));
            assert_eq!(breaches.enter(key(2), HERE, now), Ok(()));
            now = later;
            assert_eq!(breaches.enter(key(1), HERE, now), Ok(()));
            assert!(breaches.note(key(1), HERE, now));
        }
        // However many did it at once, the door isn't closed for longer than they are remembered.
        (0..1_000).for_each(|_| assert!(breaches.note(key(1), HERE, now)));
        assert_eq!(breaches.enter(key(1), HERE, now), Err(now + BREACH_TIME));
        now = now + BREACH_TIME + Duration::from_millis(1);
        assert_eq!(breaches.enter(key(1), HERE, now), Ok(()), "it was good for a while");
        assert_eq!(breaches.enter(key(1), HERE, now), Ok(()));
    }

    #[test]
    fn one_broken_worker_of_many_costs_the_others_a_part_of_their_time_to_come_in() {
        const WORKERS: u32 = 2_000;
        const TRIES: Duration = Duration::from_secs(5);
        let mut breaches = after(BREACHES);
        let (mut inside, mut now, mut next_breach) = (0, T0, T0 + TRIES);
        while inside < WORKERS {
            if now >= next_breach {
                breaches.note(key(1), HERE, now);
                next_breach = now + TRIES;
            }
            match breaches.enter(key(1), HERE, now) {
                Ok(()) => inside += 1,
                Err(later) => now = later,
            }
        }
        assert!(now.since(T0) < Duration::from_secs(30), "{:?}", now.since(T0));
    }

    #[test]
    fn what_is_long_ago_is_forgotten_and_there_is_an_end_to_what_is_remembered() {
        let mut breaches = Breaches::default();
        for number in 1..=BREACH_KEYS as u64 + 10 {
            breaches.note(key(number), HERE, T0);
        }
        assert_eq!(breaches.0.len(), BREACH_KEYS);
        breaches.forget(T0 + BREACH_TIME);
        assert_eq!(breaches.0.len(), BREACH_KEYS);
        breaches.forget(T0 + BREACH_TIME + Duration::from_millis(1));
        assert!(breaches.0.is_empty());
    }
}
