//! The worker that these tests play.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lrts_client::Service;
use lrts_core::clock::Moment;
use lrts_core::ids::{AttemptId, SessionId};
use lrts_core::mode::{self, Mode};
use lrts_core::notices::{NoticeListener, NoticeSocket, Packet};
use lrts_core::protocol::HOST_VERSION;
use lrts_core::protocol::host::{FromHost, HeldRun, Output, Payload, StartAttempt, ToHost};
use lrts_core::protocol::progress::BarRecord;
use lrts_core::protocol::worker::AttemptEnd;
use lrts_core::status::FailureKind;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::THREAD;
use crate::services::Wait;

/// How long anything may take here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A grace period that no test waits for.
pub(crate) const LONG: Duration = Duration::from_secs(600);

pub(crate) struct Ended {
    pub(crate) end: AttemptEnd,
    pub(crate) output: Output,
    pub(crate) bars: Vec<BarRecord>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) region: Option<u32>,
    pub(crate) peak_memory_bytes: u64,
}

pub(crate) struct Worker {
    pub(crate) host: Child,
    pub(crate) socket: NoticeSocket,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) forks: bool,
    pub(crate) services: Vec<String>,
    pub(crate) began: BTreeMap<AttemptId, u32>,
    pub(crate) ended: BTreeMap<AttemptId, Ended>,
    pub(crate) outputs: BTreeMap<(AttemptId, bool), Vec<u8>>,
    bars: BTreeMap<AttemptId, Vec<BarRecord>>,
    /// What was held when this worker came, by attempt: notes and process.
    pub(crate) held: BTreeMap<AttemptId, (Vec<u8>, Option<HeldRun>)>,
    pub(crate) checkpoints: BTreeMap<AttemptId, Vec<u8>>,
    orphan_grace: Duration,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let left = descendants(Pid::from_raw(self.host.id().cast_signed()));
        let _ = self.host.kill();
        let _ = self.host.wait();
        for pid in left {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

pub(crate) fn start_host(listener: NoticeListener, threads: bool) -> Child {
    start(Command::new(std::env::current_exe().unwrap()), listener, threads)
}

pub(crate) fn start(mut command: Command, listener: NoticeListener, threads: bool) -> Child {
    command.env(mode::VARIABLE, Mode::Host.as_str()).env("LRTS_OTHER", "x").stdin(OwnedFd::from(listener));
    if threads {
        command.env(THREAD, "1");
    }
    command.stdout(Stdio::null()).spawn().unwrap()
}

impl Worker {
    pub(crate) fn new() -> Self {
        Self::with_threads(false)
    }

    pub(crate) fn with_threads(threads: bool) -> Self {
        Self::with_host(Duration::ZERO, |listener| start_host(listener, threads))
    }

    /// One whose host waits this long for the next one.
    pub(crate) fn with_orphan_grace(orphan_grace: Duration) -> Self {
        Self::with_host(orphan_grace, |listener| start_host(listener, false))
    }

    pub(crate) fn with_host(orphan_grace: Duration, start: impl FnOnce(NoticeListener) -> Child) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("host");
        let host = start(NoticeListener::bind(&path).unwrap());
        let socket = NoticeSocket::connect(&path).unwrap();
        let mut worker = Self {
            host,
            socket,
            directory,
            forks: false,
            services: Vec::new(),
            began: BTreeMap::new(),
            ended: BTreeMap::new(),
            outputs: BTreeMap::new(),
            bars: BTreeMap::new(),
            held: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            orphan_grace,
        };
        worker.greet();
        worker
    }

    fn greet(&mut self) {
        self.send(&hello(HOST_VERSION, self.orphan_grace, &self.socket_path()));
        let welcome = self.receive();
        let FromHost::Welcome { version, pid, services, forks } = welcome else { panic!("{welcome:?}") };
        assert_eq!((version, pid), (HOST_VERSION, self.host.id()));
        (self.services, self.forks) = (services, forks);
        while self.receive() != FromHost::AllHeld {}
    }

    /// The connection ends, as when the worker's daemon dies.
    pub(crate) fn disconnect(&mut self) {
        let (other, _) = NoticeSocket::pair().unwrap();
        self.socket = other;
    }

    /// Comes as a new worker that knows nothing but the socket's path.
    pub(crate) fn reconnect(&mut self) {
        self.socket = self.connect();
        self.began.clear();
        self.ended.clear();
        self.outputs.clear();
        self.bars.clear();
        self.held.clear();
        self.checkpoints.clear();
        self.greet();
    }

    pub(crate) fn connect(&self) -> NoticeSocket {
        NoticeSocket::connect(&self.socket_path()).unwrap()
    }

    pub(crate) fn socket_path(&self) -> PathBuf {
        self.directory.path().join("host")
    }

    /// Returns once the host has heard all that was said before.
    pub(crate) fn until_heard(&mut self, attempt: AttemptId) {
        self.send(&ToHost::ReadOutput { attempt });
        while self.receive() != (FromHost::OutputDone { attempt }) {}
    }

    pub(crate) fn send(&self, notice: &ToHost) {
        self.socket.send_notice(notice, &[]).unwrap();
    }

    pub(crate) fn receive(&mut self) -> FromHost {
        let mut watched = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut watched, PollTimeout::try_from(PATIENCE).unwrap()).unwrap();
        assert_eq!(ready, 1, "the host says nothing; ended so far: {:?}", self.ended.keys());
        let packet = self.socket.receive().unwrap().expect("the host lives");
        let notice = packet.decode().unwrap();
        match &notice {
            FromHost::Held { attempt, notes, run } => {
                self.held.insert(*attempt, (notes.clone(), *run));
            }
            FromHost::Checkpoint { attempt, state } => {
                assert!(!self.ended.contains_key(attempt), "a checkpoint comes before its attempt's end");
                self.checkpoints.insert(*attempt, body(state, &packet));
            }
            FromHost::Began { attempt, pid, .. } => {
                self.began.insert(*attempt, *pid);
            }
            FromHost::Bars { attempt, bars } => {
                self.bars.entry(*attempt).or_default().extend(bars.iter().cloned());
            }
            FromHost::Output { attempt, stderr, text } => {
                self.outputs.insert((*attempt, *stderr), text.clone());
            }
            FromHost::Ended { attempt, end, output, peak_memory_bytes, region, .. } => {
                let ended = Ended {
                    end: end.clone(),
                    output: output.clone(),
                    bars: self.bars.remove(attempt).unwrap_or_default(),
                    stdout: self.outputs.remove(&(*attempt, false)).unwrap_or_default(),
                    stderr: self.outputs.remove(&(*attempt, true)).unwrap_or_default(),
                    region: *region,
                    peak_memory_bytes: *peak_memory_bytes,
                };
                self.ended.insert(*attempt, ended);
            }
            FromHost::Welcome { .. } | FromHost::AllHeld | FromHost::OutputDone { .. } => {}
        }
        notice
    }

    pub(crate) fn path(&self, attempt: AttemptId) -> PathBuf {
        self.directory.path().join(format!("job-{}", attempt.job.sequence))
    }

    pub(crate) fn spool_file(&self, attempt: AttemptId) -> PathBuf {
        self.directory.path().join(format!("result-{}", attempt.job.sequence))
    }

    pub(crate) fn start_attempt<S: Service>(&self, attempt: AttemptId, payload: Payload) -> StartAttempt {
        let directory = self.path(attempt);
        std::fs::create_dir(&directory).unwrap();
        StartAttempt {
            attempt,
            execution: 2,
            service: S::NAME.to_owned(),
            payload,
            directory,
            spool_file: self.spool_file(attempt),
            env: vec![("GREETING".to_owned(), "hello".to_owned())],
            checkpoint: None,
            grace: LONG,
            run_timeout: None,
            progress_timeout: None,
            memory_limit: None,
            lease_until: None,
            notes: sequence_notes(attempt),
        }
    }

    pub(crate) fn start<S: Service>(&self, sequence: u64, service: &S) -> AttemptId {
        self.start_with(sequence, service, |_| {})
    }

    /// Starts a job with other options than usual.
    pub(crate) fn start_with<S: Service>(
        &self,
        sequence: u64,
        service: &S,
        change: impl FnOnce(&mut StartAttempt),
    ) -> AttemptId {
        let attempt = attempt(sequence);
        let payload = Payload::Inline(rmp_serde::to_vec_named(service).unwrap());
        let mut start = self.start_attempt::<S>(attempt, payload);
        change(&mut start);
        self.send(&ToHost::Start(start));
        attempt
    }

    /// The process of an attempt, once it has begun.
    pub(crate) fn process(&mut self, attempt: AttemptId) -> Pid {
        while !self.began.contains_key(&attempt) {
            self.receive();
        }
        Pid::from_raw(self.began[&attempt].cast_signed())
    }

    /// Where the end of an attempt is once its host has written it.
    pub(crate) fn end_file(&self, attempt: AttemptId) -> PathBuf {
        let mut path = self.spool_file(attempt).into_os_string();
        path.push(".end");
        path.into()
    }

    /// Waits until an attempt's job says that it has come to its waiting.
    pub(crate) fn until_ready(&self, attempt: AttemptId) {
        let ready = self.path(attempt).join("ready");
        until("the job waits", || ready.exists());
    }

    pub(crate) fn end(&mut self, attempt: AttemptId) -> &Ended {
        while !self.ended.contains_key(&attempt) {
            self.receive();
        }
        &self.ended[&attempt]
    }

    pub(crate) fn run<S: Service>(&mut self, sequence: u64, service: &S) -> &Ended {
        let attempt = self.start(sequence, service);
        self.end(attempt)
    }

    /// Starts a job that waits, and returns once it does.
    pub(crate) fn start_waiting(&mut self, sequence: u64, wait: Wait) -> AttemptId {
        let attempt = self.start(sequence, &wait);
        self.until_ready(attempt);
        attempt
    }

    pub(crate) fn children(&self, attempt: AttemptId) -> Vec<Pid> {
        let text = std::fs::read_to_string(self.path(attempt).join("children")).unwrap();
        text.split(' ').map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }
}

