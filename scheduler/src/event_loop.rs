//! The one `select!`: what comes in becomes an event, the engine decides, its actions go out.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::{self, Moment};
use lrts_core::ids::UserName;
use lrts_core::limits::{ANSWER_BYTES, ANSWERS, ENDED_JOBS};
use lrts_core::protocol::codec;
use lrts_core::protocol::command::FromCommand;
use lrts_core::shutdown::Shutdown;
use lrts_core::status::{Failure, FailureKind};
use lrts_core::transport::{
    ConnectionId, Message, Refusal, RefusalKind, Role, SendError, Server, ServerEvent, ServerHandle,
};
use tokio::sync::mpsc;
use tracing::{debug, info, trace, warn};

use crate::bundles::{Bundles, Offerer, Request};
use crate::commands::{Asked, Commands};
use crate::commits::{Commits, Waiting};
use crate::convert::{self, BadMessage, Input, InputBodies, Outgoing};
use crate::engine::{self, Action, AttemptOutcome, Engine, Event, Note, Peer, Reason};
use crate::outbox::{Due, Outbox};
use crate::store::{Health, Store};

/// How soon a batch that is held up is looked at again: the disk may have become full meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// When it is looked again whether an application has taken its answers and may be given more.
const ROOM_AGAIN: Duration = Duration::from_millis(10);

/// How long the end waits for the store.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// The scheduler at work.
pub(crate) struct EventLoop {
    server: Server,
    handle: ServerHandle,
    engine: Engine,
    store: Box<dyn Store>,
    commits: Commits,
    /// Hears of each batch that is durable.
    done: mpsc::UnboundedReceiver<()>,
    done_sender: mpsc::UnboundedSender<()>,
    outbox: Outbox,
    bundles: Bundles,
    commands: Commands,
    connections: BTreeMap<ConnectionId, Connection>,
    by_peer: BTreeMap<Peer, ConnectionId>,
    peers: u64,
    /// Events that came of handling others.
    inbox: VecDeque<Event>,
}

/// One connected peer.
#[derive(Clone, Debug)]
struct Connection {
    peer: Peer,
    role: Role,
    /// The user of its key; none on a server without keys.
    user: Option<UserName>,
}

impl EventLoop {
    pub(crate) fn new(server: Server, engine: Engine, store: Box<dyn Store>, bundles: Bundles) -> Self {
        let (done_sender, done) = mpsc::unbounded_channel();
        let handle = server.handle();
        Self {
            commands: Commands::new(handle.clone(), Moment::now()),
            server,
            handle,
            engine,
            store,
            commits: Commits::default(),
            done,
            done_sender,
            outbox: Outbox::default(),
            bundles,
            connections: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            peers: 0,
            inbox: VecDeque::new(),
        }
    }

    /// Runs until somebody asks for the end, then says goodbye to all peers.
    pub(crate) async fn run(mut self, shutdown: &Shutdown) {
        for action in self.engine.take_restored() {
            self.perform(action, &mut InputBodies::Nothing);
        }
        self.inbox.extend(self.bundles.complete_already());
        self.turn();
        loop {
            // Jobs that ended together, ten million of them maybe, aren't all forgotten together: their records would be in the
            // way of everybody else's.
            let may_forget = self.commits.keep_up();
            let engine_due = self.engine.next_deadline(may_forget);
            let has_room = self.commits.has_room();
            let held_up = self.commits.is_held_up().then(|| Moment::now() + LOOK_AGAIN);
            let room = self.room_due();
            let due =
                engine_due.into_iter().chain(self.commands.next_deadline()).chain(held_up).chain(room).min();
            tokio::select! {
                () = shutdown.requested() => break,
                Some(()) = self.done.recv() => self.committed(),
                event = self.server.next_if(has_room) => self.server_event(event),
                outcome = self.bundles.next() => self.inbox.extend(self.bundles.uploaded(outcome)),
                read = self.outbox.next() => {
                    for due in self.outbox.came(read) {
                        self.carry_out(due);
                    }
                }
                answer = self.commands.next() => self.commands.output_read(answer),
                () = clock::sleep_until(due) => {
                    self.inbox.push_back(Event::Tick { may_forget });
                    self.inbox.extend(self.with_room().map(|peer| Event::RoomFor { peer }));
                    self.commands.tick(&self.engine, &*self.store);
                }
            }
            self.turn();
        }
        info!("closing all connections");
        tokio::select! {
            () = self.server.close() => {}
            () = shutdown.immediate() => {}
        }
        // What is under way was not acknowledged, so it need not be waited for if that takes long.
        let closed = tokio::task::spawn_blocking(move || self.store.close());
        if tokio::time::timeout(CLOSE_TIME, closed).await.is_err() {
            warn!("the disk is too slow: the store is left as it is");
        }
    }

