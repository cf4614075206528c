//! Attempts that outlive their worker, their scheduler or their lease.

use std::time::Duration;

use lrts_core::clock::Moment;

use super::super::{ADOPTION_TIME, Action, Conclusion, Engine, Event, Held, HeldRun, HostNumber};
use super::{
    GRACE, HEARTBEAT, LOST_AFTER, ORPHAN_GRACE, STORE, answer, attempt, began, bundle, died, inventory,
    new_worker, order, order_of, ready, ready_worker, registered, start, t0,
};

const RAN: Duration = Duration::from_secs(900);

/// Another scheduler's.
const OTHER: u64 = 2;

fn second(number: u64) -> Moment {
    t0() + Duration::from_secs(number)
}

/// What a host of an earlier run says of an attempt that has run for a while.
fn held(sequence: u64, host: HostNumber, store: u64) -> Event {
    held_as(sequence, host, store, Some(HeldRun { pid: 7, ran: RAN, stopping: false }))
}

fn held_as(sequence: u64, host: HostNumber, store: u64, run: Option<HeldRun>) -> Event {
    let (attempt, bundle) = (attempt(sequence), bundle(1));
    Event::AttemptHeld { attempt, host, bundle, slots: 1, exclusive: false, store: Some(store), run }
}

fn running(sequence: u64, running: Duration) -> Held {
    Held { attempt: attempt(sequence), running: Some(running), pid: 7, ended: false }
}

fn register(slots: u32, store: Option<u64>, held: Vec<Held>) -> Action {
    Action::Register { slots, store, held }
}

/// A worker that was started again, to which host 3 has said that it has attempts of these numbers and stores.
fn restarted(slots: u32, attempts: &[(u64, u64)]) -> Engine {
    let mut engine = new_worker(slots, Some(STORE), t0());
    for &(sequence, store) in attempts {
        assert_eq!(engine.handle(held(sequence, 3, store), t0()), []);
    }
    assert_eq!(engine.handle(ready(3), t0()), []);
    assert_eq!(engine.handle(Event::EarlierRunKnown, t0()), []);
    engine
}

#[test]
fn a_restarted_worker_registers_once_it_knows_what_its_hosts_have() {
    let mut engine = new_worker(2, Some(STORE), t0());
    assert_eq!(engine.handle(Event::Connected, t0()), []);
    assert_eq!(engine.handle(held(1, 3, STORE), t0()), []);
    assert_eq!(engine.handle(held_as(2, 3, STORE, None), t0()), []);
    assert_eq!(engine.handle(ready(3), t0()), []);
    let ended = Held { attempt: attempt(2), running: None, pid: 0, ended: false };
    let inventory = vec![running(1, RAN + Duration::from_secs(5)), ended];
    let actions = engine.handle(Event::EarlierRunKnown, second(5));
    assert_eq!(actions, [register(2, Some(STORE), inventory)]);

    assert_eq!(engine.handle(Event::AttemptEnded(attempt(2)), second(5)), []);
    let actions = engine.handle(registered(), second(5));
    assert_eq!(actions, [Action::ReadCheckpoint(attempt(1)), Action::ReportEnded(attempt(2))]);
    assert_eq!(engine.handle(order(4), second(6)), [start_at(4, 3)], "the host takes new attempts too");
    let actions = engine.handle(Event::AttemptEnded(attempt(1)), second(6));
    assert_eq!(actions, [Action::ReportEnded(attempt(1))]);
}

fn start_at(sequence: u64, host: HostNumber) -> Action {
    Action::StartAttempt { attempt: attempt(sequence), host, lease_until: None }
}

#[test]
fn adopted_attempts_are_stopped_and_lost_like_others() {
    let mut engine = restarted(1, &[(1, STORE), (2, STORE)]);
    engine.handle(Event::Connected, t0());
    engine.handle(registered(), t0());
    assert_eq!(engine.handle(order(5), t0()), [], "there are more than slots already");
    let stop = Event::StopOrdered { attempt: attempt(1), at_once: false };
    assert_eq!(engine.handle(stop, t0()), [Action::StopAttempt { attempt: attempt(1), grace: GRACE }]);
    let other = Event::HostDied { bundle: bundle(1), host: Some(9), reason: String::new() };
    assert_eq!(engine.handle(other, t0()), [], "not their host");
    let gone = Event::HostDied { bundle: bundle(1), host: Some(3), reason: "gone".to_owned() };
    let lost = |sequence| {
        let conclusion = Conclusion::Lost { reason: "gone".to_owned() };
        [Action::Conclude { attempt: attempt(sequence), conclusion }, Action::ReportEnded(attempt(sequence))]
    };
    assert_eq!(engine.handle(gone, t0()), [lost(1), lost(2)].concat());
}

