//! Peers with good keys that ask for a lot and take nothing.

use std::thread;

use lrts_core::ids::SessionId;
use lrts_core::protocol::application::{FromApplication, JobSet};
use lrts_core::protocol::codec::encode;
use lrts_core::protocol::command::FromCommand;
use lrts_core::protocol::progress::{FromReporter, FromWatcher};
use lrts_core::protocol::worker::FromWorker;
use lrts_core::transport::Role;

use crate::attack::{Attacker, Stage, Target, data};
use crate::site::Site;
use crate::words::attach;

/// Jobs in one question, and numbers that no job has.
const UNKNOWN_JOBS: u64 = 10_000;

/// What is asked in all, in bytes, if the questions are long, and questions if they are short.
const BYTES: usize = 80 << 20;
const QUESTIONS: usize = 50_000;

/// Asks the same again and again under credit, and never grants any for the answers. It may be sent away for it, or not be
/// heard any more.
fn ask_on(mut attacker: Attacker, question: &[u8], urgent: bool) -> Attacker {
    attacker.give_up_soon();
    for _ in 0..QUESTIONS.min(BYTES / question.len()) {
        let asked = if urgent { attacker.say_at_once(question) } else { attacker.say(question, b"") };
        if asked.is_err() {
            break;
        }
    }
    attacker
}

/// Asks as much as fits into the first credit, and reads nothing at all.
fn ask_blindly(mut attacker: Attacker, question: &[u8]) -> Attacker {
    let asked = data(false, Some((question.len() as u32, 0)), question);
    for _ in 0..4_000.min((4 << 20) / question.len()) {
        if attacker.write(&asked).is_err() {
            break;
        }
    }
    attacker
}

fn questions(session: SessionId) -> [(Role, Vec<u8>, bool); 7] {
    let unknown = |sequence| session.job(sequence);
    let jobs = JobSet { session, ranges: vec![(1, UNKNOWN_JOBS)] };
    [
        (Role::Admin, encode(&FromCommand::Cancel { jobs: (1..UNKNOWN_JOBS).map(unknown).collect() }), false),
        (Role::Admin, encode(&FromCommand::Status), false),
        (Role::Admin, encode(&FromCommand::Jobs), false),
        (Role::Admin, encode(&FromCommand::Applications), false),
        (Role::Client, encode(&FromApplication::Want { jobs, urgent: true }), false),
        (Role::Client, encode(&FromApplication::List { request: 1, job: None }), false),
        (Role::Worker, encode(&FromWorker::Heartbeat { number: 1 }), true),
    ]
    .map(|(role, question, urgent)| (role, question.to_vec(), urgent))
}

/// One that may ask.
fn asker(target: &Target, role: Role, name: &str) -> Attacker {
    let mut attacker = target.at(Stage::Joined, role);
    if (target.role, role) == (Role::Scheduler, Role::Client) {
        let attach = encode(&FromApplication::Attach(attach(name, SessionId(7))));
        attacker.say(&attach, b"").unwrap();
    }
    attacker
}

/// Each question is asked by one under credit and by one blindly. Both stay, and honest parties come.
fn ask_all(site: Site, target: &Target, questions: &[(Role, Vec<u8>, bool)]) {
    for (number, (role, question, urgent)) in questions.iter().enumerate() {
        let asker = |name: &str| asker(target, *role, &format!("{name}-{number}"));
        let attackers = thread::scope(|scope| {
            let deaf = scope.spawn(|| ask_on(asker("deaf"), question, *urgent));
            [ask_blindly(asker("blind"), question), deaf.join().expect("an attacker")]
        });
        site.serves_newcomers();
        drop(attackers);
    }
    site.assert_unharmed();
}

#[test]
fn who_asks_and_never_takes_is_held_to_bounds_by_the_scheduler() {
    let site = Site::new();
    let target = site.scheduler();
    ask_all(site, &target, &questions(SessionId(7)));
}

#[test]
fn who_asks_and_never_takes_is_held_to_bounds_by_the_progress_server() {
    let site = Site::new();
    let target = site.progress_server();
    let ping = encode(&FromReporter::Ping { number: 1 }).to_vec();
    let watch = encode(&FromWatcher::Watch { application: "attacker".parse().unwrap() }).to_vec();
    ask_all(site, &target, &[(Role::Worker, ping, false), (Role::Client, watch, false)]);
}
