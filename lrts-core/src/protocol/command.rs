//! The commands `lrts status`, `jobs`, `workers`, `logs`, `cancel` and the scheduler.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::codec::Head;
use crate::ids::{ApplicationId, JobId, UserName, WorkerId};
use crate::limits::{self, HeadBounds};
use crate::status::JobState;
pub use crate::status::WorkerState;

/// What a command asks the scheduler.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FromCommand {
    /// Answered by [`ToCommand::Status`].
    Status,
    /// Answered by [`ToCommand::Jobs`], several times until one says that it is the last.
    Jobs,
    /// Answered by [`ToCommand::Workers`], several times until one says that it is the last.
    Workers,
    /// Answered by [`ToCommand::Logs`].
    Logs {
        /// Whose output.
        job: JobId,
    },
    /// Answered by [`ToCommand::Cancelled`].
    Cancel {
        /// Which jobs.
        jobs: Vec<JobId>,
    },
    /// Answered by [`ToCommand::Applications`], several times until one says that it is the last.
    Applications,
    /// Cancels all jobs of an application. Answered by [`ToCommand::ApplicationCancelled`].
    CancelApplication {
        /// Which.
        application: ApplicationId,
    },
    /// Cancels all jobs of all applications of a user. Answered by [`ToCommand::UserCancelled`].
    CancelUser {
        /// Whose.
        user: UserName,
    },
    /// Lets a worker take nothing new. Answered by [`ToCommand::Draining`].
    Drain {
        /// Which.
        worker: WorkerId,
        /// When what it still runs is stopped and placed elsewhere; never if none.
        deadline: Option<Duration>,
    },
}

impl Head for FromCommand {
    const NAME: &'static str = "FromCommand";
    const BOUNDS: HeadBounds = limits::FROM_COMMAND;
}

/// What the scheduler answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToCommand {
    /// The whole in figures.
    Status(Status),
    /// Some jobs.
    Jobs {
        /// One row per job.
        rows: Vec<JobRow>,
        /// Whether no more follow.
        last: bool,
    },
    /// Some workers.
    Workers {
        /// One row per worker.
        rows: Vec<WorkerRow>,
        /// Whether no more follow.
        last: bool,
    },
    /// A job's output so far. Body: stdout, stderr.
    Logs {
        /// Lengths of the two in the body; none if there is no such job.
        bytes: Option<(u32, u32)>,
        /// Why there is nothing, where there is nothing: not begun, its worker is away.
        note: String,
    },
    /// The jobs are being cancelled.
    Cancelled {
        /// Those that are unknown.
        unknown: Vec<JobId>,
        /// Those that had ended before.
        ended: Vec<JobId>,
    },
    /// Some of the applications that are remembered.
    Applications {
        /// One row per application.
        rows: Vec<ApplicationRow>,
        /// Whether no more follow.
        last: bool,
    },
    /// The application's jobs are being cancelled.
    ApplicationCancelled {
        /// How many had not ended; none if the application is unknown.
        jobs: Option<u64>,
    },
    /// The jobs of the user's applications are being cancelled.
    UserCancelled {
        /// How many applications are remembered.
        applications: u64,
        /// How many of their jobs had not ended.
        jobs: u64,
    },
    /// The worker takes nothing new.
    Draining {
        /// How many attempts it still has; none if the worker is unknown.
        attempts: Option<u64>,
    },
}

impl Head for ToCommand {
    const NAME: &'static str = "ToCommand";
    const BOUNDS: HeadBounds = limits::TO_COMMAND;
}

/// A row of `lrts applications`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ApplicationRow {
    /// The application.
    pub application_id: ApplicationId,
    /// Whose it is; none if nobody with a key has attached it.
    pub user: Option<UserName>,
    /// Whether it is connected.
    pub connected: bool,
    /// For how long it has been away, in seconds; none while it is connected.
    pub away_s: Option<f64>,
    /// Jobs that wait.
    pub queued: u64,
    /// Jobs that run.
    pub running: u64,
    /// Jobs that finished and are remembered.
    pub finished: u64,
    /// Jobs that ended otherwise and are remembered, but for those that were cancelled.
    pub failed: u64,
    /// Jobs that were cancelled and are remembered.
    #[serde(default)]
    pub cancelled: u64,
}

/// `lrts status`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// How many jobs are in each state, in the order of [`JobState::ALL`].
    pub jobs: Vec<(String, u64)>,
    /// Connected workers.
    pub workers: u64,
    /// Since the scheduler started.
    pub uptime_s: f64,
    /// What hinders the scheduler from keeping things: a full or failing disk. Empty if nothing does.
    #[serde(default)]
    pub store_trouble: String,
    /// What the scheduler has refused since it started, by why, and how often: peers, connections and jobs.
    #[serde(default)]
    pub refused: Vec<(String, u64)>,
}

/// A row of `lrts jobs`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct JobRow {
    /// The job.
    pub job_id: JobId,
    /// The application that scheduled it.
    pub application_id: ApplicationId,
    /// Whose that is; none if nobody with a key has attached it.
    pub user: Option<UserName>,
    /// The service's name.
    pub service: String,
    /// As given by the user; empty if none.
    pub label: String,
    /// Where it stands.
    pub state: JobState,
    /// The newest attempt, 0 if none.
    pub attempt: u32,
    /// Where the newest attempt is or was.
    pub worker: Option<WorkerId>,
    /// Its process there while it runs.
    pub pid: Option<u32>,
    /// Why it waits or failed; empty if there is nothing to say.
    pub reason: String,
}

/// A row of `lrts workers`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct WorkerRow {
    /// The worker.
    pub worker: WorkerId,
    /// Its machine.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// Slots it offers.
    pub slots: u32,
    /// Attempts that run there.
    pub running: u32,
    /// Where it stands.
    pub state: WorkerState,
    /// When it was last heard of.
    pub silent: Duration,
}
