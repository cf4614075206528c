//! Services whose every execution leaves marks.

use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::time::Duration;

use lrts_client::{Bytes, JobContext, Service, ServiceError};
use serde::{Deserialize, Serialize};

use super::Marks;

/// Which execution of a job a result is of.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct Done {
    /// The number that the job was given.
    pub(crate) number: u64,
    pub(crate) pid: u32,
    pub(crate) execution: u32,
    pub(crate) body: Bytes,
}

/// Works for some time in short steps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Work {
    number: u64,
    file: PathBuf,
    steps: u64,
    until: Option<PathBuf>,
    body_bytes: usize,
    ballast: Bytes,
    alone: bool,
}

impl Work {
    /// One step of it.
    pub(crate) const STEP: Duration = Duration::from_millis(100);

    /// Leaves marks in this file for so many steps.
    pub(crate) fn new(file: impl Into<PathBuf>, steps: u64) -> Self {
        Self {
            number: 0,
            file: file.into(),
            steps,
            until: None,
            body_bytes: 0,
            ballast: Bytes::from(Vec::new()),
            alone: false,
        }
    }

    /// Goes on until this file is there.
    pub(crate) fn until(file: impl Into<PathBuf>, until: impl Into<PathBuf>) -> Self {
        Self { until: Some(until.into()), ..Self::new(file, 0) }
    }

    /// Comes back with the result.
    pub(crate) fn number(mut self, number: u64) -> Self {
        self.number = number;
        self
    }

    /// Its result is that large.
    pub(crate) fn body(mut self, bytes: usize) -> Self {
        self.body_bytes = bytes;
        self
    }

    /// It is that large itself.
    pub(crate) fn ballast(mut self, bytes: usize) -> Self {
        self.ballast = Bytes::from(vec![7; bytes]);
        self
    }

    /// Fails if another execution is at work at the same time.
    pub(crate) fn alone(mut self) -> Self {
        self.alone = true;
        self
    }
}

impl Service for Work {
    const NAME: &'static str = "work";
    type Output = Done;
    fn run(self, job: &JobContext) -> Result<Done, ServiceError> {
        let lock = File::options().create(true).append(true).open(self.file.with_extension("lock"))?;
        if self.alone
            && let Err(TryLockError::WouldBlock) = lock.try_lock()
        {
            return Err(ServiceError::msg("another execution is at work"));
        }
        let mut marks = Marks::begin(&self.file, job.attempt())?;
        let mut step = 0;
        while step < self.steps || self.until.as_ref().is_some_and(|file| !file.exists()) {
            std::thread::sleep(Self::STEP);
            step += 1;
            if self.until.is_none() {
                marks.step(step)?;
            }
        }
        marks.end()?;
        Ok(Done {
            number: self.number,
            pid: std::process::id(),
            execution: job.attempt(),
            body: Bytes::from(vec![7; self.body_bytes]),
        })
    }
}

/// Takes some steps and keeps a checkpoint behind each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Steps {
    pub(crate) file: PathBuf,
    pub(crate) steps: u64,
    pub(crate) step_ms: u64,
}

impl Service for Steps {
    const NAME: &'static str = "steps";
    /// The steps in the order in which their work was kept.
    type Output = Vec<u64>;
    fn run(self, job: &JobContext) -> Result<Vec<u64>, ServiceError> {
        let mut marks = Marks::begin(&self.file, job.attempt())?;
        let mut done: Vec<u64> = job.last_checkpoint()?.unwrap_or_default();
        for step in done.len() as u64 + 1..=self.steps {
            std::thread::sleep(Duration::from_millis(self.step_ms));
            marks.step(step)?;
            done.push(step);
            job.checkpoint(&done)?;
        }
        marks.end()?;
        Ok(done)
    }
}
