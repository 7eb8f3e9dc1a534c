//! What a group needs of the state machine that it replicates.
//!
//! A group knows nothing of what its entries mean: to it they are bytes that a [`Machine`] applies in the
//! order of the log. A replica of a range is one ([`crate::range`]). The machine also says how far it is
//! applied and how far that is durable, exports its content as a snapshot, and replaces its content with a
//! received one. All of it lives on the shard's thread.

use std::fmt::Debug;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::env::Env;
use crate::error::Fatal;
use crate::raft::message::SnapshotRow;
use crate::types::Timestamp;
use crate::wal::{Body, Group, GroupLog, LogEntry, LogId};

/// The tasks and the time of a machine's world.
pub type RuntimeOf<M> = <<M as Machine>::Env as Env>::Runtime;

/// A membership and the entry that set it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedMembership {
    /// The entry; `None` for the membership with which the replica was created.
    pub log_id: Option<LogId>,
    /// The bytes, as [`super::encode_membership`] makes them.
    pub body: Bytes,
}

/// How far a machine has applied the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedState {
    /// The last entry that is applied; `None` while the machine waits for its first entry or
    /// snapshot.
    pub applied: Option<LogId>,
    /// The membership at that entry.
    pub membership: AppliedMembership,
}

/// The state machine of one replica.
pub trait Machine: Sized + 'static {
    /// The world that it lives in.
    type Env: Env;
    /// What applying an entry gives to the one that proposed it.
    type Results: Debug + 'static;
    /// A snapshot of another replica, of which all rows are durable here and the machine has none.
    type Staged: 'static;
    /// Reads a snapshot of this machine.
    type Reader: SnapshotReader;

    /// The ids of its range and its replica.
    fn group(&self) -> Group;

    /// The last entry that it has applied.
    fn applied(&self) -> Option<LogId>;

    /// How far it has applied the log.
    fn applied_state(&self) -> AppliedState;

    /// How far that is durable: the log up to there is not needed for a restart.
    fn durable_state(&self) -> AppliedState;

    /// Whether nothing waits to be proposed, and nothing that was proposed waits to be applied.
    fn is_idle(&self) -> bool;

    /// An entry that changes nothing.
    ///
    /// # Errors
    /// The encoder failed.
    fn empty_entry() -> Result<Body, Fatal>;

    /// Waits until there is room for what the entry writes, and until what it needs is durable: apply is
    /// where back pressure begins.
    ///
    /// # Errors
    /// What the machine writes to has failed, and the process must end.
    fn make_room(&self, entry: &LogEntry) -> impl Future<Output = Result<(), Fatal>>;

    /// Applies the entry after the last one. Deterministic. `None`: what it needs cannot be read now, and
    /// nothing has changed; it is tried again, for as long as the group runs.
    ///
    /// # Errors
    /// The entry or the machine is damaged, and the process must end.
    fn apply(&self, entry: &LogEntry) -> Result<Option<Self::Results>, Fatal>;

    /// Does what can be done now of the work that the next flush would have to do. Called after each
    /// entry, when its proposer has been answered.
    ///
    /// # Errors
    /// See [`Machine::make_room`].
    fn save_ahead(&self) -> impl Future<Output = Result<(), Fatal>>;

    /// Begins to read a snapshot, as of now.
    ///
    /// # Errors
    /// There is nothing to read yet.
    fn read_snapshot(self: Rc<Self>) -> Result<Self::Reader, Fatal>;

    /// Becomes a snapshot of another replica. One record in `log` switches data and log at once.
    ///
    /// # Errors
    /// See [`Machine::make_room`].
    fn install(
        &self,
        staged: Self::Staged,
        log: &GroupLog<Self::Env>,
    ) -> impl Future<Output = Result<(), Fatal>>;

    /// Reports an error that must end the process.
    fn fail(&self, fatal: Fatal);
}

/// A snapshot that is being read, to be sent.
pub trait SnapshotReader {
    /// The last entry that it covers.
    fn last(&self) -> LogId;

    /// The next rows, in the order in which they must be inserted, and for how long the thread read
    /// them. Empty at the end. Lets other tasks run meanwhile.
    ///
    /// # Errors
    /// They cannot be read, or the machine has become another snapshot meanwhile.
    fn next_part(&mut self) -> impl Future<Output = Result<(Vec<SnapshotRow>, Duration), Fatal>>;

    /// The encoded state of the machine as of the beginning.
    fn state(&self) -> Bytes;

    /// Versions at or below this may be missing, as of now.
    fn gc_threshold(&self) -> Timestamp;
}
