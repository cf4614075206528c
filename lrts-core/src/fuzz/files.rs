use std::fmt::Display;
use std::str::FromStr;

use super::Input;
use crate::bundle::restore_chunk;
use crate::ids::{ApplicationId, AttemptId, BarId, BundleDigest, JobId, UserName, WorkerId};
use crate::limits::BUNDLE_CHUNK_BYTES;
use crate::spool;

/// The file in which a host has left an attempt's end.
pub fn spool_end(bytes: &[u8]) {
    if let Some(notices) = spool::split(bytes) {
        assert_eq!(spool::join(&notices), bytes);
    }
}

/// A compressed piece of a bundle and the length that was announced.
pub fn bundle_chunk(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let announced = (input.number() >> 32) as u32;
    if let Ok(piece) = restore_chunk(input.rest(), announced) {
        assert_eq!(piece.len(), announced as usize);
        assert!(piece.len() <= BUNDLE_CHUNK_BYTES && piece.capacity() <= BUNDLE_CHUNK_BYTES);
    }
}

/// Ids as text: of a command line, of a file's name.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    parses_back::<JobId>(text);
    parses_back::<AttemptId>(text);
    parses_back::<BarId>(text);
    parses_back::<WorkerId>(text);
    parses_back::<BundleDigest>(text);
    parses_back::<ApplicationId>(text);
    parses_back::<UserName>(text);
    if let Some(attempt) = spool::attempt_of(text) {
        assert_eq!(spool::attempt_of(&spool::name_of(attempt)), Some(attempt));
    }
}

fn parses_back<T: FromStr + Display + PartialEq>(text: &str) {
    if let Ok(id) = text.parse::<T>() {
        assert!(id.to_string().parse().is_ok_and(|again: T| again == id), "{text:?} became {id}");
    }
}
