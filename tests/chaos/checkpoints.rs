//! A checkpointing job loses a step at most when its process dies, and a second's worth more when its host or its machine does.

use std::path::PathBuf;
use std::process::Command;

use lrts_client::blocking::ClientApplication;
use lrts_client::{JobHandle, ServiceStatus};

use crate::support::{Cluster, Daemon, Mark, SOON, Steps, eventually, example, keys, kill, parent};

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

/// What the example says of its islands: where each has resumed from, and what it has come to.
fn islands(program: &mut Daemon) -> Vec<(u64, String)> {
    let mut islands = Vec::new();
    for _ in 0..2 {
        let line = program.line_of("Island");
        let (_, rest) = line.split_once("generation ").unwrap();
        let (resumed, result) = rest.split_once(" of ").unwrap();
        islands.push((resumed.parse().unwrap(), result.to_owned()));
    }
    assert!(program.wait().success(), "{}", program.log());
    islands
}

/// Half a second of work: many generations.
const WORK: u64 = 50;

/// How long a process has worked, in hundredths of a second; nothing if it is gone.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which is in parentheses: user and system time are the 14th and 15th fields of all.
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

#[test]
fn an_evolution_whose_processes_are_killed_comes_to_the_same_result() {
    let cluster = Cluster::start(&[2]);
    let evolve = |name: &str| {
        let mut command = Command::new(example("evolve"));
        command.args(["--islands", "2", "--generations", "150", "--application-id", name]);
        command
            .env("LRTS_KEYS", keys())
            .env("LRTS_SCHEDULER", &cluster.scheduler_address)
            .env("LRTS_PROGRESS_SERVER", &cluster.progress_address);
        Daemon::start(name, command, cluster.directory())
    };
    let undisturbed = islands(&mut evolve("undisturbed"));
    assert!(undisturbed.iter().all(|(resumed, _)| *resumed == 0));

    let mut disturbed = evolve("disturbed");
    let pid = eventually("an island is under way", SOON, || {
        let running = cluster.json(&["jobs"]);
        let pids = running.iter().filter_map(|row| u32::try_from(row["pid"].as_u64()?).ok());
        pids.into_iter().find(|&pid| cpu_ticks(pid) >= WORK).ok_or_else(|| format!("{running:?}"))
    });
    kill(pid);
    let disturbed = islands(&mut disturbed);
    assert!(disturbed.iter().any(|(resumed, _)| *resumed > 0), "{disturbed:?}");
    for ((_, expected), (_, result)) in undisturbed.iter().zip(&disturbed) {
        assert_eq!(expected, result);
    }
}
