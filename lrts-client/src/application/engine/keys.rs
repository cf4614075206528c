//! Jobs with keys that this process has scheduled.
//!
//! Such a job takes a sequence of the session each time it is scheduled, and acceptance and refusal go by that sequence.
//! Everything else about it goes by its own id, the same however often and by whomever it is scheduled.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::submits::Key;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// By the job's number.
    scheduled: BTreeMap<u64, Scheduled>,
    /// The job's number by the sequences that aren't answered yet.
    pending: BTreeMap<u64, u64>,
}

#[derive(Debug)]
struct Scheduled {
    key: Key,
    /// The scheduler has the job.
    accepted: bool,
    /// How many of its sequences aren't answered yet.
    pending: usize,
}

impl Keys {
    /// The job is scheduled, or scheduled again, with this sequence.
    pub(super) fn schedule(&mut self, sequence: u64, number: u64, key: Key) {
        self.pending.insert(sequence, number);
        self.scheduled.entry(number).or_insert(Scheduled { key, accepted: false, pending: 0 }).pending += 1;
    }

    /// The key of a job that was scheduled here with another content.
    pub(super) fn conflict(&self, number: u64, digest: u64) -> Option<Arc<str>> {
        let scheduled = self.scheduled.get(&number).filter(|scheduled| scheduled.key.digest != digest)?;
        Some(Arc::clone(&scheduled.key.key))
    }

    /// Whether a sequence is one of a job with a key and isn't answered yet.
    pub(super) fn is_pending(&self, sequence: u64) -> bool {
        self.pending.contains_key(&sequence)
    }

    /// Whether the job was scheduled here and the scheduler has it or may take it.
    pub(super) fn is_scheduled(&self, number: u64) -> bool {
        self.scheduled.contains_key(&number)
    }

    /// Whether the scheduler may not know the job yet.
    pub(super) fn is_unknown(&self, number: u64) -> bool {
        self.scheduled.get(&number).is_some_and(|scheduled| !scheduled.accepted)
    }

    /// A sequence was accepted; returns its job if it wasn't known before.
    pub(super) fn accept(&mut self, sequence: u64) -> Option<u64> {
        let number = self.pending.remove(&sequence)?;
        let scheduled = self.scheduled.get_mut(&number)?;
        scheduled.pending -= 1;
        (!std::mem::replace(&mut scheduled.accepted, true)).then_some(number)
    }

    /// A sequence was refused; returns its job and the key, unless the scheduler has the job nonetheless or may still take it.
    pub(super) fn refuse(&mut self, sequence: u64) -> Option<(u64, Arc<str>)> {
        let number = self.pending.remove(&sequence)?;
        let scheduled = self.scheduled.get_mut(&number)?;
        scheduled.pending -= 1;
        if scheduled.accepted || scheduled.pending > 0 {
            return None;
        }
        let key = Arc::clone(&scheduled.key.key);
        self.scheduled.remove(&number);
        Some((number, key))
    }

    /// The scheduler doesn't know the job any more.
    pub(super) fn lose(&mut self, number: u64) {
        if let Some(scheduled) = self.scheduled.get_mut(&number) {
            scheduled.accepted = false;
            if scheduled.pending == 0 {
                self.scheduled.remove(&number);
            }
        }
    }

    /// A sequence was used up, but nobody heard how its job fared: it is asked for by another one. False if it was answered.
    pub(super) fn renumber(&mut self, sequence: u64, new: u64) -> bool {
        let number = self.pending.remove(&sequence);
        self.pending.extend(number.map(|number| (new, number)));
        number.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(digest: u64) -> Key {
        Key { key: "night".into(), digest }
    }

    #[test]
    fn a_job_is_known_once_one_of_its_sequences_was_accepted() {
        let mut keys = Keys::default();
        keys.schedule(1, 90, key(5));
        keys.schedule(2, 90, key(5));
        keys.schedule(3, 90, key(5));
        assert!(keys.is_unknown(90) && keys.is_pending(1));
        assert_eq!(keys.refuse(1), None, "others may still be accepted");
        assert_eq!(keys.accept(2), Some(90));
        assert!(!keys.is_unknown(90) && !keys.is_pending(2) && keys.is_pending(3));
        assert_eq!(keys.refuse(3), None, "no room for the repeat of a job that is there");
        keys.schedule(4, 90, key(5));
        assert_eq!(keys.accept(4), None, "it was known before");
    }

    #[test]
    fn another_content_is_a_conflict_until_the_job_was_refused_or_lost() {
        let mut keys = Keys::default();
        keys.schedule(1, 90, key(5));
        assert_eq!(keys.conflict(90, 5), None);
        assert_eq!(keys.conflict(90, 6).as_deref(), Some("night"));
        assert_eq!(keys.conflict(91, 6), None);
        assert_eq!(keys.refuse(1), Some((90, "night".into())));
        assert!(!keys.is_unknown(90) && !keys.is_scheduled(90));
        keys.schedule(2, 90, key(6));
        keys.accept(2);
        keys.lose(90);
        assert_eq!(keys.conflict(90, 5), None);
    }

    #[test]
    fn an_unanswered_sequence_can_be_replaced() {
        let mut keys = Keys::default();
        keys.schedule(1, 90, key(5));
        assert!(keys.renumber(1, 4));
        assert!(!keys.renumber(1, 5) && !keys.is_pending(1));
        assert_eq!(keys.accept(4), Some(90));
    }
}
