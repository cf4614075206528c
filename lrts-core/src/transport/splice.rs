//! Joins a network connection to an ipc socket of the zeromq crate, the guard in between. Gate and tunnel use it alike.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::counters::Cause;
use super::guard::{
    FrameGuard, GREETING_BYTES, GuardError, check_greeting, long_command_length, rewrite_ready,
    short_command_length,
};
use super::{ConnectionId, tls};
use crate::limits::{FAREWELL_TIME, HANDSHAKE_TIME};

/// Copy buffers grow from the first to the second while reads fill them, so that idle connections cost little.
const BUFFER_MIN: usize = 4 * 1024;
const BUFFER_MAX: usize = 256 * 1024;

/// After so many small reads in a row, a grown buffer shrinks again.
const SMALL_READS: u32 = 4;

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
    /// What serves the connection has panicked, and said so.
    #[error("serving the connection failed: a fault of lrts")]
    Fault,
}

impl End {
    /// Whether, and for what, the peer counts as turned away.
    pub(crate) fn cause(&self) -> Option<Cause> {
        match self {
            Self::Violation(_) | Self::Tls(_) => Some(Cause::Protocol),
            Self::Keys(_) => Some(Cause::Keys),
            Self::Handshake => Some(Cause::NoHello),
            Self::Fault => Some(Cause::Fault),
            Self::Closed | Self::ClosedHere | Self::Network(_) => None,
        }
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
            Some(objection) => Self::Keys(objection.to_owned()),
            None => match tls::error_of(&error) {
                Some(broken) => Self::Tls(broken.clone()),
                None => Self::Network(error),
            },
        }
    }
}

/// Copies both ways until either side ends. What the network brought before its end is still delivered.
///
/// The other side must be a ZeroMQ socket of type `peer`, and is given `identity`. Until it is `welcomed`, no message of it may
/// be larger than a HELLO.
pub(crate) async fn splice<N>(
    network: N,
    ipc: UnixStream,
    peer: &'static str,
    identity: Option<ConnectionId>,
    welcomed: &AtomicBool,
) -> End
where
    N: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (mut from_network, mut to_network) = tokio::io::split(network);
    let (mut from_ipc, mut to_ipc) = ipc.into_split();
    let outbound = async {
        let end = match copy(&mut from_ipc, &mut to_network, |_| Ok(())).await {
            Copied::SourceEnded => return End::ClosedHere,
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
        let check = |bytes: &[u8]| {
            if welcomed.load(Ordering::Acquire) {
                guard.welcome();
            }
            guard.check(bytes)
        };
        match copy(&mut from_network, &mut to_ipc, check).await {
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
}

/// Copies until the source ends, handing on only what `check` allows.
async fn copy(
    source: &mut (impl AsyncRead + Unpin),
    sink: &mut (impl AsyncWrite + Unpin),
    mut check: impl FnMut(&[u8]) -> Result<(), GuardError>,
) -> Copied {
    let mut buffer = vec![0; BUFFER_MIN];
    let mut small_reads = 0;
    loop {
        let length = match source.read(&mut buffer).await {
            Ok(0) => return Copied::SourceEnded,
            Ok(length) => length,
            Err(error) => return Copied::Failed(error),
        };
        let bytes = &buffer[..length];
        if let Err(error) = check(bytes) {
            return Copied::Violation(error);
        }
        if let Err(error) = sink.write_all(bytes).await {
            return Copied::Failed(error);
        }
        if let Err(error) = sink.flush().await {
            return Copied::Failed(error);
        }
        if length == buffer.len() {
            small_reads = 0;
            if length < BUFFER_MAX {
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
