//! The whole client against a scheduler of a few lines, over real sockets.

mod fake;
mod leaving;

use std::future::Future;
use std::io::Write;
use std::marker::PhantomData;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::ids::{AttemptId, BarId, SessionId};
use lrts_core::protocol::application::JobSet;
use lrts_core::protocol::codec;
use lrts_core::protocol::progress::{BarNumbers, BarText, BarUpdate, FromWatcher, ToWatcher};
use lrts_core::transport::{RefusalKind, Role, Server, ServerConfig, ServerEvent, SocketDir};
use serde::{Deserialize, Serialize};

use super::*;
use crate::JobContext;
use crate::display::{Bar, LogLevel, ProgressDisplay, ProgressSink};
use crate::information::Bundle;
use crate::park::{block_on, block_until};
use crate::results::RawOutput;
use crate::service::{ServiceError, Services};
use fake::{FakeScheduler, SOON};
use lrts_core::clock::Moment;

/// A service whose payload is its output.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
struct Echo {
    number: u64,
}

impl Service for Echo {
    const NAME: &'static str = "echo";
    type Output = Echo;

    fn run(self, _job: &JobContext) -> Result<Echo, ServiceError> {
        Ok(self)
    }
}

/// One that says of its output what isn't so.
#[derive(Serialize, Deserialize)]
struct Liar {
    number: u64,
}

impl Service for Liar {
    const NAME: &'static str = "liar";
    type Output = bool;

    fn run(self, _job: &JobContext) -> Result<bool, ServiceError> {
        Ok(true)
    }
}

fn information(scheduler: &FakeScheduler) -> ApplicationInformation {
    ApplicationInformation::new("127.0.0.1", scheduler.address.port())
        .insecure()
        .progress_display(ProgressDisplay::Hidden)
        .bundle(Bundle::Installed("tests".into()))
}

fn start(information: ApplicationInformation) -> ClientApplication {
    let services = Services::new().add::<Echo>().add::<Liar>().hosted();
    ClientApplication {
        application: Application::start_with(information.check().unwrap(), services).unwrap(),
    }
}

/// Waits for a future, but not for ever.
fn soon<F: Future>(future: F) -> F::Output {
    block_until(future, Some(Moment::now() + SOON)).expect("it ends soon")
}

fn echo(number: u64) -> Echo {
    Echo { number }
}

#[test]
fn jobs_go_out_and_results_come_back() {
    let scheduler = FakeScheduler::start();
    let app = start(information(&scheduler));
    soon(async {
        let one = app.schedule_service(&echo(1)).await.unwrap();
        let result = app.wait_for(&one).await.unwrap();
        assert_eq!((result.job_id, result.outcome), (one.id(), Ok(echo(1))));
        assert!(
            matches!(app.wait_for(&one).await, Err(ClientError::AlreadyTaken { job }) if job == one.id())
        );

        let services: Vec<Echo> = (0..2_500).map(echo).collect();
        let handles = app.schedule_services(&services).await.unwrap();
        app.flush().await.unwrap();
        let mut order: Vec<_> = handles.iter().rev().cloned().collect();
        order.push(handles[7].clone());
        let results = app.wait_for_multi(&order).await.unwrap();
        let numbers: Vec<u64> =
            results.into_iter().map(|result| result.into_output().unwrap().number).collect();
        assert_eq!(numbers, (0..2_500).rev().chain([7]).collect::<Vec<_>>());

        let handles = app.schedule_services((0..2_500).map(echo)).await.unwrap();
        let mut completed = app.as_completed(&handles);
        let mut sum = 0;
        while let Some(result) = completed.next().await {
            sum += result.unwrap().into_output().unwrap().number;
        }
        assert_eq!(sum, (0..2_500).sum::<u64>());
    });
    scheduler
        .eventually("told what was returned", |memory| memory.has_taken(memory.session.unwrap().job(5_001)));
    soon(app.stop()).unwrap();
    assert!(scheduler.memory().stopped);
    soon(app.stop()).expect("a second stop does nothing");
    assert!(matches!(soon(app.schedule_service(&echo(1))), Err(ClientError::Stopped)));
}

