//! The tables of the database and the rows in them. Every row has a checksum behind it.
//!
//! A submit is one row, whatever the number of its jobs; only jobs that have changed since have a row of their own. So a
//! million jobs that wait are a thousand rows, and a start after `kill -9`, for which the database walks its whole file, is
//! quick.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lrts_core::clock::wall_clock;
use lrts_core::ids::{JobId, SessionId};
use lrts_core::limits::SUBMIT_JOBS;
use lrts_core::private_dir::file_options;
use lrts_core::protocol::codec;
use lrts_core::spec::JobOptions;
use redb::backends::FileBackend;
use redb::{
    Database, ReadTransaction, ReadableTable, StorageBackend, Table, TableDefinition, WriteTransaction,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::body::{BodyKey, Kind, seal, unseal};
use super::error::Damage;
use super::segments::Place;
use crate::record::{JobImage, KeyedRecord, LoadedJob, NewJob, Stage, Submitted};

/// Memory that the database uses for pages.
const CACHE_BYTES: usize = 16 << 20;

/// Session and sequence of a job, or of the first job of a submit.
pub(super) type JobKey = (u64, u64);
/// A [`BodyKey`], kinds first so that bodies of a kind are neighbours.
pub(super) type BodyRow = (u8, u64, u64, u32);

type Definition<K> = TableDefinition<'static, K, &'static [u8]>;

pub(super) const META: Definition<&str> = TableDefinition::new("meta");
pub(super) const APPLICATIONS: Definition<&str> = TableDefinition::new("applications");
pub(super) const SESSIONS: Definition<u64> = TableDefinition::new("sessions");
pub(super) const SUBMITS: Definition<JobKey> = TableDefinition::new("submits");
/// Keyed jobs under their own ids.
pub(super) const KEYED: Definition<JobKey> = TableDefinition::new("keyed");
/// Jobs that are not as they were submitted.
pub(super) const JOBS: Definition<JobKey> = TableDefinition::new("jobs");
pub(super) const WORKERS: Definition<u64> = TableDefinition::new("workers");
/// Small bodies, with the checksums that they have anyway.
pub(super) const SMALL: Definition<BodyRow> = TableDefinition::new("small");
/// Where in the segments large bodies are.
pub(super) const LARGE: Definition<BodyRow> = TableDefinition::new("large");

/// The row of [`META`] that counts starts.
pub(super) const EPOCH: &str = "epoch";
/// The row of [`META`] with the store's random number.
pub(super) const IDENTITY: &str = "identity";
/// The row of [`META`] that counts batches: tells whether a commit of unknown outcome has succeeded.
pub(super) const BATCH: &str = "batch";

/// Opens the database, or makes it. All pages are checked, as they are after a kill anyway: a damaged file that is trusted
/// makes the database panic. One that isn't to last is never synced.
pub(super) fn open_database(path: &Path, lasting: bool) -> Result<Database, redb::DatabaseError> {
    open(path, lasting, true)
}

/// Opens a database again that this process has checked before.
pub(super) fn reopen_database(path: &Path, lasting: bool) -> Result<Database, redb::DatabaseError> {
    open(path, lasting, false)
}

fn open(path: &Path, lasting: bool, check: bool) -> Result<Database, redb::DatabaseError> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(check);
    let file = file_options().open(path)?;
    if lasting {
        return builder.create_with_backend(FileBackend::new(file)?);
    }
    builder.create_with_backend(Unsynced(file))
}

/// A file that the system may write when it likes: it ends with the process that has it.
#[derive(Debug)]
struct Unsynced(File);

impl StorageBackend for Unsynced {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

/// All tables, open for writing.
pub(super) struct Tables<'t> {
    pub(super) meta: Table<'t, &'static str, &'static [u8]>,
    pub(super) applications: Table<'t, &'static str, &'static [u8]>,
    pub(super) sessions: Table<'t, u64, &'static [u8]>,
    pub(super) submits: Table<'t, JobKey, &'static [u8]>,
    pub(super) keyed: Table<'t, JobKey, &'static [u8]>,
    pub(super) jobs: Table<'t, JobKey, &'static [u8]>,
    pub(super) workers: Table<'t, u64, &'static [u8]>,
    pub(super) small: Table<'t, BodyRow, &'static [u8]>,
    pub(super) large: Table<'t, BodyRow, &'static [u8]>,
}

