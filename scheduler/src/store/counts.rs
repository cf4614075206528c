//! How many jobs of each submit still need what they share: their payloads, and rows that say that they are forgotten.

use std::collections::BTreeMap;

use lrts_core::ids::{JobId, SessionId};

use super::tables::{JobKey, job_key, session_range};

/// Of one submit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Count {
    /// Its sequences.
    pub(super) length: u64,
    /// Jobs that aren't terminal.
    pub(super) unended: u64,
    /// Jobs that aren't forgotten.
    pub(super) unforgotten: u64,
}

/// Of all submits of several sequences that have jobs left. In a submit of one, its job is the last of both kinds by itself.
#[derive(Debug, Default)]
pub(super) struct Counts {
    submits: BTreeMap<JobKey, Count>,
    /// What changed since the last [`Counts::keep`]: as it was before.
    before: Vec<(JobKey, Option<Count>)>,
}

impl Counts {
    /// A submit whose sequences include this many jobs that are known by them.
    pub(super) fn insert(&mut self, submit: JobKey, length: u64, jobs: u64) {
        if length > 1 && jobs > 0 {
            self.set(submit, Some(Count { length, unended: jobs, unforgotten: jobs }));
        }
    }

    /// A job has ended. The submit whose payloads nobody needs any more, if it was the last.
    pub(super) fn ended(&mut self, job: JobId) -> Option<JobKey> {
        self.less(job, |count| {
            count.unended = count.unended.saturating_sub(1);
            count.unended == 0
        })
    }

    /// A job is forgotten. The submit of which nothing is known any more, if it was the last.
    pub(super) fn forgotten(&mut self, job: JobId) -> Option<JobKey> {
        let forgotten = self.less(job, |count| {
            count.unforgotten = count.unforgotten.saturating_sub(1);
            count.unforgotten == 0
        })?;
        if self.submits.contains_key(&forgotten) {
            self.set(forgotten, None);
        }
        Some(forgotten)
    }

    /// All of a session is forgotten.
    pub(super) fn remove_session(&mut self, session: SessionId) {
        let submits: Vec<JobKey> =
            self.submits.range(session_range(session)).map(|(&submit, _)| submit).collect();
        for submit in submits {
            self.set(submit, None);
        }
    }

    fn less(&mut self, job: JobId, change: impl FnOnce(&mut Count) -> bool) -> Option<JobKey> {
        let key = job_key(job);
        let submit = self.submits.range((key.0, 0)..=key).next_back();
        let Some((&submit, &count)) = submit.filter(|(submit, count)| key.1 - submit.1 < count.length) else {
            return Some(key);
        };
        let mut changed = count;
        let last = change(&mut changed);
        self.set(submit, Some(changed));
        last.then_some(submit)
    }

    fn set(&mut self, submit: JobKey, count: Option<Count>) {
        let before = match count {
            Some(count) => self.submits.insert(submit, count),
            None => self.submits.remove(&submit),
        };
        self.before.push((submit, before));
    }

    /// What changed is committed.
    pub(super) fn keep(&mut self) {
        self.before.clear();
    }

    /// Takes back what changed since the last [`Counts::keep`].
    pub(super) fn undo(&mut self) {
        for (submit, before) in std::mem::take(&mut self.before).into_iter().rev() {
            match before {
                Some(count) => self.submits.insert(submit, count),
                None => self.submits.remove(&submit),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_job_of_a_submit_is_noticed_and_changes_can_be_taken_back() {
        let session = SessionId(7);
        let mut counts = Counts::default();
        counts.insert((7, 10), 3, 2);
        counts.keep();
        assert_eq!(counts.ended(session.job(10)), None);
        assert_eq!(counts.ended(session.job(12)), Some((7, 10)));
        counts.undo();
        assert_eq!(counts.ended(session.job(12)), None);
        assert_eq!(counts.ended(session.job(10)), Some((7, 10)));
        assert_eq!(counts.forgotten(session.job(10)), None);
        assert_eq!(counts.forgotten(session.job(12)), Some((7, 10)));
        assert!(counts.submits.is_empty());
        counts.undo();
        assert_eq!(counts.submits[&(7, 10)], Count { length: 3, unended: 2, unforgotten: 2 });
        assert_eq!(counts.forgotten(session.job(13)), Some((7, 13)), "a submit of one job");
        counts.remove_session(session);
        assert!(counts.submits.is_empty());
    }
}
