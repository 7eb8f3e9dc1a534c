//! The cluster's records, kept as rows of the system range.
//!
//! | key | value |
//! |---|---|
//! | `node/` id | [`NodeRecord`] |
//! | `range/` id | [`RangeRecord`] |
//! | `membership/` id | [`MembershipRecord`]: what operators decided about the node; without a row it is active |
//! | `setting/` version | [`Setting`]: the last one of a name is in force, all of them are the history |
//! | `held/` id | [`HeldRecord`]: until when the range must not be merged; without a row it may be |
//! | `token/` 32 hexadecimal digits | the id of the node that joined with this token |
//! | `next/node`, `next/range`, `next/replica` | the lowest id that was never given |
//!
//! Numbers in keys are sixteen hexadecimal digits. A value begins with its version: 1, but for
//! [`NodeRecord`] and [`RangeRecord`], of which version 2 is written and version 1 is read, too. Pure.

use rkyv::api::high::{HighSerializer, HighValidator};
use rkyv::rancor::{Error, Strategy};
use rkyv::ser::allocator::ArenaHandle;

use crate::codec::{self, Whole};
use crate::range::Descriptor;
use crate::types::{NodeId, RangeId, ReplicaId, ShardId};

/// The version of the values.
const VERSION: u8 = 1;
/// The version of the values of nodes. Version 1 did not say that shards are given up.
const NODE_VERSION: u8 = 2;
/// The version of the values of ranges. Version 1 did not say when a range was born.
const RANGE_VERSION: u8 = 2;

/// Prefix of the rows of nodes.
pub const NODE: &str = "node/";
/// Prefix of the rows of ranges.
pub const RANGE: &str = "range/";
/// Prefix of the rows of what operators decided about nodes.
pub const MEMBERSHIP: &str = "membership/";
/// Prefix of the rows of settings.
pub const SETTING: &str = "setting/";
/// Prefix of the rows of ranges that must not be merged.
pub const HELD: &str = "held/";
/// Prefix of the rows of tokens.
pub const TOKEN: &str = "token/";
/// The row of the next node id.
pub const NEXT_NODE: &str = "next/node";
/// The row of the next range id.
pub const NEXT_RANGE: &str = "next/range";
/// The ranges with which a cluster is bootstrapped have ids below this. People type ids of ranges, so
/// it is a number that they can read.
pub const FIRST_NEW_RANGE: u64 = 1_000_001;
/// The row of the next replica id.
pub const NEXT_REPLICA: &str = "next/replica";
/// The replicas with which a cluster is bootstrapped have ids below this.
pub const FIRST_NEW_REPLICA: u64 = 1 << 32;

/// A row of the system range: key and value.
pub type Row = (Vec<u8>, Vec<u8>);

/// A node, as it last described itself.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct NodeRecord {
    /// The node's id, never used for another one.
    pub id: NodeId,
    /// The address under which other nodes reach it, HOST:PORT.
    pub address: String,
    /// The address of its admin HTTP port.
    pub http: String,
    /// How many shards it has.
    pub shards: u16,
    /// Its process: see [`NodeRecord::incarnation`].
    pub incarnation: u128,
    /// When the process started, in milliseconds of the node's wall clock.
    pub started_ms: u64,
    /// The release that it runs.
    pub release: String,
    /// How many of its shards are given up, the last ones: their replicas move to the others.
    pub leaving_shards: u16,
}

/// [`NodeRecord`] as it was written in version 1.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct NodeRecordV1 {
    id: NodeId,
    address: String,
    http: String,
    shards: u16,
    incarnation: u128,
    started_ms: u64,
    release: String,
}

impl NodeRecord {
    /// The row that keeps it.
    pub fn row(&self) -> Row {
        (key(NODE, self.id.0), codec::encode(NODE_VERSION, self, 0))
    }

    /// Reads a row; `None` if the row is of another kind.
    pub fn of_row(key: &[u8], value: &[u8]) -> Option<NodeRecord> {
        if !key.starts_with(NODE.as_bytes()) {
            return None;
        }
        codec::decode(NODE_VERSION, value).or_else(|| {
            let old: NodeRecordV1 = decode(value)?;
            Some(NodeRecord {
                id: old.id,
                address: old.address,
                http: old.http,
                shards: old.shards,
                incarnation: old.incarnation,
                started_ms: old.started_ms,
                release: old.release,
                leaving_shards: 0,
            })
        })
    }

