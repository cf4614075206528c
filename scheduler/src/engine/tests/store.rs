//! What a store is to an engine: the newest image of each thing, and what a restarted engine gets of it.

use std::collections::BTreeMap;

use lrts_core::clock::Moment;
use lrts_core::ids::{ApplicationId, JobId, SessionId, WorkerId};

use crate::record::{
    ApplicationImage, JobImage, KeyedRecord, Loaded, LoadedJob, Record, SessionImage, Stage, Submitted,
    WorkerImage,
};

/// Kept records, and of bodies no more than a number each.
#[derive(Clone, Default, Debug)]
pub(super) struct Store {
    applications: BTreeMap<ApplicationId, ApplicationImage>,
    sessions: BTreeMap<SessionId, SessionImage>,
    submits: BTreeMap<(SessionId, u64), (Moment, Submitted)>,
    /// Jobs with a key that aren't forgotten, each as a submit of its own.
    keyed: BTreeMap<JobId, (Moment, Submitted)>,
    jobs: BTreeMap<JobId, (Moment, LoadedJob)>,
    workers: BTreeMap<WorkerId, WorkerImage>,
    pub(super) checkpoints: BTreeMap<(JobId, u32), u64>,
    pub(super) results: BTreeMap<JobId, u64>,
}

impl Store {
    /// Keeps a record with the body that the event brought, if it brought one.
    pub(super) fn keep(&mut self, record: &Record, body: u64, now: Moment) {
        match record {
            Record::Application { application, image } => {
                self.applications.insert(*application, image.clone());
            }
            Record::ApplicationForgotten { application } => {
                self.applications.remove(application);
            }
            Record::Session { session, image } => {
                self.sessions.insert(*session, image.clone());
            }
            Record::SessionForgotten { session } => {
                self.sessions.remove(session);
                self.submits.retain(|(other, _), _| other != session);
                self.jobs.retain(|job, _| job.session != *session);
                self.checkpoints.retain(|(job, _), _| job.session != *session);
                self.results.retain(|job, _| job.session != *session);
            }
            Record::Submitted(submitted) => self.keep_submitted(submitted, now),
            Record::Job { job, image } => {
                if let Stage::Ended { taken: true, .. } = image.stage {
                    self.results.remove(job);
                }
                self.keep_checkpoints(*job, &image.checkpoints);
                self.jobs.insert(*job, (now, LoadedJob::Known(image.clone())));
            }
            Record::JobForgotten { job, taken } => {
                self.results.remove(job);
                self.keep_checkpoints(*job, &[]);
                if self.keyed.remove(job).is_some() {
                    self.jobs.remove(job);
                } else {
                    self.jobs.insert(*job, (now, LoadedJob::Forgotten { taken: *taken }));
                }
            }
            Record::AttemptEnded { attempt, valid } => {
                if *valid {
                    self.results.insert(attempt.job, body);
                }
            }
            Record::Checkpoint { attempt } => {
                self.checkpoints.insert((attempt.job, attempt.attempt), body);
            }
            Record::Worker { worker, image: Some(image) } => {
                self.workers.insert(*worker, image.clone());
            }
            Record::Worker { worker, image: None } => {
                self.workers.remove(worker);
            }
        }
    }

    fn keep_submitted(&mut self, submitted: &Submitted, now: Moment) {
        for record in &submitted.keyed {
            let job = submitted.jobs[(record.sequence - submitted.first) as usize];
            let alone = Submitted {
                session: submitted.session,
                first: record.sequence,
                options: [submitted.options[usize::from(job.options)].clone()].into(),
                jobs: vec![crate::record::NewJob { options: 0, ..job }],
                skipped: Vec::new(),
                keyed: vec![record.clone()],
            };
            self.keyed.insert(record.job, (now, alone));
        }
        self.submits.insert((submitted.session, submitted.first), (now, submitted.clone()));
    }

    fn keep_checkpoints(&mut self, job: JobId, attempts: &[u32]) {
        self.checkpoints.retain(|(other, attempt), _| *other != job || attempts.contains(attempt));
    }

    /// What a scheduler that starts at this moment is told.
    pub(super) fn load(&self, now: Moment) -> Loaded {
        let mut submits = self.submits.clone();
        let mut alone = self.keyed.clone();
        for (_, submitted) in submits.values_mut() {
            let Submitted { session, keyed, skipped, .. } = submitted;
            let is_known = |record: &KeyedRecord| {
                self.keyed
                    .get(&record.job)
                    .is_some_and(|(_, known)| (known.session, known.first) == (*session, record.sequence))
            };
            let (known, forgotten): (Vec<KeyedRecord>, Vec<KeyedRecord>) =
                keyed.drain(..).partition(is_known);
            known.iter().for_each(|record| drop(alone.remove(&record.job)));
            skipped.extend(forgotten.iter().map(|record| record.sequence));
            skipped.sort_unstable();
            *keyed = known;
        }
        submits
            .extend(alone.into_values().map(|(since, alone)| ((alone.session, alone.first), (since, alone))));
        Loaded {
            applications: self.applications.clone().into_iter().collect(),
            sessions: self.sessions.clone().into_iter().collect(),
            submits: submits.into_values().map(|(since, submitted)| (now.since(since), submitted)).collect(),
            jobs: self
                .jobs
                .iter()
                .map(|(&job, (since, content))| (job, now.since(*since), content.clone()))
                .collect(),
            workers: self.workers.clone().into_iter().collect(),
        }
    }

    /// The newest image of a job, if there is one.
    pub(super) fn image(&self, job: JobId) -> Option<&JobImage> {
        match &self.jobs.get(&job)?.1 {
            LoadedJob::Known(image) => Some(image),
            LoadedJob::Forgotten { .. } => None,
        }
    }

    /// Whether nothing at all is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.applications.is_empty()
            && self.sessions.is_empty()
            && self.submits.is_empty()
            && self.keyed.is_empty()
            && self.jobs.is_empty()
            && self.workers.is_empty()
    }
}
