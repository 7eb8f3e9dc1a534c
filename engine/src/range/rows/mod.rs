//! The rows of a range, and where in the tree they lie.
//!
//! [`Rows`] is all that [`apply`](crate::range::apply) knows of the tree: it reads the newest version of a key and
//! adds a version. Where a row lies is local to a replica and no part of the replicated state: a replica that has
//! been through merges stores its rows under several data ids (`data_parts`). `places` is what a running replica
//! keeps of that. No I/O here; the tree is in [`crate::tree`]. Lives on the shard's thread.

pub mod data_parts;
pub(in crate::range) mod places;

use crate::lsm::LsmError;
use crate::types::Timestamp;

/// The rows of one range, as apply sees them.
pub trait Rows {
    /// Hands the newest version of a key to `look`: its timestamp, and its value unless it is a
    /// tombstone.
    ///
    /// # Errors
    /// The tree cannot be read.
    fn newest<R>(
        &self,
        key: &[u8],
        look: impl FnOnce(Option<(Timestamp, Option<&[u8]>)>) -> R,
    ) -> Result<R, LsmError>;

    /// Adds a version, newer than all others of the key; `None` is a tombstone.
    fn insert(&mut self, key: &[u8], version: Timestamp, value: Option<&[u8]>);
}
