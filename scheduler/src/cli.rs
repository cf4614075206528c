//! Arguments of `lrts scheduler`, and what it does with them.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use lrts_core::command_line::{KeyArgs, daemon_runtime, duration, raise_open_file_limit, size};
use lrts_core::keys;
use lrts_core::private_dir::state_home;
use lrts_core::shutdown::Shutdown;
use lrts_core::telemetry::{self, LogFormat, LogOf};

use crate::{Config, ConfigError, RunError, run};

/// Flags of `lrts scheduler`.
#[derive(Args, Clone, Debug)]
pub struct SchedulerArgs {
    /// Address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub address: IpAddr,

    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 5555)]
    pub port: u16,

    /// Most milliseconds spent decoding incoming packets before anything else gets its turn
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1)]
    pub timeout: u64,

    /// Directory for jobs, results and uploaded programs, made at the first start [default: scheduler-PORT in the user's state directory]
    #[arg(long, value_name = "DIRECTORY")]
    pub state_dir: Option<PathBuf>,

    /// Keys of this scheduler.
    #[command(flatten)]
    pub keys: KeyArgs,

    /// With --insecure: listen even on an address that other machines reach, so that whoever reaches it can run programs
    #[arg(long, requires = "insecure")]
    pub insecure_on_network: bool,

    /// How long a silent worker is trusted before its jobs are placed again
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = duration)]
    pub lost_after: Duration,

    /// How often workers say that they are alive
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub heartbeat: Duration,

    /// How long results are kept
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = duration)]
    pub result_retention: Duration,

    /// Most bytes of results that are kept; the oldest go first
    #[arg(long, value_name = "SIZE", default_value = "100GiB", value_parser = size)]
    pub result_store: u64,

    /// Most bytes of uploaded programs that are kept
    #[arg(long, value_name = "SIZE", default_value = "10GiB", value_parser = size)]
    pub bundle_store: u64,

    /// Form of the log lines on stderr: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

impl SchedulerArgs {
    /// The configuration that these flags mean.
    ///
    /// # Errors
    ///
    /// What stands against it: wrong usage, or no place for keys.
    pub fn into_config(self) -> Result<Config, RunError> {
        let config = Config {
            address: SocketAddr::new(self.address, self.port),
            decode_budget: Duration::from_millis(self.timeout),
            state_dir: self.state_dir,
            keys: self.keys.path()?,
            insecure_on_network: self.insecure_on_network,
            lost_after: self.lost_after,
            heartbeat: self.heartbeat,
            result_retention: self.result_retention,
            result_store_bytes: self.result_store,
            bundle_store_bytes: self.bundle_store,
        };
        config.check()?;
        Ok(config)
    }
}

/// `lrts scheduler`: runs until a signal comes, and prints `lrts scheduler ready on ADDRESS` once it listens.
///
/// # Errors
///
/// [`RunError`].
pub fn main(args: SchedulerArgs) -> Result<(), RunError> {
    telemetry::start(args.log_format, LogOf::Daemon);
    raise_open_file_limit();
    let mut config = args.into_config()?;
    if config.state_dir.is_none() {
        config.state_dir = default_state_dir(config.address.port())?;
    }
    if let Some(path) = &config.keys {
        keys::ensure(path)?;
    }
    let runtime = daemon_runtime().map_err(RunError::Setup)?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals().map_err(RunError::Setup)?;
        run(config, say_ready, shutdown).await
    })
}

/// Where a scheduler on this port keeps its state unless told otherwise: `scheduler-PORT` in the user's state directory. Nowhere
/// lasting on port 0: on a port of the kernel's choice nobody finds it again.
///
/// # Errors
///
/// [`ConfigError::NoStateHome`].
pub fn default_state_dir(port: u16) -> Result<Option<PathBuf>, ConfigError> {
    if port == 0 {
        return Ok(None);
    }
    let home = state_home(|name| std::env::var_os(name)).ok_or(ConfigError::NoStateHome)?;
    Ok(Some(home.join(format!("scheduler-{port}"))))
}

fn say_ready(address: SocketAddr) {
    // Whoever started it may have closed its end: no reason to end.
    let _ = writeln!(io::stdout(), "lrts scheduler ready on {address}");
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        scheduler: SchedulerArgs,
    }

    fn config(line: &[&str]) -> Result<Config, RunError> {
        Command::try_parse_from(line).unwrap().scheduler.into_config()
    }

    #[test]
    fn flags_become_a_configuration() {
        assert_eq!(config(&["lrts", "--insecure"]).unwrap(), Config::default());
        assert_eq!(config(&["lrts", "--keys", "/k"]).unwrap().keys, Some("/k".into()));
        let line = ["lrts", "--port", "0", "--lost-after", "3s", "--bundle-store", "1MiB", "--insecure"];
        let config = config(&line).unwrap();
        assert_eq!((config.address.port(), config.lost_after), (0, Duration::from_secs(3)));
        assert_eq!(config.bundle_store_bytes, 1 << 20);
    }

    #[test]
    fn addresses_on_the_network_are_refused() {
        let refused = config(&["lrts", "--address", "0.0.0.0", "--insecure"]);
        assert!(matches!(refused, Err(RunError::Config(ConfigError::Network(_)))));
        let trusted = ["lrts", "--address", "0.0.0.0", "--insecure", "--insecure-on-network"];
        assert!(config(&trusted).is_ok());
        assert!(config(&["lrts", "--address", "0.0.0.0", "--keys", "/k"]).is_ok());
        assert!(Command::try_parse_from(["lrts", "--insecure-on-network"]).is_err());
    }
}
