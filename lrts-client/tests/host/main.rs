//! The job host with real processes: this binary starts itself again as a host and plays its worker.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by a panic, and its services print"
)]

mod adoption;
mod checkpoints;
mod inheritance;
mod leases;
mod limits;
mod many;
mod outcomes;
mod services;
mod stopping;
mod worker;

use services::{Act, Await, Beat, Blob, Echo, Grow, Keep, Look, Print, Wait};

/// Makes the host a process with a second thread, as `#[tokio::main]` does.
const THREAD: &str = "HOST_TEST_THREAD";

lrts_client::host_services_before_main!(Echo, Act, Blob, Print, Wait, Await, Beat, Grow, Keep, Look);

const _: () = {
    extern "C" fn start_thread() {
        if std::env::var_os(THREAD).is_some() {
            std::thread::spawn(|| {
                loop {
                    std::thread::park();
                }
            });
        }
    }
    // Sections with a number come before `.init_array` itself.
    #[used]
    #[expect(unsafe_code, reason = "code runs before main only from this section")]
    #[unsafe(link_section = ".init_array.00500")]
    static START_THREAD: extern "C" fn() = start_thread;
};
