//! What applications may keep: beyond it jobs are refused by name, and applications are turned away.

use std::time::Duration;

use lrts_core::ids::{BundleDigest, JobId, SessionId};
use lrts_core::spec::{BundleRef, JobOptions};
use lrts_core::status::{JobState, RefusalCause};

use super::cluster::{Cluster, DIGEST, RETENTION, attach_of, attempt, platform};
use crate::engine::{Attach, Bounds, Event, Message, Peer, Reason, Submit};
use crate::record::NewJob;

fn submit_bytes(
    cluster: &mut Cluster,
    peer: Peer,
    first: u64,
    payload_bytes: u32,
) -> Vec<(u64, RefusalCause)> {
    let jobs = vec![NewJob { service: 1, options: 0, payload_bytes }];
    let submit = Submit { first, options: vec![JobOptions::new()], jobs, keys: Vec::new(), no_room: None };
    cluster.handle(Event::Submitted { peer, submit }).refusals()
}

fn limit(sequence: u64) -> Vec<(u64, RefusalCause)> {
    vec![(sequence, RefusalCause::Limit)]
}

#[test]
fn an_application_has_so_many_unfinished_jobs_at_most() {
    let mut cluster = Cluster::with_bounds(Bounds { jobs: 2, ..Bounds::default() });
    let (peer, session) = cluster.application("a", 1);
    let refused = cluster.submit(peer, 1, JobOptions::new(), &[1, 1, 1]);
    assert_eq!(refused.refusals(), limit(3));
    assert!(refused.says(peer, &Message::Accepted { through: 3 }), "the sequence is used up");
    // Another application isn't concerned, and a restart forgets nothing.
    let (other, _) = cluster.application("b", 2);
    assert_eq!(cluster.submit(other, 1, JobOptions::new(), &[1, 1]).refusals(), []);
    cluster.restart();
    let (peer, _) = cluster.application("a", 1);
    assert_eq!(cluster.submit(peer, 4, JobOptions::new(), &[1]).refusals(), limit(4));
    // An end makes room.
    cluster.cancel(peer, session.job(1));
    assert_eq!(cluster.submit(peer, 5, JobOptions::new(), &[1, 1]).refusals(), limit(6));
    assert_eq!(cluster.engine.refused_jobs().last(), Some(("jobs_limit", 2)));
}

#[test]
fn payloads_of_unfinished_jobs_have_so_many_bytes_at_most() {
    let mut cluster = Cluster::with_bounds(Bounds { payload_bytes: 1_024, ..Bounds::default() });
    let (peer, session) = cluster.application("a", 1);
    assert_eq!(submit_bytes(&mut cluster, peer, 1, 1_025), limit(1));
    assert_eq!(submit_bytes(&mut cluster, peer, 2, 512), []);
    assert_eq!(submit_bytes(&mut cluster, peer, 3, 512), []);
    assert_eq!(submit_bytes(&mut cluster, peer, 4, 1), limit(4));
    assert_eq!(submit_bytes(&mut cluster, peer, 5, 0), []);
    cluster.restart();
    let (peer, _) = cluster.application("a", 1);
    assert_eq!(submit_bytes(&mut cluster, peer, 6, 1), limit(6));
    let worker = cluster.worker(1, 1);
    cluster.began(worker, attempt(session.job(2), 1));
    cluster.finished(worker, attempt(session.job(2), 1));
    assert_eq!(cluster.state(session.job(2)), JobState::Finished);
    assert_eq!(submit_bytes(&mut cluster, peer, 7, 512), []);
    assert_eq!(submit_bytes(&mut cluster, peer, 8, 1), limit(8));
}

