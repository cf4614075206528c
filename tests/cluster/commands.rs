//! `lrts status`, `jobs`, `workers`, `applications`, `logs`, `cancel`, `drain`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use lrts_client::blocking::ClientApplication;
use lrts_client::{JobOptions, ServiceStatus};
use lrts_core::keys::KeyFile;

use crate::services::*;
use crate::support::{Cluster, SOON, eventually, keys, lrts, run_lrts, said};

#[test]
fn status_jobs_and_workers_show_what_runs() {
    let cluster = Cluster::start(&[1]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let done = app.schedule_service(&Add(1, 2)).unwrap();
    app.wait_for(&done).unwrap();
    let running =
        app.schedule_service_with(&Sleep(600_000), JobOptions::new().label("the long one")).unwrap();
    let queued = app.schedule_service(&Sleep(0)).unwrap();

    let rows = eventually("the job is shown as running", SOON, || {
        let rows = cluster.json(&["jobs"]);
        let is_running = |row: &serde_json::Value| row["state"] == "running" && row["pid"].is_u64();
        if rows.iter().any(is_running) { Ok(rows) } else { Err(format!("{rows:?}")) }
    });
    let row = |id: String| rows.iter().find(|row| row["job_id"] == id.as_str()).unwrap();
    let long = row(running.id().to_string());
    assert_eq!((&long["label"], &long["service"]), (&"the long one".into(), &"sleep".into()));
    assert_eq!((&long["attempt"], &long["worker"].is_string()), (&1.into(), &true));
    assert_eq!(row(queued.id().to_string())["state"], "queued");

    let status = &cluster.json(&["status"])[0];
    assert_eq!((&status["workers"], &status["jobs"]["running"]), (&1.into(), &1.into()));
    assert_eq!(status["jobs"]["queued"], 1);
    assert!(status["uptime_s"].as_f64().unwrap() > 0.0);
    let workers = cluster.json(&["workers"]);
    assert_eq!((&workers[0]["state"], &workers[0]["slots"]), (&"ready".into(), &1.into()));
    assert_eq!(workers[0]["running"], 1);

    let table = cluster.command(&["jobs"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("the long one"));

    let cancelled = cluster.json(&["cancel", &running.id().to_string()]);
    assert_eq!(cancelled[0]["outcome"], "cancelling");
    assert_eq!(app.wait_for(&running).unwrap().status(), ServiceStatus::Cancelled);
    app.wait_for(&queued).unwrap();
    app.stop().unwrap();
}

#[test]
fn an_application_is_listed_and_all_its_jobs_are_cancelled_at_once() {
    let cluster = Cluster::start(&[1]);
    let app = ClientApplication::start(cluster.information().application_id("nightly")).unwrap();
    let other = ClientApplication::start(cluster.information().application_id("other")).unwrap();
    let jobs = app.schedule_services([Sleep(600_000), Sleep(600_000), Sleep(600_000)]).unwrap();
    let theirs = other.schedule_service(&Sleep(0)).unwrap();
    app.flush().unwrap();

    let row = eventually("the application is listed", SOON, || {
        let rows = cluster.json(&["applications"]);
        let row = rows.iter().find(|row| row["application_id"] == "nightly" && row["running"] == 1);
        row.cloned().ok_or_else(|| format!("{rows:?}"))
    });
    assert_eq!((&row["connected"], &row["away_s"]), (&true.into(), &serde_json::Value::Null));
    assert_eq!((&row["queued"], &row["finished"], &row["failed"]), (&2.into(), &0.into(), &0.into()));
    let key = KeyFile::read(&cluster.keys().unwrap().join("client.pem")).unwrap();
    let user = key.identity().unwrap().user.to_string();
    assert_eq!(row["user"], user.as_str());
    assert!(cluster.json(&["jobs"]).iter().all(|row| row["user"] == user.as_str()));
    assert!(cluster.scheduler.log().contains(&format!("application=nightly user={user}")));

    let cancelled = cluster.json(&["cancel", "--application", "nightly"]);
    assert_eq!((&cancelled[0]["application_id"], &cancelled[0]["jobs"]), (&"nightly".into(), &3.into()));
    for result in app.wait_for_multi(&jobs).unwrap() {
        assert_eq!(result.status(), ServiceStatus::Cancelled);
    }
    assert_eq!(other.wait_for(&theirs).unwrap().status(), ServiceStatus::Finished);
    app.stop().unwrap();
    other.stop().unwrap();
}

#[test]
fn all_jobs_of_a_user_are_cancelled_at_once_and_nobody_elses() {
    let directory = Cluster::new_directory();
    let keys = directory.path().join("keys");
    let mut cluster = Cluster::with_keys(Some(keys.clone()), directory, Vec::new(), &[]);
    cluster.add_worker(1, &[]);
    let file = cluster.file("ann.pem");
    let path = file.to_str().unwrap();
    let export =
        ["keys", "export", "--role", "client", "--user", "ann", path, "--keys", keys.to_str().unwrap()];
    assert!(run_lrts(&export).status.success());
    let anns =
        |id: &str| ClientApplication::start(cluster.information().application_id(id).keys(&file)).unwrap();
    let (one, two) = (anns("one"), anns("two"));
    let other = ClientApplication::start(cluster.information().application_id("other")).unwrap();
    let ones = one.schedule_services([Sleep(600_000), Sleep(600_000)]).unwrap();
    let twos = two.schedule_service(&Sleep(600_000)).unwrap();
    let theirs = other.schedule_service(&Sleep(0)).unwrap();
    for app in [&one, &two, &other] {
        app.flush().unwrap();
    }
    assert_eq!(cluster.command(&["cancel", "--user", "bob"]).status.code(), Some(1));
    let row = &cluster.json(&["cancel", "--user", "ann"])[0];
    assert_eq!((&row["user"], &row["applications"], &row["jobs"]), (&"ann".into(), &2.into(), &3.into()));
    for result in one.wait_for_multi(&ones).unwrap() {
        assert_eq!(result.status(), ServiceStatus::Cancelled);
    }
    assert_eq!(two.wait_for(&twos).unwrap().status(), ServiceStatus::Cancelled);
    assert_eq!(other.wait_for(&theirs).unwrap().status(), ServiceStatus::Finished);
    for app in [one, two, other] {
        app.stop().unwrap();
    }
}

#[test]
fn logs_show_what_a_job_has_printed_while_it_runs_and_afterwards() {
    let cluster = Cluster::start(&[2]);
    let app = ClientApplication::start(cluster.information()).unwrap();
    let print = |then_sleep_ms| Print { out: "to stdout".into(), err: "to stderr".into(), then_sleep_ms };
    let ended = app.schedule_service(&print(0)).unwrap();
    app.wait_for(&ended).unwrap();
    let running = app.schedule_service(&print(600_000)).unwrap();
    for job in [ended.id(), running.id()] {
        eventually("its output is there", SOON, || {
            let output = cluster.command(&["logs", &job.to_string()]);
            let (out, err) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            if out == "to stdout\n" && err == "to stderr\n" { Ok(()) } else { Err(format!("{output:?}")) }
        });
        let row = &cluster.json(&["logs", &job.to_string()])[0];
        assert_eq!((&row["stdout"], &row["stderr"]), (&"to stdout\n".into(), &"to stderr\n".into()));
    }
    app.stop().unwrap();
}

#[test]
fn commands_without_an_answer_exit_as_documented() {
    let cluster = Cluster::without_workers(&[]);
    let unknown = cluster.command(&["cancel", "0123456789abcdef-1"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("0123456789abcdef-1"));
    assert_eq!(cluster.command(&["logs", "0123456789abcdef-1"]).status.code(), Some(1));
    assert_eq!(cluster.command(&["cancel", "--application", "nobody"]).status.code(), Some(1));
    assert_eq!(cluster.command(&["drain", "0000000000000001"]).status.code(), Some(1));
    assert_eq!(cluster.command(&["cancel"]).status.code(), Some(2));
    assert_eq!(run_lrts(&["logs", "nonsense"]).status.code(), Some(2));
    assert_eq!(run_lrts(&["no-such-command"]).status.code(), Some(2));
    assert_eq!(run_lrts(&["--help"]).status.code(), Some(0));
    let nobody = run_lrts(&["status", "--scheduler-port", "1", "--wait", "200ms"]);
    assert_eq!(nobody.status.code(), Some(3));
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(said.contains("127.0.0.1:1") && said.lines().count() == 1, "{said}");
}

/// Longer than any test: who waits for that long doesn't end at once.
const LONG: &str = "1h";

/// Fails unless a command has ended with this code and one line that says all of that.
#[track_caller]
fn assert_ends(output: &Output, code: i32, says: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.lines().count() == 1 && says.iter().all(|&words| said.contains(words)), "{said}");
}

#[test]
fn a_key_that_cannot_be_used_ends_a_command_at_once_and_is_not_blamed_on_the_scheduler() {
    let cluster = Cluster::without_workers(&[]);
    let named = cluster.file("nowhere");
    let named = named.to_str().unwrap();
    let missing = cluster.command(&["status", "--wait", LONG, "--keys", named]);
    assert_ends(&missing, 4, &["no key for the role admin", named, "lrts keys export --role admin"]);

    let loose = cluster.file("admin.pem");
    fs::copy(keys().join("admin.pem"), &loose).unwrap();
    fs::set_permissions(&loose, Permissions::from_mode(0o644)).unwrap();
    let loose = cluster.command(&["status", "--wait", LONG, "--keys", loose.to_str().unwrap()]);
    assert_ends(&loose, 4, &["chmod 600"]);
    assert!(!said(&loose).contains("scheduler"), "{}", said(&loose));

    // A home without keys: of another user than the scheduler's, or before that was ever started.
    let at_home = |address: &str, wait: &str| {
        let mut command = lrts(&["status", "--wait", wait]);
        command.env_remove("LRTS_KEYS").env_remove("XDG_CONFIG_HOME").env("HOME", cluster.directory());
        command.env("LRTS_SCHEDULER", address).output().unwrap()
    };
    assert_ends(&at_home(&cluster.scheduler_address, LONG), 4, &["no key for the role admin"]);
    assert_ends(&at_home("127.0.0.1:1", "200ms"), 3, &["no scheduler answered at 127.0.0.1:1", "no key"]);
}

#[test]
fn commands_find_the_scheduler_where_programs_do() {
    let cluster = Cluster::without_workers(&[]);
    let status = lrts(&["status"]).env("LRTS_SCHEDULER", &cluster.scheduler_address).output().unwrap();
    assert!(status.status.success(), "{}", said(&status));
    let wrong = lrts(&["status"]).env("LRTS_SCHEDULER", "http://node7").output().unwrap();
    assert_ends(&wrong, 2, &["LRTS_SCHEDULER", "http://node7"]);
    let port = cluster.progress_address.rsplit_once(':').unwrap().1;
    let other = cluster.command_at(&format!("127.0.0.1:{port}"), &["status"]);
    assert_ends(&other, 4, &["that of a progress server", "is the port right?"]);
}

#[test]
fn a_reader_that_has_seen_enough_ends_a_command_quietly() {
    let cluster = Cluster::without_workers(&[]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut status = lrts(&["status"]);
    let output = status.env("LRTS_SCHEDULER", &cluster.scheduler_address).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), said(&output).as_str()), (Some(0), ""));
}
