//! What must outlive the scheduler's process: the engine orders it kept, the store keeps it, and a restarted engine is built
//! from it.
//!
//! A record is either new jobs, or the whole of what is to be known of one thing from now on (an *image*): writing it twice, or
//! only the newest of several, comes to the same. Bodies (payloads, results, output, checkpoints) travel beside records, see
//! [`Bodies`](crate::store::Bodies).

use std::sync::Arc;
use std::time::Duration;

use lrts_core::ids::{ApplicationId, AttemptId, JobId, SessionId, UserName, WorkerId};
use lrts_core::spec::{BundleRef, JobOptions, OnDisconnect};
use lrts_core::status::Failure;
use serde::{Deserialize, Serialize};

/// One thing to be kept.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Record {
    /// An application, or its new terms.
    Application { application: ApplicationId, image: ApplicationImage },
    /// Nothing is known of an application any more. Its sessions were forgotten before.
    ApplicationForgotten { application: ApplicationId },
    /// A session began.
    Session { session: SessionId, image: SessionImage },
    /// Nothing is known of a session and its jobs any more.
    SessionForgotten { session: SessionId },
    /// New jobs. Bodies: the payloads of all of them, in order.
    Submitted(Submitted),
    /// What is known of a job. Bodies that it needs no more go: the payload of a terminal job; the result and bars of one
    /// that was taken; checkpoints that [`JobImage::checkpoints`] doesn't name.
    Job { job: JobId, image: JobImage },
    /// Nothing is known of a job any more, except that its sequence was used and whether its result was taken.
    JobForgotten { job: JobId, taken: bool },
    /// An attempt has ended. Bodies: its result, output and bars. The result is kept if it is `valid`; output and bars replace
    /// those of earlier attempts.
    AttemptEnded { attempt: AttemptId, valid: bool },
    /// An open attempt's newest checkpoint, which replaces the one before. Body: the checkpoint.
    Checkpoint { attempt: AttemptId },
    /// What is known of a worker; nothing worth keeping if none.
    Worker { worker: WorkerId, image: Option<WorkerImage> },
}

/// Whose an application is, and its terms.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ApplicationImage {
    /// The user whose it is; none if it was never attached with a key.
    #[serde(default)]
    pub(crate) owner: Option<UserName>,
    pub(crate) on_disconnect: OnDisconnect,
    pub(crate) progress_rtt_test: Duration,
}

/// One start of an application.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct SessionImage {
    pub(crate) application: ApplicationId,
    pub(crate) bundle: BundleRef,
    pub(crate) services: Vec<String>,
    /// Its program has been here, or can't be had: what was submitted counts as accepted.
    pub(crate) decided: bool,
    /// Its application was stopped: its jobs are forgotten as soon as they are terminal.
    pub(crate) stopped: bool,
}

/// One job of a submit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct NewJob {
    /// Index into the session's services.
    pub(crate) service: u16,
    /// Index into the submit's options.
    pub(crate) options: u16,
    pub(crate) payload_bytes: u32,
}

/// Jobs that came in one message, numbered on from `first`, all committed as one record.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Submitted {
    pub(crate) session: SessionId,
    pub(crate) first: u64,
    pub(crate) options: Arc<[JobOptions]>,
    pub(crate) jobs: Vec<NewJob>,
    /// Sequences among them that made no job, ascending: refused, or of a key whose job was known. Nothing of their payloads
    /// is kept.
    pub(crate) skipped: Vec<u64>,
    /// Those that made jobs with a key, ascending by sequence. Such a job is known by its own id from now on, its payload too;
    /// the sequence is used up.
    pub(crate) keyed: Vec<KeyedRecord>,
}

/// A job with a key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct KeyedRecord {
    pub(crate) sequence: u64,
    pub(crate) job: JobId,
    pub(crate) key: String,
    /// Of its service and payload.
    pub(crate) digest: u64,
}

/// What is known of a job beyond what was submitted.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct JobImage {
    /// The newest attempt's number.
    pub(crate) attempts: u32,
    /// How many of them began.
    pub(crate) executions: u32,
    /// Returned errors and panics.
    pub(crate) failures: u32,
    /// Dead processes.
    pub(crate) crashes: u32,
    /// Whether it ends as cancelled once its attempt has ended.
    pub(crate) cancelling: bool,
    /// Why its last attempt brought no result, or why it is cancelled.
    pub(crate) last_failure: Option<Failure>,
    /// Its open attempts.
    pub(crate) open: Vec<OpenAttempt>,
    /// Attempts whose checkpoints are kept, the newest checkpoint last.
    pub(crate) checkpoints: Vec<u32>,
    pub(crate) stage: Stage,
}

/// An attempt whose result counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct OpenAttempt {
    pub(crate) attempt: u32,
    pub(crate) worker: WorkerId,
    /// How long it had been running when the image was made; none if it hadn't begun.
    pub(crate) ran: Option<Duration>,
    /// Whether its worker is lost.
    pub(crate) lapsed: bool,
}

/// Whether a job has ended.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// It hasn't.
    Live,
    /// It has failed for good, unless another open attempt still brings a result.
    Held { failure: Failure, report: Report },
    /// It is terminal.
    Ended {
        report: Report,
        /// Length of its result.
        output_bytes: u64,
        /// Whether the result was returned to the caller.
        taken: bool,
    },
}

/// How a job went.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Why it has no result, unless it finished.
    pub(crate) failure: Option<Failure>,
    /// The attempt that this is of, 0 if there was none.
    pub(crate) attempt: u32,
    /// How many of its attempts began.
    pub(crate) attempts: u32,
    /// Where the last attempt ran; none if none began.
    pub(crate) worker: Option<WorkerId>,
    /// From the submit to the beginning of the last attempt, or to the end where none began.
    pub(crate) queued: Duration,
    /// How long the last attempt ran.
    pub(crate) ran: Duration,
}

/// What is known of a worker beyond its attempts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct WorkerImage {
    /// It said that its daemon leaves and its jobs run on, and for how long it may stay away.
    pub(crate) absent: Option<Duration>,
    /// It takes nothing new, for this reason. Ends when another process of it registers.
    pub(crate) draining: Option<Draining>,
}

/// A worker that takes nothing new.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Draining {
    /// Why.
    pub(crate) reason: String,
    /// The start of the daemon that it was decided for, see [`Registration`](crate::engine::Registration); 0 if that isn't known.
    pub(crate) instance: u64,
    /// After which time what it still has goes elsewhere. Counts anew after a restart of the scheduler.
    pub(crate) deadline: Option<Duration>,
}

/// All that a store has, for a restarted engine. Ages are as of loading, by the wall clock, and never negative.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) applications: Vec<(ApplicationId, ApplicationImage)>,
    pub(crate) sessions: Vec<(SessionId, SessionImage)>,
    /// In the order of sessions and first sequences. Of each: how long ago it was committed.
    pub(crate) submits: Vec<(Duration, Submitted)>,
    /// Jobs that are not as they were submitted. Of each: how long ago its image was committed.
    pub(crate) jobs: Vec<(JobId, Duration, LoadedJob)>,
    pub(crate) workers: Vec<(WorkerId, WorkerImage)>,
}

/// What is left of a job that is not as it was submitted.
#[derive(Clone, PartialEq, Debug)]
#[expect(clippy::large_enum_variant, reason = "the engine takes it apart as soon as it has it")]
pub(crate) enum LoadedJob {
    Known(JobImage),
    Forgotten { taken: bool },
}
