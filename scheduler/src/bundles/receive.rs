//! Pieces as they come: whom to ask for them, and whether there is room.
//!
//! One that has a bundle is asked at first. If it isn't complete some time after the last one was asked, the next one is asked as
//! well. Nobody is interrupted by that, and none is preferred for its pace.
//!
//! Nothing fails for want of room that others will give back: what doesn't fit is passed over and asked for again.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::bundle::{check_chunk, chunk_bytes};
use lrts_core::clock::Moment;
use lrts_core::ids::{BundleDigest, UserName};
use lrts_core::protocol::application::ToApplication;
use lrts_core::transport::ConnectionId;
use tracing::{debug, info};

use super::disk::Work;
use super::room::{Charge, FileId, Need};
use super::upload::{Flow, Part, Source};
use super::{BadChunk, Bundles};
use crate::engine::Event;

/// Where room is short, several bundles that a user sends at a time take this part of it at most.
const SHARE: u64 = 4;

/// How soon it is looked again whether there is room for senders that wait for some.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long nothing is written after the disk has failed: each try may cost a whole upload.
pub(super) const DISK_PAUSE: Duration = Duration::from_secs(10);

/// Of how many at a time, each of which may have to be compared with all that is sent.
const LOOKED_AT: usize = 32;

impl Bundles {
    /// Asks somebody for a bundle, unless somebody was asked.
    pub(super) fn ask_unless_sent(&mut self, digest: BundleDigest) {
        if self.uploads.get(&digest).is_some_and(|upload| !upload.is_sent()) {
            self.ask_next(digest, Moment::now());
        }
    }

    /// Asks the next one that has a bundle, who goes on with what its user left of it, or else with what is left from before a restart.
    fn ask_next(&mut self, digest: BundleDigest, now: Moment) {
        let is_disk_failing = self.is_disk_failing(now);
        let Some(upload) = self.uploads.get_mut(&digest) else { return };
        let part = |source: &Source| {
            // A longer file isn't this bundle's, by this one's account.
            let fits = |key: &_| self.halves.get(key).is_some_and(|half| half.bytes < source.bytes);
            let key = [(digest, source.who.user.clone()), (digest, None)].into_iter().find(fits);
            let half = key.and_then(|key| self.halves.remove(&key));
            let (received, number) = half.map_or((0, self.files + 1), |half| (half.bytes, half.number));
            self.files = self.files.max(number);
            Part { number, from_start: received == 0, received, flow: Flow::InOrder, heard: now }
        };
        let Some(Source { who, part: Some(part), .. }) = upload.ask_next(now, part) else { return };
        let (to, received) = (who.connection, part.received);
        let charge = Charge { bytes: received, need: Need::Sent };
        self.room.set(FileId::Part(digest, part.number), Some(charge));
        if is_disk_failing {
            return self.wait(digest, to, now);
        }
        self.tell(to, &ToApplication::BundleWanted { digest, offset: received });
    }

    /// A piece has come. Returns what the engine is to know.
    ///
    /// # Errors
    ///
    /// [`BadChunk`] if it doesn't continue the file.
    pub(crate) fn chunk(
        &mut self,
        from: ConnectionId,
        digest: BundleDigest,
        offset: u64,
        bytes: u32,
        compressed: Bytes,
    ) -> Result<Vec<Event>, BadChunk> {
        // A repeat, or of one that wasn't asked, or another one was first.
        let source = self.uploads.get_mut(&digest).and_then(|upload| upload.from(from));
        let Some(Source { part: Some(part), bytes: total, who, .. }) = source else { return Ok(Vec::new()) };
        let total = *total;
        let was_asked = !matches!(part.flow, Flow::Waits(_));
        if offset < part.received || part.received == total || !was_asked {
            return Ok(Vec::new());
        }
        let is_piece = bytes > 0 && bytes == chunk_bytes(offset, total);
        let is_gap = offset > part.received && part.flow == Flow::InOrder;
        if !is_piece || is_gap || check_chunk(&compressed, bytes).is_err() {
            return Err(BadChunk { digest, offset, bytes, expected: part.received, total });
        }
        // No overflow: a piece ends within the bundle.
        let end = offset + u64::from(bytes);
        let (is_last, is_next) = (end == total, offset == part.received);
        let (number, user) = (part.number, who.user.clone());
        let file = FileId::Part(digest, number);
        let mut events = Vec::new();
        let has_time = !self.is_disk_failing(Moment::now()) && self.disk.has_time_for(user.as_ref(), bytes);
        let is_taken = is_next && has_time && {
            events = self.make_room(file, user.as_ref(), end);
            self.room.has(file, end)
        };
        let Some(part) = self.part(digest, from) else { return Ok(events) };
        if !is_taken {
            part.flow = Flow::Lags;
            if is_last || self.room.is_too_small_for(total) {
                events.extend(self.go_on(digest, from));
            }
            return Ok(events);
        }
        (part.received, part.flow, part.heard) = (end, Flow::InOrder, Moment::now());
        self.room.set(file, Some(Charge { bytes: end, need: Need::Sent }));
        self.disk.write(user, (digest, number), offset, bytes, compressed);
        if is_last {
            self.disk.order(Work::Finish { digest, number });
        }
        Ok(events)
    }

