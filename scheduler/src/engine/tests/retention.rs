//! Which ended jobs are kept where there are too many, or their results too large.

use std::time::Duration;

use lrts_core::ids::{JobId, SessionId};
use lrts_core::spec::JobOptions;
use lrts_core::status::JobState;

use super::cluster::{Cluster, DIGEST, RESULT_BYTES, RETENTION, attempt, platform};
use crate::engine::{AttemptOutcome, Bounds, Event, Message, Note, Peer};

const ANNS: SessionId = SessionId(1);
const EVES: SessionId = SessionId(2);

fn start(cluster: &mut Cluster, user: &str, session: SessionId) -> Peer {
    let (peer, _) = cluster.attach_as(Some(user), user, session.0);
    cluster.handle(Event::BundleCompleted { digest: DIGEST, bytes: 1, platforms: platform().into() });
    peer
}

/// A job that is submitted and brings a result of so many bytes.
fn run(cluster: &mut Cluster, worker: Peer, peer: Peer, job: JobId, output_bytes: u64) -> Vec<Note> {
    cluster.submit(peer, job.sequence, JobOptions::new(), &[1]);
    let (outcome, ran) = (AttemptOutcome::Finished, Duration::from_secs(2));
    let ended = Event::Ended { peer: worker, attempt: attempt(job, 1), outcome, ran, output_bytes };
    let notes = cluster.handle(ended).0.into_iter().filter_map(|action| match action {
        crate::engine::Action::Note(note) => Some(note),
        _ => None,
    });
    notes.filter(|note| !matches!(note, Note::JobEnded { .. })).collect()
}

fn is_known(cluster: &Cluster, job: JobId) -> bool {
    cluster.engine.state(job).is_some()
}

#[test]
fn results_of_one_user_push_out_nobody_elses() {
    let mut cluster = Cluster::new();
    let worker = cluster.worker(1, 1);
    let anns = start(&mut cluster, "ann", ANNS);
    run(&mut cluster, worker, anns, ANNS.job(1), RESULT_BYTES / 4);
    let eves = start(&mut cluster, "eve", EVES);
    let mut told = Vec::new();
    for sequence in 1..20 {
        told.extend(run(&mut cluster, worker, eves, EVES.job(sequence), RESULT_BYTES / 4));
    }
    assert!(is_known(&cluster, ANNS.job(1)));
    let kept: Vec<u64> = (1..20).filter(|&sequence| is_known(&cluster, EVES.job(sequence))).collect();
    assert_eq!(kept, [17, 18, 19]);
    assert_eq!(told, [Note::ResultsDropped { jobs: 1 }], "the others are told of in a while");
    cluster.pass_hearing(Duration::from_secs(10), &[worker]);
    let told = run(&mut cluster, worker, eves, EVES.job(20), RESULT_BYTES / 4);
    assert_eq!(told, [Note::ResultsDropped { jobs: 16 }]);
    // Nor after a restart, and what was over before is forgotten by whoever has most.
    cluster.restart();
    let worker = cluster.worker(1, 1);
    let eves = start(&mut cluster, "eve", EVES);
    run(&mut cluster, worker, eves, EVES.job(21), RESULT_BYTES);
    assert!(
        is_known(&cluster, ANNS.job(1)) && is_known(&cluster, EVES.job(21)),
        "the newest has yet to be told"
    );
    run(&mut cluster, worker, eves, EVES.job(22), 1);
    assert!(is_known(&cluster, ANNS.job(1)) && !is_known(&cluster, EVES.job(21)));
}

#[test]
fn ended_jobs_are_so_many_at_most_and_those_of_whoever_has_most_go_first() {
    let bounds = Bounds { ended_jobs: 10, ..Bounds::default() };
    let mut cluster = Cluster::with_bounds(bounds);
    let worker = cluster.worker(1, 1);
    let anns = start(&mut cluster, "ann", ANNS);
    for sequence in 1..=4 {
        run(&mut cluster, worker, anns, ANNS.job(sequence), 1);
    }
    let eves = start(&mut cluster, "eve", EVES);
    for first in (1..100).step_by(3) {
        cluster.submit(eves, first, JobOptions::new(), &[1; 3]);
        let ranges = vec![(first, first + 2)];
        cluster.handle(Event::CancelAsked { peer: eves, session: EVES, ranges });
        assert!(cluster.engine.jobs.ended.len() <= 10);
    }
    cluster.finished(worker, attempt(EVES.job(1), 1));
    assert!((1..=4).all(|sequence| is_known(&cluster, ANNS.job(sequence))));
    assert!(is_known(&cluster, EVES.job(99)) && !is_known(&cluster, EVES.job(90)));
    cluster.restart();
    assert!((1..=4).all(|sequence| is_known(&cluster, ANNS.job(sequence))));
    assert!(cluster.engine.jobs.ended.len() <= 10);
}

