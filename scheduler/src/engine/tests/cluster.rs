//! An engine under test, in the words of the scenarios. Invariants are checked after every event.

use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{ApplicationId, AttemptId, BundleDigest, JobId, SessionId, WorkerId};
use lrts_core::spec::{BundleRef, JobOptions, KeyedJob, OnDisconnect, Platform};
use lrts_core::status::{Failure, FailureKind, JobState, RefusalCause};

use super::store::Store;
use crate::engine::{
    Action, Attach, AttemptOutcome, Bounds, Credit, Engine, Event, Held, ListedJobs, Message, Note, Peer,
    Reason, Registration, Settings, Submit,
};
use crate::record::{NewJob, Record, Report};

pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);
pub(super) const LOST_AFTER: Duration = Duration::from_secs(20);
pub(super) const RETENTION: Duration = Duration::from_hours(1);
pub(super) const STORE: u64 = 7;
pub(super) const RESULT_BYTES: u64 = 1 << 30;
pub(super) const DIGEST: BundleDigest = BundleDigest([7; 32]);
pub(super) const RUN: Duration = Duration::from_secs(2);

/// An engine, what it ordered to be kept, and the moment that it is.
pub(super) struct Cluster {
    pub(super) engine: Engine,
    pub(super) store: Store,
    pub(super) now: Moment,
    epoch: u64,
    peers: u64,
    pub(super) bounds: Bounds,
}

/// What came of one event.
#[derive(Debug)]
pub(super) struct Outcome(pub(super) Vec<Action>);

pub(super) fn platform() -> Platform {
    Platform { target: "x86_64-linux-gnu".into(), glibc: Some((2, 36)) }
}

pub(super) fn settings(seed: u64) -> Settings {
    Settings {
        store: STORE,
        epoch: 1,
        seed,
        heartbeat: HEARTBEAT,
        lost_after: LOST_AFTER,
        result_retention: RETENTION,
        result_bytes: RESULT_BYTES,
        bounds: Bounds::default(),
    }
}

pub(super) fn attach_of(application: &str, session: SessionId) -> Attach {
    Attach {
        user: None,
        application: application.parse().unwrap(),
        session,
        bundle: BundleRef::Shipped(DIGEST),
        services: vec!["short".into(), "long".into()],
        on_disconnect: OnDisconnect::Keep,
        progress_rtt_test: Duration::from_secs(10),
        credit: Credit { results: 1_000, bytes: 1 << 20 },
    }
}

pub(super) fn registration(worker: WorkerId, slots: u32) -> Registration {
    Registration {
        worker,
        host: format!("host-{worker}"),
        pid: 1,
        instance: 1,
        slots,
        platform: platform(),
        boot_id: "boot".into(),
        installed: Vec::new(),
        ships: true,
        store: None,
    }
}

pub(super) fn attempt(job: JobId, attempt: u32) -> AttemptId {
    AttemptId { job, attempt }
}

/// What a worker's inventory says of an attempt that has been running for half a minute.
pub(super) fn held(job: JobId, number: u32) -> Held {
    Held { attempt: attempt(job, number), running: Some(Duration::from_secs(30)), pid: 42, ended: false }
}

pub(super) fn job_of(service: u16) -> NewJob {
    NewJob { service, options: 0, payload_bytes: 10 }
}

pub(super) fn failed(kind: FailureKind) -> AttemptOutcome {
    AttemptOutcome::Failed(Failure::new(kind, "why"))
}

impl Cluster {
    pub(super) fn new() -> Self {
        Self::with_bounds(Bounds::default())
    }

    pub(super) fn with_bounds(bounds: Bounds) -> Self {
        let now = Moment::default() + Duration::from_hours(1);
        let engine = Engine::new(Settings { bounds: bounds.clone(), ..settings(1) });
        Self { engine, store: Store::default(), now, epoch: 1, peers: 0, bounds }
    }

    pub(super) fn peer(&mut self) -> Peer {
        self.peers += 1;
        Peer(self.peers)
    }

    pub(super) fn handle(&mut self, event: Event) -> Outcome {
        let actions = self.engine.handle(event, self.now);
        self.keep(actions)
    }

    fn keep(&mut self, actions: Vec<Action>) -> Outcome {
        self.engine.check_invariants();
        let outcome = Outcome(actions);
        outcome.records().into_iter().for_each(|record| self.store.keep(record, 0, self.now));
        outcome
    }

    /// The scheduler dies and starts again at once. Its peers have yet to come back, its program is here.
    pub(super) fn restart(&mut self) -> Outcome {
        self.epoch += 1;
        let settings = Settings { epoch: self.epoch, bounds: self.bounds.clone(), ..settings(1) };
        self.engine = Engine::restore(settings, self.store.load(self.now), self.now);
        let restored = self.engine.take_restored();
        let mut outcome = self.keep(restored);
        let here =
            self.handle(Event::BundleCompleted { digest: DIGEST, bytes: 100, platforms: platform().into() });
        outcome.0.extend(here.0);
        outcome
    }

