//! Messages about ranges of jobs: what they cost follows from what they change, not from how many jobs there are or were.

use lrts_core::ids::SessionId;
use lrts_core::spec::JobOptions;

use super::cluster::{Cluster, DIGEST, Outcome, attach_of, attempt, platform};
use crate::engine::jobs::Delivery;
use crate::engine::{Attach, Bounds, Credit, Event, Message, Peer, Reason};

const ALL: [(u64, u64); 1] = [(0, u64::MAX)];
const JOBS: usize = 200;

/// How often a job or a session is looked at for an event.
fn looks(cluster: &mut Cluster, event: Event) -> u64 {
    let looks =
        |cluster: &Cluster| cluster.engine.jobs.nodes.looks.get() + cluster.engine.sessions.looks.get();
    // What is checked after the event counts too, so that it goes to the engine itself.
    let before = looks(cluster);
    cluster.engine.handle(event, cluster.now);
    looks(cluster) - before
}

/// Each of these does something when it comes first, and costs next to nothing when it comes again.
fn costs_nothing_again(cluster: &mut Cluster, event: &Event) {
    let first = looks(cluster, event.clone());
    assert!(first > JOBS as u64, "{event:?}: {first}");
    let again = looks(cluster, event.clone());
    assert!(again < 20, "{event:?}: {again}");
}

fn want(peer: Peer, session: SessionId, urgent: bool) -> Event {
    // Those that never came are told one by one, and who names too many is parted from.
    let ranges = if session.is_of_keys() { ALL.to_vec() } else { vec![(1, JOBS as u64)] };
    Event::Wanted { peer, session, ranges, urgent }
}

/// An application that has no credit yet.
fn application(cluster: &mut Cluster, session: u64) -> (Peer, SessionId) {
    let (peer, session) = (cluster.peer(), SessionId(session));
    let attach = Attach { credit: Credit::default(), ..attach_of("a", session) };
    cluster.handle(Event::Attached { peer, attach });
    cluster.handle(Event::BundleCompleted { digest: DIGEST, bytes: 100, platforms: platform().into() });
    (peer, session)
}

fn run_all(cluster: &mut Cluster, session: SessionId) {
    let worker = cluster.worker(1, 1);
    for sequence in 1..=JOBS as u64 {
        cluster.finished(worker, attempt(session.job(sequence), 1));
    }
}

#[test]
fn what_changes_nothing_looks_at_no_job() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    cluster.submit(peer, 1, JobOptions::new(), &[1; JOBS]);
    let of = |sequence| session.job(sequence);
    cluster.cancel(peer, of(1));
    cluster.handle(Event::Taken { peer, session, ranges: vec![(1, 1)] });
    let ranges = ALL.to_vec();
    costs_nothing_again(&mut cluster, &Event::CancelAsked { peer, session, ranges: ranges.clone() });
    costs_nothing_again(&mut cluster, &Event::Taken { peer, session, ranges });
    let listing = looks(&mut cluster, Event::ListAsked { peer, request: 1, job: None });
    assert!(listing < 20, "all are taken: {listing}");
    costs_nothing_again(&mut cluster, &Event::StopAsked { peer });
}

#[test]
fn jobs_are_wanted_once() {
    let mut cluster = Cluster::new();
    let (peer, session) = application(&mut cluster, 1);
    cluster.submit(peer, 1, JobOptions::new(), &[0; JOBS]);
    for urgent in [false, true, false] {
        costs_nothing_again(&mut cluster, &want(peer, session, urgent));
    }
    run_all(&mut cluster, session);
    // They wait for credit.
    let again = looks(&mut cluster, want(peer, session, false));
    assert!(again < 20, "{again}");
    let waiting = |cluster: &Cluster| {
        cluster.engine.applications.iter().map(|(_, application)| application.outbox.0.len()).sum::<usize>()
    };
    assert_eq!(waiting(&cluster), JOBS);
    // Who comes back wants them anew.
    let (peer, _) = application(&mut cluster, 1);
    assert_eq!(waiting(&cluster), 0);
    assert_eq!(cluster.handle(want(peer, session, false)).results().len(), 0);
    assert_eq!(waiting(&cluster), JOBS);
    let credit = Credit { results: u32::MAX, bytes: u64::MAX };
    let sent = cluster.handle(Event::CreditGranted { peer, credit });
    assert_eq!(sent.results().len(), JOBS);
    // Each is sent as often as it is asked for.
    assert_eq!(cluster.handle(want(peer, session, false)).results().len(), JOBS);
    assert_eq!(cluster.handle(want(peer, session, true)).results().len(), JOBS);
}

