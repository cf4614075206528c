//! The thread that commits: one batch after the other, and again and again while the disk is full or fails.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::time::Duration;

use lrts_core::clock::Moment;
use redb::{Database, Durability, ReadableDatabase};
use tracing::{info, warn};

use super::apply::{Apply, Changes, CommitError};
use super::cache::Cache;
use super::counts::Counts;
use super::deletions::Behind;
use super::error::is_full;
use super::room::{FullDisk, Room};
use super::segments::Segments;
use super::tables::TableError;
use super::{Done, Entry, Health, tables};

/// How long a disk that is full or fails is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// What the writer, the reader and the event loop share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The database's file.
    pub(super) file: PathBuf,
    /// The directory of segments.
    pub(super) segments: PathBuf,
    /// Whether it outlives the process, so that what is written must be synced.
    lasting: bool,
    /// None while it failed and couldn't be opened again. Whoever uses it holds it shared.
    pub(super) database: RwLock<Option<Database>>,
    /// How often it was opened.
    opened: AtomicU64,
    cache: Mutex<Cache>,
    health: Mutex<Health>,
    pub(super) room: Room,
    closing: Mutex<bool>,
    close: Condvar,
}

/// What the writer does.
pub(super) enum Work {
    /// Commits a batch that counts for so many bytes.
    Commit { batch: Vec<Entry>, bytes: u64, done: Done },
    /// Gives what is free in the database's file back to the disk, which doesn't happen by itself.
    Compact,
}

impl Shared {
    pub(super) fn new(
        file: PathBuf,
        segments: PathBuf,
        lasting: bool,
        database: Database,
        cache: Cache,
    ) -> Self {
        let room = Room::new(&segments);
        Self {
            file,
            segments,
            lasting,
            database: RwLock::new(Some(database)),
            opened: AtomicU64::new(1),
            cache: Mutex::new(cache),
            health: Mutex::new(Health::Good),
            room,
            closing: Mutex::new(false),
            close: Condvar::new(),
        }
    }