#[test]
fn everything_waits_for_a_scheduler_that_is_away() {
    let mut scheduler = FakeScheduler::start();
    scheduler.kill();
    let app = start(information(&scheduler));
    let first = soon(app.schedule_service(&echo(1))).unwrap();
    let wait = |limit| block_until(app.wait_for(&first), Some(Moment::now() + limit));
    assert!(wait(Duration::from_millis(50)).is_none());
    scheduler.restart();
    assert_eq!(wait(SOON).unwrap().unwrap().outcome, Ok(echo(1)));

    scheduler.memory().silent = true;
    let second = soon(app.schedule_service(&echo(2))).unwrap();
    soon(app.flush()).unwrap();
    assert!(block_until(app.wait_for(&second), Some(Moment::now() + Duration::from_millis(50))).is_none());
    scheduler.kill();
    let third = soon(app.schedule_service(&echo(3))).unwrap();
    scheduler.memory().silent = false;
    scheduler.restart();
    let results = soon(app.wait_for_multi(&[third, second])).unwrap();
    let numbers: Vec<u64> = results.into_iter().map(|result| result.into_output().unwrap().number).collect();
    assert_eq!(numbers, [3, 2]);
    soon(app.stop()).unwrap();
}

#[test]
fn jobs_of_a_scheduler_without_memory_are_lost() {
    let mut scheduler = FakeScheduler::start();
    scheduler.memory().silent = true;
    let app = start(information(&scheduler));
    let job = soon(app.schedule_service(&echo(1))).unwrap();
    soon(app.flush()).unwrap();
    scheduler.kill();
    scheduler.memory().forget();
    scheduler.restart();
    assert!(matches!(soon(app.wait_for(&job)), Err(ClientError::Lost { job: lost }) if lost == job.id()));
}

#[test]
fn a_program_is_shipped_as_it_was_when_the_application_started() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("program");
    let program: Vec<u8> = (0..3_000_000u32).flat_map(|number| number.to_le_bytes()).collect();
    std::fs::write(&path, &program).unwrap();
    let scheduler = FakeScheduler::start();
    scheduler.memory().wants_bundle = true;
    scheduler.memory().bundle = program[..1_000].to_vec();
    let app = start(information(&scheduler).bundle(Bundle::Executable(path.clone())));
    std::fs::remove_file(&path).unwrap();
    std::fs::File::create(&path).unwrap().write_all(b"another one").unwrap();

    let job = soon(app.schedule_service(&echo(4))).unwrap();

    assert_eq!(soon(app.wait_for(&job)).unwrap().outcome, Ok(echo(4)));
    assert!(scheduler.memory().bundle == program);
    drop(app);
    assert!(scheduler.memory().has_taken(job.id()), "what was returned is confirmed before the end");
}

#[test]
fn a_dropped_application_sends_what_was_scheduled() {
    let scheduler = FakeScheduler::start();
    let app = start(information(&scheduler));
    soon(app.schedule_services((0..5_000).map(echo))).unwrap();
    let started = Moment::now();
    drop(app);
    assert!(started.elapsed() < Duration::from_secs(1), "nothing keeps it once all is said");
    assert_eq!(scheduler.memory().jobs.len(), 5_000);
    assert!(!scheduler.memory().stopped);
}

#[test]
fn an_output_of_another_type_stays_at_the_scheduler() {
    let scheduler = FakeScheduler::start();
    let app = start(information(&scheduler));
    let job = soon(app.schedule_service(&Liar { number: 5 })).unwrap();
    let error = soon(app.wait_for(&job)).unwrap_err();
    assert!(matches!(&error, ClientError::Decode { service, .. } if service == "liar"), "{error}");
    assert!(error.to_string().contains(&job.id().to_string()));
    let raw: RawOutput = soon(app.wait_for(&job.untyped())).unwrap().into_output().unwrap();
    assert_eq!(raw.decode::<Echo>().unwrap(), echo(5));
}

#[test]
fn a_refusal_for_good_fails_everything() {
    let scheduler = FakeScheduler::start_for(Role::Worker);
    let app = start(information(&scheduler));
    let job = match soon(app.schedule_service(&echo(1))) {
        Ok(job) => job,
        Err(error) => return assert!(matches!(error, ClientError::Unauthorised { .. }), "{error}"),
    };
    assert!(matches!(soon(app.wait_for(&job)), Err(ClientError::Unauthorised { .. })));
    assert!(matches!(soon(app.flush()), Err(ClientError::Unauthorised { .. })));
    soon(app.stop()).unwrap();
}

#[test]
fn who_is_refused_is_told_that_jobs_go_on_unless_they_are_somebody_elses() {
    for (kind, goes_on) in [(RefusalKind::Keys, true), (RefusalKind::Owner, false)] {
        let scheduler = FakeScheduler::start();
        scheduler.memory().refuses = Some(kind);
        let app = start(information(&scheduler).application_id("nightly"));
        let error = match soon(app.schedule_service(&echo(1))) {
            Ok(job) => soon(app.wait_for(&job)).unwrap_err(),
            Err(error) => error,
        };
        let ClientError::Unauthorised { reason, .. } = error else { panic!("{error}") };
        assert_eq!(reason.contains("LRTS_APPLICATION_ID=nightly"), goes_on, "{reason}");
    }
}

