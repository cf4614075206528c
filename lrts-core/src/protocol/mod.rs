//! What the parts of lrts say to each other: one enum per direction, encoded by [`codec`].
//!
//! A message is a *head*, one of these enums, and a *body* of opaque bytes (payloads, results, output, bundle chunks), which
//! the transport carries without looking into it. Where a body has several parts, the head lists their lengths in order.
//! `docs/PROTOCOL.md` has the table of all messages.

pub mod application;
pub mod codec;
pub mod command;
pub mod host;
pub mod progress;
pub mod scan;
pub mod worker;

/// Version of everything that travels between machines. Peers of another version are refused at the handshake.
pub const VERSION: u16 = 3;

/// Version of what a worker and its job hosts say to each other; hosts outlive a worker's upgrade, so it counts apart.
pub const HOST_VERSION: u16 = 2;

/// The oldest version of job hosts that a worker takes: the one before its own, so that a worker can be upgraded while its jobs
/// run on. A host of version 1 ends with its worker's connection, so nobody has to take one over.
pub const OLDEST_HOST_VERSION: u16 = 1;
