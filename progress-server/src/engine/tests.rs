//! Scenarios, and a simulation: whatever watchers miss and however slow they are, in the end each shows the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{AttemptId, BarId, SessionId};
use lrts_core::limits::{
    ATTEMPTS_PER_REPORTER, BAR_MESSAGE_BYTES, BARS, BARS_PER_ATTEMPT, BARS_PER_BATCH, BARS_PER_REPORTER,
    RESTING_ATTEMPTS,
};
use lrts_core::protocol::progress::{BarNumbers, BarText, BarUpdate, OwnedApplication};

use super::{Action, Engine, Event, RETENTION};

const R1: u32 = 1;
const R2: u32 = 2;
const W1: u32 = 11;
const W2: u32 = 12;
const T0: Moment = Moment::from_nanos(1_000_000_000);

fn app() -> OwnedApplication {
    app_of("ann")
}

fn app_of(user: &str) -> OwnedApplication {
    OwnedApplication { owner: Some(user.parse().unwrap()), application: "app".parse().unwrap() }
}

fn attempt(job: u64, attempt: u32) -> AttemptId {
    AttemptId { job: SessionId(7).job(job), attempt }
}

fn text(description: &str, leave: bool) -> BarText {
    BarText { description: description.to_owned(), leave, ..BarText::default() }
}

fn bar(attempt: AttemptId, index: u32, position: u64) -> BarUpdate {
    let numbers = BarNumbers { position, total: Some(100), closed: false, elapsed: Duration::ZERO };
    BarUpdate { bar: BarId { attempt, index }, text: None, numbers }
}

fn with_text(description: &str, update: BarUpdate) -> BarUpdate {
    BarUpdate { text: Some(text(description, true)), ..update }
}

fn report(engine: &mut Engine<u32>, reporter: u32, updates: Vec<BarUpdate>) {
    let actions = engine.handle(Event::Batch { reporter, updates: vec![(app(), updates)] }, T0);
    assert_eq!(actions, []);
}

fn watch(engine: &mut Engine<u32>, watcher: u32) {
    assert_eq!(engine.handle(Event::Watch { watcher, application: app() }, T0), []);
}

fn fan_out(engine: &mut Engine<u32>) -> Vec<(u32, Vec<BarUpdate>)> {
    let actions = engine.handle(Event::FanOut { busy: BTreeSet::new() }, T0);
    let sends = actions.into_iter().map(|action| match action {
        Action::Send { watcher, updates } => (watcher, updates),
        Action::Disconnect { reason, .. } => panic!("disconnects: {reason}"),
    });
    sends.collect()
}

/// How many updates were refused since this was asked last.
fn refused(engine: &mut Engine<u32>) -> u64 {
    std::mem::take(&mut engine.refused)
}

fn end(engine: &mut Engine<u32>, attempt: AttemptId, now: Moment) {
    let ended = Event::Ended { reporter: R1, attempts: vec![(app(), attempt)] };
    assert_eq!(engine.handle(ended, now), []);
}

#[test]
fn a_watcher_gets_all_bars_and_then_what_changes() {
    let mut engine = Engine::new();
    let first = with_text("load", bar(attempt(1, 1), 0, 5));
    report(&mut engine, R1, vec![first.clone()]);
    assert!(!engine.is_behind());
    watch(&mut engine, W1);
    assert!(engine.is_behind());
    assert_eq!(fan_out(&mut engine), [(W1, vec![first])]);
    assert!(!engine.is_behind());
    assert_eq!(fan_out(&mut engine), []);

    report(&mut engine, R1, vec![bar(attempt(1, 1), 0, 6)]);
    report(&mut engine, R1, vec![bar(attempt(1, 1), 0, 7)]);
    assert_eq!(fan_out(&mut engine), [(W1, vec![bar(attempt(1, 1), 0, 7)])]);
}

