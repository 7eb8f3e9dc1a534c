//! The hash of a row key, one for all that looks a row up: the row cache and the filters of the
//! tables. So a read computes it once.
//!
//! It is XXH3 with 64 bits and no seed, because `lsm-tree` makes the filters of its tables with it;
//! a test in [`super::tables`] holds the two together. Pure.

use xxhash_rust::xxh3::xxh3_64;

/// The hash of a row key.
#[inline]
pub fn of(key: &[u8]) -> u64 {
    xxh3_64(key)
}
