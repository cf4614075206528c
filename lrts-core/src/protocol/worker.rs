//! Worker and scheduler.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::progress::BarRecord;
use crate::ids::{ApplicationId, AttemptId, BundleDigest, WorkerId};
use crate::spec::{BundleRef, Platform};
use crate::status::Failure;

/// What a worker tells the scheduler.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FromWorker {
    /// First message on every connection. The answer is [`ToWorker::Registered`].
    Register(Register),
    /// Renews the lease. Sent urgently, every heartbeat interval.
    Heartbeat,
    /// An attempt's process has begun to run the service. A repeat is ignored.
    Began {
        /// Which.
        attempt: AttemptId,
        /// Its process id on the worker's machine.
        pid: u32,
    },
    /// An attempt has ended. Body: output, stdout, stderr. Sent again on every new connection until `Confirm` has come.
    Ended(Ended),
    /// Attempts that the worker gives back before they began: recalled, or it is leaving. Charged to nobody.
    Returned {
        /// Which.
        attempts: Vec<AttemptId>,
    },
    /// Answer to `Recall` where the attempt had begun already, or is unknown.
    NotReturned {
        /// Which.
        attempt: AttemptId,
    },
    /// The worker lacks this bundle from this offset on.
    WantBundle {
        /// Which.
        digest: BundleDigest,
        /// What it has already.
        offset: u64,
    },
    /// The bundle can't start here. Its attempts that haven't begun come back with it, charged to nobody.
    BundleRefused {
        /// Which.
        bundle: BundleRef,
        /// Why, with the worker's host name.
        reason: String,
        /// The attempts.
        attempts: Vec<AttemptId>,
    },
    /// Answer to `FetchOutput`. Body: stdout, stderr.
    Output {
        /// From the question.
        request: u64,
        /// Lengths of the two in the body; none if the attempt isn't there.
        bytes: Option<(u32, u32)>,
    },
    /// The worker leaves: `Returned` and `Ended` for all its attempts went before. Nothing comes after.
    Goodbye,
}

/// What a worker is and has.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Register {
    /// Its id, kept in its state directory.
    pub worker: WorkerId,
    /// Its machine's name.
    pub host: String,
    /// The daemon's process id there.
    pub pid: u32,
    /// How many slots it offers.
    pub slots: u32,
    /// What it can start.
    pub platform: Platform,
    /// The kernel's id of this boot of the machine: attempts of another boot are gone.
    pub boot_id: String,
    /// Names of the bundles that are installed here.
    pub installed: Vec<String>,
    /// Whether bundles may be shipped here, not only installed ones run.
    pub ships: bool,
    /// Every attempt that is here: waiting, running, or ended and not confirmed.
    pub attempts: Vec<HeldAttempt>,
}

/// One entry of a worker's inventory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeldAttempt {
    /// Which.
    pub attempt: AttemptId,
    /// How long it has been running; none if it hasn't begun.
    pub running: Option<Duration>,
    /// Its process id, 0 if it hasn't begun.
    pub pid: u32,
}

/// How an attempt ended.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// Which.
    pub attempt: AttemptId,
    /// How.
    pub end: AttemptEnd,
    /// How long it ran.
    pub ran: Duration,
    /// Largest resident memory of its process.
    pub peak_memory_bytes: u64,
    /// Lengths of output, stdout and stderr in the body.
    pub body_bytes: (u64, u32, u32),
    /// Every bar's final record.
    pub bars: Vec<BarRecord>,
}

/// How an attempt ended.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum AttemptEnd {
    /// `run` returned a value, which is the output.
    Finished,
    /// `run` returned an error, panicked, or the process died.
    Failed(Failure),
    /// Stopped by order of the scheduler, or because the worker is leaving.
    Stopped,
    /// Its host died, or the machine ran out of memory: charged to nobody.
    Lost {
        /// What happened.
        reason: String,
    },
}

/// What the scheduler tells a worker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// Answer to `Register`.
    Registered {
        /// Counts the scheduler's starts on this store.
        epoch: u64,
        /// How often to send a heartbeat.
        heartbeat: Duration,
        /// How long a silent worker keeps its lease.
        lost_after: Duration,
        /// Attempts of the inventory that are no longer open: to be killed and forgotten.
        closed: Vec<AttemptId>,
    },
    /// Another heartbeat interval from now on.
    SetHeartbeat {
        /// How often to send a heartbeat.
        heartbeat: Duration,
    },
    /// Run this. Body: the payload. A repeat for an attempt that is here is ignored.
    Start(Start),
    /// Stop this attempt: terminate, kill after the grace period. Answered by `Ended`; an unknown attempt is ignored.
    Stop {
        /// Which.
        attempt: AttemptId,
        /// Skip the grace period.
        at_once: bool,
    },
    /// Give this attempt back if it hasn't begun. Answered by `Returned` or `NotReturned`.
    Recall {
        /// Which.
        attempt: AttemptId,
    },
    /// The ends of these attempts are committed (or not wanted any more): forget them.
    Confirm {
        /// Which.
        attempts: Vec<AttemptId>,
    },
    /// Body: a piece of the bundle, compressed with zstd, as asked for by `WantBundle`. Pieces follow each other to the end.
    BundleChunk {
        /// Which.
        digest: BundleDigest,
        /// Where the piece starts.
        offset: u64,
        /// Its length before compression.
        bytes: u32,
        /// Length of the whole bundle.
        total: u64,
    },
    /// The wanted bundle isn't here (any more).
    BundleMissing {
        /// Which.
        digest: BundleDigest,
    },
    /// What has this attempt printed so far?
    FetchOutput {
        /// Comes back in the answer.
        request: u64,
        /// Which.
        attempt: AttemptId,
    },
}

/// One attempt to be run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Start {
    /// Which.
    pub attempt: AttemptId,
    /// Which execution of the job it will be, from 1: what `JobContext::attempt` shows.
    pub execution: u32,
    /// Whose it is.
    pub application: ApplicationId,
    /// The executable.
    pub bundle: BundleRef,
    /// The service's name.
    pub service: String,
    /// The job's label; empty if none.
    pub label: String,
    /// How many slots it takes.
    pub slots: u32,
    /// Environment variables to set.
    pub env: Vec<(String, String)>,
    /// How often its application wants the round trip to the progress server measured.
    pub progress_rtt_test: Duration,
}
