//! What the log says of strangers that were sent away.

use std::net::SocketAddr;
use std::time::Duration;

use tracing::warn;

use crate::clock::Moment;

/// Between two lines about strangers that were sent away.
const TURNED_AWAY_INTERVAL: Duration = Duration::from_secs(10);

/// Strangers that were sent away: told of at once, then in sums, so that a flood of them doesn't flood the log.
#[derive(Debug, Default)]
pub(crate) struct TurnedAway {
    /// Since the last line about them.
    count: u64,
    last: Option<(SocketAddr, String)>,
    told: Option<Moment>,
}

impl TurnedAway {
    pub(crate) fn note(&mut self, address: SocketAddr, reason: &dyn std::fmt::Display) {
        self.count += 1;
        self.last = Some((address, reason.to_string()));
        self.tell(Moment::now());
    }

    pub(crate) fn tell(&mut self, now: Moment) {
        if self.told.is_some_and(|told| now.since(told) < TURNED_AWAY_INTERVAL) {
            return;
        }
        if let Some((address, reason)) = self.last.take() {
            warn!(%address, reason, count = self.count, "turned away a peer");
            self.told = Some(now);
            self.count = 0;
        }
    }
}
