//! Wire messages become events, and what is known of an attempt becomes wire messages. No wildcards: a new variant must be
//! given a meaning here.

use std::time::Duration;

use bytes::Bytes;
use lrts_core::ids::{AttemptId, BundleDigest};
use lrts_core::limits::{BARS_PER_NOTICE, BODY_BYTES};
use lrts_core::protocol::codec;
use lrts_core::protocol::host::{FromHost, Output, Payload};
use lrts_core::protocol::progress::BarRecord;
use lrts_core::protocol::worker::{AttemptEnd, Ended, HeldAttempt, LEASE_ENDED, Start, ToWorker};
use lrts_core::status::{Failure, FailureKind};

use crate::engine::{Conclusion, Event, Held};
use crate::hosts::{HostEnded, Notes};

/// What a message of the scheduler means here.
pub(crate) enum Meaning {
    /// Something for the engine.
    Event(Event),
    /// An attempt with its payload: kept by the event loop, its order goes to the engine.
    Order(Box<Start>),
    /// A piece of a bundle, or that there is none.
    Bundle(BundleNews),
    /// A question about an attempt's output.
    FetchOutput {
        /// Comes back in the answer.
        request: u64,
        /// Which.
        attempt: AttemptId,
    },
}

/// News of a wanted bundle.
pub(crate) enum BundleNews {
    /// A piece is in the body.
    Piece {
        /// Which.
        digest: BundleDigest,
        /// Where the piece starts.
        offset: u64,
        /// Its length before compression.
        bytes: u32,
        /// Length of the whole.
        total: u64,
    },
    /// The scheduler doesn't have it.
    Missing(BundleDigest),
}

/// Sorts a message.
pub(crate) fn meaning(message: ToWorker) -> Meaning {
    Meaning::Event(match message {
        ToWorker::Registered { store, epoch: _, heartbeat, lost_after, closed } => {
            Event::Registered { store, heartbeat, lost_after, closed }
        }
        ToWorker::Renewed { number } => Event::Renewed(number),
        ToWorker::SetHeartbeat { heartbeat } => Event::HeartbeatChanged(heartbeat),
        ToWorker::Stop { attempt, at_once } => Event::StopOrdered { attempt, at_once },
        ToWorker::Recall { attempt } => Event::RecallOrdered(attempt),
        ToWorker::Confirm { attempts } => Event::Confirmed(attempts),
        ToWorker::Start(start) => return Meaning::Order(Box::new(start)),
        ToWorker::BundleChunk { digest, offset, bytes, total } => {
            return Meaning::Bundle(BundleNews::Piece { digest, offset, bytes, total });
        }
        ToWorker::BundleMissing { digest } => return Meaning::Bundle(BundleNews::Missing(digest)),
        ToWorker::FetchOutput { request, attempt } => return Meaning::FetchOutput { request, attempt },
    })
}

/// What is wrong with this machine, if an attempt's end says that something is.
pub(crate) fn trouble(end: &AttemptEnd) -> Option<&str> {
    match end {
        AttemptEnd::Lost { reason } => Some(&**reason).filter(|&reason| reason != LEASE_ENDED),
        AttemptEnd::Finished | AttemptEnd::Failed(_) | AttemptEnd::Stopped => None,
    }
}

/// How an attempt ended, for the log: without what its service has said.
pub(crate) fn end_word(end: &AttemptEnd) -> &'static str {
    match end {
        AttemptEnd::Finished => "finished",
        AttemptEnd::Failed(_) => "failed",
        AttemptEnd::Stopped => "stopped",
        AttemptEnd::Lost { .. } => "lost",
    }
}

/// The inventory as it travels.
pub(crate) fn inventory(held: Vec<Held>) -> Vec<HeldAttempt> {
    let entry = |Held { attempt, running, pid, ended }| HeldAttempt { attempt, running, pid, ended };
    held.into_iter().map(entry).collect()
}

/// How an attempt ended, kept until the scheduler has confirmed it.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    end: AttemptEnd,
    ran: Duration,
    peak_memory_bytes: u64,
    bars: Vec<BarRecord>,
    /// Where the result is.
    pub(crate) output: Output,
    /// The kept end of stdout.
    pub(crate) stdout: Vec<u8>,
    /// The kept end of stderr.
    pub(crate) stderr: Vec<u8>,
}

impl Outcome {
    /// As a host tells it.
    pub(crate) fn told(ended: HostEnded) -> Self {
        let mut outcome = Self {
            end: ended.end,
            ran: ended.ran,
            peak_memory_bytes: ended.peak_memory_bytes,
            bars: ended.bars,
            output: ended.output,
            stdout: ended.stdout,
            stderr: ended.stderr,
        };
        if let Output::Spool { bytes } = outcome.output
            && bytes > BODY_BYTES
        {
            let text =
                format!("the output has {bytes} bytes: at most {BODY_BYTES} can be sent; write it to a file");
            outcome.end = AttemptEnd::Failed(Failure::new(FailureKind::Error, text));
            outcome.output = Output::default();
        }
        outcome
    }

