//! Joins a network connection to an ipc socket of the zeromq crate, the guard in between. Gate and tunnel use it alike.

use std::io;
use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::counters::Cause;
use super::guard::{
    FrameGuard, GREETING_BYTES, GuardError, check_greeting, long_command_length, rewrite_ready,
    short_command_length,
};
use super::{ConnectionId, tls};
use crate::limits::{FAREWELL_TIME, HANDSHAKE_TIME, WINDOW_BYTES};

/// Copy buffers grow from the first to the second while reads fill them, so that idle connections cost little.
///
/// A full one still fits into an ipc socket (208 KiB, unless the machine is set up otherwise): where a write has to wait for its
/// reader halfway, the two cores wake each other so often that copies over TLS lose a quarter of their rate.
const BUFFER_MIN: usize = 4 * 1024;
const BUFFER_MAX: usize = 128 * 1024;

/// After so many small reads in a row, a grown buffer shrinks again.
const SMALL_READS: u32 = 4;

/// After so many reads, of a record of TLS each, others have their turn.
const READS_IN_A_ROW: u32 = 32;

/// Most of an honest peer's bytes that can be under way: its credit and what frames them.
const UNDER_WAY: usize = 2 * WINDOW_BYTES as usize;

/// TCP's own check that a silent peer's machine is still there; finer checks are the pings'.
const KEEPALIVE_IDLE: u32 = 30;
const KEEPALIVE_INTERVAL: u32 = 10;
const KEEPALIVE_COUNT: u32 = 3;

/// Sent data that stays unacknowledged for so long ends the connection.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Sets what every TCP connection needs.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = stream.as_fd();
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE)?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL)?;
    setsockopt(&socket, sockopt::TcpKeepCount, &KEEPALIVE_COUNT)?;
    setsockopt(&socket, sockopt::TcpUserTimeout, &(USER_TIMEOUT.as_millis() as u32))?;
    Ok(())
}

/// Why a network connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// The other side closed it.
    #[error("connection closed by the peer")]
    Closed,
    /// This side's ZeroMQ socket closed it.
    #[error("connection closed")]
    ClosedHere,
    #[error("connection lost: {0}")]
    Network(io::Error),
    #[error("no handshake within {} s", HANDSHAKE_TIME.as_secs())]
    Handshake,
    #[error("peer sent bytes that are not allowed: {0}")]
    Violation(#[from] GuardError),
    /// What came is no TLS 1.3, or was changed on its way.
    #[error("broken TLS: {0}")]
    Tls(rustls::Error),
    /// One side doesn't accept the other's key, or has none.
    #[error("{0}")]
    Keys(String),
    /// The other side doesn't accept this one's key: what it has against it.
    #[error("the other side does not accept the key that it was shown: it {0}")]
    Objected(&'static str),
    /// What serves the connection has panicked, and said so.
    #[error("serving the connection failed: a fault of lrts")]
    Fault,
}

impl End {
    /// Whether, and for what, the peer counts as turned away.
    pub(crate) fn cause(&self) -> Option<Cause> {
        match self {
            Self::Violation(_) | Self::Tls(_) => Some(Cause::Protocol),
            Self::Keys(_) | Self::Objected(_) => Some(Cause::Keys),
            Self::Handshake => Some(Cause::NoHello),
            Self::Fault => Some(Cause::Fault),
            Self::Closed | Self::ClosedHere | Self::Network(_) => None,
        }
    }

    /// Whether the peer itself has broken the protocol. A record of TLS that was changed on its way is nobody's word: whoever has no
    /// key can do that to those who have one.
    pub(crate) fn is_breach(&self) -> bool {
        matches!(self, Self::Violation(_))
    }

    /// Why reading from a peer failed, or writing to it.
    pub(crate) fn failed(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            // Over TLS: closed without a word, as by a process that was killed.
            return Self::Closed;
        }
        if let Some(violation) = error.get_ref().and_then(|inner| inner.downcast_ref::<GuardError>()) {
            return Self::Violation(*violation);
        }
        match tls::objection(&error) {
            Some(objection) => objection,
            None => match tls::error_of(&error) {
                Some(broken) => Self::Tls(broken.clone()),
                None => Self::Network(error),
            },
        }
    }
}

/// What becomes of a peer, also if that panics, which must not leave its place taken.
pub(crate) async fn caught<T>(serving: impl Future<Output = T>, fault: T) -> T {
    // What it has shared with others lies behind a lock that tells them.
    AssertUnwindSafe(serving).catch_unwind().await.unwrap_or(fault)
}

/// What of a peer's is passed on, as both ends of the gate know it.
#[derive(Debug)]
pub(crate) struct Passage(AtomicU8);

impl Passage {
    const HELLO: u8 = 0;
    const ALL: u8 = 1;
    const NOTHING: u8 = 2;

