//! Seeded random histories: workers that crash, fall silent and come back, messages that are lost, doubled, late and out of
//! order. A plain model keeps book of what was said and checks it. `LRTS_SIM_SEED=n` replays one history.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use lrts_core::clock::Moment;
use lrts_core::ids::{AttemptId, JobId, SessionId, WorkerId};
use lrts_core::spec::JobOptions;
use lrts_core::status::FailureKind;

use super::cluster::{attach_of, failed, job_of, platform, registration, settings};
use crate::engine::{Action, AttemptOutcome, Engine, Event, Held, Message, Peer, Record};

const STEPS: u32 = 1_200;
const FEW_STEPS: u32 = 300;
const SEEDS: std::ops::Range<u64> = 0..12;
const WORKERS: u64 = 5;
const APPLICATIONS: u64 = 3;

#[test]
fn every_job_ends_exactly_once_whatever_happens_to_workers_and_messages() {
    if let Ok(seed) = std::env::var("LRTS_SIM_SEED") {
        return Simulation::new(seed.parse().expect("LRTS_SIM_SEED is a number")).run(STEPS);
    }
    for seed in SEEDS {
        println!("LRTS_SIM_SEED={seed}");
        Simulation::new(seed).run(STEPS);
    }
}

#[test]
fn the_same_history_gives_the_same_actions() {
    let trace = |seed| {
        let mut simulation = Simulation::new(seed);
        simulation.keep_trace = true;
        simulation.run(FEW_STEPS);
        simulation.trace
    };
    assert!(trace(3) == trace(3));
    assert!(trace(3) != trace(4));
}

/// A worker as it really is.
#[derive(Default)]
struct SimWorker {
    slots: u32,
    peer: Option<Peer>,
    /// Every attempt that is there.
    held: BTreeMap<AttemptId, SimAttempt>,
    /// On their way to it and from it.
    inbox: Vec<Message>,
    outbox: Vec<Event>,
}

struct SimAttempt {
    slots: u32,
    short: bool,
    began: Option<Moment>,
    /// How it ended; kept until that is confirmed.
    ended: Option<AttemptOutcome>,
}

/// The book that is kept of a job.
#[derive(Default)]
struct SimJob {
    attempts: u32,
    open: BTreeSet<AttemptId>,
    cancelled: bool,
    valid: u32,
    ended: bool,
}

