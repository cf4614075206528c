//! An attacker's end of a connection: TCP, TLS, ZMTP and the packets of lrts, each step apart, each byte to choose.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lrts_core::keys::{KeySource, role_word};
use lrts_core::limits::{CHUNK_BYTES, HEAD_BYTES, WINDOW_BYTES, WINDOW_MESSAGES, WINDOW_URGENT};
use lrts_core::transport::{RefusalKind, Role};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use serde::de::DeserializeOwned;

use crate::support::SOON;

/// Flags of ZMTP's frames.
pub(crate) const MORE: u8 = 1;
pub(crate) const LONG: u8 = 2;
pub(crate) const COMMAND: u8 = 4;

/// Kinds of packets.
pub(crate) const HELLO: u8 = 1;
pub(crate) const WELCOME: u8 = 2;
pub(crate) const REFUSAL: u8 = 3;
pub(crate) const DATA: u8 = 4;
pub(crate) const CREDIT: u8 = 5;
pub(crate) const GOODBYE: u8 = 8;

/// Flags of DATA.
const FIRST: u8 = 1;
const URGENT: u8 = 2;

/// How long an attacker waits for credit that it isn't owed.
const PATIENCE: Duration = Duration::from_secs(3);

/// Kinds of REFUSAL, from 1.
const KINDS: [RefusalKind; 9] = [
    RefusalKind::Version,
    RefusalKind::Role,
    RefusalKind::Full,
    RefusalKind::ShuttingDown,
    RefusalKind::Superseded,
    RefusalKind::Protocol,
    RefusalKind::Keys,
    RefusalKind::Owner,
    RefusalKind::Limit,
];

/// How far into a server an attacker has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Stage {
    /// TCP.
    Connected,
    /// TLS; on a server without keys the same.
    Secured,
    /// ZMTP's handshake.
    Greeted,
    /// Its HELLO was welcomed.
    Joined,
}

/// A server to attack.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: String,
    pub(crate) role: Role,
    /// Where the attacker's keys are; none for a server without.
    pub(crate) keys: Option<PathBuf>,
    /// The address of this machine from which attackers come who go further than TCP. Else each has its own: how one fares is no
    /// matter of what others did before it.
    pub(crate) from: Option<IpAddr>,
}

impl Target {
    /// A connection on which nothing was said.
    pub(crate) fn connect(&self) -> Attacker {
        Attacker::new(TcpStream::connect(&self.address).expect("the server listens"))
    }

    /// The same from another address of this machine.
    pub(crate) fn connect_from(&self, from: IpAddr) -> io::Result<Attacker> {
        let to: SocketAddr = self.address.parse().expect("an address and a port");
        let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // The port is chosen when it connects: there are more pairs of ports than ports.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
        bind(fd, &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
        connect(fd, &SockaddrStorage::from(to))?;
        Ok(Attacker::new(TcpStream::from(socket)))
    }

    /// A connection that has come to this stage with the key of this role.
    pub(crate) fn at(&self, stage: Stage, role: Role) -> Attacker {
        self.enter(stage, role).unwrap_or_else(|error| panic!("{stage:?} as {role}: {error}"))
    }

    /// The same under attack, where it may fail.
    pub(crate) fn enter(&self, stage: Stage, role: Role) -> io::Result<Attacker> {
        let mut attacker = self.connect_from(self.from.unwrap_or_else(any_address))?;
        if let (true, Some(keys)) = (stage >= Stage::Secured, &self.keys) {
            attacker = attacker.secure(&key(keys, role), self.role)?;
        }
        if stage >= Stage::Greeted {
            attacker.greet("DEALER")?;
        }
        if stage >= Stage::Joined {
            attacker.join(role, "attacker")?;
        }
        Ok(attacker)
    }
}

/// One of the 16 million that this machine has.
fn any_address() -> IpAddr {
    [127, fastrand::u8(1..255), fastrand::u8(..), fastrand::u8(1..255)].into()
}

/// What TLS says with the key of a role from a keys directory, or with a key file.
pub(crate) fn key(path: &Path, role: Role) -> Arc<ClientConfig> {
    KeySource::new(path, role).current().expect("the key can be used").client()
}

/// What a client of TLS says first to a server of this role.
pub(crate) fn client_hello(keys: &Path, role: Role, server: Role) -> Vec<u8> {
    let mut tls = ClientConnection::new(key(keys, role), server_name(server)).expect("a client with a key");
    let mut said = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut said).expect("a buffer takes everything");
    }
    said
}

