//! Programs that applications ship: taken in once, kept as files by digest, handed out to workers.
//!
//! A file is written as `DIGEST.part`, continued where it ended, verified, synced, then renamed. One thread does all writing,
//! each handing out is a task that reads a piece only when the worker has room for it: no bundle is ever in memory as a whole,
//! and the event loop never waits for a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc as blocking};
use std::time::Duration;

use bytes::Bytes;
use lrts_core::bundle::{digest_file, read_chunk, restore_chunk};
use lrts_core::clock::wall_clock;
use lrts_core::ids::BundleDigest;
use lrts_core::limits::{BUNDLE_BYTES, BUNDLE_CHUNK_BYTES};
use lrts_core::protocol::application::ToApplication;
use lrts_core::protocol::codec;
use lrts_core::protocol::worker::ToWorker;
use lrts_core::spec::Platform;
use lrts_core::transport::{ConnectionId, Message, ServerHandle};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, info, warn};

use crate::engine::Event;

/// How long a bundle that nobody needs is kept, if there is room.
const KEPT: Duration = Duration::from_secs(24 * 3_600);

/// Pieces are read for a worker while less than this waits for it in the transport.
const SEND_AHEAD_BYTES: usize = 4 << 20;

/// How soon a worker whose queue is full is looked at again.
const PACE: Duration = Duration::from_millis(5);

/// Pieces that are read and compressed at a time, for all workers.
const READERS: usize = 4;

/// What a peer wants about bundles.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// An application has it.
    Offer { digest: BundleDigest, bytes: u64, platform: Platform },
    /// An application sends a piece.
    Chunk { digest: BundleDigest, offset: u64, bytes: u32, compressed: Bytes },
    /// A worker lacks it from this offset on.
    Want { digest: BundleDigest, offset: u64 },
}

/// A piece that no honest application sends.
#[derive(Debug, thiserror::Error)]
#[error("a piece of bundle {digest} at {offset} of {bytes} bytes, where {expected} of {total} came before")]
pub(crate) struct BadChunk {
    digest: BundleDigest,
    offset: u64,
    bytes: u32,
    expected: u64,
    total: u64,
}

/// What became of an upload.
#[derive(Debug)]
pub(crate) enum Outcome {
    Stored { digest: BundleDigest },
    Failed { digest: BundleDigest, reason: String },
}

/// The bundle store.
pub(crate) struct Bundles {
    directory: PathBuf,
    /// Most bytes of all files.
    limit: u64,
    handle: ServerHandle,
    complete: BTreeMap<BundleDigest, Complete>,
    in_use: BTreeSet<BundleDigest>,
    uploads: BTreeMap<BundleDigest, Upload>,
    writer: blocking::Sender<Work>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
    downloads: JoinSet<()>,
    by_worker: BTreeMap<(ConnectionId, BundleDigest), AbortHandle>,
    readers: Arc<Semaphore>,
}

/// A bundle that is here.
#[derive(Debug)]
struct Complete {
    bytes: u64,
    /// By the wall clock, since it outlives the process.
    last_used: Duration,
    /// What it was built for, if that was kept.
    platform: Option<Platform>,
}

/// A bundle that is on its way.
#[derive(Debug)]
struct Upload {
    bytes: u64,
    platform: Platform,
    /// How much of it the writer was given.
    received: u64,
    /// Applications that have it; the first one sends it.
    sources: Vec<ConnectionId>,
}

/// What the writing thread does.
enum Work {
    Write { digest: BundleDigest, offset: u64, bytes: u32, compressed: Bytes },
    Describe { digest: BundleDigest, platform: Platform },
    Finish { digest: BundleDigest },
    Abandon { digest: BundleDigest },
    Remove { digest: BundleDigest },
}

