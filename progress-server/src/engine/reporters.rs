//! Which jobs each reporter tells of, and how much that is: none may fill the memory, or take the others' room.

use std::collections::BTreeMap;

use lrts_core::ids::JobId;
use lrts_core::limits::{ATTEMPTS_PER_REPORTER, BARS_PER_REPORTER, REPORTED_ATTEMPTS};
use lrts_core::protocol::progress::OwnedApplication;

/// A job, and whose it is.
pub(super) type Reported = (OwnedApplication, JobId);

/// All connections that report, each with the jobs that haven't ended.
#[derive(Debug)]
pub(super) struct Reporters<P> {
    all: BTreeMap<P, Reporter>,
    /// Jobs of all of them.
    jobs: usize,
}

#[derive(Debug, Default)]
struct Reporter {
    /// How many bars of each it has started or taken over.
    jobs: BTreeMap<Reported, usize>,
    /// Of all of them.
    bars: usize,
}

impl<P: Copy + Ord> Reporters<P> {
    pub(super) fn new() -> Self {
        Self { all: BTreeMap::new(), jobs: 0 }
    }

    /// Whether a reporter may have so many more bars of this job, which are at most those of one attempt.
    pub(super) fn has_room(&self, reporter: P, job: &Reported, bars: usize) -> bool {
        let Some(known) = self.all.get(&reporter) else { return self.jobs < REPORTED_ATTEMPTS };
        let takes_job = known.jobs.contains_key(job)
            || (known.jobs.len() < ATTEMPTS_PER_REPORTER && self.jobs < REPORTED_ATTEMPTS);
        takes_job && known.bars + bars <= BARS_PER_REPORTER
    }

    /// A reporter tells of a job, and has so many more bars of it.
    pub(super) fn report(&mut self, reporter: P, job: Reported, bars: usize) {
        let known = self.all.entry(reporter).or_default();
        *known.jobs.entry(job).or_insert_with(|| {
            self.jobs += 1;
            0
        }) += bars;
        known.bars += bars;
    }

    /// A reporter doesn't tell of a job any more.
    pub(super) fn remove(&mut self, reporter: P, job: &Reported) {
        let Some(known) = self.all.get_mut(&reporter) else { return };
        if let Some(bars) = known.jobs.remove(job) {
            known.bars -= bars;
            self.jobs -= 1;
        }
    }

    /// The jobs of a reporter that is gone.
    pub(super) fn leave(&mut self, reporter: P) -> Vec<Reported> {
        let jobs: Vec<Reported> =
            self.all.remove(&reporter).into_iter().flat_map(|gone| gone.jobs.into_keys()).collect();
        self.jobs -= jobs.len();
        jobs
    }
}
