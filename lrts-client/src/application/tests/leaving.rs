//! Keys, leaving, and coming back, over real sockets.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use lrts_core::protocol::application::JobSet;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;
#[path = "../../../tests/terminal/mod.rs"]
mod terminal;

use terminal::{Person, row_of};

fn named(scheduler: &FakeScheduler) -> ApplicationInformation {
    information(scheduler).application_id("nightly")
}

fn with_key(key: &str) -> JobOptions {
    JobOptions::new().key(key)
}

#[test]
fn a_hundred_repeats_of_a_key_make_one_job_whose_result_stays() {
    let scheduler = FakeScheduler::start();
    let app = start(named(&scheduler));
    let jobs: Vec<_> =
        (0..100).map(|_| soon(app.schedule_service_with(&echo(1), with_key("one"))).unwrap()).collect();
    soon(app.flush()).unwrap();
    assert!(jobs.iter().all(|job| job.id() == JobId::keyed("nightly".parse().unwrap(), "one")));
    assert_eq!(scheduler.memory().jobs.len(), 1);
    for job in &jobs[..3] {
        assert_eq!(soon(app.wait_for(job)).unwrap().outcome, Ok(echo(1)));
    }
    assert_eq!(soon(app.wait_for_multi(&jobs)).unwrap().len(), 100);
    std::thread::scope(|scope| {
        for job in &jobs[..8] {
            scope.spawn(|| assert_eq!(soon(app.wait_for(job)).unwrap().outcome, Ok(echo(1))));
        }
    });
    soon(app.stop()).unwrap();
}

#[test]
fn a_key_of_another_payload_is_a_conflict_in_this_process_and_the_next() {
    let scheduler = FakeScheduler::start();
    let first = start(named(&scheduler));
    let job = soon(first.schedule_service_with(&echo(1), with_key("one"))).unwrap();
    let error = soon(first.schedule_service_with(&echo(2), with_key("one"))).unwrap_err();
    assert!(matches!(&error, ClientError::KeyConflict { key, .. } if key == "one"), "{error}");
    let error = soon(first.schedule_service_with(&Liar { number: 1 }, with_key("one"))).unwrap_err();
    assert!(matches!(error, ClientError::KeyConflict { .. }), "{error}");
    soon(first.detach()).unwrap();

    let second = start(named(&scheduler));
    let conflicting = soon(second.schedule_service_with(&echo(2), with_key("one"))).unwrap();
    let error = soon(second.flush()).unwrap_err();
    assert!(matches!(&error, ClientError::KeyConflict { job: id, .. } if *id == job.id()), "{error}");
    let error = soon(second.wait_for(&conflicting)).unwrap_err();
    assert!(matches!(error, ClientError::KeyConflict { .. }), "{error}");
    let there = soon(second.job::<Echo>(job.id())).unwrap();
    assert_eq!(soon(second.wait_for(&there)).unwrap().outcome, Ok(echo(1)));
    soon(second.stop()).unwrap();
}

