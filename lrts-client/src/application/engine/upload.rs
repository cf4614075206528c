//! The program on its way to the scheduler: offered before the first submit of each connection, or at once where jobs are open, which
//! would wait for ever if the scheduler has lost it; sent piece by piece from where the scheduler wants it.

use std::sync::Arc;

use bytes::Bytes;
use lrts_core::ids::BundleDigest;
use lrts_core::protocol::application::FromApplication;
use lrts_core::spec::Platform;

use super::Step;

/// An executable that can be shipped.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Offer {
    pub(crate) digest: BundleDigest,
    pub(crate) bytes: u64,
    pub(crate) platform: Platform,
}

#[derive(Debug, Default)]
pub(super) struct Upload {
    /// None for one that is installed at the workers.
    offer: Option<Offer>,
    stage: Stage,
}

#[derive(Debug, Default)]
enum Stage {
    /// Nothing was said on this connection.
    #[default]
    Silent,
    /// Offered; the scheduler has it, or its answer is due.
    Offered,
    /// The piece at this offset is to be read.
    Read(u64),
    /// It is being read. One piece at a time is under way, so memory is bounded.
    Reading(u64),
    /// It is to be sent.
    Loaded(u64, Bytes, u32),
    /// The scheduler won't have it.
    Refused(Arc<str>),
}

impl Upload {
    pub(super) fn set_offer(&mut self, offer: Option<Offer>) {
        self.offer = offer;
    }

    /// A later connection starts anew: what was refused may be taken then.
    pub(super) fn disconnect(&mut self) {
        self.stage = Stage::Silent;
    }

    /// The offer, if it is to be made now.
    pub(super) fn offer(&mut self) -> Option<FromApplication> {
        let Offer { digest, bytes, platform } = self.offer.clone()?;
        if !matches!(self.stage, Stage::Silent) {
            return None;
        }
        self.stage = Stage::Offered;
        Some(FromApplication::OfferBundle { digest, bytes, platform })
    }

    /// Why the scheduler doesn't take the program, if it said so on this connection.
    pub(super) fn refusal(&self) -> Option<&Arc<str>> {
        match &self.stage {
            Stage::Refused(reason) => Some(reason),
            Stage::Silent | Stage::Offered | Stage::Read(_) | Stage::Reading(_) | Stage::Loaded(..) => None,
        }
    }

    pub(super) fn wanted(&mut self, digest: BundleDigest, offset: u64) {
        // A repeat while pieces are on their way changes nothing: they follow each other to the end anyway. Behind the end there
        // is nothing to send.
        let is_there = self.offer.as_ref().is_some_and(|offer| offset <= offer.bytes);
        if is_there && self.is_ours(digest) && matches!(self.stage, Stage::Offered) {
            self.stage = Stage::Read(offset);
        }
    }

    pub(super) fn complete(&mut self, digest: BundleDigest) {
        if self.is_ours(digest) && !matches!(self.stage, Stage::Silent) {
            self.stage = Stage::Offered;
        }
    }

    /// Whether that changed anything.
    pub(super) fn refused(&mut self, digest: BundleDigest, reason: &str) -> bool {
        if !self.is_ours(digest) || matches!(self.stage, Stage::Silent) {
            return false;
        }
        self.stage = Stage::Refused(reason.into());
        true
    }

    pub(super) fn chunk_read(&mut self, offset: u64, bytes: Bytes, length: u32) {
        if matches!(self.stage, Stage::Reading(wanted) if wanted == offset) {
            self.stage = if length == 0 { Stage::Offered } else { Stage::Loaded(offset, bytes, length) };
        }
    }

    /// What there is to send or read.
    pub(super) fn next_step(&mut self) -> Option<Step> {
        let digest = self.offer.as_ref()?.digest;
        match &self.stage {
            Stage::Read(offset) => {
                let offset = *offset;
                self.stage = Stage::Reading(offset);
                Some(Step::ReadChunk(offset))
            }
            Stage::Loaded(offset, body, bytes) => {
                let (offset, body, bytes) = (*offset, body.clone(), *bytes);
                let end = offset + u64::from(bytes);
                // After the last piece the scheduler may ask again at once.
                let is_last = self.offer.as_ref().is_some_and(|offer| offer.bytes == end);
                self.stage = if is_last { Stage::Offered } else { Stage::Read(end) };
                Some(Step::Send(FromApplication::BundleChunk { digest, offset, bytes }, body))
            }
            Stage::Silent | Stage::Offered | Stage::Reading(_) | Stage::Refused(_) => None,
        }
    }

    fn is_ours(&self, digest: BundleDigest) -> bool {
        self.offer.as_ref().is_some_and(|offer| offer.digest == digest)
    }
}
