//! Flow control: how much each side may send before the other has granted more.
//!
//! Pure. Normal messages count in bytes and in number, urgent ones in number only (their size is bounded). Bytes come back
//! as pieces arrive, so that a message may be larger than the window, but only while the receiver's consumer keeps up;
//! numbers come back as the consumer takes messages. A receiver therefore holds, for each peer, at most two windows and one
//! message beyond them.

use crate::limits::{WINDOW_BYTES, WINDOW_MESSAGES, WINDOW_URGENT};

/// An amount of credit, as a CREDIT packet grants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Credit {
    pub(crate) bytes: u64,
    pub(crate) messages: u32,
    pub(crate) urgent: u32,
}

impl Credit {
    /// What each side starts with.
    pub(crate) const WINDOW: Self =
        Self { bytes: WINDOW_BYTES, messages: WINDOW_MESSAGES, urgent: WINDOW_URGENT };
}

/// The peer broke the rules of flow control.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum CreditError {
    #[error("sent more than it was granted")]
    Exceeded,
    #[error("granted more than the window")]
    Inflated,
}

/// What this side may still send.
#[derive(Debug)]
pub(crate) struct SendCredit(Credit);

impl SendCredit {
    pub(crate) fn new() -> Self {
        Self(Credit::WINDOW)
    }

    /// Takes the credit for a piece of a normal message, if there is enough of it.
    pub(crate) fn take_piece(&mut self, starts: bool, bytes: usize) -> bool {
        let messages = u32::from(starts);
        let bytes = bytes as u64;
        let enough = self.0.messages >= messages && self.0.bytes >= bytes;
        if enough {
            self.0.messages -= messages;
            self.0.bytes -= bytes;
        }
        enough
    }

    /// Takes the credit for an urgent message, if there is some.
    pub(crate) fn take_urgent(&mut self) -> bool {
        let enough = self.0.urgent > 0;
        self.0.urgent -= u32::from(enough);
        enough
    }

    /// Adds what the receiver granted.
    pub(crate) fn add(&mut self, granted: Credit) -> Result<(), CreditError> {
        let sum = Credit {
            bytes: self.0.bytes.saturating_add(granted.bytes),
            messages: self.0.messages.saturating_add(granted.messages),
            urgent: self.0.urgent.saturating_add(granted.urgent),
        };
        let window = Credit::WINDOW;
        if sum.bytes > window.bytes || sum.messages > window.messages || sum.urgent > window.urgent {
            return Err(CreditError::Inflated);
        }
        self.0 = sum;
        Ok(())
    }
}

/// What the peer may still send, and what it is owed.
#[derive(Debug)]
pub(crate) struct ReceiveCredit {
    allowed: Credit,
    owed: Credit,
    /// Bytes of complete normal messages that the consumer hasn't taken.
    held: u64,
}

impl ReceiveCredit {
    pub(crate) fn new() -> Self {
        Self { allowed: Credit::WINDOW, owed: Credit::default(), held: 0 }
    }

    /// A piece of a normal message has arrived.
    pub(crate) fn received_piece(&mut self, starts: bool, bytes: usize) -> Result<(), CreditError> {
        let bytes = bytes as u64;
        let left = self.allowed.bytes.checked_sub(bytes).ok_or(CreditError::Exceeded)?;
        self.allowed.messages =
            self.allowed.messages.checked_sub(u32::from(starts)).ok_or(CreditError::Exceeded)?;
        self.allowed.bytes = left;
        self.owed.bytes += bytes;
        Ok(())
    }

    /// A normal message is complete and waits for the consumer.
    pub(crate) fn completed(&mut self, bytes: usize) {
        self.held += bytes as u64;
    }

    /// An urgent message has arrived and waits for the consumer.
    pub(crate) fn received_urgent(&mut self) -> Result<(), CreditError> {
        self.allowed.urgent = self.allowed.urgent.checked_sub(1).ok_or(CreditError::Exceeded)?;
        Ok(())
    }

    /// The consumer has taken a normal message of this size.
    pub(crate) fn taken(&mut self, bytes: usize) {
        self.held = self.held.checked_sub(bytes as u64).expect("only what was completed can be taken");
        self.owed.messages += 1;
    }

    /// The consumer has taken an urgent message.
    pub(crate) fn taken_urgent(&mut self) {
        self.owed.urgent += 1;
    }

