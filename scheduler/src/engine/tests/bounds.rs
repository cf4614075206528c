//! What applications may keep: beyond it jobs are refused by name, and applications are turned away.

use lrts_core::ids::SessionId;
use lrts_core::spec::{BundleRef, JobOptions};
use lrts_core::status::{JobState, RefusalCause};

use super::cluster::{Cluster, attach_of, attempt};
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

#[test]
fn a_scheduler_remembers_so_many_applications_starts_services_and_programs() {
    let small = Bounds { applications: 2, bundles: 3, sessions: 2, services: 5, ..Bounds::default() };
    let mut cluster = Cluster::with_bounds(small);
    let of = |name: &str, session| attach_of(name, SessionId(session));
    let with = |name: &str, session, bundle: &str, services: usize| Attach {
        bundle: BundleRef::Installed(bundle.into()),
        services: (0..services).map(|number| number.to_string()).collect(),
        ..of(name, session)
    };
    assert!(attach(&mut cluster, of("a", 1)));
    assert!(!attach(&mut cluster, with("a", 2, "x", 4)), "with two before, that is one service too many");
    assert!(attach(&mut cluster, with("a", 2, "x", 3)));
    assert!(!attach(&mut cluster, of("a", 3)), "the third start");
    assert!(attach(&mut cluster, of("a", 1)), "one that is known");
    assert!(attach(&mut cluster, with("b", 4, "y", 1)));
    assert!(!attach(&mut cluster, of("c", 5)), "the third application");
    assert!(!attach(&mut cluster, with("b", 6, "z", 1)), "the fourth program");
    assert!(attach(&mut cluster, with("b", 6, "x", 1)));
}
