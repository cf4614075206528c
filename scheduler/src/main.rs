//! `lrts-scheduler`: the scheduler as a program of its own.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use lrts_core::command_line::{exit_code, normalise};
use lrts_core::shutdown::Shutdown;
use lrts_core::telemetry::{self, LogFormat};
use lrts_scheduler::{RunError, SchedulerArgs};

/// Owns every job's state, places jobs on workers, hands results to applications
#[derive(Parser)]
#[command(name = "lrts-scheduler", version)]
struct Command {
    /// Form of the log lines on stderr: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,

    #[command(flatten)]
    scheduler: SchedulerArgs,
}

fn main() -> ExitCode {
    let command = Command::parse_from(normalise(std::env::args_os()));
    telemetry::start(command.log_format);
    match run(command) {
        Ok(()) => exit_code::DONE.into(),
        Err(error) => {
            // The whole chain of causes, and nothing if even stderr is gone.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            match error.downcast_ref::<RunError>() {
                Some(RunError::Config(_)) => exit_code::USAGE.into(),
                _ => exit_code::FAILED.into(),
            }
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let config = command.scheduler.into_config().map_err(RunError::from)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        lrts_scheduler::run(config, announce, shutdown).await?;
        Ok(())
    })
}

fn announce(address: SocketAddr) {
    // Whoever started the scheduler may have closed its end: no reason to end.
    let _ = writeln!(std::io::stdout(), "lrts scheduler ready on {address}");
}
