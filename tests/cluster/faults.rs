//! Parts die, come and go; jobs don't mind.

use std::collections::HashSet;
use std::time::Duration;

use lrts_client::blocking::ClientApplication;
use lrts_client::{ClientError, JobOptions, ServiceStatus};
use nix::sys::signal::Signal;

use crate::services::*;
use crate::support::{Cluster, SOON, appears, eventually};

/// Short enough for a test, long enough for a busy machine.
const LOST_AFTER: &str = "3s";

#[test]
fn a_killed_workers_jobs_end_elsewhere_each_result_once() {
    let mut cluster = Cluster::without_workers(&["--lost-after", LOST_AFTER]);
    cluster.add_worker(2, &[]);
    cluster.add_worker(2, &[]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let jobs = app.schedule_services((0..40).map(|_| Sleep(150))).unwrap();
    let mut stream = app.as_completed(&jobs);
    let mut ended = HashSet::new();
    for _ in 0..5 {
        assert!(ended.insert(stream.next().unwrap().unwrap().job_id));
    }
    cluster.workers[0].kill();
    for result in stream {
        let result = result.unwrap();
        assert_eq!(result.status(), ServiceStatus::Finished);
        assert!(ended.insert(result.job_id), "{} twice", result.job_id);
    }
    assert_eq!(ended.len(), 40);
    app.stop().unwrap();
}

#[test]
fn a_worker_that_leaves_in_order_gives_its_jobs_back() {
    let mut cluster = Cluster::start(&[1]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let file = cluster.directory().join("note");
    let job = app
        .schedule_service_with(
            &Note { file: file.clone(), sleep_ms: 1_500 },
            JobOptions::new().crash_limit(1),
        )
        .unwrap();
    eventually("the job begins", SOON, || std::fs::metadata(&file).map_err(|error| error.to_string()));
    cluster.workers[0].signal(Signal::SIGTERM);
    assert!(cluster.workers[0].wait().success());
    cluster.add_worker(1, &[]);
    let result = app.wait_for(&job).unwrap();
    assert_eq!((result.status(), result.attempts), (ServiceStatus::Finished, 2));
    app.stop().unwrap();
}

#[test]
fn workers_added_in_mid_run_take_work() {
    let mut cluster = Cluster::start(&[1]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let jobs = app.schedule_services((0..60).map(|_| Sleep(100))).unwrap();
    let mut stream = app.as_completed(&jobs);
    let first = stream.next().unwrap().unwrap();
    let added = [cluster.add_worker(1, &[]), cluster.add_worker(1, &[])];
    let seen: HashSet<String> =
        stream.map(|result| result.unwrap().worker.expect("it ran").to_string()).collect();
    assert!(added.iter().all(|worker| seen.contains(worker)), "{added:?} not all in {seen:?}");
    assert!(first.worker.is_some());
    app.stop().unwrap();
}

#[test]
fn a_short_job_never_waits_behind_a_long_one_while_another_worker_idles() {
    let mut cluster = Cluster::start(&[1]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    // Short runs so far, so that the scheduler sends more of them ahead of a free slot.
    for result in app.wait_for_multi(&app.schedule_services((0..50).map(|_| Sleep(0))).unwrap()).unwrap() {
        assert_eq!(result.status(), ServiceStatus::Finished);
    }
    let file = cluster.directory().join("long");
    let long = app.schedule_service(&Note { file: file.clone(), sleep_ms: 600_000 }).unwrap();
    eventually("the long job begins", SOON, || std::fs::metadata(&file).map_err(|error| error.to_string()));
    let short = app.schedule_services((0..20).map(|_| Sleep(0))).unwrap();
    app.flush().unwrap();
    cluster.add_worker(1, &[]);
    for job in &short {
        let result = app.wait_for_timeout(job, SOON).unwrap().expect("it runs on the idle worker");
        assert_eq!(result.status(), ServiceStatus::Finished);
    }
    app.cancel(&long).unwrap();
    assert_eq!(app.wait_for(&long).unwrap().status(), ServiceStatus::Cancelled);
    app.stop().unwrap();
}

#[test]
fn a_killed_progress_server_changes_nothing_for_jobs() {
    let mut cluster = Cluster::start(&[2]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let count = |n: u64| Count { name: format!("count {n}"), steps: 400 };
    let jobs = app.schedule_services((0..4).map(count)).unwrap();
    cluster.progress_server.kill();
    for result in app.as_completed(&jobs) {
        assert_eq!(result.unwrap().into_output().unwrap(), 400);
    }
    cluster.restart_progress_server();
    let again = app.schedule_service(&count(9)).unwrap();
    assert_eq!(app.wait_for(&again).unwrap().into_output().unwrap(), 400);
    app.stop().unwrap();
}

#[test]
fn a_progress_server_that_takes_nothing_changes_nothing_for_jobs() {
    let cluster = Cluster::start(&[2]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    // Whatever is sent to it fills buffers.
    cluster.progress_server.signal(Signal::SIGSTOP);
    let crowds = (0..6).map(|number| Crowd { name: format!("crowd {number}"), bars: 500, rounds: 100 });
    let jobs = app.schedule_services(crowds).unwrap();
    for result in app.wait_for_multi(&jobs).unwrap() {
        assert_eq!((result.status(), result.attempts), (ServiceStatus::Finished, 1));
    }
    cluster.progress_server.signal(Signal::SIGCONT);
    app.stop().unwrap();
}

#[test]
fn an_application_waits_for_a_scheduler_that_isnt_there_yet() {
    let mut cluster = Cluster::without_workers(&[]);
    cluster.scheduler.kill();
    let app = ClientApplication::start(cluster.information()).unwrap();
    let job = app.schedule_service(&Add(1, 2)).unwrap();
    assert!(app.wait_for_timeout(&job, Duration::from_millis(200)).unwrap().is_none());
    let mut worker = cluster.start_worker(1, &[]);
    cluster.restart_scheduler();
    worker.ready();
    assert_eq!(app.wait_for(&job).unwrap().into_output().unwrap(), 3);
    app.stop().unwrap();
}

#[test]
fn a_scheduler_that_lost_its_memory_makes_waits_fail_and_never_hang() {
    let mut cluster = Cluster::start(&[1]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let job = app.schedule_service(&Sleep(600_000)).unwrap();
    app.flush().unwrap();
    cluster.scheduler.kill();
    std::fs::remove_dir_all(Cluster::scheduler_directory(cluster.directory())).unwrap();
    cluster.restart_scheduler();
    let error = app.wait_for(&job).unwrap_err();
    assert!(matches!(error, ClientError::Lost { .. }), "{error}");
    // The worker keeps its slot for the job of the scheduler that it knew.
    cluster.add_worker(1, &[]);
    let next = app.schedule_service(&Add(1, 1)).unwrap();
    assert_eq!(app.wait_for(&next).unwrap().into_output().unwrap(), 2);
    app.stop().unwrap();
}

#[test]
fn communication_time_out_ends_a_wait_without_a_scheduler() {
    let mut cluster = Cluster::without_workers(&[]);
    cluster.scheduler.kill();
    let information = cluster.information().communication_time_out(Duration::from_millis(300));
    let app = ClientApplication::start(information).unwrap();
    let job = app.schedule_service(&Add(1, 2)).unwrap();
    let error = app.wait_for(&job).unwrap_err();
    assert!(matches!(error, ClientError::NoScheduler { .. }), "{error}");
}

#[test]
fn a_worker_that_leaves_in_order_leaves_no_process_behind() {
    let mut cluster = Cluster::start(&[1]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let file = cluster.file("note");
    app.schedule_service(&Note { file: file.clone(), sleep_ms: 600_000 }).unwrap();
    appears(&file);
    let worker = &mut cluster.workers[0];
    worker.end();
    let left = worker.part().processes();
    assert!(left.is_empty(), "{left:?}\n{}", worker.log());
}
