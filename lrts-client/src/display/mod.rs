//! What a person sees of the jobs while the program runs.
//!
//! On a terminal that is a live area at the bottom: a status line, a line of totals and a bar per counter, with everything
//! that the program prints scrolling above it. Elsewhere it is plain lines now and then. A program that draws or logs by itself
//! implements [`ProgressSink`].
//!
//! | File | What |
//! |---|---|
//! | `state.rs` | what is known and what of it is to be seen: newest attempt, final truth, which bars fit |
//! | `rate.rs` | smoothed rates and ETA |
//! | `layout.rs`, `text.rs` | lines of text for a number of columns |
//! | `bars.rs` | the thread that draws the live area |
//! | `terminal.rs` | one frame onto the terminal: indicatif composes it, crossterm's commands place it |
//! | `capture.rs` | descriptors 1 and 2 run through the display while it is live |
//! | `signals.rs` | Ctrl-C without an application, SIGTERM and Ctrl-Z leave the terminal clean |
//! | `lines.rs` | plain lines |
//! | `sink.rs` | the user's own renderer |
//!
//! Whoever reports something only changes the shared state under a short lock; threads look at it when they draw.

mod bars;
mod capture;
mod layout;
mod lines;
mod rate;
mod signals;
mod sink;
mod state;
mod terminal;
#[doc(hidden)]
pub mod testing;
mod text;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;
use lrts_core::protocol::application::Totals;
use lrts_core::protocol::progress::{BarRecord, BarUpdate};
use nix::sys::eventfd::{EfdFlags, EventFd};

pub use self::sink::{Bar, LogLevel, ProgressSink};
use self::state::State;
use crate::service;

/// How progress is shown.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum ProgressDisplay {
    /// Bars if stderr is a terminal, lines elsewhere.
    #[default]
    Auto,
    /// A live area at the bottom of the terminal. Lines if stderr is no terminal, or an older `ClientApplication` of this
    /// process has the live area already.
    ///
    /// While it is live, stdout and stderr run through a pipe, so that what the program and its children print appears above
    /// the bars, line by line; colours pass, sequences that move the cursor don't. A stdout that isn't the same terminal is
    /// left alone. SIGINT, SIGTERM and SIGTSTP are handled while it is live, unless the program handles them itself: the
    /// terminal is put in order, then they act as usual (SIGINT as [`ClientApplication`](crate::ClientApplication) says).
    Bars,
    /// A plain line on stderr at the start, on each new stage, every 10 seconds if something has changed, for each left bar
    /// and each log line, and at the end.
    Lines,
    /// Nothing, but for the library's warnings: a plain line on stderr each, unless a sink gets them.
    Hidden,
}

/// The handle by which the application reports what is to be shown. Its methods change the latest state and return at once,
/// except [`finish`](Self::finish).
#[derive(Clone, Debug)]
pub(crate) struct Display {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    threads: Mutex<Threads>,
    /// A fork of the program has this object, but none of the threads.
    process: u32,
}

#[derive(Debug, Default)]
struct Threads {
    sink: Option<JoinHandle<()>>,
    /// Draws bars or writes lines.
    screen: Option<JoinHandle<()>>,
}

/// What the display's threads share with it.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Wakes the bars' thread out of its poll.
    wake: Option<EventFd>,
}

/// The display that has the live area.
static LIVE: Mutex<Weak<Inner>> = Mutex::new(Weak::new());

