//! The shell around the engine: messages in, messages out, and the time of the next fan-out.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::{Moment, sleep_until};
use lrts_core::ids::UserName;
use lrts_core::limits::BARS_PER_BATCH;
use lrts_core::protocol::codec;
use lrts_core::protocol::progress::{FromReporter, FromWatcher, OwnedApplication, ToReporter, ToWatcher};
use lrts_core::shutdown::Shutdown;
use lrts_core::transport::{
    ConnectionId, Message, Refusal, RefusalKind, Role, Server, ServerEvent, ServerHandle,
};
use serde::Serialize;
use tracing::{debug, warn};

use crate::engine::{Action, Engine, Event};

/// Watchers are told of changes this often.
const FAN_OUT_PERIOD: Duration = Duration::from_millis(30);

pub(crate) struct EventLoop {
    server: Server,
    peers: Peers,
    engine: Engine<ConnectionId>,
    /// When the last fan-out was.
    fanned_out: Moment,
}

struct Peers {
    handle: ServerHandle,
    known: BTreeMap<ConnectionId, Peer>,
}

/// Who is at the other end of a connection.
#[derive(Clone)]
struct Peer {
    role: Role,
    /// The user of its key; none on a server without keys.
    user: Option<UserName>,
}

impl EventLoop {
    pub(crate) fn new(server: Server) -> Self {
        let peers = Peers { handle: server.handle(), known: BTreeMap::new() };
        Self { server, peers, engine: Engine::new(), fanned_out: Moment::default() }
    }

    pub(crate) async fn run(mut self, shutdown: &Shutdown) {
        loop {
            let deadline = self.deadline();
            tokio::select! {
                event = self.server.next() => self.server_event(event, Moment::now()),
                () = sleep_until(deadline) => {}
                () = shutdown.requested() => break,
            }
            self.act(Moment::now());
        }
        tokio::select! {
            () = self.server.close() => {}
            () = shutdown.immediate() => {}
        }
    }

    fn deadline(&self) -> Option<Moment> {
        let fan_out = self.engine.is_behind().then(|| self.fanned_out + FAN_OUT_PERIOD);
        [fan_out, self.engine.deadline()].into_iter().flatten().min()
    }

    /// Does what is due.
    fn act(&mut self, now: Moment) {
        if self.engine.is_behind() && self.fanned_out + FAN_OUT_PERIOD <= now {
            self.fanned_out = now;
            let busy = self.engine.watchers().filter(|&watcher| self.peers.is_busy(watcher)).collect();
            self.decide(Event::FanOut { busy }, now);
        }
        if self.engine.deadline().is_some_and(|due| due <= now) {
            self.decide(Event::Tick, now);
        }
    }

    fn decide(&mut self, event: Event<ConnectionId>, now: Moment) {
        for action in self.engine.handle(event, now) {
            match action {
                Action::Send { watcher, updates } => self.peers.send(watcher, &ToWatcher::Bars { updates }),
                Action::Disconnect { peer, reason } => self.peers.disconnect(peer, reason),
            }
        }
        if let Some(refused) = self.engine.refused_to_tell(now) {
            warn!(refused, bars = self.engine.bars(), "there is no room for more bars");
        }
    }

    fn server_event(&mut self, event: ServerEvent, now: Moment) {
        match event {
            ServerEvent::Joined { connection, hello, address, user } => {
                debug!(%connection, role = %hello.role, id = hello.id, host = hello.host, ?user, %address, "peer joined");
                self.peers.known.insert(connection, Peer { role: hello.role, user });
            }
            ServerEvent::Message { connection, message } => {
                if let Err(reason) = self.message(connection, &message, now) {
                    self.peers.disconnect(connection, reason);
                }
            }
            ServerEvent::Left { connection, reason } => {
                debug!(%connection, reason, "peer left");
                self.peers.known.remove(&connection);
                self.decide(Event::Left(connection), now);
            }
        }
    }

    fn message(
        &mut self,
        connection: ConnectionId,
        message: &Message,
        now: Moment,
    ) -> Result<(), &'static str> {
        if !message.body.is_empty() {
            return Err("a body where none belongs");
        }
        // What had arrived from a peer that was disconnected since.
        let Some(Peer { role, user }) = self.peers.known.get(&connection).cloned() else { return Ok(()) };
        match role {
            Role::Worker => {
                match codec::decode(&message.head).map_err(|_| "message of a reporter is unreadable")? {
                    FromReporter::Ping { number } => {
                        self.peers.send(connection, &ToReporter::Pong { number })
                    }
                    FromReporter::Batch { applications } => {
                        let updates = told_apart(applications, user.as_ref());
                        self.decide(Event::Batch { reporter: connection, updates }, now);
                    }
                    FromReporter::Ended { attempts } if attempts.len() <= BARS_PER_BATCH => {
                        let attempts = told_apart(attempts, user.as_ref());
                        self.decide(Event::Ended { reporter: connection, attempts }, now);
                    }
                    FromReporter::Ended { .. } => return Err("too many ended attempts"),
                }
            }
            Role::Client => {
                match codec::decode(&message.head).map_err(|_| "message of a watcher is unreadable")? {
                    FromWatcher::Watch { application } => {
                        let application = OwnedApplication { owner: user, application };
                        self.decide(Event::Watch { watcher: connection, application }, now);
                    }
                    FromWatcher::Forget => self.decide(Event::Forget { watcher: connection }, now),
                }
            }
            Role::Scheduler | Role::ProgressServer | Role::Admin => {
                return Err("role has nothing to say here");
            }
        }
        Ok(())
    }
}

/// The applications by their owners, unless this server has no keys: its watchers can't be told apart.
fn told_apart<T>(said: Vec<(OwnedApplication, T)>, user: Option<&UserName>) -> Vec<(OwnedApplication, T)> {
    let owner_if_known = |(OwnedApplication { owner, application }, what)| {
        (OwnedApplication { owner: owner.filter(|_| user.is_some()), application }, what)
    };
    said.into_iter().map(owner_if_known).collect()
}

impl Peers {
    fn send(&self, connection: ConnectionId, message: &impl Serialize) {
        let message = Message::new(codec::encode(message), Bytes::new());
        if let Err(error) = self.handle.send(connection, message) {
            // `Left` has come, or follows.
            debug!(%connection, %error, "cannot send");
        }
    }

    /// Whether a watcher hasn't taken what it was sent before.
    fn is_busy(&self, connection: ConnectionId) -> bool {
        self.handle.queued(connection).is_none_or(|(messages, _)| messages > 0)
    }

    fn disconnect(&mut self, connection: ConnectionId, reason: &'static str) {
        debug!(%connection, reason, "disconnecting a peer that breaks the rules");
        self.known.remove(&connection);
        self.handle.disconnect(connection, Some(Refusal::new(RefusalKind::Protocol, reason)));
    }
}
