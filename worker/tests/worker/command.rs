//! The program `lrts-worker`: what it prints, how it ends, what its exit code says.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use lrts_core::protocol::worker::FromWorker;
use lrts_core::transport::Role;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::jobs::wait;
use crate::support::{PROGRAM, Scheduler, installed, is_alive, parent_of, until};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A worker whose hosts end with it.
fn worker(port: u16, state: &Path) -> Child {
    worker_with(port, state, &["--orphan-grace", "0s"])
}

pub(crate) fn worker_with(port: u16, state: &Path, arguments: &[&str]) -> Child {
    let program = format!("{PROGRAM}={}", std::env::current_exe().unwrap().display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_lrts-worker"));
    command.args([
        "-scheduler-port",
        &port.to_string(),
        "-progress-port",
        "9",
        "--max-jobs",
        "2",
        "-insecure",
    ]);
    command.arg("--state-dir").arg(state).args(["--bundle", &program]).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

/// The exit code, and what was printed on stderr.
pub(crate) async fn end_of(mut worker: Child) -> (Option<i32>, String) {
    let mut stderr = worker.stderr.take().unwrap();
    let mut text = String::new();
    let end = async {
        stderr.read_to_string(&mut text).await.unwrap();
        worker.wait().await.unwrap()
    };
    let status = tokio::time::timeout(PATIENCE, end).await.expect("the worker ends in time");
    (status.code(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_when_it_is_ready_and_leaves_when_it_is_told_to() {
    let mut scheduler = Scheduler::start().await;
    let directory = tempfile::tempdir().unwrap();
    let mut worker = worker(scheduler.port(), directory.path());
    let register = scheduler.register(Vec::new()).await;
    assert_eq!((register.slots, Some(register.pid)), (2, worker.id()));
    let mut line = String::new();
    BufReader::new(worker.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
    assert_eq!(line, format!("lrts worker ready as {}\n", register.worker));

    kill(Pid::from_raw(register.pid.cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(scheduler.next().await.0, FromWorker::Goodbye);
    assert_eq!(end_of(worker).await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_leaves_no_process_behind() {
    let mut scheduler = Scheduler::start().await;
    let directory = tempfile::tempdir().unwrap();
    let mut worker = worker(scheduler.port(), directory.path());
    let register = scheduler.register(Vec::new()).await;
    assert_eq!(register.installed, [PROGRAM]);
    scheduler.order(1, installed(), "wait", &wait());
    let job = scheduler.began(1).await;
    let host = parent_of(job);
    assert_eq!(parent_of(host), register.pid);
    worker.kill().await.unwrap();
    until("host and job end", || !is_alive(host) && !is_alive(job)).await;

    let _next = self::worker(scheduler.port(), directory.path());
    let again = scheduler.register(Vec::new()).await;
    assert_eq!((again.worker, again.attempts.len()), (register.worker, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_in_use_is_an_error_that_says_so() {
    let mut scheduler = Scheduler::start().await;
    let directory = tempfile::tempdir().unwrap();
    let _first = worker(scheduler.port(), directory.path());
    scheduler.register(Vec::new()).await;
    let (code, text) = end_of(worker(scheduler.port(), directory.path())).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("belongs to a worker that is running"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_wants_no_workers_is_an_end_of_its_own() {
    let scheduler = Scheduler::start_for(Role::Client).await;
    let directory = tempfile::tempdir().unwrap();
    let worker = worker(scheduler.port(), directory.path());
    let (code, text) = end_of(worker).await;
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("lrts-worker: the scheduler refuses this worker: "), "{text}");
}

#[tokio::test]
async fn a_key_file_that_is_none_is_nobody_elses_fault() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("notes");
    std::fs::write(&keys, "no key").unwrap();
    std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lrts-worker"));
    // Nobody listens there.
    command.args(["--scheduler-port", "9", "--state-dir"]).arg(directory.path()).arg("--keys").arg(&keys);
    let (code, text) = end_of(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()).await;
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains(keys.to_str().unwrap()) && !text.contains("scheduler refuses"), "{text}");
}

#[tokio::test]
async fn wrong_usage_has_its_own_exit_code() {
    for arguments in [["--max-jobs", "0"], ["--max-jobs", "-5"], ["--keys", "--insecure"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lrts-worker"));
        let child = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        assert_eq!(end_of(child).await.0, Some(2), "{arguments:?}");
    }
}
