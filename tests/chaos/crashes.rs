//! Schedulers and workers die with -9 and come back: what runs goes on, what is done is not done again.

use std::path::PathBuf;

use lrts_client::blocking::ClientApplication;
use lrts_client::{JobHandle, JobOptions, ServiceStatus};

use crate::applications::{collected, marks_of, start};
use crate::support::{Cluster, Done, Mark, SOON, Work, appears, eventually, kill, parent, still_runs};

/// Larger than what travels inside messages between a job and its worker.
const LARGE: usize = 3 << 20;

/// Jobs under way: some short ones, and some that go on until they are told to end.
struct Jobs {
    app: ClientApplication,
    short: Vec<JobHandle<Done>>,
    long: Vec<JobHandle<Done>>,
    files: Vec<PathBuf>,
    go: PathBuf,
}

impl Jobs {
    /// Starts two of each, which all run, and four more behind them.
    fn start(cluster: &Cluster) -> Self {
        Self::start_with(cluster, 15)
    }

    /// The same with short ones of so many steps.
    fn start_with(cluster: &Cluster, steps: u64) -> Self {
        let app = ClientApplication::start(cluster.information()).unwrap();
        let go = cluster.file("go");
        let files: Vec<PathBuf> = (0..8).map(|number| cluster.file(&format!("job-{number}"))).collect();
        let short = [Work::new(&files[0], steps), Work::new(&files[1], steps).body(LARGE)];
        let long = files[2..].iter().map(|file| Work::until(file, &go));
        let jobs = Self {
            short: app.schedule_services(short).unwrap(),
            long: app.schedule_services(long).unwrap(),
            app,
            files,
            go,
        };
        jobs.app.flush().unwrap();
        for file in &jobs.files[..4] {
            Mark::wait_for_beginning(file, 1);
        }
        jobs
    }

    /// Waits until the results of the short ones are ready, wherever they are.
    fn short_ones_end(&self) {
        for file in &self.files[..2] {
            Mark::wait(file, "a short job ends", |mark| mark.what == "ended");
        }
    }

    /// Lets the long ones end and checks all results: each job was executed once, by the process that began it.
    fn end_after_one_execution_each(self) {
        std::fs::write(&self.go, "").unwrap();
        for (job, file) in self.short.iter().chain(&self.long).zip(&self.files) {
            let result = self.app.wait_for(job).unwrap();
            assert_eq!(
                (result.status(), result.attempts),
                (ServiceStatus::Finished, 1),
                "{:?}",
                result.outcome
            );
            let done = result.into_output().unwrap();
            assert_eq!((Mark::began(file), Mark::ended(file)), (vec![done.pid], vec![done.pid]));
        }
        self.app.stop().unwrap();
    }
}

#[test]
fn a_killed_scheduler_that_returns_restarts_no_job() {
    let mut cluster = Cluster::start(&[2, 2]);
    let jobs = Jobs::start(&cluster);
    cluster.scheduler.kill();
    jobs.short_ones_end();
    cluster.restart_scheduler();
    jobs.end_after_one_execution_each();
}

#[test]
fn a_scheduler_that_is_killed_again_and_again_restarts_no_job() {
    let mut cluster = Cluster::start(&[2, 2]);
    let jobs = Jobs::start(&cluster);
    for _ in 0..5 {
        cluster.scheduler.kill();
        cluster.restart_scheduler();
    }
    jobs.short_ones_end();
    jobs.end_after_one_execution_each();
}

#[test]
fn a_killed_worker_daemon_that_returns_restarts_no_job() {
    let mut cluster = Cluster::start(&[4]);
    let jobs = Jobs::start(&cluster);
    cluster.workers[0].kill();
    jobs.short_ones_end();
    cluster.workers[0].restart();
    cluster.workers[0].ready();
    jobs.end_after_one_execution_each();
}

#[test]
fn everything_but_the_jobs_is_killed_at_once_and_no_job_restarts() {
    let mut cluster = Cluster::start(&[4]);
    let jobs = Jobs::start(&cluster);
    cluster.scheduler.kill();
    cluster.workers[0].kill();
    cluster.progress_server.kill();
    jobs.short_ones_end();
    cluster.workers[0].restart();
    cluster.restart_progress_server();
    cluster.restart_scheduler();
    jobs.end_after_one_execution_each();
}

#[test]
fn a_host_killed_while_its_worker_is_away_leaves_the_results_that_it_had() {
    let mut cluster = Cluster::start(&[4]);
    let jobs = Jobs::start(&cluster);
    let host = parent(Mark::began(&jobs.files[0])[0]).unwrap();
    cluster.workers[0].kill();
    jobs.short_ones_end();
    let spool = cluster.file("worker-1/spool");
    eventually("both results are on the disk", SOON, || {
        let names: Vec<_> = std::fs::read_dir(&spool).into_iter().flatten().flatten().collect();
        let ends = names.iter().filter(|entry| entry.path().extension().is_some_and(|end| end == "end"));
        if ends.count() == 2 { Ok(()) } else { Err(format!("{names:?}")) }
    });
    kill(host);
    cluster.workers[0].restart();
    cluster.workers[0].ready();
    for (job, file) in jobs.short.iter().zip(&jobs.files) {
        let result = jobs.app.wait_for(job).unwrap();
        assert_eq!((result.attempts, Mark::began(file).len()), (1, 1));
    }
    // The others died with their host, and it is charged to nobody.
    std::fs::write(&jobs.go, "").unwrap();
    for job in &jobs.long {
        assert_eq!(jobs.app.wait_for(job).unwrap().status(), ServiceStatus::Finished);
    }
    jobs.app.stop().unwrap();
}

