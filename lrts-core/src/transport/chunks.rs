//! Messages as pieces: the sender's queue that cuts them, the receiver's assembly that joins them.
//!
//! Pure. Only one normal message is under way at a time, so pieces need no numbers: the first announces the lengths, the
//! others follow in order. Urgent messages are one piece each and may come between the pieces of a normal one.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::Message;
use super::credit::SendCredit;
use crate::limits::{CHUNK_BYTES, MESSAGE_BODY_BYTES, URGENT_BYTES};

/// Assembly starts with room for this much at most; the buffer then grows with what has arrived.
const FIRST_CAPACITY: usize = CHUNK_BYTES;

/// Lengths of a message's head and body, in bytes, as its first piece announces them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lengths {
    pub(crate) head: u32,
    pub(crate) body: u64,
}

/// One piece of a message: at most [`CHUNK_BYTES`], the head's bytes before the body's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) urgent: bool,
    /// Present in the first piece of a message.
    pub(crate) lengths: Option<Lengths>,
    /// The bytes; where one part ends says nothing.
    pub(crate) parts: Vec<Bytes>,
}

/// The peer's pieces make no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum PieceError {
    #[error("announced a message over the size bound")]
    TooLarge,
    #[error("started a message within another")]
    Interrupted,
    #[error("continued a message that has not started")]
    NotStarted,
    #[error("sent more than it announced")]
    Overrun,
    #[error("sent an empty piece")]
    Empty,
    #[error("sent an urgent message in pieces")]
    UrgentInPieces,
}

/// Messages waiting to be sent, urgent ones first.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    urgent: VecDeque<Message>,
    normal: VecDeque<Message>,
    /// How much of the first normal message is gone.
    offset: usize,
    bytes: usize,
}

impl Outbox {
    /// Appends a message whose size was checked. An urgent one that is too large for it becomes normal.
    pub(crate) fn push(&mut self, message: Message) {
        self.bytes += message.size();
        if message.urgent && message.size() <= URGENT_BYTES {
            self.urgent.push_back(message);
        } else {
            self.normal.push_back(message);
        }
    }

    /// Messages that wait, the one under way included.
    pub(crate) fn messages(&self) -> usize {
        self.urgent.len() + self.normal.len()
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes - self.offset
    }

    /// The next piece to send, if there is one and credit for it.
    pub(crate) fn next_piece(&mut self, credit: &mut SendCredit) -> Option<Piece> {
        if !self.urgent.is_empty() && credit.take_urgent() {
            let message = self.urgent.pop_front().expect("checked above");
            self.bytes -= message.size();
            let lengths = Some(message.lengths());
            return Some(Piece { urgent: true, lengths, parts: cut(&message, 0, message.size()) });
        }
        let message = self.normal.front()?;
        let (size, start) = (message.size(), self.offset);
        let end = size.min(start + CHUNK_BYTES);
        if !credit.take_piece(start == 0, end - start) {
            return None;
        }
        let lengths = (start == 0).then(|| message.lengths());
        let parts = cut(message, start, end);
        if end == size {
            self.normal.pop_front();
            self.offset = 0;
            self.bytes -= size;
        } else {
            self.offset = end;
        }
        Some(Piece { urgent: false, lengths, parts })
    }
}

/// The bytes from `start` to `end` of a message's head and body in a row, without copying them.
fn cut(message: &Message, start: usize, end: usize) -> Vec<Bytes> {
    let head = message.head.len();
    let mut parts = Vec::with_capacity(2);
    if start < head {
        parts.push(message.head.slice(start..end.min(head)));
    }
    if end > head {
        parts.push(message.body.slice(start.max(head) - head..end - head));
    }
    parts
}

/// Joins one peer's pieces.
#[derive(Debug)]
pub(crate) struct Assembly {
    /// Longest head.
    head_bytes: usize,
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    head_length: usize,
    total: usize,
    data: BytesMut,
}

impl Assembly {
    pub(crate) fn new(head_bytes: usize) -> Self {
        Self { head_bytes, partial: None }
    }

