//! Answers to `lrts status`, `jobs`, `workers`, `applications`, `logs`, `cancel` and `drain`.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lrts_core::clock::Moment;
use lrts_core::ids::JobId;
use lrts_core::limits::{OUTPUT_WAITING_BYTES, OUTPUTS_ASKED, ROWS};
use lrts_core::protocol::codec;
use lrts_core::protocol::command::{FromCommand, ToCommand};
use lrts_core::protocol::worker::ToWorker;
use lrts_core::transport::{ConnectionId, Message, ServerHandle};
use tokio::task::JoinSet;
use tracing::debug;

use crate::convert;
use crate::engine::{ApplicationListing, Engine, Event, OutputPlace, Peer, Totals};
use crate::store::{Fetched, ReadError, Store};

/// How long a worker may take to answer what an attempt has printed.
const OUTPUT_TIME: Duration = Duration::from_secs(3);

/// Pages are sent while less than this waits for the command.
const SEND_AHEAD_BYTES: usize = 1 << 20;

/// How soon a command whose queue is full is looked at again.
const PACE: Duration = Duration::from_millis(5);

/// Answers that are under way.
pub(crate) struct Commands {
    handle: ServerHandle,
    started: Moment,
    /// Outputs that workers were asked for.
    outputs: BTreeMap<u64, OutputAsked>,
    requests: u64,
    /// Outputs that are being read.
    reads: JoinSet<OutputRead>,
    /// Lists of jobs: for whom, from where on, looked at again when.
    lists: Vec<(ConnectionId, u32, Moment)>,
}

/// An output that a worker was asked for.
#[derive(Clone, Copy, Debug)]
struct OutputAsked {
    /// For whom.
    to: ConnectionId,
    job: JobId,
    /// Who may answer.
    worker: ConnectionId,
    until: Moment,
}

/// What the engine is to know of a command, and what is answered once the records that come of it are durable.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) events: Vec<Event>,
    pub(crate) answer: ToCommand,
}

/// What an attempt that has ended has printed, and for whom. Or why there is nothing.
pub(crate) struct OutputRead {
    to: ConnectionId,
    output: Result<(Bytes, Bytes), ReadError>,
    note: &'static str,
}

impl Commands {
    pub(crate) fn new(handle: ServerHandle, started: Moment) -> Self {
        Self {
            handle,
            started,
            outputs: BTreeMap::new(),
            requests: 0,
            reads: JoinSet::new(),
            lists: Vec::new(),
        }
    }

