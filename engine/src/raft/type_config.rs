//! The bundle of types with which openraft is instantiated.

use std::fmt;
use std::marker::PhantomData;

use openraft::impls::{BoxedErrorSource, InlineBatch, Vote, leader_id_adv::LeaderId};
use openraft::raft::responder::Responder;
use openraft::{EntryPayload, RaftTypeConfig};

use crate::env::Env;
use crate::range::apply::Applied;
use crate::types::{Location, ReplicaId};
use crate::wal::Body;

/// openraft's types for one environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeConfig<E>(PhantomData<E>);

/// A batch of encoded commands; see [`crate::range::command`].
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

/// The results of applying one entry, one for each command.
#[derive(Debug, Default)]
pub struct EntryResults(pub Vec<Applied>);

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

impl<E: Env> RaftTypeConfig for TypeConfig<E> {
    type D = Commands;
    type R = EntryResults;
    type NodeId = ReplicaId;
    type Node = Location;
    type Term = u64;
    type LeaderId = LeaderId<u64, ReplicaId>;
    type Vote = Vote<Self::LeaderId>;
    type Payload = EntryPayload<Commands, ReplicaId, Location>;
    type Entry = openraft::impls::Entry<LeaderId<u64, ReplicaId>, Self::Payload>;
    type AsyncRuntime = E::Runtime;
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
