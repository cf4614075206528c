//! Real hosts and jobs that outlive their worker's daemon, and the next daemon on the same state directory.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use lrts_client::{JobContext, Service, ServiceError};
use lrts_core::protocol::worker::{AttemptEnd, FromWorker, HeldAttempt, Register, ToWorker};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::process::Child;

use crate::command::{end_of, worker_with};
use crate::support::{Scheduler, attempt, decode, installed, is_alive, parent_of, until};

/// Longest time that a host waits for the next worker, should a test fail.
const ORPHAN_GRACE: &str = "60s";

/// Waits for a file, and returns what is in it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Await {
    file: String,
}

impl Service for Await {
    const NAME: &'static str = "await";
    type Output = String;

    fn run(self, _job: &JobContext) -> Result<String, ServiceError> {
        println!("waiting");
        while !Path::new(&self.file).exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(std::fs::read_to_string(&self.file)?)
    }
}

/// Starts a program in a session of its own, says which process it is, and waits.
#[derive(Serialize, Deserialize)]
pub(crate) struct Daemonise {
    file: String,
}

impl Service for Daemonise {
    const NAME: &'static str = "daemonise";
    type Output = ();

    fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
        let script = format!("echo $$ > {0}.part; mv {0}.part {0}; exec sleep 600", self.file);
        std::process::Command::new("setsid").args(["sh", "-c", &script]).spawn()?.wait()?;
        Ok(())
    }
}

/// A scheduler, and a state directory with the worker that has it.
struct Machine {
    scheduler: Scheduler,
    directory: tempfile::TempDir,
    worker: Child,
    /// Hosts that tests have seen.
    hosts: Vec<u32>,
}

impl Machine {
    async fn start(on_term: &str) -> Self {
        let mut scheduler = Scheduler::start().await;
        let directory = tempfile::tempdir().unwrap();
        let worker = Self::worker(&scheduler, directory.path(), on_term);
        scheduler.register(Vec::new()).await;
        Self { scheduler, directory, worker, hosts: Vec::new() }
    }

    fn worker(scheduler: &Scheduler, directory: &Path, on_term: &str) -> Child {
        let state = directory.join("state");
        worker_with(scheduler.port(), &state, &["--orphan-grace", ORPHAN_GRACE, "--on-term", on_term])
    }

    /// The file that jobs of these tests wait for or write.
    fn file(&self) -> String {
        self.directory.path().join("file").to_str().unwrap().to_owned()
    }

    /// Starts a job and returns its process.
    async fn run(&mut self, sequence: u64, service: &str, payload: &impl Serialize) -> u32 {
        self.scheduler.order(sequence, installed(), service, payload);
        let job = self.scheduler.began(sequence).await;
        self.hosts.push(parent_of(job));
        job
    }

    async fn kill_worker(&mut self) {
        self.worker.kill().await.unwrap();
    }

    /// Asks the worker to end twice, while its host is stopped.
    async fn end_impatiently(&mut self) {
        let worker = Pid::from_raw(self.worker.id().unwrap().cast_signed());
        kill(Pid::from_raw(self.hosts[0].cast_signed()), Signal::SIGSTOP).unwrap();
        kill(worker, Signal::SIGTERM).unwrap();
        let mut log = String::new();
        let mut stderr = tokio::io::BufReader::new(self.worker.stderr.take().unwrap());
        while !log.contains("worker leaves") {
            assert!(tokio::io::AsyncBufReadExt::read_line(&mut stderr, &mut log).await.unwrap() > 0, "{log}");
        }
        kill(worker, Signal::SIGTERM).unwrap();
        assert_eq!(self.worker.wait().await.unwrap().code(), Some(0));
    }

    /// Starts the worker again and returns how it registers.
    async fn restart(&mut self, on_term: &str) -> Register {
        self.worker = Self::worker(&self.scheduler, self.directory.path(), on_term);
        self.scheduler.register(Vec::new()).await
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for &host in &self.hosts {
            // Its jobs end with it. It may be gone, but its number is not anybody else's so soon.
            let _ = kill(Pid::from_raw(host.cast_signed()), Signal::SIGKILL);
        }
    }
}

fn kill_9(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
}

