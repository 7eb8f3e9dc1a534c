//! How much memory each budget of a shard is for, and how much of it is in use. Pure.

/// A use of memory that has a budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Its name in the status and in metrics.
    pub name: &'static str,
    /// Bytes in use.
    pub used: u64,
    /// The budget in bytes.
    pub bound: u64,
    /// How often a cache held what was looked for; 0 if this is no cache.
    pub hits: u64,
    /// How often a cache did not hold what was looked for.
    pub misses: u64,
}
