//! What a running service sees of lrts.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;

use lrts_core::ids::{AttemptId, JobId, SessionId};
use lrts_core::notices::NoticeSocket;
use lrts_core::progress::Region;

use crate::host::{ToJob, survive_terminate};
use crate::progress_bar::ProgressBuilder;

/// The job that a service runs as: who it is, whether it is cancelled, its progress bars.
///
/// `Send + Sync`: threads of the service may share it.
pub struct JobContext {
    job: JobId,
    execution: u32,
    region: Region,
    cancellation: Cancellation,
    #[cfg(feature = "tokio")]
    runtime: std::sync::OnceLock<tokio::runtime::Runtime>,
}

impl JobContext {
    /// A context for unit tests of [`Service::run`](crate::Service::run): first attempt of a job of no application, never
    /// cancelled; bars count and are shown to nobody.
    ///
    /// # Panics
    ///
    /// If the process has no address space left.
    pub fn detached() -> Self {
        let region = Region::anonymous().expect("a process has a megabyte of address space left");
        Self::new(SessionId(0).job(1), 1, region, None)
    }

    /// The context of a job process.
    pub(crate) fn of_process(
        attempt: AttemptId,
        execution: u32,
        region: Region,
        socket: Arc<NoticeSocket>,
    ) -> Self {
        Self::new(attempt.job, execution, region, Some(socket))
    }

    fn new(job: JobId, execution: u32, region: Region, socket: Option<Arc<NoticeSocket>>) -> Self {
        Self {
            job,
            execution,
            region,
            cancellation: Cancellation { socket, declared: Once::new(), hooks: Arc::default() },
            #[cfg(feature = "tokio")]
            runtime: std::sync::OnceLock::new(),
        }
    }

    /// The job.
    pub fn job_id(&self) -> JobId {
        self.job
    }

    /// Which attempt of the job this is, counted from 1; attempts that never began don't count.
    pub fn attempt(&self) -> u32 {
        self.execution
    }

    /// Whether the job is to stop: the user has cancelled it, or its worker is leaving. Costs a few nanoseconds.
    ///
    /// From the first call on SIGTERM no longer ends the process: it has until the end of the grace period to return, with
    /// any result, then it is killed.
    pub fn is_cancelled(&self) -> bool {
        self.declare();
        self.region.is_cancelled()
    }

    /// Calls `hook` on another thread once the job is to stop; at once if it already is. Several hooks are called in the order
    /// in which they were given.
    ///
    /// As with [`is_cancelled`](Self::is_cancelled), the job then has until the end of the grace period to return.
    ///
    /// # Panics
    ///
    /// If the system can't start a thread.
    pub fn on_cancel(&self, hook: impl FnOnce() + Send + 'static) {
        self.declare();
        self.cancellation.add(Box::new(hook));
    }

    /// A new progress bar with this description: set what it is to show, then [`start`](ProgressBuilder::start) it.
    pub fn progress(&self, description: impl Into<String>) -> ProgressBuilder {
        ProgressBuilder::new(self.region.clone(), description.into())
    }

    /// Runs a future to its end, on a tokio runtime that the job's first call makes and further calls share.
    ///
    /// The runtime uses the calling thread only, so tasks that were spawned on it go on only during a `block_on`. A service
    /// that wants more threads makes a runtime of its own.
    ///
    /// # Panics
    ///
    /// If called from within asynchronous code, or if the system has no descriptors left for a runtime.
    #[cfg(feature = "tokio")]
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let runtime = self.runtime.get_or_init(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime needs three descriptors and no thread")
        });
        runtime.block_on(future)
    }

    /// Says that the job looks after its cancellation itself.
    fn declare(&self) {
        self.cancellation.declared.call_once(|| {
            self.region.declare_handles_cancel();
            // Without a host nobody sends SIGTERM on the job's behalf, and it keeps its meaning.
            if self.cancellation.socket.is_some() {
                survive_terminate();
            }
        });
    }
}

impl fmt::Debug for JobContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobContext")
            .field("job", &self.job)
            .field("attempt", &self.execution)
            .finish_non_exhaustive()
    }
}

