//! The lrts worker: owns slots and runs every job in a process of its own, under a job host.

mod engine;