#[test]
fn a_slow_watcher_gets_fewer_and_newer_updates() {
    let mut engine = Engine::new();
    watch(&mut engine, W1);
    watch(&mut engine, W2);
    report(&mut engine, R1, vec![with_text("load", bar(attempt(1, 1), 0, 1))]);
    for position in 2..100 {
        report(&mut engine, R1, vec![bar(attempt(1, 1), 0, position)]);
        let sent = engine.handle(Event::FanOut { busy: [W2].into() }, T0);
        assert!(sent.iter().all(|action| matches!(action, Action::Send { watcher: W1, .. })));
    }
    assert!(engine.is_behind());
    assert_eq!(fan_out(&mut engine), [(W2, vec![with_text("load", bar(attempt(1, 1), 0, 99))])]);
}

#[test]
fn the_newest_attempt_is_shown() {
    let mut engine = Engine::new();
    report(&mut engine, R1, vec![with_text("old", bar(attempt(1, 1), 0, 50))]);
    report(&mut engine, R2, vec![with_text("new", bar(attempt(1, 2), 0, 1))]);
    report(&mut engine, R1, vec![bar(attempt(1, 1), 0, 60), with_text("old", bar(attempt(1, 1), 1, 1))]);
    end(&mut engine, attempt(1, 1), T0);
    watch(&mut engine, W1);
    assert_eq!(fan_out(&mut engine), [(W1, vec![with_text("new", bar(attempt(1, 2), 0, 1))])]);
    assert_eq!(engine.bars(), 1);
}

#[test]
fn the_end_of_an_attempt_closes_its_bars() {
    let mut engine = Engine::new();
    watch(&mut engine, W1);
    report(&mut engine, R1, vec![with_text("load", bar(attempt(1, 1), 0, 5))]);
    fan_out(&mut engine);
    end(&mut engine, attempt(1, 1), T0);
    let mut closed = bar(attempt(1, 1), 0, 5);
    closed.numbers.closed = true;
    assert_eq!(fan_out(&mut engine), [(W1, vec![closed])]);
}

#[test]
fn bars_that_are_not_left_go_once_everybody_has_seen_their_end() {
    let mut engine = Engine::new();
    watch(&mut engine, W1);
    watch(&mut engine, W2);
    let mut update = bar(attempt(1, 1), 0, 5);
    update.text = Some(text("passing", false));
    report(&mut engine, R1, vec![update.clone()]);
    fan_out(&mut engine);
    update.numbers.closed = true;
    report(&mut engine, R1, vec![update]);
    engine.handle(Event::FanOut { busy: [W2].into() }, T0);
    assert_eq!(engine.bars(), 1);
    assert_eq!(fan_out(&mut engine).len(), 1);
    assert_eq!(engine.bars(), 0);
    // The numbers of a bar that is gone are no bar.
    report(&mut engine, R1, vec![bar(attempt(1, 1), 0, 6)]);
    assert_eq!((engine.bars(), fan_out(&mut engine)), (0, vec![]));
}

#[test]
fn a_reporter_that_reconnects_tells_nothing_twice() {
    let mut engine = Engine::new();
    watch(&mut engine, W1);
    let update = with_text("load", bar(attempt(1, 1), 0, 5));
    report(&mut engine, R1, vec![update.clone()]);
    fan_out(&mut engine);
    // The new connection may come before the end of the old one is known.
    let mut again = update;
    again.numbers.elapsed = Duration::from_secs(9);
    report(&mut engine, R2, vec![again]);
    engine.handle(Event::Left(R1), T0);
    assert_eq!(fan_out(&mut engine), []);
    assert_eq!(engine.deadline(), None, "R2 reports the attempt");
    engine.handle(Event::Left(R2), T0);
    assert_eq!(engine.deadline(), Some(T0 + RETENTION));
}

#[test]
fn ended_attempts_are_kept_for_a_while() {
    let mut engine = Engine::new();
    report(&mut engine, R1, vec![with_text("load", bar(attempt(1, 1), 0, 5))]);
    end(&mut engine, attempt(1, 1), T0);
    engine.handle(Event::Tick, T0 + RETENTION - Duration::from_nanos(1));
    assert_eq!(engine.bars(), 1);
    engine.handle(Event::Tick, T0 + RETENTION);
    assert_eq!(engine.bars(), 0);
    assert!(engine.applications.is_empty());
}

