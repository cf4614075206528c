//! A scheduler that does only what a test tells it to, and a worker that runs against it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::ids::{AttemptId, BundleDigest, SessionId, WorkerId};
use lrts_core::protocol::codec;
use lrts_core::protocol::worker::{Ended, FromWorker, Register, Start, ToWorker};
use lrts_core::shutdown::Shutdown;
use lrts_core::spec::{BundleRef, JobOptions};
use lrts_core::transport::{ConnectionId, Message, Role, Server, ServerConfig, ServerEvent, SocketDir};
use lrts_worker::{Config, RunError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// The store that the scheduler has, unless a test wants another.
pub(crate) const STORE: u64 = 0x5709e;

/// The lease that it gives.
pub(crate) const LOST_AFTER: Duration = Duration::from_secs(20);

/// The name under which the test program is installed.
pub(crate) const PROGRAM: &str = "test-program";

pub(crate) struct Scheduler {
    server: Server,
    connection: Option<ConnectionId>,
    _sockets: SocketDir,
}

impl Scheduler {
    pub(crate) async fn start() -> Self {
        Self::start_for(Role::Worker).await
    }

    /// One that takes peers of this role only.
    pub(crate) async fn start_for(role: Role) -> Self {
        let sockets = SocketDir::create().unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = Server::bind(ServerConfig::insecure(address, sockets.path(), vec![role])).await.unwrap();
        Self { server, connection: None, _sockets: sockets }
    }

    pub(crate) fn port(&self) -> u16 {
        self.server.local_address().port()
    }

    pub(crate) fn send(&self, message: &ToWorker, body: impl Into<Bytes>) {
        let connection = self.connection.expect("a worker is connected");
        self.server.handle().send(connection, Message::new(codec::encode(message), body)).unwrap();
    }

    pub(crate) fn disconnect(&mut self) {
        let connection = self.connection.take().expect("a worker is connected");
        self.server.handle().disconnect(connection, None);
    }

    /// The next message that isn't a heartbeat.
    pub(crate) async fn next(&mut self) -> (FromWorker, Bytes) {
        loop {
            let message = self.next_or_heartbeat().await;
            if !matches!(message.0, FromWorker::Heartbeat { .. }) {
                return message;
            }
        }
    }

    pub(crate) async fn next_or_heartbeat(&mut self) -> (FromWorker, Bytes) {
        loop {
            let event = tokio::time::timeout(PATIENCE, self.server.next()).await;
            match event.expect("the worker says something in time") {
                ServerEvent::Joined { connection, .. } => self.connection = Some(connection),
                ServerEvent::Message { connection, message } if self.connection == Some(connection) => {
                    return (codec::decode(&message.head).unwrap(), message.body);
                }
                ServerEvent::Message { .. } => {}
                ServerEvent::Left { connection, .. } => {
                    self.connection = self.connection.filter(|&current| current != connection);
                }
            }
        }
    }

    /// Waits for a registration and answers it.
    pub(crate) async fn register(&mut self, closed: Vec<AttemptId>) -> Register {
        let register = self.next_registration().await;
        self.answer(STORE, closed);
        register
    }

    /// The next message must be a registration.
    pub(crate) async fn next_registration(&mut self) -> Register {
        let (message, _) = self.next().await;
        let FromWorker::Register(register) = message else { panic!("{message:?} before Register") };
        register
    }

    /// Answers a registration as a scheduler with this store does.
    pub(crate) fn answer(&self, store: u64, closed: Vec<AttemptId>) {
        let heartbeat = Duration::from_millis(200);
        let registered = ToWorker::Registered { store, epoch: 1, heartbeat, lost_after: LOST_AFTER, closed };
        self.send(&registered, Bytes::new());
    }

    pub(crate) fn order(&self, sequence: u64, bundle: BundleRef, service: &str, payload: &impl Serialize) {
        let options = JobOptions::new().env("GREETING", "hello");
        self.order_with(sequence, bundle, service, payload, options, None);
    }

    pub(crate) fn order_with(
        &self,
        sequence: u64,
        bundle: BundleRef,
        service: &str,
        payload: &impl Serialize,
        options: JobOptions,
        checkpoint: Option<&[u8]>,
    ) {
        let start = Start {
            attempt: attempt(sequence),
            execution: 1,
            application: "test".parse().unwrap(),
            owner: Some("ann".parse().unwrap()),
            bundle,
            service: service.to_owned(),
            options,
            checkpoint_bytes: checkpoint.map(|checkpoint| checkpoint.len() as u32),
            progress_rtt_test: Duration::from_secs(10),
        };
        let payload = rmp_serde::to_vec_named(payload).unwrap();
        self.send(&ToWorker::Start(start), [&payload, checkpoint.unwrap_or_default()].concat());
    }

    pub(crate) fn confirm(&self, sequence: u64) {
        self.send(&ToWorker::Confirm { attempts: vec![attempt(sequence)] }, Bytes::new());
    }

    /// The next message must be that this attempt has begun. Returns its process.
    pub(crate) async fn began(&mut self, sequence: u64) -> u32 {
        let (message, _) = self.next().await;
        let FromWorker::Began { attempt: begun, pid } = message else {
            panic!("{message:?} instead of Began")
        };
        assert_eq!(begun, attempt(sequence));
        pid
    }

    /// The next message must be this attempt's end. Returns it with output, stdout and stderr.
    pub(crate) async fn ended(&mut self, sequence: u64) -> (Ended, [Bytes; 3]) {
        let (message, body) = self.next().await;
        let FromWorker::Ended(ended) = message else { panic!("{message:?} instead of Ended") };
        assert_eq!(ended.attempt, attempt(sequence));
        let (output, stdout, stderr) = ended.body_bytes;
        let parts = codec::split_body(&body, [output, stdout.into(), stderr.into()]).unwrap();
        (ended, parts.try_into().unwrap())
    }
}

pub(crate) fn attempt(sequence: u64) -> AttemptId {
    AttemptId { job: SessionId(0xabc).job(sequence), attempt: 1 }
}

pub(crate) fn installed() -> BundleRef {
    BundleRef::Installed(PROGRAM.to_owned())
}

pub(crate) fn shipped(digest: BundleDigest) -> BundleRef {
    BundleRef::Shipped(digest)
}

pub(crate) fn decode<T: DeserializeOwned>(output: &[u8]) -> T {
    rmp_serde::from_slice(output).unwrap()
}

/// A worker in this process, which has its state in a directory of its own.
pub(crate) struct Worker {
    pub(crate) shutdown: Shutdown,
    pub(crate) state: PathBuf,
    pub(crate) ready: oneshot::Receiver<WorkerId>,
    task: JoinHandle<Result<(), RunError>>,
    directory: tempfile::TempDir,
}

impl Worker {
    /// One with this many slots. Its hosts are started of this test program, and end with it.
    pub(crate) fn start(scheduler: &Scheduler, slots: u32) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), scheduler, slots, Duration::ZERO)
    }

    /// One that finds the state of another, and whose hosts outlive it for this long.
    pub(crate) fn start_in(
        directory: tempfile::TempDir,
        scheduler: &Scheduler,
        slots: u32,
        orphan_grace: Duration,
    ) -> Self {
        let state = directory.path().join("state");
        let program = |name: &str, path: PathBuf| (name.to_owned(), path);
        let config = Config {
            scheduler_address: scheduler.server.local_address().to_string(),
            progress_address: "127.0.0.1:9".to_owned(),
            slots,
            state_dir: Some(state.clone()),
            grace: Duration::from_secs(2),
            installed: [
                program(PROGRAM, std::env::current_exe().unwrap()),
                program("no-host", PathBuf::from("/bin/false")),
            ]
            .into(),
            orphan_grace,
            progress_executable: PathBuf::from(env!("CARGO_BIN_EXE_lrts-worker")),
            ..Config::default()
        };
        let shutdown = Shutdown::new();
        let (sender, ready) = oneshot::channel();
        let asked = shutdown.clone();
        let say = move |worker| sender.send(worker).unwrap();
        let task = tokio::spawn(async move { lrts_worker::run(config, say, asked).await });
        Self { shutdown, state, ready, task, directory }
    }

    pub(crate) async fn end(self) -> Result<(), RunError> {
        self.end_and_leave().await.1
    }

    /// Waits for its end, and returns the directory that the next one can be started in.
    pub(crate) async fn end_and_leave(self) -> (tempfile::TempDir, Result<(), RunError>) {
        let ended = tokio::time::timeout(PATIENCE, self.task).await.expect("the worker ends in time");
        (self.directory, ended.unwrap())
    }

    /// Names in one of the state directory's directories.
    pub(crate) fn list(&self, directory: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.state.join(directory)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let poll = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, poll).await.is_ok(), "not in time: {what}");
}

/// Whether a process is there and isn't a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| !stat.starts_with('Z'))
}

/// A process's parent.
pub(crate) fn parent_of(pid: u32) -> u32 {
    stat(pid).unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

/// State, parent and so on, as in proc(5).
pub(crate) fn stat(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit(") ").next()?.to_owned())
}
