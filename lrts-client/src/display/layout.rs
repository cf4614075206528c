//! How the display reads: lines of text for a given number of columns.
//!
//! ```text
//! lrts   Waiting for results   00:07
//! jobs   1,200 queued   8 running   43 done   0 failed   ETA 02:10
//! Doing work  58%|███████████▋        | 7/12 rows [00:04<00:03, 1.61 rows/s]
//! Reading       ⠹ 1,234 rows [00:04, 310 rows/s] part 3
//! and 37 more
//! ```

use std::time::Duration;

use lrts_core::protocol::application::Totals;
use lrts_core::protocol::progress::Color;

use super::sink::{Bar, LogLevel};
use super::state::{Print, Snapshot};
use super::text::{clock, cut, fit, grouped, speed, width};

/// Widest bar, so that it stays easy to read on a wide terminal.
const BAR_COLUMNS: usize = 40;
/// Narrowest bar worth its columns.
const BAR_COLUMNS_LEAST: usize = 8;

/// A line of text, in pieces of one style each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Line(Vec<(&'static str, String)>);

/// Parameters of the control sequence that selects a style.
mod style {
    pub(super) const PLAIN: &str = "";
    pub(super) const BOLD: &str = "1";
    pub(super) const DIM: &str = "2";
    pub(super) const RED: &str = "31";
    pub(super) const GREEN: &str = "32";
    pub(super) const YELLOW: &str = "33";
}

impl Line {
    fn of(text: impl Into<String>) -> Self {
        Self::default().with(style::PLAIN, text)
    }

    fn with(mut self, style: &'static str, text: impl Into<String>) -> Self {
        self.0.push((style, text.into()));
        self
    }

    fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| width(text)).sum()
    }

    /// The line's start, so that it takes no more than these columns.
    fn cut(self, columns: usize) -> Self {
        if self.width() <= columns {
            return self;
        }
        let mut left = columns;
        let mut kept = Self::default();
        for (style, text) in self.0 {
            let fits = width(&text) < left;
            // The piece that doesn't fit, or leaves no column for an ellipsis, ends the line.
            let piece = if fits { text } else { cut(&format!("{text} "), left) };
            left = left.saturating_sub(width(&piece));
            kept = kept.with(style, piece);
            if !fits {
                break;
            }
        }
        kept
    }

    /// The bare text.
    pub(super) fn plain(&self) -> String {
        self.0.iter().map(|(_, text)| text.as_str()).collect()
    }

    /// The text with the control sequences for its styles.
    pub(super) fn styled(&self) -> String {
        let mut line = String::new();
        for (style, text) in &self.0 {
            if style.is_empty() || text.is_empty() {
                line.push_str(text);
            } else {
                line.push_str("\x1b[");
                line.push_str(style);
                line.push('m');
                line.push_str(text);
                line.push_str("\x1b[0m");
            }
        }
        line
    }
}

/// The live area: status, totals, bars, how many more. At most `rows` lines of at most `columns` columns.
pub(super) fn frame(snapshot: &Snapshot, columns: usize, rows: usize) -> Vec<Line> {
    let mut lines = vec![status(snapshot, columns)];
    lines.extend(snapshot.totals.map(|totals| total(&totals, snapshot.eta, columns)));
    lines.extend(bars(&snapshot.bars, columns));
    if snapshot.more > 0 {
        let more = format!("and {} more", grouped(snapshot.more as u64));
        lines.push(Line::default().with(style::DIM, more).cut(columns));
    }
    lines.truncate(rows);
    lines
}

/// How many lines of a frame are not bars.
pub(super) fn rows_beside_bars(with_totals: bool) -> usize {
    1 + usize::from(with_totals)
}

/// A line that is printed above the live area. It may be longer than the terminal is wide.
pub(super) fn print(print: &Print, columns: usize) -> Line {
    match print {
        Print::Bar(bar) => bars(std::slice::from_ref(bar), columns).pop().unwrap_or_default(),
        Print::Log(level, text) => log(*level, text),
        Print::Skipped(lines) => Line::of(format!("lrts: {} lines left out", grouped(*lines))),
    }
}

