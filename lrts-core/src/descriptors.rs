//! Descriptors that a process was started with and doesn't know of, and what becomes of them in the programs that it starts.
//!
//! Whatever lrts opens is closed on exec. What was open when the process began is not: a shell's redirection, a socket that a
//! supervisor or a careless library has left open.

use std::fs;
use std::io;
use std::os::fd::RawFd;

use libc::c_uint;

/// The first one behind stdin, stdout and stderr.
const FIRST: RawFd = 3;

/// Keeps programs that this process starts from getting descriptors from 3 on, whoever has left them open.
///
/// # Errors
///
/// Those of reading `/proc`.
pub fn close_on_exec() -> io::Result<()> {
    // SAFETY: descriptors stay as they are in this process.
    #[expect(unsafe_code, reason = "nix has no close_range, and glibc before 2.34 neither")]
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            c_uint::from(FIRST.unsigned_abs()),
            c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if marked == 0 {
        return Ok(());
    }
    // A kernel before 5.11.
    for number in inherited()? {
        // SAFETY: the flag changes nothing in this process.
        #[expect(unsafe_code, reason = "the descriptors are bare numbers")]
        unsafe {
            libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
    Ok(())
}

/// Closes the descriptors from 3 on that this process was started with: those that aren't closed on exec.
///
/// For a process that only now begins with what it was started for, and has no thread that is in the middle of using one: what
/// has opened one before, in the same way, never gets the word again.
///
/// # Errors
///
/// Those of reading `/proc`.
pub fn close_inherited() -> io::Result<()> {
    for number in inherited()? {
        // SAFETY: by the contract above nobody uses the number any more.
        #[expect(unsafe_code, reason = "the descriptors are bare numbers")]
        unsafe {
            libc::close(number);
        }
    }
    Ok(())
}

/// Open descriptors from 3 on that would stay open over an exec.
fn inherited() -> io::Result<Vec<RawFd>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    numbers.retain(|&number| number >= FIRST && stays_open(number));
    Ok(numbers)
}

fn stays_open(number: RawFd) -> bool {
    // SAFETY: F_GETFD only asks; a number that is closed gives -1, in which all flags are set.
    #[expect(unsafe_code, reason = "the question is about a bare number")]
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags & libc::FD_CLOEXEC == 0
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd, IntoRawFd};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    fn is_open(number: RawFd) -> bool {
        fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok()
    }

    #[test]
    fn what_was_left_open_is_closed_and_what_is_ours_stays() {
        let ours = File::open("/dev/null").unwrap();
        let left = File::open("/dev/null").unwrap().into_raw_fd();
        // SAFETY: the number is this test's own.
        #[expect(unsafe_code, reason = "a descriptor that nobody owns is what the test is about")]
        let left = unsafe {
            libc::fcntl(left, libc::F_SETFD, 0);
            left
        };
        assert!(inherited().unwrap().contains(&left) && !inherited().unwrap().contains(&ours.as_raw_fd()));
        close_inherited().unwrap();
        assert!(!is_open(left) && is_open(ours.as_raw_fd()));

        fcntl(&ours, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        close_on_exec().unwrap();
        assert!(is_open(ours.as_raw_fd()) && inherited().unwrap().is_empty());
    }
}
