//! What a start reads: all rows, and where all large bodies are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lrts_core::ids::{JobId, SessionId, WorkerId};
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable};

use super::counts::Counts;
use super::error::StoreError;
use super::segments::Place;
use super::tables::{self, JobKey, KeyedRow, SubmitRow, TableError};
use crate::record::{KeyedRecord, Loaded, LoadedJob, Stage, Submitted};

/// All that is in a database.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) loaded: Loaded,
    pub(super) counts: Counts,
    /// Of all large bodies.
    pub(super) places: Vec<Place>,
    /// How many batches were ever committed.
    pub(super) batches: u64,
}

/// Reads all of it.
///
/// # Errors
///
/// [`StoreError::Damaged`] with the first row that isn't what was written.
pub(super) fn load(file: &Path, database: &Database) -> Result<Content, StoreError> {
    let transaction = database.begin_read().map_err(|error| StoreError::from_redb(file, error))?;
    read(&transaction).map_err(|error| match error {
        TableError::Redb(error) => StoreError::from_redb(file, error),
        TableError::Damaged(damage) => StoreError::Damaged(damage),
    })
}

fn read(transaction: &ReadTransaction) -> Result<Content, TableError> {
    let now = tables::stamp();
    let mut content = Content { batches: tables::batches(transaction)?, ..Content::default() };
    let Content { loaded, counts, places, .. } = &mut content;
    for row in transaction.open_table(tables::APPLICATIONS).map_err(redb::Error::from)?.iter()? {
        let (key, row) = row?;
        let application = key.value().parse().map_err(|_| tables::damaged("applications", key.value()))?;
        loaded.applications.push((application, tables::decode("applications", key.value(), row.value())?));
    }
    for row in transaction.open_table(tables::SESSIONS).map_err(redb::Error::from)?.iter()? {
        let (key, row) = row?;
        let session = SessionId(key.value());
        loaded.sessions.push((session, tables::decode("sessions", session, row.value())?));
    }
    for row in transaction.open_table(tables::WORKERS).map_err(redb::Error::from)?.iter()? {
        let (key, row) = row?;
        let worker = WorkerId(key.value());
        loaded.workers.push((worker, tables::decode("workers", worker, row.value())?));
    }
    let mut keyed = BTreeMap::new();
    for row in transaction.open_table(tables::KEYED).map_err(redb::Error::from)?.iter()? {
        let (key, row) = row?;
        let job = tables::job_of(key.value());
        keyed.insert(job, tables::decode::<KeyedRow>("keyed", job, row.value())?);
    }
    for row in transaction.open_table(tables::SUBMITS).map_err(redb::Error::from)?.iter()? {
        let (key, row) = row?;
        let key = key.value();
        submit(loaded, counts, now, key, &tables::decode_submit(key, row.value())?);
    }
    place_keyed(loaded, now, keyed);
    let collapsed = !loaded.jobs.is_empty();
    for row in transaction.open_table(tables::JOBS).map_err(redb::Error::from)?.iter()? {
        let (key, row) = row?;
        let job = tables::job_of(key.value());
        let (stamp, content) = tables::decode_job(key.value(), row.value())?;
        count(counts, job, &content);
        loaded.jobs.push((job, tables::age(now, stamp), content));
    }
    if collapsed {
        loaded.jobs.sort_unstable_by_key(|(job, ..)| *job);
    }
    counts.keep();
    for row in transaction.open_table(tables::LARGE).map_err(redb::Error::from)?.iter()? {
        let (key, row) = row?;
        places.push(tables::decode_place(key.value(), row.value())?);
    }
    Ok(content)
}

fn submit(loaded: &mut Loaded, counts: &mut Counts, now: u64, key: JobKey, row: &SubmitRow) {
    let submitted = row.submitted(key);
    let kept =
        (submitted.first..).zip(submitted.kept()).filter(|(_, kept)| *kept).map(|(sequence, _)| sequence);
    match &row.forgotten {
        None => counts.insert(key, row.jobs(), kept.count() as u64),
        Some((stamp, runs)) => {
            let mut taken = (submitted.first..)
                .zip(runs.iter().flat_map(|&(taken, count)| std::iter::repeat_n(taken, count as usize)))
                .peekable();
            for sequence in kept {
                while taken.next_if(|(other, _)| *other < sequence).is_some() {}
                let taken = taken.peek().is_some_and(|(_, taken)| *taken);
                let job = submitted.session.job(sequence);
                loaded.jobs.push((job, tables::age(now, *stamp), LoadedJob::Forgotten { taken }));
            }
        }
    }
    loaded.submits.push((tables::age(now, row.stamp), submitted));
}

/// Brings the submits in line with the keyed jobs that there still are.
fn place_keyed(loaded: &mut Loaded, now: u64, mut keyed: BTreeMap<JobId, KeyedRow>) {
    let mut carried = BTreeSet::new();
    for (_, submitted) in &mut loaded.submits {
        let session = submitted.session;
        skip_forgotten(submitted, |record| {
            let made = |row: &KeyedRow| row.session == session && row.record.sequence == record.sequence;
            let there = keyed.get(&record.job).is_some_and(made);
            if there {
                carried.insert(record.job);
            }
            there
        });
    }
    keyed.retain(|job, _| !carried.contains(job));
    let alone = !keyed.is_empty();
    loaded.submits.extend(keyed.into_values().map(|row| (tables::age(now, row.stamp), row.submitted())));
    if alone {
        loaded.submits.sort_by_key(|(_, submitted)| (submitted.session, submitted.first));
    }
}

/// Makes those of a submit's keyed jobs that aren't there any more skipped sequences.
pub(super) fn skip_forgotten(submitted: &mut Submitted, mut there: impl FnMut(&KeyedRecord) -> bool) {
    let Submitted { skipped, keyed, .. } = submitted;
    keyed.retain(|record| {
        let there = there(record);
        if !there {
            skipped.push(record.sequence);
        }
        there
    });
    skipped.sort_unstable();
}

fn count(counts: &mut Counts, job: JobId, content: &LoadedJob) {
    match content {
        LoadedJob::Known(image) => {
            if matches!(image.stage, Stage::Ended { .. }) {
                counts.ended(job);
            }
        }
        LoadedJob::Forgotten { .. } => {
            counts.ended(job);
            counts.forgotten(job);
        }
    }
}
