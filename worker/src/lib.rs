//! The lrts worker: owns slots and runs every job in a process of its own, under a job host.

mod bundles;
mod engine;
mod hosts;
mod state_dir;
