//! Exclusive attempts end with their lease, whoever else is dead or stopped.

use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;
use lrts_core::protocol::host::ToHost;
use lrts_core::protocol::worker::AttemptEnd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::services::Wait;
use crate::worker::{LONG, Worker, lives, until, value};

const LEASE: Duration = Duration::from_millis(800);

fn lease() -> u64 {
    (Moment::now() + LEASE).as_nanos()
}

fn start_exclusive(worker: &Worker, sequence: u64, wait: Wait, until: u64) -> AttemptId {
    worker.start_with(sequence, &wait, |start| start.lease_until = Some(until))
}

fn ended_lease() -> AttemptEnd {
    AttemptEnd::Lost { reason: "its lease ended".to_owned() }
}

const STUBBORN: Wait = Wait {
    children: true,
    hook: true,
    look: true,
    stubborn: true,
    leave: false,
    teach: false,
    wander: false,
};

#[test]
fn a_job_ends_with_its_lease_and_all_its_processes_do() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        let job = start_exclusive(&worker, 1, STUBBORN, lease());
        // Of the others none has a lease.
        let other = worker.start_waiting(2, Wait { hook: true, ..Wait::default() });
        assert_eq!(worker.end(job).end, ended_lease());
        assert!(worker.children(job).into_iter().all(|pid| !lives(pid)));
        let wandered = start_exclusive(&worker, 3, Wait { wander: true, ..STUBBORN }, lease());
        assert_eq!(worker.end(wandered).end, ended_lease());
        worker.send(&ToHost::Stop { attempt: other, grace: LONG });
        assert_eq!(value::<String>(worker.end(other)), "hook");
        // One that had ended before it began.
        let late = start_exclusive(&worker, 4, STUBBORN, 1);
        assert_eq!(worker.end(late).end, ended_lease());
    }
}

#[test]
fn a_renewed_lease_is_heeded_and_an_older_one_is_not() {
    let mut worker = Worker::new();
    let first = lease();
    let job = start_exclusive(&worker, 1, STUBBORN, first);
    let pid = worker.process(job);
    let last = first + 3 * u64::try_from(LEASE.as_nanos()).unwrap();
    for until in [last, 7, first] {
        worker.send(&ToHost::RenewLeases { until });
    }
    (Moment::from_nanos(first) + LEASE / 2).wait();
    assert!(lives(pid));
    assert_eq!(worker.end(job).end, ended_lease());
    assert!(Moment::now() >= Moment::from_nanos(last));
}

#[test]
fn a_lease_that_has_ended_is_not_renewed() {
    let mut worker = Worker::new();
    let first = lease();
    let job = start_exclusive(&worker, 1, STUBBORN, first);
    worker.until_ready(job);
    let pid = worker.process(job);
    kill(pid, Signal::SIGSTOP).unwrap();
    Moment::from_nanos(first).wait();
    worker.send(&ToHost::RenewLeases { until: first + u64::try_from(LONG.as_nanos()).unwrap() });
    worker.until_heard(job);
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(worker.end(job).end, ended_lease());
}

#[test]
fn a_job_without_a_worker_ends_with_its_lease() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let job = start_exclusive(&worker, 1, STUBBORN, lease());
    worker.disconnect();
    until("the end is on disk", || worker.end_file(job).exists());
    worker.reconnect();
    assert_eq!(worker.end(job).end, ended_lease());
}

#[test]
fn a_job_ends_with_its_lease_without_its_hosts_help() {
    let mut worker = Worker::new();
    let job = start_exclusive(&worker, 1, STUBBORN, lease());
    worker.until_ready(job);
    let processes = [worker.children(job), vec![worker.process(job)]].concat();
    let host = Pid::from_raw(worker.host.id().cast_signed());
    kill(host, Signal::SIGSTOP).unwrap();
    for pid in processes {
        until("the job's processes are gone", || !lives(pid));
    }
    kill(host, Signal::SIGCONT).unwrap();
    assert_eq!(worker.end(job).end, ended_lease());
}

#[test]
fn a_job_that_was_stopped_beyond_its_lease_never_goes_on() {
    let mut worker = Worker::new();
    let until_then = lease();
    let job = start_exclusive(&worker, 1, Wait { hook: true, ..Wait::default() }, until_then);
    worker.until_ready(job);
    let pid = worker.process(job);
    kill(pid, Signal::SIGSTOP).unwrap();
    (Moment::from_nanos(until_then) + LEASE).wait();
    assert!(lives(pid));
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(worker.end(job).end, ended_lease());
}
