//! The book that is kept of what was committed and said, independent of the engine.

use std::collections::{BTreeMap, BTreeSet};

use lrts_core::ids::{AttemptId, JobId, SessionId};
use lrts_core::status::FailureKind;

use crate::record::{JobImage, OpenAttempt, Record, Report, Stage, Submitted};

/// What is known of a job that was committed.
pub(super) struct Job {
    /// The start that submitted it.
    pub(super) start: SessionId,
    pub(super) keyed: bool,
    attempts: u32,
    pub(super) open: Vec<OpenAttempt>,
    /// Whether it ever had more than one open attempt.
    had_copies: bool,
    /// The attempt that brought its result, and what that is.
    result: Option<(u32, u64)>,
    /// The checkpoint that was committed last.
    checkpoint: Option<u64>,
    pub(super) ended: Option<Report>,
    /// Whether it is committed that its result was returned to the caller.
    pub(super) taken: bool,
    pub(super) forgotten: bool,
}

impl Job {
    fn new(start: SessionId, keyed: bool) -> Self {
        Self {
            start,
            keyed,
            attempts: 0,
            open: Vec::new(),
            had_copies: false,
            result: None,
            checkpoint: None,
            ended: None,
            taken: false,
            forgotten: false,
        }
    }
}

#[derive(Default)]
pub(super) struct History {
    pub(super) jobs: BTreeMap<JobId, Job>,
    /// Attempts that workers were told to start.
    started: BTreeSet<AttemptId>,
    /// Starts of applications that asked to be stopped: their jobs may be cancelled and forgotten.
    pub(super) stopped: BTreeSet<SessionId>,
    /// Jobs that somebody wished to stop.
    pub(super) cancelled: BTreeSet<JobId>,
    /// Jobs whose results some application says it has returned to its caller.
    pub(super) returned: BTreeSet<JobId>,
}

impl History {
    pub(super) fn is_stopped(&self, job: &Job) -> bool {
        self.stopped.contains(&job.start)
    }

    /// A record is durable from now on.
    pub(super) fn committed(&mut self, record: &Record, body: u64) {
        match record {
            Record::Submitted(submitted) => self.submitted(submitted),
            Record::Job { job, image } => self.changed(*job, image),
            Record::AttemptEnded { attempt, valid } => {
                let job = self.jobs.get_mut(&attempt.job).expect("jobs are committed before their attempts");
                assert!(job.ended.is_none(), "{attempt} ends after its job");
                let open = job.open.iter().any(|open| open.attempt == attempt.attempt);
                assert!(open, "no word of a closed attempt counts: {attempt}");
                if *valid {
                    let before = job.result.replace((attempt.attempt, body));
                    assert_eq!(before, None, "{attempt} brings a second result");
                }
            }
            Record::Checkpoint { attempt } => {
                let job = self.jobs.get_mut(&attempt.job).expect("jobs are committed before their attempts");
                let open = job.open.iter().any(|open| open.attempt == attempt.attempt);
                assert!(open, "no checkpoint of a closed attempt is kept: {attempt}");
                job.checkpoint = Some(body);
            }
            Record::JobForgotten { job: id, taken } => {
                let stopped = self.is_stopped(&self.jobs[id]);
                let job = self.jobs.get_mut(id).expect("a job that was never committed isn't forgotten");
                assert!(stopped, "{id} is forgotten before its time");
                assert!(!*taken || job.taken, "{id} was not taken");
                job.forgotten = true;
            }
            Record::SessionForgotten { session } => {
                let left = self.jobs.iter().find(|(id, job)| id.session == *session && !job.forgotten);
                assert!(left.is_none(), "{:?} is forgotten with its session", left.map(|(id, _)| id));
            }
            Record::Application { .. }
            | Record::ApplicationForgotten { .. }
            | Record::Session { .. }
            | Record::Worker { .. } => {}
        }
    }

    fn submitted(&mut self, submitted: &Submitted) {
        let Submitted { session, first, jobs, skipped, keyed, .. } = submitted;
        for sequence in *first..*first + jobs.len() as u64 {
            if skipped.contains(&sequence) || keyed.iter().any(|record| record.sequence == sequence) {
                continue;
            }
            let before = self.jobs.insert(session.job(sequence), Job::new(*session, false));
            assert!(before.is_none(), "{} is submitted twice", session.job(sequence));
        }
        for record in keyed {
            let before = self.jobs.insert(record.job, Job::new(*session, true));
            assert!(before.is_none(), "key {} makes a second job", record.key);
        }
    }

