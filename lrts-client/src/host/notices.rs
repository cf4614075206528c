//! Job host and job process, over a socket pair. Both are the same program, so these notices have no version.

use std::path::PathBuf;

use lrts_core::protocol::host::{Output, StartAttempt};
use lrts_core::status::Failure;
use serde::{Deserialize, Serialize};

/// What the host tells a job process.
#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "it is made and read one at a time")]
pub(crate) enum ToJob {
    /// First notice to a spawned process, and to no forked one. The arena's memfd travels with it, then the payload's and the
    /// checkpoint's if there are any.
    Start {
        /// What to run.
        start: StartAttempt,
        /// The job's region of the arena.
        region: u32,
        /// The host, which must still be the job's parent.
        host: i32,
        /// The soft limit of open files that the host itself was started with.
        files: u64,
        /// Where to enter the job's cgroup, if it has one.
        cgroup: Option<PathBuf>,
    },
    /// Run the cancel hooks.
    Cancel,
}

/// What a job process tells its host.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromJob {
    /// The job's thread panics: text and place. Sent before unwinding, so that it arrives even where a panic aborts.
    Panicked {
        /// Text and place.
        message: String,
    },
    /// The first checkpoint was made: the memory that it and all later ones are in travels along.
    Checkpoints,
    /// There is a value; it is being written to where the host finds it, which takes as long as the disk is full.
    Delivering,
    /// The last notice: the process exits now.
    Done(Done),
}

/// How `run` ended.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Done {
    /// With a value.
    Finished(Output),
    /// With an error or a panic, or it could not begin.
    Failed(Failure),
    /// The machine is in the way: nobody's fault.
    Lost {
        /// What happened.
        reason: String,
    },
}