#[test]
fn a_stopped_application_is_forgotten_by_its_own_watcher_only() {
    let mut engine = Engine::new();
    let other = OwnedApplication { application: "other".parse().unwrap(), ..app() };
    report(&mut engine, R1, vec![with_text("load", bar(attempt(1, 1), 0, 5))]);
    engine.handle(Event::Watch { watcher: W2, application: other }, T0);
    engine.handle(Event::Forget { watcher: W2 }, T0);
    assert_eq!(engine.bars(), 1);
    watch(&mut engine, W1);
    engine.handle(Event::Forget { watcher: W1 }, T0);
    assert_eq!(engine.bars(), 0);
    engine.handle(Event::Left(W1), T0);
    engine.handle(Event::Left(W2), T0);
    assert!(engine.applications.is_empty() && engine.resting.is_empty());
}

#[test]
fn what_no_honest_peer_sends_ends_its_connection() {
    let mut engine = Engine::new();
    let refused = |engine: &mut Engine<u32>, event| {
        let actions = engine.handle(event, T0);
        assert!(matches!(actions[..], [Action::Disconnect { .. }]), "{actions:?}");
    };
    let batch = |updates| Event::Batch { reporter: R1, updates: vec![(app(), updates)] };
    refused(&mut engine, batch(vec![bar(attempt(1, 1), BARS_PER_ATTEMPT, 0)]));
    refused(&mut engine, batch(vec![bar(attempt(1, 1), 0, 0); BARS_PER_BATCH + 1]));
    refused(&mut engine, Event::Batch { reporter: R1, updates: vec![(app(), vec![]); BARS_PER_BATCH + 1] });
    let mut long = with_text("x", bar(attempt(1, 1), 0, 0));
    long.text.as_mut().unwrap().message = "x".repeat(BAR_MESSAGE_BYTES + 1);
    refused(&mut engine, batch(vec![long]));
    refused(&mut engine, batch(vec![with_text("\x1b[2J", bar(attempt(1, 1), 0, 0))]));
    refused(&mut engine, Event::Forget { watcher: W1 });
    watch(&mut engine, W1);
    refused(&mut engine, Event::Watch { watcher: W1, application: app() });
    assert_eq!(engine.bars(), 0);
}

#[test]
fn two_users_with_one_application_id_never_see_each_others_bars() {
    let mut engine = Engine::new();
    let [ann, bob] = ["ann", "bob"].map(app_of);
    let bars = ["ann", "bob"].map(|user| with_text(user, bar(attempt(1, 1), 0, 5)));
    let updates = vec![(ann.clone(), vec![bars[0].clone()]), (bob.clone(), vec![bars[1].clone()])];
    engine.handle(Event::Batch { reporter: R1, updates }, T0);
    engine.handle(Event::Watch { watcher: W1, application: ann }, T0);
    engine.handle(Event::Watch { watcher: W2, application: bob.clone() }, T0);
    let [anns, bobs] = bars.map(|bar| vec![bar]);
    assert_eq!(fan_out(&mut engine), [(W1, anns), (W2, bobs)]);

    engine.handle(Event::Ended { reporter: R1, attempts: vec![(bob, attempt(1, 1))] }, T0);
    assert!(matches!(fan_out(&mut engine)[..], [(W2, _)]));
    engine.handle(Event::Forget { watcher: W1 }, T0);
    assert_eq!(engine.bars(), 1, "bob's");
    // Without an owner it is neither's.
    let nobodys = OwnedApplication { owner: None, ..app() };
    engine
        .handle(Event::Batch { reporter: R1, updates: vec![(nobodys, vec![bar(attempt(1, 1), 0, 9)])] }, T0);
    assert_eq!(fan_out(&mut engine), []);
}

#[test]
fn a_reporter_ends_only_what_it_reports() {
    let mut engine = Engine::new();
    report(&mut engine, R2, vec![with_text("load", bar(attempt(1, 1), 0, 5))]);
    watch(&mut engine, W1);
    fan_out(&mut engine);
    end(&mut engine, attempt(1, 1), T0);
    assert_eq!((fan_out(&mut engine), engine.deadline()), (vec![], None));
}

