//! What the hosts of an earlier run have left on the disk that are gone: ends of attempts, and rubbish.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use lrts_core::ids::AttemptId;
use lrts_core::protocol::codec;
use lrts_core::protocol::host::FromHost;
use tracing::warn;

use super::record::Notes;
use super::supervise::collect;
use super::{HostEnded, HostEvent};
use crate::state_dir::StateDir;

/// What there is. Some of it belongs to attempts that a host still has.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// Ends that hosts have written down.
    pub(crate) ends: Vec<(HostEnded, Option<Notes>)>,
    /// Attempts of which there are files in the spool.
    pub(crate) results: BTreeSet<AttemptId>,
    /// Attempts that have a working directory.
    pub(crate) directories: Vec<AttemptId>,
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
            match spool.read_end(attempt).and_then(|notices| put_together(attempt, &notices)) {
                Ok(end) => ends.push(end),
                Err(error) => warn!(%attempt, %error, "end of an attempt can't be read"),
            }
        }
        Ok(Self { ends, results, directories: state.working_directories()? })
    }
}

fn put_together(attempt: AttemptId, notices: &[Vec<u8>]) -> io::Result<(HostEnded, Option<Notes>)> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut partial = BTreeMap::new();
    let mut own_notes = None;
    for notice in notices {
        let notice = codec::decode(notice).map_err(|error| invalid(error.to_string()))?;
        if let FromHost::Held { notes, .. } = &notice {
            own_notes = Notes::decode(notes);
        }
        if let Some(HostEvent::Ended(ended)) = collect(notice, &mut partial)
            && ended.attempt == attempt
        {
            return Ok((*ended, own_notes));
        }
    }
    Err(invalid("it doesn't say how the attempt ended".to_owned()))
}
