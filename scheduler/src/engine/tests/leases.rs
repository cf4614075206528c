//! Silent, lost and returning workers.

use std::time::Duration;

use lrts_core::ids::WorkerId;
use lrts_core::limits::ORPHAN_GRACE;
use lrts_core::spec::{BundleRef, JobOptions};
use lrts_core::status::{FailureKind, JobState, WorkerState};

use super::cluster::{Cluster, DIGEST, HEARTBEAT, LOST_AFTER, STORE, attempt, failed, held, settings};
use crate::engine::{Action, AttemptOutcome, Event, Held, Message, Note, Reason};

#[test]
fn a_silent_workers_job_goes_to_the_next_worker() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let silent = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new(), &[1]);
    cluster.began(silent, attempt(job, 1));
    cluster.pass(LOST_AFTER / 2);
    let other = cluster.worker(2, 1);

    let early = cluster.pass(LOST_AFTER / 2 - Duration::from_millis(1));
    assert!(early.starts().is_empty());
    cluster.heartbeat(other);
    let lost = cluster.pass(Duration::from_millis(1));
    assert_eq!(lost.disconnects(silent), Some(&Reason::LeaseExpired));
    assert_eq!(lost.starts(), [(other, attempt(job, 2))]);
}

#[test]
fn a_closed_connection_is_suspect_and_not_lost() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new(), &[1, 1]);
    cluster.began(worker, attempt(job, 1));
    cluster.handle(Event::Disconnected { peer: worker });
    assert_eq!(cluster.engine.worker_listings(cluster.now)[0].state, WorkerState::Suspect);
    cluster.pass(LOST_AFTER - Duration::from_millis(1));
    assert_eq!(cluster.state(job), JobState::Running);

    let held =
        Held { attempt: attempt(job, 1), running: Some(Duration::from_secs(19)), pid: 42, ended: false };
    let (worker, back) = cluster.rejoin(1, 1, vec![held]);
    assert!(back.starts().is_empty(), "its slot is taken by the job that goes on");
    assert_eq!(cluster.finished(worker, attempt(job, 1)).starts(), [(worker, attempt(session.job(2), 1))]);
    assert_eq!(cluster.state(job), JobState::Finished);
}

#[test]
fn an_inventory_that_lacks_an_attempt_requeues_its_job_uncharged() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new().crash_limit(1), &[1]);
    cluster.began(worker, attempt(job, 1));
    cluster.handle(Event::Disconnected { peer: worker });

    let unknown = Held { attempt: attempt(session.job(77), 1), running: None, pid: 0, ended: false };
    let (worker, back) = cluster.rejoin(1, 1, vec![unknown]);
    assert_eq!(back.starts(), [(worker, attempt(job, 2))]);
    let closed = vec![unknown.attempt];
    let registered =
        Message::Registered { store: STORE, epoch: 1, heartbeat: HEARTBEAT, lost_after: LOST_AFTER, closed };
    assert!(back.says(worker, &registered));
}

/// A worker that runs the job and whose connection ended so long ago.
fn away_for(span: Duration) -> (Cluster, lrts_core::ids::JobId) {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new(), &[1]);
    cluster.want(application, job);
    cluster.began(worker, attempt(job, 1));
    cluster.handle(Event::Disconnected { peer: worker });
    cluster.pass(span);
    (cluster, job)
}

/// A worker that was lost while it ran the job, another one that runs it since ten seconds.
fn cut_off() -> (Cluster, super::super::Peer, lrts_core::ids::JobId) {
    let (mut cluster, job) = away_for(LOST_AFTER);
    let second = cluster.worker(2, 1);
    cluster.began(second, attempt(job, 2));
    cluster.pass(Duration::from_secs(5));
    cluster.heartbeat(second);
    cluster.pass(Duration::from_secs(5));
    cluster.heartbeat(second);
    (cluster, second, job)
}

#[test]
fn of_two_copies_the_one_that_ran_longer_stays() {
    let (mut cluster, second, job) = cut_off();
    let held =
        Held { attempt: attempt(job, 1), running: Some(Duration::from_secs(30)), pid: 42, ended: false };
    let (first, back) = cluster.rejoin(1, 1, vec![held]);
    assert!(back.stops(second, attempt(job, 2)));

    let stale = cluster.finished(second, attempt(job, 2));
    assert!(stale.results().is_empty(), "no result of a closed attempt counts");
    assert_eq!(cluster.state(job), JobState::Running);
    assert_eq!(cluster.finished(first, attempt(job, 1)).results()[0].1.worker, Some(WorkerId(1)));
}

