//! Ending in order: asked once a daemon finishes what it must, asked twice it ends at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The wish to end, shared by all tasks of a daemon.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    in_order: CancellationToken,
    at_once: CancellationToken,
}

impl Shutdown {
    /// Nobody has asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asked by SIGTERM and SIGINT: the first in order, a second at once. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// If the signal handlers can't be installed.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let asked = shutdown.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if asked.is_requested() {
                    warn!("ending at once");
                    asked.at_once.cancel();
                } else {
                    info!("ending in order; a second signal ends at once");
                    asked.request();
                }
            }
        });
        Ok(shutdown)
    }

    /// Asks to end in order.
    pub fn request(&self) {
        self.in_order.cancel();
    }

    /// Asks to end at once.
    pub fn request_at_once(&self) {
        self.in_order.cancel();
        self.at_once.cancel();
    }

    /// Whether somebody has asked.
    pub fn is_requested(&self) -> bool {
        self.in_order.is_cancelled()
    }

    /// Returns once somebody has asked. Safe to cancel.
    pub async fn requested(&self) {
        self.in_order.cancelled().await;
    }

    /// Returns once somebody has asked to end at once. Safe to cancel.
    pub async fn immediate(&self) {
        self.at_once.cancelled().await;
    }
}
