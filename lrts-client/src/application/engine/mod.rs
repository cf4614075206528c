//! What an application knows and what it says next, decided without I/O.
//!
//! The shell reports what happened ([`Engine::handle`]), asks what to send ([`Engine::next_step`]) whenever the link can take
//! a message, and carries out the [`Action`]s. The callers' side, [`waits`], registers waits and polls them. A job's result
//! stays at the scheduler until it has been *returned* to the caller, so whatever is dropped here can come again.
//!
//! Results that somebody waits for by name are asked for urgently; those of streams come under credit ([`window`]). Where
//! several streams are open and the results of one have used up the credit, a stream that is polled and has nothing asks for
//! its jobs urgently: so nobody starves, at the price of a larger buffer in that rare case.
//!
//! Jobs go by numbers here, see [`jobs`]: a job's sequence, or for jobs with [`keys`] and those of earlier starts one that was
//! made up when they were met.

mod jobs;
mod keys;
mod lists;
mod receive;
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
use lrts_core::ids::{ApplicationId, AttemptId, JobId, SessionId};
use lrts_core::limits::JOB_SET_RANGES;
use lrts_core::protocol::application::{
    Attach, FromApplication, JobReport, JobSet, RefusalCause, ToApplication, Totals,
};
use lrts_core::protocol::progress::BarRecord;
use lrts_core::spec::{BundleRef, OnDisconnect};

use jobs::{Jobs, State, Want};
use keys::Keys;
pub(crate) use lists::Listed;
use submits::Submits;
pub(crate) use submits::{Key, NewJob};
pub(crate) use upload::Offer;
use upload::Upload;
use waits::Wait;
pub(crate) use waits::{Delivery, JobFault, Next, WaitError, WaitId};
use window::ResultWindow;

/// Confirmations of results wait this long for others, unless [`TAKEN_BATCH`] have gathered: a repeat after a crash is
/// harmless, so there is no hurry.
const TAKEN_DELAY: Duration = Duration::from_millis(10);
const TAKEN_BATCH: usize = 256;

/// How long `stop` and `detach` wait for a scheduler that is away, where the application sets no limit of its own.
const FAREWELL_LIMIT: Duration = Duration::from_secs(10);

/// What doesn't change while an application runs.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) application: ApplicationId,
    /// The id was given: earlier starts may have left jobs.
    pub(crate) named: bool,
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
    /// The application's id belongs to another user, and so do the jobs of that name.
    Foreign(String),
    /// The scheduler has no room for this application.
    Limit(String),
    /// The program itself can't be read.
    Bundle(String),
    /// `stop` was called.
    Stopped,
    /// `detach` was called.
    Detached,
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

/// How the application ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Farewell {
    /// What is left is cancelled and forgotten.
    Stop,
    /// The jobs go on, for another start of it.
    Detach,
}

/// The end of the application.
#[derive(Debug)]
struct Ending {
    farewell: Farewell,
    sent: bool,
    answered: bool,
}

/// Why a job wasn't taken.
#[derive(Clone, Debug)]
struct Refusal {
    reason: Arc<str>,
    cause: RefusalCause,
    /// The job's key.
    key: Option<Arc<str>>,
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
    ending: Option<Ending>,
    /// No result is handed out any more.
    frozen: bool,
    jobs: Jobs,
    submits: Submits,
    keys: Keys,
    refusals: BTreeMap<u64, Refusal>,
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
    /// Waits for lists that the scheduler is to be asked for.
    to_list: Vec<WaitId>,
    last_list: u64,
    submitted: bool,
    /// When the connection began, the scheduler had jobs of this process that may not have ended: it may lack their program.
    had_open_jobs: bool,
    actions: Vec<Action>,
}

impl Engine {
    pub(crate) fn new(settings: Settings, now: Moment) -> Self {
        Self {
            jobs: Jobs::new(settings.session, settings.application),
            settings,
            bundle: None,
            upload: Upload::default(),
            connection: Connection::Down(now),
            fatal: None,
            ending: None,
            frozen: false,
            submits: Submits::default(),
            keys: Keys::default(),
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
            to_list: Vec::new(),
            last_list: 0,
            submitted: false,
            had_open_jobs: false,
            actions: Vec::new(),
        }
    }

    /// The number by which a job goes here.
    pub(crate) fn number(&mut self, job: JobId) -> u64 {
        self.jobs.meet(job)
    }

    /// How many jobs the scheduler hasn't accepted.
    pub(crate) fn unsent(&self) -> usize {
        self.submits.len()
    }

