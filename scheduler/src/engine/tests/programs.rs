//! Programs that are on their way, and some that never come: an upload that fails concerns nobody but whose it was.

use std::time::Duration;

use lrts_core::ids::{BundleDigest, JobId, SessionId, WorkerId};
use lrts_core::spec::{BundleRef, JobOptions, Platform};
use lrts_core::status::{FailureKind, JobState};

use super::cluster::{
    Cluster, DIGEST, LOST_AFTER, Outcome, attach_of, attempt, held, platform, registration,
};
use crate::engine::{Action, Event, Message, Note, Peer, Platforms, Registration};

fn offered(cluster: &mut Cluster, peer: Peer) -> Outcome {
    cluster.handle(Event::BundleOffered { peer, digest: DIGEST, bytes: 100, platform: platform() })
}

fn failed(cluster: &mut Cluster, peer: Peer) -> Outcome {
    cluster.handle(Event::BundleFailed { peer, digest: DIGEST, reason: "too large".into() })
}

fn completed(cluster: &mut Cluster) -> Outcome {
    cluster.handle(Event::BundleCompleted { digest: DIGEST, bytes: 100, platforms: platform().into() })
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
    attach.bundle = BundleRef::Shipped(BundleDigest([8; 32]));
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
    // Who isn't attached with it isn't heard at all.
    let offers = |peer| cluster.engine.refuses_offer(peer, DIGEST, 5).is_none();
    assert_eq!([stranger, worker, peer].map(offers), [false, false, true]);
    assert!(cluster.engine.refuses_offer(peer, BundleDigest([1; 32]), 5).is_some());
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

fn sparc() -> Platform {
    Platform { target: "sparc64-linux-gnu".into(), glibc: None }
}

/// Eve has the same program, sends it first, and says that it was built for another machine.
fn misled(cluster: &mut Cluster) -> Peer {
    let (eves, _) = cluster.attach_as(Some("eve"), "e", 9);
    cluster.handle(Event::BundleOffered { peer: eves, digest: DIGEST, bytes: 100, platform: sparc() });
    cluster.handle(Event::BundleCompleted { digest: DIGEST, bytes: 100, platforms: sparc().into() });
    eves
}

#[test]
fn a_wrong_word_about_a_program_keeps_nobody_elses_jobs_from_their_workers() {
    let mut cluster = Cluster::new();
    cluster.worker(1, 2);
    let (anns, job) = waiting(&mut cluster, "ann", "a", 1);
    offered(&mut cluster, anns);
    misled(&mut cluster);
    assert_eq!(cluster.engine.attempts_at(WorkerId(1)), Some(1));
    assert_eq!(cluster.state(job), JobState::Queued, "it is on its way");
}

#[test]
fn a_wrong_word_is_put_right_by_whoever_comes_later() {
    let mut cluster = Cluster::new();
    let worker = cluster.worker(1, 2);
    let eves = misled(&mut cluster);
    cluster.submit(eves, 1, JobOptions::new(), &[1]);
    cluster.pass_hearing(LOST_AFTER, &[worker]);
    let eves_job = SessionId(9).job(1);
    assert_eq!(cluster.state(eves_job), JobState::Failed);
    assert!(cluster.reason(eves_job).contains("built for sparc64-linux-gnu"));
    let (anns, _) = cluster.attach_as(Some("ann"), "a", 1);
    completed(&mut cluster);
    assert_eq!(cluster.submit(anns, 1, JobOptions::new(), &[1]).starts().len(), 1);
}

/// A worker that is no machine for the program.
fn wrong_worker(cluster: &mut Cluster, worker: u64) -> Peer {
    let peer = cluster.peer();
    let registration = Registration { platform: sparc(), ..registration(WorkerId(worker), 1) };
    cluster.handle(Event::Registered { peer, registration, held: Vec::new() });
    peer
}

#[test]
fn a_lost_worker_that_can_start_a_program_may_be_back_after_one_that_cannot() {
    let mut cluster = Cluster::new();
    let (anns, session) = cluster.application("a", 1);
    let right = cluster.worker(1, 1);
    cluster.submit(anns, 1, JobOptions::new(), &[1, 1]);
    cluster.began(right, attempt(session.job(1), 1));
    cluster.handle(Event::Disconnected { peer: right });
    cluster.pass(2 * LOST_AFTER);
    let wrong = wrong_worker(&mut cluster, 2);
    cluster.pass_hearing(2 * LOST_AFTER, &[wrong]);
    assert_eq!(cluster.state(session.job(2)), JobState::Queued);
    let (right, back) = cluster.rejoin(1, 2, vec![held(session.job(1), 1)]);
    assert_eq!(back.starts(), [(right, attempt(session.job(2), 1))]);
}

#[test]
fn after_a_time_without_workers_the_first_does_not_decide_what_none_can_start() {
    for (restart, comes) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut cluster = Cluster::new();
        // It has nothing to do, so nothing is remembered of it.
        cluster.worker(1, 1);
        let (anns, session) = cluster.application("a", 1);
        if restart {
            cluster.restart();
        } else {
            cluster.pass(2 * LOST_AFTER);
        }
        let wrong = wrong_worker(&mut cluster, 2);
        let anns = if restart { cluster.application("a", 1).0 } else { anns };
        let tried = cluster.submit(anns, 1, JobOptions::new(), &[1]).starts();
        // What a program was built for isn't known any more after a restart: it has to try.
        assert_eq!(tried.len(), usize::from(restart));
        for (peer, attempt) in tried {
            cluster.handle(Event::BundleRefusedByWorker {
                peer,
                bundle: BundleRef::Shipped(DIGEST),
                reason: "of another machine".into(),
                attempts: vec![attempt],
            });
        }
        cluster.pass_hearing(LOST_AFTER - Duration::from_millis(1), &[wrong]);
        assert_eq!(cluster.state(session.job(1)), JobState::Queued);
        if comes {
            let (right, joined) = cluster.rejoin(1, 1, Vec::new());
            assert!(matches!(joined.starts()[..], [(peer, _)] if peer == right), "{joined:?}");
        } else {
            cluster.pass_hearing(Duration::from_millis(1), &[wrong]);
            assert_eq!(cluster.state(session.job(1)), JobState::Failed, "nobody else has come");
            cluster.submit(anns, 2, JobOptions::new(), &[1]);
            assert_eq!(cluster.state(session.job(2)), JobState::Failed);
        }
    }
}

