//! Limits of time and memory.

use std::io::Read;
use std::time::Duration;

use lrts_client::Bytes;
use lrts_core::clock::Moment;
use lrts_core::limits::INLINE_BODY_BYTES;
use lrts_core::protocol::host::{Output, StartAttempt, ToHost};
use lrts_core::protocol::worker::AttemptEnd;
use lrts_core::status::FailureKind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::services::{Act, Await, Beat, Blob, Grow, Wait};
use crate::worker::{LONG, Worker, attempt, failure, lives, until, value};

const SHORT: Duration = Duration::from_millis(600);

/// More than twice what the host reads to measure the memory of a job of four processes: meanwhile it has done so once from
/// beginning to end.
const MEASURING_READS: u64 = 100;

fn run_limit(start: &mut StartAttempt) {
    start.run_timeout = Some(SHORT);
}

#[test]
fn a_job_that_runs_too_long_is_stopped_with_all_its_processes() {
    let mut worker = Worker::new();
    let too_long = (FailureKind::TimedOut, "ran longer than its run_timeout of 600ms".to_owned());
    let wait = Wait { children: true, ..Wait::default() };
    let job = worker.start_with(1, &wait, run_limit);
    assert_eq!(failure(worker.end(job)), too_long);
    assert!(worker.children(job).into_iter().all(|pid| !lives(pid)));

    let stubborn = Wait { hook: true, stubborn: true, ..wait };
    let job = worker.start_with(2, &stubborn, |start| {
        start.grace = SHORT;
        run_limit(start);
    });
    assert_eq!(failure(worker.end(job)), too_long);
    assert!(worker.children(job).into_iter().all(|pid| !lives(pid)));

    // One that returns a value in its grace period has made it; an error counts for nothing.
    let job = worker.start_with(3, &Wait { hook: true, ..Wait::default() }, run_limit);
    assert_eq!(value::<String>(worker.end(job)), "hook");
    let job = worker.start_with(4, &Wait { look: true, ..Wait::default() }, run_limit);
    assert_eq!(failure(worker.end(job)), too_long);

    // Stopped by order before its time was up.
    let job = worker.start_with(5, &stubborn, run_limit);
    worker.until_ready(job);
    worker.send(&ToHost::Stop { attempt: job, grace: 2 * SHORT });
    assert_eq!(worker.end(job).end, AttemptEnd::Stopped);
}

#[test]
fn limits_hold_without_a_worker() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let job = worker.start_with(1, &Wait::default(), run_limit);
    worker.disconnect();
    until("the end is on disk", || worker.end_file(job).exists());
    worker.reconnect();
    assert_eq!(failure(worker.end(job)).0, FailureKind::TimedOut);
}

#[test]
fn a_result_that_waits_for_its_disk_is_not_late() {
    let mut worker = Worker::new();
    let limit = Duration::from_secs(2);
    let blob = Blob { input: Bytes::from(Vec::new()), output_bytes: 2 * INLINE_BODY_BYTES };
    let file = worker.spool_file(attempt(1));
    // A pipe instead of a file takes some bytes, and more only as they are read.
    let pipe = file.with_added_extension("part");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let job = worker.start_with(1, &blob, |start| {
        (start.run_timeout, start.progress_timeout) = (Some(limit), Some(limit));
    });
    let mut disk = std::fs::File::open(&pipe).unwrap();
    disk.read_exact(&mut [0; 1]).unwrap();
    (Moment::now() + limit + SHORT).wait();
    disk.read_to_end(&mut Vec::new()).unwrap();
    let ended = worker.end(job);
    assert!(matches!(ended.output, Output::Spool { .. }), "{:?}", ended.end);
    assert_eq!(ended.end, AttemptEnd::Finished);
}

