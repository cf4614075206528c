//! Whose an application is, and that nothing an application says reaches beyond it.

use lrts_core::ids::{JobId, SessionId};
use lrts_core::spec::JobOptions;
use lrts_core::status::JobState;

use super::cluster::{Cluster, Outcome, attach_of, attempt, job_of};
use crate::engine::{Attach, Credit, Event, Message, Note, Peer, Reason, Submit};

fn refused(outcome: &Outcome, peer: Peer) -> bool {
    let owner = Reason::Owner(Cluster::id_of("a"));
    outcome.disconnects(peer) == Some(&owner) && outcome.said_to(peer).is_empty()
}

#[test]
fn an_application_belongs_to_its_first_user_for_good() {
    let mut cluster = Cluster::new();
    let (anns, _) = cluster.attach_as(Some("ann"), "a", 1);
    let (bobs, attached) = cluster.attach_as(Some("bob"), "a", 2);
    assert!(refused(&attached, bobs) && attached.disconnects(anns).is_none());
    assert!(attached.records().is_empty());
    // Neither its session nor its absence lets him in.
    cluster.handle(Event::Disconnected { peer: anns });
    let (bobs, attached) = cluster.attach_as(Some("bob"), "a", 1);
    assert!(refused(&attached, bobs));
    cluster.restart();
    let (bobs, attached) = cluster.attach_as(Some("bob"), "a", 2);
    assert!(refused(&attached, bobs));
    // Ann's key is as good from another machine.
    let (anns, attached) = cluster.attach_as(Some("ann"), "a", 3);
    assert!(attached.says(anns, &Message::Attached { epoch: 2, accepted_through: 0 }));

    cluster.handle(Event::StopAsked { peer: anns });
    cluster.handle(Event::Disconnected { peer: anns });
    let (bobs, attached) = cluster.attach_as(Some("bob"), "a", 4);
    assert!(attached.disconnects(bobs).is_none(), "nothing is known of it any more");
}

#[test]
fn an_application_from_before_there_were_keys_belongs_to_the_first_who_comes() {
    let mut cluster = Cluster::new();
    let (nobodys, _) = cluster.attach_as(None, "a", 1);
    cluster.handle(Event::Disconnected { peer: nobodys });
    cluster.attach_as(Some("ann"), "a", 2);
    cluster.restart();
    let (bobs, attached) = cluster.attach_as(Some("bob"), "a", 3);
    assert!(refused(&attached, bobs));
}

#[test]
fn without_keys_everybody_may_and_owners_stay() {
    let mut cluster = Cluster::new();
    cluster.attach_as(Some("ann"), "a", 1);
    let (nobodys, attached) = cluster.attach_as(None, "a", 2);
    assert!(attached.disconnects(nobodys).is_none());
    cluster.handle(Event::DetachAsked { peer: nobodys });
    let (bobs, attached) = cluster.attach_as(Some("bob"), "a", 3);
    assert!(refused(&attached, bobs));
}

#[test]
fn lists_and_notes_say_whose_an_application_is() {
    let mut cluster = Cluster::new();
    let ann = Some("ann".parse().unwrap());
    let (anns, attached) = cluster.attach_as(Some("ann"), "a", 1);
    let (application, session) = (Cluster::id_of("a"), SessionId(1));
    assert!(attached.notes(&Note::ApplicationAttached { application, user: ann.clone(), session }));
    cluster.submit(anns, 1, JobOptions::new(), &[1]);
    let (_, attached) = cluster.attach_as(None, "b", 2);
    let (application, session) = (Cluster::id_of("b"), SessionId(2));
    assert!(attached.notes(&Note::ApplicationAttached { application, user: None, session }));

    cluster.restart();
    let listings = cluster.engine.application_listings(cluster.now);
    let users = listings.iter().map(|listing| (listing.application, listing.user.clone()));
    assert_eq!(users.collect::<Vec<_>>(), [(Cluster::id_of("a"), ann.clone()), (Cluster::id_of("b"), None)]);
    let jobs = cluster.engine.job_page(0, usize::MAX, cluster.now).jobs;
    assert_eq!(jobs.iter().map(|listing| &listing.user).collect::<Vec<_>>(), [&ann]);
}

#[test]
fn a_worker_is_told_whose_bars_it_shows() {
    let mut cluster = Cluster::new();
    cluster.application("one whose program is here", 1);
    let worker = cluster.worker(1, 2);
    for (user, name, session) in [(Some("ann"), "a", 2), (None, "b", 3)] {
        let (peer, _) = cluster.attach_as(user, name, session);
        let placed = cluster.submit(peer, 1, JobOptions::new(), &[1]);
        let owners = placed.said_to(worker).into_iter().filter_map(|message| match message {
            Message::Start { owner, .. } => Some(owner.as_ref().map(|owner| owner.as_str().to_owned())),
            _ => None,
        });
        assert_eq!(owners.collect::<Vec<_>>(), [user.map(str::to_owned)]);
    }
}

