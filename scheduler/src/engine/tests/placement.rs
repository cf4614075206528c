//! Which job goes where next.

use std::time::Duration;

use lrts_core::ids::WorkerId;
use lrts_core::spec::{BundleRef, JobOptions};
use lrts_core::status::JobState;

use super::cluster::{Cluster, LOST_AFTER, attempt, registration};
use crate::engine::{AttemptOutcome, Event, Message, Peer};

const SHORT: u16 = 0;
const LONG: u16 = 1;

#[test]
fn applications_share_slots_equally() {
    let mut cluster = Cluster::new();
    let (one, first) = cluster.application("a", 1);
    let (two, second) = cluster.application("b", 2);
    cluster.submit(one, 1, JobOptions::new(), &[LONG; 10]);
    cluster.submit(two, 1, JobOptions::new(), &[LONG; 10]);
    let peer = cluster.peer();
    let registered = registration(WorkerId(1), 6);
    let started = cluster.handle(Event::Registered { peer, registration: registered, held: vec![] }).starts();
    let of = |session| started.iter().filter(|(_, attempt)| attempt.job.session == session).count();
    assert_eq!((of(first), of(second)), (3, 3));
}

#[test]
fn higher_priorities_go_first_and_equal_ones_by_age() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    cluster.submit(peer, 1, JobOptions::new(), &[LONG]);
    cluster.submit(peer, 2, JobOptions::new(), &[SHORT]);
    cluster.submit(peer, 3, JobOptions::new(), &[LONG]);
    cluster.submit(peer, 4, JobOptions::new().priority(5), &[LONG]);
    let mut order = Vec::new();
    let mut running = attempt(session.job(1), 1);
    for _ in 0..3 {
        running = cluster.finished(worker, running).starts()[0].1;
        order.push(running.job.sequence);
    }
    assert_eq!(order, [4, 2, 3]);
}

#[test]
fn the_worker_with_most_free_slots_is_chosen_and_a_warm_one_before_a_cold_one() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    let small = cluster.worker(1, 2);
    let large = cluster.worker(2, 3);
    assert_eq!(cluster.submit(peer, 1, JobOptions::new(), &[LONG]).starts()[0].0, large);
    assert_eq!(cluster.submit(peer, 2, JobOptions::new(), &[LONG]).starts()[0].0, small);
    cluster.began(small, attempt(session.job(2), 1));
    assert_eq!(cluster.submit(peer, 3, JobOptions::new(), &[LONG]).starts()[0].0, small);
}

#[test]
fn jobs_take_the_slots_they_ask_for_and_large_ones_are_not_starved() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 4);
    cluster.submit(peer, 1, JobOptions::new(), &[LONG, LONG]);
    assert!(cluster.submit(peer, 3, JobOptions::new().slots(4), &[LONG]).starts().is_empty());
    assert!(
        cluster.submit(peer, 4, JobOptions::new(), &[LONG]).starts().is_empty(),
        "it would starve the large one"
    );
    assert!(cluster.finished(worker, attempt(session.job(1), 1)).starts().is_empty());
    let started = cluster.finished(worker, attempt(session.job(2), 1)).starts();
    assert_eq!(started, [(worker, attempt(session.job(3), 1))]);

    cluster.submit(peer, 5, JobOptions::new().slots(9), &[LONG]);
    assert_eq!(cluster.reason(session.job(5)), "needs 9 slots: the largest worker has 4");
    cluster.finished(worker, attempt(session.job(3), 1));
    assert_eq!(cluster.state(session.job(4)), JobState::Queued);
    assert_eq!(cluster.worker(2, 9), cluster_peer(&cluster, 2), "a worker that is large enough takes it");
}

fn cluster_peer(cluster: &Cluster, worker: u64) -> Peer {
    let index = cluster.engine.workers.by_id[&WorkerId(worker)];
    cluster.engine.workers.all[index].peer().unwrap()
}

#[test]
fn programs_go_only_where_they_can_start() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    let mut old = registration(WorkerId(1), 4);
    old.platform.glibc = Some((2, 17));
    let worker = cluster.peer();
    cluster.handle(Event::Registered { peer: worker, registration: old, held: vec![] });
    let mut picky = registration(WorkerId(2), 4);
    picky.ships = false;
    let other = cluster.peer();
    cluster.handle(Event::Registered { peer: other, registration: picky, held: vec![] });
    cluster.submit(peer, 1, JobOptions::new(), &[LONG]);
    cluster.pass_hearing(LOST_AFTER, &[worker, other]);
    assert_eq!(cluster.state(session.job(1)), JobState::Failed);
    assert!(cluster.reason(session.job(1)).contains("2.17"), "{}", cluster.reason(session.job(1)));
}

#[test]
fn with_no_worker_at_all_a_job_waits() {
    let mut cluster = Cluster::new();
    let peer = cluster.peer();
    let session = lrts_core::ids::SessionId(1);
    let mut attach = super::cluster::attach_of("a", session);
    attach.bundle = BundleRef::Installed("model".into());
    cluster.handle(Event::Attached { peer, attach });
    cluster.submit(peer, 1, JobOptions::new(), &[LONG]);
    assert_eq!(cluster.reason(session.job(1)), "no worker is connected");
    cluster.worker(1, 1);
    assert_eq!(cluster.reason(session.job(1)), "no worker that is connected runs such programs");
    let mut registered = registration(WorkerId(2), 1);
    registered.installed = vec!["model".into()];
    let worker = cluster.peer();
    let started = cluster.handle(Event::Registered { peer: worker, registration: registered, held: vec![] });
    assert_eq!(started.starts(), [(worker, attempt(session.job(1), 1))]);
}

