//! Hello and Welcome, in the newest version that both sides speak.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use lrts_core::notices::{AsyncNoticeSocket, NoticeSocket};
use lrts_core::protocol::host::{FromHost, ToHost};
use lrts_core::protocol::{HOST_VERSION, OLDEST_HOST_VERSION};

/// A host that has said Welcome.
pub(super) struct Introduced {
    pub(super) socket: AsyncNoticeSocket,
    /// The version that it speaks.
    pub(super) version: u16,
    /// Whether it forks its jobs.
    pub(super) forks: bool,
    pub(super) arena: OwnedFd,
}

/// Why a program that was spoken to is no host.
pub(super) enum Introduction {
    /// It has closed the connection.
    Broken,
    /// It has said something else.
    Wrong(String),
}

/// Connects to a host's socket. Waits while the host has more connections in its queue than it looks at.
pub(super) async fn connect(path: &Path) -> io::Result<AsyncNoticeSocket> {
    let path = path.to_owned();
    let connected = tokio::task::spawn_blocking(move || NoticeSocket::connect(&path));
    AsyncNoticeSocket::new(connected.await.map_err(io::Error::other)??)
}

/// Says Hello over a new connection to the host at `path` until it says Welcome. A host that doesn't know the version hangs up:
/// the one before is tried then, over another connection.
pub(super) async fn introduce(
    mut socket: AsyncNoticeSocket,
    path: &Path,
    orphan_grace: Duration,
) -> Result<Introduced, Introduction> {
    let mut version = HOST_VERSION;
    loop {
        match greet(&socket, version, orphan_grace, path).await {
            Ok((version, forks, arena)) => return Ok(Introduced { socket, version, forks, arena }),
            Err(Introduction::Broken) if version > OLDEST_HOST_VERSION => {
                version -= 1;
                socket = connect(path).await.map_err(|_| Introduction::Broken)?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Returns the host's version, whether it forks, and its arena.
async fn greet(
    socket: &AsyncNoticeSocket,
    version: u16,
    orphan_grace: Duration,
    path: &Path,
) -> Result<(u16, bool, OwnedFd), Introduction> {
    let socket_path = std::path::absolute(path).unwrap_or_default();
    let hello = ToHost::Hello { version, orphan_grace, socket: socket_path };
    socket.send(&hello, &[]).await.map_err(|_| Introduction::Broken)?;
    let packet = socket.receive().await.ok().flatten().ok_or(Introduction::Broken)?;
    let wrong = |reason: String| Introduction::Wrong(reason);
    match packet.decode::<FromHost>() {
        Ok(FromHost::Welcome { version, .. }) if !(OLDEST_HOST_VERSION..=HOST_VERSION).contains(&version) => {
            Err(wrong(format!(
                "the program's lrts speaks version {version} with workers, this worker speaks {OLDEST_HOST_VERSION} to \
                 {HOST_VERSION}: build the program with the lrts that the cluster runs"
            )))
        }
        Ok(FromHost::Welcome { version, forks, .. }) => match packet.descriptors.into_iter().next() {
            Some(arena) => Ok((version, forks, arena)),
            None => Err(wrong("the program sent no memory for progress records".to_owned())),
        },
        Ok(other) => Err(wrong(format!("the program said {other:?} instead of Welcome"))),
        Err(error) => Err(wrong(format!("the program said nonsense instead of Welcome: {error}"))),
    }
}
