//! What a record does to the tables, the segments and the cache.

use std::io;

use bytes::Bytes;
use lrts_core::ids::{AttemptId, JobId, SessionId};
use redb::{ReadableTable, WriteTransaction};
use tracing::error;

use super::body::{Body, BodyKey, Kind, Layout};
use super::cache::{CACHED_BODY_BYTES, Cache};
use super::counts::Counts;
use super::segments::{Place, Segments};
use super::tables::{self, BodyRow, JobKey, KeyedRow, SubmitRow, Tables, Tag};
use super::{Bodies, EndedBodies, Entry};
use crate::record::{JobImage, Record, Stage, Submitted};

/// Larger bodies go to segments: they are written once there, and keep the database small.
const SMALL_BODY_BYTES: u64 = 16 << 10;

/// Why a batch isn't committed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommitError {
    /// The segments can't be written; the database is as it was.
    #[error(transparent)]
    Segments(#[from] io::Error),
    /// The database failed and must be opened again.
    #[error(transparent)]
    Database(#[from] redb::Error),
}

impl From<redb::StorageError> for CommitError {
    fn from(error: redb::StorageError) -> Self {
        Self::Database(error.into())
    }
}

/// What is to be done once the batch is durable.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Bodies that nothing refers to any more.
    pub(super) freed: Vec<Place>,
    cached: Vec<CacheChange>,
}

#[derive(Debug)]
enum CacheChange {
    Insert(BodyKey, Bytes, Option<Layout>),
    Remove(BodyKey),
    RemoveSession(SessionId),
}

impl Changes {
    /// Makes the cache follow.
    pub(super) fn apply_to(&mut self, cache: &mut Cache) {
        for change in self.cached.drain(..) {
            match change {
                CacheChange::Insert(key, sealed, layout) => cache.insert(key, sealed, layout),
                CacheChange::Remove(key) => cache.remove(key),
                CacheChange::RemoveSession(session) => cache.remove_session(session),
            }
        }
    }
}

/// One batch on its way into the tables.
pub(super) struct Apply<'a, 't> {
    tables: Tables<'t>,
    segments: &'a mut Segments,
    counts: &'a mut Counts,
    changes: &'a mut Changes,
}

impl<'a, 't> Apply<'a, 't> {
    pub(super) fn new(
        transaction: &'t WriteTransaction,
        segments: &'a mut Segments,
        counts: &'a mut Counts,
        changes: &'a mut Changes,
    ) -> Result<Self, CommitError> {
        Ok(Self { tables: Tables::open(transaction)?, segments, counts, changes })
    }

    /// Numbers the batch.
    pub(super) fn number(&mut self, batch: u64) -> Result<(), CommitError> {
        Ok(self.tables.set_number(tables::BATCH, batch)?)
    }

    pub(super) fn entry(&mut self, entry: &Entry) -> Result<(), CommitError> {
        match &entry.record {
            Record::Application { application, image } => {
                self.tables.applications.insert(application.as_str(), tables::encode(image).as_slice())?;
            }
            Record::ApplicationForgotten { application } => {
                self.tables.applications.remove(application.as_str())?;
            }
            Record::Session { session, image } => {
                self.tables.sessions.insert(session.0, tables::encode(image).as_slice())?;
            }
            Record::SessionForgotten { session } => self.session_forgotten(*session)?,
            Record::Submitted(submitted) => {
                let payloads: &[Bytes] =
                    if let Bodies::Payloads(payloads) = &entry.bodies { payloads } else { &[] };
                self.submitted(submitted, payloads)?;
            }
            Record::Job { job, image } => self.job(*job, image)?,
            Record::JobForgotten { job, taken } => self.job_forgotten(*job, *taken)?,
            Record::AttemptEnded { attempt, valid } => {
                if let Bodies::Ended(ended) = &entry.bodies {
                    self.attempt_ended(*attempt, *valid, ended)?;
                }
            }
            Record::Checkpoint { attempt } => {
                if let Bodies::Checkpoint(checkpoint) = &entry.bodies {
                    let key = BodyKey::checkpoint(attempt.job, attempt.attempt);
                    self.put(key, &Body::whole([checkpoint.clone()]), None)?;
                }
            }
            Record::Worker { worker, image: Some(image) } => {
                self.tables.workers.insert(worker.0, tables::encode(image).as_slice())?;
            }
            Record::Worker { worker, image: None } => {
                self.tables.workers.remove(worker.0)?;
            }
        }
        Ok(())
    }

