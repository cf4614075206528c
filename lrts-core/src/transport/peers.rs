//! The peers of a server, as its tasks and handles share them: who is connected, what each may do, what goes to whom.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use zeromq::RouterSendHalf;

use super::admission::Admission;
use super::breaches::Breaches;
use super::counters::{Cause, Counters};
use super::hello::{Hello, Refusal, RefusalKind, Role, Welcome};
use super::packet::Packet;
use super::server::{SendError, ServerConfig, ServerEvent};
use super::session::{Dead, Received, Session};
use super::splice::{End, Passage};
use super::tls::Certified;
use super::turned_away::{Line, TurnedAway};
use super::{ConnectionId, Message, Sent, send_now};
use crate::clock::Moment;
use crate::keys::{KeySource, Security, role_word};
use crate::limits::{
    FAREWELL_TIME, FROM_APPLICATION, FROM_COMMAND, FROM_WORKER, HANDSHAKE_TIME, PEER_QUEUE_BYTES,
    PEER_QUEUE_MESSAGES, QUESTIONS, WAITING_ANSWERS, WAITING_BYTES, WAITING_MESSAGES,
};

/// What is said of a peer that goes while it has to wait.
const WAITED: &str = "waited too long to come in: others with its key at its address break the protocol";

/// What the server's tasks and handles share.
pub(crate) struct Shared {
    accepts: Vec<Role>,
    security: Security,
    heartbeat: Duration,
    instance: u64,
    connections: usize,
    counters: Arc<Counters>,
    /// Wakes the server's task: a packet must be tried again.
    busy: Notify,
    /// Wakes `close`: something was sent, or a connection has ended.
    changed: Notify,
    peers: Mutex<Peers>,
}

/// What becomes of a connection that was just accepted.
pub(crate) struct Opened {
    /// By which the server tells the gate what to do with it; None if it must be closed at once.
    pub(crate) orders: Option<Orders>,
    /// Whether there are more strangers than there is room for.
    pub(crate) crowded: bool,
}

/// What the gate must know of a connection that it serves.
#[derive(Clone)]
pub(crate) struct Orders {
    /// Closes the TCP side.
    pub(crate) hang_up: CancellationToken,
    /// What the peer may send.
    pub(crate) passage: Arc<Passage>,
}

struct Peers {
    counters: Arc<Counters>,
    map: BTreeMap<ConnectionId, Peer>,
    admission: Admission,
    breaches: Breaches,
    turned_away: TurnedAway,
    /// Peers that have a packet which the ROUTER could not take.
    busy: BTreeSet<ConnectionId>,
    /// None once the server has ended.
    socket: Option<RouterSendHalf>,
    closing: bool,
    urgent: mpsc::UnboundedSender<ServerEvent>,
    normal: mpsc::UnboundedSender<ServerEvent>,
}

struct Peer {
    address: SocketAddr,
    /// None before its handshake has succeeded, and without keys.
    certified: Option<Certified>,
    orders: Orders,
    state: PeerState,
}

enum PeerState {
    /// Connected; has not said hello.
    New {
        /// When it connected; if it had to wait, when it came in.
        since: Moment,
        /// It may not come in yet, since others with its key have broken the protocol.
        waits: bool,
    },
    /// Welcomed.
    Joined { session: Box<Session>, unsent: Option<Packet> },
    /// Refused, or said goodbye to; should hang up by itself.
    Leaving { since: Moment },
}

