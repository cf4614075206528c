//! lrts, the Long Running Task Service: all three tiers in one package.
//!
//! A program that schedules jobs needs the `lrts-client` crate alone. This one adds [`LocalCluster`], a whole cluster inside the
//! program, and the `lrts` command (`src/main.rs`), which wraps the daemons:
//!
//! - `lrts-scheduler` owns every job's state,
//! - `lrts-worker` runs every job in a process of its own,
//! - `lrts-progress-server` keeps every bar's latest state,
//! - `lrts-core` is the vocabulary that they share: ids, protocol, transport, progress records.
//!
//! `docs/ARCHITECTURE.md` is the map.

mod local;

pub use local::{LocalCluster, LocalClusterError, LocalConfig, LocalKeys};
