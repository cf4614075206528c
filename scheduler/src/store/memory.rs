//! A store that lives and dies with its process.

use std::collections::BTreeMap;

use bytes::Bytes;
use lrts_core::ids::{JobId, SessionId};
use lrts_core::protocol::progress::BarRecord;

use super::{Bodies, Done, EndedBodies, Entry, Store};
use crate::engine::Record;

/// Bodies in memory, by session and sequence.
#[derive(Debug, Default)]
pub(crate) struct MemoryStore {
    sessions: BTreeMap<SessionId, SessionBodies>,
}

/// Bodies of one session's jobs.
#[derive(Debug)]
struct SessionBodies {
    /// The sequence of the first of them.
    first: u64,
    jobs: Vec<JobBodies>,
}

impl SessionBodies {
    fn index(&self, job: JobId) -> Option<usize> {
        usize::try_from(job.sequence.checked_sub(self.first)?).ok()
    }
}

/// Bodies of one job.
#[derive(Debug, Default)]
struct JobBodies {
    payload: Option<Bytes>,
    /// Boxed, since most jobs wait most of the time and have none.
    ended: Option<Box<Kept>>,
}

/// What the newest attempt that has ended brought.
#[derive(Debug)]
struct Kept {
    result: Option<Bytes>,
    stdout: Bytes,
    stderr: Bytes,
    bars: Vec<BarRecord>,
}

impl MemoryStore {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn job(&self, job: JobId) -> Option<&JobBodies> {
        let session = self.sessions.get(&job.session)?;
        session.jobs.get(session.index(job)?)
    }

    fn job_mut(&mut self, job: JobId) -> Option<&mut JobBodies> {
        let session = self.sessions.get_mut(&job.session)?;
        let index = session.index(job)?;
        session.jobs.get_mut(index)
    }

    fn apply(&mut self, entry: Entry) {
        match (entry.record, entry.bodies) {
            (Record::Submitted { session, first, refused, .. }, Bodies::Payloads(payloads)) => {
                let new = || SessionBodies { first, jobs: Vec::new() };
                let jobs = &mut self.sessions.entry(session).or_insert_with(new).jobs;
                for (sequence, payload) in (first..).zip(payloads) {
                    let refused = refused.binary_search(&sequence).is_ok();
                    // A copy, since a part of a message keeps all of it in memory.
                    let payload = (!refused).then(|| Bytes::copy_from_slice(&payload));
                    jobs.push(JobBodies { payload, ended: None });
                }
            }
            (Record::AttemptEnded { attempt, valid }, Bodies::Ended(bodies)) => {
                let EndedBodies { output, stdout, stderr, bars } = bodies;
                if let Some(job) = self.job_mut(attempt.job) {
                    let result = valid.then(|| Bytes::copy_from_slice(&output));
                    let (stdout, stderr) = (Bytes::copy_from_slice(&stdout), Bytes::copy_from_slice(&stderr));
                    job.ended = Some(Box::new(Kept { result, stdout, stderr, bars }));
                }
            }
            (Record::JobEnded { job, .. }, _) => {
                if let Some(job) = self.job_mut(job) {
                    job.payload = None;
                }
            }
            (Record::Taken { job }, _) => {
                if let Some(ended) = self.job_mut(job).and_then(|job| job.ended.as_mut()) {
                    ended.result = None;
                    ended.bars = Vec::new();
                }
            }
            (Record::JobForgotten { job }, _) => {
                if let Some(job) = self.job_mut(job) {
                    *job = JobBodies::default();
                }
            }
            (Record::SessionForgotten { session }, _) => {
                self.sessions.remove(&session);
            }
            // What only a restarted scheduler would need.
            (
                Record::SessionOpened { .. }
                | Record::Submitted { .. }
                | Record::AttemptOpened { .. }
                | Record::AttemptBegan { .. }
                | Record::AttemptEnded { .. }
                | Record::AttemptClosed { .. }
                | Record::CancelAccepted { .. },
                _,
            ) => {}
        }
    }
}

impl Store for MemoryStore {
    fn epoch(&self) -> u64 {
        1
    }

    fn commit(&mut self, _epoch: u64, batch: Vec<Entry>, done: Done) {
        for entry in batch {
            self.apply(entry);
        }
        done();
    }

    fn payload(&self, job: JobId) -> Option<Bytes> {
        self.job(job)?.payload.clone()
    }

    fn result(&self, job: JobId) -> Option<Bytes> {
        self.job(job)?.ended.as_ref()?.result.clone()
    }

    fn bars(&self, job: JobId) -> Vec<BarRecord> {
        self.job(job).and_then(|job| job.ended.as_ref()).map(|ended| ended.bars.clone()).unwrap_or_default()
    }

    fn output(&self, job: JobId) -> Option<(Bytes, Bytes)> {
        let ended = self.job(job)?.ended.as_ref()?;
        Some((ended.stdout.clone(), ended.stderr.clone()))
    }
}

#[cfg(test)]
mod tests {
    use lrts_core::ids::AttemptId;

    use super::*;
    use crate::engine::{NewJob, Report};

    const SESSION: SessionId = SessionId(7);

    fn commit(store: &mut MemoryStore, record: Record, bodies: Bodies) {
        let (sender, receiver) = std::sync::mpsc::channel();
        store.commit(1, vec![Entry { record, bodies }], Box::new(move || sender.send(()).unwrap()));
        receiver.try_recv().expect("a store in memory commits at once");
    }

    #[test]
    fn bodies_stay_until_nobody_needs_them() {
        let mut store = MemoryStore::new();
        let job = NewJob { service: 0, options: 0, payload_bytes: 1 };
        let submitted = Record::Submitted {
            session: SESSION,
            first: 1,
            options: [].into(),
            jobs: vec![job; 3],
            refused: vec![2],
        };
        let payloads = ["a", "b", "c"].map(|text| Bytes::from(text.as_bytes())).to_vec();
        commit(&mut store, submitted, Bodies::Payloads(payloads));
        assert_eq!(store.payload(SESSION.job(1)).unwrap(), "a");
        assert_eq!(store.payload(SESSION.job(2)), None, "refused jobs keep nothing");
        assert_eq!(store.payload(SESSION.job(3)).unwrap(), "c");
        assert_eq!(store.payload(SESSION.job(0)), None);
        assert_eq!(store.payload(SESSION.job(4)), None);

        let job = SESSION.job(3);
        let ended = Record::AttemptEnded { attempt: AttemptId { job, attempt: 1 }, valid: true };
        let bodies = EndedBodies {
            output: "result".into(),
            stdout: "out".into(),
            stderr: "err".into(),
            bars: Vec::new(),
        };
        commit(&mut store, ended, Bodies::Ended(bodies));
        let report = Report {
            attempt: 1,
            failure: None,
            attempts: 1,
            worker: None,
            queued: Default::default(),
            ran: Default::default(),
        };
        commit(&mut store, Record::JobEnded { job, report }, Bodies::Nothing);
        assert_eq!((store.payload(job), store.result(job)), (None, Some("result".into())));

        commit(&mut store, Record::Taken { job }, Bodies::Nothing);
        assert_eq!((store.result(job), store.output(job)), (None, Some(("out".into(), "err".into()))));
        commit(&mut store, Record::JobForgotten { job }, Bodies::Nothing);
        assert_eq!(store.output(job), None);
    }
}
