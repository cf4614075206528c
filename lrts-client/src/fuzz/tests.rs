use std::collections::BTreeMap;
use std::time::Duration;

use lrts_core::fuzz::{Script, check_corpora, keep};
use lrts_core::ids::{AttemptId, JobId, SessionId, WorkerId};
use lrts_core::protocol::application::{JobReport, JobSet, RefusalCause, ToApplication, Totals};
use lrts_core::protocol::codec;
use lrts_core::protocol::host::{Output, Payload, StartAttempt};
use lrts_core::status::{Failure, FailureKind};

use super::TARGETS;
use crate::application::fuzz::{DIGEST, SESSION, application};
use crate::encoding::encode;
use crate::encoding::fuzz::{Chain, Record, Value};
use crate::host::{Done, FromJob, ToJob};

#[test]
fn what_is_kept_for_fuzzers_does_no_harm() {
    keep("values", values());
    keep("job_notices", notices());
    keep("scheduler", conversations());
    check_corpora(TARGETS);
}

fn values() -> Vec<Vec<u8>> {
    let list =
        Value::List(vec![Value::Nothing(()), Value::Flag(true), Value::Natural(300), Value::Integer(-7)]);
    let record = Record {
        name: "ü".into(),
        tags: vec![Some('x'), None],
        rest: BTreeMap::from([("list".into(), list), ("real".into(), Value::Real(0.5))]),
    };
    let chain = |depth: usize| (0..depth).fold(Chain::End, |chain, _| Chain::Link(Box::new(chain)));
    let pair = Chain::Pair(Box::new(chain(2)), Box::new(Chain::Named { next: Box::new(chain(1)) }));
    let deep = [vec![0x91; 200], vec![0xc0]].concat();
    vec![
        encode(&record).unwrap(),
        encode(&Value::Text("text".into())).unwrap(),
        encode(&chain(3)).unwrap(),
        encode(&chain(127)).unwrap(),
        encode(&chain(128)).unwrap(),
        encode(&pair).unwrap(),
        encode(&vec![200_u8; 300]).unwrap(),
        encode(&(i128::MIN, Some(0.5_f32), [1_u16, 200, 65_535])).unwrap(),
        deep,
        vec![0xdd, 0xff, 0xff, 0xff, 0xff, 0xc0],
        vec![0xdf, 0x80, 0, 0, 0],
        vec![0xc6, 0xff, 0xff, 0xff, 0xff],
        vec![0xc9, 0, 0, 0, 1, 5, 9],
        vec![0xc1],
        vec![0xc0, 0xc0],
        vec![],
    ]
}

fn notices() -> Vec<Vec<u8>> {
    let attempt = AttemptId { job: SESSION.job(17), attempt: 1 };
    let start = StartAttempt {
        attempt,
        execution: 1,
        service: "mult".into(),
        payload: Payload::Inline(vec![1, 2, 3]),
        directory: "/state/jobs/1".into(),
        spool_file: "/state/spool/1".into(),
        env: vec![("A".into(), "b".into())],
        checkpoint: Some(Payload::Descriptor { bytes: 5 << 20 }),
        grace: Duration::from_secs(10),
        run_timeout: Some(Duration::from_secs(60)),
        progress_timeout: None,
        memory_limit: Some(1 << 30),
        lease_until: Some(99),
        notes: vec![9],
    };
    let start =
        ToJob::Start { start, region: 3, host: 99, files: 1_024, cgroup: Some("/sys/fs/cgroup/x".into()) };
    let failure = Failure::new(FailureKind::Panic, "no luck");
    let told = [
        FromJob::Panicked { message: "no luck".into() },
        FromJob::Checkpoints,
        FromJob::Delivering,
        FromJob::Done(Done::Finished(Output::Inline(vec![7]))),
        FromJob::Done(Done::Finished(Output::Spool { bytes: 5 << 20 })),
        FromJob::Done(Done::Failed(failure)),
        FromJob::Done(Done::Lost { reason: "no memory".into() }),
    ];
    let told = told.iter().map(|notice| codec::encode(notice).into());
    told.chain([start, ToJob::Cancel].iter().map(|notice| codec::encode(notice).into())).collect()
}