#[test]
fn what_ended_while_nobody_heard_of_it_is_sent_when_it_is_wanted_again() {
    let mut cluster = Cluster::new();
    let (peer, session) = application(&mut cluster, 1);
    cluster.submit(peer, 1, JobOptions::new(), &[0; 2]);
    cluster.handle(want(peer, session, false));
    cluster.want(peer, session.job(2));
    let (peer, _) = application(&mut cluster, 2);
    let worker = cluster.worker(1, 1);
    cluster.finished(worker, attempt(session.job(1), 1));
    cluster.finished(worker, attempt(session.job(2), 1));
    let credit = Credit { results: u32::MAX, bytes: u64::MAX };
    cluster.handle(Event::CreditGranted { peer, credit });
    let sent = cluster.handle(want(peer, session, false));
    assert_eq!(sent.results().len(), 2);
}

#[test]
fn whoever_wants_what_was_taken_or_is_forgotten_is_told_each_time() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    cluster.submit(peer, 1, JobOptions::new(), &[1; 2]);
    cluster.cancel(peer, session.job(1));
    cluster.handle(Event::Taken { peer, session, ranges: vec![(1, 1)] });
    for urgent in [false, true, true] {
        let told = cluster.handle(want(peer, session, urgent));
        assert!(told.says(peer, &Message::Gone { job: session.job(1), taken: true }));
        assert!(!told.says(peer, &Message::Gone { job: session.job(2), taken: false }));
    }
    cluster.pass(super::cluster::RETENTION);
    assert_eq!(cluster.engine.state(session.job(1)), None);
    for urgent in [false, true, true] {
        let told = cluster.handle(want(peer, session, urgent));
        assert!(told.says(peer, &Message::Gone { job: session.job(1), taken: true }));
    }
}

/// What is said and done of a question at a time, until all of it is answered.
fn turns(cluster: &mut Cluster, peer: Peer, event: Event) -> Vec<(Outcome, u64)> {
    let mut turns = Vec::new();
    let mut next = Some(event);
    while let Some(event) = next {
        let before = cluster.engine.jobs.nodes.looks.get();
        let actions = cluster.engine.handle(event, cluster.now);
        turns.push((Outcome(actions), cluster.engine.jobs.nodes.looks.get() - before));
        cluster.engine.check_invariants();
        next = cluster.engine.asking().next().map(|asking| {
            assert_eq!(asking, peer);
            Event::RoomFor { peer }
        });
    }
    turns
}

#[test]
fn questions_are_answered_bit_by_bit() {
    let few = Bounds { answer_jobs: 30, answers: 20, ..Bounds::default() };
    let mut cluster = Cluster::with_bounds(few);
    let (peer, session) = application(&mut cluster, 1);
    cluster.submit(peer, 1, JobOptions::new(), &[0; JOBS]);
    let most = |turns: &[(Outcome, u64)]| turns.iter().map(|(_, looks)| *looks).max().unwrap();
    let all_come_twenty_at_a_time = |turns: &[(Outcome, u64)]| {
        let results: Vec<_> = turns.iter().map(|(outcome, _)| outcome.results().len()).collect();
        assert!(results.iter().all(|&results| results <= 20), "{results:?}");
        assert_eq!(results.iter().sum::<usize>(), JOBS);
    };

    // Jobs that have not ended: nothing is said of them.
    let wanted = turns(&mut cluster, peer, want(peer, session, false));
    assert!(wanted.len() >= JOBS / 30 && most(&wanted) < 20 * 30, "{} {}", wanted.len(), most(&wanted));
    run_all(&mut cluster, session);
    // Those that have ended wait for credit.
    let credit = Credit { results: u32::MAX, bytes: u64::MAX };
    let granted = turns(&mut cluster, peer, Event::CreditGranted { peer, credit });
    all_come_twenty_at_a_time(&granted);
    let urgent = turns(&mut cluster, peer, want(peer, session, true));
    all_come_twenty_at_a_time(&urgent);

    let listed = turns(&mut cluster, peer, Event::ListAsked { peer, request: 1, job: None });
    assert!(listed.len() >= JOBS / 30 && most(&listed) < 20 * 30, "{} {}", listed.len(), most(&listed));
    let jobs: Vec<_> = listed.iter().flat_map(|(outcome, _)| outcome.listed()).collect();
    assert_eq!(jobs.iter().flat_map(|jobs| jobs.ranges.clone()).map(|(a, b)| b + 1 - a).sum::<u64>(), 200);

    let ranges = ALL.to_vec();
    cluster.handle(Event::Taken { peer, session, ranges });
    let gone = turns(&mut cluster, peer, want(peer, session, true));
    assert!(gone.len() >= JOBS / 20, "{}", gone.len());
}

