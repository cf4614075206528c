//! What outlives the scheduler's process: the engine's records, and the bodies (payloads, results, output, checkpoints) that
//! the engine never sees.
//!
//! # Map
//! - [`Store`] is all that the rest of the scheduler knows; [`DurableStore`] keeps its word, and tests have one in memory that means
//!   the same.
//! - `durable` owns the threads: one writes, one reads, so that the event loop never waits for a disk.
//! - `writer` commits batches, and holds on through full and failing disks; `deletions` says what may come first then; `apply`
//!   is what a record does to the tables.
//! - `tables` says which rows there are, `segments` keeps large bodies in files, `body` how bodies are checked.
//! - `load` reads all of it at a start; `reads` and `cache` answer for bodies; `room` watches the disk's free space.

mod apply;
mod body;
mod cache;
mod counts;
mod deletions;
mod durable;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod load;
#[cfg(test)]
mod memory;
mod reads;
mod room;
mod segments;
mod tables;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

use bytes::Bytes;
use lrts_core::ids::JobId;
use lrts_core::protocol::progress::BarRecord;

pub(crate) use durable::DurableStore;
pub(crate) use error::ReadError;
pub use error::{Damage, StoreError};
#[cfg(test)]
pub(crate) use memory::MemoryStore;
pub(crate) use room::FullDisk;

use crate::record::{Loaded, Record};

/// One record and the bodies that go with it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    pub(crate) bodies: Bodies,
}

/// Bodies, which the engine never sees.
#[derive(Clone, Debug)]
pub(crate) enum Bodies {
    /// None.
    Nothing,
    /// With [`Record::Submitted`]: the payloads of its jobs, in order, of skipped ones too.
    Payloads(Vec<Bytes>),
    /// With [`Record::AttemptEnded`].
    Ended(EndedBodies),
    /// With [`Record::Checkpoint`].
    Checkpoint(Bytes),
}

impl Bodies {
    /// How many bytes of the disk they will take, near enough.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = match self {
            Bodies::Nothing => 0,
            Bodies::Payloads(payloads) => payloads.iter().map(Bytes::len).sum(),
            Bodies::Ended(ended) => ended.output.len() + ended.stdout.len() + ended.stderr.len(),
            Bodies::Checkpoint(checkpoint) => checkpoint.len(),
        };
        bytes as u64
    }
}

/// What an attempt brought.
#[derive(Clone, Debug)]
pub(crate) struct EndedBodies {
    pub(crate) output: Bytes,
    pub(crate) stdout: Bytes,
    pub(crate) stderr: Bytes,
    pub(crate) bars: Vec<BarRecord>,
}

/// What an attempt is started with.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct StartBodies {
    pub(crate) payload: Bytes,
    pub(crate) checkpoint: Option<Bytes>,
}

/// What a terminal job's application gets.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct ResultBodies {
    /// Empty if no attempt brought a valid result.
    pub(crate) output: Bytes,
    /// Of the newest attempt that has ended.
    pub(crate) bars: Vec<BarRecord>,
}

/// Called once a batch is durable, on whatever thread commits.
pub(crate) type Done = Box<dyn FnOnce() + Send>;

/// What was asked for, or a promise of it: a read never makes the event loop wait for a disk.
#[derive(Debug)]
pub(crate) enum Fetched<T> {
    /// It was in memory.
    Now(Result<T, ReadError>),
    /// It is being read. An error of the receiver means that the store was closed.
    Later(tokio::sync::oneshot::Receiver<Result<T, ReadError>>),
}

/// Whether commits succeed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Health {
    /// They do.
    Good,
    /// The disk is full, says this error. The batch under way is tried again until there is room.
    Full(String),
    /// The disk fails with this error. The batch under way is tried again until it doesn't.
    Failing(String),
}

/// Keeps what the engine orders to be kept.
///
/// One batch is under way at a time: the caller gathers what comes meanwhile into the next, so that a slow disk makes batches
/// larger instead of a queue longer. While the disk is full further ones may follow, since they may bring deletions, which come
/// first then; each is durable after those before it. Reads see what is committed, so ask only for what `done` was called for.
pub(crate) trait Store: Send {
    /// Counts the scheduler's starts on this store, from 1. Durable before the store is open.
    fn epoch(&self) -> u64;

    /// A random number, made with the store: the same over all starts on it.
    fn identity(&self) -> u64;

    /// All that was there when the store was opened. Asked once, before the first commit.
    ///
    /// Jobs of keyed submits whose session is forgotten come as submits of one job each, of that session and sequence. A
    /// sequence whose keyed job is forgotten comes as skipped.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] if a row isn't what was written.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Commits a batch for the scheduler of this epoch, all of it or nothing, and calls `done`. Never waits for a disk. While
    /// the disk fails the batch stays under way, see [`Store::health`]; if the store is closed then, `done` is never called.
    fn commit(&mut self, epoch: u64, batch: Vec<Entry>, done: Done);

    /// The payload of a job that isn't terminal, and the checkpoint of this attempt of it if it is there still: a start that
    /// comes too late for it begins without.
    fn payload(&self, job: JobId, checkpoint: Option<u32>) -> Fetched<StartBodies>;

    /// The result and final bars of a job of which an attempt has ended, until the result is taken.
    fn result(&self, job: JobId) -> Fetched<ResultBodies>;

    /// Stdout and stderr of the newest attempt that has ended.
    fn output(&self, job: JobId) -> Fetched<(Bytes, Bytes)>;

    /// Whether commits succeed.
    fn health(&self) -> Health;

    /// Why `bytes` more can't be taken in now, if so: the disk would be fuller than a reserve that what was acknowledged
    /// needs (results of running jobs, deletions). `bytes` counts all that wasn't handed to [`Store::commit`] yet.
    fn refuses(&self, bytes: u64) -> Option<String>;

    /// Waits until what is under way is durable; gives it up if the disk fails.
    fn close(self: Box<Self>);
}
