//! The worker's decisions, without I/O: what it holds, what may start, when to speak to the scheduler.
//!
//! Events and time in, actions out; the shell (`event_loop.rs`) carries them out. The engine never decides about a job's fate:
//! it runs what it is told to, reports each end until the scheduler has confirmed it, and gives back what hasn't begun.

mod attempts;
mod hosts;
mod leases;
mod registration;
#[cfg(test)]
mod tests;

use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;
use lrts_core::limits::{RETRY_BACKOFF_MAX, RETRY_BACKOFF_MIN};
use lrts_core::spec::BundleRef;

use self::attempts::{Attempts, NewAttempt, Run, State};
pub(crate) use self::hosts::HostNumber;
use self::hosts::Hosts;
use self::leases::Lease;
use self::registration::{Connection, EarlierRun};

/// How long the hosts of an earlier run may take to say what they have. An attempt that the inventory lacks is placed anew, so
/// a host that is alive but silent is worth a wait. But for that long the scheduler hears nothing of the others' attempts, and
/// after the lease that it gives (20 s by default) it places them anew too.
pub(crate) const ADOPTION_TIME: Duration = Duration::from_secs(10);

/// How long a leaving worker waits, beyond the grace period, until the ends of its attempts are confirmed.
const CONFIRM_TIME: Duration = Duration::from_secs(5);

/// Whatever the scheduler asks for, heartbeats aren't more frequent.
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(10);

