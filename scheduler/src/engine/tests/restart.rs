//! An engine that is made of what an earlier one had kept.

use std::time::Duration;

use lrts_core::ids::{JobId, SessionId};
use lrts_core::limits::RETRY_BACKOFF_MIN;
use lrts_core::spec::JobOptions;
use lrts_core::status::{FailureKind, JobState};

use super::cluster::{
    Cluster, DIGEST, LOST_AFTER, RESULT_BYTES, RETENTION, attach_of, attempt, failed, held, platform,
};
use crate::engine::{AttemptOutcome, Credit, Event, Message, Note, Peer, Totals};
use crate::record::Record;

const SHORTLY: Duration = Duration::from_millis(1);

/// A worker with one slot, and jobs that were submitted with these options.
fn cluster_with(jobs: usize, options: JobOptions) -> (Cluster, Peer, SessionId, Peer) {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    cluster.submit(application, 1, options, &vec![1; jobs]);
    (cluster, application, session, worker)
}

fn finish_with(cluster: &mut Cluster, worker: Peer, job: JobId, output_bytes: u64) {
    let (ran, outcome) = (Duration::from_secs(2), AttemptOutcome::Finished);
    cluster.handle(Event::Ended { peer: worker, attempt: attempt(job, 1), outcome, ran, output_bytes });
}

#[test]
fn jobs_that_wait_go_at_once_in_their_order() {
    let (mut cluster, _, session, _) = cluster_with(3, JobOptions::new());
    cluster.restart();
    let (worker, _) = cluster.rejoin(2, 1, Vec::new());
    assert_eq!(cluster.state(session.job(1)), JobState::Queued, "it may be running at the first worker");
    cluster.finished(worker, attempt(session.job(2), 1));
    cluster.finished(worker, attempt(session.job(3), 1));
    assert_eq!(cluster.state(session.job(3)), JobState::Finished);
}

#[test]
fn a_job_that_runs_goes_on_when_its_worker_is_back() {
    let (mut cluster, _, session, worker) = cluster_with(1, JobOptions::new());
    let job = session.job(1);
    cluster.began(worker, attempt(job, 1));
    cluster.restart();
    assert_eq!(cluster.state(job), JobState::Running);
    cluster.pass(LOST_AFTER - SHORTLY);
    let (worker, back) = cluster.rejoin(1, 1, vec![held(job, 1)]);
    assert!(back.starts().is_empty() && back.closed(worker).is_empty());
    let (application, _) = cluster.application("a", 1);
    cluster.want(application, job);
    let results = cluster.finished(worker, attempt(job, 1)).results();
    assert_eq!(results[0].1.attempts, 1);
}

#[test]
fn an_attempt_that_its_workers_inventory_lacks_is_placed_again_at_once() {
    let (mut cluster, _, session, _) = cluster_with(1, JobOptions::new().crash_limit(1));
    cluster.restart();
    assert_eq!(cluster.state(session.job(1)), JobState::Queued);
    let (worker, back) = cluster.rejoin(1, 1, Vec::new());
    assert_eq!(back.starts(), [(worker, attempt(session.job(1), 2))], "numbers are never used again");
}

#[test]
fn a_worker_that_stays_away_after_a_restart_is_lost_after_a_lease() {
    let (mut cluster, _, session, worker) = cluster_with(1, JobOptions::new());
    cluster.began(worker, attempt(session.job(1), 1));
    cluster.restart();
    let other = cluster.worker(2, 1);
    assert!(cluster.pass_hearing(LOST_AFTER - SHORTLY, &[other]).starts().is_empty());
    assert_eq!(cluster.pass(SHORTLY).starts(), [(other, attempt(session.job(1), 2))]);
}

#[test]
fn a_job_that_was_placed_and_not_heard_of_begins_where_it_was_sent() {
    let (mut cluster, _, session, _) = cluster_with(1, JobOptions::new());
    cluster.restart();
    let waiting =
        crate::engine::Held { attempt: attempt(session.job(1), 1), running: None, pid: 0, ended: false };
    let (worker, back) = cluster.rejoin(1, 1, vec![waiting]);
    assert!(back.starts().is_empty());
    cluster.began(worker, attempt(session.job(1), 1));
    assert_eq!(cluster.state(session.job(1)), JobState::Running);
}

