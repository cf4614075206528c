//! What a server is told, and what it tells: its configuration, events and errors.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};

use super::hello::{Hello, Role};
use super::{ConnectionId, Message};
use crate::ids::UserName;
use crate::keys::{KeysError, Security};
use crate::limits::{FILES_PER_PEER, FLUSH_TIME, PING_INTERVAL, RESERVED_FILES};

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// A directory of this user's own, mode 0700, for its ipc socket; see [`super::SocketDir`].
    pub socket_dir: PathBuf,
    /// Roles of the peers that it takes.
    pub accepts: Vec<Role>,
    /// Its own key, and by whose authority others are let in.
    pub security: Security,
    /// Longest time that incoming packets are handled in a row before anything else gets its turn.
    pub decode_budget: Duration,
    /// Interval of pings that peers are told to keep; four of silence end a connection.
    pub heartbeat: Duration,
    /// Longest time that [`super::Server::close`] waits for queued messages to leave.
    pub flush_time: Duration,
    /// Most peers at a time; by default what the process's limit of open files allows.
    pub connections: usize,
}

impl ServerConfig {
    /// A server on this address, with the usual bounds.
    pub fn new(
        address: SocketAddr,
        socket_dir: impl Into<PathBuf>,
        accepts: Vec<Role>,
        security: Security,
    ) -> Self {
        Self {
            address,
            socket_dir: socket_dir.into(),
            accepts,
            security,
            decode_budget: Duration::from_millis(10),
            heartbeat: PING_INTERVAL,
            flush_time: FLUSH_TIME,
            connections: connection_limit(),
        }
    }

    /// A server without keys on this address.
    pub fn insecure(address: SocketAddr, socket_dir: impl Into<PathBuf>, accepts: Vec<Role>) -> Self {
        Self::new(address, socket_dir, accepts, Security::Insecure)
    }
}

/// Why a message was not queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError {
    /// The connection has ended or is about to.
    #[error("connection has ended")]
    Gone,
    /// The peer's queue is full; the connection ends.
    #[error("peer's queue is full")]
    Overrun,
    /// The message is over the bounds of one message.
    #[error("message is too large")]
    TooLarge,
}

/// What happens at a server.
///
/// Of each connection `Joined` comes first, then its messages, then `Left`, each once.
#[derive(Debug)]
pub enum ServerEvent {
    /// A peer has said hello and was welcomed.
    Joined {
        /// The new connection.
        connection: ConnectionId,
        /// What the peer said about itself; its version and role are accepted ones.
        hello: Hello,
        /// The user of its key; None on a server without keys, which can't tell one peer from another.
        user: Option<UserName>,
        /// Where it comes from.
        address: SocketAddr,
    },
    /// A message has arrived.
    Message {
        /// From whom.
        connection: ConnectionId,
        /// The message. Only its size was checked.
        message: Message,
    },
    /// A connection has ended; sends to it fail.
    Left {
        /// Which.
        connection: ConnectionId,
        /// Why, for people.
        reason: String,
    },
}

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
    /// The thread that accepts connections can't be started.
    #[error("cannot start a thread to accept connections: {0}")]
    Acceptor(io::Error),
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
fn connection_limit() -> usize {
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1_024, 1_024));
    usize::try_from(files.saturating_sub(RESERVED_FILES) / FILES_PER_PEER).unwrap_or(usize::MAX).max(1)
}
