//! A scheduler of a few lines, on the real transport: every job ends at once with its payload as its output.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use lrts_core::bundle::restore_chunk;
use lrts_core::clock::Moment;
use lrts_core::ids::SessionId;
use lrts_core::protocol::application::{FromApplication, JobReport, ToApplication};
use lrts_core::protocol::codec;
use lrts_core::transport::{
    ConnectionId, Message, Role, Server, ServerConfig, ServerEvent, ServerHandle, SocketDir,
};
use serde::Serialize;
use tokio::runtime::Runtime;

/// How long anything in these tests may take at most.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// What the scheduler knows; outlives its server, as a store does.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) session: Option<SessionId>,
    pub(super) payloads: BTreeMap<u64, Bytes>,
    pub(super) taken: Vec<(u64, u64)>,
    pub(super) cancelled: Vec<(u64, u64)>,
    pub(super) stopped: bool,
    /// Jobs that never end.
    pub(super) silent: bool,
    /// What it lacks of the program, and what came.
    pub(super) wants_bundle: bool,
    pub(super) bundle: Vec<u8>,
    bundle_bytes: u64,
    messages: Vec<String>,
}

pub(super) struct FakeScheduler {
    pub(super) memory: Arc<Mutex<Memory>>,
    pub(super) address: SocketAddr,
    runtime: Option<Runtime>,
    sockets: SocketDir,
}

impl FakeScheduler {
    pub(super) fn start() -> Self {
        Self::start_for(Role::Client)
    }

    /// One that takes peers of this role only.
    pub(super) fn start_for(role: Role) -> Self {
        let mut fake = Self {
            memory: Arc::default(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            runtime: None,
            sockets: SocketDir::create().unwrap(),
        };
        fake.serve(role);
        fake
    }

    fn serve(&mut self, role: Role) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let config = ServerConfig::new(self.address, self.sockets.path(), vec![role]);
        let mut server = runtime.block_on(Server::bind(config)).unwrap();
        self.address = server.local_address();
        let memory = Arc::clone(&self.memory);
        runtime.spawn(async move {
            let handle = server.handle();
            loop {
                if let ServerEvent::Message { connection, message } = server.next().await {
                    let head = codec::decode(&message.head).unwrap();
                    memory.lock().unwrap().hear(&handle, connection, head, &message.body);
                }
            }
        });
        self.runtime = Some(runtime);
    }

    /// Dies without a word.
    pub(super) fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_timeout(Duration::from_secs(1));
    }

    /// Comes back on the same port with what it remembers.
    pub(super) fn restart(&mut self) {
        self.serve(Role::Client);
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap()
    }

    /// Waits until the memory is as wanted.
    pub(super) fn eventually(&self, what: &str, wanted: impl Fn(&Memory) -> bool) {
        let deadline = Moment::now() + SOON;
        while !wanted(&self.memory()) {
            assert!(Moment::now() < deadline, "not {what} within {SOON:?}: {:?}", self.memory().messages);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for FakeScheduler {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// Sends one message; a peer that is gone doesn't hear it.
pub(super) fn send<T: Serialize>(handle: &ServerHandle, to: ConnectionId, head: &T, body: Bytes) {
    let _ = handle.send(to, Message::new(codec::encode(head), body));
}

impl Memory {
    fn hear(&mut self, handle: &ServerHandle, from: ConnectionId, message: FromApplication, body: &Bytes) {
        let say = |message: &ToApplication, body: Bytes| send(handle, from, message, body);
        self.messages.push(format!("{message:?}").chars().take(120).collect());
        match message {
            FromApplication::Attach(attach) => {
                self.session = Some(attach.session);
                let accepted_through = self.payloads.keys().next_back().copied().unwrap_or_default();
                say(&ToApplication::Attached { epoch: 1, accepted_through }, Bytes::new());
            }
            FromApplication::List { .. } | FromApplication::Detach => {}
            FromApplication::OfferBundle { digest, bytes, .. } => {
                self.bundle_bytes = bytes;
                let offset = self.bundle.len() as u64;
                match self.wants_bundle && offset < bytes {
                    true => say(&ToApplication::BundleWanted { digest, offset }, Bytes::new()),
                    false => say(&ToApplication::BundleComplete { digest }, Bytes::new()),
                }
            }
            FromApplication::BundleChunk { digest, offset, bytes } => {
                assert_eq!(offset, self.bundle.len() as u64, "pieces come in order");
                self.bundle.extend(restore_chunk(body, bytes).unwrap());
                if self.bundle.len() as u64 == self.bundle_bytes {
                    say(&ToApplication::BundleComplete { digest }, Bytes::new());
                    self.accept(&say);
                }
            }
            FromApplication::Submit { first, jobs, .. } => {
                let lengths = jobs.iter().flat_map(|range| {
                    std::iter::repeat_n(u64::from(range.payload_bytes), range.count as usize)
                });
                let payloads = codec::split_body(body, lengths).unwrap();
                self.payloads.extend((first..).zip(payloads));
                self.accept(&say);
            }
            FromApplication::Want { jobs, .. } if !self.silent => {
                for sequence in jobs.ranges.iter().flat_map(|&(first, last)| first..=last) {
                    let report = JobReport {
                        failure: None,
                        attempt: 1,
                        attempts: 1,
                        worker: None,
                        queued: Duration::ZERO,
                        ran: Duration::ZERO,
                        bars: Vec::new(),
                    };
                    let body = self.payloads[&sequence].clone();
                    say(&ToApplication::Result { job: jobs.session.job(sequence), report }, body);
                }
            }
            FromApplication::Want { .. } | FromApplication::Credit(_) => {}
            FromApplication::Taken { jobs } => self.taken.extend(jobs.ranges),
            FromApplication::Cancel { jobs } => self.cancelled.extend(jobs.ranges),
            FromApplication::Stop => {
                self.stopped = true;
                say(&ToApplication::Stopped, Bytes::new());
            }
        }
    }

    fn accept(&self, say: &impl Fn(&ToApplication, Bytes)) {
        let complete = !self.wants_bundle || self.bundle.len() as u64 == self.bundle_bytes;
        if let Some((&through, _)) = self.payloads.last_key_value().filter(|_| complete) {
            say(&ToApplication::Accepted { through }, Bytes::new());
        }
    }
}
