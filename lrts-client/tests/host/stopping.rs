//! How jobs are stopped, and what is left of them: nothing.

use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::notices::{NoticeListener, NoticeSocket};
use lrts_core::protocol::HOST_VERSION;
use lrts_core::protocol::host::ToHost;
use lrts_core::protocol::worker::AttemptEnd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::services::Wait;
use crate::worker::{LONG, Worker, attempt, hello, lives, start_host, until, value};

#[test]
fn processes_of_a_job_end_with_it() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        let job = worker.start(1, &Wait { children: true, leave: true, ..Wait::default() });
        // They hold its stdout open, which delays nothing.
        assert_eq!(value::<String>(worker.end(job)), "left");
        assert_eq!(worker.children(job).into_iter().filter(|&pid| lives(pid)).count(), 0);
    }
}

#[test]
fn jobs_end_with_their_host() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        let job = worker.start_waiting(1, Wait { hook: true, stubborn: true, ..Wait::default() });
        let pid = worker.process(job);
        assert!(lives(pid));
        worker.host.kill().unwrap();
        until("the job has died with its host", || !lives(pid));
    }
}

#[test]
fn a_host_ends_with_its_worker() {
    let mut worker = Worker::new();
    let job = worker.start_waiting(1, Wait { children: true, hook: true, stubborn: true, ..Wait::default() });
    let children = worker.children(job);
    assert!(children.iter().all(|&pid| lives(pid)));
    worker.disconnect();
    assert_eq!(worker.host.wait().unwrap().code(), Some(0));
    for pid in children {
        until("the job's processes are gone", || !lives(pid));
    }
}

#[test]
fn a_host_outlives_the_terminal_and_refuses_other_versions() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("host");
    let mut host = start_host(NoticeListener::bind(&path).unwrap(), false);
    let pid = Pid::from_raw(host.id().cast_signed());
    let stranger = NoticeSocket::connect(&path).unwrap();
    stranger.send_notice(&hello(HOST_VERSION + 1, LONG, &path), &[]).unwrap();
    assert!(stranger.receive().unwrap().is_none());
    for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGTERM] {
        kill(pid, signal).unwrap();
    }
    assert_eq!(nix::unistd::getsid(Some(pid)).unwrap(), pid);
    let socket = NoticeSocket::connect(&path).unwrap();
    socket.send_notice(&hello(HOST_VERSION, Duration::ZERO, &path), &[]).unwrap();
    assert_eq!(socket.receive().unwrap().unwrap().descriptors.len(), 1);
    drop(socket);
    assert_eq!(host.wait().unwrap().code(), Some(0));
}

#[test]
fn stopped_jobs_are_told_in_the_way_they_asked_for() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        let grace = LONG;
        // A value that is there counts; an error after the order doesn't.
        let hook = worker.start_waiting(1, Wait { hook: true, ..Wait::default() });
        let look = worker.start_waiting(2, Wait { look: true, ..Wait::default() });
        let neither = worker.start_waiting(3, Wait::default());
        for attempt in [hook, look, neither] {
            worker.send(&ToHost::Stop { attempt, grace });
        }
        assert_eq!(value::<String>(worker.end(hook)), "hook");
        assert_eq!(worker.end(look).end, AttemptEnd::Stopped);
        assert_eq!(worker.end(neither).end, AttemptEnd::Stopped);
        // A repeat tells nothing new.
        worker.ended.clear();
        worker.send(&ToHost::Stop { attempt: look, grace });
        worker.until_heard(look);
        assert!(worker.ended.is_empty());
    }
}

#[test]
fn processes_that_have_left_the_jobs_session_are_told_too() {
    let mut worker = Worker::new();
    let job = worker.start_waiting(1, Wait { teach: true, ..Wait::default() });
    worker.send(&ToHost::Stop { attempt: job, grace: LONG });
    assert_eq!(value::<String>(worker.end(job)), "told");
}

#[test]
fn jobs_that_are_stopped_as_they_start_do_not_go_on() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        for number in 1..=40 {
            let job = worker.start(number, &Wait::default());
            worker.send(&ToHost::Stop { attempt: job, grace: LONG });
        }
        for number in 1..=40 {
            assert_eq!(worker.end(attempt(number)).end, AttemptEnd::Stopped);
        }
    }
}

#[test]
fn stubborn_jobs_are_killed_after_the_grace_period() {
    let mut worker = Worker::new();
    let stubborn = Wait { hook: true, look: true, stubborn: true, children: true, ..Wait::default() };
    let job = worker.start_waiting(1, stubborn);
    let children = worker.children(job);
    let grace = Duration::from_millis(300);
    let start = Moment::now();
    worker.send(&ToHost::Stop { attempt: job, grace });
    assert_eq!(worker.end(job).end, AttemptEnd::Stopped);
    assert!(start.elapsed() >= grace);
    assert_eq!(children.into_iter().filter(|&pid| lives(pid)).count(), 0);

    // A second, shorter grace period counts; a longer one doesn't.
    let job = worker.start_waiting(2, stubborn);
    for grace in [600, 900, 0] {
        worker.send(&ToHost::Stop { attempt: job, grace: Duration::from_secs(grace) });
    }
    assert_eq!(worker.end(job).end, AttemptEnd::Stopped);
}

#[test]
fn jobs_that_leave_their_group_are_stopped_all_the_same() {
    let mut worker = Worker::new();
    let wander = Wait { wander: true, children: true, ..Wait::default() };
    let job = worker.start_waiting(1, wander);
    worker.send(&ToHost::Stop { attempt: job, grace: LONG });
    assert_eq!(worker.end(job).end, AttemptEnd::Stopped);
    let job = worker.start_waiting(2, Wait { hook: true, stubborn: true, ..wander });
    worker.send(&ToHost::Stop { attempt: job, grace: Duration::ZERO });
    assert_eq!(worker.end(job).end, AttemptEnd::Stopped);
    let mut children = [attempt(1), attempt(2)].into_iter().flat_map(|job| worker.children(job));
    assert!(children.all(|pid| !lives(pid)));
}