    fn changed(&mut self, id: JobId, image: &JobImage) {
        let cancelled = self.cancelled.contains(&id);
        let stopped = self.is_stopped(&self.jobs[&id]);
        let job = self.jobs.get_mut(&id).expect("jobs are committed before what becomes of them");
        assert!(!job.forgotten, "{id} was forgotten");
        if let Some(ended) = &job.ended {
            let Stage::Ended { report, taken, .. } = &image.stage else { panic!("{id} ends twice") };
            assert_eq!(report, ended, "{id} ends twice");
            assert!(*taken || !job.taken, "{id} was taken");
            job.taken = *taken;
            return;
        }
        let grown = image.attempts.checked_sub(job.attempts);
        assert!(grown.is_some_and(|grown| grown <= 1), "attempts of {id} are numbered one by one");
        assert!(image.executions <= image.attempts);
        for open in &image.open {
            let known = job.open.iter().any(|known| known.attempt == open.attempt);
            assert!(known || open.attempt == image.attempts && grown == Some(1), "{id} reopens an attempt");
        }
        let live = image.open.iter().filter(|open| !open.lapsed).count();
        assert!(live <= 1, "{id} is at two trusted workers");
        job.had_copies |= image.open.len() > 1;
        job.attempts = image.attempts;
        job.open.clone_from(&image.open);
        if let Stage::Ended { report, taken, .. } = &image.stage {
            assert!(!taken && image.open.is_empty() && image.checkpoints.is_empty());
            match (&report.failure, job.result) {
                (None, Some((attempt, body))) => {
                    assert_eq!((report.attempt, body), (attempt, result_of(id, attempt)));
                }
                (None, None) => panic!("{id} has finished without a result"),
                (Some(_), None) => {}
                (Some(_), Some(_)) => panic!("{id} has failed and has a result"),
            }
            let is_cancelled =
                report.failure.as_ref().is_some_and(|failure| failure.kind == FailureKind::Cancelled);
            assert!(!is_cancelled || cancelled || stopped, "nobody cancelled {id}");
            job.ended = Some(report.clone());
        }
    }

    /// A worker is told to start an attempt, with this checkpoint if there is one.
    pub(super) fn started(&mut self, attempt: AttemptId, checkpoint: Option<u64>) {
        let job = &self.jobs[&attempt.job];
        assert!(job.ended.is_none(), "{attempt} is started after its job's end");
        assert!(attempt.attempt <= job.attempts, "{attempt} is started before that is durable");
        assert!(self.started.insert(attempt), "{attempt} is started twice");
        // It may have closed since.
        let open = job.open.iter().any(|open| open.attempt == attempt.attempt);
        if open && !job.had_copies {
            assert_eq!(checkpoint, job.checkpoint, "{attempt} begins with another state than the newest");
        }
    }

    /// A result is to be sent to an application.
    pub(super) fn ordered(&self, id: JobId) {
        assert!(!self.jobs.get(&id).is_some_and(|job| job.taken), "{id} was taken, it doesn't come again");
    }

    /// A result is sent to an application. Returns whether it is still there.
    pub(super) fn delivered(&self, id: JobId, report: &Report) -> bool {
        let job = &self.jobs[&id];
        assert_eq!(job.ended.as_ref(), Some(report), "{id} is told before that is durable");
        !job.taken && !job.forgotten
    }

    /// An application is to be told that a job is gone.
    pub(super) fn told_gone(&self, id: JobId, taken: bool) {
        let Some(job) = self.jobs.get(&id) else { return };
        if taken {
            assert!(self.returned.contains(&id), "nobody took {id}");
        } else {
            assert!(self.is_stopped(job), "{id} is lost");
        }
    }

    /// Jobs of these starts that are neither over for their application nor to be forgotten.
    pub(super) fn owed(&self, starts: &BTreeSet<SessionId>) -> impl Iterator<Item = JobId> {
        let jobs = self.jobs.iter().filter(|(_, job)| starts.contains(&job.start) && !self.is_stopped(job));
        jobs.filter(|(id, job)| job.keyed || !self.returned.contains(id)).map(|(id, _)| *id)
    }
}

/// What an attempt brings.
pub(super) fn result_of(job: JobId, attempt: u32) -> u64 {
    job.session.0 ^ job.sequence.rotate_left(20) ^ u64::from(attempt).rotate_left(50)
}
