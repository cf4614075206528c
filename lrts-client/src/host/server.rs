//! The host's loop: notices from the worker, from jobs and about dead children in; processes, signals and notices out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;
use lrts_core::limits::BARS_PER_NOTICE;
use lrts_core::notices::{NoticeListener, NoticeSocket, Packet};
use lrts_core::progress::{Arena, REGIONS};
use lrts_core::protocol::host::{FromHost, Output, Payload, StartAttempt, ToHost};
use lrts_core::protocol::progress::BarRecord;
use lrts_core::protocol::worker::AttemptEnd;
use lrts_core::protocol::{HOST_VERSION, codec};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid};

use super::kernel::{self, Reaped};
use super::launch::{Common, Launched, fork_job, spawn_job};
use super::notices::{Done, FromJob, ToJob};
use super::tail::Tail;
use super::verdict::{Evidence, verdict};
use crate::service::{Services, say};

/// How long a host without a worker waits for one.
const WORKER_WAIT: Duration = Duration::from_secs(60);

/// How long a host that ends waits for the processes that it has killed.
const END_WAIT: Duration = Duration::from_secs(2);

/// Notices of one socket that are handled before other events get their turn.
const NOTICES_A_TURN: usize = 16;

/// Bytes read from a pipe at once, and reads from it after its writer has died: more than a pipe holds.
const READ_BYTES: usize = 64 * 1024;
const LAST_READS: usize = 32;

/// How old the count of out-of-memory kills may be that a job's start is compared with.
const OUT_OF_MEMORY_AGE: Duration = Duration::from_secs(1);

/// A descriptor that epoll watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Listener,
    Worker,
    Children,
    Socket(u64),
    Stdout(u64),
    Stderr(u64),
}

impl Source {
    /// As epoll carries it: a job's serial number, counted from 1, and two bits.
    fn token(self) -> u64 {
        match self {
            Source::Listener => 0,
            Source::Worker => 1,
            Source::Children => 2,
            Source::Socket(serial) => serial << 2,
            Source::Stdout(serial) => serial << 2 | 1,
            Source::Stderr(serial) => serial << 2 | 2,
        }
    }

    fn of(token: u64) -> Self {
        match (token >> 2, token & 3) {
            (0, 0) => Source::Listener,
            (0, 1) => Source::Worker,
            (0, _) => Source::Children,
            (serial, 0) => Source::Socket(serial),
            (serial, 1) => Source::Stdout(serial),
            (serial, _) => Source::Stderr(serial),
        }
    }
}

/// The job host.
pub(super) struct Host {
    services: Services,
    forks: bool,
    files: u64,
    listener: NoticeListener,
    children: EventFd,
    epoll: Epoll,
    arena: Arena,
    regions: Regions,
    worker: Option<Worker>,
    /// Since when there is no worker, or none that has said hello.
    waiting: Option<Moment>,
    /// Running jobs by serial number, and the numbers by attempt and by process.
    running: BTreeMap<u64, Running>,
    attempts: BTreeMap<AttemptId, u64>,
    processes: BTreeMap<Pid, u64>,
    next_serial: u64,
    /// When which running job is to be killed.
    deadlines: BTreeSet<(Moment, u64)>,
    /// Ended attempts until `Confirm`.
    ended: BTreeMap<AttemptId, Ended>,
    out_of_memory: (Moment, u64),
    buffer: Box<[u8]>,
}

/// The worker's connection.
struct Worker {
    socket: NoticeSocket,
    /// Whether it has said hello.
    greeted: bool,
    /// What its socket had no room for.
    outbox: VecDeque<Bytes>,
    /// Whether epoll tells when there is room again.
    watched: bool,
}

/// A job whose process has not been reaped.
struct Running {
    attempt: AttemptId,
    pid: Pid,
    region: u32,
    socket: Option<NoticeSocket>,
    stdout: Stream,
    stderr: Stream,
    began: Moment,
    done: Option<Done>,
    panic: Option<String>,
    /// When it is or was to be killed, if it was told to stop.
    stop: Option<Moment>,
    out_of_memory_before: u64,
}

/// The host's end of a pipe, until nobody writes any more, and what came through it.
struct Stream {
    pipe: Option<OwnedFd>,
    tail: Tail,
}

/// What is left of an attempt.
struct Ended {
    end: AttemptEnd,
    output: Output,
    bars: Vec<BarRecord>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    ran: Duration,
    peak_memory_bytes: u64,
    region: Option<u32>,
}

/// Whose the arena's regions are.
#[derive(Default)]
struct Regions {
    /// Regions from this one on were never used.
    next: u32,
    free: Vec<u32>,
    ended: BTreeSet<u32>,
}

