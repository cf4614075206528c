//! The lrts scheduler.
mod engine;