pub(crate) fn hello(version: u16, orphan_grace: Duration, socket: &Path) -> ToHost {
    ToHost::Hello { version, orphan_grace, socket: socket.to_owned() }
}

pub(crate) fn attempt(sequence: u64) -> AttemptId {
    AttemptId { job: SessionId(0xabc).job(sequence), attempt: 5 }
}

/// What an attempt's notes are in these tests.
pub(crate) fn sequence_notes(attempt: AttemptId) -> Vec<u8> {
    format!("notes of {}", attempt.job.sequence).into_bytes()
}

/// A body that came with a packet.
pub(crate) fn body(payload: &Payload, packet: &Packet) -> Vec<u8> {
    match payload {
        Payload::Inline(bytes) => bytes.clone(),
        Payload::Descriptor { bytes } => {
            let file = std::fs::File::from(packet.descriptors[0].try_clone().unwrap());
            let mut content = vec![0; usize::try_from(*bytes).unwrap()];
            file.read_exact_at(&mut content, 0).unwrap();
            content
        }
    }
}

/// All processes below this one.
fn descendants(of: Pid) -> Vec<Pid> {
    let text = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    let children = text.split_ascii_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()));
    children.flat_map(|child| [vec![child], descendants(child)].concat()).collect()
}

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Moment::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a process is there and no zombie.
pub(crate) fn lives(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

pub(crate) fn value<T: serde::de::DeserializeOwned>(ended: &Ended) -> T {
    assert_eq!(ended.end, AttemptEnd::Finished, "stderr: {}", String::from_utf8_lossy(&ended.stderr));
    let Output::Inline(bytes) = &ended.output else { panic!("{:?}", ended.output) };
    rmp_serde::from_slice(bytes).unwrap()
}

pub(crate) fn failure(ended: &Ended) -> (FailureKind, String) {
    let AttemptEnd::Failed(failure) = &ended.end else { panic!("{:?}", ended.end) };
    assert_eq!(ended.output, Output::default());
    (failure.kind, failure.message.clone())
}
