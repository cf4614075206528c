//! The attempts that are here, and the slots that they take.

use std::collections::BTreeMap;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;
use lrts_core::spec::BundleRef;

use super::{Action, Held, HostNumber};

/// Where an attempt stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Its bundle or its host isn't here yet.
    WaitingForHost,
    /// Its host is ready.
    WaitingForSlot,
    /// Handed to the host.
    Starting,
    /// The host says that it runs.
    Running(Run),
    /// The host was told to stop it.
    Stopping {
        /// Since it began, if it had.
        run: Option<Run>,
        /// Without the grace period.
        at_once: bool,
        /// Whether the scheduler wants to know its end.
        wanted: bool,
    },
    /// Ended, and the scheduler hasn't confirmed it.
    Ended {
        /// When the worker heard of it.
        since: Moment,
    },
}

/// A process that runs an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    /// When it began, as far as the worker knows.
    pub(super) since: Moment,
    /// Its process id.
    pub(super) pid: u32,
}

impl State {
    /// Whether the attempt is at its host: between `StartAttempt` and its end.
    pub(super) fn takes_slots(self) -> bool {
        matches!(self, State::Starting | State::Running(_) | State::Stopping { .. })
    }

    /// Whether it can still be given back.
    pub(super) fn is_waiting(self) -> bool {
        matches!(self, State::WaitingForHost | State::WaitingForSlot)
    }

    fn run(self) -> Option<Run> {
        match self {
            State::Running(run) => Some(run),
            State::Stopping { run, .. } => run,
            State::WaitingForHost | State::WaitingForSlot | State::Starting | State::Ended { .. } => None,
        }
    }
}

/// One attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Attempt {
    /// What runs it; none if only its end was found.
    pub(super) bundle: Option<BundleRef>,
    /// The host that has or had it.
    pub(super) host: Option<HostNumber>,
    pub(super) state: State,
    slots: u32,
    exclusive: bool,
    /// The store that it comes from.
    store: Option<u64>,
    /// Its place in the order of arrival.
    arrival: u64,
}

/// What an attempt is, wherever it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NewAttempt {
    pub(super) bundle: Option<BundleRef>,
    pub(super) slots: u32,
    pub(super) exclusive: bool,
    /// The store that it comes from; the current one if that isn't known.
    pub(super) store: Option<u64>,
}

/// All attempts. Slots are taken from `StartAttempt` to the end, in the order of arrival among those that can start.
///
/// Those of another store than the current one are kept *aside*: they run on, but the scheduler hears nothing of them.
#[derive(Debug)]
pub(super) struct Attempts {
    slots: u32,
    taken: u32,
    /// The store of the scheduler that the worker has last registered with.
    store: Option<u64>,
    /// How many are kept aside.
    aside: usize,
    held: BTreeMap<AttemptId, Attempt>,
    /// Those in [`State::WaitingForSlot`], by arrival.
    queue: BTreeMap<u64, AttemptId>,
    arrivals: u64,
}

impl Attempts {
    pub(super) fn new(slots: u32, store: Option<u64>) -> Self {
        Self { slots, taken: 0, store, aside: 0, held: BTreeMap::new(), queue: BTreeMap::new(), arrivals: 0 }
    }

    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// The slots that aren't taken by what is kept aside.
    pub(super) fn slots_to_offer(&self) -> u32 {
        if self.aside == 0 {
            return self.slots;
        }
        let aside = self.held.values().filter(|held| !self.is_own(held) && held.state.takes_slots());
        self.slots.saturating_sub(aside.map(|held| held.slots).sum())
    }

    pub(super) fn store(&self) -> Option<u64> {
        self.store
    }

    /// Another store from now on. Returns the attempts of the one before that haven't begun, which nobody waits for any more.
    pub(super) fn set_store(&mut self, store: u64) -> Vec<AttemptId> {
        self.store = Some(store);
        self.aside = self.held.values().filter(|held| held.store != self.store).count();
        let forgotten = self.iter().filter(|(_, held)| !self.is_own(held) && held.state.is_waiting());
        forgotten.map(|(attempt, _)| attempt).collect()
    }

