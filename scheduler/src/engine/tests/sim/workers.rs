//! Workers and the attempts under their hosts, as they really are.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use lrts_core::clock::Moment;
use lrts_core::ids::{AttemptId, JobId, WorkerId};
use lrts_core::status::FailureKind;

use super::super::cluster::{LOST_AFTER, STORE, failed, registration};
use super::history::result_of;
use crate::engine::{AttemptOutcome, Event, Held, Message, Peer, Registration};

/// One machine with a worker. Its attempts are under hosts, which live on without the daemon.
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) slots: u32,
    pid: u32,
    pub(super) peer: Option<Peer>,
    /// Whether the scheduler has answered its registration on this connection.
    registered: bool,
    pub(super) attempts: BTreeMap<AttemptId, Attempt>,
    /// On their way to it and from it; an event with the body that it brings.
    pub(super) inbox: Vec<Message>,
    pub(super) outbox: Vec<(Event, u64)>,
    /// When its processes of exclusive jobs end unless the lease is renewed.
    lease: Moment,
    /// When the heartbeats that are not answered yet were sent. The registration counts as number 0.
    heartbeats: BTreeMap<u64, Moment>,
    numbers: u64,
    /// Attempts that ran when a restarted scheduler had them as open and alone, and until when they may not be closed.
    pub(super) spared: (Moment, Vec<AttemptId>),
}

#[derive(Clone)]
pub(super) struct Attempt {
    slots: u32,
    exclusive: bool,
    short: bool,
    began: Option<Moment>,
    /// How it ended, and after what time; kept until that is confirmed.
    ended: Option<(AttemptOutcome, Duration)>,
    /// The newest checkpoint that its host has.
    checkpoint: Option<u64>,
}

impl Attempt {
    pub(super) fn runs(&self) -> bool {
        self.began.is_some() && self.ended.is_none()
    }

    fn waits(&self) -> bool {
        self.began.is_none() && self.ended.is_none()
    }
}

impl Worker {
    pub(super) fn new(number: u64, slots: u32) -> Self {
        Self {
            id: WorkerId(number),
            slots,
            pid: 1,
            peer: None,
            registered: false,
            attempts: BTreeMap::new(),
            inbox: Vec::new(),
            outbox: Vec::new(),
            lease: Moment::default(),
            heartbeats: BTreeMap::new(),
            numbers: 0,
            spared: (Moment::default(), Vec::new()),
        }
    }

    /// Its connection ends: what is on its way is lost.
    pub(super) fn cut(&mut self) {
        self.peer = None;
        self.registered = false;
        self.inbox.clear();
        self.outbox.clear();
        self.heartbeats.clear();
    }

    /// Its daemon dies, and with it what hadn't begun. Another one starts.
    pub(super) fn restart_daemon(&mut self) {
        self.pid += 1;
        self.attempts.retain(|_, attempt| !attempt.waits());
    }

    /// The machine goes down and comes up again.
    pub(super) fn reboot(&mut self) {
        self.pid += 1;
        self.attempts.clear();
    }

    /// What it says on a new connection: who it is and what it has, then everything that isn't confirmed.
    pub(super) fn register(&mut self, peer: Peer, now: Moment) -> Event {
        self.peer = Some(peer);
        self.heartbeats.insert(0, now);
        let held = self.attempts.iter().map(|(&attempt, held)| {
            let ended = held.end(peer, attempt).is_some();
            let running = held.began.filter(|_| !ended).map(|began| now.since(began));
            Held { attempt, running, pid: if running.is_some() { 9 } else { 0 }, ended }
        });
        let held: Vec<Held> = held.collect();
        for (&id, attempt) in &self.attempts {
            if let Some(checkpoint) = attempt.checkpoint {
                self.outbox.push((Event::CheckpointCame { peer, attempt: id }, checkpoint));
            }
            self.outbox.extend(attempt.end(peer, id));
        }
        let store = (!held.is_empty()).then_some(STORE);
        let registration = Registration {
            pid: self.pid,
            instance: self.pid.into(),
            store,
            ..registration(self.id, self.slots)
        };
        Event::Registered { peer, registration, held }
    }

    /// A heartbeat that is sent now.
    pub(super) fn heartbeat(&mut self, peer: Peer, now: Moment) -> Event {
        self.numbers += 1;
        self.heartbeats.insert(self.numbers, now);
        Event::HeartbeatReceived { peer, number: self.numbers }
    }

    fn renew(&mut self, number: u64) {
        if let Some(sent) = self.heartbeats.remove(&number) {
            self.lease = self.lease.max(sent + LOST_AFTER);
        }
    }

    /// The watchdogs of exclusive jobs look at the clock.
    pub(super) fn watch(&mut self, now: Moment) {
        if now < self.lease {
            return;
        }
        let peer = self.peer;
        for (&id, attempt) in self.attempts.iter_mut().filter(|(_, held)| held.exclusive && held.runs()) {
            let outcome = AttemptOutcome::Lost { reason: "the lease has expired".into() };
            attempt.finish(outcome, now);
            self.outbox.extend(peer.and_then(|peer| attempt.end(peer, id)));
        }
    }

