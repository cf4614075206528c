use std::time::Duration;

use super::super::hosts::{IDLE_TIME, STEADY_TIME};
use super::super::{Action, CONFIRM_TIME, Conclusion, Event, Held};
use super::{
    GRACE, HEARTBEAT, LOST_AFTER, STORE, answer, attempt, began, bundle, died, inventory, order, order_of,
    ready, ready_worker, registered, registered_worker, silence, start, t0,
};

#[test]
fn the_first_attempt_of_a_bundle_waits_for_its_host() {
    let mut engine = registered_worker(1);

    assert_eq!(engine.handle(order(1), t0()), [Action::PrepareHost(bundle(1))]);
    assert_eq!(engine.handle(order(2), t0()), []);
    let actions = engine.handle(ready(1), t0());
    assert_eq!(actions, [start(1)]);
}

#[test]
fn an_attempt_is_reported_and_kept_until_its_end_is_confirmed() {
    let mut engine = ready_worker(1);
    assert_eq!(engine.handle(order(1), t0()), [start(1)]);
    let actions = engine.handle(began(1), t0());
    assert_eq!(actions, [Action::ReportBegan { attempt: attempt(1), pid: 101 }]);
    assert_eq!(engine.handle(began(1), t0()), []);
    let actions = engine.handle(Event::AttemptEnded(attempt(1)), t0());
    assert_eq!(actions, [Action::ReportEnded(attempt(1))]);
    assert_eq!(engine.handle(order(1), t0()), [], "a repeated order of what is here is ignored");
    let actions = engine.handle(Event::Confirmed(vec![attempt(1)]), t0());
    assert_eq!(actions, [Action::Forget(attempt(1))]);
    assert_eq!(engine.handle(Event::Confirmed(vec![attempt(1)]), t0()), []);
}

#[test]
fn prefetched_attempts_start_in_order_as_slots_come_free() {
    let mut engine = ready_worker(1);
    engine.handle(order(3), t0());
    assert_eq!(engine.handle(order(2), t0()), []);
    assert_eq!(engine.handle(order(1), t0()), []);
    let actions = engine.handle(Event::AttemptEnded(attempt(3)), t0());
    assert_eq!(actions, [Action::ReportEnded(attempt(3)), start(2)]);
}

#[test]
fn a_wide_attempt_is_not_starved_by_narrow_ones_behind_it() {
    let mut engine = ready_worker(2);
    let wide = |sequence| order_of(sequence, 1, 2);
    engine.handle(order(1), t0());
    assert_eq!(engine.handle(wide(2), t0()), []);
    assert_eq!(engine.handle(order(3), t0()), []);
    let actions = engine.handle(Event::AttemptEnded(attempt(1)), t0());
    assert_eq!(actions, [Action::ReportEnded(attempt(1)), start(2)]);
    let actions = engine.handle(Event::AttemptEnded(attempt(2)), t0());
    assert_eq!(actions, [Action::ReportEnded(attempt(2)), start(3)]);
}

#[test]
fn an_attempt_wider_than_the_worker_is_given_back() {
    let mut engine = ready_worker(2);
    let wide = order_of(1, 1, 3);
    let returned = [Action::Forget(attempt(1)), Action::ReportReturned(vec![attempt(1)])];
    assert_eq!(engine.handle(wide, t0()), returned);
}

#[test]
fn attempts_of_a_ready_bundle_do_not_wait_for_those_of_another() {
    let mut engine = ready_worker(1);
    let other = order_of(1, 2, 1);
    assert_eq!(engine.handle(other, t0()), [Action::PrepareHost(bundle(2))]);
    assert_eq!(engine.handle(order(2), t0()), [start(2)]);
}