    /// Whether the attempt comes from the current store.
    pub(super) fn is_own(&self, held: &Attempt) -> bool {
        held.store == self.store
    }

    /// How many don't.
    pub(super) fn aside(&self) -> usize {
        self.aside
    }

    pub(super) fn has_own(&self) -> bool {
        self.held.len() > self.aside
    }

    /// Since when the first of those kept aside has waited for its scheduler with its end.
    pub(super) fn aside_since(&self) -> Option<Moment> {
        self.ended_aside().map(|(since, _)| since).min()
    }

    /// An attempt kept aside that has waited for its scheduler since this moment or longer.
    pub(super) fn unclaimed_before(&self, moment: Moment) -> Option<AttemptId> {
        self.ended_aside().find(|&(since, _)| since <= moment).map(|(_, attempt)| attempt)
    }

    fn ended_aside(&self) -> impl Iterator<Item = (Moment, AttemptId)> {
        let aside = (self.aside > 0).then_some(&self.held).into_iter().flatten();
        aside.filter_map(|(&attempt, held)| match held.state {
            State::Ended { since } if !self.is_own(held) => Some((since, attempt)),
            State::WaitingForHost
            | State::WaitingForSlot
            | State::Starting
            | State::Running(_)
            | State::Stopping { .. }
            | State::Ended { .. } => None,
        })
    }

    /// The exclusive ones that hosts have.
    pub(super) fn exclusive_at_hosts(&self) -> impl Iterator<Item = (AttemptId, &Attempt)> {
        self.iter().filter(|(_, held)| held.exclusive && held.state.takes_slots())
    }

    /// Whether there is an attempt that this host has, or whose end it keeps.
    pub(super) fn has_host(&self, host: HostNumber) -> bool {
        self.held.values().any(|held| held.host == Some(host))
    }