    /// A sender of whom something was passed over, and who has no more under way, is asked for it again, if there is room for all,
    /// or once there is. Returns what the engine is to know.
    fn go_on(&mut self, digest: BundleDigest, from: ConnectionId) -> Vec<Event> {
        let Some(source) = self.uploads.get_mut(&digest).and_then(|upload| upload.from(from)) else {
            return Vec::new();
        };
        let (bytes, user) = (source.bytes, source.who.user.clone());
        let Some(number) = source.part.as_ref().map(|part| part.number) else { return Vec::new() };
        if self.room.is_too_small_for(bytes) {
            let source = self.remove_source(digest, from);
            self.abandon(digest, number);
            self.ask_unless_sent(digest);
            return source
                .map(|source| self.refuse(&source.who, digest, self.no_room(bytes)))
                .into_iter()
                .collect();
        }
        let now = Moment::now();
        if self.is_disk_failing(now) {
            self.wait(digest, from, now);
            return Vec::new();
        }
        let file = FileId::Part(digest, number);
        let events = self.make_room(file, user.as_ref(), bytes);
        if self.room.has(file, bytes) {
            self.ask_again(digest, from);
        } else {
            self.wait(digest, from, now);
        }
        events
    }

    /// A sender who has nothing under way isn't asked until it is its turn.
    pub(super) fn wait(&mut self, digest: BundleDigest, from: ConnectionId, now: Moment) {
        if let Some(part) = self.part(digest, from) {
            part.flow = Flow::Waits(now);
            self.next_look.get_or_insert(now + LOOK_AGAIN);
        }
    }

    /// Whether it is too early for another try.
    pub(super) fn is_disk_failing(&self, now: Moment) -> bool {
        self.disk_failed.is_some_and(|failed| now.since(failed) < DISK_PAUSE)
    }

    /// Asks a sender for all that didn't come of what it was asked for before.
    pub(super) fn ask_again(&mut self, digest: BundleDigest, from: ConnectionId) {
        let Some(part) = self.part(digest, from) else { return };
        // It may have waited for long, and has its time from now on.
        (part.flow, part.heard) = (Flow::Lags, Moment::now());
        let offset = part.received;
        self.tell(from, &ToApplication::BundleWanted { digest, offset });
    }

    /// When to look next.
    pub(super) fn next_due(&self) -> Option<Moment> {
        self.uploads.values().filter_map(|upload| upload.next_due).chain(self.next_look).min()
    }

    /// Asks one more for each bundle that takes long, and those that wait for room again. Returns what the engine is to know.
    pub(super) fn look(&mut self, now: Moment) -> Vec<Event> {
        let late = self.uploads.iter().filter(|(_, upload)| upload.next_due.is_some_and(|due| due <= now));
        for digest in late.map(|(&digest, _)| digest).collect::<Vec<_>>() {
            debug!(bundle = %digest, "a bundle takes long: one more is asked for it");
            self.ask_next(digest, now);
        }
        if self.next_look.is_none_or(|look| look > now) {
            return Vec::new();
        }
        let waiting = self.parts().filter_map(|(digest, source, part)| match part.flow {
            Flow::Waits(since) => Some((since, digest, source.who.connection)),
            Flow::InOrder | Flow::Lags => None,
        });
        let mut waiting: Vec<_> = waiting.collect();
        // Each in its turn, so that nobody is in the others' way who wants more than there will be.
        waiting.sort_unstable();
        self.next_look = (waiting.len() > LOOKED_AT).then_some(now + LOOK_AGAIN);
        waiting.truncate(LOOKED_AT);
        waiting.into_iter().flat_map(|(_, digest, connection)| self.go_on(digest, connection)).collect()
    }

