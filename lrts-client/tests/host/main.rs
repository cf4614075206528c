//! The job host with real processes: this binary starts itself again as a host and plays its worker.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by a panic, and its services print"
)]

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lrts_client::{Bytes, JobContext, Service, ServiceError};
use lrts_core::clock::Moment;
use lrts_core::ids::{AttemptId, SessionId};
use lrts_core::limits::OUTPUT_BYTES;
use lrts_core::mode::{self, Mode};
use lrts_core::notices::{NoticeListener, NoticeSocket};
use lrts_core::protocol::HOST_VERSION;
use lrts_core::protocol::host::{FromHost, Output, Payload, StartAttempt, ToHost};
use lrts_core::protocol::progress::BarRecord;
use lrts_core::protocol::worker::AttemptEnd;
use lrts_core::status::FailureKind;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Makes the host a process with a second thread, as `#[tokio::main]` does.
const THREAD: &str = "HOST_TEST_THREAD";

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(30);

lrts_client::host_services_before_main!(Echo, Act, Blob, Print, Wait);

const _: () = {
    extern "C" fn start_thread() {
        if std::env::var_os(THREAD).is_some() {
            std::thread::spawn(|| {
                loop {
                    std::thread::park();
                }
            });
        }
    }
    // Sections with a number come before `.init_array` itself.
    #[used]
    #[expect(unsafe_code, reason = "code runs before main only from this section")]
    #[unsafe(link_section = ".init_array.00500")]
    static START_THREAD: extern "C" fn() = start_thread;
};

// --- services ---

#[derive(Serialize, Deserialize)]
struct Echo(String);

impl Service for Echo {
    const NAME: &'static str = "echo";
    type Output = (String, u32);

    fn run(self, job: &JobContext) -> Result<Self::Output, ServiceError> {
        Ok((self.0, job.attempt()))
    }
}

/// Ends in all sorts of ways.
#[derive(Serialize, Deserialize)]
enum Act {
    Error,
    Panic,
    PanicElsewhere,
    CatchPanic,
    PanicTwice,
    Exit(i32),
    Abort,
    SegmentationFault,
    StackOverflow,
    KillItself,
    Surroundings,
    Runtime,
    Bars,
    Fork,
}

impl Service for Act {
    const NAME: &'static str = "act";
    type Output = String;

    fn run(self, job: &JobContext) -> Result<String, ServiceError> {
        match self {
            Act::Error => {
                let cause = std::io::Error::other("disk on fire");
                return Err(ServiceError::new(cause).context("reading rows").context("loading"));
            }
            Act::Panic => panic!("row {} is odd", 7),
            Act::PanicElsewhere => {
                let thread = std::thread::spawn(|| panic!("not the job's thread"));
                assert!(thread.join().is_err());
            }
            Act::CatchPanic => assert!(std::panic::catch_unwind(|| panic!("caught")).is_err()),
            // The second one can't be unwound, which ends the process as `panic = "abort"` does.
            Act::PanicTwice => {
                let _panics = PanicsOnDrop;
                panic!("first");
            }
            Act::Exit(code) => {
                eprintln!("leaving early");
                std::process::exit(code)
            }
            Act::Abort => std::process::abort(),
            // As a wild pointer would; a debug build checks pointers before it uses them.
            Act::SegmentationFault => nix::sys::signal::raise(Signal::SIGSEGV)?,
            Act::StackOverflow => return Ok(recurse(1).to_string()),
            Act::KillItself => kill(Pid::this(), Signal::SIGKILL)?,
            Act::Surroundings => {
                let ours =
                    std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LRTS_"));
                let mut input = String::new();
                std::io::Read::read_to_string(&mut std::io::stdin(), &mut input)?;
                let open = std::fs::read_dir("/proc/self/fd")?.count() - 1;
                let (core, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE)?;
                let leads = nix::unistd::getpgrp() == Pid::this();
                return Ok(format!(
                    "{} {} lrts:{} stdin:{} open:{open} core:{core} leads:{leads} blocked:{}",
                    std::env::current_dir()?.display(),
                    std::env::var("GREETING")?,
                    ours.count(),
                    input.len(),
                    nix::sys::signal::SigSet::thread_get_mask()?.iter().count(),
                ));
            }
            Act::Runtime => {
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
                let first = runtime.block_on(async { tokio::spawn(async { 20 }).await })?;
                return Ok((first + job.block_on(async { 22 })).to_string());
            }
            Act::Fork => {
                // SAFETY: the copy only returns, and the job has no other thread.
                #[expect(unsafe_code, reason = "a service may fork")]
                match unsafe { nix::unistd::fork() }? {
                    nix::unistd::ForkResult::Child => {}
                    nix::unistd::ForkResult::Parent { child } => {
                        nix::sys::wait::waitpid(child, None)?;
                        std::process::exit(7);
                    }
                }
            }
            Act::Bars => {
                let bar = job.progress("Doing work").total(10).unit("rows").start();
                bar.inc(7);
                // Not closed: the process ends first.
                std::mem::forget(bar);
            }
        }
        Ok("done".to_owned())
    }
}

struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("second");
    }
}

#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let room = std::hint::black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { recurse(depth + 1) + room[63] }
}

#[derive(Serialize, Deserialize)]
struct Blob {
    input: Bytes,
    output_bytes: usize,
}

impl Service for Blob {
    const NAME: &'static str = "blob";
    type Output = Vec<u8>;

    fn run(self, _job: &JobContext) -> Result<Vec<u8>, ServiceError> {
        let sum = self.input.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        Ok(vec![sum; self.output_bytes])
    }
}

#[derive(Serialize, Deserialize)]
struct Print {
    stdout_bytes: usize,
    stderr: String,
}

impl Service for Print {
    const NAME: &'static str = "print";
    type Output = ();

    fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
        let mut stdout = std::io::stdout();
        stdout.write_all(&vec![b'x'; self.stdout_bytes])?;
        stdout.write_all(b"end")?;
        eprint!("{}", self.stderr);
        Ok(())
    }
}

/// Waits, in the way that its fields say, and tells where it is by writing files into its directory.
#[derive(Serialize, Deserialize, Default, Clone, Copy)]
struct Wait {
    /// Starts a process in the same group, and one in a session of its own.
    children: bool,
    hook: bool,
    look: bool,
    /// Goes on for ever nonetheless.
    stubborn: bool,
    /// Returns at once, leaving its children.
    leave: bool,
    /// Moves its process into the host's group.
    wander: bool,
}

impl Service for Wait {
    const NAME: &'static str = "wait";
    type Output = String;

    fn run(self, job: &JobContext) -> Result<String, ServiceError> {
        if self.children {
            let near = Command::new("sleep").arg("600").spawn()?;
            let far = Command::new("setsid").args(["sleep", "600"]).spawn()?;
            std::fs::write("children.part", format!("{} {}", near.id(), far.id()))?;
            std::fs::rename("children.part", "children")?;
        }
        if self.wander {
            nix::unistd::setpgid(Pid::this(), nix::unistd::getpgid(Some(Pid::parent()))?)?;
        }
        let (sender, told) = std::sync::mpsc::channel();
        if self.hook {
            let hook = sender.clone();
            job.on_cancel(move || hook.send("hook").expect("the job waits"));
        }
        if self.look {
            job.is_cancelled();
        }
        std::fs::write("ready", "")?;
        if self.leave {
            return Ok("left".to_owned());
        }
        loop {
            if let Ok(word) = told.recv_timeout(Duration::from_millis(5))
                && !self.stubborn
            {
                return Ok(word.to_owned());
            }
            if self.look && job.is_cancelled() && !self.stubborn {
                anyhow::bail!("looked");
            }
        }
    }
}

// --- a worker ---

struct Ended {
    end: AttemptEnd,
    output: Output,
    bars: Vec<BarRecord>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    region: Option<u32>,
    peak_memory_bytes: u64,
}

struct Worker {
    host: Child,
    socket: NoticeSocket,
    directory: tempfile::TempDir,
    forks: bool,
    services: Vec<String>,
    began: BTreeMap<AttemptId, u32>,
    ended: BTreeMap<AttemptId, Ended>,
    outputs: BTreeMap<(AttemptId, bool), Vec<u8>>,
    bars: BTreeMap<AttemptId, Vec<BarRecord>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.host.kill();
        let _ = self.host.wait();
    }
}