    /// Lets time pass, with a tick at each deadline.
    pub(super) fn pass(&mut self, span: Duration) -> Outcome {
        let end = self.now + span;
        let mut actions = Vec::new();
        while let Some(at) = self.engine.next_deadline(true).filter(|&at| at <= end) {
            self.now = self.now.max(at);
            actions.extend(self.handle(Event::Tick { may_forget: true }).0);
        }
        self.now = end;
        Outcome(actions)
    }

    /// An application whose program is here.
    pub(super) fn application(&mut self, name: &str, session: u64) -> (Peer, SessionId) {
        let peer = self.peer();
        let session = SessionId(session);
        self.handle(Event::Attached { peer, attach: attach_of(name, session) });
        self.handle(Event::BundleCompleted { digest: DIGEST, bytes: 100, platforms: platform().into() });
        (peer, session)
    }

    /// A connection with this user's key, or without any, attaches to an application.
    pub(super) fn attach_as(&mut self, user: Option<&str>, name: &str, session: u64) -> (Peer, Outcome) {
        let peer = self.peer();
        let user = user.map(|user| user.parse().unwrap());
        let attach = Attach { user, ..attach_of(name, SessionId(session)) };
        (peer, self.handle(Event::Attached { peer, attach }))
    }

    pub(super) fn worker(&mut self, worker: u64, slots: u32) -> Peer {
        self.rejoin(worker, slots, Vec::new()).0
    }

    pub(super) fn rejoin(&mut self, worker: u64, slots: u32, held: Vec<Held>) -> (Peer, Outcome) {
        let peer = self.peer();
        let registration = registration(WorkerId(worker), slots);
        (peer, self.handle(Event::Registered { peer, registration, held }))
    }

    /// Submits one job for each service number.
    pub(super) fn submit(
        &mut self,
        peer: Peer,
        first: u64,
        options: JobOptions,
        services: &[u16],
    ) -> Outcome {
        let jobs = services.iter().map(|&service| job_of(service)).collect();
        let submit = Submit { first, options: vec![options], jobs, keys: Vec::new(), no_room: None };
        self.handle(Event::Submitted { peer, submit })
    }

    /// Submits one job for each key, with this digest of its content.
    pub(super) fn submit_keys(&mut self, peer: Peer, first: u64, keys: &[(&str, u64)]) -> Outcome {
        self.submit_keys_with(peer, first, keys, JobOptions::new())
    }

    pub(super) fn submit_keys_with(
        &mut self,
        peer: Peer,
        first: u64,
        keys: &[(&str, u64)],
        options: JobOptions,
    ) -> Outcome {
        let jobs = keys.iter().map(|_| job_of(1)).collect();
        let keys = (0..).zip(keys);
        let keys = keys.map(|(index, &(key, digest))| KeyedJob { index, key: key.to_owned(), digest });
        let submit = Submit { first, options: vec![options], jobs, keys: keys.collect(), no_room: None };
        self.handle(Event::Submitted { peer, submit })
    }

    /// All jobs of an application as they are listed.
    pub(super) fn list(&mut self, peer: Peer) -> Vec<ListedJobs> {
        self.handle(Event::ListAsked { peer, request: 1, job: None }).listed()
    }

    pub(super) fn drain(&mut self, worker: u64, deadline: Option<Duration>) -> Outcome {
        self.handle(Event::DrainOrdered { worker: WorkerId(worker), deadline })
    }

    pub(super) fn checkpoint(&mut self, peer: Peer, attempt: AttemptId) -> Outcome {
        self.handle(Event::CheckpointCame { peer, attempt })
    }

    /// Lets time pass while these workers are heard.
    pub(super) fn pass_hearing(&mut self, span: Duration, workers: &[Peer]) -> Outcome {
        let end = self.now + span;
        let mut actions = Vec::new();
        loop {
            let left = end.since(self.now).min(HEARTBEAT);
            actions.extend(self.pass(left).0);
            for &peer in workers {
                actions.extend(self.heartbeat(peer).0);
            }
            if self.now == end {
                return Outcome(actions);
            }
        }
    }

    pub(super) fn want(&mut self, peer: Peer, job: JobId) -> Outcome {
        let ranges = vec![(job.sequence, job.sequence)];
        self.handle(Event::Wanted { peer, session: job.session, ranges, urgent: true })
    }

    pub(super) fn cancel(&mut self, peer: Peer, job: JobId) -> Outcome {
        let ranges = vec![(job.sequence, job.sequence)];
        self.handle(Event::CancelAsked { peer, session: job.session, ranges })
    }

    pub(super) fn heartbeat(&mut self, peer: Peer) -> Outcome {
        self.handle(Event::HeartbeatReceived { peer, number: 1 })
    }