    /// For a newcomer, of whom no message may be larger than a HELLO.
    pub(crate) fn narrow() -> Self {
        Self(AtomicU8::new(Self::HELLO))
    }

    /// For a peer that was chosen, or is welcomed.
    pub(crate) fn open() -> Self {
        Self(AtomicU8::new(Self::ALL))
    }

    pub(crate) fn welcome(&self) {
        self.0.store(Self::ALL, Ordering::Release);
    }

    /// Nobody hears the peer any more; it has been told why.
    pub(crate) fn dismiss(&self) {
        self.0.store(Self::NOTHING, Ordering::Release);
    }

    /// How much may be held of it at a time.
    fn buffer_bytes(&self) -> usize {
        if self.0.load(Ordering::Acquire) == Self::ALL { BUFFER_MAX } else { BUFFER_MIN }
    }

    /// Whether these bytes are to be passed on.
    fn check(&self, guard: &mut FrameGuard, bytes: &[u8]) -> Result<bool, GuardError> {
        match self.0.load(Ordering::Acquire) {
            Self::NOTHING => return Ok(false),
            Self::ALL => guard.welcome(),
            _ => {}
        }
        guard.check(bytes)?;
        Ok(true)
    }
}

/// Copies both ways until either side ends. What the network brought before its end is still delivered.
///
/// The other side must be a ZeroMQ socket of type `peer`, and is given `identity`.
pub(crate) async fn splice<N>(
    network: N,
    ipc: UnixStream,
    peer: &'static str,
    identity: Option<ConnectionId>,
    passage: &Passage,
) -> End
where
    N: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (mut from_network, mut to_network) = tokio::io::split(network);
    let (mut from_ipc, mut to_ipc) = ipc.into_split();
    let outbound = async {
        let end = match copy(&mut from_ipc, &mut to_network, || BUFFER_MAX, |_| Ok(true)).await {
            Copied::SourceEnded | Copied::Overrun => return End::ClosedHere,
            Copied::Failed(error) => End::failed(error),
            Copied::Violation(error) => End::Violation(error),
        };
        // The network takes no more, but may have brought something that the ipc side still reads.
        let _ = tokio::io::copy(&mut from_ipc, &mut tokio::io::sink()).await;
        end
    };
    tokio::pin!(outbound);
    let inbound = async {
        let handshake = handshake(&mut from_network, &mut to_ipc, peer, identity);
        match timeout(HANDSHAKE_TIME, handshake).await {
            Err(_) => return End::Handshake,
            Ok(Err(end)) => return end,
            Ok(Ok(())) => {}
        }
        let mut guard = FrameGuard::new();
        let check = |bytes: &[u8]| passage.check(&mut guard, bytes);
        match copy(&mut from_network, &mut to_ipc, || passage.buffer_bytes(), check).await {
            Copied::Overrun => End::ClosedHere,
            Copied::SourceEnded => End::Closed,
            Copied::Failed(error) => End::failed(error),
            Copied::Violation(error) => End::Violation(error),
        }
    };
    let end = tokio::select! {
        end = inbound => end,
        end = &mut outbound => return end,
    };
    if matches!(end, End::Closed | End::Network(_)) {
        // The ipc side closes too once it has read everything; only then is the connection really over.
        let _ = to_ipc.shutdown().await;
        let _ = timeout(FAREWELL_TIME, outbound).await;
    }
    end
}

/// Passes the peer's side of the ZMTP handshake on, rewritten.
pub(super) async fn handshake(
    network: &mut (impl AsyncRead + Unpin),
    ipc: &mut (impl AsyncWrite + Unpin),
    peer: &str,
    identity: Option<ConnectionId>,
) -> Result<(), End> {
    let mut greeting = [0; GREETING_BYTES];
    // The signature alone already tells a stranger, who may never send the rest.
    network.read_exact(&mut greeting[..1]).await.map_err(End::failed)?;
    match greeting[0] {
        0xff => {}
        tls::ALERT => return Err(End::Keys(tls::WANTED.to_owned())),
        _ => return Err(GuardError::Greeting.into()),
    }
    network.read_exact(&mut greeting[1..]).await.map_err(End::failed)?;
    check_greeting(&greeting)?;
    ipc.write_all(&greeting).await.map_err(End::failed)?;

    let mut start = [0; 2];
    network.read_exact(&mut start).await.map_err(End::failed)?;
    let length = match short_command_length(start)? {
        Some(length) => length,
        None => {
            let mut length = [start[1], 0, 0, 0, 0, 0, 0, 0];
            network.read_exact(&mut length[1..]).await.map_err(End::failed)?;
            long_command_length(length)?
        }
    };
    let mut body = vec![0; length];
    network.read_exact(&mut body).await.map_err(End::failed)?;
    let ready = rewrite_ready(&body, peer, identity)?;
    ipc.write_all(&ready).await.map_err(End::failed)
}

