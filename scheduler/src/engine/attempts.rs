//! Attempts: what their beginnings and ends mean for their jobs.
//!
//! An attempt is *open* until it has ended, was killed by order, or its job is terminal. A job may have several: those at lost
//! workers go on counting, the first valid result wins. A failure ends a job only once no other attempt of it is open.

use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{AttemptId, WorkerId};
use lrts_core::limits::RETRY_BACKOFF_MIN;
use lrts_core::spec::JobOptions;
use lrts_core::status::{Failure, FailureKind, JobState};

use super::Engine;
use super::events::{AttemptOutcome, Message, Note, Peer};
use super::jobs::{EndedJob, Phase};
use super::retry::{self, Charges};
use super::slab::NONE;
use super::workers::{Standing, Verdict, Worker};
use crate::record::{Record, Report};

/// Whether an attempt's result counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It does.
    Open,
    /// It does, but its worker is lost: the job is placed again.
    Lapsed,
    /// It doesn't any more. It was ordered to stop and takes its slots until it has.
    Fenced,
}

/// Where at its worker an attempt is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Position {
    /// It takes its slots.
    Slot,
    /// Sent ahead of a free slot.
    Ahead {
        /// How long it will take, as measured before.
        estimate_us: u64,
    },
}

/// One dispatch.
#[derive(Debug)]
pub(super) struct Attempt {
    /// Its job; only to be used unless it is fenced.
    pub(super) job: u32,
    pub(super) id: AttemptId,
    /// The job's next open attempt.
    pub(super) next: u32,
    pub(super) worker: u32,
    pub(super) application: u32,
    pub(super) bundle: u32,
    pub(super) slots: u32,
    pub(super) priority: i32,
    /// Whether no other attempt of its job may run while this one may.
    pub(super) exclusive: bool,
    /// Whether its service was known to take little time.
    pub(super) short: bool,
    pub(super) fate: Fate,
    pub(super) position: Position,
    /// When it began, if it did.
    pub(super) began: Option<Moment>,
    /// Its process there, 0 before it began.
    pub(super) pid: u32,
    /// Whether it was asked to come back.
    pub(super) recalled: bool,
}

impl Engine {
    pub(super) fn attempt_id(&self, attempt: u32) -> AttemptId {
        self.attempts[attempt].id
    }

    /// Dispatches a job to a worker.
    pub(super) fn dispatch(&mut self, job: u32, worker: u32, position: Position) {
        let spec = self.spec_of(job);
        let recipe = spec.recipe.clone();
        let short = self.services[spec.service].is_short();
        let number = self.jobs.nodes[job].attempts + 1;
        let attempt = Attempt { short, position, ..self.new_attempt(job, number, worker) };
        let Attempt { id, application, slots, priority, .. } = attempt;
        self.move_job(job, Phase::Placed);
        let node = &mut self.jobs.nodes[job];
        node.attempts = number;
        let execution = node.executions + 1;
        let attempt = self.add_attempt(attempt);
        let record = &mut self.workers.all[worker];
        match position {
            Position::Slot => {
                assert!(record.free() >= slots, "a worker's slots are never oversubscribed");
                record.take_slots(&self.attempts[attempt]);
            }
            Position::Ahead { estimate_us } => {
                record.ahead.push_back(attempt);
                record.ahead_us += estimate_us;
                self.applications[application].ahead.insert((priority, attempt));
            }
        }
        let record = &self.workers.all[worker];
        let peer = record.peer().expect("only ready workers are chosen");
        self.workers.rekey(worker);
        self.use_slots(application, slots);
        self.job_changed(job);
        let checkpoint = self.newest_checkpoint(job);
        let owner = self.applications[application].terms.owner.clone();
        self.send(peer, Message::Start { attempt: id, execution, owner, recipe, checkpoint });
    }

    /// An attempt of a job at a worker, which takes its slots and hasn't begun.
    pub(super) fn new_attempt(&self, job: u32, number: u32, worker: u32) -> Attempt {
        let spec = self.spec_of(job);
        let options = &spec.recipe.options;
        Attempt {
            job,
            id: AttemptId { job: self.job_id(job), attempt: number },
            next: NONE,
            worker,
            application: spec.application,
            bundle: spec.bundle,
            slots: spec.slots,
            priority: options.get_priority(),
            exclusive: options.is_exclusive(),
            short: false,
            fate: Fate::Open,
            position: Position::Slot,
            began: None,
            pid: 0,
            recalled: false,
        }
    }

