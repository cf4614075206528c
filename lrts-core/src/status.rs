//! What became of a job.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a job stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum JobState {
    /// Waits for a slot, for its bundle or for a backoff to pass.
    Queued,
    /// An attempt has begun and has not ended.
    Running,
    /// Terminal: `run` returned a value.
    Finished,
    /// Terminal: `run` returned an error or panicked, or no worker can start the bundle.
    Failed,
    /// Terminal: its process died too often.
    Crashed,
    /// Terminal: a time limit passed.
    TimedOut,
    /// Terminal: the user cancelled it.
    Cancelled,
}

impl JobState {
    /// Every state, in the order of a job's life.
    pub const ALL: [JobState; 7] = [
        JobState::Queued,
        JobState::Running,
        JobState::Finished,
        JobState::Failed,
        JobState::Crashed,
        JobState::TimedOut,
        JobState::Cancelled,
    ];

    /// Whether the job has ended for good.
    pub fn is_terminal(self) -> bool {
        !matches!(self, JobState::Queued | JobState::Running)
    }

    /// The name in `lrts jobs --json`.
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Finished => "finished",
            JobState::Failed => "failed",
            JobState::Crashed => "crashed",
            JobState::TimedOut => "timed_out",
            JobState::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a job ended, in a word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ServiceStatus {
    /// `run` returned a value.
    Finished,
    /// `run` returned an error or panicked, or no worker can start the bundle.
    Failed,
    /// The process died.
    Crashed,
    /// A time limit passed.
    TimedOut,
    /// The user cancelled it.
    Cancelled,
}

/// Why a job has no result.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FailureKind {
    /// `run` returned an error.
    Error,
    /// `run` panicked.
    Panic,
    /// The process died without an answer: a signal, an exit code.
    Crashed,
    /// The process was killed for its memory.
    OutOfMemory,
    /// A time limit passed.
    TimedOut,
    /// The user cancelled the job.
    Cancelled,
    /// No worker can start the program.
    Bundle,
}

impl FailureKind {
    /// The state of a job that ended so.
    pub fn state(self) -> JobState {
        match self {
            FailureKind::Error | FailureKind::Panic | FailureKind::Bundle => JobState::Failed,
            FailureKind::Crashed | FailureKind::OutOfMemory => JobState::Crashed,
            FailureKind::TimedOut => JobState::TimedOut,
            FailureKind::Cancelled => JobState::Cancelled,
        }
    }

    /// The status of a job that ended so.
    pub fn status(self) -> ServiceStatus {
        match self {
            FailureKind::Error | FailureKind::Panic | FailureKind::Bundle => ServiceStatus::Failed,
            FailureKind::Crashed | FailureKind::OutOfMemory => ServiceStatus::Crashed,
            FailureKind::TimedOut => ServiceStatus::TimedOut,
            FailureKind::Cancelled => ServiceStatus::Cancelled,
        }
    }
}

/// Why a job has no result, and what happened in words.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct Failure {
    /// The kind.
    pub kind: FailureKind,
    /// For an error the chain of causes, for a panic its text and place, for a crash the signal or code and the last lines of
    /// stderr. At most [`FAILURE_MESSAGE_BYTES`](crate::limits::FAILURE_MESSAGE_BYTES).
    pub message: String,
}

impl Failure {
    /// A failure of this kind; an overlong message is cut.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        truncate(&mut message, crate::limits::FAILURE_MESSAGE_BYTES);
        Self { kind, message }
    }
}

/// Why a job isn't taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum RefusalCause {
    /// It is not as a job must be.
    #[default]
    Invalid,
    /// A job of the same key has another service or payload.
    KeyConflict,
    /// The scheduler's disk has no room for it.
    NoRoom,
    /// Its application has as many jobs, bytes or keys as one may have.
    Limit,
}

/// Where a worker stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WorkerState {
    /// Takes attempts.
    Ready,
    /// Silent or disconnected: takes nothing until it is heard again.
    Suspect,
    /// Takes nothing new and finishes what it has.
    Draining,
}

/// Cuts `text` to at most `bytes`, at the start of a character.
pub fn truncate(text: &mut String, bytes: usize) {
    text.truncate(text.floor_char_boundary(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_failure_is_a_terminal_state() {
        for kind in
            [FailureKind::Error, FailureKind::OutOfMemory, FailureKind::TimedOut, FailureKind::Cancelled]
        {
            assert!(kind.state().is_terminal());
        }
        assert!(!JobState::Queued.is_terminal() && !JobState::Running.is_terminal());
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let failure = Failure::new(FailureKind::Error, "ü".repeat(10_000));
        assert_eq!(failure.message.len(), crate::limits::FAILURE_MESSAGE_BYTES);
        let mut text = String::from("aü");
        truncate(&mut text, 2);
        assert_eq!(text, "a");
    }
}
