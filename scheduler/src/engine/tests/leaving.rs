//! Workers that leave for a while, take nothing new, or come from another scheduler.

use std::time::Duration;

use lrts_core::ids::{JobId, WorkerId};
use lrts_core::spec::JobOptions;
use lrts_core::status::{JobState, WorkerState};

use super::cluster::{Cluster, HEARTBEAT, LOST_AFTER, RUN, STORE, attempt, held, registration};
use crate::engine::{AttemptOutcome, Event, Message, Note, Peer, Registration};
use crate::record::Record;

const HOURS: Duration = Duration::from_hours(10);
const SHORTLY: Duration = Duration::from_millis(1);

/// A worker that runs a job.
fn running() -> (Cluster, Peer, Peer, JobId) {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new(), &[1]);
    cluster.want(application, job);
    cluster.began(worker, attempt(job, 1));
    (cluster, application, worker, job)
}

fn leave(cluster: &mut Cluster, worker: Peer) {
    let left = cluster.handle(Event::SaidAbsent { peer: worker, back_within: HOURS });
    assert!(left.notes(&Note::WorkerAbsent { worker: WorkerId(1), back_within: HOURS }));
    assert!(cluster.handle(Event::Disconnected { peer: worker }).0.is_empty());
}

fn register(cluster: &mut Cluster, registration: Registration, held: Vec<crate::engine::Held>) -> Peer {
    let peer = cluster.peer();
    cluster.handle(Event::Registered { peer, registration, held });
    peer
}

#[test]
fn an_absent_workers_jobs_wait_for_it_as_long_as_it_said() {
    let (mut cluster, _, worker, job) = running();
    leave(&mut cluster, worker);
    let other = cluster.worker(2, 1);
    let waits = cluster.pass_hearing(HOURS - SHORTLY, &[other]);
    assert!(waits.starts().is_empty());
    assert_eq!(cluster.state(job), JobState::Running);
    assert_eq!(cluster.pass(SHORTLY).starts(), [(other, attempt(job, 2))]);
}

#[test]
fn an_absent_worker_that_is_back_is_trusted_no_longer_than_others() {
    let (mut cluster, _, worker, job) = running();
    leave(&mut cluster, worker);
    cluster.pass(HOURS / 2);
    let (worker, back) = cluster.rejoin(1, 1, vec![held(job, 1)]);
    assert!(back.closed(worker).is_empty());
    assert_eq!(cluster.state(job), JobState::Running);
    cluster.handle(Event::Disconnected { peer: worker });
    cluster.pass(LOST_AFTER);
    assert_eq!(cluster.state(job), JobState::Queued);
}

#[test]
fn an_absence_outlives_the_scheduler() {
    let (mut cluster, _, worker, job) = running();
    leave(&mut cluster, worker);
    cluster.restart();
    let other = cluster.worker(2, 1);
    assert!(cluster.pass_hearing(HOURS - SHORTLY, &[other]).starts().is_empty());
    let (worker, _) = cluster.rejoin(1, 1, vec![held(job, 1)]);
    cluster.finished(worker, attempt(job, 1));
    assert_eq!(cluster.state(job), JobState::Finished);
}

#[test]
fn a_short_absence_is_no_shorter_than_the_lease() {
    let (mut cluster, _, worker, job) = running();
    cluster.handle(Event::SaidAbsent { peer: worker, back_within: Duration::from_secs(1) });
    cluster.pass(LOST_AFTER - SHORTLY);
    assert_eq!(cluster.state(job), JobState::Running);
    cluster.pass(SHORTLY);
    assert_eq!(cluster.state(job), JobState::Queued);
}

#[test]
fn a_draining_worker_takes_nothing_new_and_ends_what_it_has() {
    let (mut cluster, application, worker, job) = running();
    let drained = cluster.drain(1, None);
    assert!(!drained.stops(worker, attempt(job, 1)));
    assert_eq!(cluster.engine.worker_listings(cluster.now)[0].state, WorkerState::Draining);
    cluster.submit(application, 2, JobOptions::new(), &[1]);
    assert_eq!(cluster.finished(worker, attempt(job, 1)).results().len(), 1);
    cluster.pass_hearing(LOST_AFTER, &[worker]);
    assert_eq!(cluster.state(job.session.job(2)), JobState::Queued);
    assert_eq!(cluster.drain(77, None).0, [], "one that isn't there");
}

