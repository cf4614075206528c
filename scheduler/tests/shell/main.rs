//! A scheduler over real connections.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails where something else than the expected happens"
)]

mod connections;
mod restarts;
mod support;