#[test]
fn what_was_asked_later_is_answered_later_and_no_connection_hears_what_another_has_asked() {
    let few = Bounds { answer_jobs: 30, answers: 20, ..Bounds::default() };
    let mut cluster = Cluster::with_bounds(few);
    let (peer, session) = application(&mut cluster, 1);
    cluster.submit(peer, 1, JobOptions::new(), &[0; JOBS]);
    cluster.handle(want(peer, session, false));
    cluster.want(peer, session.job(JOBS as u64));
    while cluster.engine.asking().next().is_some() {
        cluster.handle(Event::RoomFor { peer });
    }
    run_all(&mut cluster, session);
    let last = cluster.engine.find_job(session.job(JOBS as u64)).unwrap();
    assert_eq!(cluster.engine.jobs.nodes[last].delivery, Delivery::Sent, "it was wanted urgently");

    cluster.handle(want(peer, session, true));
    let (peer, _) = application(&mut cluster, 1);
    assert_eq!(cluster.engine.asking().next(), None);
    cluster.handle(want(peer, session, true));
    assert_eq!(cluster.engine.asking().collect::<Vec<_>>(), [peer]);
}

#[test]
fn whoever_asks_on_without_taking_answers_is_parted_from() {
    let few = Bounds { answer_jobs: 30, questions: 100, ..Bounds::default() };
    let mut cluster = Cluster::with_bounds(few);
    let (peer, session) = application(&mut cluster, 1);
    cluster.submit(peer, 1, JobOptions::new(), &[0; JOBS]);
    let parted = (0..100).find_map(|round: u32| {
        let asked = cluster.handle(want(peer, session, round.is_multiple_of(2)));
        asked.disconnects(peer).map(|reason| matches!(reason, Reason::Protocol(_)))
    });
    assert_eq!(parted, Some(true));
    assert_eq!(cluster.engine.asking().next(), None);
}

#[test]
fn results_that_are_wanted_in_turns_take_no_room() {
    let mut cluster = Cluster::new();
    let (peer, session) = application(&mut cluster, 1);
    cluster.submit(peer, 1, JobOptions::new(), &[0; JOBS]);
    run_all(&mut cluster, session);
    for _ in 0..50 {
        cluster.handle(want(peer, session, false));
        cluster.handle(want(peer, session, true));
    }
    let waiting: usize = cluster.engine.applications.iter().map(|(_, record)| record.outbox.0.len()).sum();
    assert!(waiting <= 4 * JOBS, "{waiting}");
}

#[test]
fn what_changes_nothing_looks_at_no_job_with_a_key() {
    let mut cluster = Cluster::new();
    let (peer, _) = cluster.application("a", 1);
    let names: Vec<String> = (0..JOBS).map(|number| format!("k{number}")).collect();
    let keys: Vec<(&str, u64)> = names.iter().map(|name| (&**name, 1)).collect();
    cluster.submit_keys(peer, 1, &keys);
    let session = SessionId::keyed(Cluster::id_of("a"));
    for urgent in [true, false] {
        costs_nothing_again(&mut cluster, &want(peer, session, urgent));
    }
    let ranges = ALL.to_vec();
    costs_nothing_again(&mut cluster, &Event::CancelAsked { peer, session, ranges: ranges.clone() });
    costs_nothing_again(&mut cluster, &Event::Taken { peer, session, ranges });
}
