//! What the display knows, and what of it is to be seen. No I/O, no clock: times come in.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{AttemptId, BarId, JobId, SessionId};
use lrts_core::protocol::application::Totals;
use lrts_core::protocol::progress::{BarNumbers, BarRecord, BarText, BarUpdate};
use lrts_core::terminal::{Keep, visible};

use super::rate::Rate;
use super::sink::{Bar, Inbox, LogLevel};

/// Memory of a bar's rate: what happened 10 s ago counts 37% of what happens now.
const BAR_RATE_MEMORY: Duration = Duration::from_secs(10);

/// Memory of the rate at which jobs end; longer, since they end in bursts.
const JOB_RATE_MEMORY: Duration = Duration::from_secs(120);

/// Most lines that wait to be printed above the bars while the terminal is stopped; later ones are only counted.
const PRINTS: usize = 10_000;

/// Most time spent on one round of status updates, unless the application says otherwise.
const ITERATION_TIMEOUT: Duration = Duration::from_secs(2);

/// A line that is printed once and then scrolls like any output.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Print {
    /// The final state of a bar that is left.
    Bar(Bar),
    /// A log line.
    Log(LogLevel, String),
    /// So many lines were left out, since the terminal took none for long.
    Skipped(u64),
}

/// What is to be seen now.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Snapshot {
    pub(super) stage: String,
    /// Since the start of the display.
    pub(super) elapsed: Duration,
    /// Unless the scheduler hasn't told any yet.
    pub(super) totals: Option<Totals>,
    /// Until all jobs have ended, if that can be told.
    pub(super) eta: Option<Duration>,
    /// From the oldest to the newest.
    pub(super) bars: Vec<Bar>,
    /// Bars for which there is no row.
    pub(super) more: usize,
}

/// Everything behind the display. Cheap to change: only what is seen is ever formatted.
#[derive(Debug)]
pub(super) struct State {
    started: Moment,
    stage: String,
    totals: Option<Totals>,
    /// How fast jobs end, from the moment when the first one ran.
    jobs_rate: Option<(Moment, Rate)>,
    /// The newest attempt of each job that has bars and has not ended.
    jobs: BTreeMap<JobId, Attempt>,
    /// Bars that are open, by order of appearance.
    open: BTreeMap<u64, BarId>,
    /// Bars that are closed, will be left, and wait for the end of their attempt.
    waiting: BTreeMap<u64, BarId>,
    appeared: u64,
    ended: EndedJobs,
    prints: VecDeque<Print>,
    skipped: u64,
    /// Nothing is shown, so that nothing need be gathered.
    nobody_prints: bool,
    /// Counts changes that a person would want to see.
    pub(super) changes: u64,
    /// What the user's sink has yet to be told, if there is one.
    pub(super) sink: Option<Inbox>,
    pub(super) iteration_timeout: Duration,
    /// The sink is to be told the rest, and then let go.
    pub(super) sink_closing: bool,
    /// The last state is to be shown, and then the display ends.
    pub(super) closing: bool,
}

#[derive(Debug)]
struct Attempt {
    number: u32,
    bars: BTreeMap<u32, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// Order of appearance.
    appeared: u64,
    bar: Bar,
    rate: Rate,
    received: Moment,
}

impl State {
    pub(super) fn new(now: Moment, with_sink: bool) -> Self {
        Self {
            started: now,
            stage: String::new(),
            totals: None,
            jobs_rate: None,
            jobs: BTreeMap::new(),
            open: BTreeMap::new(),
            waiting: BTreeMap::new(),
            appeared: 0,
            ended: EndedJobs::default(),
            prints: VecDeque::new(),
            skipped: 0,
            changes: 0,
            sink: with_sink.then(Inbox::default),
            iteration_timeout: ITERATION_TIMEOUT,
            sink_closing: false,
            closing: false,
            nobody_prints: false,
        }
    }

    pub(super) fn set_stage(&mut self, stage: &str) {
        self.stage = visible(stage, Keep::Nothing);
        self.changes += 1;
        if let Some(sink) = &mut self.sink {
            sink.set_stage(&self.stage);
        }
    }

