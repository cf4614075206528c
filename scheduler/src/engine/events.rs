//! What goes into the engine and what comes out.

use std::sync::Arc;
use std::time::Duration;

use lrts_core::ids::{ApplicationId, AttemptId, BundleDigest, JobId, SessionId, UserName, WorkerId};
use lrts_core::spec::{BundleRef, JobOptions, KeyedJob, OnDisconnect, Platform};
use lrts_core::status::{Failure, RefusalCause};

use super::platforms::Platforms;
use crate::record::{NewJob, Record, Report};

/// One connection; never used for another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Peer(pub(crate) u64);

/// First and last sequence of each range, both included.
pub(crate) type Ranges = Vec<(u64, u64)>;

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// An application said who it is.
    Attached { peer: Peer, attach: Attach },
    /// An application scheduled jobs.
    Submitted { peer: Peer, submit: Submit },
    /// An application waits for results.
    Wanted { peer: Peer, session: SessionId, ranges: Ranges, urgent: bool },
    /// The answers that an application was given are on their way: it may have more.
    RoomFor { peer: Peer },
    /// An application has room for more results.
    CreditGranted { peer: Peer, credit: Credit },
    /// Results were returned to the caller.
    Taken { peer: Peer, session: SessionId, ranges: Ranges },
    /// An application wishes to stop some of its jobs.
    CancelAsked { peer: Peer, session: SessionId, ranges: Ranges },
    /// An application asks which jobs it has, or whether it has this one.
    ListAsked { peer: Peer, request: u64, job: Option<JobId> },
    /// An application leaves and means to come back.
    DetachAsked { peer: Peer },
    /// An application wishes to end.
    StopAsked { peer: Peer },
    /// A worker said who it is and what it has.
    Registered { peer: Peer, registration: Registration, held: Vec<Held> },
    /// A worker is alive, and wants to hear so.
    HeartbeatReceived { peer: Peer, number: u64 },
    /// An attempt's process runs the service.
    Began { peer: Peer, attempt: AttemptId, pid: u32 },
    /// An attempt has brought a checkpoint.
    CheckpointCame { peer: Peer, attempt: AttemptId },
    /// An attempt has ended. `output_bytes` is the length of its result.
    Ended { peer: Peer, attempt: AttemptId, outcome: AttemptOutcome, ran: Duration, output_bytes: u64 },
    /// A worker gave attempts back before they began.
    Returned { peer: Peer, attempts: Vec<AttemptId> },
    /// An attempt that was recalled had begun already.
    NotReturned { peer: Peer, attempt: AttemptId },
    /// A program can't start on a worker, which gives these attempts back.
    BundleRefusedByWorker { peer: Peer, bundle: BundleRef, reason: String, attempts: Vec<AttemptId> },
    /// A worker has left in order.
    SaidGoodbye { peer: Peer },
    /// A worker's daemon has left, its jobs run on.
    SaidAbsent { peer: Peer, back_within: Duration },
    /// A connection has ended.
    Disconnected { peer: Peer },
    /// A bundle is here, verified and synced. A repeat may bring further accounts of what it was built for.
    BundleCompleted { digest: BundleDigest, bytes: u64, platforms: Platforms },
    /// What an application offers of a bundle may yet come, or is here: an earlier failure counts no more.
    BundleOffered { peer: Peer, digest: BundleDigest, bytes: u64, platform: Platform },
    /// What an application offered, or sent, of a bundle is of no use: its own jobs of it fail. Others may have the right one.
    BundleFailed { peer: Peer, digest: BundleDigest, reason: String },
    /// A bundle isn't here any more: it was deleted to make room.
    BundleForgotten { digest: BundleDigest },
    /// A command wishes to stop these jobs.
    JobsCancelled { jobs: Vec<JobId> },
    /// A command wishes to stop all jobs of an application.
    ApplicationCancelled { application: ApplicationId },
    /// A command wishes that a worker takes nothing new, and that what it still has after this time goes elsewhere.
    DrainOrdered { worker: WorkerId, deadline: Option<Duration> },
    /// Time has passed. Ended jobs whose time has come are forgotten only where the disk keeps up.
    Tick { may_forget: bool },
}

