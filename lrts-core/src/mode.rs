//! The four ways in which a program of lrts may have been started.

use std::sync::atomic::{AtomicBool, Ordering};

/// The environment variable that tells a process its mode. Read before anything else is done.
pub const VARIABLE: &str = "LRTS_MODE";

/// How a process was started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// By a person: the program itself.
    Application,
    /// By a worker: a job host, which forks job processes. Descriptor 0 is its listening notice socket.
    Host,
    /// By a job host that can't fork: one job. Descriptor 0 is its notice socket.
    Job,
    /// By a worker: the progress subprocess. Descriptor 0 is its notice socket.
    Progress,
}

impl Mode {
    /// The variable's value for a process to be started in this mode.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Application => "application",
            Mode::Host => "host",
            Mode::Job => "job",
            Mode::Progress => "progress",
        }
    }
}

/// Whether [`take`] was called in this process.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// This process's mode. Called first thing in `main` by `host_services!` and by the worker's own commands, which act on it.
pub fn take() -> Mode {
    TAKEN.store(true, Ordering::Relaxed);
    started_as()
}

/// The mode that this process was started in, if it isn't the application's and nobody has acted on it.
///
/// A program that forgets `host_services!` would else start its whole self again for every job.
pub fn ignored() -> Option<Mode> {
    let mode = started_as();
    (mode != Mode::Application && !TAKEN.load(Ordering::Relaxed)).then_some(mode)
}

fn started_as() -> Mode {
    let value = std::env::var_os(VARIABLE).unwrap_or_default();
    [Mode::Host, Mode::Job, Mode::Progress]
        .into_iter()
        .find(|mode| value.as_os_str() == mode.as_str())
        .unwrap_or(Mode::Application)
}
