//! `lrts-worker`: the worker alone, without the other commands.

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use lrts_core::command_line::{exit_code, normalise};
use lrts_core::mode::{self, Mode};
use lrts_worker::cli::{self, WorkerArgs};

#[derive(Debug, Parser)]
#[command(name = "lrts-worker", version, about)]
struct Cli {
    #[command(flatten)]
    args: WorkerArgs,
}

fn main() -> ExitCode {
    // The worker starts its own executable again for its progress subprocess.
    if mode::take() == Mode::Progress {
        lrts_core::progress::run_progress_mode();
    }
    let cli = Cli::parse_from(normalise(std::env::args_os()));
    match cli::main(cli.args) {
        Ok(()) => ExitCode::from(exit_code::DONE),
        Err(error) => {
            report(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints an error and its causes on one line.
#[expect(clippy::print_stderr, reason = "main is where errors are printed")]
fn report(error: &dyn Error) {
    let mut line = format!("lrts-worker: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(&format!(": {error}"));
        cause = error.source();
    }
    eprintln!("{line}");
}