/// A worker with one slot whose service is known to take 10 ms.
fn measured() -> (Cluster, Peer, lrts_core::ids::SessionId, Peer) {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    cluster.submit(peer, 1, JobOptions::new(), &[SHORT]);
    let ran = Duration::from_millis(10);
    let attempt = attempt(session.job(1), 1);
    cluster.handle(Event::Ended {
        peer: worker,
        attempt,
        outcome: AttemptOutcome::Finished,
        ran,
        output_bytes: 0,
    });
    (cluster, peer, session, worker)
}

#[test]
fn short_jobs_are_sent_ahead_for_a_tenth_of_a_second_and_long_ones_never() {
    let (mut cluster, peer, ..) = measured();
    assert_eq!(cluster.submit(peer, 2, JobOptions::new(), &[SHORT; 40]).starts().len(), 1 + 10);
    let (mut cluster, peer, ..) = measured();
    assert_eq!(cluster.submit(peer, 2, JobOptions::new(), &[LONG; 40]).starts().len(), 1);
}

#[test]
fn nothing_is_sent_ahead_past_a_job_whose_turn_it_is() {
    let (mut cluster, peer, session, worker) = measured();
    cluster.submit(peer, 2, JobOptions::new(), &[LONG, LONG]);
    assert!(cluster.submit(peer, 4, JobOptions::new(), &[SHORT; 5]).starts().is_empty());
    let next = cluster.finished(worker, attempt(session.job(2), 1)).starts();
    assert_eq!(next, [(worker, attempt(session.job(3), 1))], "nor behind a long one");
}

#[test]
fn what_was_sent_ahead_comes_back_for_an_idle_slot() {
    let (mut cluster, peer, session, busy) = measured();
    cluster.submit(peer, 2, JobOptions::new(), &[SHORT; 3]);
    let idle = cluster.peer();
    let registered = registration(WorkerId(2), 1);
    let joined = cluster.handle(Event::Registered { peer: idle, registration: registered, held: vec![] });
    let last = attempt(session.job(4), 1);
    assert!(joined.says(busy, &Message::Recall { attempt: last }));
    assert!(cluster.handle(Event::Tick { may_forget: true }).0.is_empty(), "one for each free slot");
    let returned = cluster.handle(Event::Returned { peer: busy, attempts: vec![last] });
    assert_eq!(returned.starts(), [(idle, attempt(session.job(4), 2))]);
}

#[test]
fn what_was_sent_ahead_comes_back_for_a_higher_priority() {
    let (mut cluster, peer, session, worker) = measured();
    cluster.submit(peer, 2, JobOptions::new(), &[SHORT; 2]);
    let urgent = cluster.submit(peer, 4, JobOptions::new().priority(1), &[LONG]);
    let ahead = attempt(session.job(3), 1);
    assert!(urgent.says(worker, &Message::Recall { attempt: ahead }));
    cluster.handle(Event::Returned { peer: worker, attempts: vec![ahead] });
    let next = cluster.finished(worker, attempt(session.job(2), 1)).starts();
    assert_eq!(next, [(worker, attempt(session.job(4), 1))]);
}

#[test]
fn a_recalled_attempt_that_had_begun_goes_on() {
    let (mut cluster, peer, session, busy) = measured();
    cluster.submit(peer, 2, JobOptions::new(), &[SHORT; 2]);
    cluster.worker(2, 1);
    let ahead = attempt(session.job(3), 1);
    cluster.finished(busy, attempt(session.job(2), 1));
    cluster.began(busy, ahead);
    cluster.handle(Event::NotReturned { peer: busy, attempt: ahead });
    cluster.finished(busy, ahead);
    assert_eq!(cluster.state(session.job(3)), JobState::Finished);
}

#[test]
fn what_was_sent_ahead_is_not_taken_back_for_a_job_that_its_worker_cannot_run() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let small = cluster.worker(1, 1);
    // Away, but not lost: the large job waits for it.
    let large = cluster.worker(2, 2);
    cluster.handle(Event::Disconnected { peer: large });
    cluster.submit(application, 1, JobOptions::new(), &[0]);
    let (ran, outcome) = (Duration::from_millis(1), AttemptOutcome::Finished);
    let first = attempt(session.job(1), 1);
    cluster.handle(Event::Ended { peer: small, attempt: first, outcome, ran, output_bytes: 1 });
    cluster.submit(application, 2, JobOptions::new(), &[0]);
    cluster.submit(application, 3, JobOptions::new().priority(1).slots(2), &[0]);
    let ahead = cluster.submit(application, 4, JobOptions::new(), &[0]);
    assert_eq!(ahead.starts(), [(small, attempt(session.job(4), 1))]);
    assert!(ahead.recalls().is_empty(), "it would only be sent again, for ever");
}
