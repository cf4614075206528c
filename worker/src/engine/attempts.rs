//! The attempts that are here, and the slots that they take.

use std::collections::BTreeMap;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;
use lrts_core::spec::BundleRef;

use super::{Action, Held};

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
    Ended,
}

/// A process that runs an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    /// When the host said so.
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
            State::WaitingForHost | State::WaitingForSlot | State::Starting | State::Ended => None,
        }
    }
}

/// One attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Attempt {
    pub(super) bundle: BundleRef,
    pub(super) state: State,
    slots: u32,
    /// Its place in the order of arrival.
    arrival: u64,
}

/// All attempts. Slots are taken from `StartAttempt` to the end, in the order of arrival among those that can start.
#[derive(Debug)]
pub(super) struct Attempts {
    slots: u32,
    taken: u32,
    held: BTreeMap<AttemptId, Attempt>,
    /// Those in [`State::WaitingForSlot`], by arrival.
    queue: BTreeMap<u64, AttemptId>,
    arrivals: u64,
}

impl Attempts {
    pub(super) fn new(slots: u32) -> Self {
        Self { slots, taken: 0, held: BTreeMap::new(), queue: BTreeMap::new(), arrivals: 0 }
    }

    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(super) fn get(&self, attempt: AttemptId) -> Option<&Attempt> {
        self.held.get(&attempt)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (AttemptId, &Attempt)> {
        self.held.iter().map(|(&attempt, held)| (attempt, held))
    }

    /// What the scheduler should know of. An attempt that it has closed is not among them.
    pub(super) fn inventory(&self, now: Moment) -> Vec<Held> {
        self.iter()
            .filter(|(_, held)| !matches!(held.state, State::Stopping { wanted: false, .. }))
            .map(|(attempt, held)| {
                let run = held.state.run();
                let running: Option<Duration> = run.map(|run| now.since(run.since));
                Held { attempt, running, pid: run.map_or(0, |run| run.pid) }
            })
            .collect()
    }

    /// A new attempt, whose host is ready or not.
    pub(super) fn insert(&mut self, attempt: AttemptId, bundle: BundleRef, slots: u32, is_ready: bool) {
        let arrival = self.arrivals;
        self.arrivals += 1;
        let state = if is_ready { State::WaitingForSlot } else { State::WaitingForHost };
        if is_ready {
            self.queue.insert(arrival, attempt);
        }
        let before = self.held.insert(attempt, Attempt { bundle, state, slots, arrival });
        assert!(before.is_none(), "attempt {attempt} is here already");
    }

    pub(super) fn remove(&mut self, attempt: AttemptId) -> Option<Attempt> {
        let held = self.held.remove(&attempt)?;
        self.queue.remove(&held.arrival);
        if held.state.takes_slots() {
            self.taken -= held.slots;
        }
        Some(held)
    }

    /// Starts what fits, first come first served. A wide attempt at the head holds the others back, else it would starve.
    pub(super) fn fill_slots(&mut self, actions: &mut Vec<Action>) {
        while let Some(entry) = self.queue.first_entry() {
            let attempt = *entry.get();
            let held = self.held.get_mut(&attempt).expect("what is queued is held");
            if held.slots > self.slots - self.taken {
                return;
            }
            entry.remove();
            held.state = State::Starting;
            self.taken += held.slots;
            actions.push(Action::StartAttempt(attempt));
        }
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
            | State::Ended => return false,
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
            | State::Ended) => panic!("attempt {attempt} is not being stopped: {other:?}"),
        }
    }

    pub(super) fn set_ended(&mut self, attempt: AttemptId) {
        let held = self.at(attempt);
        let (arrival, slots) = (held.arrival, held.slots);
        let took_slots = std::mem::replace(&mut held.state, State::Ended).takes_slots();
        self.queue.remove(&arrival);
        if took_slots {
            self.taken -= slots;
        }
    }

    /// Whether attempts wait for this bundle's host.
    pub(super) fn wait_for_host(&self, bundle: &BundleRef) -> bool {
        self.held.values().any(|held| held.state == State::WaitingForHost && held.bundle == *bundle)
    }

    pub(super) fn host_is_ready(&mut self, bundle: &BundleRef) {
        for (&attempt, held) in &mut self.held {
            if held.state == State::WaitingForHost && held.bundle == *bundle {
                held.state = State::WaitingForSlot;
                self.queue.insert(held.arrival, attempt);
            }
        }
    }

    pub(super) fn host_is_gone(&mut self, bundle: &BundleRef) {
        for held in self.held.values_mut() {
            if held.state == State::WaitingForSlot && held.bundle == *bundle {
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
        assert!(taken <= self.slots, "{taken} of {} slots taken", self.slots);
        let queued = self.held.values().filter(|held| held.state == State::WaitingForSlot).count();
        assert_eq!(queued, self.queue.len());
    }
}
