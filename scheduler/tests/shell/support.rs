//! A scheduler, and peers that the tests play.

use std::time::Duration;

use bytes::Bytes;
use lrts_core::ids::SessionId;
use lrts_core::protocol::application::{Attach, Credit, FromApplication, JobRange, ToApplication};
use lrts_core::protocol::codec::{self, Head};
use lrts_core::protocol::worker::{FromWorker, Register};
use lrts_core::shutdown::Shutdown;
use lrts_core::spec::{BundleRef, JobOptions, OnDisconnect, Platform};
use lrts_core::transport::{
    Hello, Link, LinkConfig, LinkEvent, LinkReceiver, LinkSender, Message, Role, SocketDir,
};
use lrts_core::worker_secret::WorkerSecret;
use lrts_scheduler::{Config, RunError};
use serde::Serialize;
use tokio::task::JoinHandle;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const SESSION: SessionId = SessionId(5);

/// A running scheduler.
pub(super) struct Scheduler {
    pub(super) address: String,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), RunError>>,
    sockets: SocketDir,
}

impl Scheduler {
    pub(super) async fn start(config: Config) -> Self {
        let shutdown = Shutdown::new();
        let (ready, address) = tokio::sync::oneshot::channel();
        let mut config = config;
        config.address.set_port(0);
        let ended = shutdown.clone();
        let task = tokio::spawn(lrts_scheduler::run(config, |address| ready.send(address).unwrap(), ended));
        let address = address.await.expect("the scheduler starts").to_string();
        Self { address, shutdown, task, sockets: SocketDir::create().unwrap() }
    }

    pub(super) async fn connect(&self, role: Role) -> Peer {
        let hello = Hello::new(role, "test", "here");
        let (sender, receiver) = Link::open(LinkConfig::insecure(&self.address, hello, self.sockets.path()));
        let mut peer = Peer { sender, receiver };
        assert!(matches!(peer.event().await, LinkEvent::Up { .. }));
        peer
    }

    pub(super) async fn end(self) {
        self.shutdown.request();
        tokio::time::timeout(PATIENCE, self.task).await.expect("it ends in time").unwrap().unwrap();
    }
}

/// An application, a worker or a command, played by the test.
pub(super) struct Peer {
    pub(super) sender: LinkSender,
    pub(super) receiver: LinkReceiver,
}

impl Peer {
    pub(super) async fn event(&mut self) -> LinkEvent {
        tokio::time::timeout(PATIENCE, self.receiver.next()).await.expect("something happens in time")
    }

    pub(super) async fn say(&self, head: &impl Serialize, body: impl Into<Bytes>) {
        self.sender.send(Message::new(codec::encode(head), body)).await.unwrap();
    }

    /// The next message that isn't about totals.
    pub(super) async fn hear<T: Head + std::fmt::Debug>(&mut self) -> (T, Bytes) {
        loop {
            match self.event().await {
                LinkEvent::Message(message) => {
                    if let Ok(ToApplication::Totals(_)) = codec::decode(&message.head) {
                        continue;
                    }
                    return (codec::decode(&message.head).unwrap(), message.body);
                }
                other => panic!("{other:?} where a message was due"),
            }
        }
    }
}

pub(super) fn platform() -> Platform {
    Platform { target: "x86_64-linux-gnu".into(), glibc: None }
}

pub(super) fn attach(bundle: BundleRef) -> FromApplication {
    FromApplication::Attach(Attach {
        application: "test".parse().unwrap(),
        session: SESSION,
        bundle,
        services: vec!["double".into()],
        on_disconnect: OnDisconnect::Keep,
        progress_rtt_test: Duration::from_secs(10),
        credit: Credit { results: 10, bytes: 1_000 },
    })
}

pub(super) fn register() -> FromWorker {
    let secret = WorkerSecret::from_bytes([1; 32]);
    FromWorker::Register(Register {
        worker: secret.worker(),
        secret,
        host: "here".into(),
        pid: 1,
        instance: 1,
        slots: 2,
        platform: platform(),
        boot_id: "boot".into(),
        installed: Vec::new(),
        ships: true,
        attempts: Vec::new(),
        store: None,
    })
}

pub(super) fn submit(payloads: &[&str]) -> (FromApplication, Bytes) {
    let mut jobs = Vec::new();
    payloads.iter().for_each(|payload| JobRange::push(&mut jobs, 0, 0, payload.len() as u32));
    let options = vec![JobOptions::new().label("x")];
    let head = FromApplication::Submit { first: 1, options, jobs, keys: Vec::new() };
    (head, payloads.concat().into())
}
