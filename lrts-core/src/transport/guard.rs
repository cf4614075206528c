//! The frame guard: reads ZMTP 3 from the network before the zeromq crate does, and lets pass only what is bounded.
//!
//! Pure. The zeromq crate allocates what a frame header announces and collects frames without end; a stranger could abort or
//! fill the process. So the handshake is read here, in full, and written anew; afterwards every header is checked before any
//! byte after it passes.

use super::ConnectionId;
use crate::limits::{
    TLS_HANDSHAKE_BYTES, WIRE_COMMAND_BYTES, WIRE_FRAMES, WIRE_HELLO_BYTES, WIRE_MESSAGE_BYTES,
};

/// Length of a ZMTP greeting.
pub(crate) const GREETING_BYTES: usize = 64;

const MORE: u8 = 0b001;
const LONG: u8 = 0b010;
const COMMAND: u8 = 0b100;

/// What came over the network is no ZMTP, or more than is allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum GuardError {
    #[error("TLS handshake is not complete after {TLS_HANDSHAKE_BYTES} bytes")]
    TlsHandshake,
    #[error("not a ZMTP 3 greeting")]
    Greeting,
    #[error("security mechanism is not NULL")]
    Mechanism,
    #[error("handshake is not a READY command of at most {WIRE_COMMAND_BYTES} bytes")]
    Ready,
    #[error("socket type does not fit")]
    SocketType,
    #[error("frame with unknown flags, or a command after the handshake")]
    Flags,
    #[error("message over {WIRE_HELLO_BYTES} bytes before the welcome")]
    Hello,
    #[error("message over {WIRE_MESSAGE_BYTES} bytes")]
    Length,
    #[error("message of more than {WIRE_FRAMES} frames")]
    Frames,
}

/// Checks a peer's greeting.
pub(crate) fn check_greeting(greeting: &[u8; GREETING_BYTES]) -> Result<(), GuardError> {
    if greeting[0] != 0xff || greeting[9] != 0x7f || greeting[10] < 3 {
        return Err(GuardError::Greeting);
    }
    let mechanism = &greeting[12..32];
    if &mechanism[..4] != b"NULL" || mechanism[4..].iter().any(|&byte| byte != 0) {
        return Err(GuardError::Mechanism);
    }
    Ok(())
}

/// Length of the handshake command that starts with these two bytes; None if a long header follows.
pub(crate) fn short_command_length(start: [u8; 2]) -> Result<Option<usize>, GuardError> {
    match start[0] {
        COMMAND => Ok(Some(usize::from(start[1]))),
        flags if flags == COMMAND | LONG => Ok(None),
        _ => Err(GuardError::Ready),
    }
}

/// Length of the handshake command whose long header has this length field.
pub(crate) fn long_command_length(length: [u8; 8]) -> Result<usize, GuardError> {
    usize::try_from(u64::from_be_bytes(length))
        .ok()
        .filter(|&length| length <= WIRE_COMMAND_BYTES)
        .ok_or(GuardError::Ready)
}

/// Reads a peer's READY command, which must come from this type of socket, and writes one of our own in its place: with the
/// connection's id as its identity, whatever the peer wanted to be called.
pub(crate) fn rewrite_ready(
    body: &[u8],
    expected: &str,
    identity: Option<ConnectionId>,
) -> Result<Vec<u8>, GuardError> {
    let mut rest = body.strip_prefix(b"\x05READY").ok_or(GuardError::Ready)?;
    let mut socket_type = None;
    while !rest.is_empty() {
        let (name, value);
        (name, rest) = split_property(rest).ok_or(GuardError::Ready)?;
        (value, rest) = split_value(rest).ok_or(GuardError::Ready)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") && socket_type.replace(value).is_some() {
            return Err(GuardError::Ready);
        }
    }
    if socket_type != Some(expected.as_bytes()) {
        return Err(GuardError::SocketType);
    }
    let mut ready = b"\x05READY".to_vec();
    push_property(&mut ready, "Socket-Type", expected.as_bytes());
    if let Some(identity) = identity {
        push_property(&mut ready, "Identity", &identity.to_bytes());
    }
    let mut frame = vec![COMMAND, u8::try_from(ready.len()).expect("two short properties fit")];
    frame.append(&mut ready);
    Ok(frame)
}

fn split_property(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = rest.split_first()?;
    rest.split_at_checked(usize::from(length))
}