    /// How many of its shards stay: those with the lowest numbers.
    pub fn staying_shards(&self) -> u16 {
        self.shards.saturating_sub(self.leaving_shards)
    }

    /// Whether a shard of this node is given up, or there is none with this number.
    pub fn gives_up(&self, shard: ShardId) -> bool {
        shard.0 >= self.staying_shards()
    }

    /// Identifies a process: the number of starts on its folder, and a random number, because two
    /// processes may be started on copies of a folder. The random number is 0 if the start could
    /// not be counted because the disk was full: then the next start has the same count.
    pub fn incarnation(starts: u64, random: u64) -> u128 {
        u128::from(starts) << 64 | u128::from(random)
    }

    /// Whether the process `incarnation` runs on an older folder than the process `seen` of the same node,
    /// or on another copy of it.
    pub fn is_older(incarnation: u128, seen: u128) -> bool {
        let (starts, most) = (incarnation >> 64, seen >> 64);
        let are_counted = incarnation as u64 != 0 && seen as u64 != 0;
        starts < most || (starts == most && incarnation != seen && are_counted)
    }

    /// How many processes were started on the folder.
    pub fn starts(&self) -> u64 {
        (self.incarnation >> 64) as u64
    }
}

/// What operators have decided about a node.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub enum MembershipStatus {
    /// It holds replicas and leads ranges.
    #[default]
    Active,
    /// It keeps its replicas, but leads nothing and gets no new ones.
    Draining,
    /// Its replicas are being moved to other nodes.
    Decommissioning,
    /// It holds no replica, and gets none.
    Decommissioned,
    /// It is no longer part of the cluster, and its id is refused.
    Removed,
}

impl MembershipStatus {
    /// Whether the node's replicas stay where they are.
    pub fn keeps_replicas(self) -> bool {
        matches!(self, MembershipStatus::Active | MembershipStatus::Draining)
    }

    /// The word for it, in logs and messages.
    pub fn name(self) -> &'static str {
        match self {
            MembershipStatus::Active => "active",
            MembershipStatus::Draining => "draining",
            MembershipStatus::Decommissioning => "decommissioning",
            MembershipStatus::Decommissioned => "decommissioned",
            MembershipStatus::Removed => "removed",
        }
    }
}

/// What operators have decided about a node, as a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct MembershipRecord {
    /// The node that operators have decided about.
    pub node: NodeId,
    /// The last decision.
    pub status: MembershipStatus,
}

impl MembershipRecord {
    /// The row that keeps it.
    pub fn row(&self) -> Row {
        (key(MEMBERSHIP, self.node.0), encode(self))
    }

    /// Reads a row; `None` if the row is of another kind.
    pub fn of_row(key: &[u8], value: &[u8]) -> Option<MembershipRecord> {
        let is_one = key.starts_with(MEMBERSHIP.as_bytes());
        is_one.then(|| decode(value)).flatten()
    }
}

/// A range, as its leader last described it.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct RangeRecord {
    /// Its interval, epoch and replicas.
    pub descriptor: Descriptor,
    /// The voters among the replicas.
    pub voters: Vec<ReplicaId>,
    /// When the manager first knew of it, in milliseconds since 1970 of the manager's wall clock; 0 if that was
    /// before it was noted.
    pub born_ms: u64,
}

/// [`RangeRecord`] in version 1.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct RangeRecord1 {
    descriptor: Descriptor,
    voters: Vec<ReplicaId>,
}

impl RangeRecord {
    /// The row that keeps it.
    pub fn row(&self) -> Row {
        let value = codec::encode(RANGE_VERSION, self, 0);
        (key(RANGE, self.descriptor.range.0), value)
    }

    /// Reads the value of a row; `None` if it is not a range's record.
    pub fn of_value(value: &[u8]) -> Option<RangeRecord> {
        codec::decode(RANGE_VERSION, value).or_else(|| {
            let RangeRecord1 { descriptor, voters } = decode(value)?;
            Some(RangeRecord {
                descriptor,
                voters,
                born_ms: 0,
            })
        })
    }
}

