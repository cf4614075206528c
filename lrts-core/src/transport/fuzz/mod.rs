#[cfg(test)]
pub(crate) mod seeds;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::io::{AsyncRead, ReadBuf};

use super::guard::{FrameGuard, GuardError};
use super::packet::Packet;
use super::session::{Received, Session};
use super::splice::{End, handshake};
use super::{ConnectionId, Message};
use crate::clock::Moment;
use crate::fuzz::Input;
use crate::limits::{
    FAREWELL_BYTES, PINGS_AT_ONCE, WINDOW_BYTES, WINDOW_MESSAGES, WINDOW_URGENT, WIRE_FRAMES,
    WIRE_HELLO_BYTES, WIRE_MESSAGE_BYTES,
};

const NOW: Moment = Moment::from_nanos(1 << 40);

/// Answers to as many pings as there may be at one moment, and a grant of credit.
const OWED_PACKETS: usize = PINGS_AT_ONCE as usize + 1;

/// All that a peer sends over the network: two bytes that say how it is read, then the stream.
pub fn wire(bytes: &[u8]) {
    wire_passed(bytes);
}

/// As [`wire`]. Gives what is handed on to the ZeroMQ socket.
///
/// # Panics
///
/// If it matters where the stream is cut, or if something else passes than what is allowed.
pub fn wire_passed(bytes: &[u8]) -> Vec<u8> {
    let mut input = Input::new(bytes);
    let kind = input.byte();
    let cut = usize::from(input.byte()) + 1;
    let stream = input.rest();
    let whole = Passed::of(stream, stream.len().max(1), kind);
    let in_parts = Passed::of(stream, cut, kind);
    assert_eq!(whole.verdict, in_parts.verdict);
    assert_eq!(whole.handshake, in_parts.handshake);
    if let Some(frames) = in_parts.frames {
        let again = Passed::of(&in_parts.handshake, 1, kind);
        assert!(again.frames.is_some() && again.handshake == in_parts.handshake, "it is what it asks for");
        let behind = &stream[stream.len() - in_parts.behind..];
        assert_eq!(in_parts.verdict, verdict(behind, is_welcome(kind)).err());
        return [in_parts.handshake, frames].concat();
    }
    in_parts.handshake
}

/// Whether the peer has been welcomed before its first message.
fn is_welcome(kind: u8) -> bool {
    kind & 2 == 0
}

/// What came of a stream.
struct Passed {
    /// What was handed on of the handshake.
    handshake: Vec<u8>,
    /// What was handed on behind it, if it is complete.
    frames: Option<Vec<u8>>,
    /// How much of the stream came behind the handshake.
    behind: usize,
    /// Why the rest wasn't handed on.
    verdict: Option<GuardError>,
}

impl Passed {
    fn of(stream: &[u8], cut: usize, kind: u8) -> Self {
        let (peer, identity) = match kind & 1 {
            0 => ("DEALER", Some(ConnectionId(7))),
            _ => ("ROUTER", None),
        };
        let mut network = Cut { rest: stream, cut };
        let mut passed = Self { handshake: Vec::new(), frames: None, behind: 0, verdict: None };
        let shaken = handshake(&mut network, &mut passed.handshake, peer, identity);
        match shaken.now_or_never().expect("memory never makes anybody wait") {
            Ok(()) => {}
            Err(End::Violation(error)) => {
                passed.verdict = Some(error);
                return passed;
            }
            Err(_) => return passed,
        }
        passed.behind = network.rest.len();
        let mut guard = FrameGuard::new();
        if is_welcome(kind) {
            guard.welcome();
        }
        let frames = passed.frames.insert(Vec::new());
        for part in network.rest.chunks(cut) {
            if let Err(error) = guard.check(part) {
                passed.verdict = Some(error);
                break;
            }
            frames.extend_from_slice(part);
        }
        passed
    }
}

/// What the guard should say of frames, if it could see all of them at once.
fn verdict(mut stream: &[u8], welcome: bool) -> Result<(), GuardError> {
    let (mut frames, mut bytes) = (0, 0_u64);
    while let Some((&flags, rest)) = stream.split_first() {
        frames += 1;
        if flags > 3 {
            return Err(GuardError::Flags);
        }
        if frames > WIRE_FRAMES {
            return Err(GuardError::Frames);
        }
        let Some((length, rest)) = rest.split_at_checked(if flags & 2 == 0 { 1 } else { 8 }) else { break };
        let length = length.iter().fold(0, |length, &byte| length << 8 | u64::from(byte));
        bytes = bytes.saturating_add(length);
        if bytes > WIRE_MESSAGE_BYTES {
            return Err(GuardError::Length);
        }
        if bytes > WIRE_HELLO_BYTES && !welcome {
            return Err(GuardError::Hello);
        }
        stream = rest.get(length as usize..).unwrap_or_default();
        if flags & 1 == 0 {
            (frames, bytes) = (0, 0);
        }
    }
    Ok(())
}

