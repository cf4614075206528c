//! What host and job ask of the kernel.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::prctl::{set_child_subreaper, set_name, set_pdeathsig};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getppid, setpgid};

use super::verdict::Exit;

/// How many threads this process has.
pub(crate) fn threads() -> u64 {
    // A directory has two links and one for each directory in it: here one a thread.
    fs::metadata("/proc/self/task").map_or(1, |tasks| tasks.nlink().saturating_sub(2).max(1))
}

/// A process that has ended and was waited for.
#[derive(Debug)]
pub(super) struct Reaped {
    pub(super) exit: Exit,
    pub(super) peak_memory_bytes: u64,
}

/// A child that has ended and keeps its process id until [`reap`]; none if all of them run.
pub(super) fn ended_child() -> Option<Pid> {
    // SAFETY: all zeroes are a valid siginfo_t.
    #[expect(unsafe_code, reason = "nix refuses children that died of a real-time signal")]
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is to a siginfo_t that lives through the call.
    #[expect(unsafe_code, reason = "nix refuses children that died of a real-time signal")]
    let pid = unsafe {
        if libc::waitid(libc::P_ALL, 0, &raw mut info, flags) != 0 {
            return None;
        }
        info.si_pid()
    };
    (pid != 0).then(|| Pid::from_raw(pid))
}

/// Waits for a child that has ended. None if it is no child or has not ended.
pub(super) fn reap(pid: Pid) -> Option<Reaped> {
    let mut status = 0;
    // SAFETY: all zeroes are a valid rusage.
    #[expect(unsafe_code, reason = "nix has no wait4")]
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to variables that live through the call.
    #[expect(unsafe_code, reason = "nix has no wait4")]
    let reaped = unsafe { libc::wait4(pid.as_raw(), &raw mut status, libc::WNOHANG, &raw mut usage) };
    if reaped != pid.as_raw() {
        return None;
    }
    let exit = if libc::WIFSIGNALED(status) {
        Exit::Signal(libc::WTERMSIG(status))
    } else {
        Exit::Code(libc::WEXITSTATUS(status))
    };
    let kilobytes = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    Some(Reaped { exit, peak_memory_bytes: kilobytes * 1024 })
}

/// Whether two processes have one and the same memory. Where the kernel doesn't tell, they have not.
pub(super) fn have_same_memory(one: Pid, other: Pid) -> bool {
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: kcmp only compares; a number that names no process gives an error.
    #[expect(unsafe_code, reason = "nix has no kcmp")]
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one.as_raw(), other.as_raw(), KCMP_VM, 0, 0) };
    order == 0
}

/// How many processes the kernel has killed for want of memory since the machine started.
pub(super) fn out_of_memory_kills() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// How many bytes of a local socket its other end hasn't read. Where the kernel doesn't tell, none.
pub(super) fn unread_bytes(socket: &impl AsRawFd) -> i32 {
    let mut bytes = 0;
    // SAFETY: the pointer is to an integer that lives through the call, and TIOCOUTQ writes nothing else.
    #[expect(unsafe_code, reason = "nix has no such ioctl")]
    unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes);
    }
    bytes
}

/// Takes descriptor 0, which a process was started with, and leaves `/dev/null` in its place.
///
/// # Errors
///
/// Those of `fcntl(2)` and `open(2)`.
pub(super) fn take_descriptor_0() -> io::Result<OwnedFd> {
    let stdin = io::stdin();
    let taken = fcntl(&stdin, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: F_DUPFD_CLOEXEC has just made this descriptor; nobody else knows it.
    #[expect(unsafe_code, reason = "fcntl returns a bare number")]
    let taken = unsafe { OwnedFd::from_raw_fd(taken) };
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    duplicate_to(&null, 0)?;
    // Pipes of jobs must not get the numbers that stdout and stderr have in them.
    for standard in 1..=2 {
        // SAFETY: F_GETFD only asks whether the number is open.
        #[expect(unsafe_code, reason = "the question is about a bare number")]
        let closed = unsafe { libc::fcntl(standard, libc::F_GETFD) } < 0;
        if closed {
            duplicate_to(&null, standard)?;
        }
    }
    Ok(taken)
}

/// Makes `number` a descriptor of the same file, open on exec, whatever it was before.
///
/// # Errors
///
/// Those of `dup2(2)`.
pub(super) fn duplicate_to(file: &OwnedFd, number: RawFd) -> io::Result<()> {
    // SAFETY: only called for the standard streams, which nobody owns, and in a fork's child, where no owner runs any more.
    #[expect(unsafe_code, reason = "the target is a bare number")]
    let result = unsafe { libc::dup2(file.as_raw_fd(), number) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Closes all descriptors from `first` on. Only for a fork's child that never returns to the owners of those descriptors.
pub(super) fn close_from(first: RawFd) {
    // SAFETY: the numbers are unsigned, and the caller's process has no owner of them that will ever run.
    #[expect(unsafe_code, reason = "nix has no close_range, and glibc before 2.34 neither")]
    let result = unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, libc::c_uint::MAX, 0) };
    if result == 0 {
        return;
    }
    // A kernel before 5.9.
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let numbers: Vec<RawFd> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|&number| number >= first) {
        // SAFETY: as above; a number that is closed already only gives an error.
        #[expect(unsafe_code, reason = "the descriptors are bare numbers")]
        unsafe {
            libc::close(number);
        }
    }
}

