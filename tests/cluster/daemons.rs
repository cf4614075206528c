//! Command lines of the daemons.

use nix::sys::signal::Signal;

use crate::support::{Cluster, Daemon, lrts, run_lrts};

#[test]
fn the_first_command_lines_that_people_know_work() {
    let directory = tempfile::tempdir().unwrap();
    let start = |name: &str, line: &str| {
        Daemon::start(name, lrts(&line.split(' ').collect::<Vec<_>>()), directory.path())
    };
    let mut scheduler = start("scheduler", "scheduler -address 127.0.0.1 -port 0 -timeout 1");
    let mut progress = start("progress-server", "progress-server -address 127.0.0.1 -port 0 -timeout 1");
    let address = scheduler.ready();
    let port = address.rsplit_once(':').unwrap().1.to_owned();
    let progress_port = progress.ready().rsplit_once(':').unwrap().1.to_owned();
    let line = format!(
        "worker -scheduler-address 127.0.0.1 -scheduler-port {port} -progress-address 127.0.0.1 -progress-port {progress_port} -max-jobs -1 -timeout 1 -state-dir {}",
        directory.path().join("worker").display()
    );
    let mut worker = start("worker", &line);
    assert_eq!(worker.ready().len(), 16);
    for daemon in [&mut worker, &mut progress, &mut scheduler] {
        daemon.signal(Signal::SIGTERM);
        assert!(daemon.wait().success(), "{}", daemon.log());
    }
}

#[test]
fn wrong_flags_and_taken_ports_give_one_clear_line() {
    let cluster = Cluster::without_workers(&[]);
    let port = cluster.scheduler_address.rsplit_once(':').unwrap().1;
    for arguments in [["scheduler", "--port", port], ["progress-server", "--port", port]] {
        let output = run_lrts(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(port) && said.contains("in use") && said.lines().count() == 1, "{said}");
    }
    for arguments in [
        &["worker", "--max-jobs", "0"][..],
        &["worker", "--max-jobs", "-5"],
        &["scheduler", "--lost-after", "soon"],
        &["scheduler", "--no-such-flag"],
        &["scheduler", "--address", "0.0.0.0", "--port", "0", "--insecure"],
        &["progress-server", "--address", "0.0.0.0", "--port", "0", "--insecure"],
        &["scheduler", "--insecure-on-network"],
        &["status", "--insecure", "--keys", "somewhere"],
    ] {
        let output = run_lrts(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn tiers_start_in_any_order() {
    let mut cluster = Cluster::without_workers(&[]);
    cluster.scheduler.kill();
    let mut worker = cluster.start_worker(1, &[]);
    cluster.restart_scheduler();
    assert_eq!(worker.ready().len(), 16);
}

#[test]
fn all_three_run_in_one_terminal_until_they_are_asked_to_end() {
    let directory = tempfile::tempdir().unwrap();
    let command = lrts(&["local", "--port", "0", "--progress-port", "0", "--max-jobs", "1"]);
    let mut local = Daemon::start("local", command, directory.path());
    let scheduler = local.ready();
    let _progress_server = local.ready();
    assert_eq!(local.ready().len(), 16, "a worker's id");
    let port = scheduler.rsplit_once(':').unwrap().1;
    let status = run_lrts(&["status", "--json", "--scheduler-port", port]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["workers"], 1);
    local.signal(Signal::SIGTERM);
    assert!(local.wait().success(), "{}", local.log());
}