fn start_host(listener: NoticeListener, threads: bool) -> Child {
    start(Command::new(std::env::current_exe().unwrap()), listener, threads)
}

fn start(mut command: Command, listener: NoticeListener, threads: bool) -> Child {
    command.env(mode::VARIABLE, Mode::Host.as_str()).env("LRTS_OTHER", "x").stdin(OwnedFd::from(listener));
    if threads {
        command.env(THREAD, "1");
    }
    command.stdout(Stdio::null()).spawn().unwrap()
}

impl Worker {
    fn new() -> Self {
        Self::with_threads(false)
    }

    fn with_threads(threads: bool) -> Self {
        Self::with_host(|listener| start_host(listener, threads))
    }

    fn with_host(start: impl FnOnce(NoticeListener) -> Child) -> Self {
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
        };
        worker.send(&ToHost::Hello { version: HOST_VERSION });
        let welcome = worker.receive();
        let FromHost::Welcome { version, pid, services, forks } = welcome else { panic!("{welcome:?}") };
        assert_eq!((version, pid), (HOST_VERSION, worker.host.id()));
        (worker.services, worker.forks) = (services, forks);
        worker
    }

    fn send(&self, notice: &ToHost) {
        self.socket.send_notice(notice, &[]).unwrap();
    }

    fn receive(&mut self) -> FromHost {
        let mut watched = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut watched, PollTimeout::try_from(PATIENCE).unwrap()).unwrap();
        assert_eq!(ready, 1, "the host says nothing; ended so far: {:?}", self.ended.keys());
        let notice = self.socket.receive().unwrap().expect("the host lives").decode().unwrap();
        match &notice {
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
            FromHost::Welcome { .. } | FromHost::OutputDone { .. } => {}
        }
        notice
    }

    fn path(&self, attempt: AttemptId) -> PathBuf {
        self.directory.path().join(format!("job-{}", attempt.job.sequence))
    }

    fn spool_file(&self, attempt: AttemptId) -> PathBuf {
        self.directory.path().join(format!("result-{}", attempt.job.sequence))
    }

    fn start_attempt<S: Service>(&self, attempt: AttemptId, payload: Payload) -> StartAttempt {
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
        }
    }

    fn start<S: Service>(&self, sequence: u64, service: &S) -> AttemptId {
        let attempt = attempt(sequence);
        let payload = Payload::Inline(rmp_serde::to_vec_named(service).unwrap());
        self.send(&ToHost::Start(self.start_attempt::<S>(attempt, payload)));
        attempt
    }

    fn end(&mut self, attempt: AttemptId) -> &Ended {
        while !self.ended.contains_key(&attempt) {
            self.receive();
        }
        &self.ended[&attempt]
    }

    fn run<S: Service>(&mut self, sequence: u64, service: &S) -> &Ended {
        let attempt = self.start(sequence, service);
        self.end(attempt)
    }

    /// Starts a job that waits, and returns once it does.
    fn start_waiting(&mut self, sequence: u64, wait: Wait) -> AttemptId {
        let attempt = self.start(sequence, &wait);
        let ready = self.path(attempt).join("ready");
        until("the job waits", || ready.exists());
        attempt
    }

    fn children(&self, attempt: AttemptId) -> Vec<Pid> {
        let text = std::fs::read_to_string(self.path(attempt).join("children")).unwrap();
        text.split(' ').map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }
}