/// Everything in one line, for output that is not a terminal.
pub(super) fn summary(snapshot: &Snapshot) -> String {
    let mut parts = Vec::new();
    if !snapshot.stage.is_empty() {
        parts.push(snapshot.stage.clone());
    }
    if let Some(totals) = &snapshot.totals {
        let eta = snapshot.eta.map(|eta| format!(", ETA {}", clock(eta))).unwrap_or_default();
        let counts: Vec<_> =
            counts(totals).map(|(count, name)| format!("{} {name}", grouped(count))).collect();
        parts.push(format!("{}{eta}", counts.join(", ")));
    }
    parts.extend(snapshot.bars.iter().map(brief));
    if snapshot.more > 0 {
        parts.push(format!("and {} more", grouped(snapshot.more as u64)));
    }
    stamped(snapshot.elapsed, &parts.join("; "))
}

/// A printed line for output that is not a terminal.
pub(super) fn print_line(print: &Print, elapsed: Duration) -> String {
    let text = match print {
        Print::Bar(bar) => format!("{} in {}", brief(bar), clock(bar.elapsed)),
        Print::Log(level, text) => log(*level, text).plain(),
        Print::Skipped(lines) => format!("{} lines left out", grouped(*lines)),
    };
    stamped(elapsed, &text)
}

fn stamped(elapsed: Duration, text: &str) -> String {
    format!("lrts {}  {text}", clock(elapsed)).trim_end().to_owned()
}

/// `Doing work 58% (7/12 rows)`.
fn brief(bar: &Bar) -> String {
    let name = name(bar);
    let counts = counted(bar, true);
    let text = match bar.total {
        Some(total) => format!("{name} {}% ({counts})", percent(bar.position, total)),
        None => format!("{name} {counts}"),
    };
    if bar.message.is_empty() { text } else { format!("{text} {}", bar.message) }
}

fn log(level: LogLevel, text: &str) -> Line {
    let style = match level {
        LogLevel::Trace | LogLevel::Debug => style::DIM,
        LogLevel::Info => style::PLAIN,
        LogLevel::Success => style::GREEN,
        LogLevel::Warning => style::YELLOW,
        LogLevel::Error | LogLevel::Critical => style::RED,
    };
    Line::default().with(style, level.as_str()).with(style::PLAIN, format!(": {text}"))
}

fn status(snapshot: &Snapshot, columns: usize) -> Line {
    let elapsed = clock(snapshot.elapsed);
    let line = Line::default().with(style::BOLD, "lrts");
    let gap = if columns < 60 { "  " } else { "   " };
    if snapshot.stage.is_empty() {
        return line.with(style::PLAIN, format!("{gap}{elapsed}")).cut(columns);
    }
    let room = columns.saturating_sub("lrts".len() + 2 * gap.len() + elapsed.len());
    line.with(style::PLAIN, format!("{gap}{}{gap}{elapsed}", cut(&snapshot.stage, room))).cut(columns)
}

fn total(totals: &Totals, eta: Option<Duration>, columns: usize) -> Line {
    let line = |gap: &str, all: bool| {
        let mut line = Line::default().with(style::BOLD, "jobs");
        for (count, name) in counts(totals).filter(|(count, _)| all || *count > 0) {
            let red = name == "failed" && count > 0;
            let style = if red { style::RED } else { style::PLAIN };
            line = line.with(style::PLAIN, gap).with(style, format!("{} {name}", grouped(count)));
        }
        match eta {
            Some(eta) => line.with(style::PLAIN, format!("{gap}ETA {}", clock(eta))),
            None => line,
        }
    };
    let forms = [line("   ", true), line("  ", true), line("  ", false)];
    let fitting = forms.iter().find(|line| line.width() <= columns).cloned();
    fitting.unwrap_or_else(|| line(" ", false).cut(columns))
}

