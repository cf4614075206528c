//! A checkpointing job loses a step at most when its process dies, and a second's worth more when its host or its machine does.

use std::path::PathBuf;

use lrts_client::blocking::ClientApplication;
use lrts_client::{JobHandle, ServiceStatus};

use crate::support::{Cluster, Mark, Steps, kill, parent};

const STEPS: u64 = 10;

/// Longer than a checkpoint takes to reach the scheduler, so that what is lost can be told by counting.
const STEP_MS: u64 = 1_200;

/// A checkpointing job at its seventh step, on the only worker.
struct Job {
    cluster: Cluster,
    app: ClientApplication,
    job: JobHandle<Vec<u64>>,
    file: PathBuf,
    pid: u32,
}

impl Job {
    fn at_its_seventh_step() -> Self {
        let mut cluster = Cluster::without_workers(&["--heartbeat", "500ms", "--lost-after", "2s"]);
        cluster.add_worker(1, &[]);
        let app = ClientApplication::start(cluster.information()).unwrap();
        let file = cluster.file("job");
        let job =
            app.schedule_service(&Steps { file: file.clone(), steps: STEPS, step_ms: STEP_MS }).unwrap();
        let pid = Mark::wait(&file, "step 7 is taken", |mark| mark.step == 7).pid;
        Self { cluster, app, job, file, pid }
    }

    /// Waits for the result. No more than so many steps were taken twice.
    fn ends_having_repeated(self, at_most: usize) {
        let result = self.app.wait_for(&self.job).unwrap();
        assert_eq!((result.status(), result.attempts), (ServiceStatus::Finished, 2), "{:?}", result.outcome);
        assert_eq!(result.into_output().unwrap(), (1..=STEPS).collect::<Vec<_>>());
        let marks = Mark::read(&self.file);
        let taken = marks.iter().filter(|mark| mark.what == "step").count();
        assert!(taken <= STEPS as usize + at_most, "{taken} steps: {marks:#?}");
        self.app.stop().unwrap();
    }
}

#[test]
fn a_checkpointing_job_whose_process_is_killed_repeats_one_step_at_most() {
    let job = Job::at_its_seventh_step();
    kill(job.pid);
    job.ends_having_repeated(1);
}

#[test]
fn a_checkpointing_job_whose_host_is_killed_repeats_a_step_and_a_seconds_worth_at_most() {
    let job = Job::at_its_seventh_step();
    kill(parent(job.pid).unwrap());
    job.ends_having_repeated(2);
}

#[test]
fn a_checkpointing_job_whose_machine_is_gone_repeats_a_step_and_a_seconds_worth_at_most() {
    let mut job = Job::at_its_seventh_step();
    job.cluster.workers[0].kill_all();
    job.cluster.add_worker(1, &[]);
    job.ends_having_repeated(2);
}
