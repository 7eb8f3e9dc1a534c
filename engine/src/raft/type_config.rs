//! The bundle of types with which openraft is instantiated.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;

use openraft::impls::leader_id_adv::LeaderId;
use openraft::impls::{BoxedErrorSource, InlineBatch};
use openraft::raft::responder::Responder;
use openraft::{EntryPayload, RaftTypeConfig};

use crate::raft::machine::{Machine, RuntimeOf};
use crate::types::{Location, ReplicaId};
use crate::wal::Body;

/// A term and its leader.
pub type Leader = LeaderId<u64, ReplicaId>;
/// openraft's log id.
pub type RaftLogId = openraft::LogId<Leader>;
/// openraft's vote.
pub type RaftVote = openraft::impls::Vote<Leader>;
/// What openraft's entry holds.
type RaftPayload = EntryPayload<Commands, ReplicaId, Location>;
/// openraft's entry.
pub type RaftEntry = openraft::impls::Entry<Leader, RaftPayload>;
/// openraft's membership and the entry that set it.
pub type RaftMembership = openraft::StoredMembership<Leader, ReplicaId, Location>;
/// openraft's description of a snapshot.
pub type SnapshotMeta = openraft::SnapshotMeta<Leader, ReplicaId, Location>;

/// openraft's types for one kind of state machine. It has one value.
pub struct TypeConfig<M>(PhantomData<M>);

/// A batch of encoded commands, which the state machine understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commands(pub Body);

impl fmt::Display for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of commands", self.0.len())
    }
}

/// Needed by openraft's storage suite alone, which makes node ids from numbers.
impl From<u64> for ReplicaId {
    fn from(id: u64) -> ReplicaId {
        ReplicaId(id)
    }
}

/// Calls back with the result of a proposal, on the shard's thread, with no task in between.
pub struct CallbackResponder<T>(Box<dyn FnOnce(T)>);

impl<T> CallbackResponder<T> {
    /// A responder that calls `done` once.
    pub fn new(done: impl FnOnce(T) + 'static) -> CallbackResponder<T> {
        CallbackResponder(Box::new(done))
    }
}

impl<C: RaftTypeConfig, T: 'static> Responder<C, T> for CallbackResponder<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

impl<M: Machine> RaftTypeConfig for TypeConfig<M> {
    type D = Commands;
    type R = M::Results;
    type NodeId = ReplicaId;
    type Node = Location;
    type Term = u64;
    type LeaderId = Leader;
    type Vote = RaftVote;
    type Payload = RaftPayload;
    type Entry = RaftEntry;
    type AsyncRuntime = RuntimeOf<M>;
    type Responder<T>
        = CallbackResponder<T>
    where
        T: 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: 'static;
    type ErrorSource = BoxedErrorSource;
}

// openraft asks these of its types. Deriving them would ask them of the state machine.

impl<M> Clone for TypeConfig<M> {
    fn clone(&self) -> TypeConfig<M> {
        *self
    }
}

impl<M> Copy for TypeConfig<M> {}

impl<M> fmt::Debug for TypeConfig<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TypeConfig")
    }
}

impl<M> Default for TypeConfig<M> {
    fn default() -> TypeConfig<M> {
        TypeConfig(PhantomData)
    }
}

impl<M> PartialEq for TypeConfig<M> {
    fn eq(&self, other: &TypeConfig<M>) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<M> Eq for TypeConfig<M> {}

impl<M> PartialOrd for TypeConfig<M> {
    fn partial_cmp(&self, other: &TypeConfig<M>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<M> Ord for TypeConfig<M> {
    fn cmp(&self, other: &TypeConfig<M>) -> Ordering {
        self.0.cmp(&other.0)
    }
}