    pub(super) fn set_totals(&mut self, totals: Totals, now: Moment) {
        if self.totals == Some(totals) {
            return;
        }
        self.totals = Some(totals);
        self.changes += 1;
        if let Some(sink) = &mut self.sink {
            sink.set_totals(totals);
        }
        let done = totals.finished.saturating_add(totals.failed).saturating_add(totals.cancelled);
        if let Some((since, rate)) = &mut self.jobs_rate {
            rate.observe(now.since(*since), done);
        } else if totals.running > 0 || done > 0 {
            self.jobs_rate = Some((now, Rate::new(JOB_RATE_MEMORY, done)));
        }
    }

    /// A log line goes to the sink if there is one, else it is printed. Where nobody prints, it is given back as it may be shown.
    pub(super) fn log(&mut self, level: LogLevel, text: &str) -> Option<String> {
        let text = visible(text, Keep::Nothing);
        match &mut self.sink {
            Some(sink) => sink.log(level, text),
            None if self.nobody_prints => return Some(text),
            None => self.print(Print::Log(level, text)),
        }
        None
    }

    /// Takes what came from the progress server. Bars of older attempts and of ended jobs are ignored: late news.
    pub(super) fn update(&mut self, updates: Vec<BarUpdate>, now: Moment) {
        for BarUpdate { bar: id, text, numbers } in updates {
            let AttemptId { job, attempt } = id.attempt;
            if self.ended.contains(job) {
                continue;
            }
            let known = self.jobs.get(&job).map(|attempt| attempt.number);
            if known.is_some_and(|known| attempt < known) {
                continue;
            }
            if known.is_some_and(|known| attempt > known) {
                self.drop_attempt(job);
            }
            let bars =
                &mut self.jobs.entry(job).or_insert(Attempt { number: attempt, bars: BTreeMap::new() }).bars;
            let entry = bars.entry(id.index).or_insert_with(|| {
                self.appeared += 1;
                self.open.insert(self.appeared, id);
                Entry {
                    appeared: self.appeared,
                    bar: blank(id),
                    rate: Rate::new(BAR_RATE_MEMORY, 0),
                    received: now,
                }
            });
            if let Some(text) = text {
                set_text(&mut entry.bar, text);
            }
            // Closed is final: what comes later than that was under way before it.
            if !entry.bar.closed {
                entry.take(numbers, now);
                if numbers.closed {
                    self.open.remove(&entry.appeared);
                    if entry.bar.leave {
                        self.waiting.insert(entry.appeared, id);
                    }
                }
            }
            if let Some(sink) = &mut self.sink {
                sink.put(entry.seen_at(now), false);
            }
            self.changes += 1;
        }
    }

    /// Takes the truth about an attempt's bars from its result, which ends the job. It wins over everything that came, or will
    /// come, from the progress server.
    pub(super) fn end(&mut self, id: AttemptId, records: Vec<BarRecord>) {
        if !self.ended.insert(id.job) {
            return;
        }
        let mut finals: BTreeMap<BarId, Bar> =
            self.forget_attempt(id.job).into_iter().map(|bar| (bar.id, bar)).collect();
        for BarRecord { index, text, numbers } in records {
            let mut bar = blank(BarId { attempt: id, index });
            set_text(&mut bar, text);
            close(&mut bar, numbers);
            finals.insert(bar.id, bar);
        }
        for (_, bar) in finals {
            // Of another attempt than the one that counts: told to the sink, but not left on the screen.
            if bar.leave && bar.id.attempt == id {
                self.print(Print::Bar(bar.clone()));
            }
            if let Some(sink) = &mut self.sink {
                sink.put(bar, true);
            }
        }
        self.changes += 1;
    }

    /// What is to be printed above the bars, once.
    pub(super) fn take_prints(&mut self) -> VecDeque<Print> {
        let mut prints = mem::take(&mut self.prints);
        let skipped = mem::take(&mut self.skipped);
        if skipped > 0 {
            prints.push_back(Print::Skipped(skipped));
        }
        prints
    }

