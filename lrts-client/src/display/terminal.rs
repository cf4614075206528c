//! One frame onto the terminal.
//!
//! indicatif composes the live area. It would end each line by filling it up to the terminal's width, so that the terminal
//! wraps, and keep the cursor at the end. Terminals that wrap anew when they are resized make one long paragraph of that, and
//! the next frame misses the rows it should clear. So its output goes to a canvas; from there the lines get ends of their own,
//! and the cursor is left at the start of the live area: wherever a resize moves that, clearing from the cursor down clears
//! the live area and nothing else.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex};

use crossterm::cursor::{Hide, MoveDown, MoveUp, Show};
use crossterm::queue;
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, DisableLineWrap, EnableLineWrap, EndSynchronizedUpdate,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use nix::unistd::{getpgrp, tcgetpgrp};

use super::lock;

/// Columns and rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Size {
    pub(super) columns: u16,
    pub(super) rows: u16,
}

/// The terminal that the live area is on.
#[derive(Debug)]
pub(super) struct Terminal {
    file: File,
    composer: Composer,
    /// The live area that is on the screen, and the size it was made for.
    shown: Option<(Vec<String>, Size)>,
    /// The screen may no longer look like that.
    disturbed: bool,
}

impl Terminal {
    /// Draws on stderr, which must be a terminal.
    pub(super) fn open() -> io::Result<Self> {
        let file = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Ok(Self { file, composer: Composer::new(), shown: None, disturbed: false })
    }

    /// The present size; 80 x 24 if the terminal doesn't tell.
    #[expect(unsafe_code, reason = "the size of a terminal other than stdin's or stdout's takes an ioctl")]
    pub(super) fn size(&self) -> Size {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open, and the kernel fills in a `winsize`.
        let told = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) } == 0;
        let or = |value: u16, default: u16| if told && value > 0 { value } else { default };
        Size { columns: or(size.ws_col, 80), rows: or(size.ws_row, 24) }
    }

    /// Whether the shell has given the terminal to another job: then the live area would be drawn over that one's output.
    pub(super) fn in_background(&self) -> bool {
        tcgetpgrp(&self.file).is_ok_and(|foreground| foreground != getpgrp())
    }

    /// Something else has written on the terminal, as it does itself when Ctrl-C is typed: the next frame is drawn anew.
    pub(super) fn disturbed(&mut self) {
        self.disturbed = true;
    }

    /// Prints lines above the live area and shows this one. Writes nothing if there is nothing to change.
    ///
    /// No line of the live area may be as wide as the terminal, or empty, and it must have fewer lines than the terminal.
    pub(super) fn draw(&mut self, above: &[String], live: &[String], size: Size) -> io::Result<()> {
        let rows = self.composer.compose(live, size);
        let disturbed = std::mem::take(&mut self.disturbed);
        let undisturbed = !disturbed && self.shown.as_ref().is_none_or(|(_, old)| *old == size);
        if above.is_empty() && undisturbed && self.shown.as_ref().is_some_and(|(old, _)| *old == rows) {
            return Ok(());
        }
        let mut out = Vec::new();
        queue!(out, BeginSynchronizedUpdate, Hide)?;
        out.push(b'\r');
        if !above.is_empty() || !undisturbed {
            queue!(out, Clear(ClearType::FromCursorDown))?;
        }
        for line in above {
            // A line that sets a colour and leaves it on must not colour the rest.
            let reset = if line.contains('\x1b') { "\x1b[0m" } else { "" };
            write!(out, "{line}{reset}\r\n")?;
        }
        // A character that is wider here than it should be is cut off instead of breaking the layout.
        queue!(out, DisableLineWrap)?;
        for (index, row) in rows.iter().enumerate() {
            out.extend_from_slice(if index > 0 { b"\r\n" } else { b"" });
            out.extend_from_slice(row.as_bytes());
            queue!(out, Clear(ClearType::UntilNewLine))?;
        }
        queue!(out, Clear(ClearType::FromCursorDown), EnableLineWrap)?;
        out.push(b'\r');
        if rows.len() > 1 {
            queue!(out, MoveUp(below(&rows)))?;
        }
        if rows.is_empty() {
            queue!(out, Show)?;
        }
        queue!(out, EndSynchronizedUpdate)?;
        self.file.write_all(&out)?;
        self.shown = (!rows.is_empty()).then_some((rows, size));
        Ok(())
    }

    /// Leaves the live area on the screen as it is, the cursor on a fresh line below. The next frame starts there.
    pub(super) fn leave(&mut self) -> io::Result<()> {
        let Some((rows, _)) = self.shown.take() else { return Ok(()) };
        let mut out = Vec::new();
        if rows.len() > 1 {
            queue!(out, MoveDown(below(&rows)))?;
        }
        out.extend_from_slice(b"\r\n");
        queue!(out, Show)?;
        self.file.write_all(&out)
    }
}