impl Regions {
    fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let fresh = (self.next < REGIONS).then_some(self.next)?;
            self.next += 1;
            Some(fresh)
        })
    }
}

impl Host {
    pub(super) fn new(
        services: Services,
        forks: bool,
        listener: NoticeListener,
        files: u64,
    ) -> io::Result<Self> {
        let children = kernel::watch_children()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        watch(&epoll, &children, Source::Children)?;
        watch(&epoll, &listener, Source::Listener)?;
        Ok(Self {
            services,
            forks,
            files,
            listener,
            children,
            epoll,
            arena: Arena::create(REGIONS)?,
            regions: Regions::default(),
            worker: None,
            waiting: Some(Moment::now()),
            running: BTreeMap::new(),
            attempts: BTreeMap::new(),
            processes: BTreeMap::new(),
            next_serial: 1,
            deadlines: BTreeSet::new(),
            ended: BTreeMap::new(),
            out_of_memory: (Moment::default(), 0),
            buffer: vec![0; READ_BYTES].into(),
        })
    }

    /// Runs until the worker's connection closes, or none has come. Then all jobs are killed.
    ///
    /// # Errors
    ///
    /// Those of `epoll_wait(2)`.
    pub(super) fn serve(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        let result = loop {
            let count = match self.epoll.wait(&mut events, self.time_out()) {
                Ok(count) => count,
                Err(nix::Error::EINTR) => 0,
                Err(error) => break Err(error.into()),
            };
            let mut goes_on = true;
            for event in &events[..count] {
                goes_on &= self.handle(Source::of(event.data()), event.events());
            }
            let now = Moment::now();
            self.kill_overdue(now);
            let waited_out = self.waiting.is_some_and(|since| now.since(since) >= WORKER_WAIT);
            if !goes_on || waited_out {
                break Ok(());
            }
        };
        self.end_all();
        result
    }

