//! Workers: who they are, what they have, and how they come and go.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{AttemptId, WorkerId};
use lrts_core::limits::SLOTS;
use lrts_core::spec::{BundleRef, Platform};

use super::attempts::{Attempt, Fate, Position};
use super::events::{Action, Held, Message, Note, Peer, Reason, Registration};
use super::jobs::Phase;
use super::slab::{NONE, Slab};
use super::suspicion::Streak;
use super::{Engine, Party, Timer};
use crate::record::{Draining, Record, WorkerImage};

/// The process id of a daemon that hasn't registered since the scheduler started.
const UNKNOWN: u64 = 0;

/// How far a worker is trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// Takes attempts.
    Ready(Peer),
    /// Suspect: connected, but silent for two intervals.
    Silent(Peer),
    /// Suspect: its connection has ended.
    Away,
    /// Silent for a whole lease. What it had goes elsewhere, but may still come back within the orphan grace.
    Lost,
}

/// Whether a worker can start a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Nothing speaks against it.
    Likely,
    /// It has begun it before.
    Proven,
    /// No program of this name is installed there; another worker may come that has it.
    Unsuited,
    /// It wasn't built for such a machine, by all that was said of it so far.
    OtherPlatform(String),
    /// It can't, for this reason.
    Refused(String),
}

/// A ready worker's place in the order of choice: most free slots, then, where none is free, least work sent ahead for each of
/// the slots that short jobs run in; last those without any.
pub(super) type OpenKey = (Reverse<u32>, u64, u32);

/// One worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) host: String,
    pub(super) pid: u32,
    /// Of this start of its daemon.
    pub(super) instance: u64,
    /// Of its machine; empty if it hasn't registered since the scheduler started.
    boot_id: String,
    pub(super) slots: u32,
    /// None if it hasn't registered since the scheduler started.
    pub(super) platform: Option<Platform>,
    installed: BTreeSet<String>,
    ships: bool,
    pub(super) standing: Standing,
    /// When it was last heard of.
    pub(super) heard: Moment,
    /// When its lease is looked at next.
    pub(super) lease_timer: Option<Moment>,
    /// All its attempts: open ones, and those that were ordered to stop and haven't ended.
    pub(super) attempts: BTreeMap<AttemptId, u32>,
    /// Slots taken by attempts.
    pub(super) held: u32,
    /// Attempts that were sent ahead of a free slot, in order.
    pub(super) ahead: VecDeque<u32>,
    /// How long those will take in all, as measured before, in microseconds.
    pub(super) ahead_us: u64,
    /// Attempts of short jobs among those that take slots: what was sent ahead moves up as they end.
    pub(super) short: u32,
    pub(super) key: Option<OpenKey>,
    pub(super) laden: Option<(u64, u32)>,
    pub(super) verdicts: BTreeMap<u32, Verdict>,
    /// How long it may stay away, if it said that its daemon leaves.
    pub(super) absent: Option<Duration>,
    /// The length of its lease that it was told last.
    pub(super) promised: Duration,
    /// Why it takes nothing new, if so.
    pub(super) draining: Option<Draining>,
    /// When what it still has is to go elsewhere.
    pub(super) drain_timer: Option<Moment>,
    pub(super) streak: Streak,
    /// When an execution of each program has last ended by itself here.
    pub(super) ended_well: BTreeMap<u32, Moment>,
}

impl Worker {
    pub(super) fn free(&self) -> u32 {
        self.slots.saturating_sub(self.held)
    }

    /// An attempt takes its slots.
    pub(super) fn take_slots(&mut self, attempt: &Attempt) {
        self.held += attempt.slots;
        self.short += u32::from(attempt.short);
    }

    /// An attempt gives its slots back.
    pub(super) fn give_slots(&mut self, attempt: &Attempt) {
        self.held -= attempt.slots;
        self.short -= u32::from(attempt.short);
    }

    pub(super) fn peer(&self) -> Option<Peer> {
        match self.standing {
            Standing::Ready(peer) | Standing::Silent(peer) => Some(peer),
            Standing::Away | Standing::Lost => None,
        }
    }

