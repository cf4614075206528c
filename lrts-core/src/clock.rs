//! The only code that reads the clock.
//!
//! Leases and back-offs count in [`Moment`]s of the boot-time clock: std's `Instant` stops while a machine is suspended, and
//! the wall clock jumps. A `Moment` never leaves its process; wires carry durations.

use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

/// A point in time: nanoseconds since the machine booted, suspended time included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Moment(u64);

impl Moment {
    /// The present moment.
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has a boot-time clock");
        Self::from(Duration::from(time))
    }

    /// The moment this many nanoseconds after boot, as read from memory shared within one machine.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot, for memory shared within one machine.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Blocks the calling thread until this moment, or a little less if a signal comes. Time in suspend and in SIGSTOP counts.
    pub fn wait(self) {
        let request = Duration::from_nanos(self.0).into();
        let _ = clock_nanosleep(ClockId::CLOCK_BOOTTIME, ClockNanosleepFlags::TIMER_ABSTIME, &request);
    }

    /// Time that has passed since this moment.
    pub fn elapsed(self) -> Duration {
        Self::now().since(self)
    }
}

impl From<Duration> for Moment {
    /// The moment this long after boot.
    fn from(since_boot: Duration) -> Self {
        Self(u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, span: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;

    fn sub(self, span: Duration) -> Moment {
        Moment(self.0.saturating_sub(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Waits until `deadline` on tokio's timer; for ever if there is none.
pub async fn sleep_until(deadline: Option<Moment>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(Moment::now())).await,
        None => std::future::pending().await,
    }
}

/// The wall clock, in time since 1970, for what people read and for ages of files.
#[expect(clippy::disallowed_methods, reason = "this file is where the clock is read")]
pub fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_count_forward_and_never_below_zero() {
        let start = Moment::now();
        assert!(Moment::now() >= start);
        assert_eq!((start + Duration::from_secs(2)).since(start), Duration::from_secs(2));
        assert_eq!(start.since(start + Duration::from_secs(2)), Duration::ZERO);
        assert_eq!(Moment::default() - Duration::from_secs(1), Moment::default());
    }

    #[test]
    fn a_moment_is_waited_for_unless_it_has_passed() {
        let wanted = Moment::now() + Duration::from_millis(20);
        wanted.wait();
        assert!(Moment::now() >= wanted);
        Moment::default().wait();
    }
}
