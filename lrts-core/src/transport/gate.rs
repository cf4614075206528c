//! The gate: accepts TLS for a server, and joins each connection to the ROUTER's ipc socket under an identity of its choice.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::FutureExt;
use nix::sys::resource::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::router::{Opened, Orders, Shared};
use super::socket_dir::SocketPath;
use super::splice::{End, splice, tune};
use super::{ConnectionId, tls};
use crate::clock::{Moment, sleep_until};
use crate::keys::{KeysError, Security};
use crate::limits::{FILES_PER_PEER, RESERVED_FILES};

/// Connections that the kernel keeps until the gate accepts them.
const BACKLOG: u32 = 4_096;

/// Backoff when accepting fails, which is mostly for want of descriptors: doubles from the first to the second.
const ACCEPT_BACKOFF_MIN: Duration = Duration::from_millis(10);
const ACCEPT_BACKOFF_MAX: Duration = Duration::from_secs(1);

/// While strangers crowd each other out, so many are accepted in a row before a pause, so that they don't take all the time of
/// those who are inside, and the line of newcomers still moves.
const CROWDED_BURST: u32 = 4;
const CROWDED_PAUSE: Duration = Duration::from_millis(1);

/// Between attempts to reach the ROUTER's socket while its backlog is full, and how many there are.
const IPC_RETRY: Duration = Duration::from_millis(10);
const IPC_ATTEMPTS: u32 = 100;

/// Why a server can't start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The TCP address can't be listened on.
    #[error("cannot listen on {address}: {}", listen_reason(error))]
    Listen {
        /// The address in question.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// Its key can't be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The directory for the ipc socket can't be used.
    #[error("cannot use {path:?} for sockets: {error}")]
    SocketDir {
        /// The directory in question.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

fn listen_reason(error: &io::Error) -> String {
    let reasons = [
        (io::ErrorKind::AddrInUse, "the port is in use by another program"),
        (io::ErrorKind::PermissionDenied, "permission denied (ports below 1024 are privileged)"),
        (io::ErrorKind::AddrNotAvailable, "this machine has no such address"),
    ];
    let known = reasons.into_iter().find(|(kind, _)| *kind == error.kind());
    known.map_or_else(|| error.to_string(), |(_, reason)| reason.to_owned())
}

/// Peers that this process can hold, by its limit of open files.
pub(crate) fn connection_limit() -> usize {
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1_024, 1_024));
    usize::try_from(files.saturating_sub(RESERVED_FILES) / FILES_PER_PEER).unwrap_or(usize::MAX).max(1)
}

/// Listens on a TCP address.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A server that restarts must get its port back although old connections linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts until told to stop; then all connections are closed.
pub(crate) async fn run(
    listener: TcpListener,
    ipc: Arc<SocketPath>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    let mut backoff = ACCEPT_BACKOFF_MIN;
    let mut paused_until = None;
    let mut crowd = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            () = sleep_until(paused_until) => paused_until = None,
            accepted = listener.accept(), if paused_until.is_none() => match accepted {
                Ok((stream, address)) => {
                    backoff = ACCEPT_BACKOFF_MIN;
                    let connection = ConnectionId::next();
                    let Opened { orders, crowded } = shared.opened(connection, address);
                    if let Some(orders) = orders {
                        connections.spawn(serve(connection, stream, orders, ipc.clone(), shared.clone()));
                    }
                    crowd += u32::from(crowded);
                    if crowd == CROWDED_BURST {
                        crowd = 0;
                        paused_until = Some(Moment::now() + CROWDED_PAUSE);
                    }
                }
                Err(error) => {
                    warn!(%error, ?backoff, "cannot accept connections, trying again");
                    paused_until = Some(Moment::now() + backoff);
                    backoff = (backoff * 2).min(ACCEPT_BACKOFF_MAX);
                }
            },
        }
    }
    connections.shutdown().await;
}

/// Serves one connection to its end, and says so; also if that has panicked, which must not leave its place taken.
async fn serve(
    connection: ConnectionId,
    stream: TcpStream,
    orders: Orders,
    ipc: Arc<SocketPath>,
    shared: Arc<Shared>,
) {
    let end = tokio::select! {
        () = orders.hang_up.cancelled() => End::ClosedHere,
        end = caught(join(connection, stream, &orders.welcomed, &ipc, &shared)) => end,
    };
    debug!(%connection, reason = %end, "connection ended");
    shared.closed(connection, &end);
}

/// How a connection ends, whatever happens.
async fn caught(serving: impl Future<Output = End>) -> End {
    // What it has shared with others lies behind a lock that tells them.
    AssertUnwindSafe(serving).catch_unwind().await.unwrap_or(End::Fault)
}

async fn join(
    connection: ConnectionId,
    stream: TcpStream,
    welcomed: &AtomicBool,
    ipc: &SocketPath,
    shared: &Shared,
) -> End {
    if let Err(error) = tune(&stream) {
        return End::Network(error);
    }
    match shared.security() {
        Security::Keys(source) => {
            // Looked at for each handshake: a key that was made a moment ago already counts.
            let ring = match source.current_or_last() {
                Ok(ring) => ring,
                Err(error) => return End::Keys(error.to_string()),
            };
            match tls::accept(stream, &ring).await {
                Ok((stream, certified)) => {
                    let shown = certified.shown.clone();
                    shared.certified(connection, certified);
                    // The keys may have changed since the handshake began. From here on the watch over them sees this peer too.
                    if let Ok(now) = source.current_or_last()
                        && !Arc::ptr_eq(&now, &ring)
                        && let Err(refusal) = shown.check_client(&now, Moment::now())
                    {
                        return End::Keys(refusal.to_string());
                    }
                    pass(connection, stream, welcomed, ipc).await
                }
                Err(end) => end,
            }
        }
        Security::Insecure => match tls::turn_away(stream).await {
            Some(stream) => pass(connection, stream, welcomed, ipc).await,
            None => End::Keys("it wants keys, and this server was started without (--insecure)".to_owned()),
        },
    }
}

async fn pass<N>(connection: ConnectionId, network: N, welcomed: &AtomicBool, ipc: &SocketPath) -> End
where
    N: AsyncRead + AsyncWrite + Send + Unpin,
{
    match connect(ipc).await {
        Ok(router) => splice(network, router, "DEALER", Some(connection), welcomed).await,
        Err(error) => End::Network(error),
    }
}

/// Connects to the ROUTER; its backlog may be full for a moment.
async fn connect(ipc: &SocketPath) -> io::Result<UnixStream> {
    let mut attempt = 1;
    loop {
        match UnixStream::connect(ipc.path()).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && attempt < IPC_ATTEMPTS => {
                attempt += 1;
                tokio::time::sleep(IPC_RETRY).await;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Cause;

    #[tokio::test]
    async fn a_fault_in_serving_a_peer_is_an_end_that_counts() {
        let end = caught(async { panic!("this is a test") }).await;
        assert_eq!(end.cause(), Some(Cause::Fault));
        assert_eq!(caught(async { End::Closed }).await.cause(), None);
    }
}