impl Bundles {
    /// Opens the store in this directory, which is made if need be.
    ///
    /// # Errors
    ///
    /// If it can't be made or read, or the writing thread can't be started.
    pub(crate) fn open(directory: PathBuf, limit: u64, handle: ServerHandle) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let complete = scan(&directory)?;
        let (writer, work) = blocking::channel();
        let (sender, outcomes) = mpsc::unbounded_channel();
        let path = directory.clone();
        std::thread::Builder::new().name("bundles".to_owned()).spawn(move || write(&path, &work, &sender))?;
        Ok(Self {
            directory,
            limit,
            handle,
            complete,
            in_use: BTreeSet::new(),
            uploads: BTreeMap::new(),
            writer,
            outcomes,
            downloads: JoinSet::new(),
            by_worker: BTreeMap::new(),
            readers: Arc::new(Semaphore::new(READERS)),
        })
    }

    /// What is here from the start, for the engine.
    pub(crate) fn complete_already(&self) -> Vec<Event> {
        let complete = self.complete.iter().filter_map(|(&digest, complete)| {
            Some(Event::BundleCompleted { digest, platform: complete.platform.clone()? })
        });
        complete.collect()
    }

    /// An application has a bundle: it is asked for what is missing. Returns what the engine is to know.
    pub(crate) fn offer(
        &mut self,
        from: ConnectionId,
        digest: BundleDigest,
        bytes: u64,
        platform: Platform,
    ) -> Vec<Event> {
        if let Some(complete) = self.complete.get_mut(&digest) {
            complete.last_used = wall_clock();
            if complete.platform.is_none() {
                complete.platform = Some(platform.clone());
                self.order(Work::Describe { digest, platform: platform.clone() });
            }
            self.tell(from, &ToApplication::BundleComplete { digest });
            return vec![Event::BundleCompleted { digest, platform }];
        }
        let differs = |upload: &Upload| upload.sources.is_empty() && upload.bytes != bytes;
        let differed = self.uploads.get(&digest).is_some_and(differs);
        if differed {
            // Who left it had another idea of its length.
            self.uploads.remove(&digest);
            self.order(Work::Abandon { digest });
        }
        if let Some(upload) = self.uploads.get_mut(&digest) {
            upload.sources.retain(|&source| source != from);
            upload.sources.push(from);
            if upload.sources.len() == 1 {
                let offset = upload.received;
                self.tell(from, &ToApplication::BundleWanted { digest, offset });
            }
            return Vec::new();
        }
        if bytes == 0 || bytes > BUNDLE_BYTES {
            let reason = format!("an executable of {bytes} bytes: 1 to {BUNDLE_BYTES} are allowed");
            return vec![self.refuse(from, digest, reason)];
        }
        let (room, mut events) = self.make_room(bytes);
        if !room {
            let limit = self.limit;
            let reason = format!(
                "no room for an executable of {bytes} bytes: the scheduler keeps {limit} bytes of bundles (--bundle-store)"
            );
            events.push(self.refuse(from, digest, reason));
            return events;
        }
        // What a scheduler before this one was sent. A longer file isn't this bundle's.
        let left = if differed {
            0
        } else {
            fs::metadata(part(&self.directory, digest)).map_or(0, |file| file.len())
        };
        let offset = if left < bytes { left } else { 0 };
        self.uploads.insert(digest, Upload { bytes, platform, received: offset, sources: vec![from] });
        self.tell(from, &ToApplication::BundleWanted { digest, offset });
        // If an earlier upload failed, this one may not.
        events.push(Event::BundleForgotten { digest });
        events
    }

    fn refuse(&self, from: ConnectionId, digest: BundleDigest, reason: String) -> Event {
        self.tell(from, &ToApplication::BundleRefused { digest, reason: reason.clone() });
        Event::BundleFailed { digest, reason }
    }

    /// A piece has come.
    ///
    /// # Errors
    ///
    /// [`BadChunk`] if it doesn't continue the file.
    pub(crate) fn chunk(
        &mut self,
        from: ConnectionId,
        digest: BundleDigest,
        offset: u64,
        bytes: u32,
        compressed: Bytes,
    ) -> Result<(), BadChunk> {
        // A repeat, or one of several sources of which another was asked, or its upload has failed.
        let Some(upload) = self.uploads.get_mut(&digest) else { return Ok(()) };
        if upload.sources.first() != Some(&from) || offset < upload.received {
            return Ok(());
        }
        let end = offset.saturating_add(u64::from(bytes));
        if offset > upload.received || end > upload.bytes || bytes == 0 || bytes as usize > BUNDLE_CHUNK_BYTES
        {
            return Err(BadChunk { digest, offset, bytes, expected: upload.received, total: upload.bytes });
        }
        upload.received = end;
        let finished = end == upload.bytes;
        let platform = upload.platform.clone();
        self.order(Work::Write { digest, offset, bytes, compressed });
        if finished {
            // First, so that whoever finds the bundle finds this too.
            self.order(Work::Describe { digest, platform });
            self.order(Work::Finish { digest });
        }
        Ok(())
    }

    /// The end of an upload. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Outcome {
        loop {
            tokio::select! {
                outcome = self.outcomes.recv() => return outcome.expect("the writer lives as long as its orders come"),
                Some(_) = self.downloads.join_next() => self.by_worker.retain(|_, task| !task.is_finished()),
            }
        }
    }

    /// Tells those who wait of an upload's end. Returns what the engine is to know.
    pub(crate) fn uploaded(&mut self, outcome: Outcome) -> Option<Event> {
        match outcome {
            Outcome::Stored { digest } => {
                let upload = self.uploads.remove(&digest)?;
                info!(bundle = %digest, bytes = upload.bytes, "bundle stored");
                let platform = Some(upload.platform.clone());
                self.complete
                    .insert(digest, Complete { bytes: upload.bytes, last_used: wall_clock(), platform });
                for source in upload.sources {
                    self.tell(source, &ToApplication::BundleComplete { digest });
                }
                Some(Event::BundleCompleted { digest, platform: upload.platform })
            }
            Outcome::Failed { digest, reason } => {
                let upload = self.uploads.remove(&digest)?;
                warn!(bundle = %digest, %reason, "bundle refused");
                for source in upload.sources {
                    let reason = reason.clone();
                    self.tell(source, &ToApplication::BundleRefused { digest, reason });
                }
                Some(Event::BundleFailed { digest, reason })
            }
        }
    }

    /// A worker lacks a bundle: it is sent piece by piece, as fast as the worker takes them.
    pub(crate) fn want(&mut self, to: ConnectionId, digest: BundleDigest, offset: u64) {
        let Some(complete) = self.complete.get_mut(&digest) else {
            return send_to_worker(&self.handle, to, &ToWorker::BundleMissing { digest }, Bytes::new());
        };
        complete.last_used = wall_clock();
        let download = Download {
            handle: self.handle.clone(),
            to,
            digest,
            path: self.directory.join(digest.to_string()),
            offset,
            total: complete.bytes,
            readers: Arc::clone(&self.readers),
        };
        let task = self.downloads.spawn(download.run());
        if let Some(earlier) = self.by_worker.insert((to, digest), task) {
            earlier.abort();
        }
    }

    /// A connection has ended: who else has what it was sending goes on with it. What nobody sends any more waits
    /// for the next one who has it.
    pub(crate) fn left(&mut self, connection: ConnectionId) {
        let mut wanted = Vec::new();
        for (&digest, upload) in &mut self.uploads {
            let was_sending = upload.sources.first() == Some(&connection);
            upload.sources.retain(|&source| source != connection);
            if let (true, Some(&next)) = (was_sending, upload.sources.first()) {
                wanted.push((next, digest, upload.received));
            }
        }
        for (next, digest, offset) in wanted {
            self.tell(next, &ToApplication::BundleWanted { digest, offset });
        }
    }

    /// Whether a bundle may be deleted.
    pub(crate) fn set_in_use(&mut self, digest: BundleDigest, in_use: bool) {
        if in_use {
            self.in_use.insert(digest);
        } else {
            self.in_use.remove(&digest);
        }
        if let Some(complete) = self.complete.get_mut(&digest) {
            complete.last_used = wall_clock();
        }
    }

    /// Deletes what nobody needs: all that is old, then what was used longest ago until this many bytes fit in.
    fn make_room(&mut self, bytes: u64) -> (bool, Vec<Event>) {
        let now = wall_clock();
        let mut unused: Vec<(Duration, BundleDigest)> = self
            .complete
            .iter()
            .filter(|(digest, _)| !self.in_use.contains(digest))
            .map(|(&digest, complete)| (complete.last_used, digest))
            .collect();
        unused.sort_unstable();
        let mut events = Vec::new();
        for (last_used, digest) in unused {
            let old = now.saturating_sub(last_used) > KEPT;
            if !old && self.fits(bytes) {
                break;
            }
            info!(bundle = %digest, "bundle deleted");
            self.complete.remove(&digest);
            self.order(Work::Remove { digest });
            events.push(Event::BundleForgotten { digest });
        }
        // Last, since whoever began an upload may go on with it. What has come as a whole is being verified.
        let left = |upload: &Upload| upload.sources.is_empty() && upload.received < upload.bytes;
        while !self.fits(bytes)
            && let Some(digest) =
                self.uploads.iter().find(|(_, upload)| left(upload)).map(|(&digest, _)| digest)
        {
            self.uploads.remove(&digest);
            self.order(Work::Abandon { digest });
        }
        (self.fits(bytes), events)
    }

    fn fits(&self, bytes: u64) -> bool {
        let complete: u64 = self.complete.values().map(|complete| complete.bytes).sum();
        // Room is held for what somebody sends.
        let room = |upload: &Upload| if upload.sources.is_empty() { upload.received } else { upload.bytes };
        let coming: u64 = self.uploads.values().map(room).sum();
        complete.saturating_add(coming).saturating_add(bytes) <= self.limit
    }

    fn order(&self, work: Work) {
        self.writer.send(work).expect("the writer lives as long as its orders come");
    }

    fn tell(&self, to: ConnectionId, head: &ToApplication) {
        // Who has gone asks again when it is back.
        if let Err(error) = self.handle.send(to, Message::new(codec::encode(head), Bytes::new())) {
            debug!(connection = %to, %error, "message about a bundle not sent");
        }
    }
}

