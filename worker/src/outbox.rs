//! What goes to the scheduler on one connection, in order. Results are read from the disk one at a time, when their turn
//! comes, so that a hundred large ones waiting take no memory.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::{Moment, sleep_until};
use lrts_core::ids::AttemptId;
use lrts_core::protocol::codec;
use lrts_core::protocol::host::Output;
use lrts_core::protocol::worker::FromWorker;
use lrts_core::spool::{self, Spool};
use lrts_core::transport::{LinkSendError, LinkSender, Message};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use crate::convert::Outcome;

/// How long until a result is tried again that couldn't be read: there were too many open files, for example.
const READ_RETRY: Duration = Duration::from_secs(1);

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
    pub(crate) fn open(link: LinkSender, spool: Spool) -> Self {
        let (queue, outgoing) = mpsc::unbounded_channel();
        let checkpoints = Arc::<Checkpoints>::default();
        let task = tokio::spawn(send_all(link, spool, checkpoints.clone(), outgoing));
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

    /// Drops what is left and returns the checkpoints among it. Nothing is sent any more once this has returned, so nothing
    /// gets into the next connection.
    pub(crate) async fn discard(self) -> BTreeMap<AttemptId, Bytes> {
        self.task.abort();
        let _aborted = self.task.await;
        std::mem::take(&mut lock(&self.checkpoints))
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
    spool: Spool,
    checkpoints: Arc<Checkpoints>,
    mut outgoing: mpsc::UnboundedReceiver<Outgoing>,
) {
    // Ends whose results couldn't be read, and when they are tried again.
    let mut unread = VecDeque::<(Moment, AttemptId, Arc<Outcome>)>::new();
    loop {
        let due = unread.front().map(|&(due, ..)| due);
        let next = tokio::select! {
            next = outgoing.recv() => next,
            () = sleep_until(due) => unread.pop_front().map(|(_, attempt, outcome)| Outgoing::Ended(attempt, outcome)),
        };
        let message = match next {
            None => return,
            Some(Outgoing::Message(message)) => message,
            Some(Outgoing::Checkpoint(attempt)) => {
                let state = lock(&checkpoints).remove(&attempt);
                let state = state.expect("a queued checkpoint stays until its turn");
                Message::new(codec::encode(&FromWorker::Checkpoint { attempt }), state)
            }
            Some(Outgoing::Ended(attempt, outcome)) => match ended(attempt, &outcome, &spool).await {
                Ok(message) => message,
                Err(error) => {
                    warn!(%attempt, %error, "result can't be read yet");
                    unread.push_back((Moment::now() + READ_RETRY, attempt, outcome));
                    continue;
                }
            },
        };
        match link.send(message).await {
            Ok(()) => {}
            Err(LinkSendError::Down) => return,
            Err(error @ LinkSendError::TooLarge) => error!(%error, "message to the scheduler is dropped"),
        }
    }
}

/// The message that tells of an attempt's end. A result that isn't there any more is lost; an error means that it may be read
/// later.
async fn ended(attempt: AttemptId, outcome: &Arc<Outcome>, spool: &Spool) -> io::Result<Message> {
    let (ended, body) = match &outcome.output {
        Output::Inline(output) => outcome.to_message(attempt, output.clone()),
        &Output::Spool { bytes } => {
            let (spool, outcome) = (spool.clone(), outcome.clone());
            let read = move || match spool.read(attempt, bytes) {
                Ok(output) => Ok(outcome.to_message(attempt, output)),
                Err(error) if spool::is_final(&error) => {
                    warn!(%attempt, %error, "result is lost");
                    Ok(outcome.unreadable(&error).to_message(attempt, Vec::new()))
                }
                Err(error) => Err(error),
            };
            tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??
        }
    };
    Ok(Message::new(codec::encode(&FromWorker::Ended(ended)), body))
}
