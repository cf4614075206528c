//! Deletes what ended attempts leave on the disk, on a thread of its own: a job may leave a million files.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use lrts_core::ids::AttemptId;
use lrts_core::spool::Spool;
use tokio::task::JoinHandle;
use tracing::warn;

/// How long an ending worker waits for the disk. What is left then goes at the next start.
const END_TIME: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum Rubbish {
    Directory(PathBuf),
    Result(AttemptId),
}

/// The thread, and what it is to do: a few words per ended attempt.
#[derive(Debug)]
pub(crate) struct Janitor {
    rubbish: mpsc::Sender<Rubbish>,
    thread: JoinHandle<()>,
}

impl Janitor {
    /// Nothing to do yet. Doesn't hold on to the state directory, whose next worker may start before the thread has ended.
    pub(crate) fn new(spool: Spool) -> Self {
        let (rubbish, receiver) = mpsc::channel();
        Self { rubbish, thread: tokio::task::spawn_blocking(move || clean(&spool, &receiver)) }
    }

    /// Deletes a directory with all that is in it.
    pub(crate) fn remove_directory(&self, path: PathBuf) {
        // The thread ends only after this.
        let _ = self.rubbish.send(Rubbish::Directory(path));
    }

    /// Deletes an attempt's result, if it is on the disk.
    pub(crate) fn remove_result(&self, attempt: AttemptId) {
        let _ = self.rubbish.send(Rubbish::Result(attempt));
    }

    /// Finishes what is to be done, for a while.
    pub(crate) async fn end(self) {
        drop(self.rubbish);
        let _ = tokio::time::timeout(END_TIME, self.thread).await;
    }
}

fn clean(spool: &Spool, rubbish: &mpsc::Receiver<Rubbish>) {
    for item in rubbish {
        let result = match &item {
            Rubbish::Directory(path) => std::fs::remove_dir_all(path),
            Rubbish::Result(attempt) => spool.remove(*attempt),
        };
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(?item, %error, "cannot delete what an attempt has left");
            }
            _ => {}
        }
    }
}
