//! A job host that says only what a test tells it to, as an earlier run of the worker has left it.

use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;
use lrts_core::notices::{AsyncNoticeSocket, NoticeListener, Packet};
use lrts_core::progress::{Arena, REGIONS};
use lrts_core::protocol::host::{FromHost, HeldRun, Output, ToHost};
use lrts_core::protocol::worker::AttemptEnd;
use lrts_core::protocol::{HOST_VERSION, codec};
use lrts_core::spec::BundleRef;
use serde::Serialize;

use crate::support::{STORE, attempt, installed, stat};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// As the worker writes it down. These names are on the disks of users.
#[derive(Serialize)]
struct HostRecord {
    bundle: BundleRef,
    process: Process,
    boot_id: String,
}

#[derive(Serialize)]
struct Process {
    pid: u32,
    started: u64,
}

/// As the worker gives them to its hosts.
#[derive(Serialize)]
pub(crate) struct Notes {
    application: &'static str,
    owner: Option<&'static str>,
    service: &'static str,
    slots: u32,
    exclusive: bool,
    store: u64,
    progress_rtt_test: Duration,
}

impl Notes {
    pub(crate) fn new() -> Self {
        Self {
            application: "test",
            owner: Some("ann"),
            service: "wait",
            slots: 1,
            exclusive: false,
            store: STORE,
            progress_rtt_test: Duration::from_secs(10),
        }
    }

    pub(crate) fn exclusive(self) -> Self {
        Self { exclusive: true, ..self }
    }

    pub(crate) fn store(self, store: u64) -> Self {
        Self { store, ..self }
    }

    pub(crate) fn slots(self, slots: u32) -> Self {
        Self { slots, ..self }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        codec::encode(self).to_vec()
    }
}

/// The host. Its process does nothing, its socket is the test's.
pub(crate) struct FakeHost {
    process: Child,
    listener: NoticeListener,
    arena: Arena,
    socket: Option<AsyncNoticeSocket>,
}

impl FakeHost {
    /// Leaves a host of the installed program in a state directory.
    pub(crate) fn leave(state: &Path, number: u32) -> Self {
        let hosts = state.join("hosts");
        std::fs::create_dir_all(&hosts).unwrap();
        std::fs::write(state.join("store"), format!("{STORE:016x}\n")).unwrap();
        let listener = NoticeListener::bind(&hosts.join(format!("{number}.sock"))).unwrap();
        let process = Command::new("sleep")
            .arg("600")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let started = stat(process.id()).unwrap().split(' ').nth(19).unwrap().parse().unwrap();
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let record = HostRecord {
            bundle: installed(),
            process: Process { pid: process.id(), started },
            boot_id: boot_id.trim().to_owned(),
        };
        std::fs::write(hosts.join(format!("{number}.host")), codec::encode(&record)).unwrap();
        Self { process, listener, arena: Arena::create(REGIONS).unwrap(), socket: None }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Dies as by a signal: process and connection are gone.
    pub(crate) fn die(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.socket = None;
    }

    /// Takes a connection and the Hello that comes over it. Returns the worker's version.
    pub(crate) async fn accept(&mut self) -> u16 {
        let socket = tokio::task::block_in_place(|| self.listener.accept()).unwrap();
        self.socket = Some(AsyncNoticeSocket::new(socket).unwrap());
        let notice = self.next().await.0;
        let ToHost::Hello { version, .. } = notice else { panic!("{notice:?} instead of Hello") };
        version
    }

    pub(crate) fn hang_up(&mut self) {
        self.socket = None;
    }

    /// Takes a connection as a host of this version's lrts does that has these attempts.
    pub(crate) async fn meet(&mut self, held: &[(u64, Notes, Option<HeldRun>)]) {
        assert_eq!(self.accept().await, HOST_VERSION);
        self.welcome(HOST_VERSION).await;
        for (sequence, notes, run) in held {
            let (attempt, notes, run) = (attempt(*sequence), notes.encode(), *run);
            self.say(&FromHost::Held { attempt, notes, run }).await;
        }
        self.say(&FromHost::AllHeld).await;
    }

    pub(crate) async fn welcome(&self, version: u16) {
        let services = vec!["wait".to_owned()];
        let welcome = FromHost::Welcome { version, pid: self.pid(), services, forks: true };
        self.say_with(&welcome, &[self.arena.descriptor()]).await;
    }

    pub(crate) async fn say(&self, notice: &FromHost) {
        self.say_with(notice, &[]).await;
    }

    pub(crate) async fn say_with(&self, notice: &FromHost, descriptors: &[BorrowedFd<'_>]) {
        self.socket.as_ref().expect("a worker is connected").send(notice, descriptors).await.unwrap();
    }

    /// As when a descriptor is lost on its way, or another version speaks.
    pub(crate) async fn say_nonsense(&self) {
        self.socket.as_ref().expect("a worker is connected").send(&"nonsense", &[]).await.unwrap();
    }

    /// The worker's next notice.
    pub(crate) async fn next(&mut self) -> (ToHost, Packet) {
        let socket = self.socket.as_ref().expect("a worker is connected");
        let packet = tokio::time::timeout(PATIENCE, socket.receive()).await.expect("a notice comes in time");
        let packet = packet.unwrap().expect("the worker stays");
        (packet.decode().unwrap(), packet)
    }

    /// The worker's next notice that isn't a question for a checkpoint.
    pub(crate) async fn next_order(&mut self) -> ToHost {
        loop {
            let notice = self.next().await.0;
            if !matches!(notice, ToHost::ReadCheckpoint { .. }) {
                return notice;
            }
        }
    }

    /// When leases reach to, as the worker says next.
    pub(crate) async fn renewed(&mut self) -> Moment {
        let notice = self.next().await.0;
        let ToHost::RenewLeases { until } = notice else { panic!("{notice:?} instead of RenewLeases") };
        Moment::from_nanos(until)
    }
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        let _ended_already = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A process that has run for a while in the first region.
pub(crate) fn running(pid: u32) -> Option<HeldRun> {
    Some(HeldRun { pid, region: 0, ran: Duration::from_secs(5), stopping: false })
}

/// How an attempt ends that nobody looks at any closer.
pub(crate) fn finished(attempt: AttemptId) -> FromHost {
    FromHost::Ended {
        attempt,
        end: AttemptEnd::Finished,
        output: Output::Inline(b"result".to_vec()),
        ran: Duration::from_secs(5),
        peak_memory_bytes: 1,
        region: None,
    }
}