/// Cancelled jobs are named where there are some.
fn counts(totals: &Totals) -> impl Iterator<Item = (u64, &'static str)> {
    let cancelled = (totals.cancelled > 0).then_some((totals.cancelled, "cancelled"));
    let counts = [
        (totals.queued, "queued"),
        (totals.running, "running"),
        (totals.finished, "done"),
        (totals.failed, "failed"),
    ];
    counts.into_iter().chain(cancelled)
}

/// How much a bar tells behind itself, from everything to nothing.
#[derive(Clone, Copy)]
enum Detail {
    Full,
    Times,
    Counts,
}

/// Bars under each other: descriptions and bars of the same width, so that they can be compared.
fn bars(bars: &[Bar], columns: usize) -> Vec<Line> {
    let widest = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
    let names = widest(&mut bars.iter().map(|bar| width(&name(bar)))).min((columns * 2 / 5).max(8));
    for detail in [Detail::Full, Detail::Times, Detail::Counts] {
        let numbers = widest(&mut bars.iter().map(|bar| width(&numbers(bar, detail))));
        let Some(room) = columns.checked_sub(names + " 100%||".len() + numbers) else { continue };
        if room >= BAR_COLUMNS_LEAST {
            let message = matches!(detail, Detail::Full)
                && bars.iter().any(|bar| bar.total.is_some() && !bar.message.is_empty());
            let bar_columns = if message { (room / 2).max(BAR_COLUMNS_LEAST) } else { room }.min(BAR_COLUMNS);
            return bars.iter().map(|bar| wide(bar, names, bar_columns, detail, columns)).collect();
        }
    }
    bars.iter().map(|bar| narrow(bar, columns)).collect()
}

fn wide(bar: &Bar, names: usize, bar_columns: usize, detail: Detail, columns: usize) -> Line {
    let name = fit(&name(bar), names);
    let numbers = numbers(bar, detail);
    let line = match bar.total {
        Some(total) => Line::of(format!("{name} {:>3}%|", percent(bar.position, total)))
            .with(color(bar.color), blocks(bar.position, total, bar_columns))
            .with(style::PLAIN, format!("|{numbers}")),
        None => {
            Line::of(format!("{name}    ")).with(color(bar.color), spinner(bar)).with(style::PLAIN, numbers)
        }
    };
    let room = columns.saturating_sub(line.width() + 1);
    if matches!(detail, Detail::Full) && room >= 3 && !bar.message.is_empty() {
        return line.with(style::PLAIN, format!(" {}", cut(&bar.message, room)));
    }
    line
}

/// `Doing work 58%`, where there is no room for a bar.
fn narrow(bar: &Bar, columns: usize) -> Line {
    let number = match bar.total {
        Some(total) => format!(" {:>3}%", percent(bar.position, total)),
        None => format!(" {}", grouped(bar.position)),
    };
    let room = columns.saturating_sub(width(&number));
    Line::of(cut(&name(bar), room)).with(color(bar.color), number).cut(columns)
}

fn name(bar: &Bar) -> String {
    if bar.description.trim().is_empty() {
        format!("job {}", bar.id.attempt.job.sequence)
    } else {
        bar.description.clone()
    }
}

/// ` 7/12 rows [00:04<00:03, 1.61 rows/s]`, or less of it.
fn numbers(bar: &Bar, detail: Detail) -> String {
    let elapsed = clock(bar.elapsed);
    let times = match (bar.total, bar.closed) {
        (Some(_), false) => format!("{elapsed}<{}", bar.eta.map_or_else(|| "?".to_owned(), clock)),
        _ => elapsed,
    };
    match detail {
        Detail::Full => {
            let rate = bar.rate.map(|rate| format!(", {}", speed(rate, &bar.unit))).unwrap_or_default();
            format!(" {} [{times}{rate}]", counted(bar, true))
        }
        Detail::Times => format!(" {} [{times}]", counted(bar, false)),
        Detail::Counts => format!(" {}", counted(bar, false)),
    }
}