#[test]
fn what_has_begun_is_not_given_back() {
    let mut engine = ready_worker(1);
    engine.handle(order(1), t0());
    engine.handle(order(2), t0());
    let refused = |sequence| [Action::ReportNotReturned(attempt(sequence))];
    assert_eq!(engine.handle(Event::RecallOrdered(attempt(1)), t0()), refused(1));
    assert_eq!(engine.handle(Event::RecallOrdered(attempt(9)), t0()), refused(9));
    let actions = engine.handle(Event::RecallOrdered(attempt(2)), t0());
    assert_eq!(actions, [Action::Forget(attempt(2)), Action::ReportReturned(vec![attempt(2)])]);
    let actions = engine.handle(Event::AttemptEnded(attempt(1)), t0());
    assert_eq!(actions, [Action::ReportEnded(attempt(1))], "the recalled one doesn't start");
}

#[test]
fn stopping_has_a_grace_period_which_only_a_harder_order_shortens() {
    let mut engine = ready_worker(1);
    engine.handle(order(1), t0());
    engine.handle(began(1), t0());
    let stop = |at_once| Event::StopOrdered { attempt: attempt(1), at_once };
    let stopped = |grace| [Action::StopAttempt { attempt: attempt(1), grace }];
    assert_eq!(engine.handle(stop(false), t0()), stopped(GRACE));
    assert_eq!(engine.handle(stop(false), t0()), []);
    assert_eq!(engine.handle(stop(true), t0()), stopped(Duration::ZERO));
    assert_eq!(engine.handle(stop(true), t0()), []);
    assert_eq!(engine.handle(order(2), t0()), [], "the slot stays taken until the host says that it ended");
    let actions = engine.handle(Event::AttemptEnded(attempt(1)), t0());
    assert_eq!(actions, [Action::ReportEnded(attempt(1)), start(2)]);
}

#[test]
fn an_attempt_that_is_stopped_while_it_waits_ends_as_stopped() {
    let mut engine = ready_worker(1);
    engine.handle(order(1), t0());
    engine.handle(order(2), t0());
    let actions = engine.handle(Event::StopOrdered { attempt: attempt(2), at_once: false }, t0());
    let concluded = Action::Conclude { attempt: attempt(2), conclusion: Conclusion::Stopped };
    assert_eq!(actions, [concluded, Action::ReportEnded(attempt(2))]);
    let actions = engine.handle(Event::AttemptEnded(attempt(1)), t0());
    assert_eq!(actions, [Action::ReportEnded(attempt(1))]);
}

#[test]
fn unknown_attempts_are_neither_stopped_nor_confirmed() {
    let mut engine = ready_worker(1);
    assert_eq!(engine.handle(Event::StopOrdered { attempt: attempt(5), at_once: true }, t0()), []);
    assert_eq!(engine.handle(Event::Confirmed(vec![attempt(5)]), t0()), []);
    assert_eq!(engine.handle(began(5), t0()), []);
    let actions = engine.handle(Event::AttemptEnded(attempt(5)), t0());
    assert_eq!(actions, [Action::Forget(attempt(5))]);
}

#[test]
fn heartbeats_follow_the_interval_that_the_scheduler_sets() {
    let mut engine = ready_worker(1);
    let early = t0() + HEARTBEAT - Duration::from_millis(1);
    assert_eq!(engine.handle(Event::Tick, early), []);
    assert_eq!(engine.handle(Event::Tick, t0() + HEARTBEAT), [Action::SendHeartbeat { number: 1 }]);
    assert_eq!(engine.next_deadline(), Some(t0() + HEARTBEAT * 2));

    let second = Duration::from_secs(1);
    engine.handle(Event::HeartbeatChanged(second), t0() + HEARTBEAT);
    assert_eq!(engine.next_deadline(), Some(t0() + HEARTBEAT + second));
    engine.handle(Event::Disconnected, t0() + HEARTBEAT);
    assert_eq!(engine.handle(Event::Tick, t0() + HEARTBEAT * 2), []);
}

