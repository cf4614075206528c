//! The gate: joins each connection that the acceptor lets in to the ROUTER's ipc socket, under an identity of its choice.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::ConnectionId;
use super::acceptor::{Network, Newcomer};
use super::peers::Shared;
use super::socket_dir::SocketPath;
use super::splice::{End, Passage, caught, splice};

/// Between attempts to reach the ROUTER's socket while its backlog is full, and how many there are.
const IPC_RETRY: Duration = Duration::from_millis(10);
const IPC_ATTEMPTS: u32 = 100;

/// Joins those to the ROUTER whom the acceptor lets in, until it ends; then all connections are closed.
pub(crate) async fn run(
    mut newcomers: mpsc::UnboundedReceiver<Newcomer>,
    ipc: Arc<SocketPath>,
    shared: Arc<Shared>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            newcomer = newcomers.recv() => match newcomer {
                Some(newcomer) => {
                    connections.spawn(serve(newcomer, ipc.clone(), shared.clone()));
                }
                None => break,
            }
        }
    }
    connections.shutdown().await;
}

/// Serves one connection to its end, and says so.
async fn serve(newcomer: Newcomer, ipc: Arc<SocketPath>, shared: Arc<Shared>) {
    let Newcomer { connection, orders, stream } = newcomer;
    let end = tokio::select! {
        () = orders.hang_up.cancelled() => End::ClosedHere,
        end = caught(join(connection, stream, &orders.passage, &ipc), End::Fault) => end,
    };
    shared.closed(connection, &end);
}

async fn join(connection: ConnectionId, stream: Network, passage: &Passage, ipc: &SocketPath) -> End {
    match stream.move_here() {
        Ok(Network::Plain(stream)) => pass(connection, stream, passage, ipc).await,
        Ok(Network::Tls(stream)) => pass(connection, stream, passage, ipc).await,
        Err(error) => End::Network(error),
    }
}

async fn pass<N>(connection: ConnectionId, network: N, passage: &Passage, ipc: &SocketPath) -> End
where
    N: AsyncRead + AsyncWrite + Send + Unpin,
{
    match connect(ipc).await {
        Ok(router) => splice(network, router, "DEALER", Some(connection), passage).await,
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
