//! The callers' side: waits are registered, polled until they are ready, and removed.
//!
//! A wait never owns a result: polling one that is ready hands the result out, and only [`Engine::returned`] makes it taken.
//! Removing a wait at any time therefore loses nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::Moment;
use lrts_core::ids::JobId;
use lrts_core::protocol::application::{JobReport, JobSet, RefusalCause};

use super::jobs::{State, Want};
use super::lists::List;
use super::{Action, Connection, Engine, FAREWELL_LIMIT, Fatal, Refusal, TAKEN_DELAY};

/// Names a wait. Never zero and never the largest number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct WaitId(pub(super) u32);

/// A result on its way to the caller.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Delivery {
    /// The job's number in the engine.
    pub(crate) number: u64,
    pub(crate) job: JobId,
    /// Index of its service; none has this index if it is unknown.
    pub(crate) service: u16,
    pub(crate) report: JobReport,
    pub(crate) body: Bytes,
}

/// Why a wait has failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum WaitError {
    /// For all waits.
    Fatal(Fatal),
    /// The scheduler won't have the program.
    Bundle(Arc<str>),
    /// There was no scheduler for this long.
    NoScheduler(Duration),
    /// Because of one job.
    Job(JobId, JobFault),
}

/// What is wrong with a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum JobFault {
    /// The scheduler didn't take it.
    Refused(Arc<str>),
    /// Its key was used for a job with another content.
    KeyConflict(Arc<str>),
    /// The scheduler doesn't know it any more.
    Lost,
    /// Its result was returned before.
    AlreadyTaken,
}

/// What a stream has.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Next {
    Pending,
    Item(Result<Delivery, WaitError>),
    End,
}

#[derive(Debug)]
pub(super) struct Wait {
    pub(super) kind: Kind,
    /// Since when it has been pending.
    since: Moment,
    /// There was no scheduler for too long.
    expired: bool,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// For all of some jobs.
    All { jobs: Pending, fault: Option<u64> },
    /// For each of some jobs.
    Each { jobs: Pending, ready: VecDeque<u64>, starving: bool },
    /// Until everything up to there is accepted.
    Flush { through: u64 },
    /// For room in the send window.
    Room,
    /// For the list of the application's jobs.
    List(List),
    /// For the scheduler's farewell.
    Farewell,
}

/// The jobs of a wait.
#[derive(Debug)]
pub(super) struct Pending {
    ranges: Vec<(u64, u64)>,
    /// How many of them are open.
    open: u64,
    /// Those that were asked for under credit were asked for urgently since.
    helped: bool,
}

impl Engine {
    /// Registers a wait for all of these jobs.
    pub(crate) fn wait_for_all(&mut self, numbers: Vec<u64>, now: Moment) -> WaitId {
        let jobs = self.pending_jobs(numbers);
        let wait = self.add_wait(Kind::All { jobs, fault: None }, now);
        self.count_open(wait);
        wait
    }

    /// Registers a wait for each of these jobs.
    pub(crate) fn wait_for_each(&mut self, numbers: Vec<u64>, now: Moment) -> WaitId {
        let jobs = self.pending_jobs(numbers);
        let ranges = jobs.ranges.clone();
        let wait = self.add_wait(Kind::Each { jobs, ready: VecDeque::new(), starving: false }, now);
        let (mut open_jobs, mut ready_jobs) = (0, VecDeque::new());
        for number in flatten(&ranges) {
            match self.watch(number, wait, Want::Credit) {
                State::Open => open_jobs += 1,
                State::Arrived
                | State::Handed
                | State::Taken
                | State::Refused
                | State::Lost
                | State::Keyed => {
                    ready_jobs.push_back(number);
                }
            }
        }
        if let Some(Wait { kind: Kind::Each { jobs, ready, .. }, .. }) = self.waits.get_mut(&wait) {
            jobs.open = open_jobs;
            *ready = ready_jobs;
        }
        wait
    }

    /// Registers a wait for the acceptance of all that was submitted so far.
    pub(crate) fn wait_for_flush(&mut self, now: Moment) -> WaitId {
        let through = self.jobs.last();
        self.add_wait(Kind::Flush { through }, now)
    }

    /// Registers a wait for room in the send window.
    pub(crate) fn wait_for_room(&mut self, now: Moment) -> WaitId {
        self.add_wait(Kind::Room, now)
    }

