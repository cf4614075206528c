//! Every decision of the scheduler, without I/O: events and time in, actions out.
//!
//! | Module | Decides |
//! |---|---|
//! | [`applications`] | attaching, leaving, coming back, stopping |
//! | [`owners`], [`bounds`] | whose an application is, and how much it may keep |
//! | [`spare`] | what nobody would miss where room is short |
//! | [`sessions`], [`submits`] | which jobs are taken, and that one key is one job |
//! | [`bits`] | sets of jobs that are stepped through without a look at all others |
//! | [`delivery`] | which result is sent when, under the application's credit; totals |
//! | [`retention`] | which ended jobs are kept, and whose make way |
//! | [`jobs`] | 64 bytes per job, queues, the moves from state to state |
//! | [`attempts`] | what an attempt's beginning and end mean for its job |
//! | [`workers`] | registration, inventory, goodbye |
//! | [`drains`] | which worker takes nothing new |
//! | [`leases`] | when a silent worker is suspect, and when it is lost |
//! | [`placement`] | which job goes where next, ahead of time too, and what is taken back |
//! | [`retry`] | whether a failed job runs again, and when |
//! | [`bundles`], [`platforms`] | which programs are here, who can't start them |
//! | [`checkpoints`] | which state of a job its next attempt gets |
//! | [`suspicion`] | when a worker, not its jobs, is to blame for deaths |
//! | [`images`] | what is kept of a job, and how an engine is made of what was kept |
//! | [`queries`] | what the commands show |
//!
//! The same events at the same moments give the same actions: maps are ordered, jitter is seeded, nothing reads a clock.
//! Bodies never come here, only their lengths.

mod applications;
mod attempts;
mod bits;
mod bounds;
mod bundles;
mod checkpoints;
mod delivery;
mod drains;
mod events;
mod images;
#[cfg(any(test, feature = "fuzzing"))]
mod invariants;
mod jobs;
mod leases;
mod owners;
mod placement;
mod platforms;
mod queries;
mod questions;
mod retention;
mod retry;
mod sessions;
mod slab;
mod spare;
mod submits;
mod suspicion;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "tests look for one kind of message among many")]
mod tests;
mod workers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{ApplicationId, SessionId, UserName};

use applications::Application;
use attempts::Attempt;
use bundles::Bundles;
use jobs::{JobHandle, Jobs, Service};
use leases::Brake;
use owners::Holdings;
use retention::Retention;
use retry::Jitter;
use sessions::Session;
use slab::Slab;
use spare::Spare;
use submits::RefusedJobs;
use workers::Workers;

pub(crate) use bounds::Bounds;
pub(crate) use events::{
    Action, Attach, AttemptOutcome, Credit, Event, Held, ListedJobs, Message, Note, Peer, Reason, Recipe,
    Registration, Submit, Totals,
};
pub(crate) use platforms::Platforms;
pub(crate) use queries::{ApplicationListing, JobListing, OutputPlace, WorkerListing};

use crate::record::Record;

/// What the engine is told once.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Which store the scheduler has.
    pub(crate) store: u64,
    /// Counts the scheduler's starts on it.
    pub(crate) epoch: u64,
    /// Seed of the jitter.
    pub(crate) seed: u64,
    /// Shortest interval between a worker's heartbeats, unless a quarter of `lost_after` is shorter.
    pub(crate) heartbeat: Duration,
    /// How long a silent worker is trusted.
    pub(crate) lost_after: Duration,
    /// How long ended jobs and absent applications are remembered.
    pub(crate) result_retention: Duration,
    /// Most bytes of results that are kept; the oldest of whoever has most go first.
    pub(crate) result_bytes: u64,
    /// What applications may keep.
    pub(crate) bounds: Bounds,
}

/// What is to be looked at when its moment comes. All but [`Timer::Lease`] may be out of date by then, which is checked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Timer {
    /// A job's backoff is over.
    Retry(JobHandle),
    /// An application may be told its totals again.
    Totals(u32),
    /// An application has been away for as long as it allowed, or as it is remembered.
    Away(u32),
    /// A worker may have become suspect or lost, or a lost one's attempts are to be closed.
    Lease(u32),
    /// What a draining worker still has is to go elsewhere.
    Drain(u32),
    /// Workers have had the time to come back: all, or those that could start some program.
    Gathered,
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Party {
    Application(u32),
    Worker(u32),
}

