//! Jobs as the program holds them.

use std::fmt;
use std::hash::{Hash, Hasher};

use lrts_core::ids::JobId;
use serde::de::DeserializeOwned;

use crate::encoding::{self, DecodeError};
use crate::results::RawOutput;

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
        JobHandle { id: self.id, decode: |bytes| Ok(RawOutput::new(bytes.clone())) }
    }

    pub(crate) fn decode(&self) -> Decode<T> {
        self.decode
    }
}

impl<T: DeserializeOwned + 'static> JobHandle<T> {
    pub(crate) fn new(id: JobId) -> Self {
        Self { id, decode: |bytes| encoding::decode(bytes) }
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
