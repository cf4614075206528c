//! Jobs with keys.

use lrts_client::blocking::ClientApplication;
use lrts_client::{ApplicationInformation, ClientError, JobOptions, ProgressDisplay, ServiceStatus};

use crate::services::*;
use crate::support::{self, Cluster, Mark, Work};

const REPEATS: usize = 100;

fn with_key() -> JobOptions {
    JobOptions::new().key("the one")
}

/// The test that is a program where the environment says so: schedules one job under one key again and again. Its argument is
/// the file of the job's marks.
#[test]
fn program() {
    let Some(file) = support::argument() else { return };
    let information = ApplicationInformation::from_env().progress_display(ProgressDisplay::Hidden);
    let app = ClientApplication::start(information).unwrap();
    for _ in 0..REPEATS {
        app.schedule_service_with(&Work::new(&file, 5), with_key()).unwrap();
    }
    app.flush().unwrap();
    let job = app.schedule_service_with(&Work::new(&file, 5), with_key()).unwrap();
    let done = app.wait_for(&job).unwrap().into_output().unwrap();
    println!("\nresult {} {}", job.id(), done.pid);
    app.detach().unwrap();
}

#[test]
fn a_hundred_repeats_of_one_key_make_one_job() {
    let cluster = Cluster::start(&[2]);
    let app = ClientApplication::start(cluster.information().application_id("keys")).unwrap();
    let file = cluster.file("job");
    let mut jobs = Vec::new();
    for _ in 0..REPEATS {
        jobs.push(app.schedule_service_with(&Work::new(&file, 5), with_key()).unwrap());
    }
    app.flush().unwrap();
    assert!(jobs.iter().all(|job| job.id() == jobs[0].id()));
    // The result of a job with a key may be asked for again.
    for job in &jobs[..3] {
        assert_eq!(app.wait_for(job).unwrap().status(), ServiceStatus::Finished);
    }
    assert_eq!((Mark::began(&file).len(), cluster.json(&["jobs"]).len()), (1, 1));
    app.stop().unwrap();
}

#[test]
fn repeats_of_one_key_from_two_processes_make_one_job() {
    let cluster = Cluster::start(&[2]);
    let file = cluster.file("job");
    let argument = file.to_str().unwrap();
    let mut said = Vec::new();
    for name in ["first", "second"] {
        let mut program = support::program(&cluster, name, "keys::program", argument, "keys");
        said.push(program.line_of("result"));
        assert!(program.wait().success(), "{}", program.log());
    }
    assert_eq!(said[0], said[1], "the same job and the same result");
    assert_eq!((Mark::began(&file).len(), cluster.json(&["jobs"]).len()), (1, 1));
}

#[test]
fn a_key_of_another_job_is_a_conflict() {
    let cluster = Cluster::start(&[1]);
    let information = || cluster.information().application_id("keys");
    let app = ClientApplication::start(information()).unwrap();
    let job = app.schedule_service_with(&Add(1, 2), with_key()).unwrap();
    let here = app.schedule_service_with(&Add(1, 3), with_key()).unwrap_err();
    assert!(matches!(here, ClientError::KeyConflict { .. }), "{here}");
    app.flush().unwrap();
    app.detach().unwrap();

    // A process that knows nothing of the job learns of it from the scheduler.
    let app = ClientApplication::start(information()).unwrap();
    let conflicting = app.schedule_service_with(&Add(1, 3), with_key()).unwrap();
    let there = app.wait_for(&conflicting).unwrap_err();
    assert!(matches!(there, ClientError::KeyConflict { .. }), "{there}");
    let same = app.job::<i64>(job.id()).unwrap();
    assert_eq!(app.wait_for(&same).unwrap().into_output().unwrap(), 3);
    app.stop().unwrap();
}