/// The scheduler's state and all its decisions.
pub(crate) struct Engine {
    settings: Settings,
    /// The moment of the event that is being handled.
    now: Moment,
    /// What is to be kept because of it so far, and jobs of which more than that is.
    records: Vec<Record>,
    changed: BTreeSet<u32>,
    /// What else came of the event so far.
    actions: Vec<Action>,
    peers: BTreeMap<Peer, Party>,
    jobs: Jobs,
    attempts: Slab<Attempt>,
    services: Slab<Service>,
    sessions: Slab<Session>,
    session_ids: BTreeMap<SessionId, u32>,
    applications: Slab<Application>,
    application_ids: BTreeMap<ApplicationId, u32>,
    /// What each user has that owns an application.
    users: BTreeMap<UserName, Holdings>,
    spare_sessions: Spare,
    spare_applications: Spare,
    /// Applications with a job that may be placed: the next to be served comes first.
    hungry: BTreeSet<(u32, u64, u32)>,
    /// Applications that are owed more answers than are given at a time.
    asking: VecDeque<Peer>,
    /// Counts placements, for turns among applications that hold equally many slots.
    turns: u64,
    /// Applications whose next job may be another one than when sending ahead was last looked at.
    reordered: BTreeSet<u32>,
    /// Queues that no known worker can serve: looked at again when a worker registers.
    barred: Vec<u32>,
    workers: Workers,
    bundles: Bundles,
    brake: Brake,
    timers: BTreeSet<(Moment, Timer)>,
    retention: Retention,
    /// Jobs that weren't taken, by cause.
    refused_jobs: RefusedJobs,
    jitter: Jitter,
}

