//! What the scheduler needs to know, checked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// How a scheduler is set up. [`Config::default`] is what the command does without flags, but for the places of keys and state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Where it listens; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// Longest time that incoming packets are handled in a row before anything else gets its turn.
    pub decode_budget: Duration,
    /// Where jobs, results and bundles are kept; a temporary directory, removed at the end, if none.
    pub state_dir: Option<PathBuf>,
    /// The scheduler's key: a key file, or a keys directory. None: without keys, whoever connects may do all.
    pub keys: Option<PathBuf>,
    /// Whether an address that other machines reach is allowed without keys.
    pub insecure_on_network: bool,
    /// How long a silent worker is trusted.
    pub lost_after: Duration,
    /// Interval of workers' heartbeats; at most a quarter of `lost_after` is used.
    pub heartbeat: Duration,
    /// How long results, and what else is known of ended jobs, are kept.
    pub result_retention: Duration,
    /// Most bytes of results that are kept; the oldest go first.
    pub result_store_bytes: u64,
    /// Most bytes of bundles that are kept.
    pub bundle_store_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5555),
            decode_budget: Duration::from_millis(1),
            state_dir: None,
            keys: None,
            insecure_on_network: false,
            lost_after: Duration::from_secs(20),
            heartbeat: Duration::from_secs(5),
            result_retention: Duration::from_secs(7 * 24 * 3_600),
            result_store_bytes: 100 << 30,
            bundle_store_bytes: 10 << 30,
        }
    }
}

/// A configuration that no scheduler can run with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Whoever reaches the port could run programs here.
    #[error(
        "listening on {0} without keys lets everybody who reaches it run programs as the workers' user: leave out --insecure, use \
         a loopback address, or add --insecure-on-network if the network is trusted"
    )]
    Network(IpAddr),
    /// Nobody says where the user's state belongs.
    #[error("no state directory: neither XDG_STATE_HOME nor HOME is set, so give one with --state-dir")]
    NoStateHome,
    /// A span of time that must not be zero.
    #[error("{0} must be longer than nothing")]
    Zero(&'static str),
}

impl Config {
    /// Whether a scheduler can run with it.
    ///
    /// # Errors
    ///
    /// What stands against it.
    pub fn check(&self) -> Result<(), ConfigError> {
        let address = self.address.ip();
        if self.keys.is_none() && !address.is_loopback() && !self.insecure_on_network {
            return Err(ConfigError::Network(address));
        }
        let spans = [
            ("--lost-after", self.lost_after),
            ("--heartbeat", self.heartbeat),
            ("--timeout", self.decode_budget),
        ];
        match spans.into_iter().find(|(_, span)| span.is_zero()) {
            Some((flag, _)) => Err(ConfigError::Zero(flag)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_must_be_asked_for() {
        let mut config = Config::default();
        assert_eq!(config.check(), Ok(()));
        config.address.set_ip([0, 0, 0, 0].into());
        assert!(config.check().unwrap_err().to_string().contains("--insecure-on-network"));
        config.insecure_on_network = true;
        assert_eq!(config.check(), Ok(()));
        config.lost_after = Duration::ZERO;
        assert_eq!(config.check(), Err(ConfigError::Zero("--lost-after")));
    }
}
