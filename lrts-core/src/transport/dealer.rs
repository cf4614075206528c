//! The client's end: a link that stays, over connections that don't.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info};
use zeromq::{
    DealerRecvHalf, DealerSendHalf, DealerSocket, Socket, SocketOptions, SocketRecv, SocketSend, ZmqMessage,
};

use super::hello::{Refusal, RefusalKind, Welcome};
use super::key_watch::{Due, Watch};
use super::link::{LinkConfig, LinkDown, LinkEvent, LinkSendError, TrySendError};
use super::packet::Packet;
use super::session::{Received, Session};
use super::splice::End;
use super::tls::Shown;
use super::tunnel::{OpenError, Tunnel};
use super::{Message, Sent, send_now};
use crate::clock::{Moment, sleep_until};
use crate::command_line::with_causes;
use crate::keys::{KeyRing, KeysError, Security, role_word};
use crate::limits::{
    CONNECT_BACKOFF_MAX, CONNECT_BACKOFF_MIN, FAREWELL_TIME, FLUSH_TIME, HANDSHAKE_TIME, KEYS_INTERVAL,
    LINK_QUEUE_BYTES, LINK_QUEUE_MESSAGES,
};

/// How soon a packet that the DEALER could not take is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// Longest time that packets are handled in a row before pings get their turn.
const DECODE_BUDGET: Duration = Duration::from_millis(10);

/// Shortest interval of pings that a server may ask for.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

impl LinkConfig {
    /// Why a connection ended, for people: if for its key, with where that is and what to do.
    fn ended(&self, end: End) -> Ended {
        match end {
            End::Keys(reason) => Ended::Distrusted(reason),
            End::Objected(objection) => {
                let (file, role) = match &self.security {
                    Security::Keys(source) => (source.file_path().display().to_string(), source.role()),
                    Security::Insecure => ("that was shown".to_owned(), self.hello.role),
                };
                Ended::Distrusted(format!(
                    "the {} there does not accept the key {file}: it {objection}; where keys are made, `lrts keys export --role {} \
                     FILE` makes another one",
                    self.server,
                    role_word(role)
                ))
            }
            end @ (End::Closed
            | End::ClosedHere
            | End::Network(_)
            | End::Handshake
            | End::Tls(_)
            | End::Violation(_)
            | End::Fault) => Ended::Broken(end.to_string()),
        }
    }

    fn not_opened(&self, error: OpenError) -> Ended {
        match error {
            OpenError::Keys(error @ (KeysError::Missing { .. } | KeysError::Io { .. })) => {
                Ended::Broken(with_causes(&error))
            }
            OpenError::Keys(error) => Ended::Distrusted(with_causes(&error)),
            OpenError::Connection(end) => self.ended(end),
        }
    }
}

/// A connection to a server that is made anew whenever it ends.
#[derive(Debug)]
pub struct Link;

impl Link {
    /// Opens a link. Returns at once; the link connects in the background, again and again until it is closed, refused for
    /// good, or its receiver dropped.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn open(config: LinkConfig) -> (LinkSender, LinkReceiver) {
        // Not bounded by themselves: credit bounds what the server may have in them.
        let (urgent_sender, urgent) = mpsc::unbounded_channel();
        let (normal_sender, normal) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            state: Mutex::new(State { phase: Phase::Down, epoch: 0, trouble: None, busy: false }),
            changed: Notify::new(),
            busy: Notify::new(),
            down_taken: Notify::new(),
            closing: CancellationToken::new(),
            ended: CancellationToken::new(),
            urgent: urgent_sender,
            normal: normal_sender,
        });
        let dropped = CancellationToken::new();
        tokio::spawn(run(config, shared.clone(), dropped.clone()));
        let receiver =
            LinkReceiver { shared: shared.clone(), urgent, normal, _dropped: dropped.drop_guard() };
        (LinkSender { shared }, receiver)
    }
}

/// Sends over a link.
#[derive(Clone)]
pub struct LinkSender {
    shared: Arc<Shared>,
}

