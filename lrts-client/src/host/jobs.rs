//! The host's jobs: how they are started, watched, stopped and reaped.

use std::collections::BTreeSet;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;
use lrts_core::protocol::host::{FromHost, Payload, StartAttempt};
use nix::sys::epoll::{EpollEvent, EpollTimeout};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::cgroup::JobCgroup;
use super::checkpoint::Reader;
use super::ended::{End, Ended, Kept};
use super::kernel::{self, Reaped};
use super::launch::{Common, Launched, fork_job, spawn_job};
use super::limits::{Exceeded, Limits, out_of_memory};
use super::notices::{FromJob, ToJob};
use super::running::{Running, Stream, Terms};
use super::server::{Host, LAST_NOTICES, NOTICES_A_TURN, Source, watch};
use super::tree;
use super::verdict::{Evidence, Exit, verdict};
use crate::service::say;

/// How long a host that ends waits for the processes that it has killed.
const END_WAIT: Duration = Duration::from_secs(2);

/// Reads from a pipe after its writer has died: more than a pipe holds.
const LAST_READS: usize = 32;

/// How old the count of out-of-memory kills may be that a job's start is compared with.
const OUT_OF_MEMORY_AGE: Duration = Duration::from_secs(1);

impl Host {
    pub(super) fn start(&mut self, mut start: StartAttempt, descriptors: Vec<OwnedFd>) {
        let attempt = start.attempt;
        if self.attempts.contains_key(&attempt) || self.ended.contains_key(&attempt) {
            return;
        }
        let cgroup = self.make_cgroup(&start);
        let terms = Terms {
            notes: mem::take(&mut start.notes),
            spool_file: start.spool_file.clone(),
            grace: start.grace,
            limits: Limits::new(&start, cgroup.is_none(), Moment::now()),
            lease: start.lease_until.map(Moment::from_nanos),
            cgroup,
        };
        let region = self.regions.take();
        let launched = match region {
            Some(region) => {
                self.launch(start, &terms, descriptors, region).map(|launched| (launched, region))
            }
            None => Err(io::Error::other("all regions of the arena are taken")),
        };
        match launched {
            Ok((launched, region)) => self.add(attempt, terms, launched, region),
            Err(error) => {
                if let Some(region) = region {
                    self.recycle(region);
                }
                let end = End::unbegun(format!("the host can't start a process: {error}"));
                self.keep_end(attempt, terms, None, end);
                self.announce(attempt);
            }
        }
    }

    /// A cgroup for a job with a memory limit, where there are any.
    fn make_cgroup(&self, start: &StartAttempt) -> Option<JobCgroup> {
        let (cgroups, limit) = (self.cgroups.as_ref()?, start.memory_limit?);
        let name = format!("job-{}-{}", std::process::id(), self.next_serial);
        let made = cgroups.create(&name, limit);
        made.inspect_err(|error| say(&format!("lrts: the job host can't make a cgroup: {error}"))).ok()
    }

    fn launch(
        &mut self,
        start: StartAttempt,
        terms: &Terms,
        bodies: Vec<OwnedFd>,
        region: u32,
    ) -> io::Result<Launched> {
        let is_descriptor = |body: &&Payload| matches!(body, Payload::Descriptor { .. });
        let awaited = [Some(&start.payload), start.checkpoint.as_ref()].into_iter().flatten();
        if awaited.filter(is_descriptor).count() != bodies.len() {
            return Err(io::Error::other("payload or checkpoint did not travel with the notice"));
        }
        if let Some(lease) = terms.lease {
            self.arena.set_lease(region, lease)?;
        }
        self.check_threads();
        let common = Common {
            services: &self.services,
            arena: self.arena.descriptor(),
            files: self.files,
            cgroup: terms.cgroup.as_ref().map(JobCgroup::entrance),
        };
        if self.forks {
            fork_job(common, start, bodies, region)
        } else {
            spawn_job(common, start, bodies, region)
        }
    }

