//! Signals that end or stop the program while the live area is on the screen.
//!
//! The handler only notes the signal and wakes the bars' thread, which puts the terminal in order and lets the signal act as
//! it does by default. A program that has a handler of its own keeps it: ours is installed only where the default was, and
//! does nothing if another one was installed since and merely calls it.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

/// End, end, stop.
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
        let mut handlers = Self { installed: Vec::new() };
        for signal in SIGNALS {
            if holder(signal) == Holder::Default {
                set(signal, SigHandler::Handler(on_signal));
                handlers.installed.push(signal);
            }
        }
        handlers
    }

    /// The signal to act on, if one has come. None if the program has taken it over.
    pub(super) fn take(&self) -> Option<Signal> {
        let signal = Signal::try_from(CAME.swap(0, Ordering::SeqCst)).ok()?;
        (holder(signal) == Holder::Ours).then_some(signal)
    }

    /// Lets the signal act as it does by default; returns only if that was to stop, after the program was continued.
    pub(super) fn act(&self, signal: Signal) {
        set(signal, SigHandler::SigDfl);
        let mut set_of_it = SigSet::empty();
        set_of_it.add(signal);
        // Blocked in this thread it would wait for ever. Neither call can fail on a valid signal.
        let _ = set_of_it.thread_unblock();
        let _ = raise(signal);
        set(signal, SigHandler::Handler(on_signal));
    }
}

impl Drop for Handlers {
    /// Puts the defaults back, except where the program has installed a handler of its own since.
    fn drop(&mut self) {
        for signal in self.installed.drain(..) {
            if holder(signal) == Holder::Ours {
                set(signal, SigHandler::SigDfl);
            }
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

#[expect(unsafe_code, reason = "a signal's handler is process-wide state")]
fn set(signal: Signal, handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler is either the default or `on_signal`, which is async-signal-safe.
    let _ = unsafe { sigaction(signal, &action) };
}

/// Who handles a signal.
#[derive(PartialEq, Eq)]
enum Holder {
    Default,
    Ours,
    /// The program, or it is ignored.
    Other,
}

#[expect(unsafe_code, reason = "nix can't ask for a handler without setting one")]
fn holder(signal: Signal) -> Holder {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only fills in the old one, for which there is room; all zeroes are valid, too.
    let handler = unsafe {
        if libc::sigaction(signal as libc::c_int, std::ptr::null(), action.as_mut_ptr()) != 0 {
            return Holder::Other;
        }
        action.assume_init().sa_sigaction
    };
    let ours = on_signal as extern "C" fn(libc::c_int) as usize;
    match handler {
        libc::SIG_DFL => Holder::Default,
        handler if handler == ours => Holder::Ours,
        _ => Holder::Other,
    }
}
