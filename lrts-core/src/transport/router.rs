//! The server's end: one ROUTER behind the gate, a session for each peer.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, yield_now};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use zeromq::{RouterRecvHalf, RouterSocket, Socket, SocketRecv};

use super::counters::Counters;
use super::hello::Refusal;
use super::peers::Shared;
use super::server::{BindError, SendError, ServerConfig, ServerEvent};
use super::socket_dir::SocketPath;
use super::{ConnectionId, Message, acceptor, gate, key_watch};
use crate::clock::{Moment, sleep_until};
use crate::keys::Security;

/// How soon a packet that the ROUTER could not take is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// Shortest time between looks at the peers' deadlines.
const SHORTEST_TICK: Duration = Duration::from_millis(5);

/// Accepts peers and brings their messages. Dropping it closes all connections at once.
pub struct Server {
    address: SocketAddr,
    /// Listens, at the acceptor's.
    socket: OwnedFd,
    handle: ServerHandle,
    urgent: mpsc::UnboundedReceiver<ServerEvent>,
    normal: mpsc::UnboundedReceiver<ServerEvent>,
    flush_time: Duration,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Server {
    /// Starts to listen.
    ///
    /// # Errors
    ///
    /// [`BindError`] if the address or the directory can't be used.
    pub async fn bind(config: ServerConfig) -> Result<Self, BindError> {
        let listen_error = |error| BindError::Listen { address: config.address, error };
        let socket_dir_error = |error| BindError::SocketDir { path: config.socket_dir.clone(), error };
        let keys = match &config.security {
            Security::Keys(source) => Some((source.clone(), source.current()?)),
            Security::Insecure => None,
        };
        let listener = acceptor::listen(config.address).map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let ipc = SocketPath::within(&config.socket_dir).map_err(socket_dir_error)?;
        let mut router = RouterSocket::new();
        let ipc_listener = ipc.listen().map_err(socket_dir_error)?;
        let bound = router.bind_listener(ipc_listener).await;
        bound.map_err(|error| socket_dir_error(io::Error::other(error)))?;
        let (sender, receiver) = router.split();

        // Not bounded by themselves: credit bounds what each peer may have in them, the gate the number of peers.
        let (urgent_sender, urgent) = mpsc::unbounded_channel();
        let (normal_sender, normal) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(&config, Some(sender), urgent_sender, normal_sender));
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let ended = stop.clone().drop_guard();
        let socket = listener.as_fd().try_clone_to_owned().map_err(BindError::Acceptor)?;
        let newcomers =
            acceptor::start(listener, shared.clone(), stop.clone()).await.map_err(BindError::Acceptor)?;
        tasks.spawn(gate::run(newcomers, Arc::new(ipc), shared.clone()));
        if let Some((source, ring)) = keys {
            tasks.spawn(key_watch::run(source, ring, shared.clone(), stop.clone()));
        }
        tasks.spawn(run(receiver, shared.clone(), config.decode_budget, stop.clone()));
        let handle = ServerHandle { shared };
        ended.disarm();
        Ok(Self { address, socket, handle, urgent, normal, flush_time: config.flush_time, stop, tasks })
    }

    /// Where it listens, with the port that was chosen.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// The number that this server's peers are told: drawn at random at its start.
    pub fn instance(&self) -> u64 {
        self.handle.shared.instance()
    }

    /// Sends and disconnects; may be cloned and used from any thread.
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// The next event. Safe to cancel: nothing is lost.
    ///
    /// Taking a message is what lets its peer send more.
    pub async fn next(&mut self) -> ServerEvent {
        let event = tokio::select! {
            biased;
            event = self.urgent.recv() => event,
            event = self.normal.recv() => event,
        };
        // The senders live in `shared`, which `self` holds.
        let event = event.expect("the server's own handle keeps its channels open");
        self.taken(&event);
        event
    }

    /// The next event that is urgent, or the next of any kind if `all`. Safe to cancel: nothing is lost.
    ///
    /// Whoever has no room for normal messages goes on hearing heartbeats this way, while credit holds the peers back.
    pub async fn next_if(&mut self, all: bool) -> ServerEvent {
        if all {
            return self.next().await;
        }
        let event = self.urgent.recv().await.expect("the server's own handle keeps its channels open");
        self.taken(&event);
        event
    }

    fn taken(&self, event: &ServerEvent) {
        if let ServerEvent::Message { connection, message } = event {
            self.handle.shared.taken(*connection, message);
        }
    }

    /// Says goodbye to all peers, after what is queued for them or after `flush_time`, and closes.
    pub async fn close(mut self) {
        self.handle.shared.close(self.flush_time).await;
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        // The acceptor closes it when it gets its turn; the port is free at once. It may be closed already.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Read);
        self.handle.shared.end();
    }
}

/// Sends to a server's peers, and disconnects them.
#[derive(Clone)]
pub struct ServerHandle {
    shared: Arc<Shared>,
}

impl ServerHandle {
    /// Queues a message for a peer. Never waits: the peer takes it under its credit.
    ///
    /// # Errors
    ///
    /// [`SendError`]. A peer whose queue is full ([`crate::limits::PEER_QUEUE_MESSAGES`], [`crate::limits::PEER_QUEUE_BYTES`]) is disconnected; one that takes
    /// nothing for [`crate::limits::STALL`] is so too, later. Success means queued, not received.
    pub fn send(&self, connection: ConnectionId, message: Message) -> Result<(), SendError> {
        self.shared.send(connection, message)
    }

    /// Messages and bytes that wait for a peer's credit; None if its connection has ended. For senders that pace themselves.
    pub fn queued(&self, connection: ConnectionId) -> Option<(usize, usize)> {
        self.shared.queued(connection)
    }

    /// Whom the server has turned away since its start, by why.
    pub fn counters(&self) -> &Counters {
        self.shared.counters()
    }

    /// Ends a connection: at once, or after telling the peer why. What is still queued for it is dropped. `Left` follows, after
    /// messages that had already arrived.
    pub fn disconnect(&self, connection: ConnectionId, refusal: Option<Refusal>) {
        self.shared.disconnect(connection, refusal);
    }
}

/// Reads the ROUTER, and looks after time.
async fn run(
    mut socket: RouterRecvHalf,
    shared: Arc<Shared>,
    decode_budget: Duration,
    stop: CancellationToken,
) {
    let interval = (shared.heartbeat() / 2).max(SHORTEST_TICK);
    let mut tick = tokio::time::interval(interval);
    let mut last_tick = Moment::now();
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut retry_at = None;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {
                // A process that was stopped for a while hears its peers first, before it finds them silent.
                if last_tick.elapsed() < 2 * interval {
                    shared.tick();
                }
                last_tick = Moment::now();
            }
            () = sleep_until(retry_at) => {
                retry_at = None;
                shared.retry();
            }
            () = shared.busy(), if retry_at.is_none() => retry_at = Some(Moment::now() + RETRY),
            received = socket.recv() => {
                let Ok(message) = received else { continue };
                shared.receive(message.into_vecdeque().into_iter());
                let end = Moment::now() + decode_budget;
                while let Some(Ok(message)) = socket.recv().now_or_never() {
                    shared.receive(message.into_vecdeque().into_iter());
                    if Moment::now() >= end {
                        // To wait for what is there already is no turn for others.
                        yield_now().await;
                        break;
                    }
                }
            }
        }
    }
}
