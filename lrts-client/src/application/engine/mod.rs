//! What an application knows and what it says next, decided without I/O.
//!
//! The shell reports what happened ([`Engine::handle`]), asks what to send ([`Engine::next_step`]) whenever the link can take
//! a message, and carries out the [`Action`]s. The callers' side, [`waits`], registers waits and polls them. A job's result
//! stays at the scheduler until it has been *returned* to the caller, so whatever is dropped here can come again.
//!
//! Results that somebody waits for by name are asked for urgently; those of streams come under credit ([`window`]). Where
//! several streams are open and the results of one have used up the credit, a stream that is polled and has nothing asks for
//! its jobs urgently: so nobody starves, at the price of a larger buffer in that rare case.

mod jobs;
mod submits;
#[cfg(test)]
mod tests;
mod upload;
mod waits;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::Moment;
use lrts_core::ids::{ApplicationId, AttemptId, SessionId};
use lrts_core::limits::RESULT_WINDOW_BYTES;
use lrts_core::protocol::application::{Attach, FromApplication, JobReport, JobSet, ToApplication, Totals};
use lrts_core::protocol::progress::BarRecord;
use lrts_core::spec::{BundleRef, OnDisconnect};

use jobs::{Jobs, State, Want};
pub(crate) use submits::NewJob;
use submits::Submits;
pub(crate) use upload::Offer;
use upload::Upload;
use waits::Wait;
pub(crate) use waits::{Delivery, JobFault, Next, WaitError, WaitId};
use window::ResultWindow;

/// Confirmations of results wait this long for others, unless [`TAKEN_BATCH`] have gathered: a repeat after a crash is
/// harmless, so there is no hurry.
const TAKEN_DELAY: Duration = Duration::from_millis(10);
const TAKEN_BATCH: usize = 256;

/// Most ranges of one job set in a message, which keeps heads well below their bound.
const RANGES_PER_MESSAGE: usize = 100_000;

/// How long `stop` waits for a scheduler that is away, where the application sets no limit of its own.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What doesn't change while an application runs.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) application: ApplicationId,
    pub(crate) session: SessionId,
    pub(crate) services: Vec<String>,
    pub(crate) on_disconnect: OnDisconnect,
    pub(crate) progress_rtt_test: Duration,
    /// How long a wait may go without a scheduler.
    pub(crate) communication_time_out: Option<Duration>,
}

/// What happened outside.
#[derive(Debug)]
pub(crate) enum Event {
    /// The bundle is known: its digest was computed, or it is installed at the workers.
    BundleKnown(BundleRef, Option<Offer>),
    /// The program can't be read.
    BundleUnreadable(String),
    /// There is a connection.
    LinkUp,
    /// There is none any more.
    LinkDown,
    /// The scheduler won't have this application, and trying again is pointless.
    Refused(Fatal),
    /// The scheduler said something. With a body.
    Received(ToApplication, Bytes),
    /// A piece of the bundle was read, as asked for by [`Step::ReadChunk`]: offset, compressed bytes, length before.
    ChunkRead(u64, Bytes, u32),
    /// Time has passed.
    Tick,
}

/// What to do outside.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Action {
    /// Poll this wait again.
    Wake(WaitId),
    /// Show how many jobs stand where.
    ShowTotals(Totals),
    /// Show the final bars of a job that has ended.
    ShowEnded(AttemptId, Vec<BarRecord>),
}

/// What the link's sender does next.
#[derive(Clone, PartialEq, Debug)]
#[expect(clippy::large_enum_variant, reason = "made one at a time and taken apart at once")]
pub(crate) enum Step {
    /// Send this. With a body.
    Send(FromApplication, Bytes),
    /// Read the piece of the bundle at this offset and report [`Event::ChunkRead`].
    ReadChunk(u64),
    /// Wait until something changes, or for [`Engine::next_deadline`].
    Idle,
}

/// Why nothing works any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Fatal {
    /// A newer connection bears the same application id.
    Superseded,
    /// The scheduler speaks another version.
    Version(String),
    /// The scheduler doesn't take this application.
    Unauthorised(String),
    /// The program itself can't be read.
    Bundle(String),
    /// `stop` was called.
    Stopped,
}

