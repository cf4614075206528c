//! What is kept of each job, the queues they wait in, and their moves from state to state.
//!
//! A job is one node of 64 bytes. Queues are lists linked through the nodes, one for each (application, service, priority,
//! slots), so that all jobs of a queue are alike to placement. What jobs of equal options have in common is one [`Spec`]; what
//! few jobs have is in side tables.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::JobId;
use lrts_core::limits::PREFETCH_RUN_TIME;
use lrts_core::spec::JobOptions;
use lrts_core::status::{Failure, JobState};

use super::attempts::Run;
use super::bounds::RoughSize;
use super::events::Recipe;
use super::sessions::marks_of;
use super::slab::{NONE, Slab};
use super::submits::Key;
use super::{Engine, Timer};
use crate::record::Report;

/// Recent specs of a service that a submit is compared with. More variety than this makes more records, nothing worse.
const RECENT_SPECS: usize = 8;

/// Weight of a new measurement in a service's mean run time: one in this many.
const MEAN_WEIGHT: u64 = 8;

/// A job that may be gone by the time it is looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct JobHandle {
    pub(super) index: u32,
    generation: u32,
}

/// Where a job stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// In its queue, between these two.
    Queued { previous: u32, next: u32 },
    /// Waits for its backoff to pass.
    Backoff,
    /// Has failed for good, but an attempt of it is still open at a lost worker. How it ends if that brings nothing is in
    /// [`Jobs::verdicts`].
    Held,
    /// Sent to a worker, where it hasn't begun.
    Placed,
    /// An attempt has begun at a worker that is trusted.
    Running,
    /// Terminal; the index is that of its report.
    Ended { state: JobState, report: u32 },
}

/// What the application wants to have of a job's result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Delivery {
    /// Nothing so far.
    Unwanted,
    /// To be sent under credit.
    Wanted,
    /// To be sent at once.
    Urgent,
    /// Sent, not known to have been returned to the caller.
    Sent,
    /// Returned to the caller; its body is gone.
    Taken,
}

/// One job.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) sequence: u64,
    pub(super) submitted: Moment,
    pub(super) session: u32,
    pub(super) spec: u32,
    generation: u32,
    /// First of its open attempts, linked through [`Attempt::next`](super::attempts::Attempt::next).
    pub(super) open: u32,
    /// The newest attempt's number.
    pub(super) attempts: u32,
    /// How many of them began.
    pub(super) executions: u32,
    /// Returned errors and panics.
    pub(super) failures: u32,
    /// Dead processes.
    pub(super) crashes: u32,
    pub(super) phase: Phase,
    pub(super) delivery: Delivery,
    pub(super) payload: RoughSize,
    /// Whether it ends as cancelled once its attempt has ended.
    pub(super) cancelling: bool,
}

// A million waiting jobs are to fit in 64 MB.
const _: () = assert!(std::mem::size_of::<Option<Node>>() == 64);

/// What a job is made of.
pub(super) struct NewNode {
    pub(super) session: u32,
    pub(super) sequence: u64,
    pub(super) spec: u32,
    pub(super) payload_bytes: u32,
    pub(super) submitted: Moment,
}

impl Node {
    /// The state that people see.
    pub(super) fn state(&self) -> JobState {
        match self.phase {
            Phase::Queued { .. } | Phase::Backoff | Phase::Held | Phase::Placed => JobState::Queued,
            Phase::Running => JobState::Running,
            Phase::Ended { state, .. } => state,
        }
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }
}

/// What jobs of one service and equal options have in common.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) application: u32,
    pub(super) service: u32,
    pub(super) bundle: u32,
    pub(super) queue: u32,
    pub(super) slots: u32,
    pub(super) recipe: Arc<Recipe>,
    /// How many jobs refer to it.
    jobs: u32,
}

/// Where the queue's first job stands in its application's order: priority, then age.
pub(super) type ReadyKey = (Reverse<i32>, Moment, u64, u32);

/// Jobs of one service, priority and number of slots that wait.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) application: u32,
    pub(super) service: u32,
    pub(super) bundle: u32,
    pub(super) priority: i32,
    pub(super) slots: u32,
    pub(super) head: u32,
    pub(super) tail: u32,
    pub(super) length: u64,
    /// Its place among its application's ready queues, if it has one.
    pub(super) key: Option<ReadyKey>,
    /// Whether no known worker can serve it.
    pub(super) barred: bool,
    /// Whether it is among its bundle's, because jobs wait in it.
    pub(super) waits: bool,
    /// How many specs refer to it.
    specs: u32,
}

