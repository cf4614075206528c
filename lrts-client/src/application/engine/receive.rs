//! What the scheduler says, and what it changes.

use std::sync::Arc;

use bytes::Bytes;
use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;
use lrts_core::limits::RESULT_WINDOW_BYTES;
use lrts_core::protocol::application::{JobReport, RefusalCause, ToApplication};

use super::jobs::{OTHERS, State, Want};
use super::{Action, Arrived, Connection, Engine, Farewell, Refusal};

impl Engine {
    pub(super) fn receive(&mut self, message: ToApplication, body: Bytes) {
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
                    for sequence in self.submits.sequences() {
                        self.refuse(sequence, Arc::clone(&reason), RefusalCause::Invalid);
                    }
                }
            }
            ToApplication::Accepted { through } => self.accept(through),
            ToApplication::Refused { sequence, reason, cause } => {
                self.refuse(sequence, reason.into(), cause);
            }
            ToApplication::Result { job, report } => {
                if let Some(number) = self.jobs.find(job) {
                    self.arrive(number, report, body);
                }
            }
            ToApplication::Gone { job, taken } => {
                if let Some(number) = self.jobs.find(job) {
                    self.end(number, if taken { State::Taken } else { State::Lost });
                }
            }
            ToApplication::Totals(totals) => self.actions.push(Action::ShowTotals(totals)),
            ToApplication::Listed { request, jobs, last } => self.listed(request, jobs, last),
            ToApplication::Detached => self.answered(Farewell::Detach),
            ToApplication::Stopped => self.answered(Farewell::Stop),
        }
    }

    fn answered(&mut self, farewell: Farewell) {
        let ending = self.ending.as_mut();
        if let Some(ending) = ending.filter(|ending| ending.sent && ending.farewell == farewell) {
            ending.answered = true;
            self.wake_all();
        }
    }

    /// The scheduler knows this session up to there. Whatever it may not have heard is said again.
    fn attached(&mut self, accepted_through: u64) {
        self.connection = Connection::Attached;
        for before in accepted_through..self.submits.accepted_through() {
            self.end(before + 1, State::Lost);
        }
        self.submit_unanswered(accepted_through);
        self.accept(accepted_through);
        self.submits.rewind();
        self.urgent.clear();
        self.wanted.clear();
        self.to_cancel.clear();
        self.taken.clear();
        if self.jobs.base() > 1 {
            self.taken.extend(1..self.jobs.base());
        }
        self.had_open_jobs = false;
        let accepted = self.submits.accepted_through();
        for (number, entry) in self.jobs.iter_mut() {
            let known = if number < OTHERS { number <= accepted } else { !self.keys.is_unknown(number) };
            // Those of earlier starts may have another program.
            let is_own = known && (number < OTHERS || self.keys.is_scheduled(number));
            self.had_open_jobs |= is_own && entry.state == State::Open;
            match entry.state {
                State::Open if entry.has_waiters() => match entry.want {
                    Want::Urgent if known => self.urgent.push(number),
                    Want::Credit if known => self.wanted.push(number),
                    Want::No | Want::Credit | Want::Urgent => {}
                },
                State::Open => entry.want = Want::No,
                State::Taken => self.taken.push(number),
                State::Arrived | State::Handed | State::Refused | State::Lost | State::Keyed => {}
            }
        }
        if !self.taken.is_empty() {
            self.taken_due = Some(Moment::default());
        }
        let cancelled = self.cancelled.iter().copied();
        self.to_cancel = cancelled.filter(|&number| self.is_known(number)).collect();
        self.list_again();
    }

    /// Whether a job with a key was accepted or refused, the watermark of a new connection doesn't say. So those that were not
    /// answered before are submitted once more: with the key that changes nothing if they were accepted.
    fn submit_unanswered(&mut self, accepted_through: u64) {
        let before = self.jobs.last();
        for (sequence, job) in self.submits.keyed_through(accepted_through) {
            if self.keys.renumber(sequence, self.jobs.last() + 1) {
                self.push(job, State::Keyed);
            }
        }
        if self.jobs.last() > before {
            self.extend_flushes(self.jobs.last());
        }
    }

    /// Whether the scheduler has been told of the job, so that it can be asked for.
    pub(super) fn is_known(&self, number: u64) -> bool {
        if number < OTHERS {
            number <= self.submits.accepted_through()
        } else {
            !self.keys.is_unknown(number)
        }
    }

    fn accept(&mut self, through: u64) {
        let passed = self.submits.accept(through);
        if passed.is_empty() {
            return;
        }
        for sequence in passed {
            let accepted = match self.jobs.get_mut(sequence) {
                Some(entry) if entry.state == State::Keyed => {
                    // Used up, and nothing is to be known of it any more.
                    entry.state = State::Taken;
                    self.keys.accept(sequence)
                }
                Some(_) | None => Some(sequence),
            };
            if let Some(number) = accepted {
                self.accepted(number);
            }
        }
        self.wake_submitters();
    }

    /// A job is known to the scheduler from now on.
    fn accepted(&mut self, number: u64) {
        let Some(entry) = self.jobs.get_mut(number) else { return };
        if entry.state == State::Lost && number >= OTHERS {
            // It was forgotten, and scheduled again meanwhile.
            entry.state = State::Open;
            entry.want = Want::No;
        }
        if entry.state != State::Open {
            return;
        }
        match entry.want {
            Want::Urgent => self.urgent.push(number),
            Want::Credit => self.wanted.push(number),
            Want::No => {}
        }
        if self.cancelled.contains(&number) {
            self.to_cancel.push(number);
        }
    }

    fn refuse(&mut self, sequence: u64, reason: Arc<str>, cause: RefusalCause) {
        let (number, key) = if self.jobs.state(sequence) == State::Keyed {
            let refused = self.keys.refuse(sequence);
            self.wake_submitters();
            let Some((number, key)) = refused else { return };
            (number, Some(key))
        } else {
            (sequence, None)
        };
        if self.jobs.state(number) == State::Open {
            self.refusals.insert(number, Refusal { reason, cause, key });
            self.unreported.get_or_insert(number);
            self.end(number, State::Refused);
        }
    }

    fn arrive(&mut self, number: u64, mut report: JobReport, body: Bytes) {
        let Some(entry) = self.jobs.get(number).filter(|entry| entry.state == State::Open) else { return };
        let (bytes, under_credit) = (body.len() as u64, entry.want == Want::Credit);
        if under_credit {
            self.window.arrived(bytes);
        }
        let attempt = AttemptId { job: self.jobs.id(number), attempt: report.attempt };
        self.actions.push(Action::ShowEnded(attempt, std::mem::take(&mut report.bars)));
        if under_credit {
            self.window.hold(bytes);
        }
        self.arrived.insert(number, Arrived { report, body, under_credit, orphan: false });
        self.end(number, State::Arrived);
        if !self.jobs.has_waiters(number) {
            self.orphan(number);
        }
        self.help_starving();
    }

    /// Keeps a result that nobody waits for, while there is room for such; else the scheduler sends it again when it is wanted.
    pub(super) fn orphan(&mut self, number: u64) {
        if self.arrived.get(&number).is_none_or(|arrived| arrived.orphan) {
            return;
        }
        let Some(mut arrived) = self.arrived.remove(&number) else { return };
        let bytes = arrived.body.len() as u64;
        if std::mem::take(&mut arrived.under_credit) {
            self.window.release(bytes);
        }
        // What a result weighs beside its body counts too, or a million empty ones would be free.
        let weight = bytes + size_of::<Arrived>() as u64;
        if self.orphan_bytes + weight > RESULT_WINDOW_BYTES {
            if let Some(entry) = self.jobs.get_mut(number) {
                entry.state = State::Open;
                entry.want = Want::No;
            }
            return;
        }
        self.orphan_bytes += weight;
        arrived.orphan = true;
        self.arrived.insert(number, arrived);
    }

    /// Somebody waits for it again.
    pub(super) fn adopt(&mut self, number: u64) {
        if let Some(arrived) = self.arrived.get_mut(&number).filter(|arrived| arrived.orphan) {
            arrived.orphan = false;
            self.orphan_bytes -= arrived.body.len() as u64 + size_of::<Arrived>() as u64;
        }
    }

    /// An open job ends; whoever waits for it is told.
    fn end(&mut self, number: u64, state: State) {
        let Some(entry) = self.jobs.get_mut(number).filter(|entry| entry.state == State::Open) else {
            return;
        };
        entry.state = state;
        self.cancelled.remove(&number);
        if state == State::Lost {
            if number < OTHERS || self.keys.is_scheduled(number) {
                self.unreported.get_or_insert(number);
            }
            self.keys.lose(number);
        }
        self.tell_waiters(number, state);
    }
}