#[test]
fn another_start_finds_the_jobs_and_gets_each_result_once() {
    let scheduler = FakeScheduler::start();
    let first = start(named(&scheduler));
    let jobs = soon(first.schedule_services((0..50).map(echo))).unwrap();
    let liar = soon(first.schedule_service(&Liar { number: 1 })).unwrap();
    let keyed = soon(first.schedule_service_with(&echo(99), with_key("k"))).unwrap();
    assert_eq!(soon(first.wait_for(&jobs[0])).unwrap().outcome, Ok(echo(0)));
    soon(first.detach()).unwrap();
    assert!(scheduler.memory().detached && !scheduler.memory().stopped);
    assert!(matches!(soon(first.wait_for(&jobs[1])), Err(ClientError::Detached)));
    drop(first);

    let second = start(named(&scheduler));
    let own = soon(second.schedule_service(&echo(100))).unwrap();
    soon(second.flush()).unwrap();
    let found = soon(second.jobs::<Echo>()).unwrap();
    assert_eq!(found.len(), 49 + 1 + 1);
    assert!(!found.contains(&jobs[0]) && found.contains(&own) && found.contains(&keyed));
    assert_eq!(soon(second.jobs::<bool>()).unwrap(), [JobHandle::new(liar.id())]);
    assert_eq!(soon(second.jobs::<RawOutput>()).unwrap().len(), 52);
    assert_eq!(soon(second.jobs::<String>()).unwrap(), []);

    let one = soon(second.job::<Echo>(jobs[1].id())).unwrap();
    assert_eq!(soon(second.wait_for(&one)).unwrap().outcome, Ok(echo(1)));
    let two = soon(second.wait_for_multi(&[jobs[3].clone(), jobs[2].clone()])).unwrap();
    assert_eq!(two.into_iter().map(|result| result.outcome.unwrap().number).collect::<Vec<_>>(), [3, 2]);
    let rest: Vec<_> = found.into_iter().filter(|job| !jobs[1..4].contains(job)).collect();
    let mut numbers = soon(async {
        let mut completed = second.as_completed(&rest);
        let mut numbers = Vec::new();
        while let Some(result) = completed.next().await {
            numbers.push(result.unwrap().outcome.unwrap().number);
        }
        numbers
    });
    numbers.sort_unstable();
    assert_eq!(numbers, (4..50).chain([99, 100]).collect::<Vec<_>>());
    assert!(matches!(soon(second.wait_for(&jobs[4])), Err(ClientError::AlreadyTaken { .. })));
    soon(second.detach()).unwrap();
    assert!(jobs.iter().all(|job| scheduler.memory().has_taken(job.id())));

    let third = start(named(&scheduler));
    assert_eq!(
        soon(third.jobs::<Echo>()).unwrap(),
        std::slice::from_ref(&keyed),
        "only what has a key is left"
    );
    assert_eq!(soon(third.wait_for(&keyed)).unwrap().outcome, Ok(echo(99)));
    assert!(matches!(soon(third.wait_for(&jobs[5])), Err(ClientError::AlreadyTaken { .. })));
    soon(third.stop()).unwrap();
}

#[test]
fn a_job_that_is_not_there_or_is_another_says_so() {
    let scheduler = FakeScheduler::start();
    let app = start(named(&scheduler));
    let liar = soon(app.schedule_service(&Liar { number: 1 })).unwrap();
    soon(app.flush()).unwrap();
    let error = soon(app.job::<Echo>(liar.id())).unwrap_err();
    assert!(matches!(&error, ClientError::OtherOutput { service, .. } if service == "liar"), "{error}");
    assert_eq!(soon(app.job::<RawOutput>(liar.id())).unwrap().id(), liar.id());
    let unknown = SessionId(1).job(1);
    let error = soon(app.job::<Echo>(unknown)).unwrap_err();
    assert!(
        matches!(&error, ClientError::UnknownJob { application, .. } if application == "nightly"),
        "{error}"
    );
    let error = soon(app.wait_for(&JobHandle::<Echo>::new(unknown))).unwrap_err();
    assert!(matches!(error, ClientError::Lost { job } if job == unknown), "{error}");
    soon(app.stop()).unwrap();
}

#[test]
fn a_scheduler_that_comes_back_is_asked_again() {
    let mut scheduler = FakeScheduler::start();
    let first = start(named(&scheduler));
    let job = soon(first.schedule_service(&echo(1))).unwrap();
    soon(first.detach()).unwrap();
    scheduler.kill();

    let app = start(named(&scheduler));
    assert!(block_until(app.jobs::<Echo>(), Some(Moment::now() + Duration::from_millis(50))).is_none());
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| soon(app.jobs::<Echo>()));
        scheduler.restart();
        assert_eq!(asking.join().unwrap().unwrap(), std::slice::from_ref(&job));
    });
    scheduler.memory().silent = true;
    soon(app.cancel(&job)).unwrap();
    scheduler.eventually("cancelled", |memory| memory.cancelled == [JobSet::one(job.id())]);
    scheduler.kill();
    assert!(block_until(app.wait_for(&job), Some(Moment::now() + Duration::from_millis(50))).is_none());
    scheduler.memory().silent = false;
    scheduler.restart();
    assert_eq!(soon(app.wait_for(&job)).unwrap().outcome, Ok(echo(1)));
    soon(app.stop()).unwrap();
}

