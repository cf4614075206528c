//! Which state of a job is kept, and which its next attempt gets.

use std::time::Duration;

use lrts_core::ids::JobId;
use lrts_core::spec::JobOptions;
use lrts_core::status::FailureKind;

use super::cluster::{Cluster, LOST_AFTER, attempt, failed, held};
use crate::engine::{Action, AttemptOutcome, Event, Message, Peer};
use crate::record::Record;

fn lost() -> AttemptOutcome {
    AttemptOutcome::Lost { reason: "the host died".into() }
}

/// A worker that runs a job.
fn running() -> (Cluster, Peer, JobId) {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new().retries(9), &[1]);
    cluster.began(worker, attempt(job, 1));
    (cluster, worker, job)
}

/// The same, lost with a checkpoint, while a second worker runs the job with a checkpoint of its own.
fn two_copies() -> (Cluster, Peer, JobId) {
    let (mut cluster, first, job) = running();
    cluster.checkpoint(first, attempt(job, 1));
    cluster.handle(Event::Disconnected { peer: first });
    cluster.pass(LOST_AFTER);
    let second = cluster.worker(2, 1);
    cluster.began(second, attempt(job, 2));
    cluster.checkpoint(second, attempt(job, 2));
    (cluster, second, job)
}

fn kept(cluster: &Cluster, job: JobId) -> Vec<u32> {
    let mut kept = cluster.store.image(job).unwrap().checkpoints.clone();
    kept.sort_unstable();
    assert!(cluster.store.checkpoints.keys().map(|(_, attempt)| *attempt).eq(kept.iter().copied()));
    kept
}

#[test]
fn the_next_attempt_begins_with_the_newest() {
    let (mut cluster, worker, job) = running();
    for _ in 0..2 {
        let came = cluster.checkpoint(worker, attempt(job, 1));
        assert_eq!(came.records()[0], &Record::Checkpoint { attempt: attempt(job, 1) });
    }
    let again = cluster.ended(worker, attempt(job, 1), lost());
    assert_eq!(again.start_checkpoints(), [(attempt(job, 2), Some(1))]);
    let position = |wanted: fn(&Action) -> bool| again.0.iter().position(wanted).unwrap();
    let image = position(|action| matches!(action, Action::Persist(Record::Job { .. })));
    let start = position(|action| matches!(action, Action::Send { message: Message::Start { .. }, .. }));
    assert!(image < start, "what the attempt begins with is kept before it begins");
}

#[test]
fn a_failed_attempts_state_is_the_next_ones_beginning_and_goes_when_that_has_left_one() {
    let (mut cluster, worker, job) = running();
    cluster.checkpoint(worker, attempt(job, 1));
    cluster.ended(worker, attempt(job, 1), failed(FailureKind::Error));
    cluster.pass_hearing(Duration::from_secs(2), &[worker]);
    cluster.began(worker, attempt(job, 2));
    assert_eq!(kept(&cluster, job), [1]);
    cluster.checkpoint(worker, attempt(job, 2));
    let again = cluster.ended(worker, attempt(job, 2), lost());
    assert_eq!(again.start_checkpoints(), [(attempt(job, 3), Some(2))]);
    assert_eq!(kept(&cluster, job), [2]);
}

#[test]
fn an_attempt_that_left_none_keeps_that_of_the_one_before() {
    let (mut cluster, worker, job) = running();
    cluster.checkpoint(worker, attempt(job, 1));
    cluster.ended(worker, attempt(job, 1), lost());
    let again = cluster.ended(worker, attempt(job, 2), lost());
    // It never began, so its host may die every time: not at once.
    assert!(again.starts().is_empty());
    let later = cluster.pass_hearing(Duration::from_secs(2), &[worker]);
    assert_eq!(later.start_checkpoints(), [(attempt(job, 3), Some(1))]);
}

#[test]
fn each_open_attempts_state_is_kept() {
    let (cluster, _, job) = two_copies();
    assert_eq!(kept(&cluster, job), [1, 2]);
}

#[test]
fn the_state_of_the_copy_that_stays_is_the_one_that_counts() {
    let (mut cluster, second, job) = two_copies();
    let (first, back) = cluster.rejoin(1, 1, vec![held(job, 1)]);
    assert!(back.stops(second, attempt(job, 2)));
    assert_eq!(kept(&cluster, job), [1]);
    assert!(cluster.checkpoint(second, attempt(job, 2)).0.is_empty(), "nothing of a closed attempt is kept");
    let again = cluster.ended(first, attempt(job, 1), lost());
    assert_eq!(again.start_checkpoints(), [(attempt(job, 3), Some(1))]);
}

#[test]
fn the_state_of_the_copy_that_goes_is_dropped() {
    let (mut cluster, second, job) = two_copies();
    cluster.pass_hearing(LOST_AFTER * 2, &[second]);
    let (first, back) = cluster.rejoin(1, 1, vec![held(job, 1)]);
    assert_eq!(back.closed(first), [attempt(job, 1)]);
    assert_eq!(kept(&cluster, job), [2]);
}

#[test]
fn which_one_is_newest_outlives_the_scheduler() {
    let (mut cluster, second, job) = two_copies();
    // The later attempt fails, the earlier one is still there and goes on.
    cluster.ended(second, attempt(job, 2), failed(FailureKind::Error));
    let (first, _) = cluster.rejoin(1, 1, vec![held(job, 1)]);
    cluster.checkpoint(first, attempt(job, 1));
    cluster.restart();
    let (first, _) = cluster.rejoin(1, 1, vec![held(job, 1)]);
    let again = cluster.ended(first, attempt(job, 1), lost());
    assert_eq!(again.start_checkpoints(), [(attempt(job, 3), Some(1))]);
}

#[test]
fn none_is_kept_of_a_job_that_has_ended() {
    let (mut cluster, worker, job) = running();
    cluster.checkpoint(worker, attempt(job, 1));
    cluster.finished(worker, attempt(job, 1));
    assert!(kept(&cluster, job).is_empty());
    assert!(cluster.checkpoint(worker, attempt(job, 1)).records().is_empty());
}
