//! Jobs' counters to watchers' screens, with a real progress subprocess and a real server, and either of them killed.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::Moment;
use lrts_core::ids::{ApplicationId, AttemptId, BarId, SessionId};
use lrts_core::mode::{self, Mode};
use lrts_core::progress::{Arena, BarWriter, Region, Reporter, ReporterConfig, ReporterEvent, Watched};
use lrts_core::protocol::codec;
use lrts_core::protocol::progress::{
    BarNumbers, BarText, FromReporter, FromWatcher, OwnedApplication, ToWatcher,
};
use lrts_core::transport::{
    Hello, Link, LinkConfig, LinkEvent, LinkReceiver, LinkSender, Message, Role, SocketDir,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(20);

/// What the progress subprocess runs: this test's program again, by way of a script.
#[test]
fn subprocess() {
    if mode::take() == Mode::Progress {
        lrts_core::progress::run_progress_mode();
    }
}

fn app() -> ApplicationId {
    "end-to-end".parse().unwrap()
}

/// As a scheduler with keys says it; a server without keys, as these tests have, doesn't look at the owner.
fn owned() -> OwnedApplication {
    OwnedApplication { owner: Some("ann".parse().unwrap()), application: app() }
}

fn attempt(job: u64) -> AttemptId {
    AttemptId { job: SessionId(3).job(job), attempt: 1 }
}

fn text(description: &str) -> BarText {
    BarText { description: description.to_owned(), leave: true, ..BarText::default() }
}

/// Processes started by a test end with it.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(port: u16) -> Self {
        let until = Moment::now() + DEADLINE;
        loop {
            let mut child = Command::new(env!("CARGO_BIN_EXE_lrts-progress-server"))
                .args(["-insecure", "-port", &port.to_string()])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            if let Some(address) = line.trim().strip_prefix("lrts progress-server ready on ") {
                return Self { child, address: address.parse().unwrap() };
            }
            child.wait().unwrap();
            assert!(Moment::now() < until, "the server doesn't start on port {port}");
        }
    }

    fn kill(mut self) -> u16 {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.address.port()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A worker: its reporter, an arena as its host has it, and what was released.
struct Worker {
    reporter: Reporter,
    arena: Arena,
    released: Vec<u32>,
    _directory: TempDir,
}

impl Worker {
    fn start(server: SocketAddr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let reporter = Reporter::start(ReporterConfig {
            executable: script(&directory),
            progress_address: server.to_string(),
            keys: None,
            host: "here".to_owned(),
        });
        let arena = Arena::create(8).unwrap();
        reporter.add_arena(1, arena.descriptor().try_clone_to_owned().unwrap());
        Self { reporter, arena, released: Vec::new(), _directory: directory }
    }

    /// Starts a job with one bar.
    fn run(&self, region: u32, description: &str) -> BarWriter {
        self.reporter.watch(Watched {
            arena: 1,
            region,
            attempt: attempt(region.into()),
            application: owned(),
            rtt_test: Duration::from_millis(100),
        });
        Region::map(self.arena.descriptor(), region).unwrap().start_bar(&text(description), Some(100))
    }

    async fn end(&mut self, region: u32) {
        self.reporter.unwatch(1, region, attempt(region.into()));
        self.wait_for_release(region).await;
    }

    async fn wait_for_release(&mut self, wanted: u32) {
        while !self.released.contains(&wanted) {
            let event = tokio::time::timeout(DEADLINE, self.reporter.next()).await;
            let ReporterEvent::Released { arena: 1, region } = event.expect("a region is released in time")
            else {
                panic!("another arena");
            };
            self.released.push(region);
        }
    }

    async fn pid_other_than(&self, other: Option<u32>) -> u32 {
        let until = Moment::now() + DEADLINE;
        loop {
            match self.reporter.pid() {
                Some(pid) if Some(pid) != other => return pid,
                _ => assert!(Moment::now() < until, "no new subprocess"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn script(directory: &TempDir) -> PathBuf {
    let path = directory.path().join("subprocess.sh");
    let program = std::env::current_exe().unwrap();
    let text = format!("#!/bin/sh\nexec '{}' --exact subprocess --nocapture\n", program.display());
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// An application that shows bars.
struct Screen {
    sender: LinkSender,
    receiver: LinkReceiver,
    bars: BTreeMap<BarId, (BarText, BarNumbers)>,
    messages: usize,
    _socket_dir: SocketDir,
}

impl Screen {
    fn open(server: SocketAddr) -> Self {
        let socket_dir = SocketDir::create().unwrap();
        let hello = Hello::new(Role::Client, "screen", "here");
        let config = LinkConfig::insecure(server.to_string(), hello, socket_dir.path());
        let (sender, receiver) = Link::open(config);
        Self { sender, receiver, bars: BTreeMap::new(), messages: 0, _socket_dir: socket_dir }
    }

    async fn next(&mut self) {
        match self.receiver.next().await {
            LinkEvent::Up { .. } => {
                let watch = codec::encode(&FromWatcher::Watch { application: app() });
                let _ = self.sender.send(Message::new(watch, Bytes::new())).await;
            }
            LinkEvent::Message(message) => {
                let ToWatcher::Bars { updates } = codec::decode(&message.head).unwrap();
                self.messages += 1;
                for update in updates {
                    let known = self.bars.get(&update.bar).map(|(text, _)| text.clone());
                    let text = update.text.or(known).expect("a new bar comes with its text");
                    self.bars.insert(update.bar, (text, update.numbers));
                }
            }
            LinkEvent::Down { .. } => {}
            LinkEvent::Refused(refusal) => panic!("refused: {}", refusal.message),
        }
    }

    /// Waits until a job's bar shows this.
    async fn shows(&mut self, job: u32, description: &str, position: u64, closed: bool) {
        let bar = BarId { attempt: attempt(job.into()), index: 0 };
        let found = tokio::time::timeout(DEADLINE, async {
            while !self.bars.get(&bar).is_some_and(|(text, numbers)| {
                (text.description.as_str(), numbers.position, numbers.closed)
                    == (description, position, closed)
            }) {
                self.next().await;
            }
        });
        assert!(found.await.is_ok(), "{description} {position} is not shown: {:?}", self.bars);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bars_are_shown_while_they_count_and_when_they_end() {
    let server = Server::start(0);
    let mut worker = Worker::start(server.address);
    let mut screen = Screen::open(server.address);
    let bar = worker.run(0, "load");
    screen.shows(0, "load", 0, false).await;
    bar.inc(40);
    screen.shows(0, "load", 40, false).await;
    bar.set_message("more than half");
    bar.inc(20);
    screen.shows(0, "load", 60, false).await;
    let mut late = Screen::open(server.address);
    late.shows(0, "load", 60, false).await;

    // The last count comes with the end; the job didn't close its bar, it died.
    bar.inc(5);
    std::mem::forget(bar);
    worker.end(0).await;
    worker.arena.clear(0).unwrap();
    screen.shows(0, "load", 65, true).await;
    late.shows(0, "load", 65, true).await;
    let bar = BarId { attempt: attempt(0), index: 0 };
    assert_eq!(late.bars[&bar].0.message, "more than half");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counting_fast_sends_little() {
    let server = Server::start(0);
    let worker = Worker::start(server.address);
    let mut screen = Screen::open(server.address);
    let bar = worker.run(0, "fast");
    screen.shows(0, "fast", 0, false).await;
    let before = screen.messages;
    let start = Moment::now();
    let mut count = 0;
    while start.elapsed() < Duration::from_millis(500) {
        bar.inc(1);
        count += 1;
    }
    screen.shows(0, "fast", count, false).await;
    let messages = screen.messages - before;
    assert!((2..=40).contains(&messages), "{messages} messages for {count} increments in half a second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_subprocess_is_replaced_and_tells_all_again() {
    let server = Server::start(0);
    let mut worker = Worker::start(server.address);
    let mut screen = Screen::open(server.address);
    let first = worker.run(0, "first");
    let second = worker.run(1, "second");
    screen.shows(0, "first", 0, false).await;
    screen.shows(1, "second", 0, false).await;

    let pid = worker.pid_other_than(None).await;
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    first.inc(7);
    // Ends while there is no subprocess, or under the new one: its region comes back in any case.
    worker.end(1).await;
    screen.shows(0, "first", 7, false).await;
    worker.pid_other_than(Some(pid)).await;
    drop(second);
    worker.end(0).await;
    screen.shows(0, "first", 7, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_subprocess_is_killed_and_holds_no_region() {
    let server = Server::start(0);
    let mut worker = Worker::start(server.address);
    let mut screen = Screen::open(server.address);
    let bar = worker.run(0, "load");
    screen.shows(0, "load", 0, false).await;
    let pid = worker.pid_other_than(None).await;
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGSTOP).unwrap();
    worker.end(0).await;
    worker.pid_other_than(Some(pid)).await;
    let _other = worker.run(1, "other");
    screen.shows(1, "other", 0, false).await;
    drop(bar);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_comes_back_to_the_truth() {
    let server = Server::start(0);
    let mut worker = Worker::start(server.address);
    let mut screen = Screen::open(server.address);
    let first = worker.run(0, "first");
    let _second = worker.run(1, "second");
    screen.shows(0, "first", 0, false).await;
    screen.shows(1, "second", 0, false).await;

    let port = server.kill();
    first.inc(50);
    // Nobody waits for a server that is away.
    worker.end(1).await;
    let third = worker.run(2, "third");
    third.inc(3);
    let server = Server::start(port);
    screen.shows(0, "first", 50, false).await;
    screen.shows(2, "third", 3, false).await;
    worker.end(0).await;
    screen.shows(0, "first", 50, true).await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_batch_goes_out_before_a_worker_ends() {
    let server = Server::start(0);
    let mut worker = Worker::start(server.address);
    let mut screen = Screen::open(server.address);
    let bar = worker.run(0, "load");
    screen.shows(0, "load", 0, false).await;
    bar.inc(99);
    worker.end(0).await;
    worker.reporter.shutdown().await;
    screen.shows(0, "load", 99, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_message_ends_a_connection_and_not_the_server() {
    let server = Server::start(0);
    let socket_dir = SocketDir::create().unwrap();
    let long = BarText { description: "x".repeat(10_000), ..BarText::default() };
    let update = lrts_core::protocol::progress::BarUpdate {
        bar: BarId { attempt: attempt(0), index: 0 },
        text: Some(long),
        numbers: BarNumbers::default(),
    };
    let batch = FromReporter::Batch { applications: vec![(owned(), vec![update])] };
    let bad = [
        (Role::Worker, codec::encode(&batch)),
        (Role::Worker, vec![0xc1].into()),
        (Role::Client, vec![0xdf; 64].into()),
    ];
    for (role, head) in bad {
        let config = LinkConfig::insecure(
            server.address.to_string(),
            Hello::new(role, "bad", "here"),
            socket_dir.path(),
        );
        let (sender, mut receiver) = Link::open(config);
        let ended = tokio::time::timeout(DEADLINE, async {
            loop {
                match receiver.next().await {
                    LinkEvent::Up { .. } => {
                        sender.try_send(Message::new(head.clone(), Bytes::new())).unwrap()
                    }
                    LinkEvent::Down { .. } | LinkEvent::Refused(_) => break,
                    LinkEvent::Message(_) => panic!("an answer to nonsense"),
                }
            }
        });
        ended.await.expect("the server hangs up");
    }
    let worker = Worker::start(server.address);
    let _bar = worker.run(0, "still here");
    Screen::open(server.address).shows(0, "still here", 0, false).await;
}

/// Processor time of a process so far, in ticks of 10 ms, and its private memory, in KiB.
fn cost(pid: u32) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    (ticks, memory.trim().trim_end_matches(" kB").parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn what_a_subprocess_and_a_server_cost() {
    let span = Duration::from_secs(10);
    let server = Server::start(0);
    let worker = Worker::start(server.address);
    let mut screen = Screen::open(server.address);
    let pids = [worker.pid_other_than(None).await, server.child.id()];
    for (name, bars) in [("idle", 0), ("8 bars that count", 8)] {
        let bars: Vec<_> = (0..bars).map(|region| worker.run(region, "load")).collect();
        let before = pids.map(cost);
        let start = Moment::now();
        while start.elapsed() < span {
            bars.iter().for_each(|bar| bar.inc(1));
            let _ = tokio::time::timeout(Duration::from_millis(5), screen.next()).await;
        }
        for ((who, pid), before) in ["subprocess", "server"].into_iter().zip(pids).zip(before) {
            let (ticks, memory) = cost(pid);
            let share = (ticks - before.0) as f64 / span.as_secs_f64();
            println!("{name}: {who} {share:.1}% of a core, {memory} KiB private");
        }
    }
}
