//! `lrts-worker`: the worker alone, without the other commands.

use std::process::ExitCode;

use clap::Parser;
use lrts_core::command_line;
use lrts_core::mode::{self, Mode};
use lrts_worker::cli::{self, WorkerArgs};

/// Offers this machine's cores to a scheduler and runs its jobs, each in a process of its own
#[derive(Debug, Parser)]
#[command(name = "lrts-worker", version, about)]
struct Command {
    #[command(flatten)]
    args: WorkerArgs,
}

fn main() -> ExitCode {
    // The worker starts its own executable again for its progress subprocess.
    if mode::take() == Mode::Progress {
        lrts_core::progress::run_progress_mode();
    }
    command_line::run("lrts-worker", |command: Command| cli::main(command.args))
}
