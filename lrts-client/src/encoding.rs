//! Users' values as bytes: MessagePack with named fields.
//!
//! Fields are named so that `#[serde(default)]`, `skip_serializing_if` and `untagged` work. What serialises as bytes
//! ([`Bytes`], `#[serde(with = "serde_bytes")]`) is copied as a block, and so is a value that is exactly a `Vec<u8>`. A
//! `Vec<u8>` inside another value stays a list of numbers: encoded as bytes it could not be read back from within an
//! `untagged`, internally tagged or flattened type.
//!
//! As in JSON, `Some(None)` and `Some(())` read back as `None`.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

use std::any::Any;
use std::ops::{Deref, DerefMut};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// How deeply values may be nested, so that no input can overflow the stack of the thread that reads it.
const DEPTH: usize = 128;

/// A run of bytes that is encoded as a block: as an output, as a service's field, or inside any other value.
///
/// Encoding 5 MB takes about a millisecond; a plain `Vec<u8>` inside another value is a list of numbers and takes fifty times
/// as long.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(#[serde(with = "serde_bytes")] Vec<u8>);

impl Bytes {
    /// The bytes as a vector, without a copy.
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<Bytes> for Vec<u8> {
    fn from(bytes: Bytes) -> Self {
        bytes.0
    }
}

/// A value that its own `Serialize` implementation refuses to write.
#[derive(Debug, thiserror::Error)]
#[error("can't encode a value of type {type_name}")]
pub struct EncodeError {
    type_name: &'static str,
    #[source]
    source: rmp_serde::encode::Error,
}

/// Bytes that are no value of the wanted type.
#[derive(Debug, thiserror::Error)]
#[error("can't decode {length} bytes as {type_name}")]
pub struct DecodeError {
    type_name: &'static str,
    length: usize,
    #[source]
    source: DecodeProblem,
}

#[derive(Debug, thiserror::Error)]
enum DecodeProblem {
    #[error("nested more than {DEPTH} deep")]
    Depth,
    #[error("cut off after {at} bytes")]
    CutOff { at: usize },
    #[error("the value ends after {at} bytes")]
    Trailing { at: usize },
    #[error("no MessagePack at byte {at}")]
    Marker { at: usize },
    #[error(transparent)]
    Value(#[from] rmp_serde::decode::Error),
}

/// Encodes a value.
///
/// # Errors
///
/// [`EncodeError`] if its `Serialize` implementation fails.
pub(crate) fn encode<T: Serialize + 'static>(value: &T) -> Result<Vec<u8>, EncodeError> {
    let failed = |source| EncodeError { type_name: std::any::type_name::<T>(), source };
    let mut bytes = Vec::new();
    if let Some(block) = (value as &dyn Any).downcast_ref::<Vec<u8>>() {
        bytes.reserve_exact(block.len() + 5);
        rmp_serde::encode::write_named(&mut bytes, serde_bytes::Bytes::new(block)).map_err(failed)?;
    } else {
        rmp_serde::encode::write_named(&mut bytes, value).map_err(failed)?;
    }
    Ok(bytes)
}

/// Encodes a value that may borrow. A plain `Vec<u8>` is a list of numbers here, which [`decode`] reads as well.
///
/// # Errors
///
/// [`EncodeError`] if its `Serialize` implementation fails.
pub(crate) fn encode_borrowed<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::new();
    let written = rmp_serde::encode::write_named(&mut bytes, value);
    written.map_err(|source| EncodeError { type_name: std::any::type_name::<T>(), source })?;
    Ok(bytes)
}

/// Decodes a value from exactly these bytes.
///
/// # Errors
///
/// [`DecodeError`] if they are no such value, or are nested too deeply.
pub(crate) fn decode<T: DeserializeOwned + 'static>(bytes: &[u8]) -> Result<T, DecodeError> {
    decode_checked(bytes).map_err(|source| DecodeError {
        type_name: std::any::type_name::<T>(),
        length: bytes.len(),
        source,
    })
}

fn decode_checked<T: DeserializeOwned + 'static>(bytes: &[u8]) -> Result<T, DecodeProblem> {
    check(bytes)?;
    let mut result: Option<T> = None;
    if let Some(block) = (&mut result as &mut dyn Any).downcast_mut::<Option<Vec<u8>>>() {
        let decoded: serde_bytes::ByteBuf = rmp_serde::from_slice(bytes)?;
        *block = Some(decoded.into_vec());
    }
    match result {
        Some(block) => Ok(block),
        None => Ok(rmp_serde::from_slice(bytes)?),
    }
}