#[test]
fn a_scheduler_without_room_for_an_application_says_so() {
    let scheduler = FakeScheduler::start();
    scheduler.memory().refuses = Some(RefusalKind::Limit);
    let app = start(information(&scheduler));
    let error = match soon(app.schedule_service(&echo(1))) {
        Ok(job) => soon(app.wait_for(&job)).unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error, ClientError::Limit { .. }) && error.to_string().contains("too many"), "{error}");
    assert!(matches!(soon(app.flush()), Err(ClientError::Limit { .. })));
    soon(app.stop()).unwrap();
}

#[test]
fn no_scheduler_is_an_error_only_where_a_limit_was_set() {
    let mut scheduler = FakeScheduler::start();
    scheduler.kill();
    let app = start(information(&scheduler).communication_time_out(Duration::from_millis(50)));
    let job = soon(app.schedule_service(&echo(1))).unwrap();
    let error = soon(app.wait_for(&job)).unwrap_err();
    assert!(matches!(error, ClientError::NoScheduler { .. }), "{error}");
    assert!(error.to_string().contains(&scheduler.address.to_string()), "{error}");
    soon(app.stop()).expect("there is nothing that the scheduler would have to forget");
}

#[test]
fn wishes_to_cancel_arrive() {
    let scheduler = FakeScheduler::start();
    scheduler.memory().silent = true;
    let app = start(information(&scheduler));
    let jobs = soon(app.schedule_services((0..3).map(echo))).unwrap();
    soon(app.cancel(&jobs[1])).unwrap();
    let expected = [JobSet::one(jobs[1].id())];
    scheduler.eventually("cancelled", |memory| memory.cancelled == expected);
}

#[test]
fn calls_from_within_a_runtime_and_from_many_threads_work() {
    let scheduler = FakeScheduler::start();
    let app = start(information(&scheduler));
    let blocking = crate::blocking::ClientApplication::from_shared(Arc::clone(&app.application));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let job = blocking.schedule_service(&echo(1)).unwrap();
        assert_eq!(blocking.wait_for(&job).unwrap().outcome, Ok(echo(1)));
        let job = app.schedule_service(&echo(2)).await.unwrap();
        assert_eq!(app.wait_for(&job).await.unwrap().outcome, Ok(echo(2)));
    });
    std::thread::scope(|scope| {
        for number in 0..4 {
            let app = &blocking;
            scope.spawn(move || {
                let jobs = app.schedule_services((0..100).map(|n| echo(n * 10 + number))).unwrap();
                let sum: u64 =
                    app.as_completed(jobs).map(|result| result.unwrap().outcome.unwrap().number).sum();
                assert_eq!(sum, (0..100).map(|n| n * 10 + number).sum::<u64>());
            });
        }
    });
    runtime.block_on(async { blocking.stop() }).unwrap();
}

#[test]
fn a_service_that_is_not_hosted_is_refused_at_once() {
    #[derive(Serialize, Deserialize)]
    struct Stranger;
    impl Service for Stranger {
        const NAME: &'static str = "stranger";
        type Output = ();
        fn run(self, _job: &JobContext) -> Result<(), ServiceError> {
            Ok(())
        }
    }
    let scheduler = FakeScheduler::start();
    let app = start(information(&scheduler));
    let error = soon(app.schedule_service(&Stranger)).unwrap_err();
    assert!(matches!(error, ClientError::UnknownService { service: "stranger" }), "{error}");
    let error = soon(app.schedule_service_with(&echo(1), JobOptions::new().slots(0))).unwrap_err();
    assert!(matches!(error, ClientError::InvalidOptions(_)), "{error}");
}

/// Hands on what the library says.
struct Heard(mpsc::Sender<String>);

impl ProgressSink for Heard {
    fn log(&mut self, _: LogLevel, text: &str) {
        let _ = self.0.send(text.to_owned());
    }
}

/// Takes the line that begins so out of those that were heard, which may come in another order.
fn hears(heard: &mpsc::Receiver<String>, lines: &mut Vec<String>, beginning: &str) -> String {
    loop {
        if let Some(index) = lines.iter().position(|line| line.starts_with(beginning)) {
            return lines.remove(index);
        }
        match heard.recv_timeout(SOON) {
            Ok(line) => lines.push(line),
            Err(_) => panic!("nobody said `{beginning}`, but {lines:?}"),
        }
    }
}

