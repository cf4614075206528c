//! The application's thread: its runtime, the link to the scheduler, the program to be shipped.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::bundle::{digest_file, read_chunk};
use lrts_core::clock::{Moment, sleep_until};
use lrts_core::ids::BundleDigest;
use lrts_core::protocol::codec;
use lrts_core::spec::{BundleRef, Platform};
use lrts_core::transport::{
    Link, LinkConfig, LinkEvent, LinkSender, Message, Refusal, RefusalKind, SocketDir, TrySendError,
};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::engine::{Event, Fatal, Offer, Step};
use super::outage::Outage;
use super::shell::Shared;
use super::watcher;

/// How long threads that read the program may keep the end waiting.
const RUNTIME_END: Duration = Duration::from_millis(500);

/// How long the link's goodbye may take when the time is up already.
const SHORTEST_FAREWELL: Duration = Duration::from_millis(100);

/// How long the watcher's last word may take.
const WATCHER_END: Duration = Duration::from_millis(500);

/// What runs the jobs.
#[derive(Clone, Debug)]
pub(super) enum Program {
    /// To be shipped. The descriptor goes on reading the file that was opened, whatever takes its name.
    Shipped(Arc<File>),
    Installed(String),
}

/// Everything that the thread needs.
pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) program: Program,
    pub(super) scheduler: LinkConfig,
    /// None if nobody looks at progress.
    pub(super) progress_server: Option<LinkConfig>,
    pub(super) progress_iteration: Duration,
    pub(super) sockets: SocketDir,
}

/// What is under way on other threads.
#[derive(Default)]
struct Background {
    /// The program's digest and length.
    digest: Option<JoinHandle<io::Result<(BundleDigest, u64)>>>,
    chunk: Option<Chunk>,
}

/// A piece of the program that is being read.
struct Chunk {
    offset: u64,
    /// Compressed bytes, and their length before.
    task: JoinHandle<io::Result<(Bytes, u32)>>,
}

/// This machine's name, for people.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

impl Driver {
    /// Runs the application to its end.
    pub(super) fn run(self, runtime: Runtime) {
        runtime.block_on(Box::pin(self.drive()));
        runtime.shutdown_timeout(RUNTIME_END);
        self.shared.display.finish();
        self.shared.report_unsent();
        // Only now: the link's sockets were in it.
        drop(self.sockets);
    }

    async fn drive(&self) {
        let shared = &self.shared;
        let (sender, mut receiver) = Link::open(self.scheduler.clone());
        shared.set_link(sender.clone());
        let (end_watcher, watcher_end) = oneshot::channel();
        let watcher = self.progress_server.clone().map(|config| {
            let round = self.progress_iteration;
            tokio::spawn(watcher::watch(Arc::clone(shared), config, round, watcher_end))
        });
        let mut background = Background::default();
        self.find_bundle(&mut background);
        let mut outage = Outage::new(Moment::now());
        // A message that waits for room in the link's queue.
        let mut outgoing = None;
        let farewell = loop {
            let reason = || Some(sender.trouble().unwrap_or_else(|| "no answer yet".to_owned()));
            if let Some(news) = outage.news(Moment::now(), reason) {
                let (level, line) = news.line(self.scheduler.server, &self.scheduler.address);
                shared.display.log(level, &line);
            }
            if outgoing.is_none() {
                outgoing = self.advance(&sender, &mut background);
            }
            if let Some(left) = shared.time_to_go().filter(|left| outgoing.is_none() || left.is_zero()) {
                break left;
            }
            tokio::select! {
                event = receiver.next() => {
                    // What was meant for the connection before is made anew by the engine.
                    if !matches!(event, LinkEvent::Message(_)) {
                        outgoing = None;
                    }
                    self.take(event, &mut outage);
                }
                () = send(&sender, &mut outgoing) => {}
                event = background.next() => shared.with_engine(|engine, now| engine.handle(event, now)),
                () = shared.changed.notified() => {}
                () = sleep_until(outage.deadline()) => {}
                () = sleep_until(shared.deadline()) => {
                    shared.with_engine(|engine, now| engine.handle(Event::Tick, now));
                }
            }
        };
        // A link that isn't closed in time ends when its receiver is dropped.
        let _ = timeout(farewell.max(SHORTEST_FAREWELL), sender.close()).await;
        let _already_ended = end_watcher.send(());
        if let Some(watcher) = watcher {
            let _ = timeout(WATCHER_END, watcher).await;
        }
    }

