//! When a silent worker is suspect, when it is lost, and when so many are silent that it is rather the scheduler's own network.

use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::limits::ORPHAN_GRACE;

use super::attempts::Fate;
use super::events::{Action, Message, Note, Peer, Reason};
use super::jobs::Phase;
use super::workers::Standing;
use super::{Engine, Timer};

/// One heartbeat second for each of this many workers: what one scheduler takes in without effort.
const WORKERS_PER_SECOND: usize = 2_000;

/// Leases of nanoseconds are looked at no more often than this: what is looked at again "one interval later" must lie ahead.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);

/// The brake needs this many known workers: of few, a large share is soon silent.
const BRAKE_WORKERS: usize = 10;

/// It applies when more than this share of them is silent.
const BRAKE_PERCENT: usize = 30;

/// How long it holds at most.
const BRAKE_TIME: Duration = Duration::from_secs(300);

/// Whether the expiry of silent workers is paused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Brake {
    /// It isn't.
    #[default]
    Off,
    /// Nobody expires until this moment; from then on one worker does per heartbeat interval.
    Until(Moment),
}

impl Engine {
    /// The time that a heartbeat interval needs for the cluster's size, in whole seconds, so that it rarely changes.
    fn interval_for_size(&self) -> Duration {
        Duration::from_secs((self.workers.known / WORKERS_PER_SECOND) as u64)
    }

    /// How long a silent worker is trusted.
    pub(super) fn lost_after(&self) -> Duration {
        self.settings.lost_after.max(self.interval_for_size() * 4)
    }

    /// How often a worker is to be heard.
    pub(super) fn interval(&self) -> Duration {
        let wanted = self.interval_for_size().max(self.settings.heartbeat);
        wanted.min(self.lost_after() / 4).max(SHORTEST_INTERVAL)
    }

    /// Tells all workers but one the interval if it has changed. Returns it.
    pub(super) fn announce_interval(&mut self, but: Option<u32>) -> Duration {
        let interval = self.interval();
        if interval != self.workers.announced {
            self.workers.announced = interval;
            for worker in self.workers.all.indices() {
                if let Some(to) = self.workers.all[worker].peer()
                    && but != Some(worker)
                {
                    let message = Message::SetHeartbeat { heartbeat: interval };
                    self.actions.push(Action::SendAtOnce { to, message });
                }
            }
        }
        interval
    }

    /// Sees to it that a worker's lease is looked at when its state may change.
    pub(super) fn schedule_lease_check(&mut self, worker: u32) {
        let (interval, lost_after) = (self.interval(), self.lost_after());
        let record = &mut self.workers.all[worker];
        let at = match record.standing {
            Standing::Ready(_) => record.heard + interval * 2,
            Standing::Silent(_) => record.heard + lost_after,
            // One that said so may stay away longer.
            Standing::Away => record.heard + self.patience(worker),
            Standing::Lost => record.heard + ORPHAN_GRACE,
        };
        self.reschedule_lease_check(worker, at);
    }

    fn reschedule_lease_check(&mut self, worker: u32, at: Moment) {
        let record = &mut self.workers.all[worker];
        if let Some(old) = record.lease_timer.replace(at) {
            self.timers.remove(&(old, Timer::Lease(worker)));
        }
        self.timers.insert((at, Timer::Lease(worker)));
    }

    /// A worker is alive. The answer lets it count its lease from when it spoke.
    pub(super) fn heartbeat(&mut self, peer: Peer, number: u64) {
        if self.heard_worker(peer).is_some() {
            self.actions.push(Action::SendAtOnce { to: peer, message: Message::Renewed { number } });
        }
    }

    /// Starts all leases afresh if the engine comes so late to what is due that the scheduler itself must have been stopped or
    /// suspended: what its workers have said meanwhile hasn't been read yet, and those that hung up need time to come back.
    pub(super) fn forgive_own_absence(&mut self) {
        // Ended jobs whose time has come may wait for others; leases don't.
        let late = self.timers.first().map_or(Duration::ZERO, |&(due, _)| self.now.since(due));
        if late <= self.interval() || self.workers.all.len() == 0 {
            return;
        }
        self.note(Note::WasAbsent { late });
        for worker in self.workers.all.indices() {
            self.workers.all[worker].heard = self.now;
            self.schedule_lease_check(worker);
        }
    }

    /// How long a worker without a connection is trusted. One that said so may stay away longer, but not with leases of
    /// exclusive attempts, which nobody renews.
    fn patience(&self, worker: u32) -> Duration {
        let record = &self.workers.all[worker];
        let lost_after = self.lost_after();
        let exclusive = |&attempt: &u32| {
            let attempt = &self.attempts[attempt];
            attempt.exclusive && attempt.fate == Fate::Open
        };
        match record.absent {
            Some(absent) if !record.attempts.values().any(exclusive) => absent.max(lost_after),
            _ => lost_after,
        }
    }

