//! Applications: sessions, what they submit, and how they come and go.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{ApplicationId, JobId, SessionId};
use lrts_core::limits::{BODY_BYTES, SERVICE_NAME_BYTES, SERVICES_PER_BUNDLE, SUBMIT_JOBS};
use lrts_core::spec::{JobOptions, OnDisconnect};
use lrts_core::status::{Failure, FailureKind, JobState};

use super::attempts::cancelled;
use super::bundles::Availability;
use super::events::{Action, Attach, Credit, Message, NewJob, Note, Peer, Reason, Record, Totals};
use super::jobs::{Delivery, JobHandle, ReadyKey, Service};
use super::slab::NONE;
use super::{Engine, Party, Timer};

/// In a session's table: nothing is known of this job any more.
pub(super) const FORGOTTEN: u32 = NONE;
/// In a session's table: nothing is known of this job any more except that its result was taken.
pub(super) const FORGOTTEN_TAKEN: u32 = NONE - 1;

/// So many places of forgotten jobs are never worth a look.
const RETENTION_SLACK: usize = 1_024;

/// One application.
#[derive(Debug)]
pub(super) struct Application {
    pub(super) id: ApplicationId,
    pub(super) presence: Presence,
    on_disconnect: OnDisconnect,
    pub(super) progress_rtt_test: Duration,
    /// All its sessions that are remembered.
    sessions: BTreeSet<u32>,
    pub(super) credit: Credit,
    /// Wanted results that wait for credit.
    pub(super) outbox: VecDeque<JobHandle>,
    pub(super) totals: Totals,
    pub(super) totals_sent: Totals,
    pub(super) totals_sent_at: Option<Moment>,
    /// Whether a timer will look at the totals.
    pub(super) totals_timer: bool,
    /// Slots of its open attempts at trusted workers.
    pub(super) slots_in_use: u32,
    /// When it was last served.
    pub(super) turn: u64,
    /// Its place in the order of service, if it has a job that may be placed.
    pub(super) key: Option<(u32, u64, u32)>,
    /// Queues with a job that may be placed, in order.
    pub(super) ready: BTreeSet<ReadyKey>,
    /// Attempts that were sent ahead of a free slot, by priority.
    pub(super) ahead: BTreeSet<(i32, u32)>,
    /// Services by program and name.
    services: BTreeMap<(u32, Arc<str>), u32>,
}

/// Whether an application is connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Presence {
    /// It is, for this session.
    Here { peer: Peer, session: u32 },
    /// Its connection has ended.
    Away { since: Moment },
}

/// One start of an application.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) application: u32,
    pub(super) bundle: u32,
    services: Vec<u32>,
    /// Sequences up to here never came: a scheduler that lost its store took them, and the session goes on behind them.
    base: u64,
    /// What became of each later sequence: its job, or [`FORGOTTEN`] (refused ones are), or [`FORGOTTEN_TAKEN`].
    table: Vec<u32>,
    /// Every sequence up to here was accepted or refused, and the application may be told.
    pub(super) accepted: u64,
    /// How many of its jobs are remembered.
    jobs: u64,
    /// Who was told of the jobs that it wants.
    pub(super) listener: Option<Peer>,
    /// It has ended: its jobs are forgotten as soon as they are terminal.
    stopped: bool,
}

impl Session {
    /// The last sequence that was submitted.
    pub(super) fn received(&self) -> u64 {
        self.base + self.table.len() as u64
    }

    /// The sequences that came.
    pub(super) fn known(&self) -> RangeInclusive<u64> {
        self.base + 1..=self.received()
    }

    /// Where in the table a sequence is, if it came.
    fn index(&self, sequence: u64) -> Option<usize> {
        let index = usize::try_from(sequence.checked_sub(self.base)?.checked_sub(1)?).ok()?;
        (index < self.table.len()).then_some(index)
    }

    /// The job with this sequence, if it is remembered.
    pub(super) fn job(&self, sequence: u64) -> Option<u32> {
        let job = self.table[self.index(sequence)?];
        (job != FORGOTTEN && job != FORGOTTEN_TAKEN).then_some(job)
    }

    /// Whether this job's result was taken before the job was forgotten.
    pub(super) fn was_taken(&self, sequence: u64) -> bool {
        self.index(sequence).is_some_and(|index| self.table[index] == FORGOTTEN_TAKEN)
    }

