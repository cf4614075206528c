//! What jobs leave in files, so that tests can count what really ran.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::{SOON, eventually};

/// A job's side of its file: each mark is a line, added in one write.
pub(crate) struct Marks {
    file: File,
    execution: u32,
}

impl Marks {
    /// Opens the file and marks the beginning of an execution.
    pub(crate) fn begin(path: &Path, execution: u32) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let mut marks = Self { file, execution };
        marks.mark("began", 0)?;
        Ok(marks)
    }

    /// Marks that a step was done.
    pub(crate) fn step(&mut self, step: u64) -> io::Result<()> {
        self.mark("step", step)
    }

    /// Marks the end.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.mark("ended", 0)
    }

    fn mark(&mut self, what: &str, step: u64) -> io::Result<()> {
        let line = format!("{what} {} {} {step}\n", std::process::id(), self.execution);
        self.file.write_all(line.as_bytes())
    }
}

/// One line of such a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mark {
    /// `began`, `step` or `ended`.
    pub(crate) what: String,
    /// The job's process.
    pub(crate) pid: u32,
    /// Which execution of the job it was.
    pub(crate) execution: u32,
    pub(crate) step: u64,
}

impl Mark {
    /// All marks in the file, none if it isn't there.
    pub(crate) fn read(path: &Path) -> Vec<Mark> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(Self::parse).collect()
    }

    fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| words[index].parse::<u64>().expect("marks are written whole");
        let narrow = |index| u32::try_from(number(index)).expect("a process id or a count");
        Self { what: words[0].to_owned(), pid: narrow(1), execution: narrow(2), step: number(3) }
    }

    /// Waits until some mark is as wanted, and returns it.
    pub(crate) fn wait(path: &Path, what: &str, wanted: impl Fn(&Mark) -> bool) -> Mark {
        eventually(what, SOON, || {
            let marks = Self::read(path);
            let found = marks.iter().find(|mark| wanted(mark)).cloned();
            found.ok_or_else(|| format!("{}: {marks:?}", path.display()))
        })
    }

    /// Waits until an execution has begun, returns its process.
    pub(crate) fn wait_for_beginning(path: &Path, execution: usize) -> u32 {
        eventually(&format!("execution {execution} begins"), SOON, || {
            let began = Self::began(path);
            began.get(execution - 1).copied().ok_or_else(|| format!("{}: {began:?}", path.display()))
        })
    }

    /// The processes that began, in order.
    pub(crate) fn began(path: &Path) -> Vec<u32> {
        let marks = Self::read(path);
        marks.iter().filter(|mark| mark.what == "began").map(|mark| mark.pid).collect()
    }

    /// The processes that came to their end, in order.
    pub(crate) fn ended(path: &Path) -> Vec<u32> {
        let marks = Self::read(path);
        marks.iter().filter(|mark| mark.what == "ended").map(|mark| mark.pid).collect()
    }
}
