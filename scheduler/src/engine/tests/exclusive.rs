//! Jobs that never run twice at once.

use std::time::Duration;

use lrts_core::ids::{JobId, SessionId};
use lrts_core::spec::JobOptions;
use lrts_core::status::JobState;

use super::cluster::{Cluster, HEARTBEAT, LOST_AFTER, attempt, held};
use crate::engine::{Event, Message, Peer};

const SHORTLY: Duration = Duration::from_millis(1);

/// A worker whose connection has ended while it ran an exclusive job, and another one that could take it.
fn cut_off() -> (Cluster, Peer, Peer, JobId) {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let first = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new().exclusive(), &[1]);
    cluster.want(application, job);
    cluster.began(first, attempt(job, 1));
    let second = cluster.worker(2, 1);
    cluster.handle(Event::Disconnected { peer: first });
    (cluster, application, second, job)
}

#[test]
fn it_is_placed_again_only_after_the_lease_and_one_interval() {
    let (mut cluster, _, second, job) = cut_off();
    let lease = cluster.pass_hearing(LOST_AFTER + HEARTBEAT - SHORTLY, &[second]);
    assert!(lease.starts().is_empty());
    assert!(cluster.store.image(job).unwrap().open.is_empty(), "the attempt is closed with the lease");
    assert_eq!(cluster.pass(SHORTLY).starts(), [(second, attempt(job, 2))]);
}

#[test]
fn no_result_of_the_closed_attempt_counts() {
    let (mut cluster, _, second, job) = cut_off();
    cluster.pass_hearing(LOST_AFTER, &[second]);
    let (first, back) = cluster.rejoin(1, 1, vec![held(job, 1)]);
    assert_eq!(back.closed(first), [attempt(job, 1)]);
    let stale = cluster.finished(first, attempt(job, 1));
    assert!(stale.records().is_empty() && stale.results().is_empty());
    assert!(stale.says(first, &Message::Confirm { attempts: vec![attempt(job, 1)] }));
    assert_eq!(cluster.state(job), JobState::Queued);
}

#[test]
fn one_that_comes_back_within_the_lease_goes_on() {
    let (mut cluster, _, second, job) = cut_off();
    cluster.pass_hearing(LOST_AFTER - SHORTLY, &[second]);
    let (first, back) = cluster.rejoin(1, 1, vec![held(job, 1)]);
    assert!(back.closed(first).is_empty());
    cluster.finished(first, attempt(job, 1));
    assert_eq!(cluster.state(job), JobState::Finished);
}

#[test]
fn a_restart_of_the_scheduler_gives_it_a_whole_lease_more() {
    let (mut cluster, _, second, job) = cut_off();
    cluster.pass_hearing(LOST_AFTER / 2, &[second]);
    cluster.restart();
    let second = cluster.worker(2, 1);
    let lease = cluster.pass_hearing(LOST_AFTER + HEARTBEAT - SHORTLY, &[second]);
    assert!(lease.starts().is_empty());
    assert_eq!(cluster.pass(SHORTLY).starts(), [(second, attempt(job, 2))]);
}

#[test]
fn a_restart_after_its_attempt_was_closed_does_not_shorten_the_wait() {
    let (mut cluster, _, second, job) = cut_off();
    cluster.pass_hearing(LOST_AFTER, &[second]);
    cluster.restart();
    let second = cluster.worker(2, 1);
    assert!(cluster.pass_hearing(HEARTBEAT - SHORTLY, &[second]).starts().is_empty());
    let later = cluster.pass_hearing(LOST_AFTER + HEARTBEAT, &[second]);
    assert_eq!(later.starts(), [(second, attempt(job, 2))]);
}

#[test]
fn an_inventory_that_lacks_it_does_not_end_its_lease_nor_does_a_restart_thereafter() {
    for restart in [false, true] {
        let (mut cluster, _, second, job) = cut_off();
        let (first, back) = cluster.rejoin(1, 1, Vec::new());
        assert!(back.starts().is_empty());
        let (first, second) = if restart {
            cluster.restart();
            (cluster.worker(1, 1), cluster.worker(2, 1))
        } else {
            (first, second)
        };
        let lease = cluster.pass_hearing(LOST_AFTER + HEARTBEAT - SHORTLY, &[first, second]);
        assert!(lease.starts().is_empty(), "its process may be there under a host that doesn't answer");
        assert_eq!(cluster.pass(SHORTLY).starts()[0].1, attempt(job, 2));
    }
}

#[test]
fn the_brake_holds_it_too() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let silent = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(application, 1, JobOptions::new().exclusive(), &[1]);
    cluster.began(silent, attempt(job, 1));
    let others: Vec<Peer> = (2..=10).map(|worker| cluster.worker(worker, 1)).collect();
    cluster.pass_hearing(2 * LOST_AFTER, &others[..3]);
    assert_eq!(cluster.state(job), JobState::Running, "nobody is given up while many are silent");
    assert_eq!(cluster.store.image(job).unwrap().open.len(), 1);
}

#[test]
fn a_cancelled_one_ends_with_its_lease() {
    let (mut cluster, application, second, job) = cut_off();
    cluster.cancel(application, job);
    let ended = cluster.pass_hearing(LOST_AFTER, &[second]);
    assert_eq!(ended.results().len(), 1);
    assert_eq!(cluster.state(job), JobState::Cancelled);
}

#[test]
fn its_worker_gives_it_back_without_a_wait() {
    let mut cluster = Cluster::new();
    let (application, session) = cluster.application("a", 1);
    let first = cluster.worker(1, 1);
    let job = SessionId(1).job(1);
    assert_eq!(session, job.session);
    cluster.submit(application, 1, JobOptions::new().exclusive(), &[1]);
    let second = cluster.worker(2, 1);
    let gone = cluster.handle(Event::SaidGoodbye { peer: first });
    assert_eq!(gone.starts(), [(second, attempt(job, 2))]);
}
