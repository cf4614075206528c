//! What may come first of batches that the disk has no room for: records that only make room.

use std::collections::{BTreeMap, BTreeSet};

use lrts_core::ids::{JobId, SessionId};

use super::Entry;
use crate::record::{Record, Stage};

/// What the records that stay behind are of. Nothing of the same overtakes them, so that an older image never comes after a
/// newer one, and none comes before the job that it is of.
#[derive(Debug, Default)]
pub(super) struct Behind {
    jobs: BTreeSet<JobId>,
    sessions: BTreeSet<SessionId>,
    /// The first jobs of submits, and the last sequence of each.
    submits: BTreeMap<JobId, u64>,
}

impl Behind {
    /// Takes what may come first out of the next batch.
    pub(super) fn take_deletions(&mut self, batch: &mut Vec<Entry>) -> Vec<Entry> {
        let (first, rest) =
            std::mem::take(batch).into_iter().partition(|entry| self.comes_first(&entry.record));
        *batch = rest;
        first
    }

    fn comes_first(&mut self, record: &Record) -> bool {
        let first = match record {
            // Its payload goes with its end, and its result once that was taken.
            Record::Job { job, image } => matches!(image.stage, Stage::Ended { .. }) && !self.holds(*job),
            Record::JobForgotten { job, .. } => !self.holds(*job),
            Record::SessionForgotten { session } => !self.sessions.contains(session),
            Record::Application { .. }
            | Record::ApplicationForgotten { .. }
            | Record::Session { .. }
            | Record::Submitted(_)
            | Record::AttemptEnded { .. }
            | Record::Checkpoint { .. }
            | Record::Worker { .. } => false,
        };
        if !first {
            self.hold(record);
        }
        first
    }

    fn holds(&self, job: JobId) -> bool {
        let submit = self.submits.range(job.session.job(0)..=job).next_back();
        self.jobs.contains(&job) || submit.is_some_and(|(_, &last)| job.sequence <= last)
    }

    fn hold(&mut self, record: &Record) {
        match record {
            Record::Job { job, .. } | Record::JobForgotten { job, .. } => self.hold_job(*job),
            Record::AttemptEnded { attempt, .. } | Record::Checkpoint { attempt } => {
                self.hold_job(attempt.job);
            }
            Record::Submitted(submitted) => {
                self.sessions.insert(submitted.session);
                let last = submitted.first + submitted.jobs.len() as u64;
                self.submits.insert(submitted.session.job(submitted.first), last);
                submitted.keyed.iter().for_each(|record| self.hold_job(record.job));
            }
            Record::Session { session, .. } | Record::SessionForgotten { session } => {
                self.sessions.insert(*session);
            }
            Record::Application { .. } | Record::ApplicationForgotten { .. } | Record::Worker { .. } => {}
        }
    }

    fn hold_job(&mut self, job: JobId) {
        self.jobs.insert(job);
        self.sessions.insert(job.session);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SESSION, bytes, ended, forgotten, record, submit, terminal};
    use super::*;

    #[test]
    fn deletions_come_first_and_overtake_nothing_of_their_own() {
        let other = SessionId(8);
        let job = |sequence| SESSION.job(sequence);
        let session_forgotten = |session| record(Record::SessionForgotten { session });
        let mut behind = Behind::default();
        let mut batch = vec![
            terminal(job(1), true),
            ended(job(2), 1, true, bytes(1, 9), bytes(2, 9), vec![]),
            terminal(job(2), false),
            submit(SESSION, 10, &[bytes(3, 9), bytes(4, 9)]),
            forgotten(job(1), true),
            session_forgotten(other),
        ];
        let first = behind.take_deletions(&mut batch);
        let expected = [terminal(job(1), true), forgotten(job(1), true), session_forgotten(other)];
        assert_eq!(records(&first), records(&expected));
        assert_eq!(batch.len(), 3);

        let mut next = vec![
            terminal(job(2), true),
            terminal(job(11), false),
            forgotten(job(11), false),
            session_forgotten(SESSION),
            forgotten(job(9), false),
        ];
        let first = behind.take_deletions(&mut next);
        assert_eq!(records(&first), records(&[forgotten(job(9), false)]));
        assert_eq!(next.len(), 4, "what they are of isn't durable yet");
    }

    fn records(entries: &[Entry]) -> Vec<&Record> {
        entries.iter().map(|entry| &entry.record).collect()
    }
}