impl LinkSender {
    /// Sends a message, after waiting for room in the queue ([`LINK_QUEUE_MESSAGES`], [`LINK_QUEUE_BYTES`]). Urgent messages
    /// don't wait for others.
    ///
    /// Success means accepted, not received: a message may be lost if the connection ends. Safe to cancel: the message is
    /// either accepted as a whole, in which case this has returned, or not at all.
    ///
    /// # Errors
    ///
    /// [`LinkSendError`].
    pub async fn send(&self, message: Message) -> Result<(), LinkSendError> {
        let mut message = Some(message);
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            match self.offer(&mut message) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Down) => return Err(LinkSendError::Down),
                Err(TrySendError::TooLarge) => return Err(LinkSendError::TooLarge),
                Err(TrySendError::Full) => changed.await,
            }
        }
    }

    /// Sends a message if there is room for it.
    ///
    /// # Errors
    ///
    /// [`TrySendError`]; then the message was not sent.
    pub fn try_send(&self, message: Message) -> Result<(), TrySendError> {
        self.offer(&mut Some(message))
    }

    /// Accepts the message, leaving none, or says why not.
    fn offer(&self, message: &mut Option<Message>) -> Result<(), TrySendError> {
        let Some(offered) = message.as_ref() else { return Ok(()) };
        if !offered.fits() {
            return Err(TrySendError::TooLarge);
        }
        let mut state = self.shared.lock();
        let connected = state.up().ok_or(TrySendError::Down)?;
        let (messages, bytes) = connected.session.queued();
        // Twice the messages for urgent ones: bounded too, but not by the others.
        let full = if offered.urgent {
            messages >= 2 * LINK_QUEUE_MESSAGES
        } else {
            messages >= LINK_QUEUE_MESSAGES || bytes >= LINK_QUEUE_BYTES
        };
        if full {
            return Err(TrySendError::Full);
        }
        connected.session.push(message.take().expect("looked at above"));
        self.shared.pump(&mut state);
        Ok(())
    }

    /// Whether sends are accepted: the link is connected and its receiver has taken [`LinkEvent::Up`].
    pub fn is_up(&self) -> bool {
        self.shared.lock().up().is_some()
    }

    /// Why the link is not connected, as far as is known: the end of the last connection, or the last attempt's failure.
    pub fn trouble(&self) -> Option<String> {
        self.shared.lock().trouble.clone()
    }

    /// Waits until all that was accepted before has arrived at the server's machine. Its consumer may still have to take it.
    ///
    /// # Errors
    ///
    /// [`LinkDown`] if the connection ended meanwhile.
    pub async fn flush(&self) -> Result<(), LinkDown> {
        let epoch = self.shared.lock().epoch;
        let mut awaited = None;
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.shared.lock();
                if state.epoch != epoch {
                    return Err(LinkDown);
                }
                let session = &mut state.up().ok_or(LinkDown)?.session;
                match awaited {
                    Some(number) if session.last_pong() >= number => return Ok(()),
                    Some(_) => {}
                    // Pings overtake messages, so this one leaves after the last of them only.
                    None if session.queued().0 == 0 => {
                        awaited = Some(session.ping(Moment::now()));
                        self.shared.pump(&mut state);
                    }
                    None => {}
                }
            }
            changed.await;
        }
    }

    /// Ends the link: flushes for up to [`FLUSH_TIME`], and leaves with a goodbye. The receiver gets a last [`LinkEvent::Down`].
    ///
    /// Whoever has more to send, or more time, calls [`LinkSender::flush`] before.
    pub async fn close(&self) {
        let _ = timeout(FLUSH_TIME, self.flush()).await;
        {
            let mut state = self.shared.lock();
            if let Some(connected) = state.connected() {
                connected.session.say_goodbye("closed by the peer");
                self.shared.pump(&mut state);
            }
        }
        self.shared.closing.cancel();
        self.shared.ended.cancelled().await;
    }

    /// Time to the server and back, smoothed over the transport's pings; None before the first answer on this connection.
    pub fn round_trip(&self) -> Option<Duration> {
        self.shared.lock().up()?.session.round_trip()
    }
}

/// Receives a link's events. Dropping it ends the link.
pub struct LinkReceiver {
    shared: Arc<Shared>,
    urgent: mpsc::UnboundedReceiver<LinkEvent>,
    normal: mpsc::UnboundedReceiver<LinkEvent>,
    _dropped: DropGuard,
}

