//! Who is there: the first packets of a connection.
//!
//! The version stands in the packet's own header, before anything that may differ between versions, and a refusal is plain
//! text, so that peers of any two versions understand why they part.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::{HELLO_HOST_BYTES, HELLO_ID_BYTES};

/// What a peer is to the cluster. Servers accept some roles only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Owns the jobs; applications, workers and commands connect to it.
    Scheduler,
    /// Keeps the bars' latest states; workers' progress subprocesses and watchers connect to it.
    ProgressServer,
    /// A worker, or its progress subprocess.
    Worker,
    /// An application.
    Client,
    /// A command that looks or steers: `lrts status` and its like.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Scheduler => "scheduler",
            Self::ProgressServer => "progress server",
            Self::Worker => "worker",
            Self::Client => "client",
            Self::Admin => "admin",
        })
    }
}

/// What a peer says first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Its protocol version, [`crate::protocol::VERSION`]. Another one is refused.
    pub protocol: u16,
    /// What it wants to be.
    pub role: Role,
    /// Its own id, of its own choice: text of up to 64 bytes. Not unique: a peer that reconnects says the same again.
    pub id: String,
    /// Name of its machine, up to 255 bytes; for people only.
    pub host: String,
}

impl Hello {
    /// A hello of this build's version.
    pub fn new(role: Role, id: impl Into<String>, host: impl Into<String>) -> Self {
        Self { protocol: crate::protocol::VERSION, role, id: id.into(), host: host.into() }
    }

    pub(crate) fn is_within_bounds(&self) -> bool {
        self.id.len() <= HELLO_ID_BYTES && self.host.len() <= HELLO_HOST_BYTES
    }
}

/// What a server answers to a hello that it accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The server's protocol version, the same as the peer's.
    pub protocol: u16,
    /// Drawn at random each time a server starts: another number means that the server has restarted.
    pub instance: u64,
    /// The interval of pings on this connection, in whole milliseconds on the wire. Four intervals of silence end it.
    pub heartbeat: Duration,
}

/// Why a server won't have a peer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What the peer can do about it.
    pub kind: RefusalKind,
    /// The reason as a sentence for people; up to 1 KiB travels.
    pub message: String,
}

impl Refusal {
    /// A refusal of this kind.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// Kinds of refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalKind {
    /// Protocol versions differ.
    Version,
    /// The server takes no peers of this role, or the peer's key is not of the role that it claims.
    Role,
    /// The server has as many connections as it can hold.
    Full,
    /// The server is about to end; another may take its place.
    ShuttingDown,
    /// A newer connection with the same id has taken over.
    Superseded,
    /// The peer broke the protocol.
    Protocol,
    /// The peer's key is not accepted, or this side doesn't accept the server's.
    Keys,
    /// What the peer asks for belongs to another user.
    Owner,
    /// What the peer asks for is more than may be kept: somebody has to make room first.
    Limit,
}

impl RefusalKind {
    /// Whether trying again is pointless until something else changes. A link that is refused so ends.
    pub fn is_permanent(self) -> bool {
        match self {
            Self::Version | Self::Role | Self::Superseded | Self::Keys | Self::Owner | Self::Limit => true,
            Self::Full | Self::ShuttingDown | Self::Protocol => false,
        }
    }

    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::Version => 1,
            Self::Role => 2,
            Self::Full => 3,
            Self::ShuttingDown => 4,
            Self::Superseded => 5,
            Self::Protocol => 6,
            Self::Keys => 7,
            Self::Owner => 8,
            Self::Limit => 9,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Version,
            Self::Role,
            Self::Full,
            Self::ShuttingDown,
            Self::Superseded,
            Self::Protocol,
            Self::Keys,
            Self::Owner,
            Self::Limit,
        ]
        .into_iter()
        .find(|kind| kind.to_byte() == byte)
    }
}
