//! Signals that end or stop the program while the live area is on the screen.
//!
//! The handler only notes the signal and wakes the bars' thread, which puts the terminal in order and lets the signal act as
//! it does by default. A program that has a handler of its own keeps it: ours is installed only where the default was, and
//! does nothing if another one was installed since and merely calls it.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::signal::{SigHandler, Signal};

use crate::handlers::{self, Holder};

/// End, end, stop. Of these an application handles the first one itself.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGTSTP];

/// The signal that has come and was not dealt with; 0 if none.
static CAME: AtomicI32 = AtomicI32::new(0);

/// The eventfd that wakes the bars' thread; -1 if none.
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// Our handlers, until they are dropped.
#[derive(Debug)]
pub(super) struct Handlers {
    installed: Vec<Signal>,
}

impl Handlers {
    /// Installs handlers that write to this eventfd, which must stay open until they are dropped.
    pub(super) fn install(wake: impl AsFd) -> Self {
        CAME.store(0, Ordering::SeqCst);
        WAKE.store(wake.as_fd().as_raw_fd(), Ordering::SeqCst);
        let mut this = Self { installed: Vec::new() };
        this.installed.extend(SIGNALS.into_iter().filter(|&signal| handlers::install(signal, on_signal)));
        this
    }

    /// The signal to act on, if one has come. None if the program has taken it over.
    pub(super) fn take(&self) -> Option<Signal> {
        let signal = Signal::try_from(CAME.swap(0, Ordering::SeqCst)).ok()?;
        (handlers::holder(signal, on_signal) == Holder::This).then_some(signal)
    }

    /// Lets the signal act as it does by default; returns only if that was to stop, after the program was continued.
    pub(super) fn act(&self, signal: Signal) {
        handlers::act_by_default(signal);
        handlers::set(signal, SigHandler::Handler(on_signal));
    }
}

impl Drop for Handlers {
    /// Puts the defaults back, except where the program has installed a handler of its own since.
    fn drop(&mut self) {
        for signal in self.installed.drain(..) {
            handlers::uninstall(signal, on_signal);
        }
        WAKE.store(-1, Ordering::SeqCst);
    }
}

/// Notes the signal. A second one that comes before the first was dealt with acts at once: nobody should be kept waiting by
/// a terminal that takes no output.
#[expect(unsafe_code, reason = "a signal handler may use nothing but a few system calls")]
extern "C" fn on_signal(signal: libc::c_int) {
    // SAFETY: these calls are async-signal-safe; errno is put back, and the eventfd gets eight readable bytes.
    unsafe {
        let errno = *libc::__errno_location();
        if CAME.swap(signal, Ordering::SeqCst) == signal {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
        let wake = WAKE.load(Ordering::SeqCst);
        if wake >= 0 {
            let one = 1_u64;
            libc::write(wake, (&raw const one).cast(), size_of::<u64>());
        }
        *libc::__errno_location() = errno;
    }
}
