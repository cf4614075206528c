//! A whole cluster inside one program: for a single machine, for tests, for a first look.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use lrts_client::{ApplicationInformation, WorkerId};
use lrts_core::keys::{self, KeysError};
use lrts_core::private_dir::PrivateDir;
use lrts_core::shutdown::Shutdown;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tracing::warn;

/// How long the parts may take to find each other.
const START_LIMIT: Duration = Duration::from_secs(30);

/// What a [`LocalCluster`] is to be.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LocalConfig {
    /// Jobs at once: a count, or -1 all physical cores, -2 all logical ones, -3 and -4 the same less one (at least 1).
    pub max_jobs: i32,
    /// What a job that is stopped has to end by itself.
    pub grace: Duration,
    /// Port of the scheduler; 0 takes a free one.
    pub port: u16,
    /// Port of the progress server; 0 takes a free one.
    pub progress_port: u16,
    /// Where the scheduler keeps jobs and results; a place that ends with the cluster if none.
    pub state_dir: Option<PathBuf>,
    /// What lets its parts and applications in.
    pub keys: LocalKeys,
}

/// The keys of a [`LocalCluster`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum LocalKeys {
    /// New ones, which end with the cluster.
    #[default]
    ThrowAway,
    /// Those in this directory, made there if there are none.
    Directory(PathBuf),
    /// None: whoever reaches its ports on this machine may do all.
    Insecure,
}

impl Default for LocalConfig {
    /// All logical cores, two seconds of grace, free ports, nothing that lasts.
    fn default() -> Self {
        Self {
            max_jobs: -2,
            grace: Duration::from_secs(2),
            port: 0,
            progress_port: 0,
            state_dir: None,
            keys: LocalKeys::ThrowAway,
        }
    }
}

impl LocalConfig {
    /// Sets [`max_jobs`](Self::max_jobs).
    #[must_use]
    pub fn max_jobs(mut self, max_jobs: i32) -> Self {
        self.max_jobs = max_jobs;
        self
    }

    /// Sets [`grace`](Self::grace).
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets both ports.
    #[must_use]
    pub fn ports(mut self, port: u16, progress_port: u16) -> Self {
        self.port = port;
        self.progress_port = progress_port;
        self
    }

    /// Sets [`state_dir`](Self::state_dir).
    #[must_use]
    pub fn state_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(path.into());
        self
    }

    /// Sets [`keys`](Self::keys).
    #[must_use]
    pub fn keys(mut self, keys: LocalKeys) -> Self {
        self.keys = keys;
        self
    }
}