    /// The sequences of these ranges that were submitted.
    pub(super) fn submitted(&self, ranges: &[(u64, u64)]) -> Vec<u64> {
        let (oldest, newest) = self.known().into_inner();
        ranges.iter().flat_map(|&(first, last)| first.max(oldest)..=last.min(newest)).collect()
    }
}

impl Engine {
    pub(super) fn attach(&mut self, peer: Peer, attach: Attach) {
        if let Err(what) = self.check_attach(peer, &attach) {
            return self.violation(peer, what);
        }
        let Attach { application: id, session: session_id, bundle, services, .. } = attach;
        if let Some(&known) = self.application_ids.get(&id)
            && let Presence::Here { peer: old, .. } = self.applications[known].presence
        {
            self.actions.push(Action::Disconnect { peer: old, reason: Reason::Superseded });
            self.disconnected(old);
        }
        // Looked up only now: one that was stopped is forgotten when it has left.
        let application = self.application_ids.get(&id).copied().unwrap_or_else(|| self.new_application(id));
        self.forget_away_timers(application);
        let record = &mut self.applications[application];
        record.on_disconnect = attach.on_disconnect;
        record.progress_rtt_test = attach.progress_rtt_test;
        record.credit = attach.credit;
        record.totals_sent = Totals::default();
        record.totals_sent_at = None;
        let session = match self.session_ids.get(&session_id) {
            Some(&session) => session,
            None => {
                self.persist(Record::SessionOpened {
                    session: session_id,
                    application: id,
                    bundle: bundle.clone(),
                    services: services.clone(),
                    on_disconnect: attach.on_disconnect,
                });
                let bundle = self.bundles.intern(bundle);
                self.new_session(application, session_id, bundle, services)
            }
        };
        self.applications[application].presence = Presence::Here { peer, session };
        self.peers.insert(peer, Party::Application(application));
        self.sessions[session].listener = Some(peer);
        self.use_bundle(self.sessions[session].bundle);
        let accepted_through = self.sessions[session].accepted;
        self.send(peer, Message::Attached { epoch: self.settings.epoch, accepted_through });
        self.note(Note::ApplicationAttached { application: id, session: session_id });
        self.totals_changed(application);
    }

    fn check_attach(&self, peer: Peer, attach: &Attach) -> Result<(), String> {
        if self.peers.contains_key(&peer) {
            return Err("attached twice on one connection".to_owned());
        }
        if attach.services.len() > SERVICES_PER_BUNDLE {
            return Err(format!(
                "{} services: at most {SERVICES_PER_BUNDLE} are allowed",
                attach.services.len()
            ));
        }
        if let Some(name) = attach.services.iter().find(|name| name.len() > SERVICE_NAME_BYTES) {
            let start: String = name.chars().take(40).collect();
            return Err(format!(
                "a service name that begins `{start}`: longer than {SERVICE_NAME_BYTES} bytes"
            ));
        }
        let Some(&session) = self.session_ids.get(&attach.session) else { return Ok(()) };
        let session = &self.sessions[session];
        let names = session.services.iter().map(|&service| &*self.services[service].name);
        let same = self.applications[session.application].id == attach.application
            && self.bundles[session.bundle].reference == attach.bundle
            && names.eq(attach.services.iter().map(String::as_str));
        if same {
            Ok(())
        } else {
            Err("a session keeps its application, its program and its services".to_owned())
        }
    }

    fn new_application(&mut self, id: ApplicationId) -> u32 {
        let application = self.applications.insert(Application {
            id,
            presence: Presence::Away { since: self.now },
            on_disconnect: OnDisconnect::Keep,
            progress_rtt_test: Duration::ZERO,
            sessions: BTreeSet::new(),
            credit: Credit::default(),
            outbox: VecDeque::new(),
            totals: Totals::default(),
            totals_sent: Totals::default(),
            totals_sent_at: None,
            totals_timer: false,
            slots_in_use: 0,
            turn: 0,
            key: None,
            ready: BTreeSet::new(),
            ahead: BTreeSet::new(),
            services: BTreeMap::new(),
        });
        self.application_ids.insert(id, application);
        application
    }