#[test]
fn a_copy_that_never_began_gives_way() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let first = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new(), &[1]);
    cluster.handle(Event::Disconnected { peer: first });
    cluster.pass(LOST_AFTER);
    let second = cluster.worker(2, 1);
    let held = Held { attempt: attempt(job, 1), running: None, pid: 0, ended: false };
    let (first, back) = cluster.rejoin(1, 1, vec![held]);
    let closed = vec![attempt(job, 1)];
    let registered =
        Message::Registered { store: STORE, epoch: 1, heartbeat: HEARTBEAT, lost_after: LOST_AFTER, closed };
    assert!(back.says(first, &registered));
    cluster.finished(second, attempt(job, 2));
    assert_eq!(cluster.state(job), JobState::Finished);
}

#[test]
fn a_lost_workers_job_that_nobody_took_goes_on_there() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new(), &[1]);
    cluster.began(worker, attempt(job, 1));
    cluster.pass(LOST_AFTER);
    assert_eq!(cluster.state(job), JobState::Queued);
    assert!(cluster.reason(job).contains("lost with attempt 1"), "{}", cluster.reason(job));
    let held = Held { attempt: attempt(job, 1), running: Some(LOST_AFTER), pid: 42, ended: false };
    let (worker, back) = cluster.rejoin(1, 1, vec![held]);
    assert!(back.starts().is_empty());
    assert_eq!(cluster.state(job), JobState::Running);
    cluster.finished(worker, attempt(job, 1));
    assert_eq!(cluster.state(job), JobState::Finished);
}

#[test]
fn success_elsewhere_closes_the_copy_of_a_lost_worker() {
    let (mut cluster, second, job) = cut_off();
    cluster.finished(second, attempt(job, 2));
    let held =
        Held { attempt: attempt(job, 1), running: Some(Duration::from_secs(30)), pid: 42, ended: false };
    let (first, back) = cluster.rejoin(1, 1, vec![held]);
    let closed = vec![attempt(job, 1)];
    let registered =
        Message::Registered { store: STORE, epoch: 1, heartbeat: HEARTBEAT, lost_after: LOST_AFTER, closed };
    assert!(back.says(first, &registered));
}

/// A worker that was lost while it ran the job, another one where the job has just failed for good.
fn failed_elsewhere() -> (Cluster, lrts_core::ids::JobId) {
    let (mut cluster, second, job) = cut_off();
    let failure = cluster.ended(second, attempt(job, 2), failed(FailureKind::Error));
    assert!(failure.results().is_empty() && failure.starts().is_empty());
    assert_eq!(cluster.state(job), JobState::Queued);
    let reason = cluster.reason(job);
    assert!(reason.contains("lost with attempt 1") && reason.contains("why"), "{reason}");
    (cluster, job)
}

#[test]
fn a_failure_ends_no_job_whose_older_attempt_may_come_back() {
    let (mut cluster, job) = failed_elsewhere();
    let held =
        Held { attempt: attempt(job, 1), running: Some(Duration::from_secs(30)), pid: 42, ended: false };
    let (first, _) = cluster.rejoin(1, 1, vec![held]);
    assert_eq!(cluster.state(job), JobState::Running);
    let results = cluster.finished(first, attempt(job, 1)).results();
    assert_eq!((results.len(), &results[0].1.failure), (1, &None));
    assert_eq!(cluster.state(job), JobState::Finished);
}

#[test]
fn a_failure_ends_its_job_once_the_older_attempt_is_known_to_be_gone() {
    let (mut cluster, _) = failed_elsewhere();
    let (_, back) = cluster.rejoin(1, 1, Vec::new());
    let [(_, report)] = &back.results()[..] else { panic!("{back:?}") };
    assert_eq!((report.attempt, report.worker), (2, Some(WorkerId(2))), "the report is that of the failure");
    assert_eq!(report.failure.as_ref().unwrap().kind, FailureKind::Error);
    assert!(back.starts().is_empty());
}

