//! The tree of subcommands; each daemon's arguments are its own crate's.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args, Parser, Subcommand};
use lrts_core::command_line::{KeyArgs, duration};
use lrts_core::ids::{ApplicationId, JobId, UserName, WorkerId};
use lrts_core::keys::{KeyId, ROLES, role_of_word, role_word};
use lrts_core::limits::AUTHORITY_VALIDITY;
use lrts_core::transport::Role;
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
    /// Cancel jobs, or all jobs of an application or of a user
    Cancel(CancelArgs),
    /// Let a worker finish what it has and take nothing new, until its daemon is started again
    Drain(DrainArgs),
    /// Show, make, renew and revoke the keys by which all parts of a cluster know each other
    Keys(KeysArgs),
}

/// How a command reaches the scheduler.
#[derive(Clone, Debug, Args)]
pub(crate) struct QueryArgs {
    /// Address of the scheduler [default: the host in LRTS_SCHEDULER, else 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) scheduler_address: Option<String>,
    /// Port of the scheduler [default: the port in LRTS_SCHEDULER, else 5555]
    #[arg(long, value_name = "PORT")]
    pub(crate) scheduler_port: Option<u16>,
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
#[command(group(ArgGroup::new("what").required(true).args(["jobs", "application", "user"])))]
pub(crate) struct CancelArgs {
    /// The jobs, as `lrts jobs` lists them
    #[arg(value_name = "JOB")]
    pub(crate) jobs: Vec<JobId>,
    /// All jobs of this application, as `lrts applications` lists it
    #[arg(long, value_name = "ID")]
    pub(crate) application: Option<ApplicationId>,
    /// All jobs of all applications of this user, as `lrts applications` lists them
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<UserName>,
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

/// `lrts keys`.
#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    pub(crate) command: KeysCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// List the keys that were made here and are neither expired nor dropped
    Show(ShowKeysArgs),
    /// Make a key for another machine or user: one file, to be copied there and named by --keys or LRTS_KEYS
    Export(ExportKeyArgs),
    /// Give all roles on this machine new keys of a new authority; older keys are accepted until --drop-old or the next rotation
    Rotate(RotateKeysArgs),
    /// Stop accepting keys; those of this directory itself are replaced by new ones
    Revoke(RevokeKeysArgs),
}

/// Where the keys are.
#[derive(Debug, Args)]
pub(crate) struct KeysPlace {
    /// The keys directory [default: LRTS_KEYS, else lrts/keys under XDG_CONFIG_HOME or ~/.config]
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) keys: Option<PathBuf>,
}

/// `lrts keys show`.
#[derive(Debug, Args)]
pub(crate) struct ShowKeysArgs {
    #[command(flatten)]
    pub(crate) place: KeysPlace,
    /// Print JSON: one object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// `lrts keys export`.
#[derive(Debug, Args)]
pub(crate) struct ExportKeyArgs {
    /// The file to make; `-` is stdout
    pub(crate) file: PathBuf,
    /// What the key's holder may be
    #[arg(long, value_parser = role())]
    pub(crate) role: Role,
    /// Whose key it is: applications belong to the user of the key that started them [default: you]
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<UserName>,
    /// How long the key is valid
    #[arg(long, default_value = "3650d", value_parser = validity, value_name = "TIME")]
    pub(crate) valid: Duration,
    /// Overwrite the file if it exists
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) place: KeysPlace,
}

/// `lrts keys rotate`.
#[derive(Debug, Args)]
pub(crate) struct RotateKeysArgs {
    /// Make nothing new, but stop accepting the keys from before the last rotation
    #[arg(long)]
    pub(crate) drop_old: bool,
    #[command(flatten)]
    pub(crate) place: KeysPlace,
}

/// `lrts keys revoke`.
#[derive(Debug, Args)]
pub(crate) struct RevokeKeysArgs {
    /// The keys, as `lrts keys show` lists them
    #[arg(required_unless_present = "user", value_name = "KEY")]
    pub(crate) ids: Vec<KeyId>,
    /// All keys of this user
    #[arg(long, conflicts_with = "ids", value_name = "NAME")]
    pub(crate) user: Option<UserName>,
    #[command(flatten)]
    pub(crate) place: KeysPlace,
}

fn role() -> impl TypedValueParser<Value = Role> {
    PossibleValuesParser::new(ROLES.map(role_word))
        .map(|word| role_of_word(&word).expect("it is one of the possible values"))
}

fn validity(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time.is_zero() || time > AUTHORITY_VALIDITY {
        let most = AUTHORITY_VALIDITY.as_secs() / (24 * 3_600);
        return Err(format!("expected more than nothing and at most {most}d"));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn the_tree_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn cancel_takes_jobs_or_an_application_or_a_user() {
        let job = "0123456789abcdef-1";
        assert!(
            matches!(parse(&format!("lrts cancel {job} {job}")), Ok(Command::Cancel(args)) if args.jobs.len() == 2)
        );
        let by_application = parse("lrts cancel --application nightly");
        assert!(matches!(by_application, Ok(Command::Cancel(args)) if args.application.is_some()));
        assert!(matches!(parse("lrts cancel --user ann"), Ok(Command::Cancel(args)) if args.user.is_some()));
        let nothing = parse("lrts cancel").unwrap_err().to_string();
        assert!(nothing.contains("JOB") && nothing.contains("--application <ID>"), "{nothing}");
        assert!(parse("lrts cancel --application nightly --user ann").is_err());
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

    #[test]
    fn keys_are_exported_for_a_role_and_a_time() {
        let export = |line: &str| match parse(&format!("lrts keys export {line}")) {
            Ok(Command::Keys(KeysArgs { command: KeysCommand::Export(args) })) => Some(args),
            _ => None,
        };
        let args = export("--role progress-server --user ann --valid 90d FILE").unwrap();
        assert_eq!(args.role, Role::ProgressServer);
        assert_eq!((args.user.unwrap().as_str(), args.valid), ("ann", Duration::from_hours(90 * 24)));
        assert_eq!(export("--role worker FILE").unwrap().valid, lrts_core::limits::KEY_VALIDITY);
        for wrong in ["FILE", "--role root FILE", "--role worker", "--role worker --user a/b FILE"] {
            assert!(export(wrong).is_none(), "{wrong}");
        }
        for valid in ["0", "10951d", "soon"] {
            assert!(export(&format!("--role worker --valid {valid} FILE")).is_none(), "{valid}");
        }
    }

    #[test]
    fn revoke_takes_keys_or_a_user() {
        assert!(parse("lrts keys revoke 000000000000001f 0000000000000020").is_ok());
        assert!(parse("lrts keys revoke --user ann").is_ok());
        assert!(parse("lrts keys revoke --user ann 000000000000001f").is_err());
        assert!(parse("lrts keys revoke").is_err());
        assert!(parse("lrts keys revoke worker").is_err());
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
