//! What corpora of the transport begin with.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use zeromq::{DealerSocket, Socket};

use super::NOW;
use crate::fuzz::Script;
use crate::limits::{CHUNK_BYTES, WIRE_FRAMES};
use crate::transport::chunks::{Lengths, Piece};
use crate::transport::credit::Credit;
use crate::transport::guard::{GREETING_BYTES, rewrite_ready};
use crate::transport::hello::{Hello, Refusal, RefusalKind, Role, Welcome};
use crate::transport::packet::Packet;
use crate::transport::session::Session;
use crate::transport::{Message, Sent, send_now};

/// The last packet of [`traffic`], by which its end is known.
const LAST: &str = "that is all";

fn piece(urgent: bool, lengths: Option<Lengths>, part: Vec<u8>) -> Packet {
    Packet::Data(Piece { urgent, lengths, parts: vec![part.into()] })
}

/// One packet of each kind.
pub(crate) fn packets() -> Vec<Packet> {
    vec![
        Packet::Hello(Hello::new(Role::Worker, "0123456789abcdef", "node-1")),
        Packet::Hello(Hello::new(Role::Client, "nightly", "node-2")),
        Packet::ForeignHello { protocol: 99 },
        Packet::Welcome(Welcome { protocol: 1, instance: 77, heartbeat: Duration::from_secs(2) }),
        Packet::Refusal(Refusal::new(RefusalKind::Superseded, "a newer one is here")),
        piece(false, Some(Lengths { head: 3, body: 2 }), b"abcde".to_vec()),
        piece(false, Some(Lengths { head: 3, body: 20 }), b"abcde".to_vec()),
        piece(false, None, vec![7; 20]),
        piece(true, Some(Lengths { head: 1, body: 0 }), vec![1]),
        piece(false, Some(Lengths { head: u32::MAX, body: u64::MAX }), vec![]),
        Packet::Credit(Credit { bytes: 1 << 20, messages: 1_024, urgent: 16 }),
        Packet::Ping(4),
        Packet::Pong(4),
        Packet::Goodbye(LAST.into()),
    ]
}

pub(crate) fn packet() -> Vec<Vec<u8>> {
    let script =
        |packet: Packet| packet.encode().iter().fold(Script::new(), |script, frame| script.part(frame));
    packets().into_iter().map(|packet| script(packet).bytes()).collect()
}

/// A packet that a session receives so many times.
fn received(script: Script, packet: &Packet, times: u8) -> Script {
    let frames = packet.encode();
    let script = script.byte(3 + times).part(&frames[0]).byte(u8::try_from(frames.len() - 1).unwrap());
    frames[1..].iter().fold(script, |script, frame| script.part(frame).byte(0))
}

pub(crate) fn session() -> Vec<Vec<u8>> {
    let mut scripts: Vec<Vec<u8>> =
        packets().iter().map(|packet| received(Script::new(), packet, 2).byte(2).bytes()).collect();
    // Some messages as another session sends them.
    let mut peer = Session::new(NOW);
    peer.push(Message::new("head", vec![5; 40_000]));
    peer.push(Message::new("second", ""));
    peer.push(Message::new("beat", "").urgent());
    peer.ping(NOW);
    let packets = std::iter::from_fn(|| peer.next_packet(NOW));
    let script = packets.fold(Script::new(), |script, packet| received(script, &packet, 1));
    scripts.push(script.byte(3).byte(9).byte(2).bytes());
    // Windows used up, and given back or not.
    let large = Lengths { head: 0, body: CHUNK_BYTES as u64 / 2 };
    let header = piece(false, Some(large), vec![]).encode();
    let filled = |script: Script, times: u8| {
        script.byte(3 + times).part(&header[0]).byte(2).part(&[9; 1_024]).byte(63).part(&[9; 512]).byte(127)
    };
    scripts.push(filled(Script::new(), 40).bytes());
    scripts.push(filled(filled(Script::new(), 30).byte(3).byte(30).byte(2), 40).bytes());
    let urgent = piece(true, Some(Lengths { head: 1, body: 0 }), vec![1]);
    scripts.push(received(received(Script::new(), &urgent, 64).byte(3).byte(0).byte(2), &urgent, 65).bytes());
    let small = piece(false, Some(Lengths { head: 1, body: 0 }), vec![1]);
    scripts.push((0..20).fold(Script::new(), |script, _| received(script, &small, 250)).bytes());
    scripts.push(Script::new().byte(0).byte(1).part(b"mine").byte(2).bytes());
    scripts
}

