//! Handlers of signals, without taking them from the program.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

/// A signal handler.
pub(crate) type Handler = extern "C" fn(libc::c_int);

/// Who handles a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holder {
    Default,
    /// The handler that was asked about.
    This,
    /// Another one, or it is ignored.
    Other,
}

/// Installs a handler if the signal acts as by default; false if not.
pub(crate) fn install(signal: Signal, handler: Handler) -> bool {
    let free = holder(signal, handler) == Holder::Default;
    if free {
        set(signal, SigHandler::Handler(handler));
    }
    free
}

/// Puts the default back, unless the program has installed a handler of its own since.
pub(crate) fn uninstall(signal: Signal, handler: Handler) {
    if holder(signal, handler) == Holder::This {
        set(signal, SigHandler::SigDfl);
    }
}

/// Lets the signal act as it does by default; returns only if that was to stop, after the program was continued.
pub(crate) fn act_by_default(signal: Signal) {
    set(signal, SigHandler::SigDfl);
    let mut set_of_it = SigSet::empty();
    set_of_it.add(signal);
    // Blocked in this thread it would wait for ever. Neither call can fail on a valid signal.
    let _ = set_of_it.thread_unblock();
    let _ = raise(signal);
}

#[expect(unsafe_code, reason = "a signal's handler is process-wide state")]
pub(crate) fn set(signal: Signal, handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: this crate's handlers are async-signal-safe, and the default is always valid.
    let _ = unsafe { sigaction(signal, &action) };
}

/// Who handles a signal.
#[expect(unsafe_code, reason = "nix can't ask for a handler without setting one")]
pub(crate) fn holder(signal: Signal, handler: Handler) -> Holder {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only fills in the old one, for which there is room; all zeroes are valid, too.
    let held = unsafe {
        if libc::sigaction(signal as libc::c_int, std::ptr::null(), action.as_mut_ptr()) != 0 {
            return Holder::Other;
        }
        action.assume_init().sa_sigaction
    };
    match held {
        libc::SIG_DFL => Holder::Default,
        held if held == handler as usize => Holder::This,
        _ => Holder::Other,
    }
}
