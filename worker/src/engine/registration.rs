//! What the scheduler is told of the worker as a whole, and what it grants: registration, store, lease. And what of an earlier
//! run of the worker comes into it.

use std::collections::BTreeSet;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;

use super::attempts::{NewAttempt, Run, State};
use super::leases::Lease;
use super::{Action, Engine, HeldRun, HostNumber, SHORTEST_HEARTBEAT, Stay};

/// Where the worker stands with the scheduler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Connection {
    Down,
    /// There is a reason not to register yet: hosts of an earlier run haven't answered, or no slot is free to be offered.
    Waiting,
    /// The inventory is sent.
    Registering {
        /// When.
        since: Moment,
        /// How many slots it offers.
        slots: u32,
        /// The store that it comes from.
        store: Option<u64>,
    },
    Registered {
        slots: u32,
        interval: Duration,
        next_heartbeat: Moment,
    },
}

/// What is known of an earlier run of the worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EarlierRun {
    /// Some of its hosts haven't answered. At the deadline the worker registers without them.
    Asked {
        deadline: Moment,
    },
    Known,
}

impl Engine {
    pub(super) fn register(
        &mut self,
        store: u64,
        heartbeat: Duration,
        lost_after: Duration,
        closed: &[AttemptId],
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        let Connection::Registering { since, slots, store: told } = self.connection else {
            return; // The answer of a connection that is gone.
        };
        if self.store() != Some(store) {
            for attempt in self.attempts.set_store(store) {
                self.forget(attempt, now, actions);
            }
            self.lease = Lease::default();
            actions.push(Action::KeepStore(store));
        }
        if told.is_some_and(|told| told != store) || (told.is_none() && self.attempts.has_own()) {
            // What it was told of is of no use to it.
            self.connection = Connection::Waiting;
            return;
        }
        let interval = heartbeat.max(SHORTEST_HEARTBEAT);
        self.connection = Connection::Registered { slots, interval, next_heartbeat: now + interval };
        self.lease.begin(since, lost_after);
        for &attempt in closed {
            self.close(attempt, now, actions);
        }
        self.renew_leases(now, actions);
        if self.attempts.aside() > 0 {
            actions.push(Action::TellAside(self.attempts.aside()));
        }
        // Only now, so that no result travels that nobody wants.
        for (attempt, held) in self.attempts.iter().filter(|(_, held)| self.attempts.is_own(held)) {
            match held.state {
                State::Ended { .. } => actions.push(Action::ReportEnded(attempt)),
                State::Starting | State::Running(_) | State::Stopping { wanted: true, .. } => {
                    actions.push(Action::ReadCheckpoint(attempt));
                }
                State::WaitingForHost | State::WaitingForSlot | State::Stopping { wanted: false, .. } => {}
            }
        }
    }

    /// What was sent last may not have arrived. Ends are told again; the checkpoints that belong to them have to be here by
    /// then, whatever becomes of their hosts.
    pub(super) fn disconnect(&mut self, actions: &mut Vec<Action>) {
        if matches!(self.connection, Connection::Registered { .. }) {
            let at_hosts =
                self.attempts.iter().filter(|(_, held)| held.host.is_some() && self.attempts.is_own(held));
            actions.extend(at_hosts.map(|(attempt, _)| Action::ReadCheckpoint(attempt)));
        }
        self.connection = Connection::Down;
        self.lease.forget_heartbeats();
    }

    /// Registers once there is a connection and all is known that the scheduler has to know, and anew when that changes.
    pub(super) fn register_if_due(&mut self, now: Moment, actions: &mut Vec<Action>) {
        // At least one: an offer of none is no worker.
        let offered = self.attempts.slots_to_offer();
        let is_due = match self.connection {
            Connection::Waiting => match self.earlier_run {
                EarlierRun::Asked { deadline } => now >= deadline,
                EarlierRun::Known => true,
            },
            Connection::Registered { slots, .. } => {
                self.stay == Stay::Staying && (self.untold || slots != offered)
            }
            Connection::Down | Connection::Registering { .. } => false,
        };
        if !is_due || offered == 0 || self.stay == Stay::Left {
            return;
        }
        let held = self.attempts.inventory(now);
        // Said too where all is kept aside: their own scheduler, should this be it, must not take them for gone.
        let store = self.store().filter(|_| !held.is_empty() || self.attempts.aside() > 0);
        self.untold = false;
        self.connection = Connection::Registering { since: now, slots: offered, store };
        actions.push(Action::Register { slots: offered, store, held });
    }

    /// Takes over an attempt from a host of an earlier run.
    pub(super) fn adopt(
        &mut self,
        attempt: AttemptId,
        host: HostNumber,
        held: NewAttempt,
        run: Option<HeldRun>,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        if self.attempts.get(attempt).is_some() {
            return;
        }
        if let Some(bundle) = &held.bundle {
            self.hosts.hold_for_attempt(bundle, now);
        }
        let state = match run {
            None => State::Starting,
            Some(HeldRun { pid, ran, stopping }) => {
                let run = Run { since: now - ran, pid };
                if stopping {
                    State::Stopping { run: Some(run), at_once: false, wanted: true }
                } else {
                    State::Running(run)
                }
            }
        };
        self.attempts.insert(attempt, held, Some(host), state);
        self.untold = true;
        if matches!(self.stay, Stay::Leaving { .. }) {
            self.stop(attempt, false, now, actions);
        }
    }

    /// Tells the hosts of exclusive attempts how far the lease reaches.
    pub(super) fn renew_leases(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let Some(until) = self.lease.until() else { return };
        let (own, aside): (Vec<_>, Vec<_>) =
            self.attempts.exclusive_at_hosts().partition(|(_, held)| self.attempts.is_own(held));
        let hosts: BTreeSet<_> = own.into_iter().filter_map(|(_, held)| held.host).collect();
        // A host renews all that it has. The lease of these can't be this scheduler's to renew.
        let overdue: Vec<_> = aside
            .into_iter()
            .filter(|(_, held)| held.host.is_some_and(|host| hosts.contains(&host)))
            .map(|(attempt, _)| attempt)
            .collect();
        for attempt in overdue {
            self.stop(attempt, true, now, actions);
        }
        actions.extend(hosts.into_iter().map(|host| Action::RenewLeases { host, until }));
    }

    /// Forgets what has ended for another scheduler's store that hasn't come back.
    pub(super) fn forget_unclaimed(&mut self, now: Moment, actions: &mut Vec<Action>) {
        while let Some(attempt) = self.attempts.unclaimed_before(now - self.orphan_grace) {
            self.forget(attempt, now, actions);
        }
    }

    pub(super) fn beat(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if let Connection::Registered { interval, next_heartbeat, .. } = &mut self.connection
            && now >= *next_heartbeat
        {
            *next_heartbeat = now + *interval;
            actions.push(Action::SendHeartbeat { number: self.lease.send_heartbeat(now) });
        }
    }
}
