//! The one `select!`: what comes in becomes events for the engine, and what the engine decides is carried out.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::{Moment, sleep_until};
use lrts_core::ids::{AttemptId, WorkerId, random_u64};
use lrts_core::progress::{Reporter, ReporterEvent, Watched};
use lrts_core::protocol::codec;
use lrts_core::protocol::progress::OwnedApplication;
use lrts_core::protocol::worker::{FromWorker, Register, Start, ToWorker};
use lrts_core::shutdown::Shutdown;
use lrts_core::spec::{BundleRef, Platform};
use lrts_core::spool;
use lrts_core::transport::{LinkEvent, LinkReceiver, LinkSender, Message, Refusal};
use tracing::{debug, info, trace, warn};

use crate::config::{Config, OnTerm};
use crate::convert::{BundleNews, Meaning, Outcome, end_word, inventory, meaning, trouble};
use crate::engine::{Action, Engine, Event, HeldRun, Settings};
use crate::hosts::{
    Command, Fleet, FleetEvent, HeldJob, HostEnded, HostNumber, Job, LeftEnd, Leftovers, Notes,
};
use crate::janitor::Janitor;
use crate::machine::Machine;
use crate::outbox::Outbox;
use crate::state_dir::StateDir;

/// How long a leaving worker's last words may take to reach the scheduler.
const FAREWELL_TIME: Duration = Duration::from_secs(3);

/// Why the loop has ended.
pub(crate) enum End {
    /// All was given back or told, or left to the hosts.
    Left,
    /// Somebody was impatient.
    AtOnce,
    /// The scheduler doesn't want this worker.
    Refused(Refusal),
}

/// An attempt as the scheduler has sent it.
struct Order {
    start: Start,
    payload: Bytes,
    checkpoint: Option<Bytes>,
}

/// What is kept of an attempt from its order, or its adoption, until it is forgotten.
struct Held {
    /// None if the worker that started it has written down something else.
    notes: Option<Notes>,
    /// Until a host has it.
    order: Option<Box<Order>>,
    /// The host that has or had it.
    host: Option<HostNumber>,
    /// The region of its host's arena that the progress subprocess reads for it.
    watched: Option<u32>,
    /// Once it has ended.
    outcome: Option<Arc<Outcome>>,
    /// Its newest checkpoint, unless the scheduler was sent that already, or its host still has to be asked for it. Kept until
    /// the end is confirmed: whenever that is told, this goes ahead of it.
    checkpoint: Option<Bytes>,
}

/// The worker's shell.
pub(crate) struct EventLoop<R> {
    config: Config,
    machine: Machine,
    /// Tells this start of the daemon from others.
    instance: u64,
    state: Arc<StateDir>,
    engine: Engine,
    link: LinkSender,
    /// While there is a connection.
    outbox: Option<Outbox>,
    fleet: Fleet,
    reporter: Reporter,
    janitor: Janitor,
    held: BTreeMap<AttemptId, Held>,
    /// Questions about the output of attempts that their hosts are to answer.
    questions: BTreeMap<AttemptId, Vec<u64>>,
    /// Whether the scheduler has to be asked, once it knows the worker, for the rest of bundles that were on their way.
    resumes_fetches: bool,
    /// Told the worker's id once it is registered.
    ready: Option<R>,
    has_left: bool,
}

impl<R: FnOnce(WorkerId) + Send> EventLoop<R> {
    /// Looks for what an earlier run has left. Waits for the disk.
    pub(crate) fn new(
        config: Config,
        machine: Machine,
        state: Arc<StateDir>,
        link: LinkSender,
        reporter: Reporter,
        ready: R,
    ) -> Self {
        Self {
            engine: Engine::new(
                Settings {
                    slots: config.slots,
                    grace: config.grace,
                    orphan_grace: config.orphan_grace,
                    store: state.last_store(),
                },
                Moment::now(),
            ),
            fleet: Fleet::new(&config, &machine, state.clone()),
            janitor: Janitor::new(state.spool().clone()),
            config,
            machine,
            instance: random_u64(),
            state,
            link,
            outbox: None,
            reporter,
            held: BTreeMap::new(),
            questions: BTreeMap::new(),
            resumes_fetches: false,
            ready: Some(ready),
            has_left: false,
        }
    }