    fn new_session(&mut self, application: u32, id: SessionId, bundle: u32, services: Vec<String>) -> u32 {
        let services = services
            .into_iter()
            .map(|name| {
                let name: Arc<str> = name.into();
                let known = &mut self.applications[application].services;
                let service = *known
                    .entry((bundle, Arc::clone(&name)))
                    .or_insert_with(|| self.services.insert(Service::new(application, bundle, name)));
                self.services[service].sessions += 1;
                service
            })
            .collect();
        let session = self.sessions.insert(Session {
            id,
            application,
            bundle,
            services,
            base: 0,
            table: Vec::new(),
            accepted: 0,
            jobs: 0,
            listener: None,
            stopped: false,
        });
        self.session_ids.insert(id, session);
        self.applications[application].sessions.insert(session);
        session
    }

    /// The application and session of a connection.
    pub(super) fn attached(&self, peer: Peer) -> Option<(u32, u32)> {
        let Party::Application(application) = *self.peers.get(&peer)? else { return None };
        match self.applications[application].presence {
            Presence::Here { session, .. } => Some((application, session)),
            Presence::Away { .. } => None,
        }
    }

    /// The session that an application speaks of, if it is one of its own.
    pub(super) fn session_of(&self, peer: Peer, session: SessionId) -> Option<u32> {
        let (application, _) = self.attached(peer)?;
        let session = *self.session_ids.get(&session)?;
        (self.sessions[session].application == application).then_some(session)
    }

    pub(super) fn submit(&mut self, peer: Peer, first: u64, options: Vec<JobOptions>, jobs: Vec<NewJob>) {
        let Some((application, session)) = self.attached(peer) else { return };
        let record = &self.sessions[session];
        if jobs.len() > SUBMIT_JOBS || options.len() > SUBMIT_JOBS {
            return self.violation(peer, format!("a submit of more than {SUBMIT_JOBS} jobs"));
        }
        if first > u64::MAX - jobs.len() as u64 {
            return self.violation(peer, format!("a submit from {first} on: there are no such sequences"));
        }
        if record.stopped {
            return self.violation(peer, "a submit after the application was stopped");
        }
        let record = &mut self.sessions[session];
        if record.received() == 0 {
            // The session may have begun at a scheduler that lost it.
            record.base = first.saturating_sub(1);
            record.accepted = record.base;
        }
        let received = record.received();
        if first == 0 || first > received + 1 {
            return self.violation(peer, format!("a submit from {first} on where {} was next", received + 1));
        }
        // Those that came before, on this connection or an earlier one.
        let known = usize::try_from(received + 1 - first).unwrap_or(usize::MAX).min(jobs.len());
        let fresh = jobs[known..].to_vec();
        if fresh.is_empty() {
            let through = record.accepted;
            return self.send(peer, Message::Accepted { through });
        }
        self.submit_fresh(application, session, peer, options, fresh);
        if self.is_decided(self.sessions[session].bundle) {
            self.advance_accepted(session);
        }
    }

    fn submit_fresh(
        &mut self,
        application: u32,
        session: u32,
        peer: Peer,
        options: Vec<JobOptions>,
        jobs: Vec<NewJob>,
    ) {
        let refusals: Vec<Option<String>> =
            options.iter().map(|options| options.validate().err().map(|error| error.to_string())).collect();
        let options: Arc<[JobOptions]> = options.into();
        let first = self.sessions[session].received() + 1;
        let bundle = self.sessions[session].bundle;
        let mut specs: BTreeMap<(u16, u16), u32> = BTreeMap::new();
        let mut refused = Vec::new();
        for (sequence, job) in (first..).zip(&jobs) {
            if let Some(reason) = self.refusal(session, job, &refusals) {
                self.sessions[session].table.push(FORGOTTEN);
                refused.push((sequence, reason));
                continue;
            }
            let spec = match specs.get(&(job.service, job.options)) {
                Some(&spec) => spec,
                None => {
                    let service = self.sessions[session].services[usize::from(job.service)];
                    let spec = self.spec_for(service, &options[usize::from(job.options)]);
                    specs.insert((job.service, job.options), spec);
                    spec
                }
            };
            let index = self.jobs.insert(session, sequence, spec, self.now);
            let record = &mut self.sessions[session];
            record.table.push(index);
            record.jobs += 1;
            self.applications[application].totals.queued += 1;
            self.use_bundle(bundle);
            self.queue_job(index);
        }
        self.totals_changed(application);
        let sequences = refused.iter().map(|&(sequence, _)| sequence).collect();
        let id = self.sessions[session].id;
        self.persist(Record::Submitted { session: id, first, options, jobs, refused: sequences });
        for (sequence, reason) in refused {
            self.send(peer, Message::Refused { sequence, reason });
        }
        if let Availability::Failed(reason) = self.bundles[bundle].availability.clone() {
            self.fail_queued(bundle, &reason);
        }
    }