#[test]
fn an_application_has_so_many_keys_at_most() {
    let mut cluster = Cluster::with_bounds(Bounds { keys: 2, ..Bounds::default() });
    let (peer, _) = cluster.application("a", 1);
    assert_eq!(cluster.submit_keys(peer, 1, &[("a", 1), ("b", 1), ("c", 1)]).refusals(), limit(3));
    // What is known needs no room.
    assert_eq!(cluster.submit_keys(peer, 4, &[("a", 1), ("b", 1)]).refusals(), []);
    cluster.restart();
    let (peer, _) = cluster.application("a", 1);
    assert_eq!(cluster.submit_keys(peer, 6, &[("c", 1)]).refusals(), limit(6));
}

fn attach(cluster: &mut Cluster, attach: Attach) -> bool {
    let peer = cluster.peer();
    let attached = cluster.handle(Event::Attached { peer, attach });
    let is_full = matches!(attached.disconnects(peer), Some(Reason::Full(_)));
    assert!(!is_full || attached.records().is_empty() && attached.said_to(peer).is_empty());
    assert!(is_full || attached.disconnects(peer).is_none());
    !is_full
}

fn of(name: &str, session: u64) -> Attach {
    attach_of(name, SessionId(session))
}

fn with(name: &str, session: u64, bundle: &str, services: usize) -> Attach {
    Attach {
        bundle: BundleRef::Installed(bundle.into()),
        services: (0..services).map(|number| number.to_string()).collect(),
        ..of(name, session)
    }
}

/// A start that has a job and goes.
fn leave_job(cluster: &mut Cluster, attach: Attach) {
    let peer = cluster.peer();
    let attached = cluster.handle(Event::Attached { peer, attach });
    assert!(attached.disconnects(peer).is_none(), "{attached:?}");
    cluster.submit(peer, 1, JobOptions::new(), &[0]);
    cluster.handle(Event::Disconnected { peer });
}

#[test]
fn a_scheduler_remembers_so_many_applications_starts_services_and_programs() {
    let small = Bounds { applications: 2, bundles: 3, sessions: 2, services: 5, ..Bounds::default() };
    let mut cluster = Cluster::with_bounds(small);
    leave_job(&mut cluster, of("a", 1));
    assert!(!attach(&mut cluster, with("a", 2, "x", 4)), "with two before, that is one service too many");
    leave_job(&mut cluster, with("a", 2, "x", 3));
    assert!(!attach(&mut cluster, of("a", 3)), "the third start");
    assert!(attach(&mut cluster, of("a", 1)), "one that is known");
    leave_job(&mut cluster, with("b", 4, "y", 1));
    assert!(!attach(&mut cluster, of("c", 5)), "the third application");
    assert!(!attach(&mut cluster, with("b", 6, "z", 1)), "the fourth program");
    assert!(attach(&mut cluster, with("b", 6, "x", 1)));
}

#[test]
fn starts_that_nobody_would_miss_make_room_for_others_the_oldest_first() {
    let mut cluster = Cluster::with_bounds(Bounds { sessions: 3, ..Bounds::default() });
    leave_job(&mut cluster, of("a", 1));
    for session in 2..20 {
        cluster.pass(Duration::from_secs(1));
        assert!(attach(&mut cluster, of("a", session)), "those before had no jobs");
    }
    let known = |cluster: &Cluster| {
        let sessions = cluster.engine.session_ids.keys().map(|session| session.0);
        let kept = cluster.store.load(cluster.now).sessions.into_iter().map(|(session, _)| session.0);
        assert!(sessions.clone().eq(kept), "what is forgotten is forgotten for good");
        sessions.collect::<Vec<_>>()
    };
    assert_eq!(known(&cluster), [1, 18, 19], "the one with a job, and the last ones");
    cluster.restart();
    assert_eq!(cluster.state(SessionId(1).job(1)), JobState::Queued);
    assert!(attach(&mut cluster, of("a", 20)));
    assert_eq!(known(&cluster).len(), 3);
}

