//! Drains: workers that take nothing new, until another start of their daemon or their end.

use std::time::Duration;

use lrts_core::ids::WorkerId;

use super::attempts::Fate;
use super::events::{Message, Note};
use super::{Engine, Timer};
use crate::record::Draining;

impl Engine {
    /// A worker takes nothing new. What it still has goes elsewhere after `deadline`, if there is one.
    pub(super) fn drain(&mut self, worker: u32, reason: String, deadline: Option<Duration>) {
        let record = &mut self.workers.all[worker];
        let (id, instance) = (record.id, record.instance);
        record.draining = Some(Draining { reason: reason.clone(), instance, deadline });
        self.note(Note::WorkerDrains { worker: id, reason });
        self.keep_worker(worker);
        self.schedule_drain(worker);
        self.workers.rekey(worker);
        for attempt in Vec::from(self.workers.all[worker].ahead.clone()) {
            if self.attempts[attempt].fate == Fate::Open && !self.attempts[attempt].recalled {
                self.recall(attempt);
            }
        }
    }

    /// Sees to it that a draining worker's deadline is kept.
    pub(super) fn schedule_drain(&mut self, worker: u32) {
        self.cancel_drain_timer(worker);
        let record = &mut self.workers.all[worker];
        if let Some(deadline) = record.draining.as_ref().and_then(|draining| draining.deadline) {
            let at = self.now + deadline;
            record.drain_timer = Some(at);
            self.timers.insert((at, Timer::Drain(worker)));
        }
    }

    pub(super) fn cancel_drain_timer(&mut self, worker: u32) {
        if let Some(at) = self.workers.all[worker].drain_timer.take() {
            self.timers.remove(&(at, Timer::Drain(worker)));
        }
    }

    pub(super) fn drain_by_command(&mut self, id: WorkerId, deadline: Option<Duration>) {
        if let Some(&worker) = self.workers.by_id.get(&id) {
            self.drain(worker, "drained by `lrts drain`".to_owned(), deadline);
        }
    }

    /// The time of a draining worker is over: what it still has is stopped there, charged to nobody, and placed elsewhere.
    pub(super) fn drain_overdue(&mut self, worker: u32) {
        let record = &mut self.workers.all[worker];
        record.drain_timer = None;
        let Some(peer) = record.peer() else { return };
        for (attempt, index) in record.attempts.clone() {
            if self.attempts[index].fate == Fate::Open {
                self.send(peer, Message::Stop { attempt });
            }
        }
    }

    /// A drain is over.
    pub(super) fn end_drain(&mut self, worker: u32) {
        if self.workers.all[worker].draining.take().is_some() {
            self.cancel_drain_timer(worker);
            self.keep_worker(worker);
        }
    }

    /// A drained worker that hasn't been heard of for long needn't be known when it is back.
    pub(super) fn forget_drain(&mut self, worker: u32) {
        if self.workers.all.get(worker).is_some() {
            self.end_drain(worker);
            self.forget_worker_if_empty(worker);
        }
    }
}
