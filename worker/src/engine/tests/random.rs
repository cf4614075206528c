//! Random orders, answers and faults from a seed; what must hold after each of them is checked against a plain model.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;
use lrts_core::spec::BundleRef;

use super::super::{Action, Event, Held, HeldRun, HostNumber};
use super::{HEARTBEAT, LOST_AFTER, ORPHAN_GRACE, attempt, bundle, new_worker, t0};

const SLOTS: u32 = 4;

/// What is known of an attempt that was ordered and not forgotten.
struct Known {
    bundle: BundleRef,
    store: u64,
    exclusive: bool,
    /// Whether the scheduler has closed it while a host had it.
    unwanted: bool,
}

/// What the scheduler and the hosts know from the actions alone.
#[derive(Default)]
struct Model {
    now: Moment,
    held: BTreeMap<AttemptId, Known>,
    /// Handed to a host and not ended.
    at_host: BTreeMap<AttemptId, HostNumber>,
    /// Ended, by a host, which keeps the end, or by conclusion.
    ended: BTreeMap<AttemptId, Option<HostNumber>>,
    preparing: BTreeSet<BundleRef>,
    /// Hosts that are alive.
    hosts: BTreeMap<HostNumber, BundleRef>,
    last_host: HostNumber,
    connected: bool,
    /// The registration under way: when it was sent, and the store of its inventory.
    registering: Option<(Moment, Option<u64>)>,
    registered: bool,
    /// The scheduler's store, as the worker knows it.
    store: Option<u64>,
    heartbeats: BTreeMap<u64, Moment>,
    lease: Moment,
    left: bool,
    forgotten: u64,
    adopted: u64,
    exclusive_starts: u64,
}

impl Model {
    fn apply(&mut self, action: &Action) {
        match action {
            Action::PrepareHost(bundle) => {
                assert!(self.preparing.insert(bundle.clone()), "prepared twice");
            }
            Action::EndHost(host) => {
                assert!(self.hosts.remove(host).is_some());
                assert!(!self.at_host.values().any(|at| at == host), "ended while in use");
                assert!(!self.ended.values().any(|at| *at == Some(*host)), "ended with unconfirmed ends");
            }
            Action::StartAttempt { attempt, host, lease_until } => {
                let known = &self.held[attempt];
                assert_eq!(self.hosts.get(host), Some(&known.bundle), "started without a host");
                assert!(!self.ended.contains_key(attempt));
                assert_eq!(*lease_until, known.exclusive.then_some(self.lease));
                assert!(lease_until.is_none_or(|until| until > self.now), "started without a lease");
                self.exclusive_starts += u64::from(known.exclusive);
                assert!(self.at_host.insert(*attempt, *host).is_none(), "started twice");
                assert!(self.at_host.len() <= SLOTS as usize, "slots oversubscribed");
            }
            Action::RenewLeases { host, until } => {
                assert!(self.hosts.contains_key(host) && *until == self.lease);
            }
            Action::ReadCheckpoint(attempt) => assert!(self.held.contains_key(attempt)),
            Action::StopAttempt { attempt, .. } => assert!(self.at_host.contains_key(attempt)),
            Action::Conclude { attempt, .. } => {
                assert!(self.held.contains_key(attempt));
                self.at_host.remove(attempt);
                assert!(self.ended.insert(*attempt, None).is_none(), "ended twice");
            }
            Action::Forget(attempt) => {
                assert!(self.held.remove(attempt).is_some(), "forgotten twice");
                self.ended.remove(attempt);
                if let Some(host) = self.at_host.remove(attempt) {
                    assert!(!self.hosts.contains_key(&host), "forgotten while it runs");
                }
                self.forgotten += 1;
            }
            Action::ReportEnded(attempt) => {
                assert!(self.registered && self.ended.contains_key(attempt));
                assert_eq!(Some(self.held[attempt].store), self.store, "told to another scheduler");
            }
            Action::ReportBegan { attempt, .. } => assert!(self.at_host.contains_key(attempt)),
            Action::ReportReturned(attempts) | Action::ReportBundleRefused { attempts, .. } => {
                assert!(!attempts.is_empty());
                assert!(attempts.iter().all(|attempt| !self.held.contains_key(attempt)));
            }
            Action::Leave => {
                assert!(!std::mem::replace(&mut self.left, true));
            }
            Action::Register { slots, store, held } => self.check_registration(*slots, *store, held),
            Action::SendHeartbeat { number } => {
                assert!(self.registered);
                self.heartbeats.insert(*number, self.now);
            }
            Action::ReportNotReturned(_) => assert!(self.connected),
            Action::KeepStore(store) => assert_eq!(self.store, Some(*store)),
            Action::TellAside(count) => {
                assert_eq!(
                    *count,
                    self.held.values().filter(|known| Some(known.store) != self.store).count()
                );
            }
        }
    }