/// All that a peer could say of these jobs, other than that it wants them.
fn everything_about(peer: Peer, jobs: &[JobId]) -> Vec<Event> {
    let about = |job: &JobId| {
        let (session, ranges) = (job.session, vec![(job.sequence, job.sequence)]);
        let all = vec![(0, u64::MAX)];
        [
            Event::Taken { peer, session, ranges: ranges.clone() },
            Event::Taken { peer, session, ranges: all.clone() },
            Event::CancelAsked { peer, session, ranges },
            Event::CancelAsked { peer, session, ranges: all },
            Event::ListAsked { peer, request: 1, job: Some(*job) },
        ]
    };
    jobs.iter().flat_map(about).collect()
}

#[test]
fn what_an_application_says_reaches_its_own_jobs_only() {
    let mut cluster = Cluster::new();
    let (anns, session) = cluster.application("a", 1);
    cluster.worker(1, 1);
    cluster.submit(anns, 1, JobOptions::new(), &[1, 1]);
    cluster.submit_keys(anns, 3, &[("k", 5)]);
    let keyed = JobId::keyed(Cluster::id_of("a"), "k");
    let worker = cluster.rejoin(1, 1, vec![]).0;
    cluster.began(worker, attempt(session.job(1), 2));
    cluster.finished(worker, attempt(session.job(1), 2));
    let jobs = [session.job(1), session.job(2), keyed];
    let before = jobs.map(|job| cluster.state(job));

    let (bobs, _) = cluster.application("b", 2);
    for event in everything_about(bobs, &jobs) {
        let outcome = cluster.handle(event);
        assert_eq!(outcome.listed(), []);
        assert!(outcome.records().is_empty() && outcome.said_to(worker).is_empty(), "{outcome:?}");
    }
    assert_eq!(cluster.list(bobs), []);
    for job in jobs {
        let gone = cluster.want(bobs, job);
        assert!(gone.says(bobs, &Message::Gone { job, taken: false }) && gone.results().is_empty());
    }
    cluster.handle(Event::StopAsked { peer: bobs });
    assert_eq!(jobs.map(|job| cluster.state(job)), before);
    // Nor has it changed what the owner hears.
    assert_eq!(cluster.want(anns, session.job(1)).results().len(), 1);
}

#[test]
fn nothing_is_heard_of_whom_nobody_knows() {
    let mut cluster = Cluster::new();
    let (anns, session) = cluster.application("a", 1);
    cluster.submit(anns, 1, JobOptions::new(), &[1]);
    // Its totals are told.
    cluster.handle(Event::Tick { may_forget: true });
    let stranger = cluster.peer();
    let jobs = [session.job(1)];
    let submit = Submit {
        first: 2,
        options: vec![JobOptions::new()],
        jobs: vec![job_of(1)],
        keys: Vec::new(),
        no_room: None,
    };
    let ranges = vec![(1, 1)];
    let mut events = everything_about(stranger, &jobs);
    events.extend([
        Event::Submitted { peer: stranger, submit },
        Event::Wanted { peer: stranger, session, ranges, urgent: true },
        Event::CreditGranted { peer: stranger, credit: Credit { results: 9, bytes: 9 } },
        Event::ListAsked { peer: stranger, request: 1, job: None },
        Event::DetachAsked { peer: stranger },
        Event::StopAsked { peer: stranger },
    ]);
    for event in events {
        let outcome = cluster.handle(event);
        assert!(outcome.0.is_empty(), "{outcome:?}");
    }
    assert_eq!(cluster.state(session.job(1)), JobState::Queued);
}

#[test]
fn a_connection_is_of_one_application() {
    for (name, session) in [("b", 2), ("a", 1), ("c", 3)] {
        let mut cluster = Cluster::new();
        let (peer, _) = cluster.attach_as(Some("ann"), "a", 1);
        let (others, _) = cluster.attach_as(Some("ann"), "b", 2);
        let attach = Attach { user: Some("ann".parse().unwrap()), ..attach_of(name, SessionId(session)) };
        let refused = cluster.handle(Event::Attached { peer, attach });
        assert!(matches!(refused.disconnects(peer), Some(Reason::Protocol(_))), "{name}");
        assert!(refused.disconnects(others).is_none() && refused.records().is_empty());
    }
}
