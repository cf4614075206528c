//! Applications that leave, and come back to their jobs.

use std::time::Duration;

use lrts_client::blocking::ClientApplication;
use lrts_client::{
    ApplicationInformation, ClientError, JobHandle, OnDisconnect, ProgressDisplay, RawOutput, ServiceStatus,
};
use nix::sys::signal::Signal;

use crate::services::*;
use crate::support::{self, Cluster, Daemon, Done, Mark, SOON, Work, eventually, said};

const APPLICATION: &str = "coming-back";

fn start(cluster: &Cluster) -> ClientApplication {
    ClientApplication::start(cluster.information().application_id(APPLICATION)).unwrap()
}

/// A job that runs until the file `go` is there.
fn begun(cluster: &Cluster, app: &ClientApplication) -> JobHandle<Done> {
    let file = cluster.file("job");
    let job = app.schedule_service(&Work::until(&file, cluster.file("go"))).unwrap();
    Mark::wait_for_beginning(&file, 1);
    job
}

fn let_it_end(cluster: &Cluster) {
    std::fs::write(cluster.file("go"), "").unwrap();
}

fn row(cluster: &Cluster) -> serde_json::Value {
    let rows = cluster.json(&["applications"]);
    let row = rows.iter().find(|row| row["application_id"] == APPLICATION);
    row.unwrap_or_else(|| panic!("{rows:?}")).clone()
}

/// The test that is a program where the environment says so: runs a job and waits for it. Its argument is the directory of the
/// job's files.
#[test]
fn program() {
    let Some(directory) = support::argument().map(std::path::PathBuf::from) else { return };
    let information = ApplicationInformation::from_env().progress_display(ProgressDisplay::Hidden);
    let app = ClientApplication::start(information).unwrap();
    let work = Work::until(directory.join("job"), directory.join("go"));
    let job = app.schedule_service(&work).unwrap();
    app.flush().unwrap();
    println!("\nwaiting");
    app.wait_for(&job).unwrap();
}

fn start_program(cluster: &Cluster) -> Daemon {
    let directory = cluster.directory().to_str().unwrap();
    let mut program = support::program(cluster, "program", "coming_back::program", directory, APPLICATION);
    program.line_of("waiting");
    program
}

#[test]
fn a_detached_application_finds_its_jobs_and_each_result_once() {
    let cluster = Cluster::start(&[2]);
    let app = start(&cluster);
    let job = begun(&cluster, &app);
    let sum = app.schedule_service(&Add(2, 3)).unwrap();
    let taken = app.schedule_service(&Add(1, 1)).unwrap();
    app.wait_for(&taken).unwrap();
    app.detach().unwrap();
    let away = row(&cluster);
    assert_eq!((&away["connected"], &away["running"]), (&false.into(), &1.into()), "{away}");
    assert!(away["away_s"].is_f64(), "{away}");

    let_it_end(&cluster);
    let app = start(&cluster);
    let works: Vec<JobHandle<Done>> = app.jobs().unwrap();
    let sums: Vec<JobHandle<i64>> = app.jobs().unwrap();
    let all: Vec<JobHandle<RawOutput>> = app.jobs().unwrap();
    let ids = |jobs: &[JobHandle<i64>]| jobs.iter().map(JobHandle::id).collect::<Vec<_>>();
    assert_eq!((works.len(), ids(&sums), all.len()), (1, vec![sum.id()], 2));
    assert_eq!(works[0].id(), job.id());
    assert_eq!(row(&cluster)["connected"], true);
    assert_eq!(app.wait_for(&works[0]).unwrap().attempts, 1);
    for result in app.as_completed(&sums) {
        assert_eq!(result.unwrap().into_output().unwrap(), 5);
    }
    assert!(app.jobs::<RawOutput>().unwrap().is_empty(), "both results were returned");
    let again = app.wait_for(&works[0]).unwrap_err();
    assert!(matches!(again, ClientError::AlreadyTaken { .. }), "{again}");
    app.stop().unwrap();
}

