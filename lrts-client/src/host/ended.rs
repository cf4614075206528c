//! What is left of an attempt, until its end is confirmed: in memory, or on disk where no worker is there to tell.

use std::io;
use std::mem;
use std::path::PathBuf;
use std::time::Duration;

use lrts_core::ids::AttemptId;
use lrts_core::limits::{BARS_PER_NOTICE, INLINE_BODY_BYTES};
use lrts_core::protocol::codec;
use lrts_core::protocol::host::{FromHost, Output, Payload};
use lrts_core::protocol::progress::BarRecord;
use lrts_core::protocol::worker::AttemptEnd;
use lrts_core::spool;

use super::cgroup::JobCgroup;
use super::checkpoint::{self, Reader, Snapshot};
use super::connection::Parcel;

/// An attempt that has ended.
pub(super) struct Ended {
    pub(super) attempt: AttemptId,
    /// From its start.
    pub(super) notes: Vec<u8>,
    /// Where its output is if it is large, and beside which its end is written.
    pub(super) spool_file: PathBuf,
    /// Its region of the arena, if it had one.
    pub(super) region: Option<u32>,
    pub(super) kept: Kept,
    /// Removed once all its processes are gone.
    pub(super) cgroup: Option<JobCgroup>,
}

/// Where an end is.
pub(super) enum Kept {
    Memory(Box<End>),
    Disk,
}

/// An end in memory.
pub(super) struct End {
    pub(super) end: AttemptEnd,
    pub(super) output: Output,
    pub(super) bars: Vec<BarRecord>,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) ran: Duration,
    pub(super) peak_memory_bytes: u64,
    pub(super) checkpoints: Option<Reader>,
}

impl End {
    /// The end of an attempt that has never begun.
    pub(super) fn unbegun(reason: String) -> Self {
        Self {
            end: AttemptEnd::Lost { reason },
            output: Output::default(),
            bars: Vec::new(),
            stdout: Vec::new(),
            stderr: Vec::new(),
            ran: Duration::ZERO,
            peak_memory_bytes: 0,
            checkpoints: None,
        }
    }

    /// Its notices but for the checkpoint.
    fn notices(&self, attempt: AttemptId, region: Option<u32>) -> Vec<FromHost> {
        let mut notices = Vec::new();
        for bars in self.bars.chunks(BARS_PER_NOTICE) {
            notices.push(FromHost::Bars { attempt, bars: bars.to_vec() });
        }
        for (stderr, text) in [(false, &self.stdout), (true, &self.stderr)] {
            if !text.is_empty() {
                notices.push(FromHost::Output { attempt, stderr, text: text.clone() });
            }
        }
        notices.push(FromHost::Ended {
            attempt,
            end: self.end.clone(),
            output: self.output.clone(),
            ran: self.ran,
            peak_memory_bytes: self.peak_memory_bytes,
            region,
        });
        notices
    }
}

impl Ended {
    /// What a worker that takes the host over is told first.
    pub(super) fn held(&self) -> FromHost {
        FromHost::Held { attempt: self.attempt, notes: self.notes.clone(), run: None }
    }

    /// A new worker has not been sent anything.
    pub(super) fn forget_sent(&mut self) {
        if let Kept::Memory(end) = &mut self.kept
            && let Some(checkpoints) = &mut end.checkpoints
        {
            checkpoints.forget_sent();
        }
    }

    /// Everything about the end, for a worker: the checkpoint first unless it has been sent, the end itself last.
    ///
    /// # Errors
    ///
    /// It is on disk and can't be read back at present.
    pub(super) fn parcels(&mut self, with_checkpoint: bool) -> io::Result<Vec<Parcel>> {
        let (attempt, region) = (self.attempt, self.region);
        match &mut self.kept {
            Kept::Memory(end) => {
                let checkpoints = end.checkpoints.as_mut().filter(|_| with_checkpoint);
                // Without memory for a copy the end is better than nothing; the next worker is sent both again.
                let news = checkpoints.and_then(|checkpoints| checkpoints.news().ok().flatten());
                let checkpoint = news.map(|snapshot| checkpoint_parcel(attempt, snapshot));
                Ok(checkpoint
                    .into_iter()
                    .chain(end.notices(attempt, region).iter().map(Parcel::new))
                    .collect())
            }
            Kept::Disk => {
                let notices = self.read_back()?.into_iter();
                Ok(notices.filter_map(|notice| parcel_from_disk(notice, with_checkpoint)).collect())
            }
        }
    }

    /// The checkpoint, for a worker that has asked for it.
    pub(super) fn checkpoint(&self) -> Option<Parcel> {
        match &self.kept {
            Kept::Memory(end) => {
                let (_, snapshot) = end.checkpoints.as_ref()?.snapshot().ok()?;
                Some(checkpoint_parcel(self.attempt, snapshot))
            }
            Kept::Disk => {
                let is_checkpoint = |notice: &FromHost| matches!(notice, FromHost::Checkpoint { .. });
                let checkpoint = self.read_back().ok()?.into_iter().find(is_checkpoint)?;
                parcel_from_disk(checkpoint, true)
            }
        }
    }