/// What a bundle was built for, beside it.
fn description(directory: &Path, digest: BundleDigest) -> PathBuf {
    directory.join(format!("{digest}.platform"))
}

fn describe(directory: &Path, digest: BundleDigest, platform: &Platform) -> io::Result<()> {
    let mut file = File::create(description(directory, digest))?;
    file.write_all(&codec::encode(platform))?;
    file.sync_all()
}

/// None if it isn't there or can't be read: an application that has the bundle says it again.
fn read_platform(path: &Path) -> Option<Platform> {
    codec::decode_local(&fs::read(path).ok()?).ok()
}

fn part(directory: &Path, digest: BundleDigest) -> PathBuf {
    directory.join(format!("{digest}.part"))
}

/// The bundles that earlier schedulers left in a directory. Uploads that nobody has gone on with for long are deleted.
fn scan(directory: &Path) -> io::Result<BTreeMap<BundleDigest, Complete>> {
    let mut complete = BTreeMap::new();
    let now = wall_clock();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.ends_with(".part")) {
            let modified =
                entry.metadata()?.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            if now.saturating_sub(modified) > KEPT {
                fs::remove_file(entry.path())?;
            }
        } else if let Some(digest) = name.to_str().and_then(|name| name.parse().ok()) {
            let metadata = entry.metadata()?;
            let modified = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let platform = read_platform(&description(directory, digest));
            complete.insert(digest, Complete { bytes: metadata.len(), last_used: modified, platform });
        }
    }
    Ok(complete)
}