    pub(super) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often the database was opened.
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Opens the database again, which one that has failed needs. If that was the one that had been `opened` so many times:
    /// somebody else may have been first.
    pub(super) fn reopen(&self, opened: u64) -> Result<(), redb::Error> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() || self.opened() == opened {
            // Closed first: it is locked.
            *database = None;
            *database = Some(tables::reopen_database(&self.file, self.lasting)?);
            self.opened.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Closes a database that has failed. Whoever needs it next opens it again.
    pub(super) fn close_database(&self) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Makes the database's file as small as it can be. Commits and reads wait meanwhile.
    fn compact(&self) {
        let start = Moment::now();
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = database.as_mut().map(Database::compact) {
            // The next one who needs it opens it again.
            *database = None;
            warn!(%error, "cannot make the database smaller");
        }
        self.room.compacted(start.elapsed());
    }

    /// Nobody waits for a disk that fails from now on.
    pub(super) fn give_up(&self) {
        *self.closing.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.close.notify_all();
    }

    /// Waits before the next try. False if there is to be none.
    pub(super) fn pause(&self) -> bool {
        let closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.close.wait_timeout_while(closing, RETRY, |closing| !*closing);
        !*wait.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// A batch that isn't durable yet.
struct Pending {
    entries: Vec<Entry>,
    bytes: u64,
    done: Done,
}

/// What a commit of unknown outcome was of.
#[derive(Clone, Copy, Debug)]
enum Tried {
    Batch,
    /// So many of the deletions that come first.
    Deletions(usize),
}

/// The writer's own.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) segments: Segments,
    pub(super) counts: Counts,
    /// How many batches were ever committed.
    pub(super) batches: u64,
    /// In order. More than one only while the disk is full.
    pending: VecDeque<Pending>,
    /// Taken out of them, to make room for the rest.
    deletions: Vec<Entry>,
    /// What the rest is of, once deletions were taken out.
    behind: Option<Behind>,
    /// What is to be done once the batch under way is durable.
    changes: Changes,
    /// If it isn't known whether the last try has become durable.
    unsettled: Option<Tried>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, segments: Segments, counts: Counts, batches: u64) -> Self {
        Self {
            shared,
            segments,
            counts,
            batches,
            pending: VecDeque::new(),
            deletions: Vec::new(),
            behind: None,
            changes: Changes::default(),
            unsettled: None,
        }
    }

    /// Commits what comes, until nothing more can come.
    pub(super) fn run(mut self, work: &mpsc::Receiver<Work>) {
        while let Ok(next) = work.recv() {
            self.take_in(next);
            if !self.commit(work) {
                return;
            }
        }
    }

    fn take_in(&mut self, work: Work) {
        match work {
            Work::Commit { batch: mut entries, bytes, done } => {
                if let Some(behind) = &mut self.behind {
                    self.deletions.append(&mut behind.take_deletions(&mut entries));
                }
                self.pending.push_back(Pending { entries, bytes, done });
            }
            Work::Compact => self.shared.compact(),
        }
    }

    /// Commits all that is pending, however long it takes. False if the store closes while the disk fails.
    fn commit(&mut self, work: &mpsc::Receiver<Work>) -> bool {
        while let Some(pending) = self.pending.pop_front() {
            match self.try_batch(&pending.entries) {
                Ok(()) => self.committed(pending),
                Err(error) => {
                    self.pending.push_front(pending);
                    if !self.failed(&error, work) {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn committed(&mut self, Pending { bytes, done, .. }: Pending) {
        if self.pending.is_empty() {
            self.behind = None;
            if std::mem::replace(&mut *self.shared.health(), Health::Good) != Health::Good {
                info!("the state directory can be written to again");
            }
        }
        self.shared.room.write(bytes);
        done();
        self.free();
    }

    /// Waits until another try is worth it. False if there is to be none.
    fn failed(&mut self, error: &CommitError, work: &mpsc::Receiver<Work>) -> bool {
        let message = describe(error);
        let full = is_full_disk(error).then(|| FullDisk::seen(&self.shared.segments));
        let health =
            if full.is_some() { Health::Full(message.clone()) } else { Health::Failing(message.clone()) };
        if std::mem::replace(&mut *self.shared.health(), health) == Health::Good {
            warn!(
                error = message,
                "cannot write to the state directory: nothing is acknowledged until that works again"
            );
        }
        let tried = self.deletions.len();
        if full.is_some() && self.behind.is_none() {
            // What only makes room comes first: the rest may fit then.
            let mut behind = Behind::default();
            for pending in &mut self.pending {
                self.deletions.append(&mut behind.take_deletions(&mut pending.entries));
            }
            self.behind = Some(behind);
            if !self.deletions.is_empty() {
                return true;
            }
        }
        let mut next = Moment::now() + RETRY;
        loop {
            match work.recv_timeout(next.since(Moment::now())) {
                Ok(work) => self.take_in(work),
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => {
                    let worth_it = full.is_none_or(|full| full.has_changed(&self.shared.segments));
                    if worth_it || self.deletions.len() > tried {
                        return true;
                    }
                    next = Moment::now() + RETRY;
                }
            }
        }
    }

    fn try_batch(&mut self, batch: &[Entry]) -> Result<(), CommitError> {
        if self.settle()? {
            return Ok(());
        }
        if !self.deletions.is_empty() {
            let deletions = std::mem::take(&mut self.deletions);
            let written = self.write(&deletions, Tried::Deletions(deletions.len()));
            if let Err(error) = written {
                self.deletions = deletions;
                return Err(error);
            }
            self.free();
        }
        self.write(batch, Tried::Batch)
    }

    /// Finds out what became of the last try, if that isn't known. Whether it has made the first batch durable.
    fn settle(&mut self) -> Result<bool, CommitError> {
        let closed = self.shared.database.read().unwrap_or_else(PoisonError::into_inner).is_none();
        if closed {
            self.shared.reopen(self.shared.opened())?;
        }
        let Some(tried) = self.unsettled else { return Ok(false) };
        let batches = {
            let database = self.shared.database.read().unwrap_or_else(PoisonError::into_inner);
            let Some(database) = &*database else { return Err(redb::Error::DatabaseClosed.into()) };
            let transaction = database.begin_read().map_err(redb::Error::from)?;
            tables::batches(&transaction).map_err(|error| match error {
                TableError::Redb(error) => error,
                TableError::Damaged(damage) => redb::Error::Corrupted(damage.to_string()),
            })?
        };
        self.unsettled = None;
        if batches == self.batches {
            self.undo();
            return Ok(false);
        }
        self.keep();
        match tried {
            // What it has left dead is freed with what follows.
            Tried::Batch => Ok(true),
            Tried::Deletions(count) => {
                self.deletions.drain(..count);
                self.free();
                Ok(false)
            }
        }
    }

    /// Makes these entries durable.
    fn write(&mut self, entries: &[Entry], tried: Tried) -> Result<(), CommitError> {
        let mut committing = false;
        let written = self.write_transaction(entries, &mut committing);
        match &written {
            Ok(()) => self.keep(),
            Err(error) => {
                if committing {
                    self.unsettled = Some(tried);
                } else {
                    self.undo();
                }
                if let CommitError::Database(_) = error {
                    self.shared.close_database();
                }
            }
        }
        written
    }

    fn write_transaction(&mut self, entries: &[Entry], committing: &mut bool) -> Result<(), CommitError> {
        let database = self.shared.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = &*database else { return Err(redb::Error::DatabaseClosed.into()) };
        let mut transaction = database.begin_write().map_err(redb::Error::from)?;
        transaction.set_durability(Durability::Immediate).map_err(redb::Error::from)?;
        let mut apply = Apply::new(&transaction, &mut self.segments, &mut self.counts, &mut self.changes)?;
        for entry in entries {
            apply.entry(entry)?;
        }
        apply.number(self.batches + 1)?;
        drop(apply);
        if self.shared.lasting {
            self.segments.sync()?;
        }
        *committing = true;
        transaction.commit().map_err(redb::Error::from)?;
        Ok(())
    }

    /// The last try is durable.
    fn keep(&mut self) {
        self.batches += 1;
        self.segments.keep();
        self.counts.keep();
        self.changes.apply_to(&mut self.shared.cache());
    }

    /// The last try has left nothing.
    fn undo(&mut self) {
        self.segments.undo();
        self.counts.undo();
        self.changes = Changes::default();
    }

    /// Frees what the last batch has left dead.
    fn free(&mut self) {
        for place in self.changes.freed.drain(..) {
            self.segments.free(place);
        }
    }
}

fn is_full_disk(error: &CommitError) -> bool {
    match error {
        CommitError::Segments(error) | CommitError::Database(redb::Error::Io(error)) => is_full(error),
        CommitError::Database(_) => false,
    }
}

fn describe(error: &CommitError) -> String {
    match error {
        CommitError::Segments(error) | CommitError::Database(redb::Error::Io(error)) => error.to_string(),
        CommitError::Database(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lrts_core::ids::SessionId;

    use super::super::{Bodies, load};
    use super::*;
    use crate::record::{NewJob, Record, Submitted};

    fn batch(first: u64) -> Vec<Entry> {
        let payload = Bytes::from(vec![7; 100_000]);
        let job = NewJob { service: 0, options: 0, payload_bytes: 100_000 };
        let submitted = Submitted {
            session: SessionId(1),
            first,
            options: [].into(),
            jobs: vec![job; 2],
            skipped: Vec::new(),
            keyed: Vec::new(),
        };
        let bodies = Bodies::Payloads(vec![payload; 2]);
        vec![Entry { record: Record::Submitted(submitted), bodies }]
    }

    fn commit(writer: &mut Writer, batch: Vec<Entry>) {
        let (_sender, work) = mpsc::channel();
        writer.take_in(Work::Commit { batch, bytes: 0, done: Box::new(|| {}) });
        assert!(writer.commit(&work) && writer.pending.is_empty());
    }

    /// A commit whose outcome isn't known has succeeded, or has left nothing: either way the batch is there once.
    #[test]
    fn a_commit_of_unknown_outcome_is_found_out() {
        let directory = tempfile::tempdir().unwrap();
        let (file, path) = (directory.path().join("records.redb"), directory.path().join("bodies"));
        let database = tables::open_database(&file, true).unwrap();
        let segments = Segments::open(path.clone(), Vec::new()).unwrap();
        let shared = Arc::new(Shared::new(file.clone(), path.clone(), true, database, Cache::new(0)));
        let mut writer = Writer::new(shared.clone(), segments, Counts::default(), 0);
        let length = || std::fs::metadata(super::super::segments::segment_file(&path, 0)).unwrap().len();

        writer.write_transaction(&batch(1), &mut false).unwrap();
        writer.unsettled = Some(Tried::Batch);
        shared.close_database();
        commit(&mut writer, batch(1));
        assert_eq!((writer.batches, length()), (1, 200_008), "it was there");

        writer.segments.append(&super::super::body::Body::whole([Bytes::from_static(b"torn")])).unwrap();
        writer.unsettled = Some(Tried::Batch);
        shared.close_database();
        commit(&mut writer, batch(3));
        assert_eq!((writer.batches, length()), (2, 200_008), "it has left nothing and was made again");

        drop(writer);
        let database = shared.database.write().unwrap().take().unwrap();
        let content = load::load(&file, &database).unwrap();
        assert_eq!((content.loaded.submits.len(), content.places.len(), content.batches), (2, 2, 2));
    }
}