    /// It can't start this bundle. Returns whether that is news.
    pub(super) fn refuse(&mut self, bundle: u32, reason: String) -> bool {
        !matches!(self.verdicts.insert(bundle, Verdict::Refused(reason)), Some(Verdict::Refused(_)))
    }

    /// Why it can't start this bundle, if it was tried or its platform doesn't fit.
    pub(super) fn refusal(&self, bundle: u32) -> Option<&str> {
        match self.verdicts.get(&bundle) {
            Some(Verdict::Refused(reason) | Verdict::OtherPlatform(reason)) => Some(reason),
            Some(Verdict::Likely | Verdict::Proven | Verdict::Unsuited) | None => None,
        }
    }
}

/// All workers that are connected, or hold open attempts.
#[derive(Debug)]
pub(super) struct Workers {
    pub(super) all: Slab<Worker>,
    pub(super) by_id: BTreeMap<WorkerId, u32>,
    /// Those that are ready, in the order of choice.
    pub(super) open: BTreeSet<OpenKey>,
    /// Those that have attempts sent ahead, by how long these will take.
    pub(super) laden: BTreeSet<(u64, u32)>,
    /// How many aren't lost.
    pub(super) known: usize,
    /// The heartbeat interval that they were told.
    pub(super) announced: Duration,
    pub(super) gathering: Gathering,
}

/// Whether workers come after a time without any. Which of them is the first says nothing of what the others can start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Gathering {
    /// Those that are there are all that are expected.
    Over,
    /// None has come yet since the scheduler was started, or since the last one went, however it did.
    #[default]
    Awaited,
    /// Others have until this moment.
    Until(Moment),
}

impl Workers {
    pub(super) fn new() -> Self {
        Self {
            all: Slab::new(),
            by_id: BTreeMap::new(),
            open: BTreeSet::new(),
            laden: BTreeSet::new(),
            known: 0,
            announced: Duration::ZERO,
            gathering: Gathering::default(),
        }
    }

    /// The ready worker behind this one in the order of choice, or the first.
    pub(super) fn next_open(&self, after: Option<OpenKey>) -> Option<OpenKey> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.open.range((from, Bound::Unbounded)).next().copied()
    }

    /// Brings a worker's place in the order of choice up to date.
    pub(super) fn rekey(&mut self, worker: u32) {
        let record = &mut self.all[worker];
        let load = match (record.free(), record.short) {
            (0, 0) => u64::MAX,
            (0, short) => record.ahead_us / u64::from(short),
            _ => 0,
        };
        let ready = matches!(record.standing, Standing::Ready(_)) && record.draining.is_none();
        let key = ready.then_some((Reverse(record.free()), load, worker));
        let laden = (ready && !record.ahead.is_empty()).then_some((record.ahead_us, worker));
        if laden != record.laden {
            if let Some(old) = std::mem::replace(&mut record.laden, laden) {
                self.laden.remove(&old);
            }
            self.laden.extend(laden);
        }
        if key != record.key {
            if let Some(old) = std::mem::replace(&mut record.key, key) {
                self.open.remove(&old);
            }
            self.open.extend(key);
        }
    }
}

impl Engine {
    /// Any word from a worker renews its lease. None if the connection is no (longer a) worker's.
    pub(super) fn heard(&mut self, peer: Peer) -> Option<Party> {
        let party = *self.peers.get(&peer)?;
        if let Party::Worker(worker) = party {
            let record = &mut self.workers.all[worker];
            record.heard = self.now;
            if record.standing == Standing::Silent(peer) {
                record.standing = Standing::Ready(peer);
                self.workers.rekey(worker);
                self.schedule_lease_check(worker);
            }
        }
        Some(party)
    }

    /// The worker of this connection, renewed.
    pub(super) fn heard_worker(&mut self, peer: Peer) -> Option<u32> {
        match self.heard(peer)? {
            Party::Worker(worker) => Some(worker),
            Party::Application(_) => None,
        }
    }

