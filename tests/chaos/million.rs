//! Very many jobs wait while the scheduler dies. `cargo bench --bench million` measures it with a million of them.

use lrts_client::blocking::ClientApplication;

use crate::support::{Cluster, Work};

const JOBS: u64 = 50_000;

#[test]
fn fifty_thousand_queued_jobs_outlive_their_scheduler() {
    let mut cluster = Cluster::without_workers(&[]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let jobs = app.schedule_services((0..JOBS).map(|_| Work::new("nowhere", 0))).unwrap();
    app.flush().unwrap();
    cluster.scheduler.kill();
    cluster.restart_scheduler();
    cluster.wait_for_jobs("queued", JOBS);
    let rows = cluster.json(&["jobs"]);
    let mut ids: Vec<&str> = rows.iter().map(|row| row["job_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    let mut expected: Vec<String> = jobs.iter().map(|job| job.id().to_string()).collect();
    expected.sort_unstable();
    assert!(ids == expected, "{} of {JOBS} jobs are listed", ids.len());
    app.stop().unwrap();
}
