//! Applications: how they come and go, and which jobs they have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{ApplicationId, JobId, SessionId};
use lrts_core::limits::{ORPHAN_GRACE, SERVICE_NAME_BYTES, SERVICES_PER_BUNDLE};
use lrts_core::spec::OnDisconnect;
use lrts_core::status::{Failure, FailureKind, JobState};

use super::attempts::cancelled;
use super::delivery::Outbox;
use super::events::{Action, Attach, Credit, Message, Note, Peer, Reason, Totals};
use super::jobs::{Delivery, ReadyKey, Service};
use super::owners::owner_after;
use super::questions::Questions;
use super::sessions::{Mark, Program, Session};
use super::{Engine, Party, Timer};
use crate::record::{ApplicationImage, Record, SessionImage};

/// One application.
#[derive(Debug)]
pub(super) struct Application {
    pub(super) id: ApplicationId,
    pub(super) presence: Presence,
    pub(super) terms: ApplicationImage,
    /// All its sessions that are remembered.
    pub(super) sessions: BTreeSet<u32>,
    pub(super) credit: Credit,
    /// Wanted results that wait for credit.
    pub(super) outbox: Outbox,
    pub(super) questions: Questions,
    pub(super) totals: Totals,
    /// Of the payloads of its jobs that haven't ended, roughly.
    pub(super) payload_bytes: u64,
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
    /// Programs that it needs: for how many jobs that haven't ended, and by being attached.
    pub(super) needs: BTreeMap<u32, u64>,
    /// Why programs of its can't be had: of each what it offered last was of no use.
    pub(super) failed_programs: BTreeMap<u32, Arc<str>>,
    /// How many of its sessions nobody would miss, from some moment on.
    pub(super) spare_sessions: usize,
    /// From when on nobody would miss it itself.
    pub(super) spare_from: Option<Moment>,
}

/// Whether an application is connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Presence {
    /// It is, for this session.
    Here { peer: Peer, session: u32 },
    /// Its connection has ended, and it is remembered until then, or for as long as it has jobs.
    Away { since: Moment, until: Moment },
}

impl Application {
    /// How many services its programs have.
    pub(super) fn services(&self) -> usize {
        self.services.len()
    }
}

impl Engine {
    pub(super) fn attach(&mut self, peer: Peer, attach: Attach) {
        let known = self.application_ids.get(&attach.application).map(|&known| &self.applications[known]);
        let before = known.and_then(|application| application.terms.owner.as_ref());
        let Ok(owner) = owner_after(before, attach.user.as_ref()) else {
            self.note(Note::ForeignApplication { application: attach.application });
            return self.part(peer, Reason::Owner(attach.application));
        };
        if let Err(what) = self.check_attach(peer, &attach) {
            return self.violation(peer, what);
        }
        if let Some(what) = self.make_room_for(&attach) {
            return self.part(peer, Reason::Full(what));
        }
        if let Some(&known) = self.application_ids.get(&attach.application)
            && let Presence::Here { peer: old, .. } = self.applications[known].presence
        {
            self.actions.push(Action::Disconnect { peer: old, reason: Reason::Superseded });
            self.disconnected(old);
            // The start that was superseded may be what makes room.
            if let Some(&known) = self.application_ids.get(&attach.application) {
                self.no_room_for_session(known, &attach);
            }
        }
        let Attach { application: id, session: session_id, bundle, services, .. } = attach;
        // Looked up only now: one that was stopped is forgotten when it has left.
        let application = self.application_ids.get(&id).copied().unwrap_or_else(|| self.new_application(id));
        self.forget_away_timers(application);
        let (on_disconnect, progress_rtt_test) = (attach.on_disconnect, attach.progress_rtt_test);
        self.set_terms(application, ApplicationImage { owner, on_disconnect, progress_rtt_test });
        let record = &mut self.applications[application];
        record.credit = attach.credit;
        record.totals_sent = Totals::default();
        record.totals_sent_at = None;
        let session = match self.session_ids.get(&session_id) {
            Some(&session) => session,
            None => {
                let image =
                    SessionImage { application: id, bundle, services, decided: false, stopped: false };
                let session = self.new_session(application, session_id, image);
                self.keep_session(session);
                session
            }
        };
        let record = &self.sessions[session];
        if record.accepted < record.received() && self.is_program_decided(session) {
            self.program_decided(session);
        }
        self.applications[application].presence = Presence::Here { peer, session };
        self.refresh_spare(session);
        self.peers.insert(peer, Party::Application(application));
        self.sessions[session].listener = Some(peer);
        self.use_bundle(application, self.bundle_of(session));
        let accepted_through = self.sessions[session].accepted;
        self.send(peer, Message::Attached { epoch: self.settings.epoch, accepted_through });
        let user = self.applications[application].terms.owner.clone();
        self.note(Note::ApplicationAttached { application: id, user, session: session_id });
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
        if attach.session.is_of_keys() {
            return Err("a session that is the place of an application's keys".to_owned());
        }
        let Some(&session) = self.session_ids.get(&attach.session) else { return Ok(()) };
        let session = &self.sessions[session];
        let same = session.program.as_ref().is_some_and(|program| {
            let names = program.services.iter().map(|&service| &*self.services[service].name);
            self.applications[session.application].id == attach.application
                && self.bundles[program.bundle].reference == attach.bundle
                && names.eq(attach.services.iter().map(String::as_str))
        });
        if same {
            Ok(())
        } else {
            Err("a session keeps its application, its program and its services".to_owned())
        }
    }

