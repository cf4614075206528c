//! Scenarios: events in, actions out, invented time. And a simulation of everything that may happen together.

mod cluster;
mod store;

mod applications;
mod attempts;
mod bounds;
mod checkpoints;
mod exclusive;
mod keys;
mod leases;
mod leaving;
mod owners;
mod placement;
mod programs;
mod ranges;
mod restart;
mod retention;
mod rivals;
mod sim;
mod suspicion;
