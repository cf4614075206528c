mod durable;
mod random;
mod scenarios;

use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{AttemptId, BundleDigest, SessionId};
use lrts_core::spec::BundleRef;

use super::{Action, Engine, Event, HostNumber, Settings};

const GRACE: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_secs(5);
const LOST_AFTER: Duration = Duration::from_secs(20);
const ORPHAN_GRACE: Duration = Duration::from_secs(3_600);
const STORE: u64 = 1;

fn t0() -> Moment {
    Moment::from(Duration::from_secs(1_000))
}

fn attempt(sequence: u64) -> AttemptId {
    AttemptId { job: SessionId(7).job(sequence), attempt: 1 }
}

fn bundle(number: u8) -> BundleRef {
    BundleRef::Shipped(BundleDigest([number; 32]))
}

fn order(sequence: u64) -> Event {
    order_of(sequence, 1, 1)
}

fn order_of(sequence: u64, bundle_number: u8, slots: u32) -> Event {
    let bundle = bundle(bundle_number);
    Event::StartOrdered { attempt: attempt(sequence), bundle, slots, exclusive: false }
}

fn start(sequence: u64) -> Action {
    Action::StartAttempt { attempt: attempt(sequence), host: 1, lease_until: None }
}

fn ready(host: HostNumber) -> Event {
    Event::HostReady { bundle: bundle(1), host }
}

fn died(reason: &str) -> Event {
    Event::HostDied { bundle: bundle(1), host: Some(1), reason: reason.to_owned() }
}

fn began(sequence: u64) -> Event {
    Event::AttemptBegan { attempt: attempt(sequence), pid: 100 + sequence as u32 }
}

fn registered() -> Event {
    answer(STORE, Vec::new())
}

fn answer(store: u64, closed: Vec<AttemptId>) -> Event {
    Event::Registered { store, heartbeat: HEARTBEAT, lost_after: LOST_AFTER, closed }
}

/// A worker that starts now, with the last store that it knows.
fn new_worker(slots: u32, store: Option<u64>, now: Moment) -> Engine {
    Engine::new(Settings { slots, grace: GRACE, orphan_grace: ORPHAN_GRACE, store }, now)
}

/// A registered worker that nobody has run before.
fn registered_worker(slots: u32) -> Engine {
    let mut engine = new_worker(slots, None, t0());
    engine.handle(Event::EarlierRunKnown, t0());
    engine.handle(Event::Connected, t0());
    engine.handle(registered(), t0());
    engine
}

/// A registered worker whose job host of bundle 1 is ready.
fn ready_worker(slots: u32) -> Engine {
    let mut engine = registered_worker(slots);
    engine.handle(order(1_000), t0());
    engine.handle(ready(1), t0());
    engine.handle(Event::AttemptEnded(attempt(1_000)), t0());
    engine.handle(Event::Confirmed(vec![attempt(1_000)]), t0());
    engine
}

/// Reconnects to a scheduler that wants no heartbeats in the next years.
fn silence(engine: &mut Engine) {
    inventory(engine, t0());
    let heartbeat = Duration::from_secs(1 << 30);
    let answer = Event::Registered { store: STORE, heartbeat, lost_after: LOST_AFTER, closed: Vec::new() };
    engine.handle(answer, t0());
}

fn inventory(engine: &mut Engine, now: Moment) -> Vec<super::Held> {
    engine.handle(Event::Disconnected, now);
    let mut actions = engine.handle(Event::Connected, now);
    let Action::Register { held, .. } = actions.remove(0) else {
        panic!("a connection begins with Register")
    };
    held
}
