//! Heads as bytes: MessagePack with named fields, so that a field with a default can be added without a new version.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A head that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("unreadable {kind} message")]
pub struct DecodeError {
    kind: &'static str,
    #[source]
    source: rmp_serde::decode::Error,
}

/// Encodes a head.
pub fn encode<T: Serialize>(message: &T) -> Bytes {
    rmp_serde::to_vec_named(message).expect("protocol types have no maps of unknown length").into()
}

/// Decodes a head.
///
/// # Errors
///
/// [`DecodeError`] if the bytes are not exactly one such message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let mut rest = bytes;
    let message = T::deserialize(&mut rmp_serde::Deserializer::new(&mut rest));
    let whole = message.and_then(|message| match rest {
        [] => Ok(message),
        _ => Err(serde::de::Error::custom("bytes behind its end")),
    });
    whole.map_err(|source| DecodeError { kind: std::any::type_name::<T>(), source })
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
