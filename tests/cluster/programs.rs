//! Programs as processes of their own: recompiled in mid-run, dying during the upload, large, forgetful.
//!
//! This test binary is the program: a copy of it runs the one test that [`program`] names.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lrts_client::blocking::ClientApplication;
use lrts_client::{ApplicationInformation, Bundle};

use crate::services::*;
use crate::support::{Cluster, Daemon, SOON, eventually, keys};

/// Tells a copy of this test binary that it is the program; its value is the number of jobs.
const PROGRAM: &str = "CLUSTER_TEST_PROGRAM";

/// The test that is a program when [`PROGRAM`] is set, and nothing when the suite runs.
#[test]
fn program() {
    let Some(jobs) = std::env::var(PROGRAM).ok().and_then(|jobs| jobs.parse::<i64>().ok()) else { return };
    let information =
        ApplicationInformation::from_env().progress_display(lrts_client::ProgressDisplay::Hidden);
    let app = ClientApplication::start(information).unwrap();
    // On a line of its own, behind what the test harness prints.
    println!("\nprogram started");
    let mut go = String::new();
    std::io::stdin().read_line(&mut go).unwrap();
    let handles = app.schedule_services((0..jobs).map(|n| Add(n, 1))).unwrap();
    let sum: i64 =
        app.wait_for_multi(&handles).unwrap().into_iter().map(|result| result.into_output().unwrap()).sum();
    println!("\nsum {sum}");
    app.stop().unwrap();
}

/// A copy of this test binary, with some more bytes behind it.
fn copy_of_this_program(directory: &Path, name: &str, more: usize) -> PathBuf {
    let path = directory.join(name);
    std::fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
    let mut file = std::fs::File::options().append(true).open(&path).unwrap();
    // Bytes that don't compress, so that all of them travel.
    let mut random = fastrand::Rng::with_seed(7);
    let mut block = vec![0; 1 << 20];
    for _ in 0..more >> 20 {
        random.fill(&mut block);
        file.write_all(&block).unwrap();
    }
    path
}

fn command(cluster: &Cluster, program: &Path, jobs: u32) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--exact", "programs::program", "--nocapture", "--test-threads", "1"])
        .env(PROGRAM, jobs.to_string())
        .env("LRTS_KEYS", keys())
        .env("LRTS_SCHEDULER", &cluster.scheduler_address)
        .env("LRTS_PROGRESS_SERVER", &cluster.progress_address)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

#[test]
fn a_recompile_in_mid_run_ships_what_was_started() {
    let cluster = Cluster::start(&[1]);
    let program = copy_of_this_program(cluster.directory(), "recompiled", 0);
    let mut child = command(&cluster, &program, 10).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    lines.find(|line| line.as_ref().unwrap() == "program started").unwrap().unwrap();
    // What a compiler does: another file takes the name.
    let newer = cluster.directory().join("newer");
    std::fs::write(&newer, "not even a program").unwrap();
    std::fs::rename(&newer, &program).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(rest.contains(&"sum 55".to_owned()), "{rest:?}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn an_application_that_dies_during_the_upload_harms_nobody() {
    let cluster = Cluster::start(&[1]);
    let program = copy_of_this_program(cluster.directory(), "large", 256 << 20);
    let mut child = command(&cluster, &program, 1).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let bundles = cluster.directory().join("scheduler/bundles");
    eventually("the upload begins", SOON, || {
        let mut sizes =
            std::fs::read_dir(&bundles).into_iter().flatten().map(|entry| entry.unwrap().metadata());
        let begun = sizes.any(|file| file.is_ok_and(|file| file.len() > 1 << 20));
        if begun { Ok(()) } else { Err(cluster.scheduler.log()) }
    });
    child.kill().unwrap();
    child.wait().unwrap();

    // The next start of the same program sends the rest, and its jobs run.
    let child = command(&cluster, &program, 4).spawn().unwrap();
    let output = finish(child);
    assert!(output.contains("sum 10"), "{output}");
    // And nobody else was held up meanwhile.
    let app = ClientApplication::start(cluster.information()).unwrap();
    let job = app.schedule_service(&Add(1, 2)).unwrap();
    assert_eq!(app.wait_for(&job).unwrap().into_output().unwrap(), 3);
    app.stop().unwrap();
}

fn finish(mut child: std::process::Child) -> String {
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_program_of_200_mb_is_shipped_and_runs() {
    let cluster = Cluster::start(&[1]);
    let program = copy_of_this_program(cluster.directory(), "large", 200 << 20);
    let information = cluster.information().bundle(Bundle::Executable(program));
    let app = ClientApplication::start(information).unwrap();
    let job = app.schedule_service(&Add(1, 2)).unwrap();
    assert_eq!(app.wait_for(&job).unwrap().into_output().unwrap(), 3);
    app.stop().unwrap();
}

#[test]
fn a_killed_application_doesnt_disturb_others() {
    let cluster = Cluster::start(&[1]);
    let program = copy_of_this_program(cluster.directory(), "killed", 0);
    let mut child = command(&cluster, &program, 2_000).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    eventually("its jobs run", SOON, || {
        let status = &cluster.json(&["status"])[0];
        if status["jobs"]["finished"].as_u64() > Some(0) { Ok(()) } else { Err(status.to_string()) }
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let app = ClientApplication::start(cluster.information()).unwrap();
    let jobs = app.schedule_services((0..20).map(|n| Add(n, 0))).unwrap();
    assert_eq!(app.wait_for_multi(&jobs).unwrap().len(), 20);
    app.stop().unwrap();
}

#[test]
fn a_worker_started_by_hand_in_another_mode_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(crate::support::example("synchronous"));
    command.arg("--local").env("LRTS_MODE", "nonsense").current_dir(directory.path());
    let mut daemon = Daemon::start("synchronous", command, directory.path());
    assert!(daemon.wait().success(), "an unknown mode is the application's own\n{}", daemon.log());
}