    /// Takes a piece; gives the message that it completes. What it keeps is a copy, never part of a read buffer.
    pub(crate) fn push(&mut self, piece: &Piece) -> Result<Option<Message>, PieceError> {
        let length: usize = piece.parts.iter().map(Bytes::len).sum();
        if piece.urgent {
            let mut partial =
                Partial::start(piece.lengths.ok_or(PieceError::UrgentInPieces)?, self.head_bytes)?;
            if partial.total != length || length > URGENT_BYTES {
                return Err(PieceError::UrgentInPieces);
            }
            partial.append(piece, length)?;
            return Ok(Some(partial.finish(true)));
        }
        let mut partial = match (self.partial.take(), piece.lengths) {
            (None, Some(lengths)) => Partial::start(lengths, self.head_bytes)?,
            (Some(partial), None) => partial,
            (Some(_), Some(_)) => return Err(PieceError::Interrupted),
            (None, None) => return Err(PieceError::NotStarted),
        };
        if length == 0 && partial.total > 0 {
            return Err(PieceError::Empty);
        }
        partial.append(piece, length)?;
        if partial.data.len() == partial.total {
            return Ok(Some(partial.finish(false)));
        }
        self.partial = Some(partial);
        Ok(None)
    }
}

impl Partial {
    fn start(lengths: Lengths, head_bytes: usize) -> Result<Self, PieceError> {
        let head_length = usize::try_from(lengths.head).map_err(|_| PieceError::TooLarge)?;
        let body_length = usize::try_from(lengths.body).map_err(|_| PieceError::TooLarge)?;
        if head_length > head_bytes || body_length > MESSAGE_BODY_BYTES {
            return Err(PieceError::TooLarge);
        }
        let total = head_length + body_length;
        Ok(Self { head_length, total, data: BytesMut::with_capacity(total.min(FIRST_CAPACITY)) })
    }

    fn append(&mut self, piece: &Piece, length: usize) -> Result<(), PieceError> {
        if length > self.total - self.data.len() {
            return Err(PieceError::Overrun);
        }
        for part in &piece.parts {
            self.data.extend_from_slice(part);
        }
        Ok(())
    }

