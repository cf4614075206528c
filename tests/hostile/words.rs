//! Words: what honest peers say first, and MessagePack that is meant to do harm.

use std::time::Duration;

use lrts_core::ids::{SessionId, WorkerId};
use lrts_core::protocol::application::{Attach, Credit};
use lrts_core::protocol::worker::Register;
use lrts_core::spec::{BundleRef, OnDisconnect, Platform};
use lrts_core::worker_secret::WorkerSecret;

/// What an application says first.
pub(crate) fn attach(application: &str, session: SessionId) -> Attach {
    Attach {
        application: application.parse().unwrap(),
        session,
        bundle: BundleRef::Installed("tests".to_owned()),
        services: vec!["work".to_owned()],
        on_disconnect: OnDisconnect::CancelAfter(Duration::ZERO),
        progress_rtt_test: Duration::from_secs(10),
        credit: Credit { results: 10, bytes: 1_000 },
    }
}

pub(crate) fn platform() -> Platform {
    Platform { target: "x86_64-linux-gnu".to_owned(), glibc: None }
}

/// What a worker says first.
pub(crate) fn register(worker: WorkerId, secret: WorkerSecret) -> Register {
    Register {
        worker,
        secret,
        host: "attacker's".to_owned(),
        pid: 1,
        instance: 1,
        slots: 1,
        platform: platform(),
        boot_id: "boot".to_owned(),
        installed: Vec::new(),
        ships: false,
        attempts: Vec::new(),
        store: None,
    }
}

/// MessagePack that costs its reader more than its writer. Counts and lengths are of 32 bits.
pub(crate) fn contents() -> Vec<(&'static str, Vec<u8>)> {
    let most = [0xff; 4];
    let million = 1_000_000_u32.to_be_bytes();
    let announced = |kind: u8, rest: &[u8]| [&[kind], &most[..], rest].concat();
    vec![
        ("arrays five million deep", [vec![0x91; 5_000_000], vec![0xc0]].concat()),
        ("maps five million deep", [vec![0x81; 5_000_000], vec![0xc0]].concat()),
        ("an array of the most elements", announced(0xdd, &[0xc0; 100])),
        ("a map of the most elements", announced(0xdf, &[0xc0; 100])),
        ("the longest string", announced(0xdb, b"x")),
        ("the longest bytes", announced(0xc6, b"x")),
        ("the longest extension", announced(0xc9, b"x")),
        ("a million empty strings", [&[0xdd], &million[..], &[0xa0; 1_000_000]].concat()),
        ("a million empty maps", [&[0xdd], &million[..], &[0x80; 1_000_000]].concat()),
        ("a million numbers", [&[0xdd], &million[..], &[0x01; 1_000_000]].concat()),
        ("nothing", Vec::new()),
        ("no value", vec![0xc1]),
    ]
}

/// A message of one variant with one field.
pub(crate) fn message(variant: &str, field: &str, content: &[u8]) -> Vec<u8> {
    let text = |text: &str| [&[0xa0 | text.len() as u8], text.as_bytes()].concat();
    [&[0x81][..], &text(variant), &[0x81], &text(field), content].concat()
}
