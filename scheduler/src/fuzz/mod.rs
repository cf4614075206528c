//! For fuzzers, see `lrts_core::fuzz`: what the scheduler finds on its disk, and what peers say to it.

mod peers;
#[cfg(test)]
mod tests;

use lrts_core::fuzz::Target;

pub use self::peers::peers;

/// The targets of this crate.
pub const TARGETS: &[Target] = &[("store_row", store_row), ("store", store), ("peers", peers)];

/// One row of the store.
pub fn store_row(bytes: &[u8]) {
    crate::store::fuzz::row(bytes);
}

/// All rows of a store.
pub fn store(bytes: &[u8]) {
    crate::store::fuzz::whole(bytes);
}
