//! The lrts worker: offers slots to a scheduler and runs every job in a process of its own, under a *job host*.
//!
//! The map of this crate:
//! - `engine` decides, without I/O: which attempts are here, which may start, when to speak. It never decides about a job's
//!   fate.
//! - `event_loop` is the one `select!` around it; `convert` maps messages to events, `outbox` sends what it says.
//! - `hosts` starts and looks after job hosts, the bundle's executable in host mode: one process per bundle, which forks a
//!   process per job. They outlive the worker, and the next one adopts them.
//! - `bundles` fetches, verifies and keeps programs; `state_dir` is the worker's place on the disk; `janitor` deletes what
//!   ended attempts leave there.
//! - `cgroup` makes room for control groups of jobs; `cli` and `config` are how it is started.
//!
//! Progress goes another way: a subprocess reads the hosts' shared memory and speaks with the progress server by itself.

mod bundles;
mod cgroup;
pub mod cli;
mod config;
mod convert;
mod engine;
mod event_loop;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod hosts;
mod janitor;
mod machine;
mod outbox;
mod state_dir;

use std::io;
use std::path::Path;
use std::sync::Arc;

use lrts_core::descriptors;
use lrts_core::ids::WorkerId;
use lrts_core::keys::{KeysError, Security};
use lrts_core::progress::{Reporter, ReporterConfig};
use lrts_core::shutdown::Shutdown;
use lrts_core::transport::{Hello, Link, LinkConfig, Refusal, Role, SocketDir};
use tracing::info;

pub use crate::config::{Config, OnTerm, slots};
pub use crate::state_dir::StateDirError;

use crate::event_loop::{End, EventLoop};
use crate::machine::Machine;
use crate::state_dir::StateDir;

/// Why a worker has failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// It has no place for its state.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// It can't keep what it was started with from its job hosts.
    #[error("cannot look at the open descriptors: is /proc mounted?")]
    Descriptors(#[source] io::Error),
    /// It has no place for its sockets.
    #[error("cannot make a directory for sockets")]
    Sockets(#[source] io::Error),
    /// Its own key file is of no use.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The scheduler doesn't want this worker, whatever happens: trying again is pointless.
    #[error("the scheduler refuses this worker")]
    Refused(#[source] Refusal),
}

/// Runs a worker until `shutdown` is requested: then it gives back what waits, stops what runs within the grace period, tells
/// the scheduler how that ended, and returns. Asked to end at once, it kills its jobs and returns. With [`OnTerm::Leave`] it
/// leaves what runs to the job hosts both times, and another worker on the same state directory takes them over; that is also
/// what happens if the process is killed. Results that the scheduler hasn't confirmed wait for that worker in any case.
///
/// `ready` is called once, when the scheduler has registered the worker. Until the scheduler is there, the worker waits for it.
/// Needs a multi-threaded tokio runtime.
///
/// # Errors
///
/// [`RunError`].
pub async fn run(
    config: Config,
    ready: impl FnOnce(WorkerId) + Send,
    shutdown: Shutdown,
) -> Result<(), RunError> {
    let security = Security::new(config.keys.clone(), Role::Worker);
    if let Security::Keys(source) = &security {
        match source.current() {
            // One that isn't there, or can't be read now, may yet come.
            Ok(_) | Err(KeysError::Missing { .. } | KeysError::Io { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let wanted = config.state_dir.clone();
    let open = tokio::task::spawn_blocking(move || StateDir::open(wanted.as_deref()));
    let state = Arc::new(open.await.expect("opening the state directory doesn't panic")?);
    if config.owns_process {
        // What it was started with beside its standard streams is no business of what it starts.
        descriptors::close_on_exec().map_err(RunError::Descriptors)?;
        // Before the first host is started, which inherits it.
        cgroup::settle(Path::new(cgroup::ROOT), std::process::id());
    }
    let machine = Machine::current();
    let worker = state.worker();
    info!(%worker, slots = config.slots, state_dir = %state.path().display(), "worker starts");

    let sockets = SocketDir::create().map_err(RunError::Sockets)?;
    let reporter = Reporter::start(ReporterConfig {
        executable: config.progress_executable.clone(),
        progress_address: config.progress_address.clone(),
        keys: config.keys.clone(),
        host: machine.host.clone(),
    });
    let hello = Hello::new(Role::Worker, worker.to_string(), machine.host.clone());
    let link = LinkConfig::new(&config.scheduler_address, Role::Scheduler, hello, security, sockets.path());
    let (link, incoming) = Link::open(link);

    let event_loop =
        tokio::task::block_in_place(|| EventLoop::new(config, machine, state, link, reporter, ready));
    // Boxed: it is large, and lives once.
    match Box::pin(event_loop.run(incoming, &shutdown)).await {
        End::Left | End::AtOnce => Ok(()),
        End::Refused(refusal) => Err(RunError::Refused(refusal)),
    }
}
