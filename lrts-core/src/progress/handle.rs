//! The worker's side of its progress subprocess: starts it, gives orders, starts it again when it dies.
//!
//! The worker never waits here: orders go through a queue to a task of their own, answers come back as events.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::reporter::{Answer, Order};
use crate::clock::{Moment, sleep_until};
use crate::ids::AttemptId;
use crate::mode::{self, Mode};
use crate::notices::{AsyncNoticeSocket, NoticeSocket, Packet};
use crate::protocol::progress::OwnedApplication;
use crate::transport::SocketDir;

/// Orders are held back this long: an attempt that ends within it costs the subprocess nothing, and batches of bars aren't
/// more frequent anyway.
const ORDER_DELAY: Duration = Duration::from_millis(20);

/// A subprocess that takes longer to release a region hangs, and is killed.
const RELEASE_TIME: Duration = Duration::from_secs(5);

/// Backoff between starts of the subprocess: doubles from the first to the second, and starts anew after a long life.
const RESTART_MIN: Duration = Duration::from_millis(100);
/// See [`RESTART_MIN`].
const RESTART_MAX: Duration = Duration::from_secs(5);

/// How long the subprocess may take to send its last batch once the worker ends.
const EXIT_TIME: Duration = Duration::from_secs(3);

/// Attempts in one order: an order is one packet.
const CHANGES_PER_ORDER: usize = 200;

/// What a progress subprocess is started with.
#[derive(Clone, Debug)]
pub struct ReporterConfig {
    /// A program that calls [`run_progress_mode`](super::run_progress_mode) when its mode says so.
    pub executable: PathBuf,
    /// Of the progress server, `host:port`.
    pub progress_address: String,
    /// The worker's key, or a directory with it; none without keys.
    pub keys: Option<PathBuf>,
    /// This machine's name.
    pub host: String,
}

/// An attempt whose bars are to be shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Watched {
    /// The arena it writes to, as numbered by the worker.
    pub arena: u32,
    /// Its region there.
    pub region: u32,
    /// Which attempt.
    pub attempt: AttemptId,
    /// Whose.
    pub application: OwnedApplication,
    /// How often its application wants the round trip to be measured.
    pub rtt_test: Duration,
}

/// What a worker hears of its progress subprocess.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReporterEvent {
    /// An unwatched region was read for the last time: it can be used again. Comes once for every
    /// [`Reporter::unwatch`] of a region whose arena isn't removed meanwhile, whether or not the subprocess and the progress
    /// server are there; a repeated unwatch is answered by one.
    Released {
        /// Which arena.
        arena: u32,
        /// Which region.
        region: u32,
    },
}

/// A worker's progress subprocess. Its calls return at once, whatever state that is in.
#[derive(Debug)]
pub struct Reporter {
    // Neither queue is bounded by itself: a worker gives and hears a few orders for each attempt.
    commands: mpsc::UnboundedSender<Request>,
    events: mpsc::UnboundedReceiver<ReporterEvent>,
    pid: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Reporter {
    /// Starts a subprocess and keeps it running until [`shutdown`](Self::shutdown), or until this is dropped.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(config: ReporterConfig) -> Self {
        let (commands, requests) = mpsc::unbounded_channel();
        let (event_sender, events) = mpsc::unbounded_channel();
        let pid = Arc::new(AtomicU32::new(0));
        let supervisor =
            Supervisor { config, requests, state: State::new(event_sender), pid: Arc::clone(&pid) };
        Self { commands, events, pid, task: tokio::spawn(supervisor.run()) }
    }

    /// Hands over an arena, whose number must be new.
    pub fn add_arena(&self, arena: u32, memory: OwnedFd) {
        self.request(Request::AddArena(arena, memory));
    }

    /// Forgets an arena whose host is gone; what is watched there has ended, and isn't released.
    pub fn remove_arena(&self, arena: u32) {
        self.request(Request::RemoveArena(arena));
    }

    /// Shows the bars of an attempt that has begun.
    pub fn watch(&self, watched: Watched) {
        self.request(Request::Watch(watched));
    }

