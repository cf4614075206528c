//! Arguments of `lrts progress-server`, and what it does with them.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use lrts_core::command_line::{KeyArgs, daemon_runtime, raise_open_file_limit};
use lrts_core::keys::{self, KeysError};
use lrts_core::shutdown::Shutdown;
use lrts_core::telemetry::{self, LogFormat, LogOf};

use crate::{Config, RunError, run};

/// Flags of `lrts progress-server`.
#[derive(Clone, Debug, clap::Args)]
pub struct ProgressServerArgs {
    /// Address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub address: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 5454)]
    pub port: u16,
    /// Most milliseconds spent decoding incoming packets before anything else gets its turn
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1)]
    pub timeout: u64,
    /// Keys of this progress server.
    #[command(flatten)]
    pub keys: KeyArgs,
    /// With --insecure: listen even on an address that other machines reach, so that whoever reaches it sees and sets the bars
    #[arg(long, requires = "insecure")]
    pub insecure_on_network: bool,
    /// Form of the log lines on stderr: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

impl ProgressServerArgs {
    /// The configuration that these flags mean; [`run`] checks it.
    ///
    /// # Errors
    ///
    /// [`KeysError::NoHome`].
    pub fn into_config(self) -> Result<Config, KeysError> {
        Ok(Config {
            address: SocketAddr::new(self.address, self.port),
            decode_budget: Duration::from_millis(self.timeout),
            keys: self.keys.path()?,
            insecure_on_network: self.insecure_on_network,
        })
    }
}

/// `lrts progress-server`: runs until a signal comes, and prints `lrts progress-server ready on ADDRESS` once it listens.
///
/// # Errors
///
/// [`RunError`].
pub fn main(args: ProgressServerArgs) -> Result<(), RunError> {
    telemetry::start(args.log_format, LogOf::Daemon);
    raise_open_file_limit();
    let config = args.into_config()?;
    config.check()?;
    if let Some(path) = &config.keys {
        keys::ensure(path)?;
    }
    let runtime = daemon_runtime().map_err(RunError::Setup)?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals().map_err(RunError::Setup)?;
        run(config, say_ready, shutdown).await
    })
}

fn say_ready(address: SocketAddr) {
    // Whoever started it may have closed its end: no reason to end.
    let _ = writeln!(io::stdout(), "lrts progress-server ready on {address}");
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::ConfigError;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: ProgressServerArgs,
    }

    fn config(line: &[&str]) -> Config {
        Command::try_parse_from(line).unwrap().args.into_config().unwrap()
    }

    #[test]
    fn flags_become_a_configuration() {
        assert_eq!(config(&["lrts", "--insecure"]), Config::default());
        assert_eq!(config(&["lrts", "--keys", "/k"]).keys, Some("/k".into()));
        let config = config(&["lrts", "--port", "0", "--timeout", "5", "--insecure"]);
        assert_eq!((config.address.port(), config.decode_budget), (0, Duration::from_millis(5)));
    }

    #[test]
    fn the_network_must_be_asked_for() {
        let refused = config(&["lrts", "--address", "0.0.0.0", "--insecure"]).check();
        assert!(matches!(refused, Err(ConfigError::Network(_))));
        let trusted = ["lrts", "--address", "0.0.0.0", "--insecure", "--insecure-on-network"];
        assert_eq!(config(&trusted).check(), Ok(()));
        assert_eq!(config(&["lrts", "--address", "0.0.0.0", "--keys", "/k"]).check(), Ok(()));
        assert!(Command::try_parse_from(["lrts", "--insecure-on-network"]).is_err());
        assert_eq!(config(&["lrts", "--timeout", "0"]).check(), Err(ConfigError::Zero("--timeout")));
    }
}