    /// Makes an attempt the newest open one of its job, and one of its worker's.
    pub(super) fn add_attempt(&mut self, attempt: Attempt) -> u32 {
        let Attempt { job, id, worker, bundle, .. } = attempt;
        self.bundles.add_attempt(bundle);
        let next = self.jobs.nodes[job].open;
        let index = self.attempts.insert(Attempt { next, ..attempt });
        self.jobs.nodes[job].open = index;
        self.workers.all[worker].attempts.insert(id, index);
        index
    }

    /// The attempt that a worker speaks of, if it still has one of that name. Another worker's is none of its business.
    pub(super) fn attempt_at(&mut self, peer: Peer, id: AttemptId) -> Option<(u32, Option<u32>)> {
        let worker = self.heard_worker(peer)?;
        let Worker { id: worker_id, attempts, .. } = &self.workers.all[worker];
        let (worker_id, attempt) = (*worker_id, attempts.get(&id).copied());
        if attempt.is_none() {
            self.note(Note::UnknownAttempt { worker: worker_id, attempt: id });
        }
        Some((worker, attempt))
    }

    pub(super) fn began(&mut self, peer: Peer, id: AttemptId, pid: u32) {
        let Some((_, Some(attempt))) = self.attempt_at(peer, id) else { return };
        let record = &mut self.attempts[attempt];
        if record.began.is_some() {
            return;
        }
        record.began = Some(self.now);
        record.pid = pid;
        self.seat(attempt);
        if self.attempts[attempt].fate == Fate::Open {
            self.execution_began(attempt);
            self.move_job(self.attempts[attempt].job, Phase::Running);
        }
    }

    /// Counts an execution.
    pub(super) fn execution_began(&mut self, attempt: u32) {
        let Attempt { job, bundle, worker, .. } = self.attempts[attempt];
        self.jobs.nodes[job].executions += 1;
        self.workers.all[worker].verdicts.insert(bundle, Verdict::Proven);
        self.job_changed(job);
    }

    /// An attempt needn't be taken back any more for a higher priority.
    fn forget_ahead(&mut self, attempt: u32) {
        let Attempt { application, priority, .. } = self.attempts[attempt];
        self.applications[application].ahead.remove(&(priority, attempt));
    }

    /// Gives slots to an attempt that was sent ahead: it has begun, or it is the next to.
    fn seat(&mut self, attempt: u32) {
        let record = &mut self.attempts[attempt];
        let Position::Ahead { estimate_us } = record.position else { return };
        record.position = Position::Slot;
        let open = record.fate == Fate::Open;
        let worker = &mut self.workers.all[record.worker];
        worker.ahead.retain(|&other| other != attempt);
        worker.ahead_us -= estimate_us;
        worker.take_slots(record);
        let worker = record.worker;
        self.workers.rekey(worker);
        if open {
            self.forget_ahead(attempt);
        }
    }

    pub(super) fn ended(
        &mut self,
        peer: Peer,
        id: AttemptId,
        outcome: AttemptOutcome,
        ran: Duration,
        output_bytes: u64,
    ) {
        let Some((_, found)) = self.attempt_at(peer, id) else { return };
        let Some(attempt) = found else {
            // Stale: it ended before, or its job did.
            return self.send(peer, Message::Confirm { attempts: vec![id] });
        };
        if self.attempts[attempt].fate == Fate::Fenced {
            self.drop_attempt(attempt);
            return self.send(peer, Message::Confirm { attempts: vec![id] });
        }
        let job = self.attempts[attempt].job;
        let executed = matches!(outcome, AttemptOutcome::Finished | AttemptOutcome::Failed(_));
        if executed && self.attempts[attempt].began.is_none() {
            // Its beginning and its end came as one.
            self.attempts[attempt].began = Some(self.now - ran);
            self.execution_began(attempt);
        }
        if executed {
            let service = self.spec_of(job).service;
            self.services[service].measure(ran);
        }
        let cancelling = self.jobs.nodes[job].cancelling;
        let valid = outcome == AttemptOutcome::Finished && !cancelling;
        self.persist(Record::AttemptEnded { attempt: id, valid });
        let Attempt { began, bundle, worker, .. } = self.attempts[attempt];
        self.unlink_from_job(attempt);
        let worker_id = self.workers.all[worker].id;
        // Before the worker is forgotten with its last attempt.
        let blames_worker = match &outcome {
            AttemptOutcome::Failed(failure) if retry::is_crash(failure.kind) => {
                !cancelling && {
                    self.jobs.nodes[job].crashes += 1;
                    self.died_at(job, worker, ran)
                }
            }
            AttemptOutcome::Finished | AttemptOutcome::Failed(_) => {
                self.ended_well(worker, bundle);
                false
            }
            AttemptOutcome::Stopped | AttemptOutcome::Lost { .. } => false,
        };
        self.drop_attempt(attempt);
        let run = Run { attempt: Some(id.attempt), worker: Some(worker_id), began, ran, output_bytes };
        match outcome {
            _ if cancelling => self.end_job(job, Some(cancelled()), run),
            // A failure closes only its own attempt while another one runs.
            AttemptOutcome::Failed(_) | AttemptOutcome::Stopped | AttemptOutcome::Lost { .. }
                if self.live_attempt(job).is_some() => {}
            AttemptOutcome::Finished => self.end_job(job, None, run),
            AttemptOutcome::Failed(failure) if blames_worker => {
                // Another one takes it at once.
                self.jobs.last_failures.insert(job, failure);
                self.run_again(job, run);
            }
            AttemptOutcome::Failed(failure) => self.charge(job, failure, run),
            AttemptOutcome::Stopped => self.run_again(job, run),
            AttemptOutcome::Lost { .. } if self.jobs.verdicts.contains_key(&job) => self.run_again(job, run),
            AttemptOutcome::Lost { reason } => {
                self.jobs.last_failures.insert(job, Failure::new(FailureKind::Crashed, reason));
                match began {
                    Some(_) => self.queue_job(job),
                    // A host that dies before anything began may do so every time.
                    None => self.back_off(job, RETRY_BACKOFF_MIN),
                }
            }
        }
        self.send(peer, Message::Confirm { attempts: vec![id] });
    }