    /// Reads an attempt's bars for the last time: it has ended. [`ReporterEvent::Released`] follows.
    pub fn unwatch(&self, arena: u32, region: u32, attempt: AttemptId) {
        self.request(Request::Unwatch((arena, region), attempt));
    }

    /// The next event. Safe to cancel: nothing is lost.
    pub async fn next(&mut self) -> ReporterEvent {
        match self.events.recv().await {
            Some(event) => event,
            // The task ends only when this is dropped, or has panicked.
            None => std::future::pending().await,
        }
    }

    /// The subprocess, while there is one.
    pub fn pid(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::Relaxed)).filter(|&pid| pid != 0)
    }

    /// Lets the subprocess send its last batch and end, for up to three seconds.
    pub async fn shutdown(self) {
        let Self { commands, task, .. } = self;
        drop(commands);
        // A panic of the task has been reported already.
        let _ = task.await;
    }

    fn request(&self, request: Request) {
        // Fails only if the task has panicked, which has been reported.
        let _ = self.commands.send(request);
    }
}

#[derive(Debug)]
enum Request {
    AddArena(u32, OwnedFd),
    RemoveArena(u32),
    Watch(Watched),
    Unwatch(Place, AttemptId),
}

/// Arena and region.
type Place = (u32, u32);

struct Supervisor {
    config: ReporterConfig,
    requests: mpsc::UnboundedReceiver<Request>,
    state: State,
    pid: Arc<AtomicU32>,
}

/// What the subprocess is to know, and what of it still has to be said.
struct State {
    events: mpsc::UnboundedSender<ReporterEvent>,
    arenas: BTreeMap<u32, OwnedFd>,
    watches: BTreeMap<Place, Watched>,
    /// Those of `watches` that the subprocess hasn't been told of.
    fresh: BTreeSet<Place>,
    unwatching: Vec<(u32, u32, AttemptId)>,
    /// When to tell it of `fresh` and `unwatching`.
    changes_due: Option<Moment>,
    /// Regions that it is to release, and until when.
    releasing: BTreeMap<Place, Moment>,
    /// Orders under way, while there is a subprocess.
    outbox: Option<VecDeque<Order>>,
}

enum Outcome {
    Died(io::Error),
    Shutdown,
}

impl Supervisor {
    async fn run(mut self) {
        let mut backoff = RESTART_MIN;
        loop {
            let started = Moment::now();
            let outcome = match self.spawn() {
                Ok(mut process) => {
                    info!(pid = process.child.id(), "progress subprocess started");
                    self.pid.store(process.child.id(), Ordering::Relaxed);
                    let outcome = self.drive(&process.socket).await;
                    self.pid.store(0, Ordering::Relaxed);
                    let patience = match outcome {
                        Outcome::Shutdown => EXIT_TIME,
                        Outcome::Died(_) => Duration::ZERO,
                    };
                    drop(process.socket);
                    end(&mut process.child, patience).await;
                    outcome
                }
                Err(error) => Outcome::Died(error),
            };
            self.state.process_is_gone();
            let Outcome::Died(error) = outcome else { return };
            if started.elapsed() > 2 * RESTART_MAX {
                backoff = RESTART_MIN;
            }
            warn!(%error, ?backoff, "the progress subprocess is gone; starting it again");
            if !self.wait(backoff).await {
                return;
            }
            backoff = (backoff * 2).min(RESTART_MAX);
        }
    }

    fn spawn(&mut self) -> io::Result<Process> {
        let socket_dir = SocketDir::create()?;
        let (ours, theirs) = NoticeSocket::pair()?;
        let socket = AsyncNoticeSocket::new(ours)?;
        let child = Command::new(&self.config.executable)
            .env(mode::VARIABLE, Mode::Progress.as_str())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()?;
        self.state.process_is_new(Order::Start {
            address: self.config.progress_address.clone(),
            keys: self.config.keys.clone(),
            host: self.config.host.clone(),
            socket_dir: socket_dir.path().to_owned(),
        });
        Ok(Process { child, socket, _socket_dir: socket_dir })
    }

