//! What jobs keep for their next attempt.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

use lrts_client::Bytes;
use lrts_core::ids::AttemptId;
use lrts_core::limits::{CHECKPOINT_BYTES, INLINE_BODY_BYTES};
use lrts_core::protocol::codec;
use lrts_core::protocol::host::{FromHost, Payload, ToHost};
use lrts_core::protocol::worker::AttemptEnd;
use lrts_core::spool;
use lrts_core::status::FailureKind;
use nix::sys::signal::{Signal, kill};

use crate::services::{Keep, Wait};
use crate::worker::{LONG, Worker, attempt, failure, until, value};

fn kept<T: serde::de::DeserializeOwned>(worker: &Worker, attempt: AttemptId) -> T {
    rmp_serde::from_slice(&worker.checkpoints[&attempt]).unwrap()
}

fn until_checkpoint(worker: &mut Worker, attempt: AttemptId) {
    while !worker.checkpoints.contains_key(&attempt) {
        worker.receive();
    }
}

#[test]
fn a_checkpoint_survives_the_death_of_its_job_and_the_next_attempt_has_it() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        let job = worker.start(1, &Keep::Die("half".into()));
        assert_eq!(failure(worker.end(job)).0, FailureKind::Crashed);
        assert_eq!(kept::<String>(&worker, job), "half");

        let earlier = Some(Payload::Inline(worker.checkpoints[&job].clone()));
        let next = worker.start_with(2, &Keep::Last, |start| start.checkpoint = earlier);
        assert_eq!(value::<Option<String>>(worker.end(next)).unwrap(), "half");
        let none = worker.start(3, &Keep::Last);
        assert_eq!(value::<Option<String>>(worker.end(none)), None);
        // What was handed on is not sent back.
        assert_eq!(worker.checkpoints.len(), 1);
    }
}

#[test]
fn a_large_checkpoint_travels_both_ways_beside_a_large_payload() {
    let mut worker = Worker::new();
    let text = "x".repeat(2 * INLINE_BODY_BYTES);
    let memory = |bytes: &[u8]| {
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let mut file = std::fs::File::from(nix::sys::memfd::memfd_create(c"body", flags).unwrap());
        file.write_all(bytes).unwrap();
        (Payload::Descriptor { bytes: bytes.len() as u64 }, file)
    };
    let (payload, payload_memory) = memory(&rmp_serde::to_vec_named(&Keep::Last).unwrap());
    let (checkpoint, checkpoint_memory) = memory(&rmp_serde::to_vec_named(&text).unwrap());
    let mut start = worker.start_attempt::<Keep>(attempt(1), payload);
    start.checkpoint = Some(checkpoint);
    let bodies = [payload_memory.as_fd(), checkpoint_memory.as_fd()];
    worker.socket.send_notice(&ToHost::Start(start.clone()), &bodies).unwrap();
    assert_eq!(value_in_file(&worker, attempt(1)), Some(text));
    start.attempt = attempt(2);
    worker.socket.send_notice(&ToHost::Start(start), &bodies[..1]).unwrap();
    assert!(matches!(worker.end(attempt(2)).end, AttemptEnd::Lost { .. }));

    let largest = CHECKPOINT_BYTES - 5;
    let job = worker.start(3, &Keep::Large(largest));
    until_checkpoint(&mut worker, job);
    assert!(kept::<Bytes>(&worker, job)[..] == vec![7; largest]);
    worker.checkpoints.clear();
    worker.send(&ToHost::ReadCheckpoint { attempt: job });
    until_checkpoint(&mut worker, job);
    assert_eq!(worker.checkpoints[&job].len(), CHECKPOINT_BYTES);
}

/// A finished attempt's output, which was too large for a notice.
fn value_in_file(worker: &Worker, attempt: AttemptId) -> Option<String> {
    let file = worker.spool_file(attempt);
    until("the output is in its file", || file.exists());
    rmp_serde::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

#[test]
fn a_million_checkpoints_are_one_or_two_to_the_worker() {
    const COUNT: u64 = 1_000_000;
    let mut worker = Worker::new();
    let job = worker.start(1, &Keep::Count(COUNT));
    let ended = worker.end(job);
    assert_eq!(value::<Option<String>>(ended).unwrap(), COUNT.to_string());
    assert_eq!(kept::<u64>(&worker, job), COUNT);
}

#[test]
fn each_change_is_sent_and_sent_again_to_the_next_worker() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let job = worker.start(1, &Keep::Follow);
    until("the job's directory is there", || worker.path(job).exists());
    let set = |worker: &Worker, number: u64| {
        std::fs::write(worker.path(job).join("state.part"), number.to_string()).unwrap();
        std::fs::rename(worker.path(job).join("state.part"), worker.path(job).join("state")).unwrap();
    };
    for number in [3, 4] {
        set(&worker, number);
        worker.checkpoints.clear();
        until_checkpoint(&mut worker, job);
        assert_eq!(kept::<u64>(&worker, job), number);
    }
    worker.reconnect();
    until_checkpoint(&mut worker, job);
    assert_eq!(kept::<u64>(&worker, job), 4);

    // Nobody is there when it changes, nor when the job dies.
    let pid = worker.held[&job].1.unwrap().pid.cast_signed();
    worker.disconnect();
    set(&worker, 5);
    let said = worker.path(job).join("kept");
    until("the job has kept it", || std::fs::read_to_string(&said).is_ok_and(|text| text == "5"));
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    until("the end is on disk", || worker.end_file(job).exists());
    for _ in 0..2 {
        worker.reconnect();
        assert_eq!(failure(worker.end(job)).0, FailureKind::Crashed);
        assert_eq!(kept::<u64>(&worker, job), 5);
    }
    worker.checkpoints.clear();
    worker.ended.clear();
    worker.send(&ToHost::ReadCheckpoint { attempt: job });
    until_checkpoint(&mut worker, job);
    assert_eq!(kept::<u64>(&worker, job), 5);
}

#[test]
fn a_large_checkpoint_outlives_its_host_and_comes_back_from_disk() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let bytes = 1 << 20;
    let job = worker
        .start_with(1, &Keep::Large(bytes), |start| start.run_timeout = Some(Duration::from_millis(500)));
    until_checkpoint(&mut worker, job);
    worker.disconnect();
    until("the end is on disk", || worker.end_file(job).exists());
    worker.reconnect();
    assert_eq!(failure(worker.end(job)).0, FailureKind::TimedOut);
    assert_eq!(kept::<Bytes>(&worker, job).len(), bytes);

    let notices = spool::read_end(&worker.spool_file(job)).unwrap();
    let FromHost::Checkpoint { attempt, state: Payload::Inline(state) } = codec::decode(&notices[1]).unwrap()
    else {
        panic!("behind Held comes the checkpoint")
    };
    assert_eq!((attempt, state), (job, worker.checkpoints[&job].clone()));
}

#[test]
fn a_job_without_checkpoints_sends_none() {
    let mut worker = Worker::new();
    let job = worker.start_waiting(1, Wait { hook: true, ..Wait::default() });
    worker.send(&ToHost::ReadCheckpoint { attempt: job });
    worker.send(&ToHost::Stop { attempt: job, grace: LONG });
    worker.end(job);
    assert!(worker.checkpoints.is_empty());
}
