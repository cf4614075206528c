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
    /// Its process.
    pub(super) pid: u32,
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
/// the one before is tried then, over another connection, down to `oldest`.
pub(super) async fn introduce(
    mut socket: AsyncNoticeSocket,
    path: &Path,
    oldest: u16,
    orphan_grace: Duration,
) -> Result<Introduced, Introduction> {
    let mut version = HOST_VERSION;
    loop {
        match greet(&socket, version, orphan_grace, path).await {
            Ok((version, pid, forks, arena)) => return Ok(Introduced { socket, version, pid, forks, arena }),
            Err(Introduction::Broken) if version > oldest => {
                version -= 1;
                socket = connect(path).await.map_err(|_| Introduction::Broken)?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Returns the host's version, its process, whether it forks, and its arena.
async fn greet(
    socket: &AsyncNoticeSocket,
    version: u16,
    orphan_grace: Duration,
    path: &Path,
) -> Result<(u16, u32, bool, OwnedFd), Introduction> {
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
        Ok(FromHost::Welcome { version, pid, forks, .. }) => match packet.descriptors.into_iter().next() {
            Some(arena) => Ok((version, pid, forks, arena)),
            None => Err(wrong("the program sent no memory for progress records".to_owned())),
        },
        Ok(other) => Err(wrong(format!("the program said {other:?} instead of Welcome"))),
        Err(error) => Err(wrong(format!("the program said nonsense instead of Welcome: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use lrts_core::notices::NoticeListener;

    use super::*;

    #[tokio::test]
    async fn a_host_is_spoken_to_in_the_newest_version_that_it_knows_but_in_none_below_the_oldest() {
        for oldest in OLDEST_HOST_VERSION..=HOST_VERSION {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("socket");
            let listener = NoticeListener::bind(&path).unwrap();
            let host = tokio::task::spawn_blocking(move || {
                let hello = |_| {
                    let packet = listener.accept().unwrap().receive().unwrap().unwrap();
                    let ToHost::Hello { version, .. } = packet.decode().unwrap() else { panic!("no Hello") };
                    version
                };
                (oldest..=HOST_VERSION).map(hello).collect::<Vec<_>>()
            });
            let socket = connect(&path).await.unwrap();
            let result = introduce(socket, &path, oldest, Duration::ZERO).await;
            assert!(matches!(result, Err(Introduction::Broken)));
            let expected: Vec<_> = (oldest..=HOST_VERSION).rev().collect();
            assert_eq!(host.await.unwrap(), expected);
        }
    }
}