#[test]
fn a_heartbeat_interval_of_nothing_keeps_nobody_busy() {
    let mut engine = registered_worker(1);
    engine.handle(Event::Disconnected, t0());
    engine.handle(Event::Connected, t0());
    let answer = Event::Registered {
        store: STORE,
        heartbeat: Duration::ZERO,
        lost_after: LOST_AFTER,
        closed: Vec::new(),
    };
    engine.handle(answer, t0());
    assert!(engine.next_deadline().unwrap() > t0());
    engine.handle(Event::HeartbeatChanged(Duration::ZERO), t0());
    assert!(engine.next_deadline().unwrap() > t0());
}

#[test]
fn the_inventory_tells_waiting_running_and_ended_attempts_apart() {
    let mut engine = ready_worker(2);
    for sequence in 1..=3 {
        engine.handle(order(sequence), t0());
    }
    engine.handle(began(1), t0());
    engine.handle(began(2), t0());
    engine.handle(Event::AttemptEnded(attempt(2)), t0());

    let later = t0() + Duration::from_secs(60);
    let idle = |sequence| Held { attempt: attempt(sequence), running: None, pid: 0, ended: false };
    let running =
        Held { attempt: attempt(1), running: Some(Duration::from_secs(60)), pid: 101, ended: false };
    assert_eq!(inventory(&mut engine, later), [running, Held { ended: true, ..idle(2) }, idle(3)]);
}

#[test]
fn ends_are_told_again_on_every_connection_once_the_registration_is_answered() {
    let mut engine = ready_worker(2);
    engine.handle(order(1), t0());
    engine.handle(order(2), t0());
    engine.handle(Event::AttemptEnded(attempt(1)), t0());
    engine.handle(Event::Disconnected, t0());
    assert_eq!(engine.handle(Event::AttemptEnded(attempt(2)), t0()), []);

    engine.handle(Event::Connected, t0());
    let actions = engine.handle(registered(), t0());
    assert_eq!(actions, [Action::ReportEnded(attempt(1)), Action::ReportEnded(attempt(2))]);

    engine.handle(Event::Disconnected, t0());
    engine.handle(Event::Connected, t0());
    let closed = vec![attempt(1)];
    let actions = engine.handle(answer(STORE, closed), t0());
    assert_eq!(actions, [Action::Forget(attempt(1)), Action::ReportEnded(attempt(2))]);
}

#[test]
fn a_closed_attempt_is_killed_at_once_and_its_end_told_to_nobody() {
    let mut engine = ready_worker(1);
    engine.handle(order(1), t0());
    engine.handle(began(1), t0());
    engine.handle(order(2), t0());
    inventory(&mut engine, t0());
    let closed = vec![attempt(1), attempt(2)];
    let actions = engine.handle(answer(STORE, closed), t0());
    let kill = Action::StopAttempt { attempt: attempt(1), grace: Duration::ZERO };
    assert_eq!(actions, [kill, Action::Forget(attempt(2))]);

    assert_eq!(inventory(&mut engine, t0()), []);
    let actions = engine.handle(Event::AttemptEnded(attempt(1)), t0());
    assert_eq!(actions, [Action::Forget(attempt(1))]);
}

#[test]
fn running_attempts_outlast_a_lost_connection() {
    let mut engine = ready_worker(1);
    engine.handle(order(1), t0());
    engine.handle(began(1), t0());
    engine.handle(order(2), t0());
    // What was sent of it may not have arrived.
    assert_eq!(engine.handle(Event::Disconnected, t0()), [Action::ReadCheckpoint(attempt(1))]);
    let day = t0() + Duration::from_secs(86_400);
    let actions = engine.handle(Event::AttemptEnded(attempt(1)), day);
    assert_eq!(actions, [start(2)]);
}

