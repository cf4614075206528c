//! Programs that are none: bombs in their pieces, far too many of them, and others' under a false name.

use std::io::Read;

use lrts_core::ids::{BundleDigest, SessionId};
use lrts_core::limits::{BUNDLE_BYTES, BUNDLE_CHUNK_BYTES};
use lrts_core::protocol::application::{FromApplication, JobRange, ToApplication};
use lrts_core::protocol::codec::encode;
use lrts_core::spec::{BundleRef, Platform};
use lrts_core::transport::{RefusalKind, Role};

use crate::attack::{Attacker, Stage, Target};
use crate::site::Site;
use crate::words::{attach, platform};

/// What a bomb would come to.
const BOMB_BYTES: u64 = 512 << 20;

/// Programs that are offered.
const OFFERS: u16 = 5_000;

fn digest(number: u16) -> BundleDigest {
    let mut digest = [0xbb; 32];
    digest[..2].copy_from_slice(&number.to_be_bytes());
    BundleDigest(digest)
}

/// An application that would run a program of its own.
fn application(target: &Target, name: &str, program: BundleDigest) -> Attacker {
    let mut attacker = target.at(Stage::Joined, Role::Client);
    let mut terms = attach(name, SessionId::random());
    terms.bundle = BundleRef::Shipped(program);
    attacker.say(&encode(&FromApplication::Attach(terms)), b"").unwrap();
    attacker.answer_that(|answer| matches!(answer, ToApplication::Attached { .. })).unwrap();
    attacker
}

fn offer(program: BundleDigest, bytes: u64, platform: Platform) -> Vec<u8> {
    encode(&FromApplication::OfferBundle { digest: program, bytes, platform }).to_vec()
}

fn chunk(program: BundleDigest, bytes: u32) -> Vec<u8> {
    encode(&FromApplication::BundleChunk { digest: program, offset: 0, bytes }).to_vec()
}

#[test]
fn pieces_that_explode_are_no_program() {
    let site = Site::new();
    let target = site.scheduler();
    let zeros = std::io::repeat(0).take(BOMB_BYTES);
    let bomb = zstd::stream::encode_all(zeros, 1).unwrap();
    // One that says how much it comes to, as a single call makes it, and one that doesn't.
    let said = zstd::bulk::compress(&vec![0; 16 * BUNDLE_CHUNK_BYTES], 1).unwrap();
    let bombs = [&bomb, &said, &said[..said.len() / 2].to_vec()];
    for (number, bomb) in bombs.into_iter().cycle().take(30).enumerate() {
        let program = digest(number as u16);
        let mut attacker = application(&target, &format!("bomber-{number}"), program);
        attacker.say(&offer(program, BUNDLE_BYTES, platform()), b"").unwrap();
        attacker
            .answer_that(|answer| matches!(answer, ToApplication::BundleWanted { offset: 0, .. }))
            .unwrap();
        attacker.say(&chunk(program, BUNDLE_CHUNK_BYTES as u32), bomb).unwrap();
        let refused = attacker.answer_that(|answer| matches!(answer, ToApplication::BundleRefused { .. }));
        // Its sender may be refused itself, since no honest one sends such a piece.
        if let Err(error) = refused {
            assert!(error.to_string().contains("a piece of bundle"), "{error}");
        }
    }
    // And pieces that are announced too large.
    for bytes in [0, BUNDLE_CHUNK_BYTES as u32 + 1, u32::MAX] {
        let program = digest(OFFERS + 1);
        let mut attacker = application(&target, "large", program);
        attacker.say(&offer(program, BUNDLE_BYTES, platform()), b"").unwrap();
        attacker
            .answer_that(|answer| matches!(answer, ToApplication::BundleWanted { offset: 0, .. }))
            .unwrap();
        attacker.say(&chunk(program, bytes), &bomb).unwrap();
        assert!(matches!(attacker.farewell(), Some((RefusalKind::Protocol, _))));
    }
    site.assert_unharmed();
}

#[test]
fn many_programs_that_are_only_offered_take_no_room() {
    let site = Site::new();
    let target = site.scheduler();
    let mut attacker = application(&target, "offering", digest(0));
    for number in 0..OFFERS {
        // Its own at most is heard.
        let program = digest(number % 2);
        if attacker.say(&offer(program, 1 + u64::from(number), platform()), b"").is_err() {
            attacker = application(&target, "offering", digest(0));
        }
    }
    // With descriptions as long as a message may be.
    let long = Platform { target: "x".repeat(1 << 20), glibc: None };
    for number in 0..100 {
        if attacker.say(&offer(digest(OFFERS + number), 1, long.clone()), b"").is_err() {
            attacker = application(&target, "offering", digest(0));
        }
    }
    site.serves_newcomers();
    drop(attacker);
    site.assert_unharmed();
}

#[test]
fn what_others_offer_under_its_name_ends_no_job_of_a_program() {
    let site = Site::new();
    let target = site.scheduler();
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, b"no worker has to run it").unwrap();
    let (program, bytes) = lrts_core::bundle::digest_file(&file).unwrap();
    let mut honest = application(&target, "honest", program);
    let job = JobRange { count: 1, service: 0, options: 0, payload_bytes: 0 };
    let options = vec![lrts_core::spec::JobOptions::new()];
    let submit = FromApplication::Submit { first: 1, options, jobs: vec![job], keys: Vec::new() };
    honest.say(&encode(&submit), b"").unwrap();

    let refused = |answer: &ToApplication| matches!(answer, ToApplication::BundleRefused { .. });
    let wanted = |answer: &ToApplication| matches!(answer, ToApplication::BundleWanted { .. });
    let attached = application(&target, "attached with it too", program);
    let elsewhere = application(&target, "attached with another one", digest(0));
    let stranger = target.at(Stage::Joined, Role::Client);
    for (mut attacker, is_heard) in [(attached, true), (elsewhere, false), (stranger, false)] {
        for bytes in [0, BUNDLE_BYTES + 1, u64::MAX] {
            attacker.say(&offer(program, bytes, platform()), b"").unwrap();
            attacker.answer_that(refused).unwrap();
        }
        attacker.say(&offer(program, 4, platform()), b"").unwrap();
        if !is_heard {
            attacker.answer_that(refused).unwrap();
            continue;
        }
        attacker.answer_that(wanted).unwrap();
        attacker.say(&chunk(program, 4), &zstd::bulk::compress(b"junk", 1).unwrap()).unwrap();
        attacker.answer_that(refused).unwrap();
    }
    let jobs = site.cluster.json(&["jobs", "--wait", "60s"]);
    let of_honest = jobs.iter().filter(|job| job["application_id"] == "honest");
    assert_eq!(of_honest.map(|job| job["state"].as_str()).collect::<Vec<_>>(), [Some("queued")], "{jobs:?}");

    honest.say(&offer(program, bytes, platform()), b"").unwrap();
    honest.answer_that(wanted).unwrap();
    let (piece, length) = lrts_core::bundle::read_chunk(&file, 0).unwrap();
    honest.say(&chunk(program, length), &piece).unwrap();
    honest.answer_that(|answer| matches!(answer, ToApplication::Accepted { through: 1 })).unwrap();
    drop(honest);
    site.assert_unharmed();
}
