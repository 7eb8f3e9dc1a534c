//! The rows of a range, for what decides and writes within apply.

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
