//! What the event loop, the conversion, the store and the transport make of each other.

use std::time::Duration;

use bytes::Bytes;
use lrts_core::bundle::{digest_file, read_chunk, restore_chunk};
use lrts_core::ids::{AttemptId, JobId};
use lrts_core::protocol::application::{FromApplication, JobSet, ToApplication};
use lrts_core::protocol::command::{FromCommand, ToCommand};
use lrts_core::protocol::worker::{AttemptEnd, Ended, FromWorker, ToWorker};
use lrts_core::shutdown::Shutdown;
use lrts_core::spec::BundleRef;
use lrts_core::status::JobState;
use lrts_core::transport::{LinkEvent, Message, Role};
use lrts_scheduler::{Config, RunError, StoreError};

use super::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_travels_with_its_program_to_a_worker_and_its_result_back() {
    let scheduler = Scheduler::start(Config::default()).await;
    let mut application = scheduler.connect(Role::Client).await;
    let mut worker = scheduler.connect(Role::Worker).await;
    let mut command = scheduler.connect(Role::Admin).await;
    let program: Vec<u8> = (0..3_000_000_u32).flat_map(|i| (i % 1_021).to_le_bytes()).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &program).unwrap();
    let (digest, bytes) = digest_file(file.as_file()).unwrap();

    application.say(&attach(BundleRef::Shipped(digest)), "").await;
    let attached = application.hear::<ToApplication>().await.0;
    assert_eq!(attached, ToApplication::Attached { epoch: 1, accepted_through: 0 });
    let (head, body) = submit(&["one", "", "three"]);
    application.say(&head, body).await;

    // The program goes up: a first piece, then, from another connection, the rest.
    application.say(&FromApplication::OfferBundle { digest, bytes, platform: platform() }, "").await;
    let wanted = application.hear::<ToApplication>().await.0;
    assert_eq!(wanted, ToApplication::BundleWanted { digest, offset: 0 });
    let (piece, length) = read_chunk(file.as_file(), 0).unwrap();
    application.say(&FromApplication::BundleChunk { digest, offset: 0, bytes: length }, piece).await;
    application.sender.flush().await.unwrap();
    application.sender.close().await;
    let mut application = scheduler.connect(Role::Client).await;
    application.say(&attach(BundleRef::Shipped(digest)), "").await;
    let attached = application.hear::<ToApplication>().await.0;
    assert_eq!(attached, ToApplication::Attached { epoch: 1, accepted_through: 0 });
    application.say(&FromApplication::OfferBundle { digest, bytes, platform: platform() }, "").await;
    let (ToApplication::BundleWanted { mut offset, .. }, _) = application.hear().await else {
        panic!("the rest is wanted")
    };
    assert_eq!(offset, u64::from(length), "the upload goes on where it ended");
    while offset < bytes {
        let (piece, length) = read_chunk(file.as_file(), offset).unwrap();
        application.say(&FromApplication::BundleChunk { digest, offset, bytes: length }, piece).await;
        offset += u64::from(length);
    }
    let complete = application.hear::<ToApplication>().await.0;
    assert_eq!(complete, ToApplication::BundleComplete { digest });
    assert_eq!(application.hear::<ToApplication>().await.0, ToApplication::Accepted { through: 3 });

    worker.say(&register(), "").await;
    let (ToWorker::Registered { closed, heartbeat, .. }, _) = worker.hear().await else {
        panic!("no answer")
    };
    assert_eq!((closed, heartbeat), (vec![], Duration::from_secs(5)));
    let (ToWorker::Start(start), payload) = worker.hear().await else { panic!("no job") };
    assert_eq!(
        (start.attempt.job, &*start.service, start.options.get_label()),
        (SESSION.job(1), "double", "x")
    );
    assert_eq!(payload, "one");
    let (ToWorker::Start(second), payload) = worker.hear().await else { panic!("no second job") };
    assert_eq!((second.attempt.job, payload), (SESSION.job(2), Bytes::new()));

    worker.say(&FromWorker::WantBundle { digest, offset: 5 }, "").await;
    let mut fetched = program[..5].to_vec();
    while fetched.len() < program.len() {
        let (ToWorker::BundleChunk { offset, bytes, total, .. }, piece) = worker.hear().await else {
            panic!("no piece")
        };
        assert_eq!((offset, total), (fetched.len() as u64, program.len() as u64));
        fetched.extend(restore_chunk(&piece, bytes).unwrap());
    }
    assert!(fetched == program);

    worker.say(&FromWorker::Began { attempt: start.attempt, pid: 42 }, "").await;
    command.say(&FromCommand::Logs { job: SESSION.job(3) }, "").await;
    let (ToCommand::Logs { note, .. }, _) = command.hear().await else { panic!("no answer") };
    assert_eq!(note, "the job has not begun");
    wait_for_state(&mut command, SESSION.job(1), JobState::Running).await;
    command.say(&FromCommand::Logs { job: SESSION.job(1) }, "").await;
    let (ToWorker::FetchOutput { request, attempt }, _) = worker.hear().await else { panic!("not asked") };
    assert_eq!(attempt, start.attempt);
    worker.say(&FromWorker::Output { request, bytes: Some((3, 4)) }, "outerro").await;
    let (ToCommand::Logs { bytes, note }, text) = command.hear().await else { panic!("no logs") };
    assert_eq!((bytes, &*note, &text[..]), (Some((3, 4)), "", &b"outerro"[..]));

    application.say(&FromApplication::Want { jobs: JobSet::one(SESSION.job(1)), urgent: true }, "").await;
    worker.say(&ended(start.attempt), "resultOE").await;
    let (ToApplication::Result { job, report }, output) = application.hear().await else {
        panic!("no result")
    };
    assert_eq!((job, report.attempts, report.failure), (SESSION.job(1), 1, None));
    assert_eq!(output, "result");
    application.say(&FromApplication::Taken { jobs: JobSet::one(job) }, "").await;
    application.say(&FromApplication::Want { jobs: JobSet::one(job), urgent: false }, "").await;
    assert_eq!(application.hear::<ToApplication>().await.0, ToApplication::Gone { job, taken: true });
    command.say(&FromCommand::Logs { job }, "").await;
    assert_eq!(command.hear::<ToCommand>().await.1, "OE");

    application.say(&FromApplication::Stop, "").await;
    assert_eq!(application.hear::<ToApplication>().await.0, ToApplication::Stopped);
    scheduler.end().await;
}