#[test]
fn a_failure_ends_its_job_when_the_older_attempt_comes_back_and_brings_nothing() {
    for outcome in [
        AttemptOutcome::Stopped,
        AttemptOutcome::Lost { reason: "host died".into() },
        // Which would be run again if the other attempt hadn't failed.
        failed(FailureKind::Crashed),
    ] {
        let (mut cluster, job) = failed_elsewhere();
        let held =
            Held { attempt: attempt(job, 1), running: Some(Duration::from_secs(30)), pid: 42, ended: false };
        let (first, _) = cluster.rejoin(1, 1, vec![held]);
        cluster.handle(Event::Disconnected { peer: first });
        cluster.pass(LOST_AFTER);
        assert_eq!(cluster.state(job), JobState::Queued, "lost once more");
        let (first, _) = cluster.rejoin(1, 1, vec![held]);
        let ended = cluster.ended(first, attempt(job, 1), outcome);
        assert_eq!(ended.results()[0].1.failure.as_ref().unwrap().kind, FailureKind::Error);
    }
}

#[test]
fn a_lost_workers_attempts_are_given_up_after_the_orphan_grace() {
    let (mut cluster, job) = failed_elsewhere();
    // It was last heard of a lease and ten seconds ago.
    cluster.pass(ORPHAN_GRACE - LOST_AFTER - Duration::from_secs(11));
    assert_eq!(cluster.state(job), JobState::Queued);
    let over = cluster.pass(Duration::from_secs(1));
    assert_eq!(over.results()[0].1.failure.as_ref().unwrap().kind, FailureKind::Error);
}

#[test]
fn a_held_job_can_be_cancelled() {
    let (mut cluster, job) = failed_elsewhere();
    cluster.handle(Event::JobsCancelled { jobs: vec![job] });
    assert_eq!(cluster.state(job), JobState::Cancelled);
}

#[test]
fn a_program_that_nobody_else_can_start_ends_no_job_that_a_lost_worker_runs() {
    let (mut cluster, job) = away_for(LOST_AFTER);
    let second = cluster.worker(2, 1);
    cluster.handle(Event::BundleRefusedByWorker {
        peer: second,
        bundle: BundleRef::Shipped(DIGEST),
        reason: "not I".into(),
        attempts: vec![attempt(job, 2)],
    });
    assert_eq!(cluster.state(job), JobState::Queued);
    let held =
        Held { attempt: attempt(job, 1), running: Some(Duration::from_secs(30)), pid: 42, ended: false };
    let (first, _) = cluster.rejoin(1, 1, vec![held]);
    cluster.finished(first, attempt(job, 1));
    assert_eq!(cluster.state(job), JobState::Finished);
}

#[test]
fn a_goodbye_requeues_what_is_left() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let leaving = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new(), &[1]);
    let other = cluster.worker(2, 1);
    let gone = cluster.handle(Event::SaidGoodbye { peer: leaving });
    assert_eq!(gone.starts(), [(other, attempt(job, 2))]);
    assert_eq!(cluster.engine.connected_workers(), 1);
}

#[test]
fn a_cancelled_job_ends_when_its_worker_is_lost() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new(), &[1]);
    cluster.began(worker, attempt(job, 1));
    cluster.handle(Event::Disconnected { peer: worker });
    cluster.cancel(application, job);
    assert_eq!(cluster.state(job), JobState::Running);
    cluster.pass(LOST_AFTER);
    assert_eq!(cluster.state(job), JobState::Cancelled);
}

#[test]
fn the_brake_holds_when_many_fall_silent_together_and_then_lets_one_go_at_a_time() {
    let mut cluster = Cluster::new();
    for worker in 0..10 {
        cluster.worker(worker, 1);
    }
    let braked = cluster.pass(LOST_AFTER);
    assert!(braked.0.contains(&Action::Note(Note::BrakeEngaged { silent: 10, known: 10 })));
    cluster.pass(Duration::from_mins(5) - Duration::from_millis(1));
    assert_eq!(cluster.engine.connected_workers(), 10);
    cluster.pass(Duration::from_millis(1));
    assert_eq!(cluster.engine.connected_workers(), 9);
    cluster.pass(HEARTBEAT);
    assert_eq!(cluster.engine.connected_workers(), 8);
}

#[test]
fn leases_of_nanoseconds_keep_nothing_busy() {
    let mut cluster = Cluster::new();
    let lost_after = Duration::from_nanos(3);
    cluster.engine = crate::engine::Engine::new(crate::engine::Settings { lost_after, ..settings(1) });
    for worker in 0..10 {
        cluster.worker(worker, 1);
    }
    // The brake holds; it looks again and again.
    cluster.pass(Duration::from_millis(20));
    assert!(cluster.engine.next_deadline(true).unwrap() > cluster.now);
}

