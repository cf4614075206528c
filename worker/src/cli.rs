//! Arguments of `lrts worker`, and what it does with them.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use lrts_core::command_line::{
    CommandError, KeyArgs, daemon_runtime, duration, exit_code, raise_open_file_limit, size,
};
use lrts_core::ids::WorkerId;
use lrts_core::keys::KeysError;
use lrts_core::limits::{BUNDLE_NAME_BYTES, SLOTS};
use lrts_core::shutdown::Shutdown;
use lrts_core::spec::is_bundle_name;
use lrts_core::telemetry::{self, LogFormat, LogOf};

use crate::{Config, OnTerm, RunError, run, slots};

/// Offers this machine's cores to a scheduler and runs its jobs, each in a process of its own.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkerArgs {
    /// The scheduler's host.
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    pub scheduler_address: String,
    /// The scheduler's port.
    #[arg(long, default_value_t = 5555, value_name = "PORT")]
    pub scheduler_port: u16,
    /// The progress server's host [default: the scheduler's].
    #[arg(long, value_name = "HOST")]
    pub progress_address: Option<String>,
    /// The progress server's port.
    #[arg(long, default_value_t = 5454, value_name = "PORT")]
    pub progress_port: u16,
    /// Jobs at once: a count, or -1 all physical cores, -2 all logical cores, -3 physical less one, -4 logical less one.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_parser = max_jobs, value_name = "COUNT")]
    pub max_jobs: i32,
    /// Most milliseconds spent on incoming packets before anything else gets its turn.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), value_name = "MS")]
    pub timeout: u64,
    /// Where the worker's id, bundles and running jobs are kept [default: worker-N under the user's state directory].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Keys of this worker.
    #[command(flatten)]
    pub keys: KeyArgs,
    /// Room for fetched programs; the least recently used go first.
    #[arg(long, default_value = "10GiB", value_parser = size, value_name = "SIZE")]
    pub bundle_cache: u64,
    /// A program that is installed here; applications ask for it by name. May be repeated.
    #[arg(long, value_parser = named_path, value_name = "NAME=PATH")]
    pub bundle: Vec<(String, PathBuf)>,
    /// Which programs may run: any that an application ships, or only those given by --bundle.
    #[arg(long, default_value = "any", value_name = "any|installed-only", value_parser = bundles)]
    pub bundles: Bundles,
    /// What a job that is stopped has to end by itself.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub grace: Duration,
    /// When the worker is asked to end: stop its jobs, which are queued again, or leave them to go on until it is back.
    #[arg(long, default_value = "stop", value_name = "stop|leave", value_parser = on_term)]
    pub on_term: OnTerm,
    /// How long jobs go on without their worker, after it was killed or has left them.
    #[arg(long, default_value = "24h", value_parser = duration, value_name = "TIME")]
    pub orphan_grace: Duration,
    /// How log lines look.
    #[arg(long, default_value = "text", value_name = "text|json", value_parser = |text: &str| text.parse::<LogFormat>())]
    pub log_format: LogFormat,
}

/// Which programs a worker runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Bundles {
    /// Any that an application ships.
    Any,
    /// Only those that its operator has installed.
    InstalledOnly,
}

fn bundles(text: &str) -> Result<Bundles, String> {
    match text {
        "any" => Ok(Bundles::Any),
        "installed-only" => Ok(Bundles::InstalledOnly),
        _ => Err("expected `any` or `installed-only`".to_owned()),
    }
}

fn on_term(text: &str) -> Result<OnTerm, String> {
    match text {
        "stop" => Ok(OnTerm::Stop),
        "leave" => Ok(OnTerm::Leave),
        _ => Err("expected `stop` or `leave`".to_owned()),
    }
}

/// Parses the value of `--max-jobs`.
///
/// # Errors
///
/// A text that says what was expected.
pub fn max_jobs(text: &str) -> Result<i32, String> {
    let most = i32::try_from(SLOTS).expect("the bound is small");
    match text.parse::<i32>() {
        Ok(count) if (-4..=most).contains(&count) && count != 0 => Ok(count),
        _ => Err(format!("expected 1 to {most}, or -1 to -4")),
    }
}

fn named_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if is_bundle_name(name) && !path.is_empty() => {
            let path = std::path::absolute(path).map_err(|error| error.to_string())?;
            Ok((name.to_owned(), path))
        }
        _ => Err(format!(
            "expected NAME=PATH, the name of up to {BUNDLE_NAME_BYTES} bytes and without a slash"
        )),
    }
}

/// Why `lrts worker` failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// Two programs of one name.
    #[error("--bundle {name}: two programs have this name")]
    TwoBundles {
        /// The name.
        name: String,
    },
    /// No place for keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// No threads or signal handlers.
    #[error("cannot set up the worker")]
    Setup(#[source] io::Error),
    /// The worker has failed.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl CommandError for WorkerError {
    fn exit_code(&self) -> u8 {
        match self {
            WorkerError::TwoBundles { .. } => exit_code::USAGE,
            WorkerError::Keys(_) | WorkerError::Run(RunError::Keys(_) | RunError::Refused(_)) => {
                exit_code::REFUSED
            }
            WorkerError::Setup(_) | WorkerError::Run(_) => exit_code::FAILED,
        }
    }
}

