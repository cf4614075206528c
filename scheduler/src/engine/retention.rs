//! Which ended jobs are kept: each for some time, and only so many, with so many bytes of results. Where there are too many, those
//! of whoever has most make way, so that nobody's fill the place of others'.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::UserName;

use super::Engine;
use super::events::Note;
use super::jobs::{Delivery, JobHandle, Phase};

/// So many places of jobs that are gone are never worth a look.
const SLACK: usize = 1_024;

/// So many jobs whose time has come are forgotten at one tick; the next are due at once, and others are heard in between.
const FORGOTTEN_AT_ONCE: usize = 1_000;

/// What had to make way is told no more often than this.
const TOLD_INTERVAL: Duration = Duration::from_secs(10);

/// Whose ended jobs they are; nobody's where there are no keys.
type Owner = Option<UserName>;

/// The ended jobs of one owner.
#[derive(Debug, Default)]
struct Kept {
    jobs: u64,
    /// Of their results.
    bytes: u64,
    /// Those with a result that wasn't taken, the oldest first; some are gone.
    results: VecDeque<JobHandle>,
    /// The others: they have nothing but a report.
    others: VecDeque<JobHandle>,
}

/// All ended jobs.
#[derive(Debug, Default)]
pub(super) struct Retention {
    /// In the order in which their time comes; some are gone.
    due: VecDeque<(Moment, JobHandle)>,
    owners: BTreeMap<Owner, Kept>,
    by_jobs: BTreeSet<(u64, Owner)>,
    by_bytes: BTreeSet<(u64, Owner)>,
    bytes: u64,
    dropped: Dropped,
    told: Option<Moment>,
}

/// What made way before its time and isn't told of yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Dropped {
    for_bytes: usize,
    for_jobs: usize,
}

impl Retention {
    /// When the next job's time comes at the latest.
    pub(super) fn next_deadline(&self) -> Option<Moment> {
        self.due.front().map(|&(at, _)| at)
    }

    /// How many places of jobs there are, with those that are gone.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        let owners = self.owners.values().map(|kept| kept.results.len() + kept.others.len());
        self.due.len() + owners.sum::<usize>()
    }

    /// Changes what is counted for an owner.
    fn count(&mut self, owner: &Owner, change: impl FnOnce(&mut Kept)) {
        let kept = self.owners.entry(owner.clone()).or_default();
        let (jobs, bytes) = (kept.jobs, kept.bytes);
        change(kept);
        let changed = [(&mut self.by_jobs, jobs, kept.jobs), (&mut self.by_bytes, bytes, kept.bytes)];
        self.bytes = self.bytes - bytes + kept.bytes;
        if kept.jobs == 0 {
            self.owners.remove(owner);
        }
        for (order, before, after) in changed {
            if before != after {
                order.remove(&(before, owner.clone()));
                order.extend((after > 0).then(|| (after, owner.clone())));
            }
        }
    }
}

impl Engine {
    fn owner_of(&self, job: u32) -> Owner {
        let application = self.sessions[self.jobs.nodes[job].session].application;
        self.applications[application].terms.owner.clone()
    }

    /// A job has ended and is kept until then; one that was loaded may be taken already.
    pub(super) fn retain(&mut self, job: u32, until: Moment) {
        let Phase::Ended { report, .. } = self.jobs.nodes[job].phase else { return };
        let bytes = self.jobs.ended[report].output_bytes;
        let (handle, owner) = (self.jobs.handle(job), self.owner_of(job));
        self.retention.due.push_back((until, handle));
        self.retention.count(&owner, |kept| {
            kept.jobs += 1;
            kept.bytes += bytes;
            if bytes > 0 { &mut kept.results } else { &mut kept.others }.push_back(handle);
        });
    }

    /// A job's result was taken, and isn't kept any more.
    pub(super) fn release_result(&mut self, job: u32) {
        let Phase::Ended { report, .. } = self.jobs.nodes[job].phase else { return };
        let bytes = std::mem::take(&mut self.jobs.ended[report].output_bytes);
        if bytes > 0 {
            let (handle, owner) = (self.jobs.handle(job), self.owner_of(job));
            self.retention.count(&owner, |kept| {
                kept.bytes -= bytes;
                kept.others.push_back(handle);
            });
        }
    }