fn attempt(sequence: u64) -> AttemptId {
    AttemptId { job: SessionId(0xabc).job(sequence), attempt: 5 }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Moment::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a process is there and no zombie.
fn lives(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn value<T: serde::de::DeserializeOwned>(ended: &Ended) -> T {
    assert_eq!(ended.end, AttemptEnd::Finished, "stderr: {}", String::from_utf8_lossy(&ended.stderr));
    let Output::Inline(bytes) = &ended.output else { panic!("{:?}", ended.output) };
    rmp_serde::from_slice(bytes).unwrap()
}

fn failure(ended: &Ended) -> (FailureKind, String) {
    let AttemptEnd::Failed(failure) = &ended.end else { panic!("{:?}", ended.end) };
    assert_eq!(ended.output, Output::default());
    (failure.kind, failure.message.clone())
}

// --- outcomes ---

#[test]
fn a_value_comes_back_from_a_forked_process() {
    let mut worker = Worker::new();
    assert!(worker.forks);
    assert_eq!(worker.services, ["echo", "act", "blob", "print", "wait"]);
    let ended = worker.run(1, &Echo("ü".into()));
    assert_eq!(value::<(String, u32)>(ended), ("ü".into(), 2));
    assert!(ended.peak_memory_bytes > 100_000 && ended.bars.is_empty() && ended.stderr.is_empty());
    assert_eq!(ended.region, Some(0));
    assert_ne!(worker.began[&attempt(1)], worker.host.id());
}

#[test]
fn every_end_is_told_apart() {
    every_end(Worker::new());
}

#[test]
fn every_end_is_told_apart_where_jobs_are_spawned() {
    let worker = Worker::with_threads(true);
    assert!(!worker.forks);
    every_end(worker);
}

fn every_end(mut worker: Worker) {
    let mut number = 0;
    let mut end = |act: Act| {
        number += 1;
        failure(worker.run(number, &act))
    };
    assert_eq!(end(Act::Error), (FailureKind::Error, "loading: reading rows: disk on fire".into()));

    let (kind, message) = end(Act::Panic);
    assert_eq!(kind, FailureKind::Panic);
    assert!(message.starts_with("row 7 is odd at ") && message.contains("tests/host.rs:"), "{message}");

    assert_eq!(end(Act::PanicTwice).0, FailureKind::Panic);

    let (kind, message) = end(Act::Exit(3));
    assert_eq!(kind, FailureKind::Crashed);
    assert_eq!(message, "exited with code 3 without a result; last lines of stderr:\nleaving early");

    // What its copy returned is no result.
    let (kind, message) = end(Act::Fork);
    assert_eq!((kind, &*message), (FailureKind::Crashed, "exited with code 7 without a result"));

    for (act, signals) in [
        (Act::Abort, &["killed by signal 6 (SIGABRT)"][..]),
        (Act::SegmentationFault, &["killed by signal 11 (SIGSEGV)"]),
        // Before main std has no handler that explains it.
        (Act::StackOverflow, &["killed by signal 6 (SIGABRT)", "killed by signal 11 (SIGSEGV)"]),
        (Act::KillItself, &["killed by signal 9 (SIGKILL)"]),
    ] {
        let (kind, message) = end(act);
        assert_eq!(kind, FailureKind::Crashed, "{message}");
        assert!(signals.iter().any(|signal| message.starts_with(signal)), "{message}");
    }

    let mut output = |act: Act| {
        number += 1;
        value::<String>(worker.run(number, &act))
    };
    assert_eq!(output(Act::PanicElsewhere), "done");
    assert_eq!(output(Act::CatchPanic), "done");
    assert_eq!(output(Act::Runtime), "42");
    // stdin, stdout, stderr and the socket.
    let surroundings = output(Act::Surroundings);
    let directory = std::fs::canonicalize(worker.path(attempt(number))).unwrap();
    let wanted = format!("{} hello lrts:0 stdin:0 open:4 core:0 leads:true blocked:0", directory.display());
    assert_eq!(surroundings, wanted);
}

#[test]
fn what_cannot_be_run_fails_with_the_reason() {
    let mut worker = Worker::new();
    let mut start = worker.start_attempt::<Echo>(attempt(1), Payload::Inline(vec![0xc1]));
    worker.send(&ToHost::Start(start.clone()));
    let (kind, message) = failure(worker.end(attempt(1)));
    assert_eq!(kind, FailureKind::Error);
    assert!(message.starts_with("service `echo` can't read what was scheduled: "), "{message}");

    (start.attempt, start.service) = (attempt(2), "mult".to_owned());
    worker.send(&ToHost::Start(start.clone()));
    let (kind, message) = failure(worker.end(attempt(2)));
    assert_eq!(kind, FailureKind::Error);
    let wanted =
        "service `mult` is not in the program's host_services!, which has: echo, act, blob, print, wait";
    assert_eq!(message, wanted);

    // Both the machine's fault.
    (start.attempt, start.directory) = (attempt(3), "/no such directory".into());
    worker.send(&ToHost::Start(start.clone()));
    (start.attempt, start.payload) = (attempt(4), Payload::Descriptor { bytes: 10 });
    worker.send(&ToHost::Start(start));
    for (sequence, word) in [(3, "no such directory"), (4, "payload")] {
        let end = &worker.end(attempt(sequence)).end;
        let AttemptEnd::Lost { reason } = end else { panic!("{end:?}") };
        assert!(reason.contains(word), "{reason}");
    }
}

#[test]
fn five_megabytes_travel_both_ways() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        let blob = Blob { input: vec![1; 5_000_001].into(), output_bytes: 5_000_000 };
        let payload = rmp_serde::to_vec_named(&blob).unwrap();
        let memory =
            nix::sys::memfd::memfd_create(c"payload", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let mut memory = std::fs::File::from(memory);
        memory.write_all(&payload).unwrap();
        let payload = Payload::Descriptor { bytes: payload.len() as u64 };
        let start = worker.start_attempt::<Blob>(attempt(1), payload);
        worker.socket.send_notice(&ToHost::Start(start), &[memory.as_fd()]).unwrap();

        let ended = worker.end(attempt(1));
        assert_eq!(ended.end, AttemptEnd::Finished);
        assert_eq!(ended.output, Output::Spool { bytes: 5_000_005 });
        let file = worker.spool_file(attempt(1));
        let output: serde_bytes::ByteBuf = rmp_serde::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!(output.into_vec(), vec![5_000_001u64 as u8; 5_000_000]);
    }
}

#[test]
fn a_result_waits_for_room_on_the_disk() {
    let mut worker = Worker::new();
    let blob = Blob { input: vec![].into(), output_bytes: 100_000 };
    let job = attempt(1);
    let mut part = worker.spool_file(job).into_os_string();
    part.push(".part");
    std::os::unix::fs::symlink("/dev/full", part).unwrap();
    worker.start(1, &blob);
    until("the job says that it waits", || {
        worker.send(&ToHost::ReadOutput { attempt: job });
        while worker.receive() != (FromHost::OutputDone { attempt: job }) {}
        let stderr = worker.outputs.get(&(job, true)).cloned().unwrap_or_default();
        String::from_utf8_lossy(&stderr).contains("the result waits for room on the disk")
    });
    worker.send(&ToHost::Stop { attempt: job, grace: Duration::from_secs(600) });
    assert_eq!(worker.end(job).end, AttemptEnd::Stopped);
}

#[test]
fn what_the_machine_lacks_is_not_the_jobs_fault() {
    let mut worker = Worker::with_host(|listener| {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 12; exec \"$0\""]).arg(std::env::current_exe().unwrap());
        start(command, listener, false)
    });
    let end = &worker.run(1, &Echo("x".into())).end;
    let AttemptEnd::Lost { reason } = end else { panic!("{end:?}") };
    assert!(reason.starts_with("the host can't start a process: "), "{reason}");
    assert_eq!(worker.ended[&attempt(1)].region, None);
}

