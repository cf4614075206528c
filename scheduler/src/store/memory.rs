//! A store for tests, that lives and dies with its process: what [`DurableStore`](super::DurableStore) means, said in ordered maps.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::ids::{ApplicationId, JobId, SessionId, WorkerId, random_u64};
use lrts_core::protocol::progress::BarRecord;

use super::load::skip_forgotten;
use super::{
    Bodies, Done, EndedBodies, Entry, Fetched, Health, ReadError, ResultBodies, StartBodies, Store,
    StoreError,
};
use crate::record::{
    ApplicationImage, JobImage, Loaded, LoadedJob, Record, SessionImage, Stage, Submitted, WorkerImage,
};

/// Records and bodies in memory. It has no clock, so that simulations repeat: all that it has is of this moment.
#[derive(Debug)]
pub(crate) struct MemoryStore {
    epoch: u64,
    identity: u64,
    applications: BTreeMap<ApplicationId, ApplicationImage>,
    sessions: BTreeMap<SessionId, SessionImage>,
    /// By session and first sequence.
    submits: BTreeMap<(SessionId, u64), Submitted>,
    /// Keyed jobs that aren't forgotten, as submits of their own.
    keyed: BTreeMap<JobId, Submitted>,
    jobs: BTreeMap<JobId, LoadedJob>,
    workers: BTreeMap<WorkerId, WorkerImage>,
    payloads: BTreeMap<JobId, Bytes>,
    checkpoints: BTreeMap<(JobId, u32), Bytes>,
    ended: BTreeMap<JobId, Ended>,
}

/// What is left of what attempts of a job brought.
#[derive(Debug, Default)]
struct Ended {
    result: Option<Bytes>,
    /// None once the result was taken.
    bars: Option<Vec<BarRecord>>,
    output: (Bytes, Bytes),
}

impl MemoryStore {
    pub(crate) fn new() -> Self {
        Self {
            epoch: 1,
            identity: random_u64(),
            applications: BTreeMap::new(),
            sessions: BTreeMap::new(),
            submits: BTreeMap::new(),
            keyed: BTreeMap::new(),
            jobs: BTreeMap::new(),
            workers: BTreeMap::new(),
            payloads: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            ended: BTreeMap::new(),
        }
    }

    /// What the next start of a scheduler finds.
    #[cfg(test)]
    pub(crate) fn reopen(self) -> Self {
        Self { epoch: self.epoch + 1, ..self }
    }

    fn apply(&mut self, entry: Entry) {
        match (entry.record, entry.bodies) {
            (Record::Application { application, image }, _) => {
                self.applications.insert(application, image);
            }
            (Record::ApplicationForgotten { application }, _) => {
                self.applications.remove(&application);
            }
            (Record::Session { session, image }, _) => {
                self.sessions.insert(session, image);
            }
            (Record::SessionForgotten { session }, _) => self.forget_session(session),
            (Record::Submitted(submitted), Bodies::Payloads(payloads)) => self.submit(submitted, &payloads),
            (Record::Job { job, image }, _) => self.job(job, image),
            (Record::JobForgotten { job, taken }, _) => {
                self.payloads.remove(&job);
                self.ended.remove(&job);
                self.keep_checkpoints(job, &[]);
                if self.keyed.remove(&job).is_some() {
                    self.jobs.remove(&job);
                } else {
                    self.jobs.insert(job, LoadedJob::Forgotten { taken });
                }
            }
            (Record::AttemptEnded { attempt, valid }, Bodies::Ended(bodies)) => {
                let EndedBodies { output, stdout, stderr, bars } = bodies;
                let ended = self.ended.entry(attempt.job).or_default();
                if valid {
                    ended.result = Some(output);
                }
                ended.bars = Some(bars);
                ended.output = (stdout, stderr);
            }
            (Record::Checkpoint { attempt }, Bodies::Checkpoint(checkpoint)) => {
                self.checkpoints.insert((attempt.job, attempt.attempt), checkpoint);
            }
            (Record::Worker { worker, image: Some(image) }, _) => {
                self.workers.insert(worker, image);
            }
            (Record::Worker { worker, image: None }, _) => {
                self.workers.remove(&worker);
            }
            // Without the bodies that belong to it there is nothing to keep.
            (Record::Submitted(_) | Record::AttemptEnded { .. } | Record::Checkpoint { .. }, _) => {}
        }
    }

