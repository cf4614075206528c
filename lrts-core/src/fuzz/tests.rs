use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use super::{Script, TARGETS, check_corpora, keep};
use crate::bundle::read_chunk;
use crate::ids::{AttemptId, BarId, SessionId};
use crate::limits::BUNDLE_CHUNK_BYTES;
use crate::progress::fuzz::{Answer, Order};
use crate::progress::{Arena, Region, Watched};
use crate::protocol::codec;
use crate::protocol::progress::{BarText, Color, OwnedApplication};
use crate::spool;
use crate::transport::fuzz::seeds;

const ATTEMPT: AttemptId =
    AttemptId { job: crate::ids::JobId { session: SessionId(0x1f), sequence: 17 }, attempt: 2 };

#[test]
fn what_is_kept_for_fuzzers_does_no_harm() {
    keep_messages();
    keep("packet", seeds::packet());
    keep("session", seeds::session());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    keep("wire", runtime.block_on(seeds::wire()));
    keep("arena", regions());
    keep("bundle_chunk", chunks());
    keep("names", names());
    #[cfg(feature = "authority")]
    for (target, input) in crate::keys::fuzz::seeds::all() {
        keep(target, [input]);
    }
    check_corpora(TARGETS);
}

/// The golden bytes, each with the target that reads messages of its kind.
fn golden() -> Vec<(&'static str, Vec<u8>)> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let lines =
        ["protocol.golden", "host-1.golden"].map(|name| fs::read_to_string(tests.join(name)).unwrap());
    let message = |line: &str| {
        let (name, hex) = line.split_once(' ').unwrap();
        let target = match name.split_once("::").unwrap().0 {
            "FromApplication" | "ToApplication" => "application_messages",
            "FromWorker" | "ToWorker" => "worker_messages",
            "FromCommand" | "ToCommand" => "command_messages",
            "FromHost" | "ToHost" => "host_notices",
            "FromReporter" | "ToReporter" | "FromWatcher" | "ToWatcher" => "progress_messages",
            other => panic!("no target reads {other}"),
        };
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (target, (0..hex.len()).step_by(2).map(byte).collect())
    };
    lines.iter().flat_map(|text| text.lines()).map(message).collect()
}

fn keep_messages() {
    for (target, bytes) in golden() {
        keep(target, [bytes]);
    }
    let host: Vec<Vec<u8>> = golden()
        .into_iter()
        .filter(|(target, _)| *target == "host_notices")
        .map(|(_, bytes)| bytes)
        .collect();
    keep("spool_end", host.chunks(5).map(spool::join).chain([vec![], vec![3, 0, 0, 0, 1]]));
    let watched = Watched {
        arena: 1,
        region: 2,
        attempt: ATTEMPT,
        application: OwnedApplication {
            owner: Some("ann".parse().unwrap()),
            application: "nightly".parse().unwrap(),
        },
        rtt_test: Duration::from_secs(10),
    };
    let orders = [
        Order::Start {
            address: "127.0.0.1:5454".into(),
            host: "node-1".into(),
            socket_dir: "/run".into(),
            keys: Some("/keys".into()),
        },
        Order::AddArena { arena: 1 },
        Order::RemoveArena { arena: 1 },
        Order::Change { unwatch: vec![(1, 2, ATTEMPT)], watch: vec![watched] },
    ];
    keep("progress_messages", orders.iter().map(|order| codec::encode(order).into()));
    keep("progress_messages", [codec::encode(&Answer::Released { regions: vec![(1, 2)] }).into()]);
}

/// Regions as jobs leave them, and as no honest job does.
fn regions() -> Vec<Vec<u8>> {
    let arena = Arena::create(1).unwrap();
    let region = Region::map(arena.descriptor(), 0).unwrap();
    let memory = fs::File::from(arena.descriptor().try_clone_to_owned().unwrap());
    let read = |offset: usize, bytes: usize| {
        let mut content = vec![0; bytes];
        memory.read_exact_at(&mut content, offset as u64).unwrap();
        content
    };
    let text = BarText {
        description: "Reading".into(),
        message: "läuft".into(),
        unit: "rows".into(),
        color: Color::Cyan,
        leave: true,
    };
    let bar = region.start_bar(&text, Some(10));
    bar.inc(3);
    let other = region.start_bar(&BarText::default(), None);
    other.close();
    let (header, first, second) = (read(0, 48), read(4_096, 1_024), read(5_120, 1_024));
    let whole = |header: &[u8], first: &[u8], second: &[u8]| {
        let script = Script::new().byte(0).byte(0).part(header);
        script.byte(1).byte(0).byte(0).part(first).byte(1).byte(1).byte(0).part(second)
    };
    let moved = whole(&header, &first, &second).byte(1).byte(0).byte(0).part(&9_u64.to_ne_bytes());
    let mut many = header.clone();
    many[8..16].copy_from_slice(&u64::MAX.to_ne_bytes());
    let mut torn = first.clone();
    torn[24] |= 1;
    let mut long = first.clone();
    long[576..].fill(0xff);
    vec![
        whole(&header, &first, &second).bytes(),
        moved.bytes(),
        whole(&many, &first, &torn).bytes(),
        whole(&header, &torn, &long).bytes(),
        whole(&[9; 48], &first, &second).bytes(),
        whole(&header, &[0xff; 1_024], &second).bytes(),
        Script::new().byte(0).byte(0).part(&header).bytes(),
    ]
}

fn chunks() -> Vec<Vec<u8>> {
    let file = tempfile::tempfile().unwrap();
    let input = |announced: u32, compressed: &[u8]| {
        Script::new().number(u64::from(announced) << 32).rest(compressed).bytes()
    };
    file.write_all_at(&[7; 3_000], 0).unwrap();
    file.write_all_at(b"\x7fELF and so on", 0).unwrap();
    let (small, bytes) = read_chunk(&file, 0).unwrap();
    file.set_len(2 * BUNDLE_CHUNK_BYTES as u64).unwrap();
    let (large, full) = read_chunk(&file, 0).unwrap();
    let bomb = zstd::bulk::compress(&vec![0; 8 * BUNDLE_CHUNK_BYTES], 1).unwrap();
    vec![
        input(bytes, &small),
        input(bytes + 1, &small),
        input(bytes - 1, &small),
        input(full, &large),
        input(full, &large[..large.len() / 2]),
        input(full, &bomb),
        input(u32::MAX, &bomb),
        input(0, &[]),
    ]
}

fn names() -> Vec<Vec<u8>> {
    let bar = BarId { attempt: ATTEMPT, index: 3 };
    let file = spool::name_of(ATTEMPT);
    let digest = "07".repeat(32);
    let names = [
        &*ATTEMPT.job.to_string(),
        &*ATTEMPT.to_string(),
        &*bar.to_string(),
        &file,
        "000000000000002a",
        "+00000000000002a",
        &digest,
        "nightly",
        "../../etc/passwd",
        "000000000000001f-18446744073709551615/4294967295",
        "000000000000001f-018446744073709551616",
        "äöü",
    ];
    names.map(|name| name.as_bytes().to_vec()).into()
}
