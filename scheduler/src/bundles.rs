//! Programs that applications ship: taken in once, kept as files by digest, handed out to workers.
//!
//! A file is written as `DIGEST.NUMBER.part`, continued where it ended, verified, synced, then renamed. One thread writes, another one
//! verifies, each handing out is a task that reads a piece only when the worker has room for it: no bundle is ever in memory as a whole,
//! and the event loop never waits for a disk.
//!
//! Several applications may have the same program. Whether what one sends is right shows at the end only, and how fast it is says
//! nothing of it: an honest one may be slow, and one that sends something else, or nothing, must not be in the way of the others. So
//! they race (see `receive.rs`): each that is asked writes a file of its own, whoever is complete first ends the upload for all.

mod disk;
mod download;
mod receive;
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
use lrts_core::clock::{Moment, sleep_until, wall_clock};
use lrts_core::ids::{BundleDigest, UserName};
use lrts_core::limits::BUNDLE_BYTES;
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
use self::download::{Download, Unreadable, send_to_worker};
use self::room::{Charge, FileId, Need, Room, Spare};
pub(crate) use self::upload::Offerer;
use self::upload::{Half, Source, Upload};
use crate::engine::{Event, Platforms};

/// How long a bundle that nobody needs is kept, if there is room, and half of one that nobody goes on with.
const KEPT: Duration = Duration::from_secs(24 * 3_600);

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
        number: u64,
    },
    /// What was sent of it as this file, see [`upload::Part::number`], is of no use. The file is gone.
    Failed {
        digest: BundleDigest,
        number: u64,
        reason: String,
    },
    /// What was sent of it as this file can't be kept while the disk fails. The file is gone.
    DiskFailed {
        digest: BundleDigest,
        number: u64,
        error: io::Error,
    },
    /// One that is here can't be read any more.
    Unreadable(Unreadable),
    /// None is there yet: somebody is to be asked.
    Due,
}

/// The bundle store.
pub(crate) struct Bundles {
    directory: PathBuf,
    handle: ServerHandle,
    complete: BTreeMap<BundleDigest, Complete>,
    in_use: BTreeSet<BundleDigest>,
    uploads: BTreeMap<BundleDigest, Upload>,
    /// What was sent by applications that have left, of each bundle and user the longest. Whose it was isn't known after a restart.
    halves: BTreeMap<(BundleDigest, Option<UserName>), Half>,
    /// What each connected application has offered last: if that is lost later, it is asked for it again.
    offers: BTreeMap<ConnectionId, Offer>,
    room: Room,
    /// Numbers files that are begun.
    files: u64,
    /// When it is looked whether there is room for senders that wait for some. None if none does.
    next_look: Option<Moment>,
    disk: Disk,
    /// When the disk failed last.
    disk_failed: Option<Moment>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
    downloads: JoinSet<Result<(), Unreadable>>,
    by_worker: BTreeMap<(ConnectionId, BundleDigest), AbortHandle>,
    readers: Arc<Semaphore>,
}

/// An application has a bundle.
#[derive(Clone, Debug)]
struct Offer {
    from: Offerer,
    digest: BundleDigest,
    bytes: u64,
    platform: Platform,
}

/// A bundle that is here.
#[derive(Debug)]
struct Complete {
    bytes: u64,
    /// By the wall clock, since it outlives the process.
    last_used: Duration,
    /// What it was built for.
    platforms: Platforms,
}

impl Bundles {
    /// Opens the store in this directory, which is made if need be.
    ///
    /// # Errors
    ///
    /// If it can't be made or read, or the threads that write can't be started.
    pub(crate) fn open(directory: PathBuf, limit: u64, handle: ServerHandle) -> io::Result<Self> {
        private_dir::make(&directory)?;
        let (complete, halves) = scan(&directory)?;
        let halves: BTreeMap<_, _> =
            halves.into_iter().map(|(digest, half)| ((digest, None), half)).collect();
        let (disk, outcomes) = Disk::start(directory.clone())?;
        let files = halves.values().map(|half| half.number).max().unwrap_or(0);
        let mut bundles = Self {
            directory,
            handle,
            complete,
            in_use: BTreeSet::new(),
            uploads: BTreeMap::new(),
            halves,
            offers: BTreeMap::new(),
            room: Room::new(limit),
            files,
            next_look: None,
            disk,
            disk_failed: None,
            outcomes,
            downloads: JoinSet::new(),
            by_worker: BTreeMap::new(),
            readers: Arc::new(Semaphore::new(READERS)),
        };
        for digest in bundles.complete.keys().copied().collect::<Vec<_>>() {
            bundles.charge(digest);
        }
        for (&(digest, _), half) in &bundles.halves {
            bundles.room.set(FileId::Part(digest, half.number), Some(half.charge()));
        }
        Ok(bundles)
    }

