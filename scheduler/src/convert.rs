//! Messages of the wire as the engine's events, and back. No wildcard arms: a new message shows here first.

use bytes::Bytes;
use lrts_core::ids::{JobId, SessionId, UserName};
use lrts_core::limits::{
    BARS_PER_ATTEMPT, BODY_BYTES, BOOT_ID_BYTES, BUNDLE_NAME_BYTES, CHECKPOINT_BYTES, FAILURE_MESSAGE_BYTES,
    HELLO_HOST_BYTES, INSTALLED_BUNDLES, JOB_SET_RANGES, OUTPUT_BYTES, PLATFORM_BYTES, SUBMIT_JOBS,
};
use lrts_core::progress::is_bounded;
use lrts_core::protocol::application::{self, FromApplication, JobRange, JobReport, JobSet, ToApplication};
use lrts_core::protocol::codec::{self, DecodeError};
use lrts_core::protocol::command::{ApplicationRow, JobRow, Status, WorkerRow};
use lrts_core::protocol::progress::BarRecord;
use lrts_core::protocol::worker::{self, AttemptEnd, Ended, FromWorker, HeldAttempt, Register, ToWorker};
use lrts_core::spec::{BundleRef, Platform, is_bundle_name};
use lrts_core::status::{Failure, FailureKind, truncate};
use lrts_core::transport::{self, Counters, RefusalKind};
use tracing::error;

use crate::bundles::Request;
use crate::engine::{
    ApplicationListing, Attach, AttemptOutcome, Credit, Engine, Event, Held, JobListing, ListedJobs, Message,
    Peer, Recipe, Registration, Submit, Totals, WorkerListing,
};
use crate::record::{NewJob, Record, Report, Submitted};
use crate::store::{Bodies, EndedBodies, Fetched, Health, ReadError, ResultBodies, StartBodies, Store};

/// A message that no honest peer sends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadMessage {
    #[error(transparent)]
    Undecodable(#[from] DecodeError),
    #[error("the lengths of a message's parts don't add up to its body")]
    Lengths,
    #[error("ranges of jobs that don't ascend, or more than {JOB_SET_RANGES} of them")]
    Ranges,
    #[error("a submit of more than {SUBMIT_JOBS} jobs")]
    TooManyJobs,
    #[error("keys that don't ascend, or of jobs that aren't there")]
    Keys,
    #[error("a checkpoint of {0} bytes: at most {CHECKPOINT_BYTES} are allowed")]
    Checkpoint(usize),
    #[error("a body where none belongs")]
    UnexpectedBody,
    #[error("{what} of {bytes} bytes: at most {limit} are allowed")]
    TooLong { what: &'static str, bytes: usize, limit: usize },
    #[error("{count} installed bundles: at most {INSTALLED_BUNDLES} are allowed")]
    TooManyBundles { count: usize },
    #[error(
        "an installed bundle of {bytes} bytes of name: it must be a file's name on one line, of {BUNDLE_NAME_BYTES} bytes at most"
    )]
    BundleName { bytes: usize },
    #[error("final bars that no job can have")]
    Bars,
    #[error(
        "this worker's secret is not that of its id, which another worker may have: give it a state directory of its own"
    )]
    Secret,
}

impl BadMessage {
    /// How its sender is refused.
    pub(crate) fn kind(&self) -> RefusalKind {
        match self {
            BadMessage::Secret => RefusalKind::Keys,
            BadMessage::Undecodable(_)
            | BadMessage::Lengths
            | BadMessage::Ranges
            | BadMessage::TooManyJobs
            | BadMessage::Keys
            | BadMessage::Checkpoint(_)
            | BadMessage::UnexpectedBody
            | BadMessage::TooLong { .. }
            | BadMessage::TooManyBundles { .. }
            | BadMessage::BundleName { .. }
            | BadMessage::Bars => RefusalKind::Protocol,
        }
    }
}

/// Checks the length of a text or a part of a body that is kept.
fn bounded(what: &'static str, bytes: usize, limit: usize) -> Result<(), BadMessage> {
    if bytes <= limit { Ok(()) } else { Err(BadMessage::TooLong { what, bytes, limit }) }
}

fn bounded_bundle(bundle: &BundleRef) -> Result<(), BadMessage> {
    match bundle {
        BundleRef::Installed(name) => bounded("a bundle's name", name.len(), BUNDLE_NAME_BYTES),
        BundleRef::Shipped(_) => Ok(()),
    }
}

