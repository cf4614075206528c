//! The display as a person sees it: a program on a real pseudo-terminal, its screen read back from a terminal emulator.
//!
//! The program is this test binary again: `scene` drives the display by commands on stdin.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the program under test prints")]

mod terminal;

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use lrts_client::testing::TestDisplay;
use lrts_client::{Bar, LogLevel, ProgressDisplay, ProgressSink};
use lrts_core::ids::{AttemptId, BarId, SessionId};
use lrts_core::protocol::application::Totals;
use lrts_core::protocol::progress::{BarNumbers, BarRecord, BarText, BarUpdate, Color};
use terminal::{Person, row_of};

/// Set in the program under test.
const SCENE: &str = "LRTS_TEST_DISPLAY_SCENE";

/// The program under test; as a test of its own it has nothing to do.
#[test]
fn scene() {
    if std::env::var_os(SCENE).is_none() {
        return;
    }
    let mut display = None;
    for line in io::stdin().lock().lines() {
        let line = line.expect("commands are text");
        let (command, rest) = line.split_once(' ').unwrap_or((&line, ""));
        if command == "quit" {
            return;
        }
        if command == "start" {
            let choice = if rest == "auto" { ProgressDisplay::Auto } else { ProgressDisplay::Bars };
            let sink: Option<Box<dyn ProgressSink>> =
                if rest == "sink" { Some(Box::new(Told)) } else { None };
            display = Some(TestDisplay::start(choice, sink));
            continue;
        }
        play(display.as_ref().expect("it was started"), command, rest);
    }
}

/// Prints what it is told, as a user's logger would.
struct Told;

impl ProgressSink for Told {
    fn log(&mut self, level: LogLevel, text: &str) {
        println!("sink {}: {text}", level.as_str());
    }

    fn counter_created(&mut self, bar: &Bar) {
        println!("sink created {}", bar.description);
    }

    fn counter_closed(&mut self, bar: &Bar) {
        println!("sink closed {} at {}", bar.description, bar.position);
    }
}

fn play(display: &TestDisplay, command: &str, rest: &str) {
    let numbers: Vec<u64> = rest.split(' ').filter_map(|word| word.parse().ok()).collect();
    match command {
        "stage" => display.stage(rest),
        "log" => display.log(LogLevel::Warning, rest),
        "totals" => display.totals(Totals {
            queued: numbers[0],
            running: numbers[1],
            finished: numbers[2],
            failed: numbers[3],
            cancelled: 0,
        }),
        // From one job to another, at a position of 12.
        "bars" => display.updates((numbers[0]..=numbers[1]).map(|job| update(job, numbers[2])).collect()),
        "end" => display.ended(attempt(numbers[0]), vec![record(numbers[0], numbers[1])]),
        "print" => println!("{rest}"),
        "eprint" => eprintln!("{rest}"),
        "part" => print!("{rest}"),
        "shell" => {
            let status = Command::new("sh").args(["-c", rest]).status().expect("there is a shell");
            assert!(status.success());
        }
        // Chained, as signal-hook and tokio do it: their handler calls the one before it.
        "handler" => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime = Box::leak(Box::new(runtime.expect("a runtime starts")));
            let (ready, waits) = std::sync::mpsc::channel();
            runtime.spawn(async move {
                let mut interrupts =
                    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
                        .expect("a handler can be installed");
                ready.send(()).expect("the scene waits");
                interrupts.recv().await;
                println!("the program was interrupted");
            });
            waits.recv().expect("the task starts");
        }
        "finish" => display.finish(),
        "exit" => std::process::exit(0),
        _ => panic!("no such command: {command}"),
    }
}

fn attempt(job: u64) -> AttemptId {
    AttemptId { job: SessionId(1).job(job), attempt: 1 }
}

