//! What a worker writes down of each job host, to find it again after a restart.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use lrts_core::ids::{ApplicationId, UserName};
use lrts_core::private_dir;
use lrts_core::protocol::codec;
use lrts_core::spec::BundleRef;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::HostNumber;
use super::process::Process;
use crate::state_dir::StateDir;

/// A job host, as found in `hosts/N.host`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct HostRecord {
    /// What it is a process of.
    pub(crate) bundle: BundleRef,
    /// The process.
    pub(crate) process: Process,
    /// The boot of the machine that it belongs to.
    pub(crate) boot_id: String,
}

impl HostRecord {
    /// Writes it down. Not synced: no host outlives the machine.
    ///
    /// # Errors
    ///
    /// Those of `write(2)` and `rename(2)`.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let part = path.with_extension("part");
        private_dir::write(&part, codec::encode(self))?;
        fs::rename(part, path)
    }

    fn read(path: &Path) -> io::Result<Self> {
        codec::decode_local(&fs::read(path)?)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// The hosts that an earlier run has written down, in this boot of the machine; without a record those whose record can't be
/// read, since they may live. Other files between them are deleted.
///
/// # Errors
///
/// Those of `readdir(3)` and `unlink(2)`.
pub(crate) fn find_hosts(
    state: &StateDir,
    boot_id: &str,
) -> io::Result<BTreeMap<HostNumber, Option<HostRecord>>> {
    let mut found = BTreeMap::new();
    let mut files = Vec::new();
    for entry in fs::read_dir(state.hosts())? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<HostNumber>().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|suffix| suffix == "host")) {
            match HostRecord::read(&path) {
                Ok(record) if record.boot_id != boot_id => {}
                Ok(record) => {
                    found.insert(number, Some(record));
                }
                Err(error) => {
                    warn!(path = %path.display(), %error, "record of a job host can't be read");
                    found.insert(number, None);
                }
            }
        }
        files.push(path);
    }
    let number_of = |path: &Path| path.file_stem()?.to_str()?.parse::<HostNumber>().ok();
    for path in files.iter().filter(|path| number_of(path).is_none_or(|number| !found.contains_key(&number)))
    {
        fs::remove_file(path)?;
    }
    Ok(found)
}

/// Deletes what is kept of a host that is gone.
pub(super) fn remove_files(state: &StateDir, number: HostNumber) {
    // The record goes first: without it nobody looks for the rest.
    for path in [state.host_record(number), state.host_socket(number), state.host_log(number)] {
        let _never_made = fs::remove_file(path);
    }
}

/// What a worker wants to know of an attempt that it takes over: the host keeps it for it. Fields that are missing were not
/// written by the worker that started the attempt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Notes {
    /// Whose it is.
    pub(crate) application: ApplicationId,
    /// The user who owns that application, if its scheduler tells users apart.
    #[serde(default)]
    pub(crate) owner: Option<UserName>,
    /// What it runs.
    pub(crate) service: String,
    /// How many slots it takes.
    pub(crate) slots: u32,
    /// Whether it ends with the worker's lease.
    #[serde(default)]
    pub(crate) exclusive: bool,
    /// The store that it comes from.
    pub(crate) store: u64,
    /// How often its application wants the round trip to the progress server measured.
    pub(crate) progress_rtt_test: Duration,
}

impl Notes {
    /// As a host gives them back; none if another version of the worker has written something else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        codec::decode_local(bytes).ok()
    }
}
