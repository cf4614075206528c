//! Which results are sent when: those that are waited for urgently at once, others under the application's credit. And totals.

use std::ops::RangeInclusive;

use lrts_core::ids::SessionId;
use lrts_core::limits::{SEND_WINDOW_JOBS, TOTALS_INTERVAL};

use super::applications::Presence;
use super::events::{Credit, Message, Peer};
use super::jobs::{Delivery, Phase};
use super::sessions::Mark;
use super::{Engine, Timer};

impl Engine {
    pub(super) fn want(&mut self, peer: Peer, session: SessionId, ranges: &[(u64, u64)], urgent: bool) {
        let Some((application, _)) = self.attached(peer) else { return };
        let index = self.session_of(peer, session);
        let known = index.map_or(RangeInclusive::new(1, 0), |index| self.sessions[index].known());
        let is_heard = self.tell_gone(peer, session, ranges, known);
        let Some(index) = index.filter(|_| is_heard) else { return };
        self.sessions[index].listener = Some(peer);
        for sequence in self.sessions[index].to_want(ranges, urgent) {
            let Some(job) = self.sessions[index].job(sequence) else {
                let taken = self.sessions[index].was_taken(sequence);
                self.send(peer, Message::Gone { job: session.job(sequence), taken });
                continue;
            };
            if self.jobs.nodes[job].delivery == Delivery::Taken {
                self.send(peer, Message::Gone { job: session.job(sequence), taken: true });
                continue;
            }
            // A job that was in the outbox and was sent urgently may take a second place there and is sent once more: when its
            // other turn comes it is no longer wanted.
            self.set_delivery(job, if urgent { Delivery::Urgent } else { Delivery::Wanted });
            if self.jobs.nodes[job].is_terminal() {
                self.deliver(job);
            }
        }
        self.pump(application);
    }

    /// Tells that the jobs of these ranges that aren't `known` never came. A client speaks of few that it may not know to be so:
    /// one that speaks of more is parted from, and what it had may be forgotten with it. Returns whether it is still heard.
    fn tell_gone(
        &mut self,
        peer: Peer,
        session: SessionId,
        ranges: &[(u64, u64)],
        known: RangeInclusive<u64>,
    ) -> bool {
        let unknown = |&(first, last): &(u64, u64)| {
            let below = first.max(1)..last.saturating_add(1).min(*known.start());
            let above = first.max(known.end().saturating_add(1))..last.saturating_add(1);
            [below, above]
        };
        let mut told = 0;
        for sequences in ranges.iter().flat_map(unknown) {
            for sequence in sequences {
                if told == SEND_WINDOW_JOBS {
                    self.violation(peer, "too many unknown jobs in one message");
                    return false;
                }
                told += 1;
                self.send(peer, Message::Gone { job: session.job(sequence), taken: false });
            }
        }
        true
    }

    /// Nobody hears of a terminal job that was wanted: it has to be wanted again. So those that are, are all in the outbox, and
    /// wanting them once more changes nothing.
    pub(super) fn no_longer_wanted(&mut self, job: u32) {
        let node = &self.jobs.nodes[job];
        if node.is_terminal() && matches!(node.delivery, Delivery::Wanted | Delivery::Urgent) {
            self.set_delivery(job, Delivery::Unwanted);
        }
    }

    /// Sends a terminal job's result, or lets it wait for credit, if it is wanted and its application listens.
    pub(super) fn deliver(&mut self, job: u32) {
        let node = &self.jobs.nodes[job];
        let session = &self.sessions[node.session];
        let application = session.application;
        let listener = session.listener;
        let Presence::Here { peer, .. } = self.applications[application].presence else {
            return self.no_longer_wanted(job);
        };
        if listener != Some(peer) {
            return self.no_longer_wanted(job);
        }
        match node.delivery {
            Delivery::Urgent => self.send_result(peer, job),
            Delivery::Wanted => {
                let handle = self.jobs.handle(job);
                self.applications[application].outbox.push_back(handle);
                self.pump(application);
            }
            Delivery::Unwanted | Delivery::Sent | Delivery::Taken => {}
        }
    }

    /// Sends what the credit allows.
    fn pump(&mut self, application: u32) {
        let Some(record) = self.applications.get(application) else { return };
        let Presence::Here { peer, .. } = record.presence else { return };
        loop {
            let record = &mut self.applications[application];
            if record.credit.results == 0 || record.credit.bytes == 0 {
                return;
            }
            let Some(handle) = record.outbox.pop_front() else { return };
            // It may have been sent urgently, taken or forgotten meanwhile.
            if !self.jobs.is_current(handle) || self.jobs.nodes[handle.index].delivery != Delivery::Wanted {
                continue;
            }
            let Phase::Ended { report, .. } = self.jobs.nodes[handle.index].phase else { continue };
            record.credit.results -= 1;
            record.credit.bytes = record.credit.bytes.saturating_sub(self.jobs.ended[report].output_bytes);
            self.send_result(peer, handle.index);
        }
    }

    fn send_result(&mut self, peer: Peer, job: u32) {
        let Phase::Ended { report, .. } = self.jobs.nodes[job].phase else { return };
        self.set_delivery(job, Delivery::Sent);
        let report = self.jobs.ended[report].report.clone();
        let job = self.job_id(job);
        self.send(peer, Message::Result { job, report });
    }

    pub(super) fn grant_credit(&mut self, peer: Peer, credit: Credit) {
        let Some((application, _)) = self.attached(peer) else { return };
        let record = &mut self.applications[application];
        record.credit.results = record.credit.results.saturating_add(credit.results);
        record.credit.bytes = record.credit.bytes.saturating_add(credit.bytes);
        self.pump(application);
    }

    /// Results that were returned to the caller are needed no more.
    pub(super) fn take(&mut self, peer: Peer, session: SessionId, ranges: &[(u64, u64)]) {
        let Some(index) = self.session_of(peer, session) else { return };
        for sequence in self.sessions[index].marked(Mark::Takable, ranges) {
            let Some(job) = self.sessions[index].job(sequence) else { continue };
            if self.sessions[index].is_keyed() {
                // Whoever asks for the key again gets it again.
                self.set_delivery(job, Delivery::Unwanted);
                continue;
            }
            self.set_delivery(job, Delivery::Taken);
            self.release_result(job);
            self.job_changed(job);
        }
    }

    /// An application's totals have changed: it is told now, or once the interval has passed.
    pub(super) fn totals_changed(&mut self, application: u32) {
        let record = &mut self.applications[application];
        if record.totals_timer {
            return;
        }
        record.totals_timer = true;
        let at = record.totals_sent_at.map_or(self.now, |at| at + TOTALS_INTERVAL);
        self.timers.insert((at.max(self.now), Timer::Totals(application)));
    }

    pub(super) fn send_totals(&mut self, application: u32) {
        // Another application may have taken its place here, whose own timer runs.
        if self.applications.get(application).is_none() {
            return;
        }
        let now = self.now;
        let record = &mut self.applications[application];
        record.totals_timer = false;
        if let Presence::Here { peer, .. } = record.presence
            && record.totals != record.totals_sent
        {
            record.totals_sent = record.totals;
            record.totals_sent_at = Some(now);
            let totals = record.totals;
            self.actions.push(super::Action::SendAtOnce { to: peer, message: Message::Totals(totals) });
        }
    }
}