#[test]
fn a_silent_host_holds_the_registration_up_for_a_while_and_is_told_of_later() {
    let mut engine = new_worker(2, Some(STORE), t0());
    engine.handle(Event::Connected, t0());
    engine.handle(held(1, 3, STORE), t0());
    engine.handle(ready(3), t0());
    assert_eq!(engine.next_deadline(), Some(t0() + ADOPTION_TIME));
    let late = t0() + ADOPTION_TIME;
    assert_eq!(engine.handle(Event::Tick, late - Duration::from_millis(1)), []);
    let first = running(1, RAN + ADOPTION_TIME);
    assert_eq!(engine.handle(Event::Tick, late), [register(2, Some(STORE), vec![first])]);
    engine.handle(registered(), late);

    let second = running(2, RAN);
    let actions = engine.handle(held(2, 4, STORE), late);
    assert_eq!(actions, [register(2, Some(STORE), vec![first, second])]);
    assert_eq!(engine.handle(ready(4), late), []);
    let actions = engine.handle(answer(STORE, vec![attempt(2)]), late);
    let kill = Action::StopAttempt { attempt: attempt(2), grace: Duration::ZERO };
    assert_eq!(actions, [kill, Action::ReadCheckpoint(attempt(1))]);
    let actions = engine.handle(Event::AttemptEnded(attempt(2)), late);
    assert_eq!(actions, [Action::Forget(attempt(2)), Action::EndHost(4)], "the bundle has another host");
}

#[test]
fn an_order_that_crosses_a_registration_is_dropped_since_the_inventory_lacks_it() {
    let mut engine = ready_worker(2);
    assert!(matches!(engine.handle(held(1, 4, STORE), t0())[..], [Action::Register { .. }]));
    assert_eq!(engine.handle(order(2), t0()), [Action::Forget(attempt(2))]);
    engine.handle(registered(), t0());
    assert_eq!(engine.handle(order(3), t0()), [start(3)]);
}

#[test]
fn ends_that_dead_hosts_have_left_are_told_like_others() {
    let mut engine = new_worker(1, Some(STORE), t0());
    engine.handle(Event::Connected, t0());
    engine.handle(Event::EndFound { attempt: attempt(1), store: None }, t0());
    let found = Held { attempt: attempt(1), running: None, pid: 0, ended: true };
    let actions = engine.handle(Event::EarlierRunKnown, t0());
    assert_eq!(actions, [register(1, Some(STORE), vec![found])]);
    assert_eq!(engine.handle(registered(), t0()), [Action::ReportEnded(attempt(1))]);
    let actions = engine.handle(Event::Confirmed(vec![attempt(1)]), t0());
    assert_eq!(actions, [Action::Forget(attempt(1))]);
}

#[test]
fn attempts_of_another_store_run_on_beside_those_of_the_schedulers() {
    let mut engine = restarted(3, &[(1, STORE), (2, STORE)]);
    let actions = engine.handle(Event::Connected, t0());
    assert_eq!(actions, [register(3, Some(STORE), vec![running(1, RAN), running(2, RAN)])]);
    let actions = engine.handle(answer(OTHER, Vec::new()), t0());
    assert_eq!(actions, [Action::KeepStore(OTHER), register(1, Some(OTHER), Vec::new())]);
    assert_eq!(engine.handle(answer(OTHER, Vec::new()), t0()), [Action::TellAside(2)]);

    assert_eq!(engine.handle(order(5), t0()), [start_at(5, 3)]);
    assert_eq!(engine.handle(order(6), t0()), [], "no slot is left");
    let waiting = Held { attempt: attempt(6), running: None, pid: 0, ended: false };
    let starting = Held { attempt: attempt(5), running: None, pid: 0, ended: false };
    let actions = engine.handle(Event::AttemptEnded(attempt(1)), second(1));
    let more = register(2, Some(OTHER), vec![starting, Held { ..waiting }]);
    assert_eq!(actions, [start_at(6, 3), more], "its end is told to nobody, its slot is offered");
    engine.handle(answer(OTHER, Vec::new()), second(1));

    engine.handle(Event::Disconnected, second(2));
    engine.handle(Event::Connected, second(2));
    let actions = engine.handle(answer(STORE, Vec::new()), second(2));
    let ended = Held { attempt: attempt(1), running: None, pid: 0, ended: true };
    let old = vec![ended, running(2, RAN + Duration::from_secs(2))];
    assert_eq!(actions, [Action::KeepStore(STORE), register(1, Some(STORE), old)]);
    let actions = engine.handle(answer(STORE, Vec::new()), second(2));
    let told = [Action::TellAside(2), Action::ReportEnded(attempt(1)), Action::ReadCheckpoint(attempt(2))];
    assert_eq!(actions, told);
}