fn record(job: u64, position: u64) -> BarRecord {
    let text = BarText {
        description: format!("Doing 漢字 {job}"),
        message: String::new(),
        unit: "rows".into(),
        color: Color::Green,
        leave: true,
    };
    let numbers =
        BarNumbers { position, total: Some(12), closed: position == 12, elapsed: Duration::from_secs(4) };
    BarRecord { index: 0, text, numbers }
}

fn update(job: u64, position: u64) -> BarUpdate {
    let BarRecord { index, text, numbers } = record(job, position);
    BarUpdate { bar: BarId { attempt: attempt(job), index }, text: Some(text), numbers }
}

/// A person in front of the program under test.
fn watches(rows: u16, columns: u16) -> Person {
    Person::watches(&program(), rows, columns)
}

/// This binary again, as the program under test.
fn program() -> Command {
    let mut program = Command::new(std::env::current_exe().expect("this binary has a path"));
    program.args(["scene", "--exact", "--nocapture", "--quiet", "--test-threads=2"]);
    program.env(SCENE, "1").env_remove("RUST_TEST_THREADS");
    program
}

/// The screen without what changes with time.
fn without_time(rows: &[String]) -> Vec<String> {
    let bare = rows.iter().map(|row| row.split("[00:").next().unwrap_or(row).trim_end().to_owned());
    bare.map(|row| {
        if row.starts_with("lrts") {
            row.split("  0").next().unwrap_or(&row).trim_end().to_owned()
        } else {
            row
        }
    })
    .collect()
}

#[test]
fn bars_show_what_jobs_do_and_stay_at_their_final_position() {
    let mut person = watches(24, 80);
    person.tells("start bars");
    person.tells("stage Waiting for results");
    person.tells("totals 1200 2 43 0");
    person.tells("bars 1 2 7");
    let rows = person.sees("two bars", |rows| rows.len() == 4 && rows[3].contains("7/12"));
    assert_eq!(
        without_time(&rows),
        [
            "lrts   Waiting for results",
            "jobs   1,200 queued   2 running   43 done   0 failed",
            "Doing 漢字 1  58%|█████████████▍         | 7/12 rows",
            "Doing 漢字 2  58%|█████████████▍         | 7/12 rows",
        ]
    );
    assert!(rows[2].contains("[00:04<00:02, 1.75 rows/s]"), "{rows:#?}");

    // The first one ends; late news must not bring it back.
    person.tells("end 1 12");
    person.tells("bars 1 1 9");
    person.tells("end 2 9");
    person.sees("both bars left above", |rows| rows.len() == 4 && rows[3].starts_with("jobs"));
    person.tells("finish");
    person.tells("quit");
    let rows = person.sees_end(0);
    let left = row_of(&rows, "Doing 漢字 1 100%|");
    assert!(rows[left].contains("12/12 rows [00:04, 3.00 rows/s]"), "{rows:#?}");
    assert!(
        rows[left + 1].starts_with("Doing 漢字 2  75%|") && rows[left + 1].contains("9/12 rows"),
        "{rows:#?}"
    );
    assert!(rows[left + 2].starts_with("lrts   Waiting for results"), "{rows:#?}");
}

#[test]
fn newest_bars_fill_the_rows_and_the_rest_is_counted() {
    let mut person = watches(10, 80);
    person.tells("start bars");
    person.tells("bars 1 10000 3");
    let rows = person.sees_row("and 9,993 more");
    assert_eq!(rows.len(), 9, "{rows:#?}");
    assert!(rows[1].contains("Doing 漢字 9994 ") && rows[7].contains("Doing 漢字 10000 "), "{rows:#?}");
}

