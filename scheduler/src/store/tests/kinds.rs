//! Every kind of record and body, over restarts, and when it goes.

use std::fs;
use std::path::Path;

use lrts_core::ids::WorkerId;
use lrts_core::protocol::progress::{BarNumbers, BarText};
use lrts_core::spec::{BundleRef, OnDisconnect};
use lrts_core::status::{Failure, FailureKind};
use redb::{Database, ReadableTable};

use super::*;
use crate::record::{
    ApplicationImage, Draining, KeyedRecord, LoadedJob, OpenAttempt, SessionImage, WorkerImage,
};
use crate::store::{DurableStore, MemoryStore, ResultBodies, tables};

pub(super) fn open(directory: &Path) -> DurableStore {
    DurableStore::open(directory).unwrap()
}

fn session_image() -> SessionImage {
    SessionImage {
        application: "app".parse().unwrap(),
        bundle: BundleRef::Installed("tool".into()),
        services: vec!["a".into(), "b".into()],
        decided: true,
        stopped: false,
    }
}

fn keyed_record(sequence: u64, key: &str) -> KeyedRecord {
    let job = JobId::keyed("app".parse().unwrap(), key);
    KeyedRecord { sequence, job, key: key.into(), digest: 9 }
}

fn bar() -> BarRecord {
    BarRecord { index: 3, text: BarText::default(), numbers: BarNumbers::default() }
}

/// Some of everything.
pub(super) fn everything() -> Vec<Entry> {
    let application = ApplicationImage {
        owner: Some("ann".parse().unwrap()),
        on_disconnect: OnDisconnect::CancelAfter(Duration::from_secs(5)),
        progress_rtt_test: Duration::from_millis(3),
    };
    let worker = WorkerImage {
        absent: Some(Duration::from_secs(9)),
        draining: Some(Draining { reason: "reboot".into(), instance: 77, deadline: None }),
    };
    let open = OpenAttempt { attempt: 2, worker: WorkerId(5), ran: Some(Duration::ZERO), lapsed: true };
    let failure = Failure::new(FailureKind::Error, "no luck");
    let live = JobImage {
        last_failure: Some(failure.clone()),
        open: vec![open],
        checkpoints: vec![2],
        ..image(Stage::Live)
    };
    let held = Stage::Held { failure, report: report() };
    let payloads = [bytes(1, 10), bytes(2, 0), bytes(3, 40_000), bytes(4, 20), bytes(5, 20)];
    let submitted = submit_with(SESSION, 5, &payloads, |submitted| {
        submitted.options = [JobOptions::new(), JobOptions::new().retries(2)].into();
        submitted.jobs[4].options = 1;
        submitted.skipped = vec![8];
        submitted.keyed = vec![keyed_record(9, "key")];
    });
    let checkpoint = AttemptId { job: SESSION.job(5), attempt: 2 };
    vec![
        record(Record::Application { application: "app".parse().unwrap(), image: application }),
        record(Record::Session { session: SESSION, image: session_image() }),
        record(Record::Worker { worker: WorkerId(5), image: Some(worker) }),
        submitted,
        submit(SESSION, 10, &[bytes(6, 100)]),
        Entry {
            record: Record::Checkpoint { attempt: checkpoint },
            bodies: Bodies::Checkpoint("point".into()),
        },
        record(Record::Job { job: SESSION.job(5), image: live }),
        ended(SESSION.job(6), 1, false, "ignored".into(), "out".into(), vec![bar()]),
        record(Record::Job { job: SESSION.job(6), image: image(held) }),
        ended(SESSION.job(10), 1, true, bytes(7, 300_000), Bytes::new(), vec![]),
        terminal(SESSION.job(10), false),
    ]
}

/// All that can be asked of these jobs is the same.
fn same(store: &dyn Store, memory: &MemoryStore) {
    let jobs = (4..12).map(|sequence| SESSION.job(sequence)).chain([keyed_record(9, "key").job]);
    for job in jobs {
        assert_eq!(text(store.payload(job, None)), text(memory.payload(job, None)), "payload of {job}");
        assert_eq!(text(store.result(job)), text(memory.result(job)), "result of {job}");
        assert_eq!(text(store.output(job)), text(memory.output(job)), "output of {job}");
    }
    let start = wait(store.payload(SESSION.job(5), Some(2))).unwrap();
    assert_eq!(start, wait(memory.payload(SESSION.job(5), Some(2))).unwrap());
    assert_eq!(start.checkpoint.unwrap(), "point");
}