#[test]
fn a_job_that_waits_for_draining_workers_alone_says_so() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    cluster.worker(1, 4);
    cluster.drain(1, None);
    cluster.submit(application, 1, JobOptions::new().slots(2), &[1]);
    let reason = |cluster: &Cluster| cluster.reason(session.job(1));
    let draining = "all workers that could run it are draining: start one anew, or another one";
    assert_eq!(reason(&cluster), draining);
    // Another one is of no use if it is too small.
    cluster.worker(2, 1);
    assert_eq!(reason(&cluster), draining);
    cluster.submit(application, 2, JobOptions::new().slots(5), &[1]);
    assert_eq!(cluster.reason(session.job(2)), "needs 5 slots: the largest worker has 4");
    cluster.worker(3, 2);
    assert_eq!(reason(&cluster), "", "it is placed there");
}

#[test]
fn what_was_sent_ahead_to_a_draining_worker_comes_back() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    cluster.submit(application, 1, JobOptions::new(), &[0]);
    let first = attempt(session.job(1), 1);
    cluster.handle(Event::Ended {
        peer: worker,
        attempt: first,
        outcome: AttemptOutcome::Finished,
        ran: SHORTLY,
        output_bytes: 1,
    });
    cluster.submit(application, 2, JobOptions::new(), &[0, 0, 0]);
    cluster.began(worker, attempt(session.job(2), 1));
    let ahead = [attempt(session.job(3), 1), attempt(session.job(4), 1)];
    assert_eq!(cluster.drain(1, None).recalls(), ahead);
    let other = cluster.worker(2, 4);
    let back = cluster.handle(Event::Returned { peer: worker, attempts: ahead.to_vec() });
    assert_eq!(back.starts().len(), 2);
    assert!(back.starts().iter().all(|&(to, _)| to == other));
}

#[test]
fn the_deadline_of_a_drain_moves_what_is_left_uncharged() {
    let (mut cluster, _, worker, job) = running();
    let other = cluster.worker(2, 1);
    cluster.drain(1, Some(RUN));
    assert!(!cluster.pass_hearing(RUN - SHORTLY, &[worker, other]).stops(worker, attempt(job, 1)));
    assert!(cluster.pass(SHORTLY).stops(worker, attempt(job, 1)));
    let moved = cluster.ended(worker, attempt(job, 1), AttemptOutcome::Stopped);
    assert_eq!(moved.starts(), [(other, attempt(job, 2))]);
    let image = cluster.store.image(job).unwrap();
    assert_eq!((image.failures, image.crashes), (0, 0));
}

#[test]
fn a_drains_deadline_is_kept_by_a_worker_that_was_cut_off_when_it_came() {
    let (mut cluster, _, worker, job) = running();
    cluster.drain(1, Some(RUN));
    cluster.handle(Event::Disconnected { peer: worker });
    cluster.pass(RUN);
    let (worker, back) = cluster.rejoin(1, 1, vec![held(job, 1)]);
    assert!(back.stops(worker, attempt(job, 1)));
}

#[test]
fn a_repeated_drain_sets_another_deadline() {
    let (mut cluster, _, worker, job) = running();
    cluster.drain(1, Some(HEARTBEAT));
    cluster.drain(1, Some(2 * HEARTBEAT));
    assert!(!cluster.pass_hearing(2 * HEARTBEAT - SHORTLY, &[worker]).stops(worker, attempt(job, 1)));
    assert!(cluster.pass(SHORTLY).stops(worker, attempt(job, 1)));
    cluster.drain(1, None);
    assert!(cluster.pass_hearing(HOURS / 100, &[worker]).0.iter().all(|action| {
        !matches!(action, crate::engine::Action::Send { message: Message::Stop { .. }, .. })
    }));
}