    /// Runs until the worker has left, and ends what it has started, or leaves it to the hosts.
    pub(crate) async fn run(mut self, mut incoming: LinkReceiver, shutdown: &Shutdown) -> End {
        let end = self.run_until_end(&mut incoming, shutdown).await;
        // No scheduler's refusal is worth a job's work: another worker, or the scheduler's next version, may go on with it.
        let leaves_jobs =
            self.leaves_jobs() || matches!(end, End::Refused(_)) && !self.config.orphan_grace.is_zero();
        let in_order = !matches!(end, End::AtOnce)
            && tokio::select! {
                () = self.take_leave(leaves_jobs) => true,
                () = shutdown.immediate() => false,
            };
        if !in_order {
            if !leaves_jobs {
                self.keep_results().await;
                self.fleet.kill().await;
            }
            return End::AtOnce;
        }
        let clean_up = async {
            self.reporter.shutdown().await;
            self.janitor.end().await;
        };
        tokio::select! {
            () = clean_up => end,
            () = shutdown.immediate() => End::AtOnce,
        }
    }

    /// Says goodbye to the scheduler, and to the hosts. Can be given up at any point.
    async fn take_leave(&mut self, leaves_jobs: bool) {
        if let Some(outbox) = self.outbox.take() {
            let farewell = if leaves_jobs {
                FromWorker::Absent { back_within: self.config.orphan_grace }
            } else {
                FromWorker::Goodbye
            };
            outbox.send(&farewell, Bytes::new());
            outbox.finish(FAREWELL_TIME).await;
        }
        self.link.close().await;
        if leaves_jobs {
            self.tell_of_jobs_left();
            self.fleet.leave().await;
        } else {
            self.keep_results().await;
            self.fleet.end().await;
        }
    }

    /// Tells the operator what goes on without the worker.
    fn tell_of_jobs_left(&self) {
        let jobs = self.held.values().filter(|held| held.host.is_some() && held.outcome.is_none()).count();
        let unheard_hosts = self.fleet.unheard();
        if jobs + unheard_hosts > 0 {
            let for_s = self.config.orphan_grace.as_secs();
            let state_dir = self.state.path().display();
            info!(
                jobs, unheard_hosts, for_s, %state_dir,
                "jobs go on without the worker: start it again on this directory to take them over"
            );
        }
    }

    /// Writes down the results that no scheduler has confirmed, for the next run of the worker: their hosts are about to end.
    /// A host whose results can't be written is left to keep them itself.
    async fn keep_results(&mut self) {
        let mut results = Vec::new();
        for (&attempt, held) in &self.held {
            let notes = held.notes.as_ref();
            let notices = held
                .outcome
                .as_ref()
                .and_then(|outcome| outcome.to_notices(attempt, notes, held.checkpoint.as_ref()));
            results.extend(notices.map(|notices| (attempt, held.host, notices)));
        }
        let spool = self.state.spool().clone();
        let keep = move || {
            let mut unwritten = BTreeSet::new();
            for (attempt, host, notices) in results {
                // What the host has written is all that it knew.
                let kept = spool.read_end(attempt).map(drop);
                if let Err(error) = kept.or_else(|_| spool::write_end(&spool.path(attempt), &notices)) {
                    warn!(%attempt, %error, "result can't be written down and is left to its job host");
                    unwritten.extend(host);
                }
            }
            unwritten
        };
        // An error is the end of the runtime.
        for host in tokio::task::spawn_blocking(keep).await.unwrap_or_default() {
            self.fleet.leave_host(host);
        }
    }

    /// Whether jobs go on when the worker is asked to end.
    fn leaves_jobs(&self) -> bool {
        self.config.on_term == OnTerm::Leave && !self.config.orphan_grace.is_zero()
    }

    async fn run_until_end(&mut self, incoming: &mut LinkReceiver, shutdown: &Shutdown) -> End {
        let mut is_leaving = false;
        while !self.has_left {
            let deadline = self.engine.next_deadline();
            tokio::select! {
                event = incoming.next() => {
                    if let Some(refusal) = self.on_link_events(event, incoming).await {
                        return End::Refused(refusal);
                    }
                }
                event = self.fleet.next() => self.on_fleet_event(event),
                ReporterEvent::Released { arena, region } = self.reporter.next() => {
                    self.fleet.command_host(arena, Command::ReleaseRegion { region });
                }
                () = sleep_until(deadline) => self.handle(Event::Tick),
                () = shutdown.requested(), if !is_leaving => {
                    let leaves_jobs = self.leaves_jobs();
                    info!(leaves_jobs, "worker leaves");
                    is_leaving = true;
                    self.handle(if leaves_jobs { Event::AbsenceOrdered } else { Event::LeaveOrdered });
                }
                () = shutdown.immediate() => return End::AtOnce,
            }
        }
        End::Left
    }

