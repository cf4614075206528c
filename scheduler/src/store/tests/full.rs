//! A disk that is full, which takes a small file system of its own.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use lrts_core::clock::Moment;
use lrts_core::shutdown::Shutdown;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::record::LoadedJob;
use crate::store::{DurableStore, FullDisk, Health, MemoryStore, StoreError};

/// Runs a test in the root of a file system of so many MiB, which no other thread sees and which goes with the thread.
fn on_a_small_disk(mebibytes: u32, test: impl FnOnce(&Path) + Send + 'static) {
    let run = move || {
        let root = tempfile::tempdir().unwrap();
        let none = None::<&str>;
        let mounted = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
            .and_then(|()| {
                let size = format!("size={mebibytes}m");
                mount(none, root.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            });
        match mounted {
            Ok(()) => test(root.path()),
            // Only this user's rights may stand against it, so that where tests run as root none is skipped.
            Err(error) if !nix::unistd::Uid::effective().is_root() => {
                eprintln!("skipped: a file system can't be mounted here: {error}");
            }
            Err(error) => panic!("a file system can't be mounted although this is root: {error}"),
        }
        // Else it can't be removed. A failure means that it was never mounted.
        let _ = nix::mount::umount2(root.path(), nix::mount::MntFlags::MNT_DETACH);
    };
    std::thread::spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A file that leaves no room on its disk.
struct Ballast(PathBuf);

impl Ballast {
    fn fill(directory: &Path) -> Self {
        let path = directory.join("ballast");
        let mut file = File::create(&path).unwrap();
        for size in [1 << 20, 4_096, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        Self(path)
    }

    fn remove(self) {
        std::fs::remove_file(self.0).unwrap();
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Moment::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_full_disk_acknowledges_nothing_and_heals() {
    on_a_small_disk(32, |root| {
        let mut store = DurableStore::open(&root.join("store")).unwrap();
        let job = SESSION.job(1);
        commit(&mut store, vec![submit(SESSION, 1, &[bytes(1, 300_000)])]);
        assert_eq!((store.health(), store.refuses(1_000)), (Health::Good, None));
        let ballast = Ballast::fill(root);
        let result = bytes(2, 1 << 20);
        let batch = vec![ended(job, 1, true, result.clone(), "out".into(), vec![]), terminal(job, false)];
        let done = start_commit(&mut store, batch);
        until("full", || matches!(store.health(), Health::Full(_)));
        until("refused", || store.refuses(0).is_some());
        assert_eq!(wait(store.payload(job, None)).unwrap().payload, bytes(1, 300_000), "reads go on");
        done.recv_timeout(Duration::from_millis(1)).unwrap_err();
        ballast.remove();
        done.recv_timeout(PATIENCE).unwrap();
        assert_eq!(store.health(), Health::Good);
        until("taken in again", || store.refuses(1_000).is_none());
        drop(store);
        let mut store = DurableStore::open(&root.join("store")).unwrap();
        assert!(
            matches!(&store.load().unwrap().jobs[..], [(found, _, LoadedJob::Known(_))] if *found == job)
        );
        assert_eq!(wait(store.result(job)).unwrap().output, result);
    });
}

#[test]
fn small_records_wait_for_room_too() {
    on_a_small_disk(16, |root| {
        let mut store = DurableStore::open(&root.join("store")).unwrap();
        let mut memory = MemoryStore::new();
        let ballast = Ballast::fill(root);
        // Some may find room in pages that are there already.
        let mut done = Vec::new();
        let mut sequence = 1;
        while store.health() == Health::Good {
            let batch = vec![submit(SESSION, sequence, &[bytes(sequence, 3_000)])];
            commit(&mut memory, batch.clone());
            done.push(start_commit(&mut store, batch));
            let last = done.last().unwrap();
            until("done or full", || last.try_recv().is_ok() || store.health() != Health::Good);
            sequence += 1;
        }
        ballast.remove();
        until("healed", || store.health() == Health::Good);
        drop(store);
        let mut store = DurableStore::open(&root.join("store")).unwrap();
        assert_eq!(ageless(store.load().unwrap()), memory.load().unwrap());
    });
}

#[test]
fn the_store_closes_while_the_disk_is_full_and_opens_once_it_is_not() {
    on_a_small_disk(16, |root| {
        let mut store = DurableStore::open(&root.join("store")).unwrap();
        commit(&mut store, vec![submit(SESSION, 1, &[bytes(1, 100)])]);
        let ballast = Ballast::fill(root);
        let lost = start_commit(&mut store, vec![submit(SESSION, 2, &[bytes(2, 5 << 20)])]);
        until("full", || matches!(store.health(), Health::Full(_)));
        Box::new(store).close();
        lost.recv_timeout(PATIENCE).unwrap_err();
        let error = DurableStore::open(&root.join("store")).unwrap_err();
        assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
        ballast.remove();
        let mut store = DurableStore::open(&root.join("store")).unwrap();
        assert_eq!(store.load().unwrap().submits.len(), 1);
        assert_eq!(wait(store.payload(SESSION.job(1), None)).unwrap().payload, bytes(1, 100));
    });
}

/// What `refuses` keeps back is enough to finish and forget all jobs that were taken in.
fn the_reserve_is_enough(mebibytes: u32, payload_bytes: usize) {
    on_a_small_disk(mebibytes, move |root| {
        let mut store = DurableStore::open(&root.join("store")).unwrap();
        let payloads = vec![bytes(1, payload_bytes); 50];
        let all = payload_bytes as u64 * 50;
        let mut next = 1;
        while store.refuses(all).is_none() {
            commit(&mut store, vec![submit(SESSION, next, &payloads)]);
            next += 50;
        }
        assert!(next > 1);
        let batch = |first: u64, entries: fn(JobId) -> Vec<Entry>| {
            (first..first + 50).flat_map(|sequence| entries(SESSION.job(sequence))).collect()
        };
        for first in (1..next).step_by(50) {
            let end =
                |job| vec![ended(job, 1, true, "result".into(), "out".into(), vec![]), terminal(job, false)];
            commit(&mut store, batch(first, end));
            commit(&mut store, batch(first, |job| vec![terminal(job, true)]));
            assert_eq!(store.health(), Health::Good, "after {first} of {next}");
        }
        for first in (1..next).step_by(50) {
            commit(&mut store, batch(first, |job| vec![forgotten(job, true)]));
            assert_eq!(store.health(), Health::Good, "after {first} of {next}");
        }
        until("the room of the payloads is there again", || store.refuses(10 * all).is_none());
    });
}

#[test]
fn the_reserve_of_a_small_disk_is_enough_for_what_was_taken_in() {
    the_reserve_is_enough(16, 20_000);
}

#[test]
fn the_reserve_of_a_larger_disk_is_enough_for_what_was_taken_in() {
    the_reserve_is_enough(64, 100_000);
}

#[test]
fn the_reserve_is_enough_where_all_is_in_the_database() {
    the_reserve_is_enough(12, 300);
}

/// What comes behind a batch that doesn't fit makes room for it, and is durable after it.
#[test]
fn deletions_in_later_batches_make_room_too() {
    on_a_small_disk(32, |root| {
        let mut store = DurableStore::open(&root.join("store")).unwrap();
        let (old, new) = (SESSION.job(1), SESSION.job(2));
        commit(&mut store, vec![submit(SESSION, 1, &[bytes(1, 100)])]);
        commit(&mut store, vec![submit(SESSION, 2, &[bytes(2, 100)])]);
        let (first, second) = (bytes(3, 20 << 20), bytes(4, 15 << 20));
        commit(&mut store, vec![ended(old, 1, true, first, "".into(), vec![]), terminal(old, false)]);
        let stuck = start_commit(
            &mut store,
            vec![ended(new, 1, true, second.clone(), "".into(), vec![]), terminal(new, false)],
        );
        until("full", || matches!(store.health(), Health::Full(_)));
        let behind = start_commit(&mut store, vec![terminal(new, true)]);
        behind.recv_timeout(Duration::from_millis(1)).unwrap_err();
        assert_eq!(wait(store.result(old)).unwrap().output.len(), 20 << 20, "it may still be asked for");
        let taken = start_commit(&mut store, vec![terminal(old, true), submit(SESSION, 3, &[bytes(5, 100)])]);
        stuck.recv_timeout(PATIENCE).unwrap();
        behind.recv_timeout(PATIENCE).unwrap();
        taken.recv_timeout(PATIENCE).unwrap();
        assert_eq!(store.health(), Health::Good);
        drop(store);
        let mut store = DurableStore::open(&root.join("store")).unwrap();
        let loaded = store.load().unwrap();
        let stages: Vec<_> = loaded.jobs.into_iter().map(|(job, _, content)| (job, content)).collect();
        let taken = |job| {
            (job, LoadedJob::Known(image(Stage::Ended { report: report(), output_bytes: 1, taken: true })))
        };
        assert_eq!((stages, loaded.submits.len()), (vec![taken(old), taken(new)], 3));
    });
}

/// A full disk is not tried before there is more room: a try that fails has the database repaired.
#[test]
fn a_full_disk_is_left_alone_until_there_is_room() {
    on_a_small_disk(16, |root| {
        let mut store = DurableStore::open(&root.join("store")).unwrap();
        let ballast = Ballast::fill(root);
        let full = FullDisk::seen(root);
        assert!(!full.has_changed(root));
        // All of it goes into the database.
        let payloads = vec![bytes(1, 10_000); 500];
        let stuck = start_commit(&mut store, vec![submit(SESSION, 1, &payloads)]);
        until("full", || matches!(store.health(), Health::Full(_)));
        let since = Moment::now();
        until("a few times as long as it is left alone", || since.elapsed() > Duration::from_millis(3_500));
        assert!(store.opened() <= 2, "it was opened {} times", store.opened());
        ballast.remove();
        assert!(full.has_changed(root));
        stuck.recv_timeout(PATIENCE).unwrap();
    });
}

#[test]
fn a_scheduler_that_starts_on_a_full_disk_waits_for_room() {
    on_a_small_disk(16, |root| {
        let path = root.join("state");
        std::fs::create_dir(&path).unwrap();
        let ballast = Ballast::fill(root);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let shutdown = Shutdown::new();
        let open = || crate::open_when_room(Some(path.clone()), &shutdown);
        runtime.block_on(async {
            let mut waiting = std::pin::pin!(open());
            let waits = tokio::time::timeout(Duration::from_millis(100), waiting.as_mut()).await;
            assert!(waits.is_err(), "there is no room");
            ballast.remove();
            let opened = tokio::time::timeout(PATIENCE, waiting).await.expect("there is room");
            assert_eq!(opened.unwrap().unwrap().1.epoch(), 1);

            let _ballast = Ballast::fill(root);
            shutdown.request();
            let opened = tokio::time::timeout(PATIENCE, open()).await.expect("somebody asked for the end");
            assert!(opened.unwrap().is_none());
        });
    });
}

#[test]
fn deletions_make_room_for_the_rest_of_their_batch() {
    on_a_small_disk(32, |root| {
        let mut store = DurableStore::open(&root.join("store")).unwrap();
        let (old, new) = (SessionId(1), SessionId(2));
        commit(&mut store, vec![submit(old, 1, &[bytes(1, 20 << 20)])]);
        let body = bytes(2, 15 << 20);
        let forget = record(Record::SessionForgotten { session: old });
        commit(&mut store, vec![submit(new, 1, std::slice::from_ref(&body)), forget]);
        assert_eq!(wait(store.payload(new.job(1), None)).unwrap().payload, body);
        drop(store);
        assert_eq!(DurableStore::open(&root.join("store")).unwrap().load().unwrap().submits.len(), 1);
    });
}
