//! Where bodies live, and what outlives the scheduler's process: payloads, results, output, and the engine's records.

mod memory;

use bytes::Bytes;
use lrts_core::ids::JobId;
use lrts_core::protocol::progress::BarRecord;

pub(crate) use memory::MemoryStore;

use crate::engine::Record;

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
    /// With [`Record::Submitted`]: the payloads of its jobs, in order.
    Payloads(Vec<Bytes>),
    /// With [`Record::AttemptEnded`].
    Ended(EndedBodies),
}

/// What an attempt brought.
#[derive(Clone, Debug)]
pub(crate) struct EndedBodies {
    pub(crate) output: Bytes,
    pub(crate) stdout: Bytes,
    pub(crate) stderr: Bytes,
    pub(crate) bars: Vec<BarRecord>,
}

/// Called once a batch is committed, on whatever thread commits.
pub(crate) type Done = Box<dyn FnOnce() + Send>;

/// Keeps what the engine orders to be kept.
///
/// One batch is under way at a time: the caller gathers what comes meanwhile into the next, so that a slow disk makes batches
/// larger instead of a queue longer. Reads see what is committed.
pub(crate) trait Store: Send {
    /// Counts the scheduler's starts on this store, from 1.
    fn epoch(&self) -> u64;

    /// Commits a batch for the scheduler of this epoch, all of it or nothing, and calls `done`. Doesn't wait for a disk.
    fn commit(&mut self, epoch: u64, batch: Vec<Entry>, done: Done);

    /// The payload of a job that isn't terminal.
    fn payload(&self, job: JobId) -> Option<Bytes>;

    /// The result of a job that finished, until it is taken.
    fn result(&self, job: JobId) -> Option<Bytes>;

    /// Final bars of the newest attempt that has ended.
    fn bars(&self, job: JobId) -> Vec<BarRecord>;

    /// Stdout and stderr of the newest attempt that has ended.
    fn output(&self, job: JobId) -> Option<(Bytes, Bytes)>;
}
