//! Plain lines on stderr, where there is no terminal to draw on.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use lrts_core::clock::Moment;

use super::layout::{print_line, summary};
use super::{Shared, State};

/// How often a line is written while something changes.
const INTERVAL: Duration = Duration::from_secs(10);

/// Bars that a line names; the others are only counted.
const BARS_PER_LINE: usize = 3;

/// The lines' thread: until the display is finished.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut writer = Lines::default();
    let mut state = shared.lock();
    loop {
        let now = Moment::now();
        let due = writer.due(&mut state, now);
        let closing = state.closing;
        if due.is_empty() && !closing {
            let deadline = writer.deadline(&state);
            state = shared.wait(state, deadline);
            continue;
        }
        drop(state);
        let mut text = due.join("\n");
        text.push('\n');
        // Whoever closed stderr doesn't want to read it.
        let _ = io::stderr().write_all(text.as_bytes());
        if closing {
            return;
        }
        state = shared.lock();
    }
}

/// When which line is written.
#[derive(Default)]
struct Lines {
    /// When the last summary was written, and what had changed until then.
    last: Option<(Moment, u64)>,
    stage: String,
}

impl Lines {
    /// What is to be written now.
    fn due(&mut self, state: &mut State, now: Moment) -> Vec<String> {
        let prints = state.take_prints();
        let snapshot = state.snapshot(now, BARS_PER_LINE + 1);
        let mut lines: Vec<String> = prints.iter().map(|print| print_line(print, snapshot.elapsed)).collect();
        let new_stage = snapshot.stage != self.stage;
        let interval = self.deadline(state).is_some_and(|deadline| now >= deadline);
        // A display of which nothing is known yet has nothing to say.
        let begins = self.last.is_none() && state.changes > 0;
        if begins || new_stage || interval || (state.closing && state.changes > 0) {
            lines.push(summary(&snapshot));
            self.stage = snapshot.stage;
            self.last = Some((now, state.changes));
        }
        lines
    }

    /// When the next summary is due; none until something changes.
    fn deadline(&self, state: &State) -> Option<Moment> {
        let (at, changes) = self.last?;
        (state.changes != changes).then(|| at + INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use lrts_core::protocol::application::Totals;

    use super::*;
    use crate::display::LogLevel;

    #[test]
    fn lines_come_at_the_start_on_stages_at_intervals_and_at_the_end() {
        let start = Moment::from_nanos(1_000);
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut state = State::new(start, false);
        let mut lines = Lines::default();
        assert!(lines.due(&mut state, at(0)).is_empty(), "there is nothing to say");
        assert_eq!(lines.deadline(&state), None);

        state.set_stage("Loading");
        assert_eq!(lines.due(&mut state, at(1)), ["lrts 00:01  Loading"]);
        state.log(LogLevel::Warning, "no scheduler yet");
        assert_eq!(lines.due(&mut state, at(2)), ["lrts 00:02  warning: no scheduler yet"]);

        state.set_totals(Totals { queued: 1_200, running: 8, failed: 1, ..Totals::default() }, at(3));
        assert_eq!(lines.deadline(&state), Some(at(11)));
        assert!(lines.due(&mut state, at(10)).is_empty());
        let line = "lrts 00:11  Loading; 1,200 queued, 8 running, 0 done, 1 failed";
        assert_eq!(lines.due(&mut state, at(11)), [line]);
        assert!(lines.due(&mut state, at(60)).is_empty(), "nothing has changed");

        state.closing = true;
        assert_eq!(lines.due(&mut state, at(61)), [line.replace("00:11", "01:01")]);
    }

    #[test]
    fn a_warning_before_anything_else_is_all_that_is_written() {
        let start = Moment::from_nanos(1_000);
        let mut state = State::new(start, false);
        let mut lines = Lines::default();
        state.log(LogLevel::Warning, "no scheduler yet");
        let line = "lrts 00:02  warning: no scheduler yet";
        assert_eq!(lines.due(&mut state, start + Duration::from_secs(2)), [line]);
        state.closing = true;
        assert!(
            lines.due(&mut state, start + Duration::from_secs(3)).is_empty(),
            "there is nothing else to say"
        );
    }
}
