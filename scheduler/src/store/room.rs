//! How much the disk still takes, and how much of that is kept back for what was acknowledged already.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lrts_core::clock::Moment;
use nix::sys::statvfs::statvfs;

/// How long an answer of the file system is used.
const FRESH: Duration = Duration::from_millis(50);

/// How long the database is left as large as it is, however short room is: this long, and this many times as long as it took
/// to make it smaller.
const COMPACTION_INTERVAL: Duration = Duration::from_secs(5);
/// See [`COMPACTION_INTERVAL`].
const COMPACTION_SHARE: u32 = 20;

/// Kept back for results of running jobs and for deletions, which copy pages of the database: a twentieth of the file
/// system, within these bounds.
const RESERVE_MIN: u64 = 4 << 20;
/// See [`RESERVE_MIN`].
const RESERVE_MAX: u64 = 64 << 20;

/// How long a full disk may be left alone although its file system doesn't say that there is more room: a quota may have
/// been raised.
const LEFT_ALONE: Duration = Duration::from_secs(30);

/// A disk that was full when it was written to last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FullDisk {
    /// Bytes that were free then, if the file system has said so.
    free: Option<u64>,
    at: Moment,
}

impl FullDisk {
    /// The disk of this directory was full just now.
    pub(crate) fn seen(directory: &Path) -> Self {
        Self { free: free_bytes(directory), at: Moment::now() }
    }

    /// Whether it is worth another try: a try that fails is dear, since the database is repaired after it.
    pub(crate) fn has_changed(&self, directory: &Path) -> bool {
        free_bytes(directory) > self.free || Moment::now().since(self.at) >= LEFT_ALONE
    }
}

fn free_bytes(directory: &Path) -> Option<u64> {
    let found = statvfs(directory).ok()?;
    Some(found.blocks_available().saturating_mul(found.fragment_size()))
}

/// The room on the disk of one directory.
#[derive(Debug)]
pub(super) struct Room {
    directory: PathBuf,
    /// Bytes handed over for being written, and those of them that are written.
    handed: AtomicU64,
    written: AtomicU64,
    seen: Mutex<Option<Seen>>,
    /// When the database may be made smaller next.
    next_compaction: Mutex<Moment>,
}

/// What the file system said.
#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Moment,
    free: u64,
    reserve: u64,
    /// Bytes that were surely written by then.
    written: u64,
}

impl Room {
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            handed: AtomicU64::new(0),
            written: AtomicU64::new(0),
            seen: Mutex::new(None),
            next_compaction: Mutex::default(),
        }
    }

    /// So many bytes are on their way to the disk.
    pub(super) fn hand_over(&self, bytes: u64) {
        self.handed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes came there.
    pub(super) fn write(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Why so many bytes more can't be taken in, if so.
    pub(super) fn refuses(&self, bytes: u64) -> Option<String> {
        let now = Moment::now();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = (*seen).filter(|seen| now.since(seen.at) < FRESH);
        // A file system that doesn't answer refuses nothing: a write will say what is wrong.
        let current = fresh.or_else(|| self.look(now))?;
        *seen = Some(current);
        let under_way = self.handed.load(Ordering::Relaxed).saturating_sub(current.written);
        let needed = current.reserve.saturating_add(under_way).saturating_add(bytes);
        (current.free < needed).then(|| {
            let free = current.free >> 20;
            let reserve = current.reserve >> 20;
            let directory = self.directory.display();
            format!(
                "the scheduler's disk is full: {free} MiB are left at `{directory}`, {reserve} MiB of them for jobs that it \
                 has already"
            )
        })
    }

    /// Whether it is time to make the database smaller, now that room is short.
    pub(super) fn may_compact(&self) -> bool {
        let now = Moment::now();
        let mut next = self.next_compaction.lock().unwrap_or_else(PoisonError::into_inner);
        let due = *next <= now;
        if due {
            *next = now + COMPACTION_INTERVAL;
        }
        due
    }

    /// The database was made smaller, which took so long.
    pub(super) fn compacted(&self, took: Duration) {
        let rest = COMPACTION_INTERVAL.max(took * COMPACTION_SHARE);
        *self.next_compaction.lock().unwrap_or_else(PoisonError::into_inner) = Moment::now() + rest;
    }

    fn look(&self, now: Moment) -> Option<Seen> {
        // Before the file system is asked: what is written meanwhile counts twice rather than not at all.
        let written = self.written.load(Ordering::Relaxed);
        let found = statvfs(&self.directory).ok()?;
        let block = found.fragment_size();
        let total = found.blocks().saturating_mul(block);
        let reserve = (total / 20).clamp(RESERVE_MIN, RESERVE_MAX);
        Some(Seen { at: now, free: found.blocks_available().saturating_mul(block), reserve, written })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_counts_until_it_is_seen_on_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let room = Room::new(directory.path());
        let free = room.look(Moment::now()).unwrap();
        let half = free.free / 2;
        assert_eq!(room.refuses(half), None);
        assert!(room.refuses(free.free).unwrap().contains("disk is full"), "the reserve stays");
        room.hand_over(half);
        assert!(room.refuses(half).is_some());
        room.write(half);
        *room.seen.lock().unwrap() = None;
        assert_eq!(
            room.refuses(half),
            None,
            "it was not really written, so the file system has as much as before"
        );
    }
}
