//! The tree of subcommands; each daemon's arguments are its own crate's.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use lrts_core::command_line::{KeyArgs, duration};
use lrts_core::ids::{ApplicationId, JobId, WorkerId};
use lrts_progress_server::cli::ProgressServerArgs;
use lrts_scheduler::cli::SchedulerArgs;
use lrts_worker::cli::WorkerArgs;

/// Runs long, independent jobs on a cluster, a process per job, and shows their progress live.
#[derive(Debug, Parser)]
#[command(name = "lrts", version, about, propagate_version = true, arg_required_else_help = false)]
#[command(
    after_help = "Flags may be written with one dash or two. Logs go to stderr; LRTS_LOG filters them (debug, lrts_worker=trace).\nExit codes: 0 done, 1 failed, 2 wrong usage, 3 no scheduler in time, 4 refused."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the scheduler, which owns every job's state
    Scheduler(SchedulerArgs),
    /// Start the progress server, which shows applications the bars of their jobs
    ProgressServer(ProgressServerArgs),
    /// Start a worker, which runs jobs on this machine
    Worker(WorkerArgs),
    /// Start all three in one terminal, on the default ports
    Local(LocalArgs),
    /// Show how many jobs are in each state and how many workers there are
    Status(QueryArgs),
    /// List the jobs
    Jobs(QueryArgs),
    /// List the workers
    Workers(QueryArgs),
    /// List the applications that the scheduler remembers, connected or not
    Applications(QueryArgs),
    /// Show what a job has printed
    Logs(LogsArgs),
    /// Cancel jobs, or all jobs of an application
    Cancel(CancelArgs),
    /// Let a worker finish what it has and take nothing new
    Drain(DrainArgs),
}

/// How a command reaches the scheduler.
#[derive(Clone, Debug, Args)]
pub(crate) struct QueryArgs {
    /// Address of the scheduler
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub(crate) scheduler_address: String,
    /// Port of the scheduler
    #[arg(long, default_value_t = 5555, value_name = "PORT")]
    pub(crate) scheduler_port: u16,
    /// How long to wait for the scheduler
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "TIME")]
    pub(crate) wait: Duration,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    /// Print JSON: one object, or one object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// `lrts logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The job, as `lrts jobs` lists it
    pub(crate) job: JobId,
    #[command(flatten)]
    pub(crate) query: QueryArgs,
}

/// `lrts cancel`.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// The jobs, as `lrts jobs` lists them
    #[arg(required_unless_present = "application", value_name = "JOB")]
    pub(crate) jobs: Vec<JobId>,
    /// All jobs of this application, as `lrts applications` lists it
    #[arg(long, conflicts_with = "jobs", value_name = "ID")]
    pub(crate) application: Option<ApplicationId>,
    #[command(flatten)]
    pub(crate) query: QueryArgs,
}

/// `lrts drain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// The worker, as `lrts workers` lists it
    pub(crate) worker: WorkerId,
    /// After this time, stop what it still runs and place it elsewhere; without it, it may take as long as it needs
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(crate) deadline: Option<Duration>,
    #[command(flatten)]
    pub(crate) query: QueryArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn cancel_takes_jobs_or_an_application() {
        let job = "0123456789abcdef-1";
        assert!(
            matches!(parse(&format!("lrts cancel {job} {job}")), Ok(Command::Cancel(args)) if args.jobs.len() == 2)
        );
        let by_application = parse("lrts cancel --application nightly");
        assert!(matches!(by_application, Ok(Command::Cancel(args)) if args.application.is_some()));
        assert!(parse("lrts cancel").is_err());
        assert!(parse(&format!("lrts cancel --application nightly {job}")).is_err());
    }

    #[test]
    fn drain_takes_a_worker_and_perhaps_a_deadline() {
        let worker = "00000000000000ff";
        let drain = parse(&format!("lrts drain {worker} --deadline 5m"));
        assert!(matches!(drain, Ok(Command::Drain(args)) if args.deadline == Some(Duration::from_secs(300))));
        assert!(
            matches!(parse(&format!("lrts drain {worker}")), Ok(Command::Drain(args)) if args.deadline.is_none())
        );
        assert!(parse("lrts drain").is_err());
    }
}

/// `lrts local`.
#[derive(Debug, Args)]
pub(crate) struct LocalArgs {
    /// Jobs at once: a count, or -1 all physical cores, -2 all logical ones, -3 and -4 the same less one
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_parser = lrts_worker::cli::max_jobs, value_name = "COUNT")]
    pub(crate) max_jobs: i32,
    /// Port of the scheduler
    #[arg(long, default_value_t = 5555, value_name = "PORT")]
    pub(crate) port: u16,
    /// Port of the progress server
    #[arg(long, default_value_t = 5454, value_name = "PORT")]
    pub(crate) progress_port: u16,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
}
