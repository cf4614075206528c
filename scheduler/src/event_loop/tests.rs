//! A scheduler whose store does what the test wishes, over real connections.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use lrts_core::ids::{JobId, SessionId};
use lrts_core::limits::PEER_QUEUE_MESSAGES;
use lrts_core::protocol::application::{Attach, Credit, FromApplication, JobRange, JobSet, ToApplication};
use lrts_core::protocol::codec::Head;
use lrts_core::protocol::command::ToCommand;
use lrts_core::protocol::worker::{AttemptEnd, Ended, FromWorker, Register, ToWorker};
use lrts_core::spec::{BundleRef, JobOptions, OnDisconnect, Platform};
use lrts_core::transport::{
    Hello, Link, LinkConfig, LinkEvent, LinkReceiver, LinkSender, ServerConfig, SocketDir,
};
use lrts_core::worker_secret::WorkerSecret;
use serde::Serialize;
use tokio::task::JoinHandle;

use super::*;
use crate::engine::{Bounds, Settings};
use crate::record::{Loaded, Record};
use crate::store::{Done, Entry, Fetched, MemoryStore, ReadError, ResultBodies, StartBodies, StoreError};

const PATIENCE: Duration = Duration::from_secs(20);
const SESSION: SessionId = SessionId(5);

fn secret() -> WorkerSecret {
    WorkerSecret::from_bytes([1; 32])
}

/// A disk as the test wishes.
struct Disk {
    memory: MemoryStore,
    health: Health,
    /// Whether commits wait.
    hangs: bool,
    waiting: Vec<(Vec<Entry>, Done)>,
    /// Jobs that were given up.
    forgotten: Vec<JobId>,
    /// Whether reads fail, and how many have.
    unreadable: bool,
    failed_reads: u32,
}

impl Disk {
    fn read<T>(&mut self, read: impl FnOnce(&MemoryStore) -> Fetched<T>) -> Fetched<T> {
        if !self.unreadable {
            return read(&self.memory);
        }
        self.failed_reads += 1;
        let (sender, read) = tokio::sync::oneshot::channel();
        let _ = sender.send(Err(ReadError::Io(io::Error::other("too many open files"))));
        Fetched::Later(read)
    }

    /// Commits what waits, and waits no more.
    fn release(&mut self) {
        self.hangs = false;
        for (batch, done) in std::mem::take(&mut self.waiting) {
            self.memory.commit(1, batch, done);
        }
    }
}

#[derive(Clone)]
struct TestStore(Arc<Mutex<Disk>>);

