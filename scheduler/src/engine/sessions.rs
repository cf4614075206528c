//! Sessions: one start of an application each, with a place for every job that it submitted. The jobs with a key of all starts
//! of an application are one more session, whose sequences are digests of keys.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::SessionId;

use super::bits::Bits;
use super::events::Peer;
use super::jobs::{Delivery, Node};
use super::slab::NONE;

/// In a session's table: nothing is known of this job any more.
pub(super) const FORGOTTEN: u32 = NONE;
/// In a session's table: nothing is known of this job any more except that its result was taken.
pub(super) const FORGOTTEN_TAKEN: u32 = NONE - 1;

/// What a message about a range of jobs looks for. Sessions know who has which mark, so that a message that finds nothing to do
/// costs nothing, however many jobs it names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mark {
    /// Not ended and not being cancelled: a cancel changes it.
    Cancellable,
    /// Ended, with a result that isn't known to have been returned.
    Takable,
    /// Remembered and not taken.
    Listed,
    /// To whoever wants it there is something to say, or it is to be noted: all but those that are wanted already.
    Unwanted,
    /// The same for those who want it urgently.
    NotUrgent,
}

/// Who has which mark, in the order of [`Mark`].
pub(super) type Marks = [bool; 5];

/// Marks of a job that isn't remembered: that is to be said to whoever wants it.
const MARKS_OF_FORGOTTEN: Marks = [false, false, false, true, true];

/// The marks of a job.
pub(super) fn marks_of(node: &Node, is_keyed: bool) -> Marks {
    let Node { delivery, cancelling, .. } = *node;
    let (ended, taken) = (node.is_terminal(), delivery == Delivery::Taken);
    // Whoever asks for a key again gets its result again, so that taking it changes nothing else.
    let is_takable = ended && !taken && !(is_keyed && delivery == Delivery::Unwanted);
    [!ended && !cancelling, is_takable, !taken, delivery != Delivery::Wanted, delivery != Delivery::Urgent]
}

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
    Dense { base: u64, jobs: Vec<u32>, marks: Bits<5> },
    /// Sequences that are digests of keys. What isn't here is unknown, or was forgotten.
    Keyed { jobs: BTreeMap<u64, u32>, marks: Box<[BTreeSet<u64>; 5]> },
}

impl Session {
    pub(super) fn new(id: SessionId, application: u32, program: Option<Program>) -> Self {
        let table = match program {
            Some(_) => Table::Dense { base: 0, jobs: Vec::new(), marks: Bits::new() },
            None => Table::Keyed { jobs: BTreeMap::new(), marks: Box::default() },
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
        if let Table::Dense { base, jobs, .. } = &mut self.table
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
            Table::Dense { base, jobs, .. } => base + 1..=base + jobs.len() as u64,
            Table::Keyed { .. } => 0..=u64::MAX,
        }
    }

    /// Takes the next sequence. If it is a job, its marks are the caller's to set.
    pub(super) fn push(&mut self, entry: u32) {
        self.had_jobs |= is_job(&entry);
        match &mut self.table {
            Table::Dense { jobs, marks, .. } => {
                marks.put(jobs.len(), MARKS_OF_FORGOTTEN);
                jobs.push(entry);
            }
            Table::Keyed { .. } => unreachable!("jobs with a key come in other sessions"),
        }
    }

    fn entry(&self, sequence: u64) -> Option<u32> {
        match &self.table {
            Table::Dense { base, jobs, .. } => {
                let index = usize::try_from(sequence.checked_sub(*base)?.checked_sub(1)?).ok()?;
                jobs.get(index).copied()
            }
            Table::Keyed { jobs, .. } => jobs.get(&sequence).copied(),
        }
    }

    /// Puts a job with a key into its place. Its marks are the caller's to set.
    pub(super) fn insert(&mut self, sequence: u64, job: u32) {
        match &mut self.table {
            Table::Dense { .. } => unreachable!("jobs without a key come in order"),
            Table::Keyed { jobs, .. } => jobs.insert(sequence, job),
        };
    }

