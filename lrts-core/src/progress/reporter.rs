//! The worker's progress subprocess: reads the jobs' counters and sends what changed, a batch per round trip.
//!
//! It is the only process that talks to the progress server, so that neither jobs nor the worker ever wait for it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, error, info, warn};

use super::handle::Watched;
use super::rtt::RoundTrip;
use super::scan::{Ended, Scanner, Updates};
use crate::clock::{Moment, sleep_until};
use crate::descriptors;
use crate::ids::AttemptId;
use crate::keys::Security;
use crate::limits::BARS_PER_BATCH;
use crate::notices::{AsyncNoticeSocket, NoticeSocket, Packet};
use crate::protocol::codec;
use crate::protocol::progress::{FromReporter, OwnedApplication, ToReporter};
use crate::telemetry::{self, LogFormat, LogOf};
use crate::transport::{Hello, Link, LinkConfig, LinkEvent, LinkSender, Message, Role, TrySendError};

/// Final bars, and ended attempts, that wait for a line that is too slow. More are dropped: the scheduler has them too.
const FINALS: usize = 16 * BARS_PER_BATCH;

/// Round trips are never measured more often than this, whatever an application asks for.
const RTT_TEST_MIN: Duration = Duration::from_millis(100);

/// What a worker tells its progress subprocess.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// First notice.
    Start {
        /// Of the progress server, `host:port`.
        address: String,
        /// The worker's key; none without keys.
        keys: Option<PathBuf>,
        /// This machine's name.
        host: String,
        /// For ipc sockets; the worker removes it.
        socket_dir: PathBuf,
    },
    /// The arena's memfd travels with it.
    AddArena { arena: u32 },
    /// All attempts there have ended.
    RemoveArena { arena: u32 },
    /// First what has ended, then what is new. Answered by `Released` for all of `unwatch`.
    Change { unwatch: Vec<(u32, u32, AttemptId)>, watch: Vec<Watched> },
}

/// What a progress subprocess tells its worker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// These regions (arena, region) were read for the last time.
    Released { regions: Vec<(u32, u32)> },
}

/// Runs this process as a worker's progress subprocess. Descriptor 0 is its notice socket; it ends when that is closed.
pub fn run_progress_mode() -> ! {
    telemetry::start(LogFormat::Text, LogOf::Subprocess);
    let ended = run();
    if let Err(error) = &ended {
        error!(%error, "the progress subprocess failed");
    }
    std::process::exit(i32::from(ended.is_err()))
}

fn run() -> io::Result<()> {
    descriptors::close_inherited()?;
    let socket = NoticeSocket::from(io::stdin().as_fd().try_clone_to_owned()?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(1) // Looks up names.
        .enable_all()
        .build()?;
    runtime.block_on(serve(socket))
}

async fn serve(socket: NoticeSocket) -> io::Result<()> {
    // Signals reach whole process groups; the worker decides when this process ends, by closing the socket.
    let _ignored = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let socket = AsyncNoticeSocket::new(socket)?;
    let Some(first) = socket.receive().await? else { return Ok(()) };
    let Order::Start { address, keys, host, socket_dir } = first.decode()? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first order must be to start"));
    };
    let hello = Hello::new(Role::Worker, "progress", host);
    let security = Security::new(keys, Role::Worker);
    let config = LinkConfig::new(address, Role::ProgressServer, hello, security, socket_dir);
    let (sender, mut receiver) = Link::open(config);
    let mut reporter = Reporter::new(sender);
    loop {
        tokio::select! {
            packet = socket.receive() => match packet? {
                Some(packet) => {
                    let released = reporter.obey(&packet, Moment::now())?;
                    if !released.is_empty() {
                        match socket.send(&Answer::Released { regions: released }, &[]).await {
                            // The worker has ended in the meantime, as the next read would say.
                            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
                            sent => sent?,
                        }
                    }
                }
                None => break,
            },
            event = receiver.next() => reporter.link_event(event, Moment::now()),
            () = sleep_until(reporter.deadline()) => {}
        }
        reporter.act(Moment::now());
    }
    reporter.send_batch(Moment::now());
    reporter.sender.close().await;
    Ok(())
}