fn bounded_platform(platform: &Platform) -> Result<(), BadMessage> {
    bounded("a platform's target", platform.target.len(), PLATFORM_BYTES)
}

/// What a message asks for.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it is handled at once and never kept")]
pub(crate) enum Input {
    /// Something for the engine; the bodies go with the record that comes of it.
    Event(Event, InputBodies),
    /// Something about a bundle's bytes.
    Bundle(Request),
    /// A running attempt's output, as asked for. None if the attempt isn't there.
    Output { request: u64, output: Option<(Bytes, Bytes)> },
}

/// Bodies of a message.
#[derive(Debug)]
pub(crate) enum InputBodies {
    Nothing,
    /// Payloads of jobs numbered on from `first`.
    Payloads {
        first: u64,
        payloads: Vec<Bytes>,
    },
    Ended(EndedBodies),
    Checkpoint(Bytes),
}

impl InputBodies {
    /// The bodies of this record.
    pub(crate) fn for_record(&mut self, record: &Record) -> Bodies {
        match (record, std::mem::replace(self, InputBodies::Nothing)) {
            (
                Record::Submitted(Submitted { first: accepted, skipped, .. }),
                InputBodies::Payloads { first, mut payloads },
            ) => {
                // Those before were accepted with an earlier message.
                let known = usize::try_from(accepted - first).expect("a submit is a message in memory");
                let mut payloads = payloads.split_off(known);
                for sequence in skipped {
                    // Nothing of it is kept, so it takes no room while it waits either.
                    let index = usize::try_from(sequence - accepted).ok();
                    if let Some(payload) = index.and_then(|index| payloads.get_mut(index)) {
                        *payload = Bytes::new();
                    }
                }
                Bodies::Payloads(payloads)
            }
            (Record::AttemptEnded { .. }, InputBodies::Ended(bodies)) => Bodies::Ended(bodies),
            (Record::Checkpoint { .. }, InputBodies::Checkpoint(bytes)) => Bodies::Checkpoint(bytes),
            (_, others) => {
                *self = others;
                Bodies::Nothing
            }
        }
    }
}

/// Reads a message from an application, whose key is this user's.
pub(crate) fn from_application(
    peer: Peer,
    user: Option<&UserName>,
    message: &transport::Message,
) -> Result<Input, BadMessage> {
    let head: FromApplication = codec::decode(&message.head)?;
    let body = &message.body;
    if !matches!(head, FromApplication::Submit { .. } | FromApplication::BundleChunk { .. })
        && !body.is_empty()
    {
        return Err(BadMessage::UnexpectedBody);
    }
    let event = match head {
        FromApplication::Attach(attach) => {
            bounded_bundle(&attach.bundle)?;
            Event::Attached { peer, attach: attach_from(attach, user) }
        }
        FromApplication::OfferBundle { digest, bytes, platform } => {
            bounded_platform(&platform)?;
            return Ok(Input::Bundle(Request::Offer { digest, bytes, platform }));
        }
        FromApplication::BundleChunk { digest, offset, bytes } => {
            return Ok(Input::Bundle(Request::Chunk { digest, offset, bytes, compressed: body.clone() }));
        }
        FromApplication::Submit { first, options, jobs, keys } => {
            let jobs = new_jobs(&jobs)?;
            let ascending = keys.windows(2).all(|pair| pair[0].index < pair[1].index);
            if !ascending || keys.last().is_some_and(|key| key.index as usize >= jobs.len()) {
                return Err(BadMessage::Keys);
            }
            let lengths = jobs.iter().map(|job| u64::from(job.payload_bytes));
            let payloads = codec::split_body(body, lengths).ok_or(BadMessage::Lengths)?;
            let bodies = InputBodies::Payloads { first, payloads };
            let submit = Submit { first, options, jobs, keys, no_room: None };
            return Ok(Input::Event(Event::Submitted { peer, submit }, bodies));
        }
        FromApplication::Want { jobs, urgent } => {
            let (session, ranges) = ranges(jobs)?;
            Event::Wanted { peer, session, ranges, urgent }
        }
        FromApplication::Credit(credit) => Event::CreditGranted { peer, credit: credit_from(credit) },
        FromApplication::Taken { jobs } => {
            let (session, ranges) = ranges(jobs)?;
            Event::Taken { peer, session, ranges }
        }
        FromApplication::Cancel { jobs } => {
            let (session, ranges) = ranges(jobs)?;
            Event::CancelAsked { peer, session, ranges }
        }
        FromApplication::List { request, job } => Event::ListAsked { peer, request, job },
        FromApplication::Detach => Event::DetachAsked { peer },
        FromApplication::Stop => Event::StopAsked { peer },
    };
    Ok(Input::Event(event, InputBodies::Nothing))
}

