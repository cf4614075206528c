//! Workers come and go while jobs run, and nothing of them stays behind at the scheduler.

use lrts_client::ServiceStatus;
use lrts_client::blocking::ClientApplication;

use crate::support::{Cluster, SOON, Work, descriptors, eventually, status_kib};

const ROUNDS: u64 = 4;
const WORKERS: usize = 4;

/// How much the scheduler may grow from one round to the last; one that kept anything of a program or a body would exceed it.
const GROWTH_KIB: u64 = 24 * 1024;

#[test]
fn workers_that_come_and_go_leave_nothing_at_the_scheduler() {
    let mut cluster = Cluster::without_workers(&["--heartbeat", "500ms", "--lost-after", "2s"]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let scheduler = cluster.scheduler.pid();
    let mut first = None;
    for round in 0..ROUNDS {
        let works =
            (0..30).map(|number| Work::new(cluster.file(&format!("job-{round}-{number}")), 2).body(50_000));
        let jobs = app.schedule_services(works).unwrap();
        for _ in 0..WORKERS {
            cluster.add_worker(2, &[]);
        }
        let mut stream = app.as_completed(&jobs);
        for _ in 0..10 {
            assert_eq!(stream.next().unwrap().unwrap().status(), ServiceStatus::Finished);
        }
        // Half of them leave in order, the others with their machines; all but one in the middle of the work.
        for number in 1..WORKERS {
            let worker = &mut cluster.workers[number];
            if number % 2 == 0 { worker.end() } else { worker.kill_all() }
        }
        for result in stream {
            assert_eq!(result.unwrap().status(), ServiceStatus::Finished);
        }
        cluster.workers[0].end();
        cluster.workers.clear();
        eventually("no worker is known", SOON, || {
            let rows = cluster.json(&["workers"]);
            if rows.is_empty() { Ok(()) } else { Err(format!("{rows:?}")) }
        });
        let (files, memory) = first.get_or_insert((descriptors(scheduler), status_kib(scheduler, "VmRSS")));
        eventually("descriptors are closed", SOON, || {
            let open = descriptors(scheduler);
            if open <= *files { Ok(()) } else { Err(format!("{open}, {files} after the first round")) }
        });
        let resident = status_kib(scheduler, "VmRSS");
        assert!(resident <= *memory + GROWTH_KIB, "{resident} KiB, {memory} KiB after the first round");
    }
    app.stop().unwrap();
}