struct Reporter {
    scanner: Scanner,
    sender: LinkSender,
    up: bool,
    /// What the link had no room for. Nothing is scanned meanwhile, so that the newest state goes out next.
    outgoing: VecDeque<FromReporter>,
    /// The last of attempts that have ended, to be sent with the next batch.
    finals: Updates,
    finals_count: usize,
    ended: Vec<(OwnedApplication, AttemptId)>,
    next_batch: Moment,
    round_trip: RoundTrip,
    /// When the last ping went out on this connection; none before the first.
    last_ping: Option<Moment>,
    pings: u64,
    answered: bool,
}

impl Reporter {
    fn new(sender: LinkSender) -> Self {
        Self {
            scanner: Scanner::default(),
            sender,
            up: false,
            outgoing: VecDeque::new(),
            finals: Updates::new(),
            finals_count: 0,
            ended: Vec::new(),
            next_batch: Moment::default(),
            round_trip: RoundTrip::default(),
            last_ping: None,
            pings: 0,
            answered: true,
        }
    }

    /// Does what the worker says and returns the regions that aren't read any more.
    fn obey(&mut self, packet: &Packet, now: Moment) -> io::Result<Vec<(u32, u32)>> {
        let mut released = Vec::new();
        match packet.decode()? {
            Order::Start { .. } => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "ordered to start twice"));
            }
            Order::AddArena { arena } => {
                let added = match packet.descriptors.first() {
                    Some(memory) => self.scanner.add_arena(arena, memory),
                    None => Err(io::Error::new(io::ErrorKind::InvalidData, "no descriptor")),
                };
                if let Err(error) = added {
                    warn!(arena, %error, "cannot read a job host's bars");
                }
            }
            Order::RemoveArena { arena } => {
                for ended in self.scanner.remove_arena(arena, now) {
                    self.push_ended(ended);
                }
            }
            Order::Change { unwatch, watch } => {
                for (arena, region, attempt) in unwatch {
                    if let Some(ended) = self.scanner.unwatch((arena, region), attempt, now) {
                        self.push_ended(ended);
                    }
                    released.push((arena, region));
                }
                for Watched { arena, region, attempt, application, rtt_test } in watch {
                    let watched = self.scanner.watch((arena, region), attempt, application, rtt_test);
                    if let Err(error) = watched {
                        debug!(%attempt, %error, "cannot watch");
                    }
                }
            }
        }
        Ok(released)
    }

    fn push_ended(&mut self, ended: Ended) {
        if !self.up || !ended.had_bars {
            return;
        }
        if self.finals_count + ended.updates.len() <= FINALS {
            self.finals_count += ended.updates.len();
            self.finals.push((ended.application.clone(), ended.updates));
        }
        if self.ended.len() < FINALS {
            self.ended.push((ended.application, ended.attempt));
        }
    }

    fn link_event(&mut self, event: LinkEvent, now: Moment) {
        match event {
            LinkEvent::Up { .. } => {
                info!("connected to the progress server");
                self.reset();
                self.up = true;
                self.next_batch = now;
            }
            LinkEvent::Message(message) => match codec::decode(&message.head) {
                Ok(ToReporter::Pong { number }) if number == self.pings && !self.answered => {
                    self.answered = true;
                    self.round_trip.add(self.last_ping.map_or(Duration::ZERO, |sent| now.since(sent)));
                }
                Ok(ToReporter::Pong { number }) => debug!(number, "an answer that nobody waits for"),
                Err(error) => warn!(%error, "the progress server said something unreadable"),
            },
            LinkEvent::Down { reason } => {
                info!(reason, "disconnected from the progress server");
                self.reset();
            }
            LinkEvent::Refused(refusal) => {
                error!(
                    reason = refusal.message,
                    "the progress server refuses this worker: its bars are not shown"
                );
                self.reset();
            }
        }
    }

    /// The next connection starts with a full state.
    fn reset(&mut self) {
        self.up = false;
        self.outgoing.clear();
        self.clear_finals();
        self.scanner.forget_told();
        self.last_ping = None;
        self.answered = true;
    }

    fn clear_finals(&mut self) {
        self.finals.clear();
        self.finals_count = 0;
        self.ended.clear();
    }

    fn has_nothing_to_send(&self) -> bool {
        self.scanner.is_idle() && self.outgoing.is_empty() && self.finals.is_empty() && self.ended.is_empty()
    }

    /// When to act without being asked; none while nothing is watched.
    fn deadline(&self) -> Option<Moment> {
        if !self.up || self.has_nothing_to_send() {
            return None;
        }
        Some(self.ping_due().map_or(self.next_batch, |due| due.min(self.next_batch)))
    }

    /// When to measure the round trip; none while an answer is awaited, or nobody needs it.
    fn ping_due(&self) -> Option<Moment> {
        let interval = self.scanner.rtt_test().filter(|_| self.answered)?;
        Some(self.last_ping.map_or(Moment::default(), |last| last + interval.max(RTT_TEST_MIN)))
    }

    fn act(&mut self, now: Moment) {
        if !self.up || self.has_nothing_to_send() {
            return;
        }
        if self.ping_due().is_some_and(|due| due <= now) {
            self.last_ping = Some(now);
            let ping = FromReporter::Ping { number: self.pings + 1 };
            // In line with the batches, so that it also measures how long those wait.
            if self.sender.try_send(message(&ping)).is_ok() {
                self.pings += 1;
                self.answered = false;
            }
        }
        if self.next_batch <= now {
            self.send_batch(now);
            let waiting = self.last_ping.filter(|_| !self.answered).map(|sent| now.since(sent));
            self.next_batch = now + self.round_trip.period(waiting);
        }
    }

    /// Sends what waits and, if the line took all of that, what is new.
    fn send_batch(&mut self, now: Moment) {
        if !self.up || !self.send_outgoing() {
            return;
        }
        let finals = std::mem::take(&mut self.finals);
        self.outgoing.extend(batches(finals));
        for attempts in self.ended.chunks(BARS_PER_BATCH) {
            self.outgoing.push_back(FromReporter::Ended { attempts: attempts.to_vec() });
        }
        self.clear_finals();
        loop {
            if !self.send_outgoing() {
                return;
            }
            let (applications, more) = self.scanner.changes(now);
            if !applications.is_empty() {
                self.outgoing.push_back(FromReporter::Batch { applications });
            }
            if !more {
                self.send_outgoing();
                return;
            }
        }
    }

    /// Whether the link has taken all.
    fn send_outgoing(&mut self) -> bool {
        while let Some(next) = self.outgoing.front() {
            match self.sender.try_send(message(next)) {
                Ok(()) => self.outgoing.pop_front(),
                Err(TrySendError::Full) => return false,
                // `Down` follows, and then a full state.
                Err(TrySendError::Down) => return false,
                Err(TrySendError::TooLarge) => {
                    error!("a batch of bars is too large");
                    self.outgoing.pop_front()
                }
            };
        }
        true
    }
}

/// Joins updates to messages of at most [`BARS_PER_BATCH`] bars each. No attempt has more than that.
fn batches(updates: Updates) -> Vec<FromReporter> {
    let mut batches = Vec::new();
    let mut applications = Updates::new();
    let mut count = 0;
    for (application, updates) in updates {
        if count + updates.len() > BARS_PER_BATCH {
            batches.push(FromReporter::Batch { applications: std::mem::take(&mut applications) });
            count = 0;
        }
        count += updates.len();
        match applications.last_mut() {
            Some((last, bars)) if *last == application => bars.extend(updates),
            _ => applications.push((application, updates)),
        }
    }
    if count > 0 {
        batches.push(FromReporter::Batch { applications });
    }
    batches
}

fn message(message: &FromReporter) -> Message {
    Message::new(codec::encode(message), bytes::Bytes::new())
}
