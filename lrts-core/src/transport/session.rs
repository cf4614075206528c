//! One established connection, seen from either end: what to send next, what the peer's packets mean.
//!
//! Pure: packets and time in, packets and messages out. The server and the link each drive one per connection.

use std::collections::VecDeque;
use std::time::Duration;

use super::Message;
use super::chunks::{Assembly, Outbox, PieceError};
use super::credit::{CreditError, ReceiveCredit, SendCredit};
use super::packet::Packet;
use crate::clock::Moment;
use crate::limits::{
    HEAD_BYTES, HeadBounds, PING_INTERVAL, PINGS_AT_ONCE, PINGS_PER_INTERVAL, SILENT_INTERVALS, STALL,
};

/// Flow control, cutting, joining and liveness of one connection.
#[derive(Debug)]
pub(crate) struct Session {
    outbox: Outbox,
    send_credit: SendCredit,
    assembly: Assembly,
    receive_credit: ReceiveCredit,
    /// Normal messages that the consumer hasn't taken, and how many there may be.
    unheard: usize,
    most_unheard: usize,
    /// While more messages or bytes than this wait for the peer, it isn't heard.
    holds_back_at: Option<(usize, usize)>,
    /// Pings, pongs and goodbyes that wait; they go before all messages.
    control: VecDeque<Packet>,
    last_heard: Moment,
    /// Since when messages have waited for credit.
    stalled_since: Option<Moment>,
    pings: Pings,
    /// The interval of the peer's pings, and how far they are ahead of what they may be.
    pinged_every: Duration,
    pinged_until: Moment,
}

/// What a packet brought.
#[derive(Debug)]
pub(crate) enum Received {
    /// A whole message. Once the consumer has it, the session wants to know by [`Session::taken`].
    Message(Message),
    /// The peer leaves, and why.
    Goodbye(String),
    /// Something that concerns the session only.
    Nothing,
}

