//! Bundles on their way: who has one, who was asked for it, and what has come from whom.

use std::collections::BTreeMap;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::UserName;
use lrts_core::limits::UPLOAD_STALL;
use lrts_core::transport::ConnectionId;

use super::room::{Charge, Need, Spare};
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
    /// See [`Part::number`].
    pub(super) number: u64,
}

impl Half {
    pub(super) fn charge(&self) -> Charge {
        Charge { bytes: self.bytes, need: Need::Nobody(Spare::Half(self.left)) }
    }
}

/// How pieces come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flow {
    /// Each continues the one before.
    InOrder,
    /// One was passed over, and all behind it are: the sender is asked again once it has sent its last one.
    Lags,
    /// None is under way: the sender is asked again once there is room, of which there was too little at this moment, and a disk
    /// that works.
    Waits(Moment),
}

/// What an application sends of a bundle, in a file of its own.
#[derive(Debug)]
pub(super) struct Part {
    /// Which file it is: another one each time that it begins anew, so that what the disk says of an earlier one concerns
    /// nobody who sends now.
    pub(super) number: u64,
    /// Whether all of it came from this sender.
    pub(super) from_start: bool,
    /// How much of it the writer was given.
    pub(super) received: u64,
    pub(super) flow: Flow,
    /// When something was added to it last, or it was begun.
    pub(super) heard: Moment,
}

impl Part {
    /// Begins anew, as this file. What is still under way for the one before is passed over.
    pub(super) fn begin_anew(&mut self, number: u64, now: Moment) {
        let flow = if self.flow == Flow::InOrder { Flow::Lags } else { self.flow };
        *self = Self { number, from_start: true, received: 0, flow, heard: now };
    }
}

/// An application that has a bundle, and what it says of it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) who: Offerer,
    pub(super) bytes: u64,
    /// None while it waits for being asked.
    pub(super) part: Option<Part>,
    /// It has left while what it sent is being verified.
    pub(super) is_gone: bool,
}

impl Source {
    /// Whether all has come from it, and is being verified.
    pub(super) fn is_whole(&self) -> bool {
        self.part.as_ref().is_some_and(|part| part.received == self.bytes)
    }

    /// Whether there is something of it that nothing is added to.
    pub(super) fn is_stalled(&self, now: Moment) -> bool {
        let stalls = |part: &Part| part.received > 0 && now.since(part.heard) >= UPLOAD_STALL;
        !self.is_whole() && self.part.as_ref().is_some_and(stalls)
    }
}

/// A bundle that is on its way.
#[derive(Debug)]
pub(super) struct Upload {
    /// In the order in which they came.
    pub(super) sources: Vec<Source>,
    /// What it was built for by everybody's account.
    pub(super) platforms: Platforms,
    /// When one of them was asked last, and how often each user was.
    asked: Moment,
    times_asked: BTreeMap<Option<UserName>, u32>,
    /// When one more is asked, if it isn't complete by then. None if all were.
    pub(super) next_due: Option<Moment>,
}

impl Upload {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            sources: Vec::new(),
            platforms: Platforms::default(),
            asked: now,
            times_asked: BTreeMap::new(),
            next_due: None,
        }
    }

    pub(super) fn has(&self, connection: ConnectionId) -> bool {
        self.sources.iter().any(|source| source.who.connection == connection)
    }

    pub(super) fn from(&mut self, connection: ConnectionId) -> Option<&mut Source> {
        self.sources.iter_mut().find(|source| source.who.connection == connection)
    }

    /// Who sends, or has sent, this file.
    pub(super) fn sender_of(&mut self, number: u64) -> Option<&mut Source> {
        let is_it = |source: &&mut Source| source.part.as_ref().is_some_and(|part| part.number == number);
        self.sources.iter_mut().find(is_it)
    }

    /// Whether somebody was asked for it.
    pub(super) fn is_sent(&self) -> bool {
        self.sources.iter().any(|source| source.part.is_some())
    }

    /// One more has it, and waits for being asked.
    pub(super) fn add(&mut self, who: Offerer, bytes: u64) {
        self.sources.push(Source { who, bytes, part: None, is_gone: false });
        self.plan();
    }

    pub(super) fn remove(&mut self, connection: ConnectionId) -> Option<Source> {
        let index = self.sources.iter().position(|source| source.who.connection == connection)?;
        let source = self.sources.remove(index);
        self.plan();
        Some(source)
    }

    /// The next one, by its part, is asked.
    pub(super) fn ask_next(&mut self, now: Moment, part: impl FnOnce(&Source) -> Part) -> Option<&Source> {
        let (index, _) = self.next()?;
        let source = &mut self.sources[index];
        self.asked = now;
        *self.times_asked.entry(source.who.user.clone()).or_default() += 1;
        source.part = Some(part(source));
        self.plan();
        Some(&self.sources[index])
    }

    /// Whom to ask next, and how many of the same user were asked and are there: of these the fewest, then of a user who was asked
    /// less often, so that nobody gains by having many connections.
    fn next(&self) -> Option<(usize, u32)> {
        let mut senders: BTreeMap<_, u32> = BTreeMap::new();
        for source in self.sources.iter().filter(|source| source.part.is_some()) {
            *senders.entry(&source.who.user).or_default() += 1;
        }
        let rank = |source: &Source| {
            let user = &source.who.user;
            (senders.get(user).copied().unwrap_or(0), self.times_asked.get(user).copied().unwrap_or(0))
        };
        let waiting = self.sources.iter().enumerate().filter(|(_, source)| source.part.is_none());
        let ranks = waiting.map(|(index, source)| (rank(source), index));
        ranks.min().map(|((senders, _), index)| (index, senders))
    }

    /// Those of one user share its line and are seldom against each other: more of them are asked ever later.
    fn plan(&mut self) {
        self.next_due = self.next().map(|(_, senders)| self.asked + UPLOAD_STALL * senders.max(1));
    }
}
