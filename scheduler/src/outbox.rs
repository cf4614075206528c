//! What goes out to peers, in order: a message whose body is still being read holds up those behind it to the same peer, and
//! nobody else.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use lrts_core::ids::JobId;
use lrts_core::protocol::worker;
use lrts_core::transport::Message;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::convert::{self, Outgoing};
use crate::engine::Peer;
use crate::record::Report;
use crate::store::{Fetched, ReadError, ResultBodies, StartBodies};

/// How long what can't be read now is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// A message whose body has been read, or can't be.
pub(crate) enum Read {
    Start(Box<worker::Start>, Result<StartBodies, ReadError>),
    Result(JobId, Report, Result<ResultBodies, ReadError>),
}

/// What is to be done now.
pub(crate) enum Due {
    Send(Peer, Message),
    /// This attempt's payload can't be read now: it goes back.
    Unread(Peer, Box<worker::Start>),
    /// This result can't be read now: it is to be sent anew.
    ReadAgain(Peer, JobId, Report),
    /// This attempt's payload is lost.
    NoPayload(Peer, Box<worker::Start>, ReadError),
}

/// A place in a peer's queue.
enum Place {
    Message(Message),
    /// Of a message whose body is being read.
    Reading(u64),
}

/// Whose place it is for, and what was read. Nothing if the store was closed.
type CameFor = (Peer, u64, Option<Read>);

/// Messages that wait for bodies, and those behind them.
#[derive(Default)]
pub(crate) struct Outbox {
    queues: BTreeMap<Peer, VecDeque<Place>>,
    reads: JoinSet<CameFor>,
    number: u64,
    /// Whether the last read has failed in a way that may pass.
    failing: bool,
}

impl Outbox {
    /// Takes a message. Returns what is to be done at once.
    pub(crate) fn push(&mut self, to: Peer, outgoing: Outgoing) -> Option<Due> {
        let read = match outgoing {
            Outgoing::Ready(message) => return self.queue(to, message),
            Outgoing::Start(start, Fetched::Now(bodies)) if !may_pass(&bodies) => Read::Start(start, bodies),
            Outgoing::Result(job, report, Fetched::Now(bodies)) if !may_pass(&bodies) => {
                Read::Result(job, report, bodies)
            }
            Outgoing::Start(start, bodies) => {
                self.await_read(to, async { Some(Read::Start(start, settled(bodies).await?)) });
                return None;
            }
            Outgoing::Result(job, report, bodies) => {
                self.await_read(to, async move { Some(Read::Result(job, report, settled(bodies).await?)) });
                return None;
            }
        };
        match message_of(to, read) {
            Ok(Some(message)) => self.queue(to, message),
            Ok(None) => None,
            Err(due) => Some(due),
        }
    }

    fn queue(&mut self, to: Peer, message: Message) -> Option<Due> {
        match self.queues.get_mut(&to) {
            None => Some(Due::Send(to, message)),
            Some(queue) => {
                queue.push_back(Place::Message(message));
                None
            }
        }
    }

    fn await_read(&mut self, to: Peer, read: impl Future<Output = Option<Read>> + Send + 'static) {
        self.number += 1;
        let number = self.number;
        self.queues.entry(to).or_default().push_back(Place::Reading(number));
        self.reads.spawn(async move { (to, number, read.await) });
    }

    /// The next body that has been read; never if none is being read. Safe to cancel.
    pub(crate) async fn next(&mut self) -> CameFor {
        match self.reads.join_next().await {
            Some(Ok(read)) => read,
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            None => std::future::pending().await,
        }
    }

    /// A body has been read. Returns what is to be done, in order.
    pub(crate) fn came(&mut self, (peer, number, read): CameFor) -> Vec<Due> {
        if let Some(read) = &read {
            self.tell(read);
        }
        // It has gone since.
        let Some(queue) = self.queues.get_mut(&peer) else { return Vec::new() };
        let Some(place) =
            queue.iter().position(|place| matches!(place, Place::Reading(other) if *other == number))
        else {
            return Vec::new();
        };
        let mut due = Vec::new();
        match read.map_or(Ok(None), |read| message_of(peer, read)) {
            Ok(Some(message)) => queue[place] = Place::Message(message),
            Ok(None) => drop(queue.remove(place)),
            Err(failure) => {
                queue.remove(place);
                due.push(failure);
            }
        }
        while let Some(Place::Message(_)) = queue.front() {
            if let Some(Place::Message(message)) = queue.pop_front() {
                due.push(Due::Send(peer, message));
            }
        }
        if queue.is_empty() {
            self.queues.remove(&peer);
        }
        due
    }

    /// Tells the operator when reads begin to fail, and when they succeed again.
    fn tell(&mut self, read: &Read) {
        let error = match read {
            Read::Start(_, Err(error @ ReadError::Io(_)))
            | Read::Result(_, _, Err(error @ ReadError::Io(_))) => Some(error),
            Read::Start(..) | Read::Result(..) => None,
        };
        match error {
            Some(error) if !self.failing => {
                let cause = std::error::Error::source(error).map(ToString::to_string);
                warn!(%error, cause, "jobs wait until their payloads and results can be read");
            }
            None if self.failing => info!("payloads and results can be read again"),
            Some(_) | None => {}
        }
        self.failing = error.is_some();
    }

    /// How many messages to a peer wait for bodies, or behind one that does.
    pub(crate) fn waiting(&self, peer: Peer) -> usize {
        self.queues.get(&peer).map_or(0, VecDeque::len)
    }

    /// A peer has gone: what waits for it is dropped.
    pub(crate) fn forget(&mut self, peer: Peer) {
        self.queues.remove(&peer);
    }
}