/// What has happened.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Event {
    /// A connection to the scheduler is up.
    Connected,
    /// The connection is gone.
    Disconnected,
    /// The scheduler has taken the registration.
    Registered {
        /// Which store it has.
        store: u64,
        /// How often to send a heartbeat.
        heartbeat: Duration,
        /// How long the worker's lease is.
        lost_after: Duration,
        /// Attempts that are no longer open: killed and forgotten.
        closed: Vec<AttemptId>,
    },
    /// The scheduler has received the heartbeat of this number.
    Renewed(u64),
    /// The scheduler wants another interval.
    HeartbeatChanged(Duration),
    /// The scheduler has sent an attempt.
    StartOrdered {
        /// Which.
        attempt: AttemptId,
        /// What runs it.
        bundle: BundleRef,
        /// How many slots it takes.
        slots: u32,
        /// Whether it must end with the worker's lease.
        exclusive: bool,
    },
    /// The scheduler wants an attempt stopped.
    StopOrdered {
        /// Which.
        attempt: AttemptId,
        /// Without the grace period.
        at_once: bool,
    },
    /// The scheduler wants an attempt back, unless it has begun.
    RecallOrdered(AttemptId),
    /// The scheduler has committed the ends of these attempts.
    Confirmed(Vec<AttemptId>),
    /// A job host of an earlier run has this attempt: it runs, or its end comes next. `HostReady` follows.
    AttemptHeld {
        /// Which.
        attempt: AttemptId,
        /// Which host.
        host: HostNumber,
        /// The host's bundle.
        bundle: BundleRef,
        /// How many slots it takes.
        slots: u32,
        /// Whether it must end with the worker's lease.
        exclusive: bool,
        /// The store that it comes from; the last one if its host doesn't know.
        store: Option<u64>,
        /// Its process, if it runs.
        run: Option<HeldRun>,
    },
    /// A job host that is gone has left the end of this attempt. How it ended is with the shell.
    EndFound {
        /// Which.
        attempt: AttemptId,
        /// The store that it comes from; the last one if that isn't known.
        store: Option<u64>,
    },
    /// All of an earlier run is known: its hosts have answered or are gone.
    EarlierRunKnown,
    /// A bundle's job host takes attempts.
    HostReady {
        /// Which bundle.
        bundle: BundleRef,
        /// Which host.
        host: HostNumber,
    },
    /// A job host has another connection than before: what was said to it last may not have arrived. Attempts that it hasn't
    /// got are reported as lost ahead of this.
    HostResumed(HostNumber),
    /// A bundle's job host is gone, or couldn't be started for reasons that may pass.
    HostDied {
        /// Which bundle.
        bundle: BundleRef,
        /// Which host, if there was one.
        host: Option<HostNumber>,
        /// What happened.
        reason: String,
    },
    /// The bundle can't start on this machine.
    BundleRefused {
        /// Which.
        bundle: BundleRef,
        /// Why.
        reason: String,
    },
    /// The scheduler hasn't got the bundle.
    BundleMissing(BundleRef),
    /// An attempt's process runs.
    AttemptBegan {
        /// Which.
        attempt: AttemptId,
        /// Its process.
        pid: u32,
    },
    /// An attempt has ended and its processes are gone. How it ended stays with the shell.
    AttemptEnded(AttemptId),
    /// The same, because this machine couldn't run it or keep its result. The next one would likely fare no better, and since
    /// nobody is charged for it, attempts would come and go by the thousand.
    AttemptLost(AttemptId),
    /// The operator wants the worker to stop its jobs and leave.
    LeaveOrdered,
    /// The operator wants the worker to leave its jobs to their hosts.
    AbsenceOrdered,
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Action {
    /// Register at the scheduler.
    Register {
        /// How many slots are offered.
        slots: u32,
        /// The store that the inventory comes from; none if the worker has no attempts at all.
        store: Option<u64>,
        /// The inventory: attempts that wait, run, or have ended unconfirmed.
        held: Vec<Held>,
    },
    /// Send a heartbeat.
    SendHeartbeat {
        /// Comes back in the answer.
        number: u64,
    },
    /// Write down that the scheduler has this store.
    KeepStore(u64),
    /// Say to the operator that the worker has so many attempts of other stores than the scheduler's.
    TellAside(usize),
    /// Tell the scheduler that an attempt has begun.
    ReportBegan {
        /// Which.
        attempt: AttemptId,
        /// Its process.
        pid: u32,
    },
    /// Tell the scheduler how an attempt ended.
    ReportEnded(AttemptId),
    /// Give attempts back to the scheduler.
    ReportReturned(Vec<AttemptId>),
    /// Tell the scheduler that an attempt can't be given back.
    ReportNotReturned(AttemptId),
    /// Tell the scheduler that a bundle can't start here, and give its attempts back.
    ReportBundleRefused {
        /// Which.
        bundle: BundleRef,
        /// Why.
        reason: String,
        /// The attempts.
        attempts: Vec<AttemptId>,
    },
    /// Get the bundle and start a job host of it. Answered by `HostReady`, `HostDied`, `BundleRefused` or `BundleMissing`.
    PrepareHost(BundleRef),
    /// End a job host, which has nothing to do. Not answered.
    EndHost(HostNumber),
    /// Hand an attempt to a host. Answered by `AttemptBegan`, then `AttemptEnded` or `AttemptLost`.
    StartAttempt {
        /// Which.
        attempt: AttemptId,
        /// Which host.
        host: HostNumber,
        /// When it must end unless its lease is renewed, if it is exclusive.
        lease_until: Option<Moment>,
    },
    /// Tell a host that its exclusive attempts may run on until then.
    RenewLeases {
        /// Which host.
        host: HostNumber,
        /// Until when.
        until: Moment,
    },
    /// Ask an attempt's host for its newest checkpoint.
    ReadCheckpoint(AttemptId),
    /// Have an attempt stopped by its host. Answered by `AttemptEnded`.
    StopAttempt {
        /// Which.
        attempt: AttemptId,
        /// Zero kills at once.
        grace: Duration,
    },
    /// An attempt has ended without a word from a host: write down how.
    Conclude {
        /// Which.
        attempt: AttemptId,
        /// How.
        conclusion: Conclusion,
    },
    /// Drop all that is kept of an attempt; its host may do so too. Every ordered attempt comes to this exactly once.
    Forget(AttemptId),
    /// Nothing is left: say goodbye if there is a connection, and end.
    Leave,
}

/// An end that no host reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Conclusion {
    /// Stopped before it had begun.
    Stopped,
    /// Its host died.
    Lost {
        /// What happened.
        reason: String,
    },
}

/// A process that a host of an earlier run has started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HeldRun {
    /// Its process id.
    pub(crate) pid: u32,
    /// How long it has been running.
    pub(crate) ran: Duration,
    /// Whether it is being stopped.
    pub(crate) stopping: bool,
}

/// One entry of the inventory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Held {
    /// Which.
    pub(crate) attempt: AttemptId,
    /// How long it has been running; none if it hasn't begun.
    pub(crate) running: Option<Duration>,
    /// Its process, 0 if it hasn't begun.
    pub(crate) pid: u32,
    /// Whether it has ended.
    pub(crate) ended: bool,
}

