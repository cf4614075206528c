//! What a link is told, and what it tells: its configuration, events and errors.

use std::path::PathBuf;

use super::Message;
use super::hello::{Hello, Refusal, Role, Welcome};
use crate::keys::Security;

/// How a link is set up.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// The server's `host:port`; the name is looked up anew at each attempt.
    pub address: String,
    /// What the server is to be.
    pub server: Role,
    /// What to say first.
    pub hello: Hello,
    /// The key to show, and by whose authority the server is trusted.
    pub security: Security,
    /// A directory of this user's own, mode 0700, for ipc sockets; see [`super::SocketDir`].
    pub socket_dir: PathBuf,
}

impl LinkConfig {
    /// A link to the server of this role at an address.
    pub fn new(
        address: impl Into<String>,
        server: Role,
        hello: Hello,
        security: Security,
        socket_dir: impl Into<PathBuf>,
    ) -> Self {
        Self { address: address.into(), server, hello, security, socket_dir: socket_dir.into() }
    }

    /// A link to a server without keys, whatever its role.
    pub fn insecure(address: impl Into<String>, hello: Hello, socket_dir: impl Into<PathBuf>) -> Self {
        Self::new(address, Role::Scheduler, hello, Security::Insecure, socket_dir)
    }

    /// Tells one state of the keys from another.
    pub(super) fn keys_version(&self) -> u64 {
        match &self.security {
            Security::Keys(source) => source.version(),
            Security::Insecure => 0,
        }
    }
}

/// What happens on a link.
///
/// `Up` comes first, then messages, then `Down`, then `Up` again. Until `Down` was taken, the link doesn't connect anew; until
/// `Up` was taken, sends fail: so what is sent after an event belongs to the connection that the event spoke of.
#[derive(Debug)]
pub enum LinkEvent {
    /// Connected and welcome.
    Up {
        /// What the server said.
        welcome: Welcome,
    },
    /// A message from the server.
    Message(Message),
    /// The connection has ended; the link tries again, unless it was closed.
    Down {
        /// Why, for people.
        reason: String,
    },
    /// Refused for good: the link has ended.
    Refused(Refusal),
}

/// The link is not up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not connected")]
pub struct LinkDown;

/// Why a message was not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkSendError {
    /// The link is not up: send again after [`LinkEvent::Up`].
    #[error("not connected")]
    Down,
    /// The message is over the bounds of one message, and never works; see [`Message::fits`].
    #[error("message is too large")]
    TooLarge,
}

/// Why a message was not accepted at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TrySendError {
    /// As much is queued as may be.
    #[error("send queue is full")]
    Full,
    /// The link is not up: send again after [`LinkEvent::Up`].
    #[error("not connected")]
    Down,
    /// The message is over the bounds of one message, and never works; see [`Message::fits`].
    #[error("message is too large")]
    TooLarge,
}
