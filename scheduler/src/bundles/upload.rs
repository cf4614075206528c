//! Bundles on their way: who has one, whose turn it is to send it, and whether that one gets on.

use std::collections::VecDeque;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::UserName;
use lrts_core::limits::{UPLOAD_PACE_BYTES, UPLOAD_STALL};
use lrts_core::spec::Platform;
use lrts_core::transport::ConnectionId;

use crate::engine::{Peer, Platforms};

/// A connected application, as the transport and as the engine knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Offerer {
    pub(crate) connection: ConnectionId,
    pub(crate) peer: Peer,
    /// Of its key; none where the scheduler has no keys.
    pub(crate) user: Option<UserName>,
}

/// A part of a bundle that nobody is sending.
#[derive(Debug)]
pub(super) struct Half {
    pub(super) bytes: u64,
    /// Since when, by the wall clock.
    pub(super) left: Duration,
    /// See [`Upload::file`].
    pub(super) file: u64,
}

/// An application that has a bundle, and what it says of it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) who: Offerer,
    pub(super) bytes: u64,
}

/// A bundle that is on its way.
#[derive(Debug)]
pub(super) struct Upload {
    /// The first one sends it. Empty only while it is verified.
    pub(super) sources: VecDeque<Source>,
    /// Who was asked last, and for the bundle from its start on.
    pub(super) sender: ConnectionId,
    pub(super) from_start: bool,
    /// Its length by the sender's account, and what it was built for by everybody's.
    pub(super) bytes: u64,
    pub(super) platforms: Platforms,
    /// Which file it is: another one each time that it begins anew, so that what the disk says of an earlier one concerns
    /// nobody who sends it now.
    pub(super) file: u64,
    /// How much of it the writer was given.
    pub(super) received: u64,
    /// A piece was passed over: the sender is asked again once it has sent its last one.
    pub(super) lags: bool,
    /// When a piece came last; at first, when it was offered.
    pub(super) heard: Moment,
    /// When it is looked at whether the sender gets on, and how much there was when that was looked at before.
    pub(super) look: Moment,
    looked: u64,
}

impl Upload {
    /// One that goes on where this file ends.
    pub(super) fn new(source: Source, platform: Platform, half: Half, now: Moment) -> Self {
        Self {
            sender: source.who.connection,
            from_start: false,
            bytes: source.bytes,
            platforms: platform.into(),
            sources: VecDeque::from([source]),
            file: half.file,
            received: half.bytes,
            lags: false,
            heard: now,
            look: now,
            looked: half.bytes,
        }
    }

    pub(super) fn has(&self, who: &Offerer) -> bool {
        self.sources.iter().any(|source| source.who == *who)
    }

    /// Whose key the application has that sends it.
    pub(super) fn user(&self) -> Option<&UserName> {
        self.sources.front()?.who.user.as_ref()
    }

    /// Whether all has come, and it is being verified.
    pub(super) fn is_whole(&self) -> bool {
        self.received == self.bytes
    }

    /// Whether there is something of it that nothing is added to.
    pub(super) fn is_stalled(&self, now: Moment) -> bool {
        !self.is_whole() && self.received > 0 && now.since(self.heard) >= UPLOAD_STALL
    }

    /// Begins anew, as this file. What is still under way of the one before is passed over.
    pub(super) fn begin_anew(&mut self, file: u64) {
        (self.file, self.received, self.lags) = (file, 0, true);
    }

    /// The first source is to send what is missing.
    pub(super) fn begin_turn(&mut self, now: Moment) {
        self.from_start = self.received == 0;
        (self.look, self.looked) = (now + UPLOAD_STALL, self.received);
    }

    /// Whether the sender's turn is over: nothing comes of it, or too little where others have the bundle. Otherwise it is looked
    /// at again later.
    pub(super) fn ends_turn(&mut self, now: Moment) -> bool {
        if self.is_whole() || now < self.look {
            return false;
        }
        let least = if self.sources.len() > 1 { UPLOAD_PACE_BYTES } else { 1 };
        let came = self.received.saturating_sub(self.looked);
        (self.look, self.looked) = (now + UPLOAD_STALL, self.received);
        came < least
    }
}
