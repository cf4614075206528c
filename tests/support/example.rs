//! Runs this package's examples as a user does.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// The executable of an example. `cargo test` and `cargo nextest run` build it unless they are told which targets to build.
fn executable(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its executable");
    // target/<profile>/deps/<test> stands beside target/<profile>/examples/<example>.
    let profile = test.parent().and_then(|deps| deps.parent()).expect("tests lie two directories deep");
    let executable = profile.join("examples").join(name);
    assert!(executable.is_file(), "{} is missing: run `cargo build --examples`", executable.display());
    executable
}

/// An example that is about to be started.
pub(crate) fn example(name: &str) -> Command {
    let mut command = Command::new(executable(name));
    // No setting of the caller's environment may lead it to another cluster.
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("LRTS_") {
            command.env_remove(variable);
        }
    }
    command
}

/// Runs an example to its end and gives what it printed.
///
/// # Panics
///
/// When it hasn't ended by the deadline: its process group is killed and what it printed is shown.
pub(crate) fn run_example(name: &str, arguments: &[&str], deadline: Duration) -> Output {
    let mut command = example(name);
    // Files, not pipes: what was printed is there even if the example hangs.
    let (mut stdout, mut stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command.args(arguments).stdin(Stdio::null()).process_group(0);
    command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    let mut child = command.spawn().expect("a built example starts");
    let group = Pid::from_raw(child.id().try_into().expect("process ids fit"));

    let (sender, receiver) = mpsc::channel();
    let waiter = thread::spawn(move || {
        let status = child.wait().expect("a child can be waited for");
        // The receiver is gone only if the deadline has passed.
        let _ = sender.send(());
        status
    });
    let in_time = receiver.recv_timeout(deadline).is_ok();
    if !in_time {
        // It may have ended just now.
        let _ = killpg(group, Signal::SIGKILL);
    }
    let status = waiter.join().unwrap();
    let output = Output { status, stdout: contents(&mut stdout), stderr: contents(&mut stderr) };
    assert!(in_time, "{name} had not ended after {deadline:?}: {}", describe(&output));
    output
}

fn contents(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Runs an example that is to succeed, gives its stdout.
pub(crate) fn run_example_well(name: &str, arguments: &[&str], deadline: Duration) -> String {
    let output = run_example(name, arguments, deadline);
    assert!(output.status.success(), "{name} failed: {}", describe(&output));
    String::from_utf8(output.stdout).expect("examples print text")
}

/// Everything that is known of a run, for the message of a failed test.
pub(crate) fn describe(output: &Output) -> String {
    format!(
        "{}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