impl Display {
    /// Starts the threads that the choice needs. Where bars can't be had, lines are written; where no thread can be had,
    /// nothing is shown: progress is never a reason for a program to fail.
    pub(crate) fn start(choice: ProgressDisplay, sink: Option<Box<dyn ProgressSink>>) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(Moment::now(), sink.is_some())),
            changed: Condvar::new(),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).ok(),
        });
        let inner = Arc::new(Inner {
            shared: Arc::clone(&shared),
            threads: Mutex::new(Threads::default()),
            process: std::process::id(),
        });
        let mut threads = lock(&inner.threads);
        if let Some(sink) = sink {
            let shared = Arc::clone(&shared);
            threads.sink = spawn("lrts-sink", move || sink::run(&shared, sink));
        }
        let bars_wanted = match choice {
            ProgressDisplay::Auto | ProgressDisplay::Bars => bars::can_draw(),
            ProgressDisplay::Lines | ProgressDisplay::Hidden => false,
        };
        if bars_wanted {
            threads.screen = start_bars(&inner);
        }
        if threads.screen.is_none() && choice != ProgressDisplay::Hidden {
            let shared = Arc::clone(&shared);
            threads.screen = spawn("lrts-lines", move || lines::run(&shared));
        }
        if threads.screen.is_none() {
            shared.lock().stop_prints();
        }
        drop(threads);
        Self { inner }
    }

    /// Sets the text of the status line.
    pub(crate) fn stage(&self, stage: &str) {
        self.change(|state, _| state.set_stage(stage));
    }

    /// Takes how many jobs stand where.
    pub(crate) fn totals(&self, totals: Totals) {
        self.change(|state, now| state.set_totals(totals, now));
    }

    /// Takes what came from the progress server.
    pub(crate) fn updates(&self, updates: Vec<BarUpdate>) {
        self.change(|state, now| state.update(updates, now));
    }

    /// Takes the final truth about the bars of a job that has ended, from its result: it wins over all updates, earlier and
    /// later ones. A repeat is ignored.
    pub(crate) fn ended(&self, attempt: AttemptId, records: Vec<BarRecord>) {
        self.change(|state, _| state.end(attempt, records));
    }

    /// A log line: to the sink if there is one, else above the bars or among the lines, else as it is on stderr.
    pub(crate) fn log(&self, level: LogLevel, text: &str) {
        let mut unseen = None;
        self.change(|state, _| unseen = state.log(level, text));
        if let Some(text) = unseen {
            service::say(&format!("lrts: {text}"));
        }
    }

    /// Sets the most time that one round of status updates may take before work resumes. It bounds the rounds of a sink,
    /// which runs the user's code; drawing takes no time of the program's.
    pub(crate) fn set_iteration_timeout(&self, most: Duration) {
        self.change(|state, _| state.iteration_timeout = most);
    }

    /// Shows the last state, puts terminal and descriptors back, and joins the threads. Waits for what the sink has yet to be
    /// told. Later calls do nothing. The last handle that is dropped does the same.
    pub(crate) fn finish(&self) {
        self.inner.finish();
    }

    fn change(&self, change: impl FnOnce(&mut State, Moment)) {
        change(&mut self.inner.shared.lock(), Moment::now());
        self.inner.shared.changed.notify_all();
    }
}

impl Inner {
    fn finish(&self) {
        if self.process != std::process::id() {
            return;
        }
        // Half a line that waits in std's buffer belongs above the bars.
        capture::flush_stdout();
        let mut threads = lock(&self.threads);
        // The sink first: what it prints runs through the other thread.
        self.shared.lock().sink_closing = true;
        self.shared.changed.notify_all();
        join(threads.sink.take());
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        self.shared.wake();
        join(threads.screen.take());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits for a change, or until a deadline.
    fn wait<'a>(&self, state: MutexGuard<'a, State>, until: Option<Moment>) -> MutexGuard<'a, State> {
        match until {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                let span = until.since(Moment::now());
                self.changed.wait_timeout(state, span).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Ends a poll of the bars' thread.
    fn wake(&self) {
        if let Some(wake) = &self.wake {
            // Full only if nobody has looked at it for 2^64 wakes.
            let _ = wake.write(1);
        }
    }
}

/// Starts the live area, unless another display of this process has it or the terminal can't be set up.
fn start_bars(inner: &Arc<Inner>) -> Option<JoinHandle<()>> {
    static AT_EXIT: Once = Once::new();
    let mut live = lock(&LIVE);
    if live.upgrade().is_some_and(|other| !other.shared.lock().closing) {
        return None;
    }
    let screen = bars::Screen::open(Arc::clone(&inner.shared)).ok()?;
    let thread = spawn("lrts-bars", move || screen.run())?;
    *live = Arc::downgrade(inner);
    AT_EXIT.call_once(finish_at_exit);
    Some(thread)
}

/// `std::process::exit` drops nothing: without this, what was printed last would be lost in the pipe and the cursor hidden.
#[expect(unsafe_code, reason = "std has no hook for the end of a process")]
fn finish_at_exit() {
    extern "C" fn finish_live() {
        let live = lock(&LIVE).upgrade();
        if let Some(live) = live {
            live.finish();
        }
    }
    // SAFETY: the function has the right signature, lives as long as the program, and doesn't unwind: `finish` has no panic.
    // Without a free place in the list nothing is registered, which only loses this convenience.
    let _ = unsafe { libc::atexit(finish_live) };
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(run).ok()
}

fn join(thread: Option<JoinHandle<()>>) {
    // A sink may hold the last handle of the application; then this is its own thread, which ends by itself.
    if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id()) {
        // A panic in it has been reported by the hook.
        let _ = thread.join();
    }
}

/// A panic elsewhere leaves the state usable: every change is complete in itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
