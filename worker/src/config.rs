//! What a worker is started with, checked. Below this, nobody reads arguments or environment.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use lrts_core::limits::{GRACE, ORPHAN_GRACE, SLOTS};

/// What a worker does with its jobs when it is asked to end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum OnTerm {
    /// Stops them within the grace period; the scheduler queues them again.
    Stop,
    /// Leaves them to their hosts, for the next worker on the same state directory.
    Leave,
}

/// How a worker is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The scheduler's `host:port`.
    pub scheduler_address: String,
    /// The progress server's `host:port`.
    pub progress_address: String,
    /// The worker's key: a key file, or a keys directory. None: without keys, whoever answers there can run programs here.
    pub keys: Option<PathBuf>,
    /// How many slots it offers; at least 1, at most [`SLOTS`].
    pub slots: u32,
    /// Longest time that messages are handled in a row before anything else gets its turn.
    pub decode_budget: Duration,
    /// Where its state is; without one, the first unlocked `worker-N` under the user's state home.
    pub state_dir: Option<PathBuf>,
    /// Fetched bundles beyond this many bytes are dropped, the least recently used first, never one in use.
    pub bundle_cache_bytes: u64,
    /// Programs that the operator has installed, by name.
    pub installed: BTreeMap<String, PathBuf>,
    /// Whether bundles may be shipped here, not only installed ones run.
    pub ships_bundles: bool,
    /// What a job that is stopped has to end by itself.
    pub grace: Duration,
    /// What happens to its jobs when it is asked to end.
    pub on_term: OnTerm,
    /// How long job hosts and their jobs go on without a worker. Zero: they end with it.
    pub orphan_grace: Duration,
    /// Whether the process is the worker's alone. Then it takes in and kills what job hosts leave behind, and makes itself at
    /// home in its control group.
    pub owns_process: bool,
    /// The program whose progress mode is the progress subprocess.
    pub progress_executable: PathBuf,
}

impl Default for Config {
    /// A worker of a cluster on this machine with the default ports, without keys: a slot per physical core, shipped bundles allowed,
    /// and its own executable for the progress subprocess.
    fn default() -> Self {
        Self {
            scheduler_address: "127.0.0.1:5555".to_owned(),
            progress_address: "127.0.0.1:5454".to_owned(),
            keys: None,
            slots: slots(-1),
            decode_budget: Duration::from_millis(1),
            state_dir: None,
            bundle_cache_bytes: 10 << 30,
            installed: BTreeMap::new(),
            ships_bundles: true,
            grace: GRACE,
            on_term: OnTerm::Stop,
            orphan_grace: ORPHAN_GRACE,
            owns_process: false,
            progress_executable: PathBuf::from("/proc/self/exe"),
        }
    }
}

/// What `--max-jobs` means on this machine: -1 all physical cores, -2 all logical ones, -3 physical less one, -4 logical less
/// one, else the count itself; at least 1 and at most [`SLOTS`].
pub fn slots(max_jobs: i32) -> u32 {
    let cores = |count: usize| u32::try_from(count).unwrap_or(SLOTS);
    let slots = match max_jobs {
        -1 => cores(num_cpus::get_physical()),
        -2 => cores(num_cpus::get()),
        -3 => cores(num_cpus::get_physical()).saturating_sub(1),
        -4 => cores(num_cpus::get()).saturating_sub(1),
        count => u32::try_from(count).unwrap_or(1),
    };
    slots.clamp(1, SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_a_slot() {
        assert_eq!(slots(7), 7);
        assert_eq!(slots(i32::MAX), SLOTS);
        assert_eq!(slots(0), 1);
        for max_jobs in -4..=-1 {
            assert!((1..=SLOTS).contains(&slots(max_jobs)));
        }
        assert!(slots(-4) <= slots(-2) && slots(-3) <= slots(-1));
    }
}
