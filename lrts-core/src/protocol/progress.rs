//! Bars: worker's progress subprocess, progress server and watching applications.
//!
//! Positions are absolute, so a lost or repeated batch does no harm.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::codec::Head;
use crate::ids::{ApplicationId, AttemptId, BarId, UserName};
use crate::limits::{self, HeadBounds};

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

/// An application as the progress server tells it from others: two users may have given theirs one name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct OwnedApplication {
    /// The user whose it is, and who alone may watch it. None where the scheduler has no keys.
    pub owner: Option<UserName>,
    /// Its name.
    pub application: ApplicationId,
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
        applications: Vec<(OwnedApplication, Vec<BarUpdate>)>,
    },
    /// These attempts have ended: their bars don't change any more.
    Ended {
        /// Application and its attempts.
        attempts: Vec<(OwnedApplication, AttemptId)>,
    },
}

impl Head for FromReporter {
    const NAME: &'static str = "FromReporter";
    const BOUNDS: HeadBounds = limits::BATCH;
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

impl Head for ToReporter {
    const NAME: &'static str = "ToReporter";
    const BOUNDS: HeadBounds = limits::SHORT_HEAD;
}

/// What a watching application tells the progress server.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FromWatcher {
    /// First message on every connection: send the bars of this application of the watcher's own user, all now, then what changes.
    Watch {
        /// Whose bars.
        application: ApplicationId,
    },
    /// The application has stopped: its bars can be forgotten.
    Forget,
}

impl Head for FromWatcher {
    const NAME: &'static str = "FromWatcher";
    const BOUNDS: HeadBounds = limits::SHORT_HEAD;
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

impl Head for ToWatcher {
    const NAME: &'static str = "ToWatcher";
    const BOUNDS: HeadBounds = limits::BATCH;
}