    /// Whether `stop` was called.
    pub(crate) fn is_stopped(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| ending.farewell == Farewell::Stop)
    }

    /// Whether the scheduler may have jobs of the application.
    pub(crate) fn may_have_jobs(&self) -> bool {
        self.submitted || self.settings.named
    }

    /// Whether the scheduler has confirmed the end.
    pub(crate) fn is_answered(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| ending.answered)
    }

    /// Whether the scheduler was told everything and, where that counts, has acknowledged it; or never will be.
    pub(crate) fn is_settled(&self) -> bool {
        let told = self.taken.is_empty() && self.to_cancel.is_empty();
        match self.fatal {
            Some(Fatal::Detached) => told,
            Some(_) => true,
            None => told && self.submits.len() == 0,
        }
    }

    /// Whether there is nothing to say now. While there is no connection nothing is certain.
    pub(crate) fn is_quiet(&self) -> bool {
        self.connection == Connection::Attached
            && self.ending.is_none()
            && self.urgent.is_empty()
            && self.wanted.is_empty()
            && self.to_cancel.is_empty()
            && self.to_list.is_empty()
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
        if let Some(ending) = &mut self.ending {
            ending.sent = false;
        }
    }

    fn fail(&mut self, fatal: Fatal) {
        self.fatal.get_or_insert(fatal);
        self.wake_all();
    }

    /// Queues jobs if the window has room for them; returns the sequence of the first.
    ///
    /// # Errors
    ///
    /// If they will never be accepted, or one has the key of a job with another content.
    pub(crate) fn submit(&mut self, jobs: &mut Vec<NewJob>) -> Result<Option<u64>, WaitError> {
        if let Some(fatal) = &self.fatal {
            return Err(WaitError::Fatal(fatal.clone()));
        }
        if let Some(reason) = self.upload.refusal() {
            return Err(WaitError::Bundle(Arc::clone(reason)));
        }
        self.check_keys(jobs)?;
        let bytes = jobs.iter().map(|job| job.payload.len()).sum();
        if !self.submits.has_room(jobs.len(), bytes) {
            return Ok(None);
        }
        let first = self.jobs.last() + 1;
        for job in jobs.drain(..) {
            match &job.key {
                Some(key) => {
                    let number = self.reopen(key, job.service);
                    self.keys.schedule(self.jobs.last() + 1, number, key.clone());
                    self.push(job, State::Keyed);
                }
                None => self.push(job, State::Open),
            }
        }
        Ok(Some(first))
    }

    fn push(&mut self, job: NewJob, state: State) {
        let sequence = self.jobs.push(job.service);
        if let Some(entry) = self.jobs.get_mut(sequence) {
            entry.state = state;
        }
        self.submits.push(job);
    }

    /// Whether this process knows that a key was used for something else.
    fn check_keys(&self, jobs: &[NewJob]) -> Result<(), WaitError> {
        for key in jobs.iter().filter_map(|job| job.key.as_ref()) {
            let job = JobId::keyed(self.settings.application, &key.key);
            let number = self.jobs.find(job);
            if let Some(key) = number.and_then(|number| self.keys.conflict(number, key.digest)) {
                return Err(WaitError::Job(job, JobFault::KeyConflict(key)));
            }
        }
        Ok(())
    }

    /// The number of the job with this key, which is scheduled: what it was refused for counts no more.
    fn reopen(&mut self, key: &Key, service: u16) -> u64 {
        let number = self.jobs.meet(JobId::keyed(self.settings.application, &key.key));
        self.met(number, service);
        number
    }

    /// A job exists, or may: it has this service.
    fn met(&mut self, number: u64, service: u16) {
        let Some(entry) = self.jobs.get_mut(number) else { return };
        entry.service = service;
        if matches!(entry.state, State::Refused | State::Lost) {
            entry.state = State::Open;
            entry.want = Want::No;
            self.refusals.remove(&number);
        }
    }

    /// The user's wish to stop a job.
    ///
    /// # Errors
    ///
    /// If the scheduler can't be told any more.
    pub(crate) fn cancel(&mut self, number: u64) -> Result<(), WaitError> {
        if let Some(fatal) = &self.fatal {
            return Err(WaitError::Fatal(fatal.clone()));
        }
        // Else it follows the job's acceptance.
        if self.jobs.state(number) == State::Open && self.cancelled.insert(number) && self.is_known(number) {
            self.to_cancel.push(number);
        }
        Ok(())
    }

    /// Begins the end: nothing but the scheduler's farewell counts any more.
    pub(crate) fn stop(&mut self) {
        if !self.is_stopped() {
            self.ending = Some(Ending { farewell: Farewell::Stop, sent: false, answered: false });
            self.fail(Fatal::Stopped);
        }
    }

    /// Waits for results get nothing any more, and no error either: the program is about to be ended.
    pub(crate) fn freeze(&mut self) {
        self.frozen = true;
    }

    /// Begins to leave: the scheduler is told once it knows of everything that was returned and cancelled.
    pub(crate) fn begin_detach(&mut self) {
        if self.ending.is_none() {
            self.ending = Some(Ending { farewell: Farewell::Detach, sent: false, answered: false });
            self.hurry();
        }
    }

    /// Nothing is scheduled or waited for any more.
    pub(crate) fn leave(&mut self) {
        self.begin_detach();
        self.fail(Fatal::Detached);
    }

    /// What to send or read next.
    pub(crate) fn next_step(&mut self, now: Moment) -> Step {
        match self.connection {
            Connection::Down(_) | Connection::Attaching => return Step::Idle,
            Connection::Up => return self.attach(),
            Connection::Attached => {}
        }
        if self.is_stopped() {
            return match self.farewell() {
                Some(message) => Step::Send(message, Bytes::new()),
                None => Step::Idle,
            };
        }
        if let Some(message) = self.next_message(now) {
            return Step::Send(message, Bytes::new());
        }
        let needs_program = self.submits.has_unsent() || (self.had_open_jobs && self.ending.is_none());
        if needs_program && let Some(offer) = self.upload.offer() {
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

    /// The next message beside submits.
    fn next_message(&mut self, now: Moment) -> Option<FromApplication> {
        if let Some(jobs) = next_set(&self.jobs, &mut self.urgent) {
            return Some(FromApplication::Want { jobs, urgent: true });
        }
        if let Some(jobs) = next_set(&self.jobs, &mut self.wanted) {
            return Some(FromApplication::Want { jobs, urgent: false });
        }
        if let Some(jobs) = next_set(&self.jobs, &mut self.to_cancel) {
            return Some(FromApplication::Cancel { jobs });
        }
        // No list shows jobs whose results the caller has.
        let asks = !self.to_list.is_empty();
        if asks || self.taken.len() >= TAKEN_BATCH || self.taken_due.is_some_and(|due| due <= now) {
            if let Some(jobs) = next_set(&self.jobs, &mut self.taken) {
                self.taken_due = self.taken_due.filter(|_| !self.taken.is_empty());
                return Some(FromApplication::Taken { jobs });
            }
            self.taken_due = None;
        }
        if let Some(message) = self.next_list() {
            return Some(message);
        }
        if self.window.is_due() {
            return Some(FromApplication::Credit(self.window.grant()));
        }
        self.farewell()
    }

    /// The last word, once on each connection.
    fn farewell(&mut self) -> Option<FromApplication> {
        let ending = self.ending.as_mut()?;
        if std::mem::replace(&mut ending.sent, true) {
            return None;
        }
        Some(match ending.farewell {
            Farewell::Stop => FromApplication::Stop,
            Farewell::Detach => FromApplication::Detach,
        })
    }

    fn attach(&mut self) -> Step {
        // Without a digest there is nothing to attach with yet; with a broken program or after a refusal there never is.
        let hopeful = matches!(self.fatal, None | Some(Fatal::Stopped | Fatal::Detached));
        let Some(bundle) = self.bundle.clone().filter(|_| hopeful) else { return Step::Idle };
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

/// Takes jobs of one session, as many as one message should name.
fn next_set(jobs: &Jobs, numbers: &mut Vec<u64>) -> Option<JobSet> {
    let session = jobs.id(*numbers.first()?).session;
    let mut sequences = Vec::with_capacity(numbers.len());
    numbers.retain(|&number| {
        let job = jobs.id(number);
        if job.session == session {
            sequences.push(job.sequence);
        }
        job.session != session
    });
    let mut set = JobSet::from_sequences(session, sequences);
    if set.ranges.len() > JOB_SET_RANGES {
        let rest = set.ranges.split_off(JOB_SET_RANGES);
        let rest = rest.into_iter().flat_map(|(first, last)| first..=last);
        numbers.extend(rest.filter_map(|sequence| jobs.find(session.job(sequence))));
    }
    Some(set)
}
