//! The tunnel: the client's counterpart of the gate. Speaks TLS to it, and ipc to the DEALER of this process.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixListener};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::link::LinkConfig;
use super::socket_dir::SocketPath;
use super::splice::{End, Passage, splice, tune};
use super::tls::{self, Shown};
use crate::keys::{KeyRing, KeysError, Security};
use crate::limits::HANDSHAKE_TIME;

/// One connection to a gate. Dropping it closes the connection.
pub(crate) struct Tunnel {
    socket: SocketPath,
    task: AbortOnDropHandle<End>,
    /// How the server was checked; None on an insecure connection.
    server: Option<(Arc<KeyRing>, Shown)>,
}

/// Why a tunnel can't be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("{0}")]
    Connection(End),
}

impl From<End> for OpenError {
    fn from(end: End) -> Self {
        Self::Connection(end)
    }
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Connection(End::Network(error))
    }
}

impl Tunnel {
    /// Connects to the server, and waits on a socket for one DEALER.
    pub(crate) async fn open(config: &LinkConfig) -> Result<Self, OpenError> {
        // First, so that whoever has no key yet leaves the server in peace.
        let ring = match &config.security {
            Security::Keys(source) => Some((source.current_or_last()?, source)),
            Security::Insecure => None,
        };
        let connecting = timeout(HANDSHAKE_TIME, TcpStream::connect(&config.address)).await;
        let stream = connecting.map_err(io::Error::from)??;
        tune(&stream)?;
        let socket = SocketPath::within(&config.socket_dir)?;
        let listener = UnixListener::from_std(socket.listen()?)?;
        let (task, server) = match ring {
            Some((ring, source)) => {
                let (stream, shown) = tls::connect(stream, &ring, source, config.server).await?;
                (tokio::spawn(serve(stream, listener)), Some((ring, shown)))
            }
            None => (tokio::spawn(serve(stream, listener)), None),
        };
        Ok(Self { socket, task: AbortOnDropHandle::new(task), server })
    }

    /// How the server was checked: by which of this side's keys, and what it showed.
    pub(crate) fn server(&self) -> Option<&(Arc<KeyRing>, Shown)> {
        self.server.as_ref()
    }

    /// The endpoint for the DEALER.
    pub(crate) fn endpoint(&self) -> String {
        format!("ipc://{}", self.socket.path().display())
    }

    /// Waits until the connection has ended. Safe to cancel; not to be called again once it has returned.
    pub(crate) async fn ended(&mut self) -> End {
        match (&mut self.task).await {
            Ok(end) => end,
            Err(error) => End::Network(io::Error::other(error)),
        }
    }
}

async fn serve<N>(network: N, listener: UnixListener) -> End
where
    N: AsyncRead + AsyncWrite + Send + Unpin,
{
    let dealer = match listener.accept().await {
        Ok((dealer, _)) => dealer,
        Err(error) => return End::Network(error),
    };
    drop(listener);
    // It is the one server that this side has asked for.
    splice(network, dealer, "ROUTER", None, &Passage::open()).await
}