impl TestStore {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Disk) -> bool) {
        let start = Moment::now();
        while !holds(&self.disk()) {
            assert!(start.elapsed() < PATIENCE, "still not: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Store for TestStore {
    fn epoch(&self) -> u64 {
        1
    }

    fn identity(&self) -> u64 {
        self.disk().memory.identity()
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.disk().memory.load()
    }

    fn commit(&mut self, epoch: u64, batch: Vec<Entry>, done: Done) {
        let mut disk = self.disk();
        for entry in &batch {
            if let Record::JobForgotten { job, .. } = &entry.record {
                disk.forgotten.push(*job);
            }
        }
        if disk.hangs {
            disk.waiting.push((batch, done));
        } else {
            disk.memory.commit(epoch, batch, done);
        }
    }

    fn payload(&self, job: JobId, checkpoint: Option<u32>) -> Fetched<StartBodies> {
        self.disk().read(|memory| memory.payload(job, checkpoint))
    }

    fn result(&self, job: JobId) -> Fetched<ResultBodies> {
        self.disk().read(|memory| memory.result(job))
    }

    fn output(&self, job: JobId) -> Fetched<(Bytes, Bytes)> {
        self.disk().read(|memory| memory.output(job))
    }

    fn health(&self) -> Health {
        self.disk().health.clone()
    }

    fn refuses(&self, _bytes: u64) -> Option<String> {
        None
    }

    fn close(self: Box<Self>) {}
}

struct Scheduler {
    store: TestStore,
    address: String,
    shutdown: Shutdown,
    task: JoinHandle<()>,
    sockets: SocketDir,
    _bundles: tempfile::TempDir,
}

impl Scheduler {
    async fn start() -> Self {
        Self::keeping_for(Duration::from_hours(1)).await
    }

    /// One that keeps ended jobs for so long.
    async fn keeping_for(result_retention: Duration) -> Self {
        let disk = Disk {
            memory: MemoryStore::new(),
            health: Health::Good,
            hangs: false,
            waiting: Vec::new(),
            forgotten: Vec::new(),
            unreadable: false,
            failed_reads: 0,
        };
        let store = TestStore(Arc::new(Mutex::new(disk)));
        let sockets = SocketDir::create().unwrap();
        let accepts = vec![Role::Worker, Role::Client, Role::Admin];
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = Server::bind(ServerConfig::insecure(address, sockets.path(), accepts)).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let bundles = Bundles::open(directory.path().join("bundles"), 1 << 30, server.handle()).unwrap();
        let settings = Settings {
            store: store.identity(),
            epoch: 1,
            seed: 1,
            heartbeat: Duration::from_secs(5),
            lost_after: Duration::from_secs(20),
            result_retention,
            result_bytes: 1 << 30,
            bounds: Bounds::default(),
        };
        let engine = Engine::restore(settings, Loaded::default(), Moment::now());
        let address = server.local_address().to_string();
        let shutdown = Shutdown::new();
        let ended = shutdown.clone();
        let event_loop = EventLoop::new(server, engine, Box::new(store.clone()), bundles);
        let task = tokio::spawn(async move { Box::pin(event_loop.run(&ended)).await });
        Self { store, address, shutdown, task, sockets, _bundles: directory }
    }

    async fn connect(&self, role: Role) -> TestPeer {
        let hello = Hello::new(role, "test", "here");
        let (sender, receiver) = Link::open(LinkConfig::insecure(&self.address, hello, self.sockets.path()));
        let mut peer = TestPeer { sender, receiver };
        assert!(matches!(peer.event().await, LinkEvent::Up { .. }));
        peer
    }

    async fn worker(&self) -> TestPeer {
        self.worker_with(secret()).await
    }

    async fn worker_with(&self, secret: WorkerSecret) -> TestPeer {
        let mut worker = self.connect(Role::Worker).await;
        worker.say(&FromWorker::Register(register(secret)), "").await;
        assert!(matches!(worker.hear().await, (ToWorker::Registered { .. }, _)));
        worker
    }

    async fn application(&self) -> TestPeer {
        let mut application = self.connect(Role::Client).await;
        let attach = Attach {
            application: "test".parse().unwrap(),
            session: SESSION,
            bundle: BundleRef::Installed("tools".into()),
            services: vec!["double".into()],
            on_disconnect: OnDisconnect::Keep,
            progress_rtt_test: Duration::from_secs(10),
            credit: Credit { results: 10, bytes: 1_000 },
        };
        application.say(&FromApplication::Attach(attach), "").await;
        assert!(matches!(application.hear().await, (ToApplication::Attached { .. }, _)));
        application
    }

    async fn end(self) {
        self.shutdown.request();
        tokio::time::timeout(PATIENCE, self.task).await.expect("it ends in time").unwrap();
    }
}

fn register(secret: WorkerSecret) -> Register {
    Register {
        worker: secret.worker(),
        secret,
        host: "here".into(),
        pid: 1,
        instance: 1,
        slots: 2,
        platform: Platform { target: "x86_64-linux-gnu".into(), glibc: None },
        boot_id: "boot".into(),
        installed: vec!["tools".into()],
        ships: true,
        attempts: Vec::new(),
        store: None,
    }
}

/// An application, a worker or a command, played by the test.
struct TestPeer {
    sender: LinkSender,
    receiver: LinkReceiver,
}

impl TestPeer {
    async fn event(&mut self) -> LinkEvent {
        tokio::time::timeout(PATIENCE, self.receiver.next()).await.expect("something happens in time")
    }

    async fn say(&self, head: &impl Serialize, body: impl Into<Bytes>) {
        self.sender.send(Message::new(codec::encode(head), body)).await.unwrap();
    }

    /// The next message that isn't about totals.
    async fn hear<T: Head>(&mut self) -> (T, Bytes) {
        loop {
            if let LinkEvent::Message(message) = self.event().await
                && !matches!(codec::decode(&message.head), Ok(ToApplication::Totals(_)))
            {
                return (codec::decode(&message.head).unwrap(), message.body);
            }
        }
    }
}

fn submit(first: u64, payload: &'static str) -> (FromApplication, &'static str) {
    let mut jobs = Vec::new();
    JobRange::push(&mut jobs, 0, 0, payload.len() as u32);
    let options = vec![JobOptions::new()];
    (FromApplication::Submit { first, options, jobs, keys: Vec::new() }, payload)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_of_commands_are_answered_once_they_are_durable() {
    let scheduler = Scheduler::start().await;
    let _worker = scheduler.worker().await;
    let mut application = scheduler.application().await;
    let (head, body) = submit(1, "one");
    application.say(&head, body).await;
    assert!(matches!(application.hear().await, (ToApplication::Accepted { through: 1 }, _)));
    let job = SESSION.job(1);
    let orders = [
        FromCommand::Drain { worker: secret().worker(), deadline: None },
        FromCommand::Cancel { jobs: vec![job] },
        FromCommand::CancelApplication { application: "test".parse().unwrap() },
        FromCommand::CancelUser { user: "ann".parse().unwrap() },
    ];
    let mut command = scheduler.connect(Role::Admin).await;
    for order in orders {
        scheduler.store.disk().hangs = true;
        // The store waits with something, if the order itself changes nothing more.
        command.say(&FromCommand::Drain { worker: secret().worker(), deadline: None }, "").await;
        command.say(&order, "").await;
        command.say(&FromCommand::Status, "").await;
        let first = command.hear::<ToCommand>().await.0;
        assert!(matches!(first, ToCommand::Status(_)), "{first:?} to {order:?}");
        scheduler.store.disk().release();
        assert!(matches!(command.hear().await.0, ToCommand::Draining { .. }));
        let answer = command.hear::<ToCommand>().await.0;
        assert!(
            matches!(
                (&order, &answer),
                (FromCommand::Drain { .. }, ToCommand::Draining { .. })
                    | (FromCommand::Cancel { .. }, ToCommand::Cancelled { .. })
                    | (FromCommand::CancelApplication { .. }, ToCommand::ApplicationCancelled { .. })
                    | (FromCommand::CancelUser { .. }, ToCommand::UserCancelled { .. })
            ),
            "{answer:?} to {order:?}"
        );
    }
    scheduler.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_now_is_read_later() {
    let scheduler = Scheduler::start().await;
    let mut application = scheduler.application().await;
    scheduler.store.disk().unreadable = true;
    let (head, body) = submit(1, "one");
    application.say(&head, body).await;
    let mut worker = scheduler.worker().await;
    scheduler.store.until("a payload that can't be read", |disk| disk.failed_reads > 0).await;
    scheduler.store.disk().unreadable = false;
    let (ToWorker::Start(start), payload) = worker.hear().await else { panic!("no job") };
    assert_eq!((start.attempt.job, start.execution, payload), (SESSION.job(1), 1, "one".into()));
    assert!(start.attempt.attempt > 1, "the first attempt was given back");

    {
        let mut disk = scheduler.store.disk();
        (disk.unreadable, disk.failed_reads) = (true, 0);
    }
    let ended = Ended {
        attempt: start.attempt,
        end: AttemptEnd::Finished,
        ran: Duration::from_secs(1),
        peak_memory_bytes: 0,
        body_bytes: (4, 0, 0),
        bars: Vec::new(),
    };
    worker.say(&FromWorker::Ended(ended), "done").await;
    application.say(&FromApplication::Want { jobs: JobSet::one(SESSION.job(1)), urgent: true }, "").await;
    scheduler.store.until("a result that can't be read", |disk| disk.failed_reads > 0).await;
    scheduler.store.disk().unreadable = false;
    let (report, output) = loop {
        match application.hear().await {
            (ToApplication::Result { report, .. }, output) => break (report, output),
            (other, _) => assert!(matches!(other, ToApplication::Accepted { .. }), "{other:?}"),
        }
    };
    assert_eq!((report.failure, output), (None, "done".into()));
    let confirm = ToWorker::Confirm { attempts: vec![start.attempt] };
    assert_eq!(worker.hear::<ToWorker>().await.0, confirm);
    scheduler.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_given_what_may_make_room() {
    let scheduler = Scheduler::start().await;
    let mut application = scheduler.application().await;
    {
        let mut disk = scheduler.store.disk();
        (disk.hangs, disk.health) = (true, Health::Full("no room".into()));
    }
    for first in 1..=3 {
        let (head, body) = submit(first, "one");
        application.say(&head, body).await;
        let batches = usize::try_from(first).unwrap();
        scheduler.store.until("handed over", |disk| disk.waiting.len() == batches).await;
    }
    scheduler.store.disk().release();
    for through in 1..=3 {
        assert_eq!(application.hear::<ToApplication>().await.0, ToApplication::Accepted { through });
    }
    scheduler.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_wants_more_than_its_queue_holds_gets_all_of_it() {
    const JOBS: u64 = PEER_QUEUE_MESSAGES as u64 + 10_000;
    let scheduler = Scheduler::start().await;
    let mut application = scheduler.application().await;
    let job = JobRange { count: 1_000, service: 0, options: 0, payload_bytes: 0 };
    for first in (1..=JOBS).step_by(1_000) {
        let options = vec![JobOptions::new()];
        let submit = FromApplication::Submit { first, options, jobs: vec![job.clone()], keys: Vec::new() };
        application.say(&submit, "").await;
    }
    let jobs = JobSet { session: SESSION, ranges: vec![(1, JOBS)] };
    application.say(&FromApplication::Cancel { jobs: jobs.clone() }, "").await;
    application.say(&FromApplication::Want { jobs, urgent: true }, "").await;
    let mut heard = std::collections::BTreeSet::new();
    while (heard.len() as u64) < JOBS {
        match application.event().await {
            LinkEvent::Message(message) => {
                if let Ok(ToApplication::Result { job, .. }) = codec::decode(&message.head) {
                    assert!(heard.insert(job.sequence), "{job} came twice");
                }
            }
            lost @ (LinkEvent::Up { .. } | LinkEvent::Down { .. } | LinkEvent::Refused(_)) => {
                panic!("{lost:?} after {} results", heard.len())
            }
        }
    }
    scheduler.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_forgotten_behind_a_disk_that_is_slow() {
    const RETENTION: Duration = Duration::from_millis(500);
    let scheduler = Scheduler::keeping_for(RETENTION).await;
    let mut application = scheduler.application().await;
    let (head, body) = submit(1, "one");
    application.say(&head, body).await;
    application.say(&FromApplication::Cancel { jobs: JobSet::one(SESSION.job(1)) }, "").await;
    assert_eq!(application.hear::<ToApplication>().await.0, ToApplication::Accepted { through: 1 });
    scheduler.store.disk().hangs = true;
    let (head, body) = submit(2, "two");
    application.say(&head, body).await;
    scheduler.store.until("handed over", |disk| !disk.waiting.is_empty()).await;
    // Another batch gathers behind that one when the first job's time comes.
    let (head, body) = submit(3, "three");
    application.say(&head, body).await;
    tokio::time::sleep(2 * RETENTION).await;
    {
        let mut disk = scheduler.store.disk();
        for (batch, done) in std::mem::take(&mut disk.waiting) {
            disk.memory.commit(1, batch, done);
        }
    }
    scheduler.store.until("the next is handed over", |disk| !disk.waiting.is_empty()).await;
    let forgets = |entry: &Entry| matches!(entry.record, Record::JobForgotten { .. });
    assert!(!scheduler.store.disk().waiting[0].0.iter().any(forgets), "it is in nobody's way");
    scheduler.store.disk().release();
    let is_forgotten = |disk: &Disk| disk.forgotten.contains(&SESSION.job(1));
    scheduler.store.until("forgotten", is_forgotten).await;
    scheduler.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_takes_the_place_of_a_worker_whose_secret_he_lacks() {
    let scheduler = Scheduler::start().await;
    let mut worker = scheduler.worker().await;
    let mut thief = scheduler.connect(Role::Worker).await;
    let other = WorkerSecret::from_bytes([2; 32]);
    let stolen = Register { worker: secret().worker(), ..register(other) };
    thief.say(&FromWorker::Register(stolen), "").await;
    let refusal = loop {
        match thief.event().await {
            LinkEvent::Refused(refusal) => break refusal,
            LinkEvent::Down { .. } => {}
            LinkEvent::Up { .. } | LinkEvent::Message(_) => panic!("he is taken"),
        }
    };
    assert!(refusal.kind == RefusalKind::Keys && refusal.kind.is_permanent(), "{refusal}");

    worker.say(&FromWorker::Heartbeat { number: 7 }, "").await;
    assert_eq!(worker.hear::<ToWorker>().await.0, ToWorker::Renewed { number: 7 });
    let mut command = scheduler.connect(Role::Admin).await;
    command.say(&FromCommand::Status, "").await;
    let ToCommand::Status(status) = command.hear().await.0 else { panic!("no status") };
    assert_eq!(status.workers, 1);
    let refused: Vec<_> = status.refused.into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(refused, [("keys".to_owned(), 1)]);
    scheduler.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_worker_that_was_asked_says_what_an_attempt_has_printed() {
    let scheduler = Scheduler::start().await;
    let mut worker = scheduler.worker().await;
    let application = scheduler.application().await;
    let (head, body) = submit(1, "one");
    application.say(&head, body).await;
    let (ToWorker::Start(start), _) = worker.hear().await else { panic!("no job") };
    worker.say(&FromWorker::Began { attempt: start.attempt, pid: 9 }, "").await;
    let other = WorkerSecret::from_bytes([2; 32]);
    let mut rival = scheduler.worker_with(other.clone()).await;

    let mut command = scheduler.connect(Role::Admin).await;
    let request = loop {
        command.say(&FromCommand::Logs { job: SESSION.job(1) }, "").await;
        tokio::select! {
            // That it has begun may not have been heard yet.
            answer = command.hear::<ToCommand>() => assert!(matches!(answer.0, ToCommand::Logs { .. })),
            asked = worker.hear::<ToWorker>() => {
                let ToWorker::FetchOutput { request, .. } = asked.0 else { panic!("{asked:?}") };
                break request;
            }
        }
    };
    rival.say(&FromWorker::Output { request, bytes: Some((5, 0)) }, "wrong").await;
    // Its messages come in order, so that one was heard when this is answered.
    rival.say(&FromWorker::Register(register(other)), "").await;
    assert!(matches!(rival.hear().await, (ToWorker::Registered { .. }, _)));
    worker.say(&FromWorker::Output { request, bytes: Some((5, 0)) }, "right").await;
    assert_eq!(command.hear::<ToCommand>().await.1, "right");
    scheduler.end().await;
}