    /// The status, the totals, and the newest bars that fit into so many rows: open ones first, then closed ones that wait for
    /// their attempt's end.
    pub(super) fn snapshot(&self, now: Moment, rows: usize) -> Snapshot {
        let all = self.open.len() + self.waiting.len();
        // One row says how many more there are.
        let rows = if all > rows { rows.saturating_sub(1) } else { rows };
        let open = self.open.iter().rev().take(rows);
        let waiting = self.waiting.iter().rev().take(rows.saturating_sub(self.open.len()));
        let shown: BTreeMap<u64, BarId> = open.chain(waiting).map(|(&number, &id)| (number, id)).collect();
        Snapshot {
            stage: self.stage.clone(),
            elapsed: now.since(self.started),
            totals: self.totals,
            eta: self.eta(now),
            more: all - shown.len(),
            bars: shown.values().filter_map(|id| self.entry(*id)).map(|entry| entry.seen_at(now)).collect(),
        }
    }

    /// Whether the scheduler has told how many jobs stand where.
    pub(super) fn has_totals(&self) -> bool {
        self.totals.is_some()
    }

    /// The bars that would be left if the display ended now.
    pub(super) fn unfinished(&self, now: Moment) -> Vec<Bar> {
        let shown: BTreeMap<u64, BarId> =
            self.open.iter().chain(&self.waiting).map(|(&number, &id)| (number, id)).collect();
        let entries = shown.values().filter_map(|id| self.entry(*id));
        entries.filter(|entry| entry.bar.leave).map(|entry| entry.seen_at(now)).collect()
    }

    fn eta(&self, now: Moment) -> Option<Duration> {
        let totals = self.totals?;
        let remaining = totals.queued.saturating_add(totals.running);
        let (since, rate) = self.jobs_rate.as_ref()?;
        if remaining == 0 { None } else { rate.time_for(remaining, now.since(*since)) }
    }

    fn entry(&self, id: BarId) -> Option<&Entry> {
        self.jobs.get(&id.attempt.job)?.bars.get(&id.index)
    }

    /// From now on there is nobody who prints.
    pub(super) fn stop_prints(&mut self) {
        self.nobody_prints = true;
        self.prints.clear();
    }

    fn print(&mut self, print: Print) {
        if self.nobody_prints {
            return;
        }
        if self.prints.len() < PRINTS {
            self.prints.push_back(print);
        } else {
            self.skipped += 1;
        }
    }

    /// Makes room for a newer attempt.
    fn drop_attempt(&mut self, job: JobId) {
        for bar in self.forget_attempt(job) {
            if let Some(sink) = &mut self.sink {
                sink.put(bar, true);
            }
        }
    }

    /// Removes the bars of a job and returns them closed, as they stood.
    fn forget_attempt(&mut self, job: JobId) -> Vec<Bar> {
        let Some(attempt) = self.jobs.remove(&job) else { return Vec::new() };
        let mut bars = Vec::with_capacity(attempt.bars.len());
        for (_, Entry { appeared, mut bar, .. }) in attempt.bars {
            self.open.remove(&appeared);
            self.waiting.remove(&appeared);
            let numbers =
                BarNumbers { position: bar.position, total: bar.total, closed: true, elapsed: bar.elapsed };
            close(&mut bar, numbers);
            bars.push(bar);
        }
        bars
    }
}

impl Entry {
    fn take(&mut self, numbers: BarNumbers, now: Moment) {
        self.rate.observe(numbers.elapsed, numbers.position);
        self.received = now;
        self.bar.updates += 1;
        if numbers.closed {
            close(&mut self.bar, numbers);
        } else {
            self.bar.position = numbers.position;
            self.bar.total = numbers.total;
            self.bar.elapsed = numbers.elapsed;
        }
    }