    /// An end that no host has told.
    pub(crate) fn concluded(conclusion: Conclusion) -> Self {
        Self::without_output(match conclusion {
            Conclusion::Stopped => AttemptEnd::Stopped,
            Conclusion::Lost { reason } => AttemptEnd::Lost { reason },
        })
    }

    /// A result that can't be read from the disk any more: the job runs again.
    pub(crate) fn unreadable(&self, error: &std::io::Error) -> Self {
        Self {
            ran: self.ran,
            peak_memory_bytes: self.peak_memory_bytes,
            ..Self::without_output(AttemptEnd::Lost { reason: format!("its result can't be read: {error}") })
        }
    }

    /// The notices of a host that say the same, if it is worth keeping: a job that was stopped or lost runs again anyway.
    pub(crate) fn to_notices(
        &self,
        attempt: AttemptId,
        notes: Option<&Notes>,
        checkpoint: Option<&Bytes>,
    ) -> Option<Vec<Bytes>> {
        match self.end {
            AttemptEnd::Finished | AttemptEnd::Failed(_) => {}
            AttemptEnd::Stopped | AttemptEnd::Lost { .. } => return None,
        }
        let held =
            notes.map(|notes| FromHost::Held { attempt, notes: codec::encode(notes).to_vec(), run: None });
        let checkpoint =
            checkpoint.map(|state| FromHost::Checkpoint { attempt, state: Payload::Inline(state.to_vec()) });
        let bars = self.bars.chunks(BARS_PER_NOTICE);
        let bars = bars.map(|bars| FromHost::Bars { attempt, bars: bars.to_vec() });
        let texts = [(false, &self.stdout), (true, &self.stderr)];
        let texts = texts.map(|(stderr, text)| FromHost::Output { attempt, stderr, text: text.clone() });
        let ended = FromHost::Ended {
            attempt,
            end: self.end.clone(),
            output: self.output.clone(),
            ran: self.ran,
            peak_memory_bytes: self.peak_memory_bytes,
            region: None,
        };
        let notices = held.into_iter().chain(checkpoint).chain(bars).chain(texts).chain([ended]);
        Some(notices.map(|notice| codec::encode(&notice)).collect())
    }

    fn without_output(end: AttemptEnd) -> Self {
        Self {
            end,
            ran: Duration::ZERO,
            peak_memory_bytes: 0,
            bars: Vec::new(),
            output: Output::default(),
            stdout: Vec::new(),
            stderr: Vec::new(),
        }
    }

    /// The message's head and body, given the result's bytes.
    pub(crate) fn to_message(&self, attempt: AttemptId, mut output: Vec<u8>) -> (Ended, Bytes) {
        let text_bytes = |text: &[u8]| u32::try_from(text.len()).expect("a notice bounds it");
        let body_bytes = (output.len() as u64, text_bytes(&self.stdout), text_bytes(&self.stderr));
        let ended = Ended {
            attempt,
            end: self.end.clone(),
            ran: self.ran,
            peak_memory_bytes: self.peak_memory_bytes,
            body_bytes,
            bars: self.bars.clone(),
        };
        output.reserve_exact(self.stdout.len() + self.stderr.len());
        output.extend_from_slice(&self.stdout);
        output.extend_from_slice(&self.stderr);
        (ended, output.into())
    }
}

#[cfg(test)]
mod tests {
    use lrts_core::ids::SessionId;
    use lrts_core::protocol::codec::split_body;

    use super::*;

    fn told(output: Output) -> Outcome {
        Outcome::told(HostEnded {
            attempt: AttemptId { job: SessionId(1).job(1), attempt: 1 },
            end: AttemptEnd::Finished,
            output,
            ran: Duration::from_secs(1),
            peak_memory_bytes: 5,
            region: None,
            stdout: b"out".to_vec(),
            stderr: b"errors".to_vec(),
            bars: Vec::new(),
        })
    }

    #[test]
    fn the_body_has_output_stdout_and_stderr_in_this_order() {
        let attempt = AttemptId { job: SessionId(1).job(1), attempt: 1 };
        let (ended, body) = told(Output::default()).to_message(attempt, b"result".to_vec());
        let (output, stdout, stderr) = ended.body_bytes;
        let parts = split_body(&body, [output, stdout.into(), stderr.into()]).unwrap();
        assert_eq!(parts, ["result", "out", "errors"]);
    }

    #[test]
    fn a_lease_that_ends_says_nothing_of_the_machine() {
        let lost = |reason: &str| AttemptEnd::Lost { reason: reason.to_owned() };
        assert_eq!(trouble(&lost(LEASE_ENDED)), None);
        assert_eq!(trouble(&lost("the disk is gone")), Some("the disk is gone"));
        assert_eq!(trouble(&AttemptEnd::Stopped), None);
    }

    #[test]
    fn an_output_that_no_message_can_carry_is_a_failure_that_says_so() {
        assert_eq!(told(Output::Spool { bytes: BODY_BYTES }).end, AttemptEnd::Finished);
        let outcome = told(Output::Spool { bytes: BODY_BYTES + 1 });
        let AttemptEnd::Failed(failure) = outcome.end else { panic!("{:?}", outcome.end) };
        assert!(failure.message.contains("write it to a file"));
        assert_eq!(outcome.stderr, b"errors");
    }
}