    /// Whether a worker would try to start a bundle.
    pub(super) fn can_start(&mut self, worker: u32, bundle: u32) -> bool {
        let record = &mut self.workers.all[worker];
        let program = &self.bundles[bundle];
        let Some(own) = &record.platform else { return false };
        let verdict = record.verdicts.entry(bundle).or_insert_with(|| match &program.reference {
            BundleRef::Installed(name) if !record.installed.contains(name) => Verdict::Unsuited,
            BundleRef::Installed(_) => Verdict::Likely,
            BundleRef::Shipped(_) if !record.ships => {
                Verdict::Refused(format!("{} runs installed programs only", record.host))
            }
            BundleRef::Shipped(_) if !program.platforms.suit(own) => {
                let built_for: Vec<_> = program.platforms.believed().iter().map(describe).collect();
                Verdict::OtherPlatform(format!(
                    "{} is {}, the program was built for {}",
                    record.host,
                    describe(own),
                    built_for.join(" or ")
                ))
            }
            BundleRef::Shipped(_) => Verdict::Likely,
        });
        matches!(verdict, Verdict::Likely | Verdict::Proven)
    }

    pub(super) fn register(&mut self, peer: Peer, registration: Registration, held: Vec<Held>) {
        if registration.slots == 0 || registration.slots > SLOTS {
            return self
                .violation(peer, format!("{} slots: a worker offers 1 to {SLOTS}", registration.slots));
        }
        let id = registration.worker;
        if let Some(party) = self.peers.get(&peer)
            && self.workers.by_id.get(&id).map(|&worker| Party::Worker(worker)) != Some(*party)
        {
            return self.violation(peer, "registered as somebody else on one connection");
        }
        let attempts = held.len();
        if registration.store.is_some_and(|store| store != self.settings.store) {
            // It registers anew with what is this store's. Until then it is as if it weren't there.
            self.note(Note::WorkerOfAnotherStore { worker: id, attempts });
            return self.tell_registered(peer, self.interval(), Vec::new());
        }
        let boot_id = registration.boot_id.clone();
        let worker = self.welcome(peer, registration);
        let before = std::mem::replace(&mut self.workers.all[worker].boot_id, boot_id);
        let rebooted = !before.is_empty() && before != self.workers.all[worker].boot_id;
        let closed = self.compare_inventory(worker, &held, rebooted);
        self.note(Note::WorkerRegistered {
            worker: id,
            host: self.workers.all[worker].host.clone(),
            slots: self.workers.all[worker].slots,
            attempts,
        });
        let heartbeat = self.announce_interval(Some(worker));
        self.workers.all[worker].promised = self.lost_after();
        self.tell_registered(peer, heartbeat, closed);
        self.stop_cancelled(worker, peer);
        let record = &self.workers.all[worker];
        if record.drain_timer.is_none()
            && record.draining.as_ref().is_some_and(|draining| draining.deadline.is_some())
        {
            // Its time was over before it came back.
            self.drain_overdue(worker);
        }
        self.workers.rekey(worker);
        self.begin_gathering();
        self.open_barred_queues();
    }

    /// Queues that no known worker could serve are looked at again.
    fn open_barred_queues(&mut self) {
        for queue in std::mem::take(&mut self.barred) {
            self.jobs.queues[queue].barred = false;
            self.refresh_queue(queue);
        }
    }

    /// The first worker is there: the others have as long as a lease takes, unless nobody waits for any.
    fn begin_gathering(&mut self) {
        if self.application_ids.is_empty() {
            self.workers.gathering = Gathering::Over;
        } else if self.workers.gathering == Gathering::Awaited {
            let end = self.now + self.lost_after();
            self.workers.gathering = Gathering::Until(end);
            self.timers.insert((end, Timer::Gathered));
        }
    }

    /// What the workers that are there can't do is judged from now on.
    pub(super) fn gathered(&mut self) {
        // All of them may have gone again meanwhile.
        if matches!(self.workers.gathering, Gathering::Until(end) if end <= self.now) {
            self.workers.gathering = Gathering::Over;
        }
        self.open_barred_queues();
    }

    /// Whether workers that were there before may still be on their way.
    pub(super) fn is_gathering(&self) -> bool {
        self.workers.gathering != Gathering::Over
    }

