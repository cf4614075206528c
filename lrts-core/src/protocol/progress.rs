//! Bars: worker's progress subprocess, progress server and watching applications.
//!
//! Positions are absolute, so a lost or repeated batch does no harm.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{ApplicationId, AttemptId, BarId};

/// A bar's colour.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Color {
    /// The terminal's own colour.
    #[default]
    Default,
    /// Red.
    Red,
    /// Green.
    Green,
    /// Yellow.
    Yellow,
    /// Blue.
    Blue,
    /// Magenta.
    Magenta,
    /// Cyan.
    Cyan,
    /// White.
    White,
}

/// What a bar shows beside its numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct BarText {
    /// In front of the bar.
    pub description: String,
    /// Behind the bar; empty if none.
    pub message: String,
    /// What is counted, for example `rows`.
    pub unit: String,
    /// Its colour.
    pub color: Color,
    /// Whether it stays on the screen after it was closed.
    pub leave: bool,
}

/// A bar's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct BarNumbers {
    /// How far it is.
    pub position: u64,
    /// How far it will go, if that is known.
    pub total: Option<u64>,
    /// Whether the job has closed it, or has ended.
    pub closed: bool,
    /// Since it was started; until it was closed, if it is.
    pub elapsed: Duration,
}

/// The whole state of one bar of an attempt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BarRecord {
    /// Which bar of the attempt.
    pub index: u32,
    /// What it shows.
    pub text: BarText,
    /// Its numbers.
    pub numbers: BarNumbers,
}

/// What changed of one bar.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BarUpdate {
    /// Which.
    pub bar: BarId,
    /// What it shows, if that is new to the receiver.
    pub text: Option<BarText>,
    /// Its numbers.
    pub numbers: BarNumbers,
}

/// What a worker's progress subprocess tells the progress server.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FromReporter {
    /// To measure the round trip; answered by [`ToReporter::Pong`].
    Ping {
        /// Comes back in the answer.
        number: u64,
    },
    /// What changed since the batch before, per application. The first batch of a connection has every bar with its text.
    Batch {
        /// Application and its bars.
        applications: Vec<(ApplicationId, Vec<BarUpdate>)>,
    },
    /// These attempts have ended: their bars don't change any more.
    Ended {
        /// Application and its attempts.
        attempts: Vec<(ApplicationId, AttemptId)>,
    },
}

/// What the progress server tells a progress subprocess.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToReporter {
    /// Answer to `Ping`.
    Pong {
        /// From the question.
        number: u64,
    },
}

/// What a watching application tells the progress server.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FromWatcher {
    /// First message on every connection: send the bars of this application, all now, then what changes.
    Watch {
        /// Whose bars.
        application: ApplicationId,
    },
    /// The application has stopped: its bars can be forgotten.
    Forget,
}

/// What the progress server tells a watching application.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToWatcher {
    /// What changed; after `Watch` every bar with its text.
    Bars {
        /// The bars.
        updates: Vec<BarUpdate>,
    },
}
