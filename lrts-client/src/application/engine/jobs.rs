//! What the client knows about each job.
//!
//! The engine names jobs by *numbers*. A job of this session has its sequence as its number and takes eight bytes here. Any
//! other (it has a key, or an earlier start of the application scheduled it) gets a number from [`OTHERS`] on when it is met,
//! and an entry in a side table.

use std::collections::{BTreeMap, VecDeque};

use lrts_core::ids::{ApplicationId, JobId, SessionId};

use super::WaitId;

/// Numbers from here on are of jobs that aren't named by a sequence of this session.
pub(super) const OTHERS: u64 = 1 << 63;

/// The service of a job is unknown.
const NO_SERVICE: u16 = u16::MAX;

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
    /// The sequence of a job with a key, which is known by another number. It isn't accepted yet; then it counts as taken.
    Keyed,
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

/// All jobs. Those of the session at the front whose results were taken need no entry.
#[derive(Debug)]
pub(super) struct Jobs {
    session: SessionId,
    /// The session of this application's jobs with keys.
    keyed: SessionId,
    /// Sequence of the first entry.
    base: u64,
    entries: VecDeque<Entry>,
    others: Others,
    several: BTreeMap<u64, Vec<WaitId>>,
}

/// Jobs that aren't named by a sequence of this session, numbered from [`OTHERS`] on.
#[derive(Debug, Default)]
struct Others {
    ids: Vec<JobId>,
    entries: Vec<Entry>,
    numbers: BTreeMap<JobId, u64>,
}

impl Jobs {
    pub(super) fn new(session: SessionId, application: ApplicationId) -> Self {
        Self {
            session,
            keyed: SessionId::keyed(application),
            base: 1,
            entries: VecDeque::new(),
            others: Others::default(),
            several: BTreeMap::new(),
        }
    }

    /// The number of a job, if it has one.
    pub(super) fn find(&self, job: JobId) -> Option<u64> {
        match job.session == self.session {
            true => Some(job.sequence).filter(|&sequence| sequence < OTHERS),
            false => self.others.numbers.get(&job).copied(),
        }
    }

    /// The number of a job, which is given one if it has none.
    pub(super) fn meet(&mut self, job: JobId) -> u64 {
        self.find(job).unwrap_or_else(|| {
            let number = OTHERS + self.others.ids.len() as u64;
            self.others.ids.push(job);
            self.others.entries.push(Entry::new(NO_SERVICE));
            self.others.numbers.insert(job, number);
            number
        })
    }

    /// The job with this number.
    pub(super) fn id(&self, number: u64) -> JobId {
        other(number).map_or_else(|| self.session.job(number), |index| self.others.ids[index])
    }

    /// Whether the job has a key: its result can be had again.
    pub(super) fn has_key(&self, number: u64) -> bool {
        other(number).is_some_and(|index| self.others.ids[index].session == self.keyed)
    }

    /// Adds the next job; returns its sequence.
    pub(super) fn push(&mut self, service: u16) -> u64 {
        self.entries.push_back(Entry::new(service));
        self.last()
    }

    /// Sequence of the session's newest job, 0 if there is none.
    pub(super) fn last(&self) -> u64 {
        self.base + self.entries.len() as u64 - 1
    }

    /// The state of any job; one that was never given out counts as lost.
    pub(super) fn state(&self, number: u64) -> State {
        match self.get(number) {
            Some(entry) => entry.state,
            None if number > 0 && number < self.base => State::Taken,
            None => State::Lost,
        }
    }

