//! How many results the scheduler may send ahead of what streams have asked for.

use lrts_core::limits::{RESULT_WINDOW, RESULT_WINDOW_BYTES};
use lrts_core::protocol::application::Credit;

/// Books of the credit: both sides count alike, so nothing drifts. A result spends one and its bytes, at most all of them.
#[derive(Debug, Default)]
pub(super) struct ResultWindow {
    /// Granted and not spent.
    outstanding: Credit,
    /// Results here that were sent under credit.
    held: Credit,
}

impl ResultWindow {
    /// A new connection: what may be sent at first.
    pub(super) fn reset(&mut self) -> Credit {
        self.outstanding = Credit::default();
        let credit = self.missing();
        self.outstanding = credit;
        credit
    }

    /// A result came under credit.
    pub(super) fn arrived(&mut self, bytes: u64) {
        self.outstanding.results = self.outstanding.results.saturating_sub(1);
        self.outstanding.bytes = self.outstanding.bytes.saturating_sub(bytes);
    }

    /// It is kept.
    pub(super) fn hold(&mut self, bytes: u64) {
        self.held.results = self.held.results.saturating_add(1);
        self.held.bytes = self.held.bytes.saturating_add(bytes);
    }

    /// It is gone from here.
    pub(super) fn release(&mut self, bytes: u64) {
        self.held.results = self.held.results.saturating_sub(1);
        self.held.bytes = self.held.bytes.saturating_sub(bytes);
    }

    /// Whether the scheduler can send nothing more under credit.
    pub(super) fn is_spent(&self) -> bool {
        self.outstanding.results == 0 || self.outstanding.bytes == 0
    }

    /// Whether it is time to grant more: once a quarter of the window is free, so that grants stay few.
    pub(super) fn is_due(&self) -> bool {
        let missing = self.missing();
        missing.results >= RESULT_WINDOW / 4 || missing.bytes >= RESULT_WINDOW_BYTES / 4
    }

    /// Grants what is missing.
    pub(super) fn grant(&mut self) -> Credit {
        let missing = self.missing();
        self.outstanding.results += missing.results;
        self.outstanding.bytes += missing.bytes;
        missing
    }

    fn missing(&self) -> Credit {
        let (outstanding, held) = (self.outstanding, self.held);
        Credit {
            results: RESULT_WINDOW.saturating_sub(outstanding.results.saturating_add(held.results)),
            bytes: RESULT_WINDOW_BYTES.saturating_sub(outstanding.bytes.saturating_add(held.bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_released_is_granted_again() {
        let mut window = ResultWindow::default();
        assert_eq!(window.reset(), Credit { results: RESULT_WINDOW, bytes: RESULT_WINDOW_BYTES });
        for _ in 0..RESULT_WINDOW {
            window.arrived(10);
            window.hold(10);
        }
        assert!(window.is_spent() && !window.is_due());
        for _ in 0..RESULT_WINDOW / 4 {
            window.release(10);
        }
        assert!(window.is_due());
        assert_eq!(window.grant().results, RESULT_WINDOW / 4);
        assert!(!window.is_due() && !window.is_spent());
    }

    #[test]
    fn a_result_larger_than_the_window_leaves_no_debt() {
        let mut window = ResultWindow::default();
        window.reset();
        window.arrived(3 * RESULT_WINDOW_BYTES);
        window.hold(3 * RESULT_WINDOW_BYTES);
        assert!(window.is_spent());
        window.release(3 * RESULT_WINDOW_BYTES);
        assert_eq!(window.grant(), Credit { results: 1, bytes: RESULT_WINDOW_BYTES });
    }
}