/// Rows below the first one.
fn below(rows: &[String]) -> u16 {
    u16::try_from(rows.len()).unwrap_or(u16::MAX).saturating_sub(1)
}

/// indicatif, drawing a bar that is all message onto a canvas.
#[derive(Debug)]
struct Composer {
    bar: ProgressBar,
    canvas: Canvas,
}

impl Composer {
    fn new() -> Self {
        let canvas = Canvas::default();
        let bar =
            ProgressBar::with_draw_target(None, ProgressDrawTarget::term_like(Box::new(canvas.clone())));
        bar.set_style(ProgressStyle::with_template("{msg}").expect("a template with a known key"));
        Self { bar, canvas }
    }

    fn compose(&self, lines: &[String], size: Size) -> Vec<String> {
        if lines.is_empty() {
            return Vec::new();
        }
        lock(&self.canvas.0).size = size;
        self.bar.set_message(lines.join("\n"));
        std::mem::take(&mut lock(&self.canvas.0).rows)
    }
}

/// Takes down the rows that indicatif draws.
#[derive(Clone, Debug, Default)]
struct Canvas(Arc<Mutex<Drawn>>);

#[derive(Debug)]
struct Drawn {
    size: Size,
    rows: Vec<String>,
    row: String,
}

impl Default for Drawn {
    fn default() -> Self {
        Self { size: Size { columns: 80, rows: 24 }, rows: Vec::new(), row: String::new() }
    }
}

impl TermLike for Canvas {
    fn width(&self) -> u16 {
        lock(&self.0).size.columns
    }

    fn height(&self) -> u16 {
        lock(&self.0).size.rows
    }

    /// The way back to the start of the frame before: a new one begins.
    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        let mut drawn = lock(&self.0);
        drawn.rows.clear();
        drawn.row.clear();
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)?;
        self.write_str(" ")
    }

    /// A row, or the spaces that fill up the one before, which end it. No row is blank, and none takes the whole width.
    fn write_str(&self, text: &str) -> io::Result<()> {
        let mut drawn = lock(&self.0);
        if text.bytes().all(|byte| byte == b' ') {
            let row = std::mem::take(&mut drawn.row);
            drawn.rows.push(row);
        } else {
            drawn.row.push_str(text);
        }
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_out_of_indicatif_as_they_went_in() {
        let composer = Composer::new();
        let lines = ["lrts   00:07", "\x1b[31m漢字\x1b[0m  58%|██   | 7/12", "and 3 more"].map(str::to_owned);
        for columns in [80, 40, 120] {
            assert_eq!(composer.compose(&lines, Size { columns, rows: 24 }), lines);
        }
        assert_eq!(composer.compose(&lines[..1], Size { columns: 40, rows: 24 }), lines[..1]);
        assert!(composer.compose(&[], Size { columns: 40, rows: 24 }).is_empty());
    }
}
