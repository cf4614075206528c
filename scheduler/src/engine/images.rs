//! What is kept of a job, and an engine made of what was kept.
//!
//! A restarted scheduler trusts each worker that held open attempts for one more lease: until then their jobs aren't placed
//! again, and when the worker registers, its inventory says which attempts are still there. Everything else goes on at once.

use std::cmp::Reverse;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::WorkerId;
use lrts_core::limits::RETRY_BACKOFF_MIN;
use lrts_core::status::JobState;

use super::applications::{Application, Presence};
use super::attempts::{Attempt, Fate, Run};
use super::jobs::{Delivery, EndedJob, NewNode, Phase};
use super::sessions::{FORGOTTEN, Session};
use super::slab::NONE;
use super::submits::Key;
use super::workers::Standing;
use super::{Engine, Settings};
use crate::record::{JobImage, KeyedRecord, Loaded, LoadedJob, OpenAttempt, Stage, Submitted, WorkerImage};

/// For so long at least everything is kept after a start, unless retention is so short that an eighth of it is less.
const RETENTION_AFTER_START: Duration = Duration::from_hours(1);

impl Engine {
    /// What is to be kept of a job.
    pub(super) fn image_of(&self, job: u32) -> JobImage {
        let node = &self.jobs.nodes[job];
        let mut open = Vec::new();
        let mut next = node.open;
        while next != NONE {
            let attempt = &self.attempts[next];
            open.push(OpenAttempt {
                attempt: attempt.id.attempt,
                worker: self.workers.all[attempt.worker].id,
                ran: attempt.began.map(|began| self.now.since(began)),
                lapsed: attempt.fate == Fate::Lapsed,
            });
            next = attempt.next;
        }
        let checkpoints = self.jobs.checkpoints.get(&job).cloned().unwrap_or_default();
        let stage = match node.phase {
            Phase::Ended { report, .. } => {
                let EndedJob { report, output_bytes } = &self.jobs.ended[report];
                let taken = node.delivery == Delivery::Taken;
                Stage::Ended { report: report.clone(), output_bytes: *output_bytes, taken }
            }
            Phase::Queued { .. } | Phase::Backoff | Phase::Held | Phase::Placed | Phase::Running => {
                match self.jobs.verdicts.get(&job) {
                    None => Stage::Live,
                    Some((failure, run)) => {
                        let report = self.report_of(job, Some(failure.clone()), *run);
                        Stage::Held { failure: failure.clone(), report }
                    }
                }
            }
        };
        JobImage {
            attempts: node.attempts,
            executions: node.executions,
            failures: node.failures,
            crashes: node.crashes,
            cancelling: node.cancelling,
            last_failure: self.jobs.last_failures.get(&job).cloned(),
            open,
            checkpoints,
            stage,
        }
    }

    /// An engine that goes on with what an earlier one had ordered to be kept. Its actions are to be carried out.
    pub(crate) fn restore(settings: Settings, loaded: Loaded, now: Moment) -> Self {
        let mut engine = Self::new(settings);
        engine.now = now;
        let Loaded { applications, sessions, submits, jobs, workers } = loaded;
        for (id, image) in applications {
            let application = engine.new_application(id);
            if let Some(owner) = image.owner.clone() {
                engine.give_application(application, owner);
            }
            engine.applications[application].terms = image;
        }
        for (id, image) in sessions {
            // An application is kept before its sessions.
            if let Some(&application) = engine.application_ids.get(&image.application) {
                engine.new_session(application, id, image);
            }
        }
        for (worker, image) in workers {
            engine.restore_worker(worker, image);
        }
        for (age, submitted) in submits {
            engine.restore_submitted(age, &submitted);
        }
        let mut ended = Vec::new();
        for (id, age, job) in jobs {
            let Some(index) = engine.find_job(id) else { continue };
            match job {
                LoadedJob::Known(image) => {
                    if matches!(image.stage, Stage::Ended { .. }) {
                        ended.push((age, index));
                    }
                    engine.restore_job(index, image, age);
                }
                LoadedJob::Forgotten { taken } => engine.restore_forgotten(index, taken),
            }
        }
        engine.restore_retention(ended);
        engine.finish_restore();
        engine
    }

    fn restore_worker(&mut self, id: WorkerId, image: WorkerImage) -> u32 {
        let worker = self.new_worker(id);
        let record = &mut self.workers.all[worker];
        record.standing = Standing::Away;
        record.absent = image.absent;
        record.instance = image.draining.as_ref().map_or(record.instance, |draining| draining.instance);
        record.draining = image.draining;
        self.workers.known += 1;
        worker
    }

