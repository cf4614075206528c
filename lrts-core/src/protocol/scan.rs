//! A look at MessagePack bytes before anything is made of them.
//!
//! A decoder believes what it reads: a megabyte of empty strings becomes a vector of 24 MB, an announced length is room made in
//! advance. This walks over the values without keeping any, and stops at the first that exceeds a bound.

use crate::limits::{HeadBounds, VALUE_DEPTH};

/// Why bytes aren't decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// Longer than any honest peer's.
    #[error("{bytes} bytes: at most {limit} are allowed")]
    TooLong {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// More values than any honest peer sends, or announced so many.
    #[error("more than {limit} values")]
    TooMany {
        /// How many there may be.
        limit: usize,
    },
    /// Values within values within values.
    #[error("values are nested deeper than {VALUE_DEPTH}")]
    TooDeep,
    /// It ends before all that it announces.
    #[error("it announces more than it has")]
    CutShort,
    /// It goes on behind its end.
    #[error("bytes behind its end")]
    Trailing,
    /// A byte that begins no value of ours.
    #[error("byte {0:#04x} where a value begins")]
    NoValue(u8),
}

/// What begins at some byte.
enum Form {
    /// A value of so many bytes more.
    Leaf(usize),
    /// So many values follow within it.
    Container(usize),
}

/// Checks that these bytes are exactly one value within these bounds, and counts what is in it. Allocates nothing.
///
/// # Errors
///
/// [`ScanError`] for the first thing that is wrong.
pub fn scan(bytes: &[u8], bounds: HeadBounds) -> Result<usize, ScanError> {
    if bytes.len() > bounds.bytes {
        return Err(ScanError::TooLong { bytes: bytes.len(), limit: bounds.bytes });
    }
    let mut rest = bytes;
    // Of each container that is open, how many values are still to come in it.
    let mut open = [0; VALUE_DEPTH];
    let mut depth = 0;
    let (mut read, mut to_come) = (0, 1_usize);
    while to_come > 0 {
        read += 1;
        to_come -= 1;
        match begin(&mut rest)? {
            Form::Leaf(length) => rest = rest.get(length..).ok_or(ScanError::CutShort)?,
            Form::Container(count) => {
                to_come = to_come.checked_add(count).ok_or(ScanError::CutShort)?;
                if to_come > bounds.values.saturating_sub(read) {
                    return Err(ScanError::TooMany { limit: bounds.values });
                }
                if count > 0 {
                    *open.get_mut(depth).ok_or(ScanError::TooDeep)? = count + 1;
                    depth += 1;
                }
            }
        }
        // Each value has a byte at least.
        if to_come > rest.len() {
            return Err(ScanError::CutShort);
        }
        // That value is complete, or has begun; those that end with it are complete too.
        while let Some(top) = depth.checked_sub(1) {
            open[top] -= 1;
            if open[top] > 0 {
                break;
            }
            depth = top;
        }
    }
    if rest.is_empty() { Ok(read) } else { Err(ScanError::Trailing) }
}

/// Reads how a value begins.
fn begin(rest: &mut &[u8]) -> Result<Form, ScanError> {
    let first = number(rest, 1)? as u8;
    Ok(match first {
        0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => Form::Leaf(0),
        0x80..=0x8f => Form::Container(2 * usize::from(first & 0x0f)),
        0x90..=0x9f => Form::Container(usize::from(first & 0x0f)),
        0xa0..=0xbf => Form::Leaf(usize::from(first & 0x1f)),
        0xc4 | 0xd9 => Form::Leaf(number(rest, 1)?),
        0xc5 | 0xda => Form::Leaf(number(rest, 2)?),
        0xc6 | 0xdb => Form::Leaf(number(rest, 4)?),
        0xcc | 0xd0 => Form::Leaf(1),
        0xcd | 0xd1 => Form::Leaf(2),
        0xca | 0xce | 0xd2 => Form::Leaf(4),
        0xcb | 0xcf | 0xd3 => Form::Leaf(8),
        0xdc => Form::Container(number(rest, 2)?),
        0xdd => Form::Container(number(rest, 4)?),
        0xde => Form::Container(2 * number(rest, 2)?),
        0xdf => Form::Container(number(rest, 4)?.saturating_mul(2)),
        // The reserved byte, and extension types: no message has any.
        0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8 => return Err(ScanError::NoValue(first)),
    })
}

