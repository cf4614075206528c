//! Messages between machines: connections that know who is there, bound what they hold, and come back.
//!
//! ```text
//! Link: DEALER ─ipc─ tunnel ══ TLS ══ gate ─ipc─ ROUTER :Server
//!                     guard           guard
//! ```
//! The only code that names the `zeromq` crate. That crate neither bounds what it reads or queues nor reconnects, so its
//! sockets see private ipc paths only: on the server's side a *gate* accepts TCP, on the client's side a *tunnel* opens it,
//! and on both a *guard* lets through nothing that isn't bounded. A connection ends by closing its TCP side.
//!
//! **Trust.** Each side shows a key and checks the other's, see [`crate::keys`]: nothing of a stranger is read before that but
//! the TLS handshake itself. A peer says in its HELLO what it wants to be, which must be what its key says.
//!
//! **Order.** Messages of one connection arrive in the order sent, however large. Those flagged by [`Message::urgent`]
//! (heartbeats, cancels: up to 64 KiB) keep their order among themselves and overtake all others, even within one that is
//! under way: large bodies travel in pieces.
//!
//! **Delivery.** At most once: what was accepted before a connection ended may be lost. Whoever needs more repeats itself.
//!
//! **Bounds.** Each side sends under credit that the other grants as its consumer takes messages, so a slow consumer slows
//! its own peers only. `limits.rs` has the numbers.
//!
//! Needs a multi-threaded tokio runtime. [`Server`] and [`Link`] are the two ends; `session` is what both do alike, and
//! decides without I/O, as do `guard`, `credit` and `chunks`.

mod acceptor;
mod admission;
mod breaches;
mod chunks;
mod counters;
mod credit;
mod dealer;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod gate;
mod guard;
mod hello;
mod key_watch;
mod link;
mod packet;
mod peers;
mod router;
mod server;
mod session;
mod socket_dir;
mod splice;
mod tls;
mod tls_socket;
mod tunnel;
mod turned_away;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::FutureExt;
use zeromq::{SocketSend, ZmqMessage};

pub use self::counters::{Cause, Counters};
pub use self::dealer::{Link, LinkReceiver, LinkSender};
pub use self::hello::{Hello, Refusal, RefusalKind, Role, Welcome};
pub use self::link::{LinkConfig, LinkDown, LinkEvent, LinkSendError, TrySendError};
pub use self::router::{Server, ServerHandle};
pub use self::server::{BindError, SendError, ServerConfig, ServerEvent};
pub use self::socket_dir::SocketDir;

use self::chunks::Lengths;
use self::packet::Packet;
use crate::limits::{HEAD_BYTES, MESSAGE_BODY_BYTES};

/// What travels.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Message {
    /// An encoded protocol enum; at most [`HEAD_BYTES`].
    pub head: Bytes,
    /// Opaque bytes that go with it; at most [`MESSAGE_BODY_BYTES`].
    pub body: Bytes,
    /// Whether it overtakes others; see [`Message::urgent`].
    pub urgent: bool,
}

impl Message {
    /// A message that keeps its place among others.
    pub fn new(head: impl Into<Bytes>, body: impl Into<Bytes>) -> Self {
        Self { head: head.into(), body: body.into(), urgent: false }
    }

    /// Lets the message overtake others that aren't urgent: for heartbeats and cancels.
    ///
    /// Has no effect on a message of more than [`crate::limits::URGENT_BYTES`].
    #[must_use]
    pub fn urgent(mut self) -> Self {
        self.urgent = true;
        self
    }

    /// Bytes of head and body.
    pub fn size(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// Whether head and body are within the bounds of one message.
    pub fn fits(&self) -> bool {
        self.head.len() <= HEAD_BYTES && self.body.len() <= MESSAGE_BODY_BYTES
    }

    fn lengths(&self) -> Lengths {
        Lengths {
            head: u32::try_from(self.head.len()).expect("sizes are checked before a message is queued"),
            body: self.body.len() as u64,
        }
    }
}

/// Names one connection to a server, as long as the process lives: a peer that reconnects gets another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// One that was never given before in this process.
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(u64::from_be_bytes(bytes)))
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What became of an attempt to send without waiting.
enum Sent {
    Yes,
    /// The socket can't take it now; it was not sent.
    Busy,
    Gone,
}

/// Hands a packet to a ZeroMQ socket without ever waiting.
///
/// A pending send of a ROUTER holds a lock that stops sends to other peers, so one that doesn't complete at once is dropped
/// and the packet is tried again later.
fn send_now<S: SocketSend>(socket: &mut S, to: Option<ConnectionId>, packet: &Packet) -> Sent {
    let mut frames = VecDeque::with_capacity(4);
    frames.extend(to.map(|to| Bytes::copy_from_slice(&to.to_bytes())));
    frames.extend(packet.encode());
    let message = ZmqMessage::try_from(frames).expect("a packet has a header");
    match socket.send(message).now_or_never() {
        Some(Ok(())) => Sent::Yes,
        Some(Err(_)) => Sent::Gone,
        None => Sent::Busy,
    }
}
