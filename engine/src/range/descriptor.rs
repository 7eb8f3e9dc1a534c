//! What a range is: its interval, its epoch, its replicas.

use rkyv::rancor;

use crate::range::Route;
use crate::types::{Epoch, KeyRange, Location, RangeId, ReplicaId};

/// Which key space a range's keys lie in. No user key can name the system's.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub enum Keyspace {
    /// Keys of users.
    User,
    /// The cluster's own records.
    System,
}

/// One copy of a range.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct ReplicaPlace {
    /// The copy's id, never used again.
    pub replica: ReplicaId,
    /// Where it lives.
    pub location: Location,
}

/// The truth about a range; part of its replicated state.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Descriptor {
    /// The range.
    pub range: RangeId,
    /// Raised by each change of this descriptor.
    pub epoch: Epoch,
    /// Whose keys these are.
    pub keyspace: Keyspace,
    /// The interval.
    pub keys: KeyRange,
    /// The copies.
    pub replicas: Vec<ReplicaPlace>,
}

impl Descriptor {
    /// The bytes kept in the log and in the tree.
    ///
    /// # Errors
    /// None that a descriptor in memory can cause; the type says so because the encoder may fail.
    pub fn encode(&self) -> Result<Vec<u8>, rancor::Error> {
        rkyv::to_bytes::<rancor::Error>(self).map(|bytes| bytes.to_vec())
    }

    /// Reads what [`Descriptor::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are no descriptor.
    pub fn decode(bytes: &[u8]) -> Result<Descriptor, rancor::Error> {
        rkyv::from_bytes::<Descriptor, rancor::Error>(bytes)
    }

    /// Takes over the replicas of a membership that is another than the last: the epoch is a new
    /// one, also if only the right to vote has changed.
    pub fn set_replicas(&mut self, mut replicas: Vec<ReplicaPlace>) {
        replicas.sort_by_key(|replica| replica.replica);
        self.replicas = replicas;
        self.epoch.conf += 1;
    }

    /// Where a replica lives.
    pub fn location(&self, replica: ReplicaId) -> Option<Location> {
        self.replicas
            .iter()
            .find(|r| r.replica == replica)
            .map(|r| r.location)
    }

    /// Where its replicas live.
    pub fn locations(&self) -> impl Iterator<Item = Location> + '_ {
        self.replicas.iter().map(|place| place.location)
    }

    /// What a caller is told, with the leader as far as it is known.
    pub fn route(&self, leader: Option<ReplicaId>) -> Route {
        Route {
            range: self.range,
            epoch: self.epoch,
            keys: self.keys.clone(),
            leader: leader.and_then(|replica| self.location(replica)),
        }
    }
}