#[test]
fn prints_of_program_and_children_go_above_the_bars() {
    let mut person = watches(24, 80);
    person.tells("start auto");
    person.tells("bars 1 2 7");
    person.sees_row("Doing 漢字 2");
    person.tells("print from stdout");
    person.tells("eprint \x1b[31mfrom stderr\x1b[0m\x1b[2A");
    person.tells("log from the library");
    person.tells("shell echo from a child; echo and its stderr >&2");
    person.tells("part half a line");
    person.sees_row("and its stderr");
    person.sees_row("warning: from the library");
    let rows = person.rows();
    let live = row_of(&rows, "lrts   00:");
    assert_eq!(rows.len(), live + 3, "only the live area is below: {rows:#?}");
    for text in ["from stdout", "from stderr", "warning: from the library", "from a child", "and its stderr"]
    {
        assert!(row_of(&rows, text) < live, "{rows:#?}");
    }
    assert_eq!(person.cursor(), (person.cursor().0, 0, true), "the cursor waits at the live area's start");

    // A child that outlives the display still has its output shown.
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let go = directory.path().join("go");
    person.tells(&format!(
        "shell (while ! test -e {}; do sleep 0.02; done; echo late from a child) &",
        go.display()
    ));
    person.tells("finish");
    person.tells("print after the end");
    let rows = person.sees_row("after the end");
    assert!(row_of(&rows, "half a line") < row_of(&rows, "lrts   00:"), "{rows:#?}");
    assert!(row_of(&rows, "after the end") > row_of(&rows, "lrts   00:"), "{rows:#?}");
    File::create(go).expect("the directory is there");
    let rows = person.sees_row("late from a child");
    assert!(row_of(&rows, "after the end") < row_of(&rows, "late from a child"), "{rows:#?}");
}

#[test]
fn thousands_of_lines_scroll_past_without_a_tear() {
    let mut person = watches(12, 60);
    person.tells("start bars");
    person.tells("bars 1 3 5");
    person.tells("shell i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done");
    person.tells("finish");
    person.tells("print the end");
    let rows = person.sees_row("the end");
    let live = row_of(&rows, "lrts");
    assert!(row_of(&rows, "line 3000") < live, "{rows:#?}");
    // Every line is there once, in order: nothing was drawn over.
    let mut screen = person.screen.lock().expect("nobody panics with it");
    let screen = screen.screen_mut();
    let mut lines = Vec::new();
    for offset in (0..=screen.scrollback_len()).rev() {
        screen.set_scrollback(offset);
        lines.extend(screen.rows(0, 60).next());
    }
    let numbers: Vec<usize> =
        lines.iter().filter_map(|line| line.strip_prefix("line ")?.trim().parse().ok()).collect();
    let on_screen = 3_000 - numbers.len();
    assert!(on_screen < 12, "{on_screen} lines are missing");
    assert!(numbers.iter().copied().eq(1..=numbers.len()));
    assert!(!lines.iter().any(|line| line.contains('█')), "no bar was left behind");
}

#[test]
fn resizing_leaves_no_garbage() {
    let mut person = watches(24, 80);
    person.tells("start bars");
    person.tells("stage Resizing");
    person.tells("print above");
    person.tells("totals 5 2 1 0");
    person.tells("bars 1 4 7");
    person.sees_row("Doing 漢字 4");
    person.sees_row("above");
    // How many columns of each bar's own there are then, and what is told behind it.
    for (rows, columns, cells, end) in [
        (24, 50, 11, "| 7/12 [00:04<00:02]"),
        (24, 120, 40, "| 7/12 rows [00:04<00:02, 1.75 rows/s]"),
        (24, 40, 15, "| 7/12"),
        (8, 40, 15, "| 7/12"),
        (30, 100, 40, "| 7/12 rows [00:04<00:02, 1.75 rows/s]"),
    ] {
        person.resizes(rows, columns);
        let fits = |row: &String| {
            row.trim_end().ends_with(end)
                && row.split('|').nth(1).is_some_and(|bar| bar.chars().count() == cells)
        };
        let seen = person.sees(end, |seen| seen.iter().filter(|row| fits(row)).count() == 4);
        let first = row_of(&seen, "lrts");
        assert_eq!(seen.len(), first + 6, "at {columns}: {seen:#?}");
        assert!(rows < 20 || row_of(&seen, "above") < first, "at {columns}: {seen:#?}");
        assert_eq!(seen.iter().filter(|row| row.starts_with("jobs")).count(), 1, "at {columns}: {seen:#?}");
    }
}