/// Why a [`LocalCluster`] can't start or has ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalClusterError {
    /// No directory for its state, no threads for its runtime.
    #[error("can't set up a local cluster")]
    Setup(#[source] io::Error),
    /// Its keys can't be used or made.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// A part of it can't run.
    #[error("the local {part} can't run")]
    Part {
        /// Scheduler, progress server or worker.
        part: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The parts didn't find each other.
    #[error("the local {part} was not ready within {} s", START_LIMIT.as_secs())]
    TooSlow {
        /// Scheduler, progress server or worker.
        part: &'static str,
    },
}

/// A scheduler, a progress server and a worker inside the caller's process, on loopback ports, with throw-away state unless
/// [`LocalConfig::state_dir`] says otherwise.
///
/// They speak over the same sockets and run jobs in the same processes as a cluster of many machines does. It owns a runtime
/// of its own, so it starts inside a tokio runtime too. It ends on drop: jobs that still run are stopped.
#[derive(Debug)]
pub struct LocalCluster {
    parts: Ready,
    shutdown: Shutdown,
    /// Ends once all parts have.
    thread: Option<JoinHandle<Result<(), LocalClusterError>>>,
}

/// The parts, once all of them are ready.
#[derive(Clone, Debug)]
struct Ready {
    scheduler: SocketAddr,
    progress_server: SocketAddr,
    worker: WorkerId,
    /// None without keys.
    keys: Option<PathBuf>,
}

impl LocalCluster {
    /// Starts the cluster and returns once its worker takes jobs.
    ///
    /// # Errors
    ///
    /// [`LocalClusterError`] if a port is taken, the state can't be kept, or the parts don't find each other.
    pub fn start(config: LocalConfig) -> Result<Self, LocalClusterError> {
        lrts_client::refuse_foreign_mode();
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("lrts-local")
            .enable_all()
            .build()
            .map_err(LocalClusterError::Setup)?;
        let shutdown = Shutdown::new();
        let (report, ready) = mpsc::channel();
        let asked = shutdown.clone();
        let thread = std::thread::Builder::new()
            .name("lrts-local".to_owned())
            .spawn(move || runtime.block_on(run(&config, &asked, &report)))
            .map_err(LocalClusterError::Setup)?;
        match ready.recv() {
            Ok(parts) => Ok(Self { parts, shutdown, thread: Some(thread) }),
            // The thread ended before it was ready, so it has an error to tell.
            Err(mpsc::RecvError) => {
                Err(end_of(thread).err().unwrap_or(LocalClusterError::TooSlow { part: "cluster" }))
            }
        }
    }

    /// What an application needs to connect to this cluster.
    pub fn application_information(&self) -> ApplicationInformation {
        let Ready { scheduler, progress_server, keys, .. } = &self.parts;
        let information = ApplicationInformation::new(scheduler.ip().to_string(), scheduler.port())
            .progress_server(progress_server.ip().to_string(), progress_server.port())
            .ends_with_program();
        match keys {
            Some(path) => information.keys(path),
            None => information.insecure(),
        }
    }

    /// Where the scheduler listens.
    pub fn scheduler_address(&self) -> SocketAddr {
        self.parts.scheduler
    }

    /// Where the progress server listens.
    pub fn progress_address(&self) -> SocketAddr {
        self.parts.progress_server
    }

    /// Who runs the jobs.
    pub fn worker(&self) -> WorkerId {
        self.parts.worker
    }

    /// Waits until somebody asks it to end, for `lrts local`.
    ///
    /// # Errors
    ///
    /// [`LocalClusterError::Part`] if one of the parts ended by itself.
    pub fn run_until_shutdown(mut self) -> Result<(), LocalClusterError> {
        self.thread.take().map_or(Ok(()), end_of)
    }

    /// The means to end it from elsewhere, a signal handler for example.
    pub fn shutdown(&self) -> Shutdown {
        self.shutdown.clone()
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        self.shutdown.request();
        if let Some(Err(error)) = self.thread.take().map(end_of) {
            warn!(error = &error as &dyn std::error::Error, "the local cluster ended badly");
        }
    }
}

/// Joins the cluster's thread; its panic goes on in the caller.
fn end_of(thread: JoinHandle<Result<(), LocalClusterError>>) -> Result<(), LocalClusterError> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Starts all parts, reports that they are ready, and runs them until somebody asks them to end or one of them ends by itself.
async fn run(
    config: &LocalConfig,
    shutdown: &Shutdown,
    report: &mpsc::Sender<Ready>,
) -> Result<(), LocalClusterError> {
    let state = PrivateDir::create(&std::env::temp_dir(), "local").map_err(LocalClusterError::Setup)?;
    let mut parts = Parts::default();
    let result = async {
        let ready = parts.start(config, &state).await?;
        // The receiver is gone only if the thread that started the cluster has panicked.
        let _ = report.send(ready);
        tokio::select! {
            () = shutdown.requested() => Ok(()),
            result = parts.first_end() => result,
        }
    }
    .await;
    result.and(parts.end(shutdown).await)
}

/// One daemon of the cluster.
struct Part {
    name: &'static str,
    shutdown: Shutdown,
    task: tokio::task::JoinHandle<Result<(), LocalClusterError>>,
}

/// The running daemons, in the order in which they were started.
#[derive(Default)]
struct Parts(Vec<Part>);

impl Parts {
    async fn start(&mut self, config: &LocalConfig, state: &PrivateDir) -> Result<Ready, LocalClusterError> {
        let keys = match &config.keys {
            LocalKeys::ThrowAway => Some(state.path().join("keys")),
            LocalKeys::Directory(path) => Some(path.clone()),
            LocalKeys::Insecure => None,
        };
        if let Some(path) = keys.clone() {
            let made = tokio::task::spawn_blocking(move || keys::ensure(&path));
            made.await.expect("making keys doesn't panic")?;
        }
        let scheduler = self
            .spawn("scheduler", |ready, shutdown| {
                let config = lrts_scheduler::Config {
                    address: SocketAddr::from((Ipv4Addr::LOCALHOST, config.port)),
                    state_dir: config.state_dir.clone(),
                    keys: keys.clone(),
                    ..Default::default()
                };
                lrts_scheduler::run(config, ready, shutdown)
            })
            .await?;
        let progress_server = self
            .spawn("progress server", |ready, shutdown| {
                let config = lrts_progress_server::Config {
                    address: SocketAddr::from((Ipv4Addr::LOCALHOST, config.progress_port)),
                    keys: keys.clone(),
                    ..Default::default()
                };
                lrts_progress_server::run(config, ready, shutdown)
            })
            .await?;
        let worker = self
            .spawn("worker", |ready, shutdown| {
                let config = lrts_worker::Config {
                    scheduler_address: scheduler.to_string(),
                    progress_address: progress_server.to_string(),
                    keys: keys.clone(),
                    slots: lrts_worker::slots(config.max_jobs),
                    state_dir: Some(state.path().join("worker")),
                    grace: config.grace,
                    // What nobody can come back to ends with the program.
                    orphan_grace: Duration::ZERO,
                    ..Default::default()
                };
                lrts_worker::run(config, ready, shutdown)
            })
            .await?;
        Ok(Ready { scheduler, progress_server, worker, keys })
    }

    /// Starts one part and waits until it is ready.
    async fn spawn<R, E, F>(
        &mut self,
        name: &'static str,
        run: impl FnOnce(Box<dyn FnOnce(R) + Send>, Shutdown) -> F,
    ) -> Result<R, LocalClusterError>
    where
        R: Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
    {
        let (report, ready) = oneshot::channel();
        let shutdown = Shutdown::new();
        let tell = Box::new(move |value| {
            // Nobody waits any more if the start was given up.
            let _ = report.send(value);
        });
        let running = run(tell, shutdown.clone());
        let task = tokio::spawn(async move {
            running.await.map_err(|source| LocalClusterError::Part { part: name, source: Box::new(source) })
        });
        self.0.push(Part { name, shutdown, task });
        match tokio::time::timeout(START_LIMIT, ready).await {
            Ok(Ok(value)) => Ok(value),
            // It ended before it was ready; the wait for its end tells why.
            Ok(Err(_)) => self.first_end().await.and(Err(LocalClusterError::TooSlow { part: name })),
            Err(_) => Err(LocalClusterError::TooSlow { part: name }),
        }
    }

    /// Waits until one of the parts has ended. Safe to cancel.
    async fn first_end(&mut self) -> Result<(), LocalClusterError> {
        let ends = self.0.iter_mut().map(|part| &mut part.task);
        let (result, index, _) = futures_util::future::select_all(ends).await;
        self.0.remove(index);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Ends the parts, the last started first: the worker stops its jobs while the scheduler is still there to hear of it.
    async fn end(mut self, shutdown: &Shutdown) -> Result<(), LocalClusterError> {
        let mut result = Ok(());
        while let Some(mut part) = self.0.pop() {
            part.shutdown.request();
            let ended = tokio::select! {
                ended = &mut part.task => ended,
                () = shutdown.immediate() => {
                    part.shutdown.request_at_once();
                    part.task.await
                }
            };
            tracing::debug!(part = part.name, "ended");
            result = result.and(ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())));
        }
        result
    }
}
