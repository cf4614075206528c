//! The lrts scheduler: owns every job's state, places jobs on workers, hands results to applications.
//!
//! # Map of the crate
//!
//! ```text
//! peers ─ transport ─► event_loop ─ convert ─► Event ─► engine ─► Action ─► event_loop ─► store, transport
//!                          ▲  │
//!              bundles, commands
//! ```
//! - `engine` decides everything and does no I/O: read `engine/mod.rs` first, then `engine/events.rs`.
//! - `event_loop` is the one `select!`. What relies on a record is sent once the `store` has committed it.
//! - `convert` maps messages to events and back, and refuses what no honest peer sends.
//! - `store` keeps records and bodies (payloads, results, output); the engine knows lengths only.
//! - `bundles` keeps the applications' programs as files, takes them in and hands them out to workers.
//! - `commands` answers `lrts status` and its like.
//! - [`cli::SchedulerArgs`] becomes a checked [`Config`]; below that nobody reads arguments or the environment.
//!
//! Jobs live in memory: they end with the scheduler's process.

mod bundles;
pub mod cli;
mod commands;
mod config;
mod convert;
mod engine;
mod event_loop;
mod record;
mod state_dir;
mod store;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use lrts_core::command_line::{CommandError, exit_code};
use lrts_core::ids::random_u64;
use lrts_core::private_dir::PrivateDir;
use lrts_core::shutdown::Shutdown;
use lrts_core::transport::{BindError, Role, Server, ServerConfig, SocketDir};
use tracing::{info, warn};

pub use config::{Config, ConfigError};
pub use store::{Damage, StoreError};

use bundles::Bundles;
use engine::{Engine, Settings};
use event_loop::EventLoop;
use store::{MemoryStore, Store};

/// Why a scheduler can't run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The configuration makes no sense: wrong usage.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It can't listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The state directory can't be used.
    #[error("cannot use {} as state directory", path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another scheduler uses the state directory.
    #[error("another scheduler uses the state directory {}", .0.display())]
    StateDirInUse(PathBuf),
    /// No private directory for sockets can be made.
    #[error("cannot make a private directory for sockets")]
    SocketDir(#[source] io::Error),
    /// No threads or signal handlers.
    #[error("cannot set up the scheduler")]
    Setup(#[source] io::Error),
}

impl CommandError for RunError {
    fn exit_code(&self) -> u8 {
        match self {
            RunError::Config(_) => exit_code::USAGE,
            RunError::Bind(_)
            | RunError::StateDir { .. }
            | RunError::StateDirInUse(_)
            | RunError::SocketDir(_)
            | RunError::Setup(_) => exit_code::FAILED,
        }
    }
}

/// Runs a scheduler until `shutdown` asks for its end. `ready` is called once, with the address that it listens on.
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
    let state = StateDir::open(config.state_dir.clone())?;
    let socket_dir = SocketDir::create().map_err(RunError::SocketDir)?;
    let accepts = vec![Role::Worker, Role::Client, Role::Admin];
    let server = ServerConfig {
        decode_budget: config.decode_budget,
        ..ServerConfig::new(config.address, socket_dir.path(), accepts)
    };
    let server = Server::bind(server).await?;
    let bundles = state.path.join("bundles");
    let bundles = Bundles::open(bundles.clone(), config.bundle_store_bytes, server.handle())
        .map_err(|source| RunError::StateDir { path: bundles, source })?;
    let store: Box<dyn Store> = Box::new(MemoryStore::new());
    let engine = Engine::new(Settings {
        epoch: store.epoch(),
        seed: random_u64(),
        heartbeat: config.heartbeat,
        lost_after: config.lost_after,
        result_retention: config.result_retention,
    });
    let address = server.local_address();
    if !address.ip().is_loopback() {
        warn!(%address, "connections are not encrypted: whoever reaches this address can run programs");
    }
    info!(%address, state = %state.path.display(), "scheduler ready");
    ready(address);
    Box::pin(EventLoop::new(server, engine, store, bundles).run(&shutdown)).await;
    info!("scheduler ended");
    Ok(())
}

/// The directory of one scheduler.
struct StateDir {
    path: PathBuf,
    /// Locked while this scheduler runs; a temporary directory needs no lock.
    _lock: Option<File>,
    /// Removed at the end.
    _temporary: Option<PrivateDir>,
}

impl StateDir {
    fn open(path: Option<PathBuf>) -> Result<Self, RunError> {
        let Some(path) = path else {
            let parent = std::env::temp_dir();
            let temporary = PrivateDir::create(&parent, "scheduler");
            let temporary = temporary.map_err(|source| RunError::StateDir { path: parent, source })?;
            let path = temporary.path().to_owned();
            return Ok(Self { path, _lock: None, _temporary: Some(temporary) });
        };
        let lock = open_lock(&path).map_err(|source| RunError::StateDir { path: path.clone(), source })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: Some(lock), _temporary: None }),
            Err(std::fs::TryLockError::WouldBlock) => Err(RunError::StateDirInUse(path)),
            Err(std::fs::TryLockError::Error(source)) => Err(RunError::StateDir { path, source }),
        }
    }
}

fn open_lock(directory: &std::path::Path) -> io::Result<File> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    File::options().create(true).truncate(false).write(true).open(directory.join("scheduler.lock"))
}
