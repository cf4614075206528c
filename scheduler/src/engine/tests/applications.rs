//! Sessions, submits, results.

use std::time::Duration;

use lrts_core::ids::SessionId;
use lrts_core::limits::TOTALS_INTERVAL;
use lrts_core::spec::{JobOptions, OnDisconnect};
use lrts_core::status::{FailureKind, JobState};

use super::cluster::{Cluster, DIGEST, RETENTION, attach_of, attempt, failed, held, job_of, platform};
use crate::engine::{Action, AttemptOutcome, Credit, Event, Message, Reason, Submit, Totals};

#[test]
fn submits_are_accepted_once_their_program_is_here() {
    let mut cluster = Cluster::new();
    let worker = cluster.worker(1, 4);
    let peer = cluster.peer();
    let session = SessionId(1);
    let attached = cluster.handle(Event::Attached { peer, attach: attach_of("a", session) });
    assert!(attached.says(peer, &Message::Attached { epoch: 1, accepted_through: 0 }));

    let submitted = cluster.submit(peer, 1, JobOptions::new(), &[0, 0]);
    assert!(!submitted.says(peer, &Message::Accepted { through: 2 }) && submitted.starts().is_empty());
    assert!(cluster.reason(session.job(1)).contains("uploaded"));
    let complete =
        cluster.handle(Event::BundleCompleted { digest: DIGEST, bytes: 100, platforms: platform().into() });
    assert!(complete.says(peer, &Message::Accepted { through: 2 }));
    assert_eq!(
        complete.starts(),
        [(worker, attempt(session.job(1), 1)), (worker, attempt(session.job(2), 1))]
    );
}

#[test]
fn a_repeated_submit_is_answered_and_not_run_again() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    cluster.submit(peer, 1, JobOptions::new(), &[0, 0]);
    cluster.pass(Duration::ZERO);
    let repeat = cluster.submit(peer, 1, JobOptions::new(), &[0, 0]);
    assert_eq!(repeat.0, [Action::Send { to: peer, message: Message::Accepted { through: 2 } }]);
    let overlap = cluster.submit(peer, 2, JobOptions::new(), &[0, 0]);
    assert!(overlap.says(peer, &Message::Accepted { through: 3 }));
    assert_eq!(cluster.state(session.job(3)), JobState::Queued);
    assert_eq!(cluster.engine.state(session.job(4)), None);
}

#[test]
fn a_gap_in_the_sequences_ends_the_connection() {
    let mut cluster = Cluster::new();
    let (peer, _) = cluster.application("a", 1);
    cluster.submit(peer, 1, JobOptions::new(), &[0]);
    let gap = cluster.submit(peer, 3, JobOptions::new(), &[0]);
    assert!(matches!(gap.disconnects(peer), Some(Reason::Protocol(_))));
    assert!(cluster.submit(peer, 2, JobOptions::new(), &[0]).0.is_empty(), "nothing it says counts any more");
}

#[test]
fn a_session_that_another_scheduler_lost_goes_on_behind_its_lost_jobs() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    let submitted = cluster.submit(peer, u64::MAX - 5, JobOptions::new(), &[0, 0]);
    assert!(submitted.says(peer, &Message::Accepted { through: u64::MAX - 4 }));
    assert_eq!(cluster.state(session.job(u64::MAX - 4)), JobState::Queued);
    let lost = cluster.want(peer, session.job(7));
    assert!(lost.says(peer, &Message::Gone { job: session.job(7), taken: false }));
    cluster.handle(Event::CancelAsked { peer, session, ranges: vec![(1, u64::MAX)] });
    assert_eq!(cluster.state(session.job(u64::MAX - 5)), JobState::Cancelled);
}

#[test]
fn jobs_that_cannot_be_are_refused_and_the_watermark_passes_them() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    let options = vec![JobOptions::new(), JobOptions::new().slots(0)];
    let bad_options = crate::record::NewJob { options: 1, ..job_of(0) };
    let jobs = vec![job_of(9), bad_options, job_of(0)];
    let submit = Submit { first: 1, options, jobs, keys: vec![], no_room: None };
    let submitted = cluster.handle(Event::Submitted { peer, submit });
    let refused = |sequence| {
        submitted.0.iter().any(|action| {
            matches!(action, Action::Send { message: Message::Refused { sequence: s, .. }, .. } if *s == sequence)
        })
    };
    assert!(refused(1) && refused(2) && !refused(3));
    assert!(submitted.says(peer, &Message::Accepted { through: 3 }));
    assert_eq!(cluster.state(session.job(3)), JobState::Queued);
    let gone = cluster.want(peer, session.job(1));
    assert!(gone.says(peer, &Message::Gone { job: session.job(1), taken: false }));
}