    /// Handles an event of the link and those behind it, until the budget is spent.
    async fn on_link_events(&mut self, first: LinkEvent, incoming: &mut LinkReceiver) -> Option<Refusal> {
        let started = Moment::now();
        let mut next = Some(first);
        while let Some(event) = next {
            if let Some(refusal) = self.on_link_event(event).await {
                return Some(refusal);
            }
            if self.has_left || started.elapsed() >= self.config.decode_budget {
                break;
            }
            next = tokio::select! {
                biased;
                event = incoming.next() => Some(event),
                () = std::future::ready(()) => None,
            };
        }
        None
    }

    /// Returns why the scheduler doesn't want this worker, if that is so.
    async fn on_link_event(&mut self, event: LinkEvent) -> Option<Refusal> {
        match event {
            LinkEvent::Up { welcome: _ } => {
                info!("connected to the scheduler");
                self.outbox = Some(Outbox::open(self.link.clone(), self.state.spool().clone()));
                self.resumes_fetches = true;
                self.handle(Event::Connected);
            }
            LinkEvent::Down { reason } => {
                info!(reason, "connection to the scheduler has ended");
                // Awaited: the link connects anew only after this, and nothing old may get into what is new.
                if let Some(outbox) = self.outbox.take() {
                    for (attempt, state) in outbox.discard().await {
                        if let Some(held) = self.held.get_mut(&attempt) {
                            held.checkpoint.get_or_insert(state);
                        }
                    }
                }
                self.questions.clear();
                self.handle(Event::Disconnected);
            }
            LinkEvent::Message(message) => match codec::decode::<ToWorker>(&message.head) {
                Ok(decoded) => self.on_message(decoded, message.body),
                Err(error) => warn!(%error, "message of the scheduler is ignored"),
            },
            LinkEvent::Refused(refusal) => return Some(refusal),
        }
        None
    }

    fn on_message(&mut self, message: ToWorker, body: Bytes) {
        let is_registration = matches!(message, ToWorker::Registered { .. });
        match meaning(message) {
            Meaning::Event(event) => self.handle(event),
            Meaning::Order(start) => self.take_order(*start, body),
            Meaning::Bundle(BundleNews::Piece { digest, offset, bytes, total }) => {
                trace!(bundle = %digest, offset, total, "piece of a bundle");
                self.fleet.take_piece(digest, offset, bytes, total, body);
            }
            Meaning::Bundle(BundleNews::Missing(digest)) => {
                if self.fleet.give_up_fetch(digest) {
                    self.handle(Event::BundleMissing(BundleRef::Shipped(digest)));
                }
            }
            Meaning::FetchOutput { request, attempt } => self.take_question(request, attempt),
        }
        if is_registration && let Some(ready) = self.ready.take() {
            info!(worker = %self.state.worker(), "registered");
            ready(self.state.worker());
        }
    }

    fn take_order(&mut self, start: Start, body: Bytes) {
        let attempt = start.attempt;
        if self.held.contains_key(&attempt) {
            debug!(%attempt, "repeated order is ignored");
            return;
        }
        let checkpoint_bytes = start.checkpoint_bytes.unwrap_or_default() as usize;
        let (Some(store), Some(payload_bytes)) =
            (self.engine.store(), body.len().checked_sub(checkpoint_bytes))
        else {
            warn!(%attempt, "an order that makes no sense is ignored");
            return;
        };
        let options = &start.options;
        debug!(%attempt, service = start.service, label = options.get_label(), "attempt ordered");
        let event = Event::StartOrdered {
            attempt,
            bundle: start.bundle.clone(),
            slots: options.get_slots(),
            exclusive: options.is_exclusive(),
        };
        let notes = Notes {
            application: start.application,
            owner: start.owner.clone(),
            service: start.service.clone(),
            slots: options.get_slots(),
            exclusive: options.is_exclusive(),
            store,
            progress_rtt_test: start.progress_rtt_test,
        };
        let checkpoint = start.checkpoint_bytes.map(|_| body.slice(payload_bytes..));
        let order = Order { start, payload: body.slice(..payload_bytes), checkpoint };
        let held = Held {
            notes: Some(notes),
            order: Some(Box::new(order)),
            host: None,
            watched: None,
            outcome: None,
            checkpoint: None,
        };
        self.held.insert(attempt, held);
        self.handle(event);
    }

