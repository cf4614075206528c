//! Questions which jobs the application has.

use lrts_core::ids::JobId;
use lrts_core::protocol::application::{FromApplication, JobSet};

use super::waits::Kind;
use super::{Action, Connection, Engine, Moment, WaitError, WaitId};

/// Jobs by the name of their service.
pub(crate) type Listed = Vec<(String, JobSet)>;

/// An answer, as far as it has come.
#[derive(Debug)]
pub(super) struct List {
    /// This job only.
    job: Option<JobId>,
    /// The question on this connection; none if it wasn't asked.
    request: Option<u64>,
    jobs: Listed,
    complete: bool,
}

impl Engine {
    /// Registers a wait for the list of the application's jobs, or of this one if it has it.
    pub(crate) fn wait_for_list(&mut self, job: Option<JobId>, now: Moment) -> WaitId {
        let list = List { job, request: None, jobs: Vec::new(), complete: false };
        let wait = self.add_wait(Kind::List(list), now);
        if self.connection == Connection::Attached {
            self.to_list.push(wait);
        }
        wait
    }

    /// Whether a list is complete.
    ///
    /// # Errors
    ///
    /// If there is no scheduler or no hope.
    pub(crate) fn poll_list(&mut self, wait: WaitId) -> Option<Result<Listed, WaitError>> {
        match self.list_mut(wait).filter(|list| list.complete) {
            Some(list) => Some(Ok(std::mem::take(&mut list.jobs))),
            None => self.hopeless(wait).map(Err),
        }
    }

    /// These jobs are the application's, with a service of this index: what is known to the contrary is outdated.
    pub(crate) fn exist(&mut self, jobs: impl IntoIterator<Item = JobId>, service: u16) {
        for job in jobs {
            let number = self.jobs.meet(job);
            self.met(number, service);
        }
    }

    /// A new connection has heard no questions.
    pub(super) fn list_again(&mut self) {
        self.to_list.clear();
        for (&wait, waiting) in &mut self.waits {
            if let Kind::List(list) = &mut waiting.kind
                && !list.complete
            {
                list.request = None;
                list.jobs.clear();
                self.to_list.push(wait);
            }
        }
    }

    pub(super) fn next_list(&mut self) -> Option<FromApplication> {
        loop {
            let wait = self.to_list.pop()?;
            let request = self.last_list + 1;
            // Else nobody waits for it any more.
            if let Some(list) = self.list_mut(wait) {
                list.request = Some(request);
                let job = list.job;
                self.last_list = request;
                return Some(FromApplication::List { request, job });
            }
        }
    }

    /// A part of an answer.
    pub(super) fn listed(&mut self, request: u64, jobs: Listed, last: bool) {
        for (&wait, waiting) in &mut self.waits {
            if let Kind::List(list) = &mut waiting.kind
                && list.request == Some(request)
                && !list.complete
            {
                list.jobs.extend(jobs);
                list.complete = last;
                if last {
                    self.actions.push(Action::Wake(wait));
                }
                return;
            }
        }
    }

    fn list_mut(&mut self, wait: WaitId) -> Option<&mut List> {
        match &mut self.waits.get_mut(&wait)?.kind {
            Kind::List(list) => Some(list),
            Kind::All { .. } | Kind::Each { .. } | Kind::Flush { .. } | Kind::Room | Kind::Farewell => None,
        }
    }
}
