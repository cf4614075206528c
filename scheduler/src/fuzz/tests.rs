use std::time::Duration;

use lrts_core::fuzz::{Script, check_corpora, keep};
use lrts_core::ids::{AttemptId, BundleDigest, SessionId};
use lrts_core::protocol::application::{Attach, Credit, FromApplication, JobRange, JobSet, KeyedJob};
use lrts_core::protocol::codec::encode;
use lrts_core::protocol::worker::{AttemptEnd, Ended, FromWorker, HeldAttempt, Register};
use lrts_core::spec::{BundleRef, JobOptions, OnDisconnect, Platform};
use lrts_core::status::{Failure, FailureKind};
use lrts_core::worker_secret::WorkerSecret;
use serde::Serialize;

use super::TARGETS;
use crate::store::tests::{rows, stores};

const SESSION: SessionId = SessionId(5);

#[test]
fn what_is_kept_for_fuzzers_does_no_harm() {
    keep("peers", conversations());
    keep("store_row", rows());
    keep("store", stores());
    check_corpora(TARGETS);
}

/// A connection says something.
fn say<T: Serialize>(script: Script, connection: u8, message: &T, body: &[u8]) -> Script {
    script.byte(12 + connection).part(&encode(message)).part(body)
}

fn attach(script: Script, connection: u8, bundle: BundleRef) -> Script {
    let attach = Attach {
        application: "nightly".parse().unwrap(),
        session: SESSION,
        bundle,
        services: vec!["mult".into()],
        on_disconnect: OnDisconnect::CancelAfter(Duration::from_secs(60)),
        progress_rtt_test: Duration::from_secs(10),
        credit: Credit { results: 10, bytes: 1 << 20 },
    };
    say(script, connection, &FromApplication::Attach(attach), b"")
}

fn submit(script: Script, first: u64, count: u32, options: JobOptions, keys: Vec<KeyedJob>) -> Script {
    let jobs = vec![JobRange { count, service: 0, options: 0, payload_bytes: 2 }];
    let submit = FromApplication::Submit { first, options: vec![options], jobs, keys };
    say(script, 0, &submit, &b"ab".repeat(count as usize))
}

fn register(script: Script, connection: u8, attempts: Vec<HeldAttempt>) -> Script {
    let secret: WorkerSecret = format!("{connection:02x}").repeat(32).parse().unwrap();
    let register = Register {
        worker: secret.worker(),
        secret,
        host: "node-1".into(),
        pid: 99,
        instance: 11,
        slots: 2,
        platform: Platform::current(),
        boot_id: "c0ffee".into(),
        installed: vec!["tools".into()],
        ships: true,
        attempts,
        store: Some(77),
    };
    say(script, connection, &FromWorker::Register(register), b"")
}

fn attempt(sequence: u64, attempt: u32) -> AttemptId {
    AttemptId { job: SESSION.job(sequence), attempt }
}

fn began(script: Script, attempt: AttemptId) -> Script {
    say(script, 1, &FromWorker::Began { attempt, pid: 100 }, b"")
}

fn ended(script: Script, attempt: AttemptId, end: AttemptEnd) -> Script {
    let ended = Ended {
        attempt,
        end,
        ran: Duration::from_secs(1),
        peak_memory_bytes: 0,
        body_bytes: (3, 1, 1),
        bars: vec![],
    };
    say(script, 1, &FromWorker::Ended(ended), b"outoe")
}

fn time(script: Script, seconds: u8) -> Script {
    script.byte(4).byte(seconds)
}

