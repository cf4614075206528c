//! Where a host's events go, and what by their account is still at the host.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use lrts_core::ids::AttemptId;
use lrts_core::protocol::worker::AttemptEnd;
use lrts_core::spool::{self, Spool};
use tokio::sync::mpsc;
use tracing::warn;

use super::leftovers::LeftEnd;
use super::{HeldJob, HostEnded, HostEvent, HostNumber};

/// The events of one host.
pub(super) struct Events {
    number: HostNumber,
    sender: mpsc::Sender<(HostNumber, HostEvent)>,
    /// Attempts that the host was given, or has said to have, and whose ends it hasn't told.
    at_host: Mutex<BTreeSet<AttemptId>>,
}

impl Events {
    pub(super) fn new(number: HostNumber, sender: mpsc::Sender<(HostNumber, HostEvent)>) -> Self {
        Self { number, sender, at_host: Mutex::default() }
    }

    pub(super) async fn send(&self, event: HostEvent) {
        if let HostEvent::Ended(ended) = &event {
            self.at_host().remove(&ended.attempt);
        }
        // A worker that has ended doesn't listen any more.
        let _ = self.sender.send((self.number, event)).await;
    }

    /// The host is given an attempt.
    pub(super) fn give(&self, attempt: AttemptId) {
        self.at_host().insert(attempt);
    }

    /// The host has said, over its first connection, what it has.
    pub(super) fn take_over(&self, held: &[HeldJob]) {
        self.at_host().extend(held.iter().map(|job| job.attempt));
    }

    /// The host has said, over another connection, what it has: tells what got lost with the one before.
    pub(super) async fn resume(&self, held: &[HeldJob]) {
        let mut lost = self.at_host().clone();
        for job in held {
            lost.remove(&job.attempt);
            if let Some(run) = job.run {
                self.send(HostEvent::Began { attempt: job.attempt, pid: run.pid, region: run.region }).await;
            }
        }
        for attempt in lost {
            let reason = "its job host has never got it".to_owned();
            self.send(HostEvent::Ended(Box::new(HostEnded::without_run(
                attempt,
                AttemptEnd::Lost { reason },
            ))))
            .await;
        }
        self.send(HostEvent::Resumed).await;
    }

    /// The host is dead: tells the ends that it has written down, and nobody has heard.
    pub(super) async fn tell_left(&self, spool: &Spool) {
        let (spool, unheard) = (spool.clone(), self.at_host().clone());
        let read = move || unheard.into_iter().filter_map(|attempt| read_left(&spool, attempt)).collect();
        // An error is the end of the runtime.
        let left: Vec<_> = tokio::task::spawn_blocking(read).await.unwrap_or_default();
        for LeftEnd { ended, checkpoint, .. } in left {
            if let Some(state) = checkpoint {
                self.send(HostEvent::Checkpoint { attempt: ended.attempt, state }).await;
            }
            self.send(HostEvent::Ended(Box::new(ended))).await;
        }
    }

    fn at_host(&self) -> MutexGuard<'_, BTreeSet<AttemptId>> {
        self.at_host.lock().expect("nothing panics while it holds this lock")
    }
}

fn read_left(spool: &Spool, attempt: AttemptId) -> Option<LeftEnd> {
    let read = LeftEnd::read(spool, attempt);
    read.inspect_err(|error| {
        if !spool::is_final(error) {
            warn!(%attempt, %error, "end of an attempt can't be read");
        }
    })
    .ok()
}
