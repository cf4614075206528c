//! Real daemons and applications under attack: nobody gets in, and nothing that anybody sends does harm.
//!
//! Each test attacks a cluster that works meanwhile. Afterwards its daemons are the same processes, have not grown, and every
//! job has its one result.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests, and programs that print"
)]

#[path = "../support/mod.rs"]
mod support;

mod applications;
mod attack;
mod bombs;
mod bundles;
mod churn;
mod crowds;
mod deaf;
mod garbage;
mod identities;
mod keys;
mod messages;
mod replays;
mod site;
mod words;

use support::Work;

lrts_client::host_services_before_main!(Work);
