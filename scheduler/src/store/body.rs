//! Bodies as bytes on the disk: each with a checksum behind it, verified whenever it is read.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use lrts_core::ids::JobId;
use lrts_core::protocol::codec;
use lrts_core::protocol::progress::BarRecord;

use super::EndedBodies;
use crate::record::Submitted;

/// Bytes of a checksum.
pub(super) const CHECKSUM: usize = 4;

/// What a body is of its job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    /// Payloads of all jobs of a submit, under its first one; or that of one keyed job.
    Payloads = 0,
    /// The newest valid result.
    Result = 1,
    /// Final bars of the newest attempt that has ended.
    Bars = 2,
    /// What that attempt has printed.
    Output = 3,
    /// The checkpoint of an attempt, its number in the key.
    Checkpoint = 4,
}

impl Kind {
    pub(super) const ALL: [Kind; 5] =
        [Kind::Payloads, Kind::Result, Kind::Bars, Kind::Output, Kind::Checkpoint];
}

/// The name of a body.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct BodyKey {
    pub(super) kind: Kind,
    pub(super) job: JobId,
    /// 0 except for checkpoints.
    pub(super) attempt: u32,
}

impl BodyKey {
    pub(super) fn new(kind: Kind, job: JobId) -> Self {
        Self { kind, job, attempt: 0 }
    }

    pub(super) fn checkpoint(job: JobId, attempt: u32) -> Self {
        Self { kind: Kind::Checkpoint, job, attempt }
    }
}

/// A body about to be written: what it consists of, checksums among it.
#[derive(Debug, Default)]
pub(super) struct Body {
    pub(super) pieces: Vec<Bytes>,
    pub(super) length: u64,
}

impl Body {
    /// Checked as a whole.
    pub(super) fn whole(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        let mut body = Self::default();
        body.push_checked(pieces);
        body
    }

    /// Each payload is checked by itself, so that one is read without the others.
    pub(super) fn payloads(payloads: impl IntoIterator<Item = Bytes>) -> Self {
        let mut body = Self::default();
        for payload in payloads {
            body.push_checked([payload]);
        }
        body
    }

    pub(super) fn bars(bars: &Vec<BarRecord>) -> Self {
        Self::whole([codec::encode(bars)])
    }

    pub(super) fn output(ended: &EndedBodies) -> Self {
        let stdout_bytes = (ended.stdout.len() as u64).to_le_bytes();
        Self::whole([Bytes::copy_from_slice(&stdout_bytes), ended.stdout.clone(), ended.stderr.clone()])
    }

    fn push_checked(&mut self, pieces: impl IntoIterator<Item = Bytes>) {
        let mut hasher = crc32fast::Hasher::new();
        for piece in pieces {
            hasher.update(&piece);
            self.push(piece);
        }
        self.push(Bytes::copy_from_slice(&hasher.finalize().to_le_bytes()));
    }

    fn push(&mut self, piece: Bytes) {
        self.length += piece.len() as u64;
        self.pieces.push(piece);
    }

    /// All of it in one piece, which keeps nothing else in memory.
    pub(super) fn joined(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(self.pieces.iter().map(Bytes::len).sum());
        for piece in &self.pieces {
            bytes.put_slice(piece);
        }
        bytes.freeze()
    }
}

/// Adds a checksum.
pub(super) fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// What was sealed; none if it isn't as it was written.
pub(super) fn unseal(sealed: &[u8]) -> Option<&[u8]> {
    let (bytes, checksum) = sealed.split_last_chunk::<CHECKSUM>()?;
    (crc32fast::hash(bytes) == u32::from_le_bytes(*checksum)).then_some(bytes)
}

/// Like [`unseal`], of a body.
pub(super) fn unseal_bytes(sealed: &Bytes) -> Option<Bytes> {
    unseal(sealed).map(|bytes| sealed.slice_ref(bytes))
}

/// Stdout and stderr out of an unsealed output.
pub(super) fn split_output(mut body: Bytes) -> Option<(Bytes, Bytes)> {
    let stdout_bytes = u64::from_le_bytes(*body.first_chunk()?);
    let mut rest = body.split_off(size_of::<u64>());
    let stdout_bytes = usize::try_from(stdout_bytes).ok().filter(|&bytes| bytes <= rest.len())?;
    let stdout = rest.split_to(stdout_bytes);
    Some((stdout, rest))
}

/// Where in a submit's payloads that of each job is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// The first job's sequence.
    first: u64,
    /// Where the sealed payload of each ends; that of one without ends where it would begin.
    ends: Box<[u64]>,
}

impl Layout {
    /// Of jobs numbered on from `first`: the length of each payload, none where nothing is kept.
    pub(super) fn new(first: u64, payloads: impl IntoIterator<Item = Option<u32>>) -> Self {
        let mut end = 0;
        let ends = payloads.into_iter().map(|bytes| {
            end += bytes.map_or(0, |bytes| u64::from(bytes) + CHECKSUM as u64);
            end
        });
        Self { first, ends: ends.collect() }
    }

    /// Of a submit, without its skipped and keyed jobs.
    pub(super) fn of(submitted: &Submitted) -> Self {
        let kept = submitted.kept().zip(&submitted.jobs).map(|(kept, job)| kept.then_some(job.payload_bytes));
        Self::new(submitted.first, kept)
    }

    /// Where the sealed payload of a job is.
    pub(super) fn range(&self, sequence: u64) -> Option<Range<u64>> {
        let index = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        (start < end).then_some(start..end)
    }

    /// Bytes of memory it takes.
    pub(super) fn bytes(&self) -> usize {
        self.ends.len() * size_of::<u64>()
    }
}

impl Submitted {
    /// Of each sequence in order: whether it made a job that is known by this sequence.
    pub(super) fn kept(&self) -> impl Iterator<Item = bool> + '_ {
        let mut skipped = self.skipped.iter().copied().peekable();
        let mut keyed = self.keyed.iter().map(|keyed| keyed.sequence).peekable();
        (self.first..).take(self.jobs.len()).map(move |sequence| {
            let skipped = skipped.next_if_eq(&sequence).is_some();
            let keyed = keyed.next_if_eq(&sequence).is_some();
            !skipped && !keyed
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_find_the_payloads_that_are_kept() {
        let layout = Layout::new(5, [Some(10), None, Some(0), Some(3)]);
        assert_eq!(layout.range(4), None);
        assert_eq!(layout.range(5), Some(0..14));
        assert_eq!(layout.range(6), None);
        assert_eq!(layout.range(7), Some(14..18), "an empty payload has a checksum");
        assert_eq!(layout.range(8), Some(18..25));
        assert_eq!(layout.range(9), None);
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let body = Body::whole([Bytes::from("ab"), Bytes::from("c")]);
        let mut bytes = body.joined().to_vec();
        assert_eq!((bytes.len() as u64, unseal(&bytes).unwrap()), (body.length, &b"abc"[..]));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(&bytes), None);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(unseal(b"abc"), None);
    }
}