    /// A job is about to be forgotten.
    pub(super) fn let_go(&mut self, job: u32) {
        let Phase::Ended { report, .. } = self.jobs.nodes[job].phase else { return };
        let bytes = std::mem::take(&mut self.jobs.ended[report].output_bytes);
        let owner = self.owner_of(job);
        self.retention.count(&owner, |kept| {
            kept.jobs -= 1;
            kept.bytes -= bytes;
        });
        self.tidy_retention(&owner);
    }

    /// An application has an owner from now on, and so have its ended jobs.
    pub(super) fn give_retained(&mut self, application: u32, owner: &UserName) {
        if self.applications[application].sessions.is_empty() {
            // It is new and has none: not worth a look at all of nobody's, of which there may be millions.
            return;
        }
        let Some(mut nobodys) = self.retention.owners.remove(&None) else { return };
        let is_its = |job: &JobHandle| {
            self.jobs.is_current(*job)
                && self.sessions[self.jobs.nodes[job.index].session].application == application
        };
        let (results, left) = nobodys.results.drain(..).partition(is_its);
        nobodys.results = left;
        let (others, left) = nobodys.others.drain(..).partition(is_its);
        nobodys.others = left;
        let (results, others): (VecDeque<JobHandle>, VecDeque<JobHandle>) = (results, others);
        // One that was taken may be among both.
        let all: BTreeSet<JobHandle> = results.iter().chain(&others).copied().collect();
        let (jobs, bytes) = (all.len() as u64, all.iter().map(|job| self.result_bytes(*job)).sum::<u64>());
        self.retention.owners.insert(None, nobodys);
        self.retention.count(&None, |kept| {
            kept.jobs -= jobs;
            kept.bytes -= bytes;
        });
        if jobs > 0 {
            self.retention.count(&Some(owner.clone()), |kept| {
                kept.jobs += jobs;
                kept.bytes += bytes;
                kept.results.extend(results);
                kept.others.extend(others);
            });
        }
    }

    fn result_bytes(&self, job: JobHandle) -> u64 {
        match self.jobs.nodes.get(job.index).map(|node| node.phase) {
            Some(Phase::Ended { report, .. }) if self.jobs.is_current(job) => {
                self.jobs.ended[report].output_bytes
            }
            _ => 0,
        }
    }

    /// Forgets ended jobs while there are too many, or their results have too many bytes. The newest of all stays: it has yet to
    /// be told.
    pub(super) fn make_room_for_ended(&mut self) {
        let newest = self.retention.due.back().map(|&(_, job)| job);
        loop {
            let is_full = self.jobs.ended.len() as u64 > self.settings.bounds.ended_jobs;
            let job = if is_full {
                let most = self.retention.by_jobs.last().map(|(_, owner)| owner.clone());
                // What has no result, or none that anybody has yet to take, goes first.
                most.and_then(|owner| self.oldest_other(&owner).or_else(|| self.oldest_result(&owner)))
            } else if self.retention.bytes > self.settings.result_bytes {
                let most = self.retention.by_bytes.last().map(|(_, owner)| owner.clone());
                most.and_then(|owner| self.oldest_result(&owner))
            } else {
                break;
            };
            let Some(job) = job.filter(|&job| Some(job) != newest) else { break };
            if self.jobs.nodes[job.index].delivery != Delivery::Taken {
                let dropped = &mut self.retention.dropped;
                *(if is_full { &mut dropped.for_jobs } else { &mut dropped.for_bytes }) += 1;
            }
            self.forget_job(job.index);
        }
        self.tell_dropped();
    }

    /// One note for very many that make way one by one; the last ones are told of with the next.
    fn tell_dropped(&mut self) {
        let Retention { dropped, told, .. } = self.retention;
        let is_early = told.is_some_and(|told| self.now.since(told) < TOLD_INTERVAL);
        if dropped == Dropped::default() || is_early {
            return;
        }
        self.retention.dropped = Dropped::default();
        self.retention.told = Some(self.now);
        if dropped.for_bytes > 0 {
            self.note(Note::ResultsDropped { jobs: dropped.for_bytes });
        }
        if dropped.for_jobs > 0 {
            self.note(Note::EndedJobsDropped { jobs: dropped.for_jobs });
        }
    }

