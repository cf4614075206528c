//! For fuzzers, see `lrts_core::fuzz`: reporters and watchers that say what they like.

use std::collections::BTreeSet;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::fuzz::{Input, Target};
use lrts_core::ids::UserName;
use lrts_core::limits::{BARS, BARS_PER_BATCH, BATCH_BYTES};
use lrts_core::progress::is_bounded;
use lrts_core::protocol::codec;
use lrts_core::protocol::progress::{FromReporter, FromWatcher, OwnedApplication, ToWatcher};

use crate::engine::{Action, Engine, Event};

/// The targets of this crate.
pub const TARGETS: &[Target] = &[("bars", bars)];

/// Connections at a time: the even ones report, the odd ones watch.
const CONNECTIONS: u8 = 4;

/// Reporters and watchers in any order, while time passes and connections end.
pub fn bars(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut engine = Engine::new();
    let mut now = Moment::default() + Duration::from_secs(1_000);
    while !input.is_empty() {
        let step = input.byte();
        let peer = step % CONNECTIONS;
        let event = match step / CONNECTIONS {
            0 => Event::Left(peer),
            1 => {
                now = now + Duration::from_secs(u64::from(input.byte()) * 60);
                Event::Tick
            }
            2 => Event::FanOut { busy: BTreeSet::from([peer]) },
            3 => Event::FanOut { busy: BTreeSet::new() },
            _ => match said(peer, input.part()) {
                Some(event) => event,
                None => continue,
            },
        };
        handle(&mut engine, event, now);
        assert!(engine.bars() <= BARS);
    }
    for peer in 0..CONNECTIONS {
        handle(&mut engine, Event::Left(peer), now);
    }
    let end = now + Duration::from_secs(1 << 20);
    handle(&mut engine, Event::Tick, end);
    handle(&mut engine, Event::FanOut { busy: BTreeSet::new() }, end);
    assert_eq!((engine.bars(), engine.deadline()), (0, None), "nobody reports anything any more");
}

/// Whose watchers they are.
fn owner() -> Option<UserName> {
    Some("ann".parse().expect("a valid name"))
}

fn said(peer: u8, head: &[u8]) -> Option<Event<u8>> {
    if peer.is_multiple_of(2) {
        match codec::decode(head).ok()? {
            FromReporter::Ping { .. } => None,
            FromReporter::Batch { applications } => {
                Some(Event::Batch { reporter: peer, updates: applications })
            }
            FromReporter::Ended { attempts } => Some(Event::Ended { reporter: peer, attempts }),
        }
    } else {
        match codec::decode(head).ok()? {
            FromWatcher::Watch { application } => {
                let application = OwnedApplication { owner: owner(), application };
                Some(Event::Watch { watcher: peer, application })
            }
            FromWatcher::Forget => Some(Event::Forget { watcher: peer }),
        }
    }
}

fn handle(engine: &mut Engine<u8>, event: Event<u8>, now: Moment) {
    for action in engine.handle(event, now) {
        match action {
            Action::Send { watcher, updates } => {
                assert!(engine.watchers().any(|known| known == watcher));
                assert!(!updates.is_empty() && updates.len() <= BARS_PER_BATCH);
                assert!(updates.iter().all(|update| update.text.as_ref().is_none_or(is_bounded)));
                assert!(codec::encode(&ToWatcher::Bars { updates }).len() <= BATCH_BYTES);
            }
            Action::Disconnect { peer, .. } => handle(engine, Event::Left(peer), now),
        }
    }
}

#[cfg(test)]
mod tests {
    use lrts_core::fuzz::{Script, check_corpora, keep};
    use lrts_core::ids::{ApplicationId, AttemptId, BarId, SessionId};
    use lrts_core::protocol::progress::{BarNumbers, BarText, BarUpdate};
    use serde::Serialize;

    use super::*;

    #[test]
    fn what_is_kept_for_fuzzers_does_no_harm() {
        keep("bars", conversations());
        check_corpora(TARGETS);
    }

    fn application() -> ApplicationId {
        "nightly".parse().unwrap()
    }

    fn owned() -> OwnedApplication {
        OwnedApplication { owner: owner(), application: application() }
    }

    fn attempt(sequence: u64, attempt: u32) -> AttemptId {
        AttemptId { job: SessionId(5).job(sequence), attempt }
    }

    fn say<T: Serialize>(script: Script, peer: u8, message: &T) -> Script {
        script.byte(16 + peer).part(&codec::encode(message))
    }

    fn report(script: Script, peer: u8, attempt: AttemptId, index: u32, text: bool) -> Script {
        let text = text.then(|| BarText { description: "Reading".into(), ..BarText::default() });
        let bar = BarId { attempt, index };
        let updates = vec![BarUpdate { bar, text, numbers: BarNumbers::default() }];
        say(script, peer, &FromReporter::Batch { applications: vec![(owned(), updates)] })
    }

    fn conversations() -> Vec<Vec<u8>> {
        let watched = || say(Script::new(), 1, &FromWatcher::Watch { application: application() });
        let ended = FromReporter::Ended { attempts: vec![(owned(), attempt(1, 1))] };
        let told = || report(watched(), 0, attempt(1, 1), 0, true).byte(12);
        let moved =
            report(report(told(), 0, attempt(1, 1), 0, false), 0, attempt(1, 1), 3, true).byte(9).byte(12);
        let over = say(told(), 0, &ended).byte(12).byte(4).byte(61);
        let newer = report(report(told(), 2, attempt(1, 2), 0, true), 0, attempt(1, 1), 0, false).byte(12);
        let left = told().byte(0).byte(12).byte(4).byte(59).byte(4).byte(2);
        let back = report(told().byte(0), 0, attempt(1, 1), 0, true).byte(12);
        let taken_over = report(told(), 2, attempt(1, 1), 0, true).byte(0).byte(12);
        let forgotten = say(told(), 1, &FromWatcher::Forget).byte(12);
        let twice = say(told(), 1, &FromWatcher::Watch { application: application() });
        let beyond = report(told(), 0, attempt(1, 1), u32::MAX, true);
        let late = say(
            report(Script::new(), 0, attempt(2, 1), 1, true),
            3,
            &FromWatcher::Watch { application: application() },
        );
        let late = late.byte(12).byte(3).byte(12);
        let textless = report(watched(), 0, attempt(1, 1), 0, false).byte(12);
        let all =
            [told(), moved, over, newer, left, back, taken_over, forgotten, twice, beyond, late, textless];
        all.map(Script::bytes).into()
    }
}