/// Until when a range must not be merged with its left neighbour, because an operator has made the border
/// between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct HeldRecord {
    /// The range on the right of the border.
    pub range: RangeId,
    /// The time, in milliseconds since 1970; 0 if the range is not held, `u64::MAX` if it is held for
    /// ever.
    pub until_ms: u64,
}

impl HeldRecord {
    /// The row that keeps it.
    pub fn row(&self) -> Row {
        (key(HELD, self.range.0), encode(self))
    }

    /// Reads a row; `None` if the row is of another kind.
    pub fn of_row(key: &[u8], value: &[u8]) -> Option<HeldRecord> {
        let is_one = key.starts_with(HELD.as_bytes());
        is_one.then(|| decode(value)).flatten()
    }
}

/// A setting of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Setting {
    /// The number of this change, counted from 1 over all settings.
    pub version: u64,
    /// The name by which `config set` and `config get` know it.
    pub name: String,
    /// Its value, as typed.
    pub value: String,
    /// When it was set, in milliseconds of the manager's wall clock.
    pub at_ms: u64,
}

/// The key of a numbered row.
pub fn key(kind: &str, number: u64) -> Vec<u8> {
    format!("{kind}{number:016x}").into_bytes()
}

/// The key of a token's row.
pub fn token_key(token: u128) -> Vec<u8> {
    format!("{TOKEN}{token:032x}").into_bytes()
}