    fn submitted(&mut self, submitted: &Submitted, payloads: &[Bytes]) -> Result<(), CommitError> {
        let first = submitted.session.job(submitted.first);
        let key = tables::job_key(first);
        if self.tables.submits.get(key)?.is_some() {
            return Ok(());
        }
        self.tables.submits.insert(key, tables::encode(&SubmitRow::new(submitted)).as_slice())?;
        let kept = payloads.iter().zip(submitted.kept()).filter(|(_, kept)| *kept);
        let kept: Vec<Bytes> = kept.map(|(payload, _)| payload.clone()).collect();
        self.counts.insert(key, submitted.jobs.len() as u64, kept.len() as u64);
        if !kept.is_empty() {
            let (key, layout) = (BodyKey::new(Kind::Payloads, first), Layout::of(submitted));
            self.put(key, &Body::payloads(kept), Some(layout))?;
        }
        for record in &submitted.keyed {
            let Some(row) = KeyedRow::new(submitted, record) else { continue };
            self.tables.keyed.insert(tables::job_key(record.job), tables::encode(&row).as_slice())?;
            let index = usize::try_from(record.sequence - submitted.first).unwrap_or(usize::MAX);
            if let Some(payload) = payloads.get(index) {
                let layout = Layout::new(record.job.sequence, [Some(row.job.payload_bytes)]);
                let body = Body::payloads([payload.clone()]);
                self.put(BodyKey::new(Kind::Payloads, record.job), &body, Some(layout))?;
            }
        }
        Ok(())
    }

    fn job(&mut self, job: JobId, image: &JobImage) -> Result<(), CommitError> {
        let key = tables::job_key(job);
        let (tag, row) = tables::encode_job(image);
        let old = self.tables.jobs.insert(key, row.as_slice())?.and_then(|old| Tag::of(old.value()));
        if let Some(forgotten) = old.filter(|old| old.is_forgotten()) {
            // A batch that is tried again after its deletions were made.
            let row = tables::encode_forgotten(forgotten == Tag::ForgottenTaken);
            self.tables.jobs.insert(key, row.as_slice())?;
            return Ok(());
        }
        if tag == Tag::Ended && old != Some(Tag::Ended) {
            self.ended(job)?;
        }
        if matches!(image.stage, Stage::Ended { taken: true, .. }) {
            self.remove(BodyKey::new(Kind::Result, job))?;
            self.remove(BodyKey::new(Kind::Bars, job))?;
        }
        self.keep_checkpoints(job, &image.checkpoints)
    }

    /// Nobody needs the job's payload any more.
    fn ended(&mut self, job: JobId) -> Result<(), CommitError> {
        match self.counts.ended(job) {
            Some(submit) => self.remove(BodyKey::new(Kind::Payloads, tables::job_of(submit))),
            None => Ok(()),
        }
    }

    fn job_forgotten(&mut self, job: JobId, taken: bool) -> Result<(), CommitError> {
        for kind in [Kind::Result, Kind::Bars, Kind::Output] {
            self.remove(BodyKey::new(kind, job))?;
        }
        self.keep_checkpoints(job, &[])?;
        let key = tables::job_key(job);
        if self.tables.keyed.remove(key)?.is_some() {
            self.tables.jobs.remove(key)?;
            return self.remove(BodyKey::new(Kind::Payloads, job));
        }
        let row = tables::encode_forgotten(taken);
        let old = self.tables.jobs.insert(key, row.as_slice())?.and_then(|old| Tag::of(old.value()));
        if old.is_some_and(Tag::is_forgotten) {
            return Ok(());
        }
        if old != Some(Tag::Ended) {
            self.ended(job)?;
        }
        match self.counts.forgotten(job) {
            Some(submit) => self.collapse(submit),
            None => Ok(()),
        }
    }

    /// All jobs of a submit are forgotten: its own row says so from now on, instead of a row for each.
    fn collapse(&mut self, submit: JobKey) -> Result<(), CommitError> {
        let found = self.tables.submits.get(submit)?;
        let mut row = match found.map(|row| tables::decode_submit(submit, row.value())) {
            Some(Ok(row)) if row.forgotten.is_none() => row,
            Some(Err(damage)) => {
                error!(%damage, "cannot forget jobs");
                return Ok(());
            }
            // Of a submit that was forgotten before.
            _ => {
                self.tables.jobs.remove(submit)?;
                return Ok(());
            }
        };
        let range = submit..(submit.0, submit.1.saturating_add(row.jobs()));
        let mut runs: Vec<(bool, u32)> = Vec::new();
        let mut next = submit.1;
        for found in self.tables.jobs.range(range.clone())? {
            let (key, tag) = found?;
            let Some(tag) = Tag::of(tag.value()).filter(|tag| tag.is_forgotten()) else { return Ok(()) };
            let taken = tag == Tag::ForgottenTaken;
            // Sequences between two jobs are of none, so any answer will do for them.
            let sequences = u32::try_from(key.value().1 + 1 - next).unwrap_or(u32::MAX);
            next = key.value().1 + 1;
            match runs.last_mut() {
                Some(run) if run.0 == taken => run.1 += sequences,
                _ => runs.push((taken, sequences)),
            }
        }
        row.forgotten = Some((tables::stamp(), runs));
        self.tables.jobs.retain_in(range, |_, _| false)?;
        self.tables.submits.insert(submit, tables::encode(&row).as_slice())?;
        Ok(())
    }