/// The connection to the scheduler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Connection {
    /// None since then.
    Down(Moment),
    /// Nothing was said yet.
    Up,
    /// `Attach` was sent.
    Attaching,
    /// It was answered.
    Attached,
}

/// The end of the application.
#[derive(Debug)]
struct Stopping {
    sent: bool,
    answered: bool,
}

/// A result that is here.
#[derive(Debug)]
struct Arrived {
    report: JobReport,
    body: Bytes,
    /// It was sent under credit, which is granted anew once it is gone from here.
    under_credit: bool,
    /// Nobody waits for it. Such results are bounded.
    orphan: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Engine {
    settings: Settings,
    bundle: Option<BundleRef>,
    upload: Upload,
    connection: Connection,
    fatal: Option<Fatal>,
    stopping: Option<Stopping>,
    jobs: Jobs,
    submits: Submits,
    refusals: BTreeMap<u64, Arc<str>>,
    /// Refused or lost since the last flush.
    unreported: Option<u64>,
    arrived: BTreeMap<u64, Arrived>,
    orphan_bytes: u64,
    window: ResultWindow,
    waits: BTreeMap<WaitId, Wait>,
    last_wait: u32,
    /// Jobs to be asked for: urgently, under credit.
    urgent: Vec<u64>,
    wanted: Vec<u64>,
    taken: Vec<u64>,
    /// When they are sent.
    taken_due: Option<Moment>,
    /// Jobs that the user cancelled and that haven't ended.
    cancelled: BTreeSet<u64>,
    /// Those of them that the scheduler is to be told.
    to_cancel: Vec<u64>,
    submitted: bool,
    actions: Vec<Action>,
}

impl Engine {
    pub(crate) fn new(settings: Settings, now: Moment) -> Self {
        Self {
            settings,
            bundle: None,
            upload: Upload::default(),
            connection: Connection::Down(now),
            fatal: None,
            stopping: None,
            jobs: Jobs::new(),
            submits: Submits::default(),
            refusals: BTreeMap::new(),
            unreported: None,
            arrived: BTreeMap::new(),
            orphan_bytes: 0,
            window: ResultWindow::default(),
            waits: BTreeMap::new(),
            last_wait: 0,
            urgent: Vec::new(),
            wanted: Vec::new(),
            taken: Vec::new(),
            taken_due: None,
            cancelled: BTreeSet::new(),
            to_cancel: Vec::new(),
            submitted: false,
            actions: Vec::new(),
        }
    }

    fn session(&self) -> SessionId {
        self.settings.session
    }

    /// How many jobs the scheduler hasn't accepted.
    pub(crate) fn unsent(&self) -> usize {
        self.submits.len()
    }

    /// Whether `stop` was called.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopping.is_some()
    }

    /// Whether the scheduler was told everything and, where that counts, has acknowledged it; or never will be.
    pub(crate) fn is_settled(&self) -> bool {
        self.fatal.is_some() || self.taken.is_empty() && self.to_cancel.is_empty() && self.submits.len() == 0
    }

    /// Whether there is nothing to say now. While there is no connection nothing is certain.
    pub(crate) fn is_quiet(&self) -> bool {
        self.connection == Connection::Attached
            && self.stopping.is_none()
            && self.urgent.is_empty()
            && self.wanted.is_empty()
            && self.to_cancel.is_empty()
            && self.taken.len() < TAKEN_BATCH
            && !self.window.is_due()
            && !self.submits.has_unsent()
    }

    /// When confirmations are to be sent, if there are any.
    pub(crate) fn taken_due(&self) -> Option<Moment> {
        self.taken_due
    }

    /// Confirmations wait for nothing from now on.
    pub(crate) fn hurry(&mut self) {
        self.taken_due = self.taken_due.map(|_| Moment::default());
    }

