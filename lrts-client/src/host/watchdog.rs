//! The watchdog of an exclusive attempt: a thread in the job process that ends it as its lease ends, whoever else is dead.

use std::io;
use std::thread;

use lrts_core::clock::Moment;
use lrts_core::progress::Region;
use nix::sys::signal::SigSet;

use super::tree;

/// Stack of the thread, which does next to nothing.
const STACK_BYTES: usize = 256 * 1024;

/// Starts the watchdog. From then on this process and all below it end once the lease in its region has passed; a lease that is
/// renewed before is heeded. Time in suspend and in SIGSTOP counts: the process then ends as soon as it goes on.
///
/// # Errors
///
/// Those of `pthread_create(3)`.
pub(super) fn start(region: Region) -> io::Result<()> {
    let watch = move || {
        // The program's handlers run on the program's threads.
        let _ = SigSet::all().thread_block();
        loop {
            let until = region.lease();
            if until <= Moment::now() {
                break;
            }
            until.wait();
        }
        region.declare_lease_ended();
        tree::kill_own();
    };
    thread::Builder::new().name("lease".to_owned()).stack_size(STACK_BYTES).spawn(watch)?;
    Ok(())
}
