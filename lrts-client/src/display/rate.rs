//! How fast something goes, from positions at times.

use std::time::Duration;

/// A smoothed recent rate.
///
/// Each observation contributes its own rate, weighted by the time that it covers; weights fall by a factor of e per span of
/// memory. Divided by the sum of the weights, so that the rate is right from the first observation on: until one span of
/// memory has passed it is nearly the plain average. A pause longer than the step before it counts as no progress.
#[derive(Clone, Debug)]
pub(super) struct Rate {
    /// Seconds after which an observation counts 1/e as much.
    memory: f64,
    at: Duration,
    position: u64,
    last_step: f64,
    sum: f64,
    weight: f64,
}

/// Two observations closer than this are taken as one: a rate of so short a time would be noise.
const SHORTEST_STEP: Duration = Duration::from_millis(1);

impl Rate {
    /// Starts at this position at time zero.
    pub(super) fn new(memory: Duration, position: u64) -> Self {
        let memory = memory.as_secs_f64();
        Self { memory, at: Duration::ZERO, position, last_step: 0.0, sum: 0.0, weight: 0.0 }
    }

    /// Takes note of where it stands at a time. A position that went back starts anew from there.
    pub(super) fn observe(&mut self, at: Duration, position: u64) {
        let Some(progress) = position.checked_sub(self.position) else {
            (self.sum, self.weight, self.last_step) = (0.0, 0.0, 0.0);
            (self.at, self.position) = (at, position);
            return;
        };
        let step = at.saturating_sub(self.at);
        if step < SHORTEST_STEP {
            return;
        }
        let step = step.as_secs_f64();
        let kept = (-step / self.memory).exp();
        #[expect(clippy::cast_precision_loss, reason = "a rate is an estimate")]
        let rate = progress as f64 / step;
        self.sum = self.sum * kept + rate * (1.0 - kept);
        self.weight = self.weight * kept + (1.0 - kept);
        (self.at, self.position, self.last_step) = (at, position, step);
    }

    /// The rate as it looks at a time; none before the first observation.
    pub(super) fn per_second(&self, at: Duration) -> Option<f64> {
        let idle = (at.saturating_sub(self.at).as_secs_f64() - self.last_step).max(0.0);
        let kept = (-idle / self.memory).exp();
        (self.weight > 0.0).then(|| self.sum * kept / (self.weight * kept + (1.0 - kept)))
    }

    /// How long this much more takes at the present rate; none if that can't be told, or takes longer than 1,000 days.
    pub(super) fn time_for(&self, remaining: u64, at: Duration) -> Option<Duration> {
        #[expect(clippy::cast_precision_loss, reason = "an ETA is an estimate")]
        let seconds = remaining as f64 / self.per_second(at)?;
        (seconds < 86_400_000.0).then(|| Duration::from_secs_f64(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Duration = Duration::from_secs(10);

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn assert_close(value: Option<f64>, expected: f64) {
        let value = value.unwrap();
        assert!((value - expected).abs() < expected * 0.05, "{value} is not about {expected}");
    }

    #[test]
    fn first_observation_gives_the_average() {
        let mut rate = Rate::new(MEMORY, 0);
        assert_eq!(rate.per_second(secs(0)), None);
        rate.observe(secs(4), 8);
        assert_close(rate.per_second(secs(4)), 2.0);
        assert_eq!(rate.time_for(6, secs(4)), Some(secs(3)));
    }

    #[test]
    fn rate_follows_a_change_within_a_few_spans() {
        let mut rate = Rate::new(MEMORY, 0);
        for second in 1..=60 {
            rate.observe(secs(second), second * 100);
        }
        assert_close(rate.per_second(secs(60)), 100.0);
        for second in 61..=120 {
            rate.observe(secs(second), 6_000 + (second - 60) * 10);
        }
        assert_close(rate.per_second(secs(120)), 10.0);
    }

    #[test]
    fn pause_lets_the_rate_fall_and_a_slow_beat_does_not() {
        let mut rate = Rate::new(MEMORY, 0);
        rate.observe(secs(60), 1);
        assert_close(rate.per_second(secs(115)), 1.0 / 60.0);
        assert!(rate.per_second(secs(180)).unwrap() < 1.0 / 600.0);
        assert_eq!(rate.time_for(1, secs(100_000)), None);
    }

    #[test]
    fn going_back_starts_anew_and_tiny_steps_add_up() {
        let mut rate = Rate::new(MEMORY, 0);
        rate.observe(secs(1), 100);
        rate.observe(secs(2), 0);
        assert_eq!(rate.per_second(secs(2)), None);
        rate.observe(secs(2) + Duration::from_nanos(5), 1_000_000);
        assert_eq!(rate.per_second(secs(2)), None);
        rate.observe(secs(3), 1_000_000);
        assert_close(rate.per_second(secs(3)), 1_000_000.0);
    }
}
