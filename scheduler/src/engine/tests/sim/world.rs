//! The cluster: a scheduler with its disk, workers, applications, and what goes wrong between them.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use lrts_core::clock::Moment;
use lrts_core::ids::{AttemptId, SessionId};
use lrts_core::limits::RETRY_BACKOFF_MAX;

use super::super::cluster::{DIGEST, LOST_AFTER, platform, settings};
use super::super::store::Store;
use super::applications::Application;
use super::history::History;
use super::workers::Worker;
use crate::engine::{Action, AttemptOutcome, Bounds, Engine, Event, Message, Peer, Reason, Settings};
use crate::record::Record;

/// Longer than any history: what isn't stopped isn't forgotten.
const RETENTION: Duration = Duration::from_hours(24 * 365);

/// Healed clusters do what is left within this many rounds.
const ROUNDS: u32 = 40_000;

/// A worker and the scheduler have no more than this to say to each other while no time passes.
const CHATTER: u32 = 10_000;

/// A body that must never be seen again.
const NOBODYS: u64 = u64::MAX;

type Batch = (Vec<(Record, u64)>, Vec<(Peer, Message)>);

/// The process of a scheduler: all that a crash takes away. Its event loop sends what relies on records once they are durable.
struct Scheduler {
    engine: Engine,
    batch: Batch,
    under_way: Option<Batch>,
}

#[derive(Clone, Copy)]
enum Party {
    Worker(usize),
    Application(usize),
}

