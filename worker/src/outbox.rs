//! What goes to the scheduler on one connection, in order. Results are read from the disk one at a time, when their turn
//! comes, so that a hundred large ones waiting take no memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lrts_core::ids::AttemptId;
use lrts_core::protocol::codec;
use lrts_core::protocol::host::Output;
use lrts_core::protocol::worker::FromWorker;
use lrts_core::transport::{LinkSendError, LinkSender, Message};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use crate::convert::Outcome;
use crate::state_dir::StateDir;

enum Outgoing {
    Message(Message),
    Ended(AttemptId, Arc<Outcome>),
    /// The attempt's newest checkpoint.
    Checkpoint(AttemptId),
}

/// Checkpoints that wait for their turn, the newest of each attempt.
type Checkpoints = Mutex<BTreeMap<AttemptId, Bytes>>;

/// The queue of one connection. Not bounded by itself: what it holds are a few words per attempt that is here.
pub(crate) struct Outbox {
    queue: mpsc::UnboundedSender<Outgoing>,
    checkpoints: Arc<Checkpoints>,
    task: JoinHandle<()>,
}

impl Outbox {
    /// Starts to send over a link that has just come up.
    pub(crate) fn open(link: LinkSender, state: Arc<StateDir>) -> Self {
        let (queue, outgoing) = mpsc::unbounded_channel();
        let checkpoints = Arc::<Checkpoints>::default();
        let task = tokio::spawn(send_all(link, state, checkpoints.clone(), outgoing));
        Self { queue, checkpoints, task }
    }

    /// Queues a message.
    pub(crate) fn send(&self, head: &FromWorker, body: impl Into<Bytes>) {
        // The task ends early only with the connection, which the event loop is about to hear of.
        let _ = self.queue.send(Outgoing::Message(Message::new(codec::encode(head), body)));
    }

    /// Queues the end of an attempt.
    pub(crate) fn send_ended(&self, attempt: AttemptId, outcome: Arc<Outcome>) {
        let _ = self.queue.send(Outgoing::Ended(attempt, outcome));
    }

    /// Queues an attempt's checkpoint. It takes the place of one that still waits.
    pub(crate) fn send_checkpoint(&self, attempt: AttemptId, state: Bytes) {
        let before = lock(&self.checkpoints).insert(attempt, state);
        if before.is_none() {
            let _ = self.queue.send(Outgoing::Checkpoint(attempt));
        }
    }

    /// Drops what is left. Nothing is sent any more once this has returned, so nothing gets into the next connection.
    pub(crate) async fn discard(self) {
        self.task.abort();
        let _aborted = self.task.await;
    }

    /// Sends what is left, for up to `at_most`.
    pub(crate) async fn finish(self, at_most: Duration) {
        let Self { queue, mut task, .. } = self;
        drop(queue);
        if tokio::time::timeout(at_most, &mut task).await.is_err() {
            warn!("not everything could be told to the scheduler");
            task.abort();
        }
    }
}

fn lock(checkpoints: &Checkpoints) -> std::sync::MutexGuard<'_, BTreeMap<AttemptId, Bytes>> {
    checkpoints.lock().expect("nothing panics while it holds this lock")
}

async fn send_all(
    link: LinkSender,
    state: Arc<StateDir>,
    checkpoints: Arc<Checkpoints>,
    mut outgoing: mpsc::UnboundedReceiver<Outgoing>,
) {
    while let Some(next) = outgoing.recv().await {
        let message = match next {
            Outgoing::Message(message) => message,
            Outgoing::Checkpoint(attempt) => {
                let state = lock(&checkpoints).remove(&attempt);
                let state = state.expect("a queued checkpoint stays until its turn");
                Message::new(codec::encode(&FromWorker::Checkpoint { attempt }), state)
            }
            Outgoing::Ended(attempt, outcome) => match ended(attempt, &outcome, &state).await {
                Some(message) => message,
                None => return,
            },
        };
        match link.send(message).await {
            Ok(()) => {}
            Err(LinkSendError::Down) => return,
            Err(error @ LinkSendError::TooLarge) => error!(%error, "message to the scheduler is dropped"),
        }
    }
}

/// None if the runtime is about to end.
async fn ended(attempt: AttemptId, outcome: &Arc<Outcome>, state: &Arc<StateDir>) -> Option<Message> {
    let (ended, body) = match &outcome.output {
        Output::Inline(output) => outcome.to_message(attempt, output.clone()),
        &Output::Spool { bytes } => {
            let (state, outcome) = (state.clone(), outcome.clone());
            let read = move || match state.spool().read(attempt, bytes) {
                Ok(output) => outcome.to_message(attempt, output),
                Err(error) => {
                    warn!(%attempt, %error, "result is lost");
                    outcome.unreadable(&error).to_message(attempt, Vec::new())
                }
            };
            tokio::task::spawn_blocking(read).await.ok()?
        }
    };
    Some(Message::new(codec::encode(&FromWorker::Ended(ended)), body))
}
