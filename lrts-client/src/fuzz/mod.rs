//! For fuzzers, see `lrts_core::fuzz`: values of users, notices of job processes, and what a scheduler says.

#[cfg(test)]
mod tests;

use lrts_core::fuzz::{Target, round_trip};

pub use crate::application::fuzz::scheduler;
pub use crate::encoding::fuzz::values;
use crate::host::{FromJob, ToJob};

/// The targets of this crate.
pub const TARGETS: &[Target] = &[("values", values), ("job_notices", job_notices), ("scheduler", scheduler)];

/// Notices between a job host and its job processes.
pub fn job_notices(bytes: &[u8]) {
    round_trip::<FromJob>(bytes);
    round_trip::<ToJob>(bytes);
}