    /// Counts a failure against its job, which is run again or ends. Deaths were counted already.
    fn charge(&mut self, job: u32, failure: Failure, run: Run) {
        self.job_changed(job);
        let node = &mut self.jobs.nodes[job];
        if !retry::is_crash(failure.kind) {
            node.failures += 1;
        }
        let charges = Charges { failures: node.failures, crashes: node.crashes };
        let options: &JobOptions = &self.jobs.specs[node.spec].recipe.options;
        let (retries, crash_limit) = (options.get_retries(), options.get_crash_limit());
        match retry::judge(failure.clone(), charges, retries, crash_limit, &mut self.jitter) {
            // Another attempt has failed for good already.
            retry::Verdict::Again(_) if self.jobs.verdicts.contains_key(&job) => self.run_again(job, run),
            retry::Verdict::Again(wait) => {
                self.jobs.last_failures.insert(job, failure);
                self.back_off(job, wait);
            }
            retry::Verdict::Terminal(failure) => self.fail_job(job, failure, run),
        }
    }

    /// A job without an attempt at a trusted worker has failed for good. It ends so unless an attempt at a lost worker, which
    /// may have been running for long, still brings a result.
    pub(super) fn fail_job(&mut self, job: u32, failure: Failure, run: Run) {
        if self.jobs.nodes[job].open == NONE {
            return self.end_job(job, Some(failure), run);
        }
        self.jobs.verdicts.insert(job, (failure, run));
        self.job_changed(job);
        self.move_job(job, Phase::Held);
    }

    pub(super) fn returned(&mut self, peer: Peer, attempts: &[AttemptId]) {
        for &id in attempts {
            let Some((_, Some(attempt))) = self.attempt_at(peer, id) else { continue };
            match self.attempts[attempt].fate {
                Fate::Fenced => self.drop_attempt(attempt),
                Fate::Open | Fate::Lapsed => self.close_unbegun(attempt),
            }
        }
    }

    pub(super) fn not_returned(&mut self, peer: Peer, id: AttemptId) {
        if let Some((_, Some(attempt))) = self.attempt_at(peer, id) {
            // It begins there by itself, or has; it isn't asked for again.
            self.seat(attempt);
        }
    }

    /// An open attempt isn't at its worker any more and brought nothing: charged to nobody.
    pub(super) fn close_unbegun(&mut self, attempt: u32) {
        let Attempt { job, fate, began, worker, .. } = self.attempts[attempt];
        let worker = self.workers.all[worker].id;
        self.unlink_from_job(attempt);
        self.drop_attempt(attempt);
        if fate == Fate::Open || self.jobs.nodes[job].phase == Phase::Held {
            self.run_again(job, Run::without_end(began.map(|began| (worker, began)), self.now));
        }
    }

