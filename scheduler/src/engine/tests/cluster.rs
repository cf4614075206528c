//! An engine under test, in the words of the scenarios. Invariants are checked after every event.

use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{ApplicationId, AttemptId, BundleDigest, JobId, SessionId, WorkerId};
use lrts_core::spec::{BundleRef, JobOptions, OnDisconnect, Platform};
use lrts_core::status::{Failure, FailureKind, JobState};

use crate::engine::{
    Action, Attach, AttemptOutcome, Credit, Engine, Event, Held, Message, Peer, Reason, Registration,
    Settings, Submit,
};
use crate::record::{NewJob, Record, Report};

pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);
pub(super) const LOST_AFTER: Duration = Duration::from_secs(20);
pub(super) const RETENTION: Duration = Duration::from_hours(1);
pub(super) const STORE: u64 = 7;
pub(super) const RESULT_BYTES: u64 = 1 << 30;
pub(super) const DIGEST: BundleDigest = BundleDigest([7; 32]);
pub(super) const RUN: Duration = Duration::from_secs(2);

/// An engine and the moment that it is.
pub(super) struct Cluster {
    pub(super) engine: Engine,
    pub(super) now: Moment,
    peers: u64,
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
    }
}

pub(super) fn attach_of(application: &str, session: SessionId) -> Attach {
    Attach {
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
        slots,
        platform: platform(),
        installed: Vec::new(),
        ships: true,
        store: None,
    }
}

pub(super) fn attempt(job: JobId, attempt: u32) -> AttemptId {
    AttemptId { job, attempt }
}

pub(super) fn job_of(service: u16) -> NewJob {
    NewJob { service, options: 0, payload_bytes: 10 }
}

pub(super) fn failed(kind: FailureKind) -> AttemptOutcome {
    AttemptOutcome::Failed(Failure::new(kind, "why"))
}

impl Cluster {
    pub(super) fn new() -> Self {
        let now = Moment::default() + Duration::from_hours(1);
        Self { engine: Engine::new(settings(1)), now, peers: 0 }
    }

    pub(super) fn peer(&mut self) -> Peer {
        self.peers += 1;
        Peer(self.peers)
    }

    pub(super) fn handle(&mut self, event: Event) -> Outcome {
        let actions = self.engine.handle(event, self.now);
        self.engine.check_invariants();
        Outcome(actions)
    }

    /// Lets time pass, with a tick at each deadline.
    pub(super) fn pass(&mut self, span: Duration) -> Outcome {
        let end = self.now + span;
        let mut actions = Vec::new();
        while let Some(at) = self.engine.next_deadline().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            actions.extend(self.handle(Event::Tick).0);
        }
        self.now = end;
        Outcome(actions)
    }

    /// An application whose program is here.
    pub(super) fn application(&mut self, name: &str, session: u64) -> (Peer, SessionId) {
        let peer = self.peer();
        let session = SessionId(session);
        self.handle(Event::Attached { peer, attach: attach_of(name, session) });
        self.handle(Event::BundleCompleted { digest: DIGEST, platform: platform() });
        (peer, session)
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
