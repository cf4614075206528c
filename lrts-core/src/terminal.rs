//! What may reach a terminal or a log of texts that somebody else has written: peers, jobs, programs.

use std::iter::Peekable;
use std::str::Chars;

/// What [`visible`] lets through beside printable characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// Nothing: for text of jobs, which is put into a layout of ours.
    Nothing,
    /// Colours and tabs: for lines that the program itself prints.
    Colors,
}

/// The text without control characters, escape sequences and marks that turn the writing direction, so that it can neither
/// move the cursor nor change the terminal's state. Line ends and tabs become spaces.
pub fn visible(text: &str, keep: Keep) -> String {
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

/// A text of several lines, such as a program has printed, as a terminal may show it: line by line [`visible`] with its
/// colours, which end with it.
pub fn visible_lines(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(|line| visible(line, Keep::Colors)).collect();
    let mut shown = lines.join("\n");
    if shown.contains('\x1b') {
        shown.push_str("\x1b[0m");
    }
    shown
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
    fn what_was_printed_keeps_its_lines_and_leaves_no_colour_behind() {
        assert_eq!(visible_lines("one\n\ttwo\r\n\n"), "one\n\ttwo\n\n");
        assert_eq!(visible_lines("\x1b[31mred\n\x1b]0;title\x07\x1b[2Jstill"), "\x1b[31mred\nstill\x1b[0m");
        assert_eq!(visible_lines("ends amid \x1b]0;title\nof it"), "ends amid \nof it");
    }
}