    fn finish(self, urgent: bool) -> Message {
        let mut body = self.data.freeze();
        let head = body.split_to(self.head_length);
        Message { head, body, urgent }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::HEAD_BYTES;

    fn message(head: usize, body: usize) -> Message {
        let bytes =
            |length: usize, seed: usize| (0..length).map(|i| (i * 31 + seed) as u8).collect::<Vec<_>>();
        Message::new(bytes(head, 1), bytes(body, 2))
    }

    fn pieces(outbox: &mut Outbox) -> Vec<Piece> {
        // Fresh credit for each piece: flow control has tests of its own.
        std::iter::from_fn(|| outbox.next_piece(&mut SendCredit::new())).collect()
    }

    #[test]
    fn an_urgent_message_overtakes_within_a_large_one() {
        let mut outbox = Outbox::default();
        let large = message(10, 3 * CHUNK_BYTES);
        outbox.push(large.clone());
        let mut credit = SendCredit::new();
        let mut assembly = Assembly::new(HEAD_BYTES);
        assert_eq!(assembly.push(&outbox.next_piece(&mut credit).unwrap()), Ok(None));

        let urgent = message(5, 0).urgent();
        outbox.push(urgent.clone());

        assert_eq!(assembly.push(&outbox.next_piece(&mut credit).unwrap()), Ok(Some(urgent)));
        let rest: Vec<_> =
            pieces(&mut outbox).iter().filter_map(|piece| assembly.push(piece).unwrap()).collect();
        assert_eq!(rest, [large]);
        assert_eq!((outbox.bytes(), outbox.messages()), (0, 0));
    }

    #[test]
    fn an_urgent_message_that_is_too_large_keeps_its_place() {
        let mut outbox = Outbox::default();
        outbox.push(message(1, 1));
        outbox.push(message(1, URGENT_BYTES).urgent());

        assert_eq!(pieces(&mut outbox).iter().map(|piece| piece.urgent).collect::<Vec<_>>(), [false, false]);
    }

    #[test]
    fn pieces_that_make_no_message_are_errors() {
        let start = |head, body, parts: &[&'static [u8]]| Piece {
            urgent: false,
            lengths: Some(Lengths { head, body }),
            parts: parts.iter().map(|part| Bytes::from_static(part)).collect(),
        };
        let more = |part: &'static [u8]| Piece {
            urgent: false,
            lengths: None,
            parts: vec![Bytes::from_static(part)],
        };
        let fails = |pieces: &[Piece]| {
            let mut assembly = Assembly::new(HEAD_BYTES);
            pieces.iter().find_map(|piece| assembly.push(piece).err())
        };

        assert_eq!(fails(&[start(0, 1 << 47, &[b"x"])]), Some(PieceError::TooLarge));
        assert_eq!(fails(&[start(u32::MAX, 0, &[b"x"])]), Some(PieceError::TooLarge));
        assert_eq!(fails(&[start(0, u64::MAX, &[b"x"])]), Some(PieceError::TooLarge));
        assert_eq!(fails(&[start(1, 1, &[b"xyz"])]), Some(PieceError::Overrun));
        assert_eq!(fails(&[start(1, 1, &[b"x"]), more(b"yz")]), Some(PieceError::Overrun));
        assert_eq!(fails(&[more(b"x")]), Some(PieceError::NotStarted));
        assert_eq!(fails(&[start(1, 1, &[b"x"]), start(1, 1, &[b"x"])]), Some(PieceError::Interrupted));
        assert_eq!(fails(&[start(1, 1, &[b"x"]), more(b"")]), Some(PieceError::Empty));
        assert_eq!(
            fails(&[Piece { urgent: true, ..start(2, 1, &[b"xy"]) }]),
            Some(PieceError::UrgentInPieces)
        );
        assert_eq!(fails(&[Piece { urgent: true, ..more(b"x") }]), Some(PieceError::UrgentInPieces));
    }

    #[test]
    fn an_announcement_alone_allocates_little() {
        let mut assembly = Assembly::new(HEAD_BYTES);
        let lengths = Some(Lengths { head: 0, body: MESSAGE_BODY_BYTES as u64 });
        assembly.push(&Piece { urgent: false, lengths, parts: vec![Bytes::from_static(b"x")] }).unwrap();
        assert!(assembly.partial.unwrap().data.capacity() <= 2 * FIRST_CAPACITY);
    }

    #[test]
    fn a_head_that_is_longer_than_the_peers_role_ever_sends_is_refused_when_it_is_announced() {
        let piece = |head, part: &'static [u8]| Piece {
            urgent: false,
            lengths: Some(Lengths { head, body: 1 << 20 }),
            parts: vec![Bytes::from_static(part)],
        };
        assert_eq!(Assembly::new(1_000).push(&piece(1_000, b"it begins")), Ok(None));
        assert_eq!(Assembly::new(1_000).push(&piece(1_001, b"it begins")), Err(PieceError::TooLarge));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn messages_come_out_as_they_went_in(
            sizes in prop::collection::vec((0..3 * CHUNK_BYTES / 2, 0..3 * CHUNK_BYTES), 1..5)
        ) {
            let mut outbox = Outbox::default();
            let sent: Vec<_> = sizes.into_iter().map(|(head, body)| message(head, body)).collect();
            for message in &sent {
                outbox.push(message.clone());
            }
            let pieces = pieces(&mut outbox);
            prop_assert!(pieces.iter().all(|p| p.parts.iter().map(Bytes::len).sum::<usize>() <= CHUNK_BYTES));
            let mut assembly = Assembly::new(HEAD_BYTES);
            let received: Vec<_> = pieces.iter().filter_map(|piece| assembly.push(piece).unwrap()).collect();
            prop_assert_eq!(received, sent);
        }
    }
}