fn attach_from(attach: application::Attach, user: Option<&UserName>) -> Attach {
    let application::Attach {
        application,
        session,
        bundle,
        services,
        on_disconnect,
        progress_rtt_test,
        credit,
    } = attach;
    let credit = credit_from(credit);
    let user = user.cloned();
    Attach { user, application, session, bundle, services, on_disconnect, progress_rtt_test, credit }
}

fn credit_from(credit: application::Credit) -> Credit {
    Credit { results: credit.results, bytes: credit.bytes }
}

/// The single jobs of ranges, if there aren't too many.
fn new_jobs(ranges: &[JobRange]) -> Result<Vec<NewJob>, BadMessage> {
    let count: u64 = ranges.iter().map(|range| u64::from(range.count)).sum();
    if count > SUBMIT_JOBS as u64 {
        return Err(BadMessage::TooManyJobs);
    }
    let jobs = |&JobRange { count, service, options, payload_bytes }: &JobRange| {
        std::iter::repeat_n(NewJob { service, options, payload_bytes }, count as usize)
    };
    Ok(ranges.iter().flat_map(jobs).collect())
}

/// Checks that ranges ascend, so that each job is named once at most, and that there aren't too many.
fn ranges(jobs: JobSet) -> Result<(SessionId, Vec<(u64, u64)>), BadMessage> {
    let ordered = jobs.ranges.iter().all(|(first, last)| first <= last);
    let ascending = jobs.ranges.windows(2).all(|pair| pair[0].1 < pair[1].0);
    let few = jobs.ranges.len() <= JOB_SET_RANGES;
    if ordered && ascending && few { Ok((jobs.session, jobs.ranges)) } else { Err(BadMessage::Ranges) }
}

/// Reads a message from a worker.
pub(crate) fn from_worker(peer: Peer, message: &transport::Message) -> Result<Input, BadMessage> {
    let head: FromWorker = codec::decode(&message.head)?;
    let body = &message.body;
    let has_body =
        matches!(head, FromWorker::Ended(_) | FromWorker::Output { .. } | FromWorker::Checkpoint { .. });
    if !has_body && !body.is_empty() {
        return Err(BadMessage::UnexpectedBody);
    }
    let event = match head {
        FromWorker::Register(register) => {
            let (registration, held) = registration(register)?;
            Event::Registered { peer, registration, held }
        }
        FromWorker::Heartbeat { number } => Event::HeartbeatReceived { peer, number },
        FromWorker::Checkpoint { .. } if body.len() > CHECKPOINT_BYTES => {
            return Err(BadMessage::Checkpoint(body.len()));
        }
        FromWorker::Checkpoint { attempt } => {
            let bodies = InputBodies::Checkpoint(body.clone());
            return Ok(Input::Event(Event::CheckpointCame { peer, attempt }, bodies));
        }
        FromWorker::Began { attempt, pid } => Event::Began { peer, attempt, pid },
        FromWorker::Ended(ended) => return self::ended(peer, ended, body),
        FromWorker::Returned { attempts } => Event::Returned { peer, attempts },
        FromWorker::NotReturned { attempt } => Event::NotReturned { peer, attempt },
        FromWorker::WantBundle { digest, offset } => {
            return Ok(Input::Bundle(Request::Want { digest, offset }));
        }
        FromWorker::BundleRefused { bundle, mut reason, attempts } => {
            bounded_bundle(&bundle)?;
            truncate(&mut reason, FAILURE_MESSAGE_BYTES);
            Event::BundleRefusedByWorker { peer, bundle, reason, attempts }
        }
        FromWorker::Output { request, bytes } => {
            let output = match bytes {
                Some((stdout, stderr)) => Some(split_output(body, stdout, stderr)?),
                None if body.is_empty() => None,
                None => return Err(BadMessage::Lengths),
            };
            return Ok(Input::Output { request, output });
        }
        FromWorker::Goodbye => Event::SaidGoodbye { peer },
        FromWorker::Absent { back_within } => Event::SaidAbsent { peer, back_within },
    };
    Ok(Input::Event(event, InputBodies::Nothing))
}

