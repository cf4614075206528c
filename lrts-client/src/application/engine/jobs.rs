//! What the client knows about each of its jobs, in eight bytes a job.

use std::collections::{BTreeMap, VecDeque};

use super::WaitId;

/// Where a job stands as far as this application is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Not ended, or its result is still at the scheduler.
    Open,
    /// Its result is here and nobody has it yet.
    Arrived,
    /// Its result was given out; whether it reached the caller is about to be told.
    Handed,
    /// Its result was returned to the caller.
    Taken,
    /// The scheduler didn't take the job.
    Refused,
    /// The scheduler doesn't know the job any more.
    Lost,
}

/// How a job's result was asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Want {
    No,
    Credit,
    Urgent,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) state: State,
    pub(super) want: Want,
    pub(super) service: u16,
    waiter: Waiter,
}

/// Who waits for a job. More than one is rare and kept elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Waiter(u32);

const NOBODY: Waiter = Waiter(0);
const SEVERAL: Waiter = Waiter(u32::MAX);

/// All jobs of the session by sequence. Those at the front whose results were taken need no entry.
#[derive(Debug)]
pub(super) struct Jobs {
    /// Sequence of the first entry.
    base: u64,
    entries: VecDeque<Entry>,
    several: BTreeMap<u64, Vec<WaitId>>,
}

impl Jobs {
    pub(super) fn new() -> Self {
        Self { base: 1, entries: VecDeque::new(), several: BTreeMap::new() }
    }

    /// Adds the next job; returns its sequence.
    pub(super) fn push(&mut self, service: u16) -> u64 {
        self.entries.push_back(Entry { state: State::Open, want: Want::No, service, waiter: NOBODY });
        self.last()
    }

    /// Sequence of the newest job, 0 if there is none.
    pub(super) fn last(&self) -> u64 {
        self.base + self.entries.len() as u64 - 1
    }

    /// The state of any sequence; one that was never given out counts as lost.
    pub(super) fn state(&self, sequence: u64) -> State {
        match self.get(sequence) {
            Some(entry) => entry.state,
            None if sequence > 0 && sequence < self.base => State::Taken,
            None => State::Lost,
        }
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&Entry> {
        self.entries.get(self.index(sequence)?)
    }

    pub(super) fn get_mut(&mut self, sequence: u64) -> Option<&mut Entry> {
        let index = self.index(sequence)?;
        self.entries.get_mut(index)
    }

    fn index(&self, sequence: u64) -> Option<usize> {
        usize::try_from(sequence.checked_sub(self.base)?).ok()
    }

    /// Every job that has an entry, with its sequence, in order.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Entry)> {
        (self.base..).zip(self.entries.iter_mut())
    }

    /// Forgets the entries at the front that say nothing any more.
    pub(super) fn trim(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.state == State::Taken && entry.waiter == NOBODY)
        {
            self.entries.pop_front();
            self.base += 1;
        }
    }

    /// Every sequence below was taken.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    pub(super) fn has_waiters(&self, sequence: u64) -> bool {
        self.get(sequence).is_some_and(Entry::has_waiters)
    }

    pub(super) fn add_waiter(&mut self, sequence: u64, wait: WaitId) {
        let Some(entry) = self.get_mut(sequence) else { return };
        match entry.waiter {
            NOBODY => entry.waiter = Waiter(wait.0),
            SEVERAL => self.several.entry(sequence).or_default().push(wait),
            Waiter(other) => {
                entry.waiter = SEVERAL;
                self.several.insert(sequence, vec![WaitId(other), wait]);
            }
        }
    }

    /// Removes a waiter, wherever it is.
    pub(super) fn remove_waiter(&mut self, sequence: u64, wait: WaitId) {
        let Some(entry) = self.get_mut(sequence) else { return };
        if entry.waiter == Waiter(wait.0) {
            entry.waiter = NOBODY;
        } else if entry.waiter == SEVERAL {
            let mut waits = self.several.remove(&sequence).unwrap_or_default();
            waits.retain(|&other| other != wait);
            let waiter = match waits[..] {
                [] => NOBODY,
                [WaitId(other)] => Waiter(other),
                _ => {
                    self.several.insert(sequence, waits);
                    SEVERAL
                }
            };
            self.get_mut(sequence).expect("looked up above").waiter = waiter;
        }
    }

    /// Everybody who waits for the job.
    pub(super) fn waiters(&self, sequence: u64) -> Vec<WaitId> {
        match self.get(sequence).map(|entry| entry.waiter) {
            None | Some(NOBODY) => Vec::new(),
            Some(SEVERAL) => self.several.get(&sequence).cloned().unwrap_or_default(),
            Some(Waiter(wait)) => vec![WaitId(wait)],
        }
    }
}

impl Entry {
    pub(super) fn has_waiters(&self) -> bool {
        self.waiter != NOBODY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_small() {
        assert_eq!(size_of::<Entry>(), 8);
    }

    #[test]
    fn waiters_come_and_go() {
        let mut jobs = Jobs::new();
        let job = jobs.push(0);
        for wait in [1, 2, 3] {
            jobs.add_waiter(job, WaitId(wait));
        }
        jobs.remove_waiter(job, WaitId(2));
        assert_eq!(jobs.waiters(job), [WaitId(1), WaitId(3)]);
        jobs.remove_waiter(job, WaitId(1));
        jobs.remove_waiter(job, WaitId(9));
        assert_eq!(jobs.waiters(job), [WaitId(3)]);
        jobs.remove_waiter(job, WaitId(3));
        assert!(!jobs.has_waiters(job));
    }

    #[test]
    fn taken_jobs_at_the_front_need_no_entry() {
        let mut jobs = Jobs::new();
        for _ in 0..3 {
            jobs.push(0);
        }
        jobs.get_mut(1).unwrap().state = State::Taken;
        jobs.get_mut(3).unwrap().state = State::Taken;
        jobs.trim();
        assert_eq!((jobs.base(), jobs.last()), (2, 3));
        assert_eq!(jobs.state(1), State::Taken);
        assert_eq!(jobs.state(2), State::Open);
        assert_eq!(jobs.state(4), State::Lost);
        assert_eq!(jobs.push(0), 4);
    }
}
