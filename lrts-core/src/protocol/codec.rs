//! Heads as bytes: MessagePack with named fields, so that a field with a default can be added without a new version.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::scan::{ScanError, scan};
use crate::limits::HeadBounds;

/// A message from another process, on this machine or another one.
pub trait Head: Serialize + DeserializeOwned {
    /// Its name in errors.
    const NAME: &'static str;
    /// What it may hold, derived from the most that an honest peer says.
    const BOUNDS: HeadBounds;
}

/// Bytes that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("unreadable {kind} message")]
pub struct DecodeError {
    kind: &'static str,
    #[source]
    cause: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Decode(#[from] rmp_serde::decode::Error),
}

/// Encodes a head.
pub fn encode<T: Serialize>(message: &T) -> Bytes {
    rmp_serde::to_vec_named(message).expect("protocol types have no maps of unknown length").into()
}

/// Decodes what a peer has sent. Nothing is made of bytes that are out of bounds.
///
/// # Errors
///
/// [`DecodeError`] if the bytes are not exactly one such message within its bounds.
pub fn decode<T: Head>(bytes: &[u8]) -> Result<T, DecodeError> {
    read(bytes, T::BOUNDS).map_err(|cause| DecodeError { kind: T::NAME, cause })
}

/// Decodes what comes from this machine, from a disk or another process, whose length was bounded there.
///
/// # Errors
///
/// [`DecodeError`] if the bytes are not exactly one such value.
pub fn decode_local<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let bounds = HeadBounds { bytes: usize::MAX, values: usize::MAX };
    read(bytes, bounds).map_err(|cause| DecodeError { kind: std::any::type_name::<T>(), cause })
}

/// How many values and bytes something has once it is encoded, for senders that keep within a message's bounds.
pub fn measure<T: Serialize>(value: &T) -> (usize, usize) {
    let bytes = encode(value);
    let bounds = HeadBounds { bytes: usize::MAX, values: usize::MAX };
    (scan(&bytes, bounds).expect("what is encoded here is within every bound"), bytes.len())
}

fn read<T: DeserializeOwned>(bytes: &[u8], bounds: HeadBounds) -> Result<T, Cause> {
    scan(bytes, bounds)?;
    Ok(T::deserialize(&mut rmp_serde::Deserializer::new(bytes))?)
}

/// Splits a body into parts of these lengths.
///
/// None unless the lengths add up to exactly the body's.
pub fn split_body(body: &Bytes, lengths: impl IntoIterator<Item = u64>) -> Option<Vec<Bytes>> {
    let mut rest = body.clone();
    let mut parts = Vec::new();
    for length in lengths {
        let length = usize::try_from(length).ok().filter(|&length| length <= rest.len())?;
        parts.push(rest.split_to(length));
    }
    rest.is_empty().then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_split_only_where_the_lengths_add_up() {
        let body = Bytes::from_static(b"abcdef");
        assert_eq!(split_body(&body, [2, 0, 4]).unwrap(), ["ab", "", "cdef"]);
        assert!(split_body(&body, [2, 3]).is_none());
        assert!(split_body(&body, [2, 5]).is_none());
        assert!(split_body(&body, [u64::MAX]).is_none());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert!(decode::<crate::protocol::application::FromApplication>(b"\xc1").is_err());
        assert!(decode::<crate::protocol::application::FromApplication>(b"").is_err());
        let mut two = encode(&crate::protocol::application::FromApplication::Stop).to_vec();
        assert!(decode::<crate::protocol::application::FromApplication>(&two).is_ok());
        two.push(0);
        assert!(decode::<crate::protocol::application::FromApplication>(&two).is_err());
    }
}
