//! Small pieces of text: how wide they are on a terminal, how numbers read.

use std::time::Duration;

use unicode_width::UnicodeWidthChar;

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
