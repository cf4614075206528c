//! Real daemons, real job processes: the whole system through its public interface.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests, and jobs that print"
)]

#[path = "../support/mod.rs"]
mod support;

mod bars;
mod bundles;
mod coming_back;
mod commands;
mod daemons;
mod draining;
mod faults;
mod jobs;
mod keys;
mod keys_command;
mod limits;
mod programs;
mod retention;
mod services;
mod state;
mod stopping;