    /// Gives orders and takes answers until the subprocess or the worker ends.
    async fn drive(&mut self, socket: &AsyncNoticeSocket) -> Outcome {
        loop {
            let state = &mut self.state;
            state.skip_lost_arenas();
            let next = state.outbox.as_ref().and_then(VecDeque::front);
            let memory = match next {
                Some(Order::AddArena { arena }) => state.arenas.get(arena).map(AsFd::as_fd),
                Some(Order::Start { .. } | Order::RemoveArena { .. } | Order::Change { .. }) | None => None,
            };
            tokio::select! {
                sent = send(socket, next, memory) => match sent {
                    Ok(()) => {
                        state.outbox.as_mut().map(VecDeque::pop_front);
                    }
                    Err(error) => return Outcome::Died(error),
                },
                packet = socket.receive() => {
                    let heard = match packet {
                        Ok(Some(packet)) => state.hear(&packet),
                        Ok(None) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                        Err(error) => Err(error),
                    };
                    if let Err(error) = heard {
                        return Outcome::Died(error);
                    }
                }
                request = self.requests.recv() => match request {
                    Some(request) => state.apply(request, Moment::now()),
                    None => {
                        state.queue_changes();
                        return state.send_last(socket).await;
                    }
                },
                () = sleep_until(state.deadline()) => {
                    let now = Moment::now();
                    if state.changes_due.is_some_and(|due| due <= now) {
                        state.queue_changes();
                    }
                    if state.release_deadline().is_some_and(|due| due <= now) {
                        return Outcome::Died(io::Error::from(io::ErrorKind::TimedOut));
                    }
                }
            }
        }
    }

    /// Goes on without a subprocess for a while; false if the worker ends meanwhile.
    async fn wait(&mut self, span: Duration) -> bool {
        let until = Moment::now() + span;
        loop {
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(request) => self.state.apply(request, Moment::now()),
                    None => return false,
                },
                () = sleep_until(Some(until)) => return true,
            }
        }
    }
}

struct Process {
    child: Child,
    socket: AsyncNoticeSocket,
    _socket_dir: SocketDir,
}

async fn send(
    socket: &AsyncNoticeSocket,
    order: Option<&Order>,
    memory: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    match order {
        Some(order) => socket.send(order, memory.as_slice()).await,
        None => std::future::pending().await,
    }
}