    /// Does what the engine wants done, until it wants nothing more or the link can't take it: then returns the message.
    fn advance(&self, sender: &LinkSender, background: &mut Background) -> Option<Message> {
        loop {
            match self.shared.next_step() {
                Step::Idle => return None,
                Step::Send(head, body) => {
                    let message = Message::new(codec::encode(&head), body);
                    match sender.try_send(message.clone()) {
                        Ok(()) => {}
                        Err(TrySendError::Full) => return Some(message),
                        // The link's event about it is on its way.
                        Err(TrySendError::Down) => return None,
                        Err(TrySendError::TooLarge) => {
                            warn!(bytes = message.size(), "message over the bounds, not sent")
                        }
                    }
                }
                Step::ReadChunk(offset) => {
                    if let Program::Shipped(file) = &self.program {
                        let file = Arc::clone(file);
                        let task = tokio::task::spawn_blocking(move || read_chunk(&file, offset));
                        background.chunk = Some(Chunk { offset, task });
                    }
                }
            }
        }
    }

    /// Starts to compute the digest of a program that is shipped.
    fn find_bundle(&self, background: &mut Background) {
        match &self.program {
            Program::Installed(name) => {
                let event = Event::BundleKnown(BundleRef::Installed(name.clone()), None);
                self.shared.with_engine(|engine, now| engine.handle(event, now));
            }
            Program::Shipped(file) => {
                let file = Arc::clone(file);
                background.digest = Some(tokio::task::spawn_blocking(move || digest_file(&file)));
            }
        }
    }

    fn take(&self, event: LinkEvent, outage: &mut Outage) {
        let event = match event {
            LinkEvent::Up { .. } => {
                info!(scheduler = %self.scheduler.address, "connected");
                outage.up(Moment::now());
                Event::LinkUp
            }
            LinkEvent::Down { reason } => {
                info!(scheduler = %self.scheduler.address, reason, "not connected");
                outage.down(Moment::now());
                Event::LinkDown
            }
            LinkEvent::Refused(refusal) => {
                // Every call fails with it.
                outage.ended();
                refused(refusal)
            }
            LinkEvent::Message(Message { head, body, .. }) => match codec::decode(&head) {
                Ok(message) => Event::Received(message, body),
                Err(error) => {
                    warn!(%error, "scheduler sent something unreadable");
                    return;
                }
            },
        };
        self.shared.with_engine(|engine, now| engine.handle(event, now));
    }
}

fn refused(refusal: Refusal) -> Event {
    debug!(%refusal, "refused");
    match refusal.kind {
        RefusalKind::Version => Event::Refused(Fatal::Version(refusal.message)),
        RefusalKind::Superseded => Event::Refused(Fatal::Superseded),
        RefusalKind::Owner => Event::Refused(Fatal::Foreign(refusal.message)),
        RefusalKind::Limit => Event::Refused(Fatal::Limit(refusal.message)),
        RefusalKind::Role
        | RefusalKind::Keys
        | RefusalKind::Full
        | RefusalKind::ShuttingDown
        | RefusalKind::Protocol => Event::Refused(Fatal::Unauthorised(refusal.message)),
    }
}

/// Sends the message as soon as there is room, if there is one. Safe to cancel.
async fn send(sender: &LinkSender, outgoing: &mut Option<Message>) {
    match outgoing {
        Some(message) => {
            // A link that is down says so by an event of its own.
            let _ = sender.send(message.clone()).await;
            *outgoing = None;
        }
        None => std::future::pending().await,
    }
}

impl Background {
    /// The next thing that is done. Safe to cancel.
    async fn next(&mut self) -> Event {
        let digest = async {
            match &mut self.digest {
                Some(task) => task.await,
                None => std::future::pending().await,
            }
        };
        let chunk = async {
            match &mut self.chunk {
                Some(Chunk { offset, task }) => (*offset, task.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            digested = digest => {
                self.digest = None;
                match digested.unwrap_or_else(|lost| Err(io::Error::other(lost))) {
                    Ok((digest, bytes)) => {
                        let offer = Offer { digest, bytes, platform: Platform::current() };
                        Event::BundleKnown(BundleRef::Shipped(digest), Some(offer))
                    }
                    Err(error) => unreadable(&error),
                }
            }
            (offset, read) = chunk => {
                self.chunk = None;
                match read.unwrap_or_else(|lost| Err(io::Error::other(lost))) {
                    Ok((bytes, length)) => Event::ChunkRead(offset, bytes, length),
                    Err(error) => unreadable(&error),
                }
            }
        }
    }
}

fn unreadable(error: &io::Error) -> Event {
    Event::BundleUnreadable(format!("the executable can't be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_for_his_key_or_his_name_is_told_why() {
        for kind in [RefusalKind::Owner, RefusalKind::Keys, RefusalKind::Role] {
            let event = refused(Refusal::new(kind, "not yours"));
            let Event::Refused(Fatal::Unauthorised(reason) | Fatal::Foreign(reason)) = event else {
                panic!("{kind:?}")
            };
            assert_eq!(reason, "not yours");
            assert!(kind.is_permanent(), "{kind:?}");
        }
    }
}