    fn time_out(&self) -> EpollTimeout {
        let now = Moment::now();
        let deadline = self.deadlines.first().map(|&(deadline, _)| deadline);
        let waiting = self.waiting.map(|since| since + WORKER_WAIT);
        match deadline.into_iter().chain(waiting).min() {
            None => EpollTimeout::NONE,
            // One millisecond more: rounded down the loop would spin through the last one.
            Some(next) => {
                let left = next.since(now) + Duration::from_millis(1);
                EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX)
            }
        }
    }

    /// Handles one event. False once the worker is gone.
    fn handle(&mut self, source: Source, flags: EpollFlags) -> bool {
        match source {
            Source::Listener => self.accept(),
            Source::Children => {
                // Reset first: a child that ends from here on counts it up again.
                let _ = self.children.read();
                self.reap();
            }
            Source::Worker => return self.serve_worker(flags),
            Source::Socket(serial) => self.read_socket(serial),
            Source::Stdout(serial) => {
                if let Some(job) = self.running.get_mut(&serial) {
                    job.stdout.read(&self.epoll, &mut self.buffer);
                }
            }
            Source::Stderr(serial) => {
                if let Some(job) = self.running.get_mut(&serial) {
                    job.stderr.read(&self.epoll, &mut self.buffer);
                }
            }
        }
        true
    }

    /// Takes a worker's connection. While there is one, others are closed.
    fn accept(&mut self) {
        let Ok(socket) = self.listener.accept() else { return };
        if self.worker.is_some() || socket.set_nonblocking(true).is_err() {
            return;
        }
        if watch(&self.epoll, &socket, Source::Worker).is_ok() {
            self.worker = Some(Worker { socket, greeted: false, outbox: VecDeque::new(), watched: false });
        }
    }

    /// Reads from the worker, and writes what has waited. False once a worker that had said hello is gone.
    fn serve_worker(&mut self, flags: EpollFlags) -> bool {
        for _ in 0..NOTICES_A_TURN {
            let Some(worker) = &self.worker else { return true };
            match worker.socket.receive() {
                Ok(Some(packet)) => self.handle_packet(packet),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(None) | Err(_) => return self.hang_up(),
            }
        }
        if flags.contains(EpollFlags::EPOLLOUT) && !self.flush() {
            return self.hang_up();
        }
        true
    }

    /// Closes the worker's connection. False if it had said hello.
    fn hang_up(&mut self) -> bool {
        let Some(worker) = self.worker.take() else { return true };
        let _ = self.epoll.delete(&worker.socket);
        !worker.greeted
    }

    fn handle_packet(&mut self, packet: Packet) {
        let greeted = self.worker.as_ref().is_some_and(|worker| worker.greeted);
        match packet.decode::<ToHost>() {
            Ok(ToHost::Hello { version: HOST_VERSION }) => self.greet(),
            // Of a version that this host doesn't know, or not a worker at all.
            Ok(ToHost::Hello { .. }) => {
                self.hang_up();
            }
            Ok(notice) if greeted => self.obey(notice, packet.descriptors),
            Ok(_) | Err(_) => {
                self.hang_up();
            }
        }
    }

    fn greet(&mut self) {
        self.check_threads();
        let welcome = codec::encode(&FromHost::Welcome {
            version: HOST_VERSION,
            pid: std::process::id(),
            services: self.services.names().into_iter().map(str::to_owned).collect(),
            forks: self.forks,
        });
        let Some(worker) = &mut self.worker else { return };
        if worker.socket.send(&welcome, &[self.arena.descriptor()]).is_err() {
            self.hang_up();
            return;
        }
        worker.greeted = true;
        self.waiting = None;
        for attempt in self.ended.keys().copied().collect::<Vec<_>>() {
            self.send_end(attempt);
        }
    }

    fn obey(&mut self, notice: ToHost, descriptors: Vec<OwnedFd>) {
        match notice {
            ToHost::Hello { .. } => {}
            ToHost::Start(start) => self.start(start, descriptors),
            ToHost::Stop { attempt, grace } => self.stop(attempt, grace),
            ToHost::Confirm { attempt } => {
                self.ended.remove(&attempt);
            }
            ToHost::ReleaseRegion { region } => {
                // A region that can't be made as new is never used again.
                if self.regions.ended.remove(&region) && self.arena.clear(region).is_ok() {
                    self.regions.free.push(region);
                }
            }
            ToHost::ReadOutput { attempt } => self.send_output(attempt),
        }
    }

    // --- jobs ---

    fn start(&mut self, start: StartAttempt, descriptors: Vec<OwnedFd>) {
        let attempt = start.attempt;
        if self.attempts.contains_key(&attempt) || self.ended.contains_key(&attempt) {
            return;
        }
        let region = self.regions.take();
        let launched = match region {
            Some(region) => self.launch(start, descriptors.into_iter().next(), region),
            None => Err(io::Error::other("all regions of the arena are taken")),
        };
        match (launched, region) {
            (Ok(launched), Some(region)) => self.add(attempt, launched, region),
            (Ok(_), None) => unreachable!("nothing was launched without a region"),
            (Err(error), region) => {
                self.regions.free.extend(region);
                let reason = format!("the host can't start a process: {error}");
                let ended = Ended {
                    end: AttemptEnd::Lost { reason },
                    output: Output::default(),
                    bars: Vec::new(),
                    stdout: Vec::new(),
                    stderr: Vec::new(),
                    ran: Duration::ZERO,
                    peak_memory_bytes: 0,
                    region: None,
                };
                self.ended.insert(attempt, ended);
                self.send_end(attempt);
            }
        }
    }

    fn launch(&mut self, start: StartAttempt, payload: Option<OwnedFd>, region: u32) -> io::Result<Launched> {
        if matches!(start.payload, Payload::Descriptor { .. }) && payload.is_none() {
            return Err(io::Error::other("the payload did not travel with the notice"));
        }
        self.check_threads();
        let common = Common { services: &self.services, arena: self.arena.descriptor(), files: self.files };
        if self.forks {
            fork_job(common, start, payload, region)
        } else {
            spawn_job(common, start, payload, region)
        }
    }

    /// A process with a second thread must not fork any more.
    fn check_threads(&mut self) {
        if self.forks && kernel::threads() > 1 {
            self.forks = false;
            say("lrts: the job host has a second thread: jobs are started as new programs from now on");
        }
    }

    fn add(&mut self, attempt: AttemptId, launched: Launched, region: u32) {
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
            pid,
            region,
            socket: Some(socket),
            stdout: Stream { pipe: Some(stdout), tail: Tail::default() },
            stderr: Stream { pipe: Some(stderr), tail: Tail::default() },
            began: Moment::now(),
            done: None,
            panic: None,
            stop: None,
            out_of_memory_before: self.out_of_memory_kills(),
        };
        self.running.insert(serial, job);
        self.attempts.insert(attempt, serial);
        self.processes.insert(pid, serial);
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

    fn stop(&mut self, attempt: AttemptId, grace: Duration) {
        let Some(&serial) = self.attempts.get(&attempt) else {
            self.send_end(attempt);
            return;
        };
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
                    signal(job.pid, Signal::SIGTERM);
                }
            }
            Some(before) if before <= deadline => return,
            Some(before) => {
                self.deadlines.remove(&(before, serial));
            }
        }
        job.stop = Some(deadline);
        self.deadlines.insert((deadline, serial));
    }

    fn kill_overdue(&mut self, now: Moment) {
        while let Some(&(deadline, serial)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            if let Some(job) = self.running.get(&serial) {
                signal(job.pid, Signal::SIGKILL);
            }
        }
    }

    fn read_socket(&mut self, serial: u64) {
        let Some(job) = self.running.get_mut(&serial) else { return };
        for _ in 0..NOTICES_A_TURN {
            let Some(socket) = &job.socket else { return };
            match socket.receive() {
                Ok(Some(packet)) => match packet.decode() {
                    Ok(FromJob::Panicked { message }) => job.panic = Some(message),
                    Ok(FromJob::Done(done)) => job.done = Some(done),
                    // The job's own code has written to the socket; its end shows what became of it.
                    Err(_) => {}
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => {
                    let _ = self.epoll.delete(socket);
                    job.socket = None;
                }
            }
        }
    }

    /// Ends every job whose process has ended, and kills what such processes have left behind.
    fn reap(&mut self) {
        let mut reaped_any = false;
        while let Some(pid) = kernel::ended_child() {
            reaped_any = true;
            let job = self.processes.contains_key(&pid);
            if job {
                // The rest of its group, as long as the unreaped process keeps the group's number from being used again.
                let _ = killpg(pid, Signal::SIGKILL);
            }
            let Some(reaped) = kernel::reap(pid) else { break };
            if let Some(serial) = self.processes.remove(&pid) {
                self.end(serial, &reaped);
            }
        }
        if reaped_any {
            self.kill_strays();
        }
    }

    /// Kills adopted children: their job has ended. Their own children come here next, as they are reaped.
    fn kill_strays(&self) {
        for pid in kernel::children() {
            if !self.processes.contains_key(&pid) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }

    fn end(&mut self, serial: u64, reaped: &Reaped) {
        self.read_socket(serial);
        let Some(mut job) = self.running.remove(&serial) else { return };
        self.attempts.remove(&job.attempt);
        if let Some(deadline) = job.stop {
            self.deadlines.remove(&(deadline, serial));
        }
        for stream in [&mut job.stdout, &mut job.stderr] {
            for _ in 0..LAST_READS {
                if !stream.read(&self.epoll, &mut self.buffer) {
                    break;
                }
            }
            // A process that has left the job's group may still hold the other end, so no end of file is waited for.
            stream.close(&self.epoll);
        }
        if let Some(socket) = &job.socket {
            let _ = self.epoll.delete(socket);
        }
        let now = Moment::now();
        let stderr = job.stderr.tail.into_bytes();
        let (end, output) = verdict(Evidence {
            done: job.done,
            panic: job.panic,
            exit: reaped.exit,
            stopped: job.stop.is_some(),
            out_of_memory: killed(reaped) && kernel::out_of_memory_kills() > job.out_of_memory_before,
            stderr: &stderr,
        });
        self.regions.ended.insert(job.region);
        let ended = Ended {
            end,
            output,
            // They can't be read only if the machine has no memory: an end without bars is better than none.
            bars: self.arena.final_bars(job.region, now).unwrap_or_default(),
            stdout: job.stdout.tail.into_bytes(),
            stderr,
            ran: now.since(job.began),
            peak_memory_bytes: reaped.peak_memory_bytes,
            region: Some(job.region),
        };
        self.ended.insert(job.attempt, ended);
        self.send_end(job.attempt);
    }

    /// Kills all jobs and whatever they have left behind, and waits a little for them to be gone.
    fn end_all(&mut self) {
        self.hang_up();
        for job in self.running.values() {
            signal(job.pid, Signal::SIGKILL);
        }
        let deadline = Moment::now() + END_WAIT;
        loop {
            let _ = self.children.read();
            self.reap();
            let left = deadline.since(Moment::now());
            if kernel::children().is_empty() || left.is_zero() {
                return;
            }
            // Ends with the next child's death.
            let time_out = EpollTimeout::try_from(left).unwrap_or(EpollTimeout::ZERO);
            let _ = self.epoll.wait(&mut [EpollEvent::empty()], time_out);
        }
    }

    // --- notices to the worker ---

    /// Sends an ended attempt's bars, what it has printed, and its end.
    fn send_end(&mut self, attempt: AttemptId) {
        let Some(ended) = self.ended.get(&attempt) else { return };
        let mut notices = Vec::new();
        for bars in ended.bars.chunks(BARS_PER_NOTICE) {
            notices.push(codec::encode(&FromHost::Bars { attempt, bars: bars.to_vec() }));
        }
        for (stderr, text) in [(false, &ended.stdout), (true, &ended.stderr)] {
            if !text.is_empty() {
                notices.push(codec::encode(&FromHost::Output { attempt, stderr, text: text.clone() }));
            }
        }
        notices.push(codec::encode(&FromHost::Ended {
            attempt,
            end: ended.end.clone(),
            output: ended.output.clone(),
            ran: ended.ran,
            peak_memory_bytes: ended.peak_memory_bytes,
            region: ended.region,
        }));
        self.post(notices);
    }

    /// Answers `ReadOutput`.
    fn send_output(&mut self, attempt: AttemptId) {
        let texts = match (self.attempts.get(&attempt), self.ended.get(&attempt)) {
            (Some(serial), _) => self
                .running
                .get(serial)
                .map(|job| [(false, job.stdout.tail.to_bytes()), (true, job.stderr.tail.to_bytes())]),
            (None, Some(ended)) => Some([(false, ended.stdout.clone()), (true, ended.stderr.clone())]),
            (None, None) => None,
        };
        let outputs = texts.into_iter().flatten();
        let mut notices: Vec<Bytes> = outputs
            .map(|(stderr, text)| codec::encode(&FromHost::Output { attempt, stderr, text }))
            .collect();
        notices.push(codec::encode(&FromHost::OutputDone { attempt }));
        self.post(notices);
    }

    fn send(&mut self, notice: &FromHost) {
        self.post([codec::encode(notice)]);
    }

    /// Sends notices now or, in their order, once the worker's socket has room. Without a worker they are dropped: ends are
    /// sent again to the next one.
    fn post(&mut self, notices: impl IntoIterator<Item = Bytes>) {
        let Some(worker) = self.worker.as_mut().filter(|worker| worker.greeted) else { return };
        let waited = !worker.outbox.is_empty();
        worker.outbox.extend(notices);
        if !waited {
            // A broken connection shows itself to the reader.
            let _ = self.flush();
        }
    }

    /// Sends what waits, as far as there is room. False if the connection is broken.
    fn flush(&mut self) -> bool {
        let Some(worker) = &mut self.worker else { return true };
        while let Some(notice) = worker.outbox.front() {
            match worker.socket.send(notice, &[]) {
                Ok(()) => {
                    worker.outbox.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        if worker.watched != worker.outbox.is_empty() {
            return true;
        }
        worker.watched = !worker.outbox.is_empty();
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLOUT, worker.watched);
        let mut event = EpollEvent::new(flags, Source::Worker.token());
        self.epoll.modify(&worker.socket, &mut event).is_ok()
    }
}

impl Stream {
    /// Reads what is there, at most a buffer full. False if there was nothing.
    fn read(&mut self, epoll: &Epoll, buffer: &mut [u8]) -> bool {
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

    fn close(&mut self, epoll: &Epoll) {
        if let Some(pipe) = self.pipe.take() {
            let _ = epoll.delete(&pipe);
        }
    }
}

fn watch(epoll: &Epoll, descriptor: impl AsFd, source: Source) -> io::Result<()> {
    epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, source.token()))?;
    Ok(())
}

/// Signals a job's process and its group. It is unreaped, so its number is nobody else's; it may have ended just now.
fn signal(job: Pid, signal: Signal) {
    let _ = killpg(job, signal);
    // The service may have moved its process to another group. Told only once, since a second SIGTERM often means more.
    if getpgid(Some(job)) != Ok(job) {
        let _ = kill(job, signal);
    }
}

fn killed(reaped: &Reaped) -> bool {
    reaped.exit == super::verdict::Exit::Signal(libc::SIGKILL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_their_token() {
        let fixed = [Source::Listener, Source::Worker, Source::Children];
        let of_jobs = [Source::Socket(1), Source::Stdout(1), Source::Stderr(u64::MAX >> 2)];
        for source in fixed.into_iter().chain(of_jobs) {
            assert_eq!(Source::of(source.token()), source);
        }
    }

    #[test]
    fn regions_are_used_again_and_never_twice_at_once() {
        let mut regions = Regions::default();
        assert_eq!((regions.take(), regions.take()), (Some(0), Some(1)));
        regions.free.push(0);
        assert_eq!((regions.take(), regions.take()), (Some(0), Some(2)));
        assert_eq!(std::iter::from_fn(|| regions.take()).count(), REGIONS as usize - 3);
    }
}
