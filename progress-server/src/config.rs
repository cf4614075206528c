//! What the progress server needs to know, checked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// How a progress server is set up. [`Config::default`] is what the command does without flags.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Where it listens; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// Longest time that incoming packets are handled in a row before anything else gets its turn.
    pub decode_budget: Duration,
    /// Whether an address that other machines reach is allowed, though connections aren't encrypted.
    pub insecure_on_network: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5454),
            decode_budget: Duration::from_millis(1),
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
        "listening on {0} lets everybody who reaches it see and change what bars show, since connections are not \
         encrypted: use a loopback address, or --insecure-on-network if the network is trusted"
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
        if !address.is_loopback() && !self.insecure_on_network {
            return Err(ConfigError::Network(address));
        }
        if self.decode_budget.is_zero() {
            return Err(ConfigError::Zero("--timeout"));
        }
        Ok(())
    }
}