    pub(super) fn began(&mut self, peer: Peer, attempt: AttemptId) -> Outcome {
        self.handle(Event::Began { peer, attempt, pid: 42 })
    }

    pub(super) fn ended(&mut self, peer: Peer, attempt: AttemptId, outcome: AttemptOutcome) -> Outcome {
        self.handle(Event::Ended { peer, attempt, outcome, ran: RUN, output_bytes: 5 })
    }

    pub(super) fn finished(&mut self, peer: Peer, attempt: AttemptId) -> Outcome {
        self.ended(peer, attempt, AttemptOutcome::Finished)
    }

    pub(super) fn state(&self, job: JobId) -> JobState {
        self.engine.state(job).expect("the job is remembered")
    }

    pub(super) fn reason(&self, job: JobId) -> String {
        let page = self.engine.job_page(0, usize::MAX, self.now);
        page.jobs.into_iter().find(|listing| listing.job == job).expect("the job is listed").reason
    }

    pub(super) fn id_of(name: &str) -> ApplicationId {
        name.parse().unwrap()
    }
}

impl Outcome {
    fn messages(&self) -> impl Iterator<Item = (Peer, &Message)> {
        self.0.iter().filter_map(|action| match action {
            Action::Send { to, message } | Action::SendAtOnce { to, message } => Some((*to, message)),
            Action::Persist(_) | Action::Disconnect { .. } | Action::BundleInUse { .. } | Action::Note(_) => {
                None
            }
        })
    }

    pub(super) fn starts(&self) -> Vec<(Peer, AttemptId)> {
        let start = |(to, message): (Peer, &Message)| match message {
            Message::Start { attempt, .. } => Some((to, *attempt)),
            _ => None,
        };
        self.messages().filter_map(start).collect()
    }

    /// Which checkpoint each attempt is started with.
    pub(super) fn start_checkpoints(&self) -> Vec<(AttemptId, Option<u32>)> {
        let start = |(_, message): (Peer, &Message)| match message {
            Message::Start { attempt, checkpoint, .. } => Some((*attempt, *checkpoint)),
            _ => None,
        };
        self.messages().filter_map(start).collect()
    }

    /// Everything that is said to somebody.
    pub(super) fn said_to(&self, peer: Peer) -> Vec<&Message> {
        self.messages().filter(|&(to, _)| to == peer).map(|(_, message)| message).collect()
    }

    pub(super) fn listed(&self) -> Vec<ListedJobs> {
        let listed = |(_, message): (Peer, &Message)| match message {
            Message::Listed { jobs, .. } => Some(jobs.clone()),
            _ => None,
        };
        self.messages().filter_map(listed).flatten().collect()
    }

    /// Why each sequence was refused.
    pub(super) fn refusals(&self) -> Vec<(u64, RefusalCause)> {
        let refused = |(_, message): (Peer, &Message)| match message {
            Message::Refused { sequence, cause, .. } => Some((*sequence, *cause)),
            _ => None,
        };
        self.messages().filter_map(refused).collect()
    }

    pub(super) fn recalls(&self) -> Vec<AttemptId> {
        let recall = |(_, message): (Peer, &Message)| match message {
            Message::Recall { attempt } => Some(*attempt),
            _ => None,
        };
        self.messages().filter_map(recall).collect()
    }

    /// What a worker is told to forget.
    pub(super) fn closed(&self, worker: Peer) -> Vec<AttemptId> {
        let closed = |(to, message): (Peer, &Message)| match message {
            Message::Registered { closed, .. } if to == worker => Some(closed.clone()),
            _ => None,
        };
        self.messages().filter_map(closed).flatten().collect()
    }

    pub(super) fn notes(&self, note: &Note) -> bool {
        self.0.iter().any(|action| matches!(action, Action::Note(other) if other == note))
    }

    pub(super) fn results(&self) -> Vec<(JobId, Report)> {
        let result = |(_, message): (Peer, &Message)| match message {
            Message::Result { job, report } => Some((*job, report.clone())),
            _ => None,
        };
        self.messages().filter_map(result).collect()
    }

    pub(super) fn says(&self, to: Peer, message: &Message) -> bool {
        self.messages().any(|said| said == (to, message))
    }

    pub(super) fn stops(&self, to: Peer, attempt: AttemptId) -> bool {
        self.says(to, &Message::Stop { attempt })
    }

    pub(super) fn records(&self) -> Vec<&Record> {
        self.0
            .iter()
            .filter_map(|action| match action {
                Action::Persist(record) => Some(record),
                _ => None,
            })
            .collect()
    }

    pub(super) fn disconnects(&self, peer: Peer) -> Option<&Reason> {
        self.0.iter().find_map(|action| match action {
            Action::Disconnect { peer: other, reason } if *other == peer => Some(reason),
            _ => None,
        })
    }
}
