//! Bytes of every message: what an old peer sends must still be read, and what is sent must not change unnoticed.
//!
//! After a deliberate change, `LRTS_UPDATE_GOLDEN=1 cargo test -p lrts-core --test protocol` writes the file anew; the protocol's
//! version goes up if an old peer would misread it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::{Debug, Write};
use std::time::Duration;

use lrts_core::ids::{ApplicationId, AttemptId, BarId, BundleDigest, JobId, SessionId, UserName, WorkerId};
use lrts_core::protocol::application::*;
use lrts_core::protocol::codec::{Head, decode, encode};
use lrts_core::protocol::command::*;
use lrts_core::protocol::host::*;
use lrts_core::protocol::progress::*;
use lrts_core::protocol::worker::*;
use lrts_core::spec::{BundleRef, JobOptions, OnDisconnect, Platform};
use lrts_core::status::{Failure, FailureKind, JobState};
use lrts_core::worker_secret::WorkerSecret;
use proptest::prelude::*;

const SESSION: SessionId = SessionId(0x0123_4567_89ab_cdef);
const JOB: JobId = JobId { session: SESSION, sequence: 17 };
const ATTEMPT: AttemptId = AttemptId { job: JOB, attempt: 2 };
const WORKER: WorkerId = WorkerId(42);
const DIGEST: BundleDigest = BundleDigest([7; 32]);

fn application() -> ApplicationId {
    "nightly".parse().unwrap()
}

fn user() -> UserName {
    "ann".parse().unwrap()
}

fn owned() -> OwnedApplication {
    OwnedApplication { owner: Some(user()), application: application() }
}

fn platform() -> Platform {
    Platform { target: "x86_64-linux-gnu".into(), glibc: Some((2, 36)) }
}

fn text() -> BarText {
    BarText {
        description: "Reading".into(),
        message: "page 3".into(),
        unit: "rows".into(),
        color: Color::Green,
        leave: true,
    }
}

fn numbers() -> BarNumbers {
    BarNumbers { position: 7, total: Some(12), closed: true, elapsed: Duration::from_millis(1_500) }
}

fn record() -> BarRecord {
    BarRecord { index: 1, text: text(), numbers: numbers() }
}

fn update() -> BarUpdate {
    BarUpdate { bar: BarId { attempt: ATTEMPT, index: 1 }, text: Some(text()), numbers: numbers() }
}

fn set() -> JobSet {
    JobSet { session: SESSION, ranges: vec![(1, 9), (17, 17)] }
}

/// Collects lines `Enum::Variant hex`, and checks that each message is read back as it was.
#[derive(Default)]
struct Golden(String);

impl Golden {
    fn add<T: Head + PartialEq + Debug>(&mut self, message: T) {
        let bytes = encode(&message);
        assert_eq!(decode::<T>(&bytes).unwrap(), message);
        let type_name = std::any::type_name::<T>().rsplit("::").next().unwrap();
        let debug = format!("{message:?}");
        let variant: String = debug.chars().take_while(char::is_ascii_alphanumeric).collect();
        write!(self.0, "{type_name}::{variant} ").unwrap();
        bytes.iter().for_each(|byte| write!(self.0, "{byte:02x}").unwrap());
        self.0.push('\n');
    }
}