#[test]
fn of_too_many_ended_jobs_those_that_were_taken_go_first_and_are_known_to_be_taken() {
    let mut cluster = Cluster::with_bounds(Bounds { ended_jobs: 4, ..Bounds::default() });
    let worker = cluster.worker(1, 1);
    let anns = start(&mut cluster, "ann", ANNS);
    for sequence in 1..=4 {
        run(&mut cluster, worker, anns, ANNS.job(sequence), 1);
    }
    cluster.handle(Event::Taken { peer: anns, session: ANNS, ranges: vec![(3, 4)] });
    assert_eq!(run(&mut cluster, worker, anns, ANNS.job(5), 1), [], "nobody misses it");
    assert_eq!(run(&mut cluster, worker, anns, ANNS.job(6), 1), []);
    let known: Vec<u64> = (1..=6).filter(|&sequence| is_known(&cluster, ANNS.job(sequence))).collect();
    assert_eq!(known, [1, 2, 5, 6]);
    let taken = Message::Gone { job: ANNS.job(3), taken: true };
    assert!(cluster.want(anns, ANNS.job(3)).says(anns, &taken));
    assert_eq!(run(&mut cluster, worker, anns, ANNS.job(7), 1), [Note::EndedJobsDropped { jobs: 1 }]);
    assert!(!is_known(&cluster, ANNS.job(1)));
}

#[test]
fn a_start_with_more_ended_jobs_than_are_kept_forgets_the_oldest() {
    let mut cluster = Cluster::new();
    let worker = cluster.worker(1, 1);
    let anns = start(&mut cluster, "ann", ANNS);
    for sequence in 1..=9 {
        run(&mut cluster, worker, anns, ANNS.job(sequence), 1);
        cluster.pass_hearing(Duration::from_secs(1), &[worker]);
    }
    cluster.bounds.ended_jobs = 5;
    cluster.restart();
    let known: Vec<u64> = (1..=9).filter(|&sequence| is_known(&cluster, ANNS.job(sequence))).collect();
    assert_eq!(known, [5, 6, 7, 8, 9]);
}

#[test]
fn ended_jobs_of_nobody_belong_to_whoever_owns_their_application_later() {
    let mut cluster = Cluster::new();
    let worker = cluster.worker(1, 1);
    for (name, session) in [("ann", ANNS), ("eve", EVES)] {
        let (peer, session) = cluster.application(name, session.0);
        for sequence in 1..=3 {
            run(&mut cluster, worker, peer, session.job(sequence), RESULT_BYTES / 8);
        }
        cluster.handle(Event::Taken { peer, session, ranges: vec![(1, 1)] });
    }
    let anns = start(&mut cluster, "ann", ANNS);
    run(&mut cluster, worker, anns, ANNS.job(4), RESULT_BYTES / 2);
    run(&mut cluster, worker, anns, ANNS.job(5), RESULT_BYTES / 4);
    assert!(!is_known(&cluster, ANNS.job(2)));
    assert!((1..=3).all(|sequence| is_known(&cluster, EVES.job(sequence))));
}

#[test]
fn of_very_many_jobs_whose_time_has_come_some_are_forgotten_at_a_time() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    for first in (0..3).map(|number| 1_000 * number + 1) {
        cluster.submit(peer, first, JobOptions::new(), &[1; 1_000]);
    }
    cluster.handle(Event::CancelAsked { peer, session, ranges: vec![(1, 3_000)] });
    cluster.pass(Duration::ZERO);
    cluster.now = cluster.now + RETENTION;
    let worker = cluster.worker(1, 1);
    cluster.handle(Event::Tick { may_forget: false });
    assert_eq!(cluster.engine.jobs.ended.len(), 3_000, "at ticks that may");
    assert!(cluster.engine.next_deadline(false).is_none_or(|due| due > cluster.now), "nor is one due for it");
    assert_eq!(cluster.engine.next_deadline(true), Some(cluster.now));
    cluster.handle(Event::Tick { may_forget: true });
    assert_eq!(cluster.engine.jobs.ended.len(), 2_000);
    let submitted = cluster.submit(peer, 3_001, JobOptions::new(), &[1]);
    assert_eq!(submitted.starts(), [(worker, attempt(session.job(3_001), 1))], "it is heard in between");
    cluster.handle(Event::Tick { may_forget: true });
    assert_eq!(cluster.engine.jobs.ended.len(), 1_000);
    assert_eq!(cluster.state(session.job(3_001)), JobState::Queued);
    cluster.pass(Duration::ZERO);
    assert_eq!(cluster.engine.jobs.ended.len(), 0);
}