impl Engine {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            now: Moment::default(),
            records: Vec::new(),
            changed: BTreeSet::new(),
            actions: Vec::new(),
            peers: BTreeMap::new(),
            jobs: Jobs::new(),
            attempts: Slab::new(),
            services: Slab::new(),
            sessions: Slab::new(),
            session_ids: BTreeMap::new(),
            applications: Slab::new(),
            application_ids: BTreeMap::new(),
            users: BTreeMap::new(),
            spare_sessions: Spare::default(),
            spare_applications: Spare::default(),
            hungry: BTreeSet::new(),
            asking: VecDeque::new(),
            turns: 0,
            reordered: BTreeSet::new(),
            barred: Vec::new(),
            workers: Workers::new(),
            bundles: Bundles::new(),
            brake: Brake::default(),
            timers: BTreeSet::new(),
            retention: Retention::default(),
            refused_jobs: RefusedJobs::default(),
            jitter: Jitter::new(settings.seed),
            settings,
        }
    }

    /// Takes in what happened and returns what is to be done, in order. Moments never go back.
    pub(crate) fn handle(&mut self, event: Event, now: Moment) -> Vec<Action> {
        self.now = self.now.max(now);
        self.forgive_own_absence();
        // First, so that a late heartbeat doesn't revive a lease that has expired.
        self.run_timers();
        match event {
            Event::Attached { peer, attach } => self.attach(peer, attach),
            Event::Submitted { peer, submit } => self.submit(peer, submit),
            Event::Wanted { peer, session, ranges, urgent } => self.want(peer, session, ranges, urgent),
            Event::RoomFor { peer } => self.answer(peer),
            Event::CreditGranted { peer, credit } => self.grant_credit(peer, credit),
            Event::Taken { peer, session, ranges } => self.take(peer, session, &ranges),
            Event::CancelAsked { peer, session, ranges } => {
                self.cancel_of_application(peer, session, &ranges)
            }
            Event::ListAsked { peer, request, job } => self.list(peer, request, job),
            Event::DetachAsked { peer } => self.detach(peer),
            Event::StopAsked { peer } => self.stop(peer),
            Event::Registered { peer, registration, held } => self.register(peer, registration, held),
            Event::HeartbeatReceived { peer, number } => self.heartbeat(peer, number),
            Event::Began { peer, attempt, pid } => self.began(peer, attempt, pid),
            Event::CheckpointCame { peer, attempt } => self.checkpoint_came(peer, attempt),
            Event::Ended { peer, attempt, outcome, ran, output_bytes } => {
                self.ended(peer, attempt, outcome, ran, output_bytes);
            }
            Event::Returned { peer, attempts } => self.returned(peer, &attempts),
            Event::NotReturned { peer, attempt } => self.not_returned(peer, attempt),
            Event::BundleRefusedByWorker { peer, bundle, reason, attempts } => {
                self.refused_by_worker(peer, bundle, reason, &attempts);
            }
            Event::SaidGoodbye { peer } => self.goodbye(peer),
            Event::SaidAbsent { peer, back_within } => self.absent(peer, back_within),
            Event::Disconnected { peer } => self.disconnected(peer),
            Event::BundleCompleted { digest, bytes, platforms } => {
                self.bundle_completed(digest, bytes, platforms);
            }
            Event::BundleOffered { peer, digest, bytes, platform } => {
                self.bundle_offered(peer, digest, bytes, platform);
            }
            Event::BundleFailed { peer, digest, reason } => self.bundle_failed(peer, digest, &reason),
            Event::BundleForgotten { digest } => self.bundle_forgotten(digest),
            Event::JobsCancelled { jobs } => self.cancel_by_command(&jobs),
            Event::ApplicationCancelled { application } => self.cancel_application(application),
            Event::DrainOrdered { worker, deadline } => self.drain_by_command(worker, deadline),
            Event::Tick { may_forget: true } => self.forget_due(),
            Event::Tick { may_forget: false } => {}
        }
        self.place_queued();
        self.take_actions()
    }

    /// All that came of an event. Records first, since whatever is said may rely on them; of each job that changed, its last
    /// image only.
    fn take_actions(&mut self) -> Vec<Action> {
        for job in std::mem::take(&mut self.changed) {
            let record = Record::Job { job: self.job_id(job), image: self.image_of(job) };
            self.records.push(record);
        }
        let mut actions: Vec<Action> = self.records.drain(..).map(Action::Persist).collect();
        actions.append(&mut self.actions);
        actions
    }

    /// When [`Event::Tick`] is due at the latest, given whether it may forget.
    pub(crate) fn next_deadline(&self, may_forget: bool) -> Option<Moment> {
        let timer = self.timers.first().map(|&(at, _)| at);
        let retention = self.retention.next_deadline().filter(|_| may_forget);
        timer.into_iter().chain(retention).min()
    }

    fn run_timers(&mut self) {
        while let Some(&(at, timer)) = self.timers.first()
            && at <= self.now
        {
            self.timers.pop_first();
            match timer {
                Timer::Retry(job) => self.backoff_passed(job),
                Timer::Totals(application) => self.send_totals(application),
                Timer::Away(application) => self.away(application),
                Timer::Lease(worker) => self.check_lease(worker),
                Timer::Drain(worker) => self.drain_overdue(worker),
                Timer::Gathered => self.gathered(),
            }
        }
        while let Some(&(until, job)) = self.jobs.left_until.front()
            && until <= self.now
        {
            self.jobs.left_until.pop_front();
            self.jobs.left.remove(&job);
        }
    }

    fn disconnected(&mut self, peer: Peer) {
        match self.peers.remove(&peer) {
            Some(Party::Application(application)) => self.application_left(application),
            Some(Party::Worker(worker)) => self.worker_disconnected(worker),
            // Superseded, refused, lost or gone with a goodbye: its place is taken or empty already.
            None => {}
        }
    }

    fn persist(&mut self, record: Record) {
        self.records.push(record);
    }

    /// What is kept of a job is out of date.
    fn job_changed(&mut self, job: u32) {
        self.changed.insert(job);
    }

    fn send(&mut self, to: Peer, message: Message) {
        self.actions.push(Action::Send { to, message });
    }

    fn note(&mut self, note: Note) {
        self.actions.push(Action::Note(note));
    }

    /// Parts from a peer that broke the protocol.
    fn violation(&mut self, peer: Peer, what: impl Into<String>) {
        self.part(peer, Reason::Protocol(what.into()));
    }

    /// Parts from a peer.
    fn part(&mut self, peer: Peer, reason: Reason) {
        self.actions.push(Action::Disconnect { peer, reason });
        self.disconnected(peer);
    }
}
