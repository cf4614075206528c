//! Jobs of all kinds end as they should.

use std::time::Duration;

use lrts_client::blocking::ClientApplication;
use lrts_client::{Bytes, FailureKind, JobHandle, JobOptions, RawOutput, Service, ServiceStatus};

use crate::services::*;
use crate::support::{Cluster, SOON, eventually};

/// How one of the mixed jobs must end.
enum Expected {
    Sum(i64),
    Steps(u64),
    Body(u8, usize),
    Failure(FailureKind, ServiceStatus, &'static str),
}

fn schedule<S: Service>(app: &ClientApplication, service: &S, options: JobOptions) -> JobHandle<RawOutput> {
    app.schedule_service_with(service, options).unwrap().untyped()
}

#[test]
fn five_hundred_jobs_of_mixed_kinds_end_as_they_should() {
    let cluster = Cluster::start(&[2, 2]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let once = || JobOptions::new().crash_limit(1);
    let mut jobs = Vec::new();
    for number in 0..500u64 {
        let failure = |kind, status, text| Expected::Failure(kind, status, text);
        let crash = |text| failure(FailureKind::Crashed, ServiceStatus::Crashed, text);
        let (job, expected) = match number % 25 {
            0 => (
                schedule(&app, &Fail("could not save".into()), once()),
                failure(FailureKind::Error, ServiceStatus::Failed, "could not save: the disk is on fire"),
            ),
            1 => (
                schedule(&app, &Panic("out of ideas".into()), once()),
                failure(FailureKind::Panic, ServiceStatus::Failed, "out of ideas"),
            ),
            2 => (schedule(&app, &Abort, once()), crash("signal 6")),
            // Apart from each other, so that by no chance a worker looks broken.
            9 => (schedule(&app, &Segfault, once()), crash("signal 11")),
            15 => (schedule(&app, &Exit(3), once()), crash("code 3")),
            21 => (schedule(&app, &KillItself, once()), crash("signal 9")),
            6 => {
                let body = Bytes::from(vec![number as u8; 5 << 20]);
                (schedule(&app, &Echo(body), once()), Expected::Body(number as u8, 5 << 20))
            }
            7 | 8 => {
                let steps = 5 + number % 7;
                let count = Count { name: format!("count {number}"), steps };
                (schedule(&app, &count, once()), Expected::Steps(steps))
            }
            _ => {
                let number = number as i64;
                (schedule(&app, &Add(number, 1), once()), Expected::Sum(number + 1))
            }
        };
        jobs.push((job, expected));
    }

    for (job, expected) in &jobs {
        let result = app.wait_for(job).unwrap();
        let id = result.job_id;
        assert_eq!(result.attempts, 1, "{id}");
        match expected {
            Expected::Sum(sum) => {
                assert_eq!(result.status(), ServiceStatus::Finished);
                assert_eq!(result.into_output().unwrap().decode::<i64>().unwrap(), *sum);
            }
            Expected::Steps(steps) => {
                assert_eq!(result.into_output().unwrap().decode::<u64>().unwrap(), *steps);
            }
            Expected::Body(byte, length) => {
                let body = result.into_output().unwrap().decode::<Bytes>().unwrap();
                assert!(body.len() == *length && body.iter().all(|b| b == byte), "{id}");
            }
            Expected::Failure(kind, status, text) => {
                assert_eq!(result.status(), *status, "{id}");
                let failure = result.outcome.unwrap_err();
                assert_eq!(failure.kind, *kind, "{id}: {}", failure.message);
                assert!(failure.message.contains(text), "{id}: {}", failure.message);
            }
        }
    }
    app.stop().unwrap();
}

#[test]
fn failures_say_what_happened() {
    let cluster = Cluster::start(&[1]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let panic = app.schedule_service(&Panic("no".into())).unwrap();
    let failure = app.wait_for(&panic).unwrap().outcome.unwrap_err();
    assert!(failure.message.contains("no") && failure.message.contains("services.rs:"), "{failure}");

    let abort = app.schedule_service_with(&Abort, JobOptions::new().crash_limit(1)).unwrap();
    let failure = app.wait_for(&abort).unwrap().outcome.unwrap_err();
    assert!(failure.message.contains("SIGABRT") && failure.message.contains("last words"), "{failure}");
    app.stop().unwrap();
}

#[test]
fn retries_and_crash_limit_count_apart() {
    let cluster = Cluster::start(&[2]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let failing = app.schedule_service_with(&Fail("no".into()), JobOptions::new().retries(1)).unwrap();
    let crashing = app.schedule_service_with(&Exit(3), JobOptions::new().crash_limit(2)).unwrap();
    let failed = app.wait_for(&failing).unwrap();
    assert_eq!((failed.status(), failed.attempts), (ServiceStatus::Failed, 2));
    let crashed = app.wait_for(&crashing).unwrap();
    assert_eq!((crashed.status(), crashed.attempts), (ServiceStatus::Crashed, 2));
    app.stop().unwrap();
}

#[test]
fn results_come_as_they_end_and_in_the_order_asked_for() {
    let cluster = Cluster::start(&[4]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let slow = app.schedule_service(&Sleep(1_500)).unwrap();
    let quick = app.schedule_service(&Sleep(0)).unwrap();
    let ended: Vec<_> = app.as_completed([&slow, &quick]).map(|result| result.unwrap().job_id).collect();
    assert_eq!(ended, [quick.id(), slow.id()]);

    let jobs = app.schedule_services((0..300).map(|n| Add(n, n))).unwrap();
    let sums: Vec<i64> =
        app.wait_for_multi(&jobs).unwrap().into_iter().map(|result| result.into_output().unwrap()).collect();
    assert_eq!(sums, (0..300).map(|n| 2 * n).collect::<Vec<i64>>());
    app.stop().unwrap();
}

#[test]
fn a_large_body_stalls_no_heartbeat() {
    let mut cluster = Cluster::without_workers(&["--lost-after", "2s"]);
    cluster.add_worker(1, &[]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let body = Bytes::from(vec![7; 300 << 20]);
    let job = app.schedule_service(&Echo(body.clone())).unwrap();
    let result = app.wait_for(&job).unwrap();
    assert_eq!(result.attempts, 1, "a worker that is busy with it is not lost");
    assert!(result.into_output().unwrap() == body);
    assert!(!cluster.scheduler.log().contains("worker lost"), "{}", cluster.scheduler.log());
    app.stop().unwrap();
}

#[test]
fn a_wait_with_a_time_limit_gives_the_job_back() {
    let cluster = Cluster::start(&[1]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let job = app.schedule_service(&Sleep(700)).unwrap();
    assert!(app.wait_for_timeout(&job, Duration::from_millis(50)).unwrap().is_none());
    assert!(app.wait_for_timeout(&job, SOON).unwrap().is_some());
    assert!(matches!(app.wait_for(&job), Err(lrts_client::ClientError::AlreadyTaken { .. })));
    app.stop().unwrap();
}

#[test]
fn a_job_has_surroundings_of_its_own() {
    let cluster = Cluster::start(&[1]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let job = app.schedule_service_with(&Surroundings, JobOptions::new().env("FLAVOUR", "plum")).unwrap();
    let found = app.wait_for(&job).unwrap().into_output().unwrap();
    assert!(found.stdin_is_empty && found.process_group_is_own);
    assert!(found.environment.contains(&("FLAVOUR".into(), "plum".into())));
    assert!(found.environment.iter().all(|(name, _)| !name.starts_with("LRTS_")), "{found:?}");
    eventually("the job's directory goes with it", SOON, || {
        if found.directory.exists() { Err(found.directory.display().to_string()) } else { Ok(()) }
    });
    app.stop().unwrap();
}

#[test]
fn cancelled_jobs_get_their_hook_or_their_flag_or_end() {
    let cluster = Cluster::start(&[3]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let file = |name: &str| cluster.directory().join(name);
    let by_hook = app.schedule_service(&Patient { file: file("hook"), by_hook: true }).unwrap();
    let by_flag = app.schedule_service(&Patient { file: file("flag"), by_hook: false }).unwrap();
    let deaf = app.schedule_service(&Note { file: file("deaf"), sleep_ms: 600_000 }).unwrap();
    let queued = app.schedule_service(&Sleep(0)).unwrap();
    for name in ["hook", "flag", "deaf"] {
        eventually("the job begins", SOON, || {
            std::fs::read_to_string(file(name)).map_err(|error| error.to_string()).map(|_| ())
        });
    }
    app.cancel(&queued).unwrap();
    app.cancel(&by_hook).unwrap();
    app.cancel(&by_flag).unwrap();
    app.cancel(&deaf).unwrap();
    for job in [by_hook.untyped(), by_flag.untyped(), deaf.untyped(), queued.untyped()] {
        assert_eq!(app.wait_for(&job).unwrap().status(), ServiceStatus::Cancelled);
    }
    assert_eq!(std::fs::read_to_string(file("hook")).unwrap(), "cancelled by hook");
    assert_eq!(std::fs::read_to_string(file("flag")).unwrap(), "cancelled by flag");
    app.stop().unwrap();
}