/// The token of a row with this key, if it is a token's row.
pub fn token_of(key: &[u8]) -> Option<u128> {
    let digits = key.strip_prefix(TOKEN.as_bytes())?;
    u128::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// The bytes of a record.
pub fn encode<T>(record: &T) -> Vec<u8>
where
    T: for<'a> rkyv::Serialize<HighSerializer<Vec<u8>, ArenaHandle<'a>, Error>>,
{
    codec::encode(VERSION, record, 0)
}

/// Reads what [`encode`] wrote; `None` if the bytes are not a record of this version.
pub fn decode<T>(bytes: &[u8]) -> Option<T>
where
    T: rkyv::Archive,
    T::Archived: for<'a> rkyv::bytecheck::CheckBytes<HighValidator<'a, Error>>
        + for<'a> rkyv::Deserialize<T, Strategy<Whole<'a>, Error>>,
{
    codec::decode(VERSION, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_back_and_parts_and_other_versions_are_not() {
        let setting = Setting {
            version: 7,
            name: "dead-after".to_owned(),
            value: "5m".to_owned(),
            at_ms: 9,
        };
        let bytes = encode(&setting);
        assert_eq!(decode::<Setting>(&bytes), Some(setting));
        for len in 0..bytes.len() {
            assert_eq!(decode::<Setting>(&bytes[..len]), None, "cut to {len}");
        }
        let mut other = bytes.clone();
        other[0] = VERSION + 1;
        assert_eq!(decode::<Setting>(&other), None);
        for at in 1..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xff;
            // The result does not matter, but it must not panic.
            drop(decode::<Setting>(&damaged));
        }
    }

    /// A range's record as it was written before ranges could be held.
    const RANGE_OF_RELEASE_1: &str = "016102000000000000000200000000000000010000000300000000e6ffffff01\
        000000000000000000000000d6ffffff00000000ceffffff01000000";
    /// A row that holds a range for ever.
    const HELD_ROW: &str = "010200000000000000ffffffffffffffff";

    fn hex(digits: &str) -> Vec<u8> {
        let pairs = digits.as_bytes().chunks(2);
        let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        pairs
            .map(|pair| byte(pair).expect("hexadecimal digits"))
            .collect()
    }

    #[test]
    fn rows_that_release_1_wrote_are_read() {
        // The bytes of a range's record and of a membership's before ranges could be held.
        let range = RangeRecord {
            descriptor: Descriptor {
                range: RangeId(2),
                epoch: crate::types::Epoch {
                    version: 1,
                    conf: 3,
                },
                keyspace: crate::range::Keyspace::User,
                keys: crate::types::KeyRange {
                    start: b"a".to_vec(),
                    end: None,
                },
                replicas: Vec::new(),
            },
            voters: vec![ReplicaId(2)],
            born_ms: 0,
        };
        let written = hex(RANGE_OF_RELEASE_1);
        assert_eq!(RangeRecord::of_value(&written).as_ref(), Some(&range));
        let range = RangeRecord {
            born_ms: 1234,
            ..range
        };
        let (key, value) = range.row();
        assert_eq!(key, b"range/0000000000000002");
        assert_eq!(value[0], RANGE_VERSION);
        assert_eq!(RangeRecord::of_value(&value).as_ref(), Some(&range));
        for len in 0..value.len() {
            assert_eq!(RangeRecord::of_value(&value[..len]), None, "cut to {len}");
        }
        let held = HeldRecord {
            range: RangeId(2),
            until_ms: u64::MAX,
        };
        let (key, value) = held.row();
        assert_eq!(key, b"held/0000000000000002");
        assert_eq!(value, hex(HELD_ROW));
        assert_eq!(HeldRecord::of_row(&key, &value), Some(held));
        assert_eq!(HeldRecord::of_row(b"range/0000000000000002", &value), None);
    }

    /// The record of node 3 with two shards as it was written before shards could be given up.
    const NODE_OF_RELEASE_1: &str = "0131302e302e302e333a3734303031302e302e302e333a3734383003000000000000008d000000de\
        ffffff8d000000e3ffffff020009000000000000000700000000000000d204000000000000302e31\
        2e30ffffff";

    #[test]
    fn a_nodes_row_is_read_as_this_release_and_release_1_wrote_it() {
        let mut node = NodeRecord {
            id: NodeId(3),
            address: "10.0.0.3:7400".to_owned(),
            http: "10.0.0.3:7480".to_owned(),
            shards: 2,
            incarnation: NodeRecord::incarnation(7, 9),
            started_ms: 1234,
            release: "0.1.0".to_owned(),
            leaving_shards: 0,
        };
        let (key, _) = node.row();
        let read = NodeRecord::of_row(&key, &hex(NODE_OF_RELEASE_1));
        assert_eq!(read.as_ref(), Some(&node));
        node.leaving_shards = 1;
        let (key, value) = node.row();
        assert_eq!(NodeRecord::of_row(&key, &value).as_ref(), Some(&node));
        assert_eq!(NodeRecord::of_row(b"range/0000000000000003", &value), None);
        for len in 0..value.len() {
            // The result does not matter, but it must not panic.
            drop(NodeRecord::of_row(&key, &value[..len]));
        }
        let stays = |shard| !node.gives_up(ShardId(shard));
        assert!(stays(0) && !stays(1) && !stays(2));
    }

    #[test]
    fn a_folder_that_went_back_is_older_and_a_start_that_was_not_counted_is_not() {
        let incarnation = NodeRecord::incarnation;
        assert!(
            NodeRecord::is_older(incarnation(6, 9), incarnation(7, 1)),
            "fewer starts"
        );
        assert!(
            NodeRecord::is_older(incarnation(6, 0), incarnation(7, 1)),
            "fewer starts"
        );
        assert!(
            NodeRecord::is_older(incarnation(7, 9), incarnation(7, 1)),
            "another copy"
        );
        assert!(
            !NodeRecord::is_older(incarnation(7, 1), incarnation(7, 1)),
            "itself"
        );
        assert!(
            !NodeRecord::is_older(incarnation(8, 9), incarnation(7, 1)),
            "a later one"
        );
        assert!(!NodeRecord::is_older(incarnation(7, 9), incarnation(7, 0)));
        assert!(!NodeRecord::is_older(incarnation(7, 0), incarnation(7, 9)));
    }

    #[test]
    fn keys_sort_by_number() {
        assert!(key(NODE, 9) < key(NODE, 10));
        assert!(key(NODE, 255) < key(NODE, 256));
        assert_eq!(token_of(&token_key(u128::MAX - 1)), Some(u128::MAX - 1));
        assert_eq!(token_of(b"node/1"), None);
    }
}