type Hook = Box<dyn FnOnce() + Send>;

/// The hooks of a job and what calls them.
struct Cancellation {
    /// To the host; none in a detached context.
    socket: Option<Arc<NoticeSocket>>,
    /// Whether SIGTERM has been dealt with.
    declared: Once,
    hooks: Arc<Mutex<Hooks>>,
}

enum Hooks {
    Waiting { hooks: Vec<Hook>, listening: bool },
    Cancelled,
}

impl Default for Hooks {
    fn default() -> Self {
        Self::Waiting { hooks: Vec::new(), listening: false }
    }
}

impl Cancellation {
    fn add(&self, hook: Hook) {
        match &mut *lock(&self.hooks) {
            Hooks::Cancelled => start_thread(move || call(vec![hook])),
            Hooks::Waiting { hooks, listening } => {
                hooks.push(hook);
                if let Some(socket) = &self.socket
                    && !*listening
                {
                    *listening = true;
                    let (socket, hooks) = (Arc::clone(socket), Arc::clone(&self.hooks));
                    start_thread(move || listen(&socket, &hooks));
                }
            }
        }
    }
}

/// Waits for the host's order, then calls the hooks. The order is in the socket already if it came before the first hook.
fn listen(socket: &NoticeSocket, hooks: &Mutex<Hooks>) {
    while let Ok(Some(packet)) = socket.receive() {
        if let Ok(ToJob::Cancel) = packet.decode() {
            let before = std::mem::replace(&mut *lock(hooks), Hooks::Cancelled);
            if let Hooks::Waiting { hooks, .. } = before {
                call(hooks);
            }
        }
    }
}

fn call(hooks: Vec<Hook>) {
    for hook in hooks {
        // Its text is on stderr; the hooks after it are called nonetheless.
        let _ = catch_unwind(AssertUnwindSafe(hook));
    }
}

fn start_thread(body: impl FnOnce() + Send + 'static) {
    thread::Builder::new().name("on_cancel".to_owned()).spawn(body).expect("a thread for the cancel hook");
}

fn lock(hooks: &Mutex<Hooks>) -> MutexGuard<'_, Hooks> {
    hooks.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    fn attached() -> (JobContext, NoticeSocket) {
        let (host, job) = NoticeSocket::pair().unwrap();
        let attempt = AttemptId { job: SessionId(1).job(2), attempt: 7 };
        (JobContext::of_process(attempt, 3, Region::anonymous().unwrap(), Arc::new(job)), host)
    }

    #[test]
    fn contexts_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>(_: &T) {}
        let (context, _host) = attached();
        shared(&context);
        assert_eq!((context.job_id().sequence, context.attempt()), (2, 3));
        assert!(!JobContext::detached().is_cancelled());
    }

    #[test]
    fn all_hooks_are_called_in_order_and_late_ones_at_once() {
        let (context, host) = attached();
        let (sender, called) = channel();
        let hook = |name: &'static str| {
            let sender = sender.clone();
            move || sender.send((name, thread::current().id())).unwrap()
        };
        context.on_cancel(hook("first"));
        context.on_cancel(|| panic!("a hook that panics"));
        context.on_cancel(hook("second"));
        host.send_notice(&ToJob::Cancel, &[]).unwrap();

        let next = || called.recv_timeout(Duration::from_secs(10)).unwrap();
        let (first, thread_of_hook) = next();
        assert_eq!((first, next().0), ("first", "second"));
        assert_ne!(thread_of_hook, thread::current().id());
        context.on_cancel(hook("late"));
        assert_eq!(next().0, "late");
    }

    #[cfg(feature = "tokio")]
    #[test]
    fn futures_run_with_timers_and_sockets() {
        let context = JobContext::detached();
        let listener = context.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0))).unwrap();
        let address = listener.local_addr().unwrap();
        context.block_on(async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let (accepted, connected) =
                tokio::join!(listener.accept(), tokio::net::TcpStream::connect(address));
            assert_eq!(accepted.unwrap().1, connected.unwrap().local_addr().unwrap());
        });
    }
}