/// The peer broke the protocol; only its connection ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error(transparent)]
    Credit(#[from] CreditError),
    #[error(transparent)]
    Piece(#[from] PieceError),
    #[error("asked {0} questions without waiting for an answer")]
    Impatient(usize),
    #[error("pings without a pause")]
    Restless,
    #[error("sent {0} in the middle of a conversation")]
    OutOfPlace(&'static str),
}

/// Why a session is over although the peer's connection is still open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Dead {
    #[error("heard nothing for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("peer took none of its messages for {} s", .0.as_secs())]
    Stalled(Duration),
}

impl Session {
    pub(crate) fn new(now: Moment) -> Self {
        Self {
            outbox: Outbox::default(),
            send_credit: SendCredit::new(),
            assembly: Assembly::new(HEAD_BYTES),
            receive_credit: ReceiveCredit::new(),
            unheard: 0,
            most_unheard: usize::MAX,
            holds_back_at: None,
            control: VecDeque::new(),
            last_heard: now,
            stalled_since: None,
            pings: Pings::default(),
            pinged_every: PING_INTERVAL,
            pinged_until: now,
        }
    }

    /// For servers that have told their peers another interval of pings than the usual one.
    pub(crate) fn pinged_every(self, interval: Duration) -> Self {
        Self { pinged_every: interval, ..self }
    }

    /// For servers: heads of longer messages than this peer's role ever sends are refused when they are announced.
    pub(crate) fn hearing(self, bounds: HeadBounds) -> Self {
        Self { assembly: Assembly::new(bounds.bytes), ..self }
    }

    /// For servers: a peer that has so many messages wait for the consumer, and sends another, breaks the protocol.
    pub(crate) fn asking_at_most(self, messages: usize) -> Self {
        Self { most_unheard: messages, ..self }
    }

    /// For servers: while more than these messages or bytes wait for the peer it is granted nothing, so that one that asks on
    /// without taking the answers ends by being silent. If both ends did this, each might wait for the other.
    pub(crate) fn holding_back(self, messages: usize, bytes: usize) -> Self {
        Self { holds_back_at: Some((messages, bytes)), ..self }
    }

    /// Queues a message whose size was checked.
    pub(crate) fn push(&mut self, message: Message) {
        self.outbox.push(message);
    }

    /// Messages and bytes that have not been handed to the socket.
    pub(crate) fn queued(&self) -> (usize, usize) {
        (self.outbox.messages(), self.outbox.bytes())
    }

    /// Queues a goodbye, which goes out before what is still queued.
    pub(crate) fn say_goodbye(&mut self, reason: &str) {
        self.control.push_back(Packet::Goodbye(reason.to_owned()));
    }

    /// Queues a ping; gives the number that its pong will bear.
    pub(crate) fn ping(&mut self, now: Moment) -> u64 {
        let number = self.pings.start(now);
        self.control.push_back(Packet::Ping(number));
        number
    }

    /// The highest number among the pongs received.
    pub(crate) fn last_pong(&self) -> u64 {
        self.pings.answered
    }

    /// Smoothed round trip; None before the first pong.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.pings.smoothed
    }

    /// The next packet to send, if there is one that may go.
    pub(crate) fn next_packet(&mut self, now: Moment) -> Option<Packet> {
        if let Some(packet) = self.control.pop_front() {
            return Some(packet);
        }
        let waits = |(messages, bytes)| self.outbox.messages() > messages || self.outbox.bytes() > bytes;
        if !self.holds_back_at.is_some_and(waits)
            && let Some(credit) = self.receive_credit.grant()
        {
            return Some(Packet::Credit(credit));
        }
        match self.outbox.next_piece(&mut self.send_credit) {
            Some(piece) => {
                self.stalled_since = None;
                Some(Packet::Data(piece))
            }
            None => {
                let waiting = self.outbox.messages() > 0;
                self.stalled_since = waiting.then(|| self.stalled_since.unwrap_or(now));
                None
            }
        }
    }

    /// The socket could not take a packet: it is full of what the peer doesn't read.
    pub(crate) fn blocked(&mut self, now: Moment) {
        self.stalled_since.get_or_insert(now);
    }

    /// Takes a packet from the peer.
    pub(crate) fn receive(&mut self, packet: Packet, now: Moment) -> Result<Received, SessionError> {
        self.last_heard = now;
        match packet {
            Packet::Data(piece) => {
                let (urgent, starts) = (piece.urgent, piece.lengths.is_some());
                if urgent {
                    self.receive_credit.received_urgent()?;
                } else {
                    let bytes = piece.parts.iter().map(bytes::Bytes::len).sum();
                    self.receive_credit.received_piece(starts, bytes)?;
                }
                let Some(message) = self.assembly.push(&piece)? else { return Ok(Received::Nothing) };
                if !urgent {
                    self.receive_credit.completed(message.size());
                    self.unheard += 1;
                    if self.unheard > self.most_unheard {
                        return Err(SessionError::Impatient(self.unheard));
                    }
                }
                Ok(Received::Message(message))
            }
            Packet::Credit(credit) => {
                self.send_credit.add(credit)?;
                Ok(Received::Nothing)
            }
            Packet::Ping(number) => {
                self.count_ping(now)?;
                self.control.push_back(Packet::Pong(number));
                Ok(Received::Nothing)
            }
            Packet::Pong(number) => {
                self.pings.finish(number, now);
                Ok(Received::Nothing)
            }
            Packet::Goodbye(reason) => Ok(Received::Goodbye(reason)),
            Packet::Hello(_) | Packet::ForeignHello { .. } | Packet::Welcome(_) | Packet::Refusal(_) => {
                Err(SessionError::OutOfPlace(packet.name()))
            }
        }
    }

    fn count_ping(&mut self, now: Moment) -> Result<(), SessionError> {
        let gap = self.pinged_every / PINGS_PER_INTERVAL;
        let until = self.pinged_until.max(now) + gap;
        if until > now + gap * PINGS_AT_ONCE {
            return Err(SessionError::Restless);
        }
        self.pinged_until = until;
        Ok(())
    }

    /// The consumer has taken a message of this size. Packets may be due afterwards.
    pub(crate) fn taken(&mut self, urgent: bool, size: usize) {
        if urgent {
            self.receive_credit.taken_urgent();
        } else {
            self.receive_credit.taken(size);
            self.unheard -= 1;
        }
    }

    /// Whether the peer is still there, given the interval of pings.
    pub(crate) fn check_silence(&self, now: Moment, interval: Duration) -> Result<(), Dead> {
        let silence = now.since(self.last_heard);
        if silence > interval * SILENT_INTERVALS { Err(Dead::Silent(silence)) } else { Ok(()) }
    }

    /// Whether the peer takes its messages. For servers: a link waits as long as its server is there.
    pub(crate) fn check_progress(&self, now: Moment) -> Result<(), Dead> {
        match self.stalled_since {
            Some(since) if now.since(since) > STALL => Err(Dead::Stalled(STALL)),
            Some(_) | None => Ok(()),
        }
    }
}

/// Numbers pings and measures how long their pongs take.
#[derive(Debug, Default)]
struct Pings {
    last: u64,
    sent: Moment,
    answered: u64,
    smoothed: Option<Duration>,
}

impl Pings {
    fn start(&mut self, now: Moment) -> u64 {
        self.last += 1;
        self.sent = now;
        self.last
    }