#[test]
fn a_worker_without_a_free_slot_registers_once_one_is_free() {
    let mut engine = restarted(1, &[(1, STORE)]);
    engine.handle(Event::Connected, t0());
    let actions = engine.handle(answer(OTHER, Vec::new()), t0());
    assert_eq!(actions, [Action::KeepStore(OTHER)]);
    assert_eq!(engine.next_deadline(), None);
    let actions = engine.handle(Event::AttemptEnded(attempt(1)), second(5));
    assert_eq!(actions, [register(1, Some(OTHER), Vec::new())]);
}

#[test]
fn a_worker_that_has_forgotten_its_store_takes_that_of_its_attempts() {
    let mut engine = new_worker(1, None, t0());
    engine.handle(held(1, 3, OTHER), t0());
    engine.handle(ready(3), t0());
    engine.handle(Event::EarlierRunKnown, t0());
    let actions = engine.handle(Event::Connected, t0());
    assert_eq!(actions, [register(1, Some(OTHER), vec![running(1, RAN)])]);
}

#[test]
fn the_own_scheduler_of_what_is_kept_aside_never_sees_an_inventory_without_it() {
    let mut engine = restarted(2, &[(1, OTHER)]);
    let actions = engine.handle(Event::Connected, t0());
    assert_eq!(actions, [register(1, Some(STORE), Vec::new())]);
    let actions = engine.handle(answer(OTHER, Vec::new()), t0());
    let own = register(2, Some(OTHER), vec![running(1, RAN)]);
    assert_eq!(actions, [Action::KeepStore(OTHER), own]);
}

#[test]
fn what_has_not_begun_is_forgotten_with_its_scheduler() {
    let mut engine = ready_worker(1);
    engine.handle(order(1), t0());
    engine.handle(order(2), t0());
    inventory(&mut engine, t0());
    let actions = engine.handle(answer(OTHER, Vec::new()), t0());
    assert_eq!(actions, [Action::Forget(attempt(2)), Action::KeepStore(OTHER)]);
}

#[test]
fn results_that_no_scheduler_comes_for_are_forgotten_in_the_end() {
    let mut engine = restarted(2, &[(1, OTHER)]);
    assert_eq!(engine.next_deadline(), None, "it runs for as long as it takes");
    engine.handle(Event::AttemptEnded(attempt(1)), second(10));
    assert_eq!(engine.next_deadline(), Some(second(10) + ORPHAN_GRACE));
    let actions = engine.handle(Event::Tick, second(10) + ORPHAN_GRACE);
    assert_eq!(actions, [Action::Forget(attempt(1))]);
}

#[test]
fn results_for_a_scheduler_that_is_only_away_are_kept() {
    let mut engine = restarted(1, &[(1, STORE)]);
    engine.handle(Event::AttemptEnded(attempt(1)), t0());
    assert_eq!(engine.handle(Event::Tick, t0() + ORPHAN_GRACE * 2), []);
    let held = inventory(&mut engine, t0() + ORPHAN_GRACE * 2);
    assert_eq!(held.len(), 1);
}

fn exclusive(sequence: u64) -> Event {
    Event::StartOrdered { attempt: attempt(sequence), bundle: bundle(1), slots: 1, exclusive: true }
}

#[test]
fn exclusive_attempts_run_until_the_lease_of_the_last_answered_heartbeat() {
    let mut engine = ready_worker(2);
    let lease_until = Some(t0() + LOST_AFTER);
    let started = Action::StartAttempt { attempt: attempt(1), host: 1, lease_until };
    assert_eq!(engine.handle(exclusive(1), t0()), [started]);
    engine.handle(began(1), t0());
    let beat = t0() + HEARTBEAT;
    assert_eq!(engine.handle(Event::Tick, beat), [Action::SendHeartbeat { number: 1 }]);
    let renewed = |until| [Action::RenewLeases { host: 1, until }];
    let late = beat + Duration::from_secs(2);
    assert_eq!(engine.handle(Event::Renewed(1), late), renewed(beat + LOST_AFTER));
    assert_eq!(engine.handle(Event::Renewed(1), late), [], "a repeat extends nothing");

    engine.handle(Event::Disconnected, late);
    engine.handle(Event::Connected, late + HEARTBEAT);
    let actions = engine.handle(registered(), late + HEARTBEAT * 2);
    let renewed = Action::RenewLeases { host: 1, until: late + HEARTBEAT + LOST_AFTER };
    assert_eq!(actions, [renewed, Action::ReadCheckpoint(attempt(1))]);
}