/// Days of a small cluster.
fn conversations() -> Vec<Vec<u8>> {
    let tools = || BundleRef::Installed("tools".into());
    let ready = || register(attach(Script::new(), 0, tools()), 1, vec![]);
    let running = || began(submit(ready(), 1, 3, JobOptions::new(), vec![]), attempt(1, 1));
    let want =
        FromApplication::Want { jobs: JobSet { session: SESSION, ranges: vec![(1, 3)] }, urgent: false };
    let taken = FromApplication::Taken { jobs: JobSet { session: SESSION, ranges: vec![(1, 1)] } };
    let cancel = FromApplication::Cancel { jobs: JobSet { session: SESSION, ranges: vec![(1, 2)] } };
    let key = |index| KeyedJob { index, key: "night 1".into(), digest: 7 };
    let crashed = || AttemptEnd::Failed(Failure::new(FailureKind::Crashed, "killed by signal 11"));
    let held =
        HeldAttempt { attempt: attempt(1, 1), running: Some(Duration::from_secs(9)), pid: 100, ended: false };

    let finished = ended(say(running(), 0, &want, b""), attempt(1, 1), AttemptEnd::Finished);
    let taken = time(say(finished, 0, &taken, b""), 200);
    let stopped = say(taken.clone(), 0, &FromApplication::Stop, b"");
    let detached = attach(say(running(), 0, &FromApplication::Detach, b""), 2, tools());
    let listed = say(detached.clone(), 2, &FromApplication::List { request: 1, job: None }, b"");
    let retried = ended(running(), attempt(1, 1), crashed());
    let crashed_again = (2..5).fold(retried.clone(), |script, number| {
        let again = attempt(1, number);
        ended(began(time(script, 70), again), again, crashed())
    });
    let lost = register(time(running().byte(1), 40), 3, vec![held]);
    let silent = register(time(time(running(), 12), 12), 1, vec![held]);
    let keyed = submit(
        submit(ready(), 1, 2, JobOptions::new().key("night 1"), vec![key(0)]),
        3,
        1,
        JobOptions::new(),
        vec![key(0)],
    );
    let exclusive = time(submit(ready(), 1, 1, JobOptions::new().exclusive().retries(2), vec![]).byte(1), 60);
    let digest = BundleDigest([7; 32]);
    let shipped = register(attach(Script::new(), 0, BundleRef::Shipped(digest)), 1, vec![]);
    let shipped = submit(shipped, 1, 2, JobOptions::new().priority(3).slots(2), vec![]).byte(8).byte(7);
    let refused = FromWorker::BundleRefused {
        bundle: BundleRef::Shipped(digest),
        reason: "too new".into(),
        attempts: vec![attempt(1, 1)],
    };
    let refused = say(shipped.clone(), 1, &refused, b"");
    let goodbye = say(running(), 1, &FromWorker::Goodbye, b"");
    let absent = say(running(), 1, &FromWorker::Absent { back_within: Duration::from_secs(60) }, b"").byte(1);
    let returned = say(running(), 1, &FromWorker::Returned { attempts: vec![attempt(2, 1)] }, b"");
    let checkpoint = say(running(), 1, &FromWorker::Checkpoint { attempt: attempt(1, 1) }, b"state");
    let checkpoint =
        time(ended(checkpoint, attempt(1, 1), AttemptEnd::Lost { reason: "its host died".into() }), 2);
    let beating = say(running(), 1, &FromWorker::Heartbeat { number: 5 }, b"");
    let cancelled = time(ended(say(running(), 0, &cancel, b""), attempt(1, 1), AttemptEnd::Stopped), 9);
    let repeated = submit(running(), 2, 4, JobOptions::new(), vec![]);
    let superseded = attach(running(), 2, tools());
    let far = submit(ready(), u64::MAX - 1, 3, JobOptions::new(), vec![]);
    let left = time(running().byte(0), 70);
    let all = [
        taken,
        stopped,
        detached,
        listed,
        retried,
        crashed_again,
        lost,
        silent,
        keyed,
        exclusive,
        shipped,
        refused,
        goodbye,
        absent,
        returned,
        checkpoint,
        beating,
        cancelled,
        repeated,
        superseded,
        far,
        left,
    ];
    all.map(Script::bytes).into()
}
