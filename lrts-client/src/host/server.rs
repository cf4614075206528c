//! The host's loop: notices from the worker, from jobs and about dead children in; processes, signals and notices out.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;
use lrts_core::notices::{NoticeListener, NoticeSocket};
use lrts_core::progress::{Arena, REGIONS};
use lrts_core::protocol::host::{FromHost, ToHost};
use lrts_core::protocol::{HOST_VERSION, OLDEST_HOST_VERSION};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::unistd::Pid;

use super::cgroup::{self, Cgroups};
use super::connection::{Connection, Parcel};
use super::ended::{Ended, checkpoint_parcel};
use super::kernel;
use super::regions::Regions;
use super::running::Running;
use super::socket_file::SocketFile;
use super::tree::Strays;
use crate::service::{Services, say};

/// How long a host waits for its first worker.
const WORKER_WAIT: Duration = Duration::from_secs(60);

/// How long a host that has nothing to do waits for the next worker, which is spared the start of another one.
const IDLE_WAIT: Duration = Duration::from_secs(10);

/// How often a host without a worker looks whether its socket's file is still there.
const SOCKET_LOOK: Duration = Duration::from_secs(60);

/// How long the host waits until it tries again to write ends to disk or to read them, and how many it writes before other
/// events get their turn.
const DISK_RETRY: Duration = Duration::from_secs(1);
const SPILLS_A_TURN: usize = 8;

/// Notices of one socket that are handled before other events get their turn.
pub(super) const NOTICES_A_TURN: usize = 16;

/// Notices that are still taken from a connection that ends: more than its socket holds.
pub(super) const LAST_NOTICES: usize = 4_096;

/// Bytes read from a pipe at once.
const READ_BYTES: usize = 64 * 1024;

/// A descriptor that epoll watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    Listener,
    Worker,
    Children,
    Newcomer,
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
            Source::Newcomer => 3,
            Source::Socket(serial) => serial << 2,
            Source::Stdout(serial) => serial << 2 | 1,
            Source::Stderr(serial) => serial << 2 | 2,
        }
    }

    fn of(token: u64) -> Self {
        match (token >> 2, token & 3) {
            (0, 0) => Source::Listener,
            (0, 1) => Source::Worker,
            (0, 2) => Source::Children,
            (0, _) => Source::Newcomer,
            (serial, 0) => Source::Socket(serial),
            (serial, 1) => Source::Stdout(serial),
            (serial, _) => Source::Stderr(serial),
        }
    }
}

