//! Jobs that die again and again, take too much memory, or don't get on.

use std::time::Duration;

use lrts_client::blocking::ClientApplication;
use lrts_client::{FailureKind, JobOptions, ServiceStatus};

use crate::services::*;
use crate::support::Cluster;

#[test]
fn a_poison_job_is_parked_with_its_last_words_and_its_neighbours_are_not_blamed() {
    let cluster = Cluster::start(&[2]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let poison = app.schedule_service(&Abort).unwrap();
    let neighbours = app.schedule_services((0..20).map(|_| Sleep(200))).unwrap();
    let parked = app.wait_for(&poison).unwrap();
    assert_eq!((parked.status(), parked.attempts), (ServiceStatus::Crashed, 3));
    let failure = parked.outcome.unwrap_err();
    assert!(failure.message.contains("SIGABRT") && failure.message.contains("last words"), "{failure}");
    for neighbour in app.wait_for_multi(&neighbours).unwrap() {
        assert_eq!((neighbour.status(), neighbour.attempts), (ServiceStatus::Finished, 1));
    }
    let workers = cluster.json(&["workers"]);
    assert_eq!(workers[0]["state"], "ready", "one bad job is no reason to drain a worker");
    app.stop().unwrap();
}

#[test]
fn a_job_over_its_memory_limit_is_out_of_memory_with_peak_and_limit() {
    let cluster = Cluster::start(&[1]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    for in_child in [false, true] {
        let options = JobOptions::new().memory_limit(128 << 20).crash_limit(1);
        let job = app.schedule_service_with(&Hog { in_child }, options).unwrap();
        let result = app.wait_for(&job).unwrap();
        assert_eq!(result.status(), ServiceStatus::Crashed);
        let failure = result.outcome.unwrap_err();
        assert_eq!(failure.kind, FailureKind::OutOfMemory, "{failure}");
        assert!(failure.message.contains("limit is 128 MiB"), "{failure}");
        assert_eq!(failure.message.matches("MiB").count(), 2, "peak and limit: {failure}");
    }
    app.stop().unwrap();
}

#[test]
fn a_job_that_gets_nowhere_times_out_and_one_that_gets_on_does_not() {
    let cluster = Cluster::start(&[2]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let options = || JobOptions::new().progress_timeout(Duration::from_secs(2));
    let stuck = app.schedule_service_with(&Stuck { steps: 3 }, options()).unwrap();
    let count = Count { name: "gets on".into(), steps: 5_000 };
    let gets_on = app.schedule_service_with(&count, options()).unwrap();
    let result = app.wait_for(&stuck).unwrap();
    assert_eq!((result.status(), result.attempts), (ServiceStatus::TimedOut, 1));
    let failure = result.outcome.unwrap_err();
    assert!(failure.message.contains("progress"), "{failure}");
    // It ran for longer than the limit.
    let result = app.wait_for(&gets_on).unwrap();
    assert!(result.ran > Duration::from_secs(2), "{:?}", result.ran);
    assert_eq!(result.into_output().unwrap(), 5_000);
    app.stop().unwrap();
}

#[test]
fn a_worker_at_which_different_jobs_keep_dying_is_drained_and_the_jobs_are_not_charged() {
    let mut cluster = Cluster::without_workers(&[]);
    let good = cluster.add_worker(1, &[]);
    let bad = cluster.add_worker(1, &[]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let picky = || Picky { dies_below: cluster.file("worker-2") };
    let jobs = app.schedule_services((0..20).map(|_| picky())).unwrap();
    for result in app.wait_for_multi(&jobs).unwrap() {
        assert_eq!(result.status(), ServiceStatus::Finished, "{:?}", result.outcome);
        assert_eq!(result.worker.unwrap().to_string(), good);
    }
    cluster.wait_for_worker(&bad, Some("draining"));
    assert!(cluster.scheduler.log().contains("see to the machine"), "{}", cluster.scheduler.log());
    app.stop().unwrap();
}
