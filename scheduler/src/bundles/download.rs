//! Programs on their way to workers.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::bundle::read_chunk;
use lrts_core::ids::BundleDigest;
use lrts_core::protocol::codec;
use lrts_core::protocol::worker::ToWorker;
use lrts_core::transport::{ConnectionId, Message, ServerHandle};
use nix::errno::Errno;
use tokio::sync::Semaphore;
use tracing::debug;

/// Pieces are read for a worker while less than this waits for it in the transport.
const SEND_AHEAD_BYTES: usize = 4 << 20;

/// How soon a worker whose queue is full is looked at again.
const PACE: Duration = Duration::from_millis(5);

/// How soon it is tried again to open a file where too many are open.
const RETRY: Duration = Duration::from_millis(500);

/// Hands a bundle out to one worker.
pub(super) struct Download {
    pub(super) handle: ServerHandle,
    pub(super) to: ConnectionId,
    pub(super) digest: BundleDigest,
    pub(super) path: PathBuf,
    pub(super) offset: u64,
    pub(super) total: u64,
    /// Who may read at the same time.
    pub(super) readers: Arc<Semaphore>,
}

/// A bundle that can't be handed out to this worker, which waits for it.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(super) digest: BundleDigest,
    pub(super) to: ConnectionId,
    pub(super) error: io::Error,
}

impl Download {
    /// Runs until the worker has it or is gone.
    ///
    /// # Errors
    ///
    /// If the file is no good, and won't be.
    pub(super) async fn run(self) -> Result<(), Unreadable> {
        let Self { handle, to, digest, path, mut offset, total, readers } = self;
        while offset < total {
            match handle.queued(to) {
                None => return Ok(()),
                Some((_, bytes)) if bytes > SEND_AHEAD_BYTES => {
                    tokio::time::sleep(PACE).await;
                    continue;
                }
                Some(_) => {}
            }
            let permit = readers.acquire().await.expect("the semaphore is never closed");
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || read_piece(&path, offset)).await;
            drop(permit);
            // The task can only have been cancelled, with the process.
            let Ok(piece) = read else { return Ok(()) };
            let (piece, bytes) = match piece {
                Ok(piece) => piece,
                Err(error) if has_no_descriptor(&error) => {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
                Err(error) => return Err(Unreadable { digest, to, error }),
            };
            send_to_worker(&handle, to, &ToWorker::BundleChunk { digest, offset, bytes, total }, piece);
            offset += u64::from(bytes);
        }
        Ok(())
    }
}

/// Opens the file for each piece: however many are wanted, no more files are open than are read.
fn read_piece(path: &Path, offset: u64) -> io::Result<(Bytes, u32)> {
    let (piece, bytes) = read_chunk(&File::open(path)?, offset)?;
    if bytes == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok((piece, bytes)) }
}

/// That says nothing of the file, and passes.
fn has_no_descriptor(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .map(Errno::from_raw)
        .is_some_and(|errno| matches!(errno, Errno::EMFILE | Errno::ENFILE))
}

pub(super) fn send_to_worker(handle: &ServerHandle, to: ConnectionId, head: &ToWorker, body: Bytes) {
    if let Err(error) = handle.send(to, Message::new(codec::encode(head), body)) {
        debug!(connection = %to, %error, "message about a bundle not sent");
    }
}