    fn restore_submitted(&mut self, age: Duration, submitted: &Submitted) {
        let Submitted { session: id, first, options, jobs, skipped, keyed } = submitted;
        let Some(&session) = self.session_ids.get(id) else { return };
        self.sessions[session].begin_behind(first - 1);
        // Nobody comes for what was submitted longer ago, and another start of the scheduler is no reason to wait for it anew.
        let kept = self.left_of_retention(age);
        let record = &mut self.sessions[session];
        record.kept = if record.known().is_empty() { kept } else { record.kept.max(kept) };
        self.refresh_spare(session);
        let submitted = self.now - age;
        for (sequence, job) in (*first..).zip(jobs) {
            if skipped.binary_search(&sequence).is_ok() {
                self.sessions[session].push(FORGOTTEN);
                continue;
            }
            let spec = self.spec_of_submit(session, job.service, &options[usize::from(job.options)]);
            let index = match keyed.binary_search_by_key(&sequence, |keyed| keyed.sequence) {
                Err(_) => {
                    let payload_bytes = job.payload_bytes;
                    let index =
                        self.jobs.insert(NewNode { session, sequence, spec, payload_bytes, submitted });
                    self.count_new_job(session, index);
                    self.sessions[session].push(index);
                    self.mark_job(index);
                    index
                }
                Ok(at) => {
                    self.sessions[session].push(FORGOTTEN);
                    let node =
                        NewNode { session, sequence, spec, payload_bytes: job.payload_bytes, submitted };
                    self.restore_keyed(&keyed[at], node)
                }
            };
            self.queue_job(index);
        }
    }

    /// A job with a key, of which this is what its submit says.
    fn restore_keyed(&mut self, keyed: &KeyedRecord, node: NewNode) -> u32 {
        let KeyedRecord { job, key, digest, .. } = keyed;
        let carrier = node.session;
        self.sessions[carrier].brought_keys = true;
        self.refresh_spare(carrier);
        let application = self.sessions[carrier].application;
        let session = match self.session_ids.get(&job.session) {
            Some(&session) => session,
            None => self.add_session(Session::new(job.session, application, None)),
        };
        // Stopping an application stops all its starts, and no job with a key is taken until those before are forgotten.
        self.sessions[session].stopped |= self.sessions[carrier].stopped;
        let index = self.jobs.insert(NewNode { session, sequence: job.sequence, ..node });
        self.count_new_job(session, index);
        self.sessions[session].insert(job.sequence, index);
        self.mark_job(index);
        self.jobs.keys.insert(index, Key { text: key.clone(), digest: *digest });
        index
    }

    fn restore_forgotten(&mut self, job: u32, taken: bool) {
        let session = self.jobs.nodes[job].session;
        let (application, bundle) = (self.spec_of(job).application, self.spec_of(job).bundle);
        if !self.jobs.nodes[job].is_terminal() {
            self.release_bundle(application, bundle);
            let application = &mut self.applications[application];
            application.totals.queued -= 1;
            application.payload_bytes -= self.jobs.nodes[job].payload.bytes();
            self.move_job(job, Phase::Backoff);
        }
        let node = self.forget_node(job);
        self.sessions[session].forget(node.sequence, taken);
        self.sessions[session].jobs -= 1;
        self.refresh_spare_by_jobs(session);
    }

    fn restore_job(&mut self, job: u32, image: JobImage, age: Duration) {
        let JobImage {
            attempts,
            executions,
            failures,
            crashes,
            cancelling,
            last_failure,
            open,
            checkpoints,
            stage,
        } = image;
        let node = &mut self.jobs.nodes[job];
        node.attempts = attempts;
        node.executions = executions;
        node.failures = failures;
        node.crashes = crashes;
        node.cancelling = cancelling;
        self.mark_job(job);
        let wait = if attempts > 0 && self.spec_of(job).recipe.options.is_exclusive() {
            // How its last attempt ended is not known any more: its watchdog may have to end it yet.
            Some(self.lost_after() + self.interval())
        } else {
            // It was waiting when the scheduler ended; for how much longer is not known any more.
            last_failure.is_some().then_some(RETRY_BACKOFF_MIN)
        };
        if let Some(failure) = last_failure {
            self.jobs.last_failures.insert(job, failure);
        }
        if !checkpoints.is_empty() {
            self.jobs.checkpoints.insert(job, checkpoints);
        }
        for open in open.iter().rev() {
            self.restore_attempt(job, *open, age);
        }
        let live = open.iter().find(|open| !open.lapsed);
        match stage {
            Stage::Ended { report, output_bytes, taken } => {
                let state =
                    report.failure.as_ref().map_or(JobState::Finished, |failure| failure.kind.state());
                if taken {
                    self.jobs.nodes[job].delivery = Delivery::Taken;
                }
                let (application, bundle) = (self.spec_of(job).application, self.spec_of(job).bundle);
                let output_bytes = if taken { 0 } else { output_bytes };
                let report = self.jobs.ended.insert(EndedJob { report, output_bytes });
                self.move_job(job, Phase::Ended { state, report });
                self.release_bundle(application, bundle);
            }
            Stage::Held { failure, report } => {
                let began = self.jobs.nodes[job].submitted + report.queued;
                let run = Run::of_report(&report, began);
                self.jobs.verdicts.insert(job, (failure, run));
                let phase = match live {
                    None => Phase::Held,
                    Some(OpenAttempt { ran: Some(_), .. }) => Phase::Running,
                    Some(OpenAttempt { ran: None, .. }) => Phase::Placed,
                };
                self.move_job(job, phase);
            }
            Stage::Live => match live {
                Some(OpenAttempt { ran: Some(_), .. }) => self.move_job(job, Phase::Running),
                Some(OpenAttempt { ran: None, .. }) => self.move_job(job, Phase::Placed),
                None => {
                    if let Some(wait) = wait {
                        self.back_off(job, wait);
                    }
                }
            },
        }
    }