#[test]
fn every_kind_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut memory = MemoryStore::new();
    let mut store = open(directory.path());
    assert_eq!(store.load().unwrap(), Loaded::default());
    commit(&mut store, everything());
    commit(&mut memory, everything());
    same(&store, &memory);
    let identity = store.identity();
    Box::new(store).close();

    let mut store = open(directory.path());
    let mut memory = memory.reopen();
    assert_eq!((store.epoch(), store.identity()), (memory.epoch(), identity));
    let loaded = ageless(store.load().unwrap());
    assert_eq!((loaded.submits.len(), loaded.jobs.len()), (2, 3));
    assert_eq!(loaded, memory.load().unwrap());
    same(&store, &memory);

    // Written again, it comes to the same.
    commit(&mut store, everything());
    same(&store, &memory);
    drop(store);
    let mut store = open(directory.path());
    assert_eq!((store.epoch(), ageless(store.load().unwrap())), (3, memory.load().unwrap()));
}

#[test]
fn bodies_go_when_nobody_needs_them() {
    let directory = tempfile::tempdir().unwrap();
    let files = || fs::read_dir(directory.path().join("bodies")).unwrap().count();
    let mut store = open(directory.path());
    commit(&mut store, vec![submit(SESSION, 1, &[bytes(1, 100_000), bytes(2, 100_000)])]);
    let (one, two) = (SESSION.job(1), SESSION.job(2));
    let checkpoint = |attempt, body: &'static str| {
        let attempt = AttemptId { job: one, attempt };
        Entry { record: Record::Checkpoint { attempt }, bodies: Bodies::Checkpoint(body.into()) }
    };
    let with_checkpoints =
        |checkpoints| record(Record::Job { job: one, image: JobImage { checkpoints, ..image(Stage::Live) } });
    commit(
        &mut store,
        vec![checkpoint(1, "a"), checkpoint(1, "b"), checkpoint(2, "c"), with_checkpoints(vec![1, 2])],
    );
    let point =
        |store: &DurableStore, attempt| wait(store.payload(one, Some(attempt))).map(|start| start.checkpoint);
    assert_eq!((point(&store, 1).unwrap(), point(&store, 2).unwrap()), (Some("b".into()), Some("c".into())));
    commit(&mut store, vec![with_checkpoints(vec![2])]);
    assert_eq!(point(&store, 1).unwrap(), None, "it would begin without");
    assert_eq!(point(&store, 2).unwrap(), Some("c".into()));

    commit(
        &mut store,
        vec![ended(one, 2, true, "result".into(), "out".into(), vec![bar()]), terminal(one, false)],
    );
    assert!(!matches!(point(&store, 2), Ok(Some(_))));
    assert_eq!(wait(store.payload(two, None)).unwrap().payload, bytes(2, 100_000));
    assert_eq!(files(), 1);
    commit(&mut store, vec![terminal(two, false)]);
    // The space is given back after the commit is acknowledged.
    commit(&mut store, vec![]);
    assert_eq!(files(), 0);
    let result = ResultBodies { output: "result".into(), bars: vec![bar()] };
    assert_eq!(wait(store.result(one)).unwrap(), result);
    commit(&mut store, vec![terminal(one, true)]);
    assert!(matches!(wait(store.result(one)), Err(ReadError::Missing)));
    assert_eq!(wait(store.output(one)).unwrap(), ("out".into(), "err".into()));
    commit(&mut store, vec![forgotten(one, true)]);
    assert!(matches!(wait(store.output(one)), Err(ReadError::Missing)));
}