    /// Takes in a message of the scheduler.
    pub(super) fn take_in(&mut self, message: Message, now: Moment) {
        let Some(peer) = self.peer else { return };
        match message {
            Message::Start { attempt, recipe, .. } => {
                let options = &recipe.options;
                let (slots, exclusive) = (options.get_slots(), options.is_exclusive());
                let short = &*recipe.service == "short";
                let fresh = Attempt { slots, exclusive, short, began: None, ended: None, checkpoint: None };
                self.attempts.entry(attempt).or_insert(fresh);
            }
            Message::Stop { attempt: id } => {
                if let Some(attempt) = self.attempts.get_mut(&id).filter(|attempt| attempt.ended.is_none()) {
                    attempt.finish(AttemptOutcome::Stopped, now);
                    self.outbox.extend(attempt.end(peer, id));
                }
            }
            Message::Recall { attempt } => {
                let waits = self.attempts.get(&attempt).is_some_and(Attempt::waits);
                let answer = if waits {
                    self.attempts.remove(&attempt);
                    Event::Returned { peer, attempts: vec![attempt] }
                } else {
                    Event::NotReturned { peer, attempt }
                };
                self.outbox.push((answer, 0));
            }
            Message::Confirm { attempts } => attempts.iter().for_each(|attempt| {
                self.attempts.remove(attempt);
            }),
            Message::Registered { closed, .. } => {
                self.renew(0);
                self.registered = true;
                closed.iter().for_each(|attempt| {
                    self.attempts.remove(attempt);
                });
            }
            // It overtakes what waits for a commit. Until the worker knows which of its attempts are closed, none of them may
            // begin or go on because of it.
            Message::Renewed { number } if self.registered => self.renew(number),
            _ => {}
        }
    }

    /// The next attempt that waits begins if there is room for it. Returns it if its job may run nowhere else.
    pub(super) fn begin(&mut self, now: Moment) -> Option<JobId> {
        let used: u32 = self.attempts.values().filter(|held| held.runs()).map(|held| held.slots).sum();
        let free = self.slots.saturating_sub(used);
        let leased = now < self.lease;
        let fits = |held: &Attempt| held.waits() && held.slots <= free && (leased || !held.exclusive);
        let (&id, attempt) = self.attempts.iter_mut().find(|(_, held)| fits(held))?;
        attempt.began = Some(now);
        let exclusive = attempt.exclusive;
        self.outbox.extend(self.peer.map(|peer| (Event::Began { peer, attempt: id, pid: 9 }, 0)));
        exclusive.then_some(id.job)
    }

    /// Whether a process of this job is alive here.
    pub(super) fn runs(&self, job: JobId) -> usize {
        self.attempts.iter().filter(|(id, held)| id.job == job && held.runs()).count()
    }

    fn one_that_runs(&mut self, rng: &mut Rng) -> Option<(AttemptId, &mut Attempt)> {
        let running = self.attempts.values().filter(|held| held.runs()).count();
        if running == 0 {
            return None;
        }
        let chosen = rng.usize(..running);
        let (&id, attempt) = self.attempts.iter_mut().filter(|(_, held)| held.runs()).nth(chosen)?;
        Some((id, attempt))
    }

    /// One of those that run saves its state.
    pub(super) fn checkpoint(&mut self, rng: &mut Rng, number: u64) {
        let peer = self.peer;
        let Some((attempt, held)) = self.one_that_runs(rng) else { return };
        held.checkpoint = Some(number);
        if let Some(peer) = peer {
            self.outbox.push((Event::CheckpointCame { peer, attempt }, number));
        }
    }

    /// One of those that run ends.
    pub(super) fn end(&mut self, rng: &mut Rng, faults: bool, now: Moment) {
        let outcome = match rng.u32(0..12) {
            0 if faults => failed(FailureKind::Error),
            1 if faults => failed(FailureKind::Crashed),
            2 if faults => failed(FailureKind::OutOfMemory),
            3 if faults => AttemptOutcome::Lost { reason: "the host died".into() },
            4 if faults => failed(FailureKind::TimedOut),
            _ => AttemptOutcome::Finished,
        };
        let peer = self.peer;
        let Some((id, attempt)) = self.one_that_runs(rng) else { return };
        attempt.finish(outcome, now);
        let end = peer.and_then(|peer| attempt.end(peer, id));
        self.outbox.extend(end);
    }
}

impl Attempt {
    fn finish(&mut self, outcome: AttemptOutcome, now: Moment) {
        let ran = self.began.map_or(Duration::ZERO, |began| now.since(began));
        let ran = if self.short { ran.min(Duration::from_millis(1)) } else { ran };
        self.ended = Some((outcome, ran));
    }

    /// The word of its end, if it has ended.
    fn end(&self, peer: Peer, attempt: AttemptId) -> Option<(Event, u64)> {
        let (outcome, ran) = self.ended.clone()?;
        let event = Event::Ended { peer, attempt, outcome, ran, output_bytes: 3 };
        Some((event, result_of(attempt.job, attempt.attempt)))
    }
}
