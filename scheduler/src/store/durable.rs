//! The store on a disk: opens it, and stands between the event loop and the threads that wait for the disk.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use bytes::Bytes;
use lrts_core::ids::{JobId, random_u64};
use lrts_core::protocol::codec;
use redb::Database;
use tokio::sync::oneshot;

use super::body::{BodyKey, Kind};
use super::cache::{CACHE_BYTES, Cache};
use super::error::StoreError;
use super::segments::Segments;
use super::tables::{self, TableError, Tables};
use super::writer::{Shared, Work, Writer};
use super::{Done, Entry, Fetched, Health, ReadError, ResultBodies, StartBodies, Store};
use crate::record::Loaded;

/// Bytes that an entry takes beside its bodies, for what is to be kept free.
const ENTRY_BYTES: u64 = 512;

/// The database's file.
const DATABASE: &str = "records.redb";

/// The database before it is whole.
const NEW_DATABASE: &str = "records.redb.part";

/// What the reading thread does.
type Read = Box<dyn FnOnce(&Shared) + Send>;

/// A store in a directory, for one scheduler at a time.
#[derive(Debug)]
pub(crate) struct DurableStore {
    epoch: u64,
    identity: u64,
    loaded: Loaded,
    shared: Arc<Shared>,
    /// None once it is closed.
    work: Option<mpsc::Sender<Work>>,
    reads: Option<mpsc::Sender<Read>>,
    threads: Vec<JoinHandle<()>>,
}

impl DurableStore {
    /// Opens the store in this directory, which is made if need be. Waits for the disk.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. Whatever it is, nothing that was kept is lost by it.
    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        Self::open_as(directory, true)
    }

    /// Like [`DurableStore::open`], in a directory that ends with the process: what is written is not waited for to be on the
    /// disk itself. It takes less memory than jobs and bodies would.
    pub(crate) fn open_temporary(directory: &Path) -> Result<Self, StoreError> {
        Self::open_as(directory, false)
    }

    /// Whether there is a store in this directory.
    ///
    /// # Errors
    ///
    /// If the system doesn't say.
    pub(crate) fn is_in(directory: &Path) -> io::Result<bool> {
        match fs::metadata(directory.join(DATABASE)) {
            Ok(file) => Ok(file.len() > 0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn open_as(directory: &Path, lasting: bool) -> Result<Self, StoreError> {
        let failed = |source| StoreError::from_io(directory, source);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let file = directory.join(DATABASE);
        let new = !Self::is_in(directory).map_err(failed)?;
        // A new one is made under another name: a first start that is cut short, or finds no room, leaves nothing that the
        // next one takes for a database.
        let path = if new { directory.join(NEW_DATABASE) } else { file.clone() };
        if new
            && let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(StoreError::from_io(&path, error));
        }
        let database =
            tables::open_database(&path, lasting).map_err(|error| StoreError::from_redb(&file, error))?;
        let (epoch, identity) = begin_epoch(&database).map_err(|error| match error {
            TableError::Redb(error) => StoreError::from_redb(&file, error),
            TableError::Damaged(damage) => StoreError::Damaged(damage),
        })?;
        if new {
            fs::rename(&path, &file).map_err(failed)?;
        }
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
        let content = super::load::load(&file, &database)?;
        let segments = directory.join("bodies");
        let writer_segments = Segments::open(segments.clone(), content.places)?;
        let shared = Arc::new(Shared::new(file, segments, lasting, database, Cache::new(CACHE_BYTES)));

        let (work, batches) = mpsc::channel();
        let writer = Writer::new(shared.clone(), writer_segments, content.counts, content.batches);
        let (reads, wanted) = mpsc::channel::<Read>();
        let reader = shared.clone();
        let read = move || wanted.into_iter().for_each(|read| read(&reader));
        let threads = vec![
            thread("store-writer", move || writer.run(&batches)).map_err(failed)?,
            thread("store-reader", read).map_err(failed)?,
        ];
        let (work, reads) = (Some(work), Some(reads));
        Ok(Self { epoch, identity, loaded: content.loaded, shared, work, reads, threads })
    }

    /// How often the database was opened.
    #[cfg(test)]
    pub(super) fn opened(&self) -> u64 {
        self.shared.opened()
    }

    /// Answers from memory if `cached` can, otherwise reads.
    fn fetch<T: Send + 'static>(
        &self,
        cached: impl FnOnce(&Cache) -> Option<T>,
        read: impl Fn(&Shared) -> Result<T, ReadError> + Send + 'static,
    ) -> Fetched<T> {
        if let Some(found) = cached(&self.shared.cache()) {
            return Fetched::Now(Ok(found));
        }
        let (sender, receiver) = oneshot::channel();
        let read = move |shared: &Shared| {
            // Who asked may have gone meanwhile.
            if !sender.is_closed() {
                let _ = sender.send(shared.read(read));
            }
        };
        if let Some(reads) = &self.reads {
            // Without a reader the receiver hears of it.
            let _ = reads.send(Box::new(read));
        }
        Fetched::Later(receiver)
    }
}

/// Counts a start; the first one gives the store its number.
fn begin_epoch(database: &Database) -> Result<(u64, u64), TableError> {
    let transaction = database.begin_write().map_err(redb::Error::from)?;
    let mut tables = Tables::open(&transaction)?;
    let epoch = tables.number(tables::EPOCH)?.unwrap_or(0) + 1;
    let identity = tables.number(tables::IDENTITY)?.unwrap_or_else(random_u64);
    tables.set_number(tables::EPOCH, epoch)?;
    tables.set_number(tables::IDENTITY, identity)?;
    drop(tables);
    transaction.commit().map_err(redb::Error::from)?;
    Ok((epoch, identity))
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run)
}

