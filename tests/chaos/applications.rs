//! Applications that die with -9 and come back as other processes.

use std::path::{Path, PathBuf};

use lrts_client::blocking::ClientApplication;
use lrts_client::{ApplicationInformation, JobHandle, JobOptions, ProgressDisplay};

use crate::support::{self, Cluster, Daemon, Done, Mark, Work};

/// The file of a job's marks.
pub(crate) fn marks_of(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("job-{number}"))
}

/// Starts this test binary as an application in a process of its own.
pub(crate) fn start(cluster: &Cluster, name: &str, argument: &str) -> Daemon {
    support::program(cluster, name, "applications::program", argument, "chaos")
}

/// The test that is a program where the environment says so, and nothing when the suite runs. Its argument:
///
/// - `submit COUNT STEPS`: schedules jobs with marks in the current directory and says `flushed`, then waits for its death.
///   `random` steps are half a second's worth to five seconds'
/// - `keys COUNT STEPS`: the same with a key for each job, without a flush
/// - `collect`: waits for all jobs that the application has and says `result NUMBER PID EXECUTION` of each, then `all`
#[test]
fn program() {
    let Some(argument) = support::argument() else { return };
    let words: Vec<&str> = argument.split(' ').collect();
    let number = |index: usize| words[index].parse::<u64>().unwrap();
    let information = ApplicationInformation::from_env().progress_display(ProgressDisplay::Hidden);
    let app = ClientApplication::start(information).unwrap();
    let directory = std::env::current_dir().unwrap();
    let steps = |n| if words[2] == "random" { 5 + n * 7 % 46 } else { number(2) };
    let work = |n| Work::new(marks_of(&directory, n), steps(n)).number(n);
    // Lines of its own, behind what the test harness prints.
    match words[0] {
        "submit" => {
            let _jobs = app.schedule_services((0..number(1)).map(work)).unwrap();
            app.flush().unwrap();
            println!("\nflushed");
            wait_for_death();
        }
        "keys" => {
            println!("\nsubmitting");
            for n in 0..number(1) {
                let key = JobOptions::new().key(format!("job {n}"));
                let _job = app.schedule_service_with(&work(n), key).unwrap();
            }
            wait_for_death();
        }
        "collect" => {
            let jobs: Vec<JobHandle<Done>> = app.jobs().unwrap();
            println!("\nknown {}", jobs.len());
            for result in app.as_completed(jobs) {
                let done = result.unwrap().into_output().unwrap();
                println!("result {} {} {}", done.number, done.pid, done.execution);
            }
            println!("all");
            app.detach().unwrap();
        }
        other => panic!("nothing is known of `{other}`"),
    }
}

fn wait_for_death() -> ! {
    loop {
        std::thread::park();
    }
}

/// What a collecting program says, to its end.
pub(crate) fn collected(program: &mut Daemon) -> Vec<Result> {
    let mut results = Vec::new();
    loop {
        let line = program.line();
        if line == "all" {
            assert!(program.wait().success(), "{}", program.log());
            return results;
        }
        results.extend(Result::parse(&line));
    }
}

/// A result that was returned to a program.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Result {
    pub(crate) number: u64,
    pub(crate) pid: u32,
    pub(crate) execution: u32,
}

impl Result {
    /// None for other lines of a program.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("result ")?.split(' ');
        let mut next = || words.next()?.parse::<u64>().ok();
        let (number, pid, execution) = (next()?, next()?, next()?);
        let narrow = |number| u32::try_from(number).expect("a process id or a count");
        Some(Self { number, pid: narrow(pid), execution: narrow(execution) })
    }
}

/// Each of so many jobs has one result, of an execution that came to its end; none was executed twice.
fn assert_each_once(cluster: &Cluster, mut results: Vec<Result>, jobs: u64) {
    results.sort();
    let numbers: Vec<u64> = results.iter().map(|result| result.number).collect();
    assert_eq!(numbers, (0..jobs).collect::<Vec<_>>());
    for result in results {
        let file = marks_of(cluster.directory(), result.number);
        assert_eq!((Mark::began(&file), Mark::ended(&file)), (vec![result.pid], vec![result.pid]));
    }
}

#[test]
fn an_application_killed_after_flush_comes_back_to_every_result_once() {
    let cluster = Cluster::start(&[4]);
    let mut first = start(&cluster, "first", "submit 24 5");
    first.line_of("flushed");
    first.kill();
    let mut second = start(&cluster, "second", "collect");
    assert_each_once(&cluster, collected(&mut second), 24);
    // What was returned is not returned again.
    let mut third = start(&cluster, "third", "collect");
    assert!(collected(&mut third).is_empty());
}

#[test]
fn an_application_and_its_scheduler_killed_after_flush_come_back_to_every_result_once() {
    let mut cluster = Cluster::start(&[4]);
    let mut first = start(&cluster, "first", "submit 24 5");
    first.line_of("flushed");
    first.kill();
    cluster.scheduler.kill();
    cluster.restart_scheduler();
    let mut second = start(&cluster, "second", "collect");
    assert_each_once(&cluster, collected(&mut second), 24);
}

#[test]
fn an_application_killed_in_mid_submit_submits_by_key_again_and_makes_no_second_job() {
    let mut cluster = Cluster::start(&[4]);
    for round in 0..3 {
        let mut program = start(&cluster, &format!("round-{round}"), "keys 60 2");
        program.line_of("submitting");
        if round == 1 {
            cluster.scheduler.kill();
            cluster.restart_scheduler();
        }
        // In the middle of its submits, or behind them.
        Mark::wait(&marks_of(cluster.directory(), round * 4), "a job ends", |mark| mark.what == "ended");
        program.kill();
    }
    let _whole = start(&cluster, "whole", "keys 60 2");
    cluster.wait_for_jobs("finished", 60);
    drop(_whole);
    let mut last = start(&cluster, "last", "collect");
    assert_each_once(&cluster, collected(&mut last), 60);
}