    fn set_terms(&mut self, application: u32, terms: ApplicationImage) {
        let record = &mut self.applications[application];
        if record.terms != terms || record.sessions.is_empty() {
            if let Some(owner) = terms.owner.clone().filter(|_| record.terms.owner.is_none()) {
                self.give_application(application, owner);
            }
            let record = &mut self.applications[application];
            record.terms = terms.clone();
            let application = record.id;
            self.persist(Record::Application { application, image: terms });
        }
    }

    pub(super) fn new_application(&mut self, id: ApplicationId) -> u32 {
        let application = self.applications.insert(Application {
            id,
            presence: Presence::Away { since: self.now, until: self.now + self.settings.result_retention },
            terms: ApplicationImage {
                owner: None,
                on_disconnect: OnDisconnect::Keep,
                progress_rtt_test: Duration::ZERO,
            },
            sessions: BTreeSet::new(),
            credit: Credit::default(),
            outbox: Outbox::default(),
            questions: Questions::default(),
            totals: Totals::default(),
            payload_bytes: 0,
            totals_sent: Totals::default(),
            totals_sent_at: None,
            totals_timer: false,
            slots_in_use: 0,
            turn: 0,
            key: None,
            ready: BTreeSet::new(),
            ahead: BTreeSet::new(),
            services: BTreeMap::new(),
            needs: BTreeMap::new(),
            failed_programs: BTreeMap::new(),
            spare_sessions: 0,
            spare_from: None,
        });
        self.application_ids.insert(id, application);
        application
    }

    pub(super) fn new_session(&mut self, application: u32, id: SessionId, image: SessionImage) -> u32 {
        let bundle = self.bundles.intern(image.bundle);
        // It may bring what others had not.
        self.applications[application].failed_programs.remove(&bundle);
        let services = image
            .services
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
        let mut session = Session::new(id, application, Some(Program { bundle, services }));
        session.decided = image.decided;
        session.stopped = image.stopped;
        self.add_session(session)
    }

