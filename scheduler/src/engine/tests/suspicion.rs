//! Deaths of processes: the job's fault, the program's, or the machine's.

use std::time::Duration;

use lrts_core::ids::{JobId, WorkerId};
use lrts_core::spec::JobOptions;
use lrts_core::status::{FailureKind, JobState, WorkerState};

use super::cluster::{Cluster, attempt, failed};
use crate::engine::{AttemptOutcome, Event, Note, Peer};

/// Five jobs that run on one worker, and a sixth on another one. A death is their last.
fn two_machines() -> (Cluster, Peer, Peer, Vec<JobId>) {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let bad = cluster.worker(1, 5);
    let jobs: Vec<JobId> = (1..=6).map(|sequence| session.job(sequence)).collect();
    cluster.submit(application, 1, JobOptions::new().crash_limit(1), &[1; 6]);
    let good = cluster.worker(2, 1);
    for &job in &jobs[..5] {
        cluster.began(bad, attempt(job, 1));
    }
    cluster.began(good, attempt(jobs[5], 1));
    (cluster, bad, good, jobs)
}

fn is_draining(cluster: &Cluster, worker: u64) -> bool {
    let listings = cluster.engine.worker_listings(cluster.now);
    listings
        .iter()
        .any(|worker_| worker_.worker == WorkerId(worker) && worker_.state == WorkerState::Draining)
}

/// A process dies after it has run for this long.
fn dies(
    cluster: &mut Cluster,
    worker: Peer,
    job: JobId,
    number: u32,
    ran: Duration,
) -> super::cluster::Outcome {
    let outcome = failed(FailureKind::Crashed);
    cluster.handle(Event::Ended {
        peer: worker,
        attempt: attempt(job, number),
        outcome,
        ran,
        output_bytes: 0,
    })
}

#[test]
fn a_machine_on_which_different_jobs_die_is_drained_and_the_jobs_are_not_charged() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let bad = cluster.worker(1, 5);
    let jobs: Vec<JobId> = (1..=5).map(|sequence| session.job(sequence)).collect();
    cluster.submit(application, 1, JobOptions::new().crash_limit(2), &[1; 5]);
    let good = cluster.worker(2, 5);
    cluster.submit(application, 6, JobOptions::new(), &[1]);
    cluster.began(good, attempt(session.job(6), 1));
    cluster.pass_hearing(Duration::from_secs(3), &[bad, good]);
    for &job in &jobs[..4] {
        dies(&mut cluster, bad, job, 1, Duration::from_secs(1));
        assert_eq!(cluster.store.image(job).unwrap().crashes, 1);
    }
    assert!(!is_draining(&cluster, 1));
    let last = dies(&mut cluster, bad, jobs[4], 1, Duration::from_secs(1));
    assert!(last.0.iter().any(|action| {
        matches!(action, crate::engine::Action::Note(Note::WorkerDrains { worker: WorkerId(1), .. }))
    }));
    assert_eq!(last.starts(), [(good, attempt(jobs[4], 2))], "another one takes it at once");
    assert!(is_draining(&cluster, 1));
    for &job in &jobs {
        assert_eq!(cluster.store.image(job).unwrap().crashes, 0);
    }
}

#[test]
fn a_job_that_was_parked_before_the_machine_was_suspected_stays_so() {
    let (mut cluster, bad, _, jobs) = two_machines();
    cluster.pass(Duration::from_secs(2));
    for &job in &jobs[..5] {
        dies(&mut cluster, bad, job, 1, Duration::from_secs(1));
    }
    assert!(jobs[..4].iter().all(|&job| cluster.state(job) == JobState::Crashed));
    assert_eq!(cluster.state(jobs[4]), JobState::Queued);
    assert!(is_draining(&cluster, 1));
}

#[test]
fn a_poison_job_is_to_blame_itself_however_often_it_dies_at_one_machine() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new().crash_limit(6), &[1]);
    for number in 1..=6 {
        assert_ne!(cluster.state(job), JobState::Crashed);
        cluster.began(worker, attempt(job, number));
        dies(&mut cluster, worker, job, number, Duration::from_secs(1));
        cluster.pass_hearing(Duration::from_secs(60), &[worker]);
    }
    assert_eq!(cluster.state(job), JobState::Crashed);
    assert!(!is_draining(&cluster, 1));
}

#[test]
fn a_program_that_dies_everywhere_is_to_blame_itself() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let workers = [cluster.worker(1, 8), cluster.worker(2, 8)];
    cluster.submit(application, 1, JobOptions::new().crash_limit(1), &[1; 16]);
    for sequence in 1..=16 {
        let id = attempt(session.job(sequence), 1);
        let page = cluster.engine.job_page(0, 100, cluster.now);
        let listing = page.jobs.into_iter().find(|listing| listing.job == id.job).unwrap();
        let worker = workers[listing.worker.unwrap().0 as usize - 1];
        dies(&mut cluster, worker, id.job, 1, Duration::from_secs(1));
        assert_eq!(cluster.state(id.job), JobState::Crashed);
    }
    assert!(!is_draining(&cluster, 1) && !is_draining(&cluster, 2));
}

#[test]
fn something_that_ends_well_between_the_deaths_clears_the_machine() {
    let (mut cluster, bad, _, jobs) = two_machines();
    cluster.pass(Duration::from_secs(2));
    for &job in &jobs[..3] {
        dies(&mut cluster, bad, job, 1, Duration::from_secs(1));
    }
    cluster.finished(bad, attempt(jobs[3], 1));
    dies(&mut cluster, bad, jobs[4], 1, Duration::from_secs(1));
    assert_eq!(cluster.state(jobs[4]), JobState::Crashed);
    assert!(!is_draining(&cluster, 1));
}

#[test]
fn a_program_that_runs_shorter_elsewhere_than_it_took_to_die_proves_nothing() {
    let (mut cluster, bad, good, jobs) = two_machines();
    for &job in &jobs[..5] {
        dies(&mut cluster, bad, job, 1, Duration::from_secs(9));
    }
    assert!(!is_draining(&cluster, 1));
    cluster.ended(good, attempt(jobs[5], 1), AttemptOutcome::Finished);
    assert!(!is_draining(&cluster, 1), "it is looked at when the next one dies");
}
