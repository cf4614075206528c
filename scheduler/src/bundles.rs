//! Programs that applications ship: taken in once, kept as files by digest, handed out to workers.
//!
//! A file is written as `DIGEST.part`, continued where it ended, verified, synced, then renamed. One thread does all writing,
//! each handing out is a task that reads a piece only when the worker has room for it: no bundle is ever in memory as a whole,
//! and the event loop never waits for a disk.
//!
//! Several applications may have the same program; one of them sends it. Whether what it sends is right shows at the end only,
//! so one that sends something else, or nothing, must not be in the way of the others: the next one is asked then.

mod disk;
mod download;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::bundle::{check_chunk, chunk_bytes};
use lrts_core::clock::{Moment, sleep_until, wall_clock};
use lrts_core::ids::BundleDigest;
use lrts_core::limits::{
    BUNDLE_BACKLOG_BYTES, BUNDLE_BYTES, BUNDLE_ROOM_MIN, UPLOAD_STALL, UPLOADS_PER_PEER,
};
use lrts_core::private_dir;
use lrts_core::protocol::application::ToApplication;
use lrts_core::protocol::codec;
use lrts_core::protocol::worker::ToWorker;
use lrts_core::spec::Platform;
use lrts_core::transport::{ConnectionId, Message, ServerHandle};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, info, warn};

use self::disk::{Disk, Work, scan};
use self::download::{Download, send_to_worker};
use crate::engine::{Event, Peer};

/// How long a bundle that nobody needs is kept, if there is room, and half of one that nobody goes on with.
const KEPT: Duration = Duration::from_secs(24 * 3_600);

/// Pieces that are read and compressed at a time, for all workers.
const READERS: usize = 4;

/// A connected application, as the transport and as the engine knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Offerer {
    pub(crate) connection: ConnectionId,
    pub(crate) peer: Peer,
}

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
    /// What was sent by applications that have left.
    halves: BTreeMap<BundleDigest, Half>,
    disk: Disk,
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

/// A part of a bundle that nobody is sending.
#[derive(Debug)]
struct Half {
    bytes: u64,
    /// Since when, by the wall clock.
    left: Duration,
}

/// An application that has a bundle, and what it says of it.
#[derive(Debug)]
struct Source {
    who: Offerer,
    bytes: u64,
    platform: Platform,
}

/// A bundle that is on its way.
#[derive(Debug)]
struct Upload {
    /// The first one sends it. Empty only while it is verified.
    sources: VecDeque<Source>,
    /// Who was asked last, and for the bundle from its start on.
    sender: ConnectionId,
    from_start: bool,
    /// Its length, and what it was built for, by the sender's account.
    bytes: u64,
    platform: Platform,
    /// How much of it the writer was given.
    received: u64,
    /// A piece was passed over: the sender is asked again once it has sent its last one.
    lags: bool,
    /// When a piece came last; at first, when it was offered.
    heard: Moment,
    /// When it is looked at whether anything comes.
    look: Moment,
}

impl Upload {
    /// Whether all has come, and it is being verified.
    fn is_whole(&self) -> bool {
        self.received == self.bytes
    }

    /// The room that is held for it: what somebody sends, else what is there.
    fn room(&self, now: Moment) -> u64 {
        let announced = self.sources.iter().map(|source| source.bytes).max().unwrap_or(0);
        let comes = now.since(self.heard) < UPLOAD_STALL;
        room(if comes { announced.max(self.received) } else { self.received })
    }
}

/// What a file of this length takes of the room.
fn room(bytes: u64) -> u64 {
    bytes.max(BUNDLE_ROOM_MIN)
}

