//! Descriptors 1 and 2 run through a pipe while the live area is on the screen, so that what the program prints goes above it.
//!
//! One pipe serves both, which keeps their order. Children inherit it; when the display ends before they do, a thread goes on
//! to pass their output to the terminal.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use lrts_core::terminal::{Keep, visible};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{dup2_stderr, dup2_stdout, isatty, pipe2};

/// A line that is longer is printed in pieces.
const LINE_BYTES: usize = 64 * 1024;

/// The redirection, and what has come through it.
#[derive(Debug)]
pub(super) struct Capture {
    pipe: File,
    /// Tells our pipe from whatever the program may put in its place.
    pipe_id: (u64, u64),
    /// What descriptors 1 (if it is redirected) and 2 were.
    stdout: Option<OwnedFd>,
    stderr: OwnedFd,
    /// The end of what has come, without a line end yet.
    partial: Vec<u8>,
    /// All writers are gone.
    ended: bool,
}

/// How long the program may hold the lock of its stdout before its buffer is left as it is.
const FLUSH_LIMIT: Duration = Duration::from_millis(200);

/// Writes out what waits in std's buffer, unless the program holds the lock of its stdout, perhaps while it waits for us.
pub(super) fn flush_stdout() {
    let (done, wait) = mpsc::channel();
    let flush = move || {
        let _ = io::stdout().flush();
        let _ = done.send(());
    };
    // Without a thread, or in time, the lines come later or in another order: nothing is lost.
    if thread::Builder::new().name("lrts-flush".to_owned()).spawn(flush).is_ok() {
        let _ = wait.recv_timeout(FLUSH_LIMIT);
    }
}

impl Capture {
    /// Redirects stderr, which must be a terminal, and stdout if it is the same one.
    pub(super) fn start() -> io::Result<Self> {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let same = isatty(&stdout).unwrap_or(false) && device(&fstat(&stdout)?) == device(&fstat(&stderr)?);
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let capture = Self {
            pipe_id: file(&fstat(&reader)?),
            pipe: File::from(reader),
            stdout: if same { Some(stdout.as_fd().try_clone_to_owned()?) } else { None },
            stderr: stderr.as_fd().try_clone_to_owned()?,
            partial: Vec::new(),
            ended: false,
        };
        // What is still in std's buffer was printed before.
        flush_stdout();
        // An error from here on drops the capture, which puts back what was done.
        dup2_stderr(&writer)?;
        if same {
            dup2_stdout(&writer)?;
        }
        Ok(capture)
    }

    /// What to poll for more; none once all writers are gone.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        (!self.ended).then(|| self.pipe.as_fd())
    }

    /// Reads what is there, at most a pipe full, and adds the lines that are complete.
    pub(super) fn read_lines(&mut self, lines: &mut Vec<String>) {
        let mut buffer = [0; 16 * 1024];
        for _ in 0..4 {
            match self.pipe.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(length) => {
                    self.partial.extend_from_slice(&buffer[..length]);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.ended = true,
            }
            break;
        }
        let mut rest = mem::take(&mut self.partial);
        let complete = rest.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let tail = rest.split_off(complete);
        lines.extend(lines_of(&rest));
        self.partial = tail;
        if self.partial.len() > LINE_BYTES {
            self.flush_partial(lines);
        }
    }

    /// Adds the unfinished line, if there is one.
    pub(super) fn flush_partial(&mut self, lines: &mut Vec<String>) {
        if !self.partial.is_empty() {
            lines.push(printed(&mem::take(&mut self.partial)));
        }
    }

    /// Puts the descriptors back. What is still in the pipe, or comes from children that hold it, goes to the terminal as it
    /// is.
    pub(super) fn end(self) {
        self.put_back();
        let (Ok(mut pipe), Ok(terminal)) = (self.pipe.try_clone(), self.stderr.try_clone()) else { return };
        let mut terminal = File::from(terminal);
        let rest = copy(&mut pipe, &mut terminal);
        // Somebody still holds the other end, and would be killed by a write to a pipe without a reader.
        if rest.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            && fcntl(&pipe, FcntlArg::F_SETFL(OFlag::empty())).is_ok()
        {
            let forward = move || {
                // Ends with its last writer, or with the terminal.
                let _ = copy(&mut pipe, &mut terminal);
            };
            // Without a thread their output is lost, as it would be without a terminal.
            let _ = std::thread::Builder::new().name("lrts-output".to_owned()).spawn(forward);
        }
    }

    /// Puts the descriptors back, except where the program has replaced them.
    fn put_back(&self) {
        let ours = |fd: BorrowedFd<'_>| fstat(fd).is_ok_and(|status| file(&status) == self.pipe_id);
        let (stdout, stderr) = (io::stdout(), io::stderr());
        // Both were open and still are: `dup2` has no reason to fail.
        if let Some(old) = self.stdout.as_ref().filter(|_| ours(stdout.as_fd())) {
            let _ = dup2_stdout(old);
        }
        if ours(stderr.as_fd()) {
            let _ = dup2_stderr(&self.stderr);
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.put_back();
    }
}

/// Copies bytes until the end or an error, `WouldBlock` included.
fn copy(from: &mut File, to: &mut File) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The lines of bytes that end with a line end.
fn lines_of(bytes: &[u8]) -> impl Iterator<Item = String> {
    bytes.split_inclusive(|&byte| byte == b'\n').map(|line| printed(&line[..line.len() - 1]))
}

/// A line as it would look once it is complete: what follows the last carriage return has overwritten what was before it.
fn printed(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches('\r');
    visible(text.rsplit('\r').next().unwrap_or_default(), Keep::Colors)
}

fn device(status: &FileStat) -> u64 {
    status.st_rdev
}

fn file(status: &FileStat) -> (u64, u64) {
    (status.st_dev, status.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_they_would_look() {
        let lines: Vec<String> = lines_of(b"one\r\n10%\r100%\n\n\x1b[31mred\x1b[0m\n\xff\n").collect();
        assert_eq!(lines, ["one", "100%", "", "\x1b[31mred\x1b[0m", "\u{fffd}"]);
    }
    #[test]
    fn a_program_that_holds_its_stdout_is_not_waited_for() {
        let _held = io::stdout().lock();
        let (done, ended) = mpsc::channel();
        thread::spawn(move || {
            flush_stdout();
            done.send(()).unwrap();
        });
        ended.recv_timeout(Duration::from_secs(60)).expect("the lock is not waited for");
    }
}