#[test]
fn an_exclusive_attempt_is_given_back_if_the_lease_has_lapsed() {
    let mut engine = ready_worker(1);
    engine.handle(order(1), t0());
    engine.handle(exclusive(2), t0());
    let lapsed = t0() + LOST_AFTER;
    let actions = engine.handle(Event::AttemptEnded(attempt(1)), lapsed);
    let returned = [
        Action::ReportEnded(attempt(1)),
        Action::Forget(attempt(2)),
        Action::ReportReturned(vec![attempt(2)]),
        Action::SendHeartbeat { number: 1 },
    ];
    assert_eq!(actions, returned);
}

#[test]
fn another_scheduler_does_not_renew_leases_that_it_has_not_given() {
    let mut engine = new_worker(4, Some(STORE), t0());
    let run = Some(HeldRun { pid: 7, ran: RAN, stopping: false });
    let held = |sequence, host| Event::AttemptHeld {
        attempt: attempt(sequence),
        host,
        bundle: bundle(1),
        slots: 1,
        exclusive: true,
        store: Some(STORE),
        run,
    };
    engine.handle(held(1, 3), t0());
    engine.handle(ready(3), t0());
    engine.handle(Event::EarlierRunKnown, t0());
    engine.handle(Event::Connected, t0());
    engine.handle(answer(OTHER, Vec::new()), t0());
    assert_eq!(engine.handle(answer(OTHER, Vec::new()), t0()), [Action::TellAside(1)]);
    engine.handle(exclusive(2), t0());
    let beat = t0() + HEARTBEAT;
    engine.handle(Event::Tick, beat);
    // Both are at the same host, whose lease is one.
    let actions = engine.handle(Event::Renewed(1), beat);
    let kill = Action::StopAttempt { attempt: attempt(1), grace: Duration::ZERO };
    assert_eq!(actions, [kill, Action::RenewLeases { host: 3, until: beat + LOST_AFTER }]);
}

#[test]
fn a_host_that_comes_back_hears_again_what_may_not_have_arrived() {
    let mut engine = ready_worker(3);
    engine.handle(exclusive(1), t0());
    engine.handle(order(2), t0());
    engine.handle(order(3), t0());
    engine.handle(Event::StopOrdered { attempt: attempt(2), at_once: false }, t0());
    let actions = engine.handle(Event::HostResumed(1), t0());
    let stop = Action::StopAttempt { attempt: attempt(2), grace: GRACE };
    assert_eq!(actions, [stop, Action::RenewLeases { host: 1, until: t0() + LOST_AFTER }]);
    assert_eq!(engine.handle(Event::HostResumed(9), t0())[..].len(), 1, "leases are everybody's");
}

#[test]
fn an_absent_worker_gives_back_what_waits_and_leaves_what_runs() {
    let mut engine = ready_worker(1);
    engine.handle(order(1), t0());
    engine.handle(order(2), t0());
    let actions = engine.handle(Event::AbsenceOrdered, t0());
    let left = [Action::Forget(attempt(2)), Action::ReportReturned(vec![attempt(2)]), Action::Leave];
    assert_eq!(actions, left);
    assert_eq!(engine.handle(Event::AbsenceOrdered, t0()), []);
    assert_eq!(engine.handle(Event::AttemptEnded(attempt(1)), t0()), [Action::ReportEnded(attempt(1))]);
}

#[test]
fn a_leaving_worker_stops_what_its_hosts_tell_it_of_and_waits_for_no_other_store() {
    let mut engine = new_worker(2, Some(STORE), t0());
    assert_eq!(engine.handle(Event::LeaveOrdered, t0()), [], "its hosts haven't answered");
    let stop = |sequence| Action::StopAttempt { attempt: attempt(sequence), grace: GRACE };
    assert_eq!(engine.handle(held(1, 3, OTHER), t0()), [stop(1)]);
    engine.handle(ready(3), t0());
    engine.handle(Event::EarlierRunKnown, t0());
    assert_eq!(engine.handle(Event::AttemptEnded(attempt(1)), t0()), [Action::Leave]);
}

#[test]
fn a_host_that_dies_while_another_is_prepared_changes_nothing_there() {
    let mut engine = ready_worker(1);
    engine.handle(held(1, 4, STORE), t0());
    engine.handle(ready(4), t0());
    engine.handle(registered(), t0());
    engine.handle(order_of(2, 1, 1), t0());
    let spare = Event::HostDied { bundle: bundle(1), host: Some(4), reason: String::new() };
    let actions = engine.handle(spare, t0());
    let conclusion = Conclusion::Lost { reason: String::new() };
    let lost =
        [Action::Conclude { attempt: attempt(1), conclusion }, Action::ReportEnded(attempt(1)), start(2)];
    assert_eq!(actions, lost);
    assert_eq!(engine.handle(died(""), t0()).len(), 2, "its own host's death is another matter");
}
