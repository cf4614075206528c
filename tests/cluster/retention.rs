//! How long results are kept that nobody fetches.

use lrts_client::blocking::ClientApplication;
use lrts_client::{Bytes, ClientError, JobHandle};

use crate::services::*;
use crate::support::{Cluster, SOON, eventually};

const APPLICATION: &str = "retention";

fn start(cluster: &Cluster) -> ClientApplication {
    ClientApplication::start(cluster.information().application_id(APPLICATION)).unwrap()
}

fn wait_for_known_jobs(cluster: &Cluster, count: usize) {
    eventually(&format!("{count} jobs are known"), SOON, || {
        let rows = cluster.json(&["jobs"]);
        if rows.len() == count { Ok(()) } else { Err(format!("{rows:?}")) }
    });
}

#[test]
fn a_result_that_nobody_fetches_is_forgotten_after_the_retention_time() {
    let mut cluster = Cluster::without_workers(&["--result-retention", "2s"]);
    cluster.add_worker(1, &[]);
    let app = start(&cluster);
    let old = app.schedule_service(&Add(1, 2)).unwrap();
    cluster.wait_for_jobs("finished", 1);
    wait_for_known_jobs(&cluster, 0);
    let error = app.wait_for(&old).unwrap_err();
    assert!(matches!(error, ClientError::Lost { .. }), "{error}");
    let new = app.schedule_service(&Add(2, 2)).unwrap();
    assert_eq!(app.wait_for(&new).unwrap().into_output().unwrap(), 4);
    app.stop().unwrap();
}

#[test]
fn the_oldest_results_go_first_when_they_take_too_much_room() {
    let mut cluster = Cluster::without_workers(&["--result-store", "5MiB"]);
    cluster.add_worker(1, &[]);
    let app = start(&cluster);
    let mut jobs: Vec<JobHandle<Bytes>> = Vec::new();
    for number in 0..8_u8 {
        jobs.push(app.schedule_service(&Echo(Bytes::from(vec![number; 1 << 20]))).unwrap());
    }
    // One after the other on one slot; some of the first are forgotten by the time the last one has ended.
    let last = jobs.pop().unwrap();
    let body = app.wait_for(&last).unwrap().into_output().unwrap();
    assert!(body == Bytes::from(vec![7; 1 << 20]));
    let error = app.wait_for(&jobs[0]).unwrap_err();
    assert!(matches!(error, ClientError::Lost { .. }), "{error}");
    let body = app.wait_for(&jobs[6]).unwrap().into_output().unwrap();
    assert!(body == Bytes::from(vec![6; 1 << 20]));
    app.stop().unwrap();
}