impl<'t> Tables<'t> {
    /// Opens them, and makes those that aren't there.
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            meta: transaction.open_table(META)?,
            applications: transaction.open_table(APPLICATIONS)?,
            sessions: transaction.open_table(SESSIONS)?,
            submits: transaction.open_table(SUBMITS)?,
            keyed: transaction.open_table(KEYED)?,
            jobs: transaction.open_table(JOBS)?,
            workers: transaction.open_table(WORKERS)?,
            small: transaction.open_table(SMALL)?,
            large: transaction.open_table(LARGE)?,
        })
    }

    /// A number of [`META`].
    pub(super) fn number(&self, key: &'static str) -> Result<Option<u64>, TableError> {
        let Some(row) = self.meta.get(key)? else { return Ok(None) };
        Ok(Some(unseal_number(key, row.value())?))
    }

    /// Changes a number of [`META`].
    pub(super) fn set_number(&mut self, key: &str, number: u64) -> Result<(), redb::Error> {
        self.meta.insert(key, seal(number.to_le_bytes().to_vec()).as_slice())?;
        Ok(())
    }
}

/// How many batches were ever committed.
pub(super) fn batches(transaction: &ReadTransaction) -> Result<u64, TableError> {
    let meta = transaction.open_table(META).map_err(redb::Error::from)?;
    let Some(row) = meta.get(BATCH)? else { return Ok(0) };
    Ok(unseal_number(BATCH, row.value())?)
}

/// What can be wrong when a table is used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error(transparent)]
    Redb(#[from] redb::Error),
    #[error(transparent)]
    Damaged(#[from] Damage),
}

impl From<redb::StorageError> for TableError {
    fn from(error: redb::StorageError) -> Self {
        Self::Redb(error.into())
    }
}

fn unseal_number(key: &str, row: &[u8]) -> Result<u64, Damage> {
    let bytes = unseal(row).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u64::from_le_bytes).ok_or_else(|| damaged("meta", key))
}

/// That a row isn't what was written.
pub(super) fn damaged(table: &'static str, key: impl ToString) -> Damage {
    Damage::Row { table, key: key.to_string() }
}

/// A row of this value.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    seal(codec::encode(value).into())
}

/// The value of a row.
pub(super) fn decode<T: DeserializeOwned>(
    table: &'static str,
    key: impl ToString,
    row: &[u8],
) -> Result<T, Damage> {
    unseal(row).and_then(|bytes| codec::decode_local(bytes).ok()).ok_or_else(|| damaged(table, key))
}

/// A row of [`SUBMITS`].
pub(super) fn decode_submit(key: JobKey, row: &[u8]) -> Result<SubmitRow, Damage> {
    let row: SubmitRow = decode("submits", job_of(key), row)?;
    if row.is_sound(key) { Ok(row) } else { Err(damaged("submits", job_of(key))) }
}

/// A job as a key of [`JOBS`], [`KEYED`] and [`SUBMITS`].
pub(super) fn job_key(job: JobId) -> JobKey {
    (job.session.0, job.sequence)
}

/// The job of such a key.
pub(super) fn job_of((session, sequence): JobKey) -> JobId {
    SessionId(session).job(sequence)
}

/// All keys of a session.
pub(super) fn session_range(session: SessionId) -> RangeInclusive<JobKey> {
    (session.0, 0)..=(session.0, u64::MAX)
}

impl BodyKey {
    pub(super) fn row(self) -> BodyRow {
        (self.kind as u8, self.job.session.0, self.job.sequence, self.attempt)
    }

