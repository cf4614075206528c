//! A job process, from its first instruction to its last.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use lrts_core::limits::{FAILURE_MESSAGE_BYTES, INLINE_BODY_BYTES};
use lrts_core::notices::NoticeSocket;
use lrts_core::progress::Region;
use lrts_core::protocol::host::{Output, Payload, StartAttempt};
use lrts_core::status::{Failure, FailureKind, truncate};
use lrts_core::{environment, mode, spool};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::Pid;

use super::cgroup;
use super::kernel::{become_job, close_from, duplicate_to, exit_now, take_descriptor_0};
use super::notices::{Done, FromJob, ToJob};
use super::watchdog;
use crate::context::JobContext;
use crate::service::{RunError, Services, say};

/// How long a job waits before it tries again to write its result to a full disk.
const DISK_RETRY: Duration = Duration::from_secs(1);

/// Most stack of a job's thread in a spawned process, whatever the limit of main threads is.
const STACK_BYTES: u64 = 64 << 20;

/// Number of a forked job's socket.
const SOCKET: i32 = 3;

/// What a job process runs with.
struct Work {
    start: StartAttempt,
    payload: &'static [u8],
    checkpoint: Option<&'static [u8]>,
    region: Region,
    socket: Arc<NoticeSocket>,
}

/// What a forked child takes over from its host.
pub(super) struct Inheritance<'a> {
    pub(super) services: &'a Services,
    pub(super) start: StartAttempt,
    /// Memfds of payload and checkpoint, as far as they have any.
    pub(super) bodies: Vec<OwnedFd>,
    pub(super) arena: BorrowedFd<'a>,
    pub(super) region: u32,
    pub(super) cgroup: Option<PathBuf>,
    pub(super) socket: NoticeSocket,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) host: Pid,
    pub(super) files: u64,
}

/// The life of a forked job process. All descriptors of the host are closed under their owners, which never run here.
///
/// Nothing in the host has drawn random numbers before the fork, so generators that seed themselves at first use differ from
/// job to job.
pub(super) fn run_forked(inherited: Inheritance<'_>) -> ! {
    let Inheritance { services, start, bodies, arena, region, cgroup, socket, stdout, stderr, host, files } =
        inherited;
    if !become_job(host, files) {
        exit_now(1);
    }
    let streams = duplicate_to(&stdout, 1).and_then(|()| duplicate_to(&stderr, 2));
    let entered = enter_cgroup(cgroup.as_deref());
    let region = Region::map(arena, region);
    let bodies = load_bodies(&start, bodies);
    let socket = OwnedFd::from(socket);
    if duplicate_to(&socket, SOCKET).is_err() {
        exit_now(1);
    }
    std::mem::forget(socket);
    close_from(SOCKET + 1);
    // SAFETY: the descriptor was made just now, and this is its one owner.
    #[expect(unsafe_code, reason = "the number was chosen here")]
    let socket = Arc::new(NoticeSocket::from(unsafe { OwnedFd::from_raw_fd(SOCKET) }));
    // Programs that the job starts have no business with it.
    let _ = nix::fcntl::fcntl(&*socket, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC));

    for (name, value) in start.env.iter().filter(|(name, _)| !environment::is_own(name.as_ref())) {
        // SAFETY: the fork's child has this one thread.
        #[expect(unsafe_code, reason = "the environment is shared by all threads")]
        unsafe {
            std::env::set_var(name, value);
        }
    }
    let ready = streams.and(entered).and_then(|()| {
        let (payload, checkpoint) = bodies?;
        Ok(Work { start, payload, checkpoint, region: region?, socket: socket.clone() })
    });
    match ready {
        Ok(work) => run(services, work),
        Err(error) => give_up(&socket, &error),
    }
}

