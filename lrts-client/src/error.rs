//! What can go wrong between a program and its scheduler.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use lrts_core::command_line::exit_code;
use lrts_core::ids::JobId;
use lrts_core::limits::BODY_BYTES;
use lrts_core::spec::InvalidOptions;

use crate::encoding::{DecodeError, EncodeError};

/// Why a call of the client failed. How a *job* ended is no such error but its [`ServiceResult`](crate::ServiceResult).
///
/// Its `Debug` form is the message with its causes too, since that is what a `main` that returns it prints.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A setting, given in the program or in the environment, makes no sense.
    #[error("{name}: {problem}")]
    Setting {
        /// Which: an environment variable or a method of [`ApplicationInformation`](crate::ApplicationInformation).
        name: &'static str,
        /// What is wrong with it and what was expected.
        problem: String,
    },
    /// The program has not said which services it can run.
    #[error("this program has not called host_services!: call it first in main, naming every service")]
    NoHostServices,
    /// The application could not be started on this machine.
    #[error("can't start the application: {what} failed")]
    Start {
        /// What was tried.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The service is not among those that `host_services!` names, so no worker could run it.
    #[error("service `{service}` is not named in host_services!: add it there")]
    UnknownService {
        /// Its name.
        service: &'static str,
    },
    /// No job can have these options.
    #[error("invalid job options")]
    InvalidOptions(
        #[from]
        #[source]
        InvalidOptions,
    ),
    /// The service's own `Serialize` implementation failed.
    #[error("service `{service}` can't be encoded: check its Serialize implementation")]
    Encode {
        /// Its name.
        service: &'static str,
        /// What failed.
        #[source]
        source: EncodeError,
    },
    /// The encoded service is too large.
    #[error(
        "service `{service}` takes {bytes} bytes: at most {BODY_BYTES} can travel, so put bulk data into files"
    )]
    TooLarge {
        /// Its name.
        service: &'static str,
        /// Its encoded length.
        bytes: usize,
    },
    /// The scheduler does not take a job.
    #[error("the scheduler refused job {job}: {reason}")]
    Refused {
        /// Which.
        job: JobId,
        /// Why, and what to do.
        reason: String,
    },
    /// No worker could be given the program: it can't be read, or the scheduler does not take it.
    #[error("the program can't be shipped: {reason}")]
    Bundle {
        /// Why, and what to do.
        reason: String,
    },
    /// A newer start of the same application has taken over. The jobs go on, and their results go there.
    #[error(
        "application `{application}` was started again elsewhere and goes on there: give programs that run at the same time \
         application ids of their own"
    )]
    Superseded {
        /// The id that both have.
        application: String,
    },
    /// The scheduler does not let this application in, or the key to show it can't be used.
    #[error("the scheduler at {scheduler} can't be used: {reason}")]
    Unauthorised {
        /// Its address.
        scheduler: String,
        /// Why, and what becomes of the jobs that it has.
        reason: String,
    },
    /// The scheduler has no place for this application: it, its user or the scheduler has as many of something as may be.
    #[error("the scheduler at {scheduler} has no room for this application: {reason}")]
    Limit {
        /// Its address.
        scheduler: String,
        /// Of what there is too much, and what to do.
        reason: String,
    },
    /// The scheduler is of another version.
    #[error("the scheduler at {scheduler} is of another version, use the same on both sides: {reason}")]
    Version {
        /// Its address.
        scheduler: String,
        /// What it said, and what becomes of the jobs that it has.
        reason: String,
    },
    /// There was no scheduler for as long as a wait may go without one. Nothing is lost: the same wait may be tried again.
    #[error("no scheduler at {scheduler} for {} s ({trouble}): is it running, is the address right?", waited.as_secs_f64())]
    NoScheduler {
        /// Where it was looked for.
        scheduler: String,
        /// How long a wait may go without one.
        waited: Duration,
        /// What the last attempt to connect met.
        trouble: String,
    },
    /// The job's result was returned before: each is returned once.
    #[error("the result of job {job} was returned before: keep it where it is needed again")]
    AlreadyTaken {
        /// Which.
        job: JobId,
    },
    /// The job has ended well, but its output is no value of the expected type. It stays at the scheduler; wait for
    /// [`untyped`](crate::JobHandle::untyped) to get its bytes.
    #[error(
        "the output of job {job} of service `{service}` can't be decoded: wait for its untyped() handle to get the bytes"
    )]
    Decode {
        /// Which.
        job: JobId,
        /// Its service.
        service: String,
        /// What failed.
        #[source]
        source: DecodeError,
    },
    /// The job's key was used before for a job of another service or with another payload.
    #[error(
        "the key `{key}` belongs to job {job}, which has another service or payload: give what is new a key of its own"
    )]
    KeyConflict {
        /// The job that has the key.
        job: JobId,
        /// The key.
        key: String,
    },
    /// The scheduler does not know the job (any more): it was started anew without its state, the result was not fetched for
    /// longer than it is kept, or the job is of another application.
    #[error("the scheduler has lost job {job}: schedule it again")]
    Lost {
        /// Which.
        job: JobId,
    },
    /// The application has no such job, or had it and its result was returned.
    #[error(
        "application `{application}` has no job {job}, or its result was returned before: jobs() gives those that it has"
    )]
    UnknownJob {
        /// Which was asked for.
        job: JobId,
        /// The application.
        application: String,
    },
    /// The job is of a service whose output, in this program, is of another type than the one asked for.
    #[error(
        "job {job} is of service `{service}`, whose output is no {expected} in this program: ask for its output's type, or for \
         RawOutput"
    )]
    OtherOutput {
        /// Which was asked for.
        job: JobId,
        /// Its service.
        service: String,
        /// The type that was asked for.
        expected: &'static str,
    },
    /// `detach` was called: no more jobs can be scheduled or waited for here.
    #[error(
        "the application was detached: start it again with the same application id to come back to its jobs"
    )]
    Detached,
    /// `stop` was called: no more jobs can be scheduled or waited for.
    #[error("the application was stopped: start another one")]
    Stopped,
}