    /// Only the last ping is timed; the pong of an earlier one is known to have arrived, no more.
    fn finish(&mut self, number: u64, now: Moment) {
        if number > self.last || number <= self.answered {
            return;
        }
        self.answered = number;
        if number == self.last {
            let sample = now.since(self.sent);
            // As TCP does: an eighth of each new sample.
            self.smoothed = Some(self.smoothed.map_or(sample, |smoothed| (smoothed * 7 + sample) / 8));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{WAITING_BYTES, WAITING_MESSAGES, WINDOW_MESSAGES};

    const T0: Moment = Moment::from_nanos(1_000_000_000_000);

    /// Carries packets from one session to another until nothing is left; gives the messages.
    fn carry(from: &mut Session, to: &mut Session, now: Moment) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(packet) = from.next_packet(now) {
            if let Received::Message(message) = to.receive(packet, now).unwrap() {
                messages.push(message);
            }
        }
        messages
    }

    #[test]
    fn a_peer_whose_consumer_sleeps_is_stalled_until_it_wakes() {
        let (mut here, mut there) = (Session::new(T0), Session::new(T0));
        for _ in 0..=WINDOW_MESSAGES {
            here.push(Message::new("m", ""));
        }
        let messages = carry(&mut here, &mut there, T0);
        assert_eq!(messages.len(), WINDOW_MESSAGES as usize);
        let later = T0 + STALL + Duration::from_secs(1);
        assert_eq!(here.check_progress(later), Err(Dead::Stalled(STALL)));

        for message in messages {
            there.taken(false, message.size());
        }
        carry(&mut there, &mut here, later);

        assert_eq!(carry(&mut here, &mut there, later).len(), 1);
        assert_eq!(here.next_packet(later), None);
        assert_eq!(here.check_progress(later), Ok(()));
    }

    #[test]
    fn who_asks_on_without_waiting_for_any_answer_breaks_the_protocol() {
        let (mut server, mut client) = (Session::new(T0).asking_at_most(3), Session::new(T0));
        let mut ask = |server: &mut Session| {
            client.push(Message::new("question", ""));
            server.receive(client.next_packet(T0).unwrap(), T0)
        };
        for _ in 0..3 {
            assert!(ask(&mut server).is_ok());
        }
        server.taken(false, "question".len());
        assert!(ask(&mut server).is_ok());
        assert!(matches!(ask(&mut server), Err(SessionError::Impatient(4))));
    }

    #[test]
    fn who_takes_no_answers_is_granted_no_more_questions_until_it_does() {
        let (mut server, mut client) =
            (Session::new(T0).holding_back(WAITING_MESSAGES, WAITING_BYTES), Session::new(T0));
        for _ in 0..=WAITING_MESSAGES + WINDOW_MESSAGES as usize {
            server.push(Message::new("answer", ""));
        }
        for _ in 0..WINDOW_MESSAGES {
            client.push(Message::new("question", ""));
        }
        carry(&mut client, &mut server, T0).iter().for_each(|question| server.taken(false, question.size()));
        client.push(Message::new("question", ""));
        let answers = carry(&mut server, &mut client, T0);
        assert_eq!((answers.len(), client.next_packet(T0)), (WINDOW_MESSAGES as usize, None));

        answers.iter().for_each(|answer| client.taken(false, answer.size()));
        carry(&mut client, &mut server, T0);
        carry(&mut server, &mut client, T0);

        assert_eq!(carry(&mut client, &mut server, T0).len(), 1);
    }

    #[test]
    fn who_pings_without_a_pause_breaks_the_protocol_and_not_after_one() {
        let mut session = Session::new(T0).pinged_every(Duration::from_secs(4));
        let mut ping = |now| session.receive(Packet::Ping(1), now);
        (0..PINGS_AT_ONCE).for_each(|_| assert!(ping(T0).is_ok()));
        assert!(matches!(ping(T0), Err(SessionError::Restless)));
        let mut now = T0;
        for _ in 0..1_000 {
            now = now + Duration::from_secs(1);
            assert!(ping(now).is_ok());
            assert!(matches!(ping(now), Err(SessionError::Restless)));
        }
        now = now + Duration::from_secs(4 * u64::from(PINGS_AT_ONCE));
        (0..PINGS_AT_ONCE).for_each(|_| assert!(ping(now).is_ok()));
        assert!(matches!(ping(now), Err(SessionError::Restless)));
    }

    #[test]
    fn silence_ends_a_session_after_four_intervals() {
        let session = Session::new(T0);
        assert_eq!(session.check_silence(T0 + PING_INTERVAL * 4, PING_INTERVAL), Ok(()));
        let late = PING_INTERVAL * 4 + Duration::from_millis(1);
        assert_eq!(session.check_silence(T0 + late, PING_INTERVAL), Err(Dead::Silent(late)));
    }

    #[test]
    fn round_trips_are_smoothed() {
        let mut session = Session::new(T0);
        for millis in [80, 160] {
            let number = session.ping(T0);
            session.receive(Packet::Pong(number), T0 + Duration::from_millis(millis)).unwrap();
        }
        assert_eq!(session.round_trip(), Some(Duration::from_millis(90)));
        assert_eq!(session.last_pong(), 2);
        session.receive(Packet::Pong(u64::MAX), T0).unwrap();
        assert_eq!(session.last_pong(), 2, "a pong to no ping counts for nothing");
    }

    #[test]
    fn a_second_hello_is_out_of_place() {
        let packet = Packet::ForeignHello { protocol: 9 };
        assert!(matches!(Session::new(T0).receive(packet, T0), Err(SessionError::OutOfPlace("HELLO"))));
    }
}
