//! A program on a real pseudo-terminal, and the person in front of it: what the person sees is read back from a terminal
//! emulator.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use lrts_core::clock::Moment;
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};

/// How long anything may take to appear on the screen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program on a terminal, and the person in front of it. Both go when it is dropped.
pub(crate) struct Person {
    master: File,
    pub(crate) screen: Arc<Mutex<vt100::Parser>>,
    child: Child,
}

impl Person {
    /// Starts the program with its arguments and environment; what else the command sets isn't looked at.
    #[expect(unsafe_code, reason = "a program gets a controlling terminal only from within")]
    pub(crate) fn watches(program: &Command, rows: u16, columns: u16) -> Self {
        let pty = openpty(&winsize(rows, columns), None).expect("there are pseudo-terminals");
        let output = || Stdio::from(pty.slave.try_clone().expect("a descriptor is free"));
        // As in a person's terminal a shell is in front of the program, and has the last word when that has ended. It must not
        // end before everything is read: the end of a session's leader discards what is on its way.
        let mut command = Command::new("sh");
        command.args(["-c", "trap : INT; \"$@\"; echo \"$ ended with $?\"; read -r end", "sh"]);
        command.arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        command.stdin(Stdio::piped()).stdout(output()).stderr(output());
        // SAFETY: both calls are async-signal-safe; descriptor 1 is the terminal.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                nix::errno::Errno::result(libc::ioctl(1, libc::TIOCSCTTY, 0))?;
                Ok(())
            });
        }
        let child = command.spawn().expect("there is a shell");
        drop(command);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(nonzero(rows), nonzero(columns), 10_000)));
        let master = File::from(pty.master);
        let mut reader = File::from(OwnedFd::from(master.try_clone().expect("a descriptor is free")));
        let seen = Arc::clone(&screen);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Ends with an error once the terminal has no program any more.
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                seen.lock().expect("nobody panics with it").process(&bytes[..length]);
            }
        });
        Self { master, screen, child }
    }

    /// Writes a line to the program's stdin, which isn't the terminal.
    pub(crate) fn tells(&mut self, command: &str) {
        let stdin = self.child.stdin.as_mut().expect("it is piped");
        writeln!(stdin, "{command}").expect("the program reads");
    }

    /// Gives keys to the terminal; `\x03` is Ctrl-C.
    pub(crate) fn types(&mut self, bytes: &[u8]) {
        self.master.write_all(bytes).expect("the terminal takes input");
    }

    #[expect(unsafe_code, reason = "nix has no call for the size of a terminal")]
    pub(crate) fn resizes(&mut self, rows: u16, columns: u16) {
        self.screen.lock().expect("nobody panics with it").set_size(nonzero(rows), nonzero(columns));
        let size = winsize(rows, columns);
        // SAFETY: the descriptor is open and the size is readable.
        let done = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(done, 0);
    }

    /// The rows of the screen without blank ones at the end, and without libtest's own.
    pub(crate) fn rows(&self) -> Vec<String> {
        let screen = self.screen.lock().expect("nobody panics with it");
        let (_, columns) = screen.screen().size();
        let mut rows: Vec<String> = screen.screen().rows(0, columns.get()).collect();
        while rows.last().is_some_and(|row| row.trim().is_empty()) {
            rows.pop();
        }
        rows.retain(|row| !row.starts_with("running 1 test"));
        rows.into_iter().skip_while(|row| row.is_empty()).collect()
    }

    /// Waits for a screen of which this holds.
    #[track_caller]
    pub(crate) fn sees(&self, what: &str, holds: impl Fn(&[String]) -> bool) -> Vec<String> {
        let deadline = Moment::now() + PATIENCE;
        loop {
            let rows = self.rows();
            if holds(&rows) {
                return rows;
            }
            // After the shell's word nothing more comes.
            let waits = Moment::now() < deadline && !rows.iter().any(|row| row.starts_with("$ ended with"));
            assert!(waits, "never saw {what}; the screen:\n{}", rows.join("\n"));
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    pub(crate) fn sees_row(&self, text: &str) -> Vec<String> {
        self.sees(text, |rows| rows.iter().any(|row| row.contains(text)))
    }

    /// (row, column, hidden)
    pub(crate) fn cursor(&self) -> (u16, u16, bool) {
        let screen = self.screen.lock().expect("nobody panics with it");
        let (row, column) = screen.screen().cursor_position();
        (row, column, screen.screen().hide_cursor())
    }

    /// How the terminal is set: echo, line mode and the like.
    pub(crate) fn settings(&self) -> Termios {
        tcgetattr(&self.master).expect("it is a terminal")
    }

    /// Waits until the program has ended with this exit code; returns the screen up to the shell's word about it.
    #[track_caller]
    pub(crate) fn sees_end(&self, code: i32) -> Vec<String> {
        let prompt = format!("$ ended with {code}");
        let mut rows = self.sees(&prompt, |rows| rows.iter().any(|row| row.trim_end() == prompt));
        rows.truncate(row_of(&rows, &prompt));
        assert!(!self.cursor().2, "the cursor is shown");
        rows
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        // The shell, the program and its children: the terminal is the controlling one of all of them.
        let group = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn winsize(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn nonzero(number: u16) -> std::num::NonZeroU16 {
    number.try_into().expect("no test has an empty screen")
}

/// Where a row with this text is.
pub(crate) fn row_of(rows: &[String], text: &str) -> usize {
    rows.iter().position(|row| row.contains(text)).unwrap_or_else(|| panic!("no `{text}` in {rows:#?}"))
}
