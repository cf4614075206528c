//! Whole messages whose content is meant to do harm: heads that are no messages, and messages with senseless values.

use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{JobId, SessionId};
use lrts_core::limits::{BREACH_PAUSE, BREACHES};
use lrts_core::protocol::application::{Credit, FromApplication, JobRange, JobSet};
use lrts_core::protocol::codec::encode;
use lrts_core::protocol::command::FromCommand;
use lrts_core::protocol::worker::FromWorker;
use lrts_core::spec::{JobOptions, OnDisconnect};
use lrts_core::transport::{RefusalKind, Role};

use crate::attack::{Attacker, Heard, Stage, Target};
use crate::site::Site;
use crate::words::{attach, contents, message, platform};

/// The places in a role's messages where a list or a text belongs: variants, and a field of them if they have some.
fn places(server: Role, role: Role) -> &'static [(&'static str, &'static str)] {
    match (server, role) {
        (Role::ProgressServer, Role::Worker) => &[("Batch", "applications"), ("Ended", "attempts")],
        (Role::ProgressServer, _) => &[("Watch", "application")],
        (_, Role::Client) => &[
            ("Attach", "services"),
            ("Attach", "application"),
            ("Submit", "options"),
            ("Submit", "jobs"),
            ("Submit", "keys"),
            ("Want", "jobs"),
            ("Cancel", "jobs"),
        ],
        (_, Role::Worker) => &[
            ("Register", "installed"),
            ("Register", "attempts"),
            ("Returned", "attempts"),
            ("Ended", "bars"),
            ("BundleRefused", "reason"),
        ],
        _ => &[
            ("Cancel", "jobs"),
            ("CancelApplication", "application"),
            ("CancelUser", "user"),
            ("Logs", "job"),
        ],
    }
}

/// Says something that no honest peer says: it is sent away, and told so.
fn is_refused(target: &Target, role: Role, what: &str, head: &[u8]) {
    let mut attacker = target.at(Stage::Joined, role);
    // It may have been sent away before the end of what it says.
    let _refused = attacker.say(head, b"");
    let farewell = attacker.farewell();
    assert!(matches!(farewell, None | Some((RefusalKind::Protocol, _))), "{role}, {what}: {farewell:?}");
}

#[test]
fn heads_that_are_no_messages_take_no_memory() {
    let site = Site::new();
    for (target, roles) in site.servers() {
        for &role in roles {
            for (what, content) in contents() {
                is_refused(&target, role, what, &content);
                for &(variant, field) in places(target.role, role) {
                    is_refused(&target, role, what, &message(variant, field, &content));
                }
            }
        }
    }
    site.assert_unharmed();
}

/// Says messages in a row; the server may hang up at any of them, and has handled all before the last question is answered.
fn says_all(mut attacker: Attacker, heads: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) {
    for (head, body) in heads {
        if attacker.say(&head, &body).is_err() {
            return;
        }
    }
}

#[test]
fn who_breaks_the_protocol_again_and_again_waits_each_time() {
    let site = Site::new();
    for (target, roles) in site.servers() {
        let role = roles[0];
        let target = Target { from: Some([127, 0, 0, 2].into()), ..target };
        for _ in 0..BREACHES {
            is_refused(&target, role, "nonsense", b"nonsense");
        }
        // It is known for that now.
        let since = Moment::now();
        (0..2).for_each(|_| is_refused(&target, role, "nonsense", b"nonsense"));
        assert!(since.elapsed() >= BREACH_PAUSE, "{role}: {:?}", since.elapsed());
    }
    site.assert_unharmed();
}

/// It costs a server as much as any other breach, and with a key of the cluster no honest peer does it.
#[test]
fn who_claims_a_role_that_its_key_is_not_for_again_and_again_waits_each_time() {
    let site = Site::new();
    for (target, roles) in site.servers() {
        let role = roles[0];
        let target = Target { from: Some([127, 0, 0, 3].into()), ..target };
        let claims = || {
            let heard = target.at(Stage::Greeted, role).hello(Role::Scheduler, "attacker").unwrap();
            assert!(matches!(heard, Heard::Refusal { kind: RefusalKind::Role, .. }), "{role}: {heard:?}");
        };
        (0..BREACHES).for_each(|_| claims());
        // It is known for that now.
        let since = Moment::now();
        (0..2).for_each(|_| claims());
        assert!(since.elapsed() >= BREACH_PAUSE, "{role}: {:?}", since.elapsed());
    }
    site.assert_unharmed();
}

