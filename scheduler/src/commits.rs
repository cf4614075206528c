//! Records on their way into the store, and what may be said once they are there.

use std::collections::VecDeque;

use lrts_core::protocol::command::ToCommand;
use lrts_core::transport::ConnectionId;

use crate::engine::{self, Peer};
use crate::record::Record;
use crate::store::{Bodies, Entry};

/// Bytes that may wait for the disk. Beyond it only what is urgent is read from peers, so that a disk that is full or slow
/// fills no memory and silences no worker.
const BACKLOG_BYTES: u64 = 256 << 20;

/// What a record or a message takes of it beside its bodies.
const ITEM_BYTES: u64 = 256;

/// What is said once the records before it are durable.
#[derive(Debug, PartialEq)]
pub(crate) enum Waiting {
    /// To an application or a worker.
    Message(Peer, engine::Message),
    /// To a command.
    Answer(ConnectionId, ToCommand),
}

/// A batch, and what waits for it.
#[derive(Debug, Default)]
struct Batch {
    entries: Vec<Entry>,
    /// What it takes of the backlog.
    bytes: u64,
    after: Vec<Waiting>,
}

/// The batch that gathers, and those that the store has and that aren't durable yet.
#[derive(Debug, Default)]
pub(crate) struct Commits {
    next: Batch,
    /// Without their entries.
    under_way: VecDeque<Batch>,
    /// What all of it takes of the backlog.
    bytes: u64,
}

impl Commits {
    /// Something to be kept.
    pub(crate) fn keep(&mut self, record: Record, bodies: Bodies) {
        let bytes = bodies.bytes() + ITEM_BYTES;
        self.next.bytes += bytes;
        self.bytes += bytes;
        self.next.entries.push(Entry { record, bodies });
    }

    /// Something to be said once all that was kept so far is durable. Given back if it is.
    pub(crate) fn say_after(&mut self, waiting: Waiting) -> Option<Waiting> {
        let last =
            if self.next.entries.is_empty() { self.under_way.back_mut() } else { Some(&mut self.next) };
        let Some(last) = last else { return Some(waiting) };
        last.bytes += ITEM_BYTES;
        self.bytes += ITEM_BYTES;
        last.after.push(waiting);
        None
    }

    /// The next batch for the store, if there is something to commit and nothing under way. To a store whose disk is `full`
    /// further ones go too: what is deleted in them makes room.
    pub(crate) fn hand_over(&mut self, full: impl FnOnce() -> bool) -> Option<Vec<Entry>> {
        if self.next.entries.is_empty() || (!self.under_way.is_empty() && !full()) {
            return None;
        }
        let mut batch = std::mem::take(&mut self.next);
        let entries = std::mem::take(&mut batch.entries);
        self.under_way.push_back(batch);
        Some(entries)
    }

    /// The oldest batch under way is durable. What may be said now.
    pub(crate) fn committed(&mut self) -> Vec<Waiting> {
        let Batch { bytes, after, .. } = self.under_way.pop_front().unwrap_or_default();
        self.bytes -= bytes;
        after
    }

    /// Whether a batch gathers behind others.
    pub(crate) fn is_held_up(&self) -> bool {
        !self.next.entries.is_empty() && !self.under_way.is_empty()
    }

    /// Whether the store keeps up, so that it may be given more for which nobody waits.
    pub(crate) fn keep_up(&self) -> bool {
        self.next.entries.is_empty() && self.has_room()
    }

    /// Bytes that the store wasn't given yet.
    pub(crate) fn gathered_bytes(&self) -> u64 {
        self.next.bytes
    }

    /// Whether peers may be listened to as usual.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes <= BACKLOG_BYTES
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lrts_core::ids::SessionId;

    use super::*;

    fn forget(commits: &mut Commits, session: u64) {
        commits.keep(Record::SessionForgotten { session: SessionId(session) }, Bodies::Nothing);
    }

    fn said(number: u64) -> Waiting {
        Waiting::Message(Peer(1), engine::Message::Accepted { through: number })
    }

    #[test]
    fn what_is_said_waits_for_all_that_was_kept_before() {
        let mut commits = Commits::default();
        assert_eq!(commits.say_after(said(0)), Some(said(0)));
        forget(&mut commits, 1);
        assert_eq!(commits.say_after(said(1)), None);
        assert_eq!(commits.hand_over(|| false).unwrap().len(), 1);
        assert_eq!(commits.say_after(said(2)), None);
        forget(&mut commits, 2);
        assert_eq!(commits.say_after(said(3)), None);
        assert!(commits.hand_over(|| false).is_none() && commits.is_held_up() && !commits.keep_up());
        assert_eq!(commits.hand_over(|| true).unwrap().len(), 1, "it may make room");
        assert!(commits.keep_up());
        assert_eq!(commits.say_after(said(4)), None);
        assert_eq!(commits.committed(), [said(1), said(2)]);
        assert_eq!(commits.committed(), [said(3), said(4)]);
        assert_eq!(commits.say_after(said(5)), Some(said(5)));
    }

    #[test]
    fn all_that_waits_counts() {
        let mut commits = Commits::default();
        let body = Bodies::Checkpoint(Bytes::from(vec![0; usize::try_from(BACKLOG_BYTES).unwrap() - 1_000]));
        commits.keep(Record::SessionForgotten { session: SessionId(1) }, body);
        commits.hand_over(|| false).unwrap();
        commits.say_after(said(1));
        forget(&mut commits, 2);
        assert!(commits.has_room());
        commits.say_after(said(2));
        assert!(!commits.has_room(), "records and messages without bodies are no exception");
        assert_eq!(commits.gathered_bytes(), 2 * ITEM_BYTES);
        commits.committed();
        assert!(commits.has_room());
    }
}