#[test]
fn a_dead_host_loses_what_it_ran_and_is_restarted_for_what_waits() {
    let mut engine = ready_worker(1);
    engine.handle(order(1), t0());
    engine.handle(began(1), t0());
    engine.handle(order(2), t0());
    let actions = engine.handle(died("signal 9"), t0() + STEADY_TIME);
    let conclusion = Conclusion::Lost { reason: "signal 9".to_owned() };
    let lost = [
        Action::Conclude { attempt: attempt(1), conclusion },
        Action::ReportEnded(attempt(1)),
        Action::PrepareHost(bundle(1)),
        Action::SendHeartbeat { number: 1 },
    ];
    assert_eq!(actions, lost);
    let actions = engine.handle(ready(1), t0() + STEADY_TIME);
    assert_eq!(actions, [start(2)]);
}

#[test]
fn a_host_that_dies_at_once_is_restarted_later_and_later() {
    let mut engine = registered_worker(1);
    silence(&mut engine);
    assert_eq!(engine.handle(order(1), t0()).last(), Some(&Action::PrepareHost(bundle(1))));
    let mut now = t0();
    for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
        assert_eq!(engine.handle(died(""), now), []);
        let until = now + Duration::from_secs(wait);
        assert_eq!(engine.next_deadline(), Some(until));
        assert_eq!(engine.handle(Event::Tick, until - Duration::from_millis(1)), []);
        assert_eq!(engine.handle(Event::Tick, until), [Action::PrepareHost(bundle(1))]);
        now = until;
    }
}

#[test]
fn nothing_restarts_a_host_that_nobody_waits_for() {
    let mut engine = ready_worker(1);
    engine.handle(order(1), t0());
    let actions = engine.handle(died(""), t0());
    assert_eq!(actions.len(), 2, "the lost attempt is concluded and reported, no more: {actions:?}");
    assert_eq!(engine.handle(Event::Tick, t0() + Duration::from_secs(2)), []);
    assert_eq!(engine.handle(order(2), t0() + Duration::from_secs(2)), [Action::PrepareHost(bundle(1))]);
}

#[test]
fn an_idle_host_ends_after_a_while_and_comes_back_on_demand() {
    let mut engine = ready_worker(1);
    silence(&mut engine);
    assert_eq!(engine.next_deadline(), Some(t0() + IDLE_TIME));
    assert_eq!(engine.handle(Event::Tick, t0() + IDLE_TIME), [Action::EndHost(1)]);
    assert_eq!(engine.handle(order(1), t0() + IDLE_TIME), [Action::PrepareHost(bundle(1))]);
}

#[test]
fn a_host_with_an_unconfirmed_end_is_not_idle() {
    let mut engine = ready_worker(1);
    engine.handle(order(1), t0());
    engine.handle(Event::AttemptEnded(attempt(1)), t0());
    engine.handle(Event::Disconnected, t0());
    assert_eq!(engine.handle(Event::Tick, t0() + IDLE_TIME * 2), []);
}

#[test]
fn a_refused_bundle_gives_its_attempts_back_and_is_tried_again_for_the_next_one() {
    let mut engine = registered_worker(1);
    engine.handle(order(1), t0());
    engine.handle(order(2), t0());
    let reason = "no loader".to_owned();
    let refused = Event::BundleRefused { bundle: bundle(1), reason: reason.clone() };
    let attempts = vec![attempt(1), attempt(2)];
    let report = Action::ReportBundleRefused { bundle: bundle(1), reason, attempts };
    let actions = engine.handle(refused, t0());
    assert_eq!(actions, [Action::Forget(attempt(1)), Action::Forget(attempt(2)), report]);
    assert_eq!(engine.handle(order(3), t0()), [Action::PrepareHost(bundle(1))]);
}

#[test]
fn attempts_of_a_bundle_that_the_scheduler_lacks_are_given_back() {
    let mut engine = registered_worker(1);
    engine.handle(order(1), t0());
    let actions = engine.handle(Event::BundleMissing(bundle(1)), t0());
    assert_eq!(actions, [Action::Forget(attempt(1)), Action::ReportReturned(vec![attempt(1)])]);
}

