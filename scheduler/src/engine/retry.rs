//! Whether a failed job is run again, and when.

use std::time::Duration;

use lrts_core::limits::{RETRY_BACKOFF_MAX, RETRY_BACKOFF_MIN};
use lrts_core::status::{Failure, FailureKind};

/// What a failed attempt means for its job.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Run again after this time.
    Again(Duration),
    /// The job has failed for good.
    Terminal(Failure),
}

/// How often a job has failed so far, this time included.
#[derive(Clone, Copy, Debug)]
pub(super) struct Charges {
    /// Returned errors and panics.
    pub(super) failures: u32,
    /// Dead processes.
    pub(super) crashes: u32,
}

/// Whether dead processes are what this kind of failure is about, which count apart from returned errors.
pub(super) fn is_crash(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Crashed | FailureKind::OutOfMemory)
}

/// Judges a failure that has been charged already.
pub(super) fn judge(
    failure: Failure,
    charges: Charges,
    retries: u32,
    crash_limit: u32,
    jitter: &mut Jitter,
) -> Verdict {
    match failure.kind {
        FailureKind::Crashed | FailureKind::OutOfMemory if charges.crashes < crash_limit => {
            Verdict::Again(jitter.backoff(charges.crashes))
        }
        FailureKind::Crashed | FailureKind::OutOfMemory => {
            let crashes = match charges.crashes {
                1 => "1 crash".to_owned(),
                crashes => format!("{crashes} crashes"),
            };
            Verdict::Terminal(Failure::new(
                failure.kind,
                format!("parked after {crashes}: {}", failure.message),
            ))
        }
        FailureKind::Error | FailureKind::Panic if charges.failures <= retries => {
            Verdict::Again(jitter.backoff(charges.failures))
        }
        // Time limits, cancels and bundles that can't start would only end the same way again.
        FailureKind::Error
        | FailureKind::Panic
        | FailureKind::TimedOut
        | FailureKind::Cancelled
        | FailureKind::Bundle
        | _ => Verdict::Terminal(failure),
    }
}

/// Seeded random numbers: equal seeds give equal decisions. (The splitmix64 sequence.)
#[derive(Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The wait before the run that follows the `count`th failure: doubles from one to the next, a fifth more or less.
    pub(super) fn backoff(&mut self, count: u32) -> Duration {
        let doublings = count.saturating_sub(1).min(16);
        let base = RETRY_BACKOFF_MIN.saturating_mul(1 << doublings).min(RETRY_BACKOFF_MAX);
        let permille = 800 + (self.next() % 401) as u32;
        base * permille / 1_000
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_a_minute_with_jitter() {
        let mut jitter = Jitter::new(1);
        for (count, seconds) in [(1, 1.0), (2, 2.0), (3, 4.0), (6, 32.0), (7, 60.0), (u32::MAX, 60.0)] {
            for _ in 0..100 {
                let wait = jitter.backoff(count).as_secs_f64();
                assert!((0.8 * seconds..=1.2 * seconds).contains(&wait), "{wait} after failure {count}");
            }
        }
        assert_ne!(jitter.backoff(1), jitter.backoff(1));
    }

    #[test]
    fn errors_and_crashes_count_apart() {
        let judge = |kind, failures, crashes| {
            judge(Failure::new(kind, "why"), Charges { failures, crashes }, 1, 3, &mut Jitter::new(1))
        };
        assert!(matches!(judge(FailureKind::Error, 1, 2), Verdict::Again(_)));
        assert!(matches!(judge(FailureKind::Panic, 2, 0), Verdict::Terminal(_)));
        assert!(matches!(judge(FailureKind::Crashed, 5, 2), Verdict::Again(_)));
        let Verdict::Terminal(failure) = judge(FailureKind::OutOfMemory, 0, 3) else { panic!("not parked") };
        assert_eq!(failure.message, "parked after 3 crashes: why");
    }
}