    /// A job whose attempt is gone goes back to its queue, or ends if that was wanted, or as an earlier failure has decided.
    fn run_again(&mut self, job: u32, run: Run) {
        if self.jobs.nodes[job].cancelling {
            self.end_job(job, Some(cancelled()), run);
        } else if let Some((failure, run)) = self.jobs.verdicts.remove(&job) {
            self.fail_job(job, failure, run);
        } else {
            self.queue_job(job);
        }
    }

    /// An attempt's worker is lost: the attempt stays open, its job is placed again.
    pub(super) fn lapse(&mut self, attempt: u32) {
        let record = &mut self.attempts[attempt];
        let Attempt { job, application, slots, began, worker, .. } = *record;
        match record.fate {
            Fate::Fenced => self.drop_attempt(attempt),
            Fate::Lapsed => {}
            Fate::Open => {
                if record.exclusive {
                    // Its own watchdog has ended it by now. The margin is for clocks that don't run alike.
                    let promised = self.workers.all[worker].promised.saturating_sub(self.lost_after());
                    return self.end_lease(attempt, promised + self.interval());
                }
                record.fate = Fate::Lapsed;
                self.job_changed(job);
                self.forget_ahead(attempt);
                self.free_slots(application, slots);
                let worker = self.workers.all[worker].id;
                self.run_again(job, Run::without_end(began.map(|began| (worker, began)), self.now));
            }
        }
    }

    /// Closes an exclusive attempt that nobody has seen end. The job is placed again once its watchdog must have ended it,
    /// which is after this time.
    pub(super) fn end_lease(&mut self, attempt: u32, wait: Duration) {
        let Attempt { job, began, worker, .. } = self.attempts[attempt];
        let worker = self.workers.all[worker].id;
        self.unlink_from_job(attempt);
        self.drop_attempt(attempt);
        if self.jobs.nodes[job].cancelling {
            let run = Run::without_end(began.map(|began| (worker, began)), self.now);
            self.end_job(job, Some(cancelled()), run);
        } else {
            self.back_off(job, wait);
        }
    }

    /// Kills an open attempt by order: from now on nothing that it says counts.
    pub(super) fn fence(&mut self, attempt: u32) {
        let Attempt { job, id, worker, .. } = self.attempts[attempt];
        self.drop_checkpoint(job, id.attempt);
        self.unlink_from_job(attempt);
        let record = &self.workers.all[worker];
        let (peer, lost) = (record.peer(), record.standing == Standing::Lost);
        if lost {
            // If it comes back, the inventory's answer says that it is closed.
            return self.drop_attempt(attempt);
        }
        if self.attempts[attempt].fate == Fate::Open {
            self.forget_ahead(attempt);
            let Attempt { application, slots, .. } = self.attempts[attempt];
            self.free_slots(application, slots);
        }
        self.attempts[attempt].fate = Fate::Fenced;
        if let Some(peer) = peer {
            self.send(peer, Message::Stop { attempt: id });
        }
    }

    /// Takes an attempt out of its job's list of open ones.
    pub(super) fn unlink_from_job(&mut self, attempt: u32) {
        let Attempt { job, next, .. } = self.attempts[attempt];
        self.job_changed(job);
        if self.jobs.nodes[job].open == attempt {
            self.jobs.nodes[job].open = next;
        } else {
            let mut before = self.jobs.nodes[job].open;
            while self.attempts[before].next != attempt {
                before = self.attempts[before].next;
            }
            self.attempts[before].next = next;
        }
        self.tidy_checkpoints(job);
    }

    /// Drops an attempt's record, which is in no job's list any more, and frees its slots.
    pub(super) fn drop_attempt(&mut self, attempt: u32) {
        if self.attempts[attempt].fate == Fate::Open {
            self.forget_ahead(attempt);
        }
        let record = self.attempts.remove(attempt);
        self.bundles.remove_attempt(record.bundle);
        if record.fate == Fate::Open {
            self.free_slots(record.application, record.slots);
        }
        let worker = &mut self.workers.all[record.worker];
        worker.attempts.remove(&record.id);
        match record.position {
            Position::Slot => worker.give_slots(&record),
            Position::Ahead { estimate_us } => {
                worker.ahead.retain(|&other| other != attempt);
                worker.ahead_us -= estimate_us;
            }
        }
        self.seat_next(record.worker);
        self.workers.rekey(record.worker);
        self.forget_worker_if_empty(record.worker);
    }

    /// Gives freed slots to what was sent ahead, in the order in which the worker begins it.
    fn seat_next(&mut self, worker: u32) {
        while let Some(&next) = self.workers.all[worker].ahead.front()
            && self.workers.all[worker].free() >= self.attempts[next].slots
        {
            self.seat(next);
        }
    }