#[test]
fn charges_are_remembered_and_a_failed_job_waits_a_little() {
    let (mut cluster, application, session, worker) = cluster_with(1, JobOptions::new().crash_limit(2));
    let job = session.job(1);
    cluster.ended(worker, attempt(job, 1), failed(FailureKind::Crashed));
    cluster.handle(Event::Disconnected { peer: application });
    cluster.restart();
    assert!(cluster.reason(job).contains("why"));
    let worker = cluster.worker(1, 1);
    assert!(cluster.pass(RETRY_BACKOFF_MIN - SHORTLY).starts().is_empty());
    assert_eq!(cluster.pass(SHORTLY).starts(), [(worker, attempt(job, 2))]);
    cluster.ended(worker, attempt(job, 2), failed(FailureKind::Crashed));
    assert_eq!(cluster.state(job), JobState::Crashed);
}

/// A job that has failed for good while an attempt of it is open at a lost worker.
fn held_job() -> (Cluster, JobId) {
    let (mut cluster, _, session, first) = cluster_with(1, JobOptions::new());
    let job = session.job(1);
    cluster.began(first, attempt(job, 1));
    cluster.handle(Event::Disconnected { peer: first });
    cluster.pass(LOST_AFTER);
    let second = cluster.worker(2, 1);
    cluster.ended(second, attempt(job, 2), failed(FailureKind::Error));
    cluster.restart();
    assert_eq!(cluster.state(job), JobState::Queued);
    (cluster, job)
}

#[test]
fn a_held_job_still_takes_the_result_of_the_lost_worker() {
    let (mut cluster, job) = held_job();
    let (first, _) = cluster.rejoin(1, 1, vec![held(job, 1)]);
    assert_eq!(cluster.state(job), JobState::Running);
    cluster.finished(first, attempt(job, 1));
    assert_eq!(cluster.state(job), JobState::Finished);
}

#[test]
fn a_held_job_ends_as_it_failed_once_the_lost_worker_has_nothing() {
    let (mut cluster, job) = held_job();
    let (application, _) = cluster.application("a", 1);
    cluster.want(application, job);
    let (_, back) = cluster.rejoin(1, 1, Vec::new());
    let [(_, report)] = &back.results()[..] else { panic!("{back:?}") };
    assert_eq!(report.failure.as_ref().unwrap().kind, FailureKind::Error);
    assert_eq!((report.attempt, report.worker), (2, Some(lrts_core::ids::WorkerId(2))));
}

#[test]
fn two_copies_are_known_after_a_restart() {
    let (mut cluster, _, session, first) = cluster_with(1, JobOptions::new());
    let job = session.job(1);
    cluster.began(first, attempt(job, 1));
    cluster.handle(Event::Disconnected { peer: first });
    cluster.pass(LOST_AFTER);
    let second = cluster.worker(2, 1);
    cluster.began(second, attempt(job, 2));
    cluster.restart();
    let mut younger = held(job, 2);
    younger.running = Some(Duration::from_secs(1));
    let (second, _) = cluster.rejoin(2, 1, vec![younger]);
    let (first, back) = cluster.rejoin(1, 1, vec![held(job, 1)]);
    assert!(back.stops(second, attempt(job, 2)));
    cluster.finished(first, attempt(job, 1));
    assert_eq!(cluster.state(job), JobState::Finished);
}

#[test]
fn a_cancel_outlives_the_scheduler() {
    let (mut cluster, application, session, worker) = cluster_with(1, JobOptions::new());
    let job = session.job(1);
    cluster.began(worker, attempt(job, 1));
    cluster.cancel(application, job);
    cluster.restart();
    let (worker, back) = cluster.rejoin(1, 1, vec![held(job, 1)]);
    assert!(back.stops(worker, attempt(job, 1)), "the order is given again");
    cluster.ended(worker, attempt(job, 1), AttemptOutcome::Stopped);
    assert_eq!(cluster.state(job), JobState::Cancelled);
}

