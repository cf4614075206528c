//! Application and scheduler.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::codec::Head;
use super::progress::BarRecord;
use crate::ids::{ApplicationId, BundleDigest, JobId, SessionId, WorkerId, ranges};
use crate::limits::{self, HeadBounds};
use crate::spec::{BundleRef, JobOptions, OnDisconnect, Platform};
pub use crate::spec::{KeyedJob, content_digest};
use crate::status::Failure;
pub use crate::status::RefusalCause;

/// What an application tells the scheduler.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FromApplication {
    /// First message on every connection. The answer is [`ToApplication::Attached`]. An older connection of the same
    /// application is refused as superseded.
    Attach(Attach),
    /// Before the first submit of a shipped bundle on a connection. The answer is `BundleComplete` or `BundleWanted`.
    OfferBundle {
        /// The executable's digest.
        digest: BundleDigest,
        /// Its length.
        bytes: u64,
        /// What it was built for.
        platform: Platform,
    },
    /// Body: a piece of the bundle, compressed with zstd. Sent after `BundleWanted`, in order from the wanted offset. A
    /// repeat is ignored.
    BundleChunk {
        /// Whose piece it is.
        digest: BundleDigest,
        /// Where it starts.
        offset: u64,
        /// Its length before compression.
        bytes: u32,
    },
    /// New jobs, numbered on from `first`. Body: their payloads. Answered by `Accepted` once they are committed and the bundle
    /// is complete. A repeat is safe: sequences that were accepted before are only accepted again. There are no gaps, but for
    /// the first submit of a session to a scheduler that has lost what came before.
    Submit {
        /// Sequence of the first of them; the one behind the last one that was submitted.
        first: u64,
        /// The distinct options that occur.
        options: Vec<JobOptions>,
        /// The jobs in order, those in a row that are alike as one range.
        jobs: Vec<JobRange>,
        /// Those of them that have a key. Their results are asked for by [`JobId::keyed`], not by their sequence.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        keys: Vec<KeyedJob>,
    },
    /// The results of these jobs are waited for: each is sent once the job is terminal. Without it a result stays at the
    /// scheduler. A repeat sends a result again unless it was taken.
    Want {
        /// Which jobs.
        jobs: JobSet,
        /// Somebody waits for just these: send them whatever the credit.
        urgent: bool,
    },
    /// More results may be sent for jobs that are wanted, but not urgently.
    Credit(Credit),
    /// Results that were returned to the caller: the scheduler may forget their bodies. A repeat is ignored.
    Taken {
        /// Which jobs.
        jobs: JobSet,
    },
    /// The user's wish to stop these jobs. Each ends as cancelled unless it is terminal already. A repeat is ignored.
    Cancel {
        /// Which jobs.
        jobs: JobSet,
    },
    /// Which jobs does this application have, of this session and earlier ones? Answered by `Listed`, several times until one
    /// says that it is the last. Jobs whose results were taken are left out, unless they have a key.
    List {
        /// Comes back in the answers.
        request: u64,
        /// This one only.
        job: Option<JobId>,
    },
    /// The program leaves and means to come back: its jobs go on and their results are kept, whatever was said of a
    /// disconnect. Answered by `Detached`.
    Detach,
    /// The end of the application: what is left is cancelled, results are forgotten. Answered by `Stopped`.
    Stop,
}

impl Head for FromApplication {
    const NAME: &'static str = "FromApplication";
    const BOUNDS: HeadBounds = limits::FROM_APPLICATION;
}

/// Who attaches and on what terms.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Attach {
    /// The application.
    pub application: ApplicationId,
    /// This start of it.
    pub session: SessionId,
    /// Which executable runs its jobs.
    pub bundle: BundleRef,
    /// The services it will schedule; submits name them by index.
    pub services: Vec<String>,
    /// What becomes of the jobs when the connection has ended.
    pub on_disconnect: OnDisconnect,
    /// How often workers should measure the round trip to the progress server.
    pub progress_rtt_test: Duration,
    /// How many results may be sent at first for jobs that are wanted, but not urgently.
    pub credit: Credit,
}

/// Room at the client for results.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Credit {
    /// Results.
    pub results: u32,
    /// Bytes of their bodies; the last one may exceed it, and leaves no debt.
    pub bytes: u64,
}

/// Jobs of a submit that follow each other and differ in their payloads only.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct JobRange {
    /// How many.
    pub count: u32,
    /// Index into [`Attach::services`].
    pub service: u16,
    /// Index into the submit's options.
    pub options: u16,
    /// Length of each one's payload in the body.
    pub payload_bytes: u32,
}

impl JobRange {
    /// Adds a job to the last range if it is like that one's, else as a range of its own.
    pub fn push(ranges: &mut Vec<JobRange>, service: u16, options: u16, payload_bytes: u32) {
        match ranges.last_mut() {
            Some(last)
                if (last.service, last.options, last.payload_bytes) == (service, options, payload_bytes) =>
            {
                last.count += 1;
            }
            _ => ranges.push(JobRange { count: 1, service, options, payload_bytes }),
        }
    }
}

