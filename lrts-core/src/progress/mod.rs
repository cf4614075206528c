//! Bars in shared memory: written by job processes, read by the worker's progress subprocess and, at a job's end, by its host.
//!
//! ```text
//! job process ── stores ──► region of the host's arena (memfd) ◄── loads ── progress subprocess ── batches ──► server
//!                                     ▲ read, never mapped
//!                                  job host
//! ```
//! A job counts by plain stores to its own region and never waits for anybody. Whoever reads trusts nothing there: a job may
//! crash anywhere, or write nonsense. `record.rs` has the layout.

mod arena;
mod bar;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod handle;
mod record;
mod reporter;
mod rtt;
mod scan;

use crate::limits::{BAR_DESCRIPTION_BYTES, BAR_MESSAGE_BYTES, BAR_UNIT_BYTES};
use crate::protocol::progress::BarText;

pub use self::arena::{Arena, REGION_BYTES, REGIONS};
pub use self::bar::{BarWriter, Region};
pub use self::handle::{Reporter, ReporterConfig, ReporterEvent, Watched};
pub use self::reporter::run_progress_mode;

/// Brings a bar's text within its bounds: no control characters, cut at a character's start.
pub fn bounded(text: &BarText) -> BarText {
    BarText {
        description: bounded_line(&text.description, BAR_DESCRIPTION_BYTES),
        message: bounded_line(&text.message, BAR_MESSAGE_BYTES),
        unit: bounded_line(&text.unit, BAR_UNIT_BYTES),
        color: text.color,
        leave: text.leave,
    }
}

/// Whether a text is as [`bounded`] makes it.
pub fn is_bounded(text: &BarText) -> bool {
    let parts = [
        (&text.description, BAR_DESCRIPTION_BYTES),
        (&text.message, BAR_MESSAGE_BYTES),
        (&text.unit, BAR_UNIT_BYTES),
    ];
    parts.into_iter().all(|(part, bytes)| part.len() <= bytes && !part.chars().any(char::is_control))
}

fn bounded_line(text: &str, bytes: usize) -> String {
    // Taken lazily: a text of any length costs no more than its bound.
    let mut line = String::new();
    for character in text.chars().filter(|character| !character.is_control()) {
        if line.len() + character.len_utf8() > bytes {
            break;
        }
        line.push(character);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_a_character_and_loses_control_characters() {
        let text = BarText {
            description: "ü".repeat(100),
            message: "a\x1b[31mb\nc".to_owned(),
            ..BarText::default()
        };
        assert!(!is_bounded(&text));
        let bounded = bounded(&text);
        assert_eq!(bounded.description, "ü".repeat(BAR_DESCRIPTION_BYTES / 2));
        assert_eq!(bounded.message, "a[31mbc");
        assert!(is_bounded(&bounded));
    }
}