fn ended(attempt: AttemptId) -> FromWorker {
    FromWorker::Ended(Ended {
        attempt,
        end: AttemptEnd::Finished,
        ran: Duration::from_millis(3),
        peak_memory_bytes: 1,
        body_bytes: (6, 1, 1),
        bars: Vec::new(),
    })
}

async fn wait_for_state(command: &mut Peer, job: JobId, state: JobState) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        command.say(&FromCommand::Jobs, "").await;
        let (ToCommand::Jobs { rows, last: true }, _) = command.hear().await else { panic!("no list") };
        let row = rows.iter().find(|row| row.job_id == job).expect("the job is listed");
        if row.state == state {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{row:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_ends_the_connection_and_nothing_else() {
    let scheduler = Scheduler::start(Config::default()).await;
    let mut bystander = scheduler.connect(Role::Admin).await;
    for role in [Role::Client, Role::Worker, Role::Admin] {
        let mut peer = scheduler.connect(role).await;
        peer.sender.send(Message::new(&b"\xc1nonsense"[..], "")).await.unwrap();
        assert!(matches!(peer.event().await, LinkEvent::Down { .. }), "{role}");
    }
    let mut liar = scheduler.connect(Role::Client).await;
    liar.say(&attach(BundleRef::Installed("model".into())), "").await;
    liar.hear::<ToApplication>().await;
    liar.say(&submit(&["payload"]).0, "pay").await;
    assert!(matches!(liar.event().await, LinkEvent::Down { .. }), "lengths must add up");
    let mut imposter = scheduler.connect(Role::Client).await;
    imposter.say(&register(), "").await;
    assert!(matches!(imposter.event().await, LinkEvent::Down { .. }), "a client is no worker");

    bystander.say(&FromCommand::Status, "").await;
    let (ToCommand::Status(status), _) = bystander.hear().await else { panic!("no status") };
    assert_eq!((status.workers, status.jobs.len()), (0, JobState::ALL.len()));
    scheduler.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_not_what_it_was_announced_as_fails_its_jobs() {
    let scheduler = Scheduler::start(Config::default()).await;
    let mut application = scheduler.connect(Role::Client).await;
    let digest = lrts_core::ids::BundleDigest([9; 32]);
    application.say(&attach(BundleRef::Shipped(digest)), "").await;
    application.hear::<ToApplication>().await;
    let (head, body) = submit(&["one"]);
    application.say(&head, body).await;
    application.say(&FromApplication::OfferBundle { digest, bytes: 100, platform: platform() }, "").await;
    application.hear::<ToApplication>().await;
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &[1; 100]).unwrap();
    let (piece, bytes) = read_chunk(&file, 0).unwrap();
    application.say(&FromApplication::BundleChunk { digest, offset: 0, bytes }, piece).await;
    let (ToApplication::BundleRefused { reason, .. }, _) = application.hear().await else {
        panic!("no refusal")
    };
    assert!(reason.contains("digest"), "{reason}");
    assert_eq!(application.hear::<ToApplication>().await.0, ToApplication::Accepted { through: 1 });
    application.say(&FromApplication::Want { jobs: JobSet::one(SESSION.job(1)), urgent: true }, "").await;
    let (ToApplication::Result { report, .. }, _) = application.hear().await else { panic!("no result") };
    assert!(report.failure.unwrap().message.contains("digest"));
    scheduler.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_directory_serves_one_scheduler_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config { state_dir: Some(directory.path().join("state")), ..Config::default() };
    let scheduler = Scheduler::start(config.clone()).await;
    let mut second = config.clone();
    second.address.set_port(0);
    let refused = lrts_scheduler::run(second, |_| panic!("it must not start"), Shutdown::new()).await;
    assert!(matches!(refused, Err(RunError::Store(StoreError::InUse { .. }))), "{refused:?}");
    scheduler.end().await;
    Scheduler::start(config).await.end().await;
}