impl Bundles {
    /// Opens the store in this directory, which is made if need be.
    ///
    /// # Errors
    ///
    /// If it can't be made or read, or the writing thread can't be started.
    pub(crate) fn open(directory: PathBuf, limit: u64, handle: ServerHandle) -> io::Result<Self> {
        private_dir::make(&directory)?;
        let (complete, halves) = scan(&directory)?;
        let (disk, outcomes) = Disk::start(directory.clone())?;
        Ok(Self {
            directory,
            limit,
            handle,
            complete,
            in_use: BTreeSet::new(),
            uploads: BTreeMap::new(),
            halves,
            disk,
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
        from: Offerer,
        digest: BundleDigest,
        bytes: u64,
        platform: Platform,
    ) -> Vec<Event> {
        if let Some(complete) = self.complete.get_mut(&digest) {
            complete.last_used = wall_clock();
            if complete.platform.is_none() {
                complete.platform = Some(platform.clone());
                self.disk.order(Work::Describe { digest, platform: platform.clone() });
            }
            self.tell(from.connection, &ToApplication::BundleComplete { digest });
            return vec![Event::BundleCompleted { digest, platform }];
        }
        if bytes == 0 || bytes > BUNDLE_BYTES {
            let reason = format!("an executable of {bytes} bytes: 1 to {BUNDLE_BYTES} are allowed");
            return vec![self.refuse(from, digest, reason)];
        }
        let has = |upload: &&Upload| upload.sources.iter().any(|source| source.who == from);
        let others = self.uploads.iter().filter(|(other, _)| **other != digest).map(|(_, upload)| upload);
        if others.filter(has).count() >= UPLOADS_PER_PEER {
            let reason =
                format!("{UPLOADS_PER_PEER} other executables of yours are on their way: wait for them");
            return vec![self.refuse(from, digest, reason)];
        }
        let (fits, mut events) = self.make_room(digest, bytes);
        if !fits {
            let limit = self.limit;
            let reason = format!(
                "no room for an executable of {bytes} bytes: the scheduler keeps {limit} bytes of bundles (--bundle-store)"
            );
            events.push(self.refuse(from, digest, reason));
            return events;
        }
        // If an earlier upload of it failed, this one may not.
        events.push(Event::BundleOffered { peer: from.peer, digest });
        let source = Source { who: from, bytes, platform };
        if let Some(upload) = self.uploads.get_mut(&digest) {
            let was_sending = upload.sender == from.connection;
            upload.sources.retain(|source| source.who != from);
            // Its answer may not have arrived.
            if was_sending {
                upload.sources.push_front(source)
            } else {
                upload.sources.push_back(source)
            }
            if !upload.is_whole() && (was_sending || upload.sources.len() == 1) {
                self.ask(digest);
            }
            return events;
        }
        // What was sent before. A longer file isn't this bundle's.
        let left = self.halves.remove(&digest).map_or(0, |half| half.bytes);
        let now = Moment::now();
        let upload = Upload {
            sender: from.connection,
            from_start: false,
            bytes,
            platform: source.platform.clone(),
            received: left,
            lags: false,
            heard: now,
            look: now,
            sources: VecDeque::from([source]),
        };
        self.uploads.insert(digest, upload);
        self.ask(digest);
        events
    }

    /// Asks the first one that has it for what is missing.
    fn ask(&mut self, digest: BundleDigest) {
        let Some(upload) = self.uploads.get_mut(&digest) else { return };
        let Some(source) = upload.sources.front() else { return };
        (upload.sender, upload.bytes) = (source.who.connection, source.bytes);
        upload.platform = source.platform.clone();
        if upload.received >= upload.bytes {
            upload.received = 0;
        }
        upload.from_start = upload.received == 0;
        upload.look = Moment::now() + UPLOAD_STALL;
        let (to, offset) = (upload.sender, upload.received);
        self.tell(to, &ToApplication::BundleWanted { digest, offset });
    }

    /// Tells an application that what it offered or sent is of no use. Returns what the engine is to know.
    fn refuse(&self, who: Offerer, digest: BundleDigest, reason: String) -> Event {
        self.tell(who.connection, &ToApplication::BundleRefused { digest, reason: reason.clone() });
        Event::BundleFailed { peer: who.peer, digest, reason }
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
        if upload.sender != from || offset < upload.received || upload.is_whole() {
            return Ok(());
        }
        let is_piece = bytes > 0 && bytes == chunk_bytes(offset, upload.bytes);
        if !is_piece || offset > upload.received && !upload.lags || check_chunk(&compressed, bytes).is_err() {
            return Err(BadChunk { digest, offset, bytes, expected: upload.received, total: upload.bytes });
        }
        upload.heard = Moment::now();
        upload.look = upload.heard + UPLOAD_STALL;
        // No overflow: a piece ends within the bundle.
        let end = offset + u64::from(bytes);
        let is_last = end == upload.bytes;
        let has_room = self.disk.backlog() + compressed.len() <= BUNDLE_BACKLOG_BYTES;
        if offset > upload.received || !has_room {
            upload.lags = true;
            if is_last {
                self.ask(digest);
            }
            return Ok(());
        }
        (upload.received, upload.lags) = (end, false);
        let platform = upload.platform.clone();
        self.disk.order(Work::Write { digest, offset, bytes, compressed });
        if is_last {
            // First, so that whoever finds the bundle finds this too.
            self.disk.order(Work::Describe { digest, platform });
            self.disk.order(Work::Finish { digest });
        }
        Ok(())
    }

    /// The end of an upload. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Outcome {
        loop {
            let waiting = self.uploads.values().filter(|upload| !upload.is_whole());
            let look = waiting.map(|upload| upload.look).min();
            tokio::select! {
                outcome = self.outcomes.recv() => return outcome.expect("the writer lives as long as its orders come"),
                Some(_) = self.downloads.join_next() => self.by_worker.retain(|_, task| !task.is_finished()),
                () = sleep_until(look) => self.pass_over_silent(Moment::now()),
            }
        }
    }

    /// Where nothing has come for too long, the next one that has the bundle is asked; the same one again, if it is the only
    /// one.
    fn pass_over_silent(&mut self, now: Moment) {
        let is_silent = |upload: &Upload| !upload.is_whole() && upload.look <= now;
        let silent = self.uploads.iter_mut().filter(|(_, upload)| is_silent(upload));
        let silent: Vec<_> = silent
            .map(|(&digest, upload)| {
                upload.sources.rotate_left(1);
                digest
            })
            .collect();
        for digest in silent {
            debug!(bundle = %digest, "nothing comes of a bundle");
            self.ask(digest);
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
                    self.tell(source.who.connection, &ToApplication::BundleComplete { digest });
                }
                Some(Event::BundleCompleted { digest, platform: upload.platform })
            }
            Outcome::Failed { digest, reason } => self.failed(digest, reason),
        }
    }

    /// What was sent is of no use, or can't be kept. If it is one sender's alone, that one is refused; all others may have the
    /// right bytes.
    fn failed(&mut self, digest: BundleDigest, reason: String) -> Option<Event> {
        warn!(bundle = %digest, %reason, "bundle refused");
        // Its file is gone.
        self.halves.remove(&digest);
        let upload = self.uploads.get_mut(&digest)?;
        (upload.received, upload.lags) = (0, true);
        let sender = upload.sender;
        let is_next = upload.sources.front().is_some_and(|source| source.who.connection == sender);
        let to_blame = if upload.from_start && is_next { upload.sources.pop_front() } else { None };
        if upload.sources.is_empty() {
            self.uploads.remove(&digest);
            self.disk.order(Work::Abandon { digest });
        } else {
            self.ask(digest);
        }
        to_blame.map(|source| self.refuse(source.who, digest, reason))
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
        let mut halves = Vec::new();
        for (&digest, upload) in &mut self.uploads {
            upload.sources.retain(|source| source.who.connection != connection);
            if upload.is_whole() {
                continue;
            }
            match upload.sources.front() {
                None => halves.push((digest, upload.received)),
                Some(_) if upload.sender == connection => wanted.push(digest),
                Some(_) => {}
            }
        }
        for digest in wanted {
            self.ask(digest);
        }
        for (digest, bytes) in halves {
            self.uploads.remove(&digest);
            self.halves.insert(digest, Half { bytes, left: wall_clock() });
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

    /// Deletes what nobody needs until a bundle of this many bytes fits in: all that is old, then what was used longest ago,
    /// then halves that nobody sends, and at last those of which nothing comes.
    fn make_room(&mut self, wanted: BundleDigest, bytes: u64) -> (bool, Vec<Event>) {
        let (now, today) = (Moment::now(), wall_clock());
        let mut events = Vec::new();
        let complete: u64 = self.complete.values().map(|complete| room(complete.bytes)).sum();
        let halves = self.halves.iter().filter(|(digest, _)| **digest != wanted);
        let halves: u64 = halves.map(|(_, half)| room(half.bytes)).sum();
        let uploads = self.uploads.iter().filter(|(digest, _)| **digest != wanted);
        let uploads: u64 = uploads.map(|(_, upload)| upload.room(now)).sum();
        let own = self.uploads.get(&wanted).map_or(0, |upload| upload.room(now));
        let mut used = complete.saturating_add(halves).saturating_add(uploads);
        used = used.saturating_add(room(bytes).max(own));

        let unused = self.complete.iter().filter(|(digest, _)| !self.in_use.contains(digest));
        let mut unused: Vec<_> =
            unused.map(|(&digest, complete)| (complete.last_used, digest, room(complete.bytes))).collect();
        unused.sort_unstable();
        for (last_used, digest, freed) in unused {
            if used <= self.limit && today.saturating_sub(last_used) <= KEPT {
                break;
            }
            info!(bundle = %digest, "bundle deleted");
            self.complete.remove(&digest);
            self.disk.order(Work::Remove { digest });
            events.push(Event::BundleForgotten { digest });
            used -= freed;
        }

        let halves = self.halves.iter().filter(|(digest, _)| **digest != wanted);
        let mut halves: Vec<_> =
            halves.map(|(&digest, half)| (half.left, digest, room(half.bytes))).collect();
        halves.sort_unstable();
        for (left, digest, freed) in halves {
            if used <= self.limit && today.saturating_sub(left) <= KEPT {
                break;
            }
            self.halves.remove(&digest);
            self.disk.order(Work::Abandon { digest });
            used -= freed;
        }

        let is_stalled = |upload: &Upload| !upload.is_whole() && now.since(upload.heard) >= UPLOAD_STALL;
        while used > self.limit
            && let Some(digest) = self
                .uploads
                .iter()
                .find(|(digest, upload)| **digest != wanted && is_stalled(upload))
                .map(|(&digest, _)| digest)
            && let Some(upload) = self.uploads.remove(&digest)
        {
            self.disk.order(Work::Abandon { digest });
            for source in &upload.sources {
                let reason =
                    "nothing of it came for long, and others needed the room: start again".to_owned();
                events.push(self.refuse(source.who, digest, reason));
            }
            used -= upload.room(now);
        }
        (used <= self.limit, events)
    }

    fn tell(&self, to: ConnectionId, head: &ToApplication) {
        // Who has gone asks again when it is back.
        if let Err(error) = self.handle.send(to, Message::new(codec::encode(head), Bytes::new())) {
            debug!(connection = %to, %error, "message about a bundle not sent");
        }
    }
}
