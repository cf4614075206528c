//! Programs that are on their way, and some that never come: an upload that fails concerns nobody but whose it was.

use lrts_core::ids::{BundleDigest, JobId, SessionId};
use lrts_core::spec::JobOptions;
use lrts_core::status::{FailureKind, JobState};

use super::cluster::{Cluster, DIGEST, Outcome, attach_of, attempt, platform};
use crate::engine::{Event, Message, Peer};

fn offered(cluster: &mut Cluster, peer: Peer) -> Outcome {
    cluster.handle(Event::BundleOffered { peer, digest: DIGEST })
}

fn failed(cluster: &mut Cluster, peer: Peer) -> Outcome {
    cluster.handle(Event::BundleFailed { peer, digest: DIGEST, reason: "too large".into() })
}

fn completed(cluster: &mut Cluster) -> Outcome {
    cluster.handle(Event::BundleCompleted { digest: DIGEST, platform: platform() })
}

/// A user's application whose program isn't here, with a job.
fn waiting(cluster: &mut Cluster, user: &str, name: &str, session: u64) -> (Peer, JobId) {
    let (peer, _) = cluster.attach_as(Some(user), name, session);
    cluster.submit(peer, 1, JobOptions::new(), &[1]);
    (peer, SessionId(session).job(1))
}

#[test]
fn a_program_that_cannot_be_had_fails_its_jobs() {
    let mut cluster = Cluster::new();
    let (peer, job) = waiting(&mut cluster, "ann", "a", 1);
    cluster.submit_keys(peer, 2, &[("k", 5)]);
    let keyed = JobId::keyed(Cluster::id_of("a"), "k");
    cluster.want(peer, job);
    let failed = failed(&mut cluster, peer);
    assert_eq!(failed.results()[0].1.failure.as_ref().unwrap().kind, FailureKind::Bundle);
    assert!(failed.says(peer, &Message::Accepted { through: 2 }));
    assert_eq!([job, keyed].map(|job| cluster.state(job)), [JobState::Failed; 2]);
    // What comes later has no better chance.
    let later = cluster.submit(peer, 3, JobOptions::new(), &[1]);
    assert!(later.says(peer, &Message::Accepted { through: 3 }));
    cluster.submit_keys(peer, 4, &[("l", 5)]);
    let keyed = JobId::keyed(Cluster::id_of("a"), "l");
    assert_eq!([SessionId(1).job(3), keyed].map(|job| cluster.state(job)), [JobState::Failed; 2]);
    assert_eq!(cluster.reason(keyed), "too large");
}

#[test]
fn a_failed_upload_leaves_other_applications_with_the_same_program_alone() {
    let mut cluster = Cluster::new();
    let (anns, job) = waiting(&mut cluster, "ann", "a", 1);
    let (bobs, bobs_job) = waiting(&mut cluster, "bob", "b", 2);
    let failed = failed(&mut cluster, bobs);
    assert_eq!(failed.said_to(anns), Vec::<&Message>::new());
    assert_eq!((cluster.state(job), cluster.state(bobs_job)), (JobState::Queued, JobState::Failed));
    let later = cluster.submit(anns, 2, JobOptions::new(), &[1]);
    assert!(!later.says(anns, &Message::Accepted { through: 2 }), "it still waits");
    assert!(cluster.reason(job).contains("to be uploaded"));

    let worker = cluster.worker(1, 3);
    let completed = completed(&mut cluster);
    assert!(completed.says(anns, &Message::Accepted { through: 2 }));
    assert_eq!(completed.starts().len(), 2);
    // Bob has no part in that, but what he submits now has a program.
    let started = cluster.submit(bobs, 2, JobOptions::new(), &[1]).starts();
    assert_eq!(started, [(worker, attempt(SessionId(2).job(2), 1))]);
}

#[test]
fn another_start_of_the_application_with_the_same_program_fails_too_and_one_with_another_does_not() {
    let mut cluster = Cluster::new();
    let (old, job) = waiting(&mut cluster, "ann", "a", 1);
    cluster.handle(Event::Disconnected { peer: old });
    let other = cluster.peer();
    let mut attach = attach_of("a", SessionId(2));
    attach.bundle = lrts_core::spec::BundleRef::Shipped(BundleDigest([8; 32]));
    cluster.handle(Event::Attached { peer: other, attach });
    cluster.submit(other, 1, JobOptions::new(), &[1]);
    let other_job = SessionId(2).job(1);
    assert!(failed(&mut cluster, other).0.is_empty(), "that isn't what it is attached with");
    cluster.handle(Event::Disconnected { peer: other });

    let (new, new_job) = waiting(&mut cluster, "ann", "a", 3);
    failed(&mut cluster, new);
    assert_eq!([job, new_job].map(|job| cluster.state(job)), [JobState::Failed; 2]);
    assert_eq!(cluster.state(other_job), JobState::Queued);
    cluster.handle(Event::Disconnected { peer: new });
    let (old, attached) = cluster.attach_as(Some("ann"), "a", 1);
    assert!(attached.says(old, &Message::Attached { epoch: 1, accepted_through: 1 }));
}

#[test]
fn whoever_comes_back_with_the_right_program_is_heard() {
    let mut cluster = Cluster::new();
    let worker = cluster.worker(1, 2);
    let (peer, _) = waiting(&mut cluster, "ann", "a", 1);
    failed(&mut cluster, peer);
    cluster.handle(Event::Disconnected { peer });
    let (peer, _) = cluster.attach_as(Some("ann"), "a", 1);
    offered(&mut cluster, peer);
    let submitted = cluster.submit(peer, 2, JobOptions::new(), &[1]);
    assert!(!submitted.says(peer, &Message::Accepted { through: 2 }), "it may yet come");
    assert_eq!(cluster.state(SessionId(1).job(2)), JobState::Queued);
    let completed = completed(&mut cluster);
    assert!(completed.says(peer, &Message::Accepted { through: 2 }));
    assert_eq!(completed.starts(), [(worker, attempt(SessionId(1).job(2), 1))]);
}

#[test]
fn a_strangers_offer_changes_nothing() {
    let mut cluster = Cluster::new();
    let (peer, job) = waiting(&mut cluster, "ann", "a", 1);
    cluster.pass(lrts_core::limits::TOTALS_INTERVAL);
    let stranger = cluster.peer();
    let worker = cluster.worker(1, 1);
    for other in [stranger, worker] {
        assert!(failed(&mut cluster, other).0.is_empty());
        assert!(offered(&mut cluster, other).0.is_empty());
    }
    assert_eq!(cluster.state(job), JobState::Queued);
    failed(&mut cluster, peer);
    offered(&mut cluster, stranger);
    cluster.submit(peer, 2, JobOptions::new(), &[1]);
    assert_eq!(cluster.state(SessionId(1).job(2)), JobState::Failed, "it is its own offer that counts");
}

#[test]
fn jobs_that_failed_for_want_of_a_program_have_failed_after_a_restart_too() {
    let mut cluster = Cluster::new();
    let (peer, job) = waiting(&mut cluster, "ann", "a", 1);
    failed(&mut cluster, peer);
    cluster.restart();
    assert_eq!(cluster.state(job), JobState::Failed);
    let (peer, attached) = cluster.attach_as(Some("ann"), "a", 1);
    assert!(attached.says(peer, &Message::Attached { epoch: 2, accepted_through: 1 }));
}
