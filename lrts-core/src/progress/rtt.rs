//! The round trip to the progress server, smoothed as TCP does it (RFC 6298). Pure.

use std::time::Duration;

/// Time between batches is never below or above these.
pub(crate) const PERIOD_MIN: Duration = Duration::from_millis(20);
/// See [`PERIOD_MIN`].
pub(crate) const PERIOD_MAX: Duration = Duration::from_secs(1);

/// The estimate.
#[derive(Debug, Default)]
pub(crate) struct RoundTrip(Option<Estimate>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Estimate {
    smoothed: Duration,
    variation: Duration,
}

impl RoundTrip {
    /// Takes in one measurement. The first counts in full, later ones by an eighth (their deviation by a quarter).
    pub(crate) fn add(&mut self, sample: Duration) {
        self.0 = Some(match self.0 {
            None => Estimate { smoothed: sample, variation: sample / 2 },
            Some(Estimate { smoothed, variation }) => Estimate {
                variation: (variation * 3 + smoothed.abs_diff(sample)) / 4,
                smoothed: (smoothed * 7 + sample) / 8,
            },
        });
    }

    /// How often to send: once a round trip, within the bounds. Unmeasured lines count as short ones.
    ///
    /// An answer that has been waited for longer than the round trip and four times its variation (TCP's time-out) says that
    /// the line has slowed: `waiting`, the time waited so far, then counts instead.
    pub(crate) fn period(&self, waiting: Option<Duration>) -> Duration {
        let (smoothed, usual) = self.0.map_or((PERIOD_MIN, PERIOD_MIN), |estimate| {
            (estimate.smoothed, estimate.smoothed + 4 * estimate.variation)
        });
        let overdue = waiting.filter(|&waiting| waiting > usual);
        overdue.unwrap_or(smoothed).clamp(PERIOD_MIN, PERIOD_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn estimate_follows_rfc_6298() {
        let mut rtt = RoundTrip::default();
        rtt.add(ms(100));
        assert_eq!(rtt.0, Some(Estimate { smoothed: ms(100), variation: ms(50) }));
        rtt.add(ms(180));
        // 3/4 * 50 + 1/4 * |100 - 180|, then 7/8 * 100 + 1/8 * 180.
        assert_eq!(rtt.0, Some(Estimate { smoothed: ms(110), variation: Duration::from_micros(57_500) }));
    }

    #[test]
    fn period_stays_within_its_bounds() {
        let mut rtt = RoundTrip::default();
        assert_eq!(rtt.period(None), PERIOD_MIN);
        rtt.add(Duration::from_micros(80));
        assert_eq!(rtt.period(None), PERIOD_MIN);
        for _ in 0..100 {
            rtt.add(ms(300));
        }
        assert!(rtt.period(None) > ms(290) && rtt.period(None) <= ms(300), "{:?}", rtt.period(None));
        for _ in 0..100 {
            rtt.add(Duration::from_secs(30));
        }
        assert_eq!(rtt.period(None), PERIOD_MAX);
    }

    #[test]
    fn overdue_answers_slow_down_before_they_have_come() {
        let mut rtt = RoundTrip::default();
        assert_eq!(rtt.period(Some(ms(500))), ms(500));
        rtt.add(ms(100));
        assert_eq!(rtt.period(Some(ms(300))), ms(100));
        assert_eq!(rtt.period(Some(ms(301))), ms(301));
        assert_eq!(rtt.period(Some(ms(60_000))), PERIOD_MAX);
    }
}