/// Whether the worker means to stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stay {
    Staying,
    /// Takes nothing new; leaves once all is confirmed, or at the deadline.
    Leaving {
        deadline: Moment,
    },
    Left,
}

/// Trouble with the machine: attempts wait for a while before one is tried again.
#[derive(Debug, Default)]
struct Trouble {
    /// How many pauses in a row weren't followed by an attempt that ended by itself.
    pauses: u32,
    /// When the one that goes on ends.
    until: Option<Moment>,
}

/// What an engine starts with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// The worker's slots.
    pub(crate) slots: u32,
    /// Between terminate and kill.
    pub(crate) grace: Duration,
    /// How long an ended attempt of another store waits for a scheduler that has this store.
    pub(crate) orphan_grace: Duration,
    /// The store of the scheduler that the worker has last registered with.
    pub(crate) store: Option<u64>,
}

/// The worker's state.
#[derive(Debug)]
pub(crate) struct Engine {
    grace: Duration,
    orphan_grace: Duration,
    connection: Connection,
    earlier_run: EarlierRun,
    /// Whether there is something that the last registration didn't tell of.
    untold: bool,
    lease: Lease,
    attempts: Attempts,
    hosts: Hosts,
    trouble: Trouble,
    stay: Stay,
}

impl Engine {
    /// A worker that knows nothing yet of an earlier run.
    pub(crate) fn new(settings: Settings, now: Moment) -> Self {
        let Settings { slots, grace, orphan_grace, store } = settings;
        Self {
            grace,
            orphan_grace,
            connection: Connection::Down,
            earlier_run: EarlierRun::Asked { deadline: now + ADOPTION_TIME },
            untold: false,
            lease: Lease::default(),
            attempts: Attempts::new(slots, store),
            hosts: Hosts::default(),
            trouble: Trouble::default(),
            stay: Stay::Staying,
        }
    }