    pub(super) fn get(&self, number: u64) -> Option<&Entry> {
        match other(number) {
            Some(index) => self.others.entries.get(index),
            None => self.entries.get(self.index(number)?),
        }
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Entry> {
        match other(number) {
            Some(index) => self.others.entries.get_mut(index),
            None => {
                let index = self.index(number)?;
                self.entries.get_mut(index)
            }
        }
    }

    fn index(&self, sequence: u64) -> Option<usize> {
        usize::try_from(sequence.checked_sub(self.base)?).ok()
    }

    /// Every job that has an entry, with its number, in order.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Entry)> {
        let own = (self.base..).zip(self.entries.iter_mut());
        own.chain((OTHERS..).zip(self.others.entries.iter_mut()))
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

    pub(super) fn has_waiters(&self, number: u64) -> bool {
        self.get(number).is_some_and(Entry::has_waiters)
    }

    pub(super) fn add_waiter(&mut self, number: u64, wait: WaitId) {
        let Some(entry) = self.get_mut(number) else { return };
        match entry.waiter {
            NOBODY => entry.waiter = Waiter(wait.0),
            SEVERAL => self.several.entry(number).or_default().push(wait),
            Waiter(other) => {
                entry.waiter = SEVERAL;
                self.several.insert(number, vec![WaitId(other), wait]);
            }
        }
    }

    /// Removes a waiter, wherever it is.
    pub(super) fn remove_waiter(&mut self, number: u64, wait: WaitId) {
        let Some(entry) = self.get_mut(number) else { return };
        if entry.waiter == Waiter(wait.0) {
            entry.waiter = NOBODY;
        } else if entry.waiter == SEVERAL {
            let mut waits = self.several.remove(&number).unwrap_or_default();
            waits.retain(|&other| other != wait);
            let waiter = match waits[..] {
                [] => NOBODY,
                [WaitId(other)] => Waiter(other),
                _ => {
                    self.several.insert(number, waits);
                    SEVERAL
                }
            };
            self.get_mut(number).expect("looked up above").waiter = waiter;
        }
    }

    /// Everybody who waits for the job.
    pub(super) fn waiters(&self, number: u64) -> Vec<WaitId> {
        match self.get(number).map(|entry| entry.waiter) {
            None | Some(NOBODY) => Vec::new(),
            Some(SEVERAL) => self.several.get(&number).cloned().unwrap_or_default(),
            Some(Waiter(wait)) => vec![WaitId(wait)],
        }
    }
}

/// Where a job that isn't named by a sequence of this session stands in its table.
fn other(number: u64) -> Option<usize> {
    usize::try_from(number.checked_sub(OTHERS)?).ok()
}

impl Entry {
    fn new(service: u16) -> Self {
        Self { state: State::Open, want: Want::No, service, waiter: NOBODY }
    }

    pub(super) fn has_waiters(&self) -> bool {
        self.waiter != NOBODY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId(7);

    fn jobs() -> Jobs {
        Jobs::new(SESSION, "tests".parse().unwrap())
    }

    #[test]
    fn an_entry_is_small() {
        assert_eq!(size_of::<Entry>(), 8);
    }

    #[test]
    fn waiters_come_and_go() {
        let mut jobs = jobs();
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
        let mut jobs = jobs();
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

    #[test]
    fn jobs_of_other_sessions_get_numbers_of_their_own() {
        let mut jobs = jobs();
        let own = jobs.push(0);
        let keyed = JobId::keyed("tests".parse().unwrap(), "night");
        let earlier = SessionId(1).job(1);
        assert_eq!(jobs.find(earlier), None);
        let numbers = [jobs.meet(SESSION.job(own)), jobs.meet(earlier), jobs.meet(keyed), jobs.meet(earlier)];
        assert_eq!(numbers, [own, OTHERS, OTHERS + 1, OTHERS]);
        assert_eq!(numbers.map(|number| jobs.id(number)), [SESSION.job(own), earlier, keyed, earlier]);
        assert_eq!(numbers.map(|number| jobs.has_key(number)), [false, false, true, false]);
        assert_eq!(jobs.iter_mut().map(|(number, _)| number).collect::<Vec<_>>(), [own, OTHERS, OTHERS + 1]);
        assert_eq!(jobs.state(OTHERS + 2), State::Lost);
    }
}