/// Who attaches and on what terms.
#[derive(Clone, Debug)]
pub(crate) struct Attach {
    /// Of the key that it has; none where the scheduler has no keys.
    pub(crate) user: Option<UserName>,
    pub(crate) application: ApplicationId,
    pub(crate) session: SessionId,
    pub(crate) bundle: BundleRef,
    /// Submits name them by index.
    pub(crate) services: Vec<String>,
    pub(crate) on_disconnect: OnDisconnect,
    pub(crate) progress_rtt_test: Duration,
    pub(crate) credit: Credit,
}

/// Room at an application for results that aren't waited for urgently.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Credit {
    pub(crate) results: u32,
    /// The last result may exceed it.
    pub(crate) bytes: u64,
}

/// Jobs of one message, numbered on from `first`.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Submit {
    pub(crate) first: u64,
    pub(crate) options: Vec<JobOptions>,
    pub(crate) jobs: Vec<NewJob>,
    /// Ascending by index.
    pub(crate) keys: Vec<KeyedJob>,
    /// Why the store can't take them, if it can't.
    pub(crate) no_room: Option<String>,
}

/// What a worker is and has.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    pub(crate) worker: WorkerId,
    pub(crate) host: String,
    pub(crate) pid: u32,
    /// Of this start of its daemon.
    pub(crate) instance: u64,
    pub(crate) slots: u32,
    pub(crate) platform: Platform,
    /// Of its machine: attempts of an earlier boot are gone.
    pub(crate) boot_id: String,
    /// Names of the bundles that are installed there.
    pub(crate) installed: Vec<String>,
    /// Whether bundles may be shipped there.
    pub(crate) ships: bool,
    /// The store that what it holds comes from.
    pub(crate) store: Option<u64>,
}

/// One entry of a worker's inventory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Held {
    pub(crate) attempt: AttemptId,
    /// How long it has been running; none if it hasn't begun.
    pub(crate) running: Option<Duration>,
    pub(crate) pid: u32,
    /// Whether it has ended; how is about to be told.
    pub(crate) ended: bool,
}

/// How an attempt ended.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum AttemptOutcome {
    /// `run` returned a value.
    Finished,
    /// `run` returned an error or panicked, or the process died.
    Failed(Failure),
    /// Stopped by order, or because the worker leaves.
    Stopped,
    /// Nobody's fault.
    Lost { reason: String },
}

/// What to do, in this order.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Action {
    /// Commit this.
    Persist(Record),
    /// Send this once all records before it are committed.
    Send { to: Peer, message: Message },
    /// Send this without waiting for any commit: it depends on none, and a slow disk must not delay it.
    SendAtOnce { to: Peer, message: Message },
    /// End a connection. [`Event::Disconnected`] for it is ignored.
    Disconnect { peer: Peer, reason: Reason },
    /// Whether a bundle is needed: it may not be deleted while it is.
    BundleInUse { digest: BundleDigest, in_use: bool },
    /// Tell the operator.
    Note(Note),
}

/// Why a connection is ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    /// A newer connection of the same application or worker has taken over.
    Superseded,
    /// The peer broke the protocol.
    Protocol(String),
    /// The application belongs to another user.
    Owner(ApplicationId),
    /// There is no room for the application.
    Full(String),
    /// A silent worker's lease has expired: it registers anew if it is there.
    LeaseExpired,
}

/// How many jobs of an application stand where.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) queued: u64,
    pub(crate) running: u64,
    pub(crate) finished: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
}

/// What all jobs of one service and equal options have in common: made once, shared by every dispatch.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Recipe {
    pub(crate) application: ApplicationId,
    pub(crate) bundle: BundleRef,
    pub(crate) service: Arc<str>,
    pub(crate) options: JobOptions,
    pub(crate) progress_rtt_test: Duration,
}

