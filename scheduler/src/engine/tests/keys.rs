//! Jobs with a key, and which jobs an application has.

use lrts_core::ids::{JobId, SessionId};
use lrts_core::spec::{JobOptions, OnDisconnect};
use lrts_core::status::{JobState, RefusalCause};

use super::cluster::{Cluster, LOST_AFTER, RETENTION, attach_of, attempt, held, job_of};
use crate::engine::{Event, ListedJobs, Message, Reason, Submit};
use crate::record::{ApplicationImage, Record, Submitted};

fn keyed(key: &str) -> JobId {
    JobId::keyed(Cluster::id_of("a"), key)
}

/// The jobs with a key that a submit made.
fn made(records: &[&Record]) -> Vec<String> {
    let keys = |record: &&Record| match record {
        Record::Submitted(Submitted { keyed, .. }) => keyed.iter().map(|record| record.key.clone()).collect(),
        _ => Vec::new(),
    };
    records.iter().flat_map(keys).collect()
}

#[test]
fn a_repeated_key_is_the_same_job() {
    let mut cluster = Cluster::new();
    let (peer, _) = cluster.application("a", 1);
    let worker = cluster.worker(1, 4);
    let first = cluster.submit_keys(peer, 1, &[("k", 5), ("k", 5)]);
    assert_eq!(first.starts(), [(worker, attempt(keyed("k"), 1))]);
    assert!(first.says(peer, &Message::Accepted { through: 2 }));
    for sequence in 3..103 {
        let repeat = cluster.submit_keys(peer, sequence, &[("k", 5)]);
        assert!(repeat.says(peer, &Message::Accepted { through: sequence }));
        assert!(repeat.starts().is_empty() && made(&repeat.records()).is_empty());
    }
    assert_eq!(cluster.engine.job_counts().map(|(_, count)| count).sum::<u64>(), 1);
}

#[test]
fn a_key_with_another_content_is_a_conflict_and_the_job_goes_on() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    cluster.submit_keys(peer, 1, &[("k", 5)]);
    let conflict = cluster.submit_keys(peer, 2, &[("k", 6), ("other", 6)]);
    assert_eq!(conflict.refusals(), [(2, RefusalCause::KeyConflict)]);
    assert!(conflict.says(peer, &Message::Accepted { through: 3 }));
    assert_eq!(cluster.state(keyed("k")), JobState::Queued);
    assert_eq!(cluster.engine.state(session.job(2)), None);
}

#[test]
fn an_empty_or_long_key_is_refused() {
    let mut cluster = Cluster::new();
    let (peer, _) = cluster.application("a", 1);
    let refused = cluster.submit_keys(peer, 1, &[("", 5), (&"x".repeat(257), 5)]);
    assert_eq!(refused.refusals(), [(1, RefusalCause::Invalid), (2, RefusalCause::Invalid)]);
}

#[test]
fn the_same_key_of_another_start_is_the_same_job_and_of_another_application_another_one() {
    let mut cluster = Cluster::new();
    let (one, _) = cluster.application("a", 1);
    cluster.submit_keys(one, 1, &[("k", 5)]);
    cluster.handle(Event::Disconnected { peer: one });
    let (two, _) = cluster.application("a", 2);
    assert!(made(&cluster.submit_keys(two, 1, &[("k", 5)]).records()).is_empty());
    let worker = cluster.worker(1, 1);
    cluster.want(two, keyed("k"));
    assert_eq!(cluster.finished(worker, attempt(keyed("k"), 1)).results().len(), 1);

    let (other, _) = cluster.application("b", 3);
    assert_eq!(made(&cluster.submit_keys(other, 1, &[("k", 7)]).records()), ["k"]);
}

#[test]
fn a_result_with_a_key_stays_after_it_was_taken() {
    let mut cluster = Cluster::new();
    let (peer, _) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let job = keyed("k");
    cluster.submit_keys(peer, 1, &[("k", 5)]);
    cluster.finished(worker, attempt(job, 1));
    for restart in [false, true] {
        let peer = if restart {
            cluster.restart();
            cluster.application("a", 2).0
        } else {
            peer
        };
        assert_eq!(cluster.want(peer, job).results().len(), 1);
        let taken = Event::Taken { peer, session: job.session, ranges: vec![(job.sequence, job.sequence)] };
        assert!(cluster.handle(taken).records().is_empty());
    }
    cluster.pass(RETENTION);
    assert_eq!(cluster.engine.state(job), None, "retention ends it all the same");
}

