//! Hosts outlive their worker; the next one is told everything.

use std::time::Duration;

use lrts_core::ids::AttemptId;
use lrts_core::notices::NoticeSocket;
use lrts_core::protocol::codec;
use lrts_core::protocol::host::{FromHost, Output, ToHost};
use lrts_core::protocol::worker::AttemptEnd;
use lrts_core::protocol::{HOST_VERSION, OLDEST_HOST_VERSION};
use lrts_core::spool;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::services::{Act, Await, Echo, Keep, Print, Wait};
use crate::worker::{LONG, Worker, attempt, hello, lives, sequence_notes, until, value};

/// Lets a job go on.
fn go(worker: &Worker, attempt: AttemptId) {
    std::fs::write(worker.path(attempt).join("go"), "").unwrap();
}

/// What a host has written of an attempt's end.
fn on_disk(worker: &Worker, attempt: AttemptId) -> Vec<FromHost> {
    until("the end is on disk", || worker.end_file(attempt).exists());
    let notices = spool::read_end(&worker.spool_file(attempt)).unwrap();
    notices.iter().map(|notice| codec::decode(notice).unwrap()).collect()
}

#[test]
fn jobs_run_on_and_the_next_worker_is_told_of_all_of_them() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let done = worker.start(1, &Echo("x".into()));
    worker.end(done);
    let (short, long) =
        (worker.start(2, &Await), worker.start_waiting(3, Wait { hook: true, ..Wait::default() }));
    worker.until_ready(short);
    let pid = worker.process(long);
    worker.disconnect();
    go(&worker, short);
    until("both ends are on disk", || [done, short].iter().all(|&attempt| worker.end_file(attempt).exists()));

    worker.reconnect();
    assert_eq!(worker.held.keys().copied().collect::<Vec<_>>(), [done, short, long]);
    for (&attempt, (notes, run)) in &worker.held {
        assert_eq!(*notes, sequence_notes(attempt));
        assert_eq!(run.is_some(), attempt == long);
    }
    let run = worker.held[&long].1.unwrap();
    assert_eq!((run.pid.cast_signed(), run.stopping), (pid.as_raw(), false));
    assert!(run.ran > Duration::ZERO && lives(pid));
    // Ends are sent again until they are confirmed.
    assert_eq!(value::<(String, u32)>(worker.end(done)).0, "x");
    let ended = worker.end(short);
    assert_eq!((value::<String>(ended), &ended.stdout[..]), ("went".into(), &b"waits\n"[..]));
    assert_eq!((ended.bars.len(), ended.bars[0].numbers.position, ended.region), (1, 2, Some(1)));
    for attempt in [done, short] {
        worker.send(&ToHost::Confirm { attempt });
        until("what was written is removed", || !worker.end_file(attempt).exists());
    }
    worker.send(&ToHost::Stop { attempt: long, grace: LONG });
    assert_eq!(value::<String>(worker.end(long)), "hook");

    worker.reconnect();
    assert_eq!(worker.held.keys().copied().collect::<Vec<_>>(), [long]);
    assert_eq!(value::<String>(worker.end(long)), "hook");
}

#[test]
fn what_a_job_has_printed_can_be_read_from_disk() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let job = worker.start(1, &Print { stdout_bytes: 5, stderr: "words".into() });
    worker.disconnect();
    until("the end is on disk", || worker.end_file(job).exists());
    worker.reconnect();
    worker.end(job);
    worker.outputs.clear();
    worker.send(&ToHost::ReadOutput { attempt: job });
    while worker.receive() != (FromHost::OutputDone { attempt: job }) {}
    assert_eq!(worker.outputs.values().collect::<Vec<_>>(), [&b"xxxxxend"[..], b"words"]);
}

#[test]
fn ends_outlive_the_host() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let job = worker.start(1, &Await);
    worker.until_ready(job);
    worker.disconnect();
    go(&worker, job);
    until("the end is on disk", || worker.end_file(job).exists());
    worker.host.kill().unwrap();

    let notices = on_disk(&worker, job);
    let [FromHost::Held { attempt, notes, run: None }, FromHost::Bars { bars, .. }, output, ended] =
        &notices[..]
    else {
        panic!("{notices:?}")
    };
    assert_eq!((*attempt, notes, bars.len()), (job, &sequence_notes(job), 1));
    assert_eq!(*output, FromHost::Output { attempt: job, stderr: false, text: b"waits\n".to_vec() });
    let FromHost::Ended { end: AttemptEnd::Finished, output: Output::Inline(value), .. } = ended else {
        panic!("{ended:?}")
    };
    assert_eq!(rmp_serde::from_slice::<String>(value).unwrap(), "went");
}

