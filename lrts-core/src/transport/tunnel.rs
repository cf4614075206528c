//! The tunnel: the client's counterpart of the gate. Speaks TCP to it, and ipc to the DEALER of this process.

use std::io;
use std::path::Path;

use tokio::net::{TcpStream, UnixListener};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::socket_dir::SocketPath;
use super::splice::{End, secure, splice, tune};
use crate::limits::HANDSHAKE_TIME;

/// One connection to a gate. Dropping it closes the connection.
pub(crate) struct Tunnel {
    socket: SocketPath,
    task: AbortOnDropHandle<End>,
}

impl Tunnel {
    /// Connects to `host:port`, and waits on a socket in `directory` for one DEALER.
    pub(crate) async fn open(address: &str, directory: &Path) -> io::Result<Self> {
        let stream = timeout(HANDSHAKE_TIME, TcpStream::connect(address)).await??;
        tune(&stream)?;
        let network = secure(stream).await?;
        let socket = SocketPath::within(directory)?;
        let listener = UnixListener::from_std(socket.listen()?)?;
        let task = tokio::spawn(async move {
            let dealer = match listener.accept().await {
                Ok((dealer, _)) => dealer,
                Err(error) => return End::Network(error),
            };
            drop(listener);
            splice(network, dealer, "ROUTER", None).await
        });
        Ok(Self { socket, task: AbortOnDropHandle::new(task) })
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
