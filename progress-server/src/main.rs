//! `lrts-progress-server`: the progress server alone, without the other commands.

use std::process::ExitCode;

use clap::Parser;
use lrts_core::command_line::{error_line, exit_code, normalise, usage_error};
use lrts_progress_server::cli::{self, ProgressServerArgs};

/// Keeps the latest state of every bar and shows it to the applications
#[derive(Debug, Parser)]
#[command(name = "lrts-progress-server", version, about)]
struct Cli {
    #[command(flatten)]
    args: ProgressServerArgs,
}

fn main() -> ExitCode {
    match Cli::try_parse_from(normalise(std::env::args_os())) {
        Ok(cli) => match cli::main(cli.args) {
            Ok(()) => ExitCode::from(exit_code::DONE),
            Err(error) => fail(&error_line("lrts-progress-server", &error), error.exit_code()),
        },
        Err(error) if error.use_stderr() => {
            let wrong = usage_error(&error.render().to_string());
            fail(&format!("lrts-progress-server: {wrong} (--help shows what there is)"), exit_code::USAGE)
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