#[test]
fn attempts_that_this_machine_loses_hold_further_ones_back_longer_and_longer() {
    let mut engine = ready_worker(2);
    silence(&mut engine);
    engine.handle(order(1), t0());
    engine.handle(order(2), t0());
    let mut now = t0();
    for (round, wait) in [1, 2, 4, 8, 16, 32, 60, 60].into_iter().enumerate() {
        let (first, second) = (2 * round as u64 + 1, 2 * round as u64 + 2);
        assert_eq!(
            engine.handle(Event::AttemptLost(attempt(first)), now),
            [Action::ReportEnded(attempt(first))]
        );
        // It began before the pause, so it says nothing new.
        assert_eq!(
            engine.handle(Event::AttemptLost(attempt(second)), now),
            [Action::ReportEnded(attempt(second))]
        );
        let until = now + Duration::from_secs(wait);
        assert_eq!(engine.handle(order(first + 2), now), []);
        assert_eq!(engine.handle(order(second + 2), now), []);
        assert_eq!(engine.next_deadline(), Some(until));
        assert_eq!(engine.handle(Event::Tick, until - Duration::from_millis(1)), []);
        let started = [start(first + 2), start(second + 2)];
        assert_eq!(engine.handle(Event::Tick, until), started);
        now = until;
    }
}

#[test]
fn an_attempt_that_ends_by_itself_shows_that_the_machine_works() {
    let mut engine = ready_worker(1);
    silence(&mut engine);
    let mut now = t0();
    for sequence in 1..5 {
        engine.handle(order(2 * sequence), now);
        engine.handle(Event::AttemptLost(attempt(2 * sequence)), now);
        engine.handle(order(2 * sequence + 1), now);
        now = now + Duration::from_secs(1);
        assert_eq!(engine.handle(Event::Tick, now), [start(2 * sequence + 1)]);
        engine.handle(Event::AttemptEnded(attempt(2 * sequence + 1)), now);
    }
}

#[test]
fn a_leaving_worker_returns_what_waits_stops_what_runs_and_goes_once_all_is_confirmed() {
    let mut engine = ready_worker(1);
    engine.handle(order(1), t0());
    engine.handle(order(2), t0());
    let actions = engine.handle(Event::LeaveOrdered, t0());
    let left = [
        Action::Forget(attempt(2)),
        Action::ReportReturned(vec![attempt(2)]),
        Action::StopAttempt { attempt: attempt(1), grace: GRACE },
    ];
    assert_eq!(actions, left);
    let actions = engine.handle(order(3), t0());
    assert_eq!(actions, [Action::Forget(attempt(3)), Action::ReportReturned(vec![attempt(3)])]);
    let actions = engine.handle(Event::AttemptEnded(attempt(1)), t0());
    assert_eq!(actions, [Action::ReportEnded(attempt(1))]);
    let actions = engine.handle(Event::Confirmed(vec![attempt(1)]), t0());
    assert_eq!(actions, [Action::Forget(attempt(1)), Action::Leave]);
    assert_eq!(engine.handle(Event::LeaveOrdered, t0()), []);
}

#[test]
fn a_leaving_worker_does_not_wait_for_ever() {
    let mut engine = ready_worker(1);
    engine.handle(order(1), t0());
    engine.handle(Event::Disconnected, t0());
    engine.handle(Event::LeaveOrdered, t0());
    let deadline = t0() + GRACE + CONFIRM_TIME;
    assert_eq!(engine.next_deadline(), Some(deadline));
    assert_eq!(engine.handle(Event::AttemptEnded(attempt(1)), t0()), []);
    assert_eq!(engine.handle(Event::Tick, deadline), [Action::Leave]);
    assert_eq!(engine.handle(Event::Tick, deadline + GRACE), []);
}

#[test]
fn an_idle_worker_leaves_at_once() {
    let mut engine = registered_worker(4);
    assert_eq!(engine.handle(Event::LeaveOrdered, t0()), [Action::Leave]);
}