#[test]
fn memory_is_bounded() {
    let mut engine = Engine::new();
    let jobs = u64::try_from(BARS).unwrap() / 1_000;
    for job in 0..=jobs {
        let bars = (0..1_000).map(|index| with_text("x", bar(attempt(job, 1), index, 0)));
        // Each has as many as one may have at most.
        report(&mut engine, R1 + (job / 50) as u32, bars.collect());
    }
    assert_eq!(engine.bars(), BARS);
    assert_eq!(refused(&mut engine), 1_000);
    end(&mut engine, attempt(0, 1), T0);
    report(&mut engine, R1, vec![with_text("x", bar(attempt(jobs, 1), 0, 0))]);
    assert_eq!(engine.bars(), BARS - 999);

    let mut engine = Engine::new();
    for job in 0..=RESTING_ATTEMPTS as u64 {
        report(&mut engine, R1, vec![with_text("x", bar(attempt(job, 1), 0, 0))]);
        end(&mut engine, attempt(job, 1), T0);
    }
    assert_eq!(engine.bars(), RESTING_ATTEMPTS);
}

#[test]
fn one_reporter_takes_nobody_elses_room() {
    let mut engine = Engine::new();
    for job in 0..=BARS_PER_REPORTER as u64 / 1_000 {
        let bars = (0..1_000).map(|index| with_text("x", bar(attempt(job, 1), index, 0)));
        report(&mut engine, R1, bars.collect());
    }
    assert_eq!((engine.bars(), refused(&mut engine)), (BARS_PER_REPORTER, 1_000));
    report(&mut engine, R2, vec![with_text("x", bar(attempt(999, 1), 0, 0))]);
    assert_eq!((engine.bars(), refused(&mut engine)), (BARS_PER_REPORTER + 1, 0));
    end(&mut engine, attempt(0, 1), T0);
    report(&mut engine, R1, vec![with_text("x", bar(attempt(1_000, 1), 0, 0))]);
    assert_eq!(refused(&mut engine), 0);
}

#[test]
fn who_takes_over_bars_needs_room_for_all_of_them() {
    let mut engine = Engine::new();
    let full = BARS_PER_REPORTER as u64 / 1_000;
    let bars = |job| (0..1_000).map(|index| with_text("x", bar(attempt(job, 1), index, 0))).collect();
    for job in 0..full {
        report(&mut engine, R1, bars(job));
    }
    for job in 0..full {
        report(&mut engine, R2, vec![bar(attempt(job, 1), 0, 1)]);
    }
    assert_eq!(refused(&mut engine), 0);
    // All of them are R2's now.
    report(&mut engine, R2, vec![with_text("x", bar(attempt(full, 1), 0, 0))]);
    assert_eq!(refused(&mut engine), 1);
    report(&mut engine, R1, bars(full));
    assert_eq!(refused(&mut engine), 0);

    report(&mut engine, R2, vec![bar(attempt(full, 1), 0, 7)]);
    assert_eq!((refused(&mut engine), engine.deadline()), (1, None));
    end(&mut engine, attempt(full, 1), T0);
    assert_eq!(engine.deadline(), Some(T0 + RETENTION), "R1 still reported it");
    report(&mut engine, R2, vec![bar(attempt(full, 1), 0, 8)]);
    assert_eq!((refused(&mut engine), engine.deadline()), (1, Some(T0 + RETENTION)));

    engine.handle(Event::Ended { reporter: R2, attempts: vec![(app(), attempt(0, 1))] }, T0);
    report(&mut engine, R2, vec![bar(attempt(full, 1), 0, 9)]);
    assert_eq!((refused(&mut engine), engine.resting.len()), (0, 1), "in place of the one that ended");
    assert_eq!(engine.bars(), BARS_PER_REPORTER + 1_000);
}

#[test]
fn what_is_refused_is_told_once_in_an_interval() {
    let mut engine = Engine::<u32>::new();
    engine.refused = 1;
    assert_eq!(engine.refused_to_tell(T0), Some(1));
    engine.refused = 5;
    let later = T0 + super::REFUSED_INTERVAL;
    assert_eq!(engine.refused_to_tell(later - Duration::from_nanos(1)), None);
    engine.refused += 1;
    assert_eq!((engine.refused_to_tell(later), engine.refused_to_tell(later)), (Some(6), None));
}

