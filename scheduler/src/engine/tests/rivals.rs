//! A worker speaks for its own attempts only: what it says of another's is ignored.

use std::time::Duration;

use lrts_core::ids::{JobId, WorkerId};
use lrts_core::spec::{BundleRef, JobOptions};
use lrts_core::status::{FailureKind, JobState};

use super::cluster::{Cluster, DIGEST, Outcome, attempt, failed, held};
use crate::engine::{AttemptOutcome, Event, Message, Note, Peer};

/// A job that one worker runs and another one, whose slots are taken, doesn't.
fn cluster() -> (Cluster, [Peer; 2], JobId) {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let holder = cluster.worker(1, 1);
    let job = session.job(1);
    let placed = cluster.submit(application, 1, JobOptions::new(), &[1]);
    assert_eq!(placed.starts(), [(holder, attempt(job, 1))]);
    let rival = cluster.worker(2, 1);
    (cluster, [holder, rival], job)
}

/// Nothing came of it but a word to the operator, and perhaps that the rival is to forget what it hasn't got.
fn is_ignored(outcome: &Outcome, rival: Peer, job: JobId) -> bool {
    let note = Note::UnknownAttempt { worker: WorkerId(2), attempt: attempt(job, 1) };
    let confirm = Message::Confirm { attempts: vec![attempt(job, 1)] };
    outcome.notes(&note)
        && outcome.records().is_empty()
        && outcome.said_to(rival).into_iter().all(|message| *message == confirm)
}

#[test]
fn a_beginning_that_another_worker_tells_is_ignored() {
    let (mut cluster, [holder, rival], job) = cluster();
    let told = cluster.began(rival, attempt(job, 1));
    assert!(is_ignored(&told, rival, job), "{told:?}");
    assert_eq!(cluster.state(job), JobState::Queued);
    cluster.began(holder, attempt(job, 1));
    assert_eq!(cluster.state(job), JobState::Running);
}

#[test]
fn an_end_that_another_worker_tells_is_ignored() {
    let (mut cluster, [holder, rival], job) = cluster();
    cluster.began(holder, attempt(job, 1));
    let lost = AttemptOutcome::Lost { reason: "gone".into() };
    for outcome in [AttemptOutcome::Finished, failed(FailureKind::Error), AttemptOutcome::Stopped, lost] {
        let told = cluster.ended(rival, attempt(job, 1), outcome);
        assert!(is_ignored(&told, rival, job), "{told:?}");
        assert_eq!(cluster.state(job), JobState::Running);
    }
    cluster.finished(holder, attempt(job, 1));
    assert_eq!(cluster.state(job), JobState::Finished);
}

#[test]
fn a_checkpoint_that_another_worker_brings_is_ignored() {
    let (mut cluster, [holder, rival], job) = cluster();
    cluster.began(holder, attempt(job, 1));
    let told = cluster.checkpoint(rival, attempt(job, 1));
    assert!(is_ignored(&told, rival, job), "{told:?}");
    let again = cluster.ended(holder, attempt(job, 1), AttemptOutcome::Stopped);
    assert_eq!(again.start_checkpoints(), [(attempt(job, 2), None)]);
}

#[test]
fn what_another_worker_gives_back_or_keeps_is_ignored() {
    let (mut cluster, [holder, rival], job) = cluster();
    let told = cluster.handle(Event::Returned { peer: rival, attempts: vec![attempt(job, 1)] });
    assert!(is_ignored(&told, rival, job) && told.starts().is_empty(), "{told:?}");
    let told = cluster.handle(Event::NotReturned { peer: rival, attempt: attempt(job, 1) });
    assert!(is_ignored(&told, rival, job), "{told:?}");
    let placed = cluster.handle(Event::Returned { peer: holder, attempts: vec![attempt(job, 1)] });
    assert_eq!(placed.starts().len(), 1, "the holder's word counts");
}

#[test]
fn a_bundle_that_another_worker_refuses_takes_no_attempt_away() {
    let (mut cluster, [_, rival], job) = cluster();
    let refused = |bundle| Event::BundleRefusedByWorker {
        peer: rival,
        bundle,
        reason: "no".into(),
        attempts: vec![attempt(job, 1)],
    };
    let told = cluster.handle(refused(BundleRef::Shipped(DIGEST)));
    assert!(is_ignored(&told, rival, job) && told.starts().is_empty(), "{told:?}");
    // One that nobody has named isn't remembered.
    let known = cluster.engine.bundles.len();
    cluster.handle(refused(BundleRef::Installed("unheard of".into())));
    assert_eq!(cluster.engine.bundles.len(), known);
}

#[test]
fn an_inventory_with_another_workers_attempts_changes_nothing() {
    let (mut cluster, [holder, _], job) = cluster();
    cluster.began(holder, attempt(job, 1));
    let (rival, registered) = cluster.rejoin(2, 1, vec![held(job, 1)]);
    assert_eq!(registered.closed(rival), [attempt(job, 1)]);
    assert_eq!(cluster.state(job), JobState::Running);
    cluster.pass_hearing(Duration::from_mins(1), &[holder, rival]);
    cluster.finished(holder, attempt(job, 1));
    assert_eq!(cluster.state(job), JobState::Finished);
}
