//! Checkpoints: the newest state of each open attempt is kept, and of those that have closed the newest one. A job's next
//! attempt gets the newest of all. The bytes are in the store.

use lrts_core::ids::AttemptId;

use super::Engine;
use super::attempts::Fate;
use super::events::Peer;
use super::slab::NONE;
use crate::record::Record;

impl Engine {
    pub(super) fn checkpoint_came(&mut self, peer: Peer, id: AttemptId) {
        let Some((_, Some(attempt))) = self.attempt_at(peer, id) else { return };
        if self.attempts[attempt].fate == Fate::Fenced {
            return;
        }
        let job = self.attempts[attempt].job;
        let kept = self.jobs.checkpoints.entry(job).or_default();
        kept.retain(|&other| other != id.attempt);
        kept.push(id.attempt);
        self.persist(Record::Checkpoint { attempt: id });
        self.job_changed(job);
    }

    /// The attempt whose checkpoint a new attempt of the job begins with.
    pub(super) fn newest_checkpoint(&self, job: u32) -> Option<u32> {
        self.jobs.checkpoints.get(&job)?.last().copied()
    }

    /// An attempt has closed: of the closed ones' checkpoints only the newest is of use.
    pub(super) fn tidy_checkpoints(&mut self, job: u32) {
        let Some(kept) = self.jobs.checkpoints.get(&job) else { return };
        let open = self.open_attempts(job);
        let newest_closed = kept.iter().rev().find(|attempt| !open.contains(attempt)).copied();
        let kept = self.jobs.checkpoints.get_mut(&job).expect("looked up above");
        kept.retain(|attempt| open.contains(attempt) || Some(*attempt) == newest_closed);
    }

    /// An attempt was killed since another one stays, whose state counts.
    pub(super) fn drop_checkpoint(&mut self, job: u32, attempt: u32) {
        if let Some(kept) = self.jobs.checkpoints.get_mut(&job) {
            kept.retain(|&other| other != attempt);
        }
    }

    fn open_attempts(&self, job: u32) -> Vec<u32> {
        let first = self.jobs.nodes[job].open;
        let next = |&attempt: &u32| Some(self.attempts[attempt].next).filter(|&next| next != NONE);
        std::iter::successors(Some(first).filter(|&first| first != NONE), next)
            .map(|attempt| self.attempts[attempt].id.attempt)
            .collect()
    }
}
