//! A job whose process has not been reaped, as its host knows it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;
use lrts_core::limits::CHECKPOINT_INTERVAL;
use lrts_core::notices::NoticeSocket;
use lrts_core::progress::Arena;
use lrts_core::protocol::host::{FromHost, HeldRun};
use lrts_core::status::Failure;
use nix::sys::epoll::Epoll;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::cgroup::JobCgroup;
use super::checkpoint::Reader;
use super::limits::{Exceeded, Limits, Look};
use super::notices::Done;
use super::tail::Tail;
use super::tree;

/// A running job.
pub(super) struct Running {
    pub(super) attempt: AttemptId,
    pub(super) terms: Terms,
    pub(super) pid: Pid,
    pub(super) region: u32,
    pub(super) socket: Option<NoticeSocket>,
    pub(super) stdout: Stream,
    pub(super) stderr: Stream,
    pub(super) began: Moment,
    pub(super) done: Option<Done>,
    pub(super) panic: Option<String>,
    /// When it is or was to be killed, if it is to stop.
    pub(super) stop: Option<Moment>,
    pub(super) killed: bool,
    /// Whether it was killed because no worker had come.
    pub(super) abandoned: bool,
    /// The limit that it was stopped for.
    pub(super) exceeded: Option<Failure>,
    pub(super) checkpoints: Option<Reader>,
    /// When its checkpoint is looked at next, while there is a worker to send it to.
    pub(super) next_checkpoint: Option<Moment>,
    /// When it is looked after next, as the host's table of deadlines has it.
    pub(super) wake: Option<Moment>,
    pub(super) out_of_memory_before: u64,
}

/// What a job was started with and its host needs to the end.
pub(super) struct Terms {
    pub(super) notes: Vec<u8>,
    pub(super) spool_file: PathBuf,
    /// What it has to end by itself when it exceeds a limit of time.
    pub(super) grace: Duration,
    pub(super) limits: Limits,
    /// Until when it may run, if it is exclusive.
    pub(super) lease: Option<Moment>,
    pub(super) cgroup: Option<JobCgroup>,
}

impl Running {
    /// Kills all its processes. Those that escape by a fork are killed as the host adopts them.
    pub(super) fn kill(&mut self) {
        if !self.killed {
            tree::signal(self.pid, Signal::SIGKILL);
            self.killed = true;
        }
    }

    /// When to look after it next.
    pub(super) fn next(&self) -> Option<Moment> {
        if self.killed {
            return None;
        }
        let limits = self.terms.limits.next(self.stop.is_some());
        self.stop.into_iter().chain(limits).chain(self.next_checkpoint).min()
    }

    /// Compares it with its limits, where it is time to.
    pub(super) fn check_limits(&mut self, arena: &Arena, now: Moment) -> Option<Exceeded> {
        let mut look =
            Looker { arena, region: self.region, pid: self.pid, checkpoints: self.checkpoints.as_ref() };
        self.terms.limits.check(self.stop.is_some(), now, &mut look)
    }

    /// Whether its checkpoint is to be looked at now; if so, the next time is an interval from now.
    pub(super) fn checkpoint_is_due(&mut self, now: Moment) -> bool {
        let due = self.next_checkpoint.is_some_and(|next| next <= now);
        if due {
            self.next_checkpoint = Some(now + CHECKPOINT_INTERVAL);
        }
        due
    }

    /// What a worker that takes the host over is told.
    pub(super) fn held(&self, now: Moment) -> FromHost {
        let run = HeldRun {
            pid: self.pid.as_raw().cast_unsigned(),
            region: self.region,
            ran: now.since(self.began),
            stopping: self.stop.is_some(),
        };
        FromHost::Held { attempt: self.attempt, notes: self.terms.notes.clone(), run: Some(run) }
    }
}

struct Looker<'a> {
    arena: &'a Arena,
    region: u32,
    pid: Pid,
    checkpoints: Option<&'a Reader>,
}

impl Look for Looker<'_> {
    fn progress(&mut self) -> (u64, u64) {
        // They can't be read only if the machine has no memory, and that isn't the job's doing.
        let bars = self.arena.fingerprint(self.region).unwrap_or_default();
        (bars, self.checkpoints.map_or(0, Reader::number))
    }

    fn memory(&mut self) -> u64 {
        tree::memory(self.pid)
    }

    fn exact_memory(&mut self) -> u64 {
        tree::exact_memory(self.pid)
    }
}

/// The host's end of a pipe, until nobody writes any more, and what came through it.
pub(super) struct Stream {
    pub(super) pipe: Option<OwnedFd>,
    pub(super) tail: Tail,
}

impl Stream {
    pub(super) fn new(pipe: OwnedFd) -> Self {
        Self { pipe: Some(pipe), tail: Tail::default() }
    }

    /// Reads what is there, at most a buffer full. False if there was nothing.
    pub(super) fn read(&mut self, epoll: &Epoll, buffer: &mut [u8]) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        match nix::unistd::read(pipe, buffer) {
            Ok(0) => {
                self.close(epoll);
                false
            }
            Ok(length) => {
                self.tail.push(&buffer[..length]);
                true
            }
            Err(nix::Error::EINTR) => true,
            Err(nix::Error::EAGAIN) => false,
            Err(_) => {
                self.close(epoll);
                false
            }
        }
    }

    pub(super) fn close(&mut self, epoll: &Epoll) {
        if let Some(pipe) = self.pipe.take() {
            let _ = epoll.delete(&pipe);
        }
    }
}