/// The writing thread.
fn write(directory: &Path, work: &blocking::Receiver<Work>, outcomes: &mpsc::UnboundedSender<Outcome>) {
    let mut open: BTreeMap<BundleDigest, File> = BTreeMap::new();
    let mut failed: BTreeSet<BundleDigest> = BTreeSet::new();
    for work in work {
        let (digest, result) = match work {
            Work::Write { digest, offset, bytes, compressed } => {
                if offset == 0 {
                    failed.remove(&digest);
                }
                if failed.contains(&digest) {
                    continue;
                }
                (digest, write_piece(directory, &mut open, digest, offset, bytes, &compressed).map(|()| None))
            }
            Work::Describe { digest, platform } => {
                (digest, describe(directory, digest, &platform).map(|()| None))
            }
            Work::Finish { digest } if failed.contains(&digest) => continue,
            Work::Finish { digest } => {
                let stored = finish(directory, open.remove(&digest), digest);
                (digest, stored.map(|()| Some(Outcome::Stored { digest })))
            }
            Work::Abandon { digest } => {
                open.remove(&digest);
                // If it can't be deleted, what is wrong with it shows when it is verified.
                let _ = fs::remove_file(part(directory, digest));
                continue;
            }
            Work::Remove { digest } => {
                // Without the bundle it says nothing.
                let _ = fs::remove_file(description(directory, digest));
                if let Err(error) = fs::remove_file(directory.join(digest.to_string())) {
                    warn!(bundle = %digest, %error, "bundle not deleted");
                }
                continue;
            }
        };
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => {
                failed.insert(digest);
                open.remove(&digest);
                // What can't be continued is of no use; if it can't be deleted either, the next upload overwrites it.
                let _ = fs::remove_file(part(directory, digest));
                Some(Outcome::Failed {
                    digest,
                    reason: format!("the scheduler can't store the bundle: {error}"),
                })
            }
        };
        if outcome.is_some_and(|outcome| outcomes.send(outcome).is_err()) {
            return;
        }
    }
}