    /// Registers a wait for the scheduler's answer to `stop` or `detach`.
    pub(crate) fn wait_for_farewell(&mut self, now: Moment) -> WaitId {
        self.add_wait(Kind::Farewell, now)
    }

    /// Waits for acceptance go on to this sequence.
    pub(super) fn extend_flushes(&mut self, last: u64) {
        for wait in self.waits.values_mut() {
            if let Kind::Flush { through } = &mut wait.kind {
                *through = last;
            }
        }
    }

    fn pending_jobs(&self, numbers: Vec<u64>) -> Pending {
        let ranges = JobSet::from_sequences(self.settings.session, numbers).ranges;
        Pending { ranges, open: 0, helped: false }
    }

    pub(super) fn add_wait(&mut self, kind: Kind, now: Moment) -> WaitId {
        loop {
            self.last_wait = if self.last_wait >= u32::MAX - 1 { 1 } else { self.last_wait + 1 };
            if !self.waits.contains_key(&WaitId(self.last_wait)) {
                break;
            }
        }
        let wait = WaitId(self.last_wait);
        self.waits.insert(wait, Wait { kind, since: now, expired: false });
        wait
    }

    /// Looks at a job for a wait and, while it matters, keeps an eye on it.
    fn watch(&mut self, number: u64, wait: WaitId, want: Want) -> State {
        let state = self.jobs.state(number);
        match state {
            State::Open => {
                self.jobs.add_waiter(number, wait);
                if self.jobs.get(number).is_some_and(|entry| entry.want == Want::No) {
                    self.ask(number, want);
                }
            }
            State::Arrived => {
                self.jobs.add_waiter(number, wait);
                self.adopt(number);
            }
            State::Handed | State::Taken | State::Refused | State::Lost | State::Keyed => {}
        }
        state
    }

    /// Asks the scheduler for a result, as soon as it has accepted the job.
    fn ask(&mut self, number: u64, want: Want) {
        let Some(entry) = self.jobs.get_mut(number) else { return };
        entry.want = want;
        if self.connection == Connection::Attached && self.is_known(number) {
            match want {
                Want::Urgent => self.urgent.push(number),
                Want::Credit => self.wanted.push(number),
                Want::No => {}
            }
        }
    }

    /// Watches all jobs of a wait and counts those that are open.
    fn count_open(&mut self, wait: WaitId) {
        let Some(Wait { kind: Kind::All { jobs, .. }, .. }) = self.waits.get(&wait) else { return };
        let (mut open, mut fault) = (0, None);
        for number in flatten(&jobs.ranges.clone()) {
            // It may be watching already: once is enough.
            self.jobs.remove_waiter(number, wait);
            match self.watch(number, wait, Want::Urgent) {
                State::Open => open += 1,
                State::Arrived => {}
                State::Handed | State::Taken | State::Refused | State::Lost | State::Keyed => {
                    fault.get_or_insert(number);
                }
            }
        }
        if let Some(Wait { kind: Kind::All { jobs, fault: faulty }, .. }) = self.waits.get_mut(&wait) {
            jobs.open = open;
            *faulty = fault;
        }
    }

    /// Removes a wait. Results that came for it alone are kept while there is room; else they come again when wanted.
    pub(crate) fn remove_wait(&mut self, wait: WaitId) {
        let Some(Wait { kind, .. }) = self.waits.remove(&wait) else { return };
        let (Kind::All { jobs, .. } | Kind::Each { jobs, .. }) = kind else { return };
        for number in flatten(&jobs.ranges) {
            self.jobs.remove_waiter(number, wait);
            if self.jobs.state(number) == State::Arrived && !self.jobs.has_waiters(number) {
                self.orphan(number);
            }
        }
        self.jobs.trim();
    }

    /// Whether all jobs of a wait have ended; then hands their results out, ascending by number.
    ///
    /// # Errors
    ///
    /// If one of them has no result, then none is handed out; if there is no scheduler or no hope.
    pub(crate) fn poll_all(&mut self, wait: WaitId) -> Option<Result<Vec<Delivery>, WaitError>> {
        if let Some(error) = self.over() {
            return Some(Err(error));
        }
        if self.frozen {
            return None;
        }
        // A result that a caller couldn't read went back to the scheduler: a job that had ended, or went to another wait, may be
        // open again.
        if self.has_ended(wait)? && !self.are_here(wait)? {
            self.count_open(wait);
        }
        let Wait { kind: Kind::All { jobs, fault }, .. } = self.waits.get(&wait)? else { return None };
        if let Some(fault) = *fault {
            return Some(Err(self.fault(fault)));
        }
        if jobs.open > 0 {
            self.help(wait);
            return self.hopeless(wait).map(Err);
        }
        let ranges = jobs.ranges.clone();
        Some(Ok(flatten(&ranges).filter_map(|number| self.hand_out(number, wait)).collect()))
    }

