//! The `lrts` command: parses, starts logging, dispatches, prints the error once and chooses the exit code.

mod cli;
mod commands;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use lrts::{LocalCluster, LocalConfig};
use lrts_core::command_line::{error_line, exit_code, normalise, raise_open_file_limit, usage_error};
use lrts_core::mode::{self, Mode};
use lrts_core::shutdown::Shutdown;
use lrts_core::telemetry::{self, LogFormat, LogOf};
use tokio::runtime::{Builder, Runtime};

use crate::cli::{Cli, Command, LocalArgs};
use crate::commands::CommandError;

fn main() -> ExitCode {
    // A worker starts its own executable again for its progress subprocess.
    if mode::take() == Mode::Progress {
        lrts_core::progress::run_progress_mode();
    }
    let cli = match Cli::try_parse_from(normalise(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match dispatch(cli.command) {
        Ok(()) => ExitCode::from(exit_code::DONE),
        Err(End { code, error }) => fail(&error_line("lrts", error.as_ref()), code),
    }
}

/// A failed command: what to say and how to exit.
struct End {
    code: u8,
    error: Box<dyn Error>,
}

impl End {
    fn new(code: u8, error: impl Error + 'static) -> Self {
        Self { code, error: Box::new(error) }
    }
}

impl From<CommandError> for End {
    fn from(error: CommandError) -> Self {
        Self::new(error.exit_code(), error)
    }
}

fn dispatch(command: Command) -> Result<(), End> {
    match command {
        Command::Scheduler(args) => {
            lrts_scheduler::cli::main(args).map_err(|error| End::new(error.exit_code(), error))
        }
        Command::ProgressServer(args) => {
            lrts_progress_server::cli::main(args).map_err(|error| End::new(error.exit_code(), error))
        }
        Command::Worker(args) => {
            lrts_worker::cli::main(args).map_err(|error| End::new(error.exit_code(), error))
        }
        Command::Local(args) => local(&args),
        Command::Status(args) => ask(commands::status(args)),
        Command::Jobs(args) => ask(commands::jobs(args)),
        Command::Workers(args) => ask(commands::workers(args)),
        Command::Logs(args) => ask(commands::logs(args)),
        Command::Cancel(args) => ask(commands::cancel(args)),
    }
}

/// `lrts local`: all three daemons in this process until a signal comes.
fn local(args: &LocalArgs) -> Result<(), End> {
    telemetry::start(LogFormat::Text, LogOf::Daemon);
    raise_open_file_limit();
    let failed = |error| End::new(exit_code::FAILED, error);
    let config = LocalConfig::default().max_jobs(args.max_jobs).ports(args.port, args.progress_port);
    let cluster = LocalCluster::start(config).map_err(failed)?;
    let runtime = runtime(1)?;
    let asked = cluster.shutdown();
    let signals = runtime.block_on(async { Shutdown::on_signals() });
    let signals = signals.map_err(|error| End::new(exit_code::FAILED, error))?;
    runtime.spawn(async move {
        signals.requested().await;
        asked.request();
        signals.immediate().await;
        asked.request_at_once();
    });
    say(&format!("lrts scheduler ready on {}", cluster.scheduler_address()));
    say(&format!("lrts progress-server ready on {}", cluster.progress_address()));
    say(&format!("lrts worker ready as {}", cluster.worker()));
    cluster.run_until_shutdown().map_err(failed)
}

fn ask(command: impl Future<Output = Result<(), CommandError>>) -> Result<(), End> {
    telemetry::start(LogFormat::Text, LogOf::Command);
    // zeromq's local sockets need a second thread beside the one that waits.
    Ok(runtime(1)?.block_on(command)?)
}

fn runtime(threads: usize) -> Result<Runtime, End> {
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    runtime.map_err(|error| End::new(exit_code::FAILED, error))
}

#[expect(
    clippy::print_stdout,
    reason = "the line that says a daemon is ready is data for whoever started it"
)]
fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "main is where errors are printed")]
fn fail(line: &str, code: u8) -> ExitCode {
    eprintln!("{line}");
    ExitCode::from(code)
}

/// Help and version go to stdout and are no failure; wrong usage is one line on stderr.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        let wrong = usage_error(&error.render().to_string());
        return fail(&format!("lrts: {wrong} (--help shows what there is)"), exit_code::USAGE);
    }
    let _nobody_reads = error.print();
    ExitCode::from(exit_code::DONE)
}
