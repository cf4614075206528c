//! Job hosts: the bundle's executable in host mode, one process per bundle, each looked after by a tokio task of its own.
//!
//! The task starts the process, introduces itself, carries commands one way and events the other, and at the end says how the
//! host died. Commands are carried out in order; none of them waits for an event, so the two directions can't block each other.

mod fleet;
mod session;
mod start;
mod supervise;

use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::ids::AttemptId;
use lrts_core::protocol::host::Output;
use lrts_core::protocol::progress::BarRecord;
use lrts_core::protocol::worker::AttemptEnd;

pub(crate) use self::fleet::{Fleet, FleetEvent};
use self::supervise::run_host;

/// Names a job host within this run of the worker, and its arena to the progress subprocess.
pub(crate) type HostNumber = u32;

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
    /// Environment variables to set.
    pub(crate) env: Vec<(String, String)>,
    /// The encoded service.
    pub(crate) payload: Bytes,
}

/// What has happened at a host. `Ready`, `Refused` or `Died` comes first; nothing comes after `Refused` or `Died`, nor after
/// the end of the commands.
#[derive(Debug)]
pub(crate) enum HostEvent {
    /// It takes attempts.
    Ready {
        /// Its progress records.
        arena: OwnedFd,
    },
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
