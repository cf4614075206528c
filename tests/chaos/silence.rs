//! Workers that fall silent for longer than their lease and come back: stopped, or behind a line that is cut or blocked.

use std::path::PathBuf;
use std::time::Duration;

use lrts_client::blocking::ClientApplication;
use lrts_client::{JobHandle, JobOptions, ServiceStatus};
use nix::sys::signal::Signal;

use crate::support::{Cluster, Done, Line, Mark, Proxy, SOON, Work, eventually, signal, still_runs};

const SHORT_LEASES: [&str; 4] = ["--heartbeat", "500ms", "--lost-after", "2s"];

/// A job whose first execution is at a worker that is about to fall silent; a second worker stands by.
struct Job {
    cluster: Cluster,
    app: ClientApplication,
    job: JobHandle<Done>,
    file: PathBuf,
    first: u32,
    go: PathBuf,
    /// Between the first worker and the scheduler.
    line: Proxy,
}

impl Job {
    fn begun(options: JobOptions, alone: bool) -> Self {
        let mut cluster = Cluster::without_workers(&SHORT_LEASES);
        let line = Proxy::to(&cluster.scheduler_address);
        cluster.add_worker_at(line.address(), 1, &[]);
        let app = ClientApplication::start(cluster.information()).unwrap();
        let (file, go) = (cluster.file("job"), cluster.file("go"));
        let work = Work::until(&file, &go);
        let work = if alone { work.alone() } else { work };
        let job = app.schedule_service_with(&work, options).unwrap();
        let first = Mark::wait_for_beginning(&file, 1);
        cluster.add_worker(1, &[]);
        Self { cluster, app, job, file, first, go, line }
    }

    /// Stops the first worker with its hosts, without the job itself if so wished. What was stopped.
    fn stop_worker(&self, with_job: bool) -> Vec<u32> {
        let others = if with_job { vec![] } else { vec![self.first] };
        self.cluster.workers[0].part().stop_except(&others)
    }

    fn second_begins(&self) -> u32 {
        Mark::wait_for_beginning(&self.file, 2)
    }

    /// Lets the job end. The one result is the one of `process`, the only one that came to its end.
    fn ends_as(self, process: u32) {
        std::fs::write(&self.go, "").unwrap();
        let result = self.app.wait_for(&self.job).unwrap();
        assert_eq!(result.status(), ServiceStatus::Finished, "{:?}", result.outcome);
        assert_eq!(result.into_output().unwrap().pid, process);
        assert_eq!(Mark::ended(&self.file), [process]);
        assert_eq!(Mark::began(&self.file).len(), 2);
        let rows = self.cluster.json(&["jobs"]);
        assert_eq!(rows.len(), 1, "{rows:?}");
        self.app.stop().unwrap();
    }
}

fn goes(pid: u32, what: &str) {
    eventually(what, SOON, || if still_runs(pid) { Err(pid.to_string()) } else { Ok(()) });
}

#[test]
fn the_attempt_that_ran_longer_stays_when_a_stopped_worker_goes_on() {
    let job = Job::begun(JobOptions::new(), false);
    let stopped = job.stop_worker(true);
    let second = job.second_begins();
    stopped.iter().for_each(|&pid| signal(pid, Signal::SIGCONT));
    goes(second, "the copy is killed");
    let first = job.first;
    job.ends_as(first);
}

#[test]
fn the_copy_counts_if_it_ends_while_the_first_worker_is_stopped() {
    let job = Job::begun(JobOptions::new(), false);
    let stopped = job.stop_worker(true);
    let second = job.second_begins();
    std::fs::write(&job.go, "").unwrap();
    Mark::wait(&job.file, "the copy ends", |mark| mark.what == "ended");
    job.cluster.wait_for_jobs("finished", 1);
    // The first one was the slower one and is of no use any more. It must not find out that it could end.
    std::fs::remove_file(&job.go).unwrap();
    stopped.iter().for_each(|&pid| signal(pid, Signal::SIGCONT));
    goes(job.first, "the first one is killed");
    job.ends_as(second);
}

#[test]
fn an_exclusive_job_never_runs_twice_at_once_when_its_worker_and_host_are_stopped() {
    let job = Job::begun(JobOptions::new().exclusive(), true);
    let stopped = job.stop_worker(false);
    // It would fail if the first one still held the lock.
    let second = job.second_begins();
    assert!(!still_runs(job.first));
    stopped.iter().for_each(|&pid| signal(pid, Signal::SIGCONT));
    job.cluster.wait_for_jobs("running", 1);
    job.ends_as(second);
}