#[test]
fn attempts_whose_bars_have_vanished_count_too() {
    let mut engine = Engine::new();
    watch(&mut engine, W1);
    let vanishing = |job| {
        let mut update = bar(attempt(job, 1), 0, 1);
        update.text = Some(text("passing", false));
        update.numbers.closed = true;
        update
    };
    for job in 0..ATTEMPTS_PER_REPORTER as u64 + 10 {
        report(&mut engine, R1, vec![vanishing(job)]);
        fan_out(&mut engine);
    }
    assert_eq!((engine.bars(), refused(&mut engine)), (0, 10));
    let known = engine.applications[&app()].jobs().count();
    assert_eq!(known, ATTEMPTS_PER_REPORTER);
    engine.handle(Event::Left(R1), T0);
    assert_eq!(engine.resting.len(), ATTEMPTS_PER_REPORTER.min(RESTING_ATTEMPTS));
    report(&mut engine, R2, vec![vanishing(0)]);
    assert_eq!(refused(&mut engine), 0);
}

/// What a watching application shows.
#[derive(Default, Clone)]
struct Screen(BTreeMap<BarId, (BarText, BarNumbers)>);

impl Screen {
    fn show(&mut self, updates: Vec<BarUpdate>) {
        for BarUpdate { bar, text, numbers } in updates {
            // Bars of an older attempt make room.
            self.0.retain(|id, _| id.attempt.job != bar.attempt.job || id.attempt >= bar.attempt);
            let known = self.0.get(&bar).map(|(text, _)| text.clone());
            let text = text.or(known).expect("an unknown bar comes with its text");
            self.0.insert(bar, (text, numbers));
        }
    }

    fn left(&self) -> BTreeMap<BarId, (BarText, BarNumbers)> {
        let left = self.0.iter().filter(|(_, (text, numbers))| text.leave || !numbers.closed);
        left.map(|(id, bar)| (*id, bar.clone())).collect()
    }
}

#[test]
fn in_the_end_every_watcher_shows_the_truth() {
    for seed in 0..300 {
        simulate(seed);
    }
}

fn simulate(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut engine = Engine::new();
    let mut truth = Screen::default();
    let mut attempts = BTreeMap::new();
    let mut screens: BTreeMap<u32, Screen> = BTreeMap::new();
    for step in 0..400 {
        match random.u32(..10) {
            0..6 => {
                let job = random.u64(..4);
                let number = *attempts.entry(job).or_insert(1);
                let id = BarId { attempt: attempt(job, number), index: random.u32(..5) };
                if truth.0.get(&id).is_some_and(|(_, numbers)| numbers.closed) {
                    continue;
                }
                let leave = id.index != 0;
                let known = truth.0.contains_key(&id);
                let text = (!known || random.u8(..4) == 0).then(|| text(&format!("text {step}"), leave));
                let closed = random.u8(..8) == 0;
                let numbers = BarNumbers { position: step, closed, ..BarNumbers::default() };
                let update = BarUpdate { bar: id, text, numbers };
                truth.show(vec![update.clone()]);
                report(&mut engine, R1, vec![update]);
            }
            6 => {
                let job = random.u64(..4);
                if let Some(number) = attempts.get_mut(&job) {
                    *number += u32::from(random.u8(..4) == 0);
                }
            }
            7 => {
                let watcher = random.u32(11..15);
                if screens.remove(&watcher).is_some() {
                    engine.handle(Event::Left(watcher), T0);
                } else {
                    screens.insert(watcher, Screen::default());
                    watch(&mut engine, watcher);
                }
            }
            _ => {
                // The engine's own limit is too large to be met here: one bar at a time.
                for (&watcher, screen) in &mut screens {
                    if random.bool() {
                        let entry = engine.applications.get_mut(&app()).expect("it is watched");
                        screen.show(entry.news(watcher, random.usize(1..4)));
                    }
                }
                if let Some(entry) = engine.applications.get_mut(&app()) {
                    engine.bars -= entry.drop_vanished();
                }
            }
        }
    }
    for (watcher, updates) in fan_out(&mut engine) {
        screens.get_mut(&watcher).expect("it watches").show(updates);
    }
    assert!(!engine.is_behind());
    for (watcher, screen) in screens {
        assert_eq!(screen.left(), truth.left(), "seed {seed}, watcher {watcher}");
    }
}