#[test]
fn a_few_silent_workers_are_given_up_as_usual() {
    let mut cluster = Cluster::new();
    let peers: Vec<_> = (0..10).map(|worker| cluster.worker(worker, 1)).collect();
    for _ in 0..4 {
        cluster.pass(HEARTBEAT);
        for &peer in &peers[3..] {
            cluster.heartbeat(peer);
        }
    }
    assert_eq!(cluster.engine.connected_workers(), 7);
}

#[test]
fn a_scheduler_that_was_stopped_gives_its_workers_time_to_be_heard() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let gone = cluster.worker(2, 1);
    cluster.submit(application, 1, JobOptions::new(), &[1]);
    cluster.began(worker, attempt(session.job(1), 1));
    cluster.now = cluster.now + 10 * LOST_AFTER;
    let woken = cluster.handle(Event::Tick { may_forget: true });
    assert!(woken.0.iter().any(|action| matches!(action, Action::Note(Note::WasAbsent { .. }))));
    // Its connection may have ended meanwhile, which isn't read at once either.
    cluster.handle(Event::Disconnected { peer: worker });
    cluster.pass(LOST_AFTER - Duration::from_millis(1));
    assert_eq!(cluster.state(session.job(1)), JobState::Running);
    assert_eq!(cluster.pass(Duration::from_millis(1)).disconnects(gone), Some(&Reason::LeaseExpired));
    assert_eq!(cluster.state(session.job(1)), JobState::Queued);
}

#[test]
fn an_attempt_that_failed_while_it_was_cut_off_ends_no_copy_of_it() {
    let (mut cluster, second, job) = cut_off();
    let held = Held { attempt: attempt(job, 1), running: None, pid: 0, ended: true };
    let (first, back) = cluster.rejoin(1, 1, vec![held]);
    assert!(!back.stops(second, attempt(job, 2)));
    let ended = cluster.ended(first, attempt(job, 1), failed(FailureKind::Error));
    assert!(ended.says(first, &Message::Confirm { attempts: vec![attempt(job, 1)] }));
    assert!(ended.results().is_empty() && ended.starts().is_empty());
    assert_eq!(cluster.state(job), JobState::Running);
    assert_eq!(cluster.finished(second, attempt(job, 2)).results()[0].1.failure, None);
}

#[test]
fn a_result_that_was_ready_while_its_worker_was_cut_off_counts() {
    let (mut cluster, second, job) = cut_off();
    let held = Held { attempt: attempt(job, 1), running: None, pid: 0, ended: true };
    let (first, _) = cluster.rejoin(1, 1, vec![held]);
    let ended = cluster.finished(first, attempt(job, 1));
    assert_eq!(ended.results()[0].1.worker, Some(WorkerId(1)));
    assert!(ended.stops(second, attempt(job, 2)));
}

#[test]
fn a_job_that_runs_at_a_worker_cut_off_for_days_goes_on_when_it_is_back() {
    let (mut cluster, job) = away_for(3 * ORPHAN_GRACE);
    let running = Some(3 * ORPHAN_GRACE);
    let held = Held { attempt: attempt(job, 1), running, pid: 42, ended: false };
    let (worker, back) = cluster.rejoin(1, 1, vec![held]);
    assert!(back.starts().is_empty());
    cluster.finished(worker, attempt(job, 1));
    assert_eq!(cluster.state(job), JobState::Finished);
}

#[test]
fn a_worker_is_lost_with_two_open_attempts_of_a_cancelled_job() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let job = session.job(1);
    let first = cluster.worker(1, 2);
    cluster.submit(application, 1, JobOptions::new(), &[1]);
    cluster.began(first, attempt(job, 1));
    cluster.pass(LOST_AFTER);
    let other = cluster.worker(2, 1);
    cluster.began(other, attempt(job, 2));
    // It says that its attempt has ended, and never how.
    let ended = |number| Held { ended: true, ..held(job, number) };
    cluster.rejoin(1, 2, vec![ended(1)]);
    let returned = cluster.handle(Event::Returned { peer: other, attempts: vec![attempt(job, 2)] });
    assert_eq!(returned.starts().len(), 1);
    cluster.handle(Event::SaidGoodbye { peer: other });
    cluster.pass(LOST_AFTER);
    cluster.rejoin(1, 2, vec![held(job, 1), ended(3)]);
    assert_eq!(cluster.engine.attempts_at(WorkerId(1)), Some(2));
    cluster.cancel(application, job);
    cluster.pass(LOST_AFTER);
    assert_eq!(cluster.state(job), JobState::Cancelled);
    assert_eq!(cluster.engine.attempts_at(WorkerId(1)), None, "it is forgotten with them");
}
