//! Random orders, answers and faults from a seed; what must hold after each of them is checked against a plain model.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lrts_core::ids::AttemptId;
use lrts_core::spec::BundleRef;

use super::super::{Action, Engine, Event};
use super::{GRACE, HEARTBEAT, attempt, bundle, t0};

const SLOTS: u32 = 4;

/// What the scheduler and the hosts know from the actions alone.
#[derive(Default)]
struct Model {
    /// Ordered and not forgotten, with their bundle.
    held: BTreeMap<AttemptId, BundleRef>,
    /// Handed to a host and not ended.
    at_host: BTreeSet<AttemptId>,
    /// Ended, by a host or by conclusion.
    ended: BTreeSet<AttemptId>,
    preparing: BTreeSet<BundleRef>,
    ready: BTreeSet<BundleRef>,
    connected: bool,
    left: bool,
    forgotten: u64,
}

impl Model {
    fn apply(&mut self, action: &Action) {
        match action {
            Action::PrepareHost(bundle) => {
                assert!(!self.ready.contains(bundle), "a second host of a bundle");
                assert!(self.preparing.insert(bundle.clone()), "prepared twice");
            }
            Action::EndHost(bundle) => {
                assert!(self.ready.remove(bundle));
                assert!(!self.held.values().any(|held| held == bundle), "ended while in use");
            }
            Action::StartAttempt(attempt) => {
                assert!(self.ready.contains(&self.held[attempt]), "started without a host");
                assert!(!self.ended.contains(attempt));
                assert!(self.at_host.insert(*attempt), "started twice");
                assert!(self.at_host.len() <= SLOTS as usize, "slots oversubscribed");
            }
            Action::StopAttempt { attempt, .. } => assert!(self.at_host.contains(attempt)),
            Action::Conclude { attempt, .. } => {
                assert!(self.held.contains_key(attempt));
                self.at_host.remove(attempt);
                assert!(self.ended.insert(*attempt), "ended twice");
            }
            Action::Forget(attempt) => {
                assert!(self.held.remove(attempt).is_some(), "forgotten twice");
                self.ended.remove(attempt);
                assert!(!self.at_host.remove(attempt) || !self.ready.contains(&bundle_of(*attempt)));
                self.forgotten += 1;
            }
            Action::ReportEnded(attempt) => assert!(self.connected && self.ended.contains(attempt)),
            Action::ReportBegan { attempt, .. } => assert!(self.at_host.contains(attempt)),
            Action::ReportReturned(attempts) | Action::ReportBundleRefused { attempts, .. } => {
                assert!(!attempts.is_empty());
                assert!(attempts.iter().all(|attempt| !self.held.contains_key(attempt)));
            }
            Action::Leave => {
                assert!(!std::mem::replace(&mut self.left, true));
            }
            Action::Register(_) => self.connected = true,
            Action::SendHeartbeat | Action::ReportNotReturned(_) => assert!(self.connected),
        }
    }
}

fn bundle_of(attempt: AttemptId) -> BundleRef {
    bundle((attempt.job.sequence % 3) as u8)
}

fn run(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut engine = Engine::new(SLOTS, GRACE);
    let mut model = Model::default();
    let mut now = t0();
    let mut ordered = 0;
    for step in 0..3_000 {
        now = now + Duration::from_millis(random.u64(0..2_000));
        let known = attempt(random.u64(0..=ordered));
        let some_bundle = bundle(random.u8(0..3));
        let event = match random.u8(0..20) {
            0..=4 => {
                ordered += 1;
                let id = attempt(ordered);
                model.held.insert(id, bundle_of(id));
                Event::StartOrdered { attempt: id, bundle: bundle_of(id), slots: 1 }
            }
            5..=8 => {
                let running: Vec<_> = model.at_host.iter().copied().collect();
                let Some(ended) = random.choice(running) else { continue };
                model.at_host.remove(&ended);
                model.ended.insert(ended);
                if random.u8(0..4) == 0 { Event::AttemptLost(ended) } else { Event::AttemptEnded(ended) }
            }
            9 => Event::AttemptBegan { attempt: known, pid: 1 },
            10 => Event::StopOrdered { attempt: known, at_once: random.bool() },
            11 => Event::RecallOrdered(known),
            12 | 13 => Event::Confirmed(model.ended.iter().copied().filter(|_| random.bool()).collect()),
            14 if !model.connected => Event::Connected,
            14 => {
                let closed = model.held.keys().copied().filter(|_| random.u8(0..10) == 0).collect();
                Event::Registered { heartbeat: HEARTBEAT, closed }
            }
            15 => {
                model.connected = false;
                Event::Disconnected
            }
            16 | 17 if model.preparing.remove(&some_bundle) => match random.u8(0..8) {
                0 => Event::BundleRefused { bundle: some_bundle, reason: String::new() },
                1 => Event::BundleMissing(some_bundle),
                2 => Event::HostDied { bundle: some_bundle, reason: String::new() },
                _ => {
                    model.ready.insert(some_bundle.clone());
                    Event::HostReady(some_bundle)
                }
            },
            18 if random.u8(0..5) == 0 && model.ready.remove(&some_bundle) => {
                Event::HostDied { bundle: some_bundle, reason: String::new() }
            }
            19 if step > 2_500 && random.u8(0..20) == 0 => Event::LeaveOrdered,
            _ => Event::Tick,
        };
        let actions = engine.handle(event.clone(), now);
        for action in &actions {
            model.apply(action);
        }
        engine.attempts.assert_consistent();
        for (attempt, held) in engine.attempts.iter() {
            assert_eq!(model.held.get(&attempt), Some(&held.bundle));
            assert_eq!(held.state.takes_slots(), model.at_host.contains(&attempt), "{event:?}");
        }
        assert_eq!(engine.attempts.iter().count(), model.held.len(), "an attempt is unaccounted for");
        assert!(engine.next_deadline().is_none_or(|deadline| deadline > now), "a deadline that has passed");
        if model.left {
            break;
        }
    }
    assert!(model.forgotten > 10, "the run did too little to say anything");
}

#[test]
fn every_attempt_is_accounted_for_once_whatever_happens() {
    let seeds = match std::env::var("LRTS_TEST_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..60).collect(),
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| run(seed));
        assert!(outcome.is_ok(), "replay with LRTS_TEST_SEED={seed}");
    }
}