fn registration(register: Register) -> Result<(Registration, Vec<Held>), BadMessage> {
    // A restarted machine shows in the inventory: it lacks the attempts of the boot before.
    let Register {
        worker,
        secret,
        host,
        pid,
        instance,
        slots,
        platform,
        boot_id,
        installed,
        ships,
        attempts,
        store,
    } = register;
    if secret.worker() != worker {
        return Err(BadMessage::Secret);
    }
    bounded("a host's name", host.len(), HELLO_HOST_BYTES)?;
    bounded("a boot's id", boot_id.len(), BOOT_ID_BYTES)?;
    bounded_platform(&platform)?;
    if installed.len() > INSTALLED_BUNDLES {
        return Err(BadMessage::TooManyBundles { count: installed.len() });
    }
    if let Some(name) = installed.iter().find(|name| !is_bundle_name(name)) {
        return Err(BadMessage::BundleName { bytes: name.len() });
    }
    let held =
        |HeldAttempt { attempt, running, pid, ended }: HeldAttempt| Held { attempt, running, pid, ended };
    let registration =
        Registration { worker, host, pid, instance, slots, platform, boot_id, installed, ships, store };
    Ok((registration, attempts.into_iter().map(held).collect()))
}

fn ended(peer: Peer, ended: Ended, body: &Bytes) -> Result<Input, BadMessage> {
    let Ended { attempt, end, ran, peak_memory_bytes: _, body_bytes, bars } = ended;
    let (output, stdout, stderr) = body_bytes;
    let parts = codec::split_body(body, [output, u64::from(stdout), u64::from(stderr)]);
    let parts: [Bytes; 3] = parts.ok_or(BadMessage::Lengths)?.try_into().map_err(|_| BadMessage::Lengths)?;
    let [output, stdout, stderr] = parts;
    bounded("an output", output.len(), BODY_BYTES as usize)?;
    for text in [&stdout, &stderr] {
        bounded("printed text", text.len(), OUTPUT_BYTES)?;
    }
    let is_possible = |bar: &BarRecord| bar.index < BARS_PER_ATTEMPT && is_bounded(&bar.text);
    if bars.len() > BARS_PER_ATTEMPT as usize || !bars.iter().all(is_possible) {
        return Err(BadMessage::Bars);
    }
    let outcome = match end {
        AttemptEnd::Finished => AttemptOutcome::Finished,
        // Cut again: a worker may have sent more than fits into an answer.
        AttemptEnd::Failed(failure) => AttemptOutcome::Failed(Failure::new(failure.kind, failure.message)),
        AttemptEnd::Stopped => AttemptOutcome::Stopped,
        AttemptEnd::Lost { mut reason } => {
            truncate(&mut reason, FAILURE_MESSAGE_BYTES);
            AttemptOutcome::Lost { reason }
        }
    };
    let output_bytes = output.len() as u64;
    let bodies = InputBodies::Ended(EndedBodies { output, stdout, stderr, bars });
    Ok(Input::Event(Event::Ended { peer, attempt, outcome, ran, output_bytes }, bodies))
}

fn split_output(body: &Bytes, stdout: u32, stderr: u32) -> Result<(Bytes, Bytes), BadMessage> {
    let parts = codec::split_body(body, [u64::from(stdout), u64::from(stderr)]).ok_or(BadMessage::Lengths)?;
    let [stdout, stderr]: [Bytes; 2] = parts.try_into().map_err(|_| BadMessage::Lengths)?;
    for text in [&stdout, &stderr] {
        bounded("printed text", text.len(), OUTPUT_BYTES)?;
    }
    Ok((stdout, stderr))
}

/// A message of the engine as it travels.
pub(crate) enum Outgoing {
    Ready(transport::Message),
    /// With [`start`], once its bodies are here.
    Start(Box<worker::Start>, Fetched<StartBodies>),
    /// With [`result`], once its bodies are here.
    Result(JobId, Report, Fetched<ResultBodies>),
}