/// One service of one program, as an application schedules it.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) application: u32,
    pub(super) bundle: u32,
    pub(super) name: Arc<str>,
    /// Smoothed run time of its executions, in microseconds; none was measured yet where there is none.
    pub(super) mean_us: Option<u64>,
    /// Its queues by priority and slots.
    pub(super) queues: BTreeMap<(i32, u32), u32>,
    recent_specs: Vec<u32>,
    /// How many sessions name it.
    pub(super) sessions: u32,
}

impl Service {
    pub(super) fn new(application: u32, bundle: u32, name: Arc<str>) -> Self {
        Self {
            application,
            bundle,
            name,
            mean_us: None,
            queues: BTreeMap::new(),
            recent_specs: Vec::new(),
            sessions: 0,
        }
    }

    /// Whether its jobs are known to be short enough to be sent ahead of a free slot.
    pub(super) fn is_short(&self) -> bool {
        self.mean_us.is_some_and(|mean| Duration::from_micros(mean) < PREFETCH_RUN_TIME)
    }

    pub(super) fn measure(&mut self, ran: Duration) {
        let ran = u64::try_from(ran.as_micros()).unwrap_or(u64::MAX / MEAN_WEIGHT);
        self.mean_us = Some(match self.mean_us {
            None => ran,
            // The newest counts for an eighth, so that one odd job changes little and a changed service shows soon.
            Some(mean) => mean - mean / MEAN_WEIGHT + ran / MEAN_WEIGHT,
        });
    }
}

/// How a job ended.
#[derive(Debug)]
pub(super) struct EndedJob {
    pub(super) report: Report,
    pub(super) output_bytes: u64,
}

/// All jobs.
#[derive(Debug)]
pub(super) struct Jobs {
    pub(super) nodes: Slab<Node>,
    pub(super) specs: Slab<Spec>,
    pub(super) queues: Slab<Queue>,
    pub(super) ended: Slab<EndedJob>,
    /// Why a job's last attempt brought no result, for jobs that will be run again.
    pub(super) last_failures: BTreeMap<u32, Failure>,
    /// How jobs end that have failed for good while an older attempt was open, unless that brings a result.
    pub(super) verdicts: BTreeMap<u32, (Failure, Run)>,
    /// The keys of those that have one.
    pub(super) keys: BTreeMap<u32, Key>,
    /// Terminal ones of which an attempt may still be somewhere, so that its number may not be used again.
    pub(super) astray: BTreeSet<u32>,
    /// Their last attempts once they are forgotten, for jobs with a key: if the key comes again, numbers go on.
    pub(super) left: BTreeMap<JobId, u32>,
    /// Until when that is remembered.
    pub(super) left_until: VecDeque<(Moment, JobId)>,
    /// Attempts whose checkpoints are kept, the newest checkpoint last.
    pub(super) checkpoints: BTreeMap<u32, Vec<u32>>,
    /// How many jobs are in each state, in the order of [`JobState::ALL`].
    pub(super) counts: [u64; JobState::ALL.len()],
    generations: u32,
}

impl Jobs {
    pub(super) fn new() -> Self {
        Self {
            nodes: Slab::new(),
            specs: Slab::new(),
            queues: Slab::new(),
            ended: Slab::new(),
            last_failures: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            keys: BTreeMap::new(),
            astray: BTreeSet::new(),
            left: BTreeMap::new(),
            left_until: VecDeque::new(),
            checkpoints: BTreeMap::new(),
            counts: [0; JobState::ALL.len()],
            generations: 0,
        }
    }

    pub(super) fn handle(&self, index: u32) -> JobHandle {
        JobHandle { index, generation: self.nodes[index].generation }
    }

    pub(super) fn is_current(&self, handle: JobHandle) -> bool {
        self.nodes.get(handle.index).is_some_and(|node| node.generation == handle.generation)
    }

    /// Makes a job that isn't in its queue yet.
    pub(super) fn insert(&mut self, new: NewNode) -> u32 {
        let NewNode { session, sequence, spec, payload_bytes, submitted } = new;
        self.generations = self.generations.wrapping_add(1);
        self.specs[spec].jobs += 1;
        self.counts[count_of(JobState::Queued)] += 1;
        self.nodes.insert(Node {
            sequence,
            submitted,
            session,
            spec,
            generation: self.generations,
            open: NONE,
            attempts: 0,
            executions: 0,
            failures: 0,
            crashes: 0,
            phase: Phase::Backoff,
            delivery: Delivery::Unwanted,
            payload: RoughSize::of(payload_bytes),
            cancelling: false,
        })
    }