fn counted(bar: &Bar, with_unit: bool) -> String {
    let mut text = grouped(bar.position);
    if let Some(total) = bar.total {
        text = format!("{text}/{}", grouped(total));
    }
    if with_unit && !bar.unit.is_empty() {
        text = format!("{text} {}", bar.unit);
    }
    text
}

/// Rounded down, so that only what is complete shows 100%.
fn percent(position: u64, total: u64) -> u64 {
    u64::try_from(u128::from(position.min(total)) * 100 / u128::from(total.max(1)))
        .map_or(100, |percent| if total == 0 { 100 } else { percent })
}

fn blocks(position: u64, total: u64, columns: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = match total {
        0 => columns * 8,
        _ => usize::try_from(u128::from(position.min(total)) * (columns as u128 * 8) / u128::from(total))
            .unwrap_or(columns * 8),
    };
    fit(&format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8]), columns)
}

/// Turns with every update; a closed bar's stands still as a check mark.
fn spinner(bar: &Bar) -> &'static str {
    const TURNS: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
    if bar.closed { "✓" } else { TURNS[usize::try_from(bar.updates % 10).unwrap_or(0)] }
}

fn color(color: Color) -> &'static str {
    #[expect(clippy::wildcard_enum_match_arm, reason = "a colour of a newer version shows as the default")]
    match color {
        Color::Red => style::RED,
        Color::Green => style::GREEN,
        Color::Yellow => style::YELLOW,
        Color::Blue => "34",
        Color::Magenta => "35",
        Color::Cyan => "36",
        Color::White => "37",
        _ => style::PLAIN,
    }
}

#[cfg(test)]
mod tests {
    use lrts_core::ids::{AttemptId, BarId, SessionId};

    use super::*;

    fn bar(job: u64, description: &str, position: u64, total: Option<u64>) -> Bar {
        Bar {
            id: BarId { attempt: AttemptId { job: SessionId(1).job(job), attempt: 1 }, index: 0 },
            description: description.into(),
            message: String::new(),
            unit: "rows".into(),
            color: Color::Green,
            leave: true,
            position,
            total,
            closed: false,
            elapsed: Duration::from_secs(4),
            rate: Some(1.613),
            eta: total.map(|_| Duration::from_secs(3)),
            updates: 2,
        }
    }

    fn snapshot() -> Snapshot {
        let closed = Bar { closed: true, rate: Some(3.0), eta: None, ..bar(2, "漢字 🚀", 12, Some(12)) };
        let counting = Bar { message: "part 3 of the archive".into(), ..bar(3, "Reading", 1_234, None) };
        Snapshot {
            stage: "Waiting for results".into(),
            elapsed: Duration::from_secs(7),
            totals: Some(Totals { queued: 1_200, running: 8, finished: 43, ..Totals::default() }),
            eta: Some(Duration::from_secs(130)),
            bars: vec![bar(1, "Doing work", 7, Some(12)), closed, counting],
            more: 37,
        }
    }

    #[track_caller]
    fn assert_frame(columns: usize, expected: &[&str]) {
        let lines: Vec<String> = frame(&snapshot(), columns, 20).iter().map(Line::plain).collect();
        assert_eq!(lines, expected, "at {columns} columns:\n{}", lines.join("\n"));
        assert!(lines.iter().all(|line| width(line) <= columns), "{lines:?}");
    }

