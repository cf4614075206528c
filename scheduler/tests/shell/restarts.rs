//! Schedulers that end and begin again on the same state directory.

use std::path::Path;

use lrts_core::ids::{AttemptId, JobId};
use lrts_core::protocol::application::{FromApplication, JobSet, KeyedJob, RefusalCause, ToApplication};
use lrts_core::protocol::worker::{AttemptEnd, Ended, FromWorker, HeldAttempt, Register, ToWorker};
use lrts_core::spec::BundleRef;
use lrts_core::transport::Role;
use lrts_scheduler::Config;

use super::support::*;

fn config(directory: &Path) -> Config {
    Config { state_dir: Some(directory.join("state")), ..Config::default() }
}

fn tools() -> BundleRef {
    BundleRef::Installed("tools".into())
}

/// A worker that has the program installed, and holds these attempts of this store.
fn worker_with(attempts: Vec<HeldAttempt>, store: Option<u64>) -> FromWorker {
    let FromWorker::Register(register) = register() else { unreachable!("it registers") };
    FromWorker::Register(Register { installed: vec!["tools".into()], attempts, store, ..register })
}

async fn attached(scheduler: &Scheduler) -> (Peer, u64) {
    let mut application = scheduler.connect(Role::Client).await;
    application.say(&attach(tools()), "").await;
    let (ToApplication::Attached { accepted_through, .. }, _) = application.hear().await else {
        panic!("no answer")
    };
    (application, accepted_through)
}

/// The store, and what the worker is to forget.
async fn registered(worker: &mut Peer) -> (u64, u64, Vec<AttemptId>) {
    let (ToWorker::Registered { store, epoch, closed, .. }, _) = worker.hear().await else {
        panic!("no answer")
    };
    (store, epoch, closed)
}

