//! Packets: what one ZeroMQ message holds. A header frame, hand-coded, then data frames.
//!
//! | kind | header after the kind's byte | data frames |
//! |---|---|---|
//! | 1 HELLO | version (2) | role, id, host as MessagePack |
//! | 2 WELCOME | version (2), instance (8), ping interval in ms (4) | |
//! | 3 REFUSAL | kind (1) | text |
//! | 4 DATA | flags (1: first piece, 2: urgent); in a first piece lengths of head (4) and body (8) | the bytes |
//! | 5 CREDIT | bytes (8), messages (4), urgent messages (4) | |
//! | 6 PING, 7 PONG | number (8) | |
//! | 8 GOODBYE | | text |
//!
//! Integers are big-endian. HELLO's version and all of REFUSAL stay as they are in every version.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::chunks::{Lengths, Piece};
use super::credit::Credit;
use super::hello::{Hello, Refusal, RefusalKind, Role, Welcome};
use crate::limits::FAREWELL_BYTES;

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REFUSAL: u8 = 3;
const DATA: u8 = 4;
const CREDIT: u8 = 5;
const PING: u8 = 6;
const PONG: u8 = 7;
const GOODBYE: u8 = 8;

const FLAG_FIRST: u8 = 1;
const FLAG_URGENT: u8 = 2;

/// One packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Packet {
    /// Client to server, first. The server answers with WELCOME or REFUSAL.
    Hello(Hello),
    /// A HELLO of another version, whose other contents can't be known.
    ForeignHello { protocol: u16 },
    /// Server to client, answer to HELLO.
    Welcome(Welcome),
    /// Server to client, at any time: it hangs up, and why. The client hangs up too.
    Refusal(Refusal),
    /// Either way: a piece of a message.
    Data(Piece),
    /// Either way: the sender of this may be sent so much more.
    Credit(Credit),
    /// Client to server, each interval and to learn that all before has arrived.
    Ping(u64),
    /// Server to client, answer to PING with the same number.
    Pong(u64),
    /// Either way, last: the sender of this leaves of its own accord. The receiver hangs up.
    Goodbye(String),
}

/// A ZeroMQ message that is no packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed {0} packet")]
pub(crate) struct PacketError(&'static str);

impl Packet {
    /// The packet's frames.
    pub(crate) fn encode(&self) -> Vec<Bytes> {
        let mut header = BytesMut::with_capacity(20);
        let mut data = Vec::new();
        match self {
            Self::Hello(hello) => {
                header.put_u8(HELLO);
                header.put_u16(hello.protocol);
                let body = rmp_serde::to_vec(&(hello.role, &hello.id, &hello.host));
                data.push(body.expect("a role and two strings can be encoded").into());
            }
            Self::ForeignHello { protocol } => {
                header.put_u8(HELLO);
                header.put_u16(*protocol);
            }
            Self::Welcome(welcome) => {
                header.put_u8(WELCOME);
                header.put_u16(welcome.protocol);
                header.put_u64(welcome.instance);
                header.put_u32(u32::try_from(welcome.heartbeat.as_millis()).unwrap_or(u32::MAX));
            }
            Self::Refusal(refusal) => {
                header.put_u8(REFUSAL);
                header.put_u8(refusal.kind.to_byte());
                data.push(cut_text(&refusal.message));
            }
            Self::Data(piece) => {
                header.put_u8(DATA);
                let first = if piece.lengths.is_some() { FLAG_FIRST } else { 0 };
                header.put_u8(first | if piece.urgent { FLAG_URGENT } else { 0 });
                if let Some(lengths) = piece.lengths {
                    header.put_u32(lengths.head);
                    header.put_u64(lengths.body);
                }
                data.clone_from(&piece.parts);
            }
            Self::Credit(credit) => {
                header.put_u8(CREDIT);
                header.put_u64(credit.bytes);
                header.put_u32(credit.messages);
                header.put_u32(credit.urgent);
            }
            Self::Ping(number) => {
                header.put_u8(PING);
                header.put_u64(*number);
            }
            Self::Pong(number) => {
                header.put_u8(PONG);
                header.put_u64(*number);
            }
            Self::Goodbye(reason) => {
                header.put_u8(GOODBYE);
                data.push(cut_text(reason));
            }
        }
        let mut frames = Vec::with_capacity(data.len() + 2);
        frames.push(header.freeze());
        frames.append(&mut data);
        frames
    }

    /// Reads frames as a packet. The parts of DATA share their buffer.
    pub(crate) fn decode(frames: impl IntoIterator<Item = Bytes>) -> Result<Self, PacketError> {
        let mut data = frames.into_iter();
        let mut header = data.next().ok_or(PacketError("empty"))?;
        let kind = header.try_get_u8().map_err(|_| PacketError("empty"))?;
        let (packet, name) = match kind {
            HELLO => (read_hello(&mut header, data.next()), "HELLO"),
            WELCOME => (read_welcome(&mut header), "WELCOME"),
            REFUSAL => (read_refusal(&mut header, data.next()), "REFUSAL"),
            DATA => (read_data(&mut header, data.by_ref().collect()), "DATA"),
            CREDIT => (read_credit(&mut header), "CREDIT"),
            PING => (header.try_get_u64().ok().map(Self::Ping), "PING"),
            PONG => (header.try_get_u64().ok().map(Self::Pong), "PONG"),
            GOODBYE => (data.next().map(|text| Self::Goodbye(read_text(&text))), "GOODBYE"),
            _ => (None, "unknown"),
        };
        let packet = packet.ok_or(PacketError(name))?;
        let foreign = matches!(packet, Self::ForeignHello { .. });
        if !foreign && (!header.is_empty() || data.next().is_some()) {
            return Err(PacketError(name));
        }
        Ok(packet)
    }

    /// Name of its kind, for logs and errors.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) | Self::ForeignHello { .. } => "HELLO",
            Self::Welcome(_) => "WELCOME",
            Self::Refusal(_) => "REFUSAL",
            Self::Data(_) => "DATA",
            Self::Credit(_) => "CREDIT",
            Self::Ping(_) => "PING",
            Self::Pong(_) => "PONG",
            Self::Goodbye(_) => "GOODBYE",
        }
    }
}

