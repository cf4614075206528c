//! Job hosts: one per bundle, started on demand, restarted with a backoff, ended when idle.

use std::collections::BTreeMap;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::spec::BundleRef;

use super::{Action, backoff};

/// How long a host without attempts stays: the next job of its application then starts at once.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(300);

/// A host that lived this long didn't die at once.
pub(super) const STEADY_TIME: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Not wanted, or the bundle turned out not to start here.
    Absent,
    /// The bundle is being fetched or the host being started.
    Preparing,
    Ready {
        since: Moment,
    },
    /// Died too early too often.
    BackingOff {
        until: Moment,
    },
}

#[derive(Debug)]
struct Host {
    state: State,
    /// How many times in a row it has died at once.
    early_deaths: u32,
    /// Attempts that are here, unconfirmed ends among them.
    attempts: usize,
    /// Since there are none.
    idle_since: Moment,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Hosts(BTreeMap<BundleRef, Host>);

impl Hosts {
    /// An attempt needs this host. Returns whether it is ready.
    pub(super) fn use_for_attempt(
        &mut self,
        bundle: &BundleRef,
        now: Moment,
        actions: &mut Vec<Action>,
    ) -> bool {
        let absent = || Host { state: State::Absent, early_deaths: 0, attempts: 0, idle_since: now };
        let host = self.0.entry(bundle.clone()).or_insert_with(absent);
        host.attempts += 1;
        if host.state == State::Absent {
            host.state = State::Preparing;
            actions.push(Action::PrepareHost(bundle.clone()));
        }
        matches!(host.state, State::Ready { .. })
    }

    /// An attempt is gone.
    pub(super) fn unuse_for_attempt(&mut self, bundle: &BundleRef, now: Moment) {
        let host = self.0.get_mut(bundle).expect("hosts stay while they have attempts");
        host.attempts -= 1;
        host.idle_since = now;
        self.drop_unused(bundle);
    }

    pub(super) fn ready(&mut self, bundle: &BundleRef, now: Moment) {
        if let Some(host) = self.0.get_mut(bundle)
            && host.state == State::Preparing
        {
            host.state = State::Ready { since: now };
            host.idle_since = now;
        }
    }

    /// The bundle doesn't start here. The next attempt tries again.
    pub(super) fn unavailable(&mut self, bundle: &BundleRef) {
        if let Some(host) = self.0.get_mut(bundle) {
            host.state = State::Absent;
            self.drop_unused(bundle);
        }
    }

    /// It may be started again: at once after a long life, else after a backoff.
    pub(super) fn died(&mut self, bundle: &BundleRef, now: Moment) {
        let Some(host) = self.0.get_mut(bundle) else { return };
        let lived_long = matches!(host.state, State::Ready { since } if now.since(since) >= STEADY_TIME);
        if lived_long {
            host.early_deaths = 0;
            host.state = State::BackingOff { until: now };
        } else {
            host.state = State::BackingOff { until: now + backoff(host.early_deaths) };
            host.early_deaths += 1;
        }
    }

    /// Ends idle hosts and restarts those that attempts wait for, once their backoff has passed.
    pub(super) fn pass_time(
        &mut self,
        now: Moment,
        is_waited_for: impl Fn(&BundleRef) -> bool,
        actions: &mut Vec<Action>,
    ) {
        self.0.retain(|bundle, host| match host.state {
            State::BackingOff { until } if now >= until => {
                if is_waited_for(bundle) {
                    host.state = State::Preparing;
                    actions.push(Action::PrepareHost(bundle.clone()));
                } else {
                    host.state = State::Absent;
                }
                host.attempts > 0
            }
            State::Ready { .. } if host.attempts == 0 && now >= host.idle_since + IDLE_TIME => {
                actions.push(Action::EndHost(bundle.clone()));
                false
            }
            State::Absent | State::Preparing | State::Ready { .. } | State::BackingOff { .. } => true,
        });
    }

    pub(super) fn next_deadline(&self) -> Option<Moment> {
        let deadlines = self.0.values().filter_map(|host| match host.state {
            State::BackingOff { until } => Some(until),
            State::Ready { .. } if host.attempts == 0 => Some(host.idle_since + IDLE_TIME),
            State::Absent | State::Preparing | State::Ready { .. } => None,
        });
        deadlines.min()
    }

    fn drop_unused(&mut self, bundle: &BundleRef) {
        if self.0.get(bundle).is_some_and(|host| host.attempts == 0 && host.state == State::Absent) {
            self.0.remove(bundle);
        }
    }
}
