//! The watch over a server's keys: new ones and revocations reach connected peers.

use std::sync::Arc;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::router::Shared;
use crate::clock::Moment;
use crate::keys::KeySource;
use crate::limits::{KEYS_CHECK_INTERVAL, KEYS_INTERVAL};

/// Looks for new keys and revocations.
pub(crate) async fn run(source: KeySource, shared: Arc<Shared>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(KEYS_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = source.current_or_last().ok();
    let mut checked = Moment::now();
    let mut trouble = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        match source.current() {
            Ok(ring) => {
                trouble = None;
                let changed = seen.as_ref().is_none_or(|seen| !Arc::ptr_eq(seen, &ring));
                if changed {
                    info!(identity = %ring.identity(), "keys have changed");
                }
                if changed || checked.elapsed() > KEYS_CHECK_INTERVAL {
                    shared.check_keys(&source).await;
                    checked = Moment::now();
                }
                seen = Some(ring);
            }
            Err(error) => {
                let text = error.to_string();
                if trouble.as_ref() != Some(&text) {
                    warn!(%error, "keys can't be read, those from before go on");
                    trouble = Some(text);
                }
            }
        }
    }
}