    /// What is here from the start, for the engine.
    pub(crate) fn complete_already(&self) -> Vec<Event> {
        let completed = |(&digest, complete): (&BundleDigest, &Complete)| Event::BundleCompleted {
            digest,
            bytes: complete.bytes,
            platforms: complete.platforms.clone(),
        };
        self.complete.iter().map(completed).collect()
    }

    /// An application has a bundle: it is asked for what is missing. Returns what the engine is to know.
    pub(crate) fn offer(
        &mut self,
        from: Offerer,
        digest: BundleDigest,
        bytes: u64,
        platform: Platform,
    ) -> Vec<Event> {
        let offer = Offer { from: from.clone(), digest, bytes, platform: platform.clone() };
        self.offers.insert(from.connection, offer);
        if let Some(complete) = self.complete.get_mut(&digest) {
            complete.last_used = wall_clock();
            complete.platforms.add(platform);
            let (bytes, platforms) = (complete.bytes, complete.platforms.clone());
            self.charge(digest);
            self.tell(from.connection, &ToApplication::BundleComplete { digest });
            return vec![Event::BundleCompleted { digest, bytes, platforms }];
        }
        if bytes == 0 || bytes > BUNDLE_BYTES {
            let reason = format!("an executable of {bytes} bytes: 1 to {BUNDLE_BYTES} are allowed");
            return vec![self.refuse(&from, digest, reason)];
        }
        if self.room.is_too_small_for(bytes) {
            return vec![self.refuse(&from, digest, self.no_room(bytes))];
        }
        let mut events = self.delete_old();
        // If an earlier upload of it failed, this one may not.
        events.push(Event::BundleOffered { peer: from.peer, digest, bytes, platform: platform.clone() });
        let upload = self.uploads.entry(digest).or_insert_with(|| Upload::new(Moment::now()));
        upload.platforms.add(platform);
        // No honest one repeats itself on one connection.
        if !upload.has(from.connection) {
            upload.add(from, bytes);
        }
        self.ask_unless_sent(digest);
        events
    }

    /// Tells an application that what it offered or sent is of no use. Returns what the engine is to know.
    pub(crate) fn refuse(&self, who: &Offerer, digest: BundleDigest, reason: String) -> Event {
        self.tell(who.connection, &ToApplication::BundleRefused { digest, reason: reason.clone() });
        Event::BundleFailed { peer: who.peer, digest, reason }
    }

    fn no_room(&self, bytes: u64) -> String {
        let limit = self.room.limit();
        format!(
            "no room for an executable of {bytes} bytes: the scheduler keeps {limit} bytes of bundles (--bundle-store)"
        )
    }