    /// A process with a second thread must not fork any more.
    pub(super) fn check_threads(&mut self) {
        if self.forks && kernel::threads() > 1 {
            self.forks = false;
            say("lrts: the job host has a second thread: jobs are started as new programs from now on");
        }
    }

    fn add(&mut self, attempt: AttemptId, terms: Terms, launched: Launched, region: u32) {
        let Launched { pid, socket, stdout, stderr } = launched;
        let serial = self.next_serial;
        self.next_serial += 1;
        let sources: [(BorrowedFd<'_>, Source); 3] = [
            (socket.as_fd(), Source::Socket(serial)),
            (stdout.as_fd(), Source::Stdout(serial)),
            (stderr.as_fd(), Source::Stderr(serial)),
        ];
        for (descriptor, source) in sources {
            // Only a want of kernel memory prevents it; what there is to read is read at the job's end then.
            let _ = watch(&self.epoll, descriptor, source);
        }
        let job = Running {
            attempt,
            terms,
            pid,
            region,
            socket: Some(socket),
            stdout: Stream::new(stdout),
            stderr: Stream::new(stderr),
            began: Moment::now(),
            done: None,
            panic: None,
            stop: None,
            killed: false,
            abandoned: false,
            exceeded: None,
            checkpoints: None,
            next_checkpoint: None,
            wake: None,
            out_of_memory_before: self.out_of_memory_kills(),
        };
        self.running.insert(serial, job);
        self.attempts.insert(attempt, serial);
        self.processes.insert(pid, serial);
        self.schedule(serial);
        self.send(&FromHost::Began { attempt, pid: pid.as_raw().cast_unsigned(), region });
    }

    /// The kernel's count, at most a second old: reading it takes as long as a short job.
    fn out_of_memory_kills(&mut self) -> u64 {
        let now = Moment::now();
        if now.since(self.out_of_memory.0) > OUT_OF_MEMORY_AGE {
            self.out_of_memory = (now, kernel::out_of_memory_kills());
        }
        self.out_of_memory.1
    }

    /// Lets a region that nobody uses be used again. One that can't be made as new never is.
    pub(super) fn recycle(&mut self, region: u32) {
        if self.arena.clear(region).is_ok() {
            self.regions.give_back(region);
        }
    }

    /// Lets exclusive jobs run until then. A lease that has ended stays ended, though its job may be stopped and not know yet:
    /// the job may run elsewhere by now.
    pub(super) fn renew_leases(&mut self, until: Moment) {
        let now = Moment::now();
        for job in self.running.values_mut() {
            if let Some(lease) = job.terms.lease.as_mut().filter(|lease| now < **lease && **lease < until) {
                // Its page is there since the job began.
                let _ = self.arena.set_lease(job.region, until);
                *lease = until;
            }
        }
    }

    // --- stopping ---

    pub(super) fn stop(&mut self, attempt: AttemptId, grace: Duration) {
        if let Some(&serial) = self.attempts.get(&attempt) {
            self.begin_stop(serial, grace);
        }
        // The end of one that has ended is on its way.
    }

    /// Tells a job to stop, by flag, notice and SIGTERM to all its processes; it is killed after the grace period.
    fn begin_stop(&mut self, serial: u64, grace: Duration) {
        let Some(job) = self.running.get_mut(&serial) else { return };
        let deadline = Moment::now() + grace;
        match job.stop {
            None => {
                // Without memory for the flag there is still the signal.
                let _ = self.arena.set_cancelled(job.region);
                if let Some(socket) = &job.socket {
                    // A job that reads no notices is told by flag and signal.
                    let _ = socket.send_notice(&ToJob::Cancel, &[]);
                }
                if !grace.is_zero() {
                    tree::signal(job.pid, Signal::SIGTERM);
                }
            }
            Some(before) if before <= deadline => return,
            Some(_) => {}
        }
        job.stop = Some(deadline);
        self.schedule(serial);
    }

    /// Does what is due for a job, whose entry among the deadlines is gone.
    pub(super) fn look_after(&mut self, serial: u64, now: Moment) {
        let Some(job) = self.running.get_mut(&serial) else { return };
        job.wake = None;
        if job.stop.is_some_and(|until| until <= now) {
            job.kill();
        } else {
            match job.check_limits(&self.arena, now) {
                Some(Exceeded::Time(failure)) => {
                    job.exceeded = Some(failure);
                    let grace = job.terms.grace;
                    self.begin_stop(serial, grace);
                }
                Some(Exceeded::Memory(failure)) => {
                    if job.stop.is_none() {
                        job.exceeded = Some(failure);
                    }
                    job.stop = Some(now);
                    job.kill();
                }
                None => {}
            }
        }
        if self.running.get_mut(&serial).is_some_and(|job| job.checkpoint_is_due(now)) {
            self.send_news(serial);
        }
        self.schedule(serial);
    }

    /// Brings a job's entry among the deadlines up to date.
    pub(super) fn schedule(&mut self, serial: u64) {
        let Some(job) = self.running.get_mut(&serial) else { return };
        let next = job.next();
        if next != job.wake {
            if let Some(before) = mem::replace(&mut job.wake, next) {
                self.deadlines.remove(&(before, serial));
            }
            self.deadlines.extend(next.map(|next| (next, serial)));
        }
    }

    // --- what jobs say, and how they end ---

    pub(super) fn read_socket(&mut self, serial: u64) {
        for _ in 0..NOTICES_A_TURN {
            if !self.read_notice(serial) {
                break;
            }
        }
    }

    /// Reads one notice of a job. False if there is none.
    fn read_notice(&mut self, serial: u64) -> bool {
        let Some(job) = self.running.get_mut(&serial) else { return false };
        let Some(socket) = &job.socket else { return false };
        match socket.receive() {
            Ok(Some(mut packet)) => match packet.decode() {
                Ok(FromJob::Panicked { message }) => job.panic = Some(message),
                Ok(FromJob::Checkpoints) => {
                    let memory = packet.descriptors.pop();
                    job.checkpoints = memory.and_then(|memory| Reader::new(memory).ok());
                    job.next_checkpoint = Some(Moment::now());
                    self.schedule(serial);
                }
                Ok(FromJob::Delivering) => {
                    job.terms.limits.lift_time();
                    self.schedule(serial);
                }
                Ok(FromJob::Done(done)) => job.done = Some(done),
                // The job's own code has written to the socket; its end shows what became of it.
                Err(_) => {}
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            // Descriptors came that this process has no room for, or the job's own code has written something large.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Ok(None) | Err(_) => {
                let _ = self.epoll.delete(socket);
                job.socket = None;
                return false;
            }
        }
        true
    }

    /// Ends every job whose process has ended, and kills what such processes have left behind.
    pub(super) fn reap(&mut self) {
        let (mut ended, mut gone) = (Vec::new(), BTreeSet::new());
        while let Some(pid) = kernel::ended_child() {
            if self.processes.contains_key(&pid) {
                // The rest of its group, as long as the unreaped process keeps the group's number from being used again.
                let _ = killpg(pid, Signal::SIGKILL);
            }
            let Some(reaped) = kernel::reap(pid) else { break };
            gone.insert(pid);
            if let Some(serial) = self.processes.remove(&pid) {
                ended.extend(self.end(serial, &reaped));
            }
        }
        if gone.is_empty() {
            return;
        }
        let children = tree::children(Pid::this()).into_iter();
        let adopted = children.filter(|pid| !self.processes.contains_key(pid)).collect();
        let now = Moment::now();
        for pid in self.strays.adopt(&ended, &gone, adopted, now) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        self.announce_gone(now);
    }

    /// Tells of ended attempts of which no process is left.
    pub(super) fn announce_gone(&mut self, now: Moment) {
        for attempt in self.strays.gone(now) {
            if let Some(ended) = self.ended.get_mut(&attempt) {
                ended.cgroup = None;
                self.announce(attempt);
            }
        }
    }

    /// The process of a job has ended: what is left of the attempt is kept, and told once its other processes have ended too.
    fn end(&mut self, serial: u64, reaped: &Reaped) -> Option<AttemptId> {
        for _ in 0..LAST_NOTICES {
            if !self.read_notice(serial) {
                break;
            }
        }
        let mut job = self.running.remove(&serial)?;
        self.attempts.remove(&job.attempt);
        if let Some(wake) = job.wake {
            self.deadlines.remove(&(wake, serial));
        }
        for stream in [&mut job.stdout, &mut job.stderr] {
            for _ in 0..LAST_READS {
                if !stream.read(&self.epoll, &mut self.buffer) {
                    break;
                }
            }
            // A process of the job may still hold the other end, so no end of file is waited for.
            stream.close(&self.epoll);
        }
        if let Some(socket) = &job.socket {
            let _ = self.epoll.delete(socket);
        }
        let now = Moment::now();
        let killed = reaped.exit == Exit::Signal(libc::SIGKILL);
        let stderr = job.stderr.tail.into_bytes();
        let by_kernel = job.terms.cgroup.as_ref().filter(|cgroup| killed && cgroup.ran_out_of_memory());
        let exceeded = job.exceeded.or_else(|| {
            let cgroup = by_kernel.filter(|_| job.stop.is_none())?;
            Some(out_of_memory(cgroup.peak_memory_bytes(), cgroup.memory_limit()))
        });
        let (end, output) = verdict(Evidence {
            done: job.done,
            panic: job.panic,
            exit: reaped.exit,
            exceeded,
            stopped: job.stop.is_some(),
            abandoned: job.abandoned,
            lease_ended: job.terms.lease.is_some() && self.arena.lease_ended(job.region).unwrap_or(false),
            out_of_memory: killed && kernel::out_of_memory_kills() > job.out_of_memory_before,
            stderr: &stderr,
        });
        self.regions.end(job.region);
        let end = End {
            end,
            output,
            // They can't be read only if the machine has no memory: an end without bars is better than none.
            bars: self.arena.final_bars(job.region, now).unwrap_or_default(),
            stdout: job.stdout.tail.into_bytes(),
            stderr,
            ran: now.since(job.began),
            peak_memory_bytes: reaped.peak_memory_bytes.max(job.terms.limits.peak_memory_bytes()),
            checkpoints: job.checkpoints,
        };
        self.keep_end(job.attempt, job.terms, Some(job.region), end);
        Some(job.attempt)
    }

    fn keep_end(&mut self, attempt: AttemptId, terms: Terms, region: Option<u32>, end: End) {
        let Terms { notes, spool_file, cgroup, .. } = terms;
        let kept = Kept::Memory(Box::new(end));
        self.ended.insert(attempt, Ended { attempt, notes, spool_file, region, kept, cgroup });
    }

    /// No worker has come: kills all jobs. What becomes of them is told to one that comes later.
    pub(super) fn abandon_jobs(&mut self) {
        for serial in self.running.keys().copied().collect::<Vec<_>>() {
            if let Some(job) = self.running.get_mut(&serial) {
                job.abandoned = true;
                job.kill();
                self.schedule(serial);
            }
        }
    }

    /// Kills all jobs and whatever they have left behind, and waits a little for them to be gone.
    pub(super) fn end_all(&mut self) {
        for job in self.running.values_mut() {
            job.kill();
        }
        let deadline = Moment::now() + END_WAIT;
        loop {
            let _ = self.children.read();
            self.reap();
            let left = deadline.since(Moment::now());
            if tree::children(Pid::this()).is_empty() || left.is_zero() {
                return;
            }
            // Ends with the next child's death.
            let time_out = EpollTimeout::try_from(left).unwrap_or(EpollTimeout::ZERO);
            let _ = self.epoll.wait(&mut [EpollEvent::empty()], time_out);
        }
    }
}