    pub(super) fn add_session(&mut self, session: Session) -> u32 {
        let (id, application) = (session.id, session.application);
        let bundle = session.program.as_ref().map(|program| program.bundle);
        let session =
            self.sessions.insert(Session { left: self.now, kept: self.settings.result_retention, ..session });
        self.session_ids.insert(id, session);
        self.applications[application].sessions.insert(session);
        if let Some(bundle) = bundle {
            self.bundles.add_session(bundle, application, session);
            self.hold_program(application, bundle);
        }
        self.refresh_spare(session);
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

    pub(super) fn cancel_of_application(&mut self, peer: Peer, session: SessionId, ranges: &[(u64, u64)]) {
        let Some(session) = self.session_of(peer, session) else { return };
        for sequence in self.sessions[session].marked(Mark::Cancellable, ranges) {
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

    pub(super) fn cancel_application(&mut self, id: ApplicationId) {
        let Some(&application) = self.application_ids.get(&id) else { return };
        let failure = Failure::new(FailureKind::Cancelled, "cancelled by `lrts cancel --application`");
        self.cancel_all(application, &failure);
    }

    /// The jobs of a session with a mark.
    fn jobs_with(&self, session: u32, mark: Mark) -> Vec<u32> {
        let session = &self.sessions[session];
        let all = session.marked(mark, &[(0, u64::MAX)]);
        all.into_iter().filter_map(|sequence| session.job(sequence)).collect()
    }

    fn cancel_all(&mut self, application: u32, failure: &Failure) {
        let sessions = self.applications[application].sessions.iter();
        let jobs: Vec<u32> =
            sessions.flat_map(|&session| self.jobs_with(session, Mark::Cancellable)).collect();
        for job in jobs {
            // Ends make room for results, of which the oldest are forgotten.
            if self.jobs.nodes.get(job).is_some() {
                self.cancel_job(job, failure.clone());
            }
        }
    }

    /// An application means to come back, whatever it said of disconnects.
    pub(super) fn detach(&mut self, peer: Peer) {
        let Some((application, _)) = self.attached(peer) else { return };
        let terms = self.applications[application].terms.clone();
        self.set_terms(application, ApplicationImage { on_disconnect: OnDisconnect::Keep, ..terms });
        self.send(peer, Message::Detached);
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
            if !self.stop_session(session) {
                // What has ended since is forgotten.
                let jobs = self.jobs_with(session, Mark::Cancellable);
                jobs.into_iter().for_each(|job| self.cancel_job(job, cancelled()));
                continue;
            }
            let (ended, others): (Vec<u32>, Vec<u32>) = self.sessions[session]
                .remembered()
                .into_iter()
                .partition(|&job| self.jobs.nodes[job].is_terminal());
            ended.into_iter().for_each(|job| self.forget_job(job));
            others.into_iter().for_each(|job| self.cancel_job(job, cancelled()));
        }
        self.send(peer, Message::Stopped);
    }

    /// Stops a session, if it isn't stopped already. Returns whether it wasn't.
    fn stop_session(&mut self, session: u32) -> bool {
        let is_news = !std::mem::replace(&mut self.sessions[session].stopped, true);
        if is_news {
            self.refresh_spare(session);
            self.keep_session(session);
        }
        is_news
    }

    /// Keeps what is known of a session. That of keys follows from its jobs.
    pub(super) fn keep_session(&mut self, session: u32) {
        let record = &self.sessions[session];
        let Some(program) = &record.program else { return };
        let image = SessionImage {
            application: self.applications[record.application].id,
            bundle: self.bundles[program.bundle].reference.clone(),
            services: program
                .services
                .iter()
                .map(|&service| self.services[service].name.to_string())
                .collect(),
            decided: record.decided,
            stopped: record.stopped,
        };
        let session = record.id;
        self.persist(Record::Session { session, image });
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
        self.let_go(job);
        self.changed.remove(&job);
        self.tell_forgotten(job);
        let node = self.forget_node(job);
        let taken = node.delivery == Delivery::Taken;
        self.persist(Record::JobForgotten { job: id, taken });
        if self.jobs.astray.remove(&job) && self.sessions[node.session].is_keyed() {
            self.jobs.left.insert(id, node.attempts);
            self.jobs.left_until.push_back((self.now + ORPHAN_GRACE, id));
        }
        let session = &mut self.sessions[node.session];
        session.forget(node.sequence, taken);
        session.jobs -= 1;
        let was_last = session.jobs == 0;
        self.refresh_spare_by_jobs(node.session);
        if was_last {
            self.lost_last_job(node.session);
        }
    }

    /// A session has no job any more. Many do at a time, so that only the end of its keys is worth a look at all sessions of an
    /// application.
    fn lost_last_job(&mut self, session: u32) {
        let Session { application, .. } = self.sessions[session];
        if self.sessions[session].is_keyed() {
            self.forget_if_over(application);
        } else if self.is_over(session) {
            self.forget_session(session);
            self.forget_if_empty(application);
        }
    }

    /// Whoever waits for a result that retention ends hears that it won't come.
    fn tell_forgotten(&mut self, job: u32) {
        let node = &self.jobs.nodes[job];
        let session = &self.sessions[node.session];
        if let Some(peer) = session.listener
            && self.peers.contains_key(&peer)
            && !session.stopped
            && matches!(node.delivery, Delivery::Wanted | Delivery::Urgent)
        {
            let job = self.job_id(job);
            self.send(peer, Message::Gone { job, taken: false });
        }
    }

    /// Forgets an absent application without jobs, at once if it was stopped, else once it is no longer remembered.
    pub(super) fn forget_if_over(&mut self, application: u32) {
        if matches!(self.applications[application].presence, Presence::Here { .. }) {
            return;
        }
        for session in self.applications[application].sessions.clone() {
            if self.is_over(session) {
                self.forget_session(session);
            }
        }
        self.forget_if_empty(application);
    }

    /// Whether nothing of a session is to be remembered any more: it has no job, nor has its application any with a key.
    fn is_over(&self, session: u32) -> bool {
        let record = &self.sessions[session];
        let Presence::Away { until, .. } = self.applications[record.application].presence else {
            return false;
        };
        record.jobs == 0 && (record.stopped || self.now >= until) && !self.has_keys(record.application)
    }

    /// A session has its first job now, or has lost its last one.
    pub(super) fn refresh_spare_by_jobs(&mut self, session: u32) {
        let record = &self.sessions[session];
        match record.jobs {
            0 | 1 if record.is_keyed() => self.refresh_spare_of(record.application),
            0 | 1 => self.refresh_spare(session),
            _ => {}
        }
    }

    /// Whether there are jobs with a key. They outlive the start that submitted them, but not what is known of its program.
    pub(super) fn has_keys(&self, application: u32) -> bool {
        let keyed = self.session_ids.get(&SessionId::keyed(self.applications[application].id));
        let keyed = keyed.map(|&session| &self.sessions[session]);
        keyed.is_some_and(|session| session.application == application && session.jobs > 0)
    }

    /// Forgets an absent application of which no session is left.
    pub(super) fn forget_if_empty(&mut self, application: u32) {
        let record = &self.applications[application];
        if record.sessions.is_empty() {
            let id = record.id;
            self.forget_away_timers(application);
            self.application_ids.remove(&id);
            let gone = self.applications.remove(application);
            if let Some(owner) = gone.terms.owner {
                self.take_application(&owner);
            }
            self.persist(Record::ApplicationForgotten { application: id });
        }
    }

    pub(super) fn forget_session(&mut self, session: u32) {
        self.set_spare(session, None);
        let record = self.sessions.remove(session);
        self.session_ids.remove(&record.id);
        let owner = &mut self.applications[record.application];
        owner.sessions.remove(&session);
        if let Some(Program { bundle, services }) = record.program {
            self.drop_program(record.application, bundle);
            let owner = &mut self.applications[record.application];
            if !self.bundles.remove_session(bundle, record.application, session) {
                owner.failed_programs.remove(&bundle);
            }
            for service in services {
                self.services[service].sessions -= 1;
                if self.services[service].sessions == 0 {
                    let gone = self.services.remove(service);
                    owner.services.remove(&(gone.bundle, gone.name));
                }
            }
        }
        self.refresh_spare_application(record.application);
        self.persist(Record::SessionForgotten { session: record.id });
    }

    pub(super) fn application_left(&mut self, application: u32) {
        let (now, kept) = (self.now, self.settings.result_retention);
        let record = &mut self.applications[application];
        let Presence::Here { peer, session } = record.presence else { return };
        record.presence = Presence::Away { since: now, until: now + kept };
        record.questions = Questions::default();
        self.asking.retain(|&other| other != peer);
        let unsent = std::mem::take(&mut record.outbox);
        let id = record.id;
        for job in unsent.0 {
            if self.jobs.is_current(job) {
                self.no_longer_wanted(job.index);
            }
        }
        let record = &mut self.sessions[session];
        (record.left, record.kept) = (now, kept);
        self.refresh_spare(session);
        self.release_bundle(application, self.bundle_of(session));
        self.note(Note::ApplicationLeft { application: id });
        self.start_absence(application);
        self.forget_if_over(application);
    }

    /// An application is away from now on, or was when the scheduler started: its absence is looked at in time.
    pub(super) fn start_absence(&mut self, application: u32) {
        self.timers.extend(self.absence_timers(application));
    }

    /// An application is back, or forgotten: its absence isn't looked at any more.
    fn forget_away_timers(&mut self, application: u32) {
        for timer in self.absence_timers(application) {
            self.timers.remove(&timer);
        }
    }

    /// When the absence of an application is looked at; never if it is here.
    fn absence_timers(&self, application: u32) -> Vec<(Moment, Timer)> {
        let record = &self.applications[application];
        let Presence::Away { since, until } = record.presence else { return Vec::new() };
        let allowed = match record.terms.on_disconnect {
            OnDisconnect::CancelAfter(allowed) => Some(since + allowed),
            OnDisconnect::Keep | _ => None,
        };
        allowed.into_iter().chain([until]).map(|at| (at, Timer::Away(application))).collect()
    }

    /// An application has been away for some time.
    pub(super) fn away(&mut self, application: u32) {
        let Some(record) = self.applications.get(application) else { return };
        let Presence::Away { since, .. } = record.presence else { return };
        let away = self.now.since(since);
        if let OnDisconnect::CancelAfter(allowed) = record.terms.on_disconnect
            && away >= allowed
            && record.totals.queued + record.totals.running > 0
        {
            let id = record.id;
            self.note(Note::ApplicationCancelled { application: id });
            let reason = format!("cancelled: its application was away for {} s", away.as_secs());
            self.cancel_all(application, &Failure::new(FailureKind::Cancelled, reason));
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