/// Nothing is decided for a lease less a moment. Then a worker comes that can start the program, or the last moment passes.
fn decided_after_a_lease(cluster: &mut Cluster, wrong: Peer, jobs: &[JobId], comes: bool) {
    let states = |cluster: &Cluster| jobs.iter().map(|&job| cluster.state(job)).collect::<Vec<JobState>>();
    cluster.pass_hearing(LOST_AFTER - Duration::from_millis(1), &[wrong]);
    assert_eq!(states(cluster), vec![JobState::Queued; jobs.len()]);
    if comes {
        let (right, joined) = cluster.rejoin(1, 4, Vec::new());
        let started: Vec<(Peer, JobId)> =
            joined.starts().into_iter().map(|(peer, attempt)| (peer, attempt.job)).collect();
        assert_eq!(started, jobs.iter().map(|&job| (right, job)).collect::<Vec<_>>());
    } else {
        cluster.pass_hearing(Duration::from_millis(1), &[wrong]);
        assert_eq!(states(cluster), vec![JobState::Failed; jobs.len()], "nobody else has come");
    }
}

#[test]
fn after_the_last_workers_have_left_in_order_the_first_does_not_decide_what_none_can_start() {
    for comes in [true, false] {
        let mut cluster = Cluster::new();
        let right = cluster.worker(1, 4);
        let (anns, session) = cluster.application("a", 1);
        cluster.submit(anns, 1, JobOptions::new(), &[1]);
        cluster.pass_hearing(2 * LOST_AFTER, &[right]);
        cluster.handle(Event::SaidGoodbye { peer: right });
        // However long nobody is there.
        cluster.pass(2 * LOST_AFTER);
        let wrong = wrong_worker(&mut cluster, 2);
        decided_after_a_lease(&mut cluster, wrong, &[session.job(1)], comes);
    }
}

#[test]
fn the_first_worker_of_all_does_not_decide_what_none_can_start() {
    for comes in [true, false] {
        let mut cluster = Cluster::new();
        let (anns, session) = cluster.application("a", 1);
        cluster.submit(anns, 1, JobOptions::new(), &[1]);
        cluster.pass(2 * LOST_AFTER);
        let wrong = wrong_worker(&mut cluster, 2);
        decided_after_a_lease(&mut cluster, wrong, &[session.job(1)], comes);
    }
}

#[test]
fn who_starts_an_application_where_workers_are_already_is_told_at_once_what_none_can_start() {
    let mut cluster = Cluster::new();
    wrong_worker(&mut cluster, 2);
    let (anns, session) = cluster.application("a", 1);
    cluster.submit(anns, 1, JobOptions::new(), &[1]);
    assert_eq!(cluster.state(session.job(1)), JobState::Failed);
}

