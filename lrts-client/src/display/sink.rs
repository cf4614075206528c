//! The user's own renderer or logger.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::BarId;
use lrts_core::protocol::application::Totals;
use lrts_core::protocol::progress::Color;

use super::Shared;

/// How much a log line matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum LogLevel {
    /// Every step.
    Trace,
    /// Why something was done.
    Debug,
    /// What happens.
    Info,
    /// Something worked out.
    Success,
    /// Abnormal, but handled.
    Warning,
    /// Something failed.
    Error,
    /// Nothing goes on.
    Critical,
}

impl LogLevel {
    /// `trace`, `debug`, `info`, `success`, `warning`, `error` or `critical`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Success => "success",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

/// One progress counter of a job, as it stands.
///
/// Control characters and escape sequences have been taken out of its texts.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct Bar {
    /// Which bar of which attempt of which job.
    pub id: BarId,
    /// What the job calls it.
    pub description: String,
    /// The job's latest remark; empty if none.
    pub message: String,
    /// What is counted, for example `rows`; may be empty.
    pub unit: String,
    /// Its colour.
    pub color: Color,
    /// Whether it should stay on the screen after the job's end.
    pub leave: bool,
    /// How far it is. May exceed the total: it is what the job counted.
    pub position: u64,
    /// How far it will go, if that is known.
    pub total: Option<u64>,
    /// Whether the job has closed it, or has ended.
    pub closed: bool,
    /// Since the job started it; until it was closed, if it is.
    pub elapsed: Duration,
    /// Units per second: while it is open a smoothed recent rate (an observation's weight falls by a factor of e every 10 s),
    /// once closed the average of its whole run. None before it can be told.
    pub rate: Option<f64>,
    /// How long the rest takes at that rate, if it is open and that can be told.
    pub eta: Option<Duration>,
    /// How many updates have come, which turns the spinner of a bar without a total.
    pub(super) updates: u64,
}

/// A user's own renderer or logger, given to `ApplicationInformation::progress_sink`.
///
/// It gets everything that the display shows, whichever [`ProgressDisplay`](super::ProgressDisplay) is chosen beside it; with
/// `Hidden` it is the only one. Log lines of the library go to the sink instead of to the screen.
///
/// All methods do nothing unless they are overridden. They are called on one thread of their own, never two at a time, so they
/// may block, lock and print; nothing else waits for them. What comes too fast is merged: a counter that changed a hundred
/// times since the last round is told once, as it stands. Each counter is told by one `counter_created`, any number of
/// `counter_updated` and, when its attempt has ended or a newer attempt replaces it, one `counter_closed` with its true final
/// numbers. A round of counters ends after `progress_iteration_timeout`; the rest comes in the next one. What was not told yet
/// is told before `stop` returns. A sink that panics is not called again.
///
/// ```
/// use lrts_client::{Bar, LogLevel, ProgressSink};
///
/// /// Prints a line for each counter that is done.
/// struct Done;
///
/// impl ProgressSink for Done {
///     fn counter_closed(&mut self, bar: &Bar) {
///         println!("{}: {} {} in {:?}", bar.description, bar.position, bar.unit, bar.elapsed);
///     }
///
///     fn log(&mut self, level: LogLevel, text: &str) {
///         if level >= LogLevel::Warning {
///             println!("{}: {text}", level.as_str());
///         }
///     }
/// }
/// ```
pub trait ProgressSink: Send + 'static {
    /// A log line of the library, without a line end.
    fn log(&mut self, level: LogLevel, text: &str) {
        let _ = (level, text);
    }

    /// The program has set the text of the status line.
    fn set_stage(&mut self, stage: &str) {
        let _ = stage;
    }

    /// How many jobs stand where, when that changed.
    fn totals(&mut self, totals: &Totals) {
        let _ = totals;
    }

    /// A counter that was not there before.
    fn counter_created(&mut self, bar: &Bar) {
        let _ = bar;
    }

    /// A counter that has changed.
    fn counter_updated(&mut self, bar: &Bar) {
        let _ = bar;
    }

    /// The counter's last call, with its true final numbers.
    fn counter_closed(&mut self, bar: &Bar) {
        let _ = bar;
    }
}

/// Most log lines that wait for a slow sink; the oldest go first.
const LOG_LINES: usize = 10_000;

/// What the sink has not been told yet: the latest of each thing.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    stage: Option<String>,
    totals: Option<Totals>,
    log: VecDeque<(LogLevel, String)>,
    /// Each counter's latest state, and whether that is its last.
    bars: BTreeMap<BarId, (Bar, bool)>,
}

impl Inbox {
    pub(super) fn set_stage(&mut self, stage: &str) {
        self.stage = Some(stage.to_owned());
    }

    pub(super) fn set_totals(&mut self, totals: Totals) {
        self.totals = Some(totals);
    }

    pub(super) fn log(&mut self, level: LogLevel, text: String) {
        if self.log.len() == LOG_LINES {
            self.log.pop_front();
        }
        self.log.push_back((level, text));
    }

    pub(super) fn put(&mut self, bar: Bar, last: bool) {
        self.bars.insert(bar.id, (bar, last));
    }

    fn is_empty(&self) -> bool {
        self.stage.is_none() && self.totals.is_none() && self.log.is_empty() && self.bars.is_empty()
    }

    /// Takes back what a round had no time for, unless something newer has come.
    fn put_back(&mut self, rest: BTreeMap<BarId, (Bar, bool)>) {
        for (id, state) in rest {
            self.bars.entry(id).or_insert(state);
        }
    }
}

