//! The worker's children. A worker that is a process of its own is a subreaper: what a killed host leaves behind in sessions of
//! its own comes to the worker, and is killed.

use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid, getsid};
use tokio::process::Child;
use tracing::{debug, warn};

use super::process::{self, Stat};

/// How many times, and how long apart, it is looked for orphans: the death of one may bring others.
const ROUNDS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Which children are meant to be there.
#[derive(Debug)]
pub(crate) struct Family {
    hosts: Mutex<BTreeSet<u32>>,
    is_subreaper: bool,
}

impl Family {
    /// Orphans come to this process if it is the worker's alone. In a program that has other things to do, its children are
    /// its own business.
    pub(crate) fn new(owns_process: bool) -> Self {
        let is_subreaper = owns_process
            && set_child_subreaper(true)
                .inspect_err(|error| warn!(%error, "orphans of killed job hosts will not be found"))
                .is_ok();
        Self { hosts: Mutex::default(), is_subreaper }
    }

    /// Starts a host's process.
    ///
    /// # Errors
    ///
    /// Those of `spawn`.
    pub(super) fn spawn(&self, spawn: impl FnOnce() -> io::Result<Child>) -> io::Result<Child> {
        // Under the lock: a host makes a session of its own and must be known by then.
        let mut hosts = self.lock();
        let child = spawn()?;
        hosts.extend(child.id());
        Ok(child)
    }

    /// A host's process was reaped.
    pub(super) fn remove(&self, pid: u32) {
        self.lock().remove(&pid);
    }

    /// Kills and reaps what has come to this process from others. Waits for it for a while.
    pub(super) fn kill_orphans(&self) {
        if !self.is_subreaper {
            return;
        }
        for _ in 0..ROUNDS {
            let orphans = self.orphans();
            if orphans.is_empty() {
                return;
            }
            for (orphan, is_dead) in orphans {
                if !is_dead {
                    debug!(pid = orphan.as_raw(), "what a job host has left is killed");
                    let _ended_by_itself = kill(orphan, Signal::SIGKILL);
                }
                let _not_yet = waitpid(orphan, Some(WaitPidFlag::WNOHANG));
            }
            std::thread::sleep(PAUSE);
        }
        warn!("processes that a job host has left can't be killed");
    }

    /// Children that this process hasn't started, and whether they have ended: those that it has share its session, hosts
    /// aside, and nobody joins a session of others.
    fn orphans(&self) -> Vec<(Pid, bool)> {
        let hosts = self.lock();
        let own_session = getsid(None).map_or(0, |session| session.as_raw().cast_unsigned());
        let parent = getpid().as_raw().cast_unsigned();
        let orphan = |pid| {
            let stat = Stat::of(pid)?;
            let is_orphan = stat.parent == parent && stat.session != own_session && !hosts.contains(&pid);
            is_orphan.then(|| (Pid::from_raw(pid.cast_signed()), stat.is_dead))
        };
        process::all().filter_map(orphan).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        self.hosts.lock().expect("nothing panics while it holds this lock")
    }
}
