//! Beginnings, ends, failures, cancels.

use std::time::Duration;

use lrts_core::spec::JobOptions;
use lrts_core::status::{FailureKind, JobState};

use super::cluster::{Cluster, LOST_AFTER, RUN, attempt, failed};
use crate::engine::{Action, AttemptOutcome, Event, Message};
use crate::record::Record;

#[test]
fn a_job_runs_and_its_result_goes_to_who_waits_for_it() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let job = session.job(1);

    let placed = cluster.submit(application, 1, JobOptions::new(), &[0]);
    assert_eq!(placed.starts(), [(worker, attempt(job, 1))]);
    let opened = placed.0.iter().position(|action| matches!(action, Action::Persist(Record::Job { .. })));
    let sent = placed
        .0
        .iter()
        .position(|action| matches!(action, Action::Send { message: Message::Start { .. }, .. }));
    assert!(opened.unwrap() < sent.unwrap(), "an attempt is durable before it is dispatched");

    cluster.want(application, job);
    cluster.pass(Duration::from_secs(1));
    cluster.began(worker, attempt(job, 1));
    assert_eq!(cluster.state(job), JobState::Running);
    let ended = cluster.finished(worker, attempt(job, 1));
    assert!(ended.says(worker, &Message::Confirm { attempts: vec![attempt(job, 1)] }));
    let [(id, report)] = &ended.results()[..] else { panic!("{ended:?}") };
    assert_eq!((*id, report.attempts, &report.failure), (job, 1, &None));
    assert_eq!((report.queued, report.ran), (Duration::from_secs(1), RUN));
}

#[test]
fn errors_use_up_retries_and_wait_before_each() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new().retries(1), &[1]);
    cluster.want(application, job);
    cluster.began(worker, attempt(job, 1));

    let first = cluster.ended(worker, attempt(job, 1), failed(FailureKind::Error));
    assert!(first.starts().is_empty());
    assert!(cluster.reason(job).contains("why"));
    cluster.heartbeat(worker);
    let again = cluster.pass(Duration::from_millis(1_300));
    assert_eq!(again.starts(), [(worker, attempt(job, 2))]);

    let last = cluster.ended(worker, attempt(job, 2), failed(FailureKind::Panic));
    let (_, report) = &last.results()[0];
    assert_eq!((report.attempts, report.failure.as_ref().unwrap().kind), (2, FailureKind::Panic));
    assert_eq!(cluster.state(job), JobState::Failed);
}

#[test]
fn a_poison_job_is_parked_with_its_reason_and_lost_hosts_are_not_charged() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new().crash_limit(2), &[1]);
    cluster.want(application, job);

    cluster.began(worker, attempt(job, 1));
    let lost = cluster.ended(worker, attempt(job, 1), AttemptOutcome::Lost { reason: "host died".into() });
    assert_eq!(lost.starts(), [(worker, attempt(job, 2))]);
    let stopped = cluster.ended(worker, attempt(job, 2), AttemptOutcome::Stopped);
    assert_eq!(stopped.starts(), [(worker, attempt(job, 3))]);
    cluster.ended(worker, attempt(job, 3), failed(FailureKind::Crashed));
    cluster.pass(Duration::from_secs(2));
    let parked = cluster.ended(worker, attempt(job, 4), failed(FailureKind::OutOfMemory));

    let (_, report) = &parked.results()[0];
    assert_eq!(report.failure.as_ref().unwrap().message, "parked after 2 crashes: why");
    assert_eq!(report.attempts, 3, "three attempts began");
    assert_eq!(cluster.state(job), JobState::Crashed);
}

#[test]
fn a_waiting_job_is_cancelled_at_once_and_a_running_one_when_it_has_ended() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let (running, waiting) = (session.job(1), session.job(2));
    cluster.submit(application, 1, JobOptions::new(), &[1, 1]);
    cluster.began(worker, attempt(running, 1));
    cluster.want(application, running);

    cluster.cancel(application, waiting);
    assert_eq!(cluster.state(waiting), JobState::Cancelled);
    assert!(cluster.cancel(application, running).stops(worker, attempt(running, 1)));
    assert!(cluster.cancel(application, running).0.is_empty(), "a repeat is ignored");
    assert_eq!(cluster.state(running), JobState::Running);

    // The cancel wins over a result that was under way.
    let ended = cluster.finished(worker, attempt(running, 1));
    assert!(ended.records().contains(&&Record::AttemptEnded { attempt: attempt(running, 1), valid: false }));
    assert_eq!(ended.results()[0].1.failure.as_ref().unwrap().kind, FailureKind::Cancelled);
}

#[test]
fn a_bundle_that_every_worker_refuses_fails_its_jobs_with_the_reasons() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let one = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new(), &[1]);
    let two = cluster.worker(2, 1);
    let bundle = lrts_core::spec::BundleRef::Shipped(super::cluster::DIGEST);

    let refused = |peer, number, reason: &str| Event::BundleRefusedByWorker {
        peer,
        bundle: bundle.clone(),
        reason: reason.into(),
        attempts: vec![attempt(job, number)],
    };
    let elsewhere = cluster.handle(refused(one, 1, "one: no"));
    assert_eq!(elsewhere.starts(), [(two, attempt(job, 2))]);
    assert_eq!(cluster.state(job), JobState::Queued);
    // By then no other worker is on its way.
    cluster.pass_hearing(LOST_AFTER, &[one, two]);
    cluster.handle(refused(two, 2, "two: nor I"));
    assert_eq!(cluster.state(job), JobState::Failed);
    let reason = cluster.reason(job);
    assert!(reason.contains("one: no") && reason.contains("two: nor I"), "{reason}");
}

#[test]
fn late_and_repeated_messages_of_a_worker_change_nothing() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new(), &[1]);
    cluster.began(worker, attempt(job, 1));
    assert!(cluster.began(worker, attempt(job, 1)).0.is_empty());
    cluster.finished(worker, attempt(job, 1));

    let repeat = cluster.ended(worker, attempt(job, 1), failed(FailureKind::Error));
    let confirm = Message::Confirm { attempts: vec![attempt(job, 1)] };
    assert_eq!(repeat.said_to(worker), [&confirm]);
    assert!(repeat.records().is_empty());
    cluster.handle(Event::Returned { peer: worker, attempts: vec![attempt(job, 1), attempt(job, 9)] });
    assert_eq!(cluster.state(job), JobState::Finished);
}