#[test]
fn what_a_start_has_run_is_known_for_as_long_as_retention_says() {
    let mut cluster = Cluster::with_bounds(Bounds { sessions: 2, ..Bounds::default() });
    let worker = cluster.worker(1, 1);
    let (peer, session) = cluster.application("a", 1);
    cluster.submit(peer, 1, JobOptions::new(), &[0]);
    cluster.finished(worker, attempt(session.job(1), 1));
    cluster.handle(Event::Taken { peer, session, ranges: vec![(1, 1)] });
    cluster.pass_hearing(RETENTION / 2, &[worker]);
    cluster.application("a", 1);
    cluster.pass_hearing(RETENTION / 2, &[worker]);
    // Its job is forgotten, but a program that comes back with it must not run it again.
    assert_eq!(cluster.engine.state(session.job(1)), None);
    assert!(attach(&mut cluster, of("a", 2)));
    leave_job(&mut cluster, of("a", 3));
    assert!(!cluster.engine.session_ids.contains_key(&SessionId(2)), "it had none");
    assert!(!attach(&mut cluster, of("a", 4)));
    let (peer, again) = cluster.attach_as(None, "a", 1);
    assert!(again.says(peer, &Message::Attached { epoch: 1, accepted_through: 1 }));
    let taken = Message::Gone { job: session.job(1), taken: true };
    assert!(cluster.want(peer, session.job(1)).says(peer, &taken));
    // It counts from when it was left, however long it was there.
    cluster.pass_hearing(2 * RETENTION, &[worker]);
    cluster.handle(Event::Disconnected { peer });
    assert!(!attach(&mut cluster, of("a", 4)));
    cluster.attach_as(None, "a", 3);
    cluster.pass_hearing(RETENTION / 2, &[worker]);
    assert!(!attach(&mut cluster, of("a", 4)));
    cluster.pass_hearing(RETENTION / 2, &[worker]);
    assert!(attach(&mut cluster, of("a", 4)));
    assert!(!cluster.engine.session_ids.contains_key(&session));
}

#[test]
fn restarts_of_the_scheduler_keep_nothing_for_longer_than_retention_says() {
    let small = Bounds { applications_per_user: 4, ..Bounds::default() };
    let mut cluster = Cluster::with_bounds(small);
    for session in 1..30 {
        let name = format!("a{session}");
        let (peer, attached) = cluster.attach_as(Some("ann"), &name, session);
        assert!(attached.disconnects(peer).is_none(), "{session}");
        cluster.handle(Event::BundleCompleted { digest: DIGEST, bytes: 1, platforms: platform().into() });
        let worker = cluster.worker(1, 1);
        cluster.submit(peer, 1, JobOptions::new(), &[0]);
        let job = SessionId(session).job(1);
        cluster.finished(worker, attempt(job, 1));
        cluster.handle(Event::Taken { peer, session: SessionId(session), ranges: vec![(1, 1)] });
        cluster.handle(Event::Disconnected { peer });
        cluster.pass(RETENTION / 5);
        cluster.restart();
        cluster.pass(RETENTION / 5);
        // What was accepted lately is known, and isn't run again.
        let (peer, again) = cluster.attach_as(Some("ann"), &name, session);
        assert!(again.says(peer, &Message::Attached { epoch: 2 * session, accepted_through: 1 }));
        assert!(cluster.submit(peer, 1, JobOptions::new(), &[0]).starts().is_empty());
        if session % 2 == 0 {
            cluster.handle(Event::Disconnected { peer });
        }
        cluster.restart();
    }
    // It was left, or the scheduler was started, no longer ago than that.
    cluster.pass(RETENTION - Duration::from_millis(1));
    cluster.restart();
    cluster.pass(RETENTION / 8);
    assert!(cluster.store.is_empty(), "{:?}", cluster.store);
}

