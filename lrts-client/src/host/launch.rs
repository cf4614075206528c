//! Starting a job's process: by a fork of the host, or as a new process of its program.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;

use lrts_core::environment;
use lrts_core::mode::{self, Mode};
use lrts_core::notices::NoticeSocket;
use lrts_core::protocol::host::StartAttempt;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, pipe2, setpgid};

use super::job::{Inheritance, run_forked};
use super::kernel::{Forked, exit_now, fork};
use super::notices::ToJob;
use crate::service::Services;

/// What every job process of a host gets from it.
pub(super) struct Common<'a> {
    pub(super) services: &'a Services,
    pub(super) arena: BorrowedFd<'a>,
    /// The soft limit of open files that the host was started with.
    pub(super) files: u64,
    /// Where to enter the job's cgroup, if it has one.
    pub(super) cgroup: Option<PathBuf>,
}

/// A running job process and the host's ends of what connects the two. None of them makes the host wait.
pub(super) struct Launched {
    pub(super) pid: Pid,
    pub(super) socket: NoticeSocket,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// Forks a job process. The caller has seen that this process has no other thread.
///
/// # Errors
///
/// Those of `socketpair(2)`, `pipe2(2)` and `fork(2)`.
pub(super) fn fork_job(
    common: Common<'_>,
    start: StartAttempt,
    bodies: Vec<OwnedFd>,
    region: u32,
) -> io::Result<Launched> {
    let host = getpid();
    let (ours, theirs) = NoticeSocket::pair()?;
    let (stdout, stdout_writer) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, stderr_writer) = pipe2(OFlag::O_CLOEXEC)?;
    let pid = match fork()? {
        Forked::Parent(pid) => pid,
        Forked::Child => {
            let Common { services, arena, files, cgroup } = common;
            let inheritance = Inheritance {
                services,
                start,
                bodies,
                arena,
                region,
                cgroup,
                socket: theirs,
                stdout: stdout_writer,
                stderr: stderr_writer,
                host,
                files,
            };
            // A panic must not unwind into the host's own frames.
            let _ = catch_unwind(AssertUnwindSafe(|| run_forked(inheritance)));
            exit_now(1)
        }
    };
    // The child does it too: whoever comes first, the group is there before either goes on.
    let _ = setpgid(pid, pid);
    ready(pid, ours, stdout, stderr)
}

/// Starts the program anew as a job process.
///
/// # Errors
///
/// Those of `socketpair(2)`, `pipe2(2)` and `posix_spawn(3)`.
pub(super) fn spawn_job(
    common: Common<'_>,
    mut start: StartAttempt,
    bodies: Vec<OwnedFd>,
    region: u32,
) -> io::Result<Launched> {
    let (ours, theirs) = NoticeSocket::pair()?;
    let (stdout, stdout_writer) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, stderr_writer) = pipe2(OFlag::O_CLOEXEC)?;
    let mut command = Command::new("/proc/self/exe");
    command.stdin(OwnedFd::from(theirs)).stdout(stdout_writer).stderr(stderr_writer).process_group(0);
    for (name, _) in std::env::vars_os().filter(|(name, _)| environment::is_withheld(name)) {
        command.env_remove(name);
    }
    // In another mode it would be the program's whole self, once for every job.
    command.env(mode::VARIABLE, Mode::Job.as_str());
    command.envs(start.env.drain(..).filter(|(name, _)| !environment::is_own(name.as_ref())));
    let child = command.spawn()?;
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("process ids are positive numbers of 32 bits"));
    // It holds the job's ends of socket and pipes.
    drop(command);

    let notice =
        ToJob::Start { start, region, host: getpid().as_raw(), files: common.files, cgroup: common.cgroup };
    let mut descriptors = vec![common.arena];
    descriptors.extend(bodies.iter().map(AsFd::as_fd));
    let sent = ours.send_notice(&notice, &descriptors);
    match sent.and_then(|()| ready(pid, ours, stdout, stderr)) {
        Ok(launched) => Ok(launched),
        Err(error) => {
            // Nobody else knows this process; it is reaped with all the others.
            let _ = kill(pid, Signal::SIGKILL);
            Err(error)
        }
    }
}

fn ready(pid: Pid, socket: NoticeSocket, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Launched> {
    socket.set_nonblocking(true)?;
    for pipe in [&stdout, &stderr] {
        fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    Ok(Launched { pid, socket, stdout, stderr })
}