    #[test]
    fn frame_at_several_widths() {
        assert_frame(
            119,
            &[
                "lrts   Waiting for results   00:07",
                "jobs   1,200 queued   8 running   43 done   0 failed   ETA 02:10",
                "Doing work  58%|███████████████████████▎                | 7/12 rows [00:04<00:03, 1.61 rows/s]",
                "漢字 🚀    100%|████████████████████████████████████████| 12/12 rows [00:04, 3.00 rows/s]",
                "Reading       ⠹ 1,234 rows [00:04, 1.61 rows/s] part 3 of the archive",
                "and 37 more",
            ],
        );
        assert_frame(
            79,
            &[
                "lrts   Waiting for results   00:07",
                "jobs   1,200 queued   8 running   43 done   0 failed   ETA 02:10",
                "Doing work  58%|██████████████▌          | 7/12 rows [00:04<00:03, 1.61 rows/s]",
                "漢字 🚀    100%|█████████████████████████| 12/12 rows [00:04, 3.00 rows/s]",
                "Reading       ⠹ 1,234 rows [00:04, 1.61 rows/s] part 3 of the archive",
                "and 37 more",
            ],
        );
        assert_frame(
            49,
            &[
                "lrts  Waiting for results  00:07",
                "jobs  1,200 queued  8 running  43 done  ETA 02:10",
                "Doing work  58%|███████▌     | 7/12 [00:04<00:03]",
                "漢字 🚀    100%|█████████████| 12/12 [00:04]",
                "Reading       ⠹ 1,234 [00:04]",
                "and 37 more",
            ],
        );
        assert_frame(
            39,
            &[
                "lrts  Waiting for results  00:07",
                "jobs 1,200 queued 8 running 43 done ET…",
                "Doing work  58%|█████████▎      | 7/12",
                "漢字 🚀    100%|████████████████| 12/12",
                "Reading       ⠹ 1,234",
                "and 37 more",
            ],
        );
        assert_frame(
            20,
            &[
                "lrts  Waitin…  00:07",
                "jobs 1,200 queued 8…",
                "Doing work  58%",
                "漢字 🚀 100%",
                "Reading 1,234",
                "and 37 more",
            ],
        );
    }

    #[test]
    fn no_width_is_overrun_and_no_line_is_blank() {
        for columns in 1..200 {
            for line in frame(&snapshot(), columns, 20) {
                assert!(line.width() <= columns && line.width() > 0, "{columns}: {line:?}");
            }
        }
        assert_eq!(frame(&snapshot(), 80, 3).len(), 3);
    }

    #[test]
    fn only_what_is_complete_shows_as_complete() {
        assert_eq!(percent(999, 1_000), 99);
        assert_eq!((percent(1_000, 1_000), percent(1_500, 1_000), percent(0, 0)), (100, 100, 100));
        assert_eq!(percent(u64::MAX - 1, u64::MAX), 99);
        assert_eq!(blocks(0, 12, 4), "    ");
        assert_eq!(blocks(7, 12, 4), "██▎ ");
        assert_eq!(blocks(u64::MAX, u64::MAX, 4), "████");
        assert_eq!(blocks(0, 0, 2), "██");
    }

    #[test]
    fn styles_end_where_they_began() {
        let line = &frame(&snapshot(), 49, 20)[2];
        assert!(line.styled().contains("|\x1b[32m█"), "{:?}", line.styled());
        assert!(line.styled().contains("\x1b[0m|"), "{:?}", line.styled());
        let failed = Totals { failed: 2, ..Totals::default() };
        assert!(total(&failed, None, 80).styled().ends_with("\x1b[31m2 failed\x1b[0m"));
        let cancelled = Totals { cancelled: 2, ..failed };
        assert!(total(&cancelled, None, 80).styled().ends_with("\x1b[31m2 failed\x1b[0m   2 cancelled"));
    }

    #[test]
    fn lines_for_files_say_it_all_at_once() {
        let expected = "lrts 00:07  Waiting for results; 1,200 queued, 8 running, 43 done, 0 failed, ETA 02:10; \
                        Doing work 58% (7/12 rows); 漢字 🚀 100% (12/12 rows); \
                        Reading 1,234 rows part 3 of the archive; and 37 more";
        assert_eq!(summary(&snapshot()), expected);
        let left = Print::Bar(bar(1, "", 7, Some(12)));
        assert_eq!(print_line(&left, Duration::from_secs(9)), "lrts 00:09  job 1 58% (7/12 rows) in 00:04");
    }
}