fn write_piece(
    directory: &Path,
    open: &mut BTreeMap<BundleDigest, File>,
    digest: BundleDigest,
    offset: u64,
    bytes: u32,
    compressed: &[u8],
) -> io::Result<()> {
    let piece = restore_chunk(compressed, bytes)?;
    let file = match open.entry(digest) {
        std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
        std::collections::btree_map::Entry::Vacant(entry) => {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(offset == 0);
            entry.insert(options.open(part(directory, digest))?)
        }
    };
    file.write_all_at(&piece, offset)
}

/// Verifies an upload and gives it its name.
fn finish(directory: &Path, file: Option<File>, digest: BundleDigest) -> io::Result<()> {
    let file = file.ok_or_else(|| io::Error::other("nothing was uploaded"))?;
    let (found, _) = digest_file(&file)?;
    if found != digest {
        return Err(io::Error::other(format!(
            "the uploaded bytes have the digest {found}: upload the program again"
        )));
    }
    file.sync_all()?;
    fs::rename(part(directory, digest), directory.join(digest.to_string()))?;
    File::open(directory)?.sync_all()
}

/// Hands a bundle out to one worker.
struct Download {
    handle: ServerHandle,
    to: ConnectionId,
    digest: BundleDigest,
    path: PathBuf,
    offset: u64,
    total: u64,
    readers: Arc<Semaphore>,
}

impl Download {
    async fn run(self) {
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

fn send_to_worker(handle: &ServerHandle, to: ConnectionId, head: &ToWorker, body: Bytes) {
    if let Err(error) = handle.send(to, Message::new(codec::encode(head), body)) {
        debug!(connection = %to, %error, "message about a bundle not sent");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_that_nobody_goes_on_with_are_deleted_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let (old, new) = (BundleDigest([1; 32]), BundleDigest([2; 32]));
        for digest in [old, new] {
            fs::write(part(directory.path(), digest), "half").unwrap();
        }
        let file = File::options().write(true).open(part(directory.path(), old)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + wall_clock() - 2 * KEPT).unwrap();
        assert!(scan(directory.path()).unwrap().is_empty());
        assert!(!part(directory.path(), old).exists() && part(directory.path(), new).exists());
    }
}