    /// Takes over an attempt from a host of an earlier run.
    fn adopt(&mut self, host: HostNumber, bundle: BundleRef, job: HeldJob) {
        let HeldJob { attempt, notes, run } = job;
        if self.held.contains_key(&attempt) {
            warn!(%attempt, "two job hosts have the same attempt");
            return;
        }
        let service = notes.as_ref().map(|notes| notes.service.as_str());
        let (pid, ran_s) = (run.map(|run| run.pid), run.map(|run| run.ran.as_secs_f64()));
        info!(%attempt, service, pid, ran_s, "attempt adopted");
        let event = Event::AttemptHeld {
            attempt,
            host,
            bundle,
            slots: notes.as_ref().map_or(1, |notes| notes.slots),
            exclusive: notes.as_ref().is_some_and(|notes| notes.exclusive),
            store: notes.as_ref().map(|notes| notes.store),
            run: run.map(|run| HeldRun { pid: run.pid, ran: run.ran, stopping: run.stopping }),
        };
        let held =
            Held { notes, order: None, host: Some(host), watched: None, outcome: None, checkpoint: None };
        self.held.insert(attempt, held);
        if let Some(run) = run {
            self.watch(attempt, host, run.region);
        }
        self.handle(event);
    }

    /// Takes what hosts have left that are gone: ends that they have written down, and rubbish.
    fn take_leftovers(&mut self, leftovers: Leftovers) {
        let Leftovers { ends, results, directories } = leftovers;
        for LeftEnd { ended, notes, checkpoint } in ends {
            let attempt = ended.attempt;
            if let Entry::Vacant(vacant) = self.held.entry(attempt) {
                info!(%attempt, end = end_word(&ended.end), "end of an attempt found");
                let store = notes.as_ref().map(|notes| notes.store);
                let outcome = Some(Arc::new(Outcome::told(ended)));
                vacant.insert(Held { notes, order: None, host: None, watched: None, outcome, checkpoint });
                self.handle(Event::EndFound { attempt, store });
            }
        }
        for attempt in results {
            if !self.held.contains_key(&attempt) {
                self.janitor.remove_result(attempt);
            }
        }
        for attempt in directories {
            if self.held.get(&attempt).is_none_or(|held| held.outcome.is_some()) {
                self.janitor.remove_directory(self.state.working_directory(attempt));
            }
        }
        self.handle(Event::EarlierRunKnown);
    }

    /// Shows an attempt's bars.
    fn watch(&mut self, attempt: AttemptId, host: HostNumber, region: u32) {
        let Some(held) = self.held.get_mut(&attempt).filter(|held| held.watched.is_none()) else { return };
        let Some(notes) = &held.notes else { return };
        held.watched = Some(region);
        self.reporter.watch(Watched {
            arena: host,
            region,
            attempt,
            application: OwnedApplication { owner: notes.owner.clone(), application: notes.application },
            rtt_test: notes.progress_rtt_test,
        });
    }

    fn take_question(&mut self, request: u64, attempt: AttemptId) {
        let held = self.held.get(&attempt);
        if let Some(outcome) = held.and_then(|held| held.outcome.clone()) {
            self.answer(request, Some((&outcome.stdout, &outcome.stderr)));
        } else if let Some(held) = held.filter(|_| self.engine.is_at_host(attempt)) {
            let waiting = self.questions.entry(attempt).or_default();
            waiting.push(request);
            if waiting.len() == 1 {
                command(&self.fleet, held, Command::ReadOutput { attempt });
            }
        } else {
            self.answer(request, None);
        }
    }