#[test]
fn the_end_of_the_output_is_kept() {
    let mut worker = Worker::new();
    let ended = worker.run(1, &Print { stdout_bytes: 1_000_000, stderr: "words".into() });
    assert_eq!(ended.end, AttemptEnd::Finished);
    assert_eq!(ended.stdout.len(), OUTPUT_BYTES);
    assert!(ended.stdout.starts_with(b"xxx") && ended.stdout.ends_with(b"xend"));
    assert_eq!(ended.stderr, b"words");

    // It can be read until the end is confirmed.
    for known in [true, false] {
        worker.outputs.clear();
        worker.send(&ToHost::ReadOutput { attempt: attempt(1) });
        while worker.receive() != (FromHost::OutputDone { attempt: attempt(1) }) {}
        assert_eq!(worker.outputs.get(&(attempt(1), true)).is_some_and(|text| text == b"words"), known);
        worker.send(&ToHost::Confirm { attempt: attempt(1) });
    }
}

#[test]
fn the_last_state_of_a_bar_travels_with_the_end() {
    let mut worker = Worker::new();
    let ended = worker.run(1, &Act::Bars);
    assert_eq!(value::<String>(ended), "done");
    let [bar] = &ended.bars[..] else { panic!("{:?}", ended.bars) };
    assert_eq!((bar.text.description.as_str(), bar.text.unit.as_str()), ("Doing work", "rows"));
    assert_eq!((bar.numbers.position, bar.numbers.total, bar.numbers.closed), (7, Some(10), true));
}

