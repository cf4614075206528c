//! How jobs went.

use std::time::Duration;

use lrts_core::ids::{JobId, WorkerId};
use lrts_core::status::{Failure, ServiceStatus};
use serde::de::DeserializeOwned;

use crate::encoding::{self, DecodeError};

/// How a job went. Returned once per job.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct ServiceResult<T> {
    /// Which job.
    pub job_id: JobId,
    /// What `run` returned, or why there is nothing.
    pub outcome: Result<T, Failure>,
    /// How often the job's process began to run it.
    pub attempts: u32,
    /// Where it ran last; none if it never began.
    pub worker: Option<WorkerId>,
    /// How long it waited, from the submit to the beginning of the last attempt.
    pub queued: Duration,
    /// How long the last attempt ran.
    pub ran: Duration,
}

impl<T> ServiceResult<T> {
    /// How it ended, in a word.
    pub fn status(&self) -> ServiceStatus {
        match &self.outcome {
            Ok(_) => ServiceStatus::Finished,
            Err(failure) => failure.kind.status(),
        }
    }

    /// What `run` returned.
    ///
    /// # Errors
    ///
    /// The [`Failure`] of a job that has no output.
    pub fn into_output(self) -> Result<T, Failure> {
        self.outcome
    }
}

/// An output as the bytes in which it travelled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawOutput {
    bytes: bytes::Bytes,
}

impl RawOutput {
    pub(crate) fn new(bytes: bytes::Bytes) -> Self {
        Self { bytes }
    }

    /// Reads the output.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if it is no `T`.
    pub fn decode<T: DeserializeOwned + 'static>(&self) -> Result<T, DecodeError> {
        encoding::decode(&self.bytes)
    }

    /// The bytes: MessagePack with field names.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use lrts_core::ids::SessionId;
    use lrts_core::status::FailureKind;

    use super::*;

    #[test]
    fn the_status_tells_how_it_ended() {
        let result = |outcome| ServiceResult {
            job_id: SessionId(1).job(1),
            outcome,
            attempts: 1,
            worker: None,
            queued: Duration::ZERO,
            ran: Duration::ZERO,
        };
        assert_eq!(result(Ok(1)).status(), ServiceStatus::Finished);
        let crashed = result(Err(Failure::new(FailureKind::OutOfMemory, "4 GiB")));
        assert_eq!(crashed.status(), ServiceStatus::Crashed);
        assert_eq!(crashed.into_output().unwrap_err().to_string(), "4 GiB");
    }

    #[test]
    fn a_raw_output_is_read_as_what_it_is() {
        let raw = RawOutput::new(encoding::encode(&("six", 9)).unwrap().into());
        assert_eq!(raw.decode::<(String, u8)>().unwrap(), ("six".to_owned(), 9));
        assert!(raw.decode::<bool>().is_err());
    }
}
