//! The database engine: ranges of keys, replicated by Raft, on one log and one tree for each shard.
//!
//! The engine knows no socket, no client protocol, no executor and no wall clock. It reaches the
//! world only through [`env::Env`], which the server implements on glommio and io_uring, and the
//! simulator in virtual time with faults. A shard with everything below it lives on one thread;
//! only the hybrid clock ([`hlc`]) is shared by all shards, and the tables on disk ([`lsm`]) have
//! background threads.
//!
//! ```text
//!      requests of clients     messages of other shards     orders of operators
//!              |                          |                         |
//! +------------v--------------------------v-------------------------v-------------+
//! | gateway  answers a request here, forwards it once, or tells the route         |
//! |                                                                               |
//! | shard    finds the range and checks its epoch; makes and removes replicas     |
//! |                                                                               |
//! | each replica:                                    on one shard of the cluster: |
//! | +------------------------------------------+     +--------------------------+ |
//! | | range  proposer: queue, timestamps       |     | cluster  the manager:    | |
//! | | raft   order, majority, lease (openraft) |     |   where replicas and     | |
//! | | range  apply: rows, session table        |     |   leaders should be      | |
//! | +-----|------------------------------|-----+     +--------------------------+ |
//! |       | entries                      | rows                                   |
//! | +-----v-----------+   +--------------v-----+                                  |
//! | | wal   one log   |   | lsm   one tree     |     for all replicas of the shard |
//! | +-----|-----------+   +--------------|-----+                                  |
//! +-------|------------------------------|----------------------------------------+
//!         v                              v
//!   env   disk, tables, links to other shards, tasks, time, randomness
//! ```
//!
//! A write goes down on the left (`Shard::write`, proposer, Raft, log). When a majority has it
//! durably, `apply` changes the tree, and the [`shard::WriteSink`] of the caller receives the
//! outcome. While a leader holds its lease, a read ([`shard::Shard::get`]) needs only the tree. The
//! log is purged only up to the entries that the tree has made durable; a start replays the rest.
//!
//! **Code map**
//!
//! | module | what it holds |
//! |---|---|
//! | [`types`], [`limits`] | ids, timestamps and other small values; all bounds |
//! | [`memory`], [`distribution`] | what is measured: budgets of memory and their use; values and their sum |
//! | [`request`], [`error`] | requests, their outcomes, errors, and what became of a write |
//! | [`mod@env`] | the traits of the world outside |
//! | [`disk_fault`] | faults of the disk: what it lacks, and advice when files are damaged |
//! | [`hlc`] | the node's hybrid logical clock |
//! | [`frame`] | frames of messages between nodes |
//! | [`codec`] | the encoding of those messages and of the cluster's records |
//! | [`line_limit`] | a limit on log lines of one kind |
//! | [`fair_share`] | the rule by which the ranges of a shard share what there is a limit on |
//! | [`notify`] | events and counts that the tasks of a thread wait for |
//! | [`wal`] | the log: segments, batches, records, recovery |
//! | [`tree`] | the shard's tree as its ranges use it: when memtables are frozen, room, what is durable |
//! | [`lsm`] | the LSM tree: memtables, tables, the row cache, versions and their collection |
//! | [`raft`] | the adapter to openraft: groups of any state machine, leases, elections, snapshots |
//! | [`range`] | a range's replica, the state machine: commands, state, apply, session table, proposer, storage |
//! | [`cluster`] | the manager: its knowledge, placement, splits and merges, nodes that leave, the view |
//! | [`shard`] | puts it all together: the ranges of one core, their reads and writes, and its part in the cluster |
//! | [`gateway`] | the requests of clients: directory, forwarding, what is in flight; the interface of this crate |
//! | [`mutant`] | deliberate bugs, which the simulator must find |
//!
//! **Reading order.** [`types`], [`error`] and [`mod@env`] first. Then follow a write: the headers of
//! [`gateway`] and [`shard`], [`range::proposer`], [`range::command`], [`raft`] (`group.rs`, `machine.rs`,
//! `log_store.rs`, `state_machine.rs`), [`wal`] (`writer.rs`, then the format in `segment.rs`, `batch.rs` and
//! `record.rs`), [`range::apply`] with [`range::sessions`], [`lsm`]. Then what happens when something fails:
//! `wal/recovery.rs`, `shard/lifecycle/open.rs`, [`range::storage`] and `shard/snapshots/receiver.rs`
//! (snapshots), `raft/lease.rs`, `raft/timers.rs` and [`range::replica::leadership`] (leaders). Last the
//! cluster: [`cluster`] with `shard/cluster_agent/mod.rs` and `shard/replicas/members.rs`.

pub mod boot_time;
pub mod byte_size;
pub mod cluster;
pub mod codec;
pub mod disk_fault;
pub mod distribution;
pub mod env;
pub mod error;
pub mod fair_share;
pub mod frame;
pub mod gateway;
pub mod hlc;
pub mod limits;
pub mod line_limit;
pub mod lsm;
pub mod memory;
pub mod mutant;
pub mod notify;
pub mod raft;
pub mod range;
pub mod request;
pub mod shard;
pub mod tree;
pub mod types;
pub mod wal;
pub mod words;