fn applications_messages(session: SessionId) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut terms = attach("attacker", session);
    terms.on_disconnect = OnDisconnect::CancelAfter(Duration::MAX);
    terms.progress_rtt_test = Duration::MAX;
    terms.credit = Credit { results: u32::MAX, bytes: u64::MAX };
    let all = || JobSet { session, ranges: vec![(0, u64::MAX)] };
    let range =
        |count, payload_bytes| JobRange { count, service: u16::MAX, options: u16::MAX, payload_bytes };
    let submit = |first, options, jobs| FromApplication::Submit { first, options, jobs, keys: Vec::new() };
    let forever = JobOptions::new().run_timeout(Duration::MAX).priority(i32::MIN).slots(u32::MAX);
    let heads = [
        FromApplication::Attach(terms.clone()),
        FromApplication::Attach(terms),
        FromApplication::Credit(Credit { results: u32::MAX, bytes: u64::MAX }),
        submit(u64::MAX, Vec::new(), Vec::new()),
        submit(
            1,
            vec![forever.clone()],
            vec![JobRange { count: 1, service: 0, options: 0, payload_bytes: 0 }],
        ),
        submit(u64::MAX, vec![forever], vec![range(1_000, 0)]),
        submit(0, Vec::new(), vec![range(u32::MAX, u32::MAX); 100]),
        FromApplication::Taken { jobs: all() },
        FromApplication::Cancel { jobs: all() },
        FromApplication::Want { jobs: all(), urgent: true },
        FromApplication::List { request: u64::MAX, job: Some(JobId { session, sequence: u64::MAX }) },
        FromApplication::OfferBundle {
            digest: lrts_core::ids::BundleDigest([0; 32]),
            bytes: u64::MAX,
            platform: platform(),
        },
        FromApplication::BundleChunk {
            digest: lrts_core::ids::BundleDigest([0; 32]),
            offset: u64::MAX,
            bytes: u32::MAX,
        },
        FromApplication::Detach,
        FromApplication::Stop,
    ];
    heads.iter().map(|head| (encode(head).to_vec(), Vec::new())).collect()
}

fn workers_messages(session: SessionId) -> Vec<(Vec<u8>, Vec<u8>)> {
    let attempt = lrts_core::ids::AttemptId { job: session.job(u64::MAX), attempt: u32::MAX };
    let digest = lrts_core::ids::BundleDigest([0; 32]);
    let heads = [
        FromWorker::Heartbeat { number: u64::MAX },
        FromWorker::Began { attempt, pid: u32::MAX },
        FromWorker::Checkpoint { attempt },
        FromWorker::Returned { attempts: vec![attempt; 1_000] },
        FromWorker::NotReturned { attempt },
        FromWorker::WantBundle { digest, offset: u64::MAX },
        FromWorker::Output { request: u64::MAX, bytes: Some((u32::MAX, u32::MAX)) },
        FromWorker::Absent { back_within: Duration::MAX },
        FromWorker::Goodbye,
    ];
    heads.iter().map(|head| (encode(head).to_vec(), Vec::new())).collect()
}

fn commands() -> Vec<(Vec<u8>, Vec<u8>)> {
    let unknown = |sequence| SessionId(7).job(sequence);
    let heads = [
        FromCommand::Logs { job: unknown(u64::MAX) },
        FromCommand::Cancel { jobs: (0..10_000).map(unknown).collect() },
        FromCommand::CancelApplication { application: "attacker".parse().unwrap() },
        FromCommand::CancelUser { user: "nobody".parse().unwrap() },
        FromCommand::Drain { worker: lrts_core::ids::WorkerId(7), deadline: Some(Duration::MAX) },
    ];
    heads.iter().map(|head| (encode(head).to_vec(), Vec::new())).collect()
}

#[test]
fn senseless_values_do_no_harm() {
    let site = Site::new();
    let target = site.scheduler();
    let session = SessionId(0x0bad);
    let all = [
        (Role::Client, applications_messages(session)),
        (Role::Worker, workers_messages(session)),
        (Role::Admin, commands()),
    ];
    for (role, messages) in all {
        // All in a row, and each as the first of a connection, or behind an attach.
        says_all(target.at(Stage::Joined, role), messages.clone());
        for message in &messages {
            says_all(target.at(Stage::Joined, role), [message.clone()]);
            if role == Role::Client {
                says_all(target.at(Stage::Joined, role), [messages[0].clone(), message.clone()]);
            }
        }
    }
    site.assert_unharmed();
}