impl Shared {
    /// For a server that was just bound. Without a socket nobody is told anything.
    pub(super) fn new(
        config: &ServerConfig,
        socket: Option<RouterSendHalf>,
        urgent: mpsc::UnboundedSender<ServerEvent>,
        normal: mpsc::UnboundedSender<ServerEvent>,
    ) -> Self {
        let counters = Arc::new(Counters::default());
        Self {
            accepts: config.accepts.clone(),
            security: config.security.clone(),
            heartbeat: config.heartbeat,
            instance: fastrand::u64(..),
            connections: config.connections,
            counters: counters.clone(),
            busy: Notify::new(),
            changed: Notify::new(),
            peers: Mutex::new(Peers {
                counters,
                map: BTreeMap::new(),
                admission: Admission::new(config.connections),
                breaches: Breaches::default(),
                turned_away: TurnedAway::default(),
                busy: BTreeSet::new(),
                socket,
                closing: false,
                urgent,
                normal,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().expect("nothing panics while it holds this lock")
    }

    pub(super) fn security(&self) -> &Security {
        &self.security
    }

    pub(super) fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    pub(super) fn instance(&self) -> u64 {
        self.instance
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Until a packet must be tried again.
    pub(super) async fn busy(&self) {
        self.busy.notified().await;
    }

    /// Queues a message for a peer, or gives the peer up.
    pub(super) fn send(&self, connection: ConnectionId, message: Message) -> Result<(), SendError> {
        if !message.fits() {
            return Err(SendError::TooLarge);
        }
        let mut peers = self.lock();
        let session = peers.session(connection).ok_or(SendError::Gone)?;
        let (messages, bytes) = session.queued();
        if messages >= PEER_QUEUE_MESSAGES || bytes >= PEER_QUEUE_BYTES {
            peers.give_up(connection, Cause::QueueFull, "queue is full");
            return Err(SendError::Overrun);
        }
        session.push(message);
        self.pump(&mut peers, connection);
        Ok(())
    }

    /// Messages and bytes that wait for a peer.
    pub(super) fn queued(&self, connection: ConnectionId) -> Option<(usize, usize)> {
        self.lock().session(connection).map(|session| session.queued())
    }

    pub(super) fn disconnect(&self, connection: ConnectionId, refusal: Option<Refusal>) {
        let mut peers = self.lock();
        match refusal {
            Some(refusal) => peers.refuse(connection, refusal),
            None => peers.leave(connection, "disconnected"),
        }
    }

    /// The acceptor has accepted a connection.
    pub(super) fn opened(&self, connection: ConnectionId, address: SocketAddr) -> Opened {
        debug!(%connection, %address, "connection accepted");
        let mut peers = self.lock();
        let oldest = match peers.admission.admit(connection, address.ip()) {
            Ok(oldest) => oldest,
            Err(too_many) => {
                peers.count(Cause::Full, address, &too_many);
                return Opened { orders: None, crowded: true };
            }
        };
        if let Some(oldest) = oldest {
            let reason = match peers.map.get(&oldest).map(|peer| &peer.state) {
                Some(PeerState::New { waits: true, .. }) => WAITED,
                _ => "made room for a newer connection: too many have not said hello",
            };
            peers.give_up(oldest, Cause::NoHello, reason);
        }
        let orders = Orders { hang_up: CancellationToken::new(), passage: Arc::new(Passage::narrow()) };
        let state = PeerState::New { since: Moment::now(), waits: false };
        let peer = Peer { address, certified: None, orders: orders.clone(), state };
        peers.map.insert(connection, peer);
        Opened { orders: Some(orders), crowded: oldest.is_some() }
    }

    /// A stranger has shown a key that is accepted.
    pub(super) fn certified(&self, connection: ConnectionId, certified: Certified) {
        debug!(%connection, identity = %certified.identity, "key accepted");
        if let Some(peer) = self.lock().map.get_mut(&connection) {
            peer.certified = Some(certified);
        }
    }

    /// Lets a stranger in whose key was accepted, or says when to ask again: if others have misused the key.
    pub(super) fn enter(&self, connection: ConnectionId) -> Result<(), Moment> {
        let now = Moment::now();
        let mut peers = self.lock();
        let Peers { map, breaches, admission, .. } = &mut *peers;
        let Some(Peer { address, certified: Some(Certified { identity, .. }), state, .. }) =
            map.get_mut(&connection)
        else {
            return Ok(());
        };
        let entered = breaches.enter(identity.key, address.ip(), now);
        if let PeerState::New { since, waits } = state {
            if entered.is_ok() {
                if *waits {
                    // It could say nothing until now.
                    *since = now;
                }
                admission.known(connection);
            }
            *waits = entered.is_err();
        }
        entered
    }

    /// The TCP side of a connection has ended, and what it brought was read.
    pub(super) fn closed(&self, connection: ConnectionId, end: &End) {
        debug!(%connection, reason = %end, "connection ended");
        let mut peers = self.lock();
        peers.leave(connection, &end.to_string());
        peers.admission.gone(connection);
        if end.is_breach() {
            peers.breach(connection, Cause::Protocol, end);
        } else if let Some(cause) = end.cause() {
            peers.turn_away(connection, cause, end);
        }
        peers.map.remove(&connection);
        drop(peers);
        self.changed.notify_one();
    }

    /// Sends away whose key is no longer accepted.
    pub(super) async fn check_keys(&self, source: &KeySource) {
        let Ok(ring) = source.current_or_last() else { return };
        // Signatures take their time: checked without the lock.
        let all: Vec<_> = {
            let peers = self.lock();
            peers.map.iter().filter_map(|(&id, peer)| Some((id, peer.certified.clone()?))).collect()
        };
        for (connection, Certified { identity, shown }) in all {
            if let Err(refusal) = shown.check_client(&ring, Moment::now()) {
                // A line of its own for each, since it had to be let in before and isn't any more.
                warn!(%connection, %identity, reason = %refusal, "disconnecting a peer whose key is no longer accepted");
                let message = format!("the server no longer accepts this {identity}: {refusal}");
                self.lock().refuse(connection, Refusal::new(RefusalKind::Keys, message));
            }
            // Thousands of checks take seconds in all; nobody waits for that long.
            yield_now().await;
        }
    }

    /// The consumer has taken a message.
    pub(super) fn taken(&self, connection: ConnectionId, message: &Message) {
        let mut peers = self.lock();
        if let Some(session) = peers.session(connection) {
            session.taken(message.urgent, message.size());
            self.pump(&mut peers, connection);
        }
    }

    /// Takes a ZeroMQ message: identity, then a packet.
    pub(super) fn receive(&self, mut frames: impl Iterator<Item = Bytes>) {
        let Some(connection) = frames.next().and_then(|id| ConnectionId::from_bytes(&id)) else { return };
        let packet = Packet::decode(frames);
        let mut peers = self.lock();
        // Whoever is unknown has just been disconnected.
        let Some(peer) = peers.map.get_mut(&connection) else { return };
        let packet = match packet {
            Ok(packet) => packet,
            Err(error) => return peers.violated(connection, &error.to_string()),
        };
        match &mut peer.state {
            PeerState::Leaving { .. } => {}
            PeerState::New { .. } => self.greet(&mut peers, connection, packet),
            PeerState::Joined { session, .. } => {
                match session.receive(packet, Moment::now()) {
                    Ok(Received::Message(message)) => peers.deliver(connection, message),
                    Ok(Received::Nothing) => {}
                    Ok(Received::Goodbye(reason)) => return peers.leave(connection, &reason),
                    Err(error) => return peers.violated(connection, &error.to_string()),
                }
                self.pump(&mut peers, connection);
            }
        }
    }

    /// Answers a peer's first packet.
    fn greet(&self, peers: &mut Peers, connection: ConnectionId, packet: Packet) {
        let refusal = match packet {
            Packet::Hello(hello) => match self.objection(peers, connection, &hello) {
                None => return self.welcome(peers, connection, hello),
                Some(refusal) => refusal,
            },
            Packet::ForeignHello { protocol } => Refusal::new(
                RefusalKind::Version,
                format!(
                    "protocol versions differ: this server speaks version {}, the peer version {protocol}",
                    crate::protocol::VERSION,
                ),
            ),
            Packet::Welcome(_)
            | Packet::Refusal(_)
            | Packet::Data(_)
            | Packet::Credit(_)
            | Packet::Ping(_)
            | Packet::Pong(_)
            | Packet::Goodbye(_) => return peers.violated(connection, "no HELLO first"),
        };
        peers.refuse(connection, refusal);
    }

    fn objection(&self, peers: &Peers, connection: ConnectionId, hello: &Hello) -> Option<Refusal> {
        if peers.closing {
            return Some(Refusal::new(RefusalKind::ShuttingDown, "the server is shutting down"));
        }
        let certified = peers.map.get(&connection).and_then(|peer| peer.certified.as_ref());
        if let Some(Certified { identity, .. }) = certified
            && identity.role != hello.role
        {
            let message = format!(
                "this {identity} does not make a {}: use a key made by `lrts keys export --role {}`",
                hello.role,
                role_word(hello.role)
            );
            return Some(Refusal::new(RefusalKind::Role, message));
        }
        if certified.is_none() && matches!(self.security, Security::Keys(_)) {
            return Some(Refusal::new(RefusalKind::Keys, "this server wants a key"));
        }
        if !self.accepts.contains(&hello.role) {
            let accepted: Vec<_> = self.accepts.iter().map(Role::to_string).collect();
            let message = format!(
                "a peer of role {} has no business here: this server takes {}",
                hello.role,
                accepted.join(", ")
            );
            return Some(Refusal::new(RefusalKind::Role, message));
        }
        if peers.admission.is_full(connection) {
            let message = format!("the server is full: it can hold {} connections", self.connections);
            return Some(Refusal::new(RefusalKind::Full, message));
        }
        None
    }

    fn welcome(&self, peers: &mut Peers, connection: ConnectionId, hello: Hello) {
        let welcome = Welcome {
            protocol: crate::protocol::VERSION,
            instance: self.instance,
            heartbeat: self.heartbeat,
        };
        let Some(peer) = peers.map.get_mut(&connection) else { return };
        let session = Session::new(Moment::now()).pinged_every(self.heartbeat);
        let session = Box::new(match hello.role {
            Role::Admin => session
                .hearing(FROM_COMMAND)
                .asking_at_most(QUESTIONS)
                .holding_back(WAITING_ANSWERS, WAITING_BYTES),
            Role::Client => session.hearing(FROM_APPLICATION).holding_back(WAITING_MESSAGES, WAITING_BYTES),
            // A worker asks for nothing, and must be heard while its payloads are on their way.
            Role::Worker => session.hearing(FROM_WORKER),
            Role::Scheduler | Role::ProgressServer => session,
        });
        peer.state = PeerState::Joined { session, unsent: Some(Packet::Welcome(welcome)) };
        // Before it hears of it, and sends more.
        peer.orders.passage.welcome();
        let user = peer.certified.as_ref().map(|certified| certified.identity.user.clone());
        let joined = ServerEvent::Joined { connection, hello, user, address: peer.address };
        peers.admission.known(connection);
        // Ahead of normal messages, so that urgent ones of this connection can't overtake it.
        peers.emit_urgent(joined);
        self.pump(peers, connection);
    }

    /// Sends a peer all that may go.
    fn pump(&self, peers: &mut Peers, connection: ConnectionId) {
        let Some(socket) = &mut peers.socket else { return };
        let Some(PeerState::Joined { session, unsent }) =
            peers.map.get_mut(&connection).map(|peer| &mut peer.state)
        else {
            return;
        };
        let now = Moment::now();
        while let Some(packet) = unsent.take().or_else(|| session.next_packet(now)) {
            match send_now(socket, Some(connection), &packet) {
                Sent::Yes => {}
                Sent::Busy => {
                    *unsent = Some(packet);
                    session.blocked(now);
                    peers.busy.insert(connection);
                    self.busy.notify_one();
                    return;
                }
                Sent::Gone => return peers.leave(connection, "connection lost"),
            }
        }
        if peers.closing {
            self.changed.notify_one();
        }
    }

    /// Tries packets again that the ROUTER could not take.
    pub(super) fn retry(&self) {
        let mut peers = self.lock();
        for connection in std::mem::take(&mut peers.busy) {
            self.pump(&mut peers, connection);
        }
    }

    /// Ends connections that are silent, stalled or overdue.
    pub(super) fn tick(&self) {
        let now = Moment::now();
        self.tell(now);
        let mut peers = self.lock();
        peers.breaches.forget(now);
        let mut dead = Vec::new();
        for (&connection, peer) in &peers.map {
            match &peer.state {
                PeerState::New { since, waits } if now.since(*since) > HANDSHAKE_TIME => {
                    let reason = if *waits { WAITED } else { "no hello in time" };
                    dead.push((connection, Cause::NoHello, reason.to_owned()));
                }
                PeerState::Leaving { since } if now.since(*since) > FAREWELL_TIME => {
                    peer.orders.hang_up.cancel()
                }
                PeerState::New { .. } | PeerState::Leaving { .. } => {}
                PeerState::Joined { session, .. } => {
                    let check = session.check_silence(now, self.heartbeat);
                    if let Err(reason) = check.and_then(|()| session.check_progress(now)) {
                        let cause = match reason {
                            Dead::Silent(_) => Cause::Silent,
                            Dead::Stalled(_) => Cause::Stalled,
                        };
                        dead.push((connection, cause, reason.to_string()));
                    }
                }
            }
        }
        for (connection, cause, reason) in dead {
            peers.give_up(connection, cause, &reason);
        }
    }

    /// Lets the log tell of those who were turned away; without the lock, since whoever reads it may be slow.
    fn tell(&self, now: Moment) {
        let lines: Vec<_> = self.lock().turned_away.due(now).collect();
        lines.iter().for_each(Line::log);
    }

    /// Says goodbye to all peers, after what is queued for them or after so long, and waits until they are gone.
    pub(super) async fn close(&self, flush_time: Duration) {
        self.lock().closing = true;
        let _ = timeout(flush_time, self.wait_until(Peers::has_sent_all)).await;
        self.say_goodbye();
        let _ = timeout(FAREWELL_TIME, self.wait_until(Peers::is_empty)).await;
        self.tell(Moment::now());
    }

    /// Drops all peers at once.
    pub(super) fn end(&self) {
        let mut peers = self.lock();
        peers.socket = None;
        peers.map.clear();
    }

    fn say_goodbye(&self) {
        let mut peers = self.lock();
        let connections: Vec<_> = peers.map.keys().copied().collect();
        for connection in connections {
            if let Some(session) = peers.session(connection) {
                session.say_goodbye("the server is shutting down");
                self.pump(&mut peers, connection);
            }
        }
    }

    async fn wait_until(&self, condition: fn(&Peers) -> bool) {
        while !condition(&self.lock()) {
            self.changed.notified().await;
        }
    }
}

impl Peers {
    fn session(&mut self, connection: ConnectionId) -> Option<&mut Session> {
        match &mut self.map.get_mut(&connection)?.state {
            PeerState::Joined { session, .. } => Some(session),
            PeerState::New { .. } | PeerState::Leaving { .. } => None,
        }
    }

    fn has_sent_all(&self) -> bool {
        self.map.values().all(|peer| match &peer.state {
            PeerState::Joined { session, unsent } => session.queued().0 == 0 && unsent.is_none(),
            PeerState::New { .. } | PeerState::Leaving { .. } => true,
        })
    }

    fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    fn deliver(&mut self, connection: ConnectionId, message: Message) {
        let urgent = message.urgent;
        let event = ServerEvent::Message { connection, message };
        if urgent { self.emit_urgent(event) } else { self.emit(event) }
    }

    // A server that is being dropped takes no events; its connections end with it.
    fn emit(&self, event: ServerEvent) {
        let _ = self.normal.send(event);
    }

    fn emit_urgent(&self, event: ServerEvent) {
        let _ = self.urgent.send(event);
    }

    /// Ends a connection now. The gate forgets it once its TCP side is closed.
    fn leave(&mut self, connection: ConnectionId, reason: &str) {
        let Some(peer) = self.map.get_mut(&connection) else { return };
        peer.orders.hang_up.cancel();
        self.set_leaving(connection, reason);
    }

    /// Ends a connection that is of no use any more.
    fn give_up(&mut self, connection: ConnectionId, cause: Cause, reason: &str) {
        self.turn_away(connection, cause, &reason);
        self.leave(connection, reason);
    }

    /// Counts a peer that is sent away.
    fn turn_away(&mut self, connection: ConnectionId, cause: Cause, reason: &dyn Display) {
        if let Some(address) = self.map.get(&connection).map(|peer| peer.address) {
            self.count(cause, address, reason);
        }
    }

    /// Counts a peer that is sent away for what its side has said.
    fn breach(&mut self, connection: ConnectionId, cause: Cause, reason: &dyn Display) {
        let Some(Peer { address, certified, .. }) = self.map.get(&connection) else { return };
        let (address, key) = (*address, certified.as_ref().map(|certified| certified.identity.key));
        if key.is_some_and(|key| self.breaches.note(key, address.ip(), Moment::now())) {
            let reason = format_args!("{reason}; others with its key at its address wait for that");
            self.count(cause, address, &reason);
        } else {
            self.count(cause, address, reason);
        }
    }

    /// Counts somebody who is sent away, and lets the log tell of it.
    fn count(&mut self, cause: Cause, address: SocketAddr, reason: &dyn Display) {
        self.counters.count(cause);
        self.turned_away.note(cause, address, reason);
    }

    /// Tells a peer to go. It has [`FAREWELL_TIME`] to hang up by itself, so that it reads why.
    fn refuse(&mut self, connection: ConnectionId, refusal: Refusal) {
        let is_here = |peer: &Peer| !matches!(peer.state, PeerState::Leaving { .. });
        if self.map.get(&connection).is_some_and(is_here) {
            let cause = refusal.kind.into();
            match refusal.kind {
                // A link looks at its own key's role, and at its server's, before it says hello.
                RefusalKind::Protocol | RefusalKind::Role => self.breach(connection, cause, &refusal),
                // Honest peers come back too: a supervisor starts a worker of another version again each second.
                RefusalKind::Version
                | RefusalKind::Full
                | RefusalKind::ShuttingDown
                | RefusalKind::Superseded
                | RefusalKind::Keys
                | RefusalKind::Owner
                | RefusalKind::Limit => self.turn_away(connection, cause, &refusal),
            }
        }
        let reason = refusal.message.clone();
        if let (Some(socket), true) = (&mut self.socket, self.map.contains_key(&connection)) {
            match send_now(socket, Some(connection), &Packet::Refusal(refusal)) {
                Sent::Yes => {}
                // It is disconnected all the same, and tries again.
                Sent::Busy | Sent::Gone => return self.leave(connection, &reason),
            }
        }
        self.set_leaving(connection, &reason);
    }

    fn violated(&mut self, connection: ConnectionId, error: &str) {
        self.refuse(connection, Refusal::new(RefusalKind::Protocol, format!("protocol broken: {error}")));
    }

    fn set_leaving(&mut self, connection: ConnectionId, reason: &str) {
        let Some(peer) = self.map.get_mut(&connection) else { return };
        if matches!(peer.state, PeerState::Leaving { .. }) {
            return;
        }
        peer.orders.passage.dismiss();
        let before = std::mem::replace(&mut peer.state, PeerState::Leaving { since: Moment::now() });
        if matches!(before, PeerState::Joined { .. }) {
            self.emit(ServerEvent::Left { connection, reason: reason.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Identity;
    use crate::limits::BREACHES;

    /// A server that can hold so many connections, of which a quarter may be strangers'.
    fn server(connections: usize) -> Shared {
        let address = ([127, 0, 0, 1], 0).into();
        let config = ServerConfig { connections, ..ServerConfig::insecure(address, "", vec![Role::Worker]) };
        Shared::new(&config, None, mpsc::unbounded_channel().0, mpsc::unbounded_channel().0)
    }

    /// Somebody connects, always from the same address.
    fn connect(server: &Shared) -> ConnectionId {
        let connection = ConnectionId::next();
        assert!(server.opened(connection, ([10, 0, 0, 1], 7).into()).orders.is_some());
        connection
    }

    /// The same with a key, always the same one.
    fn connect_with_key(server: &Shared) -> ConnectionId {
        let connection = connect(server);
        let (user, key) = ("ann".parse().unwrap(), "0123456789abcdef".parse().unwrap());
        server.certified(connection, Certified::as_said(Identity { role: Role::Worker, user, key }));
        connection
    }

    /// Makes whoever comes with the key wait.
    fn break_the_protocol(server: &Shared) {
        let connection = connect_with_key(server);
        (0..BREACHES).for_each(|_| server.lock().breach(connection, Cause::Protocol, &"nonsense"));
        server.closed(connection, &End::ClosedHere);
    }

    /// When the time began that it has for its hello.
    fn since(server: &Shared, connection: ConnectionId) -> Moment {
        match server.lock().map[&connection].state {
            PeerState::New { since, .. } => since,
            PeerState::Joined { .. } | PeerState::Leaving { .. } => panic!("no stranger any more"),
        }
    }

    #[test]
    fn a_key_gives_no_more_time_to_say_hello_and_to_have_waited_does() {
        let server = server(100);
        let at_once = connect_with_key(&server);
        let connected = since(&server, at_once);
        assert_eq!(server.enter(at_once), Ok(()));
        assert_eq!(since(&server, at_once), connected);

        break_the_protocol(&server);
        let later = connect_with_key(&server);
        let connected = since(&server, later);
        let comes_in = server.enter(later).unwrap_err();
        assert_eq!(since(&server, later), connected);
        comes_in.wait();
        while server.enter(later).is_err() {}
        assert!(since(&server, later) >= comes_in);
    }

    /// Those that honest peers hear again and again come from a server that is full or ends, and from another version: a
    /// supervisor starts its worker each second.
    #[test]
    fn newcomers_wait_for_refusals_that_no_honest_peer_hears_again_and_again() {
        for (kind, waits) in [
            (RefusalKind::Protocol, true),
            (RefusalKind::Role, true),
            (RefusalKind::Version, false),
            (RefusalKind::Full, false),
            (RefusalKind::ShuttingDown, false),
            (RefusalKind::Keys, false),
        ] {
            let server = server(1_000);
            for _ in 0..BREACHES {
                let connection = connect_with_key(&server);
                assert_eq!(server.enter(connection), Ok(()), "{kind:?}");
                server.disconnect(connection, Some(Refusal::new(kind, "go away")));
            }
            assert_eq!(server.counters().of(kind.into()), u64::from(BREACHES));
            assert_eq!(server.enter(connect_with_key(&server)).is_err(), waits, "{kind:?}");
        }
    }

    #[test]
    fn the_log_says_of_who_waits_that_others_have_broken_the_protocol() {
        let server = server(4);
        break_the_protocol(&server);
        let waits = connect_with_key(&server);
        server.enter(waits).unwrap_err();
        // Each a while after the one before, since those of one cause are told of in sums.
        let told = |minutes| {
            let then = Moment::now() + Duration::from_mins(minutes);
            format!("{:?}", server.lock().turned_away.due(then).collect::<Vec<_>>())
        };
        told(1);
        connect(&server);
        let of_who_waited = told(2);
        connect(&server);
        let of_a_silent_one = told(3);
        assert!(of_who_waited.contains("others with its key at its address"), "{of_who_waited}");
        assert!(of_a_silent_one.contains("have not said hello"), "{of_a_silent_one}");
    }
}