/// Puts bodies to a message of the engine.
pub(crate) fn outgoing(message: Message, store: &dyn Store) -> Outgoing {
    let to_application =
        |head: ToApplication| Outgoing::Ready(transport::Message::new(codec::encode(&head), Bytes::new()));
    let to_worker =
        |head: ToWorker| Outgoing::Ready(transport::Message::new(codec::encode(&head), Bytes::new()));
    match message {
        Message::Attached { epoch, accepted_through } => {
            to_application(ToApplication::Attached { epoch, accepted_through })
        }
        Message::Accepted { through } => to_application(ToApplication::Accepted { through }),
        Message::Refused { sequence, reason, cause } => {
            to_application(ToApplication::Refused { sequence, reason, cause })
        }
        Message::Result { job, report } => {
            let bodies = store.result(job);
            Outgoing::Result(job, report, bodies)
        }
        Message::Listed { request, jobs, last } => {
            let jobs = jobs.into_iter().map(listed).collect();
            to_application(ToApplication::Listed { request, jobs, last })
        }
        Message::Detached => to_application(ToApplication::Detached),
        Message::Gone { job, taken } => to_application(ToApplication::Gone { job, taken }),
        Message::Totals(totals) => {
            let Totals { queued, running, finished, failed, cancelled } = totals;
            let totals = application::Totals { queued, running, finished, failed, cancelled };
            to_application(ToApplication::Totals(totals))
        }
        Message::Stopped => to_application(ToApplication::Stopped),
        Message::Registered { store, epoch, heartbeat, lost_after, closed } => {
            to_worker(ToWorker::Registered { store, epoch, heartbeat, lost_after, closed })
        }
        Message::Renewed { number } => urgent(&ToWorker::Renewed { number }),
        Message::SetHeartbeat { heartbeat } => urgent(&ToWorker::SetHeartbeat { heartbeat }),
        Message::Start { attempt, execution, owner, recipe, checkpoint } => {
            let Recipe { application, bundle, service, options, progress_rtt_test } = &*recipe;
            let start = worker::Start {
                attempt,
                execution,
                application: *application,
                owner,
                bundle: bundle.clone(),
                service: service.to_string(),
                options: options.clone(),
                checkpoint_bytes: None,
                progress_rtt_test: *progress_rtt_test,
            };
            Outgoing::Start(Box::new(start), store.payload(attempt.job, checkpoint))
        }
        Message::Stop { attempt } => to_worker(ToWorker::Stop { attempt, at_once: false }),
        Message::Recall { attempt } => to_worker(ToWorker::Recall { attempt }),
        Message::Confirm { attempts } => to_worker(ToWorker::Confirm { attempts }),
    }
}

fn listed(jobs: ListedJobs) -> (String, JobSet) {
    let ListedJobs { service, session, ranges } = jobs;
    (service.to_string(), JobSet { session, ranges })
}

/// A message that isn't held up by others.
fn urgent(head: &ToWorker) -> Outgoing {
    Outgoing::Ready(transport::Message::new(codec::encode(head), Bytes::new()).urgent())
}

/// The order to start an attempt, with its bodies.
pub(crate) fn start(mut start: worker::Start, bodies: StartBodies) -> transport::Message {
    let StartBodies { payload, checkpoint } = bodies;
    let body = match checkpoint {
        None => payload,
        Some(checkpoint) => {
            start.checkpoint_bytes = u32::try_from(checkpoint.len()).ok();
            [payload, checkpoint].concat().into()
        }
    };
    transport::Message::new(codec::encode(&ToWorker::Start(start)), body)
}

/// A job's result, with its bodies. None if nobody needs it any more: it was taken or forgotten since.
pub(crate) fn result(
    job: JobId,
    report: Report,
    bodies: Result<ResultBodies, ReadError>,
) -> Option<transport::Message> {
    let Report { mut failure, attempt, attempts, worker, queued, ran } = report;
    let (body, bars) = match bodies {
        Ok(ResultBodies { output, bars }) => (output, bars),
        // Failed jobs bring no body, and perhaps no bars.
        Err(ReadError::Missing) if failure.is_some() => (Bytes::new(), Vec::new()),
        Err(ReadError::Missing) => return None,
        Err(damage) => {
            error!(%job, %damage, "a result can't be read");
            let message = format!("the scheduler can't read the result any more: {damage}");
            failure.get_or_insert(Failure::new(FailureKind::Error, message));
            (Bytes::new(), Vec::new())
        }
    };
    let body = if failure.is_some() { Bytes::new() } else { body };
    let report = JobReport { failure, attempt, attempts, worker, queued, ran, bars };
    Some(transport::Message::new(codec::encode(&ToApplication::Result { job, report }), body))
}