    fn restore_attempt(&mut self, job: u32, open: OpenAttempt, age: Duration) {
        let OpenAttempt { attempt, worker: worker_id, ran, lapsed } = open;
        let worker = match self.workers.by_id.get(&worker_id) {
            Some(&worker) => worker,
            None => self.restore_worker(worker_id, WorkerImage::default()),
        };
        let fate = if lapsed { Fate::Lapsed } else { Fate::Open };
        // The worker's inventory will say it better.
        let began = ran.map(|ran| self.now - age - ran);
        let attempt = Attempt { fate, began, ..self.new_attempt(job, attempt, worker) };
        let Attempt { application, slots, .. } = attempt;
        let index = self.add_attempt(attempt);
        let record = &mut self.workers.all[worker];
        record.slots += slots;
        record.take_slots(&self.attempts[index]);
        if !lapsed {
            self.use_slots(application, slots);
        }
    }

    /// Ended jobs are forgotten in the order in which they ended.
    fn restore_retention(&mut self, mut ended: Vec<(Duration, u32)>) {
        ended.sort_unstable_by_key(|&(age, job)| (Reverse(age), job));
        for (age, job) in ended {
            let left = self.left_of_retention(age);
            self.retain(job, self.now + left);
        }
    }

    /// For how much longer something of this age is kept.
    fn left_of_retention(&self, age: Duration) -> Duration {
        // A clock that was set, or a long absence, must not make it go before anybody could come for it.
        let least = RETENTION_AFTER_START.min(self.settings.result_retention / 8);
        self.settings.result_retention.saturating_sub(age).max(least)
    }

    /// Leases and absences begin, and what has nothing left to wait for goes on.
    fn finish_restore(&mut self) {
        for worker in self.workers.all.indices() {
            let record = &mut self.workers.all[worker];
            let lapsed = |&attempt: &u32| self.attempts[attempt].fate == Fate::Lapsed;
            if !record.attempts.is_empty() && record.attempts.values().all(lapsed) {
                record.standing = Standing::Lost;
                self.workers.known -= 1;
            }
            self.workers.rekey(worker);
            self.schedule_lease_check(worker);
            self.schedule_drain(worker);
        }
        self.bundles.forget_platforms();
        for application in self.applications.indices() {
            let Application { sessions, presence, .. } = &self.applications[application];
            if let &Presence::Away { since, .. } = presence {
                let kept = sessions.iter().map(|&session| self.sessions[session].kept).max();
                let until = since + kept.unwrap_or_default();
                self.applications[application].presence = Presence::Away { since, until };
            }
            self.start_absence(application);
        }
        for session in self.sessions.indices() {
            let record = &mut self.sessions[session];
            if record.decided && !record.is_keyed() {
                record.accepted = record.received();
            }
        }
        for job in self.jobs.nodes.indices() {
            // Ends make room for results, of which the oldest are forgotten.
            let Some(node) = self.jobs.nodes.get(job) else { continue };
            if node.cancelling && !node.is_terminal() && self.live_attempt(job).is_none() {
                // Only its end was not kept any more.
                self.end_unplaced(job, super::attempts::cancelled());
            } else if node.is_terminal() && self.sessions[node.session].stopped {
                self.forget_job(job);
            }
        }
        self.make_room_for_ended();
        for application in self.applications.indices() {
            // What was stopped and has no job: nothing else that ends would lead there.
            if self.applications.get(application).is_some() {
                self.forget_if_over(application);
            }
        }
    }

    /// What came of restoring, to be carried out before anything else.
    pub(crate) fn take_restored(&mut self) -> Vec<super::Action> {
        self.take_actions()
    }
}