    /// The grant that is due, if any: a quarter of the window at least, so that grants stay few.
    pub(crate) fn grant(&mut self) -> Option<Credit> {
        let window = Credit::WINDOW;
        let consumer_keeps_up = self.held < window.bytes;
        let due = consumer_keeps_up && self.owed.bytes >= window.bytes / 4
            || self.owed.messages >= window.messages / 4
            || self.owed.urgent >= window.urgent / 4;
        if !due {
            return None;
        }
        let bytes = if consumer_keeps_up { self.owed.bytes } else { 0 };
        let grant = Credit { bytes, ..self.owed };
        self.owed = Credit { bytes: self.owed.bytes - bytes, ..Credit::default() };
        self.allowed.bytes += grant.bytes;
        self.allowed.messages += grant.messages;
        self.allowed.urgent += grant.urgent;
        Some(grant)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::CHUNK_BYTES;

    #[test]
    fn a_large_message_passes_a_small_window_while_the_consumer_keeps_up() {
        let (mut sender, mut receiver) = (SendCredit::new(), ReceiveCredit::new());
        for piece in 0..10_000 {
            assert!(sender.take_piece(piece == 0, CHUNK_BYTES), "stuck at piece {piece}");
            receiver.received_piece(piece == 0, CHUNK_BYTES).unwrap();
            if let Some(grant) = receiver.grant() {
                sender.add(grant).unwrap();
            }
        }
    }

    #[test]
    fn a_consumer_that_takes_nothing_stops_the_sender_and_one_that_takes_all_frees_it() {
        let (mut sender, mut receiver) = (SendCredit::new(), ReceiveCredit::new());
        let mut sent = 0;
        while sender.take_piece(true, CHUNK_BYTES) {
            receiver.received_piece(true, CHUNK_BYTES).unwrap();
            receiver.completed(CHUNK_BYTES);
            sent += 1;
            if let Some(grant) = receiver.grant() {
                sender.add(grant).unwrap();
            }
        }
        assert!(sent as u64 * CHUNK_BYTES as u64 <= 2 * WINDOW_BYTES);

        for _ in 0..sent {
            receiver.taken(CHUNK_BYTES);
            if let Some(grant) = receiver.grant() {
                sender.add(grant).unwrap();
            }
        }

        assert!(sender.take_piece(true, CHUNK_BYTES));
    }

    #[test]
    fn a_sender_beyond_its_credit_and_a_grant_beyond_the_window_are_errors() {
        let mut receiver = ReceiveCredit::new();
        for _ in 0..WINDOW_URGENT {
            receiver.received_urgent().unwrap();
        }
        assert_eq!(receiver.received_urgent(), Err(CreditError::Exceeded));
        assert_eq!(receiver.received_piece(true, WINDOW_BYTES as usize + 1), Err(CreditError::Exceeded));
        assert_eq!(
            SendCredit::new().add(Credit { bytes: 1, ..Credit::default() }),
            Err(CreditError::Inflated)
        );
        assert_eq!(
            SendCredit::new().add(Credit { bytes: u64::MAX, ..Credit::default() }),
            Err(CreditError::Inflated)
        );
    }

    proptest! {
        /// Whatever the order of sending and taking, both sides agree and nothing is stuck once all was taken.
        #[test]
        fn both_sides_agree(steps in prop::collection::vec((any::<bool>(), 0..=CHUNK_BYTES), 1..400)) {
            let (mut sender, mut receiver) = (SendCredit::new(), ReceiveCredit::new());
            let mut waiting = std::collections::VecDeque::new();
            for (take, bytes) in steps {
                if take {
                    if let Some(bytes) = waiting.pop_front() {
                        receiver.taken(bytes);
                    }
                } else if sender.take_piece(true, bytes) {
                    receiver.received_piece(true, bytes).unwrap();
                    receiver.completed(bytes);
                    waiting.push_back(bytes);
                }
                if let Some(grant) = receiver.grant() {
                    sender.add(grant).unwrap();
                }
                prop_assert!(waiting.iter().sum::<usize>() as u64 <= 2 * WINDOW_BYTES);
            }
            for bytes in waiting.drain(..) {
                receiver.taken(bytes);
                if let Some(grant) = receiver.grant() {
                    sender.add(grant).unwrap();
                }
            }
            prop_assert!(sender.take_piece(true, CHUNK_BYTES));
        }
    }
}