/// A network that brings a few bytes at a time.
struct Cut<'a> {
    rest: &'a [u8],
    cut: usize,
}

impl AsyncRead for Cut<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.cut.min(buffer.remaining()).min(self.rest.len());
        let (now, later) = self.rest.split_at(length);
        buffer.put_slice(now);
        self.rest = later;
        Poll::Ready(Ok(()))
    }
}

/// One ZeroMQ message as a packet: its frames as parts.
pub fn packet(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut frames = Vec::new();
    while !input.is_empty() && frames.len() < WIRE_FRAMES {
        frames.push(Bytes::copy_from_slice(input.part()));
    }
    let Ok(packet) = Packet::decode(frames) else { return };
    if let Packet::Goodbye(text) = &packet {
        assert!(text.chars().count() <= FAREWELL_BYTES && !text.chars().any(char::is_control));
    }
    // Text that was no UTF-8 is longer when it is read than what travels.
    let sent = Packet::decode(packet.encode()).expect("what was encoded is decoded");
    assert_eq!(sent.name(), packet.name());
    assert_eq!(Packet::decode(sent.encode()).as_ref(), Ok(&sent));
}

/// A connection: packets of the peer, and what this side does meanwhile.
pub fn session(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut session = Session::new(NOW);
    let mut held = Held::default();
    let (mut pings, mut pushed) = (0, 0);
    while !input.is_empty() {
        match input.byte() {
            0 => {
                session.ping(NOW);
                pings += 1;
            }
            1 => {
                session.push(Message::new(Bytes::copy_from_slice(input.part()), ""));
                pushed += 1;
            }
            2 => {
                let packets = std::iter::from_fn(|| session.next_packet(NOW)).count();
                assert!(packets <= OWED_PACKETS + pings + pushed);
                (pings, pushed) = (0, session.queued().0);
            }
            3 => held.take(&mut session, usize::from(input.byte())),
            repeats => {
                let Some(packet) = sent_packet(&mut input) else { return };
                for _ in 3..repeats {
                    match session.receive(packet.clone(), NOW) {
                        Ok(Received::Message(message)) => held.add(&message),
                        Ok(Received::Goodbye(_) | Received::Nothing) => {}
                        Err(_) => return,
                    }
                    held.check();
                }
            }
        }
    }
}

/// A packet that the guard lets pass. Its frames are parts repeated, so that small inputs reach large bounds.
fn sent_packet(input: &mut Input<'_>) -> Option<Packet> {
    let mut frames = vec![Bytes::copy_from_slice(input.part())];
    for _ in 0..usize::from(input.byte()) % WIRE_FRAMES {
        let (part, times) = (input.part(), usize::from(input.byte()) + 1);
        if part.len() * times > WIRE_MESSAGE_BYTES as usize {
            return None;
        }
        frames.push(part.repeat(times).into());
    }
    let size: usize = frames.iter().map(Bytes::len).sum();
    if size as u64 > WIRE_MESSAGE_BYTES {
        return None;
    }
    Packet::decode(frames).ok()
}

/// Messages that the consumer hasn't taken.
#[derive(Default)]
struct Held {
    normal: VecDeque<usize>,
    normal_bytes: usize,
    largest: usize,
    urgent: u32,
}

impl Held {
    fn add(&mut self, message: &Message) {
        if message.urgent {
            self.urgent += 1;
        } else {
            self.normal.push_back(message.size());
            self.normal_bytes += message.size();
            self.largest = self.largest.max(message.size());
        }
    }

    fn take(&mut self, session: &mut Session, count: usize) {
        for size in self.normal.drain(..count.min(self.normal.len())) {
            self.normal_bytes -= size;
            session.taken(false, size);
        }
        for _ in 0..self.urgent {
            session.taken(true, 0);
        }
        self.urgent = 0;
    }

    /// What a peer can make this side hold, see `credit`.
    fn check(&self) {
        assert!(self.normal_bytes <= 2 * WINDOW_BYTES as usize + self.largest);
        assert!(self.normal.len() <= WINDOW_MESSAGES as usize);
        assert!(self.urgent <= WINDOW_URGENT);
    }
}