    /// Asks for an attempt back.
    pub(super) fn recall(&mut self, attempt: u32) {
        let record = &mut self.attempts[attempt];
        record.recalled = true;
        let (id, worker) = (record.id, record.worker);
        self.forget_ahead(attempt);
        if let Some(peer) = self.workers.all[worker].peer() {
            self.send(peer, Message::Recall { attempt: id });
        }
    }

    /// Ends a job that is at no trusted worker.
    pub(super) fn end_unplaced(&mut self, job: u32, failure: Failure) {
        self.end_job(job, Some(failure), Run::without_end(None, self.now));
    }

    /// The user's wish: a job that waits ends at once, another one when its attempt has.
    pub(super) fn cancel_job(&mut self, job: u32, failure: Failure) {
        let node = &mut self.jobs.nodes[job];
        if node.is_terminal() || node.cancelling {
            return;
        }
        node.cancelling = true;
        self.mark_job(job);
        self.job_changed(job);
        match self.live_attempt(job) {
            None => self.end_unplaced(job, failure),
            Some(attempt) => {
                self.jobs.last_failures.insert(job, failure);
                let Attempt { id, worker, .. } = self.attempts[attempt];
                if let Some(peer) = self.workers.all[worker].peer() {
                    self.send(peer, Message::Stop { attempt: id });
                }
            }
        }
    }

    /// Makes a job terminal: finished if there is no failure.
    fn end_job(&mut self, job: u32, failure: Option<Failure>, run: Run) {
        let failure = match (self.jobs.last_failures.remove(&job), failure) {
            // The wish to cancel said why.
            (Some(wish), Some(ending)) if ending.kind == FailureKind::Cancelled => {
                Some(if wish.kind == FailureKind::Cancelled { wish } else { ending })
            }
            (_, failure) => failure,
        };
        self.jobs.verdicts.remove(&job);
        while self.jobs.nodes[job].open != NONE {
            self.jobs.astray.insert(job);
            self.fence(self.jobs.nodes[job].open);
        }
        self.jobs.checkpoints.remove(&job);
        self.job_changed(job);
        let report = self.report_of(job, failure, run);
        let state = report.failure.as_ref().map_or(JobState::Finished, |failure| failure.kind.state());
        let (application, bundle) = (self.spec_of(job).application, self.spec_of(job).bundle);
        let id = self.job_id(job);
        self.note(Note::JobEnded { job: id, failed: state != JobState::Finished });
        let output_bytes = if state == JobState::Finished { run.output_bytes } else { 0 };
        let report = self.jobs.ended.insert(EndedJob { report, output_bytes });
        self.move_job(job, Phase::Ended { state, report });
        self.release_bundle(application, bundle);
        self.retain(job, self.now + self.settings.result_retention);
        self.make_room_for_ended();
        self.ended_job(job);
    }

    /// How a job went, if it ends now with this run as its last.
    pub(super) fn report_of(&self, job: u32, failure: Option<Failure>, run: Run) -> Report {
        let node = &self.jobs.nodes[job];
        Report {
            failure,
            attempt: run.attempt.unwrap_or(node.attempts),
            attempts: node.executions,
            worker: run.worker,
            queued: run.began.unwrap_or(self.now).since(node.submitted),
            ran: run.ran,
        }
    }
}

/// What is known of a job's last attempt when the job ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// None if its end wasn't reported.
    attempt: Option<u32>,
    worker: Option<WorkerId>,
    began: Option<Moment>,
    ran: Duration,
    output_bytes: u64,
}

impl Run {
    /// One whose end wasn't reported.
    pub(super) fn without_end(began: Option<(WorkerId, Moment)>, now: Moment) -> Self {
        Self {
            attempt: None,
            worker: began.map(|(worker, _)| worker),
            began: began.map(|(_, began)| began),
            ran: began.map_or(Duration::ZERO, |(_, began)| now.since(began)),
            output_bytes: 0,
        }
    }

    /// The one that a report is of, which began at this moment if it began at all.
    pub(super) fn of_report(report: &Report, began: Moment) -> Self {
        Self {
            attempt: Some(report.attempt),
            worker: report.worker,
            began: report.worker.map(|_| began),
            ran: report.ran,
            output_bytes: 0,
        }
    }
}

/// The failure of a job that its user stopped.
pub(super) fn cancelled() -> Failure {
    Failure::new(FailureKind::Cancelled, "cancelled")
}