#[test]
fn a_newer_connection_of_an_application_takes_over() {
    let mut cluster = Cluster::new();
    let (old, session) = cluster.application("a", 1);
    cluster.submit(old, 1, JobOptions::new(), &[0]);
    let new = cluster.peer();
    let attached = cluster.handle(Event::Attached { peer: new, attach: attach_of("a", session) });
    assert_eq!(attached.disconnects(old), Some(&Reason::Superseded));
    assert!(attached.says(new, &Message::Attached { epoch: 1, accepted_through: 1 }));
    cluster.handle(Event::Disconnected { peer: old });
    assert!(cluster.submit(new, 2, JobOptions::new(), &[0]).says(new, &Message::Accepted { through: 2 }));
}

#[test]
fn results_flow_under_credit_and_urgent_ones_past_it() {
    let mut cluster = Cluster::new();
    let peer = cluster.peer();
    let session = SessionId(1);
    let mut attach = attach_of("a", session);
    attach.credit = Credit { results: 1, bytes: 100 };
    cluster.handle(Event::Attached { peer, attach });
    cluster.handle(Event::BundleCompleted { digest: DIGEST, bytes: 100, platforms: platform().into() });
    let worker = cluster.worker(1, 4);
    cluster.submit(peer, 1, JobOptions::new(), &[1, 1, 1]);
    cluster.handle(Event::Wanted { peer, session, ranges: vec![(1, 3)], urgent: false });

    assert_eq!(cluster.finished(worker, attempt(session.job(1), 1)).results().len(), 1);
    assert_eq!(cluster.finished(worker, attempt(session.job(2), 1)).results().len(), 0);
    assert_eq!(cluster.finished(worker, attempt(session.job(3), 1)).results().len(), 0);
    assert_eq!(cluster.want(peer, session.job(3)).results()[0].0, session.job(3));
    let credit = Credit { results: 5, bytes: 1 };
    let rest = cluster.handle(Event::CreditGranted { peer, credit }).results();
    assert_eq!(rest.len(), 1, "each result is sent once");
    assert_eq!(rest[0].0, session.job(2));
}

#[test]
fn a_taken_result_is_gone() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    let job = session.job(1);
    cluster.submit(peer, 1, JobOptions::new(), &[1]);
    cluster.finished(worker, attempt(job, 1));
    assert_eq!(cluster.want(peer, job).results().len(), 1);
    assert_eq!(cluster.want(peer, job).results().len(), 1, "a repeat sends again unless it was taken");
    cluster.handle(Event::Taken { peer, session, ranges: vec![(1, 1)] });
    let gone = Message::Gone { job, taken: true };
    assert!(cluster.want(peer, job).says(peer, &gone));
    cluster.pass(RETENTION);
    assert_eq!(cluster.engine.state(job), None);
    assert!(cluster.want(peer, job).says(peer, &gone));
}

#[test]
fn stop_cancels_what_is_left_and_forgets_results() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 2);
    cluster.submit(peer, 1, JobOptions::new(), &[1, 1, 1]);
    cluster.finished(worker, attempt(session.job(1), 1));
    let stopped = cluster.handle(Event::StopAsked { peer });
    assert!(stopped.says(peer, &Message::Stopped));
    let last = Totals { queued: 2, finished: 1, ..Totals::default() };
    assert!(stopped.says(peer, &Message::Totals(last)), "however shortly before they were told");
    assert!(
        stopped.stops(worker, attempt(session.job(2), 1))
            && stopped.stops(worker, attempt(session.job(3), 1))
    );
    assert_eq!(cluster.engine.state(session.job(1)), None);
    cluster.handle(Event::Disconnected { peer });
    for number in [2, 3] {
        cluster.ended(worker, attempt(session.job(number), 1), crate::engine::AttemptOutcome::Stopped);
    }
    assert!(cluster.engine.applications.indices().is_empty() && cluster.engine.sessions.indices().is_empty());
    assert!(
        cluster.engine.jobs.specs.indices().is_empty() && cluster.engine.jobs.queues.indices().is_empty()
    );
    assert!(cluster.engine.services.indices().is_empty());
}