    fn tell_registered(&mut self, peer: Peer, heartbeat: Duration, closed: Vec<AttemptId>) {
        let (store, epoch, lost_after) = (self.settings.store, self.settings.epoch, self.lost_after());
        self.send(peer, Message::Registered { store, epoch, heartbeat, lost_after, closed });
    }

    /// Makes or renews a worker's record.
    fn welcome(&mut self, peer: Peer, registration: Registration) -> u32 {
        let Registration { worker: id, host, pid, instance, slots, platform, installed, ships, .. } =
            registration;
        let worker = match self.workers.by_id.get(&id) {
            Some(&worker) => worker,
            None => self.new_worker(id),
        };
        let record = &mut self.workers.all[worker];
        if let Some(old) = record.peer().filter(|&old| old != peer) {
            self.peers.remove(&old);
            self.actions.push(Action::Disconnect { peer: old, reason: Reason::Superseded });
        }
        if record.standing == Standing::Lost {
            self.workers.known += 1;
        }
        record.host = host;
        record.pid = pid;
        record.instance = instance;
        record.slots = slots;
        record.platform = Some(platform);
        record.installed = installed.into_iter().collect();
        record.ships = ships;
        record.heard = self.now;
        record.standing = Standing::Ready(peer);
        let was_absent = record.absent.take().is_some();
        // Another process of it means that somebody has seen to it.
        let other = |draining: &mut Draining| ![UNKNOWN, instance].contains(&draining.instance);
        let restarted = record.draining.take_if(other).is_some();
        // It was to drain before it was heard of since the scheduler started.
        let met = record.draining.as_mut().filter(|draining| draining.instance == UNKNOWN);
        let met = met.map(|draining| draining.instance = instance).is_some();
        // What it refused may have been mended since; what it has begun is in its cache.
        record.verdicts.retain(|_, verdict| *verdict == Verdict::Proven);
        self.peers.insert(peer, Party::Worker(worker));
        self.schedule_lease_check(worker);
        if restarted {
            self.cancel_drain_timer(worker);
        }
        if was_absent || restarted || met {
            self.keep_worker(worker);
        }
        worker
    }

    /// A record of a worker that isn't there.
    pub(super) fn new_worker(&mut self, id: WorkerId) -> u32 {
        let worker = self.workers.all.insert(Worker {
            id,
            host: String::new(),
            pid: 0,
            instance: UNKNOWN,
            boot_id: String::new(),
            slots: 0,
            platform: None,
            installed: BTreeSet::new(),
            ships: false,
            standing: Standing::Lost,
            heard: self.now,
            lease_timer: None,
            attempts: BTreeMap::new(),
            held: 0,
            ahead: VecDeque::new(),
            ahead_us: 0,
            short: 0,
            key: None,
            laden: None,
            verdicts: BTreeMap::new(),
            absent: None,
            promised: Duration::ZERO,
            draining: None,
            drain_timer: None,
            streak: Streak::default(),
            ended_well: BTreeMap::new(),
        });
        self.workers.by_id.insert(id, worker);
        worker
    }

    /// Keeps what is to be known of a worker beyond its attempts.
    pub(super) fn keep_worker(&mut self, worker: u32) {
        let Worker { id, absent, draining, .. } = &self.workers.all[worker];
        let image = WorkerImage { absent: *absent, draining: draining.clone() };
        let record = Record::Worker {
            worker: *id,
            image: Some(image).filter(|image| *image != WorkerImage::default()),
        };
        self.persist(record);
    }

    /// Brings the records of a worker's attempts in line with what it says it has. Returns those it is to forget.
    fn compare_inventory(&mut self, worker: u32, held: &[Held], rebooted: bool) -> Vec<AttemptId> {
        let held: BTreeMap<AttemptId, Held> = held.iter().map(|held| (held.attempt, *held)).collect();
        let known: Vec<(AttemptId, u32)> =
            self.workers.all[worker].attempts.iter().map(|(&id, &attempt)| (id, attempt)).collect();
        for (id, attempt) in known {
            let fenced = self.attempts[attempt].fate == Fate::Fenced;
            match held.get(&id) {
                Some(found) if !fenced => self.resume(attempt, *found),
                // To be forgotten there, or gone there as it was to be.
                Some(_) => self.drop_attempt(attempt),
                None if fenced => self.drop_attempt(attempt),
                // Its process may be there all the same, under a host that doesn't answer, unless the machine has begun anew.
                None if self.attempts[attempt].exclusive && !rebooted => {
                    self.end_lease(attempt, self.lost_after() + self.interval());
                }
                None => self.close_unbegun(attempt),
            }
        }
        self.recount_slots(worker);
        let open = &self.workers.all[worker].attempts;
        held.into_keys().filter(|id| !open.contains_key(id)).collect()
    }

