//! `lrts-worker`: the worker alone, without the other commands.

use std::process::ExitCode;

use clap::Parser;
use lrts_core::command_line::{error_line, exit_code, normalise, usage_error};
use lrts_core::mode::{self, Mode};
use lrts_worker::cli::{self, WorkerArgs};

/// Offers this machine's cores to a scheduler and runs its jobs, each in a process of its own
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
    match Cli::try_parse_from(normalise(std::env::args_os())) {
        Ok(cli) => match cli::main(cli.args) {
            Ok(()) => ExitCode::from(exit_code::DONE),
            Err(error) => fail(&error_line("lrts-worker", &error), error.exit_code()),
        },
        Err(error) if error.use_stderr() => {
            let wrong = usage_error(&error.render().to_string());
            fail(&format!("lrts-worker: {wrong} (--help shows what there is)"), exit_code::USAGE)
        }
        Err(help) => {
            let _nobody_reads = help.print();
            ExitCode::from(exit_code::DONE)
        }
    }
}

#[expect(clippy::print_stderr, reason = "main is where errors are printed")]
fn fail(line: &str, code: u8) -> ExitCode {
    eprintln!("{line}");
    ExitCode::from(code)
}