/// Waits for the subprocess to end by itself, then kills it.
async fn end(child: &mut Child, patience: Duration) {
    let until = Moment::now() + patience;
    while Moment::now() < until && matches!(child.try_wait(), Ok(None)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Fails if it has ended already.
    let _ = child.kill();
    while matches!(child.try_wait(), Ok(None)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl State {
    fn new(events: mpsc::UnboundedSender<ReporterEvent>) -> Self {
        Self {
            events,
            arenas: BTreeMap::new(),
            watches: BTreeMap::new(),
            fresh: BTreeSet::new(),
            unwatching: Vec::new(),
            changes_due: None,
            releasing: BTreeMap::new(),
            outbox: None,
        }
    }

    /// A new subprocess is to hear everything.
    fn process_is_new(&mut self, start: Order) {
        let arenas = self.arenas.keys().map(|&arena| Order::AddArena { arena });
        self.outbox = Some(std::iter::once(start).chain(arenas).collect());
        self.fresh = self.watches.keys().copied().collect();
        self.queue_changes();
    }

    /// Nobody reads any more, so every region that was to be released is.
    fn process_is_gone(&mut self) {
        self.outbox = None;
        self.fresh.clear();
        self.unwatching.clear();
        self.changes_due = None;
        while let Some((place, _)) = self.releasing.pop_first() {
            self.released(place);
        }
    }

    fn apply(&mut self, request: Request, now: Moment) {
        match request {
            Request::AddArena(arena, memory) => {
                self.arenas.insert(arena, memory);
                self.queue(Order::AddArena { arena });
            }
            Request::RemoveArena(arena) => {
                self.arenas.remove(&arena);
                self.watches.retain(|place, _| place.0 != arena);
                self.fresh.retain(|place| place.0 != arena);
                self.unwatching.retain(|&(of, ..)| of != arena);
                self.releasing.retain(|place, _| place.0 != arena);
                self.queue(Order::RemoveArena { arena });
            }
            Request::Watch(watched) => {
                let place = (watched.arena, watched.region);
                self.watches.insert(place, watched);
                self.fresh.insert(place);
                self.changes_due.get_or_insert(now + ORDER_DELAY);
            }
            Request::Unwatch(place, attempt) => {
                if self.releasing.contains_key(&place) {
                    return;
                }
                if self.watches.get(&place).is_none_or(|watched| watched.attempt != attempt) {
                    return self.released(place);
                }
                self.watches.remove(&place);
                if self.fresh.remove(&place) || self.outbox.is_none() {
                    return self.released(place);
                }
                self.unwatching.push((place.0, place.1, attempt));
                self.releasing.insert(place, now + RELEASE_TIME);
                self.changes_due.get_or_insert(now + ORDER_DELAY);
            }
        }
    }

    fn hear(&mut self, packet: &Packet) -> io::Result<()> {
        let Answer::Released { regions } = packet.decode()?;
        for place in regions {
            if self.releasing.remove(&place).is_some() {
                self.released(place);
            }
        }
        Ok(())
    }

    fn released(&self, (arena, region): Place) {
        // Fails only while the worker ends.
        let _ = self.events.send(ReporterEvent::Released { arena, region });
    }

    fn queue(&mut self, order: Order) {
        if let Some(outbox) = &mut self.outbox {
            outbox.push_back(order);
        }
    }

    fn queue_changes(&mut self) {
        self.changes_due = None;
        let unwatching = std::mem::take(&mut self.unwatching);
        for unwatch in unwatching.chunks(CHANGES_PER_ORDER) {
            self.queue(Order::Change { unwatch: unwatch.to_vec(), watch: Vec::new() });
        }
        let fresh: Vec<_> = std::mem::take(&mut self.fresh).into_iter().collect();
        for places in fresh.chunks(CHANGES_PER_ORDER) {
            let watch = places.iter().filter_map(|place| self.watches.get(place).cloned()).collect();
            self.queue(Order::Change { unwatch: Vec::new(), watch });
        }
    }

    /// Drops orders to add arenas that have been removed before the order went out.
    fn skip_lost_arenas(&mut self) {
        let Some(outbox) = &mut self.outbox else { return };
        while let Some(Order::AddArena { arena }) = outbox.front()
            && !self.arenas.contains_key(arena)
        {
            outbox.pop_front();
        }
    }

    /// Sends the orders that wait, as the worker ends; what doesn't fit is lost, since the subprocess hangs.
    async fn send_last(&mut self, socket: &AsyncNoticeSocket) -> Outcome {
        let until = Moment::now() + EXIT_TIME;
        loop {
            self.skip_lost_arenas();
            let Some(order) = self.outbox.as_mut().and_then(VecDeque::pop_front) else {
                return Outcome::Shutdown;
            };
            let memory = match &order {
                Order::AddArena { arena } => self.arenas.get(arena).map(AsFd::as_fd),
                Order::Start { .. } | Order::RemoveArena { .. } | Order::Change { .. } => None,
            };
            tokio::select! {
                sent = send(socket, Some(&order), memory) => if sent.is_err() {
                    return Outcome::Shutdown;
                },
                () = sleep_until(Some(until)) => return Outcome::Shutdown,
            }
        }
    }

    fn release_deadline(&self) -> Option<Moment> {
        self.releasing.values().min().copied()
    }

    fn deadline(&self) -> Option<Moment> {
        [self.changes_due, self.release_deadline()].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionId;
    use crate::progress::Arena;

    const T0: Moment = Moment::from_nanos(0);

    fn attempt(number: u32) -> AttemptId {
        AttemptId { job: SessionId(1).job(1), attempt: number }
    }

    fn watch(region: u32) -> Request {
        let attempt = attempt(1);
        let application = OwnedApplication { owner: None, application: "app".parse().unwrap() };
        Request::Watch(Watched { arena: 1, region, attempt, application, rtt_test: Duration::from_secs(10) })
    }

    /// A state with one arena and a subprocess that has taken all orders.
    fn state() -> (State, mpsc::UnboundedReceiver<ReporterEvent>) {
        let (sender, events) = mpsc::unbounded_channel();
        let mut state = State::new(sender);
        let arena = Arena::create(4).unwrap();
        state.apply(Request::AddArena(1, arena.descriptor().try_clone_to_owned().unwrap()), T0);
        state.process_is_new(start());
        assert_eq!(orders(&mut state), [start(), Order::AddArena { arena: 1 }]);
        (state, events)
    }

    fn start() -> Order {
        Order::Start {
            address: "there:1".to_owned(),
            keys: None,
            host: "here".to_owned(),
            socket_dir: "/".into(),
        }
    }

    fn orders(state: &mut State) -> Vec<Order> {
        state.outbox.as_mut().map(|outbox| outbox.drain(..).collect()).unwrap_or_default()
    }

    fn released(events: &mut mpsc::UnboundedReceiver<ReporterEvent>) -> Vec<u32> {
        std::iter::from_fn(|| events.try_recv().ok())
            .map(|ReporterEvent::Released { region, .. }| region)
            .collect()
    }

    #[test]
    fn an_attempt_that_ends_at_once_costs_the_subprocess_nothing() {
        let (mut state, mut events) = state();
        state.apply(watch(0), T0);
        assert_eq!(state.deadline(), Some(T0 + ORDER_DELAY));
        state.apply(Request::Unwatch((1, 0), attempt(1)), T0);
        assert_eq!(released(&mut events), [0]);
        state.queue_changes();
        assert_eq!((orders(&mut state), state.deadline()), (vec![], None));
    }

    #[test]
    fn a_region_is_released_once_and_by_the_subprocess() {
        let (mut state, mut events) = state();
        state.apply(watch(0), T0);
        state.queue_changes();
        assert_eq!(orders(&mut state).len(), 1);
        for _ in 0..2 {
            state.apply(Request::Unwatch((1, 0), attempt(1)), T0);
        }
        state.queue_changes();
        let unwatch = vec![(1, 0, attempt(1))];
        assert_eq!(orders(&mut state), [Order::Change { unwatch, watch: vec![] }]);
        assert_eq!((released(&mut events), state.deadline()), (vec![], Some(T0 + RELEASE_TIME)));
        let bytes = crate::protocol::codec::encode(&Answer::Released { regions: vec![(1, 0)] }).to_vec();
        let packet = Packet { bytes, descriptors: vec![] };
        state.hear(&packet).unwrap();
        state.hear(&packet).unwrap();
        assert_eq!((released(&mut events), state.deadline()), (vec![0], None));
    }

    #[test]
    fn without_a_subprocess_regions_are_released_at_once() {
        let (mut state, mut events) = state();
        state.apply(watch(0), T0);
        state.apply(watch(1), T0);
        state.queue_changes();
        state.apply(Request::Unwatch((1, 0), attempt(1)), T0);
        state.process_is_gone();
        assert_eq!(released(&mut events), [0]);
        state.apply(Request::Unwatch((1, 1), attempt(1)), T0);
        state.apply(Request::Unwatch((1, 3), attempt(1)), T0);
        assert_eq!(released(&mut events), [1, 3]);
    }

    #[test]
    fn a_new_subprocess_hears_of_everything_that_still_is() {
        let (mut state, mut events) = state();
        (0..3).for_each(|region| state.apply(watch(region), T0));
        state.apply(Request::Unwatch((1, 1), attempt(1)), T0);
        state.process_is_gone();
        state.process_is_new(start());
        let watched = orders(&mut state).into_iter().find_map(|order| match order {
            Order::Change { watch, .. } => Some(watch.into_iter().map(|watched| watched.region).collect()),
            Order::Start { .. } | Order::AddArena { .. } | Order::RemoveArena { .. } => None,
        });
        assert_eq!(watched, Some(vec![0, 2]));
        state.apply(Request::RemoveArena(1), T0);
        assert_eq!(released(&mut events), [1]);
        state.process_is_gone();
        state.process_is_new(start());
        assert_eq!(orders(&mut state), [start()]);
    }
}
