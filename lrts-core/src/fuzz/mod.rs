//! For fuzzers: each target reads bytes as a stranger may send or leave them, and panics where something is not as it should be.
//!
//! Built with the feature `fuzzing` and for tests only. The crate in `fuzz/` feeds these functions with what its fuzzers invent;
//! a test of each crate feeds its own with what is kept in `fuzz/corpus`. `fuzz/README.md` has the commands.

mod corpus;
mod files;
mod input;
mod messages;
#[cfg(test)]
mod tests;

pub use self::corpus::{check_corpora, keep};
pub use self::files::{bundle_chunk, names, spool_end};
pub use self::input::{Input, Script};
pub use self::messages::{
    application_messages, command_messages, host_notices, progress_messages, round_trip, worker_messages,
};
#[cfg(feature = "authority")]
pub use crate::keys::fuzz::key_records;
pub use crate::keys::fuzz::{certificate, key_file};
pub use crate::progress::fuzz::arena;
pub use crate::transport::fuzz::{packet, session, wire, wire_passed};

/// The name of a target and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// The targets of this crate.
pub const TARGETS: &[Target] = &[
    ("wire", wire),
    ("packet", packet),
    ("session", session),
    ("application_messages", application_messages),
    ("worker_messages", worker_messages),
    ("progress_messages", progress_messages),
    ("command_messages", command_messages),
    ("host_notices", host_notices),
    ("arena", arena),
    ("spool_end", spool_end),
    ("bundle_chunk", bundle_chunk),
    ("names", names),
    ("certificate", certificate),
    ("key_file", key_file),
    #[cfg(feature = "authority")]
    ("key_records", key_records),
];