impl LinkReceiver {
    /// The next event; for ever pending once the link has ended and its last event was taken. Safe to cancel: nothing is lost.
    ///
    /// Taking a message is what lets the server send more.
    pub async fn next(&mut self) -> LinkEvent {
        let event = tokio::select! {
            biased;
            event = self.urgent.recv() => event,
            event = self.normal.recv() => event,
        };
        let event = event.expect("this receiver's own reference keeps the channels open");
        match &event {
            LinkEvent::Up { .. } => self.shared.up_taken(),
            LinkEvent::Message(message) => self.shared.taken(message),
            LinkEvent::Down { .. } => self.shared.down_taken.notify_one(),
            LinkEvent::Refused(_) => {}
        }
        event
    }
}

struct Shared {
    state: Mutex<State>,
    /// All who wait for room, for answers or for the end of the connection.
    changed: Notify,
    /// A packet must be tried again.
    busy: Notify,
    down_taken: Notify,
    closing: CancellationToken,
    ended: CancellationToken,
    urgent: mpsc::UnboundedSender<LinkEvent>,
    normal: mpsc::UnboundedSender<LinkEvent>,
}

struct State {
    phase: Phase,
    /// Counts connections.
    epoch: u64,
    trouble: Option<String>,
    busy: bool,
}

enum Phase {
    Down,
    /// Connected, but the consumer doesn't know yet.
    Ready(Box<Connected>),
    Up(Box<Connected>),
}

struct Connected {
    session: Session,
    socket: DealerSendHalf,
    unsent: Option<Packet>,
}

impl State {
    fn up(&mut self) -> Option<&mut Connected> {
        match &mut self.phase {
            Phase::Up(connected) => Some(connected),
            Phase::Down | Phase::Ready(_) => None,
        }
    }