#[test]
fn time_in_which_host_and_job_were_stopped_does_not_count() {
    let mut worker = Worker::with_orphan_grace(LONG);
    let limit = Duration::from_secs(2);
    let job = worker.start_with(1, &Await, |start| {
        (start.run_timeout, start.progress_timeout) = (Some(limit), Some(limit));
    });
    worker.until_ready(job);
    let stopped = [worker.process(job), Pid::from_raw(worker.host.id().cast_signed())];
    stopped.into_iter().for_each(|pid| kill(pid, Signal::SIGSTOP).unwrap());
    (Moment::now() + limit + 2 * SHORT).wait();
    stopped.into_iter().for_each(|pid| kill(pid, Signal::SIGCONT).unwrap());
    // The first answer comes before the host looks at the job, the second one after that.
    worker.until_heard(job);
    worker.until_heard(job);
    std::fs::write(worker.path(job).join("go"), "").unwrap();
    assert_eq!(value::<String>(worker.end(job)), "went");
}

#[test]
fn a_job_that_stands_still_is_stopped_and_one_that_moves_is_not() {
    let mut worker = Worker::new();
    let mut stands = |sequence, checkpoints| {
        let interval = Duration::from_millis(100);
        let beat = Beat { times: 20, interval, checkpoints };
        let limit = |start: &mut StartAttempt| start.progress_timeout = Some(10 * interval);
        let job = worker.start_with(sequence, &beat, limit);
        let ended = worker.end(job);
        let wanted = (FailureKind::TimedOut, "made no progress within its progress_timeout of 1s".to_owned());
        assert_eq!(failure(ended), wanted);
        let position = ended.bars[0].numbers.position;
        (position, worker.checkpoints.get(&job).map(|state| rmp_serde::from_slice::<u32>(state).unwrap()))
    };
    // It had come to where it stands.
    assert_eq!(stands(1, false), (20, None));
    assert_eq!(stands(2, true), (0, Some(20)));
}

#[test]
fn a_job_that_takes_too_much_memory_is_killed_with_all_its_processes() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        for (sequence, in_child) in [(1, false), (2, true)] {
            let grow = Grow { bytes: 100 << 20, in_child, copies: 0 };
            // A child that leaves its session is a fork of its own, for which the job must have one thread.
            if in_child && threads {
                continue;
            }
            let job = worker.start_with(sequence, &grow, |start| start.memory_limit = Some(64 << 20));
            let ended = worker.end(job);
            let (kind, message) = failure(ended);
            assert_eq!(kind, FailureKind::OutOfMemory, "{message}");
            let used = message.strip_prefix("out of memory: ").unwrap();
            let used: u64 = used.strip_suffix(" MiB used, its limit is 64 MiB").unwrap().parse().unwrap();
            assert!((65..200).contains(&used), "{message}");
            assert!(ended.peak_memory_bytes > 64 << 20);
        }
        let within = worker.start_with(3, &Act::Bars, |start| start.memory_limit = Some(64 << 20));
        assert_eq!(value::<String>(worker.end(within)), "done");
    }
}

#[test]
fn copies_of_a_process_do_not_count_for_what_they_have_in_common() {
    let mut worker = Worker::new();
    let grow = Grow { bytes: 100 << 20, in_child: false, copies: 3 };
    let job = worker.start_with(1, &grow, |start| start.memory_limit = Some(200 << 20));
    worker.until_ready(job);
    // Nothing else happens here for which the host would read files.
    let reads = || {
        let text = std::fs::read_to_string(format!("/proc/{}/io", worker.host.id())).unwrap();
        text.lines().find_map(|line| line.strip_prefix("syscr: ")?.parse::<u64>().ok()).unwrap()
    };
    let before = reads();
    until("memory was measured", || reads() > before + MEASURING_READS);
    worker.send(&ToHost::Stop { attempt: job, grace: LONG });
    let ended = worker.end(job);
    assert_eq!(ended.end, AttemptEnd::Stopped);
    assert!((100 << 20..200 << 20).contains(&ended.peak_memory_bytes), "{}", ended.peak_memory_bytes);
}