#[test]
fn a_start_that_is_superseded_and_would_be_missed_by_nobody_makes_room_for_the_next() {
    let mut cluster = Cluster::with_bounds(Bounds { sessions: 1, services: 2, ..Bounds::default() });
    let (first, _) = cluster.attach_as(None, "a", 1);
    let (second, attached) = cluster.attach_as(None, "a", 2);
    assert!(matches!(attached.disconnects(first), Some(Reason::Superseded)));
    assert!(attached.disconnects(second).is_none());
    let known = cluster.engine.session_ids.keys().collect::<Vec<_>>();
    assert_eq!(known, [&SessionId(2)]);
    // One that has a job isn't sent away for a start that finds no room.
    cluster.submit(second, 1, JobOptions::new(), &[1]);
    let (third, refused) = cluster.attach_as(None, "a", 3);
    assert!(matches!(refused.disconnects(third), Some(Reason::Full(_))));
    assert!(refused.disconnects(second).is_none());
    assert_eq!(cluster.submit(second, 2, JobOptions::new(), &[1]).refusals(), []);
}

#[test]
fn a_start_whose_keys_are_known_is_known() {
    // Of the keys, of the start that brought one, of the last one and of the next.
    let mut cluster = Cluster::with_bounds(Bounds { sessions: 4, ..Bounds::default() });
    let (peer, _) = cluster.application("a", 1);
    cluster.submit_keys(peer, 1, &[("k", 5)]);
    for session in 2..9 {
        let (peer, _) = cluster.application("a", session);
        // It is known already, so it stays with the first.
        assert_eq!(cluster.submit_keys(peer, 1, &[("k", 5)]).refusals(), []);
        if session % 3 == 0 {
            cluster.restart();
        }
    }
    let (peer, _) = cluster.application("a", 9);
    let job = JobId::keyed(Cluster::id_of("a"), "k");
    let worker = cluster.worker(1, 1);
    cluster.want(peer, job);
    assert_eq!(cluster.finished(worker, attempt(job, 1)).results().len(), 1);
}

#[test]
fn an_application_that_nobody_would_miss_makes_room_for_another_one_the_longest_away_first() {
    let mut cluster = Cluster::with_bounds(Bounds { applications: 3, ..Bounds::default() });
    leave_job(&mut cluster, of("with a job", 1));
    for session in 2..20 {
        let (peer, attached) = cluster.attach_as(None, &format!("a{session}"), session);
        assert!(attached.disconnects(peer).is_none());
        cluster.handle(Event::Disconnected { peer });
        cluster.pass(Duration::from_secs(1));
    }
    let names = |cluster: &Cluster| {
        let ids = cluster.engine.application_ids.keys().map(ToString::to_string);
        let kept = cluster.store.load(cluster.now).applications.into_iter().map(|(id, _)| id.to_string());
        assert!(ids.clone().eq(kept), "what is forgotten is forgotten for good");
        ids.collect::<Vec<_>>()
    };
    assert_eq!(names(&cluster), ["a18", "a19", "with a job"]);
    // Those that are there stay.
    cluster.attach_as(None, "a18", 18);
    cluster.attach_as(None, "a19", 19);
    assert!(!attach(&mut cluster, of("b", 20)));
    assert_eq!(cluster.state(SessionId(1).job(1)), JobState::Queued);
}

#[test]
fn a_user_owns_so_many_applications_at_most_and_takes_nobody_elses_place() {
    let small = Bounds { applications: 4, applications_per_user: 2, ..Bounds::default() };
    let mut cluster = Cluster::with_bounds(small);
    let owned =
        |user: &str, name: &str, session| Attach { user: Some(user.parse().unwrap()), ..of(name, session) };
    // From before there were keys.
    leave_job(&mut cluster, of("old", 1));
    leave_job(&mut cluster, owned("eve", "e1", 2));
    leave_job(&mut cluster, owned("eve", "e2", 3));
    for name in ["e3", "old"] {
        assert!(!attach(&mut cluster, owned("eve", name, 4)), "{name}");
    }
    assert!(attach(&mut cluster, owned("eve", "e1", 5)), "her own");
    assert!(attach(&mut cluster, owned("ann", "a1", 6)));
    cluster.restart();
    assert!(!attach(&mut cluster, owned("eve", "e3", 7)));
    // Her own makes room for her, whoever else has been away for longer.
    cluster.handle(Event::ApplicationCancelled { application: Cluster::id_of("e2") });
    cluster.pass(RETENTION / 2);
    let (peer, _) = cluster.attach_as(Some("eve"), "e2", 3);
    cluster.handle(Event::StopAsked { peer });
    cluster.handle(Event::Disconnected { peer });
    assert!(attach(&mut cluster, owned("eve", "e3", 8)));
    let ids = cluster.engine.application_ids.keys().map(ToString::to_string);
    assert_eq!(ids.collect::<Vec<_>>(), ["a1", "e1", "e3", "old"]);
}

