//! `lrts local`.

use std::io::{self, Write};

use lrts::{LocalCluster, LocalClusterError, LocalConfig, LocalKeys};
use lrts_core::command_line::{CommandError, exit_code, raise_open_file_limit};
use lrts_core::keys::KeysError;
use lrts_core::shutdown::Shutdown;
use lrts_core::telemetry::{self, LogFormat, LogOf};
use lrts_scheduler::ConfigError;
use lrts_scheduler::cli::default_state_dir;
use tokio::runtime::Builder;

use crate::cli::LocalArgs;

/// Why `lrts local` failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalError {
    #[error(transparent)]
    Cluster(#[from] LocalClusterError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("can't listen to signals")]
    Signals(#[source] io::Error),
}

impl CommandError for LocalError {
    fn exit_code(&self) -> u8 {
        match self {
            LocalError::Keys(_) | LocalError::Cluster(LocalClusterError::Keys(_)) => exit_code::REFUSED,
            LocalError::Cluster(_) | LocalError::Config(_) | LocalError::Signals(_) => exit_code::FAILED,
        }
    }
}

/// Runs all three daemons in this process until a signal comes.
pub(crate) fn local(args: &LocalArgs) -> Result<(), LocalError> {
    telemetry::start(LogFormat::Text, LogOf::Daemon);
    raise_open_file_limit();
    let mut config = LocalConfig::default().max_jobs(args.max_jobs).ports(args.port, args.progress_port);
    config.state_dir = default_state_dir(args.port)?;
    config.keys = args.keys.path()?.map_or(LocalKeys::Insecure, LocalKeys::Directory);
    let runtime =
        Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(LocalError::Signals)?;
    // Before the cluster, which leaves nothing behind if it is asked to end while it starts.
    let signals = runtime.block_on(async { Shutdown::on_signals() }).map_err(LocalError::Signals)?;
    let cluster = LocalCluster::start(config)?;
    let asked = cluster.shutdown();
    runtime.spawn(async move {
        signals.requested().await;
        asked.request();
        signals.immediate().await;
        asked.request_at_once();
    });
    let mut out = io::stdout().lock();
    // Whoever started it may have closed its end: no reason to end.
    let _ = writeln!(
        out,
        "lrts scheduler ready on {}\nlrts progress-server ready on {}\nlrts worker ready as {}",
        cluster.scheduler_address(),
        cluster.progress_address(),
        cluster.worker()
    );
    drop(out);
    Ok(cluster.run_until_shutdown()?)
}
