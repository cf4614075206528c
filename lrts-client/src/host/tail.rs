//! The end of what a job prints.

use std::collections::VecDeque;

use lrts_core::limits::{FAILURE_OUTPUT_BYTES, FAILURE_OUTPUT_LINES, OUTPUT_BYTES};

/// The last [`OUTPUT_BYTES`] of a stream.
#[derive(Debug, Default)]
pub(super) struct Tail(VecDeque<u8>);

impl Tail {
    /// Appends; what is too old goes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(OUTPUT_BYTES)..];
        let excess = (self.0.len() + bytes.len()).saturating_sub(OUTPUT_BYTES);
        self.0.drain(..excess);
        self.0.extend(bytes);
    }

    /// What is kept.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0.into()
    }

    /// A copy of what is kept.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().copied().collect()
    }
}

/// The last lines of an output, few enough for a failure's message.
pub(super) fn last_lines(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(&output[output.len().saturating_sub(FAILURE_OUTPUT_BYTES)..]);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(FAILURE_OUTPUT_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept() {
        let mut tail = Tail::default();
        tail.push(b"begin");
        tail.push(&vec![b'x'; OUTPUT_BYTES - 3]);
        tail.push(b"end");
        let bytes = tail.to_bytes();
        assert_eq!(bytes.len(), OUTPUT_BYTES);
        assert!(bytes.starts_with(b"xxx") && bytes.ends_with(b"xend"));
        tail.push(&vec![b'y'; 3 * OUTPUT_BYTES]);
        assert_eq!(tail.into_bytes(), vec![b'y'; OUTPUT_BYTES]);
    }

    #[test]
    fn few_lines_are_quoted() {
        assert_eq!(last_lines(b""), "");
        assert_eq!(last_lines(b"one\ntwo\n\n"), "one\ntwo");
        let many: String = (0..100).map(|line| format!("{line}\n")).collect();
        assert_eq!(last_lines(many.as_bytes()), "90\n91\n92\n93\n94\n95\n96\n97\n98\n99");
        assert_eq!(last_lines(&[b'x'; 10_000]).len(), FAILURE_OUTPUT_BYTES);
    }
}
