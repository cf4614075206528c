//! Hosts of an earlier run that the tests play: what the worker says to them, and what it makes of what they say.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::Moment;
use lrts_core::limits::INLINE_BODY_BYTES;
use lrts_core::protocol::host::{FromHost, Payload, StartAttempt, ToHost};
use lrts_core::protocol::worker::{AttemptEnd, FromWorker, ToWorker};
use lrts_core::protocol::{HOST_VERSION, codec};
use lrts_core::spec::JobOptions;
use lrts_core::spool::{self, Spool};

use crate::fake::{FakeHost, Notes, finished, running};
use crate::jobs::wait;
use crate::support::{LOST_AFTER, STORE, Scheduler, Worker, attempt, installed, until};

pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

/// Another scheduler's store.
const OTHER: u64 = STORE + 1;

/// A new state directory, and a host that was left in it.
pub(crate) fn left_host() -> (tempfile::TempDir, FakeHost) {
    let directory = tempfile::tempdir().unwrap();
    let host = FakeHost::leave(&state_of(&directory), 4);
    (directory, host)
}

pub(crate) fn state_of(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("state")
}

pub(crate) async fn started(host: &mut FakeHost) -> (StartAttempt, Vec<OwnedFd>) {
    let (notice, packet) = host.next().await;
    let ToHost::Start(start) = notice else { panic!("{notice:?} instead of Start") };
    (start, packet.descriptors)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_found_host_is_asked_what_it_has_before_the_worker_registers() {
    let (directory, mut host) = left_host();
    let mut scheduler = Scheduler::start().await;
    let worker = Worker::start_in(directory, &scheduler, 2, HOUR);
    // As a host does that has no descriptor left.
    for _ in 0..2 {
        assert_eq!(host.accept().await, HOST_VERSION, "in an older one it wouldn't say what it has");
        host.hang_up();
    }
    host.meet(&[(1, Notes::new(), running(77)), (2, Notes::new(), None)]).await;
    host.say(&finished(attempt(2))).await;

    let register = scheduler.register(Vec::new()).await;
    let known: Vec<_> = register.attempts.iter().map(|held| (held.attempt, held.pid)).collect();
    assert_eq!((known, register.store), (vec![(attempt(1), 77), (attempt(2), 0)], Some(STORE)));
    assert!(register.attempts[0].running >= Some(Duration::from_secs(5)));
    let (ended, [output, ..]) = scheduler.ended(2).await;
    assert_eq!((ended.end, &output[..]), (AttemptEnd::Finished, &b"result"[..]));
    assert_eq!(host.next().await.0, ToHost::ReadCheckpoint { attempt: attempt(1) });
    scheduler.confirm(2);
    assert_eq!(host.next_order().await, ToHost::Confirm { attempt: attempt(2) });

    scheduler.order(3, installed(), "wait", &wait());
    let (start, _) = started(&mut host).await;
    assert_eq!((start.attempt, start.grace), (attempt(3), Duration::from_secs(2)));
    assert_eq!(start.notes, Notes::new().encode(), "what the next worker is to know");
    scheduler.send(&ToWorker::Stop { attempt: attempt(1), at_once: true }, Bytes::new());
    assert_eq!(host.next().await.0, ToHost::Stop { attempt: attempt(1), grace: Duration::ZERO });
    host.die();
    for sequence in [1, 3] {
        let (ended, _) = scheduler.ended(sequence).await;
        assert!(matches!(ended.end, AttemptEnd::Lost { .. }), "{:?}", ended.end);
    }
    until("what is kept of the host goes", || worker.list("hosts").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_dies_unheard_holds_nobody_up_and_the_ends_that_it_has_left_are_found() {
    let (directory, mut host) = left_host();
    let state = state_of(&directory);
    let mut silent = FakeHost::leave(&state, 5);
    let spool = Spool::open(state.join("spool")).unwrap();
    let output = |sequence| spool.path(attempt(sequence));
    let said = |stderr, text: &[u8]| FromHost::Output { attempt: attempt(1), stderr, text: text.to_vec() };
    let notices = [
        FromHost::Held { attempt: attempt(1), notes: Notes::new().encode(), run: None },
        said(false, b"out"),
        said(true, b"errors"),
        finished(attempt(1)),
    ];
    spool::write_end(&output(1), &notices.map(|notice| codec::encode(&notice))).unwrap();
    spool::write_end(&output(2), &[b"nonsense"]).unwrap();
    std::fs::write(output(3), "an output without an end").unwrap();
    std::fs::write(output(4), "an output of an attempt that runs").unwrap();
    for sequence in [1, 2, 4] {
        let name = output(sequence).file_name().unwrap().to_owned();
        std::fs::create_dir_all(state.join("work").join(name).join("deep")).unwrap();
    }

    let mut scheduler = Scheduler::start().await;
    let worker = Worker::start_in(directory, &scheduler, 1, HOUR);
    host.meet(&[(4, Notes::new(), running(77))]).await;
    silent.accept().await;
    silent.die();
    let register = scheduler.register(Vec::new()).await;
    let known: Vec<_> = register.attempts.iter().map(|held| held.attempt).collect();
    assert_eq!(known, [attempt(1), attempt(4)]);
    let (ended, [output, stdout, stderr]) = scheduler.ended(1).await;
    assert_eq!(ended.end, AttemptEnd::Finished);
    assert_eq!([&output[..], &stdout[..], &stderr[..]], [&b"result"[..], b"out", b"errors"]);
    let left = |sequence: u64| vec![format!("{}.1", attempt(sequence).job)];
    until("other working directories go", || worker.list("work") == left(4)).await;
    scheduler.confirm(1);
    until("what was confirmed and what is rubbish goes", || worker.list("spool") == left(4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_no_version_understands_is_ended() {
    let (directory, mut host) = left_host();
    let mut scheduler = Scheduler::start().await;
    let worker = Worker::start_in(directory, &scheduler, 1, HOUR);
    host.accept().await;
    host.welcome(HOST_VERSION + 1).await;
    assert_eq!(scheduler.register(Vec::new()).await.attempts.len(), 0);
    until("the host is killed", || !host.is_running()).await;
    until("what is kept of it goes", || worker.list("hosts").is_empty()).await;
}

fn memory(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

fn content(memory: &OwnedFd) -> Vec<u8> {
    let (mut file, mut content) = (File::from(memory.try_clone().unwrap()), Vec::new());
    file.rewind().unwrap();
    file.read_to_end(&mut content).unwrap();
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_go_up_and_come_down_whatever_their_size() {
    let (directory, mut host) = left_host();
    let mut scheduler = Scheduler::start().await;
    let _worker = Worker::start_in(directory, &scheduler, 3, HOUR);
    host.meet(&[(1, Notes::new(), running(77))]).await;
    scheduler.register(Vec::new()).await;
    assert_eq!(host.next().await.0, ToHost::ReadCheckpoint { attempt: attempt(1) });
    let large = vec![7; 3_000_000];
    let inline = FromHost::Checkpoint { attempt: attempt(1), state: Payload::Inline(b"first".to_vec()) };
    let state = Payload::Descriptor { bytes: large.len() as u64 };
    let outside = FromHost::Checkpoint { attempt: attempt(1), state };
    host.say(&inline).await;
    let up = FromWorker::Checkpoint { attempt: attempt(1) };
    assert_eq!(scheduler.next().await, (up.clone(), Bytes::from_static(b"first")));
    host.say_with(&outside, &[memory(&large).as_fd()]).await;
    assert!(scheduler.next().await == (up, large.clone().into()));

    for (sequence, checkpoint) in [(2, Some(&b"small"[..])), (3, Some(&large[..]))] {
        let payload = codec::encode(&wait());
        scheduler.order_with(sequence, installed(), "wait", &wait(), JobOptions::new(), checkpoint);
        let (start, memory) = started(&mut host).await;
        assert_eq!(start.payload, Payload::Inline(payload.to_vec()));
        match start.checkpoint.unwrap() {
            Payload::Inline(bytes) => assert_eq!(Some(&bytes[..]), checkpoint),
            Payload::Descriptor { bytes } => {
                assert_eq!(bytes, large.len() as u64);
                assert!(content(&memory[0]) == large);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_payload_and_a_large_checkpoint_travel_in_this_order() {
    let (directory, mut host) = left_host();
    let mut scheduler = Scheduler::start().await;
    let _worker = Worker::start_in(directory, &scheduler, 1, HOUR);
    host.meet(&[]).await;
    scheduler.register(Vec::new()).await;
    let (text, checkpoint) = ("x".repeat(2 * INLINE_BODY_BYTES), vec![5; INLINE_BODY_BYTES + 1]);
    scheduler.order_with(1, installed(), "wait", &text, JobOptions::new(), Some(&checkpoint));
    let (start, memory) = started(&mut host).await;
    let bytes = |payload| match payload {
        Payload::Descriptor { bytes } => bytes,
        Payload::Inline(_) => panic!("it doesn't fit into the notice"),
    };
    let payload = codec::encode(&text);
    assert_eq!(bytes(start.payload), payload.len() as u64);
    assert_eq!(bytes(start.checkpoint.unwrap()), checkpoint.len() as u64);
    assert!(content(&memory[0]) == payload && content(&memory[1]) == checkpoint);
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_of_exclusive_attempts_reach_as_far_as_the_scheduler_has_answered() {
    let (directory, mut host) = left_host();
    let mut scheduler = Scheduler::start().await;
    let before = Moment::now();
    let _worker = Worker::start_in(directory, &scheduler, 2, HOUR);
    host.meet(&[(1, Notes::new().exclusive(), running(77))]).await;
    scheduler.register(Vec::new()).await;
    let first = host.renewed().await;
    assert!(first >= before + LOST_AFTER && first <= Moment::now() + LOST_AFTER);
    assert_eq!(host.next().await.0, ToHost::ReadCheckpoint { attempt: attempt(1) });
    let (heartbeat, _) = scheduler.next_or_heartbeat().await;
    let FromWorker::Heartbeat { number } = heartbeat else { panic!("{heartbeat:?}") };
    scheduler.send(&ToWorker::Renewed { number }, Bytes::new());
    let second = host.renewed().await;
    assert!(second > first);

    scheduler.order_with(2, installed(), "wait", &wait(), JobOptions::new().exclusive(), None);
    let (start, _) = started(&mut host).await;
    assert!(start.lease_until >= Some(second.as_nanos()));
    assert_eq!(start.notes, Notes::new().exclusive().encode());
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_of_another_store_run_on_and_are_told_to_their_own_scheduler() {
    let (directory, mut host) = left_host();
    let mut scheduler = Scheduler::start().await;
    let _worker = Worker::start_in(directory, &scheduler, 3, HOUR);
    host.meet(&[(1, Notes::new().slots(2), running(77)), (2, Notes::new().store(OTHER), None)]).await;
    let register = scheduler.next_registration().await;
    let known = |held: &[lrts_core::protocol::worker::HeldAttempt]| -> Vec<_> {
        held.iter().map(|held| held.attempt).collect()
    };
    assert_eq!((known(&register.attempts), register.slots), (vec![attempt(1)], 2));
    scheduler.answer(OTHER, Vec::new());
    let register = scheduler.next_registration().await;
    assert_eq!(register.store, Some(OTHER));
    assert_eq!((known(&register.attempts), register.slots), (vec![attempt(2)], 1));
    scheduler.answer(OTHER, Vec::new());
    host.say(&finished(attempt(2))).await;
    scheduler.ended(2).await;
    scheduler.confirm(2);
    assert_eq!(host.next_order().await, ToHost::Confirm { attempt: attempt(2) });
    host.say(&finished(attempt(1))).await;
    let register = scheduler.next_registration().await;
    assert_eq!(
        (register.attempts.len(), register.slots),
        (0, 3),
        "its slots are offered, its end is not told"
    );
    scheduler.answer(OTHER, Vec::new());

    scheduler.disconnect();
    let register = scheduler.next_registration().await;
    assert_eq!((register.attempts.len(), register.store), (0, Some(OTHER)));
    scheduler.answer(STORE, Vec::new());
    let register = scheduler.register(Vec::new()).await;
    assert_eq!((known(&register.attempts), register.store), (vec![attempt(1)], Some(STORE)));
    let (ended, _) = scheduler.ended(1).await;
    assert_eq!(ended.end, AttemptEnd::Finished);
}