/// The job host.
pub(super) struct Host {
    pub(super) services: Services,
    pub(super) forks: bool,
    pub(super) files: u64,
    pub(super) cgroups: Option<Cgroups>,
    listener: NoticeListener,
    pub(super) children: EventFd,
    pub(super) epoll: Epoll,
    pub(super) arena: Arena,
    pub(super) regions: Regions,
    worker: Option<Connection>,
    /// A connection that hasn't said hello. It replaces the worker once it has: of two daemons the newer one counts, since the
    /// older may be stopped, or its end not yet noticed.
    newcomer: Option<NoticeSocket>,
    /// When the host ends unless a worker has come.
    alone_until: Option<Moment>,
    /// Whether none has come in time: all jobs are killed, and the host ends once their ends are on disk.
    abandoned: bool,
    /// Where this worker, or the last one, has found the host.
    socket_file: Option<SocketFile>,
    /// When to look whether another worker can find it there: while there is none.
    look_at: Option<Moment>,
    /// When the host ends unless it has a worker or something to do again: while it has neither.
    idle_until: Option<Moment>,
    /// Whether the host ends.
    pub(super) over: bool,
    /// Running jobs by serial number, and the numbers by attempt and by process.
    pub(super) running: BTreeMap<u64, Running>,
    pub(super) attempts: BTreeMap<AttemptId, u64>,
    pub(super) processes: BTreeMap<Pid, u64>,
    pub(super) next_serial: u64,
    /// When which running job is to be looked after.
    pub(super) deadlines: BTreeSet<(Moment, u64)>,
    /// What ended jobs have left behind.
    pub(super) strays: Strays,
    /// Ended attempts until `Confirm`.
    pub(super) ended: BTreeMap<AttemptId, Ended>,
    /// When ends are to be written to disk: while there is no worker.
    spill_at: Option<Moment>,
    /// Whether it was said that they can't be written.
    spill_failed: bool,
    /// Ends that can't be read back from disk at present, and when to try again.
    unread: BTreeSet<AttemptId>,
    read_at: Option<Moment>,
    pub(super) out_of_memory: (Moment, u64),
    pub(super) buffer: Box<[u8]>,
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
        let own_cgroup = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let cgroups = Cgroups::find(cgroup::ROOT.as_ref(), &own_cgroup);
        if let Some(cgroups) = &cgroups {
            let own = Pid::this().as_raw();
            cgroups.remove_leftovers(|pid| pid != own && Path::new(&format!("/proc/{pid}")).exists());
        }
        Ok(Self {
            services,
            forks,
            files,
            cgroups,
            listener,
            children,
            epoll,
            arena: Arena::create(REGIONS)?,
            regions: Regions::default(),
            worker: None,
            newcomer: None,
            alone_until: Some(Moment::now() + WORKER_WAIT),
            abandoned: false,
            socket_file: None,
            look_at: None,
            idle_until: None,
            over: false,
            running: BTreeMap::new(),
            attempts: BTreeMap::new(),
            processes: BTreeMap::new(),
            next_serial: 1,
            deadlines: BTreeSet::new(),
            strays: Strays::default(),
            ended: BTreeMap::new(),
            spill_at: None,
            spill_failed: false,
            unread: BTreeSet::new(),
            read_at: None,
            out_of_memory: (Moment::default(), 0),
            buffer: vec![0; READ_BYTES].into(),
        })
    }

    /// Runs until the worker says so, until there has been none for too long, until none can come any more, or until there is
    /// neither a worker nor anything to do. Then all jobs are killed.
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
            for event in &events[..count] {
                self.handle(Source::of(event.data()), event.events());
            }
            self.act_on_time(Moment::now());
            if self.over {
                break Ok(());
            }
        };
        self.over = true;
        self.worker = None;
        self.end_all();
        result
    }

    fn time_out(&self) -> EpollTimeout {
        let now = Moment::now();
        let deadline = self.deadlines.first().map(|&(deadline, _)| deadline);
        let others = [
            self.alone_until,
            self.look_at,
            self.idle_until,
            self.spill_at,
            self.read_at,
            self.strays.next(),
        ];
        match deadline.into_iter().chain(others.into_iter().flatten()).min() {
            None => EpollTimeout::NONE,
            // One millisecond more: rounded down the loop would spin through the last one.
            Some(next) => {
                let left = next.since(now) + Duration::from_millis(1);
                EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX)
            }
        }
    }

    fn act_on_time(&mut self, now: Moment) {
        while let Some(&(deadline, serial)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.look_after(serial, now);
        }
        self.announce_gone(now);
        if self.spill_at.is_some_and(|at| at <= now) {
            self.spill(now);
        }
        if self.read_at.is_some_and(|at| at <= now) {
            self.read_at = None;
            for attempt in mem::take(&mut self.unread) {
                self.announce(attempt);
            }
        }
        if self.look_at.is_some_and(|at| at <= now) {
            self.look_at = Some(now + SOCKET_LOOK);
            self.over |= self.socket_file.as_ref().is_some_and(SocketFile::is_gone);
        }
        if self.alone_until.take_if(|until| *until <= now).is_some() {
            self.abandoned = true;
            self.abandon_jobs();
        }
        // The ends that it has had are on the disk, where the next worker finds them.
        let is_useless = (self.abandoned || self.look_at.is_some())
            && self.running.is_empty()
            && !self.ended.values().any(Ended::is_in_memory);
        self.idle_until = is_useless.then(|| self.idle_until.unwrap_or(now + IDLE_WAIT));
        self.over |= self.idle_until.is_some_and(|until| self.abandoned || until <= now);
    }

    fn handle(&mut self, source: Source, flags: EpollFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Children => {
                // Reset first: a child that ends from here on counts it up again.
                let _ = self.children.read();
                self.reap();
            }
            Source::Worker => self.serve_worker(flags),
            Source::Newcomer => self.hear_newcomer(),
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
    }

    // --- connections ---

    /// Takes a connection. One that came before and still hasn't said hello goes.
    fn accept(&mut self) {
        let Ok(socket) = self.listener.accept() else { return };
        if socket.set_nonblocking(true).is_err() {
            return;
        }
        self.hear_newcomer();
        self.drop_newcomer();
        if watch(&self.epoll, &socket, Source::Newcomer).is_ok() {
            self.newcomer = Some(socket);
        }
    }

    fn drop_newcomer(&mut self) {
        if let Some(socket) = self.newcomer.take() {
            let _ = self.epoll.delete(&socket);
        }
    }

    /// Makes a newcomer that says hello the worker. One of a version that this host doesn't know, or no worker at all, goes.
    fn hear_newcomer(&mut self) {
        let Some(socket) = &self.newcomer else { return };
        let packet = match socket.receive() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(Some(packet)) => packet,
            Ok(None) | Err(_) => return self.drop_newcomer(),
        };
        match packet.decode::<ToHost>() {
            Ok(ToHost::Hello { version, orphan_grace, socket })
                if (OLDEST_HOST_VERSION..=HOST_VERSION).contains(&version) =>
            {
                self.greet(version, orphan_grace);
                self.socket_file = SocketFile::find(socket);
            }
            Ok(_) | Err(_) => self.drop_newcomer(),
        }
    }

    fn greet(&mut self, version: u16, orphan_grace: Duration) {
        self.check_threads();
        let Some(socket) = self.newcomer.take() else { return };
        let welcome = FromHost::Welcome {
            version,
            pid: std::process::id(),
            services: self.services.names().into_iter().map(str::to_owned).collect(),
            forks: self.forks,
        };
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Worker.token());
        if socket.send_notice(&welcome, &[self.arena.descriptor()]).is_err()
            || self.epoll.modify(&socket, &mut event).is_err()
        {
            let _ = self.epoll.delete(&socket);
            return;
        }
        // What the worker before has said still counts. Its end doesn't: there is a new one.
        let _ = self.hear_worker(LAST_NOTICES);
        // The worker before may have died between an end's confirmation and its region's release.
        let held = self.ended.values().filter_map(|ended| ended.region).collect();
        for region in self.regions.release_others(&held) {
            self.recycle(region);
        }
        let mut worker = Connection::new(socket, version, orphan_grace);
        let now = Moment::now();
        let mut held = Vec::new();
        if worker.adopts() {
            held.extend(self.running.values().map(|job| Parcel::new(&job.held(now))));
            held.extend(self.ended.values().map(|ended| Parcel::new(&ended.held())));
            held.push(Parcel::new(&FromHost::AllHeld));
        }
        for (&attempt, ended) in &mut self.ended {
            ended.forget_sent();
            if !self.strays.waits(attempt) {
                worker.push_end(attempt);
            }
        }
        if let Some(before) = self.worker.replace(worker) {
            let _ = self.epoll.delete(before.socket());
        }
        (self.alone_until, self.spill_at, self.look_at) = (None, None, None);
        (self.unread, self.read_at) = (BTreeSet::new(), None);
        self.abandoned = false;
        for serial in self.running.keys().copied().collect::<Vec<_>>() {
            if let Some(job) = self.running.get_mut(&serial)
                && let Some(checkpoints) = &mut job.checkpoints
            {
                checkpoints.forget_sent();
                job.next_checkpoint = Some(now);
                self.schedule(serial);
            }
        }
        self.post(held);
        self.post_ends();
    }

    /// Reads from the worker, and writes what has waited.
    fn serve_worker(&mut self, flags: EpollFlags) {
        if self.hear_worker(NOTICES_A_TURN).is_err() {
            return self.lose_worker();
        }
        if flags.contains(EpollFlags::EPOLLOUT) {
            let Some(worker) = &mut self.worker else { return };
            match worker.flush(&self.epoll, Source::Worker.token()) {
                Ok(()) => self.post_ends(),
                Err(_) => self.lose_worker(),
            }
        }
    }

    /// Does what the worker says, at most so many notices.
    ///
    /// # Errors
    ///
    /// The connection has ended.
    fn hear_worker(&mut self, most: usize) -> io::Result<()> {
        for _ in 0..most {
            let Some(worker) = &self.worker else { break };
            match worker.socket().receive() {
                Ok(Some(packet)) => self.obey(packet.decode()?, packet.descriptors),
                Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The worker's connection has ended: the host goes on for as long as that worker had said.
    fn lose_worker(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        let _ = self.epoll.delete(worker.socket());
        if worker.orphan_grace().is_zero() {
            self.over = true;
            return;
        }
        let now = Moment::now();
        (self.alone_until, self.spill_at) = (Some(now + worker.orphan_grace()), Some(now));
        self.look_at = Some(now);
    }

    fn obey(&mut self, notice: ToHost, descriptors: Vec<OwnedFd>) {
        match notice {
            ToHost::Hello { .. } => {}
            ToHost::Start(start) => self.start(start, descriptors),
            ToHost::Stop { attempt, grace } => self.stop(attempt, grace),
            ToHost::Confirm { attempt } => {
                if let Some(ended) = self.ended.remove(&attempt) {
                    ended.confirm();
                }
            }
            ToHost::ReleaseRegion { region } => {
                if self.regions.release(region) {
                    self.recycle(region);
                }
            }
            ToHost::RenewLeases { until } => self.renew_leases(Moment::from_nanos(until)),
            ToHost::ReadCheckpoint { attempt } => self.send_checkpoint(attempt),
            ToHost::End => self.over = true,
            ToHost::ReadOutput { attempt } => self.send_output(attempt),
        }
    }

    // --- ends ---

    /// Tells of an attempt that has ended: the worker, or the next one, and until then the disk.
    pub(super) fn announce(&mut self, attempt: AttemptId) {
        match &mut self.worker {
            Some(worker) => {
                worker.push_end(attempt);
                self.post_ends();
            }
            None if self.over => {}
            None => self.spill_at = Some(Moment::now()),
        }
    }

    /// Sends the ends that the worker's socket has room for.
    fn post_ends(&mut self) {
        while let Some(worker) = &mut self.worker
            && let Some(attempt) = worker.pop_end()
        {
            // It may have been confirmed since.
            let Some(ended) = self.ended.get_mut(&attempt) else { continue };
            match ended.parcels(worker.adopts()) {
                Ok(parcels) => self.post(parcels),
                Err(error) => {
                    if self.unread.is_empty() {
                        let path = ended.spool_file.display();
                        say(&format!(
                            "lrts: the job host can't read a job's end beside `{path}` yet: {error}"
                        ));
                    }
                    self.unread.insert(attempt);
                    self.read_at.get_or_insert(Moment::now() + DISK_RETRY);
                }
            }
        }
    }

    /// Writes ends to disk while there is no worker, so that they outlive this host. What can't be written stays in memory and
    /// is tried again.
    fn spill(&mut self, now: Moment) {
        let strays = &self.strays;
        let unwritten = |ended: &&mut Ended| ended.is_in_memory() && !strays.waits(ended.attempt);
        let mut left = self.ended.values_mut().filter(unwritten);
        for ended in left.by_ref().take(SPILLS_A_TURN) {
            if let Err(error) = ended.spill() {
                if !self.spill_failed {
                    let path = ended.spool_file.display();
                    say(&format!("lrts: the job host can't write a job's end beside `{path}` yet: {error}"));
                }
                (self.spill_failed, self.spill_at) = (true, Some(now + DISK_RETRY));
                return;
            }
            self.spill_failed = false;
        }
        self.spill_at = left.next().map(|_| now);
    }

    // --- notices to the worker ---

    /// Sends a running job's checkpoint, if it has a newer one than was sent. The next one waits until the worker has read it,
    /// however slow that is: only the newest counts, and what isn't read takes memory.
    pub(super) fn send_news(&mut self, serial: u64) {
        let (Some(worker), Some(job)) = (&mut self.worker, self.running.get_mut(&serial)) else { return };
        if !worker.adopts() || !worker.takes_checkpoint(job.attempt) {
            return;
        }
        // One that can't be copied now is sent the next time.
        let news = job.checkpoints.as_mut().and_then(|checkpoints| checkpoints.news().ok().flatten());
        if let Some(snapshot) = news {
            worker.note_checkpoint(job.attempt);
            let parcel = checkpoint_parcel(job.attempt, snapshot);
            self.post([parcel]);
        }
    }

    /// Answers `ReadCheckpoint`.
    fn send_checkpoint(&mut self, attempt: AttemptId) {
        let running = self.attempts.get(&attempt).and_then(|serial| self.running.get(serial));
        let parcel = match (running, self.ended.get(&attempt)) {
            (Some(job), _) => {
                let snapshot = job.checkpoints.as_ref().and_then(|checkpoints| checkpoints.snapshot().ok());
                snapshot.map(|(_, snapshot)| checkpoint_parcel(attempt, snapshot))
            }
            (None, Some(ended)) => ended.checkpoint(),
            (None, None) => None,
        };
        self.post(parcel);
    }

    /// Answers `ReadOutput`.
    fn send_output(&mut self, attempt: AttemptId) {
        let running = self.attempts.get(&attempt).and_then(|serial| self.running.get(serial));
        let printed = match (running, self.ended.get(&attempt)) {
            (Some(job), _) => Some([job.stdout.tail.to_bytes(), job.stderr.tail.to_bytes()]),
            (None, Some(ended)) => Some(ended.printed()),
            (None, None) => None,
        };
        let outputs = [false, true].into_iter().zip(printed.into_iter().flatten());
        let mut parcels: Vec<Parcel> =
            outputs.map(|(stderr, text)| Parcel::new(&FromHost::Output { attempt, stderr, text })).collect();
        parcels.push(Parcel::new(&FromHost::OutputDone { attempt }));
        self.post(parcels);
    }

    pub(super) fn send(&mut self, notice: &FromHost) {
        self.post([Parcel::new(notice)]);
    }

    /// Without a worker they are dropped: the next one is told what is here and how attempts have ended.
    fn post(&mut self, parcels: impl IntoIterator<Item = Parcel>) {
        if let Some(worker) = &mut self.worker {
            worker.post(parcels, &self.epoll, Source::Worker.token());
        }
    }
}

/// Has epoll tell of what there is to read.
///
/// # Errors
///
/// Those of `epoll_ctl(2)`.
pub(super) fn watch(epoll: &Epoll, descriptor: impl AsFd, source: Source) -> io::Result<()> {
    epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, source.token()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_their_token() {
        let fixed = [Source::Listener, Source::Worker, Source::Children, Source::Newcomer];
        let of_jobs = [Source::Socket(1), Source::Stdout(1), Source::Stderr(u64::MAX >> 2)];
        for source in fixed.into_iter().chain(of_jobs) {
            assert_eq!(Source::of(source.token()), source);
        }
    }
}
