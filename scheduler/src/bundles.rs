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
mod room;
#[cfg(test)]
mod tests;
mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::bundle::{check_chunk, chunk_bytes};
use lrts_core::clock::{Moment, sleep_until, wall_clock};
use lrts_core::ids::BundleDigest;
use lrts_core::limits::{BUNDLE_BACKLOG_BYTES, BUNDLE_BYTES, UPLOADS_PER_PEER};
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
use self::room::{Charge, Room, Spare};
pub(crate) use self::upload::Offerer;
use self::upload::{Half, Source, Upload};
use crate::engine::{Event, Platforms};

/// How long a bundle that nobody needs is kept, if there is room, and half of one that nobody goes on with.
const KEPT: Duration = Duration::from_secs(24 * 3_600);

/// Several bundles that a user sends at a time take this part of the room at most.
const SHARE: u64 = 4;

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
    Stored {
        digest: BundleDigest,
    },
    /// What came of it as this file, see [`Upload::file`], is of no use or can't be kept. The file is gone.
    Failed {
        digest: BundleDigest,
        file: u64,
        reason: String,
    },
}

/// The bundle store.
pub(crate) struct Bundles {
    directory: PathBuf,
    handle: ServerHandle,
    complete: BTreeMap<BundleDigest, Complete>,
    in_use: BTreeSet<BundleDigest>,
    uploads: BTreeMap<BundleDigest, Upload>,
    /// What was sent by applications that have left.
    halves: BTreeMap<BundleDigest, Half>,
    room: Room,
    /// Counts files that were begun.
    files: u64,
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
    /// What it was built for, as far as that was kept.
    platforms: Platforms,
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
        let mut bundles = Self {
            directory,
            handle,
            complete,
            in_use: BTreeSet::new(),
            uploads: BTreeMap::new(),
            halves,
            room: Room::new(limit),
            files: 0,
            disk,
            outcomes,
            downloads: JoinSet::new(),
            by_worker: BTreeMap::new(),
            readers: Arc::new(Semaphore::new(READERS)),
        };
        let here = bundles.complete.keys().chain(bundles.halves.keys()).copied();
        here.collect::<Vec<_>>().into_iter().for_each(|digest| bundles.charge(digest));
        Ok(bundles)
    }

    /// What is here from the start, for the engine.
    pub(crate) fn complete_already(&self) -> Vec<Event> {
        let described = self.complete.iter().filter(|(_, complete)| !complete.platforms.is_empty());
        let completed = |(&digest, complete): (&BundleDigest, &Complete)| Event::BundleCompleted {
            digest,
            platforms: complete.platforms.clone(),
        };
        described.map(completed).collect()
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
            let is_news = complete.platforms.add(platform.clone());
            let platforms = complete.platforms.clone();
            if is_news {
                self.disk.order(Work::Describe { digest, platforms: platforms.clone() });
            }
            self.charge(digest);
            self.tell(from.connection, &ToApplication::BundleComplete { digest });
            return vec![Event::BundleCompleted { digest, platforms }];
        }
        if bytes == 0 || bytes > BUNDLE_BYTES {
            let reason = format!("an executable of {bytes} bytes: 1 to {BUNDLE_BYTES} are allowed");
            return vec![self.refuse(&from, digest, reason)];
        }
        let others = self.uploads.iter().filter(|(other, upload)| **other != digest && upload.has(&from));
        if others.count() >= UPLOADS_PER_PEER {
            let reason =
                format!("{UPLOADS_PER_PEER} other executables of yours are on their way: wait for them");
            return vec![self.refuse(&from, digest, reason)];
        }
        while !self.room.could_have(digest, bytes) && self.interrupt_stalled(digest) {}
        if !self.room.could_have(digest, bytes) {
            return vec![self.refuse(&from, digest, self.no_room(bytes))];
        }
        let mut events = self.delete_old();
        // If an earlier upload of it failed, this one may not.
        events.push(Event::BundleOffered { peer: from.peer, digest, platform: platform.clone() });
        if let Some(upload) = self.uploads.get_mut(&digest) {
            if upload.platforms.add(platform) && upload.is_whole() {
                // After its end, which is under way without it.
                self.disk.order(Work::Describe { digest, platforms: upload.platforms.clone() });
            }
            let was_sending = upload.sender == from.connection;
            upload.sources.retain(|source| source.who != from);
            let source = Source { who: from, bytes };
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
        // What was sent before.
        let half = self.halves.remove(&digest).unwrap_or_else(|| {
            self.files += 1;
            Half { bytes: 0, left: Duration::ZERO, file: self.files }
        });
        let source = Source { who: from, bytes };
        self.uploads.insert(digest, Upload::new(source, platform, half, Moment::now()));
        self.charge(digest);
        self.ask(digest);
        events
    }

    /// Asks the first one that has it for what is missing.
    fn ask(&mut self, digest: BundleDigest) {
        let Some(upload) = self.uploads.get_mut(&digest) else { return };
        let Some(source) = upload.sources.front() else { return };
        (upload.sender, upload.bytes) = (source.who.connection, source.bytes);
        if upload.received >= upload.bytes {
            // A longer file isn't this bundle's.
            self.begin_anew(digest);
        }
        let Some(upload) = self.uploads.get_mut(&digest) else { return };
        upload.begin_turn(Moment::now());
        let (to, offset) = (upload.sender, upload.received);
        self.tell(to, &ToApplication::BundleWanted { digest, offset });
    }

    /// Tells an application that what it offered or sent is of no use. Returns what the engine is to know.
    fn refuse(&self, who: &Offerer, digest: BundleDigest, reason: String) -> Event {
        self.tell(who.connection, &ToApplication::BundleRefused { digest, reason: reason.clone() });
        Event::BundleFailed { peer: who.peer, digest, reason }
    }

    fn no_room(&self, bytes: u64) -> String {
        let limit = self.room.limit();
        format!(
            "no room for an executable of {bytes} bytes: the scheduler keeps {limit} bytes of bundles (--bundle-store)"
        )
    }

    /// A piece has come. Returns what the engine is to know.
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
    ) -> Result<Vec<Event>, BadChunk> {
        // A repeat, or one of several sources of which another was asked, or its upload has failed.
        let Some(upload) = self.uploads.get_mut(&digest) else { return Ok(Vec::new()) };
        if upload.sender != from || offset < upload.received || upload.is_whole() {
            return Ok(Vec::new());
        }
        let is_piece = bytes > 0 && bytes == chunk_bytes(offset, upload.bytes);
        if !is_piece || offset > upload.received && !upload.lags || check_chunk(&compressed, bytes).is_err() {
            return Err(BadChunk { digest, offset, bytes, expected: upload.received, total: upload.bytes });
        }
        upload.heard = Moment::now();
        // No overflow: a piece ends within the bundle.
        let end = offset + u64::from(bytes);
        let (is_last, is_next) = (end == upload.bytes, offset == upload.received);
        if !is_next || self.disk.backlog() + bytes as usize > BUNDLE_BACKLOG_BYTES {
            upload.lags = true;
            if is_last {
                self.ask(digest);
            }
            return Ok(Vec::new());
        }
        let mut events = self.make_room(digest, end);
        if !self.room.has(digest, end) {
            events.extend(self.give_up(digest));
            return Ok(events);
        }
        if self.exceeds_share(digest, end) {
            events.extend(self.dismiss_sender(digest));
            return Ok(events);
        }
        let Some(upload) = self.uploads.get_mut(&digest) else { return Ok(events) };
        (upload.received, upload.lags) = (end, false);
        let (file, platforms) = (upload.file, upload.platforms.clone());
        self.charge(digest);
        self.disk.order(Work::Write { digest, file, offset, bytes, compressed });
        if is_last {
            self.disk.order(Work::Finish { digest, file, platforms });
        }
        Ok(events)
    }

    /// Whether what a user sends at a time, bundles that may never be complete, would leave too little room for others. One of
    /// any size may be sent alone.
    fn exceeds_share(&self, digest: BundleDigest, bytes: u64) -> bool {
        let Some(user) = self.uploads.get(&digest).and_then(Upload::user) else { return false };
        let others =
            self.uploads.iter().filter(|(other, upload)| **other != digest && upload.user() == Some(user));
        let others: u64 = others.map(|(_, upload)| upload.received).sum();
        others > 0 && others + bytes > self.room.limit() / SHARE
    }

    /// Who sends a bundle sends too much at a time. Returns what the engine is to know.
    fn dismiss_sender(&mut self, digest: BundleDigest) -> Option<Event> {
        let upload = self.uploads.get_mut(&digest)?;
        let source = upload.sources.pop_front()?;
        if upload.sources.is_empty() {
            self.uploads.remove(&digest);
            self.disk.order(Work::Abandon { digest });
            self.charge(digest);
        }
        self.ask(digest);
        let reason = "other executables of yours that are on their way take all the room that you may have: wait for them";
        Some(self.refuse(&source.who, digest, reason.to_owned()))
    }

    /// There is no room for what is being sent. Returns what the engine is to know.
    fn give_up(&mut self, digest: BundleDigest) -> Vec<Event> {
        let Some(upload) = self.uploads.remove(&digest) else { return Vec::new() };
        self.disk.order(Work::Abandon { digest });
        self.charge(digest);
        let sources = upload.sources.iter();
        sources.map(|source| self.refuse(&source.who, digest, self.no_room(source.bytes))).collect()
    }

    /// The end of an upload. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Outcome {
        loop {
            let waiting = self.uploads.values().filter(|upload| !upload.is_whole());
            let look = waiting.map(|upload| upload.look).min();
            tokio::select! {
                outcome = self.outcomes.recv() => return outcome.expect("the writer lives as long as its orders come"),
                Some(_) = self.downloads.join_next() => self.by_worker.retain(|_, task| !task.is_finished()),
                () = sleep_until(look) => self.end_turns(Moment::now()),
            }
        }
    }

    /// Where nothing, or too little, has come for some time, the next one that has the bundle is asked; the same one again, if
    /// it is the only one.
    fn end_turns(&mut self, now: Moment) {
        let mut over = Vec::new();
        for (&digest, upload) in &mut self.uploads {
            if upload.ends_turn(now) && !upload.sources.is_empty() {
                upload.sources.rotate_left(1);
                // The next one may be in the middle of it, from a turn before.
                upload.lags = true;
                over.push(digest);
            }
        }
        for digest in over {
            debug!(bundle = %digest, "too little comes of a bundle");
            self.ask(digest);
        }
    }

    /// Tells those who wait of an upload's end. Returns what the engine is to know.
    pub(crate) fn uploaded(&mut self, outcome: Outcome) -> Option<Event> {
        match outcome {
            Outcome::Stored { digest } => {
                let upload = self.uploads.remove(&digest)?;
                info!(bundle = %digest, bytes = upload.bytes, "bundle stored");
                let platforms = upload.platforms;
                self.complete.insert(
                    digest,
                    Complete { bytes: upload.bytes, last_used: wall_clock(), platforms: platforms.clone() },
                );
                self.charge(digest);
                for source in upload.sources {
                    self.tell(source.who.connection, &ToApplication::BundleComplete { digest });
                }
                Some(Event::BundleCompleted { digest, platforms })
            }
            Outcome::Failed { digest, file, reason } => self.failed(digest, file, reason),
        }
    }

    /// What was sent is of no use, or can't be kept. If it is one sender's alone, that one is refused; all others may have the
    /// right bytes.
    fn failed(&mut self, digest: BundleDigest, file: u64, reason: String) -> Option<Event> {
        warn!(bundle = %digest, %reason, "bundle refused");
        if self.halves.get(&digest).is_some_and(|half| half.file == file) {
            self.halves.remove(&digest);
            self.charge(digest);
        }
        let upload = self.uploads.get_mut(&digest).filter(|upload| upload.file == file)?;
        let sender = upload.sender;
        let is_next = upload.sources.front().is_some_and(|source| source.who.connection == sender);
        let to_blame = if upload.from_start && is_next { upload.sources.pop_front() } else { None };
        if upload.sources.is_empty() {
            self.uploads.remove(&digest);
        }
        self.begin_anew(digest);
        self.ask(digest);
        to_blame.map(|source| self.refuse(&source.who, digest, reason))
    }

    /// A worker lacks a bundle: it is sent piece by piece, as fast as the worker takes them.
    pub(crate) fn want(&mut self, to: ConnectionId, digest: BundleDigest, offset: u64) {
        let Some(complete) = self.complete.get_mut(&digest) else {
            return send_to_worker(&self.handle, to, &ToWorker::BundleMissing { digest }, Bytes::new());
        };
        complete.last_used = wall_clock();
        let total = complete.bytes;
        self.charge(digest);
        let download = Download {
            handle: self.handle.clone(),
            to,
            digest,
            path: self.directory.join(digest.to_string()),
            offset,
            total,
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
                None => halves.push(digest),
                Some(_) if upload.sender == connection => wanted.push(digest),
                Some(_) => {}
            }
        }
        for digest in wanted {
            self.ask(digest);
        }
        for digest in halves {
            if let Some(Upload { received: bytes, file, .. }) = self.uploads.remove(&digest)
                && bytes > 0
            {
                self.halves.insert(digest, Half { bytes, left: wall_clock(), file });
            }
            self.charge(digest);
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
        self.charge(digest);
    }

    /// Deletes what nobody needs until a bundle of this many bytes fits in: halves that nobody sends, then what was used longest
    /// ago. At last uploads of which nothing comes begin anew.
    fn make_room(&mut self, wanted: BundleDigest, bytes: u64) -> Vec<Event> {
        let mut events = Vec::new();
        while !self.room.has(wanted, bytes)
            && let Some(digest) = self.room.first_spare()
        {
            events.extend(self.delete(digest));
        }
        while !self.room.has(wanted, bytes) && self.interrupt_stalled(wanted) {}
        events
    }

    /// What was sent of another bundle of which nothing comes any more makes room. Returns whether there was one.
    fn interrupt_stalled(&mut self, wanted: BundleDigest) -> bool {
        let now = Moment::now();
        let mut others = self.uploads.iter().filter(|(digest, _)| **digest != wanted);
        let Some((&digest, _)) = others.find(|(_, upload)| upload.is_stalled(now)) else { return false };
        info!(bundle = %digest, "nothing of a bundle came for long, and others need its room");
        self.begin_anew(digest);
        true
    }

    /// Deletes what nobody has needed for long.
    fn delete_old(&mut self) -> Vec<Event> {
        let before = wall_clock().saturating_sub(KEPT);
        let mut events = Vec::new();
        while let Some(digest) = self.room.spare_since(before) {
            events.extend(self.delete(digest));
        }
        events
    }

    /// Deletes what nobody needs. Returns what the engine is to know.
    fn delete(&mut self, digest: BundleDigest) -> Option<Event> {
        let was_complete = self.complete.remove(&digest).is_some();
        self.halves.remove(&digest);
        self.charge(digest);
        if !was_complete {
            self.disk.order(Work::Abandon { digest });
            return None;
        }
        info!(bundle = %digest, "bundle deleted");
        self.disk.order(Work::Remove { digest });
        Some(Event::BundleForgotten { digest })
    }

    /// What was sent of a bundle is of no use.
    fn begin_anew(&mut self, digest: BundleDigest) {
        self.files += 1;
        if let Some(upload) = self.uploads.get_mut(&digest) {
            upload.begin_anew(self.files);
        }
        self.disk.order(Work::Abandon { digest });
        self.charge(digest);
    }

    /// Brings up to date what room a bundle's file takes.
    fn charge(&mut self, digest: BundleDigest) {
        let complete = self.complete.get(&digest).map(|complete| {
            let spare = Spare::Complete(complete.last_used);
            Charge { bytes: complete.bytes, spare: Some(spare).filter(|_| !self.in_use.contains(&digest)) }
        });
        let upload = self.uploads.get(&digest).map(|upload| Charge { bytes: upload.received, spare: None });
        let half = self.halves.get(&digest);
        let half = half.map(|half| Charge { bytes: half.bytes, spare: Some(Spare::Half(half.left)) });
        self.room.set(digest, complete.or(upload).or(half));
    }

    fn tell(&self, to: ConnectionId, head: &ToApplication) {
        // Who has gone asks again when it is back.
        if let Err(error) = self.handle.send(to, Message::new(codec::encode(head), Bytes::new())) {
            debug!(connection = %to, %error, "message about a bundle not sent");
        }
    }
}
