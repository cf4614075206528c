//! What the progress server needs to know, checked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// How a progress server is set up. [`Config::default`] is what the command does without flags, but for the place of keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Where it listens; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// Longest time that incoming packets are handled in a row before anything else gets its turn.
    pub decode_budget: Duration,
    /// The progress server's key: a key file, or a keys directory. None: without keys, whoever connects sees and sets all.
    pub keys: Option<PathBuf>,
    /// Whether an address that other machines reach is allowed without keys.
    pub insecure_on_network: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5454),
            decode_budget: Duration::from_millis(1),
            keys: None,
            insecure_on_network: false,
        }
    }
}

/// A configuration that no progress server can run with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Whoever reaches the port could see and forge progress.
    #[error(
        "listening on {0} without keys lets everybody who reaches it see and change what bars show: leave out --insecure, use a \
         loopback address, or add --insecure-on-network if the network is trusted"
    )]
    Network(IpAddr),
    /// A span of time that must not be zero.
    #[error("{0} must be longer than nothing")]
    Zero(&'static str),
}

impl Config {
    /// Whether a progress server can run with it.
    ///
    /// # Errors
    ///
    /// What stands against it.
    pub fn check(&self) -> Result<(), ConfigError> {
        let address = self.address.ip();
        if self.keys.is_none() && !address.is_loopback() && !self.insecure_on_network {
            return Err(ConfigError::Network(address));
        }
        if self.decode_budget.is_zero() {
            return Err(ConfigError::Zero("--timeout"));
        }
        Ok(())
    }
}
