//! The job host: the user's program in host mode. It forks a process per job, reaps it, and keeps its result until the worker
//! has confirmed that the result is safe.
//!
//! A fork copies the calling thread only, so a host is single-threaded, runs before anything else in `main`, and uses no
//! runtime: it is one `epoll` loop, in which nothing may take long.
//!
//! A job inherits what its host has, memory and all. So a host is never given a key: it speaks with its worker only, over the
//! socket that it was started with, and the worker keeps from it whatever is not for jobs. Of descriptors a job has stdin
//! (`/dev/null`), stdout and stderr, and one that the programs it starts don't get: its socket to the host.
//!
//! | Module | What |
//! |---|---|
//! | [`server`] | the loop, and what the worker says and is told |
//! | [`connection`], [`socket_file`] | the worker's connection, and whether another one can come |
//! | [`jobs`], [`running`] | jobs from their start to their last process |
//! | [`ended`] | what is left of them until the worker has confirmed it, in memory or on disk |
//! | [`launch`] | starts processes; [`job`] is what goes on in them |
//! | [`limits`], [`cgroup`] | limits of time and memory |
//! | [`watchdog`] | ends a job with its lease, from within |
//! | [`checkpoint`] | memory that a job keeps its state in |
//! | [`tree`] | the processes of a job |
//! | [`verdict`] | what became of an attempt |
//! | [`kernel`] | system calls |

mod cgroup;
mod checkpoint;
mod connection;
mod ended;
mod job;
mod jobs;
mod kernel;
mod launch;
mod limits;
mod notices;
mod regions;
mod running;
mod server;
mod socket_file;
mod tail;
mod tree;
mod verdict;
mod watchdog;

use std::io;

use lrts_core::notices::NoticeListener;
use lrts_core::{descriptors, environment};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::setsid;

pub(crate) use checkpoint::Checkpoints;
pub(crate) use job::run_job;
pub(crate) use kernel::{survive_terminate, threads};
pub(crate) use notices::ToJob;

use crate::service::{Services, say};

/// Serves the workers that connect to descriptor 0, one after the other, until one of them says so or none has come for too
/// long.
///
/// Terminal signals and SIGTERM don't concern a host: the worker ends it, after it has stopped the jobs in its own way. A signal
/// to the whole service (as systemd sends it) would else cut their grace period short.
pub(crate) fn run_host(services: Services, forks: bool) -> ! {
    match serve(services, forks) {
        Ok(()) => kernel::exit_now(0),
        Err(error) => {
            say(&format!("lrts: the job host ends: {error}"));
            kernel::exit_now(1)
        }
    }
}

fn serve(services: Services, forks: bool) -> io::Result<()> {
    let listener = NoticeListener::from(kernel::take_descriptor_0()?);
    kernel::name_process(c"lrts-host");
    if forks {
        descriptors::close_inherited()?;
    } else {
        // Some thread of the program may be in the middle of using what it has opened.
        descriptors::close_on_exec()?;
    }
    // It leads its group already if the worker has seen to that.
    let _ = setsid();
    set_child_subreaper(true)?;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
        kernel::set_action(signal, SigHandler::SigIgn)?;
    }
    // Each job takes up to four descriptors here; its own process gets the old limit back.
    let (files, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    if forks {
        for (name, _) in std::env::vars_os().filter(|(name, _)| environment::is_withheld(name)) {
            // SAFETY: this process has one thread.
            #[expect(unsafe_code, reason = "the environment is shared by all threads")]
            unsafe {
                std::env::remove_var(name);
            }
        }
    }
    server::Host::new(services, forks, listener, files)?.serve()
}
