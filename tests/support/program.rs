//! A test binary as an application in a process of its own: a copy of it runs one test, which is the program.

use std::process::{Command, Stdio};

use super::{Cluster, Daemon, without_settings};

/// Tells a copy of a test binary that it is a program; its value is what the program is to do.
const ARGUMENT: &str = "CLUSTER_TEST_ARGUMENT";

/// What this process is to do as a program; none if it runs tests.
pub(crate) fn argument() -> Option<String> {
    std::env::var(ARGUMENT).ok()
}

/// Starts the test `test` of this test binary as a program with this argument, as application `application`, in the cluster's
/// directory.
pub(crate) fn program(
    cluster: &Cluster,
    name: &str,
    test: &str,
    argument: &str,
    application: &str,
) -> Daemon {
    program_at(&cluster.scheduler_address, cluster, name, test, argument, application)
}

/// The same with a scheduler that is reached at another address.
pub(crate) fn program_at(
    scheduler_address: &str,
    cluster: &Cluster,
    name: &str,
    test: &str,
    argument: &str,
    application: &str,
) -> Daemon {
    let mut command = Command::new(std::env::current_exe().expect("a test has an executable"));
    command.args(["--exact", test, "--nocapture", "--test-threads", "1"]);
    without_settings(&mut command);
    command
        .env(ARGUMENT, argument)
        .env("LRTS_SCHEDULER", scheduler_address)
        .env("LRTS_PROGRESS_SERVER", &cluster.progress_address)
        .env("LRTS_APPLICATION_ID", application)
        .current_dir(cluster.directory())
        .stdin(Stdio::null());
    match cluster.keys() {
        Some(keys) => command.env("LRTS_KEYS", keys),
        None => command.env("LRTS_INSECURE", "1"),
    };
    Daemon::start(name, command, cluster.directory())
}