    pub(super) fn get(&self, attempt: AttemptId) -> Option<&Attempt> {
        self.held.get(&attempt)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (AttemptId, &Attempt)> {
        self.held.iter().map(|(&attempt, held)| (attempt, held))
    }

    /// What the scheduler should know of. What it has closed and what is kept aside is not among it.
    pub(super) fn inventory(&self, now: Moment) -> Vec<Held> {
        self.iter()
            .filter(|(_, held)| {
                self.is_own(held) && !matches!(held.state, State::Stopping { wanted: false, .. })
            })
            .map(|(attempt, held)| {
                let run = held.state.run();
                let running: Option<Duration> = run.map(|run| now.since(run.since));
                Held { attempt, running, pid: run.map_or(0, |run| run.pid) }
            })
            .collect()
    }

    /// A new attempt.
    pub(super) fn insert(
        &mut self,
        attempt: AttemptId,
        new: NewAttempt,
        host: Option<HostNumber>,
        state: State,
    ) {
        let NewAttempt { bundle, slots, exclusive, store } = new;
        let arrival = self.arrivals;
        self.arrivals += 1;
        if state == State::WaitingForSlot {
            self.queue.insert(arrival, attempt);
        }
        if state.takes_slots() {
            self.taken += slots;
        }
        // Without a store of its own the worker takes that of what it finds: a scheduler of another one must not compare.
        self.store = self.store.or(store);
        let held = Attempt { bundle, host, state, slots, exclusive, store: store.or(self.store), arrival };
        self.aside += usize::from(!self.is_own(&held));
        let before = self.held.insert(attempt, held);
        assert!(before.is_none(), "attempt {attempt} is here already");
    }

    pub(super) fn remove(&mut self, attempt: AttemptId) -> Option<Attempt> {
        let held = self.held.remove(&attempt)?;
        self.queue.remove(&held.arrival);
        self.aside -= usize::from(!self.is_own(&held));
        if held.state.takes_slots() {
            self.taken -= held.slots;
        }
        Some(held)
    }

    /// Starts what fits, first come first served. A wide attempt at the head holds the others back, else it would starve.
    /// Returns the exclusive ones that would have started if there were a lease.
    pub(super) fn fill_slots(
        &mut self,
        lease: Option<Moment>,
        host_of: impl Fn(&BundleRef) -> Option<HostNumber>,
        actions: &mut Vec<Action>,
    ) -> Vec<AttemptId> {
        let mut lapsed = Vec::new();
        while let Some(entry) = self.queue.first_entry() {
            let attempt = *entry.get();
            let held = self.held.get_mut(&attempt).expect("what is queued is held");
            // Those of an earlier run may take more than there are now.
            if held.slots > self.slots.saturating_sub(self.taken) {
                break;
            }
            entry.remove();
            if held.exclusive && lease.is_none() {
                lapsed.push(attempt);
                continue;
            }
            let host = held.bundle.as_ref().and_then(&host_of).expect("what is queued has a host");
            held.state = State::Starting;
            held.host = Some(host);
            self.taken += held.slots;
            let lease_until = lease.filter(|_| held.exclusive);
            actions.push(Action::StartAttempt { attempt, host, lease_until });
        }
        lapsed
    }

    /// Whether this is news.
    pub(super) fn begin(&mut self, attempt: AttemptId, run: Run) -> bool {
        let Some(held) = self.held.get_mut(&attempt) else { return false };
        match &mut held.state {
            State::Starting => held.state = State::Running(run),
            State::Stopping { run: began @ None, .. } => *began = Some(run),
            State::WaitingForHost
            | State::WaitingForSlot
            | State::Running(_)
            | State::Stopping { .. }
            | State::Ended { .. } => return false,
        }
        true
    }

    /// For an attempt that takes slots.
    pub(super) fn set_stopping(&mut self, attempt: AttemptId, at_once: bool) {
        let state = &mut self.at(attempt).state;
        assert!(state.takes_slots(), "only what a host has can be stopped by it");
        let wanted = !matches!(state, State::Stopping { wanted: false, .. });
        *state = State::Stopping { run: state.run(), at_once, wanted };
    }

    /// For an attempt that is being stopped.
    pub(super) fn set_unwanted(&mut self, attempt: AttemptId) {
        match &mut self.at(attempt).state {
            State::Stopping { wanted, .. } => *wanted = false,
            other @ (State::WaitingForHost
            | State::WaitingForSlot
            | State::Starting
            | State::Running(_)
            | State::Ended { .. }) => panic!("attempt {attempt} is not being stopped: {other:?}"),
        }
    }

    pub(super) fn set_ended(&mut self, attempt: AttemptId, now: Moment) {
        let held = self.at(attempt);
        let (arrival, slots) = (held.arrival, held.slots);
        let took_slots = std::mem::replace(&mut held.state, State::Ended { since: now }).takes_slots();
        self.queue.remove(&arrival);
        if took_slots {
            self.taken -= slots;
        }
    }

    /// Whether attempts wait for this bundle's host.
    pub(super) fn wait_for_host(&self, bundle: &BundleRef) -> bool {
        self.held
            .values()
            .any(|held| held.state == State::WaitingForHost && held.bundle.as_ref() == Some(bundle))
    }

    pub(super) fn host_is_ready(&mut self, bundle: &BundleRef) {
        for (&attempt, held) in &mut self.held {
            if held.state == State::WaitingForHost && held.bundle.as_ref() == Some(bundle) {
                held.state = State::WaitingForSlot;
                self.queue.insert(held.arrival, attempt);
            }
        }
    }

    pub(super) fn host_is_gone(&mut self, bundle: &BundleRef) {
        for held in self.held.values_mut() {
            if held.state == State::WaitingForSlot && held.bundle.as_ref() == Some(bundle) {
                held.state = State::WaitingForHost;
                self.queue.remove(&held.arrival);
            }
        }
    }

    fn at(&mut self, attempt: AttemptId) -> &mut Attempt {
        self.held.get_mut(&attempt).expect("callers have looked it up")
    }

    /// Slots in use, counted afresh, for tests to compare with.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self) {
        let taken: u32 =
            self.held.values().filter(|held| held.state.takes_slots()).map(|held| held.slots).sum();
        assert_eq!(taken, self.taken);
        assert_eq!(self.held.values().filter(|held| !self.is_own(held)).count(), self.aside);
        let queued = self.held.values().filter(|held| held.state == State::WaitingForSlot).count();
        assert_eq!(queued, self.queue.len());
    }
}