    /// A worker's exclusive attempts have been ended by their watchdogs: their jobs are placed again.
    fn end_exclusive(&mut self, worker: u32) {
        let attempts: Vec<u32> = self.workers.all[worker].attempts.values().copied().collect();
        for attempt in attempts {
            if self.attempts.get(attempt).is_some_and(|attempt| attempt.exclusive) {
                self.lapse(attempt);
            }
        }
    }

    /// A lost worker wasn't heard of for so long that jobs which have failed elsewhere don't wait for it any more.
    fn give_up_held(&mut self, worker: u32) {
        let attempts: Vec<u32> = self.workers.all[worker].attempts.values().copied().collect();
        for attempt in attempts {
            // The end of a job takes all that are open of it.
            let Some(record) = self.attempts.get(attempt) else { continue };
            if self.jobs.nodes[record.job].phase == Phase::Held {
                self.close_unbegun(attempt);
            }
        }
    }

    pub(super) fn check_lease(&mut self, worker: u32) {
        let (interval, lost_after) = (self.interval(), self.lost_after());
        let now = self.now;
        let record = &mut self.workers.all[worker];
        record.lease_timer = None;
        let silent = now.since(record.heard);
        if record.standing == Standing::Lost {
            if silent >= ORPHAN_GRACE {
                self.give_up_held(worker);
                self.forget_drain(worker);
            }
            // Its other attempts go on counting: their jobs were placed again, and whoever is first brings the result.
            if self.workers.all.get(worker).is_some() {
                self.reschedule_lease_check(worker, now + ORPHAN_GRACE);
            }
            return;
        }
        if let Standing::Ready(peer) = record.standing
            && silent >= interval * 2
        {
            record.standing = Standing::Silent(peer);
            let id = record.id;
            self.workers.rekey(worker);
            self.note(Note::WorkerSuspect { worker: id });
        }
        if self.workers.all[worker].standing == Standing::Away && silent >= lost_after {
            self.end_exclusive(worker);
        }
        let trusted = match self.workers.all[worker].standing {
            Standing::Away => self.patience(worker),
            Standing::Ready(_) | Standing::Silent(_) | Standing::Lost => lost_after,
        };
        if silent < trusted {
            return self.schedule_lease_check(worker);
        }
        if let Standing::Silent(_) = self.workers.all[worker].standing
            && let Some(at) = self.braked_until()
        {
            return self.reschedule_lease_check(worker, at);
        }
        self.lose(worker);
    }

    /// When a silent, connected worker that would expire now is looked at again; none if it may expire.
    fn braked_until(&mut self) -> Option<Moment> {
        let (interval, known) = (self.interval(), self.workers.known);
        let silent_since = self.now - interval * 2;
        let is_silent =
            |worker: &super::workers::Worker| worker.peer().is_some() && worker.heard <= silent_since;
        let silent = self.workers.all.iter().filter(|(_, worker)| is_silent(worker)).count();
        let too_many = silent * 100 > known * BRAKE_PERCENT;
        match self.brake {
            Brake::Off if too_many && known >= BRAKE_WORKERS => {
                self.note(Note::BrakeEngaged { silent, known });
                self.brake = Brake::Until(self.now + BRAKE_TIME);
                Some(self.now + interval)
            }
            Brake::Off => None,
            // Not released for fewer than ten: those that expire one by one make them fewer.
            Brake::Until(_) if !too_many => {
                self.note(Note::BrakeReleased);
                self.brake = Brake::Off;
                None
            }
            Brake::Until(end) if self.now < end => Some((self.now + interval).min(end)),
            // This one expires; the next may one interval later.
            Brake::Until(_) => {
                self.brake = Brake::Until(self.now + interval);
                None
            }
        }
    }

    /// A worker is lost: what it runs stays open there, and its jobs are placed again.
    fn lose(&mut self, worker: u32) {
        let record = &self.workers.all[worker];
        let attempts: Vec<u32> = record.attempts.values().copied().collect();
        self.note(Note::WorkerLost { worker: record.id, attempts: attempts.len() });
        if let Some(peer) = self.workers.all[worker].peer() {
            self.peers.remove(&peer);
            self.actions.push(Action::Disconnect { peer, reason: Reason::LeaseExpired });
        }
        self.give_up(worker);
        for attempt in attempts {
            // A cancelled job ends with the first of them, and takes all that are open of it.
            if self.attempts.get(attempt).is_some() {
                self.lapse(attempt);
            }
        }
    }
}
