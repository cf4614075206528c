//! What the hosts of an earlier run have left on the disk that are gone: ends of attempts, and rubbish.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use lrts_core::ids::AttemptId;
use lrts_core::protocol::codec;
use lrts_core::protocol::host::{FromHost, Payload};
use lrts_core::spool::{self, Spool};
use tracing::warn;

use super::record::Notes;
use super::supervise::collect;
use super::{HostEnded, HostEvent};
use crate::state_dir::StateDir;

/// What there is. Some of it belongs to attempts that a host still has.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// Ends that hosts have written down.
    pub(crate) ends: Vec<LeftEnd>,
    /// Attempts of which there are files in the spool.
    pub(crate) results: BTreeSet<AttemptId>,
    /// Attempts that have a working directory.
    pub(crate) directories: Vec<AttemptId>,
}

/// An end that a host has written down.
#[derive(Debug)]
pub(crate) struct LeftEnd {
    pub(crate) ended: HostEnded,
    /// As given at its start; none if they are another version's.
    pub(crate) notes: Option<Notes>,
    /// The last checkpoint, if the attempt had one.
    pub(crate) checkpoint: Option<Bytes>,
}

impl Leftovers {
    /// Looks for them. Waits for the disk.
    pub(super) fn find(state: &StateDir) -> Self {
        Self::try_find(state).unwrap_or_else(|error| {
            warn!(%error, "cannot look for what an earlier run has left");
            Self::default()
        })
    }

    fn try_find(state: &StateDir) -> io::Result<Self> {
        let spool = state.spool();
        let mut results: BTreeSet<_> = spool.scan()?.iter().map(|file| file.attempt).collect();
        let mut ends = Vec::new();
        for attempt in spool.ends()? {
            results.insert(attempt);
            match LeftEnd::read(spool, attempt) {
                Ok(end) => ends.push(end),
                Err(error) => {
                    warn!(%attempt, %error, "end of an attempt can't be read");
                    if !spool::is_final(&error) {
                        // The next run may be luckier.
                        results.remove(&attempt);
                    }
                }
            }
        }
        Ok(Self { ends, results, directories: state.working_directories()? })
    }
}

impl LeftEnd {
    /// Reads what a host has written of this attempt's end.
    ///
    /// # Errors
    ///
    /// As [`Spool::read_end`].
    pub(super) fn read(spool: &Spool, attempt: AttemptId) -> io::Result<Self> {
        Self::of(attempt, &spool.read_end(attempt)?)
    }

    /// Takes what a host has written of this attempt's end.
    ///
    /// # Errors
    ///
    /// `InvalidData` if it doesn't say how it ended.
    pub(crate) fn of(attempt: AttemptId, notices: &[Vec<u8>]) -> io::Result<Self> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let mut partial = BTreeMap::new();
        let (mut own_notes, mut checkpoint) = (None, None);
        for notice in notices {
            let notice = codec::decode(notice).map_err(|error| invalid(error.to_string()))?;
            if let FromHost::Held { notes, .. } = &notice {
                own_notes = Notes::decode(notes);
            } else if let FromHost::Checkpoint { state: Payload::Inline(state), .. } = &notice {
                checkpoint = Some(state.clone().into());
            }
            if let Some(HostEvent::Ended(ended)) = collect(notice, &mut partial)
                && ended.attempt == attempt
            {
                return Ok(Self { ended: *ended, notes: own_notes, checkpoint });
            }
        }
        Err(invalid("it doesn't say how the attempt ended".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use lrts_core::ids::SessionId;
    use lrts_core::protocol::host::Output;
    use lrts_core::protocol::worker::AttemptEnd;

    use super::*;

    fn attempt(sequence: u64) -> AttemptId {
        AttemptId { job: SessionId(1).job(sequence), attempt: 1 }
    }

    #[test]
    fn what_cannot_be_read_now_stays_and_checkpoints_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(Some(directory.path())).unwrap();
        let output = |sequence| state.spool().path(attempt(sequence));
        let end = FromHost::Ended {
            attempt: attempt(1),
            end: AttemptEnd::Finished,
            output: Output::default(),
            ran: std::time::Duration::ZERO,
            peak_memory_bytes: 0,
            region: None,
        };
        let checkpoint = FromHost::Checkpoint { attempt: attempt(1), state: Payload::Inline(vec![7]) };
        spool::write_end(&output(1), &[checkpoint, end].map(|notice| codec::encode(&notice))).unwrap();
        // Reading it is an error that may pass.
        std::fs::create_dir(output(2).with_extension("1.end")).unwrap();
        std::fs::write(output(2), "an output").unwrap();
        spool::write_end(&output(3), &[b"nonsense"]).unwrap();

        let left = Leftovers::find(&state);
        let [end] = &left.ends[..] else { panic!("{left:?}") };
        assert_eq!((end.ended.attempt, end.checkpoint.as_deref()), (attempt(1), Some(&[7][..])));
        assert_eq!(left.results, [1, 3].map(attempt).into());
    }
}