    /// The bar with its times as they are at this moment.
    fn seen_at(&self, now: Moment) -> Bar {
        let mut bar = self.bar.clone();
        if !bar.closed {
            bar.elapsed += now.since(self.received);
            bar.rate = self.rate.per_second(bar.elapsed);
            bar.eta = bar
                .total
                .and_then(|total| self.rate.time_for(total.saturating_sub(bar.position), bar.elapsed));
        }
        bar
    }
}

fn blank(id: BarId) -> Bar {
    Bar {
        id,
        description: String::new(),
        message: String::new(),
        unit: String::new(),
        color: lrts_core::protocol::progress::Color::Default,
        leave: false,
        position: 0,
        total: None,
        closed: false,
        elapsed: Duration::ZERO,
        rate: None,
        eta: None,
        updates: 0,
    }
}

fn set_text(bar: &mut Bar, text: BarText) {
    bar.description = visible(&text.description, Keep::Nothing);
    bar.message = visible(&text.message, Keep::Nothing);
    bar.unit = visible(&text.unit, Keep::Nothing);
    bar.color = text.color;
    bar.leave = text.leave;
}

fn close(bar: &mut Bar, numbers: BarNumbers) {
    bar.position = numbers.position;
    bar.total = numbers.total;
    bar.elapsed = numbers.elapsed;
    bar.closed = true;
    bar.eta = None;
    #[expect(clippy::cast_precision_loss, reason = "a rate is an estimate")]
    let position = bar.position as f64;
    bar.rate = (!bar.elapsed.is_zero()).then(|| position / bar.elapsed.as_secs_f64());
}

/// The jobs that have ended, as ranges of sequences: they end roughly in order, so that millions of them take few ranges.
#[derive(Debug, Default)]
struct EndedJobs {
    /// First and last sequence of each range.
    ranges: BTreeMap<SessionId, BTreeMap<u64, u64>>,
}

impl EndedJobs {
    fn contains(&self, job: JobId) -> bool {
        let before =
            self.ranges.get(&job.session).and_then(|ranges| ranges.range(..=job.sequence).next_back());
        before.is_some_and(|(_, &last)| job.sequence <= last)
    }

