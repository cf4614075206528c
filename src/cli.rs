//! The tree of subcommands; each daemon's arguments are its own crate's.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use lrts_core::command_line::duration;
use lrts_core::ids::JobId;
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
    /// Show what a job has printed
    Logs(LogsArgs),
    /// Cancel jobs
    Cancel(CancelArgs),
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
    /// Connect without encryption to another machine: whoever is on that network can read and change what is said
    #[arg(long)]
    pub(crate) insecure: bool,
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
    #[arg(required = true, value_name = "JOB")]
    pub(crate) jobs: Vec<JobId>,
    #[command(flatten)]
    pub(crate) query: QueryArgs,
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
}