    /// An open attempt is still where it was.
    fn resume(&mut self, attempt: u32, found: Held) {
        let record = &mut self.attempts[attempt];
        let job = record.job;
        if let Some(running) = found.running {
            record.pid = found.pid;
            // The worker knows better than a scheduler that wasn't there.
            let is_news = record.began.replace(self.now - running).is_none();
            if is_news {
                self.execution_began(attempt);
            }
        }
        let began = self.attempts[attempt].began;
        let phase = if began.is_some() { Phase::Running } else { Phase::Placed };
        if self.attempts[attempt].fate == Fate::Lapsed {
            if let Some(rival) = self.live_attempt(job) {
                if found.ended {
                    // A result decides, a failure closes this attempt alone: what it is comes next.
                    return;
                }
                // Two copies of one job run: the one that has come further stays.
                let rival_began = self.attempts[rival].began;
                let stays = match (began, rival_began) {
                    (Some(mine), Some(its)) => mine <= its,
                    (Some(_), None) => true,
                    (None, _) => false,
                };
                if !stays {
                    return self.drop_open(attempt);
                }
                self.fence(rival);
            }
            let record = &mut self.attempts[attempt];
            record.fate = Fate::Open;
            self.job_changed(job);
            let record = &self.attempts[attempt];
            let (application, slots) = (record.application, record.slots);
            self.use_slots(application, slots);
            self.move_job(job, phase);
        } else if self.jobs.nodes[job].phase != phase {
            self.move_job(job, phase);
        }
    }

    /// An attempt of a copy that isn't wanted any more: its worker is told to forget it.
    fn drop_open(&mut self, attempt: u32) {
        self.drop_checkpoint(self.attempts[attempt].job, self.attempts[attempt].id.attempt);
        self.unlink_from_job(attempt);
        self.drop_attempt(attempt);
    }

    /// Counts a worker's slots anew: what has begun takes its slots, what hasn't takes those that are left.
    fn recount_slots(&mut self, worker: u32) {
        let attempts: Vec<u32> = self.workers.all[worker].attempts.values().copied().collect();
        // One that has ended while its copy runs elsewhere begins no more.
        let has_begun = |attempt: &u32| {
            let attempt = &self.attempts[*attempt];
            attempt.began.is_some() || attempt.fate == Fate::Lapsed
        };
        let (begun, waiting): (Vec<u32>, Vec<u32>) = attempts.into_iter().partition(has_begun);
        let record = &mut self.workers.all[worker];
        record.held = 0;
        record.short = 0;
        record.ahead.clear();
        record.ahead_us = 0;
        for index in begun {
            let attempt = &mut self.attempts[index];
            self.applications[attempt.application].ahead.remove(&(attempt.priority, index));
            attempt.position = Position::Slot;
            record.take_slots(attempt);
        }
        for index in waiting {
            let attempt = &mut self.attempts[index];
            attempt.recalled = false;
            let ahead = &mut self.applications[attempt.application].ahead;
            ahead.remove(&(attempt.priority, index));
            if record.free() >= attempt.slots {
                attempt.position = Position::Slot;
                record.take_slots(attempt);
                continue;
            }
            let estimate_us = match attempt.position {
                Position::Ahead { estimate_us } => estimate_us,
                Position::Slot => 0,
            };
            attempt.position = Position::Ahead { estimate_us };
            record.ahead.push_back(index);
            record.ahead_us += estimate_us;
            ahead.insert((attempt.priority, index));
        }
        self.workers.rekey(worker);
    }