/// Gives the process the name that `ps` and the kernel's log show, where it would else be called after a descriptor's number.
pub(super) fn name_process(name: &CStr) {
    // It can't fail, and would disturb nothing.
    let _ = set_name(name);
}

/// Makes the calling process a job's: it dies with the host, leads a group, adopts its orphans, and takes signals as any
/// fresh program does. False if the host is dead already.
pub(super) fn become_job(host: Pid, files: u64) -> bool {
    // None of these can fail for a process's own sake; if one did, the job would still be run rightly.
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    let _ = set_pdeathsig(Signal::SIGKILL);
    if getppid() != host {
        return false;
    }
    let _ = set_child_subreaper(true);
    name_process(c"lrts-job");
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    if let Ok((_, hard)) = nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, files.min(hard), hard);
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGCHLD] {
        let _ = set_action(signal, SigHandler::SigDfl);
    }
    true
}

/// Sets what a signal does.
///
/// # Errors
///
/// Those of `sigaction(2)`.
pub(super) fn set_action(signal: Signal, handler: SigHandler) -> io::Result<SigAction> {
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handlers given here do nothing or what is allowed in handlers.
    #[expect(unsafe_code, reason = "a handler could do anything")]
    let before = unsafe { sigaction(signal, &action) }?;
    Ok(before)
}

/// The event that [`watch_children`] made.
static CHILD_EVENT: AtomicI32 = AtomicI32::new(-1);

/// An event that counts up whenever a child has ended. Called once.
///
/// A handler rather than a signalfd: where the program has other threads, one of them may be the one that takes the signal.
///
/// # Errors
///
/// Those of `eventfd(2)` and `sigaction(2)`.
pub(super) fn watch_children() -> io::Result<EventFd> {
    extern "C" fn ended(_: libc::c_int) {
        let count = 1u64;
        // SAFETY: write is allowed in handlers, and a number that names no event only gives an error; errno is the
        // interrupted code's.
        #[expect(unsafe_code, reason = "a signal handler")]
        unsafe {
            let errno = *libc::__errno_location();
            libc::write(CHILD_EVENT.load(Ordering::Relaxed), (&raw const count).cast(), size_of::<u64>());
            *libc::__errno_location() = errno;
        }
    }
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    CHILD_EVENT.store(event.as_raw_fd(), Ordering::Relaxed);
    set_action(Signal::SIGCHLD, SigHandler::Handler(ended))?;
    Ok(event)
}

/// Lets SIGTERM do nothing, unless the program has its own way with it: a job that looks after its cancellation itself is
/// told by flag and hook.
pub(crate) fn survive_terminate() {
    extern "C" fn nothing(_: libc::c_int) {}
    let before = set_action(Signal::SIGTERM, SigHandler::Handler(nothing));
    if let Ok(before) = before
        && !matches!(before.handler(), SigHandler::SigDfl)
    {
        // SAFETY: this handler was in place a moment ago.
        #[expect(unsafe_code, reason = "a handler could do anything")]
        let _ = unsafe { sigaction(Signal::SIGTERM, &before) };
    }
}

/// Ends the process at once: no destructor and no exit handler of the program runs.
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit only ends the process.
    #[expect(unsafe_code, reason = "std's exit runs handlers")]
    unsafe {
        libc::_exit(code)
    }
}

/// In which of the two processes a fork has returned.
pub(super) enum Forked {
    /// The new one.
    Child,
    /// The old one.
    Parent(Pid),
}

/// Forks.
///
/// # Errors
///
/// Those of `fork(2)`.
pub(super) fn fork() -> io::Result<Forked> {
    // SAFETY: the caller has seen that this process has no other thread, so no lock is held by one.
    #[expect(unsafe_code, reason = "a fork beside other threads would be unsound")]
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(Pid::from_raw(pid))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_counted() {
        let before = threads();
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || receiver.recv());
        assert_eq!(threads(), before + 1);
        drop(sender);
        assert!(thread.join().unwrap().is_err());
    }
}