    fn on_fleet_event(&mut self, event: FleetEvent) {
        match event {
            FleetEvent::BundleWanted(digest) => {
                debug!(bundle = %digest, "bundle is fetched");
                self.send(&FromWorker::WantBundle { digest, offset: 0 });
            }
            FleetEvent::Ready { bundle, host, arena, held } => {
                self.reporter.add_arena(host, arena);
                for job in held {
                    self.adopt(host, bundle.clone(), job);
                }
                self.handle(Event::HostReady { bundle, host });
            }
            FleetEvent::Resumed { host } => {
                for &attempt in self.questions.keys() {
                    if self.held.get(&attempt).is_some_and(|held| held.host == Some(host)) {
                        self.fleet.command_host(host, Command::ReadOutput { attempt });
                    }
                }
                self.handle(Event::HostResumed(host));
            }
            FleetEvent::EarlierRun(leftovers) => self.take_leftovers(leftovers),
            FleetEvent::Refused { bundle, reason } => {
                let reason = format!("worker on {}: {reason}", self.machine.host);
                warn!(reason, "bundle refused");
                self.handle(Event::BundleRefused { bundle, reason });
            }
            FleetEvent::Died { bundle, host, reason } => {
                warn!(reason, "no job host");
                if let Some(host) = host {
                    self.reporter.remove_arena(host);
                }
                let reason = format!("worker on {}: {reason}", self.machine.host);
                self.handle(Event::HostDied { bundle, host, reason });
            }
            FleetEvent::Began { host, attempt, pid, region } => {
                self.watch(attempt, host, region);
                self.handle(Event::AttemptBegan { attempt, pid });
            }
            FleetEvent::Checkpoint { attempt, state } => self.on_checkpoint(attempt, state),
            FleetEvent::Ended { host, ended } => self.on_ended(host, *ended),
            FleetEvent::OutputRead { attempt, texts } => {
                self.answer_all(attempt, texts.as_ref().map(|(stdout, stderr)| (&**stdout, &**stderr)));
            }
        }
    }

    fn on_checkpoint(&mut self, attempt: AttemptId, state: Bytes) {
        let is_reported = self.engine.is_reported(attempt);
        let Some(held) = self.held.get_mut(&attempt) else { return };
        match &self.outbox {
            // While it runs its host keeps it.
            Some(outbox) if is_reported && held.outcome.is_none() => {
                held.checkpoint = None;
                outbox.send_checkpoint(attempt, state);
            }
            _ => held.checkpoint = Some(state),
        }
    }

    fn on_ended(&mut self, host: HostNumber, ended: HostEnded) {
        let attempt = ended.attempt;
        if self.held.get(&attempt).is_some_and(|held| held.outcome.is_some()) {
            // The host keeps its copy until the scheduler has confirmed the end.
            debug!(%attempt, "repeated end of an attempt is ignored");
            return;
        }
        debug!(%attempt, end = ?ended.end, ran = ?ended.ran, "attempt ended");
        let watched = self.held.get_mut(&attempt).and_then(|held| held.watched.take());
        match watched {
            // The subprocess reads it for the last time, then releases it.
            Some(region) => self.reporter.unwatch(host, region, attempt),
            None => {
                if let Some(region) = ended.region {
                    self.fleet.command_host(host, Command::ReleaseRegion { region });
                }
            }
        }
        if !self.engine.is_at_host(attempt) {
            // Nobody waits for it.
            self.fleet.command_host(host, Command::Confirm { attempt });
            return;
        }
        let event = match trouble(&ended.end) {
            Some(reason) => {
                warn!(%attempt, reason, "this machine can't run an attempt, others wait for a while");
                Event::AttemptLost(attempt)
            }
            None => Event::AttemptEnded(attempt),
        };
        self.conclude(attempt, Outcome::told(ended));
        self.handle(event);
    }

    /// Keeps the outcome, and clears away what the attempt doesn't need any more.
    fn conclude(&mut self, attempt: AttemptId, outcome: Outcome) {
        let held = self.held.get_mut(&attempt).expect("what the engine knows is held here");
        let outcome = Arc::new(outcome);
        held.outcome = Some(outcome.clone());
        held.order = None;
        self.janitor.remove_directory(self.state.working_directory(attempt));
        self.answer_all(attempt, Some((&outcome.stdout, &outcome.stderr)));
    }

    fn answer_all(&mut self, attempt: AttemptId, texts: Option<(&[u8], &[u8])>) {
        for request in self.questions.remove(&attempt).unwrap_or_default() {
            self.answer(request, texts);
        }
    }

    fn answer(&self, request: u64, texts: Option<(&[u8], &[u8])>) {
        let length = |text: &[u8]| u32::try_from(text.len()).expect("a notice bounds it");
        let bytes = texts.map(|(stdout, stderr)| (length(stdout), length(stderr)));
        let body = texts.map(|(stdout, stderr)| [stdout, stderr].concat()).unwrap_or_default();
        self.send_with_body(&FromWorker::Output { request, bytes }, body);
    }

