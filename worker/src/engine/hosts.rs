//! Job hosts: one per bundle, started on demand, restarted with a backoff, ended when idle.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::spec::BundleRef;

use super::{Action, backoff};

/// How long a host without attempts stays: the next job of its application then starts at once.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(300);

/// A host that lived this long didn't die at once.
pub(super) const STEADY_TIME: Duration = Duration::from_secs(60);

/// Names a job host within a worker's state directory, and its arena to the progress subprocess.
pub(crate) type HostNumber = u32;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Not wanted, or the bundle turned out not to start here.
    Absent,
    /// The bundle is being fetched or the host being started.
    Preparing,
    Ready {
        host: HostNumber,
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
pub(super) struct Hosts {
    bundles: BTreeMap<BundleRef, Host>,
    /// Hosts of an earlier run whose bundles have another host by now. They take nothing new.
    spares: BTreeSet<HostNumber>,
}

impl Hosts {
    /// An attempt needs this host. Returns whether it is ready.
    pub(super) fn use_for_attempt(
        &mut self,
        bundle: &BundleRef,
        now: Moment,
        actions: &mut Vec<Action>,
    ) -> bool {
        let host = self.entry(bundle, now);
        host.attempts += 1;
        if host.state == State::Absent {
            host.state = State::Preparing;
            actions.push(Action::PrepareHost(bundle.clone()));
        }
        matches!(host.state, State::Ready { .. })
    }

    /// An attempt is here with its own host.
    pub(super) fn hold_for_attempt(&mut self, bundle: &BundleRef, now: Moment) {
        self.entry(bundle, now).attempts += 1;
    }

    /// The host that takes this bundle's attempts, if it is ready.
    pub(super) fn current(&self, bundle: &BundleRef) -> Option<HostNumber> {
        match self.bundles.get(bundle)?.state {
            State::Ready { host, .. } => Some(host),
            State::Absent | State::Preparing | State::BackingOff { .. } => None,
        }
    }

    fn entry(&mut self, bundle: &BundleRef, now: Moment) -> &mut Host {
        let absent = || Host { state: State::Absent, early_deaths: 0, attempts: 0, idle_since: now };
        self.bundles.entry(bundle.clone()).or_insert_with(absent)
    }

    /// An attempt is gone.
    pub(super) fn unuse_for_attempt(&mut self, bundle: &BundleRef, now: Moment) {
        let host = self.bundles.get_mut(bundle).expect("hosts stay while they have attempts");
        host.attempts -= 1;
        host.idle_since = now;
        self.drop_unused(bundle);
    }

    /// A host takes attempts: one that was prepared, or one of an earlier run.
    pub(super) fn ready(&mut self, bundle: &BundleRef, number: HostNumber, now: Moment) {
        let host = self.entry(bundle, now);
        if matches!(host.state, State::Ready { .. }) {
            self.spares.insert(number);
        } else {
            host.state = State::Ready { host: number, since: now };
            host.idle_since = now;
        }
    }

    /// The bundle doesn't start here. The next attempt tries again.
    pub(super) fn unavailable(&mut self, bundle: &BundleRef) {
        if let Some(host) = self.bundles.get_mut(bundle) {
            host.state = State::Absent;
            self.drop_unused(bundle);
        }
    }

    /// It may be started again: at once after a long life, else after a backoff. Returns whether it was the one that takes the
    /// bundle's attempts.
    pub(super) fn died(&mut self, bundle: &BundleRef, number: Option<HostNumber>, now: Moment) -> bool {
        if number.is_some_and(|number| self.spares.remove(&number)) {
            return false;
        }
        let Some(host) = self.bundles.get_mut(bundle) else { return false };
        match host.state {
            State::Ready { host: current, .. } if Some(current) != number => return false,
            State::Ready { since, .. } if now.since(since) >= STEADY_TIME => {
                host.early_deaths = 0;
                host.state = State::BackingOff { until: now };
            }
            State::Absent | State::Preparing | State::Ready { .. } | State::BackingOff { .. } => {
                host.state = State::BackingOff { until: now + backoff(host.early_deaths) };
                host.early_deaths += 1;
            }
        }
        true
    }

    /// Ends idle hosts and restarts those that attempts wait for, once their backoff has passed.
    pub(super) fn pass_time(
        &mut self,
        now: Moment,
        is_waited_for: impl Fn(&BundleRef) -> bool,
        is_used: impl Fn(HostNumber) -> bool,
        actions: &mut Vec<Action>,
    ) {
        self.spares.retain(|&number| {
            let stays = is_used(number);
            if !stays {
                actions.push(Action::EndHost(number));
            }
            stays
        });
        self.bundles.retain(|bundle, host| match host.state {
            State::BackingOff { until } if now >= until => {
                if is_waited_for(bundle) {
                    host.state = State::Preparing;
                    actions.push(Action::PrepareHost(bundle.clone()));
                } else {
                    host.state = State::Absent;
                }
                host.attempts > 0
            }
            State::Ready { host: number, .. } if host.attempts == 0 && now >= host.idle_since + IDLE_TIME => {
                actions.push(Action::EndHost(number));
                false
            }
            State::Absent | State::Preparing | State::Ready { .. } | State::BackingOff { .. } => true,
        });
    }

    pub(super) fn next_deadline(&self) -> Option<Moment> {
        let deadlines = self.bundles.values().filter_map(|host| match host.state {
            State::BackingOff { until } => Some(until),
            State::Ready { .. } if host.attempts == 0 => Some(host.idle_since + IDLE_TIME),
            State::Absent | State::Preparing | State::Ready { .. } => None,
        });
        deadlines.min()
    }

    fn drop_unused(&mut self, bundle: &BundleRef) {
        if self.bundles.get(bundle).is_some_and(|host| host.attempts == 0 && host.state == State::Absent) {
            self.bundles.remove(bundle);
        }
    }
}