impl Store for DurableStore {
    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn identity(&self) -> u64 {
        self.identity
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        Ok(std::mem::take(&mut self.loaded))
    }

    fn commit(&mut self, epoch: u64, batch: Vec<Entry>, done: Done) {
        debug_assert_eq!(epoch, self.epoch, "only the scheduler that has opened the store writes to it");
        let bytes = batch.iter().map(|entry| entry.bodies.bytes() + ENTRY_BYTES).sum();
        self.shared.room.hand_over(bytes);
        if let Some(work) = &self.work {
            // A writer that is gone has given up: what isn't durable isn't acknowledged.
            let _ = work.send(Work::Commit { batch, bytes, done });
        }
    }

    fn payload(&self, job: JobId, checkpoint: Option<u32>) -> Fetched<StartBodies> {
        let cached = |cache: &Cache| {
            let payload = cache.payload(job)?;
            let checkpoint = match checkpoint {
                Some(attempt) => Some(cache.whole(BodyKey::checkpoint(job, attempt))?),
                None => None,
            };
            Some(StartBodies { payload, checkpoint })
        };
        self.fetch(cached, move |shared| shared.read_start(job, checkpoint))
    }

    fn result(&self, job: JobId) -> Fetched<ResultBodies> {
        let cached = |cache: &Cache| {
            let output = cache.whole(BodyKey::new(Kind::Result, job))?;
            let bars = codec::decode_local(&cache.whole(BodyKey::new(Kind::Bars, job))?).ok()?;
            Some(ResultBodies { output, bars })
        };
        self.fetch(cached, move |shared| shared.read_result(job))
    }

    fn output(&self, job: JobId) -> Fetched<(Bytes, Bytes)> {
        self.fetch(|_| None, move |shared| shared.read_output(job))
    }

    fn health(&self) -> Health {
        if self.threads.iter().any(JoinHandle::is_finished) {
            return Health::Failing(
                "a thread of the store has ended, which is a bug: the log says why".to_owned(),
            );
        }
        self.shared.health().clone()
    }

    fn refuses(&self, bytes: u64) -> Option<String> {
        let refusal = self.shared.room.refuses(bytes)?;
        if let Some(work) = self.work.as_ref().filter(|_| self.shared.room.may_compact()) {
            // A writer that is gone has given up.
            let _ = work.send(Work::Compact);
        }
        Some(refusal)
    }

    fn close(self: Box<Self>) {
        drop(self);
    }
}

impl Drop for DurableStore {
    fn drop(&mut self) {
        self.shared.give_up();
        self.work = None;
        self.reads = None;
        for thread in self.threads.drain(..) {
            // One that has panicked has said so.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering::Relaxed;
    use std::time::Duration;

    use lrts_core::ids::SessionId;

    use super::super::{Bodies, Damage};
    use super::*;
    use crate::record::{NewJob, Record, Submitted};

    /// A submit of one job with a payload that no memory is kept for.
    fn submit(first: u64) -> Vec<Entry> {
        let payload = Bytes::from(vec![first as u8; 300_000]);
        let submitted = Submitted {
            session: SessionId(1),
            first,
            options: [].into(),
            jobs: vec![NewJob { service: 0, options: 0, payload_bytes: 300_000 }],
            skipped: Vec::new(),
            keyed: Vec::new(),
        };
        vec![Entry { record: Record::Submitted(submitted), bodies: Bodies::Payloads(vec![payload]) }]
    }

    #[test]
    fn a_read_that_panics_fails_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = DurableStore::open(directory.path()).unwrap();
        let (sender, done) = mpsc::channel();
        store.commit(1, submit(1), Box::new(move || sender.send(()).unwrap()));
        done.recv_timeout(Duration::from_secs(60)).unwrap();
        let read = |times| {
            let panics = AtomicU32::new(times);
            let read = move |shared: &Shared| {
                if panics.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                    let _poisoned = shared.database.write().unwrap();
                    panic!("as the database does over what it doesn't expect");
                }
                shared.read_start(SessionId(1).job(1), None)
            };
            match store.fetch(|_| None, read) {
                Fetched::Later(read) => read.blocking_recv().unwrap(),
                Fetched::Now(_) => panic!("it isn't in memory"),
            }
        };
        assert_eq!(read(1).unwrap().payload.len(), 300_000, "the database is opened again");
        let error = read(2).unwrap_err();
        assert!(matches!(error, ReadError::Damaged(Damage::Database { .. })), "{error}");
        assert_eq!(read(0).unwrap().payload.len(), 300_000, "the thread lives on");
        assert_eq!(store.health(), Health::Good);
    }

    #[test]
    fn a_disk_that_hangs_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = DurableStore::open(directory.path()).unwrap();
        let (sender, done) = mpsc::channel();
        let told = |number| {
            let sender = sender.clone();
            move || sender.send(number).unwrap()
        };
        store.commit(1, submit(1), Box::new(told(1)));
        assert_eq!(done.recv_timeout(Duration::from_secs(60)), Ok(1));

        // What both threads need before they touch the disk.
        let shared = store.shared.clone();
        let hanging = shared.database.write().unwrap();
        store.commit(1, submit(2), Box::new(told(2)));
        let Fetched::Later(mut payload) = store.payload(SessionId(1).job(1), None) else {
            panic!("it isn't in memory")
        };
        assert_eq!((store.health(), store.refuses(1)), (Health::Good, None));
        assert!(payload.try_recv().is_err() && done.try_recv().is_err());
        drop(hanging);

        assert_eq!(payload.blocking_recv().unwrap().unwrap().payload, vec![1; 300_000]);
        assert_eq!(done.recv_timeout(Duration::from_secs(60)), Ok(2));
    }
}