fn split_value(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = rest.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

fn push_property(command: &mut Vec<u8>, name: &str, value: &[u8]) {
    command.push(u8::try_from(name.len()).expect("names are short"));
    command.extend_from_slice(name.as_bytes());
    command.extend_from_slice(&u32::try_from(value.len()).expect("values are short").to_be_bytes());
    command.extend_from_slice(value);
}

/// Checks the frames after the handshake as they pass.
#[derive(Debug)]
pub(crate) struct FrameGuard {
    state: State,
    /// Whether the server has welcomed the peer. Before, it must not make this side hold more than a HELLO.
    welcomed: bool,
    /// Frames and bytes of the message that is passing.
    frames: usize,
    bytes: u64,
}

#[derive(Debug)]
enum State {
    Flags,
    Length { more: bool, missing: u8, length: u64 },
    Data { more: bool, missing: u64 },
}

impl FrameGuard {
    /// The guard of a peer that nobody has welcomed yet.
    pub(crate) fn new() -> Self {
        Self { state: State::Flags, welcomed: false, frames: 0, bytes: 0 }
    }

    /// From now on messages may have their full size.
    pub(crate) fn welcome(&mut self) {
        self.welcomed = true;
    }

    /// Checks the next bytes of the stream, wherever they are cut. Only if all is well may they be handed on.
    ///
    /// A header that is still incomplete at the end of `input` may pass: no reader acts on it before its last byte.
    pub(crate) fn check(&mut self, mut input: &[u8]) -> Result<(), GuardError> {
        while let Some((&byte, rest)) = input.split_first() {
            match &mut self.state {
                State::Flags => {
                    input = rest;
                    self.start_frame(byte)?;
                }
                State::Length { more, missing, length } => {
                    input = rest;
                    *length = *length << 8 | u64::from(byte);
                    *missing -= 1;
                    if *missing == 0 {
                        let (more, length) = (*more, *length);
                        self.start_data(more, length)?;
                    }
                }
                State::Data { more, missing } => {
                    let passing = usize::try_from(*missing).unwrap_or(usize::MAX).min(input.len());
                    input = &input[passing..];
                    *missing -= passing as u64;
                    if *missing == 0 {
                        let more = *more;
                        self.end_frame(more);
                    }
                }
            }
        }
        Ok(())
    }

    fn start_frame(&mut self, flags: u8) -> Result<(), GuardError> {
        if flags & !(MORE | LONG) != 0 {
            return Err(GuardError::Flags);
        }
        self.frames += 1;
        if self.frames > WIRE_FRAMES {
            return Err(GuardError::Frames);
        }
        let missing = if flags & LONG == 0 { 1 } else { 8 };
        self.state = State::Length { more: flags & MORE != 0, missing, length: 0 };
        Ok(())
    }

    fn start_data(&mut self, more: bool, length: u64) -> Result<(), GuardError> {
        self.bytes = self.bytes.saturating_add(length);
        if self.bytes > WIRE_MESSAGE_BYTES {
            return Err(GuardError::Length);
        }
        if self.bytes > WIRE_HELLO_BYTES && !self.welcomed {
            return Err(GuardError::Hello);
        }
        if length == 0 {
            self.end_frame(more);
        } else {
            self.state = State::Data { more, missing: length };
        }
        Ok(())
    }

    fn end_frame(&mut self, more: bool) {
        self.state = State::Flags;
        if !more {
            self.frames = 0;
            self.bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::{HELLO_HOST_BYTES, HELLO_ID_BYTES};
    use crate::transport::hello::{Hello, Role};
    use crate::transport::packet::Packet;

    fn frame(more: bool, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![u8::from(more)];
        if data.len() > 255 {
            bytes[0] |= LONG;
            bytes.extend_from_slice(&(data.len() as u64).to_be_bytes());
        } else {
            bytes.push(data.len() as u8);
        }
        bytes.extend_from_slice(data);
        bytes
    }

    fn welcomed() -> FrameGuard {
        let mut guard = FrameGuard::new();
        guard.welcome();
        guard
    }

    fn greeting(mechanism: &[u8]) -> [u8; GREETING_BYTES] {
        let mut greeting = [0; GREETING_BYTES];
        (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
        greeting[12..12 + mechanism.len()].copy_from_slice(mechanism);
        greeting
    }

    #[test]
    fn only_zmtp_3_without_security_is_greeted() {
        assert_eq!(check_greeting(&greeting(b"NULL")), Ok(()));
        assert_eq!(check_greeting(&greeting(b"CURVE")), Err(GuardError::Mechanism));
        assert_eq!(check_greeting(&greeting(b"NULLX")), Err(GuardError::Mechanism));
        assert_eq!(check_greeting(&[b'G'; GREETING_BYTES]), Err(GuardError::Greeting));
    }

    #[test]
    fn a_peer_gets_the_identity_that_the_gate_chose() {
        let mut wish = b"\x05READY".to_vec();
        push_property(&mut wish, "Identity", b"somebody else");
        push_property(&mut wish, "Socket-Type", b"DEALER");

        let ready = rewrite_ready(&wish, "DEALER", Some(ConnectionId(7))).unwrap();

        assert_eq!(usize::from(ready[1]), ready.len() - 2);
        assert!(ready.ends_with(&ConnectionId(7).to_bytes()));
        assert!(!ready.windows(8).any(|window| window == b"somebody"));
    }

    #[test]
    fn bad_handshakes_are_refused() {
        assert_eq!(short_command_length([0, 1]), Err(GuardError::Ready));
        assert_eq!(short_command_length([COMMAND | LONG, 0]), Ok(None));
        assert_eq!(long_command_length((1_u64 << 47).to_be_bytes()), Err(GuardError::Ready));
        let mut router = b"\x05READY".to_vec();
        push_property(&mut router, "Socket-Type", b"ROUTER");
        assert_eq!(rewrite_ready(&router, "DEALER", None), Err(GuardError::SocketType));
        for cut in 0..router.len() {
            assert!(rewrite_ready(&router[..cut], "ROUTER", None).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn length_bombs_are_refused_at_the_last_byte_of_their_header() {
        let mut bomb = vec![LONG];
        bomb.extend_from_slice(&(1_u64 << 47).to_be_bytes());
        let mut guard = FrameGuard::new();
        assert_eq!(guard.check(&bomb[..8]), Ok(()));
        assert_eq!(guard.check(&bomb[8..]), Err(GuardError::Length));
    }

    #[test]
    fn a_message_is_bounded_in_frames_and_in_bytes() {
        let mut guard = FrameGuard::new();
        for _ in 0..WIRE_FRAMES {
            assert_eq!(guard.check(&frame(true, b"")), Ok(()));
        }
        assert_eq!(guard.check(&frame(false, b"")), Err(GuardError::Frames));

        let mut guard = welcomed();
        let half = vec![0; WIRE_MESSAGE_BYTES as usize / 2 + 1];
        assert_eq!(guard.check(&frame(true, &half)), Ok(()));
        assert_eq!(guard.check(&frame(true, &half)), Err(GuardError::Length));
    }

    #[test]
    fn before_the_welcome_a_message_is_no_larger_than_a_hello() {
        let (id, host) = ("x".repeat(HELLO_ID_BYTES), "x".repeat(HELLO_HOST_BYTES));
        let [header, body] = &Packet::Hello(Hello::new(Role::ProgressServer, id, host)).encode()[..] else {
            panic!("a HELLO has two frames")
        };
        let hello = [frame(true, header), frame(false, body)].concat();
        let half = vec![0; WIRE_HELLO_BYTES as usize / 2];
        let mut guard = FrameGuard::new();
        assert_eq!(guard.check(&[&hello[..], &frame(true, &half), &frame(false, &half)].concat()), Ok(()));
        assert_eq!(guard.check(&[&frame(true, &half)[..], &frame(true, &half)].concat()), Ok(()));
        assert_eq!(guard.check(&frame(false, b"x")), Err(GuardError::Hello));

        let mut guard = FrameGuard::new();
        guard.check(&hello).unwrap();
        guard.welcome();
        assert_eq!(guard.check(&frame(false, &vec![0; WIRE_MESSAGE_BYTES as usize])), Ok(()));
    }

    #[test]
    fn commands_and_unknown_flags_are_refused_after_the_handshake() {
        assert_eq!(FrameGuard::new().check(&[COMMAND, 0]), Err(GuardError::Flags));
        assert_eq!(FrameGuard::new().check(&[0x80, 0]), Err(GuardError::Flags));
    }

    proptest! {
        /// Well-formed messages pass wherever the stream is cut, down to single bytes.
        #[test]
        fn cuts_make_no_difference(
            messages in prop::collection::vec(prop::collection::vec(0..600_usize, 1..WIRE_FRAMES), 1..6),
            cut in 1..700_usize,
        ) {
            let mut stream = Vec::new();
            for frames in &messages {
                for (index, &length) in frames.iter().enumerate() {
                    stream.extend(frame(index + 1 < frames.len(), &vec![0xff; length]));
                }
            }
            let mut guard = welcomed();
            for part in stream.chunks(cut) {
                prop_assert_eq!(guard.check(part), Ok(()));
            }
            prop_assert!(matches!(guard.state, State::Flags));
        }

        /// Noise ends in an error or is well-formed, never in a panic.
        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..2_000), cut in 1..50_usize) {
            let mut guard = FrameGuard::new();
            for part in noise.chunks(cut) {
                if guard.check(part).is_err() {
                    break;
                }
            }
            let _ = rewrite_ready(&noise, "DEALER", None);
        }
    }
}
