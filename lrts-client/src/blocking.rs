//! The client for code that isn't async.
//!
//! Calls wait by parking their thread, while the application's own threads do the work. So they may be made from any thread,
//! inside a tokio runtime too, where they hold up that runtime's thread only.

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{ApplicationId, JobId};
use lrts_core::spec::JobOptions;

use crate::application::{Application, AsService};
use crate::error::ClientError;
use crate::handles::{JobHandle, JobOutput};
use crate::information::ApplicationInformation;
use crate::park::{block_on, block_until};
use crate::results::ServiceResult;
use crate::service::Service;

/// A program's connection to its cluster: schedules services, waits for them, shows their progress.
///
/// The same as [`crate::ClientApplication`], whose documentation holds, for code that isn't async.
#[derive(Clone, Debug)]
pub struct ClientApplication {
    application: Arc<Application>,
}

impl ClientApplication {
    /// Starts the application. Returns at once, whether or not the scheduler is up.
    ///
    /// # Errors
    ///
    /// As [`crate::ClientApplication::start`].
    pub fn start(information: ApplicationInformation) -> Result<Self, ClientError> {
        Ok(Self { application: Application::start(information)? })
    }

    #[cfg(test)]
    pub(crate) fn from_shared(application: Arc<Application>) -> Self {
        Self { application }
    }

    /// The application's id, given or made up.
    pub fn application_id(&self) -> ApplicationId {
        self.application.id()
    }

    /// Schedules a service. Waits only for room in the send window.
    ///
    /// # Errors
    ///
    /// As [`crate::ClientApplication::schedule_service`].
    pub fn schedule_service<S: Service>(&self, service: &S) -> Result<JobHandle<S::Output>, ClientError> {
        block_on(self.application.schedule(service))
    }

    /// Schedules a service to be run in a certain way.
    ///
    /// # Errors
    ///
    /// As [`crate::ClientApplication::schedule_service_with`].
    pub fn schedule_service_with<S: Service>(
        &self,
        service: &S,
        options: JobOptions,
    ) -> Result<JobHandle<S::Output>, ClientError> {
        block_on(self.application.schedule_with(service, options))
    }

    /// Schedules many services, given by value or by reference, in groups.
    ///
    /// # Errors
    ///
    /// As [`crate::ClientApplication::schedule_services`].
    #[expect(clippy::type_complexity, reason = "an alias would hide that handles are returned")]
    pub fn schedule_services<I, Kind>(
        &self,
        services: I,
    ) -> Result<Vec<JobHandle<<I::Item as AsService<Kind>>::Output>>, ClientError>
    where
        I: IntoIterator<Item: AsService<Kind>>,
    {
        block_on(self.application.schedule_many(services))
    }

    /// Returns when everything that was scheduled before is safe at the scheduler.
    ///
    /// # Errors
    ///
    /// As [`crate::ClientApplication::flush`].
    pub fn flush(&self) -> Result<(), ClientError> {
        block_on(self.application.flush())
    }

    /// Waits for a job and returns how it went. A result is returned once.
    ///
    /// # Errors
    ///
    /// As [`crate::ClientApplication::wait_for`].
    pub fn wait_for<T>(&self, job: &JobHandle<T>) -> Result<ServiceResult<T>, ClientError> {
        block_on(self.application.wait_for(job))
    }

    /// Waits for a job, but not longer than `limit`; none if it hasn't ended by then. It may be waited for again.
    ///
    /// # Errors
    ///
    /// As [`crate::ClientApplication::wait_for`].
    pub fn wait_for_timeout<T>(
        &self,
        job: &JobHandle<T>,
        limit: Duration,
    ) -> Result<Option<ServiceResult<T>>, ClientError> {
        block_until(self.application.wait_for(job), Some(Moment::now() + limit)).transpose()
    }

    /// Waits for all of these jobs and returns how they went, in the order given.
    ///
    /// # Errors
    ///
    /// As [`crate::ClientApplication::wait_for_multi`].
    pub fn wait_for_multi<T>(&self, jobs: &[JobHandle<T>]) -> Result<Vec<ServiceResult<T>>, ClientError> {
        block_on(self.application.wait_for_multi(jobs))
    }

    /// The results of these jobs, given by value or by reference, as they end.
    pub fn as_completed<T, J>(&self, jobs: J) -> AsCompleted<T>
    where
        J: IntoIterator<Item: Borrow<JobHandle<T>>>,
    {
        AsCompleted { stream: self.application.as_completed(jobs) }
    }

    /// Stops a job: its cancel hook runs, then the grace period, then it is killed. Returns at once.
    ///
    /// # Errors
    ///
    /// As [`crate::ClientApplication::cancel`].
    pub fn cancel<T>(&self, job: &JobHandle<T>) -> Result<(), ClientError> {
        self.application.cancel(job.id())
    }

    /// Sets the text of the status line above the bars.
    pub fn set_stage(&self, stage: impl AsRef<str>) {
        self.application.set_stage(stage.as_ref());
    }

    /// The jobs of this application whose output is a `T`, by id: those of earlier starts too.
    ///
    /// # Errors
    ///
    /// As [`crate::ClientApplication::jobs`].
    pub fn jobs<T: JobOutput>(&self) -> Result<Vec<JobHandle<T>>, ClientError> {
        block_on(self.application.jobs())
    }

    /// The job of this application with this id, of whichever start of it.
    ///
    /// # Errors
    ///
    /// As [`crate::ClientApplication::job`].
    pub fn job<T: JobOutput>(&self, id: JobId) -> Result<JobHandle<T>, ClientError> {
        block_on(self.application.job(id))
    }

    /// Ends the application: jobs that are left are cancelled, their results forgotten, and the terminal is as it was.
    ///
    /// # Errors
    ///
    /// As [`crate::ClientApplication::stop`].
    pub fn stop(&self) -> Result<(), ClientError> {
        block_on(self.application.stop())
    }

    /// Leaves: flushes, then ends here, while the jobs go on and their results are kept for the next start under the same
    /// application id.
    ///
    /// # Errors
    ///
    /// As [`crate::ClientApplication::detach`].
    pub fn detach(&self) -> Result<(), ClientError> {
        block_on(self.application.detach())
    }
}

/// The results of some jobs as they end: an [`Iterator`] that waits for each.
///
/// Keeps the application alive. Dropping it early loses nothing: what it hasn't returned can be waited for again.
#[derive(Debug)]
#[must_use = "results come only when asked for"]
pub struct AsCompleted<T> {
    stream: crate::AsCompleted<T>,
}

impl<T> Iterator for AsCompleted<T> {
    type Item = Result<ServiceResult<T>, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        block_on(self.stream.next())
    }
}