#[test]
fn stopping_forgets_keys() {
    let mut cluster = Cluster::new();
    let (peer, _) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    cluster.submit_keys(peer, 1, &[("done", 5), ("running", 5)]);
    cluster.finished(worker, attempt(keyed("done"), 1));
    cluster.handle(Event::StopAsked { peer });
    assert_eq!(cluster.engine.state(keyed("done")), None);

    let (peer, _) = cluster.application("a", 2);
    let too_early = cluster.submit_keys(peer, 1, &[("done", 6)]);
    assert_eq!(too_early.refusals(), [(1, RefusalCause::Invalid)], "one of the others still runs");
    cluster.ended(worker, attempt(keyed("running"), 1), crate::engine::AttemptOutcome::Stopped);
    let anew = cluster.submit_keys(peer, 2, &[("done", 6), ("running", 6)]);
    assert_eq!(made(&anew.records()), ["done", "running"]);
}

#[test]
fn keys_of_a_stopped_start_are_forgotten_after_a_restart_too() {
    let mut cluster = Cluster::new();
    let (peer, _) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    cluster.submit_keys(peer, 1, &[("k", 5)]);
    cluster.began(worker, attempt(keyed("k"), 1));
    cluster.handle(Event::StopAsked { peer });
    // A later start is there, which isn't stopped.
    cluster.application("a", 2);
    cluster.restart();
    let held = super::cluster::held(keyed("k"), 1);
    let (worker, back) = cluster.rejoin(1, 1, vec![held]);
    assert!(back.stops(worker, attempt(keyed("k"), 1)));
    cluster.ended(worker, attempt(keyed("k"), 1), crate::engine::AttemptOutcome::Stopped);
    assert_eq!(cluster.engine.state(keyed("k")), None);
}

#[test]
fn a_key_that_was_forgotten_and_came_again_is_the_new_job_after_a_restart() {
    let mut cluster = Cluster::new();
    // The older start has the higher session id: it is loaded last.
    let (peer, _) = cluster.application("a", 9);
    let worker = cluster.worker(1, 1);
    cluster.submit_keys(peer, 1, &[("k", 5)]);
    cluster.finished(worker, attempt(keyed("k"), 1));
    cluster.pass_hearing(RETENTION, &[worker]);
    assert_eq!(cluster.engine.state(keyed("k")), None);
    let (peer, _) = cluster.application("a", 2);
    cluster.submit_keys(peer, 1, &[("k", 6)]);
    cluster.restart();
    let (peer, _) = cluster.application("a", 2);
    assert_eq!(cluster.submit_keys(peer, 2, &[("k", 5)]).refusals(), [(2, RefusalCause::KeyConflict)]);
    assert!(cluster.submit_keys(peer, 3, &[("k", 6)]).refusals().is_empty());
}

#[test]
fn a_job_with_a_key_outlives_the_start_that_brought_it() {
    let mut cluster = Cluster::new();
    let (peer, _) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    cluster.submit_keys(peer, 1, &[("k", 5)]);
    cluster.began(worker, attempt(keyed("k"), 1));
    cluster.handle(Event::Disconnected { peer });
    cluster.pass_hearing(2 * RETENTION, &[worker]);
    cluster.restart();
    assert_eq!(cluster.state(keyed("k")), JobState::Running);
    let (worker, back) = cluster.rejoin(1, 1, vec![super::cluster::held(keyed("k"), 1)]);
    assert!(back.closed(worker).is_empty());
    cluster.finished(worker, attempt(keyed("k"), 1));
    let (peer, _) = cluster.application("a", 2);
    assert_eq!(cluster.want(peer, keyed("k")).results().len(), 1);
}

#[test]
fn nobody_attaches_to_the_place_of_an_applications_keys() {
    let mut cluster = Cluster::new();
    let peer = cluster.peer();
    let attach = attach_of("a", SessionId::keyed(Cluster::id_of("a")));
    let refused = cluster.handle(Event::Attached { peer, attach });
    assert!(matches!(refused.disconnects(peer), Some(Reason::Protocol(_))));
}

#[test]
fn another_application_cannot_have_what_a_keyed_session_would_be_named() {
    let mut cluster = Cluster::new();
    let thief = cluster.peer();
    let attach = attach_of("b", SessionId::keyed(Cluster::id_of("a")));
    let refused = cluster.handle(Event::Attached { peer: thief, attach });
    assert!(matches!(refused.disconnects(thief), Some(Reason::Protocol(_))));
    let (peer, _) = cluster.application("a", 1);
    assert_eq!(cluster.submit_keys(peer, 1, &[("k", 5)]).refusals(), []);
}