#[test]
fn a_newer_start_of_an_application_takes_over() {
    let cluster = Cluster::start(&[1]);
    let older = start(&cluster);
    let job = begun(&cluster, &older);
    let newer = start(&cluster);
    let works: Vec<JobHandle<Done>> = newer.jobs().unwrap();
    let error = older.wait_for(&job).unwrap_err();
    assert!(matches!(error, ClientError::Superseded { .. }), "{error}");
    let_it_end(&cluster);
    assert_eq!(newer.wait_for(&works[0]).unwrap().status(), ServiceStatus::Finished);
    newer.stop().unwrap();
}

#[test]
fn jobs_end_some_time_after_a_disconnect_where_the_application_wants_that() {
    let cluster = Cluster::start(&[1]);
    let information = cluster.information().on_disconnect(OnDisconnect::CancelAfter(Duration::from_secs(1)));
    let app = ClientApplication::start(information.application_id(APPLICATION)).unwrap();
    begun(&cluster, &app);
    drop(app);
    cluster.wait_for_jobs("cancelled", 1);
}

#[test]
fn a_dropped_application_has_sent_what_it_scheduled_and_its_jobs_run_on() {
    let cluster = Cluster::start(&[1]);
    let app = start(&cluster);
    let job = app.schedule_service(&Add(2, 3)).unwrap();
    drop(app);
    cluster.wait_for_jobs("finished", 1);
    let app = start(&cluster);
    let job = app.job::<i64>(job.id()).unwrap();
    assert_eq!(app.wait_for(&job).unwrap().into_output().unwrap(), 5);
    app.stop().unwrap();
}

#[test]
fn an_interrupt_leaves_jobs_running_and_says_how_to_come_back() {
    let cluster = Cluster::start(&[1]);
    let mut program = start_program(&cluster);
    let pid = Mark::wait_for_beginning(&cluster.file("job"), 1);
    program.signal(Signal::SIGINT);
    assert_eq!(program.wait().code(), Some(130), "{}", program.log());
    let log = program.log();
    assert!(log.contains(&format!("LRTS_APPLICATION_ID={APPLICATION}")), "{log}");
    assert_eq!(row(&cluster)["connected"], false);
    let_it_end(&cluster);
    let app = start(&cluster);
    let jobs: Vec<JobHandle<Done>> = app.jobs().unwrap();
    assert_eq!(app.wait_for(&jobs[0]).unwrap().into_output().unwrap().pid, pid);
    app.stop().unwrap();
}

#[test]
fn a_killed_application_is_listed_and_all_its_jobs_can_be_cancelled() {
    let cluster = Cluster::start(&[1]);
    let mut program = start_program(&cluster);
    Mark::wait_for_beginning(&cluster.file("job"), 1);
    program.kill();
    eventually("it is known to be away", SOON, || {
        let row = row(&cluster);
        if row["connected"] == false { Ok(()) } else { Err(row.to_string()) }
    });
    assert!(cluster.command(&["cancel", "--application", APPLICATION]).status.success());
    cluster.wait_for_jobs("cancelled", 1);
    let unknown = cluster.command(&["cancel", "--application", "nobody"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(said(&unknown).contains("nobody"), "{}", said(&unknown));
}

#[test]
fn what_an_application_was_told_outlives_the_scheduler() {
    let mut cluster = Cluster::start(&[1]);
    let app = start(&cluster);
    let done = app.schedule_service(&Add(1, 2)).unwrap();
    let taken = app.schedule_service(&Add(2, 2)).unwrap();
    app.wait_for(&taken).unwrap();
    let failed = app.schedule_service(&Fail("no luck".into())).unwrap();
    cluster.wait_for_jobs("failed", 1);
    app.detach().unwrap();
    cluster.scheduler.kill();
    cluster.restart_scheduler();
    let app = start(&cluster);
    let sums: Vec<JobHandle<i64>> = app.jobs().unwrap();
    assert_eq!(sums.iter().map(JobHandle::id).collect::<Vec<_>>(), [done.id()]);
    assert_eq!(app.wait_for(&sums[0]).unwrap().into_output().unwrap(), 3);
    let failed = app.job::<()>(failed.id()).unwrap();
    let failure = app.wait_for(&failed).unwrap().outcome.unwrap_err();
    assert!(failure.message.contains("no luck: the disk is on fire"), "{failure}");
    app.stop().unwrap();
}