#[test]
fn an_application_that_stays_away_too_long_is_cancelled() {
    let mut cluster = Cluster::new();
    let peer = cluster.peer();
    let session = SessionId(1);
    let mut attach = attach_of("a", session);
    attach.on_disconnect = OnDisconnect::CancelAfter(Duration::from_mins(1));
    cluster.handle(Event::Attached { peer, attach });
    cluster.submit(peer, 1, JobOptions::new(), &[1]);
    cluster.handle(Event::Disconnected { peer });
    cluster.pass(Duration::from_secs(59));
    assert_eq!(cluster.state(session.job(1)), JobState::Queued);
    cluster.pass(Duration::from_secs(1));
    assert_eq!(cluster.state(session.job(1)), JobState::Cancelled);
    assert!(cluster.reason(session.job(1)).contains("away for 60 s"));
}

#[test]
fn an_absent_application_is_forgotten_after_the_retention() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    let worker = cluster.worker(1, 1);
    cluster.submit(peer, 1, JobOptions::new(), &[1]);
    cluster.finished(worker, attempt(session.job(1), 1));
    cluster.handle(Event::Disconnected { peer });
    cluster.pass(RETENTION);
    assert!(cluster.engine.applications.indices().is_empty());
}

#[test]
fn totals_are_told_when_they_change_but_not_more_often_than_the_interval() {
    let mut cluster = Cluster::new();
    let (peer, _) = cluster.application("a", 1);
    cluster.submit(peer, 1, JobOptions::new(), &[0]);
    let told = cluster.pass(Duration::ZERO);
    let queued = |queued| Message::Totals(Totals { queued, ..Totals::default() });
    assert!(told.says(peer, &queued(1)));
    cluster.submit(peer, 2, JobOptions::new(), &[0]);
    cluster.submit(peer, 3, JobOptions::new(), &[0]);
    assert!(cluster.pass(TOTALS_INTERVAL - Duration::from_millis(1)).0.is_empty());
    assert!(cluster.pass(Duration::from_millis(1)).says(peer, &queued(3)));
    assert!(cluster.pass(Duration::from_secs(1)).0.is_empty());
}

#[test]
fn what_was_cancelled_has_not_failed() {
    let mut cluster = Cluster::new();
    let worker = cluster.worker(1, 1);
    let (peer, session) = cluster.application("a", 1);
    cluster.submit(peer, 1, JobOptions::new(), &[0, 0, 0]);
    cluster.ended(worker, attempt(session.job(1), 1), failed(FailureKind::TimedOut));
    cluster.cancel(peer, session.job(3));
    let totals = Totals { queued: 1, failed: 1, cancelled: 1, ..Totals::default() };
    assert!(cluster.pass(TOTALS_INTERVAL).says(peer, &Message::Totals(totals)));
}

#[test]
fn only_its_own_jobs_are_an_applications_business() {
    let mut cluster = Cluster::new();
    let (_, session) = cluster.application("a", 1);
    let (other, _) = cluster.application("b", 2);
    let (owner, _) = cluster.application("a", 1);
    cluster.submit(owner, 1, JobOptions::new(), &[0]);
    cluster.cancel(other, session.job(1));
    assert_eq!(cluster.state(session.job(1)), JobState::Queued);
    let mut attach = attach_of("b", session);
    attach.services.clear();
    let thief = cluster.peer();
    let refused = cluster.handle(Event::Attached { peer: thief, attach });
    assert!(matches!(refused.disconnects(thief), Some(Reason::Protocol(_))));
    assert!(cluster.engine.application_ids.contains_key(&Cluster::id_of("b")));
}

#[test]
fn a_stopped_application_may_start_anew_before_its_old_connection_has_ended() {
    let mut cluster = Cluster::new();
    let (old, _) = cluster.application("a", 1);
    cluster.handle(Event::StopAsked { peer: old });
    let peer = cluster.peer();
    let attached = cluster.handle(Event::Attached { peer, attach: attach_of("a", SessionId(2)) });
    assert!(attached.says(peer, &Message::Attached { epoch: 1, accepted_through: 0 }));
    assert_eq!(attached.disconnects(old), Some(&Reason::Superseded));
}

