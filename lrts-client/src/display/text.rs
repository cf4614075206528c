//! Small pieces of text: what may reach a terminal, how wide it is there, how numbers read.

use std::iter::Peekable;
use std::str::Chars;
use std::time::Duration;

use unicode_width::UnicodeWidthChar;

/// What [`visible`] lets through beside printable characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Keep {
    /// Nothing: for text of jobs, which is put into a layout of ours.
    Nothing,
    /// Colours and tabs: for lines that the program itself prints.
    Colors,
}

/// The text without control characters, escape sequences and marks that turn the writing direction, so that it can neither
/// move the cursor nor change the terminal's state. Line ends and tabs become spaces.
pub(super) fn visible(text: &str, keep: Keep) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\x1b' => skip_escape(&mut rest, keep, &mut kept),
            '\u{9b}' => skip_control_sequence(&mut rest, keep, &mut kept),
            '\t' if keep == Keep::Colors => kept.push(c),
            '\t' | '\n' => kept.push(' '),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            c if c.is_control() => {}
            c => kept.push(c),
        }
    }
    kept
}

/// Consumes what follows an escape character.
fn skip_escape(rest: &mut Peekable<Chars<'_>>, keep: Keep, kept: &mut String) {
    match rest.next() {
        Some('[') => skip_control_sequence(rest, keep, kept),
        // Strings (titles, links, device control) end with BEL or ESC \.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(c) = rest.next() {
                if c == '\x07' || c == '\u{9c}' || (c == '\x1b' && rest.next_if_eq(&'\\').is_some()) {
                    break;
                }
            }
        }
        Some(' '..='/') => {
            while rest.next_if(|c| (' '..='/').contains(c)).is_some() {}
            rest.next();
        }
        Some(_) | None => {}
    }
}

/// Consumes parameters and final character of a control sequence; keeps it if it is a colour and those are wanted.
fn skip_control_sequence(rest: &mut Peekable<Chars<'_>>, keep: Keep, kept: &mut String) {
    let mut parameters = String::new();
    while let Some(c) = rest.next_if(|c| (' '..='?').contains(c)) {
        parameters.push(c);
    }
    let end = rest.next_if(|c| ('@'..='~').contains(c));
    let plain = parameters.chars().all(|c| c.is_ascii_digit() || c == ';' || c == ':');
    if end == Some('m') && keep == Keep::Colors && plain {
        kept.push_str("\x1b[");
        kept.push_str(&parameters);
        kept.push('m');
    }
}

/// Columns that the text takes. Characters count one by one, as terminals do that don't join emoji.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// The text if it fits, else its start and an ellipsis.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut used = 1; // The ellipsis.
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > columns {
            break;
        }
        kept.push(c);
    }
    if columns > 0 {
        kept.push('…');
    }
    kept
}

/// The text, cut or filled with spaces, so that it takes just so many columns.
pub(super) fn fit(text: &str, columns: usize) -> String {
    let mut text = cut(text, columns);
    text.extend(std::iter::repeat_n(' ', columns.saturating_sub(width(&text))));
    text
}

/// `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `00:07`, `1:02:03`, `2d 03:04`.
pub(super) fn clock(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes:02}:{:02}", seconds % 60),
        (0, _) => format!("{hours}:{minutes:02}:{:02}", seconds % 60),
        _ => format!("{}d {hours:02}:{minutes:02}", grouped(days)),
    }
}

/// `1,204 rows/s`, `1.61 rows/s`; slow ones by the minute or the hour.
pub(super) fn speed(per_second: f64, unit: &str) -> String {
    let (value, per) = match per_second {
        rate if rate >= 0.1 => (rate, "s"),
        rate if rate * 60.0 >= 0.1 => (rate * 60.0, "min"),
        rate => (rate * 3_600.0, "h"),
    };
    let number = match value {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, which is fine"
        )]
        value if value >= 100.0 => grouped(value.round() as u64),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    };
    if unit.is_empty() { format!("{number}/{per}") } else { format!("{number} {unit}/{per}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_jobs_cannot_steer_the_terminal() {
        for (text, expected) in [
            ("plain ü 漢字", "plain ü 漢字"),
            ("a\x1b[2Jb\x1b[1;31mc\x1b[0m", "abc"),
            ("a\x1b]0;title\x07b\x1b]8;;http://x\x1b\\c", "abc"),
            ("a\u{9b}31mb", "ab"),
            ("bell\x07 back\x08 del\x7f nul\0", "bell back del nul"),
            ("two\nlines\tand\r", "two lines and"),
            ("\u{202e}desrever\u{202c}", "desrever"),
            ("cut off \x1b[31", "cut off "),
            ("cut off \x1b", "cut off "),
            ("never ends \x1b]0;title", "never ends "),
            ("charset \x1b(B.", "charset ."),
        ] {
            assert_eq!(visible(text, Keep::Nothing), expected, "{text:?}");
        }
        let printed = "\x1b[1;31mred\x1b[0m\tand\x1b[2A \x1b[?25lmore\x1b[>4m";
        assert_eq!(visible(printed, Keep::Colors), "\x1b[1;31mred\x1b[0m\tand more");
    }

    #[test]
    fn text_is_cut_by_columns() {
        assert_eq!(width("漢字 ok"), 7);
        assert_eq!(cut("漢字 ok", 7), "漢字 ok");
        assert_eq!(cut("漢字 ok", 6), "漢字 …");
        assert_eq!(cut("漢字 ok", 4), "漢…");
        assert_eq!(cut("漢字 ok", 1), "…");
        assert_eq!(cut("漢字 ok", 0), "");
        assert_eq!(fit("🚀", 4), "🚀  ");
        assert_eq!(fit("漢字", 2), "… ");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(clock(Duration::from_millis(7_900)), "00:07");
        assert_eq!(clock(Duration::from_secs(3_723)), "1:02:03");
        assert_eq!(clock(Duration::from_secs(2 * 86_400 + 3 * 3_600 + 240)), "2d 03:04");
        assert_eq!(speed(1_204.4, "rows"), "1,204 rows/s");
        assert_eq!(speed(12.34, ""), "12.3/s");
        assert_eq!(speed(1.613, "rows"), "1.61 rows/s");
        assert_eq!(speed(0.01, "files"), "0.60 files/min");
        assert_eq!(speed(0.001, "files"), "3.60 files/h");
        assert_eq!(speed(0.0, ""), "0.00/h");
    }
}