#[test]
fn a_drain_ends_with_the_workers_process_and_not_with_its_connection() {
    let (mut cluster, application, _, job) = running();
    cluster.drain(1, None);
    cluster.submit(application, 2, JobOptions::new(), &[1]);
    let again = register(&mut cluster, registration(WorkerId(1), 2), vec![held(job, 1)]);
    assert_eq!(cluster.state(job.session.job(2)), JobState::Queued);
    let restarted = Registration { instance: 2, ..registration(WorkerId(1), 2) };
    let peer = cluster.peer();
    let back = cluster.handle(Event::Registered { peer, registration: restarted, held: vec![held(job, 1)] });
    assert_eq!(back.starts(), [(peer, attempt(job.session.job(2), 1))]);
    assert!(back.records().contains(&&Record::Worker { worker: WorkerId(1), image: None }));
    assert!(back.disconnects(again).is_some());
}

#[test]
fn a_drain_outlives_the_scheduler_and_its_deadline_counts_anew() {
    let (mut cluster, application, _, job) = running();
    cluster.drain(1, Some(2 * HEARTBEAT));
    cluster.submit(application, 2, JobOptions::new(), &[1]);
    cluster.pass(HEARTBEAT);
    cluster.restart();
    let (worker, back) = cluster.rejoin(1, 2, vec![held(job, 1)]);
    assert!(back.starts().is_empty());
    assert!(!cluster.pass_hearing(2 * HEARTBEAT - SHORTLY, &[worker]).stops(worker, attempt(job, 1)));
    assert!(cluster.pass(SHORTLY).stops(worker, attempt(job, 1)));
}

#[test]
fn a_worker_that_is_drained_before_it_is_back_after_a_restart_drains() {
    let (mut cluster, application, _, job) = running();
    cluster.submit(application, 2, JobOptions::new(), &[1]);
    cluster.restart();
    cluster.drain(1, None);
    let (_, back) = cluster.rejoin(1, 2, vec![held(job, 1)]);
    assert!(back.starts().is_empty());
    cluster.restart();
    let (_, back) = cluster.rejoin(1, 2, vec![held(job, 1)]);
    assert!(back.starts().is_empty());
    let restarted = Registration { instance: 2, ..registration(WorkerId(1), 2) };
    let peer = cluster.peer();
    let back = cluster.handle(Event::Registered { peer, registration: restarted, held: vec![held(job, 1)] });
    assert_eq!(back.starts().len(), 1);
}

#[test]
fn what_a_worker_has_of_another_store_is_not_compared_until_it_registers_anew() {
    let (mut cluster, _, worker, job) = running();
    cluster.handle(Event::Disconnected { peer: worker });
    let foreign = held(job, 7);
    let peer = cluster.peer();
    let registration = Registration { store: Some(STORE + 1), ..registration(WorkerId(1), 1) };
    let told =
        cluster.handle(Event::Registered { peer, registration: registration.clone(), held: vec![foreign] });
    assert!(told.notes(&Note::WorkerOfAnotherStore { worker: WorkerId(1), attempts: 1 }));
    assert!(told.closed(peer).is_empty(), "it keeps them for their own scheduler");
    assert!(told.says(
        peer,
        &Message::Registered {
            store: STORE,
            epoch: 1,
            heartbeat: HEARTBEAT,
            lost_after: LOST_AFTER,
            closed: Vec::new()
        }
    ));
    assert_eq!(cluster.state(job), JobState::Running);
    let anew = Registration { store: Some(STORE), ..registration };
    let back = cluster.handle(Event::Registered { peer, registration: anew, held: Vec::new() });
    assert_eq!(back.starts(), [(peer, attempt(job, 2))]);
}

#[test]
fn a_lost_worker_may_come_back_from_another_store() {
    let (mut cluster, _, worker, job) = running();
    cluster.handle(Event::Disconnected { peer: worker });
    cluster.pass(LOST_AFTER);
    let registration = Registration { store: Some(STORE + 1), ..registration(WorkerId(1), 1) };
    let peer = register(&mut cluster, registration.clone(), vec![held(job, 7)]);
    let anew = Registration { store: Some(STORE), ..registration };
    cluster.handle(Event::Registered { peer, registration: anew, held: vec![held(job, 1)] });
    assert_eq!(cluster.state(job), JobState::Running);
}