    /// The end of an upload, or what is to be done about one. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Outcome {
        loop {
            let due = self.next_due();
            tokio::select! {
                outcome = self.outcomes.recv() => return outcome.expect("the writer lives as long as its orders come"),
                Some(ended) = self.downloads.join_next() => {
                    self.by_worker.retain(|_, task| !task.is_finished());
                    if let Ok(Err(unreadable)) = ended {
                        return Outcome::Unreadable(unreadable);
                    }
                }
                () = sleep_until(due) => return Outcome::Due,
            }
        }
    }

    /// Tells those who wait of an upload's end. Returns what the engine is to know.
    pub(crate) fn uploaded(&mut self, outcome: Outcome) -> Vec<Event> {
        match outcome {
            Outcome::Stored { digest, number } => self.stored(digest, number).into_iter().collect(),
            Outcome::Failed { digest, number, reason } => {
                self.failed(digest, number, reason).into_iter().collect()
            }
            Outcome::DiskFailed { digest, number, error } => self.could_not_write(digest, number, &error),
            Outcome::Unreadable(unreadable) => self.could_not_read(&unreadable),
            Outcome::Due => self.look(Moment::now()),
        }
    }

    /// Whoever was first has sent it for all.
    fn stored(&mut self, digest: BundleDigest, number: u64) -> Option<Event> {
        // Otherwise another one was first.
        let bytes = self.uploads.get_mut(&digest)?.sender_of(number)?.bytes;
        let Upload { sources, platforms, .. } = self.uploads.remove(&digest)?;
        info!(bundle = %digest, bytes, "bundle stored");
        for Source { who, part, .. } in sources {
            if let Some(part) = part {
                self.abandon(digest, part.number);
            }
            self.tell(who.connection, &ToApplication::BundleComplete { digest });
        }
        for (key, number) in self.halves_of(digest) {
            self.halves.remove(&key);
            self.abandon(digest, number);
        }
        self.complete
            .insert(digest, Complete { bytes, last_used: wall_clock(), platforms: platforms.clone() });
        self.charge(digest);
        Some(Event::BundleCompleted { digest, bytes, platforms })
    }

    /// What was sent is of no use. If it is one sender's alone, that one is refused, and nobody else.
    fn failed(&mut self, digest: BundleDigest, number: u64, reason: String) -> Option<Event> {
        // Its sender is told. What any peer can bring about as often as it likes fills no log.
        debug!(bundle = %digest, %reason, "bundle refused");
        self.abandon(digest, number);
        self.forget_half(digest, number);
        let source = self.uploads.get_mut(&digest)?.sender_of(number)?;
        let is_to_blame = source.part.as_ref().is_some_and(|part| part.from_start);
        let (connection, is_gone) = (source.who.connection, source.is_gone);
        if !is_to_blame && !is_gone {
            // What it was given to continue may have been wrong.
            self.begin_anew(digest, number);
            self.ask_again(digest, connection);
            return None;
        }
        let source = self.remove_source(digest, connection)?;
        self.ask_unless_sent(digest);
        (!is_gone).then(|| self.refuse(&source.who, digest, reason))
    }

    /// The disk is full, or failed otherwise. Nobody is to blame, and somebody may mend it: what was sent is asked for again, once
    /// in a while.
    fn could_not_write(&mut self, digest: BundleDigest, number: u64, error: &io::Error) -> Vec<Event> {
        let now = Moment::now();
        if self.is_disk_failing(now) {
            debug!(bundle = %digest, %error, "bundle not written");
        } else {
            warn!(bundle = %digest, %error, "the disk fails: programs on their way wait");
        }
        self.disk_failed = Some(now);
        self.forget_half(digest, number);
        let sender = self.uploads.get_mut(&digest).and_then(|upload| upload.sender_of(number));
        let Some(&mut Source { who: Offerer { connection, .. }, is_gone, bytes, .. }) = sender else {
            self.abandon(digest, number);
            return Vec::new();
        };
        let was_whole = sender.is_some_and(|source| source.is_whole());
        self.begin_anew(digest, number);
        if is_gone {
            self.drop_source(digest, connection);
        } else if was_whole {
            self.wait(digest, connection, now);
        }
        let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        if is_full { self.free(bytes) } else { Vec::new() }
    }

    /// A bundle that was stored is damaged, or somebody has deleted it: it is as if it had never been here, and whoever has offered it
    /// is asked for it. The worker gives back the attempts that wait for it.
    fn could_not_read(&mut self, Unreadable { digest, to, error }: &Unreadable) -> Vec<Event> {
        send_to_worker(&self.handle, *to, &ToWorker::BundleMissing { digest: *digest }, Bytes::new());
        // Otherwise it was deleted meanwhile, or another worker's turn came first.
        if !self.complete.contains_key(digest) {
            return Vec::new();
        }
        warn!(bundle = %digest, %error, "bundle not readable: whoever has it must send it again");
        let mut events: Vec<_> = self.delete(FileId::Complete(*digest)).into_iter().collect();
        let offers = self.offers.values().filter(|offer| offer.digest == *digest);
        for Offer { from, digest, bytes, platform } in offers.cloned().collect::<Vec<_>>() {
            events.extend(self.offer(from, digest, bytes, platform));
        }
        events
    }

    /// Deletes so much of what nobody needs, as far as there is that.
    fn free(&mut self, mut bytes: u64) -> Vec<Event> {
        let mut events = Vec::new();
        while bytes > 0
            && let Some(spare) = self.room.first_spare()
        {
            bytes = bytes.saturating_sub(self.room.taken_by(spare));
            events.extend(self.delete(spare));
        }
        events
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

    /// A connection has ended. What it was sending waits for the next one that is asked.
    pub(crate) fn left(&mut self, connection: ConnectionId) {
        self.offers.remove(&connection);
        let mut unfinished = Vec::new();
        for (&digest, upload) in &mut self.uploads {
            match upload.from(connection) {
                Some(source) if source.is_whole() => source.is_gone = true,
                Some(_) => unfinished.push(digest),
                None => {}
            }
        }
        for digest in unfinished {
            if let Some(Source { who, part: Some(part), .. }) = self.remove_source(digest, connection) {
                let half = Half { bytes: part.received, left: wall_clock(), number: part.number };
                self.keep_half(digest, who.user, half);
            }
            self.ask_unless_sent(digest);
        }
    }

    /// Of several of a user, the longest is kept. Another user's may be wrong.
    fn keep_half(&mut self, digest: BundleDigest, user: Option<UserName>, half: Half) {
        let key = (digest, user);
        let kept = self.halves.get(&key).map_or(0, |kept| kept.bytes);
        if half.bytes <= kept {
            return self.abandon(digest, half.number);
        }
        self.room.set(FileId::Part(digest, half.number), Some(half.charge()));
        if let Some(shorter) = self.halves.insert(key, half) {
            self.abandon(digest, shorter.number);
        }
    }

    /// What is left of a bundle, by number.
    fn halves_of(&self, digest: BundleDigest) -> Vec<((BundleDigest, Option<UserName>), u64)> {
        let from_first = self.halves.range((digest, None)..);
        let of_it = from_first.take_while(|((other, _), _)| *other == digest);
        of_it.map(|(key, half)| (key.clone(), half.number)).collect()
    }

    /// What was left as this file isn't there any more.
    fn forget_half(&mut self, digest: BundleDigest, number: u64) {
        if let Some((key, _)) = self.halves_of(digest).into_iter().find(|&(_, half)| half == number) {
            self.halves.remove(&key);
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
            if !in_use {
                // For the next scheduler.
                self.disk.order(Work::Touch { digest });
            }
        }
        self.charge(digest);
    }

    /// Deletes what nobody has needed for long.
    fn delete_old(&mut self) -> Vec<Event> {
        let before = wall_clock().saturating_sub(KEPT);
        let mut events = Vec::new();
        while let Some(file) = self.room.spare_since(before) {
            events.extend(self.delete(file));
        }
        events
    }

    /// Deletes what nobody needs. Returns what the engine is to know.
    fn delete(&mut self, file: FileId) -> Option<Event> {
        match file {
            FileId::Part(digest, number) => {
                self.forget_half(digest, number);
                self.abandon(digest, number);
                None
            }
            FileId::Complete(digest) => {
                self.complete.remove(&digest);
                self.charge(digest);
                info!(bundle = %digest, "bundle deleted");
                self.disk.order(Work::Remove { digest });
                Some(Event::BundleForgotten { digest })
            }
        }
    }

    /// Deletes what has come of a bundle as this file.
    fn abandon(&mut self, digest: BundleDigest, number: u64) {
        self.disk.order(Work::Abandon { digest, number });
        self.room.set(FileId::Part(digest, number), None);
    }

    /// Brings up to date what room a bundle takes that is here.
    fn charge(&mut self, digest: BundleDigest) {
        let charge = self.complete.get(&digest).map(|complete| {
            let is_in_use = self.in_use.contains(&digest);
            let spare = Need::Nobody(Spare::Complete(complete.last_used));
            Charge { bytes: complete.bytes, need: if is_in_use { Need::InUse } else { spare } }
        });
        self.room.set(FileId::Complete(digest), charge);
    }

    fn tell(&self, to: ConnectionId, head: &ToApplication) {
        // Who has gone asks again when it is back.
        if let Err(error) = self.handle.send(to, Message::new(codec::encode(head), Bytes::new())) {
            debug!(connection = %to, %error, "message about a bundle not sent");
        }
    }
}