    /// The application that is served next of those that are owed more answers and have taken what they were given.
    fn with_room(&self) -> Option<Peer> {
        let has_room = |peer: &Peer| {
            let queued = self.by_peer.get(peer).and_then(|&connection| self.handle.queued(connection));
            let (messages, bytes) = queued.unwrap_or_default();
            messages + self.outbox.waiting(*peer) < ANSWERS && (bytes as u64) < ANSWER_BYTES
        };
        self.engine.asking().find(has_room).filter(|_| self.commits.has_room())
    }

    /// When to look for such an application.
    fn room_due(&self) -> Option<Moment> {
        self.engine.asking().next()?;
        let wait = if self.with_room().is_some() { Duration::ZERO } else { ROOM_AGAIN };
        Some(Moment::now() + wait)
    }

    /// Handles what came of the last event, and commits.
    fn turn(&mut self) {
        loop {
            while let Some(event) = self.inbox.pop_front() {
                self.handle_event(event, InputBodies::Nothing);
            }
            self.commit();
            match self.done.try_recv() {
                Ok(()) => self.committed(),
                Err(_) if self.inbox.is_empty() => return,
                Err(_) => {}
            }
        }
    }

    fn server_event(&mut self, event: ServerEvent) {
        match event {
            ServerEvent::Joined { connection, hello, address, user } => {
                self.peers += 1;
                let peer = Peer(self.peers);
                debug!(%connection, role = %hello.role, id = hello.id, host = hello.host, ?user, %address, "joined");
                self.connections.insert(connection, Connection { peer, role: hello.role, user });
                self.by_peer.insert(peer, connection);
            }
            ServerEvent::Message { connection, message } => self.message(connection, &message),
            ServerEvent::Left { connection, reason } => {
                debug!(%connection, reason, "left");
                self.forget(connection);
            }
        }
    }

    fn forget(&mut self, connection: ConnectionId) {
        if let Some(Connection { peer, .. }) = self.connections.remove(&connection) {
            self.by_peer.remove(&peer);
            self.bundles.left(connection);
            self.outbox.forget(peer);
            self.inbox.push_back(Event::Disconnected { peer });
        }
    }

    fn message(&mut self, connection: ConnectionId, message: &Message) {
        // What had arrived from a peer that was disconnected since.
        let Some(Connection { peer, role, user }) = self.connections.get(&connection) else { return };
        let peer = *peer;
        trace!(%connection, bytes = message.size(), "message");
        let input = match role {
            Role::Client => convert::from_application(peer, user.as_ref(), message),
            Role::Worker => convert::from_worker(peer, message),
            Role::Admin => return self.command(connection, message),
            Role::Scheduler | Role::ProgressServer => {
                return self.refuse(connection, RefusalKind::Protocol, "this role has nothing to say here");
            }
        };
        match input {
            Ok(Input::Event(mut event, bodies)) => {
                if let Event::Submitted { submit, .. } = &mut event {
                    submit.no_room =
                        self.store.refuses(self.commits.gathered_bytes() + message.body.len() as u64);
                }
                self.handle_event(event, bodies);
            }
            Ok(Input::Bundle(request)) => {
                let from = Offerer { connection, peer, user: user.clone() };
                self.bundle(from, request);
            }
            Ok(Input::Output { request, output }) => {
                self.commands.output_came(connection, request, output, &*self.store);
            }
            Err(error) => self.bad_message(connection, &error),
        }
    }

    fn bad_message(&mut self, connection: ConnectionId, error: &BadMessage) {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        self.refuse(connection, error.kind(), &format!("{error}{cause}"));
    }

    /// Parts from a peer that talks nonsense.
    fn refuse(&mut self, connection: ConnectionId, kind: RefusalKind, what: &str) {
        debug!(%connection, what, "disconnecting a peer that broke the protocol");
        self.handle.disconnect(connection, Some(Refusal::new(kind, what)));
        self.forget(connection);
    }