/// Jobs of one session, as ascending ranges of sequences.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JobSet {
    /// The session.
    pub session: SessionId,
    /// First and last sequence of each range, both included.
    pub ranges: Vec<(u64, u64)>,
}

impl JobSet {
    /// A single job.
    pub fn one(job: JobId) -> Self {
        Self { session: job.session, ranges: vec![(job.sequence, job.sequence)] }
    }

    /// These sequences of one session; they need not be sorted.
    pub fn from_sequences(session: SessionId, sequences: Vec<u64>) -> Self {
        Self { session, ranges: ranges(sequences) }
    }
}

/// What the scheduler tells an application.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToApplication {
    /// Answer to `Attach`.
    Attached {
        /// Counts the scheduler's starts on this store.
        epoch: u64,
        /// Every sequence of the session up to here was accepted or refused; 0 if none. Less than the application was told
        /// before means that the scheduler lost the jobs above it.
        accepted_through: u64,
    },
    /// The scheduler lacks the bundle from this offset on.
    BundleWanted {
        /// Which.
        digest: BundleDigest,
        /// What it has already.
        offset: u64,
    },
    /// The scheduler has the bundle, verified and synced.
    BundleComplete {
        /// Which.
        digest: BundleDigest,
    },
    /// The uploaded bytes have another digest, or the bundle is too large or can't be stored. Its jobs fail.
    BundleRefused {
        /// Which.
        digest: BundleDigest,
        /// Why, and what to do.
        reason: String,
    },
    /// Every sequence up to here is committed, or was refused.
    Accepted {
        /// The last of them.
        through: u64,
    },
    /// A job that the scheduler doesn't take. Its sequence is used up; later ones are not affected.
    Refused {
        /// Which.
        sequence: u64,
        /// Why, and what to do.
        reason: String,
        /// What kind of reason it is.
        #[serde(default)]
        cause: RefusalCause,
    },
    /// A job has ended. Body: its output, empty unless it finished. Answered by `Taken` once the caller has it.
    Result {
        /// Which.
        job: JobId,
        /// How it went.
        report: JobReport,
    },
    /// A job that was wanted, but whose result was taken before, or which is unknown.
    Gone {
        /// Which.
        job: JobId,
        /// Whether it was taken (else it is unknown: forgotten, or never accepted).
        taken: bool,
    },
    /// How many jobs of the application stand where. Sent when they changed, at most every
    /// [`TOTALS_INTERVAL`](crate::limits::TOTALS_INTERVAL).
    Totals(Totals),
    /// Some of the application's jobs, an answer to `List`.
    Listed {
        /// From the question.
        request: u64,
        /// Jobs by the name of their service, as many sets as there are sessions.
        jobs: Vec<(String, JobSet)>,
        /// Whether no more follow.
        last: bool,
    },
    /// Answer to `Detach`: it is committed.
    Detached,
    /// Answer to `Stop`.
    Stopped,
}

impl Head for ToApplication {
    const NAME: &'static str = "ToApplication";
    const BOUNDS: HeadBounds = limits::TO_APPLICATION;
}

/// How many jobs stand where.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Waiting.
    pub queued: u64,
    /// An attempt has begun.
    pub running: u64,
    /// Finished well.
    pub finished: u64,
    /// Ended otherwise, but for those that were cancelled.
    pub failed: u64,
    /// Cancelled.
    #[serde(default)]
    pub cancelled: u64,
}

/// How a job went.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct JobReport {
    /// Why it has no result, unless it finished.
    pub failure: Option<Failure>,
    /// The attempt that this is of; 0 if there was none.
    pub attempt: u32,
    /// How many of its attempts began.
    pub attempts: u32,
    /// Where the last attempt ran; none if none began.
    pub worker: Option<WorkerId>,
    /// From the submit to the beginning of the last attempt.
    pub queued: Duration,
    /// How long the last attempt ran.
    pub ran: Duration,
    /// Every bar's final record.
    pub bars: Vec<BarRecord>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_become_ranges() {
        let set = JobSet::from_sequences(SessionId(1), vec![7, 1, 2, 3, 3, 9, 8]);
        assert_eq!(set.ranges, [(1, 3), (7, 9)]);
        assert_eq!(JobSet::one(SessionId(1).job(4)).ranges, [(4, 4)]);
    }

    #[test]
    fn jobs_that_are_alike_become_one_range() {
        let mut ranges = Vec::new();
        for payload_bytes in [8, 8, 9, 8] {
            JobRange::push(&mut ranges, 1, 0, payload_bytes);
        }
        let counts: Vec<_> = ranges.iter().map(|range| (range.count, range.payload_bytes)).collect();
        assert_eq!(counts, [(2, 8), (1, 9), (1, 8)]);
    }
}
