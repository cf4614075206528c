//! Progress on its way from the progress server to the display. Nothing else waits for it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::{Moment, sleep_until};
use lrts_core::protocol::codec;
use lrts_core::protocol::progress::{BarUpdate, FromWatcher, ToWatcher};
use lrts_core::transport::{Link, LinkConfig, LinkEvent, LinkReceiver, LinkSender, Message};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::outage::Outage;
use super::shell::Shared;
use crate::display::LogLevel;

/// Hands bars to the display until the end comes. A round gathers what has come for up to `round`.
pub(super) async fn watch(
    shared: Arc<Shared>,
    config: LinkConfig,
    round: Duration,
    mut end: oneshot::Receiver<()>,
) {
    let (sender, mut receiver) = Link::open(config.clone());
    let mut outage = Outage::new(Moment::now());
    loop {
        let event = tokio::select! {
            event = receiver.next() => event,
            _ = &mut end => break,
            () = sleep_until(outage.deadline()) => {
                // Without a scheduler there is nothing to be shown, and most often one cause for both.
                let reason = || {
                    let trouble = sender.trouble().unwrap_or_else(|| "no answer yet".to_owned());
                    shared.is_connected().then_some(trouble)
                };
                if let Some(news) = outage.news(Moment::now(), reason) {
                    let (level, line) = news.line(config.server, &config.address);
                    shared.display.log(level, &line);
                }
                continue;
            }
        };
        let mut updates = Vec::new();
        let mut next = Some(event);
        let deadline = Moment::now() + round;
        while let Some(event) = next {
            match &event {
                LinkEvent::Up { .. } => outage.up(Moment::now()),
                LinkEvent::Down { .. } => outage.down(Moment::now()),
                LinkEvent::Refused(refusal) => {
                    let address = &config.address;
                    let line =
                        format!("no bars, for the progress server at {address} can't be used: {refusal}");
                    shared.display.log(LogLevel::Warning, &line);
                    return;
                }
                LinkEvent::Message(_) => {}
            }
            take(&shared, &sender, event, &mut updates).await;
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

async fn take(shared: &Shared, sender: &LinkSender, event: LinkEvent, updates: &mut Vec<BarUpdate>) {
    match event {
        LinkEvent::Up { .. } => {
            say(sender, &FromWatcher::Watch { application: shared.application }).await;
        }
        LinkEvent::Message(message) => match codec::decode(&message.head) {
            Ok(ToWatcher::Bars { updates: new }) => updates.extend(new),
            Err(error) => warn!(%error, "progress server sent something unreadable"),
        },
        LinkEvent::Down { reason } => debug!(reason, "no progress server"),
        LinkEvent::Refused(refusal) => debug!(%refusal, "refused"),
    }
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
