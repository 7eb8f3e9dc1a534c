//! The descriptor of a range: its interval, its epoch, its replicas.

use rkyv::rancor;

use crate::types::{Epoch, KeyRange, Location, RangeId, ReplicaId, ReplicaPlace, Route};

/// The key space of a range. No user key can name a key of the system's.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub enum Keyspace {
    /// Keys of users.
    User,
    /// The cluster's own records.
    System,
}

/// What is true of a range; part of its replicated state.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Descriptor {
    /// The range's id.
    pub range: RangeId,
    /// Raised by every change of this descriptor.
    pub epoch: Epoch,
    /// The key space of the interval.
    pub keyspace: Keyspace,
    /// The interval of keys.
    pub keys: KeyRange,
    /// All replicas, voters and learners.
    pub replicas: Vec<ReplicaPlace>,
}

impl Descriptor {
    /// The bytes that the log and the tree keep.
    ///
    /// # Errors
    /// The encoder failed, which no descriptor in memory can cause.
    pub fn encode(&self) -> Result<Vec<u8>, rancor::Error> {
        rkyv::to_bytes::<rancor::Error>(self).map(|bytes| bytes.to_vec())
    }

    /// Reads what [`Descriptor::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are not a descriptor.
    pub fn decode(bytes: &[u8]) -> Result<Descriptor, rancor::Error> {
        rkyv::from_bytes::<Descriptor, rancor::Error>(bytes)
    }

    /// Sets the replicas of a new membership. The epoch rises even if only the right to vote has
    /// changed.
    pub fn set_replicas(&mut self, mut replicas: Vec<ReplicaPlace>) {
        replicas.sort_by_key(|replica| replica.replica);
        self.replicas = replicas;
        self.epoch.conf += 1;
    }

    /// The shard where a replica lives, if it is one of this range.
    pub fn location(&self, replica: ReplicaId) -> Option<Location> {
        self.replicas
            .iter()
            .find(|r| r.replica == replica)
            .map(|r| r.location)
    }

    /// The shards where the replicas live.
    pub fn locations(&self) -> impl Iterator<Item = Location> + '_ {
        self.replicas.iter().map(|place| place.location)
    }

    /// The route that a caller gets; `leader` is the replica that leads, if known.
    pub fn route(&self, leader: Option<ReplicaId>) -> Route {
        Route {
            range: self.range,
            epoch: self.epoch,
            keys: self.keys.clone(),
            leader: leader.and_then(|replica| self.location(replica)),
        }
    }
}
