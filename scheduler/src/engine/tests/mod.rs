//! Scenarios: events in, actions out, invented time.

mod cluster;

mod applications;
mod attempts;
mod leases;
mod placement;
