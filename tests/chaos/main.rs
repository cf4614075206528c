//! Real processes and faults: kill -9, SIGSTOP, full and slow disks, lines that are cut.
//!
//! `LRTS_CHAOS=long cargo test --release --test chaos -- --nocapture storm` runs the long form. The seed of a storm is printed;
//! `LRTS_CHAOS_SEED=n` plays its faults again, as far as real processes allow.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests, and programs that print"
)]

#[path = "../support/mod.rs"]
mod support;

mod applications;
mod autoscaling;
mod checkpoints;
mod crashes;
mod disks;
mod million;
mod silence;
mod storm;

use support::{Steps, Work};

lrts_client::host_services_before_main!(Work, Steps);