    /// All bodies of a kind of a session.
    pub(super) fn session_range(kind: Kind, session: SessionId) -> RangeInclusive<BodyRow> {
        (kind as u8, session.0, 0, 0)..=(kind as u8, session.0, u64::MAX, u32::MAX)
    }

    /// All checkpoints of a job.
    pub(super) fn checkpoints(job: JobId) -> RangeInclusive<BodyRow> {
        BodyKey::checkpoint(job, 0).row()..=BodyKey::checkpoint(job, u32::MAX).row()
    }
}

/// The wall clock as rows have it: milliseconds since 1970.
pub(super) fn stamp() -> u64 {
    u64::try_from(wall_clock().as_millis()).unwrap_or(u64::MAX)
}

/// How long ago a stamp was; nothing if the clock has been set back since.
pub(super) fn age(now: u64, stamp: u64) -> Duration {
    Duration::from_millis(now.saturating_sub(stamp))
}

/// Jobs of a submit that are alike: service, options, bytes of each payload, number of jobs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Run(u16, u16, u32, u32);

/// A row of [`SUBMITS`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct SubmitRow {
    pub(super) stamp: u64,
    options: Arc<[JobOptions]>,
    runs: Vec<Run>,
    skipped: Vec<u64>,
    keyed: Vec<KeyedRecord>,
    /// Present once all of its jobs are forgotten and have no rows of their own any more: when that was, and of neighbouring
    /// jobs each whether their results were taken and how many they are.
    pub(super) forgotten: Option<(u64, Vec<(bool, u32)>)>,
}

impl SubmitRow {
    pub(super) fn new(submitted: &Submitted) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for job in &submitted.jobs {
            match runs.last_mut() {
                Some(run) if (run.0, run.1, run.2) == (job.service, job.options, job.payload_bytes) => {
                    run.3 += 1
                }
                _ => runs.push(Run(job.service, job.options, job.payload_bytes, 1)),
            }
        }
        Self {
            stamp: stamp(),
            options: submitted.options.clone(),
            runs,
            skipped: submitted.skipped.clone(),
            keyed: submitted.keyed.clone(),
            forgotten: None,
        }
    }

    pub(super) fn submitted(&self, key: JobKey) -> Submitted {
        let jobs = self.runs.iter().flat_map(|&Run(service, options, payload_bytes, count)| {
            std::iter::repeat_n(NewJob { service, options, payload_bytes }, count as usize)
        });
        Submitted {
            session: SessionId(key.0),
            first: key.1,
            options: self.options.clone(),
            jobs: jobs.collect(),
            skipped: self.skipped.clone(),
            keyed: self.keyed.clone(),
        }
    }

    /// How many sequences it has.
    pub(super) fn jobs(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.3)).sum()
    }

    /// Whether it is of a submit as they come, so that it may be taken apart into jobs.
    fn is_sound(&self, key: JobKey) -> bool {
        let jobs = self.jobs();
        jobs <= SUBMIT_JOBS as u64 && key.1.checked_add(jobs).is_some()
    }
}

/// A row of [`KEYED`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct KeyedRow {
    pub(super) stamp: u64,
    /// The session whose submit made it.
    pub(super) session: SessionId,
    pub(super) job: NewJob,
    pub(super) options: JobOptions,
    pub(super) record: KeyedRecord,
}

impl KeyedRow {
    pub(super) fn new(submitted: &Submitted, record: &KeyedRecord) -> Option<Self> {
        let index = usize::try_from(record.sequence.checked_sub(submitted.first)?).ok()?;
        let job = *submitted.jobs.get(index)?;
        let options = submitted.options.get(usize::from(job.options))?.clone();
        let session = submitted.session;
        Some(Self { stamp: stamp(), session, job, options, record: record.clone() })
    }

    /// As a submit of its own.
    pub(super) fn submitted(self) -> Submitted {
        Submitted {
            session: self.session,
            first: self.record.sequence,
            options: [self.options].into(),
            jobs: vec![NewJob { options: 0, ..self.job }],
            skipped: Vec::new(),
            keyed: vec![self.record],
        }
    }
}