#[test]
fn an_application_that_comes_and_goes_leaves_no_timers_behind() {
    let mut cluster = Cluster::new();
    let (mut peer, session) = cluster.application("a", 1);
    cluster.submit(peer, 1, JobOptions::new(), &[0]);
    let mut attach = attach_of("a", session);
    attach.on_disconnect = OnDisconnect::CancelAfter(Duration::from_mins(30));
    for _ in 0..50 {
        cluster.handle(Event::Disconnected { peer });
        cluster.pass(Duration::from_secs(1));
        peer = cluster.peer();
        cluster.handle(Event::Attached { peer, attach: attach.clone() });
        cluster.pass(Duration::from_secs(1));
    }
    assert!(cluster.engine.timers.len() < 5, "{:?}", cluster.engine.timers);
}

#[test]
fn a_job_that_is_forgotten_costs_no_look_at_other_starts_of_its_application() {
    let mut cluster = Cluster::new();
    for session in 1..=300 {
        let (peer, _) = cluster.application("a", session);
        cluster.submit(peer, 1, JobOptions::new(), &[1; 3]);
        if session > 1 {
            for sequence in 1..=3 {
                cluster.cancel(peer, SessionId(session).job(sequence));
            }
        }
        if session == 300 {
            cluster.handle(Event::Disconnected { peer });
        }
    }
    let before = cluster.engine.sessions.looks.get();
    let gone = cluster.pass(RETENTION).records().len();
    assert!(gone >= 3 * 299, "all have expired");
    let looks = cluster.engine.sessions.looks.get() - before;
    assert!(looks < 100 * 3 * 299, "{looks}");
    let kept = cluster.engine.session_ids.keys().copied().collect::<Vec<_>>();
    assert_eq!(kept, [SessionId(1)], "the one of which a job waits");
    cluster.handle(Event::ApplicationCancelled { application: Cluster::id_of("a") });
    cluster.pass(RETENTION);
    assert!(cluster.store.is_empty(), "{:?}", cluster.store);
}

#[test]
fn starts_of_a_stopped_application_without_jobs_are_forgotten_with_a_restart_too() {
    let mut cluster = Cluster::new();
    let worker = cluster.worker(1, 1);
    let (first, _) = cluster.application("a", 1);
    cluster.submit(first, 1, JobOptions::new(), &[1]);
    cluster.began(worker, attempt(SessionId(1).job(1), 1));
    let (second, _) = cluster.application("a", 2);
    cluster.handle(Event::StopAsked { peer: second });
    cluster.restart();
    let (worker, _) = cluster.rejoin(1, 1, vec![held(SessionId(1).job(1), 1)]);
    cluster.ended(worker, attempt(SessionId(1).job(1), 1), AttemptOutcome::Stopped);
    assert!(cluster.store.is_empty(), "{:?}", cluster.store);
}

#[test]
fn jobs_of_stopped_applications_leave_nothing_behind() {
    let mut cluster = Cluster::new();
    cluster.worker(1, 1);
    for number in 0..20_u64 {
        let name = format!("a{number}");
        let (peer, session) = cluster.application(&name, number + 1);
        cluster.submit(peer, 1, JobOptions::new(), &[0; 200]);
        cluster.handle(Event::CancelAsked { peer, session, ranges: vec![(1, 200)] });
        cluster.handle(Event::StopAsked { peer });
        cluster.handle(Event::Disconnected { peer });
    }
    assert!(cluster.engine.retention.places() < 6_000, "{}", cluster.engine.retention.places());
}

#[test]
fn who_asks_for_too_many_unknown_jobs_after_its_stop_is_only_parted_from() {
    let mut cluster = Cluster::new();
    let (peer, session) = cluster.application("a", 1);
    cluster.handle(Event::StopAsked { peer });
    let ranges = vec![(1, u64::MAX)];
    let asked = cluster.handle(Event::Wanted { peer, session, ranges, urgent: false });
    assert!(matches!(asked.disconnects(peer), Some(Reason::Protocol(_))));
    assert!(cluster.engine.application_ids.is_empty(), "it is forgotten as it leaves");
}