    /// A job isn't remembered any more.
    pub(super) fn forget(&mut self, sequence: u64, taken: bool) {
        match &mut self.table {
            Table::Dense { base, jobs, marks } => {
                let index = (sequence - *base - 1) as usize;
                jobs[index] = if taken { FORGOTTEN_TAKEN } else { FORGOTTEN };
                marks.put(index, MARKS_OF_FORGOTTEN);
            }
            Table::Keyed { jobs, marks } => {
                jobs.remove(&sequence);
                marks.iter_mut().for_each(|marked| _ = marked.remove(&sequence));
            }
        }
    }

    /// Notes the marks of a job that is remembered.
    pub(super) fn mark(&mut self, sequence: u64, new: Marks) {
        match &mut self.table {
            Table::Dense { base, marks, .. } => marks.put((sequence - *base - 1) as usize, new),
            Table::Keyed { marks, .. } => {
                for (marked, has) in marks.iter_mut().zip(new) {
                    if has {
                        marked.insert(sequence)
                    } else {
                        marked.remove(&sequence)
                    };
                }
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

    /// The sequences of these ranges with a mark.
    pub(super) fn marked(&self, mark: Mark, ranges: &[(u64, u64)]) -> Vec<u64> {
        let mut found = Vec::new();
        for &(first, last) in ranges {
            let mut from = Some(first);
            while let Some(sequence) = from.and_then(|from| self.next_marked(mark, from, last)) {
                found.push(sequence);
                from = sequence.checked_add(1);
            }
        }
        found
    }

    /// The first sequence of a range with a mark.
    pub(super) fn next_marked(&self, mark: Mark, first: u64, last: u64) -> Option<u64> {
        if first > last {
            return None;
        }
        match &self.table {
            Table::Dense { base, marks, .. } => {
                let from = usize::try_from(first.saturating_sub(base + 1)).ok()?;
                let sequence = base + 1 + marks.next(mark as usize, from)? as u64;
                (sequence <= last).then_some(sequence)
            }
            Table::Keyed { marks, .. } => marks[mark as usize].range(first..=last).next().copied(),
        }
    }

    /// Takes the next sequence out of these ranges of which there is something to say to whoever wants it, or to be noted. Of keys
    /// that aren't remembered, those that are named by themselves.
    pub(super) fn next_to_want(&self, ranges: &mut VecDeque<(u64, u64)>, urgent: bool) -> Option<u64> {
        let mark = if urgent { Mark::NotUrgent } else { Mark::Unwanted };
        while let Some((first, last)) = ranges.pop_front() {
            if first == last && self.is_keyed() && self.job(first).is_none() {
                return Some(first);
            }
            if let Some(sequence) = self.next_marked(mark, first, last) {
                if sequence < last {
                    ranges.push_front((sequence + 1, last));
                }
                return Some(sequence);
            }
        }
        None
    }

    /// Which marks a sequence has.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn marks(&self, sequence: u64) -> Marks {
        match &self.table {
            Table::Dense { base, marks, .. } => marks.get((sequence - base - 1) as usize),
            Table::Keyed { marks, .. } => std::array::from_fn(|mark| marks[mark].contains(&sequence)),
        }
    }

    /// Panics where a job that isn't remembered has a mark that only others have, or a sequence that never came has one.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check_forgotten(&self) {
        let known = self.known();
        for mark in [Mark::Cancellable, Mark::Takable, Mark::Listed, Mark::Unwanted, Mark::NotUrgent] {
            for sequence in self.marked(mark, &[(0, u64::MAX)]) {
                assert!(known.contains(&sequence), "only what came has marks");
                assert!(
                    self.job(sequence).is_some() || !self.is_keyed(),
                    "only keys that are here have marks"
                );
            }
        }
        if !self.is_keyed() {
            for sequence in known.filter(|&sequence| self.job(sequence).is_none()) {
                assert_eq!(self.marks(sequence), MARKS_OF_FORGOTTEN, "whoever wants it is told");
            }
        }
    }

    /// All of its jobs that are remembered.
    pub(super) fn remembered(&self) -> Vec<u32> {
        match &self.table {
            Table::Dense { jobs, .. } => jobs.iter().copied().filter(is_job).collect(),
            Table::Keyed { jobs, .. } => jobs.values().copied().collect(),
        }
    }

    pub(super) fn is_keyed(&self) -> bool {
        self.program.is_none()
    }
}

fn is_job(entry: &u32) -> bool {
    *entry != FORGOTTEN && *entry != FORGOTTEN_TAKEN
}