    /// Puts a job at its queue's end.
    pub(super) fn push_back(&mut self, job: u32) {
        let queue = &mut self.queues[self.specs[self.nodes[job].spec].queue];
        let previous = std::mem::replace(&mut queue.tail, job);
        queue.length += 1;
        match previous {
            NONE => queue.head = job,
            previous => self.link(previous, None, Some(job)),
        }
        self.nodes[job].phase = Phase::Queued { previous, next: NONE };
    }

    /// Puts a job at its queue's front: it has waited already.
    pub(super) fn push_front(&mut self, job: u32) {
        let queue = &mut self.queues[self.specs[self.nodes[job].spec].queue];
        let next = std::mem::replace(&mut queue.head, job);
        queue.length += 1;
        match next {
            NONE => queue.tail = job,
            next => self.link(next, Some(job), None),
        }
        self.nodes[job].phase = Phase::Queued { previous: NONE, next };
    }

    /// Takes a job out of its queue. It must be given a new phase at once.
    fn unlink(&mut self, job: u32) {
        let Phase::Queued { previous, next } = self.nodes[job].phase else { return };
        let queue = &mut self.queues[self.specs[self.nodes[job].spec].queue];
        queue.length -= 1;
        if previous == NONE {
            queue.head = next;
        }
        if next == NONE {
            queue.tail = previous;
        }
        if previous != NONE {
            self.link(previous, None, Some(next));
        }
        if next != NONE {
            self.link(next, Some(previous), None);
        }
    }

    fn link(&mut self, job: u32, new_previous: Option<u32>, new_next: Option<u32>) {
        let Phase::Queued { previous, next } = &mut self.nodes[job].phase else {
            unreachable!("only queued jobs are linked")
        };
        *previous = new_previous.unwrap_or(*previous);
        *next = new_next.unwrap_or(*next);
    }

    /// All jobs of a queue, in order.
    pub(super) fn queued_in(&self, queue: u32) -> Vec<u32> {
        let mut jobs = Vec::new();
        let mut job = self.queues[queue].head;
        while let Some(Node { phase: Phase::Queued { next, .. }, .. }) = self.nodes.get(job) {
            jobs.push(job);
            job = *next;
        }
        jobs
    }

    fn release_spec(&mut self, spec: u32) -> Option<Spec> {
        let record = &mut self.specs[spec];
        record.jobs -= 1;
        (record.jobs == 0).then(|| self.specs.remove(spec))
    }
}

pub(super) fn count_of(state: JobState) -> usize {
    JobState::ALL.iter().position(|&other| other == state).expect("ALL has every state")
}

impl Engine {
    pub(super) fn job_id(&self, job: u32) -> JobId {
        let node = &self.jobs.nodes[job];
        self.sessions[node.session].id.job(node.sequence)
    }

    pub(super) fn spec_of(&self, job: u32) -> &Spec {
        &self.jobs.specs[self.jobs.nodes[job].spec]
    }

    /// The spec of jobs of this service with these options, shared with earlier ones where possible. It must be used at once.
    pub(super) fn spec_for(&mut self, service: u32, options: &JobOptions) -> u32 {
        let record = &self.services[service];
        let known = record.recent_specs.iter().copied();
        if let Some(spec) = known.into_iter().find(|&spec| self.jobs.specs[spec].recipe.options == *options) {
            return spec;
        }
        let (application, bundle) = (record.application, record.bundle);
        let owner = &self.applications[application];
        let recipe = Arc::new(Recipe {
            application: owner.id,
            bundle: self.bundles[bundle].reference.clone(),
            service: Arc::clone(&record.name),
            options: options.clone(),
            progress_rtt_test: owner.terms.progress_rtt_test,
        });
        let (priority, slots) = (options.get_priority(), options.get_slots());
        let queue = self.queue_for(service, priority, slots);
        self.jobs.queues[queue].specs += 1;
        let spec = Spec { application, service, bundle, queue, slots, recipe, jobs: 0 };
        let spec = self.jobs.specs.insert(spec);
        let recent = &mut self.services[service].recent_specs;
        if recent.len() == RECENT_SPECS {
            recent.remove(0);
        }
        recent.push(spec);
        spec
    }

    fn queue_for(&mut self, service: u32, priority: i32, slots: u32) -> u32 {
        let record = &mut self.services[service];
        *record.queues.entry((priority, slots)).or_insert_with(|| {
            self.jobs.queues.insert(Queue {
                application: record.application,
                service,
                bundle: record.bundle,
                priority,
                slots,
                head: NONE,
                tail: NONE,
                length: 0,
                key: None,
                barred: false,
                waits: false,
                specs: 0,
            })
        })
    }