#[test]
fn programs_that_no_application_has_any_more_make_room() {
    let mut cluster = Cluster::with_bounds(Bounds { bundles: 2, ..Bounds::default() });
    let worker = cluster.worker(1, 4);
    for session in 2..20 {
        let attach = with(&format!("a{session}"), session, &format!("program-{session}"), 1);
        let (peer, platform) = (cluster.peer(), platform());
        let attached = cluster.handle(Event::Attached { peer, attach });
        assert!(attached.disconnects(peer).is_none());
        cluster.handle(Event::StopAsked { peer });
        cluster.handle(Event::Disconnected { peer });
        // What was only uploaded takes no place.
        cluster.handle(Event::BundleCompleted {
            digest: BundleDigest([session as u8; 32]),
            bytes: 100,
            platforms: platform.into(),
        });
        assert!(cluster.engine.bundles.len() <= 2);
    }
    // A place that is used again has nothing of the one before.
    let (peer, session) = cluster.application("a", 20);
    let refused = Event::BundleRefusedByWorker {
        peer: worker,
        bundle: BundleRef::Shipped(DIGEST),
        reason: "damaged".into(),
        attempts: Vec::new(),
    };
    cluster.handle(refused);
    cluster.handle(Event::StopAsked { peer });
    cluster.handle(Event::Disconnected { peer });
    for other in 21..30 {
        let mut attach = of("b", other);
        attach.bundle = BundleRef::Shipped(BundleDigest([100 + other as u8; 32]));
        let (peer, platform) = (cluster.peer(), platform());
        cluster.handle(Event::Attached { peer, attach });
        let digest = BundleDigest([100 + other as u8; 32]);
        cluster.handle(Event::BundleCompleted { digest, bytes: 100, platforms: platform.into() });
        let started = cluster.submit(peer, 1, JobOptions::new(), &[0]).starts();
        assert_eq!(started, [(worker, attempt(SessionId(other).job(1), 1))]);
        cluster.finished(worker, attempt(SessionId(other).job(1), 1));
        cluster.handle(Event::StopAsked { peer });
        cluster.handle(Event::Disconnected { peer });
    }
    assert_eq!(cluster.engine.state(session.job(1)), None);
}

fn shipped(user: Option<&str>, name: &str, session: u64) -> Attach {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&session.to_le_bytes());
    let user = user.map(|user| user.parse().unwrap());
    Attach { user, bundle: BundleRef::Shipped(BundleDigest(digest)), ..of(name, session) }
}

/// An application with a program of its own offers it, and has a job that waits.
fn needing(cluster: &mut Cluster, user: &str, session: u64) -> (Peer, Result<(), String>) {
    let attach = shipped(Some(user), &format!("{user}{session}"), session);
    let BundleRef::Shipped(digest) = attach.bundle else { panic!("it is shipped") };
    let peer = cluster.peer();
    let attached = cluster.handle(Event::Attached { peer, attach });
    assert!(attached.disconnects(peer).is_none(), "{attached:?}");
    if let Some(reason) = cluster.engine.refuses_offer(peer, digest, 100) {
        return (peer, Err(reason));
    }
    cluster.handle(Event::BundleOffered { peer, digest, bytes: 100, platform: platform() });
    cluster.submit(peer, 1, JobOptions::new(), &[0]);
    (peer, Ok(()))
}

fn came(cluster: &mut Cluster, session: u64) {
    let BundleRef::Shipped(digest) = shipped(None, "a", session).bundle else { panic!("it is shipped") };
    cluster.handle(Event::BundleCompleted { digest, bytes: 100, platforms: platform().into() });
}

