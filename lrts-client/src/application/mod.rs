//! The application: a pure [`engine`] decides, a thread of its own ([`driver`]) talks to the scheduler, [`watcher`] to the
//! progress server, and callers poll the engine under one lock ([`shell`]).
//!
//! Callers only ever need a waker, never this crate's runtime, so that any executor will do, and a plain thread too.

mod driver;
mod engine;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod interrupt;
mod outage;
mod shell;
#[cfg(test)]
mod tests;
mod watcher;

use std::borrow::Borrow;
use std::sync::Arc;

use lrts_core::ids::{ApplicationId, JobId};
use lrts_core::spec::JobOptions;
use serde::de::DeserializeOwned;

use crate::completed::AsCompleted;
use crate::error::ClientError;
use crate::handles::{JobHandle, JobOutput};
use crate::information::ApplicationInformation;
use crate::results::ServiceResult;
use crate::service::Service;
pub(crate) use engine::WaitId;
pub(crate) use shell::Application;

/// A program's connection to its cluster: schedules services, waits for them, shows their progress.
///
/// Cheap to clone; clones share everything. It has threads of its own, so its futures run on any executor, and none of them
/// loses anything when it is dropped. While the scheduler is away everything waits, and goes on when it is back.
///
/// A program ends it with [`stop`](Self::stop), or leaves its jobs running with [`detach`](Self::detach). If the last clone is
/// dropped without, what was scheduled is still sent, for up to two seconds, and the jobs go on or are cancelled as
/// [`on_disconnect`](ApplicationInformation::on_disconnect) says.
///
/// Ctrl-C detaches, says on stderr how to come back, and ends the program with exit code 130; a second one ends it at once. A
/// program that handles SIGINT itself keeps it.
///
/// [`blocking::ClientApplication`](crate::blocking::ClientApplication) is the same for code that isn't async.
#[derive(Clone, Debug)]
pub struct ClientApplication {
    application: Arc<Application>,
}

impl ClientApplication {
    /// Starts the application. Returns at once, whether or not the scheduler is up.
    ///
    /// # Errors
    ///
    /// [`ClientError::Setting`] for a setting that makes no sense, [`ClientError::NoHostServices`] if the program hasn't
    /// called [`host_services!`](crate::host_services), [`ClientError::Start`] if this machine lacks something.
    pub async fn start(information: ApplicationInformation) -> Result<Self, ClientError> {
        Ok(Self { application: Application::start(information)? })
    }

    /// The application's id, given or made up.
    pub fn application_id(&self) -> ApplicationId {
        self.application.id()
    }