    /// Makes room for a file of this length: deletes what nobody needs, halves first, then what was used longest ago. If that isn't
    /// enough, what others send begins anew, see [`Self::make_way`]. Nothing is deleted in vain.
    fn make_room(&mut self, file: FileId, user: Option<&UserName>, bytes: u64) -> Vec<Event> {
        let lacks = self.room.lacks(file, bytes);
        if lacks > 0 {
            let way = self.make_way(file, user, bytes);
            let room = way.iter().map(|&(digest, number)| self.room.taken_by(FileId::Part(digest, number)));
            if room.sum::<u64>() < lacks {
                return Vec::new();
            }
            for (digest, number) in way {
                if self.room.lacks(file, bytes) > 0 {
                    info!(bundle = %digest, "what was sent of a bundle makes room for others");
                    self.begin_anew(digest, number);
                }
            }
        }
        let mut events = Vec::new();
        while !self.room.has(file, bytes)
            && let Some(spare) = self.room.first_spare()
        {
            events.extend(self.delete(spare));
        }
        events
    }

    /// What others send that makes way for a file of this length: that to which nothing is added any more, then what was begun last
    /// of users who send several files at a time and more than their share; for a user who doesn't, or for the only file of one.
    fn make_way(&self, file: FileId, user: Option<&UserName>, bytes: u64) -> Vec<(BundleDigest, u64)> {
        let now = Moment::now();
        let others = || self.parts().filter(|(digest, _, part)| FileId::Part(*digest, part.number) != file);
        let stalled = others().filter(|(_, source, _)| source.is_stalled(now));
        let mut way: Vec<_> = stalled.map(|(digest, _, part)| (digest, part.number)).collect();
        let share = self.room.limit() / SHARE;
        let mut users: BTreeMap<&UserName, (u64, Vec<_>)> = BTreeMap::new();
        for (digest, source, part) in others().filter(|(_, _, part)| part.received > 0) {
            if let Some(user) = &source.who.user {
                let (sum, files) = users.entry(user).or_default();
                *sum += part.received;
                files.push((part.number, digest, part.received, source.is_whole()));
            }
        }
        let Some(user) = user else { return way };
        if users.remove(user).is_some_and(|(others, _)| others + bytes > share) {
            return way;
        }
        for (mut sum, mut files) in users.into_values() {
            files.sort_unstable();
            for (number, digest, received, is_whole) in files.drain(1..).rev() {
                if sum > share && !is_whole {
                    sum -= received;
                    way.extend((!way.contains(&(digest, number))).then_some((digest, number)));
                }
            }
        }
        way
    }

    /// What was sent as this file is of no use, or makes room: its sender begins anew, with another one.
    pub(super) fn begin_anew(&mut self, digest: BundleDigest, number: u64) {
        let source = self.uploads.get_mut(&digest).and_then(|upload| upload.sender_of(number));
        if let Some(part) = source.and_then(|source| source.part.as_mut()) {
            self.files += 1;
            part.begin_anew(self.files, Moment::now());
        }
        self.abandon(digest, number);
    }

    /// Takes away one that has a bundle and has left, with what it sent.
    pub(super) fn drop_source(&mut self, digest: BundleDigest, connection: ConnectionId) {
        if let Some(Source { part: Some(part), .. }) = self.remove_source(digest, connection) {
            self.abandon(digest, part.number);
        }
        self.ask_unless_sent(digest);
    }

    /// Takes away one that has a bundle, and with the last one its upload. What it sent is the caller's.
    pub(super) fn remove_source(&mut self, digest: BundleDigest, connection: ConnectionId) -> Option<Source> {
        let upload = self.uploads.get_mut(&digest)?;
        let source = upload.remove(connection)?;
        if upload.sources.is_empty() {
            self.uploads.remove(&digest);
        }
        Some(source)
    }

    /// What is being sent.
    fn parts(&self) -> impl Iterator<Item = (BundleDigest, &Source, &Part)> {
        let sources = self
            .uploads
            .iter()
            .flat_map(|(&digest, upload)| upload.sources.iter().map(move |source| (digest, source)));
        sources.filter_map(|(digest, source)| Some((digest, source, source.part.as_ref()?)))
    }

    pub(super) fn part(&mut self, digest: BundleDigest, from: ConnectionId) -> Option<&mut Part> {
        self.uploads.get_mut(&digest)?.from(from)?.part.as_mut()
    }
}
