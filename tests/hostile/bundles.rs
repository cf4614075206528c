//! Programs that are none: bombs in their pieces, and far too many of them.

use std::io::Read;

use lrts_core::ids::{BundleDigest, SessionId};
use lrts_core::limits::{BUNDLE_BYTES, BUNDLE_CHUNK_BYTES};
use lrts_core::protocol::application::{FromApplication, ToApplication};
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
        if attacker.say(&offer(digest(number), 1 + u64::from(number), platform()), b"").is_err() {
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
