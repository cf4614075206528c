//! Job hosts: the bundle's executable in host mode, one process per bundle, each looked after by a tokio task of its own.
//!
//! The task starts the process, or finds one that an earlier run of the worker has started, introduces itself, carries commands
//! one way and events the other, and at the end says how the host died. Commands are carried out in order; none of them waits
//! for an event, so the two directions can't block each other.
//!
//! Hosts outlive the worker: they have a session of their own, and wait for the next worker once the connection has ended.

mod adopt;
mod events;
mod family;
mod fleet;
mod identify;
mod introduce;
mod leftovers;
mod process;
mod record;
mod session;
mod start;
mod supervise;

use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;
use lrts_core::protocol::host::{HeldRun, Output};
use lrts_core::protocol::progress::BarRecord;
use lrts_core::protocol::worker::AttemptEnd;
use lrts_core::spec::JobOptions;

pub(crate) use self::family::Family;
pub(crate) use self::fleet::{Fleet, FleetEvent};
pub(crate) use self::leftovers::{LeftEnd, Leftovers};
#[cfg(test)]
pub(crate) use self::process::Process;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::record::HostRecord;
pub(crate) use self::record::Notes;
pub(crate) use crate::engine::HostNumber;

/// What a host is to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Make the attempt's working directory and start it.
    Start(Box<Job>),
    /// Stop it; zero kills at once.
    Stop {
        /// Which.
        attempt: AttemptId,
        /// Between terminate and kill.
        grace: Duration,
    },
    /// Its end is committed.
    Confirm {
        /// Which.
        attempt: AttemptId,
    },
    /// Exclusive attempts may run on until then.
    RenewLeases {
        /// Until when.
        until: Moment,
    },
    /// Send its newest checkpoint again.
    ReadCheckpoint {
        /// Which.
        attempt: AttemptId,
    },
    /// The region isn't looked at any more.
    ReleaseRegion {
        /// Which.
        region: u32,
    },
    /// Say what it has printed.
    ReadOutput {
        /// Which.
        attempt: AttemptId,
    },
    /// End, and all jobs with it.
    End,
}

/// An attempt to be started.
#[derive(Debug)]
pub(crate) struct Job {
    /// Which.
    pub(crate) attempt: AttemptId,
    /// Which execution of the job it is, from 1.
    pub(crate) execution: u32,
    /// The service's name.
    pub(crate) service: String,
    /// Its limits and environment.
    pub(crate) options: JobOptions,
    /// The encoded service.
    pub(crate) payload: Bytes,
    /// What an earlier attempt has kept.
    pub(crate) checkpoint: Option<Bytes>,
    /// When it must end unless its lease is renewed, if it is exclusive.
    pub(crate) lease_until: Option<Moment>,
    /// What the worker wants to know of it after a restart.
    pub(crate) notes: Notes,
}

/// An attempt that a host of an earlier run has.
#[derive(Debug)]
pub(crate) struct HeldJob {
    /// Which.
    pub(crate) attempt: AttemptId,
    /// As given at its start; none if they are another version's.
    pub(crate) notes: Option<Notes>,
    /// Its process. Without one, its end comes next.
    pub(crate) run: Option<HeldRun>,
}

/// What has happened at a host. `Ready`, `Refused`, `Died` or `Gone` comes first; nothing comes after the last three, nor after
/// the end of the commands.
#[derive(Debug)]
pub(crate) enum HostEvent {
    /// It takes attempts.
    Ready {
        /// Its progress records.
        arena: OwnedFd,
        /// What it has already.
        held: Vec<HeldJob>,
    },
    /// It is there over a new connection. What was said to it last may not have arrived, attempts aside.
    Resumed,
    /// A host of an earlier run isn't there any more.
    Gone,
    /// It can't start on this machine, whatever one does.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// An attempt's process runs.
    Began {
        /// Which.
        attempt: AttemptId,
        /// Its process.
        pid: u32,
        /// Its region of the arena.
        region: u32,
    },
    /// An attempt has kept a checkpoint.
    Checkpoint {
        /// Which.
        attempt: AttemptId,
        /// The state.
        state: Bytes,
    },
    /// An attempt has ended, and nothing of it runs any more.
    Ended(Box<HostEnded>),
    /// Answer to `ReadOutput`.
    OutputRead {
        /// Which.
        attempt: AttemptId,
        /// Its stdout and stderr; none if it isn't there.
        texts: Option<(Vec<u8>, Vec<u8>)>,
    },
    /// It is gone, or couldn't be started for reasons that may pass.
    Died {
        /// What happened.
        reason: String,
    },
}

/// How an attempt ended, in full.
#[derive(Debug)]
pub(crate) struct HostEnded {
    /// Which.
    pub(crate) attempt: AttemptId,
    /// How.
    pub(crate) end: AttemptEnd,
    /// Its result.
    pub(crate) output: Output,
    /// How long it ran.
    pub(crate) ran: Duration,
    /// Largest resident memory of its process.
    pub(crate) peak_memory_bytes: u64,
    /// Its region of the arena, if it had one.
    pub(crate) region: Option<u32>,
    /// The kept end of its stdout.
    pub(crate) stdout: Vec<u8>,
    /// The kept end of its stderr.
    pub(crate) stderr: Vec<u8>,
    /// Every bar's final record.
    pub(crate) bars: Vec<BarRecord>,
}

impl HostEnded {
    /// The end of an attempt that has never run.
    fn without_run(attempt: AttemptId, end: AttemptEnd) -> Self {
        Self {
            attempt,
            end,
            output: Output::default(),
            ran: Duration::ZERO,
            peak_memory_bytes: 0,
            region: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            bars: Vec::new(),
        }
    }
}