    fn oldest_result(&mut self, owner: &Owner) -> Option<JobHandle> {
        loop {
            let job = *self.retention.owners.get(owner)?.results.front()?;
            if self.result_bytes(job) > 0 {
                return Some(job);
            }
            self.retention.owners.get_mut(owner)?.results.pop_front();
        }
    }

    fn oldest_other(&mut self, owner: &Owner) -> Option<JobHandle> {
        loop {
            let job = *self.retention.owners.get(owner)?.others.front()?;
            if self.jobs.is_current(job) {
                return Some(job);
            }
            self.retention.owners.get_mut(owner)?.others.pop_front();
        }
    }

    /// Forgets jobs whose time has come.
    pub(super) fn forget_due(&mut self) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            let Some(&(at, job)) = self.retention.due.front() else { return };
            if at > self.now {
                return;
            }
            self.retention.due.pop_front();
            if self.jobs.is_current(job) {
                self.forget_job(job.index);
            }
        }
    }

    /// Drops the places of jobs that are gone, once these are the most.
    fn tidy_retention(&mut self, owner: &Owner) {
        if self.retention.due.len() > 2 * self.jobs.ended.len() + SLACK {
            self.retention.due.retain(|&(_, job)| self.jobs.is_current(job));
        }
        let Some(kept) = self.retention.owners.get(owner) else { return };
        if kept.results.len() + kept.others.len() <= 2 * kept.jobs as usize + SLACK {
            return;
        }
        let mut kept = self.retention.owners.remove(owner).expect("looked up above");
        kept.results.retain(|&job| self.result_bytes(job) > 0);
        kept.others.retain(|&job| self.jobs.is_current(job));
        self.retention.owners.insert(owner.clone(), kept);
    }

    /// Panics where what is kept of ended jobs isn't true.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check_retention(&self) {
        let mut owners: BTreeMap<Owner, (u64, u64)> = BTreeMap::new();
        let due: BTreeSet<JobHandle> = self.retention.due.iter().map(|&(_, job)| job).collect();
        for (job, node) in self.jobs.nodes.iter() {
            let Phase::Ended { report, .. } = node.phase else { continue };
            let bytes = self.jobs.ended[report].output_bytes;
            let (jobs, sum) = owners.entry(self.owner_of(job)).or_default();
            (*jobs, *sum) = (*jobs + 1, *sum + bytes);
            let handle = self.jobs.handle(job);
            assert!(due.contains(&handle), "every ended job's time comes");
        }
        let counted = self.retention.owners.iter();
        let counted = counted.map(|(owner, kept)| (owner.clone(), (kept.jobs, kept.bytes))).collect();
        assert_eq!(owners, counted, "what everybody has is counted");
        let mut places = BTreeSet::new();
        for (owner, kept) in &self.retention.owners {
            let results = kept.results.iter().filter(|&&job| self.result_bytes(job) > 0);
            let others = kept.others.iter().filter(|&&job| self.jobs.is_current(job));
            let places_of_owner: Vec<JobHandle> = results.chain(others).copied().collect();
            assert_eq!(places_of_owner.len() as u64, kept.jobs, "every ended job has one place");
            assert!(places_of_owner.iter().all(|job| self.owner_of(job.index) == *owner));
            places.extend(places_of_owner);
        }
        assert_eq!(places.len(), self.jobs.ended.len());
        let orders = [(&self.retention.by_jobs, true), (&self.retention.by_bytes, false)];
        for (order, is_of_jobs) in orders {
            let found = owners
                .iter()
                .map(|(owner, &(jobs, bytes))| (if is_of_jobs { jobs } else { bytes }, owner.clone()));
            assert_eq!(*order, found.filter(|&(most, _)| most > 0).collect(), "who has most is known");
        }
        assert_eq!(self.retention.bytes, owners.values().map(|&(_, bytes)| bytes).sum::<u64>());
    }
}