    fn command(&mut self, connection: ConnectionId, message: &Message) {
        match codec::decode::<FromCommand>(&message.head) {
            Ok(command) => {
                let by_peer = &self.by_peer;
                let connection_of = |peer| by_peer.get(&peer).copied();
                let asked =
                    self.commands.asked(connection, command, &self.engine, &*self.store, connection_of);
                if let Some(Asked { events, answer }) = asked {
                    for event in events {
                        self.handle_event(event, InputBodies::Nothing);
                    }
                    self.say_after(Waiting::Answer(connection, answer));
                }
            }
            Err(error) => self.bad_message(connection, &error.into()),
        }
    }

    fn bundle(&mut self, from: Offerer, request: Request) {
        let connection = from.connection;
        match request {
            Request::Offer { digest, bytes, platform } => {
                self.inbox.extend(match self.engine.refuses_offer(from.peer, digest, bytes) {
                    None => self.bundles.offer(from, digest, bytes, platform),
                    Some(reason) => vec![self.bundles.refuse(&from, digest, reason)],
                });
            }
            Request::Chunk { digest, offset, bytes, compressed } => {
                match self.bundles.chunk(connection, digest, offset, bytes, compressed) {
                    Ok(events) => self.inbox.extend(events),
                    Err(error) => self.refuse(connection, RefusalKind::Protocol, &error.to_string()),
                }
            }
            Request::Want { digest, offset } => self.bundles.want(connection, digest, offset),
        }
    }

    fn handle_event(&mut self, event: Event, mut bodies: InputBodies) {
        for action in self.engine.handle(event, Moment::now()) {
            self.perform(action, &mut bodies);
        }
    }

    fn perform(&mut self, action: Action, bodies: &mut InputBodies) {
        match action {
            Action::Persist(record) => {
                let bodies = bodies.for_record(&record);
                self.commits.keep(record, bodies);
            }
            Action::Send { to, message } => self.say_after(Waiting::Message(to, message)),
            Action::SendAtOnce { to, message } => self.send_at_once(to, message),
            Action::Disconnect { peer, reason } => self.disconnect(peer, reason),
            Action::BundleInUse { digest, in_use } => self.bundles.set_in_use(digest, in_use),
            Action::Note(note) => log(note),
        }
    }

    /// Starts to commit what has gathered, if it may.
    fn commit(&mut self) {
        let store = &self.store;
        let Some(batch) = self.commits.hand_over(|| matches!(store.health(), Health::Full(_))) else {
            return;
        };
        let done = self.done_sender.clone();
        let epoch = self.store.epoch();
        let done = move || {
            // Nobody listens any more once the loop has ended.
            let _ = done.send(());
        };
        self.store.commit(epoch, batch, Box::new(done));
    }

    fn committed(&mut self) {
        for waiting in self.commits.committed() {
            self.say(waiting);
        }
    }

    /// Says something once all that was kept so far is durable.
    fn say_after(&mut self, waiting: Waiting) {
        if let Some(waiting) = self.commits.say_after(waiting) {
            self.say(waiting);
        }
    }

    fn say(&mut self, waiting: Waiting) {
        match waiting {
            Waiting::Message(to, message) => self.send(to, message),
            Waiting::Answer(to, answer) => self.commands.answer(to, &answer, Bytes::new()),
        }
    }

    fn send(&mut self, to: Peer, message: engine::Message) {
        if !self.by_peer.contains_key(&to) {
            return;
        }
        if let Some(due) = self.outbox.push(to, convert::outgoing(message, &*self.store)) {
            self.carry_out(due);
        }
    }

    /// Sends what depends on nothing, past all that waits.
    fn send_at_once(&mut self, to: Peer, message: engine::Message) {
        match convert::outgoing(message, &*self.store) {
            Outgoing::Ready(message) => self.carry_out(Due::Send(to, message)),
            with_body @ (Outgoing::Start(..) | Outgoing::Result(..)) => {
                if let Some(due) = self.outbox.push(to, with_body) {
                    self.carry_out(due);
                }
            }
        }
    }

    fn carry_out(&mut self, due: Due) {
        match due {
            Due::Send(to, message) => {
                let Some(&connection) = self.by_peer.get(&to) else { return };
                if let Err(error) = self.handle.send(connection, message) {
                    // The peer's end is an event of its own, and what it didn't get is settled when it is back.
                    debug!(%connection, %error, "message not sent");
                    if error == SendError::Overrun {
                        // It asked for more than it takes, and thousands of its questions may have arrived already.
                        self.forget(connection);
                    }
                }
            }
            Due::Unread(peer, start) => {
                self.inbox.push_back(Event::Returned { peer, attempts: vec![start.attempt] });
            }
            Due::ReadAgain(to, job, report) => self.send(to, engine::Message::Result { job, report }),
            Due::NoPayload(peer, start, error) => {
                // Of an attempt whose job has ended since, this is ignored. Otherwise the store has lost the payload, and no
                // other start would bring it back.
                let what = format!("the scheduler has lost the job's payload, schedule it again: {error}");
                let outcome = AttemptOutcome::Failed(Failure::new(FailureKind::Error, what));
                let (attempt, ran, output_bytes) = (start.attempt, Duration::ZERO, 0);
                self.inbox.push_back(Event::Ended { peer, attempt, outcome, ran, output_bytes });
            }
        }
    }

