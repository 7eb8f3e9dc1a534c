//! The database, without sockets, runtime or wire format.

pub mod cluster;
pub mod env;
pub mod error;
pub mod frame;
pub mod hlc;
pub mod limits;
pub mod lsm;
pub mod mutant;
pub mod raft;
pub mod range;
pub mod request;
pub mod shard;
pub mod types;
pub mod wal;