/// Whether it may be read later. Nothing is wrong with it then.
fn may_pass<T>(read: &Result<T, ReadError>) -> bool {
    matches!(read, Err(ReadError::Io(_)))
}

/// What was read, after a pause if it can't be read now. None if the store was closed.
async fn settled<T>(bodies: Fetched<T>) -> Option<Result<T, ReadError>> {
    let read = match bodies {
        Fetched::Now(read) => read,
        Fetched::Later(read) => read.await.ok()?,
    };
    if may_pass(&read) {
        tokio::time::sleep(RETRY).await;
    }
    Some(read)
}

/// None if nobody needs it any more.
fn message_of(to: Peer, read: Read) -> Result<Option<Message>, Due> {
    match read {
        Read::Start(start, Ok(bodies)) => Ok(Some(convert::start(*start, bodies))),
        Read::Start(start, Err(ReadError::Io(_))) => Err(Due::Unread(to, start)),
        Read::Result(job, report, Err(ReadError::Io(_))) => Err(Due::ReadAgain(to, job, report)),
        Read::Start(start, Err(error)) => Err(Due::NoPayload(to, start, error)),
        Read::Result(job, report, bodies) => Ok(convert::result(job, report, bodies)),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lrts_core::ids::AttemptId;
    use lrts_core::spec::{BundleRef, JobOptions};
    use tokio::sync::oneshot;

    use super::*;

    fn report() -> Report {
        Report {
            failure: None,
            attempt: 1,
            attempts: 1,
            worker: None,
            queued: Default::default(),
            ran: Default::default(),
        }
    }

    fn sent(due: impl IntoIterator<Item = Due>) -> Vec<(Peer, Bytes)> {
        let body = |due| match due {
            Due::Send(to, message) => (to, message.body),
            Due::Unread(..) | Due::ReadAgain(..) | Due::NoPayload(..) => panic!("all could be read"),
        };
        due.into_iter().map(body).collect()
    }

    #[tokio::test]
    async fn what_is_read_holds_up_its_own_peer_only() {
        let mut outbox = Outbox::default();
        let job = lrts_core::ids::SessionId(1).job(1);
        let (read, bodies) = oneshot::channel();
        assert!(outbox.push(Peer(1), Outgoing::Result(job, report(), Fetched::Later(bodies))).is_none());
        let ready = |text: &'static str| Outgoing::Ready(Message::new("", text));
        assert!(outbox.push(Peer(1), ready("behind")).is_none());
        assert_eq!(sent(outbox.push(Peer(2), ready("other"))), [(Peer(2), "other".into())]);

        let _ = read.send(Ok(ResultBodies { output: "read".into(), bars: Vec::new() }));
        let came = outbox.next().await;
        assert_eq!(sent(outbox.came(came)), [(Peer(1), "read".into()), (Peer(1), "behind".into())]);
        assert_eq!(sent(outbox.push(Peer(1), ready("free"))), [(Peer(1), "free".into())]);
    }

    #[tokio::test]
    async fn a_result_that_is_gone_frees_those_behind_it() {
        let mut outbox = Outbox::default();
        let job = lrts_core::ids::SessionId(1).job(1);
        let (read, bodies) = oneshot::channel();
        assert!(outbox.push(Peer(1), Outgoing::Result(job, report(), Fetched::Later(bodies))).is_none());
        assert!(outbox.push(Peer(1), Outgoing::Ready(Message::new("", "behind"))).is_none());
        let _ = read.send(Err(ReadError::Missing));
        let came = outbox.next().await;
        assert_eq!(sent(outbox.came(came)), [(Peer(1), "behind".into())]);
    }

    #[tokio::test]
    async fn what_cannot_be_read_now_fails_nobody() {
        let mut outbox = Outbox::default();
        let job = lrts_core::ids::SessionId(1).job(1);
        let attempt = AttemptId { job, attempt: 1 };
        let error = || ReadError::Io(std::io::Error::other("too many open files"));
        let start = Box::new(worker::Start {
            attempt,
            execution: 1,
            application: "app".parse().unwrap(),
            owner: None,
            bundle: BundleRef::Installed("tools".into()),
            service: "double".into(),
            options: JobOptions::new(),
            checkpoint_bytes: None,
            progress_rtt_test: Duration::ZERO,
        });
        assert!(outbox.push(Peer(1), Outgoing::Start(start, Fetched::Now(Err(error())))).is_none());
        let came = outbox.next().await;
        let due = outbox.came(came);
        assert!(
            matches!(&due[..], [Due::Unread(Peer(1), start)] if start.attempt == attempt) && outbox.failing
        );

        let (read, bodies) = oneshot::channel();
        assert!(outbox.push(Peer(1), Outgoing::Result(job, report(), Fetched::Later(bodies))).is_none());
        let _ = read.send(Err(error()));
        let came = outbox.next().await;
        let due = outbox.came(came);
        assert!(matches!(&due[..], [Due::ReadAgain(Peer(1), again, _)] if *again == job));
    }

    #[tokio::test]
    async fn a_closed_store_sends_nothing_and_holds_up_nothing() {
        let mut outbox = Outbox::default();
        let job = lrts_core::ids::SessionId(1).job(1);
        let (read, bodies) = oneshot::channel::<Result<ResultBodies, ReadError>>();
        assert!(outbox.push(Peer(1), Outgoing::Result(job, report(), Fetched::Later(bodies))).is_none());
        assert!(outbox.push(Peer(1), Outgoing::Ready(Message::new("", "behind"))).is_none());
        drop(read);
        let came = outbox.next().await;
        assert_eq!(sent(outbox.came(came)), [(Peer(1), "behind".into())]);
    }
}
