//! Random bytes, random packets and damaged messages at every stage. `LRTS_HOSTILE_SEED=n` sends the same again.

use std::time::Duration;

use fastrand::Rng;
use lrts_core::ids::{AttemptId, BundleDigest, SessionId};
use lrts_core::protocol::application::{Credit, FromApplication, JobRange, JobSet};
use lrts_core::protocol::codec::encode;
use lrts_core::protocol::command::FromCommand;
use lrts_core::protocol::progress::{FromReporter, FromWatcher, OwnedApplication};
use lrts_core::protocol::worker::FromWorker;
use lrts_core::spec::JobOptions;
use lrts_core::transport::Role;

use crate::attack::{GOODBYE, MORE, Stage, Target, frame, packet};
use crate::site::Site;
use crate::words::{attach, platform};

/// Connections for each kind of garbage, stage, role and server.
const ROUNDS: usize = 12;

/// Messages on one connection.
const MESSAGES: usize = 50;

fn random_bytes(random: &mut Rng, most: usize) -> Vec<u8> {
    let length = random.usize(..most);
    (0..length).map(|_| random.u8(..)).collect()
}

/// Frames of random bytes that keep within all bounds of ZMTP.
fn random_packets(random: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..MESSAGES {
        // Most begin as a packet does.
        let mut header = random_bytes(random, 24);
        if let (Some(kind), true) = (header.first_mut(), random.u8(..4) > 0) {
            *kind %= 10;
        }
        let frames = random.usize(..4);
        bytes.extend(frame(if frames > 0 { MORE } else { 0 }, &header));
        for left in (0..frames).rev() {
            bytes.extend(frame(if left > 0 { MORE } else { 0 }, &random_bytes(random, 600)));
        }
    }
    bytes
}

fn attackers() -> OwnedApplication {
    OwnedApplication { application: "attacker".parse().unwrap(), owner: None }
}

/// What honest peers of a role say to a server.
fn honest_heads(server: Role, role: Role) -> Vec<Vec<u8>> {
    let session = SessionId(7);
    let jobs = || JobSet { session, ranges: vec![(1, 3), (5, 9)] };
    let attempt = AttemptId { job: session.job(1), attempt: 1 };
    match (server, role) {
        (Role::ProgressServer, Role::Worker) => vec![
            encode(&FromReporter::Ping { number: 1 }),
            encode(&FromReporter::Batch { applications: vec![(attackers(), Vec::new())] }),
        ],
        (Role::ProgressServer, _) => {
            vec![
                encode(&FromWatcher::Watch { application: "attacker".parse().unwrap() }),
                encode(&FromWatcher::Forget),
            ]
        }
        (_, Role::Client) => vec![
            encode(&FromApplication::Attach(attach("attacker", session))),
            encode(&FromApplication::OfferBundle {
                digest: BundleDigest([7; 32]),
                bytes: 9,
                platform: platform(),
            }),
            encode(&FromApplication::BundleChunk { digest: BundleDigest([7; 32]), offset: 0, bytes: 9 }),
            encode(&FromApplication::Submit {
                first: 1,
                options: vec![JobOptions::new().label("damaged").env("A", "b").key("k")],
                jobs: vec![JobRange { count: 3, service: 0, options: 0, payload_bytes: 0 }],
                keys: Vec::new(),
            }),
            encode(&FromApplication::Want { jobs: jobs(), urgent: true }),
            encode(&FromApplication::Credit(Credit { results: 1, bytes: 1 })),
            encode(&FromApplication::Taken { jobs: jobs() }),
            encode(&FromApplication::Cancel { jobs: jobs() }),
            encode(&FromApplication::List { request: 1, job: None }),
        ],
        (_, Role::Worker) => vec![
            encode(&FromWorker::Heartbeat { number: 1 }),
            encode(&FromWorker::Began { attempt, pid: 1 }),
            encode(&FromWorker::Returned { attempts: vec![attempt] }),
            encode(&FromWorker::WantBundle { digest: BundleDigest([7; 32]), offset: 0 }),
            encode(&FromWorker::Absent { back_within: Duration::from_secs(1) }),
        ],
        _ => vec![
            encode(&FromCommand::Status),
            encode(&FromCommand::Jobs),
            encode(&FromCommand::Logs { job: session.job(1) }),
            encode(&FromCommand::Cancel { jobs: vec![session.job(1)] }),
        ],
    }
    .into_iter()
    .map(|head| head.to_vec())
    .collect()
}

/// A head with some of its bytes changed, left out or doubled.
fn damaged(random: &mut Rng, head: &[u8]) -> Vec<u8> {
    let mut head = head.to_vec();
    for _ in 0..random.usize(1..4) {
        let Some(at) = (!head.is_empty()).then(|| random.usize(..head.len())) else { break };
        match random.u8(..4) {
            0 => head[at] = random.u8(..),
            1 => head[at] ^= 1 << random.u8(..8),
            2 => _ = head.remove(at),
            _ => head.insert(at, head[at]),
        }
    }
    head
}

/// The server may hang up at any of it; what it says isn't heard.
fn throw_at(target: &Target, roles: &[Role], random: &mut Rng) {
    for _ in 0..ROUNDS {
        for stage in [Stage::Connected, Stage::Secured, Stage::Greeted] {
            let role = roles[random.usize(..roles.len())];
            let _ended = target.at(stage, role).write(&random_bytes(random, 100_000));
        }
        for stage in [Stage::Greeted, Stage::Joined] {
            let role = roles[random.usize(..roles.len())];
            let _ended = target.at(stage, role).write(&random_packets(random));
        }
        for &role in roles {
            let heads = honest_heads(target.role, role);
            let mut attacker = target.at(Stage::Joined, role);
            for number in 0..MESSAGES {
                // The first is whole half of the time, so that others come behind an honest beginning.
                let honest = &heads[if number == 0 { 0 } else { random.usize(..heads.len()) }];
                let whole = number == 0 && random.bool();
                let head = if whole { honest.clone() } else { damaged(random, honest) };
                if attacker.say(&head, &random_bytes(random, 20)).is_err() {
                    break;
                }
            }
            // All that arrived is handled before this.
            let _ended = attacker.write(&packet(&[GOODBYE], Some(b"bye")));
        }
    }
}

fn garbage_does_no_harm(site: Site) {
    let seed =
        std::env::var("LRTS_HOSTILE_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    eprintln!("LRTS_HOSTILE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    for (target, roles) in site.servers() {
        throw_at(&target, roles, &mut random);
    }
    site.assert_unharmed();
}

#[test]
fn garbage_at_every_stage_does_no_harm() {
    garbage_does_no_harm(Site::new());
}

#[test]
fn garbage_does_no_harm_without_keys() {
    garbage_does_no_harm(Site::insecure());
}