#[test]
fn a_key_whose_acceptance_was_lost_makes_one_job() {
    let mut scheduler = FakeScheduler::start();
    scheduler.memory().hesitates = true;
    let app = start(named(&scheduler));
    let job = soon(app.schedule_service_with(&echo(1), with_key("one"))).unwrap();
    assert!(block_until(app.flush(), Some(Moment::now() + Duration::from_millis(50))).is_none());
    scheduler.kill();
    scheduler.memory().hesitates = false;
    scheduler.restart();
    soon(app.flush()).unwrap();
    assert_eq!(scheduler.memory().jobs.len(), 1);
    assert_eq!(soon(app.wait_for(&job)).unwrap().outcome, Ok(echo(1)));
    soon(app.stop()).unwrap();
}

#[test]
fn a_newer_start_takes_over() {
    let scheduler = FakeScheduler::start();
    scheduler.memory().silent = true;
    let first = start(named(&scheduler));
    let job = soon(first.schedule_service(&echo(1))).unwrap();
    soon(first.flush()).unwrap();
    let second = start(named(&scheduler));
    soon(second.flush()).unwrap();

    let error = soon(first.wait_for(&job)).unwrap_err();

    assert!(matches!(&error, ClientError::Superseded { application } if application == "nightly"), "{error}");
    assert!(matches!(soon(first.schedule_service(&echo(2))), Err(ClientError::Superseded { .. })));
    soon(first.stop()).expect("a stop of the older one is none of the newer one's");
    assert!(!scheduler.memory().stopped);
    scheduler.memory().silent = false;
    assert_eq!(soon(second.wait_for(&job)).unwrap().outcome, Ok(echo(1)));
    soon(second.stop()).unwrap();
}

#[test]
fn without_a_scheduler_detach_says_that_it_could_not_be_told() {
    let mut scheduler = FakeScheduler::start();
    let app = start(named(&scheduler).communication_time_out(Duration::from_millis(50)));
    soon(app.schedule_service(&echo(1))).unwrap();
    soon(app.flush()).unwrap();
    scheduler.kill();
    assert!(matches!(soon(app.detach()), Err(ClientError::NoScheduler { .. })));
    assert!(!scheduler.memory().detached);
}

/// Tells a test binary that it is the program of this test, and where its scheduler is.
const PROGRAM_PORT: &str = "LEAVING_TEST_PORT";

/// Tells it that its scheduler ends with it.
const PROGRAM_IS_ALL: &str = "LEAVING_TEST_ALONE";

/// The test binary as the program.
fn program(scheduler: &FakeScheduler) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "application::tests::leaving::the_program", "--nocapture"]);
    command.env(PROGRAM_PORT, scheduler.address.port().to_string());
    command
}

/// A program that schedules a job and waits for it, in a process of its own.
struct Program {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Program {
    fn start(scheduler: &FakeScheduler) -> Self {
        let mut child = program(scheduler).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr }
    }

    /// What a person at its terminal does with Ctrl-C.
    fn interrupt(&self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    }

    /// Reads its stderr up to a line with this in it.
    fn says(&mut self, part: &str) {
        let mut line = String::new();
        while !line.contains(part) {
            line.clear();
            assert!(self.stderr.read_line(&mut line).unwrap() > 0, "it has ended without `{part}`");
        }
    }

    /// Waits for its end; the rest of its stderr.
    fn ends(mut self) -> (std::process::ExitStatus, String) {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap(), rest)
    }
}

