//! What the commands show. Nothing here changes anything.

use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{ApplicationId, AttemptId, JobId, UserName, WorkerId};
use lrts_core::status::{JobState, WorkerState};

use super::Engine;
use super::applications::Presence;
use super::attempts::Fate;
use super::bundles::Availability;
use super::events::{Peer, Totals};
use super::jobs::{Node, Phase};
use super::slab::NONE;
use super::workers::{Standing, Verdict};

/// Why a job waits that only workers could run which take nothing new.
const DRAINING: &str = "all workers that could run it are draining: start one anew, or another one";

/// A job as people see it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct JobListing {
    pub(crate) job: JobId,
    pub(crate) application: ApplicationId,
    /// Who owns that.
    pub(crate) user: Option<UserName>,
    pub(crate) service: String,
    pub(crate) label: String,
    pub(crate) state: JobState,
    /// The newest attempt, 0 if none.
    pub(crate) attempt: u32,
    /// Where it is or was.
    pub(crate) worker: Option<WorkerId>,
    /// Its process there while it runs.
    pub(crate) pid: Option<u32>,
    /// Why it waits or failed.
    pub(crate) reason: String,
}

/// Some jobs.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct JobPage {
    pub(crate) jobs: Vec<JobListing>,
    /// Where the next page begins; none if this was the last.
    pub(crate) next: Option<u32>,
}

/// A worker as people see it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct WorkerListing {
    pub(crate) worker: WorkerId,
    pub(crate) host: String,
    pub(crate) pid: u32,
    pub(crate) slots: u32,
    /// Attempts that run there.
    pub(crate) running: u32,
    pub(crate) state: WorkerState,
    pub(crate) silent: Duration,
}

/// An application as people see it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct ApplicationListing {
    pub(crate) application: ApplicationId,
    /// Who owns it.
    pub(crate) user: Option<UserName>,
    /// For how long it has been away; none while it is connected.
    pub(crate) away: Option<Duration>,
    /// How many of its jobs stand where.
    pub(crate) jobs: Totals,
}

/// Where a job's output is to be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OutputPlace {
    /// There is no such job.
    Unknown,
    /// With its newest attempt, which runs there.
    Worker { peer: Peer, attempt: AttemptId },
    /// With its newest attempt, whose worker is away.
    Away,
    /// In the store, if an attempt of it has ended.
    Store,
}

impl Engine {
    /// How many jobs are in each state, in the order of [`JobState::ALL`].
    pub(crate) fn job_counts(&self) -> impl Iterator<Item = (JobState, u64)> {
        JobState::ALL.into_iter().zip(self.jobs.counts)
    }

    /// How many workers are connected.
    pub(crate) fn connected_workers(&self) -> u64 {
        self.workers.all.iter().filter(|(_, worker)| worker.peer().is_some()).count() as u64
    }

    /// At most `limit` jobs from this place on; 0 is the first.
    pub(crate) fn job_page(&self, from: u32, limit: usize, now: Moment) -> JobPage {
        let mut rest = self.jobs.nodes.iter_from(from);
        let jobs = rest.by_ref().take(limit).map(|(job, node)| self.list_job(job, node, now)).collect();
        JobPage { jobs, next: rest.next().map(|(job, _)| job) }
    }

    fn list_job(&self, job: u32, node: &Node, now: Moment) -> JobListing {
        let spec = &self.jobs.specs[node.spec];
        let recipe = &spec.recipe;
        let live = self.live_attempt(job).map(|attempt| &self.attempts[attempt]);
        let worker = match node.phase {
            Phase::Ended { report, .. } => self.jobs.ended[report].report.worker,
            Phase::Queued { .. } | Phase::Backoff | Phase::Held | Phase::Placed | Phase::Running => {
                live.or_else(|| self.lapsed(node)).map(|attempt| self.workers.all[attempt.worker].id)
            }
        };
        JobListing {
            job: self.job_id(job),
            application: recipe.application,
            user: self.applications[spec.application].terms.owner.clone(),
            service: recipe.service.to_string(),
            label: recipe.options.get_label().to_owned(),
            state: node.state(),
            attempt: node.attempts,
            worker,
            pid: live.filter(|attempt| attempt.began.is_some()).map(|attempt| attempt.pid),
            reason: self.reason(job, node, now),
        }
    }

    /// The newest attempt of a job that is at no trusted worker, if one is open.
    fn lapsed(&self, node: &Node) -> Option<&super::attempts::Attempt> {
        let newest = (node.open != NONE).then(|| &self.attempts[node.open]);
        newest.filter(|attempt| attempt.fate == Fate::Lapsed)
    }

    /// Why a job waits or failed; empty if there is nothing to say.
    fn reason(&self, job: u32, node: &Node, now: Moment) -> String {
        let last_failure = || self.jobs.last_failures.get(&job).map(|failure| failure.message.as_str());
        match node.phase {
            Phase::Ended { report, .. } => {
                let failure = &self.jobs.ended[report].report.failure;
                failure.as_ref().map(|failure| failure.message.clone()).unwrap_or_default()
            }
            Phase::Placed | Phase::Running if node.cancelling => "being cancelled".to_owned(),
            Phase::Placed | Phase::Running => match self.live_attempt(job) {
                Some(attempt) => self.reason_of_suspect(self.attempts[attempt].worker, now),
                None => String::new(),
            },
            Phase::Backoff => match last_failure() {
                Some(message) => format!("waits before it is run again: {message}"),
                None => "waits before it is run again".to_owned(),
            },
            Phase::Held => {
                let failure = self.jobs.verdicts.get(&job);
                let failure = failure.map(|(failure, _)| failure.message.as_str()).unwrap_or_default();
                join(&format!("{}, whose result would still count", self.reason_of_lapsed(node)), failure)
            }
            Phase::Queued { .. } => {
                let reason = join(&self.reason_of_lapsed(node), &self.reason_to_wait(node));
                match last_failure() {
                    Some(message) => join(&reason, message),
                    None => reason,
                }
            }
        }
    }