    /// Repeats the order to stop what was cancelled while the worker was away.
    fn stop_cancelled(&mut self, worker: u32, peer: Peer) {
        let attempts: Vec<u32> = self.workers.all[worker].attempts.values().copied().collect();
        for attempt in attempts {
            let Attempt { job, fate, .. } = self.attempts[attempt];
            if fate != Fate::Fenced && self.jobs.nodes[job].cancelling {
                let attempt = self.attempt_id(attempt);
                self.send(peer, Message::Stop { attempt });
            }
        }
    }

    pub(super) fn worker_disconnected(&mut self, worker: u32) {
        let record = &mut self.workers.all[worker];
        record.standing = Standing::Away;
        let id = record.id;
        self.workers.rekey(worker);
        self.note(Note::WorkerSuspect { worker: id });
        self.schedule_lease_check(worker);
    }

    /// A worker has left: it gave back or ended all that it had, so what is left here isn't there any more.
    pub(super) fn goodbye(&mut self, peer: Peer) {
        let Some(worker) = self.heard_worker(peer) else { return };
        self.peers.remove(&peer);
        self.expect_starter_back(worker);
        // Another start of it has nothing to do with this drain.
        self.end_drain(worker);
        self.close_all(worker);
        self.note(Note::WorkerLeft { worker: self.workers.all[worker].id });
        self.give_up(worker);
    }

    /// A worker's daemon has left, and its jobs run on.
    pub(super) fn absent(&mut self, peer: Peer, back_within: Duration) {
        let Some(worker) = self.heard_worker(peer) else { return };
        self.peers.remove(&peer);
        let record = &mut self.workers.all[worker];
        record.absent = Some(back_within);
        record.standing = Standing::Away;
        let id = record.id;
        self.workers.rekey(worker);
        self.note(Note::WorkerAbsent { worker: id, back_within });
        self.keep_worker(worker);
        self.schedule_lease_check(worker);
    }

    /// None of a worker's attempts is there any more. A lost worker's record goes with them.
    pub(super) fn close_all(&mut self, worker: u32) {
        let attempts: Vec<u32> = self.workers.all[worker].attempts.values().copied().collect();
        for attempt in attempts {
            match self.attempts[attempt].fate {
                Fate::Fenced => self.drop_attempt(attempt),
                Fate::Open | Fate::Lapsed => self.close_unbegun(attempt),
            }
        }
    }

    /// A worker is trusted no more. Its record stays for as long as attempts are open there.
    pub(super) fn give_up(&mut self, worker: u32) {
        let record = &mut self.workers.all[worker];
        record.standing = Standing::Lost;
        self.workers.known -= 1;
        if self.workers.known == 0 {
            self.workers.gathering = Gathering::Awaited;
        }
        self.workers.rekey(worker);
        self.schedule_lease_check(worker);
        self.forget_worker_if_empty(worker);
        self.announce_interval(None);
    }

    pub(super) fn forget_worker_if_empty(&mut self, worker: u32) {
        let record = &self.workers.all[worker];
        // One that drains is to do so when it is back.
        if record.standing == Standing::Lost && record.attempts.is_empty() && record.draining.is_none() {
            if let Some(at) = record.lease_timer {
                self.timers.remove(&(at, Timer::Lease(worker)));
            }
            self.cancel_drain_timer(worker);
            let gone = self.workers.all.remove(worker);
            self.workers.by_id.remove(&gone.id);
            if gone.absent.is_some() || gone.draining.is_some() {
                self.persist(Record::Worker { worker: gone.id, image: None });
            }
        }
    }

    /// The attempt of a job at a worker that is trusted, if there is one. There is never more than one.
    pub(super) fn live_attempt(&self, job: u32) -> Option<u32> {
        let mut attempt = self.jobs.nodes[job].open;
        while attempt != NONE {
            if self.attempts[attempt].fate == Fate::Open {
                return Some(attempt);
            }
            attempt = self.attempts[attempt].next;
        }
        None
    }
}

fn describe(platform: &Platform) -> String {
    match platform.glibc {
        Some((major, minor)) => format!("{} with glibc {major}.{minor}", platform.target),
        None => platform.target.clone(),
    }
}