#[test]
fn narrow_terminal_cuts_lines_instead_of_wrapping_them() {
    let mut person = watches(24, 40);
    person.tells("start bars");
    person.tells("stage Waiting for the results of a very long computation");
    person.tells("totals 1200 8 43 0");
    person.tells("bars 1 2 7");
    let rows = person.sees_row("Doing 漢字 2");
    assert_eq!(
        without_time(&rows),
        [
            "lrts  Waiting for the results o…",
            "jobs  1,200 queued  8 running  43 done",
            "Doing 漢字 1  58%|████████▊      | 7/12",
            "Doing 漢字 2  58%|████████▊      | 7/12",
        ]
    );
}

#[test]
fn interrupt_leaves_a_clean_terminal_and_ends_the_program_as_usual() {
    let mut person = watches(24, 80);
    person.tells("start bars");
    person.tells("bars 1 3 7");
    person.sees_row("Doing 漢字 3");
    assert!(person.cursor().2, "the cursor is hidden while bars are live");
    person.types(b"\x03");
    // The shell's word stands on a row of its own, right below the bars as they were last.
    let rows = person.sees_end(128 + libc::SIGINT);
    assert_eq!(rows.len(), row_of(&rows, "Doing 漢字 3") + 1, "{rows:#?}");
    assert_eq!(rows.iter().filter(|row| row.starts_with("lrts")).count(), 1, "{rows:#?}");
}

#[test]
fn own_handler_of_the_program_keeps_the_signal() {
    let mut person = watches(24, 80);
    person.tells("start bars");
    person.tells("handler");
    person.tells("bars 1 1 7");
    person.sees_row("Doing 漢字 1");
    person.types(b"\x03");
    person.sees_row("the program was interrupted");
    person.tells("quit");
    person.sees_end(0);
}

#[test]
fn process_exit_loses_no_output_and_shows_the_cursor() {
    let mut person = watches(24, 80);
    person.tells("start bars");
    person.tells("bars 1 1 7");
    person.tells("eprint the reason");
    person.tells("exit");
    let rows = person.sees_end(0);
    assert!(row_of(&rows, "the reason") < row_of(&rows, "lrts"), "{rows:#?}");
}

#[test]
fn sink_is_told_everything_beside_the_bars() {
    let mut person = watches(24, 80);
    person.tells("start sink");
    person.tells("log careful");
    person.tells("bars 1 1 7");
    person.sees_row("sink created Doing 漢字 1");
    person.tells("end 1 12");
    person.tells("finish");
    person.tells("print after the end");
    let rows = person.sees_row("after the end");
    let live = row_of(&rows, "lrts   00:");
    assert!(row_of(&rows, "sink warning: careful") < live, "{rows:#?}");
    assert!(row_of(&rows, "sink closed Doing 漢字 1 at 12") < live, "{rows:#?}");
    assert_eq!(rows.iter().filter(|row| row.contains("careful")).count(), 1, "{rows:#?}");
}

#[test]
fn without_a_terminal_lines_have_no_escape_codes() {
    let mut child = program()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this binary starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin
        .write_all(b"start auto\nstage Loading\nlog careful\nbars 1 1 7\nend 1 12\nfinish\n")
        .expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8(output.stderr).expect("lines are text");
    assert!(output.status.success(), "{text}");
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    assert!(text.contains("lrts 00:00  warning: careful\n"), "{text}");
    assert!(text.contains("lrts 00:00  Doing 漢字 1 100% (12/12 rows) in 00:04\n"), "{text}");
    assert!(text.ends_with("lrts 00:00  Loading\n"), "{text}");
}