#[test]
fn whoever_stays_does_not_decide_at_once_what_a_worker_that_left_in_order_could_start() {
    for comes in [true, false] {
        let mut cluster = Cluster::new();
        let wrong = wrong_worker(&mut cluster, 2);
        let right = cluster.worker(1, 1);
        let (anns, session) = cluster.application("a", 1);
        // The second waits for a slot.
        cluster.submit(anns, 1, JobOptions::new(), &[1, 1]);
        cluster.began(right, attempt(session.job(1), 1));
        cluster.pass_hearing(2 * LOST_AFTER, &[wrong, right]);
        cluster.handle(Event::SaidGoodbye { peer: right });
        // What comes later is no worse off.
        cluster.submit(anns, 3, JobOptions::new(), &[1]);
        decided_after_a_lease(&mut cluster, wrong, &[1, 2, 3].map(|number| session.job(number)), comes);
    }
}

#[test]
fn a_worker_that_was_never_asked_for_a_program_counts_too_when_it_leaves_in_order() {
    for comes in [true, false] {
        let mut cluster = Cluster::new();
        let (anns, session) = cluster.application("a", 1);
        let wrong = wrong_worker(&mut cluster, 2);
        let right = cluster.worker(1, 4);
        cluster.pass_hearing(2 * LOST_AFTER, &[wrong, right]);
        cluster.handle(Event::SaidGoodbye { peer: right });
        cluster.submit(anns, 1, JobOptions::new(), &[1]);
        decided_after_a_lease(&mut cluster, wrong, &[session.job(1)], comes);
    }
}

#[test]
fn who_leaves_in_order_holds_up_no_judgement_of_a_program_that_it_could_not_start() {
    let mut cluster = Cluster::new();
    let (anns, session) = cluster.application("a", 1);
    let wrong = [2, 3].map(|worker| wrong_worker(&mut cluster, worker));
    cluster.pass_hearing(2 * LOST_AFTER, &wrong);
    cluster.handle(Event::SaidGoodbye { peer: wrong[1] });
    cluster.submit(anns, 1, JobOptions::new(), &[1]);
    assert_eq!(cluster.state(session.job(1)), JobState::Failed);
}

#[test]
fn a_further_word_changes_nothing_for_a_worker_that_has_tried_and_a_refusal_is_told_once() {
    let mut cluster = Cluster::new();
    let worker = cluster.worker(1, 2);
    let (anns, session) = cluster.application("a", 1);
    let right = cluster.worker(2, 1);
    cluster.submit(anns, 1, JobOptions::new(), &[1]);
    let refusal = |attempts| Event::BundleRefusedByWorker {
        peer: worker,
        bundle: BundleRef::Shipped(DIGEST),
        reason: "damaged".into(),
        attempts,
    };
    let refused = cluster.handle(refusal(vec![attempt(session.job(1), 1)]));
    let note = Note::WorkerRefusedBundle { worker: WorkerId(1), reason: "damaged".into() };
    assert!(refused.notes(&note));
    assert_eq!(refused.starts(), [(right, attempt(session.job(1), 2))]);
    cluster.began(right, attempt(session.job(1), 2));
    assert!(!cluster.handle(refusal(Vec::new())).notes(&note), "no news");
    cluster.handle(Event::BundleOffered { peer: anns, digest: DIGEST, bytes: 1, platform: sparc() });
    cluster.finished(right, attempt(session.job(1), 2));
    let next = cluster.submit(anns, 2, JobOptions::new(), &[1, 1]).starts();
    assert_eq!(next, [(right, attempt(session.job(2), 1))]);
}

#[test]
fn a_wrong_word_after_a_restart_rules_out_no_worker() {
    let mut cluster = Cluster::new();
    let (_, job) = waiting(&mut cluster, "ann", "a", 1);
    // What she said of it goes with the scheduler, and since her job is known there she doesn't say it again.
    let settings = super::cluster::settings(1);
    cluster.engine = crate::engine::Engine::restore(settings, cluster.store.load(cluster.now), cluster.now);
    cluster.engine.take_restored();
    cluster.attach_as(Some("ann"), "a", 1);
    cluster.worker(1, 2);
    misled(&mut cluster);
    assert_eq!(cluster.engine.attempts_at(WorkerId(1)), Some(1), "{}", cluster.reason(job));
    // Nor is one ruled out by what is said where a program was found from the start.
    let here = Event::BundleCompleted { digest: DIGEST, bytes: 100, platforms: Platforms::Any };
    let mut cluster = Cluster::new();
    cluster.worker(1, 2);
    let (anns, _) = cluster.attach_as(Some("ann"), "a", 1);
    cluster.handle(here);
    misled(&mut cluster);
    assert_eq!(cluster.submit(anns, 1, JobOptions::new(), &[1]).starts().len(), 1);
}