/// The life of a spawned job process: the program has been started anew, with its socket as descriptor 0.
///
/// The service runs on a fresh thread, so that it may make a tokio runtime even if the program is inside one here.
pub(crate) fn run_job(services: Services) -> ! {
    let Ok(socket) = take_descriptor_0().map(NoticeSocket::from) else { exit_now(1) };
    // SAFETY: the program's other threads have only just started to wait for work; std's own access is locked.
    #[expect(unsafe_code, reason = "the environment is shared by all threads")]
    unsafe {
        std::env::remove_var(mode::VARIABLE);
    }
    // The host sends one such notice before any other; without it there is no host.
    let Ok(Some(packet)) = socket.receive() else { exit_now(1) };
    let Ok(ToJob::Start { start, region, host, files, cgroup }) = packet.decode() else { exit_now(1) };
    if !become_job(Pid::from_raw(host), files) {
        exit_now(1);
    }
    let mut descriptors = packet.descriptors.into_iter();
    let Some(arena) = descriptors.next() else { exit_now(1) };
    let socket = Arc::new(socket);
    let entered = enter_cgroup(cgroup.as_deref());
    let bodies = load_bodies(&start, descriptors);
    let region = Region::map(arena.as_fd(), region);
    drop(arena);
    let stack = getrlimit(Resource::RLIMIT_STACK).map_or(STACK_BYTES, |(soft, _)| soft.min(STACK_BYTES));
    let job = Arc::clone(&socket);
    let thread = entered.and(bodies).and_then(|(payload, checkpoint)| {
        let work = Work { start, payload, checkpoint, region: region?, socket: job };
        let stack = usize::try_from(stack).unwrap_or(usize::MAX);
        thread::Builder::new().name("job".to_owned()).stack_size(stack).spawn(move || run(&services, work))
    });
    match thread {
        Ok(thread) => {
            // The job's thread ends the process; it never ends before that.
            let _ = thread.join();
            exit_now(1)
        }
        Err(error) => give_up(&socket, &error),
    }
}

fn enter_cgroup(entrance: Option<&Path>) -> io::Result<()> {
    entrance.map_or(Ok(()), cgroup::enter)
}

/// Payload and checkpoint, for the rest of the process's life.
type Bodies = (&'static [u8], Option<&'static [u8]>);

fn load_bodies(start: &StartAttempt, descriptors: impl IntoIterator<Item = OwnedFd>) -> io::Result<Bodies> {
    let mut descriptors = descriptors.into_iter();
    let payload = load(&start.payload, &mut descriptors)?;
    let checkpoint = start.checkpoint.as_ref().map(|body| load(body, &mut descriptors)).transpose()?;
    Ok((payload, checkpoint))
}

fn load(body: &Payload, descriptors: &mut impl Iterator<Item = OwnedFd>) -> io::Result<&'static [u8]> {
    match body {
        Payload::Inline(bytes) => Ok(bytes.clone().leak()),
        Payload::Descriptor { bytes } => {
            let descriptor = descriptors.next();
            let file = File::from(descriptor.ok_or_else(|| io::Error::other("the payload did not arrive"))?);
            let length = usize::try_from(*bytes).ok().and_then(NonZeroUsize::new);
            let Some(length) = length else { return Ok(&[]) };
            if file.metadata()?.size() < *bytes {
                return Err(io::Error::other("the payload is shorter than announced"));
            }
            // SAFETY: a fresh mapping that is never unmapped; the file is as long, and its writer is done with it.
            #[expect(unsafe_code, reason = "a mapping is memory that others could change")]
            unsafe {
                let address = mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, &file, 0)?;
                Ok(std::slice::from_raw_parts(address.as_ptr().cast(), length.get()))
            }
        }
    }
}

/// Ends a process that can't begin: the machine is in the way.
fn give_up(socket: &NoticeSocket, error: &io::Error) -> ! {
    finish(socket, Done::Lost { reason: format!("the job's process can't begin: {error}") })
}

