//! Every decision of the scheduler, without I/O: events and time in, actions out.
//!
//! | Module | Decides |
//! |---|---|
//! | [`applications`] | sessions, submits, what is accepted; attaching, leaving, stopping |
//! | [`delivery`] | which result is sent when, under the application's credit; totals |
//! | [`jobs`] | 64 bytes per job, queues, the moves from state to state |
//! | [`attempts`] | what an attempt's beginning and end mean for its job |
//! | [`workers`] | registration, inventory, goodbye |
//! | [`leases`] | when a silent worker is suspect, and when it is lost |
//! | [`placement`] | which job goes where next, ahead of time too, and what is taken back |
//! | [`retry`] | whether a failed job runs again, and when |
//! | [`bundles`] | which programs are here, who can't start them |
//! | [`queries`] | what the commands show |
//!
//! The same events at the same moments give the same actions: maps are ordered, jitter is seeded, nothing reads a clock.
//! Bodies never come here, only their lengths.

mod applications;
mod attempts;
mod bundles;
mod delivery;
mod events;
#[cfg(test)]
mod invariants;
mod jobs;
mod leases;
mod placement;
mod queries;
mod retry;
mod slab;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "tests look for one kind of message among many")]
mod tests;
mod workers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{ApplicationId, SessionId};

use applications::{Application, Session};
use attempts::Attempt;
use bundles::Bundles;
use jobs::{JobHandle, Jobs, Service};
use leases::Brake;
use retry::Jitter;
use slab::Slab;
use workers::Workers;

pub(crate) use events::{
    Action, Attach, AttemptOutcome, Credit, Event, Held, Message, NewJob, Note, Peer, Reason, Recipe, Record,
    Registration, Report, Totals,
};
pub(crate) use queries::{JobListing, OutputPlace, WorkerListing};

/// What the engine is told once.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Counts the scheduler's starts on its store.
    pub(crate) epoch: u64,
    /// Seed of the jitter.
    pub(crate) seed: u64,
    /// Shortest interval between a worker's heartbeats, unless a quarter of `lost_after` is shorter.
    pub(crate) heartbeat: Duration,
    /// How long a silent worker is trusted.
    pub(crate) lost_after: Duration,
    /// How long ended jobs and absent applications are remembered.
    pub(crate) result_retention: Duration,
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
    /// What came of the event so far.
    actions: Vec<Action>,
    peers: BTreeMap<Peer, Party>,
    jobs: Jobs,
    attempts: Slab<Attempt>,
    services: Slab<Service>,
    sessions: Slab<Session>,
    session_ids: BTreeMap<SessionId, u32>,
    applications: Slab<Application>,
    application_ids: BTreeMap<ApplicationId, u32>,
    /// Applications with a job that may be placed: the next to be served comes first.
    hungry: BTreeSet<(u32, u64, u32)>,
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
    /// Ended jobs, in the order in which they are forgotten.
    retention: VecDeque<(Moment, JobHandle)>,
    jitter: Jitter,
}

impl Engine {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            now: Moment::default(),
            actions: Vec::new(),
            peers: BTreeMap::new(),
            jobs: Jobs::new(),
            attempts: Slab::new(),
            services: Slab::new(),
            sessions: Slab::new(),
            session_ids: BTreeMap::new(),
            applications: Slab::new(),
            application_ids: BTreeMap::new(),
            hungry: BTreeSet::new(),
            turns: 0,
            reordered: BTreeSet::new(),
            barred: Vec::new(),
            workers: Workers::new(),
            bundles: Bundles::new(),
            brake: Brake::default(),
            timers: BTreeSet::new(),
            retention: VecDeque::new(),
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
            Event::Submitted { peer, first, options, jobs } => self.submit(peer, first, options, jobs),
            Event::Wanted { peer, session, ranges, urgent } => self.want(peer, session, &ranges, urgent),
            Event::CreditGranted { peer, credit } => self.grant_credit(peer, credit),
            Event::Taken { peer, session, ranges } => self.take(peer, session, &ranges),
            Event::CancelAsked { peer, session, ranges } => {
                self.cancel_of_application(peer, session, &ranges)
            }
            Event::StopAsked { peer } => self.stop(peer),
            Event::Registered { peer, registration, held } => self.register(peer, registration, held),
            Event::HeartbeatReceived { peer } => {
                self.heard(peer);
            }
            Event::Began { peer, attempt, pid } => self.began(peer, attempt, pid),
            Event::Ended { peer, attempt, outcome, ran, output_bytes } => {
                self.ended(peer, attempt, outcome, ran, output_bytes);
            }
            Event::Returned { peer, attempts } => self.returned(peer, &attempts),
            Event::NotReturned { peer, attempt } => self.not_returned(peer, attempt),
            Event::BundleRefusedByWorker { peer, bundle, reason, attempts } => {
                self.refused_by_worker(peer, bundle, reason, &attempts);
            }
            Event::SaidGoodbye { peer } => self.goodbye(peer),
            Event::Disconnected { peer } => self.disconnected(peer),
            Event::BundleCompleted { digest, platform } => self.bundle_completed(digest, platform),
            Event::BundleFailed { digest, reason } => self.bundle_failed(digest, reason),
            Event::BundleForgotten { digest } => self.bundle_forgotten(digest),
            Event::JobsCancelled { jobs } => self.cancel_by_command(&jobs),
            Event::Tick => {}
        }
        self.place_queued();
        std::mem::take(&mut self.actions)
    }

    /// When [`Event::Tick`] is due at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        let timer = self.timers.first().map(|&(at, _)| at);
        let retention = self.retention.front().map(|&(at, _)| at);
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
            }
        }
        while let Some(&(at, job)) = self.retention.front()
            && at <= self.now
        {
            self.retention.pop_front();
            if self.jobs.is_current(job) {
                self.forget_job(job.index);
            }
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
        self.actions.push(Action::Persist(record));
    }

    fn send(&mut self, to: Peer, message: Message) {
        self.actions.push(Action::Send { to, message });
    }

    fn note(&mut self, note: Note) {
        self.actions.push(Action::Note(note));
    }

    /// Parts from a peer that broke the protocol.
    fn violation(&mut self, peer: Peer, what: impl Into<String>) {
        self.actions.push(Action::Disconnect { peer, reason: Reason::Protocol(what.into()) });
        self.disconnected(peer);
    }
}
