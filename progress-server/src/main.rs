//! `lrts-progress-server`: the progress server alone, without the other commands.

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use lrts_core::command_line::{exit_code, normalise};
use lrts_progress_server::cli::{self, ProgressServerArgs};

/// Keeps the latest state of every bar and shows it to the applications.
#[derive(Debug, Parser)]
#[command(name = "lrts-progress-server", version, about)]
struct Cli {
    #[command(flatten)]
    args: ProgressServerArgs,
}

fn main() -> ExitCode {
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
fn report(error: &(dyn Error + 'static)) {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    let line =
        causes.fold(format!("lrts-progress-server: {error}"), |line, cause| format!("{line}: {cause}"));
    eprintln!("{line}");
}
