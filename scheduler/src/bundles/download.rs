//! Programs on their way to workers.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::bundle::read_chunk;
use lrts_core::ids::BundleDigest;
use lrts_core::protocol::codec;
use lrts_core::protocol::worker::ToWorker;
use lrts_core::transport::{ConnectionId, Message, ServerHandle};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

/// Pieces are read for a worker while less than this waits for it in the transport.
const SEND_AHEAD_BYTES: usize = 4 << 20;

/// How soon a worker whose queue is full is looked at again.
const PACE: Duration = Duration::from_millis(5);

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

impl Download {
    pub(super) async fn run(self) {
        let Self { handle, to, digest, path, mut offset, total, readers } = self;
        let opened = tokio::task::spawn_blocking(move || File::open(path)).await;
        let mut file = match opened.map_err(io::Error::other).flatten() {
            Ok(file) => file,
            Err(error) => {
                warn!(bundle = %digest, %error, "bundle not readable");
                return send_to_worker(&handle, to, &ToWorker::BundleMissing { digest }, Bytes::new());
            }
        };
        while offset < total {
            match handle.queued(to) {
                None => return,
                Some((_, bytes)) if bytes > SEND_AHEAD_BYTES => {
                    tokio::time::sleep(PACE).await;
                    continue;
                }
                Some(_) => {}
            }
            let permit = readers.acquire().await.expect("the semaphore is never closed");
            let read = tokio::task::spawn_blocking(move || (read_chunk(&file, offset), file)).await;
            drop(permit);
            // The task can only have been cancelled, with the process.
            let Ok((piece, same_file)) = read else { return };
            file = same_file;
            let (piece, bytes) = match piece {
                Ok((piece, bytes)) if bytes > 0 => (piece, bytes),
                Ok(_) => return warn!(bundle = %digest, offset, "bundle is shorter than it was"),
                Err(error) => return warn!(bundle = %digest, offset, %error, "bundle not readable"),
            };
            send_to_worker(&handle, to, &ToWorker::BundleChunk { digest, offset, bytes, total }, piece);
            offset += u64::from(bytes);
        }
    }
}

pub(super) fn send_to_worker(handle: &ServerHandle, to: ConnectionId, head: &ToWorker, body: Bytes) {
    if let Err(error) = handle.send(to, Message::new(codec::encode(head), body)) {
        debug!(connection = %to, %error, "message about a bundle not sent");
    }
}