#[test]
fn regions_are_used_again_after_their_release_only() {
    let mut worker = Worker::new();
    let region = |worker: &mut Worker, sequence| worker.run(sequence, &Act::Bars).region.unwrap();
    assert_eq!((region(&mut worker, 1), region(&mut worker, 2)), (0, 1));
    worker.send(&ToHost::Confirm { attempt: attempt(1) });
    assert_eq!(region(&mut worker, 3), 2);
    worker.send(&ToHost::ReleaseRegion { region: 0 });
    assert_eq!(region(&mut worker, 4), 0);
    assert_eq!(worker.ended[&attempt(4)].bars.len(), 1);
}

#[test]
fn a_repeated_start_is_ignored() {
    let mut worker = Worker::new();
    let payload = Payload::Inline(rmp_serde::to_vec_named(&Echo("once".into())).unwrap());
    let start = worker.start_attempt::<Echo>(attempt(1), payload);
    worker.send(&ToHost::Start(start.clone()));
    worker.send(&ToHost::Start(start.clone()));
    worker.end(attempt(1));
    worker.send(&ToHost::Start(start));
    worker.run(2, &Echo("other".into()));
    assert_eq!(worker.began.len(), 2);
}

// --- what jobs leave behind ---

#[test]
fn processes_of_a_job_end_with_it() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        let job = worker.start(1, &Wait { children: true, leave: true, ..Wait::default() });
        // They hold its stdout open, which delays nothing.
        assert_eq!(value::<String>(worker.end(job)), "left");
        for pid in worker.children(job) {
            until("the job's processes are gone", || !lives(pid));
        }
    }
}

#[test]
fn jobs_end_with_their_host() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        let job = worker.start_waiting(1, Wait { hook: true, stubborn: true, ..Wait::default() });
        while !worker.began.contains_key(&job) {
            worker.receive();
        }
        let pid = Pid::from_raw(worker.began[&job].cast_signed());
        assert!(lives(pid));
        worker.host.kill().unwrap();
        until("the job has died with its host", || !lives(pid));
    }
}

#[test]
fn a_host_ends_with_its_worker() {
    let mut worker = Worker::new();
    let job = worker.start_waiting(1, Wait { children: true, hook: true, stubborn: true, ..Wait::default() });
    let children = worker.children(job);
    assert!(children.iter().all(|&pid| lives(pid)));
    let (other, _) = NoticeSocket::pair().unwrap();
    worker.socket = other;
    assert_eq!(worker.host.wait().unwrap().code(), Some(0));
    for pid in children {
        until("the job's processes are gone", || !lives(pid));
    }
}

#[test]
fn a_host_outlives_the_terminal_and_refuses_other_versions() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("host");
    let mut host = start_host(NoticeListener::bind(&path).unwrap(), false);
    let pid = Pid::from_raw(host.id().cast_signed());
    let stranger = NoticeSocket::connect(&path).unwrap();
    stranger.send_notice(&ToHost::Hello { version: HOST_VERSION + 1 }, &[]).unwrap();
    assert!(stranger.receive().unwrap().is_none());
    for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGTERM] {
        kill(pid, signal).unwrap();
    }
    assert_eq!(nix::unistd::getsid(Some(pid)).unwrap(), pid);
    let socket = NoticeSocket::connect(&path).unwrap();
    socket.send_notice(&ToHost::Hello { version: HOST_VERSION }, &[]).unwrap();
    assert_eq!(socket.receive().unwrap().unwrap().descriptors.len(), 1);
    drop(socket);
    assert_eq!(host.wait().unwrap().code(), Some(0));
}

// --- stopping ---