    fn disconnect(&mut self, peer: Peer, reason: Reason) {
        let Some(connection) = self.by_peer.remove(&peer) else { return };
        self.connections.remove(&connection);
        self.bundles.left(connection);
        self.outbox.forget(peer);
        let refusal = match reason {
            Reason::Superseded => {
                let message = "a newer connection of the same application or worker has taken over";
                Some(Refusal::new(RefusalKind::Superseded, message))
            }
            Reason::Protocol(what) => {
                debug!(%connection, what, "disconnecting a peer that broke the protocol");
                Some(Refusal::new(RefusalKind::Protocol, what))
            }
            Reason::Owner(application) => {
                let message = format!(
                    "application `{application}` belongs to another user: choose another application id, or use a key of its owner"
                );
                Some(Refusal::new(RefusalKind::Owner, message))
            }
            Reason::Full(what) => {
                debug!(%connection, what, "no room for an application");
                Some(Refusal::new(RefusalKind::Limit, what))
            }
            Reason::LeaseExpired => None,
        };
        self.handle.disconnect(connection, refusal);
    }
}

fn log(note: Note) {
    match note {
        Note::ApplicationAttached { application, user, session } => {
            let user = user.as_ref().map(tracing::field::display);
            info!(%application, user, %session, "application attached");
        }
        Note::ApplicationLeft { application } => info!(%application, "application left"),
        Note::ApplicationStopped { application } => info!(%application, "application stopped"),
        Note::ApplicationCancelled { application } => {
            info!(%application, "application was away too long: its jobs are cancelled");
        }
        Note::WorkerRegistered { worker, host, slots, attempts } => {
            info!(%worker, host, slots, attempts, "worker registered");
        }
        Note::WorkerSuspect { worker } => info!(%worker, "worker is suspect"),
        Note::WorkerLost { worker, attempts } => {
            warn!(%worker, attempts, "worker lost: its jobs are placed again")
        }
        Note::WorkerLeft { worker } => info!(%worker, "worker left"),
        Note::WorkerAbsent { worker, back_within } => {
            info!(%worker, back_within_s = back_within.as_secs(), "worker's daemon left, its jobs run on");
        }
        Note::WorkerDrains { worker, reason } => {
            warn!(%worker, reason, "worker takes nothing new until its daemon is started again");
        }
        Note::WorkerOfAnotherStore { worker, attempts } => {
            warn!(
                %worker,
                attempts,
                "worker holds attempts of another scheduler's store: they run on there, start that scheduler with its old \
                 state directory to have them back"
            );
        }
        Note::ResultsDropped { jobs } => {
            warn!(
                jobs,
                "results that nobody has taken are forgotten: there are more than --result-store allows"
            );
        }
        Note::EndedJobsDropped { jobs } => {
            warn!(
                jobs,
                "ended jobs that nobody has asked for are forgotten: the scheduler remembers {ENDED_JOBS} of all users"
            );
        }
        Note::BrakeEngaged { silent, known } => {
            warn!(
                silent,
                known, "too many workers fell silent together, the network may be down: none is given up"
            );
        }
        Note::BrakeReleased => info!("workers are heard again: silent ones are given up as usual"),
        Note::WasAbsent { late } => {
            warn!(
                seconds = late.as_secs_f64(),
                "the scheduler was stopped for a while: all leases start afresh"
            );
        }
        Note::WorkerRefusedBundle { worker, reason } => warn!(%worker, reason, "worker can't start a bundle"),
        Note::UnknownAttempt { worker, attempt } => {
            debug!(%worker, %attempt, "worker speaks of an attempt that it doesn't have");
        }
        Note::ForeignApplication { application } => {
            debug!(%application, "an application of this name belongs to another user");
        }
        Note::JobEnded { job, failed } => debug!(%job, failed, "job ended"),
    }
}

#[cfg(test)]
mod tests;
