//! The store as a whole, on real files.

mod crash;
mod damage;
mod full;
mod kinds;
mod model;
mod seeds;
mod speed;

use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::ids::{AttemptId, JobId, SessionId};
use lrts_core::protocol::progress::BarRecord;
use lrts_core::spec::JobOptions;

pub(crate) use seeds::{rows, stores};

use super::{Bodies, EndedBodies, Entry, Fetched, ReadError, Store};
use crate::record::{JobImage, Loaded, NewJob, Record, Report, Stage, Submitted};

pub(super) const SESSION: SessionId = SessionId(7);

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Commits a batch and waits until it is durable.
fn commit(store: &mut dyn Store, batch: Vec<Entry>) {
    let done = start_commit(store, batch);
    done.recv_timeout(PATIENCE).expect("the batch is committed");
}

/// Commits a batch; the receiver hears of it.
fn start_commit(store: &mut dyn Store, batch: Vec<Entry>) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel();
    let done = move || {
        // Who doesn't listen any more doesn't mind.
        let _ = sender.send(());
    };
    store.commit(store.epoch(), batch, Box::new(done));
    receiver
}

/// What was asked for, however long it takes.
fn wait<T>(fetched: Fetched<T>) -> Result<T, ReadError> {
    match fetched {
        Fetched::Now(result) => result,
        Fetched::Later(receiver) => receiver.blocking_recv().expect("the store is open"),
    }
}

/// The same, to be compared.
fn text<T>(fetched: Fetched<T>) -> Result<T, String> {
    wait(fetched).map_err(|error| error.to_string())
}

pub(super) fn record(record: Record) -> Entry {
    Entry { record, bodies: Bodies::Nothing }
}

/// A submit of these payloads.
pub(super) fn submit(session: SessionId, first: u64, payloads: &[Bytes]) -> Entry {
    submit_with(session, first, payloads, |_| {})
}

fn submit_with(
    session: SessionId,
    first: u64,
    payloads: &[Bytes],
    change: impl FnOnce(&mut Submitted),
) -> Entry {
    let job = |payload: &Bytes| NewJob { service: 3, options: 0, payload_bytes: payload.len() as u32 };
    let mut submitted = Submitted {
        session,
        first,
        options: [JobOptions::new().label("some").priority(-3)].into(),
        jobs: payloads.iter().map(job).collect(),
        skipped: Vec::new(),
        keyed: Vec::new(),
    };
    change(&mut submitted);
    Entry { record: Record::Submitted(submitted), bodies: Bodies::Payloads(payloads.to_vec()) }
}

/// An attempt that has brought this.
pub(super) fn ended(
    job: JobId,
    attempt: u32,
    valid: bool,
    output: Bytes,
    stdout: Bytes,
    bars: Vec<BarRecord>,
) -> Entry {
    let attempt = AttemptId { job, attempt };
    let bodies = EndedBodies { output, stdout, stderr: "err".into(), bars };
    Entry { record: Record::AttemptEnded { attempt, valid }, bodies: Bodies::Ended(bodies) }
}

fn image(stage: Stage) -> JobImage {
    JobImage {
        attempts: 1,
        executions: 1,
        failures: 0,
        crashes: 0,
        cancelling: false,
        last_failure: None,
        open: Vec::new(),
        checkpoints: Vec::new(),
        stage,
    }
}

fn report() -> Report {
    Report {
        failure: None,
        attempt: 1,
        attempts: 1,
        worker: None,
        queued: Duration::ZERO,
        ran: Duration::ZERO,
    }
}

/// The job is terminal.
pub(super) fn terminal(job: JobId, taken: bool) -> Entry {
    record(Record::Job { job, image: image(Stage::Ended { report: report(), output_bytes: 1, taken }) })
}

pub(super) fn forgotten(job: JobId, taken: bool) -> Entry {
    record(Record::JobForgotten { job, taken })
}

/// Bytes that no other seed gives.
pub(super) fn bytes(seed: u64, length: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// Without ages, which depend on the clock.
fn ageless(mut loaded: Loaded) -> Loaded {
    loaded.submits.iter_mut().for_each(|(age, _)| *age = Duration::ZERO);
    loaded.jobs.iter_mut().for_each(|(_, age, _)| *age = Duration::ZERO);
    loaded
}