pub(crate) async fn wire() -> Vec<Vec<u8>> {
    let traffic = traffic().await;
    let input = |kind, cut, stream: &[u8]| Script::new().byte(kind).byte(cut).rest(stream).bytes();
    let ready_end = GREETING_BYTES + 2 + usize::from(traffic[GREETING_BYTES + 1]);
    let behind = |frames: &[u8]| input(0, 6, &[&traffic[..ready_end], frames].concat());
    let mut router = greeting();
    router.extend(ready("ROUTER"));
    let mut curve = greeting();
    curve[12..17].copy_from_slice(b"CURVE");
    vec![
        input(0, 255, &traffic),
        input(0, 0, &traffic),
        input(0, 16, &traffic[..ready_end]),
        input(0, 16, &traffic[..GREETING_BYTES + 1]),
        input(0, 16, &router),
        input(1, 16, &router),
        input(0, 16, &curve),
        input(0, 16, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
        input(0, 16, &[&greeting()[..], &[6, 0, 0, 0, 0, 0, 0, 4, 1]].concat()),
        input(0, 16, &[&greeting()[..], &[6, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]].concat()),
        behind(&[2, 0, 0, 0x80, 0, 0, 0, 0, 0]),
        behind(&[2, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        behind(&[1, 0].repeat(WIRE_FRAMES + 1)),
        behind(&[1, 0].repeat(WIRE_FRAMES - 1)),
        behind(&[4, 5, 4, b'P', b'I', b'N', b'G']),
        behind(&[0x80, 0]),
        behind(&[3, 0, 0, 0, 0, 0, 0, 0, 1, 9, 0, 2, 8, 7, 0, 0]),
        behind(&[0, 0, 2, 0, 0, 0, 0, 0, 4, 0, 1]),
        input(2, 255, &traffic),
        input(2, 255, &[&traffic[..ready_end], &[0, 0, 2, 0, 0, 0, 0, 0, 0, 4, 0]].concat()),
        input(2, 255, &[&traffic[..ready_end], &[0, 0, 3, 0, 0, 0, 0, 0, 0, 4, 1]].concat()),
    ]
}

fn greeting() -> Vec<u8> {
    let mut greeting = vec![0; GREETING_BYTES];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

fn ready(kind: &str) -> Vec<u8> {
    let length = u8::try_from(kind.len()).unwrap();
    let body = [&b"\x05READY\x0bSocket-Type\0\0\0"[..], &[length], kind.as_bytes()].concat();
    rewrite_ready(&body, kind, None).unwrap()
}

/// What a DEALER really sends: its handshake, then some packets.
async fn traffic() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let router = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&[greeting(), ready("ROUTER")].concat()).await.unwrap();
        let mut traffic = Vec::new();
        while !traffic.ends_with(LAST.as_bytes()) {
            assert_ne!(stream.read_buf(&mut traffic).await.unwrap(), 0, "the DEALER has hung up");
        }
        traffic
    });
    let mut dealer = DealerSocket::new();
    dealer.connect(&format!("ipc://{}", path.display())).await.unwrap();
    for packet in packets() {
        assert!(matches!(send_now(&mut dealer, None, &packet), Sent::Yes));
    }
    tokio::time::timeout(Duration::from_secs(60), router).await.unwrap().unwrap()
}