fn golden() -> String {
    let mut golden = Golden::default();
    golden.add(FromApplication::Attach(Attach {
        application: application(),
        session: SESSION,
        bundle: BundleRef::Shipped(DIGEST),
        services: vec!["mult".into()],
        on_disconnect: OnDisconnect::CancelAfter(Duration::from_secs(3_600)),
        progress_rtt_test: Duration::from_secs(10),
        credit: Credit { results: 1_024, bytes: 1 << 25 },
    }));
    golden.add(FromApplication::OfferBundle { digest: DIGEST, bytes: 1_000_000, platform: platform() });
    golden.add(FromApplication::BundleChunk { digest: DIGEST, offset: 1 << 20, bytes: 4_096 });
    golden.add(FromApplication::Submit {
        first: 1,
        options: vec![JobOptions::new().label("x").priority(-3).retries(1).env("A", "b")],
        jobs: vec![JobRange { count: 3, service: 0, options: 0, payload_bytes: 110 }],
        keys: vec![],
    });
    golden.add(FromApplication::Submit {
        first: 4,
        options: vec![
            JobOptions::new()
                .run_timeout(Duration::from_secs(60))
                .progress_timeout(Duration::from_secs(5))
                .memory_limit(1 << 30)
                .exclusive(),
        ],
        jobs: vec![JobRange { count: 1, service: 0, options: 0, payload_bytes: 110 }],
        keys: vec![KeyedJob { index: 0, key: "night 1".into(), digest: 7 }],
    });
    golden.add(FromApplication::Want { jobs: set(), urgent: true });
    golden.add(FromApplication::Credit(Credit { results: 5, bytes: 1_000 }));
    golden.add(FromApplication::Taken { jobs: set() });
    golden.add(FromApplication::Cancel { jobs: set() });
    golden.add(FromApplication::List { request: 1, job: Some(JOB) });
    golden.add(FromApplication::Detach);
    golden.add(FromApplication::Stop);

    golden.add(ToApplication::Attached { epoch: 3, accepted_through: 17 });
    golden.add(ToApplication::BundleWanted { digest: DIGEST, offset: 0 });
    golden.add(ToApplication::BundleComplete { digest: DIGEST });
    golden.add(ToApplication::BundleRefused { digest: DIGEST, reason: "too large".into() });
    golden.add(ToApplication::Accepted { through: 17 });
    for cause in [RefusalCause::Invalid, RefusalCause::KeyConflict, RefusalCause::NoRoom, RefusalCause::Limit]
    {
        golden.add(ToApplication::Refused { sequence: 17, reason: "too large".into(), cause });
    }
    golden.add(ToApplication::Result {
        job: JOB,
        report: JobReport {
            failure: Some(Failure::new(FailureKind::Panic, "no")),
            attempt: 3,
            attempts: 2,
            worker: Some(WORKER),
            queued: Duration::from_millis(5),
            ran: Duration::from_secs(1),
            bars: vec![record()],
        },
    });
    golden.add(ToApplication::Gone { job: JOB, taken: true });
    golden.add(ToApplication::Totals(Totals { queued: 1, running: 2, finished: 3, failed: 4, cancelled: 5 }));
    golden.add(ToApplication::Listed { request: 1, jobs: vec![("mult".into(), set())], last: true });
    golden.add(ToApplication::Detached);
    golden.add(ToApplication::Stopped);

    golden.add(FromWorker::Register(Register {
        worker: WORKER,
        secret: WorkerSecret::from_bytes([9; 32]),
        host: "node-1".into(),
        pid: 99,
        instance: 11,
        slots: 4,
        platform: platform(),
        boot_id: "c0ffee".into(),
        installed: vec!["tools".into()],
        ships: true,
        attempts: vec![HeldAttempt {
            attempt: ATTEMPT,
            running: Some(Duration::from_secs(9)),
            pid: 100,
            ended: false,
        }],
        store: Some(77),
    }));
    golden.add(FromWorker::Heartbeat { number: 5 });
    golden.add(FromWorker::Checkpoint { attempt: ATTEMPT });
    golden.add(FromWorker::Began { attempt: ATTEMPT, pid: 100 });
    let ends = [
        AttemptEnd::Finished,
        AttemptEnd::Failed(Failure::new(FailureKind::Crashed, "killed by signal 11")),
        AttemptEnd::Stopped,
        AttemptEnd::Lost { reason: "its host died".into() },
    ];
    for end in ends {
        golden.add(FromWorker::Ended(Ended {
            attempt: ATTEMPT,
            end,
            ran: Duration::from_secs(1),
            peak_memory_bytes: 1 << 20,
            body_bytes: (90, 10, 0),
            bars: vec![record()],
        }));
    }
    golden.add(FromWorker::Returned { attempts: vec![ATTEMPT] });
    golden.add(FromWorker::NotReturned { attempt: ATTEMPT });
    golden.add(FromWorker::WantBundle { digest: DIGEST, offset: 0 });
    golden.add(FromWorker::BundleRefused {
        bundle: BundleRef::Installed("tools".into()),
        reason: "not there".into(),
        attempts: vec![ATTEMPT],
    });
    golden.add(FromWorker::Output { request: 1, bytes: Some((10, 20)) });
    golden.add(FromWorker::Goodbye);
    golden.add(FromWorker::Absent { back_within: Duration::from_secs(86_400) });

    golden.add(ToWorker::Registered {
        store: 77,
        epoch: 3,
        heartbeat: Duration::from_secs(5),
        lost_after: Duration::from_secs(20),
        closed: vec![ATTEMPT],
    });
    golden.add(ToWorker::Renewed { number: 5 });
    golden.add(ToWorker::SetHeartbeat { heartbeat: Duration::from_secs(6) });
    golden.add(ToWorker::Start(Start {
        attempt: ATTEMPT,
        execution: 1,
        application: application(),
        owner: Some(user()),
        bundle: BundleRef::Shipped(DIGEST),
        service: "mult".into(),
        options: JobOptions::new().label("x").env("A", "b"),
        checkpoint_bytes: Some(9),
        progress_rtt_test: Duration::from_secs(10),
    }));
    golden.add(ToWorker::Stop { attempt: ATTEMPT, at_once: false });
    golden.add(ToWorker::Recall { attempt: ATTEMPT });
    golden.add(ToWorker::Confirm { attempts: vec![ATTEMPT] });
    golden.add(ToWorker::BundleChunk { digest: DIGEST, offset: 0, bytes: 4_096, total: 4_096 });
    golden.add(ToWorker::BundleMissing { digest: DIGEST });
    golden.add(ToWorker::FetchOutput { request: 1, attempt: ATTEMPT });

    golden.add(FromCommand::Status);
    golden.add(FromCommand::Jobs);
    golden.add(FromCommand::Workers);
    golden.add(FromCommand::Logs { job: JOB });
    golden.add(FromCommand::Cancel { jobs: vec![JOB] });
    golden.add(FromCommand::Applications);
    golden.add(FromCommand::CancelApplication { application: application() });
    golden.add(FromCommand::CancelUser { user: user() });
    golden.add(FromCommand::Drain { worker: WORKER, deadline: Some(Duration::from_secs(60)) });
    golden.add(ToCommand::Status(Status {
        jobs: vec![("queued".into(), 1)],
        workers: 2,
        uptime_s: 1.5,
        store_trouble: "disk full".into(),
        refused: vec![("keys".into(), 3)],
    }));
    golden.add(ToCommand::Jobs {
        rows: vec![JobRow {
            job_id: JOB,
            application_id: application(),
            user: owned().owner,
            service: "mult".into(),
            label: "x".into(),
            state: JobState::Running,
            attempt: 2,
            worker: Some(WORKER),
            pid: Some(100),
            reason: String::new(),
        }],
        last: true,
    });
    golden.add(ToCommand::Workers {
        rows: vec![WorkerRow {
            worker: WORKER,
            host: "node-1".into(),
            pid: 99,
            slots: 4,
            running: 1,
            state: WorkerState::Suspect,
            silent: Duration::from_secs(9),
        }],
        last: true,
    });
    golden.add(ToCommand::Logs { bytes: Some((10, 20)), note: String::new() });
    golden.add(ToCommand::Cancelled { unknown: vec![JOB], ended: vec![] });
    golden.add(ToCommand::Applications {
        rows: vec![ApplicationRow {
            application_id: application(),
            user: owned().owner,
            connected: false,
            away_s: Some(1.5),
            queued: 1,
            running: 2,
            finished: 3,
            failed: 4,
            cancelled: 5,
        }],
        last: true,
    });
    golden.add(ToCommand::ApplicationCancelled { jobs: Some(3) });
    golden.add(ToCommand::UserCancelled { applications: 2, jobs: 3 });
    golden.add(ToCommand::Draining { attempts: Some(2) });

    golden.add(ToHost::Hello {
        version: 2,
        orphan_grace: Duration::from_secs(86_400),
        socket: "/state/hosts/0.sock".into(),
    });
    for payload in [Payload::Inline(vec![1, 2, 3]), Payload::Descriptor { bytes: 5 << 20 }] {
        golden.add(ToHost::Start(StartAttempt {
            attempt: ATTEMPT,
            execution: 1,
            service: "mult".into(),
            payload,
            directory: "/state/jobs/1".into(),
            spool_file: "/state/spool/1".into(),
            env: vec![("A".into(), "b".into())],
            checkpoint: Some(Payload::Inline(vec![4])),
            grace: Duration::from_secs(10),
            run_timeout: Some(Duration::from_secs(60)),
            progress_timeout: Some(Duration::from_secs(5)),
            memory_limit: Some(1 << 30),
            lease_until: Some(99),
            notes: vec![9],
        }));
    }
    golden.add(ToHost::Stop { attempt: ATTEMPT, grace: Duration::from_secs(10) });
    golden.add(ToHost::Confirm { attempt: ATTEMPT });
    golden.add(ToHost::ReleaseRegion { region: 3 });
    golden.add(ToHost::ReadOutput { attempt: ATTEMPT });
    golden.add(ToHost::RenewLeases { until: 99 });
    golden.add(ToHost::ReadCheckpoint { attempt: ATTEMPT });
    golden.add(ToHost::End);
    golden.add(FromHost::Welcome { version: 2, pid: 99, services: vec!["mult".into()], forks: true });
    golden.add(FromHost::Held {
        attempt: ATTEMPT,
        notes: vec![9],
        run: Some(HeldRun { pid: 100, region: 3, ran: Duration::from_secs(9), stopping: false }),
    });
    golden.add(FromHost::AllHeld);
    golden.add(FromHost::Checkpoint { attempt: ATTEMPT, state: Payload::Inline(vec![4]) });
    golden.add(FromHost::Began { attempt: ATTEMPT, pid: 100, region: 3 });
    golden.add(FromHost::Bars { attempt: ATTEMPT, bars: vec![record()] });
    golden.add(FromHost::Output { attempt: ATTEMPT, stderr: true, text: b"last words".to_vec() });
    golden.add(FromHost::OutputDone { attempt: ATTEMPT });
    for output in [Output::Inline(vec![1, 2, 3]), Output::Spool { bytes: 5 << 20 }] {
        golden.add(FromHost::Ended {
            attempt: ATTEMPT,
            end: AttemptEnd::Finished,
            output,
            ran: Duration::from_secs(1),
            peak_memory_bytes: 1 << 20,
            region: Some(3),
        });
    }

    golden.add(FromReporter::Ping { number: 1 });
    golden.add(FromReporter::Batch { applications: vec![(owned(), vec![update()])] });
    golden.add(FromReporter::Ended { attempts: vec![(owned(), ATTEMPT)] });
    golden.add(ToReporter::Pong { number: 1 });
    golden.add(FromWatcher::Watch { application: application() });
    golden.add(FromWatcher::Forget);
    golden.add(ToWatcher::Bars { updates: vec![update()] });
    golden.0
}