    /// Whether it is new.
    fn insert(&mut self, job: JobId) -> bool {
        if self.contains(job) {
            return false;
        }
        let ranges = self.ranges.entry(job.session).or_default();
        let next = job.sequence.checked_add(1);
        let last = next.and_then(|next| ranges.remove(&next)).unwrap_or(job.sequence);
        match ranges.range_mut(..job.sequence).next_back() {
            Some((_, before)) if before.checked_add(1) == Some(job.sequence) => *before = last,
            _ => {
                ranges.insert(job.sequence, last);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use lrts_core::protocol::progress::Color;

    use super::*;

    const START: Moment = Moment::from_nanos(1_000_000);

    fn at(seconds: u64) -> Moment {
        START + Duration::from_secs(seconds)
    }

    fn attempt(job: u64, attempt: u32) -> AttemptId {
        AttemptId { job: SessionId(1).job(job), attempt }
    }

    fn bar(job: u64, number: u32, index: u32) -> BarId {
        BarId { attempt: attempt(job, number), index }
    }

    fn text(description: &str, leave: bool) -> BarText {
        BarText {
            description: description.into(),
            message: String::new(),
            unit: "rows".into(),
            color: Color::Green,
            leave,
        }
    }

    fn numbers(position: u64, seconds: u64) -> BarNumbers {
        BarNumbers { position, total: Some(100), closed: false, elapsed: Duration::from_secs(seconds) }
    }

    fn update(bar: BarId, position: u64, seconds: u64) -> BarUpdate {
        let text = text(&format!("job {} attempt {}", bar.attempt.job.sequence, bar.attempt.attempt), true);
        BarUpdate { bar, text: Some(text), numbers: numbers(position, seconds) }
    }

    fn closed(mut update: BarUpdate) -> BarUpdate {
        update.numbers.closed = true;
        update
    }

    fn record(index: u32, position: u64, leave: bool) -> BarRecord {
        let numbers = BarNumbers { closed: true, ..numbers(position, 4) };
        BarRecord { index, text: text("Doing work", leave), numbers }
    }

    fn seen(state: &State, rows: usize) -> (Vec<(u64, u64)>, usize) {
        let snapshot = state.snapshot(at(0), rows);
        (snapshot.bars.iter().map(|bar| (bar.id.attempt.job.sequence, bar.position)).collect(), snapshot.more)
    }

    fn left(state: &mut State) -> Vec<(u64, u64)> {
        let prints = state.take_prints();
        let bars = prints.into_iter().filter_map(|print| match print {
            Print::Bar(bar) => Some((bar.id.attempt.job.sequence, bar.position)),
            Print::Log(..) | Print::Skipped(_) => None,
        });
        bars.collect()
    }

    #[test]
    fn newest_open_bars_are_seen_and_the_rest_is_counted() {
        let mut state = State::new(START, false);
        state.update((1..=10).map(|job| update(bar(job, 1, 0), job, 1)).collect(), at(1));
        assert_eq!(seen(&state, 10).0.len(), 10);
        assert_eq!(seen(&state, 4), (vec![(8, 8), (9, 9), (10, 10)], 7));
        assert_eq!(seen(&state, 1), (vec![], 10));

        // A closed bar makes room, an update doesn't change the order.
        state.update(vec![closed(update(bar(9, 1, 0), 100, 2)), update(bar(2, 1, 0), 50, 2)], at(2));
        assert_eq!(seen(&state, 4), (vec![(7, 7), (8, 8), (10, 10)], 7));
        assert_eq!(seen(&state, 10).0.len(), 10, "it is still seen where there is room");
    }

    #[test]
    fn newer_attempt_replaces_the_older_one_for_good() {
        let mut state = State::new(START, false);
        state.update(vec![update(bar(1, 1, 0), 70, 1), update(bar(1, 1, 1), 71, 1)], at(1));
        state.update(vec![update(bar(1, 2, 0), 5, 1)], at(2));
        assert_eq!(seen(&state, 10), (vec![(1, 5)], 0));
        state.update(vec![update(bar(1, 1, 0), 80, 1)], at(3));
        assert_eq!(seen(&state, 10), (vec![(1, 5)], 0));
    }

    #[test]
    fn final_truth_wins_over_earlier_and_later_updates() {
        let mut state = State::new(START, false);
        state.update(vec![update(bar(1, 1, 0), 58, 3)], at(3));
        state.end(attempt(1, 1), vec![record(0, 100, true), record(1, 7, false), record(2, 12, true)]);
        assert_eq!(left(&mut state), [(1, 100), (1, 12)], "a bar that was never heard of is left, too");
        state.update(vec![update(bar(1, 1, 0), 60, 4), update(bar(1, 2, 0), 1, 1)], at(4));
        state.end(attempt(1, 1), vec![record(0, 3, true)]);
        assert_eq!(seen(&state, 10), (vec![], 0));
        assert_eq!(left(&mut state), []);
    }

    #[test]
    fn older_attempt_that_wins_leaves_its_own_bars_only() {
        let mut state = State::new(START, false);
        state.update(vec![update(bar(1, 2, 0), 30, 3)], at(3));
        state.end(attempt(1, 1), vec![record(0, 100, true)]);
        assert_eq!(left(&mut state), [(1, 100)]);
        assert_eq!(seen(&state, 10), (vec![], 0));
    }

    #[test]
    fn attempt_without_records_leaves_what_was_last_known() {
        let mut state = State::new(START, false);
        state.update(vec![update(bar(1, 1, 0), 58, 3)], at(3));
        state.end(attempt(1, 1), Vec::new());
        assert_eq!(left(&mut state), [(1, 58)]);
    }

    #[test]
    fn closed_bar_stays_closed_and_takes_its_average_rate() {
        let mut state = State::new(START, false);
        state.update(vec![closed(update(bar(1, 1, 0), 100, 4)), update(bar(1, 1, 0), 60, 3)], at(4));
        let shown = state.snapshot(at(60), 5).bars.remove(0);
        assert_eq!((shown.position, shown.elapsed.as_secs(), shown.rate), (100, 4, Some(25.0)));
    }

    #[test]
    fn open_bar_goes_on_in_time_with_rate_and_eta() {
        let mut state = State::new(START, false);
        state.update(vec![update(bar(1, 1, 0), 40, 4)], at(10));
        let shown = state.snapshot(at(12), 5).bars.remove(0);
        assert_eq!((shown.elapsed.as_secs(), shown.rate), (6, Some(10.0)));
        assert_eq!(shown.eta, Some(Duration::from_secs(6)));
    }

    #[test]
    fn eta_of_all_jobs_follows_how_fast_they_end() {
        let mut state = State::new(START, false);
        let totals = |queued, running, finished| Totals { queued, running, finished, ..Totals::default() };
        state.set_totals(totals(100, 0, 0), at(0));
        state.set_totals(totals(92, 8, 0), at(50));
        assert_eq!(state.snapshot(at(51), 5).eta, None);
        state.set_totals(totals(72, 8, 20), at(60));
        assert_eq!(state.snapshot(at(60), 5).eta, Some(Duration::from_secs(40)));
        state.set_totals(totals(0, 0, 100), at(100));
        assert_eq!(state.snapshot(at(101), 5).eta, None);
    }

    #[test]
    fn stopped_terminal_does_not_make_the_queue_grow() {
        let mut state = State::new(START, false);
        for job in 1..=10_500 {
            state.end(attempt(job, 1), vec![record(0, 100, true)]);
        }
        let prints = state.take_prints();
        assert_eq!(prints.len(), 10_001);
        assert_eq!(prints.back(), Some(&Print::Skipped(500)));
        assert!(state.take_prints().is_empty());
    }

    #[test]
    fn where_nobody_prints_a_log_line_is_given_back() {
        let mut state = State::new(START, false);
        assert_eq!(state.log(LogLevel::Warning, "seen"), None);
        state.stop_prints();
        assert_eq!(state.log(LogLevel::Warning, "un\x1b[2Jseen"), Some("unseen".to_owned()));
        let mut told = State::new(START, true);
        told.stop_prints();
        assert_eq!(told.log(LogLevel::Warning, "to the sink"), None);
    }

    #[test]
    fn texts_of_jobs_lose_their_control_characters() {
        let mut state = State::new(START, false);
        let evil = BarText { description: "a\x1b[2J\nb".into(), ..BarText::default() };
        state.update(vec![BarUpdate { bar: bar(1, 1, 0), text: Some(evil), numbers: numbers(1, 1) }], at(1));
        assert_eq!(state.snapshot(at(1), 5).bars[0].description, "a b");
        state.set_stage("one\rtwo\x07");
        assert_eq!(state.snapshot(at(1), 5).stage, "onetwo");
    }

    #[test]
    fn ended_jobs_are_kept_as_ranges() {
        let mut ended = EndedJobs::default();
        for sequence in [5, 1, 3, 2, 4, 9, 7, 8, u64::MAX] {
            assert!(ended.insert(SessionId(1).job(sequence)));
            assert!(!ended.insert(SessionId(1).job(sequence)));
        }
        let ranges: Vec<_> = ended.ranges[&SessionId(1)].iter().map(|(&from, &to)| (from, to)).collect();
        assert_eq!(ranges, [(1, 5), (7, 9), (u64::MAX, u64::MAX)]);
        assert!(!ended.contains(SessionId(1).job(6)) && !ended.contains(SessionId(2).job(5)));
    }

    #[test]
    fn ten_thousand_open_bars_cost_little_to_look_at() {
        let mut state = State::new(START, false);
        state.update((1..=10_000).map(|job| update(bar(job, 1, 0), job, 1)).collect(), at(1));
        let before = Moment::now();
        for _ in 0..100 {
            assert_eq!(state.snapshot(at(2), 40).more, 9_961);
        }
        assert!(before.elapsed() < Duration::from_secs(1), "{:?} for 100 snapshots", before.elapsed());
    }
}
