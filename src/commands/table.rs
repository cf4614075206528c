//! Rows as columns of text for people, or as JSON lines for scripts.

use std::io::{self, Write};

use lrts_core::terminal::{Keep, visible};
use serde::Serialize;

/// Prints aligned columns; every row has as many cells as there are headings. What is in them peers and jobs may have written:
/// it stays in its cell, and steers no terminal.
pub(super) fn print_table(headings: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    table(headings, rows).iter().try_for_each(|line| writeln!(out, "{line}"))
}

fn table(headings: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let shown = |row: &Vec<String>| row.iter().map(|cell| visible(cell, Keep::Nothing)).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(shown).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut headings.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines
}

/// Prints one object on a line.
pub(super) fn print_json<T: Serialize>(row: &T) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, row)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_written_stays_in_its_cell() {
        let rows = [
            vec!["a\x1b[2J\nb".to_owned(), "\u{9b}31mhost".to_owned()],
            vec!["plain".to_owned(), "\u{202e}x".to_owned()],
        ];
        assert_eq!(table(&["label", "host"], &rows), ["label  host", "a b    host", "plain  x"]);
    }
}