fn only(register: &Register) -> HeldAttempt {
    let [held] = register.attempts[..] else { panic!("{:?}", register.attempts) };
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_on_while_its_worker_is_killed_and_started_again() {
    let mut machine = Machine::start("stop").await;
    let file = machine.file();
    let job = machine.run(1, "await", &Await { file: file.clone() }).await;
    for loses_record in [false, true] {
        machine.kill_worker().await;
        if loses_record {
            std::fs::write(machine.directory.path().join("state/hosts/1.host"), "nonsense").unwrap();
        }
        let held = only(&machine.restart("stop").await);
        assert_eq!((held.attempt, held.pid), (attempt(1), job));
        assert!(held.running.is_some() && is_alive(job));
    }
    let question = ToWorker::FetchOutput { request: 1, attempt: attempt(1) };
    machine.scheduler.send(&question, Bytes::new());
    let answer = FromWorker::Output { request: 1, bytes: Some((8, 0)) };
    assert_eq!(machine.scheduler.next().await, (answer, Bytes::from_static(b"waiting\n")));
    machine.run(2, "await", &Await { file: file.clone() }).await;
    assert_eq!(machine.hosts[0], machine.hosts[1], "the host takes new jobs too");

    std::fs::write(&file, "done").unwrap();
    let mut ended =
        [machine.scheduler.next().await, machine.scheduler.next().await].map(|(message, body)| {
            let FromWorker::Ended(ended) = message else { panic!("{message:?}") };
            assert_eq!(ended.end, AttemptEnd::Finished);
            let output = body.slice(..usize::try_from(ended.body_bytes.0).unwrap());
            (ended.attempt, decode::<String>(&output))
        });
    ended.sort();
    assert_eq!(ended, [1, 2].map(|sequence| (attempt(sequence), "done".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn results_that_were_ready_meanwhile_arrive_whether_or_not_their_host_is_still_there() {
    for kills_host in [false, true] {
        let mut machine = Machine::start("stop").await;
        let file = machine.file();
        let job = machine.run(1, "await", &Await { file: file.clone() }).await;
        machine.kill_worker().await;
        let text = "large ".repeat(100_000);
        std::fs::write(format!("{file}.part"), &text).unwrap();
        std::fs::rename(format!("{file}.part"), &file).unwrap();
        let spool = machine.directory.path().join("state/spool");
        let end = spool.join(format!("{}.1.end", attempt(1).job));
        until("the end is written down", || !is_alive(job) && end.exists()).await;
        if kills_host {
            kill_9(machine.hosts[0]);
            until("the host is gone", || !is_alive(machine.hosts[0])).await;
        }
        assert_eq!(only(&machine.restart("stop").await).attempt, attempt(1));
        let (ended, [output, stdout, _]) = machine.scheduler.ended(1).await;
        assert_eq!((ended.end, &stdout[..]), (AttemptEnd::Finished, &b"waiting\n"[..]));
        assert!(decode::<String>(&output) == text);
        machine.scheduler.confirm(1);
        until("the spool is empty", || std::fs::read_dir(&spool).unwrap().count() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_leaves_comes_back_to_its_jobs_and_one_that_stops_takes_them_along() {
    let mut machine = Machine::start("leave").await;
    let file = machine.file();
    let job = machine.run(1, "await", &Await { file }).await;
    let terminate = |machine: &Machine| {
        kill(Pid::from_raw(machine.worker.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
    };
    terminate(&machine);
    let absent = FromWorker::Absent { back_within: Duration::from_secs(60) };
    assert_eq!(machine.scheduler.next().await.0, absent);
    assert_eq!(machine.worker.wait().await.unwrap().code(), Some(0));
    assert!(is_alive(job));

    assert_eq!(only(&machine.restart("stop").await).pid, job);
    terminate(&machine);
    let (ended, _) = machine.scheduler.ended(1).await;
    assert_eq!(ended.end, AttemptEnd::Stopped);
    machine.scheduler.confirm(1);
    assert_eq!(machine.scheduler.next().await.0, FromWorker::Goodbye);
    assert_eq!(machine.worker.wait().await.unwrap().code(), Some(0));
    assert!(!is_alive(job) && !is_alive(machine.hosts[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impatient_operator_ends_jobs_that_were_adopted_too() {
    let mut machine = Machine::start("stop").await;
    let file = machine.file();
    let job = machine.run(1, "await", &Await { file }).await;
    machine.kill_worker().await;
    machine.restart("stop").await;
    machine.end_impatiently().await;
    until("host and job are gone", || !is_alive(machine.hosts[0]) && !is_alive(job)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impatient_operator_leaves_nothing_in_sessions_of_its_own() {
    let mut machine = Machine::start("stop").await;
    let file = machine.file();
    machine.run(1, "daemonise", &Daemonise { file: file.clone() }).await;
    until("the job has started something", || Path::new(&file).exists()).await;
    let left: u32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    machine.end_impatiently().await;
    until("it is killed", || !is_alive(left)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_host_leaves_in_sessions_of_its_own_is_killed() {
    let mut machine = Machine::start("stop").await;
    let file = machine.file();
    machine.run(1, "daemonise", &Daemonise { file: file.clone() }).await;
    until("the job has started something", || Path::new(&file).exists()).await;
    let left: u32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    assert!(is_alive(left));
    kill_9(machine.hosts[0]);
    let (ended, _) = machine.scheduler.ended(1).await;
    assert!(matches!(ended.end, AttemptEnd::Lost { .. }), "{:?}", ended.end);
    until("it is killed", || !is_alive(left)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_worker_leaves_its_jobs_alone_and_says_so() {
    let mut machine = Machine::start("stop").await;
    let file = machine.file();
    let job = machine.run(1, "await", &Await { file }).await;
    machine.kill_worker().await;
    let other = Scheduler::start_for(lrts_core::transport::Role::Client).await;
    let refused = Machine::worker(&other, machine.directory.path(), "stop");
    let (code, log) = end_of(refused).await;
    assert_eq!(code, Some(4));
    let state = machine.directory.path().join("state");
    let said = log.lines().find(|line| line.contains("jobs go on without the worker"));
    let said = said.unwrap_or_else(|| panic!("{log}"));
    assert!(said.contains("for_s=60") && said.contains(state.to_str().unwrap()), "{said}");
    assert!(is_alive(job));
    assert_eq!(only(&machine.restart("stop").await).pid, job);

    // As an operator ends what such a worker has left.
    machine.kill_worker().await;
    let refused = worker_with(other.port(), &state, &["--orphan-grace", "0s"]);
    assert_eq!(end_of(refused).await.0, Some(4));
    until("host and job are gone", || !is_alive(machine.hosts[0]) && !is_alive(job)).await;
}