    /// Whether a wait for all has all, or one that it can't have.
    fn has_ended(&self, wait: WaitId) -> Option<bool> {
        let Wait { kind: Kind::All { jobs, fault }, .. } = self.waits.get(&wait)? else { return None };
        Some(jobs.open == 0 || fault.is_some())
    }

    /// Whether the results of all its jobs are here.
    fn are_here(&self, wait: WaitId) -> Option<bool> {
        let Wait { kind: Kind::All { jobs, .. }, .. } = self.waits.get(&wait)? else { return None };
        Some(flatten(&jobs.ranges).all(|number| self.jobs.state(number) == State::Arrived))
    }

    /// The next job of a stream that has ended; its result is handed out.
    pub(crate) fn poll_each(&mut self, wait: WaitId, now: Moment) -> Next {
        let over = self.over();
        if self.frozen && over.is_none() {
            return Next::Pending;
        }
        let Some(Wait { kind: Kind::Each { jobs, ready, starving }, since, expired }) =
            self.waits.get_mut(&wait)
        else {
            return Next::End;
        };
        let open = jobs.open;
        if let Some(error) = over.filter(|_| open > 0 || !ready.is_empty()) {
            // Said once; nothing follows.
            jobs.open = 0;
            ready.clear();
            return Next::Item(Err(error));
        }
        if let Some(number) = ready.pop_front() {
            *starving = false;
            return match self.jobs.state(number) {
                State::Arrived => match self.hand_out(number, wait) {
                    Some(delivery) => Next::Item(Ok(delivery)),
                    None => Next::Item(Err(self.fault(number))),
                },
                // Given back since by another wait.
                State::Open => {
                    self.watch_again(number, wait);
                    self.poll_each(wait, now)
                }
                State::Handed | State::Taken | State::Refused | State::Lost | State::Keyed => {
                    Next::Item(Err(self.fault(number)))
                }
            };
        }
        if open == 0 {
            return Next::End;
        }
        if !*starving {
            *starving = true;
            *since = now;
            *expired = false;
        }
        self.help(wait);
        match self.hopeless(wait) {
            Some(error) => {
                let fatal = matches!(error, WaitError::Fatal(_));
                if let Some(Wait { kind: Kind::Each { jobs, starving, .. }, .. }) = self.waits.get_mut(&wait)
                {
                    // A caller who asks on waits anew, unless there is no hope.
                    *starving = false;
                    jobs.open = if fatal { 0 } else { jobs.open };
                }
                Next::Item(Err(error))
            }
            None => Next::Pending,
        }
    }

    fn watch_again(&mut self, number: u64, wait: WaitId) {
        self.jobs.remove_waiter(number, wait);
        let Some(Wait { kind: Kind::Each { jobs, .. }, .. }) = self.waits.get_mut(&wait) else { return };
        jobs.open += 1;
        let want = if jobs.helped { Want::Urgent } else { Want::Credit };
        self.watch(number, wait, want);
    }

    /// Whether everything up to the wait's mark is accepted.
    ///
    /// # Errors
    ///
    /// The first job since the last flush that was refused or lost; if there is no scheduler or no hope.
    pub(crate) fn poll_flush(&mut self, wait: WaitId) -> Option<Result<(), WaitError>> {
        let Wait { kind: Kind::Flush { through }, .. } = self.waits.get(&wait)? else { return None };
        // Refused jobs need no watermark: a program that the scheduler won't have holds it up for ever.
        let mut waiting = self.submits.sequences().take_while(|number| number <= through);
        if waiting.any(|number| self.jobs.state(number) == State::Open || self.keys.is_pending(number)) {
            return self.hopeless(wait).map(Err);
        }
        Some(match self.unreported.take() {
            Some(number) => Err(self.fault(number)),
            None => Ok(()),
        })
    }

    /// Whether a wait for room has no hope. Room itself shows when submitting.
    pub(crate) fn poll_room(&mut self, wait: WaitId) -> Option<WaitError> {
        self.hopeless(wait)
    }