    /// Schedules a service. Waits only for room in the send window
    /// ([`SEND_WINDOW_JOBS`](lrts_core::limits::SEND_WINDOW_JOBS) jobs and
    /// [`SEND_WINDOW_BYTES`](lrts_core::limits::SEND_WINDOW_BYTES) that the scheduler hasn't accepted). A future that is dropped
    /// before it is ready has scheduled nothing.
    ///
    /// # Errors
    ///
    /// [`ClientError::UnknownService`], [`ClientError::Encode`] and [`ClientError::TooLarge`] concern the service; any other
    /// the whole application. Whether the scheduler takes the job shows in [`flush`](Self::flush) and in waits.
    pub fn schedule_service<'a, S: Service>(
        &'a self,
        service: &S,
    ) -> impl Future<Output = Result<JobHandle<S::Output>, ClientError>> + Send + use<'a, S> {
        self.application.schedule(service)
    }

    /// Schedules a service to be run in a certain way.
    ///
    /// With a [`key`](JobOptions::key) that was used before the handle is of the job that is there, whichever process has
    /// scheduled it. Its result can be waited for any number of times.
    ///
    /// # Errors
    ///
    /// [`ClientError::InvalidOptions`]; [`ClientError::KeyConflict`] if this process knows that the key is of a job with another
    /// service or payload (else [`flush`](Self::flush) and waits say so); else as
    /// [`schedule_service`](Self::schedule_service).
    pub fn schedule_service_with<'a, S: Service>(
        &'a self,
        service: &S,
        options: JobOptions,
    ) -> impl Future<Output = Result<JobHandle<S::Output>, ClientError>> + Send + use<'a, S> {
        self.application.schedule_with(service, options)
    }

    /// Schedules many services, given by value or by reference. They travel in groups, and the iterator is asked for the next
    /// ones only when there is room for them.
    ///
    /// # Errors
    ///
    /// As [`schedule_service`](Self::schedule_service). Those before the one that failed may be scheduled.
    pub async fn schedule_services<I, Kind>(
        &self,
        services: I,
    ) -> Result<Vec<JobHandle<<I::Item as AsService<Kind>>::Output>>, ClientError>
    where
        I: IntoIterator<Item: AsService<Kind>>,
    {
        self.application.schedule_many(services).await
    }

    /// Returns when everything that was scheduled before is safe at the scheduler.
    ///
    /// # Errors
    ///
    /// [`ClientError::Refused`], [`ClientError::KeyConflict`] or [`ClientError::Lost`] for the first such job since the last
    /// flush.
    pub async fn flush(&self) -> Result<(), ClientError> {
        self.application.flush().await
    }

    /// Waits for a job and returns how it went. A result is returned once, by whichever process; until then it is kept, whatever
    /// is dropped or ends. That of a job with a [`key`](JobOptions::key) is returned as often as it is asked for.
    ///
    /// # Errors
    ///
    /// [`ClientError::AlreadyTaken`] if it was returned before; [`ClientError::Refused`], [`ClientError::KeyConflict`] and
    /// [`ClientError::Lost`] if there will never be one; [`ClientError::Decode`] if it is no `T`; any other concerns the whole application.
    pub async fn wait_for<T>(&self, job: &JobHandle<T>) -> Result<ServiceResult<T>, ClientError> {
        self.application.wait_for(job).await
    }

    /// Waits for all of these jobs and returns how they went, in the order given.
    ///
    /// # Errors
    ///
    /// As [`wait_for`](Self::wait_for), as soon as it is clear that one of them has no result to return. Then none counts as
    /// returned.
    pub async fn wait_for_multi<T>(
        &self,
        jobs: &[JobHandle<T>],
    ) -> Result<Vec<ServiceResult<T>>, ClientError> {
        self.application.wait_for_multi(jobs).await
    }

    /// The results of these jobs, given by value or by reference, as they end.
    ///
    /// The scheduler sends results ahead of what is asked for, up to
    /// [`RESULT_WINDOW`](lrts_core::limits::RESULT_WINDOW) of them and
    /// [`RESULT_WINDOW_BYTES`](lrts_core::limits::RESULT_WINDOW_BYTES), so any number of results fits into memory. A program
    /// that holds several streams half read may get more.
    pub fn as_completed<T, J>(&self, jobs: J) -> AsCompleted<T>
    where
        J: IntoIterator<Item: Borrow<JobHandle<T>>>,
    {
        self.application.as_completed(jobs)
    }

    /// Stops a job: its cancel hook runs, then the grace period, then it is killed. Its result says
    /// [`Cancelled`](crate::ServiceStatus::Cancelled), unless it ended before. Returns at once.
    ///
    /// # Errors
    ///
    /// Concern the whole application only.
    pub async fn cancel<T>(&self, job: &JobHandle<T>) -> Result<(), ClientError> {
        self.application.cancel(job.id())
    }

    /// Sets the text of the status line above the bars.
    pub fn set_stage(&self, stage: impl AsRef<str>) {
        self.application.set_stage(stage.as_ref());
    }

    /// The jobs of this application whose output is a `T`, by id: those of earlier starts under the same application id too.
    /// Left out are jobs whose result was returned, unless they have a key, and jobs that the scheduler hasn't accepted yet
    /// (see [`flush`](Self::flush)). [`RawOutput`](crate::RawOutput) asks for all, whatever their output.
    ///
    /// # Errors
    ///
    /// Concern the whole application only.
    pub async fn jobs<T: JobOutput>(&self) -> Result<Vec<JobHandle<T>>, ClientError> {
        self.application.jobs().await
    }

    /// The job of this application with this id, of whichever start of it.
    ///
    /// # Errors
    ///
    /// [`ClientError::UnknownJob`] if it has none, [`ClientError::OtherOutput`] if the job's output is no `T`; any other
    /// concerns the whole application.
    pub async fn job<T: JobOutput>(&self, id: JobId) -> Result<JobHandle<T>, ClientError> {
        self.application.job(id).await
    }

    /// Ends the application: jobs that are left are cancelled, their results forgotten, and the terminal is as it was. All
    /// other waits fail with [`ClientError::Stopped`]. Later calls do nothing.
    ///
    /// # Errors
    ///
    /// [`ClientError::NoScheduler`] if there is none to be told, for
    /// [`communication_time_out`](ApplicationInformation::communication_time_out) or ten seconds. Everything here has ended
    /// even so; what becomes of the jobs, [`on_disconnect`](ApplicationInformation::on_disconnect) says.
    pub async fn stop(&self) -> Result<(), ClientError> {
        self.application.stop().await
    }

    /// Leaves: flushes, then ends here, while the jobs go on and their results are kept, whatever was said by
    /// [`on_disconnect`](ApplicationInformation::on_disconnect). A [`start`](Self::start) with the same application id comes
    /// back: [`jobs`](Self::jobs) gives the handles. All other waits fail with [`ClientError::Detached`].
    ///
    /// # Errors
    ///
    /// Those of [`flush`](Self::flush), and then the application goes on: the next call leaves.
    /// [`ClientError::NoScheduler`] as for [`stop`](Self::stop).
    pub async fn detach(&self) -> Result<(), ClientError> {
        self.application.detach().await
    }
}

/// What [`schedule_services`](ClientApplication::schedule_services) takes: services and references to them.
///
/// `Kind` only keeps the two apart, and is always inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither a service nor a reference to one",
    note = "a service is a type with `#[derive(Serialize, Deserialize)]` and `impl lrts_client::Service`"
)]
pub trait AsService<Kind>: sealed::Sealed<Kind> {
    /// The service's output.
    type Output: DeserializeOwned + 'static;
    #[doc(hidden)]
    type Service: Service<Output = Self::Output>;
    #[doc(hidden)]
    fn as_service(&self) -> &Self::Service;
}

/// Services given by value; see [`AsService`].
#[derive(Debug)]
pub struct ByValue;

/// Services given by reference; see [`AsService`].
#[derive(Debug)]
pub struct ByReference;

impl<S: Service> AsService<ByValue> for S {
    type Output = S::Output;
    type Service = S;

    fn as_service(&self) -> &S {
        self
    }
}

impl<S: Service> AsService<ByReference> for &S {
    type Output = S::Output;
    type Service = S;

    fn as_service(&self) -> &S {
        self
    }
}

mod sealed {
    use super::{ByReference, ByValue, Service};

    pub trait Sealed<Kind> {}
    impl<S: Service> Sealed<ByValue> for S {}
    impl<S: Service> Sealed<ByReference> for &S {}
}