    fn check_registration(&mut self, slots: u32, store: Option<u64>, held: &[Held]) {
        assert!(self.connected && self.registering.is_none(), "two registrations under way");
        let own = self.held.iter().filter(|(_, known)| Some(known.store) == self.store);
        let expected = own.filter(|(_, known)| !known.unwanted).map(|(&attempt, _)| attempt);
        assert!(held.iter().map(|held| held.attempt).eq(expected), "the inventory isn't complete");
        let has_aside = self.held.values().any(|known| Some(known.store) != self.store);
        assert_eq!(store, self.store.filter(|_| !held.is_empty() || has_aside));
        let aside = self.at_host.keys().filter(|attempt| Some(self.held[attempt].store) != self.store);
        assert_eq!(slots as usize, SLOTS as usize - aside.count());
        self.registering = Some((self.now, store));
        self.registered = false;
    }

    /// The worker is killed and started again: what hosts have and what their ends are is all that is left. Returns what the
    /// new one hears of them.
    fn restart(&mut self) -> VecDeque<Event> {
        let (at_host, ended) = (&self.at_host, &mut self.ended);
        ended.retain(|_, host| host.is_some());
        self.held.retain(|attempt, known| {
            known.unwanted = false;
            at_host.contains_key(attempt) || ended.contains_key(attempt)
        });
        self.preparing.clear();
        self.connected = false;
        self.disconnect();
        let mut events = VecDeque::new();
        let ended: BTreeMap<_, _> = std::mem::take(&mut self.ended);
        for (&host, bundle) in &self.hosts {
            let ended = ended.iter().filter(|(_, at)| **at == Some(host)).map(|(attempt, _)| *attempt);
            let ended: Vec<_> = ended.collect();
            let running = self.at_host.iter().filter(|(_, at)| **at == host).map(|(attempt, _)| *attempt);
            let run = HeldRun { pid: 5, ran: HEARTBEAT, stopping: false };
            let running = running.map(|attempt| (attempt, Some(run)));
            for (attempt, run) in running.chain(ended.iter().map(|&attempt| (attempt, None))) {
                let known = &self.held[&attempt];
                events.push_back(Event::AttemptHeld {
                    attempt,
                    host,
                    bundle: bundle.clone(),
                    slots: 1,
                    exclusive: known.exclusive,
                    store: Some(known.store),
                    run,
                });
                self.adopted += 1;
            }
            events.push_back(Event::HostReady { bundle: bundle.clone(), host });
            events.extend(ended.into_iter().map(Event::AttemptEnded));
        }
        self.at_host.extend(ended.into_iter().filter_map(|(attempt, host)| Some((attempt, host?))));
        events.push_back(Event::EarlierRunKnown);
        events
    }

    fn disconnect(&mut self) {
        self.registering = None;
        self.registered = false;
        self.heartbeats.clear();
    }

    /// What the scheduler's answer does, ahead of the engine.
    fn answer(&mut self, store: u64) {
        let Some((sent, told)) = self.registering.take() else { return };
        if self.store != Some(store) {
            self.lease = Moment::default();
            self.store = Some(store);
        }
        let has_own = self.held.values().any(|known| known.store == store);
        if told == Some(store) || (told.is_none() && !has_own) {
            self.registered = true;
            self.lease = self.lease.max(sent + LOST_AFTER);
        }
    }
}

fn bundle_of(attempt: AttemptId) -> BundleRef {
    bundle((attempt.job.sequence % 3) as u8)
}

