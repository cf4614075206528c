//! The connection of the worker that the host serves.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use bytes::Bytes;
use lrts_core::ids::AttemptId;
use lrts_core::notices::NoticeSocket;
use lrts_core::protocol::codec;
use lrts_core::protocol::host::FromHost;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{Shutdown, shutdown};

use super::kernel;

/// The first version that knows of hosts that outlive their worker, and of checkpoints.
const ADOPTING_VERSION: u16 = 2;

/// One notice to the worker, and the memfd that travels along.
pub(super) struct Parcel {
    notice: Bytes,
    descriptor: Option<OwnedFd>,
}

impl Parcel {
    pub(super) fn new(notice: &FromHost) -> Self {
        Self::with(notice, None)
    }

    pub(super) fn with(notice: &FromHost, descriptor: Option<OwnedFd>) -> Self {
        Self { notice: codec::encode(notice), descriptor }
    }

    #[cfg(test)]
    pub(super) fn notice(&self) -> &[u8] {
        &self.notice
    }
}

/// A worker's connection that has said hello.
pub(super) struct Connection {
    socket: NoticeSocket,
    version: u16,
    orphan_grace: Duration,
    /// What its socket had no room for.
    outbox: VecDeque<Parcel>,
    /// Ended attempts that are to be sent once the outbox is empty: they are made into notices one by one, since a worker may
    /// read slowly, or not at all.
    ends: BTreeSet<AttemptId>,
    /// Attempts whose checkpoint was sent since the worker was last seen to have read everything.
    unread_checkpoints: BTreeSet<AttemptId>,
    /// Whether epoll tells when there is room again.
    watched: bool,
}

impl Connection {
    pub(super) fn new(socket: NoticeSocket, version: u16, orphan_grace: Duration) -> Self {
        // An older worker never comes back to its hosts.
        let orphan_grace = if version >= ADOPTING_VERSION { orphan_grace } else { Duration::ZERO };
        Self {
            socket,
            version,
            orphan_grace,
            outbox: VecDeque::new(),
            ends: BTreeSet::new(),
            unread_checkpoints: BTreeSet::new(),
            watched: false,
        }
    }

    pub(super) fn socket(&self) -> &NoticeSocket {
        &self.socket
    }

    /// How long the host goes on without this worker.
    pub(super) fn orphan_grace(&self) -> Duration {
        self.orphan_grace
    }

    /// Whether this worker knows of hosts that outlive their worker, and of checkpoints.
    pub(super) fn adopts(&self) -> bool {
        self.version >= ADOPTING_VERSION
    }

    /// Whether all that was posted is on its way.
    fn is_idle(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Whether a checkpoint of this attempt can be sent: a small notice may carry much memory, so what the socket has room for
    /// says nothing. At most one of each attempt is unread.
    pub(super) fn takes_checkpoint(&mut self, attempt: AttemptId) -> bool {
        if kernel::unread_bytes(&self.socket) == 0 {
            self.unread_checkpoints.clear();
        }
        self.is_idle() && !self.unread_checkpoints.contains(&attempt)
    }

    /// A checkpoint of this attempt is sent now.
    pub(super) fn note_checkpoint(&mut self, attempt: AttemptId) {
        self.unread_checkpoints.insert(attempt);
    }

    pub(super) fn push_end(&mut self, attempt: AttemptId) {
        self.ends.insert(attempt);
    }

    /// The next ended attempt that is to be sent, once all that was posted before is on its way.
    pub(super) fn pop_end(&mut self) -> Option<AttemptId> {
        if self.is_idle() { self.ends.pop_first() } else { None }
    }

    /// Sends these now or, in their order, once the socket has room.
    ///
    /// A connection that takes no notices any more, for whatever reason, is shut down. Both ends read that it has ended: the
    /// host goes on without this worker, if it does, and a worker that comes anew is told everything.
    pub(super) fn post(&mut self, parcels: impl IntoIterator<Item = Parcel>, epoll: &Epoll, token: u64) {
        let waited = !self.outbox.is_empty();
        self.outbox.extend(parcels);
        if !waited && self.flush(epoll, token).is_err() {
            let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        }
    }

    /// Sends what waits, as far as there is room. `token` is what epoll knows the connection by.
    ///
    /// # Errors
    ///
    /// Those of `sendmsg(2)` and `epoll_ctl(2)`: the connection is broken.
    pub(super) fn flush(&mut self, epoll: &Epoll, token: u64) -> io::Result<()> {
        while let Some(Parcel { notice, descriptor }) = self.outbox.front() {
            let descriptor = descriptor.as_ref().map(AsFd::as_fd);
            match self.socket.send(notice, descriptor.as_slice()) {
                Ok(()) => {
                    self.outbox.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if self.watched == self.outbox.is_empty() {
            self.watched = !self.outbox.is_empty();
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, self.watched);
            epoll.modify(&self.socket, &mut EpollEvent::new(flags, token))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lrts_core::ids::SessionId;
    use nix::sys::epoll::EpollCreateFlags;

    use super::*;

    #[test]
    fn of_each_attempt_one_checkpoint_is_unread_at_most() {
        let (ours, theirs) = NoticeSocket::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let mut worker = Connection::new(ours, ADOPTING_VERSION, Duration::ZERO);
        let attempts = [1, 2].map(|sequence| AttemptId { job: SessionId(1).job(sequence), attempt: 1 });
        for attempt in attempts {
            assert!(worker.takes_checkpoint(attempt));
            worker.note_checkpoint(attempt);
            worker.post([Parcel::new(&FromHost::AllHeld)], &epoll, 1);
            assert!(!worker.takes_checkpoint(attempt));
        }
        for attempt in attempts {
            assert!(!worker.takes_checkpoint(attempt));
            theirs.receive().unwrap();
        }
        assert!(attempts.into_iter().all(|attempt| worker.takes_checkpoint(attempt)));
    }
}