#[test]
fn the_programs_that_a_user_needs_leave_room_for_those_of_others() {
    let mut cluster = Cluster::with_bounds(Bounds { bundle_bytes_per_user: 250, ..Bounds::default() });
    let (first, offered) = needing(&mut cluster, "eve", 1);
    assert_eq!(offered, Ok(()));
    came(&mut cluster, 1);
    // Of this one nothing is here yet, but it is announced.
    let (second, offered) = needing(&mut cluster, "eve", 2);
    assert_eq!(offered, Ok(()));
    for peer in [first, second] {
        cluster.handle(Event::Disconnected { peer });
    }
    let refused = |cluster: &mut Cluster, session| {
        let (peer, offered) = needing(cluster, "eve", session);
        let reason = offered.unwrap_err();
        assert!(reason.contains("more than 250 bytes") && reason.contains("--bundle-store"), "{reason}");
        cluster.handle(Event::Disconnected { peer });
    };
    refused(&mut cluster, 3);
    // Another start with one of those, or an application that comes back to one, takes nothing more.
    let mut again = shipped(Some("eve"), "eve-too", 1);
    again.session = SessionId(11);
    come_and_go(&mut cluster, again);
    // Somebody else's go on.
    let (anns, offered) = needing(&mut cluster, "ann", 4);
    assert_eq!(offered, Ok(()));
    came(&mut cluster, 4);
    // One that is here needs no offer.
    let mut attach = shipped(Some("eve"), "eve4", 4);
    attach.session = SessionId(14);
    let peer = cluster.peer();
    let attached = cluster.handle(Event::Attached { peer, attach: attach.clone() });
    assert!(
        matches!(attached.disconnects(peer), Some(Reason::Full(what)) if what.contains("--bundle-store"))
    );
    cluster.handle(Event::Disconnected { peer: anns });

    cluster.restart();
    came(&mut cluster, 1);
    came(&mut cluster, 2);
    refused(&mut cluster, 5);
    let application = "eve2".parse().unwrap();
    cluster.handle(Event::ApplicationCancelled { application });
    assert_eq!(needing(&mut cluster, "eve", 6).1, Ok(()));
}

#[test]
fn what_a_user_has_announced_counts_when_one_more_application_of_hers_needs_it() {
    let mut cluster = Cluster::with_bounds(Bounds { bundle_bytes_per_user: 150, ..Bounds::default() });
    // From before there were keys, with the same program.
    let nobodys = Attach { session: SessionId(11), ..shipped(None, "old", 1) };
    leave_job(&mut cluster, nobodys.clone());
    assert_eq!(needing(&mut cluster, "eve", 1).1, Ok(()));
    assert!(attach(&mut cluster, Attach { user: Some("eve".parse().unwrap()), ..nobodys }));
    assert!(needing(&mut cluster, "eve", 2).1.is_err());
}

#[test]
fn a_start_comes_back_for_results_although_its_user_needs_all_that_she_may_meanwhile() {
    let mut cluster = Cluster::with_bounds(Bounds { bundle_bytes_per_user: 150, ..Bounds::default() });
    let worker = cluster.worker(1, 1);
    let (peer, offered) = needing(&mut cluster, "ann", 1);
    assert_eq!(offered, Ok(()));
    came(&mut cluster, 1);
    let job = SessionId(1).job(1);
    cluster.finished(worker, attempt(job, 1));
    cluster.handle(Event::Disconnected { peer });
    let (second, offered) = needing(&mut cluster, "ann", 2);
    assert_eq!(offered, Ok(()));
    came(&mut cluster, 2);
    cluster.finished(worker, attempt(SessionId(2).job(1), 1));

    let again = Attach { session: SessionId(11), ..shipped(Some("ann"), "ann1", 1) };
    assert!(!attach(&mut cluster, again), "another start has nothing to come back for");
    let peer = cluster.peer();
    cluster.handle(Event::Attached { peer, attach: shipped(Some("ann"), "ann1", 1) });
    assert_eq!(cluster.want(peer, job).results().len(), 1);
    cluster.handle(Event::Taken { peer, session: SessionId(1), ranges: vec![(1, 1)] });
    cluster.handle(Event::Disconnected { peer });
    cluster.pass_hearing(RETENTION, &[worker, second]);
    assert!(!attach(&mut cluster, shipped(Some("ann"), "ann1", 1)), "nor has it, once its job is forgotten");
}