    /// Moves a job to another phase: the one function that does, for all but queueing.
    pub(super) fn move_job(&mut self, job: u32, phase: Phase) {
        let before = self.jobs.nodes[job].state();
        let queued = matches!(self.jobs.nodes[job].phase, Phase::Queued { .. });
        self.jobs.unlink(job);
        self.jobs.nodes[job].phase = phase;
        if queued {
            self.refresh_queue(self.spec_of(job).queue);
        }
        if self.jobs.nodes[job].is_terminal() {
            self.mark_job(job);
        }
        self.count_move(job, before);
    }

    /// What a session's marks say of a job follows from its phase, from whether it is being cancelled and from what is wanted of it:
    /// one of these has changed, or it is new in the session's table.
    pub(super) fn mark_job(&mut self, job: u32) {
        let node = &self.jobs.nodes[job];
        let session = &mut self.sessions[node.session];
        session.mark(node.sequence, marks_of(node, session.is_keyed()));
    }

    pub(super) fn set_delivery(&mut self, job: u32, delivery: Delivery) {
        self.jobs.nodes[job].delivery = delivery;
        self.mark_job(job);
    }

    /// Puts a job (back) into its queue: one that waited already to the front.
    pub(super) fn queue_job(&mut self, job: u32) {
        let before = self.jobs.nodes[job].state();
        if self.jobs.nodes[job].attempts == 0 {
            self.jobs.push_back(job);
        } else {
            self.jobs.push_front(job);
        }
        self.refresh_queue(self.spec_of(job).queue);
        self.count_move(job, before);
    }

    fn count_move(&mut self, job: u32, before: JobState) {
        let after = self.jobs.nodes[job].state();
        if before == after {
            return;
        }
        self.jobs.counts[count_of(before)] -= 1;
        self.jobs.counts[count_of(after)] += 1;
        let application = self.spec_of(job).application;
        let record = &mut self.applications[application];
        *total_of(&mut record.totals, before) -= 1;
        *total_of(&mut record.totals, after) += 1;
        if after.is_terminal() {
            record.payload_bytes -= self.jobs.nodes[job].payload.bytes();
        }
        self.totals_changed(application);
    }

    pub(super) fn backoff_passed(&mut self, job: JobHandle) {
        // It may have been cancelled meanwhile, or an older attempt of it may have come back.
        if self.jobs.is_current(job) && self.jobs.nodes[job.index].phase == Phase::Backoff {
            self.queue_job(job.index);
            let spec = self.spec_of(job.index);
            if let Some(reason) = self.program_failure(spec.application, spec.bundle).cloned() {
                self.fail_waiting(&[job.index], &reason);
            }
        }
    }

    /// Lets a job wait before it is queued again.
    pub(super) fn back_off(&mut self, job: u32, wait: Duration) {
        self.move_job(job, Phase::Backoff);
        self.timers.insert((self.now + wait, Timer::Retry(self.jobs.handle(job))));
    }

    /// Drops a terminal job's record.
    pub(super) fn forget_node(&mut self, job: u32) -> Node {
        let node = self.jobs.nodes.remove(job);
        self.jobs.counts[count_of(node.state())] -= 1;
        self.jobs.last_failures.remove(&job);
        self.jobs.keys.remove(&job);
        if let Phase::Ended { report, .. } = node.phase {
            self.jobs.ended.remove(report);
        }
        let index = node.spec;
        if let Some(spec) = self.jobs.release_spec(index) {
            let service = &mut self.services[spec.service];
            service.recent_specs.retain(|&other| other != index);
            let queue = &mut self.jobs.queues[spec.queue];
            queue.specs -= 1;
            if queue.specs == 0 {
                service.queues.remove(&(queue.priority, queue.slots));
                self.barred.retain(|&other| other != spec.queue);
                self.jobs.queues.remove(spec.queue);
            }
        }
        node
    }
}

/// The total that a state counts for.
pub(super) fn total_of(totals: &mut super::Totals, state: JobState) -> &mut u64 {
    match state {
        JobState::Queued => &mut totals.queued,
        JobState::Running => &mut totals.running,
        JobState::Finished => &mut totals.finished,
        JobState::Cancelled => &mut totals.cancelled,
        JobState::Failed | JobState::Crashed | JobState::TimedOut | _ => &mut totals.failed,
    }
}