fn read_hello(header: &mut Bytes, body: Option<Bytes>) -> Option<Packet> {
    let protocol = header.try_get_u16().ok()?;
    if protocol != crate::protocol::VERSION {
        return Some(Packet::ForeignHello { protocol });
    }
    let (role, id, host): (Role, String, String) = rmp_serde::from_slice(&body?).ok()?;
    let hello = Hello { protocol, role, id, host };
    hello.is_within_bounds().then_some(Packet::Hello(hello))
}

fn read_welcome(header: &mut Bytes) -> Option<Packet> {
    let protocol = header.try_get_u16().ok()?;
    let instance = header.try_get_u64().ok()?;
    let heartbeat = Duration::from_millis(header.try_get_u32().ok()?.into());
    Some(Packet::Welcome(Welcome { protocol, instance, heartbeat }))
}

fn read_refusal(header: &mut Bytes, text: Option<Bytes>) -> Option<Packet> {
    let kind = RefusalKind::from_byte(header.try_get_u8().ok()?)?;
    Some(Packet::Refusal(Refusal { kind, message: read_text(&text?) }))
}

fn read_data(header: &mut Bytes, parts: Vec<Bytes>) -> Option<Packet> {
    let flags = header.try_get_u8().ok()?;
    if flags & !(FLAG_FIRST | FLAG_URGENT) != 0 {
        return None;
    }
    let lengths = if flags & FLAG_FIRST == 0 {
        None
    } else {
        Some(Lengths { head: header.try_get_u32().ok()?, body: header.try_get_u64().ok()? })
    };
    Some(Packet::Data(Piece { urgent: flags & FLAG_URGENT != 0, lengths, parts }))
}

fn read_credit(header: &mut Bytes) -> Option<Packet> {
    let bytes = header.try_get_u64().ok()?;
    let messages = header.try_get_u32().ok()?;
    let urgent = header.try_get_u32().ok()?;
    Some(Packet::Credit(Credit { bytes, messages, urgent }))
}

/// Text that ends at a character's start within the bound.
fn cut_text(text: &str) -> Bytes {
    let mut end = text.len().min(FAREWELL_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Bytes::copy_from_slice(&text.as_bytes()[..end])
}

/// A peer's text, safe to show on a terminal: bounded, without control characters.
fn read_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(FAREWELL_BYTES)])
        .chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_packet_survives_the_wire() {
        let piece =
            |urgent, lengths| Piece { urgent, lengths, parts: vec![Bytes::from_static(b"ab"), "c".into()] };
        let packets = [
            Packet::Hello(Hello::new(Role::Worker, "w", "host")),
            Packet::ForeignHello { protocol: 99 },
            Packet::Welcome(Welcome { protocol: 1, instance: u64::MAX, heartbeat: Duration::from_secs(2) }),
            Packet::Refusal(Refusal::new(RefusalKind::Full, "no room")),
            Packet::Data(piece(false, None)),
            Packet::Data(piece(true, Some(Lengths { head: 1, body: 2 }))),
            Packet::Credit(Credit { bytes: 1, messages: 2, urgent: 3 }),
            Packet::Ping(4),
            Packet::Pong(5),
            Packet::Goodbye("bye".into()),
        ];
        for packet in packets {
            assert_eq!(Packet::decode(packet.encode()).as_ref(), Ok(&packet), "{}", packet.name());
        }
    }

    #[test]
    fn what_other_versions_must_understand_keeps_its_bytes() {
        let refusal = Packet::Refusal(Refusal::new(RefusalKind::Version, "no")).encode();
        assert_eq!(refusal, [&b"\x03\x01"[..], b"no"]);
        let mut hello = Hello::new(Role::Client, "a", "b");
        hello.protocol = 0x0102;
        let hello = Packet::Hello(hello).encode();
        assert_eq!(hello, [&b"\x01\x01\x02"[..], b"\x93\xa6client\xa1a\xa1b"]);
        assert_eq!(Packet::decode(hello), Ok(Packet::ForeignHello { protocol: 0x0102 }));
    }

    #[test]
    fn text_from_a_peer_is_cut_and_shows_no_control_characters() {
        let refusal =
            Packet::Refusal(Refusal::new(RefusalKind::Full, format!("\x1b[2J{}", "ä".repeat(2_000))));
        let Ok(Packet::Refusal(read)) = Packet::decode(refusal.encode()) else { panic!("no refusal") };
        assert!(read.message.starts_with(" [2Jä") && read.message.len() <= FAREWELL_BYTES);
    }

    #[test]
    fn an_overlong_id_is_no_hello() {
        let hello = Packet::Hello(Hello::new(Role::Client, "x".repeat(65), ""));
        assert_eq!(Packet::decode(hello.encode()), Err(PacketError("HELLO")));
    }

    proptest! {
        #[test]
        fn noise_never_panics(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..5)) {
            let _ = Packet::decode(frames.into_iter().map(Bytes::from));
        }
    }
}
