//! A store whose process is killed at any moment: nothing that was acknowledged is lost, no batch is there in part.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;
use crate::record::LoadedJob;
use crate::store::DurableStore;

/// Tells the child which store to write to.
const DIRECTORY: &str = "LRTS_TEST_STORE";

/// Jobs of a batch.
const JOBS: u64 = 4;

fn payload(sequence: u64) -> Bytes {
    // Some small, some in segments of their own size.
    bytes(sequence, if sequence.is_multiple_of(5) { 60_000 } else { (sequence % 90) as usize })
}

fn result(sequence: u64) -> Bytes {
    bytes(!sequence, if sequence.is_multiple_of(7) { 30_000 } else { 9 })
}

/// New jobs, and the end of those of the batch before, whose payloads go with that; every third batch takes results too.
fn batch(number: u64) -> Vec<Entry> {
    let first = number * JOBS + 1;
    let payloads: Vec<Bytes> = (first..first + JOBS).map(payload).collect();
    let mut batch = vec![submit(SESSION, first, &payloads)];
    for sequence in first.saturating_sub(JOBS)..first {
        if sequence > 0 {
            let job = SESSION.job(sequence);
            batch.push(ended(job, 1, true, result(sequence), Bytes::new(), Vec::new()));
            batch.push(terminal(job, is_taken(sequence)));
        }
    }
    batch
}

fn is_taken(sequence: u64) -> bool {
    sequence.is_multiple_of(3)
}

/// Not a test by itself: it commits batches until it is killed, and prints the number of each once it is durable.
#[test]
#[ignore = "started by the test below"]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let mut store = DurableStore::open(Path::new(&directory)).unwrap();
    let start = store.load().unwrap().submits.len() as u64;
    for number in start.. {
        commit(&mut store, batch(number));
        println!("\ndurable {number}");
        std::io::stdout().flush().unwrap();
    }
}

/// Runs the child until it has made `batches` durable, kills it a moment later, and returns the last batch it has told of.
fn run_and_kill(directory: &Path, batches: usize, random: &mut fastrand::Rng) -> Option<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::crash::child", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let number = |line: String| line.strip_prefix("durable ")?.parse::<u64>().ok();
    let mut last = None;
    for line in lines.by_ref().map_while(Result::ok).filter_map(number).take(batches) {
        last = Some(line);
    }
    for _ in 0..random.u32(0..200_000) {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it has told of in its last moments counts too.
    lines.map_while(Result::ok).filter_map(number).last().or(last)
}

#[test]
fn nothing_acknowledged_is_lost_by_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::new();
    let mut batches = 0;
    for round in 1..=12 {
        let seed = random.get_seed();
        let told = run_and_kill(directory.path(), random.usize(1..12), &mut random);
        let mut store = DurableStore::open(directory.path()).unwrap();
        assert_eq!(store.epoch(), 2 * round, "{seed}");
        let loaded = store.load().unwrap();
        let found = loaded.submits.len() as u64;
        let acknowledged = told.map_or(batches, |last| last + 1);
        assert!(found >= acknowledged, "{found} batches of {acknowledged}, seed {seed}");
        batches = found;
        // All of the newest batch is there, too.
        assert_eq!(loaded.jobs.len() as u64, (found - 1) * JOBS, "{seed}");
        for (job, _, content) in &loaded.jobs {
            let LoadedJob::Known(JobImage { stage: Stage::Ended { taken, .. }, .. }) = content else {
                panic!("{content:?}");
            };
            assert_eq!(*taken, is_taken(job.sequence));
            match wait(store.result(*job)) {
                Err(ReadError::Missing) => assert!(taken, "{job}"),
                bodies => {
                    assert_eq!((bodies.unwrap().output, *taken), (result(job.sequence), false), "{job}")
                }
            }
        }
        for sequence in (found - 1) * JOBS + 1..=found * JOBS {
            let start = wait(store.payload(SESSION.job(sequence), None)).unwrap();
            assert_eq!(start.payload, payload(sequence), "{sequence}, seed {seed}");
        }
    }
}
