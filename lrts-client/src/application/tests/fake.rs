//! A scheduler of a few lines, on the real transport: every job ends at once with its payload as its output.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use lrts_core::bundle::restore_chunk;
use lrts_core::clock::Moment;
use lrts_core::ids::{ApplicationId, JobId, SessionId};
use lrts_core::protocol::application::{FromApplication, JobReport, JobSet, RefusalCause, ToApplication};
use lrts_core::protocol::codec;
use lrts_core::transport::{
    ConnectionId, Message, Refusal, RefusalKind, Role, Server, ServerConfig, ServerEvent, ServerHandle,
    SocketDir,
};
use serde::Serialize;
use tokio::runtime::Runtime;

/// How long anything in these tests may take at most.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// What the scheduler knows; outlives its server, as a store does.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) application: Option<ApplicationId>,
    pub(super) session: Option<SessionId>,
    connection: Option<ConnectionId>,
    services: Vec<String>,
    /// The last sequence that was used up.
    watermark: BTreeMap<SessionId, u64>,
    pub(super) jobs: BTreeMap<JobId, Job>,
    pub(super) taken: Vec<JobSet>,
    pub(super) cancelled: Vec<JobSet>,
    pub(super) stopped: bool,
    pub(super) detached: bool,
    /// How it turns applications away, if it does.
    pub(super) refuses: Option<RefusalKind>,
    /// Jobs that never end.
    pub(super) silent: bool,
    /// Submits that are neither accepted nor refused.
    pub(super) hesitates: bool,
    /// What it lacks of the program, and what came.
    pub(super) wants_bundle: bool,
    pub(super) bundle: Vec<u8>,
    bundle_bytes: u64,
    messages: Vec<String>,
}

/// A job, which lasts no time.
pub(super) struct Job {
    service: String,
    payload: Bytes,
    digest: Option<u64>,
    taken: bool,
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
        let config = ServerConfig::insecure(self.address, self.sockets.path(), vec![role]);
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
            FromApplication::Attach(_) if self.refuses.is_some() => {
                let refusal = self.refuses.map(|kind| Refusal::new(kind, "too many of them"));
                handle.disconnect(from, refusal);
            }
            FromApplication::Attach(attach) => {
                if let Some(old) = self.connection.replace(from).filter(|&old| old != from) {
                    let refusal = Refusal::new(RefusalKind::Superseded, "a newer one has come");
                    handle.disconnect(old, Some(refusal));
                }
                self.application = Some(attach.application);
                self.session = Some(attach.session);
                self.services = attach.services;
                let accepted_through = self.watermark.get(&attach.session).copied().unwrap_or_default();
                say(&ToApplication::Attached { epoch: 1, accepted_through }, Bytes::new());
            }
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
            FromApplication::Submit { first, jobs, keys, .. } if !self.hesitates => {
                let ranges = jobs.iter().flat_map(|range| {
                    std::iter::repeat_n((range.service, range.payload_bytes), range.count as usize)
                });
                let lengths = ranges.clone().map(|(_, bytes)| u64::from(bytes));
                let payloads = codec::split_body(body, lengths).unwrap();
                for (index, ((service, _), payload)) in ranges.zip(payloads).enumerate() {
                    let sequence = first + index as u64;
                    let (job, digest) = match keys.iter().find(|job| job.index as usize == index) {
                        Some(keyed) => {
                            (JobId::keyed(self.application.unwrap(), &keyed.key), Some(keyed.digest))
                        }
                        None => (self.session.unwrap().job(sequence), None),
                    };
                    let service = self.services[usize::from(service)].clone();
                    let known =
                        self.jobs.entry(job).or_insert(Job { service, payload, digest, taken: false });
                    if known.digest != digest {
                        let (reason, cause) = ("another job has it".to_owned(), RefusalCause::KeyConflict);
                        say(&ToApplication::Refused { sequence, reason, cause }, Bytes::new());
                    }
                    self.watermark.insert(self.session.unwrap(), sequence);
                }
                self.accept(&say);
            }
            FromApplication::Want { jobs, .. } if !self.silent => {
                for job in each(&jobs) {
                    self.give(job, &say);
                }
            }
            FromApplication::Submit { .. } | FromApplication::Want { .. } | FromApplication::Credit(_) => {}
            FromApplication::Taken { jobs } => {
                for job in each(&jobs) {
                    if let Some(job) = self.jobs.get_mut(&job) {
                        job.taken = job.digest.is_none();
                    }
                }
                self.taken.push(jobs);
            }
            FromApplication::Cancel { jobs } => self.cancelled.push(jobs),
            FromApplication::List { request, job: only } => {
                let listed = self
                    .jobs
                    .iter()
                    .filter(|&(job, known)| !known.taken && only.is_none_or(|only| only == *job));
                for (&job, known) in listed {
                    let jobs = vec![(known.service.clone(), JobSet::one(job))];
                    say(&ToApplication::Listed { request, jobs, last: false }, Bytes::new());
                }
                say(&ToApplication::Listed { request, jobs: Vec::new(), last: true }, Bytes::new());
            }
            FromApplication::Detach => {
                self.detached = true;
                say(&ToApplication::Detached, Bytes::new());
            }
            FromApplication::Stop => {
                self.stopped = true;
                say(&ToApplication::Stopped, Bytes::new());
            }
        }
    }

    fn give(&self, job: JobId, say: &impl Fn(&ToApplication, Bytes)) {
        match self.jobs.get(&job) {
            Some(known) if !known.taken => {
                let report = JobReport {
                    failure: None,
                    attempt: 1,
                    attempts: 1,
                    worker: None,
                    queued: Duration::ZERO,
                    ran: Duration::ZERO,
                    bars: Vec::new(),
                };
                say(&ToApplication::Result { job, report }, known.payload.clone());
            }
            known => say(&ToApplication::Gone { job, taken: known.is_some() }, Bytes::new()),
        }
    }

    fn accept(&self, say: &impl Fn(&ToApplication, Bytes)) {
        let complete = !self.wants_bundle || self.bundle.len() as u64 == self.bundle_bytes;
        let through = self.session.and_then(|session| self.watermark.get(&session));
        if let Some(&through) = through.filter(|_| complete) {
            say(&ToApplication::Accepted { through }, Bytes::new());
        }
    }

    /// Loses everything.
    pub(super) fn forget(&mut self) {
        self.jobs.clear();
        self.watermark.clear();
    }

    pub(super) fn has_taken(&self, job: JobId) -> bool {
        self.taken.iter().any(|set| each(set).any(|taken| taken == job))
    }
}

fn each(set: &JobSet) -> impl Iterator<Item = JobId> {
    let sequences = set.ranges.iter().flat_map(|&(first, last)| first..=last);
    sequences.map(|sequence| set.session.job(sequence))
}