fn hear(script: Script, message: &ToApplication, body: &[u8]) -> Script {
    script.byte(12).part(&codec::encode(message)).part(body)
}

fn result(script: Script, job: JobId) -> Script {
    let report = JobReport {
        failure: None,
        attempt: 1,
        attempts: 1,
        worker: Some(WorkerId(1)),
        queued: Duration::ZERO,
        ran: Duration::ZERO,
        bars: Vec::new(),
    };
    hear(script, &ToApplication::Result { job, report }, b"output")
}

fn attached(accepted_through: u64) -> Script {
    hear(Script::new().byte(1).byte(3), &ToApplication::Attached { epoch: 1, accepted_through }, b"")
}

/// Days of an application.
fn conversations() -> Vec<Vec<u8>> {
    let job = |sequence| SESSION.job(sequence);
    let keyed = JobId::keyed(application(), "key 1");
    let complete = ToApplication::BundleComplete { digest: DIGEST };
    let submitted =
        || hear(attached(0).byte(0).byte(3).byte(0).byte(5).byte(0).byte(129).byte(3), &complete, b"");
    let accepted = || hear(submitted().byte(3), &ToApplication::Accepted { through: 3 }, b"").byte(3);
    let waiting = || accepted().byte(4).byte(5).byte(3);
    let all = |script| result(result(result(script, job(2)), job(1)), keyed);
    let ended = all(waiting()).byte(6).byte(1).byte(6).byte(1).byte(8).byte(1).byte(3);
    let given_back = all(waiting()).byte(6).byte(0).byte(4).byte(3);
    let again = all(hear(
        waiting().byte(2).byte(1).byte(3),
        &ToApplication::Attached { epoch: 2, accepted_through: 3 },
        b"",
    ));
    let lost = hear(
        waiting().byte(2).byte(1).byte(3),
        &ToApplication::Attached { epoch: 2, accepted_through: 1 },
        b"",
    );
    let ahead = hear(
        Script::new().byte(1).byte(3),
        &ToApplication::Attached { epoch: 2, accepted_through: u64::MAX },
        b"",
    );
    let far = hear(submitted(), &ToApplication::Accepted { through: u64::MAX }, b"").byte(4).byte(3);
    let refusal =
        |sequence| ToApplication::Refused { sequence, reason: "no".into(), cause: RefusalCause::KeyConflict };
    let refused = hear(hear(submitted(), &refusal(3), b""), &refusal(u64::MAX), b"").byte(4).byte(6).byte(1);
    let gone = hear(waiting(), &ToApplication::Gone { job: job(1), taken: true }, b"").byte(6).byte(1);
    let wanted = |offset| ToApplication::BundleWanted { digest: DIGEST, offset };
    let upload = hear(hear(attached(0).byte(3), &wanted(0), b"").byte(3), &wanted(u64::MAX), b"").byte(3);
    let no_program = ToApplication::BundleRefused { digest: DIGEST, reason: "too large".into() };
    let no_program = hear(attached(0).byte(0).byte(1).byte(3), &no_program, b"").byte(4).byte(6).byte(1);
    let jobs =
        vec![("mult".to_owned(), JobSet { session: SessionId(4), ranges: vec![(1, 9), (12, u64::MAX)] })];
    let listed =
        hear(attached(0).byte(9).byte(3), &ToApplication::Listed { request: 1, jobs, last: true }, b"")
            .byte(6)
            .byte(1);
    let totals = hear(
        attached(0),
        &ToApplication::Totals(Totals { queued: 1, running: 2, finished: 3, failed: 4, cancelled: 5 }),
        b"",
    );
    let stopped = hear(waiting().byte(10).byte(3), &ToApplication::Stopped, b"").byte(6).byte(1);
    let detached = hear(waiting().byte(11).byte(3), &ToApplication::Detached, b"").byte(6).byte(1);
    let late = waiting().byte(2).byte(8).byte(61).byte(6).byte(1);
    let cancelled = waiting().byte(7).byte(1).byte(3).byte(7).byte(2).byte(3);
    let all = [
        ended, given_back, again, lost, ahead, far, refused, gone, upload, no_program, listed, totals,
        stopped, detached, late, cancelled,
    ];
    all.map(Script::bytes).into()
}
