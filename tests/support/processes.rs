//! Processes that tests started, found by what they inherited: also those that outlive whoever started them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{SOON, eventually};

/// In the environment of a daemon and of all that come from it: which part of which test they are. Its value is a path below
/// the test's directory.
const PART: &str = "CLUSTER_TEST_PART";

/// A daemon and every process that came from it, in whatever session.
#[derive(Clone, Debug)]
pub(crate) struct Part(PathBuf);

impl Part {
    /// The part of this name in the test of this directory.
    pub(crate) fn new(directory: &Path, name: &str) -> Self {
        Self(directory.join(name))
    }

    /// All parts of the test of this directory.
    pub(crate) fn all(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Makes what is started a process of this part.
    pub(crate) fn mark(&self, command: &mut Command) {
        command.env(PART, &self.0);
    }

    /// The processes that run, stopped ones too.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mut found: Vec<u32> = std::fs::read_dir("/proc")
            .expect("the system has /proc")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|&pid| self.owns(pid))
            .collect();
        found.sort_unstable();
        found
    }

    /// An ended process that nobody has reaped has no environment, so it counts as gone.
    fn owns(&self, pid: u32) -> bool {
        let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) else { return false };
        let mut name = OsString::from(PART);
        name.push("=");
        environment
            .split(|&byte| byte == 0)
            .filter_map(|variable| variable.strip_prefix(name.as_bytes()))
            .any(|value| Path::new(OsStr::from_bytes(value)).starts_with(&self.0))
    }

    /// Kills all of them with -9, new ones too, until none is left.
    pub(crate) fn kill(&self) {
        eventually("the processes of a part end", SOON, || {
            let left = self.processes();
            left.iter().for_each(|&pid| kill(pid));
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
    }

    /// Stops all of them but `others` with SIGSTOP. Returns those that were stopped.
    pub(crate) fn stop_except(&self, others: &[u32]) -> Vec<u32> {
        let mut stopped: Vec<u32> = Vec::new();
        // Whoever was forked meanwhile is found by the next look.
        loop {
            let found = self.processes().into_iter().filter(|pid| !others.contains(pid));
            let new: Vec<u32> = found.filter(|pid| !stopped.contains(pid)).collect();
            if new.is_empty() {
                return stopped;
            }
            new.iter().for_each(|&pid| signal(pid, Signal::SIGSTOP));
            stopped.extend(new);
        }
    }
}

/// Sends a signal to a process that may have ended.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let _ended = nix::sys::signal::kill(Pid::from_raw(pid.cast_signed()), signal);
}

/// Kills a process that may have ended, with -9.
pub(crate) fn kill(pid: u32) {
    signal(pid, Signal::SIGKILL);
}

/// Whether a process runs: it exists and isn't a dead one that waits to be reaped.
pub(crate) fn still_runs(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields.first().is_some_and(|state| state != "Z" && state != "X"))
}

/// A process's parent.
pub(crate) fn parent(pid: u32) -> Option<u32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// What /proc/PID/stat says from the state on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// A figure of /proc/PID/status in KiB, `VmRSS` for example.
pub(crate) fn status_kib(pid: u32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let figure = line.and_then(|line| line.split_whitespace().next()).expect("the figure is there");
    figure.parse().expect("a figure")
}

/// Lets the kernel measure `VmHWM`, the most memory that a process has had, from now on.
pub(crate) fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the process runs and is this user's");
}

/// Open descriptors of a process.
pub(crate) fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs").count()
}
