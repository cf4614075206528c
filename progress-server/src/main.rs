//! `lrts-progress-server`: the progress server alone, without the other commands.

use std::process::ExitCode;

use clap::Parser;
use lrts_core::command_line;
use lrts_progress_server::cli::{self, ProgressServerArgs};

/// Keeps the latest state of every bar and shows it to the applications
#[derive(Debug, Parser)]
#[command(name = "lrts-progress-server", version, about)]
struct Command {
    #[command(flatten)]
    args: ProgressServerArgs,
}

fn main() -> ExitCode {
    command_line::run("lrts-progress-server", |command: Command| cli::main(command.args))
}
