//! Everything is killed in turn, again and again, while jobs run; then each job has exactly one result.

use std::collections::BTreeMap;
use std::time::Duration;

use lrts_core::clock::Moment;
use nix::sys::signal::Signal;

use crate::applications::{Result, marks_of, start};
use crate::support::{Cluster, Daemon, Line, Mark, Proxy, SOON, eventually, signal};

/// How hard it storms.
#[derive(Clone, Copy)]
struct Weather {
    jobs: u64,
    slots: u32,
    /// Also faults that may have a job executed twice: machines that are gone, workers that are silent for longer than
    /// their lease.
    loses_workers: bool,
}

/// A cluster under faults and the application that collects its results, in a process of its own.
struct Storm {
    cluster: Cluster,
    lines: Vec<Proxy>,
    program: Daemon,
    /// What each process of the application has got.
    results: Vec<Vec<Result>>,
    /// The last one has said that there are no more.
    complete: bool,
    random: fastrand::Rng,
    faults: Vec<Fault>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Scheduler,
    Worker(usize),
    ProgressServer,
    Application,
    Machine(usize),
    Silence(usize),
    Cut(usize),
}

impl Storm {
    fn begin(weather: Weather, seed: u64) -> Self {
        // With a lease that no restart exceeds, even on a busy machine, nothing may be executed twice.
        let lease: &[&str] = match weather.loses_workers {
            true => &["--heartbeat", "500ms", "--lost-after", "3s"],
            false => &["--heartbeat", "1s", "--lost-after", "60s"],
        };
        let mut cluster = Cluster::without_workers(lease);
        let lines: Vec<Proxy> = (0..2).map(|_| Proxy::to(&cluster.scheduler_address)).collect();
        for line in &lines {
            cluster.add_worker_at(line.address(), weather.slots, &[]);
        }
        let mut program = start(&cluster, "submitting", &format!("submit {} random", weather.jobs));
        program.line_of("flushed");
        program.kill();
        let program = start(&cluster, "application-0", "collect");
        let mut faults = vec![
            Fault::Scheduler,
            Fault::Worker(0),
            Fault::ProgressServer,
            Fault::Worker(1),
            Fault::Application,
        ];
        if weather.loses_workers {
            let more = (0..2)
                .flat_map(|worker| [Fault::Machine(worker), Fault::Silence(worker), Fault::Cut(worker)]);
            faults.extend(more);
        }
        let random = fastrand::Rng::with_seed(seed);
        Self { cluster, lines, program, results: vec![Vec::new()], complete: false, random, faults }
    }

    /// Lets faults come in random order, each part in its turn, until the application has all results.
    fn rage(&mut self) {
        loop {
            let mut turn = self.faults.clone();
            self.random.shuffle(&mut turn);
            for fault in turn {
                let calm = Duration::from_millis(self.random.u64(500..2_500));
                self.listen(calm);
                if self.complete {
                    return;
                }
                eprintln!("{fault:?}");
                self.strike(fault);
            }
        }
    }

    fn strike(&mut self, fault: Fault) {
        let pause = Duration::from_millis(self.random.u64(0..1_000));
        match fault {
            Fault::Scheduler => {
                self.cluster.scheduler.kill();
                self.listen(pause);
                self.cluster.restart_scheduler();
            }
            Fault::ProgressServer => {
                self.cluster.progress_server.kill();
                self.listen(pause);
                self.cluster.restart_progress_server();
            }
            Fault::Worker(worker) => {
                self.cluster.workers[worker].kill();
                self.listen(pause);
                self.cluster.workers[worker].restart();
            }
            Fault::Machine(worker) => {
                self.cluster.workers[worker].kill_all();
                self.listen(pause);
                self.cluster.workers[worker].restart();
            }
            Fault::Application => {
                self.program.kill();
                let last = self.program.last_lines();
                last.iter().for_each(|line| self.hear(line));
                self.complete = false;
                self.program =
                    start(&self.cluster, &format!("application-{}", self.results.len()), "collect");
                self.results.push(Vec::new());
            }
            Fault::Silence(worker) => {
                let stopped = self.cluster.workers[worker].part().stop_except(&[]);
                self.listen(pause + Duration::from_secs(5));
                stopped.iter().for_each(|&pid| signal(pid, Signal::SIGCONT));
            }
            Fault::Cut(worker) => {
                self.lines[worker].set(Line::Cut);
                self.listen(pause + Duration::from_secs(5));
                self.lines[worker].set(Line::Whole);
            }
        }
    }

    /// Notes what the application gets for so long, or until it has everything.
    fn listen(&mut self, time: Duration) {
        let until = Moment::now() + time;
        while !self.complete
            && let Some(line) = self.program.line_until(until)
        {
            self.hear(&line);
        }
    }

    fn hear(&mut self, line: &str) {
        self.complete |= line == "all";
        self.results.last_mut().expect("a process of the application").extend(Result::parse(line));
    }

    /// Every job has one result, whoever got it and however often; nothing else runs or waits.
    fn assert_each_once(&self, weather: Weather) {
        let mut committed: BTreeMap<u64, Result> = BTreeMap::new();
        for results in &self.results {
            let mut numbers: Vec<u64> = results.iter().map(|result| result.number).collect();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), results.len(), "a process of the application got a result twice");
            for result in results {
                // A result whose receipt died with its receiver comes again: the same one.
                let before = committed.entry(result.number).or_insert_with(|| result.clone());
                assert_eq!(before, result, "two results were committed");
            }
        }
        // The application takes one result at a time: with each kill one may have been in its hands.
        let unheard = weather.jobs - committed.len() as u64;
        assert!(unheard < self.results.len() as u64, "{unheard} results were lost");
        for result in committed.values() {
            let file = marks_of(self.cluster.directory(), result.number);
            assert!(Mark::ended(&file).contains(&result.pid), "{result:?}: {:?}", Mark::read(&file));
            if !weather.loses_workers {
                assert_eq!(Mark::began(&file), [result.pid], "it was executed once");
                assert_eq!(result.execution, 1);
            }
        }
        for number in (0..weather.jobs).filter(|number| !committed.contains_key(number)) {
            let file = marks_of(self.cluster.directory(), number);
            assert!(!Mark::ended(&file).is_empty(), "job {number} never ended");
        }
        eventually("all jobs are known to have finished", SOON, || {
            let status = &self.cluster.json(&["status"])[0];
            let idle = status["jobs"]["running"] == 0 && status["jobs"]["queued"] == 0;
            if idle && status["jobs"]["finished"] == weather.jobs { Ok(()) } else { Err(status.to_string()) }
        });
    }
}

fn storm(weather: Weather) {
    let seed =
        std::env::var("LRTS_CHAOS_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    eprintln!("LRTS_CHAOS_SEED={seed}");
    let mut storm = Storm::begin(weather, seed);
    storm.rage();
    storm.assert_each_once(weather);
}

fn is_long() -> bool {
    std::env::var("LRTS_CHAOS").is_ok_and(|length| length == "long")
}

#[test]
fn a_storm_of_kills_leaves_every_job_with_one_execution_and_one_result() {
    let jobs = if is_long() { 4_000 } else { 200 };
    storm(Weather { jobs, slots: 10, loses_workers: false });
}

#[test]
fn a_storm_that_takes_machines_and_lines_leaves_every_job_with_one_result() {
    let (jobs, slots) = if is_long() { (1_000, 10) } else { (40, 4) };
    storm(Weather { jobs, slots, loses_workers: true });
}
