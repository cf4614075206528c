//! Worker and job host, over a SOCK_SEQPACKET socket on one machine: one notice is one packet, descriptors travel with it.
//!
//! The host holds everything of a job that must outlive the worker daemon: its socket and pipes, its region of the arena, and
//! its result until `Confirm` has come.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::codec::Head;
use super::progress::BarRecord;
use super::worker::AttemptEnd;
use crate::ids::AttemptId;
use crate::limits::{self, HeadBounds};

/// What a worker tells a job host.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "they are made and read one at a time")]
pub enum ToHost {
    /// First notice on every connection. The answer is [`FromHost::Welcome`].
    Hello {
        /// [`HOST_VERSION`](super::HOST_VERSION) of the worker, or an older one that the host has said to speak.
        version: u16,
        /// How long the host and its jobs go on once the connection has ended, waiting for another. Zero: not at all.
        #[serde(default)]
        orphan_grace: Duration,
        /// Absolute path by which this worker has found the host, as the next one will. Without a worker, the host ends once
        /// its socket is there no more. Empty: unknown.
        #[serde(default)]
        socket: PathBuf,
    },
    /// Run this attempt in a process of its own. A repeat for an attempt that is here is ignored.
    Start(StartAttempt),
    /// Stop this attempt: cancel flag and hook, SIGTERM; SIGKILL after the grace period. `Ended` follows, unless it was
    /// sent before.
    Stop {
        /// Which.
        attempt: AttemptId,
        /// Zero kills at once; a second, shorter one counts.
        grace: Duration,
    },
    /// The attempt's end is committed: its result can go.
    Confirm {
        /// Which.
        attempt: AttemptId,
    },
    /// The records of an ended attempt have been read for the last time: its region can be used again.
    ReleaseRegion {
        /// Which region of the arena.
        region: u32,
    },
    /// Leases of exclusive attempts reach until then: each of their jobs' watchdogs ends its process at that moment. An older
    /// one than before is ignored.
    RenewLeases {
        /// Nanoseconds of the boot-time clock, [`Moment::as_nanos`](crate::clock::Moment::as_nanos): one machine's clock, so
        /// that time in queues counts.
        until: u64,
    },
    /// Send this attempt's newest checkpoint again, if it has one.
    ReadCheckpoint {
        /// Which.
        attempt: AttemptId,
    },
    /// The worker leaves for good: kill all jobs and end. Of what hasn't been confirmed, ends that were written to disk while
    /// no worker was there stay and are found by the next one; the rest is forgotten.
    End,
    /// What has this attempt printed? Answered by two `Output` and an `OutputDone`.
    ReadOutput {
        /// Which.
        attempt: AttemptId,
    },
}

impl Head for ToHost {
    const NAME: &'static str = "ToHost";
    const BOUNDS: HeadBounds = limits::TO_HOST;
}

/// One attempt to be run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StartAttempt {
    /// Which.
    pub attempt: AttemptId,
    /// Which execution of the job it is, from 1.
    pub execution: u32,
    /// The service's name.
    pub service: String,
    /// The encoded service.
    pub payload: Payload,
    /// Its working directory: exists, empty, private to the attempt; the worker deletes it after the end.
    pub directory: PathBuf,
    /// Where a large result goes: the job process writes `NAME.part` beside it and renames.
    pub spool_file: PathBuf,
    /// Environment variables to set on top of the host's own.
    pub env: Vec<(String, String)>,
    /// What an earlier attempt has kept, at most [`CHECKPOINT_BYTES`](crate::limits::CHECKPOINT_BYTES). Its memfd comes behind
    /// the payload's.
    #[serde(default)]
    pub checkpoint: Option<Payload>,
    /// What a job that exceeds a time limit has to end by itself.
    #[serde(default)]
    pub grace: Duration,
    /// How long it may run. Time in which the host was stopped or its machine suspended doesn't count, nor does the time that
    /// its result waits for a full disk.
    #[serde(default)]
    pub run_timeout: Option<Duration>,
    /// How long it may go without progress. The same time doesn't count.
    #[serde(default)]
    pub progress_timeout: Option<Duration>,
    /// How much memory its processes may take together, in bytes.
    #[serde(default)]
    pub memory_limit: Option<u64>,
    /// Its lease, where it is exclusive: as in [`ToHost::RenewLeases`].
    #[serde(default)]
    pub lease_until: Option<u64>,
    /// What the worker wants to know of the attempt when it takes it over. At most 4 KiB; comes back in [`FromHost::Held`].
    #[serde(default, with = "serde_bytes")]
    pub notes: Vec<u8>,
}