/// What is said to applications and workers.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Message {
    /// Answer to an application that attached.
    Attached { epoch: u64, accepted_through: u64 },
    /// Every sequence up to here is committed, or was refused.
    Accepted { through: u64 },
    /// A job that isn't taken.
    Refused { sequence: u64, reason: String, cause: RefusalCause },
    /// A job has ended. Its output and bars are in the store.
    Result { job: JobId, report: Report },
    /// A wanted job was taken before, or is unknown.
    Gone { job: JobId, taken: bool },
    /// How many jobs stand where.
    Totals(Totals),
    /// Some of an application's jobs.
    Listed { request: u64, jobs: Vec<ListedJobs>, last: bool },
    /// Answer to an application that means to come back.
    Detached,
    /// Answer to an application that stopped.
    Stopped,
    /// Answer to a worker that registered.
    Registered { store: u64, epoch: u64, heartbeat: Duration, lost_after: Duration, closed: Vec<AttemptId> },
    /// Answer to a heartbeat.
    Renewed { number: u64 },
    /// Another heartbeat interval.
    SetHeartbeat { heartbeat: Duration },
    /// Run this. The payload is in the store, and the checkpoint of this attempt, if there is one.
    Start {
        attempt: AttemptId,
        execution: u32,
        owner: Option<UserName>,
        recipe: Arc<Recipe>,
        checkpoint: Option<u32>,
    },
    /// Stop this attempt.
    Stop { attempt: AttemptId },
    /// Give this attempt back if it hasn't begun.
    Recall { attempt: AttemptId },
    /// The ends of these attempts are committed, or not wanted any more.
    Confirm { attempts: Vec<AttemptId> },
}

/// Jobs of one service and session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ListedJobs {
    pub(crate) service: Arc<str>,
    pub(crate) session: SessionId,
    pub(crate) ranges: Ranges,
}

/// What an operator may want to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Note {
    ApplicationAttached {
        application: ApplicationId,
        /// Who owns it.
        user: Option<UserName>,
        session: SessionId,
    },
    ApplicationLeft {
        application: ApplicationId,
    },
    ApplicationStopped {
        application: ApplicationId,
    },
    /// It was away too long: its jobs are cancelled.
    ApplicationCancelled {
        application: ApplicationId,
    },
    WorkerRegistered {
        worker: WorkerId,
        host: String,
        slots: u32,
        attempts: usize,
    },
    WorkerSuspect {
        worker: WorkerId,
    },
    WorkerLost {
        worker: WorkerId,
        attempts: usize,
    },
    WorkerLeft {
        worker: WorkerId,
    },
    /// Its daemon has left, its jobs run on.
    WorkerAbsent {
        worker: WorkerId,
        back_within: Duration,
    },
    /// It takes nothing new.
    WorkerDrains {
        worker: WorkerId,
        reason: String,
    },
    /// It holds attempts of another scheduler's store.
    WorkerOfAnotherStore {
        worker: WorkerId,
        attempts: usize,
    },
    /// Results that nobody has taken are forgotten to make room.
    ResultsDropped {
        jobs: usize,
    },
    /// Ended jobs are forgotten to make room, of which nobody had taken the result or heard how they ended.
    EndedJobsDropped {
        jobs: usize,
    },
    /// Too many workers fell silent together: none of them is given up.
    BrakeEngaged {
        silent: usize,
        known: usize,
    },
    BrakeReleased,
    /// The scheduler itself was stopped for about this long: no lease expires because of it.
    WasAbsent {
        late: Duration,
    },
    /// It speaks of an attempt that isn't, or is no longer, there.
    UnknownAttempt {
        worker: WorkerId,
        attempt: AttemptId,
    },
    /// An application came with another user's key.
    ForeignApplication {
        application: ApplicationId,
    },
    WorkerRefusedBundle {
        worker: WorkerId,
        reason: String,
    },
    JobEnded {
        job: JobId,
        failed: bool,
    },
}