fn run(services: &Services, work: Work) -> ! {
    let Work { start, payload, checkpoint, region, socket } = work;
    if start.lease_until.is_some()
        && let Err(error) = watchdog::start(region.clone())
    {
        give_up(&socket, &error);
    }
    // Told to stop before it was ready for SIGTERM: the flag is set before the signal is sent, so one of the two is seen.
    if region.is_cancelled() {
        exit_now(0);
    }
    if let Err(error) = std::env::set_current_dir(&start.directory) {
        let reason = format!("can't enter working directory `{}`: {error}", start.directory.display());
        finish(&socket, Done::Lost { reason });
    }
    let process = std::process::id();
    let panicked = report_panics(&socket);
    let context =
        JobContext::of_process(start.attempt, start.execution, region, Arc::clone(&socket), checkpoint);
    let result = catch_unwind(AssertUnwindSafe(|| {
        services.find(&start.service).map(|entry| entry.run(payload, &context))
    }));
    if std::process::id() != process {
        // A copy that the service has made by a fork of its own: how the job ends is the original's to tell.
        flush();
        exit_now(0);
    }
    let done = match result {
        Ok(Some(Ok(output))) => deliver(&socket, &start, output),
        Ok(Some(Err(error))) => failed(FailureKind::Error, error_message(&start.service, &error)),
        Ok(None) => failed(FailureKind::Error, unknown_message(&start.service, services)),
        Err(payload) => {
            let seen = panicked.lock().unwrap_or_else(PoisonError::into_inner).take();
            failed(FailureKind::Panic, seen.unwrap_or_else(|| panic_text(payload.as_ref()).to_owned()))
        }
    };
    finish(&socket, done)
}

/// The last thing that a job process does.
fn finish(socket: &NoticeSocket, done: Done) -> ! {
    flush();
    match socket.send_notice(&FromJob::Done(done), &[]) {
        Ok(()) => exit_now(0),
        Err(_) => exit_now(1),
    }
}

/// Sends what was printed on its way, which ending at once doesn't.
fn flush() {
    // What can't be printed any more is lost with the process in any case.
    let _ = io::stdout().flush();
    let _ = io::stderr().flush();
    // SAFETY: a null pointer means all of C's streams.
    #[expect(unsafe_code, reason = "a C library may have printed too")]
    unsafe {
        libc::fflush(std::ptr::null_mut());
    }
}

/// Puts an output where the host finds it.
fn deliver(socket: &NoticeSocket, start: &StartAttempt, output: Vec<u8>) -> Done {
    if output.len() <= INLINE_BODY_BYTES {
        return Done::Finished(Output::Inline(output));
    }
    // Without a host this process ends.
    let _ = socket.send_notice(&FromJob::Delivering, &[]);
    let mut said = false;
    let written = spool::write(&start.spool_file, &output, |error| {
        if !said {
            let path = start.spool_file.display();
            say(&format!("lrts: the result waits for room on the disk: `{path}`: {error}"));
            said = true;
        }
        thread::sleep(DISK_RETRY);
    });
    match written {
        Ok(()) => Done::Finished(Output::Spool { bytes: output.len() as u64 }),
        Err(error) => Done::Lost {
            reason: format!("can't write the result to `{}`: {error}", start.spool_file.display()),
        },
    }
}

fn failed(kind: FailureKind, mut message: String) -> Done {
    truncate(&mut message, FAILURE_MESSAGE_BYTES);
    Done::Failed(Failure::new(kind, message))
}

fn error_message(service: &str, error: &RunError) -> String {
    match error {
        RunError::Returned(error) => format!("{error:#}"),
        RunError::Payload(error) => {
            format!("service `{service}` can't read what was scheduled: {}", chain(error))
        }
        RunError::Output(error) => format!("service `{service}` can't write its output: {}", chain(error)),
    }
}

fn unknown_message(service: &str, services: &Services) -> String {
    format!(
        "service `{service}` is not in the program's host_services!, which has: {}",
        services.names().join(", ")
    )
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// Has panics of this thread told to the host as they begin; the last one's text and place is kept in what is returned.
fn report_panics(socket: &Arc<NoticeSocket>) -> Arc<Mutex<Option<String>>> {
    let last = Arc::new(Mutex::new(None));
    let (kept, socket) = (Arc::clone(&last), Arc::clone(socket));
    let job = (std::process::id(), thread::current().id());
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        print(info);
        if (std::process::id(), thread::current().id()) == job {
            let mut message = panic_text(info.payload()).to_owned();
            if let Some(place) = info.location() {
                message = format!("{message} at {}:{}", place.file(), place.line());
            }
            truncate(&mut message, FAILURE_MESSAGE_BYTES);
            // The host may have ended, and this process ends with it.
            let _ = socket.send_notice(&FromJob::Panicked { message: message.clone() }, &[]);
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
        }
    }));
    last
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "a panic without text"
    }
}