#[test]
fn a_result_waits_until_it_is_taken_and_is_then_gone_for_good() {
    let (mut cluster, _, session, worker) = cluster_with(1, JobOptions::new());
    let job = session.job(1);
    cluster.finished(worker, attempt(job, 1));
    for _ in 0..2 {
        cluster.restart();
        let (application, _) = cluster.application("a", 1);
        assert_eq!(cluster.want(application, job).results().len(), 1, "it was not taken");
    }
    let (application, _) = cluster.application("a", 1);
    cluster.handle(Event::Taken { peer: application, session, ranges: vec![(1, 1)] });
    assert!(cluster.store.results.is_empty());
    let gone = Message::Gone { job, taken: true };
    for _ in 0..2 {
        cluster.restart();
        let (application, _) = cluster.application("a", 1);
        assert!(cluster.want(application, job).says(application, &gone));
        cluster.pass(RETENTION);
    }
}

#[test]
fn a_result_that_was_not_taken_is_had_by_another_start() {
    let (mut cluster, _, session, worker) = cluster_with(1, JobOptions::new());
    cluster.finished(worker, attempt(session.job(1), 1));
    cluster.restart();
    let (other, _) = cluster.application("a", 2);
    assert_eq!(cluster.list(other).len(), 1);
    assert_eq!(cluster.want(other, session.job(1)).results().len(), 1);
}

#[test]
fn a_forgotten_job_stays_forgotten_and_its_sequence_used() {
    let (mut cluster, _, session, worker) = cluster_with(1, JobOptions::new());
    cluster.finished(worker, attempt(session.job(1), 1));
    cluster.pass_hearing(RETENTION, &[worker]);
    assert_eq!(cluster.engine.state(session.job(1)), None);
    cluster.restart();
    let (application, _) = cluster.application("a", 1);
    let repeat = cluster.submit(application, 1, JobOptions::new(), &[1]);
    assert!(repeat.records().is_empty() && repeat.starts().is_empty());
    assert!(
        cluster
            .want(application, session.job(1))
            .says(application, &Message::Gone { job: session.job(1), taken: false })
    );
}

#[test]
fn a_stopped_applications_jobs_are_forgotten_when_they_have_ended() {
    let (mut cluster, application, session, worker) = cluster_with(1, JobOptions::new());
    let job = session.job(1);
    cluster.began(worker, attempt(job, 1));
    cluster.handle(Event::StopAsked { peer: application });
    cluster.restart();
    let (worker, back) = cluster.rejoin(1, 1, vec![held(job, 1)]);
    assert!(back.stops(worker, attempt(job, 1)));
    cluster.ended(worker, attempt(job, 1), AttemptOutcome::Stopped);
    assert_eq!(cluster.engine.state(job), None);
    assert!(cluster.store.is_empty(), "{:?}", cluster.store);
}

#[test]
fn submits_whose_program_is_not_here_are_accepted_when_it_comes() {
    let mut cluster = Cluster::new();
    let session = SessionId(1);
    let peer = cluster.peer();
    cluster.handle(Event::Attached { peer, attach: attach_of("a", session) });
    cluster.submit(peer, 1, JobOptions::new(), &[1]);
    let settings = super::cluster::settings(1);
    cluster.engine = crate::engine::Engine::restore(settings, cluster.store.load(cluster.now), cluster.now);
    cluster.engine.take_restored();
    cluster.engine.check_invariants();
    let peer = cluster.peer();
    let attached = cluster.handle(Event::Attached { peer, attach: attach_of("a", session) });
    assert!(attached.says(peer, &Message::Attached { epoch: 1, accepted_through: 0 }));
    let repeat = cluster.submit(peer, 1, JobOptions::new(), &[1, 1]);
    assert!(!repeat.says(peer, &Message::Accepted { through: 2 }));
    let here =
        cluster.handle(Event::BundleCompleted { digest: DIGEST, bytes: 100, platforms: platform().into() });
    assert!(here.says(peer, &Message::Accepted { through: 2 }));
    cluster.restart();
    let peer = cluster.peer();
    let attached = cluster.handle(Event::Attached { peer, attach: attach_of("a", session) });
    assert!(attached.says(peer, &Message::Attached { epoch: 2, accepted_through: 2 }));
}

#[test]
fn totals_count_what_is_remembered() {
    let (mut cluster, _, session, worker) = cluster_with(3, JobOptions::new());
    cluster.finished(worker, attempt(session.job(1), 1));
    cluster.began(worker, attempt(session.job(2), 1));
    cluster.restart();
    let totals = Totals { queued: 1, running: 1, finished: 1, ..Totals::default() };
    assert_eq!(cluster.engine.application_listings(cluster.now)[0].jobs, totals);
}

