//! Jobs as the program holds them.

use std::fmt;
use std::hash::{Hash, Hasher};

use lrts_core::ids::JobId;
use serde::de::DeserializeOwned;

use crate::encoding::{self, DecodeError};
use crate::results::RawOutput;

/// What jobs can be asked for by: the output of a service, or [`RawOutput`] for the output of any.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be the output of a job",
    note = "an output has `#[derive(Serialize, Deserialize)]`; `RawOutput` stands for the outputs of all jobs"
)]
pub trait JobOutput: Sized + 'static + sealed::Sealed {
    /// Whether it is the output of every job.
    #[doc(hidden)]
    const RAW: bool;
    #[doc(hidden)]
    fn decode(bytes: &bytes::Bytes) -> Result<Self, DecodeError>;
}

impl<T: DeserializeOwned + 'static> JobOutput for T {
    const RAW: bool = false;

    fn decode(bytes: &bytes::Bytes) -> Result<T, DecodeError> {
        encoding::decode(bytes)
    }
}

impl JobOutput for RawOutput {
    const RAW: bool = true;

    fn decode(bytes: &bytes::Bytes) -> Result<RawOutput, DecodeError> {
        Ok(RawOutput::new(bytes.clone()))
    }
}

mod sealed {
    use super::{DeserializeOwned, RawOutput};

    pub trait Sealed {}
    impl<T: DeserializeOwned + 'static> Sealed for T {}
    impl Sealed for RawOutput {}
}

/// Reads an output.
pub(crate) type Decode<T> = fn(&bytes::Bytes) -> Result<T, DecodeError>;

/// A scheduled job whose output will be a `T`.
///
/// Small, and freely cloned and sent, whatever `T` is. Dropping it changes nothing about the job.
pub struct JobHandle<T> {
    id: JobId,
    decode: Decode<T>,
}

impl<T> JobHandle<T> {
    /// The job's id, which `lrts jobs`, `lrts logs` and logs show.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// The same job with its output left as bytes, so that jobs of different outputs can share one wait; see
    /// [`RawOutput::decode`].
    pub fn untyped(&self) -> JobHandle<RawOutput> {
        JobHandle::new(self.id)
    }

    pub(crate) fn decode(&self) -> Decode<T> {
        self.decode
    }
}

impl<T: JobOutput> JobHandle<T> {
    pub(crate) fn new(id: JobId) -> Self {
        Self { id, decode: T::decode }
    }
}

impl<T> Clone for JobHandle<T> {
    fn clone(&self) -> Self {
        Self { id: self.id, decode: self.decode }
    }
}

impl<T> PartialEq for JobHandle<T> {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl<T> Eq for JobHandle<T> {}

impl<T> Hash for JobHandle<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl<T> fmt::Debug for JobHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JobHandle").field(&self.id).finish()
    }
}
