//! The thread that draws the live area.

use std::env;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use lrts_core::clock::Moment;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::isatty;

use super::Shared;
use super::capture::Capture;
use super::layout::{Line, frame, print, rows_beside_bars};
use super::signals::Handlers;
use super::terminal::Terminal;

/// How often it looks whether something has changed: at most ten frames a second.
const TICK: Duration = Duration::from_millis(100);

/// What the program prints appears sooner, but frames stay at least this far apart.
const PRINT_DELAY: Duration = Duration::from_millis(66);

/// Unless so many lines wait.
const PRINTED_LINES: usize = 2_000;

/// Whether stderr is a terminal on which a cursor can be moved.
pub(super) fn can_draw() -> bool {
    isatty(io::stderr()).unwrap_or(false) && env::var_os("TERM").is_some_and(|term| term != "dumb")
}

/// Everything that the live area needs of the process.
#[derive(Debug)]
pub(super) struct Screen {
    shared: Arc<Shared>,
    terminal: Terminal,
    capture: Capture,
    handlers: Handlers,
    /// The environment asks for no colours (NO_COLOR).
    plain: bool,
    /// Lines that the program has printed and that are not on the screen yet.
    printed: Vec<String>,
}

/// Which frame is drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// What is going on.
    Live,
    /// What remains after the end: the bars that are left.
    Last,
}

impl Screen {
    /// Takes over descriptors and signals.
    ///
    /// # Errors
    ///
    /// A descriptor is missing or can't be replaced.
    pub(super) fn open(shared: Arc<Shared>) -> io::Result<Self> {
        let wake =
            shared.wake.as_ref().ok_or_else(|| io::Error::other("no descriptor to wake the thread"))?;
        let terminal = Terminal::open()?;
        let capture = Capture::start()?;
        let handlers = Handlers::install(wake);
        let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Ok(Self { shared, terminal, capture, handlers, plain, printed: Vec::new() })
    }

    /// Draws until the display is finished, then puts everything back.
    pub(super) fn run(mut self) {
        let mut drawn = Moment::now();
        self.draw(Frame::Live);
        loop {
            let delay = if self.printed.is_empty() { TICK } else { PRINT_DELAY };
            self.wait((drawn + delay).since(Moment::now()));
            if let Some(signal) = self.handlers.take() {
                self.interrupt(signal);
            }
            if self.shared.lock().closing {
                return self.finish();
            }
            let since = drawn.elapsed();
            let print = !self.printed.is_empty() && since >= PRINT_DELAY;
            if print || since >= TICK || self.printed.len() >= PRINTED_LINES {
                self.draw(Frame::Live);
                drawn = Moment::now();
            }
        }
    }

    /// Waits for print-outs, a signal, the end, or until the time has passed; reads the print-outs.
    fn wait(&mut self, most: Duration) {
        let mut sources = Vec::with_capacity(2);
        sources.extend(self.shared.wake.as_ref().map(|wake| PollFd::new(wake.as_fd(), PollFlags::POLLIN)));
        sources.extend(self.capture.source().map(|pipe| PollFd::new(pipe, PollFlags::POLLIN)));
        // Rounded up, else the last fraction of a millisecond would be spent in a loop.
        let millis = u16::try_from(most.as_millis() + 1).unwrap_or(u16::MAX);
        // An error is an interruption, or a lack of memory that the next round may not meet.
        let _ = poll(&mut sources, PollTimeout::from(millis));
        if let Some(wake) = &self.shared.wake {
            // Empty if it was something else.
            let _ = wake.read();
        }
        self.capture.read_lines(&mut self.printed);
    }

    fn draw(&mut self, which: Frame) {
        let size = self.terminal.size();
        // The last column stays free: terminals differ in what they do with the cursor behind it. So does a row, since the
        // live area must not scroll itself away.
        let columns = usize::from(size.columns.saturating_sub(1)).max(1);
        let rows = usize::from(size.rows.saturating_sub(1)).max(1);
        let now = Moment::now();

        let mut state = self.shared.lock();
        let prints = state.take_prints();
        let beside = rows_beside_bars(state.has_totals());
        let mut snapshot = state.snapshot(now, rows.saturating_sub(beside));
        let left = if which == Frame::Last { state.unfinished(now) } else { Vec::new() };
        drop(state);

        let mut above = std::mem::take(&mut self.printed);
        above.extend(prints.iter().map(|line| self.text(&print(line, columns))));
        if which == Frame::Last {
            // Jobs that were not seen to end: their left bars stay as they are.
            above.extend(
                left.into_iter().map(|bar| self.text(&print(&super::state::Print::Bar(bar), columns))),
            );
            snapshot.bars.clear();
            snapshot.more = 0;
        }
        let live: Vec<String> = if self.terminal.in_background() {
            Vec::new()
        } else {
            frame(&snapshot, columns, rows).iter().map(|line| self.text(line)).collect()
        };
        // A terminal that is gone takes nothing any more; the jobs go on.
        let _ = self.terminal.draw(&above, &live, size);
    }

    fn text(&self, line: &Line) -> String {
        if self.plain { line.plain() } else { line.styled() }
    }

    /// Shows the last state with a clean terminal and lets the signal act; goes on if that was to stop.
    fn interrupt(&mut self, signal: Signal) {
        self.capture.flush_partial(&mut self.printed);
        self.terminal.disturbed();
        self.draw(Frame::Live);
        let _ = self.terminal.leave();
        self.handlers.act(signal);
        self.draw(Frame::Live);
    }

    fn finish(mut self) {
        // Everything that was printed before the end is in the pipe by now.
        loop {
            let before = self.printed.len();
            self.capture.read_lines(&mut self.printed);
            if self.printed.len() == before || self.printed.len() >= PRINTED_LINES {
                break;
            }
        }
        self.capture.flush_partial(&mut self.printed);
        self.draw(Frame::Last);
        let _ = self.terminal.leave();
        self.capture.end();
        // The handlers go with the screen.
    }
}