/// The sink thread: tells what has changed, round by round, until the display is finished and everything is told.
pub(super) fn run(shared: &Arc<Shared>, mut sink: Box<dyn ProgressSink>) {
    let mut told = Told::default();
    loop {
        let mut state = shared.lock();
        while !state.sink_closing && state.sink.as_ref().is_some_and(Inbox::is_empty) {
            state = shared.wait(state, None);
        }
        let closing = state.sink_closing;
        let most = state.iteration_timeout;
        let Some(inbox) = state.sink.as_mut().map(mem::take) else { return };
        drop(state);

        if closing && inbox.is_empty() {
            return;
        }
        let round = AssertUnwindSafe(|| told.round(sink.as_mut(), inbox, most));
        match catch_unwind(round) {
            Ok(rest) => {
                let mut state = shared.lock();
                if let Some(inbox) = &mut state.sink {
                    inbox.put_back(rest);
                }
            }
            // The panic's message has been printed by the hook. Nothing is gathered for this sink any more.
            Err(_) => {
                shared.lock().sink = None;
                return;
            }
        }
    }
}

/// What the sink knows.
#[derive(Default)]
struct Told {
    /// Counters that were created and not closed.
    open: BTreeSet<BarId>,
    /// The counter that was told last. The next round starts behind it, so that each gets its turn though rounds are cut
    /// short.
    last: Option<BarId>,
}

impl Told {
    /// One round; returns the counters for which there was no time.
    fn round(
        &mut self,
        sink: &mut dyn ProgressSink,
        inbox: Inbox,
        most: Duration,
    ) -> BTreeMap<BarId, (Bar, bool)> {
        let until = Moment::now() + most;
        if let Some(stage) = inbox.stage {
            sink.set_stage(&stage);
        }
        for (level, text) in inbox.log {
            sink.log(level, &text);
        }
        if let Some(totals) = inbox.totals {
            sink.totals(&totals);
        }
        let mut bars = inbox.bars;
        // Those behind the last one that was told come first.
        let mut first = self.last.map(|last| bars.split_off(&last)).unwrap_or_default();
        bars.extend(self.last.and_then(|last| first.remove_entry(&last)));
        while let Some((id, (bar, last))) = first.pop_first().or_else(|| bars.pop_first()) {
            self.last = Some(id);
            if self.open.insert(id) {
                sink.counter_created(&bar);
            } else if !last {
                sink.counter_updated(&bar);
            }
            if last {
                self.open.remove(&id);
                sink.counter_closed(&bar);
            }
            if Moment::now() >= until {
                break;
            }
        }
        bars.append(&mut first);
        bars
    }
}

#[cfg(test)]
mod tests {
    use lrts_core::ids::{AttemptId, SessionId};
    use lrts_core::protocol::progress::{BarNumbers, BarUpdate};

    use super::*;
    use crate::display::state::State;

    #[derive(Default)]
    struct Calls(Vec<String>);

    impl ProgressSink for Calls {
        fn set_stage(&mut self, stage: &str) {
            self.0.push(format!("stage {stage}"));
        }

        fn counter_created(&mut self, bar: &Bar) {
            self.0.push(format!("created {}", bar.id.attempt));
        }

        fn counter_updated(&mut self, bar: &Bar) {
            self.0.push(format!("updated {} to {}", bar.id.attempt, bar.position));
        }

        fn counter_closed(&mut self, bar: &Bar) {
            self.0.push(format!("closed {} at {}", bar.id.attempt, bar.position));
        }
    }

    fn update(job: u64, attempt: u32, position: u64) -> BarUpdate {
        let id = AttemptId { job: SessionId(0).job(job), attempt };
        let numbers = BarNumbers { position, ..BarNumbers::default() };
        BarUpdate { bar: BarId { attempt: id, index: 0 }, text: None, numbers }
    }

    fn round(told: &mut Told, state: &mut State, most: Duration) -> Vec<String> {
        let mut calls = Calls::default();
        let inbox = state.sink.as_mut().map(mem::take).unwrap();
        let rest = told.round(&mut calls, inbox, most);
        state.sink.as_mut().unwrap().put_back(rest);
        calls.0.iter().map(|call| call.replace("0000000000000000-", "")).collect()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn each_counter_is_created_updated_and_closed_once_whatever_was_merged() {
        let (mut state, mut told) = (State::new(Moment::default(), true), Told::default());
        let now = Moment::default();
        state.set_stage("one");
        state.set_stage("two");
        state.update(vec![update(1, 1, 3), update(1, 1, 4), update(2, 1, 5)], now);
        assert_eq!(round(&mut told, &mut state, LONG), ["stage two", "created 1/1", "created 2/1"]);

        state.update(vec![update(1, 2, 1), update(2, 1, 6)], now);
        let calls = round(&mut told, &mut state, LONG);
        assert_eq!(calls, ["closed 1/1 at 4", "created 1/2", "updated 2/1 to 6"]);

        state.end(AttemptId { job: SessionId(0).job(2), attempt: 1 }, Vec::new());
        state.update(vec![update(2, 1, 7)], now);
        assert_eq!(round(&mut told, &mut state, LONG), ["closed 2/1 at 6"]);
        assert!(state.sink.as_ref().unwrap().is_empty());
    }

    #[test]
    fn every_counter_gets_its_turn_though_rounds_are_cut_short() {
        let (mut state, mut told) = (State::new(Moment::default(), true), Told::default());
        let mut calls = Vec::new();
        for position in 1..=3 {
            // All change before each round, and each round has time for one.
            state.update((1..=3).map(|job| update(job, 1, position)).collect(), Moment::default());
            calls.extend(round(&mut told, &mut state, Duration::ZERO));
        }
        assert_eq!(calls, ["created 1/1", "created 2/1", "created 3/1"]);
        calls = round(&mut told, &mut state, LONG);
        assert_eq!(calls, ["updated 1/1 to 3", "updated 2/1 to 3"]);
    }
}