    /// Whether the scheduler knows that the application has ended or left, or needn't.
    ///
    /// # Errors
    ///
    /// [`WaitError::NoScheduler`] if it can't be told.
    pub(crate) fn poll_farewell(&mut self, wait: WaitId) -> Option<Result<(), WaitError>> {
        let refused = match &self.fatal {
            Some(Fatal::Stopped | Fatal::Detached) | None => false,
            Some(Fatal::Superseded | Fatal::Version(_) | Fatal::Unauthorised(_)) => true,
            Some(Fatal::Foreign(_) | Fatal::Limit(_) | Fatal::Bundle(_)) => true,
        };
        if refused || self.ending.is_none() || self.is_answered() || !self.may_have_jobs() {
            return Some(Ok(()));
        }
        let expired = self.waits.get(&wait)?.expired;
        let limit = self.settings.communication_time_out.unwrap_or(FAREWELL_LIMIT);
        expired.then_some(Err(WaitError::NoScheduler(limit)))
    }

    /// These deliveries were returned to the caller.
    pub(crate) fn returned(&mut self, numbers: &[u64], now: Moment) {
        for &number in numbers {
            let again = self.jobs.has_key(number);
            if let Some(entry) =
                self.jobs.get_mut(number).filter(|entry| entry.state == State::Handed || again)
            {
                if !again {
                    entry.state = State::Taken;
                }
                self.taken.push(number);
                self.taken_due.get_or_insert(now + TAKEN_DELAY);
            }
        }
        self.jobs.trim();
    }

    /// These deliveries could not be returned: the scheduler keeps them, and another wait may ask for them.
    pub(crate) fn give_back(&mut self, numbers: &[u64]) {
        for &number in numbers {
            if let Some(entry) = self.jobs.get_mut(number).filter(|entry| entry.state == State::Handed) {
                entry.state = State::Open;
                entry.want = Want::No;
            }
        }
    }

    fn hand_out(&mut self, number: u64, wait: WaitId) -> Option<Delivery> {
        self.adopt(number);
        self.jobs.remove_waiter(number, wait);
        let again = self.jobs.has_key(number);
        let (report, body) = if again && self.jobs.has_waiters(number) {
            // Each of them gets it.
            let arrived = self.arrived.get(&number)?;
            (arrived.report.clone(), arrived.body.clone())
        } else {
            let arrived = self.arrived.remove(&number)?;
            if arrived.under_credit {
                self.window.release(arrived.body.len() as u64);
            }
            let entry = self.jobs.get_mut(number)?;
            if again {
                entry.state = State::Open;
                entry.want = Want::No;
            } else {
                entry.state = State::Handed;
                self.disappoint_waiters(number);
            }
            (arrived.report, arrived.body)
        };
        let (job, service) = (self.jobs.id(number), self.jobs.get(number)?.service);
        Some(Delivery { number, job, service, report, body })
    }

    /// The job's result has gone to another wait.
    fn disappoint_waiters(&mut self, number: u64) {
        for other in self.jobs.waiters(number) {
            self.jobs.remove_waiter(number, other);
            if let Some(Wait { kind: Kind::All { fault, .. }, .. }) = self.waits.get_mut(&other) {
                fault.get_or_insert(number);
                self.actions.push(Action::Wake(other));
            }
        }
    }

    fn fault(&self, number: u64) -> WaitError {
        let fault = match self.jobs.state(number) {
            State::Refused => match self.refusals.get(&number) {
                Some(Refusal { cause: RefusalCause::KeyConflict, key: Some(key), .. }) => {
                    JobFault::KeyConflict(Arc::clone(key))
                }
                Some(Refusal { reason, .. }) => JobFault::Refused(Arc::clone(reason)),
                None => JobFault::Lost,
            },
            State::Lost => JobFault::Lost,
            State::Open | State::Arrived | State::Handed | State::Taken | State::Keyed => {
                JobFault::AlreadyTaken
            }
        };
        WaitError::Job(self.jobs.id(number), fault)
    }

    /// Why even results that are here don't count: the scheduler can't be told any more that they were returned, and another
    /// start of the application may get them.
    fn over(&self) -> Option<WaitError> {
        let fatal = self.fatal.as_ref();
        let over =
            fatal.filter(|fatal| matches!(fatal, Fatal::Stopped | Fatal::Detached | Fatal::Superseded));
        over.cloned().map(WaitError::Fatal)
    }

