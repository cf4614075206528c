//! One process of a cluster.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use lrts_core::clock::Moment;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Part, SOON};

/// A process that says on stdout when it is ready, and logs to a file.
pub(crate) struct Daemon {
    child: Child,
    command: Command,
    name: String,
    part: Part,
    log: PathBuf,
    stdout: mpsc::Receiver<String>,
}

impl Daemon {
    /// Starts a command; its stderr goes to `directory/NAME.log`, behind what is there.
    pub(crate) fn start(name: &str, mut command: Command, directory: &Path) -> Self {
        let log = directory.join(format!("{name}.log"));
        let part = Part::new(directory, name);
        part.mark(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let (child, stdout) = spawn(&mut command, name, &log);
        Self { child, command, name: name.to_owned(), part, log, stdout }
    }

    /// Starts the same command again, behind one that has ended.
    pub(crate) fn restart(&mut self) {
        assert!(self.has_ended(), "{} still runs", self.name);
        (self.child, self.stdout) = spawn(&mut self.command, &self.name, &self.log);
    }

    /// The next line on stdout.
    pub(crate) fn line(&mut self) -> String {
        match self.stdout.recv_timeout(SOON) {
            Ok(line) => line,
            Err(error) => panic!("{} says nothing ({error})\n{}", self.name, self.log()),
        }
    }

    /// The next line on stdout, none if it doesn't come by then.
    pub(crate) fn line_until(&mut self, deadline: Moment) -> Option<String> {
        match self.stdout.recv_timeout(deadline.since(Moment::now())) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("{} has ended\n{}", self.name, self.log()),
        }
    }

    /// The lines that nobody has read of a process that has ended.
    pub(crate) fn last_lines(&mut self) -> Vec<String> {
        self.stdout.iter().collect()
    }

    /// What comes behind `words` on the next line that begins with them; lines before it are for nobody.
    pub(crate) fn line_of(&mut self, words: &str) -> String {
        loop {
            if let Some(rest) = self.line().strip_prefix(words) {
                return rest.trim_start().to_owned();
            }
        }
    }

    /// Waits for the line that says it is ready and returns its last word.
    pub(crate) fn ready(&mut self) -> String {
        let line = self.line();
        assert!(line.starts_with("lrts ") && line.contains(" ready "), "{}: {line}", self.name);
        line.rsplit(' ').next().expect("a last word").to_owned()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// It and all that came from it.
    pub(crate) fn part(&self) -> &Part {
        &self.part
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .expect("the process is a child of this one");
    }

    /// Kills it with -9 and reaps it. What came from it lives on if it can.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("a child can be reaped");
    }

    /// Kills it and all that came from it with -9, as when a machine loses power.
    pub(crate) fn kill_all(&mut self) {
        self.part.kill();
        self.child.wait().expect("a child can be reaped");
    }

    /// Asks it to end in order and waits until it has.
    pub(crate) fn end(&mut self) {
        self.signal(Signal::SIGTERM);
        assert!(self.wait().success(), "{}", self.log());
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_some()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Moment::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                return status;
            }
            assert!(Moment::now() < deadline, "{} doesn't end\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        format!("--- {} ---\n{}", self.name, String::from_utf8_lossy(&text))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            // Where the test runner keeps it for failed tests; nothing more can be done if even that fails.
            let _ = writeln!(std::io::stderr(), "{}", self.log());
        }
    }
}

/// Starts a process whose lines on stdout can be waited for.
fn spawn(command: &mut Command, name: &str, log: &Path) -> (Child, mpsc::Receiver<String>) {
    let stderr = File::options().create(true).append(true).open(log).expect("own directory");
    let mut child = command.stderr(stderr).spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
    let (lines, stdout) = mpsc::channel();
    let pipe = child.stdout.take().expect("was piped");
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                break;
            }
        }
    });
    (child, stdout)
}
