//! The shard's write-ahead log.

/// What can go wrong in the log.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WalError {}