    fn handle(&mut self, event: Event) {
        for action in self.engine.handle(event, Moment::now()) {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Register { slots, store, held } => {
                self.send(&FromWorker::Register(Register {
                    worker: self.state.worker(),
                    secret: self.state.secret().clone(),
                    host: self.machine.host.clone(),
                    pid: std::process::id(),
                    instance: self.instance,
                    slots,
                    platform: Platform::current(),
                    boot_id: self.machine.boot_id.clone(),
                    installed: self.config.installed.keys().cloned().collect(),
                    ships: self.config.ships_bundles,
                    attempts: inventory(held),
                    store,
                }));
                if std::mem::take(&mut self.resumes_fetches) {
                    for (digest, offset) in self.fleet.wanted() {
                        self.send(&FromWorker::WantBundle { digest, offset });
                    }
                }
            }
            Action::SendHeartbeat { number } => {
                let heartbeat = codec::encode(&FromWorker::Heartbeat { number });
                let heartbeat = Message::new(heartbeat, Bytes::new()).urgent();
                if let Err(error) = self.link.try_send(heartbeat) {
                    debug!(%error, "heartbeat not sent");
                }
            }
            Action::ReportBegan { attempt, pid } => self.send(&FromWorker::Began { attempt, pid }),
            Action::ReportEnded(attempt) => {
                let held = self.held.get(&attempt).expect("what the engine knows is held here");
                let outcome = held
                    .outcome
                    .clone()
                    .expect("an attempt that has ended has an outcome until it is forgotten");
                if let Some(outbox) = &self.outbox {
                    if let Some(state) = &held.checkpoint {
                        outbox.send_checkpoint(attempt, state.clone());
                    }
                    outbox.send_ended(attempt, outcome);
                }
            }
            Action::ReportReturned(attempts) => self.send(&FromWorker::Returned { attempts }),
            Action::ReportNotReturned(attempt) => self.send(&FromWorker::NotReturned { attempt }),
            Action::ReportBundleRefused { bundle, reason, attempts } => {
                self.send(&FromWorker::BundleRefused { bundle, reason, attempts });
            }
            Action::PrepareHost(bundle) => self.fleet.prepare(&bundle),
            Action::KeepStore(store) => {
                if let Err(error) = self.state.keep_store(store) {
                    warn!(%error, "cannot write down which store the scheduler has");
                }
            }
            Action::TellAside(attempts) => warn!(
                attempts,
                "the worker holds attempts of another scheduler's store; they run on, and their results wait: start that \
                 scheduler with its old state directory"
            ),
            Action::EndHost(host) => {
                self.fleet.end_host(host);
                self.reporter.remove_arena(host);
            }
            Action::StartAttempt { attempt, host, lease_until } => {
                let held = self.held.get_mut(&attempt).expect("what the engine knows is held here");
                let order = held.order.take().expect("an attempt is started once");
                let notes = held.notes.clone().expect("an attempt that was ordered has notes");
                held.host = Some(host);
                let Order { start, payload, checkpoint } = *order;
                let job = Job {
                    attempt,
                    execution: start.execution,
                    service: start.service,
                    options: start.options,
                    payload,
                    checkpoint,
                    lease_until,
                    notes,
                };
                self.fleet.command_host(host, Command::Start(Box::new(job)));
            }
            Action::RenewLeases { host, until } => {
                self.fleet.command_host(host, Command::RenewLeases { until });
            }
            Action::ReadCheckpoint(attempt) => self.command(attempt, Command::ReadCheckpoint { attempt }),
            Action::StopAttempt { attempt, grace } => {
                self.command(attempt, Command::Stop { attempt, grace });
            }
            Action::Conclude { attempt, conclusion } => {
                self.conclude(attempt, Outcome::concluded(conclusion))
            }
            Action::Forget(attempt) => self.forget(attempt),
            Action::Leave => self.has_left = true,
        }
    }

    fn forget(&mut self, attempt: AttemptId) {
        let Some(held) = self.held.remove(&attempt) else { return };
        if held.outcome.is_some() {
            command(&self.fleet, &held, Command::Confirm { attempt });
            self.janitor.remove_result(attempt);
        }
    }

    fn command(&self, attempt: AttemptId, what: Command) {
        let held = self.held.get(&attempt).expect("what the engine knows is held here");
        command(&self.fleet, held, what);
    }

    fn send(&self, message: &FromWorker) {
        self.send_with_body(message, Bytes::new());
    }

    fn send_with_body(&self, message: &FromWorker, body: impl Into<Bytes>) {
        if let Some(outbox) = &self.outbox {
            outbox.send(message, body);
        }
    }
}

/// Sends a command to an attempt's host. Without one it is dropped: what the host had, died with it.
fn command(fleet: &Fleet, held: &Held, command: Command) {
    if let Some(host) = held.host {
        fleet.command_host(host, command);
    }
}