impl ClientError {
    /// The exit code that `lrts` would end with: 2 for what is wrong with the program or its settings, 3 for no scheduler in
    /// time, 4 for a key, a user or a version that isn't let in, and 1 for everything else.
    ///
    /// A `main` that returns the error ends with 1 whatever it is. Where scripts are to tell them apart:
    ///
    /// ```no_run
    /// use std::process::ExitCode;
    ///
    /// use lrts_client::ClientError;
    ///
    /// fn main() -> ExitCode {
    ///     match run() {
    ///         Ok(()) => ExitCode::SUCCESS,
    ///         Err(error) => {
    ///             eprintln!("{error:?}");
    ///             error.exit_code().into()
    ///         }
    ///     }
    /// }
    ///
    /// fn run() -> Result<(), ClientError> {
    ///     // what the application does
    ///     Ok(())
    /// }
    /// ```
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Setting { .. }
            | Self::NoHostServices
            | Self::UnknownService { .. }
            | Self::InvalidOptions(_) => exit_code::USAGE,
            Self::NoScheduler { .. } => exit_code::NO_SCHEDULER,
            Self::Unauthorised { .. } | Self::Version { .. } => exit_code::REFUSED,
            Self::Start { .. }
            | Self::Encode { .. }
            | Self::TooLarge { .. }
            | Self::Refused { .. }
            | Self::Bundle { .. }
            | Self::Superseded { .. }
            | Self::Limit { .. }
            | Self::AlreadyTaken { .. }
            | Self::Decode { .. }
            | Self::KeyConflict { .. }
            | Self::Lost { .. }
            | Self::UnknownJob { .. }
            | Self::OtherOutput { .. }
            | Self::Detached
            | Self::Stopped => exit_code::FAILED,
        }
    }
}

impl fmt::Debug for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_main_prints_says_what_to_do() {
        let error = ClientError::InvalidOptions(InvalidOptions::CrashLimit);
        let printed = format!("{error:?}");
        assert!(printed.starts_with("invalid job options: a crash limit of 0"), "{printed}");
    }

    #[test]
    fn exit_codes_are_those_of_the_command() {
        let (scheduler, reason) = ("node7:5555".to_owned(), "revoked".to_owned());
        let waited = Duration::from_secs(1);
        assert_eq!(ClientError::NoHostServices.exit_code(), 2);
        let away = ClientError::NoScheduler { scheduler: scheduler.clone(), waited, trouble: reason.clone() };
        assert_eq!(away.exit_code(), 3);
        assert_eq!(ClientError::Unauthorised { scheduler, reason }.exit_code(), 4);
        assert_eq!(ClientError::Stopped.exit_code(), 1);
    }
}