enum Copied {
    SourceEnded,
    Failed(io::Error),
    Violation(GuardError),
    /// More came that isn't passed on than can have been under way.
    Overrun,
}

async fn pass_on(bytes: &[u8], sink: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    sink.write_all(bytes).await?;
    sink.flush().await
}

/// What a source has at present.
enum Source {
    /// It was read to its end, or the buffer is full: the write that follows lets others have their turn.
    Read,
    /// More of what comes in small pieces.
    HasMore,
    Ended(Copied),
}

/// Reads what is there, at least a byte unless the source ends: TLS gives no more than a record at a time.
async fn fill(source: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> (usize, Source) {
    let (mut length, mut reads) = (0, 1);
    let mut read = Some(source.read(buffer).await);
    loop {
        match read {
            Some(Ok(0)) => return (length, Source::Ended(Copied::SourceEnded)),
            Some(Ok(more)) => length += more,
            Some(Err(error)) => return (length, Source::Ended(Copied::Failed(error))),
            None => return (length, Source::Read),
        }
        if length == buffer.len() {
            return (length, Source::Read);
        }
        if reads == READS_IN_A_ROW {
            return (length, Source::HasMore);
        }
        reads += 1;
        read = source.read(&mut buffer[length..]).now_or_never();
    }
}

/// Copies until the source ends, handing on only what `check` allows.
///
/// A peer that was sent away is read from for a while, since bytes that nobody reads would reset its connection before it has
/// heard why; but no longer than an honest one goes on.
async fn copy(
    source: &mut (impl AsyncRead + Unpin),
    sink: &mut (impl AsyncWrite + Unpin),
    buffer_bytes: impl Fn() -> usize,
    mut check: impl FnMut(&[u8]) -> Result<bool, GuardError>,
) -> Copied {
    let mut buffer = vec![0; BUFFER_MIN];
    let mut small_reads = 0;
    let mut dropped = 0;
    loop {
        let (length, more) = fill(source, &mut buffer).await;
        if length > 0 {
            let bytes = &buffer[..length];
            match check(bytes) {
                Ok(true) => {
                    if let Err(error) = pass_on(bytes, sink).await {
                        return Copied::Failed(error);
                    }
                }
                Ok(false) => {
                    dropped += length;
                    if dropped > UNDER_WAY {
                        return Copied::Overrun;
                    }
                }
                Err(error) => return Copied::Violation(error),
            }
        }
        match more {
            Source::Ended(end) => return end,
            // To decrypt them takes longer than to write them.
            Source::HasMore => yield_now().await,
            Source::Read => {}
        }
        if length == buffer.len() {
            small_reads = 0;
            if length < buffer_bytes() {
                buffer.resize(2 * length, 0);
            }
        } else if length <= BUFFER_MIN && buffer.len() > BUFFER_MIN {
            small_reads += 1;
            if small_reads == SMALL_READS {
                small_reads = 0;
                buffer = vec![0; BUFFER_MIN];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Cause;

    #[tokio::test]
    async fn a_fault_in_serving_a_peer_is_an_end_that_counts() {
        let end = caught(async { panic!("this is a test") }, End::Fault).await;
        assert_eq!(end.cause(), Some(Cause::Fault));
        assert_eq!(caught(async { End::Closed }, End::Fault).await.cause(), None);
    }

    #[test]
    fn what_was_changed_on_its_way_is_no_breach_of_the_peers() {
        let changed = End::failed(io::Error::other(rustls::Error::DecryptError));
        assert_eq!((changed.cause(), changed.is_breach()), (Some(Cause::Protocol), false));
        assert!(End::Violation(GuardError::Greeting).is_breach());
    }

    #[tokio::test]
    async fn of_a_peer_that_was_sent_away_nothing_is_passed_on_and_not_much_is_read() {
        let (mut peer, mut network) = tokio::io::duplex(1 << 16);
        let (mut ipc, mut server) = tokio::io::duplex(1 << 16);
        let passage = Passage::open();
        let message = [0, 3, 1, 2, 3];
        peer.write_all(&message).await.unwrap();
        let mut guard = FrameGuard::new();
        let copying = copy(&mut network, &mut ipc, || BUFFER_MAX, |bytes| passage.check(&mut guard, bytes));
        let sending = async {
            let mut passed = [0; 5];
            server.read_exact(&mut passed).await.unwrap();
            assert_eq!(passed, message);
            passage.dismiss();
            let mut sent = 0;
            // It is not even MessagePack in frames.
            while let Ok(more) = peer.write(&[0xff; 1 << 12]).await {
                sent += more;
                if sent > UNDER_WAY + (1 << 18) {
                    break;
                }
            }
        };
        let copied = tokio::select! {
            copied = copying => copied,
            () = sending => panic!("it is still read"),
        };
        assert!(matches!(copied, Copied::Overrun));
        drop(ipc);
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    }
}