/// A row of `lrts jobs`.
pub(crate) fn job_row(listing: JobListing) -> JobRow {
    let JobListing { job, application, user, service, label, state, attempt, worker, pid, mut reason } =
        listing;
    // It may be what many workers say.
    truncate(&mut reason, FAILURE_MESSAGE_BYTES);
    JobRow {
        job_id: job,
        application_id: application,
        user,
        service,
        label,
        state,
        attempt,
        worker,
        pid,
        reason,
    }
}

/// A row of `lrts workers`.
pub(crate) fn worker_row(listing: WorkerListing) -> WorkerRow {
    let WorkerListing { worker, host, pid, slots, running, state, silent } = listing;
    WorkerRow { worker, host, pid, slots, running, state, silent }
}

/// A row of `lrts applications`.
pub(crate) fn application_row(listing: ApplicationListing) -> ApplicationRow {
    let ApplicationListing { application, user, away, jobs } = listing;
    let Totals { queued, running, finished, failed, cancelled } = jobs;
    ApplicationRow {
        application_id: application,
        user,
        connected: away.is_none(),
        away_s: away.map(|away| away.as_secs_f64()),
        queued,
        running,
        finished,
        failed,
        cancelled,
    }
}

/// `lrts status`.
pub(crate) fn status(
    engine: &Engine,
    counters: &Counters,
    health: Health,
    uptime: std::time::Duration,
) -> Status {
    let peers = counters.snapshot().into_iter().map(|(cause, count)| (cause.as_str(), count));
    let refused = peers.chain(engine.refused_jobs()).map(|(cause, count)| (cause.to_owned(), count));
    Status {
        refused: refused.collect(),
        jobs: engine.job_counts().map(|(state, count)| (state.as_str().to_owned(), count)).collect(),
        workers: engine.connected_workers(),
        uptime_s: uptime.as_secs_f64(),
        store_trouble: match health {
            Health::Good => String::new(),
            Health::Full(error) | Health::Failing(error) => error,
        },
    }
}

#[cfg(test)]
mod tests {
    use lrts_core::ids::{AttemptId, BundleDigest};
    use lrts_core::protocol::progress::{BarNumbers, BarText};
    use lrts_core::worker_secret::WorkerSecret;

    use super::*;

    #[test]
    fn payloads_that_nobody_keeps_take_no_room() {
        let payloads = vec![Bytes::from(vec![7; 1_000]); 4];
        let mut bodies = InputBodies::Payloads { first: 1, payloads };
        let job = NewJob { service: 0, options: 0, payload_bytes: 1_000 };
        let submitted = Submitted {
            session: SessionId(1),
            first: 2,
            options: [].into(),
            jobs: vec![job; 3],
            skipped: vec![2, 4],
            keyed: Vec::new(),
        };
        let bodies = bodies.for_record(&Record::Submitted(submitted));
        assert_eq!(bodies.bytes(), 1_000);
        let Bodies::Payloads(payloads) = bodies else { panic!("{bodies:?}") };
        assert_eq!(payloads.iter().map(Bytes::len).collect::<Vec<_>>(), [0, 1_000, 0]);
    }

    fn register() -> Register {
        let secret = WorkerSecret::random();
        Register {
            worker: secret.worker(),
            secret,
            host: "here".into(),
            pid: 1,
            instance: 1,
            slots: 1,
            platform: Platform { target: "x86_64-linux-gnu".into(), glibc: None },
            boot_id: "boot".into(),
            installed: vec!["tools".into()],
            ships: true,
            attempts: Vec::new(),
            store: None,
        }
    }

    fn ended() -> Ended {
        Ended {
            attempt: AttemptId { job: SessionId(1).job(1), attempt: 1 },
            end: AttemptEnd::Finished,
            ran: std::time::Duration::ZERO,
            peak_memory_bytes: 0,
            body_bytes: (0, 0, 0),
            bars: Vec::new(),
        }
    }

    fn read(head: &FromWorker, body: usize) -> Result<Input, BadMessage> {
        from_worker(Peer(1), &transport::Message::new(codec::encode(head), vec![7; body]))
    }

