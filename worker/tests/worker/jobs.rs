//! Attempts from their order to their confirmation, and what can come between.

use std::time::Duration;

use bytes::Bytes;
use lrts_client::{JobContext, Service, ServiceError};
use lrts_core::bundle::{digest_file, open_own_executable, read_chunk};
use lrts_core::clock::Moment;
use lrts_core::ids::BundleDigest;
use lrts_core::limits::RETRY_BACKOFF_MIN;
use lrts_core::protocol::worker::{AttemptEnd, FromWorker, ToWorker};
use lrts_core::spec::BundleRef;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::adoption::{Await, Daemonise};
use crate::inheritance::Look;
use crate::support::{Scheduler, Worker, attempt, decode, installed, is_alive, parent_of, shipped, until};

#[derive(Serialize, Deserialize)]
struct Double {
    number: u64,
}

impl Service for Double {
    const NAME: &'static str = "double";
    type Output = u64;

    fn run(self, _job: &JobContext) -> Result<u64, ServiceError> {
        println!("doubling {}", self.number);
        eprintln!("{}", std::env::var("GREETING")?);
        Ok(self.number * 2)
    }
}

/// Writes a file, says so, and waits to be stopped.
#[derive(Serialize, Deserialize)]
pub(crate) struct Wait {
    text: String,
}

impl Service for Wait {
    const NAME: &'static str = "wait";
    type Output = ();

    fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
        std::fs::write("file", &self.text)?;
        println!("{}", self.text);
        loop {
            std::thread::park();
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Echo {
    text: String,
}

impl Service for Echo {
    const NAME: &'static str = "echo";
    type Output = String;

    fn run(self, _job: &JobContext) -> Result<String, ServiceError> {
        Ok(self.text)
    }
}

lrts_client::host_services_before_main!(Double, Wait, Echo, Await, Daemonise, Look);

pub(crate) fn wait() -> Wait {
    Wait { text: "I wait".to_owned() }
}

async fn registered(slots: u32) -> (Scheduler, Worker) {
    let mut scheduler = Scheduler::start().await;
    let mut worker = Worker::start(&scheduler, slots);
    let register = scheduler.register(Vec::new()).await;
    assert_eq!((&mut worker.ready).await, Ok(register.worker));
    assert_eq!((register.slots, register.attempts.len()), (slots, 0));
    (scheduler, worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shipped_bundle_is_fetched_once_and_runs_jobs() {
    let (mut scheduler, worker) = registered(1).await;
    let file = open_own_executable().unwrap();
    let (digest, total) = digest_file(&file).unwrap();
    scheduler.order(1, shipped(digest), "double", &Double { number: 21 });
    let wanted = FromWorker::WantBundle { digest, offset: 0 };
    assert_eq!(scheduler.next().await.0, wanted);
    let mut offset = 0;
    while offset < total {
        let (piece, bytes) = read_chunk(&file, offset).unwrap();
        scheduler.send(&ToWorker::BundleChunk { digest, offset, bytes, total }, piece);
        offset += u64::from(bytes);
        if offset > total / 2 && offset - u64::from(bytes) <= total / 2 {
            // Half of it is on its way: the rest must be asked for again.
            let request = ToWorker::FetchOutput { request: 5, attempt: attempt(9) };
            scheduler.send(&request, Bytes::new());
            assert_eq!(scheduler.next().await.0, FromWorker::Output { request: 5, bytes: None });
            scheduler.disconnect();
            let register = scheduler.register(Vec::new()).await;
            assert_eq!((register.attempts.len(), register.attempts[0].running), (1, None));
            assert_eq!(scheduler.next().await.0, FromWorker::WantBundle { digest, offset });
        }
    }
    scheduler.began(1).await;
    let (ended, [output, stdout, stderr]) = scheduler.ended(1).await;
    assert_eq!((ended.end, decode::<u64>(&output)), (AttemptEnd::Finished, 42));
    assert_eq!((&stdout[..], &stderr[..]), (&b"doubling 21\n"[..], &b"hello\n"[..]));
    scheduler.confirm(1);

    scheduler.order(2, shipped(digest), "double", &Double { number: 4 });
    scheduler.began(2).await;
    assert_eq!(decode::<u64>(&scheduler.ended(2).await.1[0]), 8);
    scheduler.confirm(2);
    until("working directories go", || worker.list("work").is_empty()).await;
    assert_eq!(worker.list("bundles"), [digest.to_string()]);
    worker.shutdown.request();
    assert_eq!(scheduler.next().await.0, FromWorker::Goodbye);
    worker.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_take_other_ways_and_leave_nothing() {
    let (mut scheduler, worker) = registered(1).await;
    let text: String = (0..500_000).map(|number| format!("{number} ")).collect();
    scheduler.order(1, installed(), "echo", &Echo { text: text.clone() });
    scheduler.began(1).await;
    let (ended, [output, ..]) = scheduler.ended(1).await;
    assert_eq!(ended.end, AttemptEnd::Finished);
    assert!(decode::<String>(&output) == text);
    assert_eq!(worker.list("spool").len(), 1, "kept until it is confirmed");
    scheduler.confirm(1);
    until("the result goes", || worker.list("spool").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_keep_results_pauses_before_it_tries_again() {
    let (mut scheduler, worker) = registered(1).await;
    let start = Moment::now();
    let large = Echo { text: "large ".repeat(100_000) };
    std::fs::remove_dir(worker.state.join("spool")).unwrap();
    scheduler.order(1, installed(), "echo", &large);
    scheduler.began(1).await;
    let (ended, _) = scheduler.ended(1).await;
    let AttemptEnd::Lost { reason } = ended.end else { panic!("{:?}", ended.end) };
    assert!(reason.contains("spool"), "{reason}");
    std::fs::create_dir(worker.state.join("spool")).unwrap();
    scheduler.order(2, installed(), "echo", &large);
    scheduler.began(2).await;
    assert!(start.elapsed() >= RETRY_BACKOFF_MIN);
    let (ended, _) = scheduler.ended(2).await;
    assert_eq!(ended.end, AttemptEnd::Finished);
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_outlast_a_lost_connection_and_ends_are_told_until_they_are_confirmed() {
    let (mut scheduler, worker) = registered(2).await;
    scheduler.order(1, installed(), "wait", &wait());
    let pid = scheduler.began(1).await;
    scheduler.order(2, installed(), "double", &Double { number: 1 });
    scheduler.began(2).await;
    scheduler.ended(2).await;

    scheduler.disconnect();
    let register = scheduler.register(Vec::new()).await;
    let held: Vec<_> = register.attempts.iter().map(|held| (held.attempt, held.pid)).collect();
    assert_eq!(held, [(attempt(1), pid), (attempt(2), 0)]);
    assert!(register.attempts[0].running.is_some());
    scheduler.ended(2).await;
    assert!(is_alive(pid));

    scheduler.confirm(2);
    // Messages keep their order: the answer says that the confirmation has arrived too.
    scheduler.send(&ToWorker::Recall { attempt: attempt(2) }, Bytes::new());
    assert_eq!(scheduler.next().await.0, FromWorker::NotReturned { attempt: attempt(2) });
    scheduler.disconnect();
    let register = scheduler.register(vec![attempt(1)]).await;
    assert_eq!(register.attempts.len(), 1);
    until("the closed attempt is killed", || !is_alive(pid)).await;
    worker.shutdown.request();
    assert_eq!(scheduler.next().await.0, FromWorker::Goodbye, "nobody is told of the closed one");
    worker.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_shows_its_output_and_can_be_stopped() {
    let (mut scheduler, worker) = registered(1).await;
    scheduler.order(1, installed(), "wait", &wait());
    let pid = scheduler.began(1).await;
    let directory = worker.list("work").pop().unwrap();
    let file = worker.state.join("work").join(directory).join("file");
    until("the job works in its own directory", || std::fs::read(&file).is_ok_and(|text| text == b"I wait"))
        .await;
    let mut request = 0;
    loop {
        request += 1;
        scheduler.send(&ToWorker::FetchOutput { request, attempt: attempt(1) }, Bytes::new());
        let (answer, body) = scheduler.next().await;
        if answer == (FromWorker::Output { request, bytes: Some((7, 0)) }) {
            assert_eq!(&body[..], b"I wait\n");
            break;
        }
        assert_eq!(answer, FromWorker::Output { request, bytes: Some((0, 0)) });
    }
    scheduler.send(&ToWorker::Stop { attempt: attempt(1), at_once: false }, Bytes::new());
    let (ended, _) = scheduler.ended(1).await;
    assert_eq!(ended.end, AttemptEnd::Stopped);
    assert!(!is_alive(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_host_loses_its_attempts_and_the_next_one_gets_a_new_host() {
    let (mut scheduler, _worker) = registered(1).await;
    scheduler.order(1, installed(), "wait", &wait());
    let pid = scheduler.began(1).await;
    let host = parent_of(pid);
    scheduler.order(2, installed(), "wait", &wait());
    kill(Pid::from_raw(host.cast_signed()), Signal::SIGKILL).unwrap();
    let (ended, _) = scheduler.ended(1).await;
    let AttemptEnd::Lost { reason } = ended.end else { panic!("{:?}", ended.end) };
    assert!(reason.contains("signal 9"), "{reason}");
    until("the job dies with its host", || !is_alive(pid)).await;
    assert_ne!(parent_of(scheduler.began(2).await), host);
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_cannot_take_jobs_are_refused_with_what_to_do() {
    let (mut scheduler, _worker) = registered(1).await;
    for (sequence, name, advice) in [(1, "no-host", "host_services!"), (2, "nobody", "--bundle nobody=PATH")]
    {
        let wanted = BundleRef::Installed(name.to_owned());
        scheduler.order(sequence, wanted.clone(), "double", &Double { number: 1 });
        let (message, _) = scheduler.next().await;
        let FromWorker::BundleRefused { bundle, reason, attempts } = message else { panic!("{message:?}") };
        assert_eq!((bundle, attempts), (wanted, vec![attempt(sequence)]));
        assert!(reason.contains(advice), "{reason}");
    }
    let digest = BundleDigest([7; 32]);
    scheduler.order(3, shipped(digest), "double", &Double { number: 1 });
    assert_eq!(scheduler.next().await.0, FromWorker::WantBundle { digest, offset: 0 });
    scheduler.send(&ToWorker::BundleMissing { digest }, Bytes::new());
    assert_eq!(scheduler.next().await.0, FromWorker::Returned { attempts: vec![attempt(3)] });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaving_worker_gives_back_what_waits_and_stops_what_runs() {
    let (mut scheduler, worker) = registered(1).await;
    scheduler.order(1, installed(), "wait", &wait());
    let pid = scheduler.began(1).await;
    scheduler.order(2, installed(), "double", &Double { number: 1 });
    scheduler.send(&ToWorker::Recall { attempt: attempt(1) }, Bytes::new());
    assert_eq!(scheduler.next().await.0, FromWorker::NotReturned { attempt: attempt(1) });

    worker.shutdown.request();
    assert_eq!(scheduler.next().await.0, FromWorker::Returned { attempts: vec![attempt(2)] });
    let (ended, _) = scheduler.ended(1).await;
    assert_eq!(ended.end, AttemptEnd::Stopped);
    scheduler.confirm(1);
    assert_eq!(scheduler.next().await.0, FromWorker::Goodbye);
    worker.end().await.unwrap();
    assert!(!is_alive(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impatient_operator_ends_everything_at_once() {
    let (mut scheduler, worker) = registered(1).await;
    scheduler.order(1, installed(), "wait", &wait());
    let pid = scheduler.began(1).await;
    worker.shutdown.request_at_once();
    worker.end().await.unwrap();
    until("the job is gone", || !is_alive(pid)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_come_at_the_interval_that_the_scheduler_sets() {
    let (mut scheduler, _worker) = registered(1).await;
    let mut last = 0;
    let mut beats = async || {
        for _ in 0..3 {
            let (message, _) = scheduler.next_or_heartbeat().await;
            let FromWorker::Heartbeat { number } = message else { panic!("{message:?}") };
            assert!(std::mem::replace(&mut last, number) < number);
        }
    };
    let three = tokio::time::timeout(Duration::from_secs(10), beats()).await;
    assert!(three.is_ok(), "an interval of 200 ms makes three heartbeats in far less time");
}

#[tokio::test(flavor = "multi_thread")]
async fn results_that_nobody_has_confirmed_outlast_a_worker_that_was_stopped() {
    let (mut scheduler, worker) = registered(2).await;
    let text: String = (0..50_000).map(|number| format!("{number} ")).collect();
    scheduler.order(1, installed(), "double", &Double { number: 21 });
    scheduler.began(1).await;
    scheduler.ended(1).await;
    scheduler.order(2, installed(), "echo", &Echo { text: text.clone() });
    scheduler.began(2).await;
    scheduler.ended(2).await;
    worker.shutdown.request_at_once();
    let (directory, ended) = worker.end_and_leave().await;
    ended.unwrap();

    let worker = Worker::start_in(directory, &scheduler, 1, Duration::ZERO);
    let register = scheduler.register(Vec::new()).await;
    assert_eq!(
        register.attempts.iter().map(|held| held.attempt).collect::<Vec<_>>(),
        [attempt(1), attempt(2)]
    );
    let (ended, [output, stdout, stderr]) = scheduler.ended(1).await;
    assert_eq!((ended.end, decode::<u64>(&output)), (AttemptEnd::Finished, 42));
    assert_eq!((&stdout[..], &stderr[..]), (&b"doubling 21\n"[..], &b"hello\n"[..]));
    assert!(decode::<String>(&scheduler.ended(2).await.1[0]) == text);
    scheduler.confirm(1);
    scheduler.confirm(2);
    until("nothing is left", || worker.list("spool").is_empty()).await;
}
