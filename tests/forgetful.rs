//! A program that forgets `host_services!`: this test binary has none.

use std::process::Command;

use lrts_client::blocking::ClientApplication;
use lrts_client::{ApplicationInformation, ProgressDisplay};

const PROGRAM: &str = "FORGETFUL_TEST_PROGRAM";

#[test]
fn start_fails_at_once_and_says_what_to_do() {
    let information = ApplicationInformation::new("127.0.0.1", 1).progress_display(ProgressDisplay::Hidden);
    let error = ClientApplication::start(information).expect_err("there is no host_services!");
    assert!(error.to_string().contains("host_services!"), "{error}");
}

/// What a worker would start: the whole program again, in host mode.
#[test]
fn a_host_that_is_the_whole_program_ends_before_it_starts_anything() {
    if std::env::var_os(PROGRAM).is_some() {
        let _ = lrts::LocalCluster::start(lrts::LocalConfig::default());
        unreachable!("starting a cluster in host mode ends the process");
    }
    let output = Command::new(std::env::current_exe().expect("a test has an executable"))
        .args(["--exact", "a_host_that_is_the_whole_program_ends_before_it_starts_anything", "--nocapture"])
        .env(PROGRAM, "1")
        .env("LRTS_MODE", "host")
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("host_services! must come first in main"), "{said}");
}