    fn attempt_ended(
        &mut self,
        attempt: AttemptId,
        valid: bool,
        ended: &EndedBodies,
    ) -> Result<(), CommitError> {
        let key = |kind| BodyKey::new(kind, attempt.job);
        if valid {
            self.put(key(Kind::Result), &Body::whole([ended.output.clone()]), None)?;
        }
        // Bars that are there, even if there are none in them, say that an attempt has ended; a result does too.
        if valid && ended.bars.is_empty() {
            self.remove(key(Kind::Bars))?;
            let none = Body::bars(&ended.bars).joined();
            self.changes.cached.push(CacheChange::Insert(key(Kind::Bars), none, None));
        } else {
            self.put(key(Kind::Bars), &Body::bars(&ended.bars), None)?;
        }
        if ended.stdout.is_empty() && ended.stderr.is_empty() {
            self.remove(key(Kind::Output))
        } else {
            self.put(key(Kind::Output), &Body::output(ended), None)
        }
    }

    fn session_forgotten(&mut self, session: SessionId) -> Result<(), CommitError> {
        self.tables.sessions.remove(session.0)?;
        self.tables.submits.retain_in(tables::session_range(session), |_, _| false)?;
        self.tables.jobs.retain_in(tables::session_range(session), |_, _| false)?;
        for kind in Kind::ALL {
            let range = BodyKey::session_range(kind, session);
            self.tables.small.retain_in(range.clone(), |_, _| false)?;
            let freed = &mut self.changes.freed;
            self.tables.large.retain_in(range, |key, row| {
                freed.extend(read_place(key, row));
                false
            })?;
        }
        self.counts.remove_session(session);
        self.changes.cached.push(CacheChange::RemoveSession(session));
        Ok(())
    }

    /// Removes the job's checkpoints except those of these attempts.
    fn keep_checkpoints(&mut self, job: JobId, attempts: &[u32]) -> Result<(), CommitError> {
        let range = BodyKey::checkpoints(job);
        let mut gone = Vec::new();
        for table in [&self.tables.small, &self.tables.large] {
            for found in table.range(range.clone())? {
                let attempt = found?.0.value().3;
                if !attempts.contains(&attempt) {
                    gone.push(attempt);
                }
            }
        }
        gone.into_iter().try_for_each(|attempt| self.remove(BodyKey::checkpoint(job, attempt)))
    }

    /// Writes a body, in place of what there was by this name.
    fn put(&mut self, key: BodyKey, body: &Body, layout: Option<Layout>) -> Result<(), CommitError> {
        if body.length > SMALL_BODY_BYTES {
            let place = self.segments.append(body)?;
            self.tables.small.remove(key.row())?;
            let old = self.tables.large.insert(key.row(), tables::encode_place(place).as_slice())?;
            self.changes.freed.extend(old.and_then(|row| read_place(key.row(), row.value())));
            if body.length > CACHED_BODY_BYTES {
                self.changes.cached.push(CacheChange::Remove(key));
            } else {
                self.changes.cached.push(CacheChange::Insert(key, body.joined(), layout));
            }
        } else {
            let sealed = body.joined();
            self.tables.small.insert(key.row(), &*sealed)?;
            self.remove_large(key)?;
            self.changes.cached.push(CacheChange::Insert(key, sealed, layout));
        }
        Ok(())
    }

    fn remove(&mut self, key: BodyKey) -> Result<(), CommitError> {
        self.changes.cached.push(CacheChange::Remove(key));
        if self.tables.small.remove(key.row())?.is_some() {
            return Ok(());
        }
        self.remove_large(key)
    }

    fn remove_large(&mut self, key: BodyKey) -> Result<(), CommitError> {
        let old = self.tables.large.remove(key.row())?;
        self.changes.freed.extend(old.and_then(|row| read_place(key.row(), row.value())));
        Ok(())
    }
}

/// Where a row that goes says that its body is. The space of one that is damaged is found at the next start.
fn read_place(key: BodyRow, row: &[u8]) -> Option<Place> {
    tables::decode_place(key, row).inspect_err(|damage| error!(%damage, "cannot free a body")).ok()
}