/// Whether the bytes are one MessagePack value, whole, alone and no deeper than [`DEPTH`].
///
/// rmp-serde doesn't count the depth of enum variants, so a hostile chain of them would overflow the stack.
fn check(bytes: &[u8]) -> Result<(), DecodeProblem> {
    // Values still to come on each level.
    let mut open: Vec<u64> = vec![1];
    let mut at = 0;
    while let Some(left) = open.last_mut() {
        if *left == 0 {
            open.pop();
            continue;
        }
        *left -= 1;
        let marker = *bytes.get(at).ok_or(DecodeProblem::CutOff { at })?;
        let number = |width: usize| -> Result<u64, DecodeProblem> {
            let digits = bytes.get(at + 1..at + 1 + width).ok_or(DecodeProblem::CutOff { at })?;
            Ok(digits.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
        };
        // Bytes of the marker and its length, bytes that follow, values that follow.
        let (head, data, values) = match marker {
            0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => (1, 0, 0),
            0x80..=0x8f => (1, 0, 2 * u64::from(marker & 0x0f)),
            0x90..=0x9f => (1, 0, u64::from(marker & 0x0f)),
            0xa0..=0xbf => (1, u64::from(marker & 0x1f), 0),
            0xc1 => return Err(DecodeProblem::Marker { at }),
            0xc4 | 0xd9 => (2, number(1)?, 0),
            0xc5 | 0xda => (3, number(2)?, 0),
            0xc6 | 0xdb => (5, number(4)?, 0),
            0xc7 => (2, number(1)? + 1, 0),
            0xc8 => (3, number(2)? + 1, 0),
            0xc9 => (5, number(4)? + 1, 0),
            0xcc | 0xd0 => (1, 1, 0),
            0xcd | 0xd1 => (1, 2, 0),
            0xca | 0xce | 0xd2 => (1, 4, 0),
            0xcb | 0xcf | 0xd3 => (1, 8, 0),
            0xd4..=0xd8 => (1, (1 << (marker - 0xd4)) + 1, 0),
            0xdc => (3, 0, number(2)?),
            0xdd => (5, 0, number(4)?),
            0xde => (3, 0, 2 * number(2)?),
            0xdf => (5, 0, 2 * number(4)?),
        };
        let data = usize::try_from(data).map_err(|_| DecodeProblem::CutOff { at })?;
        let end = at + head + data;
        if end > bytes.len() {
            return Err(DecodeProblem::CutOff { at: bytes.len() });
        }
        at = end;
        if values > 0 {
            if open.len() > DEPTH {
                return Err(DecodeProblem::Depth);
            }
            open.push(values);
        }
    }
    if at < bytes.len() { Err(DecodeProblem::Trailing { at }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::error::Error;

    use proptest::prelude::*;

    use super::*;

    fn chain(error: &dyn Error) -> String {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    fn returns<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug + 'static>(value: T) {
        let bytes = encode(&value).unwrap();
        assert_eq!(decode::<T>(&bytes).unwrap(), value, "{bytes:02x?}");
    }

    #[derive(Serialize, Deserialize, PartialEq, Debug, Clone, Default)]
    struct Inner {
        name: String,
        #[serde(with = "serde_bytes")]
        block: Vec<u8>,
        list: Vec<u8>,
        pair: (u8, u8),
        array: [u8; 20],
    }

    #[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
    #[serde(untagged)]
    enum Untagged {
        Text(String),
        List(Vec<u8>),
        Inner(Inner),
    }

    #[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
    #[serde(tag = "type")]
    enum Tagged {
        Inner(Inner),
        Other { block: Bytes, list: Vec<u8> },
        Unit,
    }

    #[derive(Serialize, Deserialize, PartialEq, Debug, Clone, Default)]
    struct Outer {
        #[serde(flatten)]
        inner: Inner,
        #[serde(default)]
        added: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        maybe: Option<u64>,
        last: f64,
    }

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    enum Chain {
        Link(Box<Chain>),
        End,
    }

    fn inner() -> Inner {
        let array = std::array::from_fn(|index| 200 + index as u8);
        Inner { name: "ü".into(), block: vec![0, 200], list: vec![0, 255], pair: (255, 200), array }
    }

    #[test]
    fn serde_attributes_that_need_named_fields_work() {
        returns(Untagged::List(vec![1, 200]));
        returns(Untagged::Inner(inner()));
        returns(Tagged::Inner(inner()));
        returns(Tagged::Other { block: vec![200].into(), list: vec![200, 3] });
        returns(Tagged::Unit);
        returns(Outer { inner: inner(), added: 3, maybe: None, last: 0.5 });
        returns(Outer { inner: inner(), added: 3, maybe: Some(u64::MAX), last: 0.5 });
        returns(((), Some(1u8), [(1i128, u128::MAX)], 'x', BTreeMap::from([(1, "one".to_owned())])));
    }

    #[test]
    fn fields_may_come_and_go() {
        #[derive(Serialize)]
        struct Old {
            gone: u8,
            b: u8,
        }
        #[derive(Deserialize, PartialEq, Debug)]
        struct New {
            b: u8,
            #[serde(default)]
            added: Option<String>,
        }
        let bytes = encode(&Old { gone: 1, b: 2 }).unwrap();
        assert_eq!(decode::<New>(&bytes).unwrap(), New { b: 2, added: None });
    }

    #[test]
    fn runs_of_bytes_are_blocks() {
        let block = vec![200u8; 1_000];
        assert_eq!(encode(&block).unwrap().len(), 1_003);
        assert_eq!(encode(&Bytes::from(block.clone())).unwrap(), encode(&block).unwrap());
        assert_eq!(decode::<Vec<u8>>(&encode(&Bytes::from(block.clone())).unwrap()).unwrap(), block);
        assert_eq!(decode::<Vec<u8>>(&encode(&(1u8, 200u8)).unwrap()).unwrap(), [1, 200]);
        assert_eq!(&decode::<Bytes>(&encode(&vec![7u8]).unwrap()).unwrap()[..], [7]);
    }

    #[test]
    fn five_megabytes_take_milliseconds_in_a_debug_build_too() {
        let block = vec![200u8; 5_000_000];
        let start = lrts_core::clock::Moment::now();
        let bytes = encode(&block).unwrap();
        assert_eq!(decode::<Vec<u8>>(&bytes).unwrap().len(), block.len());
        // As a list of numbers it takes seconds here.
        let took = start.elapsed();
        assert!(took < std::time::Duration::from_millis(200), "{took:?}");
    }

    #[test]
    fn deep_input_is_refused_and_allowed_depth_fits_a_small_stack() {
        let links = |count: usize| {
            let mut bytes = b"\x81\xa4Link".repeat(count);
            bytes.extend(b"\xa3End");
            bytes
        };
        let read = move || {
            decode::<Chain>(&links(DEPTH)).unwrap();
            chain(&decode::<Chain>(&links(100_000)).unwrap_err())
        };
        let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(read).unwrap();
        let error = thread.join().unwrap();
        assert!(error.contains("nested more than 128 deep"), "{error}");
        assert!(decode::<Vec<u8>>(&[0x91; 100_000]).is_err());
    }

    #[test]
    fn announced_lengths_allocate_nothing() {
        for bytes in [
            &b"\xc6\xff\xff\xff\xff"[..],
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xffx",
        ] {
            assert!(chain(&decode::<Vec<u8>>(bytes).unwrap_err()).contains("cut off"));
            assert!(decode::<Vec<u64>>(bytes).is_err());
            assert!(decode::<String>(bytes).is_err());
        }
        let error = chain(&decode::<u8>(b"\x01\x02").unwrap_err());
        assert_eq!(error, "can't decode 2 bytes as u8: the value ends after 1 bytes");
    }

    proptest! {
        #[test]
        fn values_return(
            block in any::<Vec<u8>>(),
            text in any::<String>(),
            numbers in any::<Vec<(i64, f64)>>(),
            map in any::<BTreeMap<String, Option<u32>>>(),
            results in any::<Vec<Result<u16, String>>>(),
        ) {
            returns(block.clone());
            returns(Bytes::from(block.clone()));
            returns((text, numbers, map, results, block));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in any::<Vec<u8>>()) {
            let _ = decode::<Vec<u8>>(&bytes);
            let _ = decode::<Outer>(&bytes);
            let _ = decode::<Tagged>(&bytes);
            let _ = decode::<BTreeMap<String, Vec<Untagged>>>(&bytes);
        }
    }
}
