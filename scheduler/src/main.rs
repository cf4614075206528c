//! `lrts-scheduler`: the scheduler alone, without the other commands.

use std::process::ExitCode;

use clap::Parser;
use lrts_core::command_line;
use lrts_scheduler::cli::{self, SchedulerArgs};

/// Owns every job's state, places jobs on workers, hands results to applications
#[derive(Debug, Parser)]
#[command(name = "lrts-scheduler", version, about)]
struct Command {
    #[command(flatten)]
    args: SchedulerArgs,
}

fn main() -> ExitCode {
    command_line::run("lrts-scheduler", |command: Command| cli::main(command.args))
}
