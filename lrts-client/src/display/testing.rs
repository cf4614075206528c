//! For the tests of this repository: the display without an application. No part of the public contract.

use std::time::Duration;

use lrts_core::ids::AttemptId;
use lrts_core::protocol::application::Totals;
use lrts_core::protocol::progress::{BarRecord, BarUpdate};

use super::{Display, LogLevel, ProgressDisplay, ProgressSink};

/// The display as an application drives it.
#[derive(Clone, Debug)]
pub struct TestDisplay(Display);

impl TestDisplay {
    /// Starts it.
    pub fn start(choice: ProgressDisplay, sink: Option<Box<dyn ProgressSink>>) -> Self {
        Self(Display::start(choice, sink))
    }

    /// Sets the stage.
    pub fn stage(&self, stage: &str) {
        self.0.stage(stage);
    }

    /// Sets the totals.
    pub fn totals(&self, totals: Totals) {
        self.0.totals(totals);
    }

    /// Brings updates as from the progress server.
    pub fn updates(&self, updates: Vec<BarUpdate>) {
        self.0.updates(updates);
    }

    /// Brings the final records of an attempt.
    pub fn ended(&self, attempt: AttemptId, records: Vec<BarRecord>) {
        self.0.ended(attempt, records);
    }

    /// Logs a line.
    pub fn log(&self, level: LogLevel, text: &str) {
        self.0.log(level, text);
    }

    /// Bounds a round of the sink.
    pub fn set_iteration_timeout(&self, most: Duration) {
        self.0.set_iteration_timeout(most);
    }

    /// Ends it.
    pub fn finish(&self) {
        self.0.finish();
    }
}