#[test]
fn jobs_end_in_the_order_of_their_ends_and_time_goes_on_while_the_scheduler_is_down() {
    let (mut cluster, _, session, worker) = cluster_with(2, JobOptions::new());
    cluster.finished(worker, attempt(session.job(1), 1));
    cluster.pass_hearing(RETENTION / 2, &[worker]);
    cluster.finished(worker, attempt(session.job(2), 1));
    cluster.now = cluster.now + RETENTION / 4;
    cluster.restart();
    cluster.pass(RETENTION / 4);
    assert_eq!(cluster.engine.state(session.job(1)), None);
    assert_eq!(cluster.state(session.job(2)), JobState::Finished);
    cluster.pass(RETENTION / 2);
    assert_eq!(cluster.engine.state(session.job(2)), None);
}

#[test]
fn results_are_bounded_in_bytes_and_the_oldest_go_first() {
    let (mut cluster, _, session, worker) = cluster_with(3, JobOptions::new());
    for sequence in [1, 2] {
        finish_with(&mut cluster, worker, session.job(sequence), RESULT_BYTES / 2);
    }
    assert_eq!(cluster.state(session.job(1)), JobState::Finished);
    cluster.restart();
    let worker = cluster.worker(1, 1);
    let outcome = AttemptOutcome::Finished;
    let third = session.job(3);
    let number = cluster.store.image(third).map_or(1, |image| image.attempts);
    let dropped = cluster.handle(Event::Ended {
        peer: worker,
        attempt: attempt(third, number),
        outcome,
        ran: SHORTLY,
        output_bytes: 1,
    });
    assert!(dropped.notes(&Note::ResultsDropped { jobs: 1 }));
    assert_eq!(cluster.engine.state(session.job(1)), None);
    assert_eq!(cluster.state(session.job(2)), JobState::Finished);
}

#[test]
fn taken_results_take_no_room() {
    let (mut cluster, application, session, worker) = cluster_with(3, JobOptions::new());
    for sequence in 1..=3 {
        finish_with(&mut cluster, worker, session.job(sequence), RESULT_BYTES);
        cluster.handle(Event::Taken { peer: application, session, ranges: vec![(sequence, sequence)] });
    }
    assert_eq!(cluster.state(session.job(1)), JobState::Finished);
}

#[test]
fn one_result_larger_than_all_room_gives_way_to_whatever_ends_next() {
    for cancel in [true, false] {
        let (mut cluster, application, session, worker) = cluster_with(3, JobOptions::new());
        cluster.submit(application, 4, JobOptions::new().priority(1), &[1]);
        finish_with(&mut cluster, worker, session.job(1), 1);
        finish_with(&mut cluster, worker, session.job(4), 2 * RESULT_BYTES);
        assert_eq!(cluster.state(session.job(4)), JobState::Finished);
        if cancel {
            cluster.handle(Event::ApplicationCancelled { application: Cluster::id_of("a") });
        } else {
            cluster.handle(Event::StopAsked { peer: application });
        }
        assert_eq!(cluster.engine.state(session.job(4)), None);
    }
}

#[test]
fn a_restart_writes_nothing_that_was_known() {
    let (mut cluster, _, session, worker) = cluster_with(3, JobOptions::new());
    cluster.finished(worker, attempt(session.job(1), 1));
    cluster.began(worker, attempt(session.job(2), 1));
    let before = cluster.store.clone();
    let restored = cluster.restart();
    assert_eq!(restored.records(), Vec::<&Record>::new());
    assert_eq!(cluster.store.load(cluster.now), before.load(cluster.now));
}

#[test]
fn credit_is_granted_anew() {
    let (mut cluster, _, session, worker) = cluster_with(1, JobOptions::new());
    cluster.finished(worker, attempt(session.job(1), 1));
    cluster.restart();
    let peer = cluster.peer();
    let mut attach = attach_of("a", session);
    attach.credit = Credit::default();
    cluster.handle(Event::Attached { peer, attach });
    let wanted = cluster.handle(Event::Wanted { peer, session, ranges: vec![(1, 1)], urgent: false });
    assert!(wanted.results().is_empty());
    let granted = Event::CreditGranted { peer, credit: Credit { results: 1, bytes: 1 } };
    assert_eq!(cluster.handle(granted).results().len(), 1);
}
