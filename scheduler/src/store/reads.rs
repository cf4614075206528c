//! Bodies from the disk, on the reading thread.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;

use bytes::Bytes;
use lrts_core::ids::JobId;
use lrts_core::protocol::codec;
use redb::{ReadTransaction, ReadableDatabase};

use super::body::{BodyKey, Kind, Layout, split_output, unseal_bytes};
use super::cache::{CACHED_BODY_BYTES, slice};
use super::error::Damage;
use super::segments::{Place, segment_file};
use super::tables::{self, KeyedRow, TableError, Tag};
use super::writer::Shared;
use super::{Health, ReadError, ResultBodies, StartBodies};

/// Where a body is.
#[derive(Clone, PartialEq, Debug)]
enum Found {
    /// Here.
    Small(Bytes),
    Large(Place),
}

/// Where a job's payload is.
#[derive(PartialEq)]
struct FoundPayload {
    key: BodyKey,
    layout: Layout,
    found: Found,
    /// Whether the same id will never mean another payload.
    unique: bool,
}

impl Shared {
    /// Reads, even if the database panics, as it may over what it doesn't expect in its file.
    pub(super) fn read<T>(&self, read: impl Fn(&Self) -> Result<T, ReadError>) -> Result<T, ReadError> {
        let tried = || catch_unwind(AssertUnwindSafe(|| read(self)));
        tried()
            .or_else(|_| {
                // It may have left the database unusable for everybody.
                self.close_database();
                tried()
            })
            .unwrap_or_else(|panic| {
                self.close_database();
                let text = panic.downcast_ref::<&str>().map(ToString::to_string);
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                let source = text.unwrap_or_else(|| "it has panicked".to_owned()).into();
                Err(Damage::Database { file: self.file.clone(), source }.into())
            })
    }

    /// See [`Store::payload`](super::Store::payload).
    pub(super) fn read_start(&self, job: JobId, checkpoint: Option<u32>) -> Result<StartBodies, ReadError> {
        let payload = self.read_payload(job)?;
        let checkpoint = checkpoint.map(|attempt| self.read_whole(BodyKey::checkpoint(job, attempt)));
        Ok(StartBodies { payload, checkpoint: checkpoint.map_or(Ok(None), there)? })
    }

    /// See [`Store::result`](super::Store::result).
    pub(super) fn read_result(&self, job: JobId) -> Result<ResultBodies, ReadError> {
        let output = there(self.read_whole(BodyKey::new(Kind::Result, job)))?;
        let key = BodyKey::new(Kind::Bars, job);
        let bars = there(self.read_whole(key))?;
        if output.is_none() && bars.is_none() {
            return Err(ReadError::Missing);
        }
        let bars = bars.map(|bars| codec::decode_local(&bars).map_err(|_| damaged_row(key))).transpose()?;
        Ok(ResultBodies { output: output.unwrap_or_default(), bars: bars.unwrap_or_default() })
    }

    /// See [`Store::output`](super::Store::output).
    pub(super) fn read_output(&self, job: JobId) -> Result<(Bytes, Bytes), ReadError> {
        let key = BodyKey::new(Kind::Output, job);
        match self.read_whole(key) {
            Ok(body) => Ok(split_output(body).ok_or_else(|| damaged_row(key))?),
            // Nothing is kept of an attempt that has printed nothing.
            Err(ReadError::Missing) if self.look(|transaction| has_ended(transaction, job))? => {
                Ok((Bytes::new(), Bytes::new()))
            }
            Err(error) => Err(error),
        }
    }

    fn read_payload(&self, job: JobId) -> Result<Bytes, ReadError> {
        let mut before: Option<FoundPayload> = None;
        loop {
            let payload = self.look(|transaction| find_payload(transaction, job))?;
            let payload = payload.ok_or(ReadError::Missing)?;
            let damage = match &payload.found {
                Found::Small(sealed) => {
                    self.keep(&payload, sealed);
                    return Ok(slice(sealed, &payload.layout, job).ok_or_else(|| damaged_row(payload.key))?);
                }
                Found::Large(place) => {
                    let range = payload.layout.range(job.sequence).ok_or(ReadError::Missing)?;
                    let damage = self.damage(*place, range.start);
                    let read = if place.bytes <= CACHED_BODY_BYTES {
                        self.read_at(*place, 0..place.bytes)?.and_then(|sealed| {
                            self.keep(&payload, &sealed);
                            slice(&sealed, &payload.layout, job)
                        })
                    } else {
                        self.read_at(*place, range)?.and_then(|sealed| unseal_bytes(&sealed))
                    };
                    match read {
                        Some(payload) => return Ok(payload),
                        None => damage,
                    }
                }
            };
            // Unless it was freed under the read.
            if before.as_ref() == Some(&payload) {
                return Err(damage.into());
            }
            before = Some(payload);
        }
    }

    fn keep(&self, payload: &FoundPayload, sealed: &Bytes) {
        if payload.unique {
            self.cache().insert(payload.key, sealed.clone(), Some(payload.layout.clone()));
        }
    }