#[test]
fn stopped_jobs_are_told_in_the_way_they_asked_for() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        let grace = Duration::from_secs(600);
        // A value that is there counts; an error after the order doesn't.
        let hook = worker.start_waiting(1, Wait { hook: true, ..Wait::default() });
        let look = worker.start_waiting(2, Wait { look: true, ..Wait::default() });
        let neither = worker.start_waiting(3, Wait::default());
        for attempt in [hook, look, neither] {
            worker.send(&ToHost::Stop { attempt, grace });
        }
        assert_eq!(value::<String>(worker.end(hook)), "hook");
        assert_eq!(worker.end(look).end, AttemptEnd::Stopped);
        assert_eq!(worker.end(neither).end, AttemptEnd::Stopped);
        // A repeat is answered by the same end.
        worker.ended.clear();
        worker.send(&ToHost::Stop { attempt: look, grace });
        assert_eq!(worker.end(look).end, AttemptEnd::Stopped);
    }
}

#[test]
fn jobs_that_are_stopped_as_they_start_do_not_go_on() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        for number in 1..=40 {
            let job = worker.start(number, &Wait::default());
            worker.send(&ToHost::Stop { attempt: job, grace: Duration::from_secs(600) });
        }
        for number in 1..=40 {
            assert_eq!(worker.end(attempt(number)).end, AttemptEnd::Stopped);
        }
    }
}

#[test]
fn stubborn_jobs_are_killed_after_the_grace_period() {
    let mut worker = Worker::new();
    let stubborn = Wait { hook: true, look: true, stubborn: true, children: true, ..Wait::default() };
    let job = worker.start_waiting(1, stubborn);
    let children = worker.children(job);
    let grace = Duration::from_millis(300);
    let start = Moment::now();
    worker.send(&ToHost::Stop { attempt: job, grace });
    assert_eq!(worker.end(job).end, AttemptEnd::Stopped);
    assert!(start.elapsed() >= grace);
    for pid in children {
        until("the job's processes are gone", || !lives(pid));
    }

    // A second, shorter grace period counts; a longer one doesn't.
    let job = worker.start_waiting(2, stubborn);
    for grace in [600, 900, 0] {
        worker.send(&ToHost::Stop { attempt: job, grace: Duration::from_secs(grace) });
    }
    assert_eq!(worker.end(job).end, AttemptEnd::Stopped);
}

#[test]
fn jobs_that_leave_their_group_are_stopped_all_the_same() {
    let mut worker = Worker::new();
    let wander = Wait { wander: true, children: true, ..Wait::default() };
    let job = worker.start_waiting(1, wander);
    worker.send(&ToHost::Stop { attempt: job, grace: Duration::from_secs(600) });
    assert_eq!(worker.end(job).end, AttemptEnd::Stopped);
    let job = worker.start_waiting(2, Wait { hook: true, stubborn: true, ..wander });
    worker.send(&ToHost::Stop { attempt: job, grace: Duration::ZERO });
    assert_eq!(worker.end(job).end, AttemptEnd::Stopped);
    for pid in [attempt(1), attempt(2)].into_iter().flat_map(|job| worker.children(job)) {
        until("the job's processes are gone", || !lives(pid));
    }
}

// --- many ---

#[test]
fn two_hundred_jobs_at_once() {
    let mut worker = Worker::new();
    let start = Moment::now();
    for number in 1..=200 {
        worker.start(number, &Echo(number.to_string()));
    }
    for number in 1..=200 {
        let ended = worker.end(attempt(number));
        assert_eq!(value::<(String, u32)>(ended).0, number.to_string());
    }
    eprintln!("200 jobs at once: {:?} a job", start.elapsed() / 200);
    assert_eq!(worker.began.len(), 200);
}

#[test]
fn cost_of_one_job_after_the_other() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        let directory = worker.path(attempt(1));
        let payload = Payload::Inline(rmp_serde::to_vec_named(&Echo("x".into())).unwrap());
        let mut start = worker.start_attempt::<Echo>(attempt(1), payload);
        let began = Moment::now();
        for number in 1..=300 {
            start.attempt = attempt(number);
            worker.send(&ToHost::Start(start.clone()));
            let ended = worker.end(attempt(number));
            let region = ended.region.unwrap();
            assert_eq!(ended.end, AttemptEnd::Finished);
            worker.send(&ToHost::Confirm { attempt: attempt(number) });
            worker.send(&ToHost::ReleaseRegion { region });
        }
        let each = began.elapsed() / 300;
        eprintln!("one job after the other, forked: {}: {each:?} a job", worker.forks);
        assert!(each < Duration::from_millis(100), "{each:?}");
        assert!(Path::new(&directory).exists());
    }
}