struct Simulation {
    rng: Rng,
    engine: Engine,
    now: Moment,
    peers: u64,
    workers: BTreeMap<u64, SimWorker>,
    applications: BTreeMap<u64, Peer>,
    submitted: BTreeMap<u64, u64>,
    jobs: BTreeMap<JobId, SimJob>,
    /// Whether jobs are never sent ahead, so that each worker's slots can be counted from outside.
    long_only: bool,
    keep_trace: bool,
    trace: Vec<Action>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut simulation = Self {
            rng: Rng::with_seed(seed),
            engine: Engine::new(settings(seed)),
            now: Moment::default() + Duration::from_hours(1),
            peers: 0,
            workers: BTreeMap::new(),
            applications: BTreeMap::new(),
            submitted: BTreeMap::new(),
            jobs: BTreeMap::new(),
            long_only: seed % 2 == 1,
            keep_trace: false,
            trace: Vec::new(),
        };
        for number in 1..=APPLICATIONS {
            simulation.attach(number);
        }
        let digest = super::cluster::DIGEST;
        simulation.handle(Event::BundleCompleted { digest, platform: platform() });
        for number in 1..=WORKERS {
            let slots = simulation.rng.u32(1..=4);
            simulation.workers.insert(number, SimWorker { slots, ..SimWorker::default() });
        }
        simulation
    }

    fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            self.step();
        }
        self.heal();
    }

    fn peer(&mut self) -> Peer {
        self.peers += 1;
        Peer(self.peers)
    }

    fn attach(&mut self, number: u64) {
        let peer = self.peer();
        self.applications.insert(number, peer);
        let attach = attach_of(&format!("application {number}"), SessionId(number));
        self.handle(Event::Attached { peer, attach });
    }

    fn handle(&mut self, event: Event) {
        let actions = self.engine.handle(event, self.now);
        self.engine.check_invariants();
        for action in &actions {
            self.check(action);
        }
        if self.keep_trace {
            self.trace.extend(actions);
        }
    }

    /// Keeps book, and checks that what is done may be done.
    fn check(&mut self, action: &Action) {
        match action {
            Action::Persist(record) => self.check_record(record),
            Action::Send { to, message } | Action::SendAtOnce { to, message } => {
                let worker = self.workers.iter_mut().find(|(_, worker)| worker.peer == Some(*to));
                let Some((_, worker)) = worker else { return };
                match message {
                    Message::Start { attempt, recipe, .. } => {
                        assert!(
                            self.jobs[&attempt.job].open.contains(attempt),
                            "only open attempts are started"
                        );
                        if self.long_only {
                            // What the answer to its inventory tells it to forget is as good as gone.
                            let forgotten = |attempt: &AttemptId| {
                                worker.inbox.iter().any(|message| {
                                    matches!(message, Message::Registered { closed, .. } if closed.contains(attempt))
                                })
                            };
                            let here = worker.held.iter();
                            let here = here.filter(|(id, held)| held.ended.is_none() && !forgotten(id));
                            let used: u32 = here.map(|(_, held)| held.slots).sum();
                            let coming = worker.inbox.iter().map(|message| match message {
                                Message::Start { recipe, .. } => recipe.options.get_slots(),
                                _ => 0,
                            });
                            let used = used + coming.sum::<u32>() + recipe.options.get_slots();
                            assert!(used <= worker.slots, "slots are never oversubscribed");
                        }
                    }
                    Message::Stop { attempt } => {
                        if let Some(job) = self.jobs.get_mut(&attempt.job)
                            && !job.cancelled
                        {
                            job.open.remove(attempt);
                        }
                    }
                    Message::Registered { closed, .. } => {
                        for attempt in closed {
                            if let Some(job) = self.jobs.get_mut(&attempt.job) {
                                job.open.remove(attempt);
                            }
                        }
                    }
                    _ => {}
                }
                worker.inbox.push(message.clone());
            }
            Action::Disconnect { peer, .. } => {
                let disconnected = self.workers.values_mut().filter(|worker| worker.peer == Some(*peer));
                disconnected.for_each(SimWorker::cut);
            }
            Action::BundleInUse { .. } | Action::Note(_) => {}
        }
    }

    fn check_record(&mut self, record: &Record) {
        match record {
            Record::Submitted { session, first, jobs, .. } => {
                for sequence in *first..*first + jobs.len() as u64 {
                    self.jobs.insert(session.job(sequence), SimJob::default());
                }
            }
            Record::AttemptOpened { attempt, .. } => {
                let job = self.jobs.get_mut(&attempt.job).unwrap();
                assert!(!job.ended, "a terminal job is not placed");
                assert_eq!(attempt.attempt, job.attempts + 1, "attempts are numbered one by one");
                job.attempts += 1;
                job.open.insert(*attempt);
            }
            Record::AttemptEnded { attempt, valid } => {
                let job = self.jobs.get_mut(&attempt.job).unwrap();
                assert!(job.open.remove(attempt), "no word of a closed attempt counts");
                job.valid += u32::from(*valid);
            }
            Record::AttemptClosed { attempt } => {
                self.jobs.get_mut(&attempt.job).unwrap().open.remove(attempt);
            }
            Record::CancelAccepted { job } => self.jobs.get_mut(job).unwrap().cancelled = true,
            Record::JobEnded { job, report } => {
                let job = self.jobs.get_mut(job).unwrap();
                assert!(!job.ended, "a job ends once");
                job.ended = true;
                job.open.clear();
                let finished = report.failure.is_none();
                assert_eq!(job.valid, u32::from(finished), "a finished job has exactly one result");
                let cancelled =
                    report.failure.as_ref().is_some_and(|failure| failure.kind == FailureKind::Cancelled);
                assert_eq!(job.cancelled, cancelled, "a cancel wins, and nothing else looks like one");
            }
            Record::SessionOpened { .. }
            | Record::AttemptBegan { .. }
            | Record::Taken { .. }
            | Record::JobForgotten { .. }
            | Record::SessionForgotten { .. } => {}
        }
    }

    fn step(&mut self) {
        let worker = self.rng.u64(1..=WORKERS);
        match self.rng.u32(0..100) {
            0..8 => self.submit(),
            8..30 => self.deliver_to(worker, true),
            30..55 => self.deliver_from(worker, true),
            55..70 => self.begin(worker),
            70..82 => self.end(worker, true),
            82..84 => self.cancel(),
            84..91 => self.join(worker),
            91..93 => self.disconnect(worker),
            93 => {
                self.disconnect(worker);
                self.workers.get_mut(&worker).unwrap().held.clear();
            }
            94 => {
                let application = self.rng.u64(1..=APPLICATIONS);
                self.attach(application);
            }
            95 => self.say_goodbye(worker),
            96..99 => {
                let span = self.rng.u64(0..4_000);
                self.pass(Duration::from_millis(span))
            }
            _ => {
                let span = self.rng.u64(0..25_000);
                self.pass(Duration::from_millis(span))
            }
        }
    }

    fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(at) = self.engine.next_deadline().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.handle(Event::Tick);
        }
        self.now = end;
        for worker in 1..=WORKERS {
            // Some heartbeats are late or lost.
            if let (Some(peer), true) = (self.workers[&worker].peer, self.rng.u32(0..10) > 0) {
                self.handle(Event::HeartbeatReceived { peer });
            }
        }
        self.handle(Event::Tick);
    }

    fn submit(&mut self) {
        let number = self.rng.u64(1..=APPLICATIONS);
        let peer = self.applications[&number];
        let next = self.submitted.entry(number).or_default();
        let count = self.rng.u64(1..8);
        // Some submits come twice, or overlap.
        let first = (*next + 1).saturating_sub(self.rng.u64(0..3)).max(1);
        *next = (*next).max(first + count - 1);
        let options = JobOptions::new()
            .priority(self.rng.i32(-1..=1))
            .slots(self.rng.u32(1..=2))
            .retries(self.rng.u32(0..3))
            .crash_limit(self.rng.u32(1..4));
        let long_only = self.long_only;
        let jobs = (0..count).map(|_| job_of(if long_only { 1 } else { self.rng.u16(0..2) })).collect();
        self.handle(Event::Submitted { peer, first, options: vec![options], jobs });
    }

    fn cancel(&mut self) {
        let jobs: Vec<JobId> = self.jobs.keys().copied().collect();
        if let Some(&job) = self.rng.choice(&jobs) {
            self.handle(Event::JobsCancelled { jobs: vec![job] });
        }
    }

    fn join(&mut self, number: u64) {
        if self.workers[&number].peer.is_some() {
            return;
        }
        let peer = self.peer();
        let now = self.now;
        let worker = self.workers.get_mut(&number).unwrap();
        worker.peer = Some(peer);
        let held = worker
            .held
            .iter()
            .map(|(&attempt, held)| Held {
                attempt,
                running: held.began.map(|began| now.since(began)),
                pid: 9,
            })
            .collect();
        // Ends that weren't confirmed are told again.
        for (&attempt, held) in &worker.held {
            if let Some(outcome) = &held.ended {
                worker.outbox.push(ended(peer, attempt, outcome.clone(), held.short));
            }
        }
        let registration = registration(WorkerId(number), worker.slots);
        self.handle(Event::Registered { peer, registration, held });
    }

    fn disconnect(&mut self, number: u64) {
        let worker = self.workers.get_mut(&number).unwrap();
        if let Some(peer) = worker.peer {
            worker.cut();
            self.handle(Event::Disconnected { peer });
        }
    }

    fn say_goodbye(&mut self, number: u64) {
        let worker = self.workers.get_mut(&number).unwrap();
        if let Some(peer) = worker.peer {
            worker.cut();
            worker.held.clear();
            self.handle(Event::SaidGoodbye { peer });
            self.handle(Event::Disconnected { peer });
        }
    }

    /// Brings a worker one of the messages that are on their way to it.
    fn deliver_to(&mut self, number: u64, faults: bool) {
        let worker = self.workers.get_mut(&number).unwrap();
        let Some(peer) = worker.peer.filter(|_| !worker.inbox.is_empty()) else { return };
        let out_of_order = faults && self.rng.u32(0..20) == 0;
        let index = if out_of_order { self.rng.usize(..worker.inbox.len()) } else { 0 };
        let message = worker.inbox.remove(index);
        if faults && self.rng.u32(0..40) == 0 {
            return;
        }
        match message {
            Message::Start { attempt, recipe, .. } => {
                worker.held.entry(attempt).or_insert(SimAttempt {
                    slots: recipe.options.get_slots(),
                    short: &*recipe.service == "short",
                    began: None,
                    ended: None,
                });
            }
            Message::Stop { attempt } => {
                if let Some(held) = worker.held.get_mut(&attempt)
                    && held.ended.is_none()
                {
                    held.ended = Some(AttemptOutcome::Stopped);
                    worker.outbox.push(ended(peer, attempt, AttemptOutcome::Stopped, held.short));
                }
            }
            Message::Recall { attempt } => match worker.held.get(&attempt) {
                Some(held) if held.began.is_none() && held.ended.is_none() => {
                    worker.held.remove(&attempt);
                    worker.outbox.push(Event::Returned { peer, attempts: vec![attempt] });
                }
                _ => worker.outbox.push(Event::NotReturned { peer, attempt }),
            },
            Message::Confirm { attempts } => attempts.iter().for_each(|attempt| {
                worker.held.remove(attempt);
            }),
            Message::Registered { closed, .. } => closed.iter().for_each(|attempt| {
                worker.held.remove(attempt);
            }),
            _ => {}
        }
    }

    /// Brings the scheduler one of the messages that are on their way from a worker.
    fn deliver_from(&mut self, number: u64, faults: bool) {
        let worker = self.workers.get_mut(&number).unwrap();
        if worker.outbox.is_empty() {
            return;
        }
        let out_of_order = faults && self.rng.u32(0..20) == 0;
        let index = if out_of_order { self.rng.usize(..worker.outbox.len()) } else { 0 };
        let event = worker.outbox.remove(index);
        if faults && self.rng.u32(0..20) == 0 {
            worker.outbox.push(event.clone());
        }
        if !faults || self.rng.u32(0..40) > 0 {
            self.handle(event);
        }
    }

    fn begin(&mut self, number: u64) {
        let now = self.now;
        let worker = self.workers.get_mut(&number).unwrap();
        let running = |held: &&SimAttempt| held.began.is_some() && held.ended.is_none();
        let used: u32 = worker.held.values().filter(running).map(|held| held.slots).sum();
        let free = worker.slots.saturating_sub(used);
        let waits = |held: &SimAttempt| held.began.is_none() && held.ended.is_none() && held.slots <= free;
        let Some((&attempt, held)) = worker.held.iter_mut().find(|(_, held)| waits(held)) else { return };
        held.began = Some(now);
        if let Some(peer) = worker.peer {
            worker.outbox.push(Event::Began { peer, attempt, pid: 9 });
        }
    }

    fn end(&mut self, number: u64, faults: bool) {
        let outcome = match self.rng.u32(0..10) {
            0 if faults => failed(FailureKind::Error),
            1 if faults => failed(FailureKind::Crashed),
            2 if faults => AttemptOutcome::Lost { reason: "the host died".into() },
            3 if faults => AttemptOutcome::Stopped,
            _ => AttemptOutcome::Finished,
        };
        let worker = self.workers.get_mut(&number).unwrap();
        let runs = |held: &SimAttempt| held.began.is_some() && held.ended.is_none();
        let Some((&attempt, held)) = worker.held.iter_mut().find(|(_, held)| runs(held)) else { return };
        held.ended = Some(outcome.clone());
        if let Some(peer) = worker.peer {
            worker.outbox.push(ended(peer, attempt, outcome, held.short));
        }
    }

    /// Once nothing goes wrong any more, everything ends.
    fn heal(&mut self) {
        for number in 1..=WORKERS {
            self.disconnect(number);
            self.join(number);
        }
        for _ in 0..100_000 {
            if self.jobs.values().all(|job| job.ended) {
                return self.stop();
            }
            for number in 1..=WORKERS {
                // One that was given up comes back.
                self.join(number);
                self.deliver_to(number, false);
                self.begin(number);
                self.end(number, false);
                self.deliver_from(number, false);
            }
            self.now = self.now + Duration::from_millis(20);
            for number in 1..=WORKERS {
                if let Some(peer) = self.workers[&number].peer {
                    self.handle(Event::HeartbeatReceived { peer });
                }
            }
        }
        let left: Vec<&JobId> = self.jobs.iter().filter(|(_, job)| !job.ended).map(|(job, _)| job).collect();
        panic!("{} jobs never end: {left:?}", left.len());
    }

    /// Stopped applications leave nothing behind.
    fn stop(&mut self) {
        for peer in self.applications.clone().into_values() {
            self.handle(Event::StopAsked { peer });
            self.handle(Event::Disconnected { peer });
        }
        assert!(self.engine.jobs.nodes.indices().is_empty());
        assert!(self.engine.applications.indices().is_empty());
        assert!(self.engine.sessions.indices().is_empty());
        assert!(self.engine.services.indices().is_empty());
    }
}

impl SimWorker {
    /// Its connection ends: what is on its way is lost.
    fn cut(&mut self) {
        self.peer = None;
        self.inbox.clear();
        self.outbox.clear();
    }
}

fn ended(peer: Peer, attempt: AttemptId, outcome: AttemptOutcome, short: bool) -> Event {
    let ran = if short { Duration::from_millis(1) } else { Duration::from_secs(3) };
    Event::Ended { peer, attempt, outcome, ran, output_bytes: 3 }
}