    /// A body that is checked as a whole.
    fn read_whole(&self, key: BodyKey) -> Result<Bytes, ReadError> {
        let mut before = None;
        loop {
            let found = self.look(|transaction| find(transaction, key))?.ok_or(ReadError::Missing)?;
            match &found {
                Found::Small(sealed) => return Ok(unseal_bytes(sealed).ok_or_else(|| damaged_row(key))?),
                Found::Large(place) => {
                    if let Some(sealed) = self.read_at(*place, 0..place.bytes)?
                        && let Some(body) = unseal_bytes(&sealed)
                    {
                        return Ok(body);
                    }
                    // Unless it was freed under the read.
                    if before.as_ref() == Some(&found) {
                        return Err(self.damage(*place, 0).into());
                    }
                }
            }
            before = Some(found);
        }
    }

    /// A part of a body; none if its file has no such part.
    fn read_at(&self, place: Place, part: Range<u64>) -> io::Result<Option<Bytes>> {
        let Ok(bytes) = usize::try_from(part.end - part.start) else { return Ok(None) };
        let read = File::open(segment_file(&self.segments, place.segment)).and_then(|file| {
            let mut sealed = vec![0; bytes];
            file.read_exact_at(&mut sealed, place.offset + part.start)?;
            Ok(sealed)
        });
        match read {
            Ok(sealed) => Ok(Some(sealed.into())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn damage(&self, place: Place, part: u64) -> Damage {
        Damage::Segment { file: segment_file(&self.segments, place.segment), offset: place.offset + part }
    }

    /// Reads the database. One that has failed is opened again; while the writer waits for the disk, so does this.
    fn look<T>(&self, read: impl Fn(&ReadTransaction) -> Result<T, TableError>) -> Result<T, ReadError> {
        let opened = Cell::new(0);
        let look = || {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            opened.set(self.opened());
            let database = database.as_ref().ok_or(redb::Error::DatabaseClosed)?;
            read(&database.begin_read().map_err(redb::Error::from)?)
        };
        let mut result = look();
        while let Err(TableError::Redb(_)) = result {
            result = match self.reopen(opened.get()) {
                Ok(()) => look(),
                // None of what is in it is to blame.
                Err(error) => Err(redb::Error::Io(io::Error::other(error)).into()),
            };
            // While nothing can be written there is nothing wrong with what was, so it comes later.
            if matches!(result, Ok(_) | Err(TableError::Damaged(_)))
                || *self.health() == Health::Good
                || !self.pause()
            {
                break;
            }
        }
        result.map_err(|error| match error {
            TableError::Damaged(damage) => damage.into(),
            TableError::Redb(redb::Error::Io(error)) => error.into(),
            TableError::Redb(error @ redb::Error::Corrupted(_)) => {
                Damage::Database { file: self.file.clone(), source: error.into() }.into()
            }
            TableError::Redb(error) => io::Error::other(error).into(),
        })
    }
}

/// None if there is none, which is as good.
fn there(read: Result<Bytes, ReadError>) -> Result<Option<Bytes>, ReadError> {
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(ReadError::Missing) => Ok(None),
        Err(error) => Err(error),
    }
}

fn damaged_row(key: BodyKey) -> Damage {
    tables::damaged("small", format!("{key:?}"))
}

fn find(transaction: &ReadTransaction, key: BodyKey) -> Result<Option<Found>, TableError> {
    let small = transaction.open_table(tables::SMALL).map_err(redb::Error::from)?;
    if let Some(row) = small.get(key.row())? {
        return Ok(Some(Found::Small(Bytes::copy_from_slice(row.value()))));
    }
    let large = transaction.open_table(tables::LARGE).map_err(redb::Error::from)?;
    let Some(row) = large.get(key.row())? else { return Ok(None) };
    Ok(Some(Found::Large(tables::decode_place(key.row(), row.value())?)))
}

fn find_payload(transaction: &ReadTransaction, job: JobId) -> Result<Option<FoundPayload>, TableError> {
    let submits = transaction.open_table(tables::SUBMITS).map_err(redb::Error::from)?;
    let (first, layout, unique) = if let Some((key, row)) = tables::submit_of(&submits, job)? {
        (tables::job_of(key), Layout::of(&row.submitted(key)), true)
    } else {
        let keyed = transaction.open_table(tables::KEYED).map_err(redb::Error::from)?;
        let Some(row) = keyed.get(tables::job_key(job))? else { return Ok(None) };
        let row: KeyedRow = tables::decode("keyed", job, row.value())?;
        (job, Layout::new(job.sequence, [Some(row.job.payload_bytes)]), false)
    };
    let key = BodyKey::new(Kind::Payloads, first);
    let found = find(transaction, key)?.filter(|_| layout.range(job.sequence).is_some());
    Ok(found.map(|found| FoundPayload { key, layout, found, unique }))
}

/// Whether an attempt of the job has ended, or the job has.
fn has_ended(transaction: &ReadTransaction, job: JobId) -> Result<bool, TableError> {
    let jobs = transaction.open_table(tables::JOBS).map_err(redb::Error::from)?;
    if jobs.get(tables::job_key(job))?.is_some_and(|row| Tag::of(row.value()) == Some(Tag::Ended)) {
        return Ok(true);
    }
    for kind in [Kind::Result, Kind::Bars] {
        if find(transaction, BodyKey::new(kind, job))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}
