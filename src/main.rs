//! The `lrts` command: parses, starts logging, dispatches, prints the error once and chooses the exit code.

mod cli;
mod commands;

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use lrts_core::command_line::{self, CommandError};
use lrts_core::mode::{self, Mode};

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    // A worker starts its own executable again for its progress subprocess.
    if mode::take() == Mode::Progress {
        lrts_core::progress::run_progress_mode();
    }
    command_line::run("lrts", |cli: Cli| dispatch(cli.command))
}

/// Any command's error.
#[derive(Debug)]
struct Failure(Box<dyn CommandError>);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

impl Failure {
    fn new(error: impl CommandError + 'static) -> Self {
        Self(Box::new(error))
    }
}

impl CommandError for Failure {
    fn exit_code(&self) -> u8 {
        self.0.exit_code()
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Scheduler(args) => lrts_scheduler::cli::main(args).map_err(Failure::new),
        Command::ProgressServer(args) => lrts_progress_server::cli::main(args).map_err(Failure::new),
        Command::Worker(args) => lrts_worker::cli::main(args).map_err(Failure::new),
        Command::Local(args) => commands::local(&args).map_err(Failure::new),
        Command::Status(args) => commands::ask(commands::status(args)).map_err(Failure::new),
        Command::Jobs(args) => commands::ask(commands::jobs(args)).map_err(Failure::new),
        Command::Workers(args) => commands::ask(commands::workers(args)).map_err(Failure::new),
        Command::Applications(args) => commands::ask(commands::applications(args)).map_err(Failure::new),
        Command::Logs(args) => commands::ask(commands::logs(args)).map_err(Failure::new),
        Command::Cancel(args) => commands::ask(commands::cancel(args)).map_err(Failure::new),
        Command::Drain(args) => commands::ask(commands::drain(args)).map_err(Failure::new),
        Command::Keys(args) => commands::keys(args.command).map_err(Failure::new),
    }
}
