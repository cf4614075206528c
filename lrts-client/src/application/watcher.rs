//! Progress on its way from the progress server to the display. Nothing else waits for it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::Moment;
use lrts_core::protocol::codec;
use lrts_core::protocol::progress::{BarUpdate, FromWatcher, ToWatcher};
use lrts_core::transport::{Link, LinkConfig, LinkEvent, LinkReceiver, LinkSender, Message};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::shell::Shared;

/// Hands bars to the display until the end comes. A round gathers what has come for up to `round`.
pub(super) async fn watch(
    shared: Arc<Shared>,
    config: LinkConfig,
    round: Duration,
    mut end: oneshot::Receiver<()>,
) {
    let (sender, mut receiver) = Link::open(config);
    loop {
        let event = tokio::select! {
            event = receiver.next() => event,
            _ = &mut end => break,
        };
        let mut updates = Vec::new();
        let mut next = Some(event);
        let deadline = Moment::now() + round;
        while let Some(event) = next {
            if !take(&shared, &sender, event, &mut updates).await {
                return;
            }
            next = if Moment::now() < deadline { at_once(&mut receiver).await } else { None };
        }
        if !updates.is_empty() {
            shared.display.updates(updates);
        }
    }
    if shared.with_engine(|engine, _| engine.is_stopped()) {
        say(&sender, &FromWatcher::Forget).await;
    }
    sender.close().await;
}

/// Takes one event; false if the link has ended for good.
async fn take(shared: &Shared, sender: &LinkSender, event: LinkEvent, updates: &mut Vec<BarUpdate>) -> bool {
    match event {
        LinkEvent::Up { .. } => {
            say(sender, &FromWatcher::Watch { application: shared.application }).await;
        }
        LinkEvent::Message(message) => match codec::decode(&message.head) {
            Ok(ToWatcher::Bars { updates: new }) => updates.extend(new),
            Err(error) => warn!(%error, "progress server sent something unreadable"),
        },
        LinkEvent::Down { reason } => debug!(reason, "no progress server"),
        LinkEvent::Refused(refusal) => {
            warn!(%refusal, "the progress server does not take this application, so no bars are shown");
            return false;
        }
    }
    true
}

/// The next event, if it is there already.
async fn at_once(receiver: &mut LinkReceiver) -> Option<LinkEvent> {
    tokio::select! {
        biased;
        event = receiver.next() => Some(event),
        () = std::future::ready(()) => None,
    }
}

async fn say(sender: &LinkSender, message: &FromWatcher) {
    // A link that went down meanwhile comes up again with another event, and the same is said then.
    let _ = sender.send(Message::new(codec::encode(message), Bytes::new())).await;
}
