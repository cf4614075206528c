//! Scenarios: events in, actions out, invented time. And a simulation of everything that may happen together.

mod cluster;
mod store;

mod applications;
mod attempts;
mod checkpoints;
mod exclusive;
mod keys;
mod leases;
mod leaving;
mod placement;
mod restart;
mod suspicion;