#[test]
fn a_program_that_reaches_none_of_its_servers_says_so_and_when_they_are_back() {
    let mut scheduler = FakeScheduler::start();
    scheduler.kill();
    let (say, heard) = mpsc::channel();
    let app = start(information(&scheduler).progress_server("127.0.0.1", 1).progress_sink(Heard(say)));
    let address = scheduler.address;
    let mut lines = Vec::new();
    let first = heard.recv_timeout(SOON).unwrap();
    assert!(first.starts_with(&format!("not connected to the scheduler at {address}: ")), "{first}");
    scheduler.restart();
    hears(&heard, &mut lines, &format!("connected to the scheduler at {address}"));
    hears(&heard, &mut lines, "not connected to the progress server at 127.0.0.1:1: ");
    scheduler.kill();
    let lost = hears(&heard, &mut lines, &format!("not connected to the scheduler at {address}: "));
    assert!(lost.contains("jobs go on"), "{lost}");
    drop(app);
}

#[test]
fn a_program_without_a_key_says_how_to_get_one() {
    let scheduler = FakeScheduler::start();
    let directory = tempfile::tempdir().unwrap();
    let (say, heard) = mpsc::channel();
    let information = ApplicationInformation::new("127.0.0.1", scheduler.address.port())
        .keys(directory.path().join("keys"))
        .bundle(Bundle::Installed("tests".into()))
        .progress_display(ProgressDisplay::Hidden)
        .progress_sink(Heard(say));
    let app = start(information);
    let line = heard.recv_timeout(SOON).unwrap();
    assert!(line.contains("not connected to the scheduler"), "{line}");
    assert!(line.contains("lrts keys export --role client"), "{line}");
    drop(app);
}

struct Counters(mpsc::Sender<(BarId, u64)>);

impl ProgressSink for Counters {
    fn counter_created(&mut self, bar: &Bar) {
        let _ = self.0.send((bar.id, bar.position));
    }
}

#[test]
fn bars_come_from_the_progress_server() {
    let scheduler = FakeScheduler::start();
    let sockets = SocketDir::create().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let config = ServerConfig::insecure("127.0.0.1:0".parse().unwrap(), sockets.path(), vec![Role::Client]);
    let mut server = runtime.block_on(Server::bind(config)).unwrap();
    let port = server.local_address().port();
    let bar = BarId { attempt: AttemptId { job: SessionId(3).job(1), attempt: 1 }, index: 0 };
    let (forgotten, forget) = mpsc::channel();
    runtime.spawn(async move {
        let handle = server.handle();
        loop {
            let ServerEvent::Message { connection, message } = server.next().await else { continue };
            match codec::decode(&message.head).unwrap() {
                FromWatcher::Watch { application } => {
                    assert_eq!(application.as_str(), "watching");
                    let numbers = BarNumbers { position: 41, ..BarNumbers::default() };
                    let update = BarUpdate { bar, text: Some(BarText::default()), numbers };
                    fake::send(&handle, connection, &ToWatcher::Bars { updates: vec![update] }, Bytes::new());
                }
                FromWatcher::Forget => {
                    let _ = forgotten.send(());
                }
            }
        }
    });
    let (created, bars) = mpsc::channel();
    let app = start(
        information(&scheduler)
            .application_id("watching")
            .progress_server("127.0.0.1", port)
            .progress_sink(Counters(created)),
    );
    assert_eq!(bars.recv_timeout(SOON), Ok((bar, 41)));
    block_on(app.stop()).unwrap();
    forget.recv_timeout(SOON).expect("the progress server is told of the end");
    runtime.shutdown_timeout(Duration::from_secs(1));
}

#[test]
fn handles_and_futures_go_anywhere() {
    struct NotSend(PhantomData<*const ()>);
    fn anywhere<T: Send + Sync + Clone + 'static>() {}
    fn sends<T: Send + 'static>() {}
    fn error<T: std::error::Error + Send + Sync + 'static>() {}
    fn future<F: Future + Send>(_: F) {}
    anywhere::<ClientApplication>();
    anywhere::<crate::blocking::ClientApplication>();
    anywhere::<JobHandle<NotSend>>();
    sends::<AsCompleted<NotSend>>();
    sends::<AsCompleted<u8>>();
    sends::<crate::blocking::AsCompleted<u8>>();
    sends::<ApplicationInformation>();
    error::<ClientError>();
    error::<crate::DecodeError>();
    error::<crate::Failure>();
    error::<crate::InvalidOptions>();

    let scheduler = FakeScheduler::start();
    let app = start(information(&scheduler));
    let job = soon(app.schedule_service(&echo(1))).unwrap();
    future(app.schedule_service(&echo(1)));
    future(app.schedule_services((0..1).map(echo)));
    future(app.wait_for(&job));
    future(app.flush());
    future(app.stop());
    future(app.as_completed([&job]).next());
}