    /// Why a job isn't taken, if it isn't.
    fn refusal(&self, session: u32, job: &NewJob, refusals: &[Option<String>]) -> Option<String> {
        let services = self.sessions[session].services.len();
        if usize::from(job.service) >= services {
            return Some(format!(
                "service number {} of a program with {services}: services are named when the application starts",
                job.service
            ));
        }
        if u64::from(job.payload_bytes) > BODY_BYTES {
            return Some(format!(
                "a payload of {} bytes: at most {BODY_BYTES} are allowed, larger data belongs into files",
                job.payload_bytes
            ));
        }
        match refusals.get(usize::from(job.options)) {
            Some(refusal) => refusal.clone(),
            None => Some(format!("options number {} of a submit with {}", job.options, refusals.len())),
        }
    }

    fn is_decided(&self, bundle: u32) -> bool {
        self.bundles[bundle].availability != Availability::Awaited
    }

    /// The session's bundle is here, or will never be: all that was submitted is accepted.
    pub(super) fn advance_accepted(&mut self, session: u32) {
        let record = &mut self.sessions[session];
        if record.accepted == record.received() {
            return;
        }
        record.accepted = record.received();
        let (application, through) = (record.application, record.accepted);
        if let Presence::Here { peer, session: current } = self.applications[application].presence
            && current == session
        {
            self.send(peer, Message::Accepted { through });
        }
    }

    pub(super) fn cancel_of_application(&mut self, peer: Peer, session: SessionId, ranges: &[(u64, u64)]) {
        let Some(session) = self.session_of(peer, session) else { return };
        for sequence in self.sessions[session].submitted(ranges) {
            if let Some(job) = self.sessions[session].job(sequence) {
                self.cancel_job(job, cancelled());
            }
        }
    }

    pub(super) fn cancel_by_command(&mut self, jobs: &[JobId]) {
        for &id in jobs {
            if let Some(job) = self.find_job(id) {
                self.cancel_job(job, Failure::new(FailureKind::Cancelled, "cancelled by `lrts cancel`"));
            }
        }
    }

    /// The job of this id, if it is remembered.
    pub(super) fn find_job(&self, id: JobId) -> Option<u32> {
        self.sessions[*self.session_ids.get(&id.session)?].job(id.sequence)
    }

    pub(super) fn stop(&mut self, peer: Peer) {
        let Some((application, _)) = self.attached(peer) else { return };
        self.note(Note::ApplicationStopped { application: self.applications[application].id });
        // The last that its display shows: all that was done, and what is cancelled as still to be done.
        self.send_totals(application);
        for session in self.applications[application].sessions.clone() {
            self.sessions[session].stopped = true;
            for job in self.remembered(session) {
                if self.jobs.nodes[job].is_terminal() {
                    self.forget_job(job);
                } else {
                    self.cancel_job(job, cancelled());
                }
            }
        }
        self.send(peer, Message::Stopped);
    }

    /// All jobs of a session that are remembered.
    fn remembered(&self, session: u32) -> Vec<u32> {
        let known = |job: &u32| *job != FORGOTTEN && *job != FORGOTTEN_TAKEN;
        self.sessions[session].table.iter().copied().filter(known).collect()
    }

    /// A job has become terminal: its result is sent if it is wanted; a stopped session has no use for it.
    pub(super) fn ended_job(&mut self, job: u32) {
        if self.sessions[self.jobs.nodes[job].session].stopped {
            self.forget_job(job);
        } else {
            self.deliver(job);
        }
    }

    /// Forgets a terminal job, and what it was the last of.
    pub(super) fn forget_job(&mut self, job: u32) {
        let id = self.job_id(job);
        let node = self.forget_node(job);
        self.persist(Record::JobForgotten { job: id });
        let session = &mut self.sessions[node.session];
        let index = session.index(node.sequence).expect("a job's sequence came");
        session.table[index] = if node.delivery == Delivery::Taken { FORGOTTEN_TAKEN } else { FORGOTTEN };
        session.jobs -= 1;
        let application = session.application;
        self.tidy_retention();
        self.forget_if_over(application);
    }