#[test]
fn who_refuses_a_program_again_and_again_is_told_of_once() {
    let mut cluster = Cluster::new();
    let worker = cluster.worker(1, 1);
    cluster.application("a", 1);
    let mut notes = 0;
    for reason in ["damaged", "damaged", "too old"] {
        let refused = Event::BundleRefusedByWorker {
            peer: worker,
            bundle: BundleRef::Shipped(DIGEST),
            reason: reason.into(),
            attempts: Vec::new(),
        };
        let told = cluster.handle(refused).0.into_iter();
        notes +=
            told.filter(|action| matches!(action, Action::Note(Note::WorkerRefusedBundle { .. }))).count();
    }
    assert_eq!(notes, 1);
}

#[test]
fn a_further_word_opens_queues_that_no_worker_could_serve() {
    let mut cluster = Cluster::new();
    cluster.worker(1, 1);
    let peer = cluster.peer();
    let registration = Registration { platform: sparc(), ..registration(WorkerId(2), 4) };
    cluster.handle(Event::Registered { peer, registration, held: Vec::new() });
    let (anns, session) = cluster.application("a", 1);
    let submitted = cluster.submit(anns, 1, JobOptions::new().slots(2), &[1]);
    assert!(submitted.starts().is_empty() && cluster.reason(session.job(1)).contains("needs 2 slots"));
    let told =
        cluster.handle(Event::BundleOffered { peer: anns, digest: DIGEST, bytes: 100, platform: sparc() });
    assert_eq!(told.starts(), [(peer, attempt(session.job(1), 1))]);
}

#[test]
fn an_offer_that_fails_again_costs_nothing_for_jobs_that_have_ended() {
    let mut cluster = Cluster::new();
    let (peer, _) = waiting(&mut cluster, "ann", "a", 1);
    for priority in 2..50 {
        cluster.submit(peer, priority, JobOptions::new().priority(priority as i32), &[1]);
    }
    assert_eq!(failed(&mut cluster, peer).records().len(), 50, "of each job, and that the start is decided");
    offered(&mut cluster, peer);
    let bundle = cluster.engine.bundles.find(&BundleRef::Shipped(DIGEST)).unwrap();
    assert!(cluster.engine.bundles[bundle].queues.is_empty(), "what is looked at");
    assert!(failed(&mut cluster, peer).0.is_empty());
}

#[test]
fn a_job_that_waits_for_its_next_attempt_fails_for_want_of_its_program_when_that_is_due() {
    let mut cluster = Cluster::new();
    let worker = cluster.worker(1, 1);
    let (peer, session) = cluster.application("a", 1);
    let job = session.job(1);
    cluster.submit(peer, 1, JobOptions::new().retries(3), &[1]);
    cluster.began(worker, attempt(job, 1));
    cluster.ended(worker, attempt(job, 1), super::cluster::failed(FailureKind::Error));
    // It was deleted from the disk by somebody.
    cluster.handle(Event::BundleForgotten { digest: DIGEST });
    failed(&mut cluster, peer);
    cluster.pass(lrts_core::limits::RETRY_BACKOFF_MAX);
    assert_eq!((cluster.state(job), cluster.reason(job)), (JobState::Failed, "too large".to_owned()));
}

#[test]
fn another_start_without_waiting_jobs_hears_that_its_submits_were_taken_when_it_is_back() {
    let mut cluster = Cluster::new();
    let (old, job) = waiting(&mut cluster, "ann", "a", 1);
    cluster.cancel(old, job);
    cluster.handle(Event::Disconnected { peer: old });
    let (new, _) = cluster.attach_as(Some("ann"), "a", 2);
    failed(&mut cluster, new);
    let (old, attached) = cluster.attach_as(Some("ann"), "a", 1);
    assert!(attached.says(old, &Message::Attached { epoch: 1, accepted_through: 1 }));
}

#[test]
fn a_program_that_all_workers_refuse_fails_all_jobs_that_wait_for_it_at_once() {
    let mut cluster = Cluster::new();
    let worker = cluster.worker(1, 1);
    let (peer, session) = cluster.application("a", 1);
    let (others, _) = cluster.application("b", 2);
    cluster.submit(peer, 1, JobOptions::new(), &[1]);
    for priority in 2..50 {
        cluster.submit(peer, priority, JobOptions::new().priority(-(priority as i32)), &[1]);
    }
    // No worker there has room for it, so nothing but the program's being hopeless ends it.
    cluster.submit(others, 1, JobOptions::new().slots(2), &[1]);
    let refused = Event::BundleRefusedByWorker {
        peer: worker,
        bundle: BundleRef::Shipped(DIGEST),
        reason: "damaged".into(),
        attempts: vec![attempt(session.job(1), 1)],
    };
    cluster.pass_hearing(LOST_AFTER, &[worker]);
    cluster.handle(refused);
    let jobs = (1..50).map(|sequence| session.job(sequence)).chain([SessionId(2).job(1)]);
    for job in jobs {
        assert_eq!(cluster.state(job), JobState::Failed);
        assert!(cluster.reason(job).contains("damaged"));
    }
}