fn finished(attempt: AttemptId, output: &str) -> (FromWorker, String) {
    let ended = Ended {
        attempt,
        end: AttemptEnd::Finished,
        ran: std::time::Duration::from_secs(1),
        peak_memory_bytes: 0,
        body_bytes: (output.len() as u64, 0, 0),
        bars: Vec::new(),
    };
    (FromWorker::Ended(ended), output.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_results_and_running_attempts_outlive_the_scheduler() {
    let directory = tempfile::tempdir().unwrap();
    let scheduler = Scheduler::start(config(directory.path())).await;
    let (mut application, _) = attached(&scheduler).await;
    let (head, body) = submit(&["one", "two", "three"]);
    application.say(&head, body).await;
    assert_eq!(application.hear::<ToApplication>().await.0, ToApplication::Accepted { through: 3 });
    let mut worker = scheduler.connect(Role::Worker).await;
    worker.say(&worker_with(Vec::new(), None), "").await;
    let (store, epoch, _) = registered(&mut worker).await;
    assert_eq!(epoch, 1);
    let (ToWorker::Start(first), _) = worker.hear().await else { panic!("no job") };
    let (ToWorker::Start(second), _) = worker.hear().await else { panic!("no second job") };
    worker.say(&FromWorker::Began { attempt: first.attempt, pid: 7 }, "").await;
    worker.say(&FromWorker::Checkpoint { attempt: first.attempt }, "half way").await;
    let (end, output) = finished(second.attempt, "done");
    worker.say(&end, output).await;
    assert_eq!(
        worker.hear::<ToWorker>().await.0,
        ToWorker::Confirm { attempts: vec![second.attempt] },
        "a result is confirmed once it is durable"
    );
    let (ToWorker::Start(third), payload) = worker.hear().await else { panic!("no third job") };
    assert_eq!((third.attempt.job, payload), (SESSION.job(3), "three".into()));
    scheduler.end().await;

    // Another process of the scheduler. The first attempt runs on, the third was never seen by the worker.
    let scheduler = Scheduler::start(config(directory.path())).await;
    let (mut application, accepted) = attached(&scheduler).await;
    assert_eq!(accepted, 3);
    let mut worker = scheduler.connect(Role::Worker).await;
    let running = Some(std::time::Duration::from_secs(9));
    let stale = AttemptId { job: SESSION.job(2), attempt: 9 };
    let held = [first.attempt, stale].map(|attempt| HeldAttempt { attempt, running, pid: 7 });
    worker.say(&worker_with(held.to_vec(), Some(store)), "").await;
    assert_eq!(registered(&mut worker).await, (store, 2, vec![stale]));
    let (ToWorker::Start(again), payload) = worker.hear().await else { panic!("no third job again") };
    let attempt = AttemptId { job: SESSION.job(3), attempt: 2 };
    assert_eq!((again.attempt, again.execution, payload), (attempt, 1, "three".into()));

    application.say(&FromApplication::Want { jobs: JobSet::one(SESSION.job(2)), urgent: true }, "").await;
    let (ToApplication::Result { job, report }, body) = application.hear().await else { panic!("no result") };
    assert_eq!((job, report.failure, body), (SESSION.job(2), None, "done".into()));

    // What the first attempt had kept is there for the next one.
    let lost = AttemptEnd::Lost { reason: "its host died".into() };
    let ended = FromWorker::Ended(Ended {
        attempt: first.attempt,
        end: lost,
        ran: std::time::Duration::from_secs(9),
        peak_memory_bytes: 0,
        body_bytes: (0, 0, 0),
        bars: Vec::new(),
    });
    worker.say(&ended, "").await;
    let (start, body) = loop {
        if let (ToWorker::Start(start), body) = worker.hear().await {
            break (start, body);
        }
    };
    assert_eq!((start.attempt.job, start.execution), (SESSION.job(1), 2));
    assert_eq!((start.checkpoint_bytes, body), (Some(8), "onehalf way".into()));
    scheduler.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_comes_back_finds_its_jobs_and_keys() {
    let directory = tempfile::tempdir().unwrap();
    let scheduler = Scheduler::start(config(directory.path())).await;
    let (mut application, _) = attached(&scheduler).await;
    let key = KeyedJob { index: 1, key: "night".into(), digest: 5 };
    let keyed = JobId::keyed("test".parse().unwrap(), "night");
    let with_key = |first, key: KeyedJob| {
        let (FromApplication::Submit { options, jobs, .. }, body) = submit(&["one", "two"]) else {
            unreachable!("it submits")
        };
        (FromApplication::Submit { first, options, jobs, keys: vec![key] }, body)
    };
    let (head, body) = with_key(1, key.clone());
    application.say(&head, body).await;
    assert_eq!(application.hear::<ToApplication>().await.0, ToApplication::Accepted { through: 2 });
    scheduler.end().await;

    let scheduler = Scheduler::start(config(directory.path())).await;
    let (mut application, _) = attached(&scheduler).await;
    application.say(&FromApplication::List { request: 8, job: None }, "").await;
    let listed =
        vec![("double".to_owned(), JobSet::one(SESSION.job(1))), ("double".to_owned(), JobSet::one(keyed))];
    let (ToApplication::Listed { request: 8, mut jobs, last: true }, _) = application.hear().await else {
        panic!("no list")
    };
    jobs.sort_by_key(|(_, set)| set.session);
    assert_eq!(jobs, listed);

    let (head, body) = with_key(3, key.clone());
    application.say(&head, body).await;
    assert_eq!(application.hear::<ToApplication>().await.0, ToApplication::Accepted { through: 4 });
    let (head, body) = with_key(5, KeyedJob { digest: 6, ..key });
    application.say(&head, body).await;
    let (ToApplication::Refused { sequence: 6, cause, reason }, _) = application.hear().await else {
        panic!("no refusal")
    };
    assert_eq!(cause, RefusalCause::KeyConflict);
    assert!(reason.contains("night"), "{reason}");
    scheduler.end().await;
}
