//! Ctrl-C: the first one detaches the applications of this process and says how to come back, the second one ends it at once.
//!
//! The handler only notes the signal and wakes a thread. A program that has a handler of its own keeps it: ours is installed
//! only where the default was, and does nothing if another one was installed since and merely calls it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::ApplicationId;
use lrts_core::terminal::{Keep, visible};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigHandler, Signal};
use tokio::sync::watch;

use super::shell::Shared;
use crate::handlers::{self, Holder};
use crate::park::block_until;
use crate::service;

/// How long what was scheduled may take to reach the scheduler.
const FLUSH_TIME: Duration = Duration::from_secs(3);

/// How long the end of an application's thread may take.
const END_TIME: Duration = Duration::from_secs(2);

/// As a shell reports a program that SIGINT has ended.
const EXIT_CODE: i32 = 128 + libc::SIGINT;

/// The applications of this process, from first to last.
static APPLICATIONS: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// A signal has come and wasn't dealt with.
static CAME: AtomicBool = AtomicBool::new(false);

/// The eventfd that wakes the thread; -1 if none.
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// The process whose thread that is: a fork has the handler, but not the thread.
static PROCESS: AtomicU32 = AtomicU32::new(0);

struct Entry {
    key: Arc<()>,
    /// None until it has started.
    application: Option<Application>,
}

#[derive(Clone)]
struct Application {
    shared: Weak<Shared>,
    /// Whether its thread is done.
    done: watch::Receiver<bool>,
    /// Its cluster ends with the program: there is nothing to come back to.
    ends_with_program: bool,
}

/// An application that Ctrl-C detaches, as long as this lives.
pub(super) struct Registration {
    key: Arc<()>,
}

impl Registration {
    /// Takes the signal, unless the program has it. Where the thread can't be had, it ends the program as by default.
    pub(super) fn new() -> Self {
        let key = Arc::new(());
        let mut applications = lock();
        if applications.is_empty() && start_thread().is_ok() {
            CAME.store(false, Ordering::SeqCst);
            handlers::install(Signal::SIGINT, on_interrupt);
        }
        applications.push(Entry { key: Arc::clone(&key), application: None });
        Self { key }
    }

    /// The application has started.
    pub(super) fn set(&self, shared: &Arc<Shared>, done: watch::Receiver<bool>, ends_with_program: bool) {
        let application = Application { shared: Arc::downgrade(shared), done, ends_with_program };
        if let Some(entry) = lock().iter_mut().find(|entry| Arc::ptr_eq(&entry.key, &self.key)) {
            entry.application = Some(application);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut applications = lock();
        applications.retain(|entry| !Arc::ptr_eq(&entry.key, &self.key));
        if applications.is_empty() {
            handlers::uninstall(Signal::SIGINT, on_interrupt);
        }
    }
}

fn lock() -> MutexGuard<'static, Vec<Entry>> {
    APPLICATIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread that deals with the signal, once for the whole process.
fn start_thread() -> io::Result<()> {
    static WAKER: OnceLock<EventFd> = OnceLock::new();
    if PROCESS.load(Ordering::SeqCst) == std::process::id() {
        return Ok(());
    }
    let waker = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
    let Ok(()) = WAKER.set(waker) else { return Err(io::Error::other("the process is a fork")) };
    let waker = WAKER.get().expect("it was set just now");
    WAKE.store(waker.as_fd().as_raw_fd(), Ordering::SeqCst);
    std::thread::Builder::new().name("lrts-interrupt".to_owned()).spawn(|| {
        loop {
            match waker.read() {
                Ok(_) => interrupted(),
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    })?;
    PROCESS.store(std::process::id(), Ordering::SeqCst);
    Ok(())
}

/// Notes the signal. A second one acts at once.
#[expect(unsafe_code, reason = "a signal handler may use nothing but a few system calls")]
extern "C" fn on_interrupt(signal: libc::c_int) {
    // SAFETY: these calls are async-signal-safe; errno is put back, and the eventfd gets eight readable bytes.
    unsafe {
        let errno = *libc::__errno_location();
        let has_thread = u32::try_from(libc::getpid()) == Ok(PROCESS.load(Ordering::SeqCst));
        if !has_thread || CAME.swap(true, Ordering::SeqCst) {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
        let one = 1_u64;
        libc::write(WAKE.load(Ordering::SeqCst), (&raw const one).cast(), size_of::<u64>());
        *libc::__errno_location() = errno;
    }
}

/// Detaches all applications and ends the program.
fn interrupted() {
    if handlers::holder(Signal::SIGINT, on_interrupt) != Holder::This {
        CAME.store(false, Ordering::SeqCst);
        return;
    }
    handlers::set(Signal::SIGINT, SigHandler::SigDfl);
    let entries = lock();
    let running: Vec<_> = entries.iter().filter_map(|entry| entry.application.clone()).collect();
    drop(entries);
    let mut to_detach = Vec::new();
    for Application { shared, done, ends_with_program } in running {
        let Some(shared) = shared.upgrade().filter(|_| !*done.borrow()) else { continue };
        // First of all, so that the terminal is in order whatever comes.
        shared.display.finish();
        if !ends_with_program {
            to_detach.push((shared, done));
        }
    }
    if to_detach.is_empty() {
        return handlers::act_by_default(Signal::SIGINT);
    }
    service::say("lrts: interrupted, leaving the jobs to the cluster (Ctrl-C again quits at once)");
    for (shared, mut done) in to_detach {
        let confirmed = shared.detach_within(FLUSH_TIME);
        block_until(done.wait_for(|&done| done), Some(Moment::now() + END_TIME));
        let Some(confirmed) = confirmed else { continue };
        let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        service::say(&farewell(shared.application, confirmed, words));
    }
    std::process::exit(EXIT_CODE);
}

/// What a person has to know of the jobs, and how to come back to them.
fn farewell(application: ApplicationId, confirmed: bool, mut command_line: Vec<String>) -> String {
    if command_line.is_empty() {
        command_line.push("PROGRAM".to_owned());
    }
    let command_line: Vec<String> = command_line.iter().map(|word| quoted(word)).collect();
    let what = match confirmed {
        true => "the jobs go on and their results are kept",
        false => "the scheduler has not confirmed that, so jobs that it has go on as after a lost connection",
    };
    format!(
        "lrts: {what}; to come back: LRTS_APPLICATION_ID={} {}",
        quoted(application.as_str()),
        visible(&command_line.join(" "), Keep::Nothing)
    )
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@%+,".contains(&byte);
    match !word.is_empty() && word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_can_paste_how_to_come_back() {
        let told = |application: &str, words: &[&str]| {
            farewell(application.parse().unwrap(), true, words.iter().map(|&word| word.to_owned()).collect())
        };
        let plain = told("nightly", &["target/evolve", "3", "--islands=24"]);
        let expected = "to come back: LRTS_APPLICATION_ID=nightly target/evolve 3 '--islands=24'";
        assert!(plain.ends_with(expected), "{plain}");
        let spaced = told("Bob's run", &["./a b", "it's", ""]);
        assert!(spaced.ends_with(r"LRTS_APPLICATION_ID='Bob'\''s run' './a b' 'it'\''s' ''"), "{spaced}");
        assert!(told("nightly", &[]).ends_with("=nightly PROGRAM"));
        assert!(!told("nightly", &["a", "\x1b[2J"]).contains('\x1b'));
    }
}
