//! Sessions: one start of an application each, with a place for every job that it submitted. The jobs with a key of all starts
//! of an application are one more session, whose sequences are digests of keys.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::SessionId;

use super::events::Peer;
use super::slab::NONE;

/// In a session's table: nothing is known of this job any more.
pub(super) const FORGOTTEN: u32 = NONE;
/// In a session's table: nothing is known of this job any more except that its result was taken.
pub(super) const FORGOTTEN_TAKEN: u32 = NONE - 1;

/// One start of an application, or its jobs with a key.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) application: u32,
    /// What it was started with; none for jobs with a key, which may come from several programs.
    pub(super) program: Option<Program>,
    pub(super) table: Table,
    /// Whether its program has been here, or can't be had.
    pub(super) decided: bool,
    /// Every sequence up to here was accepted or refused, and the application may be told.
    pub(super) accepted: u64,
    /// How many of its jobs are remembered.
    pub(super) jobs: u64,
    /// Whether it ever had a job of its own, and whether it ever brought one with a key.
    pub(super) had_jobs: bool,
    pub(super) brought_keys: bool,
    /// When it was left last, as far as is known: a scheduler that was started after that counts from its start. Of no meaning
    /// while its application is attached for it.
    pub(super) left: Moment,
    /// For how long after that it is to be known what it submitted.
    pub(super) kept: Duration,
    /// From when on nobody would miss it, as it is now.
    pub(super) spare_from: Option<Moment>,
    /// Who was told of the jobs that it wants.
    pub(super) listener: Option<Peer>,
    /// It has ended: its jobs are forgotten as soon as they are terminal.
    pub(super) stopped: bool,
}

/// The program of a session, and its services, which submits name by index.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) bundle: u32,
    pub(super) services: Vec<u32>,
}

/// What became of each sequence: its job, or [`FORGOTTEN`] (refused ones are), or [`FORGOTTEN_TAKEN`].
#[derive(Debug)]
pub(super) enum Table {
    /// Sequences up to `base` never came: a scheduler that lost its store took them, and the session goes on behind them.
    Dense { base: u64, jobs: Vec<u32> },
    /// Sequences that are digests of keys. What isn't here is unknown, or was forgotten.
    Keyed(BTreeMap<u64, u32>),
}

impl Session {
    pub(super) fn new(id: SessionId, application: u32, program: Option<Program>) -> Self {
        let table = match program {
            Some(_) => Table::Dense { base: 0, jobs: Vec::new() },
            None => Table::Keyed(BTreeMap::new()),
        };
        Self {
            id,
            application,
            program,
            table,
            decided: false,
            accepted: 0,
            jobs: 0,
            had_jobs: false,
            brought_keys: false,
            left: Moment::default(),
            kept: Duration::ZERO,
            spare_from: None,
            listener: None,
            stopped: false,
        }
    }

    /// The session may have begun at a scheduler that lost it: nothing up to this sequence is expected any more.
    pub(super) fn begin_behind(&mut self, sequence: u64) {
        if let Table::Dense { base, jobs } = &mut self.table
            && jobs.is_empty()
        {
            *base = sequence;
            self.accepted = sequence;
        }
    }

    /// The last sequence that was submitted.
    pub(super) fn received(&self) -> u64 {
        self.known().end().to_owned()
    }

    /// The sequences that came. Those of keys may be any.
    pub(super) fn known(&self) -> RangeInclusive<u64> {
        match &self.table {
            Table::Dense { base, jobs } => base + 1..=base + jobs.len() as u64,
            Table::Keyed(_) => 0..=u64::MAX,
        }
    }

    /// Takes the next sequence.
    pub(super) fn push(&mut self, entry: u32) {
        self.had_jobs |= is_job(&entry);
        match &mut self.table {
            Table::Dense { jobs, .. } => jobs.push(entry),
            Table::Keyed(_) => unreachable!("jobs with a key come in other sessions"),
        }
    }

    fn entry(&self, sequence: u64) -> Option<u32> {
        match &self.table {
            Table::Dense { base, jobs } => {
                let index = usize::try_from(sequence.checked_sub(*base)?.checked_sub(1)?).ok()?;
                jobs.get(index).copied()
            }
            Table::Keyed(jobs) => jobs.get(&sequence).copied(),
        }
    }

    /// Puts a job's entry into its place.
    pub(super) fn set(&mut self, sequence: u64, entry: u32) {
        match &mut self.table {
            Table::Dense { base, jobs } => jobs[(sequence - *base - 1) as usize] = entry,
            Table::Keyed(jobs) if entry == FORGOTTEN || entry == FORGOTTEN_TAKEN => {
                jobs.remove(&sequence);
            }
            Table::Keyed(jobs) => {
                jobs.insert(sequence, entry);
            }
        }
    }

    /// The job with this sequence, if it is remembered.
    pub(super) fn job(&self, sequence: u64) -> Option<u32> {
        self.entry(sequence).filter(is_job)
    }

    /// Whether this job's result was taken before the job was forgotten.
    pub(super) fn was_taken(&self, sequence: u64) -> bool {
        self.entry(sequence) == Some(FORGOTTEN_TAKEN)
    }

    /// The sequences of these ranges that were submitted. Of keys, those that are remembered or named by themselves.
    pub(super) fn submitted(&self, ranges: &[(u64, u64)]) -> Vec<u64> {
        match &self.table {
            Table::Dense { .. } => {
                let (oldest, newest) = self.known().into_inner();
                ranges.iter().flat_map(|&(first, last)| first.max(oldest)..=last.min(newest)).collect()
            }
            Table::Keyed(jobs) => {
                let named = |&(first, last): &(u64, u64)| -> Vec<u64> {
                    match first == last {
                        true => vec![first],
                        false => jobs.range(first..=last).map(|(&sequence, _)| sequence).collect(),
                    }
                };
                ranges.iter().flat_map(named).collect()
            }
        }
    }

    /// All of its jobs that are remembered.
    pub(super) fn remembered(&self) -> Vec<u32> {
        match &self.table {
            Table::Dense { jobs, .. } => jobs.iter().copied().filter(is_job).collect(),
            Table::Keyed(jobs) => jobs.values().copied().collect(),
        }
    }

    pub(super) fn is_keyed(&self) -> bool {
        self.program.is_none()
    }
}

fn is_job(entry: &u32) -> bool {
    *entry != FORGOTTEN && *entry != FORGOTTEN_TAKEN
}
