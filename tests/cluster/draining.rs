//! `lrts drain`.

use lrts_client::blocking::ClientApplication;

use crate::services::*;
use crate::support::{Cluster, Mark, Work, said};

#[test]
fn a_drained_worker_finishes_what_it_has_and_takes_nothing_new() {
    let mut cluster = Cluster::without_workers(&[]);
    let drained = cluster.add_worker(1, &[]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let (file, go) = (cluster.file("job"), cluster.file("go"));
    let job = app.schedule_service(&Work::until(&file, &go)).unwrap();
    Mark::wait_for_beginning(&file, 1);

    let row = &cluster.json(&["drain", &drained])[0];
    assert_eq!(row["worker"], drained.as_str(), "{row}");
    cluster.wait_for_worker(&drained, Some("draining"));
    std::fs::write(go, "").unwrap();
    assert_eq!(app.wait_for(&job).unwrap().attempts, 1);

    let waiting = app.schedule_service(&Add(1, 2)).unwrap();
    app.flush().unwrap();
    let rows = cluster.json(&["jobs"]);
    let row = rows.iter().find(|row| row["job_id"] == waiting.id().to_string().as_str()).unwrap();
    assert!(row["reason"].as_str().unwrap().contains("draining"), "{row}");
    let drain = cluster.command(&["drain", &drained]);
    assert!(
        String::from_utf8_lossy(&drain.stdout).contains("until its daemon is started again"),
        "{drain:?}"
    );
    let other = cluster.add_worker(1, &[]);
    let result = app.wait_for(&waiting).unwrap();
    assert_eq!(result.worker.unwrap().to_string(), other);

    // Another start of it takes work again.
    cluster.workers[0].end();
    cluster.workers[0].restart();
    assert_eq!(cluster.workers[0].ready(), drained);
    cluster.wait_for_worker(&drained, Some("ready"));
    app.stop().unwrap();
}

#[test]
fn an_unknown_worker_can_not_be_drained() {
    let cluster = Cluster::without_workers(&[]);
    let output = cluster.command(&["drain", "0123456789abcdef"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("0123456789abcdef"), "{}", said(&output));
}