#[test]
fn an_application_lists_its_own_jobs_by_service_and_start_but_not_those_taken() {
    let mut cluster = Cluster::new();
    let (one, first) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    cluster.submit(one, 1, JobOptions::new(), &[1, 1, 0, 1]);
    cluster.finished(worker, attempt(first.job(1), 1));
    cluster.handle(Event::Taken { peer: one, session: first, ranges: vec![(1, 1)] });
    cluster.submit_keys(one, 5, &[("k", 5)]);
    let (two, second) = cluster.application("a", 2);
    cluster.submit(two, 1, JobOptions::new(), &[1]);
    let (other, third) = cluster.application("b", 3);
    cluster.submit(other, 1, JobOptions::new(), &[1]);

    let listed = |service: &str, session, ranges| ListedJobs { service: service.into(), session, ranges };
    let key = keyed("k");
    let mut expected = vec![
        listed("short", first, vec![(3, 3)]),
        listed("long", first, vec![(2, 2), (4, 4)]),
        listed("long", second, vec![(1, 1)]),
        listed("long", key.session, vec![(key.sequence, key.sequence)]),
    ];
    expected.sort_by(|one, other| (&one.service, one.session).cmp(&(&other.service, other.session)));
    assert_eq!(cluster.list(two), expected);

    let mut ask = |job| cluster.handle(Event::ListAsked { peer: two, request: 2, job: Some(job) }).listed();
    assert_eq!(ask(first.job(1)), [listed("long", first, vec![(1, 1)])], "one that is named is listed");
    assert!(ask(third.job(1)).is_empty() && ask(first.job(99)).is_empty());
}

#[test]
fn a_detached_application_keeps_its_jobs_whatever_it_said_before() {
    let mut cluster = Cluster::new();
    let peer = cluster.peer();
    let session = SessionId(1);
    let mut attach = attach_of("a", session);
    attach.on_disconnect = OnDisconnect::CancelAfter(RETENTION / 2);
    cluster.handle(Event::Attached { peer, attach });
    cluster.submit(peer, 1, JobOptions::new(), &[1]);
    let detached = cluster.handle(Event::DetachAsked { peer });
    let kept = detached.records();
    let [Record::Application { image: ApplicationImage { on_disconnect, .. }, .. }] = &kept[..] else {
        panic!("{detached:?}")
    };
    assert_eq!(*on_disconnect, OnDisconnect::Keep);
    assert!(detached.says(peer, &Message::Detached));
    cluster.handle(Event::Disconnected { peer });
    cluster.restart();
    cluster.pass(2 * RETENTION);
    assert_eq!(cluster.state(session.job(1)), JobState::Queued);
}

#[test]
fn what_there_is_no_room_for_is_refused_at_once_and_known_jobs_are_not() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    cluster.submit(peer, 1, JobOptions::new(), &[1]);
    let full = Submit {
        first: 1,
        options: vec![JobOptions::new()],
        jobs: vec![job_of(1), job_of(1)],
        keys: Vec::new(),
        no_room: Some("the disk is full".into()),
    };
    let refused = cluster.handle(Event::Submitted { peer, submit: full });
    assert_eq!(refused.refusals(), [(2, RefusalCause::NoRoom)]);
    let at_once = refused.0.iter().any(|action| {
        matches!(
            action,
            crate::engine::Action::SendAtOnce { message: Message::Refused { reason, .. }, .. } if reason == "the disk is full"
        )
    });
    assert!(at_once, "a commit would wait for room");
    assert_eq!(cluster.state(session.job(1)), JobState::Queued);
    assert!(cluster.submit(peer, 3, JobOptions::new(), &[1]).says(peer, &Message::Accepted { through: 3 }));
    assert_eq!(cluster.state(session.job(3)), JobState::Queued);
}

#[test]
fn a_key_that_comes_again_takes_no_result_of_an_attempt_that_went_astray() {
    let mut cluster = Cluster::new();
    let (peer, _) = cluster.application("a", 1);
    let lost = cluster.worker(1, 1);
    cluster.submit_keys(peer, 1, &[("k", 5)]);
    cluster.began(lost, attempt(keyed("k"), 1));
    cluster.handle(Event::Disconnected { peer: lost });
    cluster.pass(LOST_AFTER);
    cluster.handle(Event::StopAsked { peer });
    cluster.handle(Event::Disconnected { peer });
    let (peer, _) = cluster.application("a", 2);
    cluster.submit_keys(peer, 1, &[("k", 6)]);
    let (worker, back) = cluster.rejoin(1, 1, vec![held(keyed("k"), 1)]);
    assert_eq!(back.starts(), [(worker, attempt(keyed("k"), 2))]);
    cluster.want(peer, keyed("k"));
    assert!(cluster.finished(worker, attempt(keyed("k"), 1)).results().is_empty());
    assert_eq!(cluster.finished(worker, attempt(keyed("k"), 2)).results().len(), 1);
}
