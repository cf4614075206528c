//! An example as a person sees it: on a real pseudo-terminal, its screen read back from a terminal emulator.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/example.rs"]
mod example;
#[path = "../lrts-client/tests/terminal/mod.rs"]
mod terminal;

use example::example;
use terminal::Person;

const NAPPERS: [&str; 3] = ["Cat", "Dog", "Owl"];

fn watches_naps() -> Person {
    let mut program = example("detailed_progress_bars");
    program.arg("--local");
    Person::watches(&program, 24, 80)
}

/// The row of this napper's bar.
fn bar<'a>(rows: &'a [String], name: &str) -> Option<&'a str> {
    let description = format!("{name} ");
    rows.iter().map(|row| row.trim_end()).find(|row| row.starts_with(&description) && row.contains("%|"))
}

/// The napper's bar below the stage line: it still moves, or has done until now.
fn is_live(rows: &[String], name: &str) -> bool {
    let stage = rows.iter().position(|row| row.starts_with("lrts"));
    stage.is_some_and(|stage| bar(&rows[stage..], name).is_some())
}

/// The numbers around the slash of `Cat 45%|███ | 20/44 naps [00:00<00:01, …]`.
fn position_and_total(bar: &str) -> (u64, u64) {
    let numbers = bar.rsplit("| ").next().and_then(|counts| counts.split_once('/'));
    let (position, rest) = numbers.unwrap_or_else(|| panic!("no position in `{bar}`"));
    let total = rest.split(' ').next().unwrap_or_default();
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("no number in `{bar}`"));
    (number(position), number(total))
}

#[test]
fn example_shows_its_stage_and_three_bars_and_leaves_them_at_their_totals() {
    let mut person = watches_naps();
    let settings = person.settings();
    person.sees("a stage", |rows| {
        let shows = |stage| rows.iter().any(|row| row.starts_with("lrts") && row.contains(stage));
        shows("Initializing") || shows("Waiting For Results")
    });
    person.sees("the last stage", |rows| {
        rows.iter().any(|row| row.starts_with("lrts") && row.contains("Waiting For Results"))
    });
    person.sees("three live bars", |rows| NAPPERS.iter().all(|name| is_live(rows, name)));
    assert!(person.cursor().2, "the cursor is hidden while bars are live");

    person.resizes(20, 100);
    let rows = person.sees_end(0);

    let mut expected = Vec::new();
    for name in NAPPERS {
        let last = bar(&rows, name).unwrap_or_else(|| panic!("the bar of {name} isn't left: {rows:#?}"));
        let (position, total) = position_and_total(last);
        assert_eq!(position, total, "{rows:#?}");
        assert!(last.starts_with(&format!("{name} 100%|")), "{rows:#?}");
        expected.push(format!("{name} took {total} naps"));
    }
    // The bars, the two lines of the whole application, and what the example prints: nothing else, nothing twice.
    let end = rows.len() - expected.len();
    assert_eq!(rows[end..].iter().map(|row| row.trim_end()).collect::<Vec<_>>(), expected);
    assert_eq!(rows.len(), 8, "{rows:#?}");
    assert!(rows[3].starts_with("lrts") && rows[3].contains("Waiting For Results"), "{rows:#?}");
    assert!(rows[4].starts_with("jobs") && rows[4].contains("3 done"), "{rows:#?}");
    assert!(person.settings() == settings, "the terminal is set as before");
}

#[test]
fn interrupt_leaves_the_cursor_visible_on_a_fresh_line() {
    let mut person = watches_naps();
    let settings = person.settings();
    person.sees("a live bar", |rows| NAPPERS.iter().any(|name| is_live(rows, name)));
    assert!(person.cursor().2, "the cursor is hidden while bars are live");

    person.types(b"\x03");

    // The shell's word has a row of its own, so the cursor was at the start of one.
    let rows = person.sees_end(128 + libc::SIGINT);
    assert_eq!(person.cursor().1, 0);
    assert_eq!(rows.iter().filter(|row| row.starts_with("lrts")).count(), 1, "{rows:#?}");
    assert!(!rows.iter().any(|row| row.contains(" took ")), "it ended in the middle: {rows:#?}");
    assert!(person.settings() == settings, "the terminal is set as before");
}