    /// Why a pending wait should end without success.
    pub(super) fn hopeless(&self, wait: WaitId) -> Option<WaitError> {
        if let Some(fatal) = &self.fatal {
            return Some(WaitError::Fatal(fatal.clone()));
        }
        let expired = self.waits.get(&wait).is_some_and(|wait| wait.expired);
        expired.then(|| WaitError::NoScheduler(self.settings.communication_time_out.unwrap_or_default()))
    }

    /// When a wait has gone without a scheduler for too long.
    pub(super) fn expiry(&self, wait: &Wait) -> Option<Moment> {
        let Connection::Down(down) = self.connection else { return None };
        let (pending, limit) = match &wait.kind {
            Kind::Farewell => (true, self.settings.communication_time_out.or(Some(FAREWELL_LIMIT))),
            Kind::Each { starving, .. } => (*starving, self.settings.communication_time_out),
            Kind::All { .. } | Kind::Flush { .. } | Kind::Room | Kind::List(_) => {
                (true, self.settings.communication_time_out)
            }
        };
        // A connection that was lost before the wait began gives it the full time.
        limit.filter(|_| pending && !wait.expired).map(|limit| down.max(wait.since) + limit)
    }

    pub(super) fn expire_waits(&mut self, now: Moment) {
        let expired: Vec<_> = self
            .waits
            .iter()
            .filter(|(_, wait)| self.expiry(wait).is_some_and(|expiry| expiry <= now))
            .map(|(&id, _)| id)
            .collect();
        for id in expired {
            if let Some(wait) = self.waits.get_mut(&id) {
                wait.expired = true;
                self.actions.push(Action::Wake(id));
            }
        }
    }

    /// A job has left the open state: whoever waits for it counts.
    pub(super) fn tell_waiters(&mut self, number: u64, state: State) {
        for id in self.jobs.waiters(number) {
            let Some(wait) = self.waits.get_mut(&id) else { continue };
            let wake = match &mut wait.kind {
                Kind::All { jobs, fault } => {
                    jobs.open = jobs.open.saturating_sub(1);
                    if state != State::Arrived {
                        fault.get_or_insert(number);
                    }
                    jobs.open == 0 || fault.is_some()
                }
                Kind::Each { jobs, ready, .. } => {
                    jobs.open = jobs.open.saturating_sub(1);
                    ready.push_back(number);
                    true
                }
                Kind::Flush { .. } | Kind::Room | Kind::List(_) | Kind::Farewell => false,
            };
            if wake {
                self.actions.push(Action::Wake(id));
            }
            if state != State::Arrived {
                self.jobs.remove_waiter(number, id);
            }
        }
        if matches!(state, State::Refused | State::Lost) {
            self.wake_submitters();
        }
    }

    /// The send window or its watermark has moved.
    pub(super) fn wake_submitters(&mut self) {
        let submitters =
            self.waits.iter().filter(|(_, wait)| matches!(wait.kind, Kind::Flush { .. } | Kind::Room));
        self.actions.extend(submitters.map(|(&id, _)| Action::Wake(id)));
    }

    pub(super) fn wake_all(&mut self) {
        self.actions.extend(self.waits.keys().map(|&id| Action::Wake(id)));
    }

    /// The credit may have been used up by results that nobody fetches: then polled streams ask urgently.
    pub(super) fn help_starving(&mut self) {
        if !self.window.is_spent() {
            return;
        }
        let waits: Vec<_> = self.waits.keys().copied().collect();
        waits.into_iter().for_each(|wait| self.help(wait));
    }

    fn help(&mut self, wait: WaitId) {
        if !self.window.is_spent() || self.connection != Connection::Attached {
            return;
        }
        let jobs = match self.waits.get_mut(&wait).map(|wait| &mut wait.kind) {
            Some(Kind::All { jobs, .. }) => jobs,
            Some(Kind::Each { jobs, ready, starving: true }) if ready.is_empty() => jobs,
            Some(Kind::Each { .. } | Kind::Flush { .. } | Kind::Room | Kind::List(_) | Kind::Farewell)
            | None => return,
        };
        if std::mem::replace(&mut jobs.helped, true) {
            return;
        }
        for number in flatten(&jobs.ranges.clone()) {
            if self
                .jobs
                .get(number)
                .is_some_and(|entry| entry.state == State::Open && entry.want == Want::Credit)
            {
                self.ask(number, Want::Urgent);
            }
        }
    }
}

fn flatten(ranges: &[(u64, u64)]) -> impl Iterator<Item = u64> {
    ranges.iter().flat_map(|&(first, last)| first..=last)
}