    #[test]
    fn a_worker_shows_the_secret_of_its_id() {
        assert!(read(&FromWorker::Register(register()), 0).is_ok());
        let stolen = Register { worker: register().worker, ..register() };
        let refused = read(&FromWorker::Register(stolen), 0).unwrap_err();
        assert_eq!(refused.kind(), RefusalKind::Keys);
    }

    #[test]
    fn texts_and_lists_of_a_worker_are_bounded() {
        let long = |bytes: usize| "x".repeat(bytes + 1);
        let platform = Platform { target: long(PLATFORM_BYTES), glibc: None };
        let registers = [
            Register { host: long(HELLO_HOST_BYTES), ..register() },
            Register { boot_id: long(BOOT_ID_BYTES), ..register() },
            Register { platform, ..register() },
            Register { installed: vec![long(BUNDLE_NAME_BYTES)], ..register() },
            Register { installed: vec!["tools".into(); INSTALLED_BUNDLES + 1], ..register() },
        ];
        for register in registers {
            assert!(read(&FromWorker::Register(register), 0).is_err());
        }
        for name in ["", "..", "bin/tools", "tools\n", "\x1b[2J"] {
            let register = Register { installed: vec!["tools".into(), name.into()], ..register() };
            let refused = read(&FromWorker::Register(register), 0).unwrap_err();
            assert!(matches!(refused, BadMessage::BundleName { .. }), "{name:?}: {refused}");
            assert!(!refused.to_string().chars().any(char::is_control));
        }
        let bundle = BundleRef::Installed(long(BUNDLE_NAME_BYTES));
        let refused = FromWorker::BundleRefused { bundle, reason: String::new(), attempts: Vec::new() };
        assert!(read(&refused, 0).is_err());
        let output = |bytes: usize| FromWorker::Output { request: 1, bytes: Some((bytes as u32, 0)) };
        assert!(read(&output(OUTPUT_BYTES), OUTPUT_BYTES).is_ok());
        assert!(read(&output(OUTPUT_BYTES + 1), OUTPUT_BYTES + 1).is_err());
    }

    #[test]
    fn what_an_end_brings_is_bounded() {
        let bar = |index, description: &str| BarRecord {
            index,
            text: BarText { description: description.to_owned(), ..BarText::default() },
            numbers: BarNumbers::default(),
        };
        let with_bars = |bars| FromWorker::Ended(Ended { bars, ..ended() });
        assert!(read(&with_bars(vec![bar(BARS_PER_ATTEMPT - 1, "load")]), 0).is_ok());
        assert!(read(&with_bars(vec![bar(BARS_PER_ATTEMPT, "load")]), 0).is_err());
        assert!(read(&with_bars(vec![bar(0, "\x1b[2J")]), 0).is_err());
        assert!(read(&with_bars(vec![bar(0, "load"); BARS_PER_ATTEMPT as usize + 1]), 0).is_err());
        let printed = OUTPUT_BYTES + 1;
        for body_bytes in [(0, printed as u32, 0), (0, 0, printed as u32)] {
            assert!(read(&FromWorker::Ended(Ended { body_bytes, ..ended() }), printed).is_err());
        }
        let end = AttemptEnd::Lost { reason: "x".repeat(FAILURE_MESSAGE_BYTES + 1) };
        let read = read(&FromWorker::Ended(Ended { end, ..ended() }), 0).unwrap();
        let Input::Event(Event::Ended { outcome: AttemptOutcome::Lost { reason }, .. }, _) = read else {
            panic!("{read:?}")
        };
        assert_eq!(reason.len(), FAILURE_MESSAGE_BYTES);
    }

    #[test]
    fn what_an_application_says_is_bounded() {
        let read = |head: &FromApplication| {
            from_application(Peer(1), None, &transport::Message::new(codec::encode(head), Bytes::new()))
        };
        let set = |count: u64| JobSet {
            session: SessionId(1),
            ranges: (0..count).map(|number| (2 * number, 2 * number)).collect(),
        };
        assert!(read(&FromApplication::Taken { jobs: set(JOB_SET_RANGES as u64) }).is_ok());
        assert!(read(&FromApplication::Taken { jobs: set(JOB_SET_RANGES as u64 + 1) }).is_err());
        let platform = Platform { target: "x".repeat(PLATFORM_BYTES + 1), glibc: None };
        let digest = BundleDigest([7; 32]);
        assert!(read(&FromApplication::OfferBundle { digest, bytes: 1, platform }).is_err());
    }
}