#[test]
fn a_failure_after_a_result_keeps_the_result() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path());
    let job = SESSION.job(1);
    commit(
        &mut store,
        vec![submit(SESSION, 1, &[bytes(1, 10)]), ended(job, 1, true, "good".into(), Bytes::new(), vec![])],
    );
    commit(&mut store, vec![ended(job, 2, false, "bad".into(), "late".into(), vec![bar()])]);
    let result = ResultBodies { output: "good".into(), bars: vec![bar()] };
    assert_eq!(wait(store.result(job)).unwrap(), result);
    assert_eq!(wait(store.output(job)).unwrap().0, "late");
}

#[test]
fn forgotten_jobs_take_a_row_for_all_of_a_submit() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path());
    let payloads: Vec<Bytes> = (0..100).map(|seed| bytes(seed, 10)).collect();
    let skipped = |submitted: &mut Submitted| submitted.skipped = vec![1, 50, 100];
    commit(&mut store, vec![submit_with(SESSION, 1, &payloads, skipped)]);
    let jobs: Vec<u64> = (2..50).chain(51..100).collect();
    let last = SESSION.job(77);
    for &sequence in &jobs {
        let job = SESSION.job(sequence);
        if job != last {
            commit(&mut store, vec![terminal(job, true), forgotten(job, sequence.is_multiple_of(3))]);
        }
    }
    let rows = || {
        let database = Database::open(directory.path().join("records.redb")).unwrap();
        let transaction = redb::ReadableDatabase::begin_read(&database).unwrap();
        transaction.open_table(tables::JOBS).unwrap().iter().unwrap().count()
    };
    drop(store);
    assert_eq!(rows(), jobs.len() - 1);
    let mut store = open(directory.path());
    commit(&mut store, vec![forgotten(last, true)]);
    drop(store);
    assert_eq!(rows(), 0);
    let loaded = open(directory.path()).load().unwrap();
    assert_eq!(loaded.submits[0].1.jobs.len(), 100);
    let expected: Vec<_> = jobs
        .iter()
        .map(|&sequence| {
            (
                SESSION.job(sequence),
                LoadedJob::Forgotten { taken: sequence.is_multiple_of(3) || sequence == 77 },
            )
        })
        .collect();
    let found: Vec<_> = loaded.jobs.into_iter().map(|(job, _, content)| (job, content)).collect();
    assert_eq!(found, expected);
}

#[test]
fn keyed_jobs_outlive_the_session_that_brought_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path());
    let (a, b) = (keyed_record(1, "a"), keyed_record(3, "b"));
    let payloads = [bytes(1, 10), bytes(2, 20), bytes(3, 50_000)];
    let keyed = vec![a.clone(), b.clone()];
    commit(&mut store, vec![submit_with(SESSION, 1, &payloads, |submitted| submitted.keyed = keyed.clone())]);
    commit(&mut store, vec![forgotten(a.job, true)]);
    drop(store);

    let mut store = open(directory.path());
    let submitted = store.load().unwrap().submits.remove(0).1;
    assert_eq!((submitted.skipped, submitted.keyed), (vec![1], vec![b.clone()]), "a's sequence is used up");
    commit(&mut store, vec![record(Record::SessionForgotten { session: SESSION })]);
    assert!(matches!(wait(store.payload(SESSION.job(2), None)), Err(ReadError::Missing)));
    assert!(matches!(wait(store.payload(a.job, None)), Err(ReadError::Missing)));
    drop(store);

    let mut store = open(directory.path());
    let loaded = store.load().unwrap();
    let [(_, alone)] = &loaded.submits[..] else { panic!("{loaded:?}") };
    assert_eq!((alone.session, alone.first, &alone.keyed), (SESSION, 3, &vec![b.clone()]));
    assert_eq!((alone.jobs.len(), alone.jobs[0].service), (1, 3));
    assert_eq!(wait(store.payload(b.job, None)).unwrap().payload, bytes(3, 50_000));
    commit(&mut store, vec![forgotten(b.job, false)]);
    drop(store);
    assert_eq!(open(directory.path()).load().unwrap(), Loaded::default());
}

#[test]
fn ages_are_told_and_never_negative() {
    assert_eq!(tables::age(5_000, 2_000), Duration::from_secs(3));
    assert_eq!(tables::age(2_000, 5_000), Duration::ZERO, "the clock was set back");
}
