//! What the log says of peers that were sent away.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use tracing::{info, warn};

use super::counters::Cause;
use crate::clock::Moment;

/// Between two lines about peers that were sent away for the same cause.
const TURNED_AWAY_INTERVAL: Duration = Duration::from_secs(10);

/// Peers that were sent away, with a key or without: told of at once, then in sums, so that a flood of them doesn't flood the log.
/// Each cause by itself, so that none hides another.
#[derive(Debug, Default)]
pub(crate) struct TurnedAway(BTreeMap<Cause, Sum>);

/// Those of one cause since the last line about them.
#[derive(Debug, Default)]
struct Sum {
    count: u64,
    last: Option<(SocketAddr, String)>,
    told: Option<Moment>,
}

/// One line of the log: the last peer, and how many there were with it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) struct Line {
    cause: Cause,
    address: SocketAddr,
    reason: String,
    count: u64,
}

impl TurnedAway {
    /// One more was sent away.
    pub(crate) fn note(&mut self, cause: Cause, address: SocketAddr, reason: &dyn Display) {
        let sum = self.0.entry(cause).or_default();
        sum.count += 1;
        sum.last = Some((address, reason.to_string()));
    }

    /// What is to be told of those that were noted since the last line.
    pub(crate) fn due(&mut self, now: Moment) -> impl Iterator<Item = Line> {
        self.0.iter_mut().filter_map(move |(&cause, sum)| sum.tell(cause, now))
    }
}

impl Sum {
    fn tell(&mut self, cause: Cause, now: Moment) -> Option<Line> {
        if self.told.is_some_and(|told| now.since(told) < TURNED_AWAY_INTERVAL) {
            return None;
        }
        let (address, reason) = self.last.take()?;
        self.told = Some(now);
        Some(Line { cause, address, reason, count: std::mem::take(&mut self.count) })
    }
}

impl Line {
    pub(crate) fn log(&self) {
        let Self { cause, address, reason, count } = self;
        match cause {
            Cause::Full
            | Cause::Protocol
            | Cause::Keys
            | Cause::Owner
            | Cause::Limit
            | Cause::NoHello
            | Cause::QueueFull
            | Cause::Fault => warn!(%cause, %address, reason, count, "turned away a peer"),
            // As happens in a cluster that is restarted, upgraded, or has lost a machine.
            Cause::Version
            | Cause::Role
            | Cause::ShuttingDown
            | Cause::Superseded
            | Cause::Silent
            | Cause::Stalled => info!(%cause, %address, reason, count, "turned away a peer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Moment = Moment::from_nanos(1_000_000_000_000);

    fn address(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    fn line(cause: Cause, port: u16, count: u64) -> Line {
        Line { cause, address: address(port), reason: format!("number {port}"), count }
    }

    /// One a millisecond for a minute, by a peer with a key and by one without.
    #[test]
    fn a_flood_of_peers_makes_a_line_for_each_cause_at_once_and_then_in_each_interval() {
        let mut turned_away = TurnedAway::default();
        let mut lines = Vec::new();
        for number in 0..60_000_u16 {
            let now = T0 + Duration::from_millis(number.into());
            for cause in [Cause::Role, Cause::Keys] {
                turned_away.note(cause, address(number), &format!("number {number}"));
            }
            lines.extend(turned_away.due(now));
        }
        assert_eq!(lines[..2], [line(Cause::Role, 0, 1), line(Cause::Keys, 0, 1)]);
        let later = (1..6).map(|interval| line(Cause::Keys, interval * 10_000, 10_000));
        let told = lines[2..].iter().filter(|line| line.cause == Cause::Keys).cloned();
        assert!(told.eq(later), "{lines:?}");
        assert_eq!(lines.len(), 12);
        // The last ones are told of although nobody comes after them.
        let rest: Vec<Line> = turned_away.due(T0 + Duration::from_mins(1)).collect();
        assert_eq!(rest, [Cause::Role, Cause::Keys].map(|cause| line(cause, 59_999, 9_999)));
        assert_eq!(turned_away.due(T0 + Duration::from_hours(1)).count(), 0);
    }
}