#[test]
fn an_end_that_cannot_be_written_is_tried_again() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let missing = worker.directory.path().join("missing");
    let spool_file = missing.join("result");
    let job = worker.start_with(1, &Await, |start| start.spool_file = spool_file.clone());
    worker.until_ready(job);
    let pid = worker.process(job);
    worker.disconnect();
    go(&worker, job);
    until("the job has ended", || !lives(pid));
    // It is in memory meanwhile.
    worker.reconnect();
    assert_eq!(value::<String>(worker.end(job)), "went");
    worker.disconnect();
    std::fs::create_dir(&missing).unwrap();
    until("the end is on disk", || spool::read_end(&spool_file).is_ok());
    worker.reconnect();
    assert_eq!(value::<String>(worker.end(job)), "went");
}

#[test]
fn of_two_workers_the_newer_one_counts() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let job = worker.start_waiting(1, Wait { hook: true, ..Wait::default() });
    worker.process(job);
    // A daemon that was stopped neither reads nor closes its connection.
    let stopped = worker.connect();
    say_hello(&worker, &stopped, HOST_VERSION);
    assert!(stopped.receive().unwrap().is_some());
    assert!(worker.socket.receive().unwrap().is_none());

    worker.reconnect();
    assert!(worker.held[&job].1.is_some());
    worker.send(&ToHost::Stop { attempt: job, grace: LONG });
    assert_eq!(value::<String>(worker.end(job)), "hook");
    // It goes on, and finds that it isn't the one any more.
    while stopped.receive().unwrap().is_some() {}
    assert!(stopped.send_notice(&ToHost::End, &[]).is_err());
    worker.run(2, &Echo("x".into()));
}

#[test]
fn what_the_worker_before_has_said_still_counts() {
    const JOBS: u64 = 60;
    let mut worker = Worker::with_orphan_grace(LONG);
    let host = Pid::from_raw(worker.host.id().cast_signed());
    kill(host, Signal::SIGSTOP).unwrap();
    for number in 1..=JOBS {
        worker.start(number, &Wait::default());
    }
    let new = worker.connect();
    say_hello(&worker, &new, HOST_VERSION);
    let _old = std::mem::replace(&mut worker.socket, new);
    kill(host, Signal::SIGCONT).unwrap();
    while worker.receive() != FromHost::AllHeld {}
    assert_eq!(worker.held.len() as u64, JOBS);
}

#[test]
fn a_host_without_a_worker_ends_after_its_grace_period() {
    let mut worker = Worker::with_orphan_grace(Duration::from_millis(300));
    let stubborn = Wait { hook: true, stubborn: true, children: true, ..Wait::default() };
    let job = worker.start_waiting(1, stubborn);
    let children = worker.children(job);
    let keeps = worker.start(2, &Keep::Large(9));
    while !worker.checkpoints.contains_key(&keeps) {
        worker.receive();
    }
    // Strangers don't make it wait longer.
    worker.disconnect();
    let _stranger = worker.connect();
    assert_eq!(worker.host.wait().unwrap().code(), Some(0));
    for pid in children {
        until("the job's processes are gone", || !lives(pid));
    }
    // A worker that comes too late finds what became of them.
    let is_lost = |notice: Option<&FromHost>| {
        let Some(FromHost::Ended { end: AttemptEnd::Lost { reason }, .. }) = notice else { return false };
        reason == "no worker came"
    };
    assert!(is_lost(on_disk(&worker, job).last()));
    let notices = on_disk(&worker, keeps);
    assert!(matches!(&notices[1], FromHost::Checkpoint { attempt, .. } if *attempt == keeps), "{notices:?}");
    assert!(is_lost(notices.last()));
}

#[test]
fn a_host_with_neither_a_worker_nor_a_job_ends_long_before_its_grace_period() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let job = worker.start(1, &Await);
    worker.until_ready(job);
    worker.disconnect();
    go(&worker, job);
    assert_eq!(worker.host.wait().unwrap().code(), Some(0));
    let end = on_disk(&worker, job).pop();
    assert!(matches!(end, Some(FromHost::Ended { end: AttemptEnd::Finished, .. })), "{end:?}");
}

