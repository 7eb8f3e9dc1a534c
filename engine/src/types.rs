//! The ids and small values that every part of the engine speaks of.
//!
//! Each id is a type of its own, so that two numbers can never be swapped. None of them is ever
//! used again after what it named is gone. Pure: no clock, no I/O.

use std::fmt;

use bytes::Bytes;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
        )]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// One process of the cluster.
    NodeId(u64)
}
id! {
    /// One core's executor within a node, counted from 0.
    ShardId(u16)
}
id! {
    /// One interval of keys and the Raft group that holds it.
    RangeId(u64)
}
id! {
    /// One copy of a range on one shard; openraft's node id.
    ReplicaId(u64)
}
id! {
    /// The prefix under which a replica's rows lie in its shard's tree.
    DataId(u64)
}
id! {
    /// One client's session, made at random by the client.
    ClientId(u128)
}

/// How a node is as a whole, beside what its shards know of themselves. What is not known is `None`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct NodeStats {
    /// The median of the times from requests of clients to their replies over the last seconds, in
    /// microseconds; `None` if there were none.
    pub p50_micros: Option<u64>,
    /// The 99th percentile of them.
    pub p99_micros: Option<u64>,
    /// Free bytes on the disk of the data folder.
    pub disk_free: Option<u64>,
    /// All bytes of that disk.
    pub disk_total: Option<u64>,
    /// The largest error that the wall clock may have, in microseconds.
    pub clock_error_micros: Option<u64>,
    /// Whether a time service keeps the clock.
    pub is_clock_kept: Option<bool>,
}

/// The range that holds the cluster's own records; it exists from the first start.
pub const SYSTEM_RANGE: RangeId = RangeId(1);

/// A hybrid logical clock value: 47 bits of milliseconds since 1970, then 16 bits of counter.
///
/// Always below 2^63. See Kulkarni et al., "Logical Physical Clocks" (2014).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Below every timestamp of a row.
    pub const ZERO: Timestamp = Timestamp(0);
    /// Above every timestamp of a row.
    pub const MAX: Timestamp = Timestamp((1 << 63) - 1);
    /// Bits of the counter.
    pub const COUNTER_BITS: u32 = 16;

    /// The first timestamp of a millisecond.
    pub const fn from_ms(ms: u64) -> Timestamp {
        Timestamp((ms << Self::COUNTER_BITS) & Self::MAX.0)
    }

    /// Milliseconds since 1970.
    pub const fn ms(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }

    /// The next timestamp.
    #[must_use]
    pub const fn next(self) -> Timestamp {
        Timestamp(self.0 + 1)
    }

    /// Earlier by `ms` milliseconds, not below zero.
    #[must_use]
    pub const fn minus_ms(self, ms: u64) -> Timestamp {
        Timestamp(self.0.saturating_sub(ms << Self::COUNTER_BITS))
    }

    /// Later by `ms` milliseconds, not above [`Timestamp::MAX`].
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Timestamp {
        let later = self.0.saturating_add(ms << Self::COUNTER_BITS);
        if later > Self::MAX.0 {
            Self::MAX
        } else {
            Timestamp(later)
        }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How often a range's bounds (`version`) and its membership (`conf`) have changed. Never goes back. Of
/// two epochs of a range the greater one is the newer one.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct Epoch {
    /// Raised by split and merge.
    pub version: u32,
    /// Raised by a change of membership.
    pub conf: u32,
}

/// One attempt to merge a range with its right neighbour. Every attempt that does not succeed raises the
/// range's version, so no two attempts have the same id.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct MergeId {
    /// The left range, which takes over the right one.
    pub left: RangeId,
    /// The version of the left range's epoch when the attempt began.
    pub version: u32,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.version, self.conf)
    }
}

/// The keys from `start` to before `end`; an absent bound is open.
#[derive(Clone, Debug, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct KeyRange {
    /// First key; empty for the beginning of the key space.
    pub start: Vec<u8>,
    /// First key after the interval; `None` for the end of the key space.
    pub end: Option<Vec<u8>>,
}

impl KeyRange {
    /// Every key.
    pub const fn all() -> KeyRange {
        KeyRange {
            start: Vec::new(),
            end: None,
        }
    }

    /// Its start, and its end if it has one.
    pub fn interval(&self) -> (&[u8], Option<&[u8]>) {
        (&self.start, self.end.as_deref())
    }

    /// Whether the interval begins at `key` or before it.
    #[inline]
    pub fn begins_up_to(&self, key: &[u8]) -> bool {
        // An empty vector has an address that is not mapped, and where the C library compares with masked
        // loads, the processor takes a hundred cycles to suppress the fault.
        self.start.is_empty() || self.start.as_slice() <= key
    }

    /// Whether the interval holds `key`.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.begins_up_to(key) && self.end.as_deref().is_none_or(|end| key < end)
    }

    /// Whether the intervals have a key in common, neither being empty.
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        let ends_before = |one: &KeyRange, other: &KeyRange| {
            let end = one.end.as_deref();
            end.is_some_and(|end| end <= other.start.as_slice())
        };
        !ends_before(self, other) && !ends_before(other, self)
    }
}

/// Where a replica lives.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct Location {
    /// The node that has the shard.
    pub node: NodeId,
    /// Its shard on that node.
    pub shard: ShardId,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.shard)
    }
}

/// A replica of a range, and where it lives.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct ReplicaPlace {
    /// The replica's id, which is never used again.
    pub replica: ReplicaId,
    /// The shard where it lives.
    pub location: Location,
}

/// Where to send requests for an interval of keys.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Route {
    /// The range that holds the interval.
    pub range: RangeId,
    /// The range's epoch when the route was made.
    pub epoch: Epoch,
    /// The interval that the range holds.
    pub keys: KeyRange,
    /// The shard of the range's leader; `None` if it is not known.
    pub leader: Option<Location>,
}

/// A user's key or value: a slice of the frame or log entry it came in.
pub type Blob = Bytes;

/// A block of a table that must be read from the disk before a read can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ColdBlock {
    /// The number of the table.
    pub table: u64,
    /// Where the block begins in the table's file.
    pub offset: u64,
    /// Its length in the file.
    pub len: u32,
}