    /// What to do now. Called after each of the other methods.
    pub(crate) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// When to send [`Event::Tick`], unless something else happens before.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        let waits = self.waits.values().filter_map(|wait| self.expiry(wait));
        waits.chain(self.taken_due.filter(|_| self.connection == Connection::Attached)).min()
    }

    /// Takes note of what happened.
    pub(crate) fn handle(&mut self, event: Event, now: Moment) {
        match event {
            Event::BundleKnown(bundle, offer) => {
                self.bundle = Some(bundle);
                self.upload.set_offer(offer);
            }
            Event::BundleUnreadable(reason) => self.fail(Fatal::Bundle(reason)),
            Event::LinkUp => {
                self.disconnect(now);
                self.connection = Connection::Up;
            }
            Event::LinkDown => self.disconnect(now),
            Event::Refused(fatal) => {
                self.disconnect(now);
                self.fail(fatal);
            }
            Event::Received(message, body) => self.receive(message, body),
            Event::ChunkRead(offset, bytes, length) => self.upload.chunk_read(offset, bytes, length),
            Event::Tick => self.expire_waits(now),
        }
    }

    fn disconnect(&mut self, now: Moment) {
        if !matches!(self.connection, Connection::Down(_)) {
            self.connection = Connection::Down(now);
        }
        self.upload.disconnect();
        if let Some(stopping) = &mut self.stopping {
            stopping.sent = false;
        }
    }

    fn fail(&mut self, fatal: Fatal) {
        self.fatal.get_or_insert(fatal);
        self.wake_all();
    }

    fn receive(&mut self, message: ToApplication, body: Bytes) {
        match message {
            ToApplication::Attached { accepted_through, .. } if self.connection == Connection::Attaching => {
                self.attached(accepted_through);
            }
            // The answer to an Attach of this connection comes before anything else.
            _ if self.connection != Connection::Attached => {}
            ToApplication::Attached { .. } => {}
            ToApplication::BundleWanted { digest, offset } => self.upload.wanted(digest, offset),
            ToApplication::BundleComplete { digest } => self.upload.complete(digest),
            ToApplication::BundleRefused { digest, reason } => {
                if self.upload.refused(digest, &reason) {
                    let reason: Arc<str> = reason.into();
                    self.submits.sequences().for_each(|sequence| self.refuse(sequence, Arc::clone(&reason)));
                }
            }
            ToApplication::Listed { .. } | ToApplication::Detached => {}
            ToApplication::Accepted { through } => self.accept(through),
            ToApplication::Refused { sequence, reason, .. } => self.refuse(sequence, reason.into()),
            ToApplication::Result { job, report } => {
                if job.session == self.settings.session {
                    self.arrive(job.sequence, report, body);
                }
            }
            ToApplication::Gone { job, taken } => {
                if job.session == self.settings.session {
                    self.end(job.sequence, if taken { State::Taken } else { State::Lost });
                }
            }
            ToApplication::Totals(totals) => self.actions.push(Action::ShowTotals(totals)),
            ToApplication::Stopped => {
                if let Some(stopping) = self.stopping.as_mut().filter(|stopping| stopping.sent) {
                    stopping.answered = true;
                    self.wake_all();
                }
            }
        }
    }

    /// The scheduler knows this session up to there. Whatever it may not have heard is said again.
    fn attached(&mut self, accepted_through: u64) {
        self.connection = Connection::Attached;
        for sequence in accepted_through + 1..=self.submits.accepted_through() {
            self.end(sequence, State::Lost);
        }
        self.accept(accepted_through);
        self.submits.rewind();
        self.urgent.clear();
        self.wanted.clear();
        self.to_cancel.clear();
        self.taken.clear();
        if self.jobs.base() > 1 {
            self.taken.extend(1..self.jobs.base());
        }
        let accepted = self.submits.accepted_through();
        for (sequence, entry) in self.jobs.iter_mut() {
            match entry.state {
                State::Open if entry.has_waiters() => match entry.want {
                    Want::Urgent if sequence <= accepted => self.urgent.push(sequence),
                    Want::Credit if sequence <= accepted => self.wanted.push(sequence),
                    Want::No | Want::Credit | Want::Urgent => {}
                },
                State::Open => entry.want = Want::No,
                State::Taken => self.taken.push(sequence),
                State::Arrived | State::Handed | State::Refused | State::Lost => {}
            }
        }
        if !self.taken.is_empty() {
            self.taken_due = Some(Moment::default());
        }
        self.to_cancel.extend(self.cancelled.range(..=accepted));
    }

    fn accept(&mut self, through: u64) {
        let passed = self.submits.accept(through);
        if passed.is_empty() {
            return;
        }
        for sequence in passed.clone() {
            match self.jobs.get(sequence).filter(|entry| entry.state == State::Open).map(|entry| entry.want) {
                Some(Want::Urgent) => self.urgent.push(sequence),
                Some(Want::Credit) => self.wanted.push(sequence),
                Some(Want::No) | None => {}
            }
        }
        self.to_cancel.extend(self.cancelled.range(passed));
        self.wake_submitters();
    }

    fn refuse(&mut self, sequence: u64, reason: Arc<str>) {
        if self.jobs.state(sequence) == State::Open {
            self.refusals.insert(sequence, reason);
            self.end(sequence, State::Refused);
        }
    }

    fn arrive(&mut self, sequence: u64, mut report: JobReport, body: Bytes) {
        let Some(entry) = self.jobs.get(sequence).filter(|entry| entry.state == State::Open) else { return };
        let (bytes, under_credit) = (body.len() as u64, entry.want == Want::Credit);
        if under_credit {
            self.window.arrived(bytes);
        }
        let attempt = AttemptId { job: self.settings.session.job(sequence), attempt: report.attempt };
        self.actions.push(Action::ShowEnded(attempt, std::mem::take(&mut report.bars)));
        if under_credit {
            self.window.hold(bytes);
        }
        self.arrived.insert(sequence, Arrived { report, body, under_credit, orphan: false });
        self.end(sequence, State::Arrived);
        if !self.jobs.has_waiters(sequence) {
            self.orphan(sequence);
        }
        self.help_starving();
    }

    /// Keeps a result that nobody waits for, while there is room for such; else the scheduler sends it again when it is wanted.
    fn orphan(&mut self, sequence: u64) {
        if self.arrived.get(&sequence).is_none_or(|arrived| arrived.orphan) {
            return;
        }
        let Some(mut arrived) = self.arrived.remove(&sequence) else { return };
        let bytes = arrived.body.len() as u64;
        if std::mem::take(&mut arrived.under_credit) {
            self.window.release(bytes);
        }
        // What a result weighs beside its body counts too, or a million empty ones would be free.
        let weight = bytes + size_of::<Arrived>() as u64;
        if self.orphan_bytes + weight > RESULT_WINDOW_BYTES {
            if let Some(entry) = self.jobs.get_mut(sequence) {
                entry.state = State::Open;
                entry.want = Want::No;
            }
            return;
        }
        self.orphan_bytes += weight;
        arrived.orphan = true;
        self.arrived.insert(sequence, arrived);
    }

    /// Somebody waits for it again.
    fn adopt(&mut self, sequence: u64) {
        if let Some(arrived) = self.arrived.get_mut(&sequence).filter(|arrived| arrived.orphan) {
            arrived.orphan = false;
            self.orphan_bytes -= arrived.body.len() as u64 + size_of::<Arrived>() as u64;
        }
    }

    /// An open job ends; whoever waits for it is told.
    fn end(&mut self, sequence: u64, state: State) {
        let Some(entry) = self.jobs.get_mut(sequence).filter(|entry| entry.state == State::Open) else {
            return;
        };
        entry.state = state;
        self.cancelled.remove(&sequence);
        if matches!(state, State::Refused | State::Lost) {
            self.unreported.get_or_insert(sequence);
        }
        self.tell_waiters(sequence, state);
    }

    /// Queues jobs if the window has room for them; returns the sequence of the first.
    ///
    /// # Errors
    ///
    /// If they will never be accepted.
    pub(crate) fn submit(&mut self, jobs: &mut Vec<NewJob>) -> Result<Option<u64>, WaitError> {
        if let Some(fatal) = &self.fatal {
            return Err(WaitError::Fatal(fatal.clone()));
        }
        if let Some(reason) = self.upload.refusal() {
            return Err(WaitError::Bundle(Arc::clone(reason)));
        }
        let bytes = jobs.iter().map(|job| job.payload.len()).sum();
        if !self.submits.has_room(jobs.len(), bytes) {
            return Ok(None);
        }
        let first = self.jobs.last() + 1;
        for job in jobs.drain(..) {
            self.jobs.push(job.service);
            self.submits.push(job);
        }
        Ok(Some(first))
    }

    /// The user's wish to stop a job.
    ///
    /// # Errors
    ///
    /// If the scheduler can't be told any more.
    pub(crate) fn cancel(&mut self, sequence: u64) -> Result<(), WaitError> {
        if let Some(fatal) = &self.fatal {
            return Err(WaitError::Fatal(fatal.clone()));
        }
        if self.jobs.state(sequence) == State::Open && self.cancelled.insert(sequence) {
            // Else it follows the job's acceptance.
            if sequence <= self.submits.accepted_through() {
                self.to_cancel.push(sequence);
            }
        }
        Ok(())
    }

    /// Begins the end: nothing but the scheduler's farewell counts any more.
    pub(crate) fn stop(&mut self) {
        if self.stopping.is_none() {
            self.stopping = Some(Stopping { sent: false, answered: false });
            self.fail(Fatal::Stopped);
        }
    }

    /// What to send or read next.
    pub(crate) fn next_step(&mut self, now: Moment) -> Step {
        match self.connection {
            Connection::Down(_) | Connection::Attaching => return Step::Idle,
            Connection::Up => return self.attach(),
            Connection::Attached => {}
        }
        if let Some(stopping) = &mut self.stopping {
            if std::mem::replace(&mut stopping.sent, true) {
                return Step::Idle;
            }
            return Step::Send(FromApplication::Stop, Bytes::new());
        }
        if let Some(jobs) = next_set(self.settings.session, &mut self.urgent) {
            return Step::Send(FromApplication::Want { jobs, urgent: true }, Bytes::new());
        }
        if let Some(jobs) = next_set(self.settings.session, &mut self.wanted) {
            return Step::Send(FromApplication::Want { jobs, urgent: false }, Bytes::new());
        }
        if let Some(jobs) = next_set(self.settings.session, &mut self.to_cancel) {
            return Step::Send(FromApplication::Cancel { jobs }, Bytes::new());
        }
        if self.taken.len() >= TAKEN_BATCH || self.taken_due.is_some_and(|due| due <= now) {
            if let Some(jobs) = next_set(self.settings.session, &mut self.taken) {
                self.taken_due = self.taken_due.filter(|_| !self.taken.is_empty());
                return Step::Send(FromApplication::Taken { jobs }, Bytes::new());
            }
            self.taken_due = None;
        }
        if self.window.is_due() {
            return Step::Send(FromApplication::Credit(self.window.grant()), Bytes::new());
        }
        if self.submits.has_unsent()
            && let Some(offer) = self.upload.offer()
        {
            return Step::Send(offer, Bytes::new());
        }
        if let Some(step) = self.upload.next_step() {
            return step;
        }
        match self.submits.next_batch() {
            Some((message, body)) => {
                self.submitted = true;
                Step::Send(message, body)
            }
            None => Step::Idle,
        }
    }

    fn attach(&mut self) -> Step {
        // Without a digest there is nothing to attach with yet; with a broken program or after a refusal there never is.
        let Some(bundle) = self.bundle.clone().filter(|_| self.fatal.is_none() || self.stopping.is_some())
        else {
            return Step::Idle;
        };
        self.connection = Connection::Attaching;
        let attach = Attach {
            application: self.settings.application,
            session: self.settings.session,
            bundle,
            services: self.settings.services.clone(),
            on_disconnect: self.settings.on_disconnect,
            progress_rtt_test: self.settings.progress_rtt_test,
            credit: self.window.reset(),
        };
        Step::Send(FromApplication::Attach(attach), Bytes::new())
    }
}

/// Takes sequences, as many as one message should name.
fn next_set(session: SessionId, sequences: &mut Vec<u64>) -> Option<JobSet> {
    if sequences.is_empty() {
        return None;
    }
    let mut set = JobSet::from_sequences(session, std::mem::take(sequences));
    if set.ranges.len() > RANGES_PER_MESSAGE {
        let rest = set.ranges.split_off(RANGES_PER_MESSAGE);
        sequences.extend(rest.into_iter().flat_map(|(first, last)| first..=last));
    }
    Some(set)
}