/// A start that has no job and goes.
fn come_and_go(cluster: &mut Cluster, attach: Attach) {
    let peer = cluster.peer();
    let attached = cluster.handle(Event::Attached { peer, attach });
    assert!(attached.disconnects(peer).is_none(), "{attached:?}");
    cluster.handle(Event::Disconnected { peer });
    cluster.pass(Duration::from_millis(1));
}

#[test]
fn starts_with_ever_other_programs_leave_room_for_programs_of_others() {
    let small = Bounds { bundles: 6, bundles_per_user: 4, ..Bounds::default() };
    for user in [None, Some("eve")] {
        let mut cluster = Cluster::with_bounds(small.clone());
        leave_job(&mut cluster, shipped(Some("ann"), "a", 1));
        leave_job(&mut cluster, shipped(user, "e", 2));
        for session in 3..40 {
            come_and_go(&mut cluster, shipped(user, &format!("e{}", session % 5), session));
            assert!(cluster.engine.bundles.len() <= small.bundles);
        }
        assert_eq!(cluster.state(SessionId(1).job(1)), JobState::Queued);
        assert_eq!(cluster.state(SessionId(2).job(1)), JobState::Queued);
        cluster.restart();
        assert!(attach(&mut cluster, shipped(Some("ann"), "a", 50)));
        assert!(attach(&mut cluster, shipped(Some("bob"), "b", 51)));
    }
}

#[test]
fn a_user_has_so_many_programs_at_most_whatever_they_are_needed_for() {
    let small = Bounds { bundles: 6, bundles_per_user: 3, ..Bounds::default() };
    let mut cluster = Cluster::with_bounds(small);
    for session in 1..4 {
        leave_job(&mut cluster, shipped(Some("eve"), &format!("e{session}"), session));
    }
    for name in ["e1", "e4"] {
        assert!(!attach(&mut cluster, shipped(Some("eve"), name, 4)), "{name}");
    }
    let known = Attach { bundle: shipped(None, "e3", 3).bundle, ..shipped(Some("eve"), "e4", 5) };
    assert!(attach(&mut cluster, known), "one that she has");
    for session in 6..9 {
        leave_job(&mut cluster, shipped(Some("ann"), "a", session));
    }
    assert!(!attach(&mut cluster, shipped(Some("bob"), "b", 9)), "they need all that there is room for");
    let known = Attach { bundle: shipped(None, "a", 6).bundle, ..shipped(Some("bob"), "b", 10) };
    assert!(attach(&mut cluster, known));
    // Two users have this one; that it takes no room of all makes none for eve.
    let anns = Attach { bundle: shipped(None, "a", 6).bundle, ..shipped(Some("eve"), "e4", 11) };
    assert!(!attach(&mut cluster, anns.clone()));
    cluster.restart();
    let peer = cluster.peer();
    let refused = cluster.handle(Event::Attached { peer, attach: anns.clone() });
    assert!(matches!(refused.disconnects(peer), Some(Reason::Full(_))));
    assert!(!cluster.engine.session_ids.contains_key(&SessionId(5)), "that was tried");
    let peer = cluster.peer();
    cluster.handle(Event::Attached { peer, attach: shipped(Some("eve"), "e2", 2) });
    cluster.handle(Event::StopAsked { peer });
    cluster.handle(Event::Disconnected { peer });
    assert!(attach(&mut cluster, anns));
    assert!(attach(&mut cluster, shipped(Some("bob"), "b", 13)));
}