/// What a row of [`JOBS`] is about, without decoding it: its first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Tag {
    Live = 0,
    Ended = 1,
    Forgotten = 2,
    ForgottenTaken = 3,
}

impl Tag {
    pub(super) fn of(row: &[u8]) -> Option<Self> {
        [Tag::Live, Tag::Ended, Tag::Forgotten, Tag::ForgottenTaken]
            .into_iter()
            .find(|&tag| Some(&(tag as u8)) == row.first())
    }

    pub(super) fn is_forgotten(self) -> bool {
        matches!(self, Tag::Forgotten | Tag::ForgottenTaken)
    }
}

/// Bytes of a job's row before its image: tag and stamp.
const JOB_HEAD: usize = 1 + size_of::<u64>();

/// A row of [`JOBS`]. The image is encoded without the names of its fields: there may be millions of them.
pub(super) fn encode_job(image: &JobImage) -> (Tag, Vec<u8>) {
    let tag = if matches!(image.stage, Stage::Ended { .. }) { Tag::Ended } else { Tag::Live };
    let mut row = job_head(tag);
    rmp_serde::encode::write(&mut row, image).expect("an image has no maps of unknown length");
    (tag, seal(row))
}

/// The row of a job that is forgotten.
pub(super) fn encode_forgotten(taken: bool) -> Vec<u8> {
    seal(job_head(if taken { Tag::ForgottenTaken } else { Tag::Forgotten }))
}

fn job_head(tag: Tag) -> Vec<u8> {
    let mut row = vec![tag as u8];
    row.extend_from_slice(&stamp().to_le_bytes());
    row
}

/// Stamp and content of a row of [`JOBS`].
pub(super) fn decode_job(key: JobKey, row: &[u8]) -> Result<(u64, LoadedJob), Damage> {
    let decoded = unseal(row).and_then(|bytes| {
        let (head, image) = bytes.split_at_checked(JOB_HEAD)?;
        let stamp = u64::from_le_bytes(*head.last_chunk()?);
        let job = match Tag::of(head)? {
            Tag::Live | Tag::Ended => LoadedJob::Known(rmp_serde::from_slice(image).ok()?),
            Tag::Forgotten => LoadedJob::Forgotten { taken: false },
            Tag::ForgottenTaken => LoadedJob::Forgotten { taken: true },
        };
        Some((stamp, job))
    });
    decoded.ok_or_else(|| damaged("jobs", job_of(key)))
}

/// A row of [`LARGE`].
pub(super) fn encode_place(place: Place) -> Vec<u8> {
    seal([place.segment, place.offset, place.bytes].iter().flat_map(|number| number.to_le_bytes()).collect())
}

/// Where a row of [`LARGE`] says that a body is.
pub(super) fn decode_place(key: BodyRow, row: &[u8]) -> Result<Place, Damage> {
    let numbers = unseal(row).filter(|bytes| bytes.len() == 3 * size_of::<u64>()).map(|bytes| {
        let (numbers, _) = bytes.as_chunks();
        [0, 1, 2].map(|index| u64::from_le_bytes(numbers[index]))
    });
    let place = numbers.map(|[segment, offset, bytes]| Place { segment, offset, bytes });
    place.filter(|place| place.is_sound()).ok_or_else(|| damaged("large", format!("{key:?}")))
}

/// The submit that a job came with, where the jobs of all submits are known by the first of each.
pub(super) fn submit_of(
    submits: &impl ReadableTable<JobKey, &'static [u8]>,
    job: JobId,
) -> Result<Option<(JobKey, SubmitRow)>, TableError> {
    let range = (job.session.0, 0)..=job_key(job);
    let Some(found) = submits.range(range)?.next_back() else { return Ok(None) };
    let (key, row) = found?;
    let key = key.value();
    let row = decode_submit(key, row.value())?;
    Ok((job.sequence - key.1 < row.jobs()).then_some((key, row)))
}
