//! `lrts-scheduler`: the scheduler alone, without the other commands.

use std::process::ExitCode;

use clap::Parser;
use lrts_core::command_line::{error_line, exit_code, normalise, usage_error};
use lrts_scheduler::cli::{self, SchedulerArgs};

/// Owns every job's state, places jobs on workers, hands results to applications
#[derive(Debug, Parser)]
#[command(name = "lrts-scheduler", version, about)]
struct Cli {
    #[command(flatten)]
    args: SchedulerArgs,
}

fn main() -> ExitCode {
    match Cli::try_parse_from(normalise(std::env::args_os())) {
        Ok(cli) => match cli::main(cli.args) {
            Ok(()) => ExitCode::from(exit_code::DONE),
            Err(error) => fail(&error_line("lrts-scheduler", &error), error.exit_code()),
        },
        Err(error) if error.use_stderr() => {
            let wrong = usage_error(&error.render().to_string());
            fail(&format!("lrts-scheduler: {wrong} (--help shows what there is)"), exit_code::USAGE)
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
