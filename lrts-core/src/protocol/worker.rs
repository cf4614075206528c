//! Worker and scheduler.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::codec::Head;
use super::progress::BarRecord;
use crate::ids::{ApplicationId, AttemptId, BundleDigest, UserName, WorkerId};
use crate::limits::{self, HeadBounds};
use crate::spec::{BundleRef, JobOptions, Platform};
use crate::status::Failure;
use crate::worker_secret::WorkerSecret;

/// What a worker tells the scheduler.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FromWorker {
    /// First message on every connection. The answer is [`ToWorker::Registered`].
    Register(Register),
    /// Renews the lease. Sent urgently, every heartbeat interval. Answered by [`ToWorker::Renewed`].
    Heartbeat {
        /// Comes back in the answer: the worker's lease counts from when it sent this.
        number: u64,
    },
    /// An attempt's process has begun to run the service. A repeat is ignored.
    Began {
        /// Which.
        attempt: AttemptId,
        /// Its process id on the worker's machine.
        pid: u32,
    },
    /// Body: an attempt's newest checkpoint. It replaces the one before; an attempt that is no longer open is ignored. Sent
    /// again on every new connection.
    Checkpoint {
        /// Which.
        attempt: AttemptId,
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
    /// The worker's daemon leaves and its jobs run on under their hosts, which wait this long for it to come back. Nothing
    /// comes after.
    Absent {
        /// For so long the worker isn't lost.
        back_within: Duration,
    },
}

impl Head for FromWorker {
    const NAME: &'static str = "FromWorker";
    const BOUNDS: HeadBounds = limits::FROM_WORKER;
}

/// What a worker is and has.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Register {
    /// Its id.
    pub worker: WorkerId,
    /// Whose digest its id must be; see [`WorkerSecret::worker`]. Else it is refused, since it would take another's place.
    pub secret: WorkerSecret,
    /// Its machine's name.
    pub host: String,
    /// The daemon's process id there.
    pub pid: u32,
    /// A random number of this start of the daemon.
    #[serde(default)]
    pub instance: u64,
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
    /// The store that they come from, as told in `Registered`; none if the worker has no attempts at all, not even of another
    /// store. Attempts of another store than the scheduler's are not compared with anything: the worker keeps them aside and
    /// registers anew without them.
    #[serde(default)]
    pub store: Option<u64>,
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
    /// Whether it has ended; how is said by the `Ended` that follows.
    #[serde(default)]
    pub ended: bool,
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

/// Why an exclusive attempt is lost that its watchdog has ended. Nothing is wrong with its machine.
pub const LEASE_ENDED: &str = "its lease ended";

/// What the scheduler tells a worker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "they are made and read one at a time")]
pub enum ToWorker {
    /// Answer to `Register`.
    Registered {
        /// Which store the scheduler has: a random number made with it.
        store: u64,
        /// Counts the scheduler's starts on this store.
        epoch: u64,
        /// How often to send a heartbeat.
        heartbeat: Duration,
        /// How long a silent worker keeps its lease.
        lost_after: Duration,
        /// Attempts of the inventory that are no longer open: to be killed and forgotten.
        closed: Vec<AttemptId>,
    },
    /// Answer to `Heartbeat`, sent urgently.
    Renewed {
        /// From the heartbeat.
        number: u64,
    },
    /// Another heartbeat interval from now on.
    SetHeartbeat {
        /// How often to send a heartbeat.
        heartbeat: Duration,
    },
    /// Run this. Body: the payload, then the checkpoint. A repeat for an attempt that is here is ignored.
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

impl Head for ToWorker {
    const NAME: &'static str = "ToWorker";
    const BOUNDS: HeadBounds = limits::TO_WORKER;
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
    /// The user whose the application is: its bars are shown to nobody else. None where the scheduler has no keys.
    pub owner: Option<UserName>,
    /// The executable.
    pub bundle: BundleRef,
    /// The service's name.
    pub service: String,
    /// How it is to be run: label, slots, environment, limits.
    pub options: JobOptions,
    /// Length of the checkpoint that an earlier attempt has left, at the body's end.
    #[serde(default)]
    pub checkpoint_bytes: Option<u32>,
    /// How often its application wants the round trip to the progress server measured.
    pub progress_rtt_test: Duration,
}
