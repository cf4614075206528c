//! What a running service sees of lrts.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;

use lrts_core::ids::{AttemptId, JobId, SessionId};
use lrts_core::notices::NoticeSocket;
use lrts_core::progress::Region;

use lrts_core::limits::CHECKPOINT_BYTES;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::encoding::{self, DecodeError, EncodeError};
use crate::host::{Checkpoints, ToJob, survive_terminate};
use crate::progress_bar::ProgressBuilder;

/// The job that a service runs as: who it is, whether it is cancelled, its progress bars.
///
/// `Send + Sync`: threads of the service may share it.
pub struct JobContext {
    job: JobId,
    execution: u32,
    region: Region,
    cancellation: Cancellation,
    checkpoints: Checkpoints,
    #[cfg(feature = "tokio")]
    runtime: std::sync::OnceLock<tokio::runtime::Runtime>,
}

impl JobContext {
    /// A context for unit tests of [`Service::run`](crate::Service::run): first attempt of a job of no application, never
    /// cancelled; bars count and are shown to nobody, checkpoints are kept as long as the context.
    ///
    /// # Panics
    ///
    /// If the process has no address space left.
    pub fn detached() -> Self {
        let region = Region::anonymous().expect("a process has a megabyte of address space left");
        Self::new(SessionId(0).job(1), 1, region, None, None)
    }

    /// The context of a job process.
    pub(crate) fn of_process(
        attempt: AttemptId,
        execution: u32,
        region: Region,
        socket: Arc<NoticeSocket>,
        checkpoint: Option<&'static [u8]>,
    ) -> Self {
        Self::new(attempt.job, execution, region, Some(socket), checkpoint)
    }

    fn new(
        job: JobId,
        execution: u32,
        region: Region,
        socket: Option<Arc<NoticeSocket>>,
        checkpoint: Option<&'static [u8]>,
    ) -> Self {
        Self {
            job,
            execution,
            region,
            checkpoints: Checkpoints::new(checkpoint, socket.clone()),
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

    /// Keeps a state that the next attempt goes on from, should this one not come to its end: whatever kills the process, its
    /// worker or its machine. Of several states the last one counts.
    ///
    /// Costs about as much as encoding the state: a loop may call it as often as it likes. Once it returns, the death of this
    /// process can't take the state away any more. The scheduler has it a second later.
    ///
    /// The state is encoded as services are, and may borrow. Long runs of bytes travel best as [`Bytes`](crate::Bytes).
    ///
    /// ```
    /// # use lrts_client::{CheckpointError, JobContext};
    /// # fn run(job: &JobContext, rows: &[f64]) -> Result<Vec<f64>, CheckpointError> {
    /// let (mut next, mut sums) = job.last_checkpoint::<(usize, Vec<f64>)>()?.unwrap_or_default();
    /// while next < rows.len() {
    ///     sums.push(rows[next] + sums.last().unwrap_or(&0.0));
    ///     next += 1;
    ///     job.checkpoint(&(next, &sums))?;
    /// }
    /// # Ok(sums)
    /// # }
    /// # assert_eq!(run(&JobContext::detached(), &[1.0, 2.0]).unwrap(), [1.0, 3.0]);
    /// ```
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] says what is wrong with the state or in the way. What was kept before stays.
    pub fn checkpoint<T: Serialize + ?Sized>(&self, state: &T) -> Result<(), CheckpointError> {
        let bytes = encoding::encode_borrowed(state)?;
        if bytes.len() > CHECKPOINT_BYTES {
            return Err(CheckpointError::TooLarge { bytes: bytes.len() });
        }
        self.checkpoints.keep(&bytes).map_err(CheckpointError::Keep)
    }

    /// The last [`checkpoint`](Self::checkpoint): of this attempt, else of an earlier one. None if there never was any.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Decode`] if it is no `T`.
    pub fn last_checkpoint<T: DeserializeOwned + 'static>(&self) -> Result<Option<T>, CheckpointError> {
        Ok(self.checkpoints.read(encoding::decode).transpose()?)
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

/// Why a state can't be kept, or not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// More than is kept of a job.
    #[error(
        "a checkpoint of {bytes} bytes is too large, {CHECKPOINT_BYTES} are kept: leave out what can be computed again"
    )]
    TooLarge {
        /// What it would take.
        bytes: usize,
    },
    /// Its own `Serialize` implementation refuses it.
    #[error("the checkpoint can't be encoded")]
    Encode(#[from] EncodeError),
    /// It is of another type, or of another version of it.
    #[error("the last checkpoint can't be read: if its type has changed, give new fields a default")]
    Decode(#[from] DecodeError),
    /// The process has no memory or no descriptors left, or its host is gone.
    #[error("the checkpoint can't be kept: the machine is in the way")]
    Keep(#[source] io::Error),
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

    use lrts_core::clock::Moment;

    use super::*;

    fn attached() -> (JobContext, NoticeSocket) {
        let (host, job) = NoticeSocket::pair().unwrap();
        let attempt = AttemptId { job: SessionId(1).job(2), attempt: 7 };
        (JobContext::of_process(attempt, 3, Region::anonymous().unwrap(), Arc::new(job), Some(&[7])), host)
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

    #[test]
    fn checkpoints_follow_each_other_and_the_last_one_counts() {
        let job = JobContext::detached();
        assert_eq!(job.last_checkpoint::<u32>().unwrap(), None);
        let sums = vec![1.5, 2.5];
        job.checkpoint(&(3, &sums)).unwrap();
        assert_eq!(job.last_checkpoint().unwrap(), Some((3, sums)));
        job.checkpoint("text").unwrap();
        assert_eq!(job.last_checkpoint::<String>().unwrap().unwrap(), "text");

        let error = job.last_checkpoint::<u32>().unwrap_err();
        assert!(matches!(error, CheckpointError::Decode(_)), "{error}");
        let error = job.checkpoint(&crate::Bytes::from(vec![0; CHECKPOINT_BYTES])).unwrap_err();
        assert!(error.to_string().starts_with("a checkpoint of 16777221 bytes is too large"), "{error}");
        assert_eq!(job.last_checkpoint::<String>().unwrap().unwrap(), "text");
    }

    #[test]
    fn what_an_earlier_attempt_has_left_counts_until_there_is_a_newer_one() {
        let (context, host) = attached();
        assert_eq!(context.last_checkpoint::<u8>().unwrap(), Some(7));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| context.checkpoint(&8u8).unwrap()));
            }
        });
        assert_eq!(context.last_checkpoint::<u8>().unwrap(), Some(8));
        // Its memory was handed over once.
        host.set_nonblocking(true).unwrap();
        assert_eq!(host.receive().unwrap().unwrap().descriptors.len(), 1);
        assert_eq!(host.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(host);
        context.checkpoint(&9u8).unwrap();
    }

    #[test]
    #[ignore = "a measurement, for a release build"]
    fn time_of_a_checkpoint() {
        const COUNT: u64 = 2_000_000;
        let job = JobContext::detached();
        for bytes in [8, 1_000, 100_000] {
            let (state, count) = (crate::Bytes::from(vec![7; bytes]), COUNT / (bytes as u64));
            let start = Moment::now();
            (0..count).for_each(|number| job.checkpoint(&(number, &state)).unwrap());
            println!("{bytes} bytes: {:.0} ns", start.elapsed().as_nanos() as f64 / count as f64);
        }
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