/// Where the payload is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Payload {
    /// Here. At most [`INLINE_BODY_BYTES`](crate::limits::INLINE_BODY_BYTES).
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
    /// In the memfd that travels with the notice.
    Descriptor {
        /// Its length.
        bytes: u64,
    },
}

/// A process that runs an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeldRun {
    /// Its process id.
    pub pid: u32,
    /// Its region of the arena.
    pub region: u32,
    /// How long it has been running.
    pub ran: Duration,
    /// Whether it is being stopped.
    pub stopping: bool,
}

/// Where an output is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Output {
    /// Here. At most [`INLINE_BODY_BYTES`](crate::limits::INLINE_BODY_BYTES).
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
    /// In the attempt's spool file.
    Spool {
        /// Its length.
        bytes: u64,
    },
}

impl Default for Output {
    fn default() -> Self {
        Self::Inline(Vec::new())
    }
}

/// What a job host tells its worker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FromHost {
    /// Answer to `Hello`. The arena's memfd travels with it.
    Welcome {
        /// [`HOST_VERSION`](super::HOST_VERSION) of the host.
        version: u16,
        /// The host's process id.
        pid: u32,
        /// Names of the services that the program has.
        services: Vec<String>,
        /// Whether jobs are forked. If not, the program has started threads before `host_services!` and jobs are spawned.
        forks: bool,
    },
    /// An attempt that the host has: one for each, right after `Welcome`, then `AllHeld`. The ends of those that have ended
    /// come behind that.
    Held {
        /// Which.
        attempt: AttemptId,
        /// From its start.
        #[serde(with = "serde_bytes")]
        notes: Vec<u8>,
        /// Its process, if it runs.
        run: Option<HeldRun>,
    },
    /// The last `Held` has been sent.
    AllHeld,
    /// An attempt's newest checkpoint. A large one travels as a memfd.
    Checkpoint {
        /// Which.
        attempt: AttemptId,
        /// The state.
        state: Payload,
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
    /// Some of an ended attempt's final bars; all of them come before its `Ended`.
    Bars {
        /// Which.
        attempt: AttemptId,
        /// The records.
        bars: Vec<BarRecord>,
    },
    /// The kept end of an attempt's stdout or stderr: before its `Ended`, and as an answer to `ReadOutput`.
    Output {
        /// Which.
        attempt: AttemptId,
        /// Whether it is stderr's.
        stderr: bool,
        /// At most [`OUTPUT_BYTES`](crate::limits::OUTPUT_BYTES).
        #[serde(with = "serde_bytes")]
        text: Vec<u8>,
    },
    /// Both outputs that `ReadOutput` asked for have been sent, or the attempt isn't here.
    OutputDone {
        /// Which.
        attempt: AttemptId,
    },
    /// An attempt has ended: its process and all below it are gone, but for those that couldn't be killed within 2 s. Sent again
    /// on every new connection until `Confirm` has come.
    Ended {
        /// Which.
        attempt: AttemptId,
        /// How.
        end: AttemptEnd,
        /// Its result, where it finished.
        output: Output,
        /// How long it ran.
        ran: Duration,
        /// Largest resident memory of its process.
        peak_memory_bytes: u64,
        /// Its region of the arena, if it had one, free after `ReleaseRegion`.
        region: Option<u32>,
    },
}

impl Head for FromHost {
    const NAME: &'static str = "FromHost";
    const BOUNDS: HeadBounds = limits::FROM_HOST;
}