#[test]
fn an_exclusive_job_never_runs_twice_at_once_when_its_worker_daemon_is_dead() {
    let mut job = Job::begun(JobOptions::new().exclusive(), true);
    job.cluster.workers[0].kill();
    let second = job.second_begins();
    assert!(!still_runs(job.first));
    job.cluster.workers[0].restart();
    job.cluster.workers[0].ready();
    job.ends_as(second);
}

#[test]
fn an_exclusive_job_that_was_stopped_too_ends_when_it_goes_on() {
    let job = Job::begun(JobOptions::new().exclusive(), false);
    let stopped = job.stop_worker(true);
    let second = job.second_begins();
    stopped.iter().for_each(|&pid| signal(pid, Signal::SIGCONT));
    goes(job.first, "its watchdog ends it");
    job.ends_as(second);
}

/// A worker runs a job and isn't heard over its line until another one runs a copy.
fn the_first_attempt_stays_behind(line: Line) {
    let job = Job::begun(JobOptions::new(), false);
    job.line.set(line);
    let second = job.second_begins();
    assert!(still_runs(job.first));
    job.line.set(Line::Whole);
    goes(second, "the copy is killed");
    let first = job.first;
    job.ends_as(first);
}

#[test]
fn the_attempt_of_a_worker_that_was_cut_off_stays_and_its_copy_goes() {
    the_first_attempt_stays_behind(Line::Cut);
}

#[test]
fn the_attempt_behind_a_line_that_swallows_everything_stays_and_its_copy_goes() {
    the_first_attempt_stays_behind(Line::Blocked);
}

#[test]
fn a_result_that_got_ready_while_its_worker_was_cut_off_is_delivered() {
    let job = Job::begun(JobOptions::new(), false);
    // Nobody else may take it up meanwhile.
    job.cluster.workers[1].signal(Signal::SIGTERM);
    job.cluster.wait_for_workers(1);
    job.line.set(Line::Cut);
    std::fs::write(&job.go, "").unwrap();
    Mark::wait(&job.file, "the job ends", |mark| mark.what == "ended");
    job.cluster.wait_for_workers(0);
    job.line.set(Line::Whole);
    let result = job.app.wait_for(&job.job).unwrap();
    assert_eq!((result.status(), result.attempts), (ServiceStatus::Finished, 1));
    assert_eq!(result.into_output().unwrap().pid, job.first);
    job.app.stop().unwrap();
}

#[test]
fn a_slow_line_costs_no_lease() {
    let mut cluster = Cluster::without_workers(&SHORT_LEASES);
    let line = Proxy::to(&cluster.scheduler_address);
    cluster.add_worker_with_program_at(line.address(), 2);
    line.set(Line::Slow(Duration::from_millis(200)));
    let app = ClientApplication::start(cluster.information_of_installed()).unwrap();
    let works = (0..12).map(|number| Work::new(cluster.file(&format!("job-{number}")), 3));
    let jobs = app.schedule_services(works).unwrap();
    for result in app.wait_for_multi(&jobs).unwrap() {
        assert_eq!((result.status(), result.attempts), (ServiceStatus::Finished, 1));
    }
    let log = cluster.scheduler.log();
    assert!(!log.contains("lost") && !log.contains("suspect"), "{log}");
    app.stop().unwrap();
}

#[test]
fn a_scheduler_that_was_stopped_for_longer_than_the_lease_restarts_no_job() {
    let mut cluster = Cluster::without_workers(&SHORT_LEASES);
    cluster.add_worker(1, &[]);
    cluster.add_worker(1, &[]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let go = cluster.file("go");
    let files = ["first", "second"].map(|name| cluster.file(name));
    let jobs = app.schedule_services(files.iter().map(|file| Work::until(file, &go))).unwrap();
    files.iter().for_each(|file| {
        Mark::wait_for_beginning(file, 1);
    });
    cluster.scheduler.signal(Signal::SIGSTOP);
    // How long it is stopped.
    std::thread::sleep(Duration::from_secs(3));
    cluster.scheduler.signal(Signal::SIGCONT);
    cluster.wait_for_workers(2);
    std::fs::write(go, "").unwrap();
    for (result, file) in app.wait_for_multi(&jobs).unwrap().into_iter().zip(&files) {
        assert_eq!((result.status(), result.attempts), (ServiceStatus::Finished, 1));
        assert_eq!(Mark::began(file).len(), 1);
    }
    app.stop().unwrap();
}
