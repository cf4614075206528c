//! When a job ends, for whatever reason, all its processes have ended.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lrts_client::blocking::ClientApplication;
use lrts_client::{FailureKind, JobOptions, ServiceStatus};

use crate::services::*;
use crate::support::{Cluster, SOON, eventually, still_runs};

fn cluster_of_impatient_worker() -> Cluster {
    let mut cluster = Cluster::without_workers(&[]);
    cluster.add_worker(1, &["--grace", "500ms"]);
    cluster
}

/// Waits for all processes of a [`Family`].
fn relatives(file: &Path) -> Vec<u32> {
    eventually("the family is there", SOON, || {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        if pids.len() == RELATIVES { Ok(pids) } else { Err(text) }
    })
}

fn assert_gone(relatives: &[u32]) {
    let left: Vec<_> = relatives.iter().filter(|&&pid| still_runs(pid)).collect();
    assert!(left.is_empty(), "{left:?} of {relatives:?} still run");
}

fn family(cluster: &Cluster, sleep_ms: u64) -> (Family, PathBuf) {
    let file = cluster.file("family");
    (Family { file: file.clone(), sleep_ms }, file)
}

#[test]
fn a_cancelled_job_takes_its_grandchildren_with_it() {
    let cluster = cluster_of_impatient_worker();
    let app = ClientApplication::start(cluster.information()).unwrap();
    let (service, file) = family(&cluster, 600_000);
    let job = app.schedule_service(&service).unwrap();
    let relatives = relatives(&file);
    app.cancel(&job).unwrap();
    assert_eq!(app.wait_for(&job).unwrap().status(), ServiceStatus::Cancelled);
    assert_gone(&relatives);
    app.stop().unwrap();
}

#[test]
fn a_job_over_its_run_timeout_takes_its_grandchildren_with_it() {
    let cluster = cluster_of_impatient_worker();
    let app = ClientApplication::start(cluster.information()).unwrap();
    let (service, file) = family(&cluster, 600_000);
    let options = JobOptions::new().run_timeout(Duration::from_secs(2));
    let job = app.schedule_service_with(&service, options).unwrap();
    let relatives = relatives(&file);
    let result = app.wait_for(&job).unwrap();
    assert_eq!((result.status(), result.attempts), (ServiceStatus::TimedOut, 1));
    let failure = result.outcome.unwrap_err();
    assert!(failure.kind == FailureKind::TimedOut && failure.message.contains("2s"), "{failure}");
    assert_gone(&relatives);
    app.stop().unwrap();
}

#[test]
fn a_job_that_returns_takes_its_grandchildren_with_it() {
    let cluster = cluster_of_impatient_worker();
    let app = ClientApplication::start(cluster.information()).unwrap();
    let (service, file) = family(&cluster, 1_000);
    let job = app.schedule_service(&service).unwrap();
    let relatives = relatives(&file);
    assert_eq!(app.wait_for(&job).unwrap().status(), ServiceStatus::Finished);
    assert_gone(&relatives);
    app.stop().unwrap();
}

#[test]
fn a_drain_deadline_takes_grandchildren_too_and_the_job_runs_elsewhere_uncharged() {
    let mut cluster = cluster_of_impatient_worker();
    let app = ClientApplication::start(cluster.information()).unwrap();
    let (service, file) = family(&cluster, 3_000);
    let options = JobOptions::new().crash_limit(1);
    let job = app.schedule_service_with(&service, options).unwrap();
    let relatives = relatives(&file);
    let worker = cluster.json(&["workers"])[0]["worker"].as_str().unwrap().to_owned();
    cluster.add_worker(1, &[]);
    assert!(cluster.command(&["drain", &worker, "--deadline", "100ms"]).status.success());
    let result = app.wait_for(&job).unwrap();
    assert_eq!((result.status(), result.attempts), (ServiceStatus::Finished, 2), "{:?}", result.outcome);
    assert_gone(&relatives);
    assert_ne!(result.worker.unwrap().to_string(), worker);
    app.stop().unwrap();
}
