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
//! - `event_loop` is the one `select!`. What relies on a record is sent once the `store` has committed it, until then it waits in
//!   `commits`.
//! - `convert` maps messages to events and back, and refuses what no honest peer sends.
//! - `record` is what outlives the process. `store` keeps it, and bodies (payloads, results, output, checkpoints); the engine
//!   knows their lengths only.
//! - `outbox` sends messages in order, each once its body has been read.
//! - `bundles` keeps the applications' programs as files, takes them in and hands them out to workers.
//! - `commands` answers `lrts status` and its like.
//! - [`cli::SchedulerArgs`] becomes a checked [`Config`]; below that nobody reads arguments or the environment.
//!
//! Jobs outlive the process: the next one goes on with them from the state directory.

mod bundles;
pub mod cli;
mod commands;
mod commits;
mod config;
mod convert;
mod engine;
mod event_loop;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod outbox;
mod record;
mod state_dir;
mod store;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::command_line::{CommandError, exit_code};
use lrts_core::ids::random_u64;
use lrts_core::keys::{KeysError, Security};
use lrts_core::limits::BUNDLE_STORE_SHARES;
use lrts_core::shutdown::Shutdown;
use lrts_core::transport::{BindError, Role, Server, ServerConfig, SocketDir};
use tracing::{info, warn};

pub use config::{Config, ConfigError};
pub use store::{Damage, StoreError};

use bundles::Bundles;
use engine::{Bounds, Engine, Settings};
use event_loop::EventLoop;
use record::Loaded;
use state_dir::StateDir;
use store::{DurableStore, FullDisk, Store};

/// How soon a full disk is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
    /// Its keys can't be used or made.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The state directory can't be used, or what is in it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bundles in the state directory can't be used.
    #[error("cannot keep programs in {}", path.display())]
    Bundles {
        /// Their directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
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
            RunError::Keys(_) | RunError::Bind(BindError::Keys(_)) => exit_code::REFUSED,
            RunError::Bind(_)
            | RunError::Store(_)
            | RunError::Bundles { .. }
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
    let Some((state, store, loaded)) = open_when_room(config.state_dir.clone(), &shutdown).await? else {
        return Ok(());
    };
    let socket_dir = SocketDir::create().map_err(RunError::SocketDir)?;
    let accepts = vec![Role::Worker, Role::Client, Role::Admin];
    let security = Security::new(config.keys.clone(), Role::Scheduler);
    let server = ServerConfig {
        decode_budget: config.decode_budget,
        ..ServerConfig::new(config.address, socket_dir.path(), accepts, security)
    };
    let server = Server::bind(server).await?;
    let bundles = state.bundles();
    let bundles = Bundles::open(bundles.clone(), config.bundle_store_bytes, server.handle())
        .map_err(|source| RunError::Bundles { path: bundles, source })?;
    let settings = Settings {
        store: store.identity(),
        epoch: store.epoch(),
        seed: random_u64(),
        heartbeat: config.heartbeat,
        lost_after: config.lost_after,
        result_retention: config.result_retention,
        result_bytes: config.result_store_bytes,
        bounds: Bounds {
            bundle_bytes_per_user: config.bundle_store_bytes / BUNDLE_STORE_SHARES,
            ..Bounds::default()
        },
    };
    let engine = Engine::restore(settings, loaded, Moment::now());
    let address = server.local_address();
    if config.keys.is_none() {
        warn!(%address, "no keys are asked for: whoever reaches this address can run programs as the workers' users");
    }
    info!(%address, epoch = store.epoch(), state = %state.path().display(), "scheduler ready");
    ready(address);
    Box::pin(EventLoop::new(server, engine, Box::new(store), bundles).run(&shutdown)).await;
    info!("scheduler ended");
    Ok(())
}

/// Opens the state directory, once there is room on its disk. None if somebody asks for the end before.
async fn open_when_room(
    path: Option<PathBuf>,
    shutdown: &Shutdown,
) -> Result<Option<(StateDir, DurableStore, Loaded)>, StoreError> {
    let mut full: Option<FullDisk> = None;
    loop {
        let directory = path.clone().unwrap_or_else(std::env::temp_dir);
        if full.is_none_or(|full| full.has_changed(&directory)) {
            match open(path.clone()).await {
                Err(error @ StoreError::DiskFull { .. }) => {
                    if full.is_none() {
                        let cause = std::error::Error::source(&error).map(ToString::to_string);
                        warn!(%error, cause, "waiting for room");
                    }
                    full = Some(FullDisk::seen(&directory));
                }
                opened => return opened.map(Some),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = shutdown.requested() => return Ok(None),
        }
    }
}

/// Opens the state directory and reads what is in it.
async fn open(path: Option<PathBuf>) -> Result<(StateDir, DurableStore, Loaded), StoreError> {
    let open = move || {
        let lasts = path.is_some();
        let state = StateDir::open(path)?;
        let directory = state.store();
        let mut store = match lasts {
            true => DurableStore::open(&directory)?,
            false => DurableStore::open_temporary(&directory)?,
        };
        let loaded = store.load()?;
        state.mark()?;
        Ok((state, store, loaded))
    };
    tokio::task::spawn_blocking(open).await.expect("opening a store doesn't panic")
}