    /// What it has printed: stdout and stderr; nothing if it can't be read back.
    pub(super) fn printed(&self) -> [Vec<u8>; 2] {
        match &self.kept {
            Kept::Memory(end) => [end.stdout.clone(), end.stderr.clone()],
            Kept::Disk => {
                let mut printed = [Vec::new(), Vec::new()];
                for notice in self.read_back().unwrap_or_default() {
                    if let FromHost::Output { stderr, text, .. } = notice {
                        printed[usize::from(stderr)] = text;
                    }
                }
                printed
            }
        }
    }

    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self.kept, Kept::Memory(_))
    }

    /// Writes the end to disk, so that it outlives the host, and forgets what can be read back from there.
    ///
    /// The checkpoint is written inline, whatever its size.
    ///
    /// # Errors
    ///
    /// Those of [`spool::write_end`]; the end then stays in memory.
    pub(super) fn spill(&mut self) -> io::Result<()> {
        let attempt = self.attempt;
        let Kept::Memory(end) = &self.kept else { return Ok(()) };
        let mut notices = vec![codec::encode(&self.held())];
        let checkpoint = end.checkpoints.as_ref().map(Reader::bytes).transpose();
        match checkpoint {
            Ok(checkpoint) => notices.extend(checkpoint.map(|state| {
                codec::encode(&FromHost::Checkpoint { attempt, state: Payload::Inline(state) })
            })),
            // None was ever whole.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        notices.extend(end.notices(attempt, self.region).iter().map(codec::encode));
        spool::write_end(&self.spool_file, &notices)?;
        self.kept = Kept::Disk;
        Ok(())
    }

    /// The end is confirmed: deletes what was written of it.
    pub(super) fn confirm(self) {
        if let Kept::Disk = self.kept {
            // What stays is told once more by a worker that finds it, and confirmed again.
            let _ = spool::remove_end(&self.spool_file);
        }
    }

    /// The notices on disk, less `Held`. Where they are gone or torn, that is the end.
    ///
    /// # Errors
    ///
    /// They can't be read now, and perhaps later.
    fn read_back(&self) -> io::Result<Vec<FromHost>> {
        let decode = |notice: Vec<u8>| {
            codec::decode(&notice).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        };
        let notices = spool::read_end(&self.spool_file)
            .and_then(|notices| notices.into_iter().map(decode).collect::<io::Result<Vec<FromHost>>>());
        match notices {
            Ok(mut notices) => {
                notices.retain(|notice| !matches!(notice, FromHost::Held { .. }));
                Ok(notices)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                let reason = format!("the job's end can't be read back from disk: {error}");
                Ok(End::unbegun(reason).notices(self.attempt, self.region))
            }
            Err(error) => Err(error),
        }
    }
}

/// A checkpoint as a notice.
pub(super) fn checkpoint_parcel(attempt: AttemptId, (state, memory): Snapshot) -> Parcel {
    Parcel::with(&FromHost::Checkpoint { attempt, state }, memory)
}

/// A notice that was read from disk. A large checkpoint becomes a memfd again; without memory for it there is none.
fn parcel_from_disk(mut notice: FromHost, with_checkpoint: bool) -> Option<Parcel> {
    if let FromHost::Checkpoint { attempt, state } = &mut notice {
        let attempt = *attempt;
        return match state {
            _ if !with_checkpoint => None,
            Payload::Inline(state) if state.len() > INLINE_BODY_BYTES => {
                let snapshot = checkpoint::in_memory(&mem::take(state)).ok()?;
                Some(checkpoint_parcel(attempt, snapshot))
            }
            Payload::Inline(_) | Payload::Descriptor { .. } => Some(Parcel::new(&notice)),
        };
    }
    Some(Parcel::new(&notice))
}

#[cfg(test)]
mod tests {
    use lrts_core::ids::SessionId;

    use super::*;

    fn ended(directory: &tempfile::TempDir) -> Ended {
        let attempt = AttemptId { job: SessionId(1).job(2), attempt: 3 };
        let end = End { stdout: b"out".to_vec(), stderr: b"err".to_vec(), ..End::unbegun("why".to_owned()) };
        let kept = Kept::Memory(Box::new(end));
        Ended {
            attempt,
            notes: b"notes".to_vec(),
            spool_file: directory.path().join("result"),
            region: Some(7),
            kept,
            cgroup: None,
        }
    }

    #[test]
    fn an_end_says_the_same_from_memory_and_from_disk() {
        let directory = tempfile::tempdir().unwrap();
        let mut ended = ended(&directory);
        let notices = |ended: &mut Ended| -> Vec<Vec<u8>> {
            ended.parcels(true).unwrap().into_iter().map(|parcel| parcel.notice().to_vec()).collect()
        };
        let (before, printed) = (notices(&mut ended), ended.printed());
        assert_eq!(before.len(), 3);
        ended.spill().unwrap();
        assert!(!ended.is_in_memory());
        assert_eq!((notices(&mut ended), ended.printed()), (before.clone(), printed));

        let on_disk = spool::read_end(&ended.spool_file).unwrap();
        assert_eq!(codec::decode::<FromHost>(&on_disk[0]).unwrap(), ended.held());
        assert_eq!(on_disk[1..], before);
        ended.confirm();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_end_that_cannot_be_written_stays_and_one_that_cannot_be_read_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let mut ended = ended(&directory);
        let spool_file = mem::replace(&mut ended.spool_file, "/no such directory/result".into());
        assert!(ended.spill().is_err() && ended.is_in_memory());
        ended.spool_file = spool_file;
        ended.spill().unwrap();
        spool::remove_end(&ended.spool_file).unwrap();
        let notices = ended.read_back().unwrap();
        let [FromHost::Ended { end: AttemptEnd::Lost { reason }, region: Some(7), .. }] = &notices[..] else {
            panic!("{notices:?}")
        };
        assert!(reason.starts_with("the job's end can't be read back from disk: "), "{reason}");
    }
}
