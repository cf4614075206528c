mod random;
mod scenarios;

use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{AttemptId, BundleDigest, SessionId};
use lrts_core::spec::BundleRef;

use super::{Action, Engine, Event};

const GRACE: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_secs(5);

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
    Event::StartOrdered { attempt: attempt(sequence), bundle: bundle(1), slots: 1 }
}

fn began(sequence: u64) -> Event {
    Event::AttemptBegan { attempt: attempt(sequence), pid: 100 + sequence as u32 }
}

fn registered() -> Event {
    Event::Registered { heartbeat: HEARTBEAT, closed: Vec::new() }
}

/// A registered worker whose job host of bundle 1 is ready.
fn ready_worker(slots: u32) -> Engine {
    let mut engine = Engine::new(slots, GRACE);
    engine.handle(Event::Connected, t0());
    engine.handle(registered(), t0());
    engine.handle(order(1_000), t0());
    engine.handle(Event::HostReady(bundle(1)), t0());
    engine.handle(Event::AttemptEnded(attempt(1_000)), t0());
    engine.handle(Event::Confirmed(vec![attempt(1_000)]), t0());
    engine
}

fn inventory(engine: &mut Engine, now: Moment) -> Vec<super::Held> {
    engine.handle(Event::Disconnected, now);
    let mut actions = engine.handle(Event::Connected, now);
    let Action::Register(held) = actions.remove(0) else { panic!("a connection begins with Register") };
    held
}