    /// Drops the places of jobs that were forgotten before their time, once these are the most.
    fn tidy_retention(&mut self) {
        if self.retention.len() > 2 * self.jobs.ended.len() + RETENTION_SLACK {
            self.retention.retain(|&(_, job)| self.jobs.is_current(job));
        }
    }

    /// Forgets an absent application without jobs, at once if it was stopped, else once it is no longer remembered.
    fn forget_if_over(&mut self, application: u32) {
        let record = &self.applications[application];
        let Presence::Away { since } = record.presence else { return };
        let expired = self.now.since(since) >= self.settings.result_retention;
        for session in record.sessions.clone() {
            let record = &self.sessions[session];
            if record.jobs == 0 && (record.stopped || expired) {
                self.forget_session(session);
            }
        }
        let record = &self.applications[application];
        if record.sessions.is_empty() {
            let id = record.id;
            self.forget_away_timers(application);
            self.application_ids.remove(&id);
            self.applications.remove(application);
        }
    }

    fn forget_session(&mut self, session: u32) {
        let record = self.sessions.remove(session);
        self.session_ids.remove(&record.id);
        let owner = &mut self.applications[record.application];
        owner.sessions.remove(&session);
        for service in record.services {
            self.services[service].sessions -= 1;
            if self.services[service].sessions == 0 {
                let gone = self.services.remove(service);
                owner.services.remove(&(gone.bundle, gone.name));
            }
        }
        self.persist(Record::SessionForgotten { session: record.id });
    }

    pub(super) fn application_left(&mut self, application: u32) {
        let now = self.now;
        let record = &mut self.applications[application];
        let Presence::Here { session, .. } = record.presence else { return };
        record.presence = Presence::Away { since: now };
        record.outbox.clear();
        let (id, on_disconnect) = (record.id, record.on_disconnect);
        self.release_bundle(self.sessions[session].bundle);
        self.note(Note::ApplicationLeft { application: id });
        self.timers.extend(away_timers(application, now, on_disconnect, self.settings.result_retention));
        self.forget_if_over(application);
    }

    /// An application is back, or forgotten: its absence isn't looked at any more.
    fn forget_away_timers(&mut self, application: u32) {
        let record = &self.applications[application];
        let Presence::Away { since } = record.presence else { return };
        let timers = away_timers(application, since, record.on_disconnect, self.settings.result_retention);
        for timer in timers {
            self.timers.remove(&timer);
        }
    }

    /// An application has been away for some time.
    pub(super) fn away(&mut self, application: u32) {
        let Some(record) = self.applications.get(application) else { return };
        let Presence::Away { since } = record.presence else { return };
        let away = self.now.since(since);
        if let OnDisconnect::CancelAfter(allowed) = record.on_disconnect
            && away >= allowed
            && record.totals.queued + record.totals.running > 0
        {
            let (id, sessions) = (record.id, record.sessions.clone());
            self.note(Note::ApplicationCancelled { application: id });
            let reason = format!("cancelled: its application was away for {} s", away.as_secs());
            for session in sessions {
                for job in self.remembered(session) {
                    self.cancel_job(job, Failure::new(FailureKind::Cancelled, reason.clone()));
                }
            }
        }
        if self.applications.get(application).is_some() {
            self.forget_if_over(application);
        }
    }

    /// Where a job stands, if it is remembered.
    pub(crate) fn state(&self, id: JobId) -> Option<JobState> {
        self.find_job(id).map(|job| self.jobs.nodes[job].state())
    }
}

/// When the absence of an application that left at `since` is looked at.
fn away_timers(
    application: u32,
    since: Moment,
    on_disconnect: OnDisconnect,
    retention: Duration,
) -> impl Iterator<Item = (Moment, Timer)> {
    let allowed = match on_disconnect {
        OnDisconnect::CancelAfter(allowed) => Some(allowed),
        OnDisconnect::Keep | _ => None,
    };
    allowed.into_iter().chain([retention]).map(move |wait| (since + wait, Timer::Away(application)))
}