#[test]
fn messages_are_the_bytes_that_they_were() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/protocol.golden");
    if std::env::var_os("LRTS_UPDATE_GOLDEN").is_some() {
        std::fs::write(path, golden()).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap();
    for (now, before) in golden().lines().zip(expected.lines()) {
        assert_eq!(now, before);
    }
    assert_eq!(golden().lines().count(), expected.lines().count());
}

/// What a host or worker of version 1 says to one of this version.
#[test]
fn old_notices_are_still_read() {
    let decode_hex = |hex: &str| -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    };
    let old = include_str!("host-1.golden");
    for line in old.lines() {
        let (name, hex) = line.split_once(' ').unwrap();
        let bytes = decode_hex(hex);
        match name.split_once("::").unwrap().0 {
            "ToHost" => assert!(decode::<ToHost>(&bytes).is_ok(), "{name}"),
            "FromHost" => assert!(decode::<FromHost>(&bytes).is_ok(), "{name}"),
            _ => panic!("{name} is no notice"),
        }
    }
    assert_eq!(old.lines().count(), 14);
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes: Vec<u8>) {
        let _ = decode::<FromApplication>(&bytes);
        let _ = decode::<FromWorker>(&bytes);
        let _ = decode::<FromCommand>(&bytes);
        let _ = decode::<FromHost>(&bytes);
        let _ = decode::<FromReporter>(&bytes);
    }

    #[test]
    fn no_flipped_byte_makes_a_decoder_panic(line in 0usize..60, at: prop::sample::Index, flip: u8) {
        let golden = golden();
        let line = golden.lines().nth(line).unwrap();
        let hex = line.split_once(' ').unwrap().1;
        let mut bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        let index = at.index(bytes.len());
        bytes[index] ^= flip;
        let _ = decode::<FromApplication>(&bytes);
        let _ = decode::<ToApplication>(&bytes);
        let _ = decode::<FromWorker>(&bytes);
        let _ = decode::<ToWorker>(&bytes);
        let _ = decode::<ToHost>(&bytes);
        let _ = decode::<FromHost>(&bytes);
    }
}
