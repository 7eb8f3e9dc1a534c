//! The shard's LSM tree.

/// Files of the tree.
pub trait TableStore: Sized + 'static {}

/// What can go wrong in the tree.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LsmError {}