    /// Takes in what has happened and says what is to be done, in order.
    pub(crate) fn handle(&mut self, event: Event, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Connected => self.connection = Connection::Waiting,
            Event::Disconnected => self.disconnect(&mut actions),
            Event::Registered { store, heartbeat, lost_after, closed } => {
                self.register(store, heartbeat, lost_after, &closed, now, &mut actions);
            }
            Event::Renewed(number) => {
                if self.lease.renew(number) {
                    self.renew_leases(now, &mut actions);
                }
            }
            Event::HeartbeatChanged(changed) => {
                let changed = changed.max(SHORTEST_HEARTBEAT);
                if let Connection::Registered { interval, next_heartbeat, .. } = &mut self.connection {
                    *interval = changed;
                    *next_heartbeat = (*next_heartbeat).min(now + changed);
                }
            }
            Event::StartOrdered { attempt, bundle, slots, exclusive } => {
                self.take_attempt(attempt, bundle, slots, exclusive, now, &mut actions);
            }
            Event::StopOrdered { attempt, at_once } => self.stop(attempt, at_once, now, &mut actions),
            Event::RecallOrdered(attempt) => self.recall(attempt, now, &mut actions),
            Event::Confirmed(attempts) => {
                for attempt in attempts {
                    self.confirm(attempt, now, &mut actions);
                }
            }
            Event::AttemptHeld { attempt, host, bundle, slots, exclusive, store, run } => {
                let held = NewAttempt { bundle: Some(bundle), slots, exclusive, store };
                self.adopt(attempt, host, held, run, now, &mut actions);
            }
            Event::EndFound { attempt, store } => {
                if self.attempts.get(attempt).is_none() {
                    let left = NewAttempt { bundle: None, slots: 0, exclusive: false, store };
                    self.attempts.insert(attempt, left, None, State::Ended { since: now });
                    self.untold = true;
                }
            }
            Event::EarlierRunKnown => self.earlier_run = EarlierRun::Known,
            Event::HostReady { bundle, host } => {
                self.hosts.ready(&bundle, host, now);
                self.attempts.host_is_ready(&bundle);
            }
            Event::HostResumed(host) => self.repeat_orders(host, now, &mut actions),
            Event::HostDied { bundle, host, reason } => {
                self.lose_host(&bundle, host, &reason, now, &mut actions);
            }
            Event::BundleRefused { bundle, reason } => {
                self.hosts.unavailable(&bundle);
                let attempts = self.give_up_waiting(Some(&bundle), now, &mut actions);
                if !attempts.is_empty() {
                    self.report(Action::ReportBundleRefused { bundle, reason, attempts }, &mut actions);
                }
            }
            Event::BundleMissing(bundle) => {
                self.hosts.unavailable(&bundle);
                self.return_waiting(Some(&bundle), now, &mut actions);
            }
            Event::AttemptBegan { attempt, pid } => {
                if self.attempts.begin(attempt, Run { since: now, pid }) && self.is_own(attempt) {
                    self.report(Action::ReportBegan { attempt, pid }, &mut actions);
                }
            }
            Event::AttemptEnded(attempt) => {
                self.trouble.pauses = 0;
                self.end(attempt, now, &mut actions);
            }
            Event::AttemptLost(attempt) => {
                self.trouble.begin(now);
                self.end(attempt, now, &mut actions);
            }
            Event::LeaveOrdered => self.prepare_to_leave(now, &mut actions),
            Event::AbsenceOrdered => {
                if self.stay != Stay::Left {
                    self.return_waiting(None, now, &mut actions);
                    self.stay = Stay::Left;
                    actions.push(Action::Leave);
                }
            }
            Event::Tick => {}
        }
        self.forget_unclaimed(now, &mut actions);
        let attempts = &self.attempts;
        self.hosts.pass_time(
            now,
            |bundle| attempts.wait_for_host(bundle),
            |host| attempts.has_host(host),
            &mut actions,
        );
        if self.stay != Stay::Left && self.trouble.is_over(now) {
            self.fill_slots(now, &mut actions);
        }
        self.register_if_due(now, &mut actions);
        self.beat(now, &mut actions);
        self.leave_if_done(now, &mut actions);
        actions
    }

    /// When to send the next `Tick`, if nothing happens before.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        let connection = match (self.connection, self.earlier_run) {
            (Connection::Registered { next_heartbeat, .. }, _) => Some(next_heartbeat),
            (Connection::Waiting, EarlierRun::Asked { deadline }) => {
                Some(deadline).filter(|_| self.attempts.slots_to_offer() > 0)
            }
            (Connection::Waiting, EarlierRun::Known)
            | (Connection::Down | Connection::Registering { .. }, _) => None,
        };
        let leaving = match self.stay {
            Stay::Leaving { deadline } => Some(deadline),
            Stay::Staying | Stay::Left => None,
        };
        let unclaimed = self.attempts.aside_since().map(|since| since + self.orphan_grace);
        [connection, leaving, unclaimed, self.trouble.until, self.hosts.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether a host has the attempt: it was handed over and hasn't ended.
    pub(crate) fn is_at_host(&self, attempt: AttemptId) -> bool {
        self.attempts.get(attempt).is_some_and(|held| held.state.takes_slots())
    }

    /// Whether the scheduler wants to hear of what the attempt does.
    pub(crate) fn is_reported(&self, attempt: AttemptId) -> bool {
        matches!(self.connection, Connection::Registered { .. }) && self.is_own(attempt)
    }

    fn is_own(&self, attempt: AttemptId) -> bool {
        self.attempts.get(attempt).is_some_and(|held| self.attempts.is_own(held))
    }

    /// The store of the scheduler that the worker has last registered with.
    pub(crate) fn store(&self) -> Option<u64> {
        self.attempts.store()
    }

    fn take_attempt(
        &mut self,
        attempt: AttemptId,
        bundle: BundleRef,
        slots: u32,
        exclusive: bool,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        if self.attempts.get(attempt).is_some() {
            return; // A repeat.
        }
        // Sent before the scheduler has seen the newest inventory, which lacks it: so it is placed anew.
        if !matches!(self.connection, Connection::Registered { .. }) {
            actions.push(Action::Forget(attempt));
            return;
        }
        // Slots that this worker will never have would leave the attempt, and all behind it, waiting for ever.
        if self.stay != Stay::Staying || slots > self.attempts.slots() {
            actions.push(Action::Forget(attempt));
            self.report(Action::ReportReturned(vec![attempt]), actions);
            return;
        }
        let is_ready = self.hosts.use_for_attempt(&bundle, now, actions);
        let state = if is_ready { State::WaitingForSlot } else { State::WaitingForHost };
        let store = self.store();
        self.attempts.insert(
            attempt,
            NewAttempt { bundle: Some(bundle), slots, exclusive, store },
            None,
            state,
        );
    }

    /// Starts what fits. An exclusive attempt whose lease has lapsed goes back: the scheduler may be about to place it anew.
    fn fill_slots(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let lease = self.lease.at(now);
        let hosts = &self.hosts;
        let lapsed = self.attempts.fill_slots(lease, |bundle| hosts.current(bundle), actions);
        for &attempt in &lapsed {
            self.forget(attempt, now, actions);
        }
        if !lapsed.is_empty() {
            self.report(Action::ReportReturned(lapsed), actions);
        }
    }

    fn stop(&mut self, attempt: AttemptId, at_once: bool, now: Moment, actions: &mut Vec<Action>) {
        let Some(held) = self.attempts.get(attempt) else { return };
        match held.state {
            State::WaitingForHost | State::WaitingForSlot => {
                self.attempts.set_ended(attempt, now);
                actions.push(Action::Conclude { attempt, conclusion: Conclusion::Stopped });
                self.report_end(attempt, actions);
            }
            State::Starting | State::Running(_) | State::Stopping { at_once: false, .. } => {
                let repeated = matches!(held.state, State::Stopping { .. });
                if repeated && !at_once {
                    return; // The grace period runs from the first order.
                }
                self.attempts.set_stopping(attempt, at_once);
                let grace = if at_once { Duration::ZERO } else { self.grace };
                actions.push(Action::StopAttempt { attempt, grace });
            }
            State::Stopping { at_once: true, .. } | State::Ended { .. } => {}
        }
    }

    fn recall(&mut self, attempt: AttemptId, now: Moment, actions: &mut Vec<Action>) {
        if self.attempts.get(attempt).is_some_and(|held| held.state.is_waiting()) {
            self.forget(attempt, now, actions);
            self.report(Action::ReportReturned(vec![attempt]), actions);
        } else {
            self.report(Action::ReportNotReturned(attempt), actions);
        }
    }

    fn confirm(&mut self, attempt: AttemptId, now: Moment, actions: &mut Vec<Action>) {
        let Some(held) = self.attempts.get(attempt) else { return };
        match held.state {
            State::Ended { .. } => self.forget(attempt, now, actions),
            // Nobody wants the end of what is being stopped.
            State::Stopping { .. } => self.attempts.set_unwanted(attempt),
            // No end was reported, so there is nothing that this could confirm.
            State::WaitingForHost | State::WaitingForSlot | State::Starting | State::Running(_) => {}
        }
    }

    /// The scheduler has closed the attempt: whatever becomes of it, nobody wants to know.
    fn close(&mut self, attempt: AttemptId, now: Moment, actions: &mut Vec<Action>) {
        let Some(held) = self.attempts.get(attempt) else { return };
        if held.state.takes_slots() {
            self.stop(attempt, true, now, actions);
            self.attempts.set_unwanted(attempt);
        } else {
            self.forget(attempt, now, actions);
        }
    }

    fn end(&mut self, attempt: AttemptId, now: Moment, actions: &mut Vec<Action>) {
        match self.attempts.get(attempt).map(|held| held.state) {
            Some(State::Stopping { wanted: false, .. }) => self.forget(attempt, now, actions),
            Some(State::Starting | State::Running(_) | State::Stopping { .. }) => {
                self.attempts.set_ended(attempt, now);
                self.report_end(attempt, actions);
            }
            // Told before: the scheduler's confirmation is on its way.
            Some(State::Ended { .. }) => {}
            // No host has these: the word of one that was given up.
            Some(State::WaitingForHost | State::WaitingForSlot) => {}
            None => actions.push(Action::Forget(attempt)),
        }
    }

    fn repeat_orders(&mut self, host: HostNumber, now: Moment, actions: &mut Vec<Action>) {
        for (attempt, held) in self.attempts.iter().filter(|(_, held)| held.host == Some(host)) {
            if let State::Stopping { at_once, .. } = held.state {
                let grace = if at_once { Duration::ZERO } else { self.grace };
                actions.push(Action::StopAttempt { attempt, grace });
            }
        }
        self.renew_leases(now, actions);
    }

    fn lose_host(
        &mut self,
        bundle: &BundleRef,
        host: Option<HostNumber>,
        reason: &str,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        let lost: Vec<_> = self
            .attempts
            .iter()
            .filter(|(_, held)| held.host.is_some() && held.host == host && held.state.takes_slots())
            .map(|(attempt, held)| (attempt, held.state))
            .collect();
        for (attempt, state) in lost {
            if matches!(state, State::Stopping { wanted: false, .. }) {
                self.forget(attempt, now, actions);
                continue;
            }
            self.attempts.set_ended(attempt, now);
            let conclusion = Conclusion::Lost { reason: reason.to_owned() };
            actions.push(Action::Conclude { attempt, conclusion });
            self.report_end(attempt, actions);
        }
        if self.hosts.died(bundle, host, now) {
            self.attempts.host_is_gone(bundle);
        }
    }

    fn prepare_to_leave(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.stay != Stay::Staying {
            return;
        }
        self.stay = Stay::Leaving { deadline: now + self.grace + CONFIRM_TIME };
        self.return_waiting(None, now, actions);
        let running: Vec<_> = self
            .attempts
            .iter()
            .filter(|(_, held)| held.state.takes_slots())
            .map(|(attempt, _)| attempt)
            .collect();
        for attempt in running {
            self.stop(attempt, false, now, actions);
        }
    }

    fn leave_if_done(&mut self, now: Moment, actions: &mut Vec<Action>) {
        // Results for another store's scheduler wait for it wherever they are.
        let is_done = self.earlier_run == EarlierRun::Known
            && !self.attempts.iter().any(|(_, held)| self.attempts.is_own(held) || held.state.takes_slots());
        if let Stay::Leaving { deadline } = self.stay
            && (is_done || now >= deadline)
        {
            self.stay = Stay::Left;
            actions.push(Action::Leave);
        }
    }

    fn return_waiting(&mut self, bundle: Option<&BundleRef>, now: Moment, actions: &mut Vec<Action>) {
        let attempts = self.give_up_waiting(bundle, now, actions);
        if !attempts.is_empty() {
            self.report(Action::ReportReturned(attempts), actions);
        }
    }

    /// Forgets what hasn't begun, of one bundle or of all.
    fn give_up_waiting(
        &mut self,
        bundle: Option<&BundleRef>,
        now: Moment,
        actions: &mut Vec<Action>,
    ) -> Vec<AttemptId> {
        let waiting: Vec<_> = self
            .attempts
            .iter()
            .filter(|(_, held)| {
                held.state.is_waiting() && bundle.is_none_or(|bundle| held.bundle.as_ref() == Some(bundle))
            })
            .map(|(attempt, _)| attempt)
            .collect();
        for &attempt in &waiting {
            self.forget(attempt, now, actions);
        }
        waiting
    }

    fn forget(&mut self, attempt: AttemptId, now: Moment, actions: &mut Vec<Action>) {
        let held = self.attempts.remove(attempt).expect("callers have looked it up");
        if let Some(bundle) = &held.bundle {
            self.hosts.unuse_for_attempt(bundle, now);
        }
        actions.push(Action::Forget(attempt));
    }

    /// Before the inventory nothing is said: it says what is here, and what isn't any more.
    fn report(&self, report: Action, actions: &mut Vec<Action>) {
        if matches!(self.connection, Connection::Registering { .. } | Connection::Registered { .. }) {
            actions.push(report);
        }
    }

    /// Ends wait for the registration, which may say that nobody wants them.
    fn report_end(&self, attempt: AttemptId, actions: &mut Vec<Action>) {
        if self.is_reported(attempt) {
            actions.push(Action::ReportEnded(attempt));
        }
    }
}

impl Trouble {
    /// What began before a pause and is lost in it says nothing new.
    fn begin(&mut self, now: Moment) {
        if self.until.is_none() {
            self.until = Some(now + backoff(self.pauses));
            self.pauses += 1;
        }
    }

    fn is_over(&mut self, now: Moment) -> bool {
        self.until = self.until.filter(|&until| now < until);
        self.until.is_none()
    }
}

/// How long to wait after something has failed once more, this many failures having come right before.
fn backoff(before: u32) -> Duration {
    let doubled = RETRY_BACKOFF_MIN * 2u32.saturating_pow(before.min(16));
    doubled.min(RETRY_BACKOFF_MAX)
}