    fn reason_of_lapsed(&self, node: &Node) -> String {
        match self.lapsed(node) {
            Some(attempt) => {
                let worker = self.workers.all[attempt.worker].id;
                format!("worker {worker} was lost with attempt {}", attempt.id.attempt)
            }
            None => String::new(),
        }
    }

    fn reason_of_suspect(&self, worker: u32, now: Moment) -> String {
        let record = &self.workers.all[worker];
        match record.standing {
            Standing::Ready(_) => String::new(),
            Standing::Silent(_) | Standing::Away | Standing::Lost => {
                format!("worker {} has been silent for {} s", record.id, now.since(record.heard).as_secs())
            }
        }
    }

    fn reason_to_wait(&self, node: &Node) -> String {
        let spec = &self.jobs.specs[node.spec];
        if self.bundles[spec.bundle].availability == Availability::Awaited {
            let failed = self.program_failure(spec.application, spec.bundle);
            return failed.map_or("waits for its program to be uploaded", |reason| reason).to_owned();
        }
        let mut refusals = Vec::new();
        let mut largest = None;
        let mut draining = None;
        let mut present = false;
        for (_, worker) in self.workers.all.iter().filter(|(_, worker)| worker.standing != Standing::Lost) {
            present = true;
            match worker.verdicts.get(&spec.bundle) {
                Some(Verdict::Refused(reason) | Verdict::OtherPlatform(reason)) => {
                    refusals.push(reason.as_str())
                }
                Some(Verdict::Unsuited) => {}
                Some(Verdict::Likely | Verdict::Proven) | None if worker.draining.is_some() => {
                    draining = draining.max(Some(worker.slots));
                }
                Some(Verdict::Likely | Verdict::Proven) | None => largest = largest.max(Some(worker.slots)),
            }
        }
        let waits = match largest {
            _ if !present => "no worker is connected".to_owned(),
            Some(largest) if largest >= spec.slots => String::new(),
            _ if draining >= Some(spec.slots) => DRAINING.to_owned(),
            None if draining.is_none() => "no worker that is connected runs such programs".to_owned(),
            _ => {
                let largest = largest.max(draining).unwrap_or_default();
                format!("needs {} slots: the largest worker has {largest}", spec.slots)
            }
        };
        join(&waits, &refusals.join("; "))
    }

    pub(crate) fn application_listings(&self, now: Moment) -> Vec<ApplicationListing> {
        let applications = self.application_ids.values().map(|&application| &self.applications[application]);
        applications
            .map(|application| ApplicationListing {
                application: application.id,
                user: application.terms.owner.clone(),
                away: match application.presence {
                    Presence::Here { .. } => None,
                    Presence::Away { since, .. } => Some(now.since(since)),
                },
                jobs: application.totals,
            })
            .collect()
    }

    /// How many jobs of an application haven't ended, if it is known.
    pub(crate) fn unfinished(&self, application: ApplicationId) -> Option<u64> {
        let totals = self.applications[*self.application_ids.get(&application)?].totals;
        Some(totals.queued + totals.running)
    }

    /// How many attempts a worker has, if it is known.
    pub(crate) fn attempts_at(&self, worker: WorkerId) -> Option<u64> {
        Some(self.workers.all[*self.workers.by_id.get(&worker)?].attempts.len() as u64)
    }

    pub(crate) fn worker_listings(&self, now: Moment) -> Vec<WorkerListing> {
        let workers = self.workers.by_id.values().map(|&worker| &self.workers.all[worker]);
        workers
            .filter(|worker| worker.standing != Standing::Lost)
            .map(|worker| WorkerListing {
                worker: worker.id,
                host: worker.host.clone(),
                pid: worker.pid,
                slots: worker.slots,
                running: worker
                    .attempts
                    .values()
                    .filter(|&&attempt| self.attempts[attempt].began.is_some())
                    .count() as u32,
                state: match worker.standing {
                    Standing::Ready(_) if worker.draining.is_some() => WorkerState::Draining,
                    Standing::Ready(_) => WorkerState::Ready,
                    Standing::Silent(_) | Standing::Away | Standing::Lost => WorkerState::Suspect,
                },
                silent: now.since(worker.heard),
            })
            .collect()
    }

    /// Where the output of a job's newest attempt is to be had.
    pub(crate) fn output_place(&self, id: JobId) -> OutputPlace {
        let Some(job) = self.find_job(id) else { return OutputPlace::Unknown };
        let Some(attempt) = self.live_attempt(job) else { return OutputPlace::Store };
        let attempt = &self.attempts[attempt];
        if attempt.began.is_none() {
            return OutputPlace::Store;
        }
        match self.workers.all[attempt.worker].standing {
            Standing::Ready(peer) | Standing::Silent(peer) => {
                OutputPlace::Worker { peer, attempt: attempt.id }
            }
            Standing::Away | Standing::Lost => OutputPlace::Away,
        }
    }
}

fn join(one: &str, other: &str) -> String {
    match (one.is_empty(), other.is_empty()) {
        (false, false) => format!("{one}; {other}"),
        _ => format!("{one}{other}"),
    }
}
