//! Real daemons for tests: started from the `lrts` command, in a directory of their own, on free ports, ended with the test.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

mod cluster;
mod daemon;
mod disks;
mod marks;
mod processes;
mod program;
mod proxy;
mod work;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use lrts_core::clock::Moment;

pub(crate) use cluster::Cluster;
pub(crate) use daemon::Daemon;
pub(crate) use disks::Disk;
pub(crate) use marks::{Mark, Marks};
pub(crate) use processes::{Part, descriptors, forget_peak, kill, parent, signal, status_kib, still_runs};
pub(crate) use program::{argument, program, program_at};
pub(crate) use proxy::{Line, Proxy};
pub(crate) use work::{Done, Steps, Work};

/// How long anything that must happen may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// How often a state is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(20);

/// Polls until `probe` returns a value; fails with the last complaint once `limit` has passed.
pub(crate) fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Moment::now() + limit;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(last) if Moment::now() >= deadline => panic!("{what}: not within {limit:?}; last: {last}"),
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// Waits until a file is there.
pub(crate) fn appears(file: &Path) {
    let what = format!("{} appears", file.display());
    eventually(&what, SOON, || std::fs::metadata(file).map(|_| ()).map_err(|error| error.to_string()));
}

/// The `lrts` command with these arguments.
pub(crate) fn lrts(arguments: &[&str]) -> Command {
    lrts_with(Some(&keys()), arguments)
}

/// The same with these keys, or without any.
pub(crate) fn lrts_with(keys: Option<&Path>, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lrts"));
    command.args(arguments).stdin(Stdio::null());
    without_settings(&mut command);
    match keys {
        Some(keys) => command.env("LRTS_KEYS", keys),
        None => command.arg("--insecure"),
    };
    command
}

/// Where the keys of all tests are that need none of their own; the first daemon makes them.
pub(crate) fn keys() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("keys")
}

/// No setting of the caller's environment leads it to another cluster.
fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LRTS_")) {
        command.env_remove(name);
    }
}

/// Runs the `lrts` command to its end.
pub(crate) fn run_lrts(arguments: &[&str]) -> Output {
    lrts(arguments).output().expect("the lrts command starts")
}

/// What a command has written to stderr.
pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An example or helper program of this package, built beside this test.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has an executable");
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    let executable = profile.join("examples").join(name);
    assert!(executable.is_file(), "{} is missing: run `cargo build --examples`", executable.display());
    executable
}