fn run(seed: u64) -> (u64, u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut engine = new_worker(SLOTS, None, t0());
    let mut model = Model { now: t0(), ..Model::default() };
    let mut ordered = 0;
    // What is bound to happen, if nothing else does first.
    let mut coming = VecDeque::from([Event::EarlierRunKnown]);
    for step in 0..3_000 {
        // A worker that has just started hears of its hosts soon.
        let at_most = if coming.is_empty() { 2_000 } else { 100 };
        model.now = model.now + Duration::from_millis(random.u64(0..at_most));
        let known = attempt(random.u64(0..=ordered));
        let some_bundle = bundle(random.u8(0..3));
        let some_host = random.u32(0..=model.last_host);
        let event = match random.u8(0..22) {
            _ if !coming.is_empty() && random.u8(0..3) > 0 => match coming.pop_front() {
                Some(Event::AttemptEnded(attempt)) => {
                    let Some(host) = model.at_host.remove(&attempt) else { continue };
                    model.ended.insert(attempt, Some(host));
                    Event::AttemptEnded(attempt)
                }
                other => other.unwrap_or(Event::Tick),
            },
            0..=4 if model.registered || random.u8(0..20) == 0 => {
                ordered += 1;
                let id = attempt(ordered);
                let exclusive = random.u8(0..4) == 0;
                let store = model.store.unwrap_or_default();
                let known = Known { bundle: bundle_of(id), store, exclusive, unwanted: false };
                model.held.insert(id, known);
                Event::StartOrdered { attempt: id, bundle: bundle_of(id), slots: 1, exclusive }
            }
            5..=8 if coming.is_empty() => {
                let running: Vec<_> = model.at_host.keys().copied().collect();
                let Some(ended) = random.choice(running) else { continue };
                let host = model.at_host.remove(&ended);
                if !model.held[&ended].unwanted {
                    model.ended.insert(ended, host);
                }
                if random.u8(0..4) == 0 { Event::AttemptLost(ended) } else { Event::AttemptEnded(ended) }
            }
            9 => Event::AttemptBegan { attempt: known, pid: 1 },
            10 => Event::StopOrdered { attempt: known, at_once: random.bool() },
            11 => Event::RecallOrdered(known),
            12 | 13 if model.registered => {
                let own = model.ended.keys().filter(|attempt| Some(model.held[attempt].store) == model.store);
                Event::Confirmed(own.copied().filter(|_| random.bool()).collect())
            }
            14 if !model.connected => {
                model.connected = true;
                Event::Connected
            }
            14 | 15 if model.registering.is_some() => {
                let (_, told) = model.registering.expect("just seen");
                let store = if random.u8(0..8) == 0 { random.u64(1..3) } else { told.unwrap_or(1) };
                model.answer(store);
                let mut closed = Vec::new();
                for (attempt, known) in &mut model.held {
                    if model.registered && known.store == store && random.u8(0..10) == 0 {
                        closed.push(*attempt);
                        known.unwanted = model.at_host.contains_key(attempt);
                    }
                }
                Event::Registered { store, heartbeat: HEARTBEAT, lost_after: LOST_AFTER, closed }
            }
            16 if model.connected && random.u8(0..4) == 0 => {
                model.connected = false;
                model.disconnect();
                Event::Disconnected
            }
            17 | 18 if model.preparing.remove(&some_bundle) => match random.u8(0..8) {
                0 => Event::BundleRefused { bundle: some_bundle, reason: String::new() },
                1 => Event::BundleMissing(some_bundle),
                2 => Event::HostDied { bundle: some_bundle, host: None, reason: String::new() },
                _ => {
                    model.last_host += 1;
                    model.hosts.insert(model.last_host, some_bundle.clone());
                    Event::HostReady { bundle: some_bundle, host: model.last_host }
                }
            },
            19 if coming.is_empty() && random.u8(0..8) == 0 => match model.hosts.remove(&some_host) {
                Some(bundle) => {
                    // The worker still has the ends that it was told of.
                    let kept = model.ended.values_mut().filter(|host| **host == Some(some_host));
                    kept.for_each(|host| *host = None);
                    Event::HostDied { bundle, host: Some(some_host), reason: String::new() }
                }
                None => Event::Tick,
            },
            20 if !model.heartbeats.is_empty() => {
                let number = random.choice(model.heartbeats.keys().copied()).expect("there are some");
                let sent = model.heartbeats[&number];
                model.heartbeats.retain(|&other, _| other > number);
                model.lease = model.lease.max(sent + LOST_AFTER);
                Event::Renewed(number)
            }
            21 if coming.is_empty() && random.u8(0..40) == 0 => {
                engine = new_worker(SLOTS, model.store, model.now);
                coming = model.restart();
                model.lease = Moment::default();
                continue;
            }
            _ if step > 2_900 && random.u8(0..20) == 0 => Event::LeaveOrdered,
            _ if coming.is_empty() && random.u8(0..50) == 0 => Event::HostResumed(some_host),
            _ if coming.is_empty() && random.u8(0..200) == 0 => {
                model.now = model.now + ORPHAN_GRACE;
                Event::Tick
            }
            _ => Event::Tick,
        };
        let actions = engine.handle(event.clone(), model.now);
        for action in &actions {
            model.apply(action);
        }
        engine.attempts.assert_consistent();
        if coming.is_empty() {
            for (attempt, held) in engine.attempts.iter() {
                assert_eq!(Some(&model.held[&attempt].bundle), held.bundle.as_ref());
                assert_eq!(held.state.takes_slots(), model.at_host.contains_key(&attempt), "{event:?}");
            }
            assert_eq!(engine.attempts.iter().count(), model.held.len(), "an attempt is unaccounted for");
        }
        let now = model.now;
        assert!(engine.next_deadline().is_none_or(|deadline| deadline > now), "a deadline that has passed");
        if model.left {
            break;
        }
    }
    assert!(model.forgotten > 10, "the run did too little to say anything");
    (model.adopted, model.exclusive_starts)
}

#[test]
fn every_attempt_is_accounted_for_once_whatever_happens() {
    let seeds = match std::env::var("LRTS_TEST_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..60).collect(),
    };
    let (mut adopted, mut exclusive_starts) = (0, 0);
    for &seed in &seeds {
        let outcome = std::panic::catch_unwind(|| run(seed));
        let Ok(done) = outcome else { panic!("replay with LRTS_TEST_SEED={seed}") };
        adopted += done.0;
        exclusive_starts += done.1;
    }
    if seeds.len() > 1 {
        assert!(adopted > 100 && exclusive_starts > 100, "{adopted} adopted, {exclusive_starts} exclusive");
    }
}