#[test]
fn a_host_stays_until_it_has_written_all_ends() {
    let mut worker = Worker::with_orphan_grace(Duration::from_millis(300));
    let missing = worker.directory.path().join("missing");
    let spool_file = missing.join("result");
    let job = worker.start_with(1, &Await, |start| start.spool_file = spool_file.clone());
    let pid = worker.process(job);
    worker.disconnect();
    until("the job is killed", || !lives(pid));
    std::fs::create_dir(&missing).unwrap();
    assert_eq!(worker.host.wait().unwrap().code(), Some(0));
    assert!(spool::read_end(&spool_file).is_ok());
}

#[test]
fn a_host_that_cannot_be_found_any_more_ends() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let job = worker.start_waiting(1, Wait { children: true, hook: true, stubborn: true, ..Wait::default() });
    let children = worker.children(job);
    std::fs::remove_file(worker.socket_path()).unwrap();
    // It has a worker yet.
    worker.run(2, &Echo("x".into()));
    worker.disconnect();
    assert_eq!(worker.host.wait().unwrap().code(), Some(0));
    for pid in children {
        until("the job's processes are gone", || !lives(pid));
    }
    assert!(!worker.end_file(job).exists());
}

#[test]
fn regions_of_confirmed_ends_are_free_for_the_next_worker() {
    let mut worker = Worker::with_orphan_grace(LONG);
    for number in [1, 2] {
        assert_eq!(worker.run(number, &Act::Bars).region, Some(number as u32 - 1));
    }
    worker.send(&ToHost::Confirm { attempt: attempt(1) });
    worker.until_heard(attempt(1));
    worker.reconnect();
    assert_eq!(worker.end(attempt(2)).region, Some(1));
    let next: Vec<_> = [3, 4].map(|number| worker.run(number, &Act::Bars).region).into();
    assert_eq!(next, [Some(0), Some(2)]);
}

#[test]
fn an_end_that_cannot_be_read_now_is_tried_again() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let job = worker.start(1, &Echo("x".into()));
    worker.disconnect();
    let file = worker.end_file(job);
    until("the end is on disk", || file.exists());
    // As a disk with errors: no file can be read at this path.
    let aside = worker.directory.path().join("aside");
    std::fs::rename(&file, &aside).unwrap();
    std::fs::create_dir(&file).unwrap();
    worker.reconnect();
    worker.until_heard(job);
    assert!(worker.held.contains_key(&job) && worker.ended.is_empty());
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&aside, &file).unwrap();
    assert_eq!(value::<(String, u32)>(worker.end(job)).0, "x");
}

#[test]
fn a_host_ends_when_its_worker_leaves_for_good() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let job = worker.start_waiting(1, Wait { children: true, hook: true, stubborn: true, ..Wait::default() });
    let children = worker.children(job);
    worker.send(&ToHost::End);
    assert_eq!(worker.host.wait().unwrap().code(), Some(0));
    for pid in children {
        until("the job's processes are gone", || !lives(pid));
    }
}

#[test]
fn an_older_worker_is_spoken_to_as_it_understands() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let done = worker.start(1, &Act::Bars);
    worker.end(done);
    worker.socket = worker.connect();
    worker.send(&hello(OLDEST_HOST_VERSION, LONG, &worker.socket_path()));
    let welcome = worker.receive();
    assert!(matches!(welcome, FromHost::Welcome { version: OLDEST_HOST_VERSION, .. }), "{welcome:?}");
    let first = worker.receive();
    assert!(matches!(first, FromHost::Bars { .. }), "{first:?}");
    assert_eq!(value::<String>(worker.end(done)), "done");
    assert!(worker.held.keys().all(|&attempt| attempt == done));
    worker.disconnect();
    assert_eq!(worker.host.wait().unwrap().code(), Some(0));
}

fn say_hello(worker: &Worker, socket: &NoticeSocket, version: u16) {
    socket.send_notice(&hello(version, LONG, &worker.socket_path()), &[]).unwrap();
}

#[test]
fn strangers_do_not_displace_the_worker() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let silent = worker.connect();
    let wrong = worker.connect();
    say_hello(&worker, &wrong, HOST_VERSION + 1);
    assert!(silent.receive().unwrap().is_none() && wrong.receive().unwrap().is_none());
    let rude = worker.connect();
    rude.send(b"?", &[]).unwrap();
    assert!(rude.receive().unwrap().is_none());
    let _silent = worker.connect();
    assert_eq!(value::<(String, u32)>(worker.run(1, &Echo("x".into()))).0, "x");
    assert!(worker.ended.contains_key(&attempt(1)));
}