    fn connected(&mut self) -> Option<&mut Connected> {
        match &mut self.phase {
            Phase::Ready(connected) | Phase::Up(connected) => Some(connected),
            Phase::Down => None,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    fn up_taken(&self) {
        let mut state = self.lock();
        state.phase = match std::mem::replace(&mut state.phase, Phase::Down) {
            Phase::Ready(connected) => Phase::Up(connected),
            phase @ (Phase::Down | Phase::Up(_)) => phase,
        };
    }

    fn taken(&self, message: &Message) {
        let mut state = self.lock();
        // Messages of an ended connection come before its `Down`; there is nobody left to grant credit to.
        if let Some(connected) = state.connected() {
            connected.session.taken(message.urgent, message.size());
            self.pump(&mut state);
        }
    }

    /// Sends all that may go.
    fn pump(&self, state: &mut State) {
        let Some(connected) = state.connected() else { return };
        let now = Moment::now();
        let mut busy = false;
        while let Some(packet) = connected.unsent.take().or_else(|| connected.session.next_packet(now)) {
            match send_now(&mut connected.socket, None, &packet) {
                Sent::Yes => {}
                Sent::Busy => {
                    connected.unsent = Some(packet);
                    connected.session.blocked(now);
                    busy = true;
                    break;
                }
                // The tunnel's end tells the link.
                Sent::Gone => break,
            }
        }
        state.busy = busy;
        if busy {
            self.busy.notify_one();
        }
        self.changed.notify_waiters();
    }

    fn receive(&self, message: ZmqMessage) -> Result<(), Ended> {
        let packet =
            Packet::decode(message.into_vecdeque()).map_err(|error| Ended::Broken(error.to_string()))?;
        if let Packet::Refusal(refusal) = packet {
            return Err(Ended::Refused(refusal));
        }
        let mut state = self.lock();
        let Some(connected) = state.connected() else { return Ok(()) };
        match connected.session.receive(packet, Moment::now()) {
            Ok(Received::Message(message)) => {
                let lane = if message.urgent { &self.urgent } else { &self.normal };
                let _ = lane.send(LinkEvent::Message(message));
            }
            Ok(Received::Nothing) => {}
            Ok(Received::Goodbye(reason)) => return Err(Ended::Broken(reason)),
            Err(error) => return Err(Ended::Broken(format!("server broke the protocol: {error}"))),
        }
        self.pump(&mut state);
        Ok(())
    }

    fn tick(&self, interval: Duration, late: bool) -> Result<(), Ended> {
        let now = Moment::now();
        let mut state = self.lock();
        let Some(connected) = state.connected() else { return Ok(()) };
        if !late {
            connected.session.check_silence(now, interval).map_err(|dead| Ended::Broken(dead.to_string()))?;
        }
        connected.session.ping(now);
        self.pump(&mut state);
        Ok(())
    }
}

/// Since when a link's key has been refused in a row, and when for the last time.
#[derive(Default)]
struct KeysPatience(Option<(Moment, Moment)>);

/// Refusals that are further apart don't belong together.
const KEYS_PATIENCE: Duration = Duration::from_secs(2 * CONNECT_BACKOFF_MAX.as_secs());

impl KeysPatience {
    fn has_begun(&self) -> bool {
        self.0.is_some()
    }

    /// Whether a refusal is final now: keys that are being replaced are in their places within two looks at them.
    fn is_over(&mut self, now: Moment) -> bool {
        let in_a_row = self.0.filter(|(_, last)| now.since(*last) <= KEYS_PATIENCE);
        let since = in_a_row.map_or(now, |(since, _)| since);
        self.0 = Some((since, now));
        now.since(since) >= 2 * KEYS_INTERVAL
    }
}

fn epoch_of(shared: &Shared) -> u64 {
    shared.lock().epoch
}

/// How a connection, or an attempt to make one, ended.
enum Ended {
    Broken(String),
    /// By the server, which is one of this cluster where there are keys.
    Refused(Refusal),
    /// One side doesn't accept the other's key, so nobody knows who that is.
    Distrusted(String),
    Closed,
}

/// A welcomed connection, but for its sending half.
struct Connection {
    tunnel: Tunnel,
    receiver: DealerRecvHalf,
    sender: DealerSendHalf,
    welcome: Welcome,
}

/// Connects, again and again.
async fn run(config: LinkConfig, shared: Arc<Shared>, dropped: CancellationToken) {
    tokio::select! {
        () = dropped.cancelled() => {}
        () = keep_connected(&config, &shared) => {}
    }
    shared.lock().phase = Phase::Down;
    shared.changed.notify_waiters();
    shared.ended.cancel();
}

async fn keep_connected(config: &LinkConfig, shared: &Shared) {
    // In a row: attempts that failed, and connections that ended too soon to count as a success.
    let mut failures = 0;
    let mut patience = KeysPatience::default();
    loop {
        let keys = config.keys_version();
        let attempt = tokio::select! {
            () = shared.closing.cancelled() => Err(Ended::Closed),
            attempt = Box::pin(connect(config)) => attempt,
        };
        let ended = match attempt {
            Ok(connection) => {
                let since = Moment::now();
                let ended = use_connection(config, connection, shared).await;
                failures = if since.elapsed() < CONNECT_BACKOFF_MAX { failures + 1 } else { 0 };
                // One that was refused as soon as it was up is still the same refusal.
                if since.elapsed() >= CONNECT_BACKOFF_MAX {
                    patience = KeysPatience::default();
                }
                let ended_by = match &ended {
                    Ended::Broken(reason) | Ended::Distrusted(reason) => reason.clone(),
                    Ended::Refused(refusal) => refusal.message.clone(),
                    Ended::Closed => "link is closed".to_owned(),
                };
                take_down(shared, ended_by);
                tokio::select! {
                    () = shared.closing.cancelled() => return,
                    () = shared.down_taken.notified() => ended,
                }
            }
            Err(ended) => {
                failures += 1;
                if matches!(ended, Ended::Closed) {
                    take_down(shared, "link is closed".to_owned());
                }
                ended
            }
        };
        let ended = match ended {
            // Whoever answers there now may be a stranger to a link that was up: only the server itself ends it.
            Ended::Distrusted(reason) if epoch_of(shared) > 0 && !patience.has_begun() => {
                Ended::Broken(reason)
            }
            Ended::Distrusted(reason) => Ended::Refused(Refusal::new(RefusalKind::Keys, reason)),
            ended @ (Ended::Broken(_) | Ended::Refused(_) | Ended::Closed) => ended,
        };
        match ended {
            Ended::Closed => return,
            // Other keys have come meanwhile, or may be just coming, to this side or the other: they are tried before this is final.
            Ended::Refused(Refusal { kind: RefusalKind::Keys, message })
                if matches!(config.security, Security::Keys(_))
                    && (config.keys_version() != keys || !patience.is_over(Moment::now())) =>
            {
                debug!(address = config.address, reason = message, "refused, trying again");
                shared.lock().trouble = Some(message);
            }
            Ended::Refused(refusal) if refusal.kind.is_permanent() => {
                shared.lock().trouble = Some(refusal.message.clone());
                let _ = shared.normal.send(LinkEvent::Refused(refusal));
                return;
            }
            Ended::Refused(Refusal { message: reason, .. })
            | Ended::Broken(reason)
            | Ended::Distrusted(reason) => {
                // Once per outage for operators; each attempt for whoever looks closer.
                if failures == 1 {
                    info!(address = config.address, reason, "not connected, trying again");
                }
                debug!(address = config.address, reason, failures, "not connected");
                shared.lock().trouble = Some(reason);
            }
        }
        tokio::select! {
            () = shared.closing.cancelled() => {}
            () = tokio::time::sleep(backoff(failures)) => {}
        }
    }
}

/// Ends the phase of a connection and tells the consumer.
fn take_down(shared: &Shared, reason: String) {
    let mut state = shared.lock();
    state.phase = Phase::Down;
    state.trouble = Some(reason.clone());
    drop(state);
    shared.changed.notify_waiters();
    let _ = shared.normal.send(LinkEvent::Down { reason });
}

/// Wait before the next attempt, with jitter: all peers of a server that restarts come back at once otherwise.
fn backoff(failures: u32) -> Duration {
    let doubled =
        CONNECT_BACKOFF_MIN.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(CONNECT_BACKOFF_MAX).mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// Makes one connection, all of it anew, and says hello.
async fn connect(config: &LinkConfig) -> Result<Connection, Ended> {
    let broken = |error: &dyn std::fmt::Display| Ended::Broken(error.to_string());
    let mut tunnel = Tunnel::open(config).await.map_err(|error| config.not_opened(error))?;
    let endpoint = tunnel.endpoint();
    let handshake = async {
        let mut options = SocketOptions::default();
        options.connect_timeout(HANDSHAKE_TIME);
        let mut socket = DealerSocket::with_options(options);
        socket.connect(&endpoint).await.map_err(|error| broken(&error))?;
        let (mut sender, mut receiver) = socket.split();
        let hello = ZmqMessage::try_from(Packet::Hello(config.hello.clone()).encode());
        sender.send(hello.expect("a packet has a header")).await.map_err(|error| broken(&error))?;
        let answer = receiver.recv().await.map_err(|error| broken(&error))?;
        match Packet::decode(answer.into_vecdeque()).map_err(|error| broken(&error))? {
            Packet::Welcome(welcome) => Ok((sender, receiver, welcome)),
            Packet::Refusal(refusal) => Err(Ended::Refused(refusal)),
            packet @ (Packet::Hello(_)
            | Packet::ForeignHello { .. }
            | Packet::Data(_)
            | Packet::Credit(_)
            | Packet::Ping(_)
            | Packet::Pong(_)
            | Packet::Goodbye(_)) => {
                Err(Ended::Broken(format!("server answered hello by {}", packet.name())))
            }
        }
    };
    tokio::select! {
        biased;
        result = timeout(HANDSHAKE_TIME, handshake) => {
            match result {
                Ok(Ok((sender, receiver, welcome))) => Ok(Connection { tunnel, receiver, sender, welcome }),
                // The tunnel knows why, if it is over.
                Ok(Err(Ended::Broken(reason))) => match timeout(FAREWELL_TIME, tunnel.ended()).await {
                    Ok(end) => Err(config.ended(end)),
                    Err(_) => Err(Ended::Broken(reason)),
                },
                Ok(Err(ended)) => Err(ended),
                Err(_) => {
                    let reason = format!("server did not answer within {} s", HANDSHAKE_TIME.as_secs());
                    Err(Ended::Broken(reason))
                }
            }
        }
        end = tunnel.ended() => Err(config.ended(end)),
    }
}

/// Serves a connection to its end.
async fn use_connection(config: &LinkConfig, connection: Connection, shared: &Shared) -> Ended {
    let Connection { mut tunnel, mut receiver, sender, welcome } = connection;
    {
        let mut state = shared.lock();
        state.epoch += 1;
        state.trouble = None;
        state.busy = false;
        let session = Session::new(Moment::now());
        state.phase = Phase::Ready(Box::new(Connected { session, socket: sender, unsent: None }));
    }
    // Ahead of normal messages, so that urgent ones can't overtake it. Those of the connection before are gone: its `Down`
    // was taken.
    let _ = shared.urgent.send(LinkEvent::Up { welcome });
    let watched =
        |(ring, shown): &(Arc<KeyRing>, Shown)| (Watch::new(ring.clone(), Moment::now()), shown.clone());
    let mut server = tunnel.server().map(watched);
    let interval = welcome.heartbeat.max(SHORTEST_INTERVAL);
    let mut tick = tokio::time::interval(interval);
    let mut last_tick = Moment::now();
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut retry_at = None;
    loop {
        let result = tokio::select! {
            biased;
            () = shared.closing.cancelled() => {
                let _ = timeout(FAREWELL_TIME, hung_up(&mut tunnel, &mut receiver)).await;
                Err(Ended::Closed)
            }
            _ = tick.tick() => {
                // A process that was stopped for a while hears the server first, before it finds it silent.
                let late = last_tick.elapsed() > 2 * interval;
                last_tick = Moment::now();
                check_server(config, server.as_mut()).and_then(|()| shared.tick(interval, late))
            }
            () = sleep_until(retry_at) => {
                retry_at = None;
                shared.pump(&mut shared.lock());
                Ok(())
            }
            () = shared.busy.notified(), if retry_at.is_none() => {
                retry_at = shared.lock().busy.then(|| Moment::now() + RETRY);
                Ok(())
            }
            received = receiver.recv() => match received {
                Ok(message) => receive_some(message, &mut receiver, shared),
                Err(error) => Err(Ended::Broken(error.to_string())),
            },
            // Last: what has arrived comes before the end.
            end = tunnel.ended() => Err(config.ended(end)),
        };
        if let Err(ended) = result {
            return ended;
        }
    }
}

/// Whether the server's key is still accepted: this side's own keys may have changed, and all expire.
fn check_server(config: &LinkConfig, server: Option<&mut (Watch<KeyRing>, Shown)>) -> Result<(), Ended> {
    let (Security::Keys(source), Some((watch, shown))) = (&config.security, server) else { return Ok(()) };
    let now = Moment::now();
    let Ok(ring) = source.current_or_last() else { return Ok(()) };
    if watch.looked(&ring, now) == Due::Nothing {
        return Ok(());
    }
    let checked = shown.check_server(&ring, config.server, now);
    checked.map_err(|refusal| Ended::Broken(format!("the {} is no longer trusted: {refusal}", config.server)))
}

/// Waits until the server has hung up, as it does on a goodbye. What it still says is of no use to anybody.
async fn hung_up(tunnel: &mut Tunnel, receiver: &mut DealerRecvHalf) {
    loop {
        tokio::select! {
            biased;
            _ = tunnel.ended() => return,
            _ = receiver.recv() => {}
        }
    }
}

/// Handles a message and those that are there already, within the budget.
fn receive_some(first: ZmqMessage, receiver: &mut DealerRecvHalf, shared: &Shared) -> Result<(), Ended> {
    shared.receive(first)?;
    let end = Moment::now() + DECODE_BUDGET;
    while Moment::now() < end {
        match receiver.recv().now_or_never() {
            Some(Ok(message)) => shared.receive(message)?,
            Some(Err(error)) => return Err(Ended::Broken(error.to_string())),
            None => break,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_a_key_are_final_if_they_come_in_a_row() {
        let mut now = Moment::from_nanos(1_000_000_000_000);
        let mut patience = KeysPatience::default();
        let mut refused_after = |wait| {
            now = now + wait;
            patience.is_over(now)
        };
        assert!(!refused_after(Duration::ZERO));
        assert!(!refused_after(KEYS_INTERVAL));
        assert!(!refused_after(2 * KEYS_PATIENCE), "an outage lay between");
        assert!(!refused_after(KEYS_INTERVAL));
        assert!(refused_after(KEYS_INTERVAL));
        assert!(refused_after(KEYS_PATIENCE));
    }
}
