//! Whether a worker, rather than its jobs, is to blame that processes die: if several different jobs in a row have died there
//! while their program goes well elsewhere, the worker takes nothing new, and the jobs aren't charged.

use std::collections::BTreeMap;
use std::time::Duration;

use lrts_core::clock::Moment;

use super::Engine;
use super::jobs::JobHandle;
use super::workers::Standing;

/// So many different jobs must have died in a row.
const SUSPECT_JOBS: usize = 5;

/// Deaths at one worker since something last ended well there.
#[derive(Debug, Default)]
pub(super) struct Streak {
    /// When the first of them happened.
    since: Moment,
    /// The longest that one of them had run.
    longest: Duration,
    /// Whose deaths, and how many of each were charged.
    jobs: BTreeMap<JobHandle, u32>,
}

impl Engine {
    /// An execution has ended by itself, well or with an error: its machine is as it should be.
    pub(super) fn ended_well(&mut self, worker: u32, bundle: u32) {
        let record = &mut self.workers.all[worker];
        record.streak = Streak::default();
        record.ended_well.insert(bundle, self.now);
    }

    /// A job that was charged for its process's death at this worker. Returns whether the worker is to blame, which drains it
    /// and takes back all charges of the streak.
    pub(super) fn died_at(&mut self, job: u32, worker: u32, ran: Duration) -> bool {
        let (now, bundle, handle) = (self.now, self.spec_of(job).bundle, self.jobs.handle(job));
        let streak = &mut self.workers.all[worker].streak;
        if streak.jobs.is_empty() {
            streak.since = now;
        }
        streak.longest = streak.longest.max(ran);
        *streak.jobs.entry(handle).or_default() += 1;
        if streak.jobs.len() < SUSPECT_JOBS || !self.goes_well_elsewhere(worker, bundle) {
            return false;
        }
        for (job, deaths) in std::mem::take(&mut self.workers.all[worker].streak).jobs {
            if self.jobs.is_current(job) && !self.jobs.nodes[job.index].is_terminal() {
                self.jobs.nodes[job.index].crashes -= deaths;
                self.job_changed(job.index);
            }
        }
        let reason = format!(
            "{SUSPECT_JOBS} different jobs in a row died here while their program goes well elsewhere: see to the machine, \
             then restart the worker"
        );
        self.drain(worker, reason, None);
        true
    }

    /// Whether another worker has brought an execution of the program to its end since the deaths began, or runs one for
    /// longer than any of those that died.
    fn goes_well_elsewhere(&self, suspect: u32, bundle: u32) -> bool {
        let Streak { since, longest, .. } = self.workers.all[suspect].streak;
        self.workers.all.iter().any(|(index, worker)| {
            let trusted = matches!(worker.standing, Standing::Ready(_)) && worker.draining.is_none();
            let ended_well = || worker.ended_well.get(&bundle).is_some_and(|&at| at >= since);
            let runs_well = || {
                worker.attempts.values().map(|&attempt| &self.attempts[attempt]).any(|attempt| {
                    attempt.bundle == bundle
                        && attempt.began.is_some_and(|began| self.now.since(began) > longest)
                })
            };
            index != suspect && trusted && (ended_well() || runs_well())
        })
    }
}