impl WorkerArgs {
    /// Checks what no single flag can.
    ///
    /// # Errors
    ///
    /// [`WorkerError::TwoBundles`] and [`WorkerError::Keys`].
    pub fn into_config(self) -> Result<Config, WorkerError> {
        let progress_address = self.progress_address.unwrap_or_else(|| self.scheduler_address.clone());
        let mut installed = BTreeMap::new();
        for (name, path) in self.bundle {
            if installed.insert(name.clone(), path).is_some() {
                return Err(WorkerError::TwoBundles { name });
            }
        }
        Ok(Config {
            scheduler_address: with_port(&self.scheduler_address, self.scheduler_port),
            progress_address: with_port(&progress_address, self.progress_port),
            keys: self.keys.path()?,
            slots: slots(self.max_jobs),
            decode_budget: Duration::from_millis(self.timeout),
            state_dir: self.state_dir,
            bundle_cache_bytes: self.bundle_cache,
            installed,
            ships_bundles: self.bundles == Bundles::Any,
            grace: self.grace,
            on_term: self.on_term,
            orphan_grace: self.orphan_grace,
            owns_process: true,
            ..Config::default()
        })
    }
}

/// An IPv6 address needs brackets in front of a port.
fn with_port(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// `lrts worker`: runs until a signal comes, and prints `lrts worker ready as ID` once it is registered.
///
/// # Errors
///
/// [`WorkerError`].
pub fn main(args: WorkerArgs) -> Result<(), WorkerError> {
    telemetry::start(args.log_format, LogOf::Daemon);
    raise_open_file_limit();
    let config = args.into_config()?;
    let runtime = daemon_runtime().map_err(WorkerError::Setup)?;
    let result = runtime.block_on(async {
        let shutdown = Shutdown::on_signals().map_err(WorkerError::Setup)?;
        Ok(run(config, say_ready, shutdown).await?)
    });
    // What still waits for a disk can't hold up the end.
    runtime.shutdown_background();
    result
}

fn say_ready(worker: WorkerId) {
    // Whoever has closed stdout doesn't want to know.
    let _ = writeln!(io::stdout(), "lrts worker ready as {worker}");
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: WorkerArgs,
    }

    fn parse(line: &str) -> Result<Config, String> {
        let words = line.split_whitespace().map(Into::into);
        let words = lrts_core::command_line::normalise(std::iter::once("worker".into()).chain(words));
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        cli.args.into_config().map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_a_local_cluster() {
        let (parsed, default) =
            (parse("--insecure").unwrap(), Config { owns_process: true, ..Config::default() });
        assert_eq!(format!("{parsed:?}"), format!("{default:?}"));
    }

    #[test]
    fn flags_arrive_where_they_belong() {
        let line = "-max-jobs 3 --scheduler-address ::1 -scheduler-port 7 -progress-port 8 --grace 2s --timeout 5 \
                    --bundle-cache 1MiB --bundle a=/bin/a --bundle b=/bin/b --bundles installed-only --state-dir /x \
                    --on-term leave --orphan-grace 1h --keys /k";
        let config = parse(line).unwrap();
        assert_eq!((config.slots, config.grace), (3, Duration::from_secs(2)));
        assert_eq!((config.on_term, config.orphan_grace), (OnTerm::Leave, Duration::from_secs(3_600)));
        assert_eq!(config.scheduler_address, "[::1]:7");
        assert_eq!(config.progress_address, "[::1]:8");
        assert_eq!(config.bundle_cache_bytes, 1 << 20);
        assert_eq!(config.installed["b"], PathBuf::from("/bin/b"));
        assert!(!config.ships_bundles);
        assert_eq!(config.decode_budget, Duration::from_millis(5));
        assert_eq!(config.state_dir, Some(PathBuf::from("/x")));
        assert_eq!(config.keys, Some(PathBuf::from("/k")));
    }

    #[test]
    fn wrong_usage_is_explained() {
        let refused = |line: &str| parse(line).unwrap_err();
        for count in ["0", "-5", "4097", "many"] {
            assert!(refused(&format!("--max-jobs {count}")).contains("-1 to -4"), "{count}");
        }
        assert!(refused("--timeout 0").contains("--timeout"));
        for bundle in ["x", "=/a", "x=", "..=/a", "a/b=/a", "\u{7f}=/a"] {
            assert!(refused(&format!("--bundle {bundle}")).contains("NAME=PATH"), "{bundle:?}");
        }
        assert!(refused("--bundle x=/a --bundle x=/b").contains("two programs"));
        assert!(refused("--bundles some").contains("installed-only"));
        assert!(refused("--on-term go").contains("`stop` or `leave`"));
        assert!(refused("--insecure --keys /k").contains("cannot be used with"));
    }
}
