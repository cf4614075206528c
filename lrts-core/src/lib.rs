//! The vocabulary that all parts of lrts share: ids, options, states, bounds, messages, transport and progress records.
//!
//! It depends on no other crate of lrts. A reader starts with [`ids`], [`spec`] and [`status`], then [`protocol`].

#[cfg(not(target_os = "linux"))]
compile_error!(
    "lrts runs on Linux only: it relies on memfd, SOCK_SEQPACKET, subreapers and boot-time clocks"
);

pub mod bundle;
pub mod clock;
pub mod command_line;
pub mod descriptors;
pub mod environment;
pub mod ids;
pub mod keys;
pub mod limits;
pub mod mode;
pub mod notices;
pub mod private_dir;
pub mod progress;
pub mod protocol;
pub mod shutdown;
pub mod spec;
pub mod spool;
pub mod status;
pub mod telemetry;
pub mod terminal;
pub mod transport;
pub mod worker_secret;