/// The program, where this process is one; nothing in a run of the tests.
#[test]
fn the_program() {
    let Ok(port) = std::env::var(PROGRAM_PORT) else { return };
    let mut information = ApplicationInformation::new("127.0.0.1", port.parse().unwrap())
        .insecure()
        .bundle(Bundle::Installed("tests".into()));
    if std::env::var_os(PROGRAM_IS_ALL).is_some() {
        information = information.ends_with_program();
    }
    let app = start(information);
    app.set_stage("At work");
    let job = block_on(app.schedule_service(&echo(1))).unwrap();
    eprintln!("\nscheduled");
    let result = block_on(app.wait_for(&job));
    eprintln!("the program goes on: {result:?}");
}

#[test]
fn ctrl_c_detaches_and_says_how_to_come_back() {
    let scheduler = FakeScheduler::start();
    scheduler.memory().silent = true;
    let mut program = Program::start(&scheduler);
    program.says("scheduled");

    program.interrupt();

    let (status, said) = program.ends();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(!said.contains("the program goes on"), "{said}");
    let memory = scheduler.memory();
    assert!(memory.detached && !memory.stopped && memory.jobs.len() == 1);
    let last = said.lines().last().unwrap();
    assert!(last.contains("the jobs go on and their results are kept"), "{said}");
    let (_, command) = last.split_once("to come back: LRTS_APPLICATION_ID=").expect(&said);
    let (id, command) = command.split_once(' ').expect(&said);
    assert_eq!(memory.application.unwrap().to_string(), id.trim_matches('\''));
    let (executable, arguments) = command.split_once(' ').expect(&said);
    assert_eq!(executable, std::env::current_exe().unwrap().to_str().unwrap());
    assert!(arguments.starts_with("--exact application::tests::leaving::"), "{said}");
}

#[test]
fn the_second_ctrl_c_quits_at_once() {
    let scheduler = FakeScheduler::start();
    scheduler.memory().hesitates = true;
    let mut program = Program::start(&scheduler);
    program.says("scheduled");
    program.interrupt();
    program.says("Ctrl-C again quits at once");
    program.interrupt();
    let (status, said) = program.ends();
    assert_eq!(status.signal(), Some(libc::SIGINT), "{said}");
    assert!(!scheduler.memory().detached);
}

#[test]
fn ctrl_c_without_a_scheduler_does_not_wait_for_ever() {
    let mut scheduler = FakeScheduler::start();
    scheduler.kill();
    let mut program = Program::start(&scheduler);
    program.says("this application's id is");
    program.says("scheduled");
    program.interrupt();
    let (status, said) = program.ends();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("1 jobs had not reached the scheduler"), "{said}");
    assert!(said.contains("has not confirmed that"), "{said}");
}

#[test]
fn ctrl_c_leaves_a_clean_terminal_with_the_way_back_below_the_bars() {
    let scheduler = FakeScheduler::start();
    scheduler.memory().silent = true;
    let mut person = Person::watches(&program(&scheduler), 24, 120);
    let settings = person.settings();
    person.sees_row("this application's id is");
    person.sees_row("scheduled");
    person.sees_row("At work");
    assert!(person.cursor().2, "the cursor is hidden while bars are live");

    person.types(b"\x03");

    let rows = person.sees_end(130);
    assert!(row_of(&rows, "to come back: LRTS_APPLICATION_ID=") > row_of(&rows, "At work"), "{rows:#?}");
    assert!(person.settings() == settings, "the terminal is set as before");
    assert!(scheduler.memory().detached);
}

#[test]
fn ctrl_c_ends_a_program_that_has_its_cluster_inside_without_a_way_back() {
    let scheduler = FakeScheduler::start();
    scheduler.memory().silent = true;
    let mut person = Person::watches(program(&scheduler).env(PROGRAM_IS_ALL, "1"), 24, 120);
    person.sees_row("scheduled");
    person.sees_row("At work");
    person.types(b"\x03");
    let rows = person.sees_end(130);
    assert!(!rows.iter().any(|row| row.contains("lrts:")), "{rows:#?}");
    assert!(!scheduler.memory().detached);
}
