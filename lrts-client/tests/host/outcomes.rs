//! How jobs end, and what travels with it.

use std::io::Write;
use std::os::fd::AsFd;
use std::process::Command;

use lrts_core::limits::OUTPUT_BYTES;
use lrts_core::protocol::host::{FromHost, Output, Payload, ToHost};
use lrts_core::protocol::worker::AttemptEnd;
use lrts_core::status::FailureKind;

use crate::services::{Act, Blob, Echo, Print};
use crate::worker::{LONG, Worker, attempt, failure, start, until, value};

#[test]
fn a_value_comes_back_from_a_forked_process() {
    let mut worker = Worker::new();
    assert!(worker.forks);
    assert_eq!(
        worker.services,
        ["echo", "act", "blob", "print", "wait", "await", "beat", "grow", "keep", "look"]
    );
    let ended = worker.run(1, &Echo("ü".into()));
    assert_eq!(value::<(String, u32)>(ended), ("ü".into(), 2));
    assert!(ended.peak_memory_bytes > 100_000 && ended.bars.is_empty() && ended.stderr.is_empty());
    assert_eq!(ended.region, Some(0));
    assert_ne!(worker.began[&attempt(1)], worker.host.id());
}

#[test]
fn every_end_is_told_apart() {
    every_end(Worker::new());
}

#[test]
fn every_end_is_told_apart_where_jobs_are_spawned() {
    let worker = Worker::with_threads(true);
    assert!(!worker.forks);
    every_end(worker);
}

fn every_end(mut worker: Worker) {
    let mut number = 0;
    let mut end = |act: Act| {
        number += 1;
        failure(worker.run(number, &act))
    };
    assert_eq!(end(Act::Error), (FailureKind::Error, "loading: reading rows: disk on fire".into()));

    let (kind, message) = end(Act::Panic);
    assert_eq!(kind, FailureKind::Panic);
    assert!(
        message.starts_with("row 7 is odd at ") && message.contains("tests/host/services.rs:"),
        "{message}"
    );

    assert_eq!(end(Act::PanicTwice).0, FailureKind::Panic);

    let (kind, message) = end(Act::Exit(3));
    assert_eq!(kind, FailureKind::Crashed);
    assert_eq!(message, "exited with code 3 without a result; last lines of stderr:\nleaving early");

    // What its copy returned is no result.
    let (kind, message) = end(Act::Fork);
    assert_eq!((kind, &*message), (FailureKind::Crashed, "exited with code 7 without a result"));

    for (act, signals) in [
        (Act::Abort, &["killed by signal 6 (SIGABRT)"][..]),
        (Act::SegmentationFault, &["killed by signal 11 (SIGSEGV)"]),
        // Before main std has no handler that explains it.
        (Act::StackOverflow, &["killed by signal 6 (SIGABRT)", "killed by signal 11 (SIGSEGV)"]),
        (Act::KillItself, &["killed by signal 9 (SIGKILL)"]),
    ] {
        let (kind, message) = end(act);
        assert_eq!(kind, FailureKind::Crashed, "{message}");
        assert!(signals.iter().any(|signal| message.starts_with(signal)), "{message}");
    }

    let mut output = |act: Act| {
        number += 1;
        value::<String>(worker.run(number, &act))
    };
    assert_eq!(output(Act::PanicElsewhere), "done");
    assert_eq!(output(Act::CatchPanic), "done");
    assert_eq!(output(Act::Runtime), "42");
    // stdin, stdout, stderr and the socket.
    let surroundings = output(Act::Surroundings);
    let directory = std::fs::canonicalize(worker.path(attempt(number))).unwrap();
    let wanted = format!("{} hello lrts:0 stdin:0 open:4 core:0 leads:true blocked:0", directory.display());
    assert_eq!(surroundings, wanted);
}

#[test]
fn what_cannot_be_run_fails_with_the_reason() {
    let mut worker = Worker::new();
    let mut start = worker.start_attempt::<Echo>(attempt(1), Payload::Inline(vec![0xc1]));
    worker.send(&ToHost::Start(start.clone()));
    let (kind, message) = failure(worker.end(attempt(1)));
    assert_eq!(kind, FailureKind::Error);
    assert!(message.starts_with("service `echo` can't read what was scheduled: "), "{message}");

    (start.attempt, start.service) = (attempt(2), "mult".to_owned());
    worker.send(&ToHost::Start(start.clone()));
    let (kind, message) = failure(worker.end(attempt(2)));
    assert_eq!(kind, FailureKind::Error);
    let wanted = "service `mult` is not in the program's host_services!, which has: echo, act, blob, print, ";
    assert!(message.starts_with(wanted), "{message}");

    // Both the machine's fault.
    (start.attempt, start.directory) = (attempt(3), "/no such directory".into());
    worker.send(&ToHost::Start(start.clone()));
    (start.attempt, start.payload) = (attempt(4), Payload::Descriptor { bytes: 10 });
    worker.send(&ToHost::Start(start));
    for (sequence, word) in [(3, "no such directory"), (4, "payload")] {
        let end = &worker.end(attempt(sequence)).end;
        let AttemptEnd::Lost { reason } = end else { panic!("{end:?}") };
        assert!(reason.contains(word), "{reason}");
    }
}

