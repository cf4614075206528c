//! The lrts progress server: keeps every bar's latest state and fans it out to whoever watches that application.
//!
//! # Map of the crate
//!
//! ```text
//! reporters ─ transport ─► event_loop ─► Event ─► engine ─► Action ─► event_loop ─ transport ─► watchers
//! ```
//! - `engine` decides everything and does no I/O: read `engine/mod.rs` first.
//! - `event_loop` is the one `select!`; it also turns messages into events.
//! - [`cli::ProgressServerArgs`] becomes a checked [`Config`]; below that nobody reads arguments or the environment.
//!
//! Nothing is stored: positions are absolute, and reporters tell all again when they come back.

pub mod cli;
mod config;
mod engine;
mod event_loop;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;

use std::io;
use std::net::SocketAddr;

use lrts_core::command_line::{CommandError, exit_code};
use lrts_core::keys::{KeysError, Security};
use lrts_core::shutdown::Shutdown;
use lrts_core::transport::{BindError, Role, Server, ServerConfig, SocketDir};
use tracing::{info, warn};

pub use config::{Config, ConfigError};

use event_loop::EventLoop;

/// Why a progress server can't run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The configuration makes no sense: wrong usage.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It can't listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Its keys can't be used or made.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// No private directory for sockets can be made.
    #[error("cannot make a private directory for sockets")]
    SocketDir(#[source] io::Error),
    /// No threads or signal handlers.
    #[error("cannot set up the progress server")]
    Setup(#[source] io::Error),
}

impl CommandError for RunError {
    fn exit_code(&self) -> u8 {
        match self {
            RunError::Config(_) => exit_code::USAGE,
            RunError::Keys(_) | RunError::Bind(BindError::Keys(_)) => exit_code::REFUSED,
            RunError::Bind(_) | RunError::SocketDir(_) | RunError::Setup(_) => exit_code::FAILED,
        }
    }
}

/// Runs a progress server until `shutdown` asks for its end. `ready` is called once, with the address that it listens on.
///
/// Needs a multi-threaded tokio runtime with its timer and I/O enabled.
///
/// # Errors
///
/// [`RunError`] if it can't start. Once it runs, it ends by `shutdown` only.
pub async fn run(
    config: Config,
    ready: impl FnOnce(SocketAddr) + Send,
    shutdown: Shutdown,
) -> Result<(), RunError> {
    config.check()?;
    let socket_dir = SocketDir::create().map_err(RunError::SocketDir)?;
    let security = Security::new(config.keys.clone(), Role::ProgressServer);
    let server = ServerConfig {
        decode_budget: config.decode_budget,
        ..ServerConfig::new(config.address, socket_dir.path(), vec![Role::Worker, Role::Client], security)
    };
    let server = Server::bind(server).await?;
    let address = server.local_address();
    if config.keys.is_none() {
        warn!(%address, "no keys are asked for: whoever reaches this address can see and set all bars");
    }
    info!(%address, "progress server ready");
    ready(address);
    Box::pin(EventLoop::new(server).run(&shutdown)).await;
    info!("progress server ended");
    Ok(())
}