    /// When [`Commands::tick`] is due.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        let outputs = self.outputs.values().map(|asked| asked.until);
        outputs.chain(self.lists.iter().map(|&(_, _, at)| at)).min()
    }

    /// Answers a command, or begins to; one that orders something is left to the caller.
    pub(crate) fn asked(
        &mut self,
        from: ConnectionId,
        command: FromCommand,
        engine: &Engine,
        store: &dyn Store,
        connection_of: impl Fn(Peer) -> Option<ConnectionId>,
    ) -> Option<Asked> {
        let now = Moment::now();
        match command {
            FromCommand::Status => {
                let (counters, uptime) = (self.handle.counters(), now.since(self.started));
                let status = convert::status(engine, counters, store.health(), uptime);
                self.answer(from, &ToCommand::Status(status), Bytes::new());
            }
            FromCommand::Jobs => {
                // Asked again, it begins anew: each connection has one list at most.
                self.lists.retain(|&(to, ..)| to != from);
                self.lists.push((from, 0, now));
                self.tick(engine, store);
            }
            FromCommand::Workers => {
                let rows = engine.worker_listings(now).into_iter().map(convert::worker_row);
                self.answer_pages(from, rows.collect(), |rows, last| ToCommand::Workers { rows, last });
            }
            FromCommand::Applications => {
                let rows = engine.application_listings(now).into_iter().map(convert::application_row);
                self.answer_pages(from, rows.collect(), |rows, last| ToCommand::Applications { rows, last });
            }
            FromCommand::CancelApplication { application } => {
                let answer = ToCommand::ApplicationCancelled { jobs: engine.unfinished(application) };
                return Some(Asked { events: vec![Event::ApplicationCancelled { application }], answer });
            }
            FromCommand::CancelUser { user } => {
                let mut listings = engine.application_listings(now);
                listings.retain(|listing| listing.user.as_ref() == Some(&user));
                let unfinished = |jobs: Totals| jobs.queued + jobs.running;
                let jobs = listings.iter().map(|listing| unfinished(listing.jobs)).sum();
                let answer = ToCommand::UserCancelled { applications: listings.len() as u64, jobs };
                listings.retain(|listing| unfinished(listing.jobs) > 0);
                let cancelled = |listing: ApplicationListing| Event::ApplicationCancelled {
                    application: listing.application,
                };
                return Some(Asked { events: listings.into_iter().map(cancelled).collect(), answer });
            }
            FromCommand::Drain { worker, deadline } => {
                let answer = ToCommand::Draining { attempts: engine.attempts_at(worker) };
                return Some(Asked { events: vec![Event::DrainOrdered { worker, deadline }], answer });
            }
            FromCommand::Logs { job } => self.logs(from, job, engine, store, connection_of),
            FromCommand::Cancel { jobs } => {
                let (mut unknown, mut ended) = (Vec::new(), Vec::new());
                for &job in &jobs {
                    match engine.state(job) {
                        None => unknown.push(job),
                        Some(state) if state.is_terminal() => ended.push(job),
                        Some(_) => {}
                    }
                }
                let answer = ToCommand::Cancelled { unknown, ended };
                return Some(Asked { events: vec![Event::JobsCancelled { jobs }], answer });
            }
        }
        None
    }

    fn logs(
        &mut self,
        from: ConnectionId,
        job: JobId,
        engine: &Engine,
        store: &dyn Store,
        connection_of: impl Fn(Peer) -> Option<ConnectionId>,
    ) {
        let waiting = self.handle.queued(from).map_or(0, |(_, bytes)| bytes);
        if waiting > OUTPUT_WAITING_BYTES || self.reads.len() + self.outputs.len() >= OUTPUTS_ASKED {
            let note = "too much output is asked for at a time: take what came, and ask again".to_owned();
            return self.answer(from, &ToCommand::Logs { bytes: None, note }, Bytes::new());
        }
        match engine.output_place(job) {
            OutputPlace::Unknown => {
                let note = format!("no job {job} is known");
                self.answer(from, &ToCommand::Logs { bytes: None, note }, Bytes::new());
            }
            OutputPlace::Worker { peer, attempt } => {
                self.requests += 1;
                let question = ToWorker::FetchOutput { request: self.requests, attempt };
                let message = Message::new(codec::encode(&question), Bytes::new());
                let worker = connection_of(peer);
                let asked = worker.filter(|&worker| self.handle.send(worker, message).is_ok());
                if let Some(worker) = asked {
                    let until = Moment::now() + OUTPUT_TIME;
                    self.outputs.insert(self.requests, OutputAsked { to: from, job, worker, until });
                } else {
                    self.answer_stored(from, job, store, "the job's worker is away");
                }
            }
            OutputPlace::Away => self.answer_stored(from, job, store, "the job's worker is away"),
            OutputPlace::Store => self.answer_stored(from, job, store, "the job has not begun"),
        }
    }

    /// What the newest attempt that has ended has printed, or nothing and this note.
    fn answer_stored(&mut self, to: ConnectionId, job: JobId, store: &dyn Store, note: &'static str) {
        match store.output(job) {
            Fetched::Now(output) => self.output_read(OutputRead { to, output, note }),
            Fetched::Later(output) => {
                self.reads.spawn(async move {
                    let output = output.await.unwrap_or(Err(ReadError::Missing));
                    OutputRead { to, output, note }
                });
            }
        }
    }

    /// The next output that has been read; never if none is being read. Safe to cancel.
    pub(crate) async fn next(&mut self) -> OutputRead {
        match self.reads.join_next().await {
            Some(Ok(read)) => read,
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            None => std::future::pending().await,
        }
    }

    /// Answers with an output that has been read.
    pub(crate) fn output_read(&self, read: OutputRead) {
        let OutputRead { to, output, note } = read;
        match output {
            Ok((stdout, stderr)) => self.answer_output(to, &stdout, &stderr, ""),
            Err(ReadError::Missing) => self.answer_output(to, b"", b"", note),
            Err(damage) => self.answer_output(to, b"", b"", &format!("the output can't be read: {damage}")),
        }
    }

    fn answer_output(&self, to: ConnectionId, stdout: &[u8], stderr: &[u8], note: &str) {
        let length = |text: &[u8]| u32::try_from(text.len()).expect("a message's body is shorter than 4 GiB");
        let mut body = BytesMut::with_capacity(stdout.len() + stderr.len());
        body.extend_from_slice(stdout);
        body.extend_from_slice(stderr);
        let bytes = Some((length(stdout), length(stderr)));
        self.answer(to, &ToCommand::Logs { bytes, note: note.to_owned() }, body.freeze());
    }

    /// A worker has answered what an attempt has printed.
    pub(crate) fn output_came(
        &mut self,
        from: ConnectionId,
        request: u64,
        output: Option<(Bytes, Bytes)>,
        store: &dyn Store,
    ) {
        // Later than the time for it, or another one was asked, or nobody.
        let Some(&OutputAsked { to, job, worker, .. }) = self.outputs.get(&request) else { return };
        if worker != from {
            return;
        }
        self.outputs.remove(&request);
        match output {
            Some((stdout, stderr)) => self.answer_output(to, &stdout, &stderr, ""),
            // It has ended since.
            None => self.answer_stored(to, job, store, "the attempt has just ended, ask again"),
        }
    }

    /// Goes on with what is due.
    pub(crate) fn tick(&mut self, engine: &Engine, store: &dyn Store) {
        let now = Moment::now();
        while let Some(request) =
            self.outputs.iter().find(|(_, asked)| asked.until <= now).map(|(&request, _)| request)
        {
            if let Some(OutputAsked { to, job, .. }) = self.outputs.remove(&request) {
                self.answer_stored(to, job, store, "the job's worker didn't answer in time");
            }
        }
        for (to, mut from, at) in std::mem::take(&mut self.lists) {
            if at > now {
                self.lists.push((to, from, at));
                continue;
            }
            // One page a turn, so that a long list delays nobody else.
            match self.handle.queued(to) {
                None => continue,
                Some((_, bytes)) if bytes > SEND_AHEAD_BYTES => {
                    self.lists.push((to, from, now + PACE));
                    continue;
                }
                Some(_) => {}
            }
            let page = engine.job_page(from, ROWS, now);
            let rows = page.jobs.into_iter().map(convert::job_row).collect();
            self.answer(to, &ToCommand::Jobs { rows, last: page.next.is_none() }, Bytes::new());
            if let Some(next) = page.next {
                from = next;
                self.lists.push((to, from, now));
            }
        }
    }

    /// Answers a command with rows, as many messages as they take.
    fn answer_pages<T>(&self, to: ConnectionId, mut rows: Vec<T>, head: impl Fn(Vec<T>, bool) -> ToCommand) {
        while rows.len() > ROWS {
            let rest = rows.split_off(ROWS);
            self.answer(to, &head(std::mem::replace(&mut rows, rest), false), Bytes::new());
        }
        self.answer(to, &head(rows, true), Bytes::new());
    }

    /// Answers a command.
    pub(crate) fn answer(&self, to: ConnectionId, head: &ToCommand, body: Bytes) {
        if let Err(error) = self.handle.send(to, Message::new(codec::encode(head), body)) {
            debug!(connection = %to, %error, "answer to a command not sent");
        }
    }
}