#[test]
fn five_megabytes_travel_both_ways() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        let blob = Blob { input: vec![1; 5_000_001].into(), output_bytes: 5_000_000 };
        let payload = rmp_serde::to_vec_named(&blob).unwrap();
        let memory =
            nix::sys::memfd::memfd_create(c"payload", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let mut memory = std::fs::File::from(memory);
        memory.write_all(&payload).unwrap();
        let payload = Payload::Descriptor { bytes: payload.len() as u64 };
        let start = worker.start_attempt::<Blob>(attempt(1), payload);
        worker.socket.send_notice(&ToHost::Start(start), &[memory.as_fd()]).unwrap();

        let ended = worker.end(attempt(1));
        assert_eq!(ended.end, AttemptEnd::Finished);
        assert_eq!(ended.output, Output::Spool { bytes: 5_000_005 });
        let file = worker.spool_file(attempt(1));
        let output: serde_bytes::ByteBuf = rmp_serde::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!(output.into_vec(), vec![5_000_001u64 as u8; 5_000_000]);
    }
}

#[test]
fn a_result_waits_for_room_on_the_disk() {
    let mut worker = Worker::new();
    let blob = Blob { input: vec![].into(), output_bytes: 100_000 };
    let job = attempt(1);
    let mut part = worker.spool_file(job).into_os_string();
    part.push(".part");
    std::os::unix::fs::symlink("/dev/full", part).unwrap();
    worker.start(1, &blob);
    until("the job says that it waits", || {
        worker.send(&ToHost::ReadOutput { attempt: job });
        while worker.receive() != (FromHost::OutputDone { attempt: job }) {}
        let stderr = worker.outputs.get(&(job, true)).cloned().unwrap_or_default();
        String::from_utf8_lossy(&stderr).contains("the result waits for room on the disk")
    });
    worker.send(&ToHost::Stop { attempt: job, grace: LONG });
    assert_eq!(worker.end(job).end, AttemptEnd::Stopped);
}

#[test]
fn what_the_machine_lacks_is_not_the_jobs_fault() {
    let mut worker = Worker::with_host(LONG, |listener| {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 12; exec \"$0\""]).arg(std::env::current_exe().unwrap());
        start(command, listener, false)
    });
    let end = &worker.run(1, &Echo("x".into())).end;
    let AttemptEnd::Lost { reason } = end else { panic!("{end:?}") };
    assert!(reason.starts_with("the host can't start a process: "), "{reason}");
    assert_eq!(worker.ended[&attempt(1)].region, None);
}

#[test]
fn the_end_of_the_output_is_kept() {
    let mut worker = Worker::new();
    let ended = worker.run(1, &Print { stdout_bytes: 1_000_000, stderr: "words".into() });
    assert_eq!(ended.end, AttemptEnd::Finished);
    assert_eq!(ended.stdout.len(), OUTPUT_BYTES);
    assert!(ended.stdout.starts_with(b"xxx") && ended.stdout.ends_with(b"xend"));
    assert_eq!(ended.stderr, b"words");

    // It can be read until the end is confirmed.
    for known in [true, false] {
        worker.outputs.clear();
        worker.send(&ToHost::ReadOutput { attempt: attempt(1) });
        while worker.receive() != (FromHost::OutputDone { attempt: attempt(1) }) {}
        assert_eq!(worker.outputs.get(&(attempt(1), true)).is_some_and(|text| text == b"words"), known);
        worker.send(&ToHost::Confirm { attempt: attempt(1) });
    }
}

#[test]
fn the_last_state_of_a_bar_travels_with_the_end() {
    let mut worker = Worker::new();
    let ended = worker.run(1, &Act::Bars);
    assert_eq!(value::<String>(ended), "done");
    let [bar] = &ended.bars[..] else { panic!("{:?}", ended.bars) };
    assert_eq!((bar.text.description.as_str(), bar.text.unit.as_str()), ("Doing work", "rows"));
    assert_eq!((bar.numbers.position, bar.numbers.total, bar.numbers.closed), (7, Some(10), true));
}

#[test]
fn regions_are_used_again_after_their_release_only() {
    let mut worker = Worker::new();
    let region = |worker: &mut Worker, sequence| worker.run(sequence, &Act::Bars).region.unwrap();
    assert_eq!((region(&mut worker, 1), region(&mut worker, 2)), (0, 1));
    worker.send(&ToHost::Confirm { attempt: attempt(1) });
    assert_eq!(region(&mut worker, 3), 2);
    worker.send(&ToHost::ReleaseRegion { region: 0 });
    assert_eq!(region(&mut worker, 4), 0);
    assert_eq!(worker.ended[&attempt(4)].bars.len(), 1);
}

#[test]
fn a_repeated_start_is_ignored() {
    let mut worker = Worker::new();
    let payload = Payload::Inline(rmp_serde::to_vec_named(&Echo("once".into())).unwrap());
    let start = worker.start_attempt::<Echo>(attempt(1), payload);
    worker.send(&ToHost::Start(start.clone()));
    worker.send(&ToHost::Start(start.clone()));
    worker.end(attempt(1));
    worker.send(&ToHost::Start(start));
    worker.run(2, &Echo("other".into()));
    assert_eq!(worker.began.len(), 2);
}