/// The next bytes as one number, the highest first.
fn number(rest: &mut &[u8], bytes: usize) -> Result<usize, ScanError> {
    let (digits, behind) = rest.split_at_checked(bytes).ok_or(ScanError::CutShort)?;
    *rest = behind;
    Ok(digits.iter().fold(0, |number, &digit| number << 8 | usize::from(digit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: HeadBounds = HeadBounds { bytes: 8 << 20, values: 1_000 };

    fn check(bytes: &[u8]) -> Result<usize, ScanError> {
        scan(bytes, BOUNDS)
    }

    #[test]
    fn every_value_is_counted() {
        assert_eq!(check(&[0x07]), Ok(1));
        assert_eq!(check(&[0x92, 0x07, 0xc0]), Ok(3));
        assert_eq!(check(&[0x82, 0xa1, b'a', 0x90, 0xa1, b'b', 0x91, 0x80]), Ok(6));
        let text = (vec!["x".repeat(300); 20], [1.5_f64; 3], -70_000_i32, Some(true), vec![0_u8; 70_000]);
        let values = 1 + (1 + 20) + (1 + 3) + 1 + 1 + (1 + 70_000);
        let bounds = HeadBounds { bytes: 1 << 20, values };
        assert_eq!(scan(&rmp_serde::to_vec(&text).unwrap(), bounds), Ok(values));
    }

    #[test]
    fn counts_and_lengths_that_are_not_there_are_refused() {
        let most = [0xff; 4];
        for announced in [0xc6, 0xdb] {
            assert_eq!(check(&[&[announced], &most[..]].concat()), Err(ScanError::CutShort));
        }
        for announced in [0xdd, 0xdf] {
            let bytes = [&[announced], &most[..], &[0x80; 100]].concat();
            assert_eq!(check(&bytes), Err(ScanError::TooMany { limit: 1_000 }));
            let bounds = HeadBounds { values: usize::MAX, ..BOUNDS };
            assert_eq!(scan(&bytes, bounds), Err(ScanError::CutShort));
        }
        // Two that are within the bounds one by one.
        assert_eq!(check(&[0x93, 0x92, 0x01, 0x02]), Err(ScanError::CutShort));
        for cut in [&[][..], &[0xd9], &[0xcd, 1], &[0x92, 1], &[0xa2, b'x']] {
            assert_eq!(check(cut), Err(ScanError::CutShort), "{cut:?}");
        }
    }

    #[test]
    fn a_million_empty_strings_are_too_many() {
        let mut bytes = vec![0xdd];
        bytes.extend(1_000_000_u32.to_be_bytes());
        bytes.resize(bytes.len() + 1_000_000, 0xa0);
        assert_eq!(check(&bytes), Err(ScanError::TooMany { limit: 1_000 }));
    }

    #[test]
    fn what_is_nested_too_deep_is_refused() {
        let nested = |depth: usize| [vec![0x91; depth], vec![0x01]].concat();
        assert_eq!(check(&nested(VALUE_DEPTH)), Ok(VALUE_DEPTH + 1));
        assert_eq!(check(&nested(VALUE_DEPTH + 1)), Err(ScanError::TooDeep));
        assert_eq!(check(&nested(5_000_000)), Err(ScanError::TooDeep));
        // One behind the other is not deep.
        let flat = [vec![0xdc, 0x01, 0x00], [0x91, 0x01].repeat(256)].concat();
        assert_eq!(check(&flat), Ok(513));
    }

    #[test]
    fn what_is_no_single_value_is_refused() {
        assert_eq!(check(&[0x01, 0x01]), Err(ScanError::Trailing));
        assert_eq!(check(&[0xc1]), Err(ScanError::NoValue(0xc1)));
        assert_eq!(check(&[0xd4, 1, 1]), Err(ScanError::NoValue(0xd4)));
        let long = vec![0x01; BOUNDS.bytes + 1];
        let refused = ScanError::TooLong { bytes: long.len(), limit: BOUNDS.bytes };
        assert_eq!(check(&long), Err(refused));
    }
}
