//! The shell around the engine: messages in, messages out, and the time of the next fan-out.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::{Moment, sleep_until};
use lrts_core::limits::{BARS_PER_BATCH, BATCH_BYTES};
use lrts_core::protocol::codec;
use lrts_core::protocol::progress::{FromReporter, FromWatcher, ToReporter, ToWatcher};
use lrts_core::shutdown::Shutdown;
use lrts_core::transport::{
    ConnectionId, Message, Refusal, RefusalKind, Role, Server, ServerEvent, ServerHandle,
};
use serde::Serialize;
use tracing::{debug, info, warn};

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
    roles: BTreeMap<ConnectionId, Role>,
}

impl EventLoop {
    pub(crate) fn new(server: Server) -> Self {
        let peers = Peers { handle: server.handle(), roles: BTreeMap::new() };
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
        let refused = self.engine.take_refused();
        if refused > 0 {
            warn!(refused, bars = self.engine.bars(), "there is no room for more bars");
        }
    }

    fn server_event(&mut self, event: ServerEvent, now: Moment) {
        match event {
            ServerEvent::Joined { connection, hello, address, user: _ } => {
                info!(%connection, role = %hello.role, id = hello.id, host = hello.host, %address, "peer joined");
                self.peers.roles.insert(connection, hello.role);
            }
            ServerEvent::Message { connection, message } => {
                if let Err(reason) = self.message(connection, &message, now) {
                    self.peers.disconnect(connection, reason);
                }
            }
            ServerEvent::Left { connection, reason } => {
                info!(%connection, reason, "peer left");
                self.peers.roles.remove(&connection);
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
        if message.head.len() > BATCH_BYTES || !message.body.is_empty() {
            return Err("message is too large");
        }
        match self.peers.roles.get(&connection) {
            Some(Role::Worker) => {
                match codec::decode(&message.head).map_err(|_| "message of a reporter is unreadable")? {
                    FromReporter::Ping { number } => {
                        self.peers.send(connection, &ToReporter::Pong { number })
                    }
                    FromReporter::Batch { applications } => {
                        self.decide(Event::Batch { reporter: connection, updates: applications }, now);
                    }
                    FromReporter::Ended { attempts } if attempts.len() <= BARS_PER_BATCH => {
                        self.decide(Event::Ended { attempts }, now);
                    }
                    FromReporter::Ended { .. } => return Err("too many ended attempts"),
                }
            }
            Some(Role::Client) => {
                match codec::decode(&message.head).map_err(|_| "message of a watcher is unreadable")? {
                    FromWatcher::Watch { application } => {
                        self.decide(Event::Watch { watcher: connection, application }, now);
                    }
                    FromWatcher::Forget => self.decide(Event::Forget { watcher: connection }, now),
                }
            }
            Some(Role::Scheduler | Role::ProgressServer | Role::Admin) | None => {
                return Err("role has nothing to say here");
            }
        }
        Ok(())
    }
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

    fn disconnect(&self, connection: ConnectionId, reason: &'static str) {
        warn!(%connection, reason, "disconnecting a peer that breaks the rules");
        self.handle.disconnect(connection, Some(Refusal::new(RefusalKind::Protocol, reason)));
    }
}
