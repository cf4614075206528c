//! What a worker has open, and what is set for it, and what of it comes to its job hosts and their jobs.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use lrts_client::{JobContext, Service, ServiceError};
use lrts_core::protocol::worker::AttemptEnd;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::jobs::wait;
use crate::support::{PROGRAM, Scheduler, Worker, decode, installed, parent_of, stat, until};

/// Says what it has got.
#[derive(Serialize, Deserialize)]
pub(crate) struct Look;

#[derive(Serialize, Deserialize)]
pub(crate) struct Inherited {
    environment: Vec<(String, String)>,
    descriptors: Vec<String>,
}

impl Service for Look {
    const NAME: &'static str = "look";
    type Output = Inherited;

    fn run(self, _job: &JobContext) -> Result<Inherited, ServiceError> {
        let descriptors = descriptors(std::process::id());
        Ok(Inherited { environment: std::env::vars().collect(), descriptors })
    }
}

/// Kinds of a process's open descriptors, the one that looks aside, in order.
fn descriptors(of: u32) -> Vec<String> {
    let mut numbers: Vec<i32> = fs::read_dir(format!("/proc/{of}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    numbers.sort_unstable();
    let targets = numbers.iter().filter_map(|number| fs::read_link(format!("/proc/{of}/fd/{number}")).ok());
    let targets = targets.map(|target| target.display().to_string());
    let others = targets.filter(|target| !(target.starts_with("/proc/") && target.ends_with("/fd")));
    others.map(|target| target.split(':').next().unwrap().to_owned()).collect()
}

fn children_of(pid: u32) -> Vec<u32> {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    processes.filter(|&process| stat(process).is_some() && parent_of(process) == pid).collect()
}

/// Files that any process started from here gets, unless somebody sees to it.
fn leak(count: usize) -> Vec<(UnixStream, UnixStream)> {
    let pairs: Vec<_> = (0..count).map(|_| UnixStream::pair().unwrap()).collect();
    for (leaked, _) in &pairs {
        // SAFETY: only what becomes of it on exec is changed.
        #[expect(unsafe_code, reason = "nix has no fcntl feature here")]
        unsafe {
            libc::fcntl(leaked.as_raw_fd(), libc::F_SETFD, 0);
        }
    }
    pairs
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_and_jobs_have_none_of_what_the_workers_process_has_open() {
    let mut scheduler = Scheduler::start().await;
    let _leaked = leak(300);
    let worker = Worker::start(&scheduler, 2);
    scheduler.register(Vec::new()).await;
    scheduler.order(1, installed(), "wait", &wait());
    let host = parent_of(scheduler.began(1).await);
    scheduler.order(2, installed(), "look", &Look);
    scheduler.began(2).await;
    let (ended, [output, ..]) = scheduler.ended(2).await;
    assert_eq!(ended.end, AttemptEnd::Finished);
    assert_eq!(decode::<Inherited>(&output).descriptors, ["/dev/null", "pipe", "pipe", "socket"]);
    let held = descriptors(host);
    let sockets = held.iter().filter(|target| *target == "socket").count();
    assert_eq!(sockets, 3, "its listener, its worker and a job: {held:?}");

    worker.shutdown.request_at_once();
    worker.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_passes_on_neither_its_keys_nor_what_its_supervisor_told_it() {
    let mut scheduler = Scheduler::start().await;
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "exec 7</dev/zero 9>>/dev/zero; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_lrts-worker"),
    ]);
    command.args([
        "-insecure",
        "-scheduler-port",
        &scheduler.port().to_string(),
        "-progress-port",
        "9",
        "--max-jobs",
        "2",
    ]);
    command.args(["--orphan-grace", "0s", "--state-dir"]).arg(directory.path());
    command.arg("--bundle").arg(format!("{PROGRAM}={}", std::env::current_exe().unwrap().display()));
    let withheld = [
        "NOTIFY_SOCKET",
        "LISTEN_FDS",
        "LISTEN_PID",
        "CREDENTIALS_DIRECTORY",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "SSH_AUTH_SOCK",
        "DBUS_SESSION_BUS_ADDRESS",
        "LRTS_SCHEDULER",
        "LRTS_LOG",
    ];
    for name in withheld {
        command.env(name, "secret");
    }
    command.env("LRTS_KEYS", directory.path().join("keys")).env("HARMLESS", "yes");
    let mut worker = command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let register = scheduler.register(Vec::new()).await;
    for descendant in children_of(register.pid) {
        let left = || descriptors(descendant).contains(&"/dev/zero".to_owned());
        until("the progress subprocess has nothing of it", || !left()).await;
    }

    scheduler.order(1, installed(), "look", &Look);
    scheduler.began(1).await;
    let (ended, [output, ..]) = scheduler.ended(1).await;
    assert_eq!(ended.end, AttemptEnd::Finished);
    let seen: Inherited = decode(&output);
    assert_eq!(seen.descriptors, ["/dev/null", "pipe", "pipe", "socket"]);
    let names: Vec<_> = seen.environment.iter().map(|(name, _)| &**name).collect();
    assert!(!names.iter().any(|name| withheld.contains(name) || name.starts_with("LRTS_")), "{names:?}");
    let keys = directory.path().join("keys").display().to_string();
    let told = |value: &String| value.contains("secret") || value.contains(&keys);
    let telling: Vec<_> = seen.environment.iter().filter(|(_, value)| told(value)).collect();
    assert!(telling.is_empty(), "{telling:?}");
    assert!(
        names.contains(&"HARMLESS") && names.contains(&"PATH") && names.contains(&"GREETING"),
        "{names:?}"
    );
    worker.kill().await.unwrap();
}
