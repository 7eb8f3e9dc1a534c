//! The types about splits that messages share: why a range is split, into which parts, and why it could not
//! be split. Pure.

#![allow(
    missing_docs,
    reason = "what rkyv derives for enums has fields without docs"
)]

use crate::types::{KeyRange, RangeId};

/// Why a range is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum SplitReason {
    /// An operator ordered it.
    Manual,
    /// The range has too many bytes.
    Size,
    /// The range has too many requests.
    Load,
}

impl SplitReason {
    /// All reasons.
    pub const ALL: [SplitReason; 3] = [SplitReason::Manual, SplitReason::Size, SplitReason::Load];

    /// The word for it, in metrics and events.
    pub fn name(self) -> &'static str {
        match self {
            SplitReason::Manual => "manual",
            SplitReason::Size => "size",
            SplitReason::Load => "load",
        }
    }
}

/// One of the ranges into which a range was split.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct SplitPart {
    /// Its id.
    pub range: RangeId,
    /// The interval that it got.
    pub keys: KeyRange,
}

/// Why a range could not be split that should have been.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub enum BlockReason {
    /// All of its load or its size is that of one key, which it has alone.
    SingleKey,
    /// There is no key at which it would become better.
    NoKey,
    /// Replicas lag behind the leader.
    Lagging,
    /// Another change of it was under way, or its leader was lost.
    Changing,
    /// The border would be longer than a key may be.
    Limit,
}

impl BlockReason {
    /// The word for it, in replies.
    pub fn name(self) -> &'static str {
        match self {
            BlockReason::SingleKey => "single_key",
            BlockReason::NoKey => "no_key",
            BlockReason::Lagging => "lagging",
            BlockReason::Changing => "changing",
            BlockReason::Limit => "limit",
        }
    }
}

/// What stands in the way of a split.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct SplitBlocked {
    /// The obstacle.
    pub reason: BlockReason,
    /// When it was first found, in milliseconds since 1970 of the manager's wall clock.
    pub since_ms: u64,
    /// The key that is too hot or too large, if it is one.
    pub key: Option<Vec<u8>>,
}
