//! Which results are sent when: those that are waited for urgently at once, others under the application's credit. And totals.

use std::collections::{BTreeSet, VecDeque};

use lrts_core::ids::SessionId;
use lrts_core::limits::TOTALS_INTERVAL;

use super::applications::Presence;
use super::events::{Credit, Message, Peer};
use super::jobs::{Delivery, JobHandle, Jobs, Phase};
use super::questions::Turn;
use super::sessions::Mark;
use super::{Engine, Timer};

/// Results that wait for credit, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox(pub(super) VecDeque<JobHandle>);

impl Outbox {
    /// A result that was sent urgently and is wanted again takes a second place. The first one goes before the outbox grows.
    fn push(&mut self, job: JobHandle, jobs: &Jobs) {
        if self.0.len() == self.0.capacity() {
            let mut kept = BTreeSet::new();
            self.0.retain(|&job| is_waiting(job, jobs) && kept.insert(job));
            // So it is looked through again only after as many more.
            self.0.reserve(self.0.len().max(1));
        }
        self.0.push_back(job);
    }
}

/// Whether a result in an outbox still waits there: it may have been sent urgently, taken or forgotten meanwhile.
fn is_waiting(job: JobHandle, jobs: &Jobs) -> bool {
    jobs.is_current(job) && jobs.nodes[job.index].delivery == Delivery::Wanted
}

impl Engine {
    /// Nobody hears of a terminal job that was wanted: it has to be wanted again. So those that are, are all in the outbox, and
    /// wanting them once more changes nothing.
    pub(super) fn no_longer_wanted(&mut self, job: u32) {
        let node = &self.jobs.nodes[job];
        if node.is_terminal() && matches!(node.delivery, Delivery::Wanted | Delivery::Urgent) {
            self.set_delivery(job, Delivery::Unwanted);
        }
    }

    /// Sends a terminal job's result if it is wanted, its application listens and there is credit.
    pub(super) fn deliver(&mut self, job: u32) {
        self.put_out(job);
        self.pump(self.sessions[self.jobs.nodes[job].session].application);
    }

    /// Sends a terminal job's result if it is wanted urgently, or lets it wait for credit, if its application listens.
    pub(super) fn put_out(&mut self, job: u32) {
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
                self.applications[application].outbox.push(handle, &self.jobs);
            }
            Delivery::Unwanted | Delivery::Sent | Delivery::Taken => {}
        }
    }

    /// Sends what the credit allows, as much as is said at a time.
    pub(super) fn pump(&mut self, application: u32) {
        let Some(record) = self.applications.get(application) else { return };
        let Presence::Here { peer, .. } = record.presence else { return };
        let mut turn = Turn::new(&self.settings.bounds);
        loop {
            let record = &mut self.applications[application];
            if record.credit.results == 0 || record.credit.bytes == 0 || record.outbox.0.is_empty() {
                return;
            }
            if turn.is_over() {
                return self.owe(peer);
            }
            let Some(handle) = record.outbox.0.pop_front() else { return };
            turn.looked();
            if !is_waiting(handle, &self.jobs) {
                continue;
            }
            let Phase::Ended { report, .. } = self.jobs.nodes[handle.index].phase else { continue };
            let bytes = self.jobs.ended[report].output_bytes;
            turn.answered(bytes);
            record.credit.results -= 1;
            record.credit.bytes = record.credit.bytes.saturating_sub(bytes);
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