#[test]
fn jobs_of_a_dead_host_run_again_and_are_not_charged() {
    let cluster = Cluster::start(&[2]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let (file, go) = (cluster.file("job"), cluster.file("go"));
    let job = app.schedule_service_with(&Work::until(&file, &go), JobOptions::new().crash_limit(1)).unwrap();
    for execution in 1..=2 {
        let pid = Mark::wait_for_beginning(&file, execution);
        kill(parent(pid).unwrap());
        eventually("the job dies with its host", SOON, || {
            if still_runs(pid) { Err(pid.to_string()) } else { Ok(()) }
        });
    }
    std::fs::write(go, "").unwrap();
    let result = app.wait_for(&job).unwrap();
    assert_eq!((result.status(), result.attempts), (ServiceStatus::Finished, 3), "{:?}", result.outcome);
    app.stop().unwrap();
}

#[test]
fn jobs_of_a_machine_that_is_gone_run_elsewhere_and_are_not_charged() {
    let mut cluster = Cluster::without_workers(&["--heartbeat", "500ms", "--lost-after", "2s"]);
    cluster.add_worker(1, &[]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let (file, go) = (cluster.file("job"), cluster.file("go"));
    let job = app.schedule_service_with(&Work::until(&file, &go), JobOptions::new().crash_limit(1)).unwrap();
    Mark::wait_for_beginning(&file, 1);
    cluster.workers[0].kill_all();
    cluster.add_worker(1, &[]);
    let second = Mark::wait_for_beginning(&file, 2);
    std::fs::write(go, "").unwrap();
    let result = app.wait_for(&job).unwrap();
    assert_eq!((result.status(), result.attempts), (ServiceStatus::Finished, 2), "{:?}", result.outcome);
    assert_eq!(result.into_output().unwrap().pid, second);
    app.stop().unwrap();
}

#[test]
fn a_worker_that_leaves_its_jobs_running_finds_them_again() {
    let mut cluster = Cluster::without_workers(&["--heartbeat", "500ms", "--lost-after", "1s"]);
    cluster.add_worker(4, &["--on-term", "leave"]);
    // They run for longer than the lease, and there is room elsewhere: but who said that it leaves isn't lost.
    let jobs = Jobs::start_with(&cluster, 40);
    cluster.add_worker(8, &[]);
    cluster.workers[0].end();
    jobs.short_ones_end();
    cluster.workers[0].restart();
    cluster.workers[0].ready();
    jobs.end_after_one_execution_each();
}

#[test]
fn an_orphaned_host_ends_itself_and_its_jobs() {
    let mut cluster = Cluster::without_workers(&[]);
    cluster.add_worker(1, &["--orphan-grace", "1s"]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let (file, go) = (cluster.file("job"), cluster.file("go"));
    app.schedule_service(&Work::until(&file, &go)).unwrap();
    Mark::wait_for_beginning(&file, 1);
    cluster.workers[0].kill();
    let part = cluster.workers[0].part().clone();
    eventually("nothing is left of the worker", SOON, || {
        let left = part.processes();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    assert!(Mark::ended(&file).is_empty());
    app.stop().unwrap();
}

#[test]
fn every_part_may_be_killed_while_the_program_is_on_its_way() {
    let mut cluster = Cluster::start(&[1]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let (file, go) = (cluster.file("job"), cluster.file("go"));
    let job = app.schedule_service(&Work::until(&file, &go)).unwrap();
    appears(&cluster.file("scheduler/bundles"));
    cluster.scheduler.kill();
    cluster.restart_scheduler();
    cluster.workers[0].kill();
    cluster.workers[0].restart();
    cluster.workers[0].ready();
    Mark::wait_for_beginning(&file, 1);
    std::fs::write(go, "").unwrap();
    assert_eq!(app.wait_for(&job).unwrap().status(), ServiceStatus::Finished);
    app.stop().unwrap();
}

#[test]
fn a_scheduler_started_on_another_directory_by_mistake_costs_no_job() {
    let mut cluster = Cluster::start(&[2]);
    let mut program = start(&cluster, "program", "submit 2 60");
    program.line_of("flushed");
    let file = |number| marks_of(cluster.directory(), number);
    let files = [file(0), file(1)];
    files.iter().for_each(|file| {
        Mark::wait_for_beginning(file, 1);
    });
    program.kill();
    cluster.scheduler.kill();
    let (own, aside) = (Cluster::scheduler_directory(cluster.directory()), cluster.file("aside"));
    std::fs::rename(&own, &aside).unwrap();
    cluster.restart_scheduler();
    // The jobs of the right one keep their slots.
    cluster.wait_for_workers(1);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let job = app.schedule_service(&Work::new(cluster.file("other"), 0)).unwrap();
    cluster.add_worker(1, &[]);
    assert_eq!(app.wait_for(&job).unwrap().status(), ServiceStatus::Finished);
    app.stop().unwrap();
    for file in &files {
        Mark::wait(file, "the job comes to its end", |mark| mark.what == "ended");
    }
    cluster.scheduler.kill();
    std::fs::remove_dir_all(&own).unwrap();
    std::fs::rename(&aside, &own).unwrap();
    cluster.restart_scheduler();
    let mut results = collected(&mut start(&cluster, "collecting", "collect"));
    results.sort();
    for (result, file) in results.iter().zip(&files) {
        assert_eq!((Mark::began(file), result.execution), (vec![result.pid], 1));
    }
    assert_eq!(results.len(), 2);
}
