//! How fast the store is: `cargo test --release -p lrts-scheduler -- --ignored store_speed --nocapture`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use lrts_core::clock::Moment;
use lrts_core::ids::WorkerId;
use nix::sys::resource::{UsageWho, getrusage};

use super::*;
use crate::record::{LoadedJob, OpenAttempt};
use crate::store::DurableStore;

const JOBS: u64 = 1_000_000;
/// Jobs of a submit, and of a batch of transitions.
const BATCH: u64 = 1_000;
/// Bodies of 1 MB.
const BODIES: u64 = 500;
/// How many of them are committed together.
const BODIES_PER_BATCH: u64 = 8;

/// Tells the child which store to fill, and how.
const DIRECTORY: &str = "LRTS_TEST_STORE";
/// See [`DIRECTORY`].
const PHASE: &str = "LRTS_TEST_PHASE";

/// A batch under way while the next is made, as the event loop does it.
fn pipeline(store: &mut DurableStore, batches: impl Iterator<Item = Vec<Entry>>) -> Duration {
    let start = Moment::now();
    let mut under_way = None;
    for batch in batches {
        if let Some(done) = under_way.replace(start_commit(store, batch)) {
            done.recv().unwrap();
        }
    }
    if let Some(done) = under_way {
        done.recv().unwrap();
    }
    start.elapsed()
}

fn submits() -> impl Iterator<Item = Vec<Entry>> {
    let payloads: Vec<Bytes> = (0..BATCH).map(|seed| bytes(seed, 100)).collect();
    (0..JOBS / BATCH).map(move |number| vec![submit(SESSION, number * BATCH + 1, &payloads)])
}

/// Each job of a batch begins, then each of them ends with a result.
fn transitions() -> impl Iterator<Item = Vec<Entry>> {
    let open = vec![OpenAttempt { attempt: 1, worker: WorkerId(1), began: true, lapsed: false }];
    (0..JOBS / BATCH * 2).map(move |step| {
        let first = step / 2 * BATCH + 1;
        let jobs = (first..first + BATCH).map(|sequence| SESSION.job(sequence));
        if step % 2 == 0 {
            let began = JobImage { open: open.clone(), ..image(Stage::Live) };
            jobs.map(|job| record(Record::Job { job, image: began.clone() })).collect()
        } else {
            let end =
                |job| [ended(job, 1, true, "result".into(), Bytes::new(), vec![]), terminal(job, false)];
            jobs.flat_map(end).collect()
        }
    })
}

/// Not a test by itself: fills a store, says how long that took, and waits to be killed.
#[test]
#[ignore = "started by the measurement below"]
fn filler() {
    let (Some(directory), Ok(phase)) = (std::env::var_os(DIRECTORY), std::env::var(PHASE)) else { return };
    let mut store = DurableStore::open(Path::new(&directory)).unwrap();
    store.load().unwrap();
    let took = match phase.as_str() {
        "submits" => pipeline(&mut store, submits()),
        _ => pipeline(&mut store, transitions()),
    };
    let memory = getrusage(UsageWho::RUSAGE_SELF).unwrap().max_rss() >> 10;
    println!("\ntook {:.2} s, at most {memory} MiB of memory", took.as_secs_f64());
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// What the filler says, once it has filled the store and is killed.
fn fill_and_kill(directory: &Path, phase: &str) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::speed::filler", "--ignored", "--nocapture"])
        .envs([(DIRECTORY, directory.as_os_str()), (PHASE, phase.as_ref())])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let took = lines.map_while(Result::ok).find(|line| line.starts_with("took"));
    child.kill().unwrap();
    child.wait().unwrap();
    took.expect("it has filled the store")
}

/// MiB on the disk: of the database and of the bodies.
fn size(directory: &Path) -> String {
    let bodies = fs::read_dir(directory.join("bodies")).unwrap();
    let bodies: u64 = bodies.map(|entry| entry.unwrap().metadata().unwrap().blocks() / 2_048).sum();
    let records = fs::metadata(directory.join("records.redb")).unwrap().blocks() / 2_048;
    format!("{records} MiB of records, {bodies} MiB of bodies")
}

fn processor_time() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
        .sum()
}

fn reopen(directory: &Path) -> (String, Loaded, DurableStore) {
    let (start, used) = (Moment::now(), processor_time());
    let mut store = DurableStore::open(directory).unwrap();
    let loaded = store.load().unwrap();
    let took =
        format!("{:.2} s, {:.2} s of processor", start.elapsed().as_secs_f64(), processor_time() - used);
    (took, loaded, store)
}

/// A plain file, synced as often as the store does.
fn plain(directory: &Path) -> Duration {
    let body = bytes(1, 1_000_000);
    let mut file = File::create(directory.join("plain")).unwrap();
    let start = Moment::now();
    for number in 1..=BODIES {
        file.write_all(&body).unwrap();
        if number % BODIES_PER_BATCH == 0 {
            file.sync_data().unwrap();
        }
    }
    file.sync_data().unwrap();
    start.elapsed()
}

#[test]
#[ignore = "a measurement, which takes a minute"]
fn store_speed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    println!("\n1M jobs submitted by {BATCH}     {}", fill_and_kill(path, "submits"));
    println!("  on the disk                 {}", size(path));
    let (took, loaded, store) = reopen(path);
    assert_eq!(loaded.submits.iter().map(|(_, submitted)| submitted.jobs.len() as u64).sum::<u64>(), JOBS);
    println!("  open and load after a kill  {took}");
    let start = Moment::now();
    for sequence in 1..=10_000 {
        wait(store.payload(SESSION.job(sequence * 97), None)).unwrap();
    }
    println!("  10k payloads, scattered     {:.2} s", start.elapsed().as_secs_f64());
    drop(store);
    println!("1M started and finished       {}", fill_and_kill(path, "transitions"));
    println!("  on the disk                 {}", size(path));
    let (took, loaded, mut store) = reopen(path);
    let ended = |content: &LoadedJob| matches!(content, LoadedJob::Known(image) if image.open.is_empty());
    assert_eq!(loaded.jobs.iter().filter(|(.., content)| ended(content)).count() as u64, JOBS);
    println!("  open and load after a kill  {took}");
    let batches = (0..JOBS / BATCH).map(|number| {
        let jobs = (number * BATCH + 1..=number * BATCH + BATCH).map(|sequence| SESSION.job(sequence));
        jobs.flat_map(|job| [terminal(job, true), forgotten(job, true)]).collect()
    });
    println!("1M taken and forgotten        {:.2} s", pipeline(&mut store, batches).as_secs_f64());
    drop(store);
    println!("  on the disk                 {}", size(path));

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let mut store = DurableStore::open(path).unwrap();
    let body = bytes(1, 1_000_000);
    let mut next = 1..;
    let batches = (0..BODIES / BODIES_PER_BATCH).map(|_| {
        next.by_ref()
            .take(BODIES_PER_BATCH as usize)
            .map(|first| submit(SESSION, first, std::slice::from_ref(&body)))
            .collect()
    });
    let rate = |took: Duration| BODIES as f64 / took.as_secs_f64();
    println!("bodies of 1 MB                {:.0} MB/s", rate(pipeline(&mut store, batches)));
    println!("a plain file                  {:.0} MB/s", rate(plain(path)));
}