    fn submit(&mut self, submitted: Submitted, payloads: &[Bytes]) {
        let key = (submitted.session, submitted.first);
        if self.submits.contains_key(&key) {
            return;
        }
        for ((sequence, payload), kept) in (submitted.first..).zip(payloads).zip(submitted.kept()) {
            if kept {
                // A copy, since a part of a message keeps all of it in memory.
                self.payloads.insert(submitted.session.job(sequence), Bytes::copy_from_slice(payload));
            }
        }
        for record in &submitted.keyed {
            let index = usize::try_from(record.sequence - submitted.first).unwrap_or(usize::MAX);
            if let (Some(&job), Some(payload)) = (submitted.jobs.get(index), payloads.get(index)) {
                self.payloads.insert(record.job, Bytes::copy_from_slice(payload));
                let options = submitted.options[usize::from(job.options)].clone();
                let alone = Submitted {
                    session: submitted.session,
                    first: record.sequence,
                    options: [options].into(),
                    jobs: vec![crate::record::NewJob { options: 0, ..job }],
                    skipped: Vec::new(),
                    keyed: vec![record.clone()],
                };
                self.keyed.insert(record.job, alone);
            }
        }
        self.submits.insert(key, submitted);
    }

    fn job(&mut self, job: JobId, image: JobImage) {
        if let Stage::Ended { taken, .. } = image.stage {
            self.payloads.remove(&job);
            if let Some(ended) = self.ended.get_mut(&job).filter(|_| taken) {
                (ended.result, ended.bars) = (None, None);
            }
        }
        self.keep_checkpoints(job, &image.checkpoints);
        self.jobs.insert(job, LoadedJob::Known(image));
    }

    fn keep_checkpoints(&mut self, job: JobId, attempts: &[u32]) {
        let all: Vec<u32> =
            self.checkpoints.range((job, 0)..=(job, u32::MAX)).map(|((_, attempt), _)| *attempt).collect();
        for attempt in all {
            if !attempts.contains(&attempt) {
                self.checkpoints.remove(&(job, attempt));
            }
        }
    }

    fn forget_session(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        self.submits.retain(|(other, _), _| *other != session);
        self.jobs.retain(|job, _| job.session != session);
        self.payloads.retain(|job, _| job.session != session);
        self.ended.retain(|job, _| job.session != session);
        self.checkpoints.retain(|(job, _), _| job.session != session);
    }

    fn start(&self, job: JobId, checkpoint: Option<u32>) -> Option<StartBodies> {
        let payload = self.payloads.get(&job)?.clone();
        let checkpoint = checkpoint.and_then(|attempt| self.checkpoints.get(&(job, attempt))).cloned();
        Some(StartBodies { payload, checkpoint })
    }

    fn ended(&self, job: JobId) -> Option<ResultBodies> {
        let ended = self.ended.get(&job)?;
        let bars = ended.bars.clone()?;
        Some(ResultBodies { output: ended.result.clone().unwrap_or_default(), bars })
    }

    fn printed(&self, job: JobId) -> Option<(Bytes, Bytes)> {
        let terminal = || match self.jobs.get(&job)? {
            LoadedJob::Known(JobImage { stage: Stage::Ended { .. }, .. }) => Some(Default::default()),
            LoadedJob::Known(_) | LoadedJob::Forgotten { .. } => None,
        };
        self.ended.get(&job).map(|ended| ended.output.clone()).or_else(terminal)
    }
}

impl Store for MemoryStore {
    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn identity(&self) -> u64 {
        self.identity
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        let mut submits = self.submits.clone();
        for submitted in submits.values_mut() {
            let session = submitted.session;
            skip_forgotten(submitted, |record| {
                let alone = self.keyed.get(&record.job);
                alone.is_some_and(|alone| (alone.session, alone.first) == (session, record.sequence))
            });
        }
        let carried = |alone: &&Submitted| {
            !submits.values().any(|submitted| {
                submitted.session == alone.session
                    && submitted.keyed.iter().any(|record| record.sequence == alone.first)
            })
        };
        let alone: Vec<Submitted> = self.keyed.values().filter(carried).cloned().collect();
        submits.extend(alone.into_iter().map(|alone| ((alone.session, alone.first), alone)));
        let now = Duration::ZERO;
        Ok(Loaded {
            applications: self.applications.clone().into_iter().collect(),
            sessions: self.sessions.clone().into_iter().collect(),
            submits: submits.into_values().map(|submitted| (now, submitted)).collect(),
            jobs: self.jobs.iter().map(|(&job, content)| (job, now, content.clone())).collect(),
            workers: self.workers.clone().into_iter().collect(),
        })
    }

    fn commit(&mut self, _epoch: u64, batch: Vec<Entry>, done: Done) {
        for entry in batch {
            self.apply(entry);
        }
        done();
    }

    fn payload(&self, job: JobId, checkpoint: Option<u32>) -> Fetched<StartBodies> {
        Fetched::Now(self.start(job, checkpoint).ok_or(ReadError::Missing))
    }

    fn result(&self, job: JobId) -> Fetched<ResultBodies> {
        Fetched::Now(self.ended(job).ok_or(ReadError::Missing))
    }

    fn output(&self, job: JobId) -> Fetched<(Bytes, Bytes)> {
        Fetched::Now(self.printed(job).ok_or(ReadError::Missing))
    }

    fn health(&self) -> Health {
        Health::Good
    }

    fn refuses(&self, _bytes: u64) -> Option<String> {
        None
    }

    fn close(self: Box<Self>) {}
}