/// The name in the certificates of servers of this role.
fn server_name(role: Role) -> ServerName<'static> {
    ServerName::try_from(format!("{}.lrts.internal", role_word(role))).expect("a role's name is a host's")
}

/// What the other side says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Heard {
    Welcome,
    Refusal {
        kind: RefusalKind,
        text: String,
    },
    Message {
        head: Vec<u8>,
        body: Vec<u8>,
    },
    /// Credit, pings and the like.
    Other,
}

/// What one side may still send: bytes and messages, and urgent messages.
#[derive(Clone, Copy)]
struct Credit {
    bytes: u64,
    messages: u64,
    urgent: u64,
}

/// One connection of an attacker. It takes what the other side says, and never grants more: what the other side has for it
/// beyond its first credit must wait there.
pub(crate) struct Attacker {
    stream: Stream,
    /// What it may still send.
    credit: Credit,
    /// The message that is arriving: lengths of head and body, and what has come.
    arriving: Option<(usize, usize, Vec<u8>)>,
    /// Why it was sent away, if it heard of that while it spoke.
    refused: Option<(RefusalKind, String)>,
}

enum Stream {
    Plain(TcpStream),
    Client(Box<StreamOwned<ClientConnection, TcpStream>>),
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Attacker {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(SOON)).expect("a socket");
        stream.set_write_timeout(Some(SOON)).expect("a socket");
        let credit =
            Credit { bytes: WINDOW_BYTES, messages: WINDOW_MESSAGES.into(), urgent: WINDOW_URGENT.into() };
        Self { stream: Stream::Plain(stream), credit, arriving: None, refused: None }
    }

    /// TLS as the client of a server of this role.
    pub(crate) fn secure(self, key: &Arc<ClientConfig>, server: Role) -> io::Result<Self> {
        let Stream::Plain(mut stream) = self.stream else { panic!("TLS is there already") };
        let mut tls = ClientConnection::new(key.clone(), server_name(server)).map_err(io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        let stream = Stream::Client(Box::new(StreamOwned::new(tls, stream)));
        Ok(Self { stream, credit: self.credit, arriving: None, refused: None })
    }

    /// TLS as a server.
    pub(crate) fn secure_as_server(self, key: &Arc<ServerConfig>) -> io::Result<Self> {
        let Stream::Plain(mut stream) = self.stream else { panic!("TLS is there already") };
        let mut tls = ServerConnection::new(key.clone()).map_err(io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        let stream = Stream::Server(Box::new(StreamOwned::new(tls, stream)));
        Ok(Self { stream, credit: self.credit, arriving: None, refused: None })
    }

    /// Both sides' greeting and READY, this one as a socket of this type.
    pub(crate) fn greet(&mut self, socket_type: &str) -> io::Result<()> {
        self.write(&greeting())?;
        self.write(&ready(socket_type))?;
        self.read(64)?;
        let [flags, length] = self.read(2)?[..] else { unreachable!("as long as asked for") };
        assert_eq!(flags, COMMAND, "READY follows a greeting");
        self.read(length.into()).map(|_| ())
    }

    /// Says hello and is welcomed.
    pub(crate) fn join(&mut self, role: Role, id: &str) -> io::Result<()> {
        match self.hello(role, id)? {
            Heard::Welcome => Ok(()),
            heard @ (Heard::Refusal { .. } | Heard::Message { .. } | Heard::Other) => {
                Err(io::Error::other(format!("not welcome: {heard:?}")))
            }
        }
    }

    /// Says hello; what the server says to that.
    pub(crate) fn hello(&mut self, role: Role, id: &str) -> io::Result<Heard> {
        self.write(&hello(role, id))?;
        self.hear()
    }

    /// Sends any bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(bytes),
            Stream::Client(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
            Stream::Server(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    /// Sends a message as an honest peer does: in pieces, under credit.
    pub(crate) fn say(&mut self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let bytes = [head, body].concat();
        let mut first = Some((head.len() as u32, body.len() as u64));
        for piece in bytes.chunks(CHUNK_BYTES) {
            let starts = u64::from(first.is_some());
            while self.credit.bytes < piece.len() as u64 || self.credit.messages < starts {
                if let Heard::Refusal { kind, text } = self.hear()? {
                    self.refused = Some((kind, text.clone()));
                    return Err(io::Error::other(text));
                }
            }
            self.credit.bytes -= piece.len() as u64;
            self.credit.messages -= starts;
            self.write(&data(false, first.take(), piece))?;
        }
        Ok(())
    }

    /// Sends an urgent message, under credit too.
    pub(crate) fn say_at_once(&mut self, head: &[u8]) -> io::Result<()> {
        while self.credit.urgent == 0 {
            self.hear()?;
        }
        self.credit.urgent -= 1;
        self.write(&data(true, Some((head.len() as u32, 0)), head))
    }

    /// The next message from the other side, decoded.
    pub(crate) fn answer<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        loop {
            match self.hear()? {
                Heard::Message { head, .. } => return rmp_serde::from_slice(&head).map_err(io::Error::other),
                Heard::Refusal { text, .. } => return Err(io::Error::other(text)),
                Heard::Welcome | Heard::Other => {}
            }
        }
    }

    /// The next message of a kind; others are for nobody.
    pub(crate) fn answer_that<T: DeserializeOwned>(&mut self, wanted: impl Fn(&T) -> bool) -> io::Result<T> {
        loop {
            let answer = self.answer()?;
            if wanted(&answer) {
                return Ok(answer);
            }
        }
    }

    /// The next that the other side says.
    pub(crate) fn hear(&mut self) -> io::Result<Heard> {
        let frames = self.frames()?;
        let (header, rest) = frames.split_first().expect("a message has a frame");
        let number = |from: usize, to: usize| {
            let bytes = header.get(from..to).ok_or(io::ErrorKind::InvalidData)?;
            Ok::<u64, io::Error>(bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
        };
        let text = || String::from_utf8_lossy(&rest.concat()).into_owned();
        match number(0, 1)? as u8 {
            WELCOME => Ok(Heard::Welcome),
            REFUSAL => {
                let kind = number(1, 2)? as usize;
                let kind = kind.checked_sub(1).and_then(|index| KINDS.get(index));
                Ok(Heard::Refusal { kind: *kind.ok_or(io::ErrorKind::InvalidData)?, text: text() })
            }
            CREDIT => {
                self.credit.bytes += number(1, 9)?;
                self.credit.messages += number(9, 13)?;
                self.credit.urgent += number(13, 17)?;
                Ok(Heard::Other)
            }
            DATA => {
                if number(1, 2)? as u8 & FIRST != 0 {
                    self.arriving = Some((number(2, 6)? as usize, number(6, 14)? as usize, Vec::new()));
                }
                let (head, body, bytes) = self.arriving.as_mut().ok_or(io::ErrorKind::InvalidData)?;
                bytes.extend(rest.concat());
                if bytes.len() < *head + *body {
                    return Ok(Heard::Other);
                }
                let body = bytes.split_off(*head);
                let head = std::mem::take(bytes);
                Ok(Heard::Message { head, body })
            }
            _ => Ok(Heard::Other),
        }
    }

    /// The frames of the next ZeroMQ message.
    fn frames(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        loop {
            let flags = self.read(1)?[0];
            let width = if flags & LONG == 0 { 1 } else { 8 };
            let length = self.read(width)?.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
            if length > HEAD_BYTES {
                return Err(io::ErrorKind::InvalidData.into());
            }
            frames.push(self.read(length)?);
            if flags & MORE == 0 {
                return Ok(frames);
            }
        }
    }

    /// So many bytes of what the other side says.
    pub(crate) fn read(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        match &mut self.stream {
            Stream::Plain(stream) => stream.read_exact(&mut bytes)?,
            Stream::Client(stream) => stream.read_exact(&mut bytes)?,
            Stream::Server(stream) => stream.read_exact(&mut bytes)?,
        }
        Ok(bytes)
    }

    /// Waits until the other side has hung up, or refused this one: who then lingers is given a second to go.
    pub(crate) fn farewell(mut self) -> Option<(RefusalKind, String)> {
        if self.refused.is_some() {
            return self.refused;
        }
        loop {
            match self.hear() {
                Ok(Heard::Refusal { kind, text }) => return Some((kind, text)),
                Ok(Heard::Welcome | Heard::Message { .. } | Heard::Other) => {}
                // Not a packet, an alert of TLS for example: its end is what counts.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => while self.read(1).is_ok() {},
                Err(error) => {
                    let waited = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind());
                    assert!(!waited, "the other side doesn't hang up");
                    return None;
                }
            }
        }
    }

    /// Takes another side that says nothing for some seconds for one that won't say more.
    pub(crate) fn give_up_soon(&self) {
        self.socket().set_read_timeout(Some(PATIENCE)).expect("a socket");
    }

    /// Whether the other side has hung up, without waiting.
    pub(crate) fn has_ended(&self) -> bool {
        let stream = self.socket();
        stream.set_nonblocking(true).expect("a socket");
        let ended = match stream.peek(&mut [0]) {
            Ok(length) => length == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        stream.set_nonblocking(false).expect("a socket");
        ended
    }

    /// Resets the connection.
    pub(crate) fn reset(self) {
        let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(self.socket(), sockopt::Linger, &at_once).expect("a socket");
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Client(stream) => stream.get_ref(),
            Stream::Server(stream) => stream.get_ref(),
        }
    }
}

/// A ZMTP greeting.
pub(crate) fn greeting() -> [u8; 64] {
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// The READY command of a socket of this type.
pub(crate) fn ready(socket_type: &str) -> Vec<u8> {
    let mut body = b"\x05READY\x0bSocket-Type".to_vec();
    body.extend((socket_type.len() as u32).to_be_bytes());
    body.extend(socket_type.as_bytes());
    [&[COMMAND, body.len() as u8], &body[..]].concat()
}

/// One frame, with its real length.
pub(crate) fn frame(flags: u8, bytes: &[u8]) -> Vec<u8> {
    match u8::try_from(bytes.len()) {
        Ok(length) => [&[flags, length], bytes].concat(),
        Err(_) => [&announced(flags, bytes.len() as u64), bytes].concat(),
    }
}

/// The header of a frame that is to be so long.
pub(crate) fn announced(flags: u8, length: u64) -> Vec<u8> {
    [&[flags | LONG], &length.to_be_bytes()[..]].concat()
}

/// A packet: its header's frame, and one of data if there is some.
pub(crate) fn packet(header: &[u8], data: Option<&[u8]>) -> Vec<u8> {
    match data {
        Some(data) => [frame(MORE, header), frame(0, data)].concat(),
        None => frame(0, header),
    }
}

/// A HELLO of this version.
pub(crate) fn hello(role: Role, id: &str) -> Vec<u8> {
    let body = rmp_serde::to_vec(&(role, id, "attacker's")).expect("a role and two strings");
    let version = lrts_core::protocol::VERSION.to_be_bytes();
    packet(&[&[HELLO], &version[..]].concat(), Some(&body))
}

/// A DATA packet; the first of a message announces the lengths of head and body.
pub(crate) fn data(urgent: bool, first: Option<(u32, u64)>, piece: &[u8]) -> Vec<u8> {
    let mut header = vec![DATA, if urgent { URGENT } else { 0 }];
    if let Some((head, body)) = first {
        header[1] |= FIRST;
        header.extend(head.to_be_bytes());
        header.extend(body.to_be_bytes());
    }
    packet(&header, Some(piece))
}
