//! What the cluster remembers, as rows of the system range.
//!
//! | key | value |
//! |---|---|
//! | `node/` id | [`NodeRecord`] |
//! | `range/` id | [`RangeRecord`] |
//! | `setting/` version | [`Setting`]: of a name the last counts, all together are the history |
//! | `token/` 32 hexadecimal digits | the id of the node that asked for one with this token |
//! | `next/node`, `next/replica` | the first id that was never given |
//!
//! Numbers in keys are sixteen hexadecimal digits. A value begins with its version. Pure.

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::rancor::Error;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;

use crate::range::Descriptor;
use crate::types::{NodeId, ReplicaId};

/// Version of the values.
const VERSION: u8 = 1;

/// Nodes.
pub const NODE: &str = "node/";
/// Ranges.
pub const RANGE: &str = "range/";
/// Settings.
pub const SETTING: &str = "setting/";
/// Tokens of nodes that were given an id.
pub const TOKEN: &str = "token/";
/// The next node id.
pub const NEXT_NODE: &str = "next/node";
/// The next replica id.
pub const NEXT_REPLICA: &str = "next/replica";
/// Ids of replicas that a cluster is born with lie below this.
pub const FIRST_NEW_REPLICA: u64 = 1 << 32;

/// A row of the system range: key and value.
pub type Row = (Vec<u8>, Vec<u8>);

/// A node, as it last said of itself.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct NodeRecord {
    /// Its id.
    pub id: NodeId,
    /// Where it listens, HOST:PORT.
    pub address: String,
    /// Where its admin pages are.
    pub http: String,
    /// Its shards.
    pub shards: u16,
    /// The process: see [`NodeRecord::life`].
    pub life: u128,
    /// When that was, in milliseconds of its wall clock.
    pub started_ms: u64,
    /// The release that it runs.
    pub release: String,
}

impl NodeRecord {
    /// Names a process: how often one was started on its folder, and a random number, since two may be
    /// started on copies of a folder. The random number is 0 if the start could not be counted, because
    /// the disk is full: then the next one has the same count.
    pub fn life(starts: u64, random: u64) -> u128 {
        u128::from(starts) << 64 | u128::from(random)
    }

    /// Whether a process that comes now runs on a folder that is older than what a process of the same
    /// node was seen to run on, or that is another copy of it.
    pub fn is_older(life: u128, seen: u128) -> bool {
        let (starts, most) = (life >> 64, seen >> 64);
        let are_counted = life as u64 != 0 && seen as u64 != 0;
        starts < most || (starts == most && life != seen && are_counted)
    }

    /// How often a process was started on the folder.
    pub fn starts(&self) -> u64 {
        (self.life >> 64) as u64
    }
}

/// A range, as its leader last said.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct RangeRecord {
    /// Bounds, epoch, replicas.
    pub descriptor: Descriptor,
    /// Those of the replicas that vote.
    pub voters: Vec<ReplicaId>,
}

/// A setting of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Setting {
    /// Counted over all settings from 1.
    pub version: u64,
    /// Its name.
    pub name: String,
    /// Its value, as typed.
    pub value: String,
    /// When it was set, in milliseconds of the leader's wall clock.
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

/// The token of a row's key.
pub fn token_of(key: &[u8]) -> Option<u128> {
    let digits = key.strip_prefix(TOKEN.as_bytes())?;
    u128::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// The bytes of a record, after a byte for its version.
pub fn encode<T>(value: &T) -> Vec<u8>
where
    T: for<'a> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>>,
{
    encode_as(VERSION, value)
}

/// The bytes of a value, after a byte for its version.
pub(super) fn encode_as<T>(version: u8, value: &T) -> Vec<u8>
where
    T: for<'a> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>>,
{
    let mut bytes = vec![version];
    // Nothing that is only numbers, texts and lists can fail to be written.
    if let Ok(body) = rkyv::to_bytes::<Error>(value) {
        bytes.extend_from_slice(&body);
    }
    bytes
}

/// Reads what [`encode`] wrote; `None` if the bytes are none of this version.
pub fn decode<T>(bytes: &[u8]) -> Option<T>
where
    T: rkyv::Archive,
    T::Archived: for<'a> rkyv::bytecheck::CheckBytes<HighValidator<'a, Error>>
        + rkyv::Deserialize<T, HighDeserializer<Error>>,
{
    decode_as(VERSION, bytes)
}

/// Reads what [`encode_as`] wrote; `None` if the bytes are none of this version.
pub(super) fn decode_as<T>(version: u8, bytes: &[u8]) -> Option<T>
where
    T: rkyv::Archive,
    T::Archived: for<'a> rkyv::bytecheck::CheckBytes<HighValidator<'a, Error>>
        + rkyv::Deserialize<T, HighDeserializer<Error>>,
{
    let body = bytes.strip_prefix(&[version])?;
    rkyv::from_bytes::<T, Error>(body).ok()
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
            // Whatever it says, it must not panic.
            drop(decode::<Setting>(&damaged));
        }
    }

    #[test]
    fn a_folder_that_went_back_is_older_and_a_start_that_was_not_counted_is_not() {
        let life = NodeRecord::life;
        assert!(NodeRecord::is_older(life(6, 9), life(7, 1)), "fewer starts");
        assert!(NodeRecord::is_older(life(6, 0), life(7, 1)), "fewer starts");
        assert!(NodeRecord::is_older(life(7, 9), life(7, 1)), "another copy");
        assert!(!NodeRecord::is_older(life(7, 1), life(7, 1)), "itself");
        assert!(!NodeRecord::is_older(life(8, 9), life(7, 1)), "a later one");
        assert!(!NodeRecord::is_older(life(7, 9), life(7, 0)));
        assert!(!NodeRecord::is_older(life(7, 0), life(7, 9)));
    }

    #[test]
    fn keys_sort_by_number() {
        assert!(key(NODE, 9) < key(NODE, 10));
        assert!(key(NODE, 255) < key(NODE, 256));
        assert_eq!(token_of(&token_key(u128::MAX - 1)), Some(u128::MAX - 1));
        assert_eq!(token_of(b"node/1"), None);
    }
}