pub(super) struct World {
    rng: Rng,
    seed: u64,
    now: Moment,
    scheduler: Option<Scheduler>,
    disk: Store,
    epoch: u64,
    /// One commit in this many takes some time.
    slow_disk: u32,
    workers: Vec<Worker>,
    applications: Vec<Application>,
    parties: BTreeMap<Peer, Party>,
    peers: u64,
    sessions: u64,
    checkpoints: u64,
    history: History,
    pub(super) events: u64,
    /// Invariants are checked after one event in this many.
    check_every: u64,
    /// All that the engines have ordered, if that is kept.
    pub(super) trace: Option<Vec<Action>>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        // The first has room for every job.
        let slots = |number: u64, rng: &mut Rng| rng.u32(if number == 1 { 2..=4 } else { 1..=4 });
        let workers = 1..=rng.u64(2..=5);
        let workers = workers.map(|number| Worker::new(number, slots(number, &mut rng))).collect();
        let count = rng.u64(1..=3);
        let applications = (1..=count).map(|number| Application::new(number, SessionId(number))).collect();
        let mut world = Self {
            slow_disk: rng.choice([1, 3, 20]).expect("there are some"),
            check_every: if seed.is_multiple_of(4) { 1 } else { 16 },
            rng,
            seed,
            now: Moment::default() + Duration::from_hours(1),
            scheduler: None,
            disk: Store::default(),
            epoch: 0,
            workers,
            applications,
            parties: BTreeMap::new(),
            peers: 0,
            sessions: count,
            checkpoints: 0,
            history: History::default(),
            events: 0,
            trace: None,
        };
        world.start_scheduler();
        world
    }

    pub(super) fn run(&mut self, events: u64) {
        while self.events < events {
            self.step();
        }
        self.heal();
    }

    fn step(&mut self) {
        let worker = self.rng.usize(..self.workers.len());
        let application = self.rng.usize(..self.applications.len());
        match self.rng.u32(0..1_000) {
            0..60 => self.applications[application].schedule(&mut self.rng),
            60..200 => self.tell_application(application),
            200..330 => self.hear_application(application),
            330..480 => self.tell_worker(worker, true),
            480..640 => self.hear_worker(worker, true),
            640..720 => self.begin(worker),
            720..790 => self.workers[worker].end(&mut self.rng, true, self.now),
            790..820 => self.checkpoint(worker),
            820..850 => self.committed(),
            850..880 => self.join(worker),
            880..900 => self.attach(application),
            900..925 => self.applications[application].return_results(&mut self.history),
            925..932 => self.applications[application].list(&self.history),
            932..938 => self.applications[application].cancel(&mut self.rng, &mut self.history),
            938..942 => self.applications[application].stop(&mut self.history),
            942..948 => {
                // It may take the scheduler some time to see it, during which the worker may be back.
                let back = self.rng.u32(0..4) == 0;
                self.cut_worker(worker, back);
            }
            948..952 => self.cut_application(application),
            952..955 => self.crash_application(application),
            955..958 => self.restart_daemon(worker),
            958..960 => self.reboot(worker),
            960..962 => self.leave(worker),
            962..964 => self.say_goodbye(worker),
            964..966 => self.drain(worker),
            966..968 => self.crash_scheduler(),
            968..975 if self.scheduler.is_none() => self.start_scheduler(),
            968..994 => {
                let span = self.rng.u64(0..2_000);
                self.pass(Duration::from_millis(span), true);
            }
            994..996 => {
                let span = self.rng.u64(0..30_000);
                self.pass(Duration::from_millis(span), true);
            }
            996 => {
                // Everything stands still, the scheduler too.
                let span = self.rng.u64(0..60_000);
                self.now = self.now + Duration::from_millis(span);
                self.watch();
            }
            997 => self.intrude(application),
            998 => self.trespass(application),
            999 => self.impersonate(worker),
            _ => self.handle(Event::Tick { may_forget: false }, 0),
        }
    }

    fn peer(&mut self, party: Party) -> Peer {
        self.peers += 1;
        let peer = Peer(self.peers);
        self.parties.insert(peer, party);
        peer
    }

    // --- the scheduler ---

    fn start_scheduler(&mut self) {
        if self.scheduler.is_some() {
            return;
        }
        self.epoch += 1;
        let settings = Settings {
            epoch: self.epoch,
            result_retention: RETENTION,
            bounds: Bounds { answer_jobs: 5, answers: 3, ..Bounds::default() },
            ..settings(self.seed + self.epoch)
        };
        let mut engine = Engine::restore(settings, self.disk.load(self.now), self.now);
        let restored = engine.take_restored();
        engine.check_invariants();
        self.scheduler = Some(Scheduler { engine, batch: Batch::default(), under_way: None });
        for worker in &mut self.workers {
            let jobs = self.history.jobs.iter().filter(|(_, job)| job.open.len() == 1);
            let open = jobs.flat_map(|(id, job)| job.open.iter().map(move |open| (*id, open)));
            let here = open.filter(|(_, open)| open.worker == worker.id && !open.lapsed);
            let ids = here.map(|(job, open)| AttemptId { job, attempt: open.attempt });
            let running = |id: &AttemptId| worker.attempts.get(id).is_some_and(|held| held.runs());
            worker.spared = (self.now + LOST_AFTER, ids.filter(running).collect());
        }
        self.carry_out(restored, 0);
        self.handle(Event::BundleCompleted { digest: DIGEST, bytes: 100, platforms: platform().into() }, 0);
    }

    /// The scheduler dies: of what it had sent some arrives, of what it hadn't synced nothing is left.
    fn crash_scheduler(&mut self) {
        let Some(Scheduler { under_way, .. }) = self.scheduler.take() else { return };
        if let Some((records, _)) = under_way.filter(|_| self.rng.bool()) {
            // It was synced, but nobody was told any more.
            self.keep(records);
        }
        for index in 0..self.workers.len() {
            for _ in 0..self.rng.usize(..=self.workers[index].inbox.len()) {
                self.tell_worker(index, false);
            }
            self.workers[index].cut();
        }
        for index in 0..self.applications.len() {
            for _ in 0..self.rng.usize(..=self.applications[index].inbox.len()) {
                self.tell_application(index);
            }
            self.applications[index].cut();
        }
        self.parties.clear();
        if self.rng.bool() {
            // A supervisor starts it at once; and now and then it dies again before anybody is back.
            self.start_scheduler();
            if self.rng.u32(0..4) == 0 {
                self.crash_scheduler();
            }
        }
    }

    fn handle(&mut self, event: Event, body: u64) {
        let Some(scheduler) = &mut self.scheduler else { return };
        self.events += 1;
        let actions = scheduler.engine.handle(event, self.now);
        if self.events.is_multiple_of(self.check_every) {
            scheduler.engine.check_invariants();
        }
        let asking = scheduler.engine.asking().next();
        self.carry_out(actions, body);
        // Most of the time it has taken its answers by now.
        if let Some(peer) = asking.filter(|_| self.rng.u32(0..4) > 0) {
            self.handle(Event::RoomFor { peer }, 0);
        }
    }

    /// What the event loop does with actions.
    fn carry_out(&mut self, actions: Vec<Action>, body: u64) {
        if let Some(trace) = &mut self.trace {
            trace.extend(actions.iter().cloned());
        }
        for action in actions {
            let scheduler = self.scheduler.as_mut().expect("only a scheduler acts");
            match action {
                Action::Persist(record) => scheduler.batch.0.push((record, body)),
                Action::Send { to, message } => {
                    match &message {
                        Message::Result { job, .. } => self.history.ordered(*job),
                        Message::Gone { job, taken } => self.history.told_gone(*job, *taken),
                        _ => {}
                    }
                    if !scheduler.batch.0.is_empty() {
                        scheduler.batch.1.push((to, message));
                    } else if let Some((_, waiting)) = &mut scheduler.under_way {
                        waiting.push((to, message));
                    } else {
                        self.send(to, message);
                    }
                }
                Action::SendAtOnce { to, message } => self.send(to, message),
                Action::Disconnect { peer, .. } => self.hang_up(peer),
                Action::BundleInUse { .. } | Action::Note(_) => {}
            }
        }
        self.begin_commit();
        if self.rng.u32(0..self.slow_disk) == 0 {
            self.committed();
        }
    }

    fn begin_commit(&mut self) {
        let Some(scheduler) = &mut self.scheduler else { return };
        if scheduler.under_way.is_none() && !scheduler.batch.0.is_empty() {
            scheduler.under_way = Some(std::mem::take(&mut scheduler.batch));
        }
    }

    /// The commit that is under way is durable.
    fn committed(&mut self) {
        let Some(scheduler) = &mut self.scheduler else { return };
        let Some((records, messages)) = scheduler.under_way.take() else { return };
        self.keep(records);
        for (to, message) in messages {
            self.send(to, message);
        }
        self.begin_commit();
    }

    fn keep(&mut self, records: Vec<(Record, u64)>) {
        for (record, body) in records {
            self.disk.keep(&record, body, self.now);
            self.history.committed(&record, body);
        }
    }

    fn send(&mut self, to: Peer, message: Message) {
        match self.parties.get(&to) {
            Some(&Party::Worker(index)) => {
                match &message {
                    Message::Start { attempt, checkpoint, .. } => {
                        // Its job may have ended since, which makes the order stale.
                        if self.history.jobs[&attempt.job].ended.is_some() {
                            return;
                        }
                        let state = |number| self.disk.checkpoints.get(&(attempt.job, number)).copied();
                        self.history.started(*attempt, checkpoint.and_then(state));
                    }
                    Message::Registered { closed, .. } => self.check_spared(index, closed),
                    _ => {}
                }
                self.workers[index].inbox.push(message);
            }
            Some(&Party::Application(index)) => {
                let is_there = match &message {
                    Message::Result { job, report } => self.history.delivered(*job, report),
                    _ => true,
                };
                if is_there {
                    self.applications[index].inbox.push(message);
                }
            }
            None => {}
        }
    }

    /// A restart of the scheduler ends nothing that runs at a worker that is back in time.
    fn check_spared(&self, index: usize, closed: &[AttemptId]) {
        let worker = &self.workers[index];
        if self.now >= worker.spared.0 {
            return;
        }
        for id in closed.iter().filter(|id| worker.spared.1.contains(id)) {
            let job = &self.history.jobs[&id.job];
            assert!(
                job.ended.is_some()
                    || job.forgotten
                    || !worker.attempts.get(id).is_some_and(|held| held.runs()),
                "{id} was closed by a restart"
            );
        }
    }

    fn hang_up(&mut self, peer: Peer) {
        match self.parties.remove(&peer) {
            Some(Party::Worker(index)) if self.workers[index].peer == Some(peer) => self.workers[index].cut(),
            Some(Party::Application(index)) if self.applications[index].peer == Some(peer) => {
                self.applications[index].cut();
            }
            Some(Party::Worker(_) | Party::Application(_)) | None => {}
        }
    }

    // --- time ---

    /// Lets time pass, with a tick at each deadline and heartbeats, of which some are late or lost.
    fn pass(&mut self, span: Duration, faults: bool) {
        let end = self.now + span;
        while self.now < end {
            let due = self.scheduler.as_ref().and_then(|scheduler| scheduler.engine.next_deadline(true));
            let step = end.min(self.now + Duration::from_secs(2));
            self.now = due.map_or(step, |due| due.clamp(self.now, step));
            self.handle(Event::Tick { may_forget: true }, 0);
            self.watch();
            if self.now == step {
                self.heartbeats(faults);
            }
        }
    }

    fn watch(&mut self) {
        self.workers.iter_mut().for_each(|worker| worker.watch(self.now));
    }

    fn heartbeats(&mut self, faults: bool) {
        for index in 0..self.workers.len() {
            if let (Some(peer), false) = (self.workers[index].peer, faults && self.rng.u32(0..10) == 0) {
                let sent = self.now - Duration::from_millis(if faults { self.rng.u64(0..1_000) } else { 0 });
                let heartbeat = self.workers[index].heartbeat(peer, sent);
                self.handle(heartbeat, 0);
            }
        }
    }

    // --- workers ---

    fn join(&mut self, index: usize) {
        if self.workers[index].peer.is_some() || self.scheduler.is_none() {
            return;
        }
        let peer = self.peer(Party::Worker(index));
        let registered = self.workers[index].register(peer, self.now);
        self.handle(registered, 0);
    }

    /// Brings a worker one of the messages that are on their way to it.
    fn tell_worker(&mut self, index: usize, faults: bool) {
        let inbox = &mut self.workers[index].inbox;
        if inbox.is_empty() {
            return;
        }
        let next = if faults && self.rng.u32(0..20) == 0 { self.rng.usize(..inbox.len()) } else { 0 };
        let message = inbox.remove(next);
        if !faults || self.rng.u32(0..60) > 0 {
            self.workers[index].take_in(message, self.now);
        }
    }

    /// Brings the scheduler one of the messages that are on their way from a worker.
    fn hear_worker(&mut self, index: usize, faults: bool) {
        let outbox = &mut self.workers[index].outbox;
        if outbox.is_empty() {
            return;
        }
        let next = if faults && self.rng.u32(0..20) == 0 { self.rng.usize(..outbox.len()) } else { 0 };
        let (event, body) = outbox.remove(next);
        if faults && self.rng.u32(0..20) == 0 {
            outbox.push((event.clone(), body));
        }
        if !faults || self.rng.u32(0..60) > 0 {
            self.handle(event, body);
        }
    }

    /// All that is on its way between a worker and the scheduler arrives.
    fn settle_worker(&mut self, index: usize) {
        for _ in 0..CHATTER {
            let worker = &self.workers[index];
            if worker.inbox.is_empty() && worker.outbox.is_empty() {
                return;
            }
            self.tell_worker(index, false);
            self.hear_worker(index, false);
        }
        let Worker { inbox, outbox, .. } = &self.workers[index];
        panic!("a worker and the scheduler never fall silent: {inbox:?}; {outbox:?}");
    }

    fn begin(&mut self, index: usize) {
        if let Some(job) = self.workers[index].begin(self.now) {
            let copies: usize = self.workers.iter().map(|worker| worker.runs(job)).sum();
            assert_eq!(copies, 1, "exclusive job {job} runs twice at once");
        }
    }

    fn checkpoint(&mut self, index: usize) {
        self.checkpoints += 1;
        self.workers[index].checkpoint(&mut self.rng, self.checkpoints);
    }

    fn cut_worker(&mut self, index: usize, back_at_once: bool) {
        if let Some(peer) = self.workers[index].peer {
            self.workers[index].cut();
            self.parties.remove(&peer);
            if back_at_once {
                self.join(index);
            }
            self.handle(Event::Disconnected { peer }, 0);
        }
    }

    fn restart_daemon(&mut self, index: usize) {
        self.cut_worker(index, false);
        self.workers[index].restart_daemon();
    }

    fn reboot(&mut self, index: usize) {
        self.cut_worker(index, false);
        self.workers[index].reboot();
    }

    fn leave(&mut self, index: usize) {
        if let Some(peer) = self.workers[index].peer {
            let back_within = Duration::from_secs(self.rng.u64(0..300));
            self.handle(Event::SaidAbsent { peer, back_within }, 0);
            self.restart_daemon(index);
        }
    }

    fn say_goodbye(&mut self, index: usize) {
        if let Some(peer) = self.workers[index].peer {
            self.workers[index].attempts.clear();
            self.handle(Event::SaidGoodbye { peer }, 0);
            self.reboot(index);
        }
    }

    fn drain(&mut self, index: usize) {
        let deadline = self.rng.bool().then(|| Duration::from_secs(self.rng.u64(0..30)));
        let worker = self.workers[index].id;
        self.handle(Event::DrainOrdered { worker, deadline }, 0);
    }

    // --- applications ---

    fn attach(&mut self, index: usize) {
        if self.applications[index].peer.is_some() || self.scheduler.is_none() {
            return;
        }
        let peer = self.peer(Party::Application(index));
        let attach = self.applications[index].attach(peer);
        self.handle(Event::Attached { peer, attach }, 0);
    }

    fn tell_application(&mut self, index: usize) {
        if self.applications[index].inbox.is_empty() {
            return;
        }
        let message = self.applications[index].inbox.remove(0);
        if self.applications[index].take_in(message, &mut self.history) {
            self.crash_application(index);
        }
    }

    fn hear_application(&mut self, index: usize) {
        if self.applications[index].outbox.is_empty() {
            return;
        }
        let event = self.applications[index].outbox.remove(0);
        let repeated = self.rng.u32(0..30) == 0;
        if repeated {
            self.handle(event.clone(), 0);
        }
        self.handle(event, 0);
    }

    fn cut_application(&mut self, index: usize) {
        if let Some(peer) = self.applications[index].peer {
            self.applications[index].cut();
            self.parties.remove(&peer);
            self.handle(Event::Disconnected { peer }, 0);
        }
    }

    /// Its program dies, or is over, and is started again.
    fn crash_application(&mut self, index: usize) {
        self.cut_application(index);
        self.sessions += 1;
        // In no order, as random ids are.
        let start = SessionId(self.sessions.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1);
        self.applications[index].crash(start);
    }

    // --- those who mean no good ---

    /// Somebody with another user's key says that he is an application that is known.
    fn intrude(&mut self, index: usize) {
        let Some(scheduler) = &mut self.scheduler else { return };
        let attach = self.applications[index].imitated();
        if !scheduler.engine.application_ids.contains_key(&attach.application) {
            return;
        }
        self.peers += 1;
        let peer = Peer(self.peers);
        let reason = Reason::Owner(attach.application);
        let session = attach.session;
        let actions = scheduler.engine.handle(Event::Attached { peer, attach }, self.now);
        assert!(actions.contains(&Action::Disconnect { peer, reason }), "{actions:?}");
        self.carry_out(actions, 0);
        // What he had sent before he heard of it.
        for event in about_all(peer, session).into_iter().chain([Event::StopAsked { peer }]) {
            self.handle(event, 0);
        }
        self.handle(Event::Disconnected { peer }, 0);
    }

    /// An application speaks of another one's jobs.
    fn trespass(&mut self, index: usize) {
        let other = self.rng.usize(..self.applications.len());
        if let Some(peer) = self.applications[index].peer.filter(|_| other != index) {
            let sessions: Vec<SessionId> = self.applications[other].sessions().collect();
            let events = sessions.into_iter().flat_map(|session| about_all(peer, session));
            events.for_each(|event| self.handle(event, 0));
        }
    }

    /// A worker speaks of another one's attempt.
    fn impersonate(&mut self, index: usize) {
        let other = self.rng.usize(..self.workers.len());
        let attempts: Vec<AttemptId> = self.workers[other].attempts.keys().copied().collect();
        let (Some(peer), Some(&attempt)) = (self.workers[index].peer, self.rng.choice(&attempts)) else {
            return;
        };
        if other == index {
            return;
        }
        let (ran, output_bytes) = (Duration::from_secs(1), 3);
        let outcome = AttemptOutcome::Finished;
        let event = match self.rng.u32(0..5) {
            0 => Event::Began { peer, attempt, pid: 9 },
            1 => Event::CheckpointCame { peer, attempt },
            2 => Event::Ended { peer, attempt, outcome, ran, output_bytes },
            3 => Event::Returned { peer, attempts: vec![attempt] },
            _ => Event::NotReturned { peer, attempt },
        };
        self.handle(event, NOBODYS);
    }

    // --- the end ---

    /// Once nothing goes wrong any more everything ends, and each result arrives.
    fn heal(&mut self) {
        self.start_scheduler();
        self.slow_disk = 1;
        for index in 0..self.workers.len() {
            // Which ends drains.
            self.restart_daemon(index);
        }
        for index in 0..self.applications.len() {
            self.crash_application(index);
            self.attach(index);
        }
        for round in 0..ROUNDS {
            self.committed();
            for index in 0..self.workers.len() {
                self.join(index);
                self.settle_worker(index);
                self.begin(index);
                self.workers[index].end(&mut self.rng, false, self.now);
            }
            for index in 0..self.applications.len() {
                self.attach(index);
                self.tell_application(index);
                self.hear_application(index);
                self.applications[index].return_results(&mut self.history);
                if round % 200 == 100 {
                    self.applications[index].list(&self.history);
                }
            }
            self.pass(Duration::from_millis(40), false);
            if round > 100 && self.is_done() {
                return self.stop();
            }
        }
        let jobs: Vec<_> = self.history.jobs.iter().filter(|(_, job)| self.is_left(job)).collect();
        let jobs: Vec<_> = jobs.into_iter().map(|(id, job)| (id, &job.open)).collect();
        let applications: Vec<String> = self.applications.iter().map(Application::left).collect();
        panic!("these never end: {jobs:?}; {applications:#?}");
    }

    fn is_left(&self, job: &super::history::Job) -> bool {
        job.ended.is_none() && !job.forgotten && !self.history.is_stopped(job)
    }

    fn is_done(&self) -> bool {
        let quiet = self.applications.iter().all(|application| {
            application.is_content() && application.inbox.is_empty() && application.outbox.is_empty()
        });
        quiet && !self.history.jobs.values().any(|job| self.is_left(job)) && {
            let mut owed =
                self.applications.iter().flat_map(|application| self.history.owed(&application.starts));
            owed.all(|job| self.history.jobs[&job].keyed)
        }
    }

    /// Stopped applications leave nothing behind, in memory and on disk.
    fn stop(&mut self) {
        for index in 0..self.applications.len() {
            self.applications[index].stop(&mut self.history);
        }
        for _ in 0..ROUNDS {
            self.committed();
            for index in 0..self.applications.len() {
                self.hear_application(index);
            }
            for index in 0..self.workers.len() {
                self.join(index);
                self.settle_worker(index);
            }
            self.pass(Duration::from_millis(40), false);
            if self.history.jobs.values().all(|job| job.forgotten) {
                break;
            }
        }
        for index in 0..self.applications.len() {
            self.cut_application(index);
        }
        for index in 0..self.workers.len() {
            self.say_goodbye(index);
        }
        while self.scheduler.as_ref().is_some_and(|scheduler| scheduler.under_way.is_some()) {
            self.committed();
        }
        // Backoffs of jobs that are gone end unheard.
        self.pass(2 * RETRY_BACKOFF_MAX, false);
        assert!(self.disk.is_empty(), "{:?}", self.disk);
        let engine = &self.scheduler.as_ref().expect("it was started").engine;
        engine.check_invariants();
        assert!(engine.jobs.nodes.indices().is_empty() && engine.attempts.indices().is_empty());
        assert!(engine.applications.indices().is_empty() && engine.sessions.indices().is_empty());
        assert!(engine.services.indices().is_empty() && engine.jobs.specs.indices().is_empty());
        assert!(engine.workers.all.indices().is_empty() && engine.timers.is_empty(), "{:?}", engine.timers);
    }
}

/// All that can be said of a session's jobs but that somebody waits for them, which is answered.
fn about_all(peer: Peer, session: SessionId) -> Vec<Event> {
    let ranges = vec![(0, u64::MAX)];
    vec![
        Event::CancelAsked { peer, session, ranges: ranges.clone() },
        Event::Taken { peer, session, ranges },
        Event::ListAsked { peer, request: 0, job: Some(session.job(1)) },
    ]
}
