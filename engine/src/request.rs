//! What a caller may ask of a shard, and what it gets. No wire format: the server translates.
//!
//! Every write is one [`Batch`]: conditions that must all hold, and mutations of which then all are
//! made. A put, a delete, a compare-and-swap, an increment and a write of several keys are
//! constructors of it. The same type is what lies in the log ([`crate::range::command`]).

#![allow(
    missing_docs,
    reason = "what rkyv derives for enums has fields without docs"
)]

mod rows;

use rangedb_limits::{BrokenLimit, OperationKind, last_key_before};
use smallvec::SmallVec;

use crate::limits::MOVED_ROUTES_MAX;
use crate::types::{Blob, ClientId, ColdBlock, Epoch, RangeId, Timestamp};
pub use rows::{Row, Rows, RowsBuilder};

/// The name of one write, the same for every try of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct RequestId {
    /// The client that writes.
    pub client: ClientId,
    /// The client's number of this write; counts from 1.
    pub sequence: u64,
    /// Below this every write of the client has been answered, and no try of it is under way.
    pub lowest_unanswered: u64,
    /// The client's estimate of the cluster's time when it first tried this write.
    pub first_tried: Timestamp,
}

/// Which range the sender believes to own the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Target {
    /// The id of that range.
    pub range: RangeId,
    /// Its epoch as the sender knows it.
    pub epoch: Epoch,
}

impl Target {
    /// The ranges that may hold the keys which the sender looks for in the target, at most
    /// [`MOVED_ROUTES_MAX`]. `before` are the ranges up to the key that was asked for, from right to
    /// left, and begin with the one that holds it; `after` are those behind it, from left to right. A
    /// split gives the ranges that it makes a higher version, so a range whose version is not above
    /// the target's has taken no key from it.
    pub fn successors<T>(
        self,
        mut before: impl Iterator<Item = T>,
        after: impl Iterator<Item = T>,
        epoch: impl Fn(&T) -> Epoch + Copy,
    ) -> impl Iterator<Item = T> {
        let is_newer = move |range: &T| epoch(range).version > self.epoch.version;
        let own = before.next().into_iter();
        own.chain(after.take_while(is_newer))
            .chain(before.take_while(is_newer))
            .take(MOVED_ROUTES_MAX)
    }
}

/// What a key must be for a batch to be written.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Condition {
    /// The key that the condition is about.
    pub key: Blob,
    /// What is expected of it.
    pub expected: Expected,
}

/// What a condition expects of its key.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Expected {
    /// The key has no value.
    Absent,
    /// The key has exactly this value.
    Value(Blob),
    /// The key's newest version has this timestamp, and is a value.
    Version(Timestamp),
    /// The key has a value.
    Exists,
}

impl Expected {
    /// The value that is expected, if one is.
    fn value(&self) -> Option<&Blob> {
        match self {
            Expected::Value(value) => Some(value),
            Expected::Absent | Expected::Version(_) | Expected::Exists => None,
        }
    }
}

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Mutation {
    /// The key that is changed.
    pub key: Blob,
    /// What becomes of it.
    pub change: Change,
}

/// What a mutation does to its key.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Change {
    /// Sets the key.
    Put {
        value: Blob,
        /// The place for an expiry. No request may name one yet.
        expires_at: Option<Timestamp>,
    },
    /// Removes the key.
    Delete,
    /// Adds to a signed 64-bit number in decimal text; an absent key counts as 0.
    Add { delta: i64 },
}

impl Change {
    /// Sets the key, or without a value removes it.
    pub fn to(value: Option<Blob>) -> Change {
        value.map_or(Change::Delete, |value| Change::Put {
            value,
            expires_at: None,
        })
    }

    /// The value that it carries.
    pub fn value(&self) -> Option<&Blob> {
        match self {
            Change::Put { value, .. } => Some(value),
            Change::Delete | Change::Add { .. } => None,
        }
    }
}

/// A write within one range: if all conditions hold all mutations are made, or nothing is.
///
/// Conditions look at the keys as they were before the batch. Mutations count in their order: of a
/// key that is changed twice the last change counts, and an addition sees the changes before it.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Batch {
    /// In the order in which they are looked at.
    pub conditions: Vec<Condition>,
    /// At least one. Most batches have exactly one, which needs no allocation.
    pub mutations: SmallVec<[Mutation; 1]>,
}

impl Batch {
    /// A batch with one mutation.
    fn of(conditions: Vec<Condition>, key: Blob, change: Change) -> Batch {
        let mutations = SmallVec::from_buf([Mutation { key, change }]);
        Batch {
            conditions,
            mutations,
        }
    }

    /// Sets a key.
    pub fn put(key: Blob, value: Blob) -> Batch {
        Batch::of(Vec::new(), key, Change::to(Some(value)))
    }

    /// Removes a key.
    pub fn delete(key: Blob) -> Batch {
        Batch::of(Vec::new(), key, Change::Delete)
    }

    /// Adds to a number.
    pub fn add(key: Blob, delta: i64) -> Batch {
        Batch::of(Vec::new(), key, Change::Add { delta })
    }

    /// Sets or (with no `value`) removes a key if it is what is expected.
    pub fn compare_and_swap(key: Blob, expected: Expected, value: Option<Blob>) -> Batch {
        let condition = Condition {
            key: key.clone(),
            expected,
        };
        Batch::of(vec![condition], key, Change::to(value))
    }

    /// Sets or (where there is no value) removes several keys.
    pub fn set_all(changes: impl IntoIterator<Item = (Blob, Option<Blob>)>) -> Batch {
        let mutation = |(key, value)| Mutation {
            key,
            change: Change::to(value),
        };
        Batch {
            conditions: Vec::new(),
            mutations: changes.into_iter().map(mutation).collect(),
        }
    }

    /// The key that decides where the batch goes and where its request of a session lies.
    pub fn first_key(&self) -> Option<&Blob> {
        self.mutations.first().map(|mutation| &mutation.key)
    }

    /// The keys of its conditions and mutations.
    pub fn keys(&self) -> impl Iterator<Item = &Blob> {
        let conditions = self.conditions.iter().map(|condition| &condition.key);
        conditions.chain(self.mutations.iter().map(|mutation| &mutation.key))
    }

    /// The keys whose present values decide what it does: those of its conditions and of its increments, and
    /// that of a delete which is alone.
    pub fn keys_read(&self) -> impl Iterator<Item = &Blob> {
        let is_one = self.mutations.len() == 1;
        let conditions = self.conditions.iter().map(|condition| &condition.key);
        let reads = move |mutation: &&Mutation| match mutation.change {
            Change::Put { .. } => false,
            Change::Delete => is_one,
            Change::Add { .. } => true,
        };
        conditions.chain(
            self.mutations
                .iter()
                .filter(reads)
                .map(|mutation| &mutation.key),
        )
    }

    /// Conditions and mutations.
    pub fn operations(&self) -> usize {
        self.conditions.len() + self.mutations.len()
    }

    /// Whether all that it does is to delete.
    pub fn only_deletes(&self) -> bool {
        let deletes = |mutation: &Mutation| matches!(mutation.change, Change::Delete);
        self.mutations.iter().all(deletes)
    }

    /// Checks the batch against the limits.
    ///
    /// # Errors
    /// See [`BrokenLimit`].
    pub fn check(&self) -> Result<(), BrokenLimit> {
        let conditions = self.conditions.iter().map(|c| rangedb_limits::Operation {
            kind: OperationKind::Condition,
            key: &c.key,
            value: c.expected.value().map_or(&[], |value| value),
        });
        let mutations = self.mutations.iter().map(|m| rangedb_limits::Operation {
            kind: match m.change {
                Change::Put { .. } | Change::Delete => OperationKind::Mutation,
                Change::Add { .. } => OperationKind::Addition,
            },
            key: &m.key,
            value: m.change.value().map_or(&[], |value| value),
        });
        rangedb_limits::check_write(conditions.chain(mutations))
    }

    /// How many of its mutations add to a number.
    fn additions(&self) -> usize {
        let adds = |m: &&Mutation| matches!(m.change, Change::Add { .. });
        self.mutations.iter().filter(adds).count()
    }

    /// How many keys are read when it is applied.
    pub fn reads(&self) -> usize {
        let lone_delete = match self.mutations.as_slice() {
            [only] => usize::from(matches!(only.change, Change::Delete)),
            _ => 0,
        };
        self.conditions.len() + self.additions() + lone_delete
    }

    /// Bytes of its keys and values, those that are expected among them.
    pub fn len_in_bytes(&self) -> usize {
        let expected = self
            .conditions
            .iter()
            .map(|c| c.expected.value().map_or(0, Blob::len));
        let values = self
            .mutations
            .iter()
            .map(|m| m.change.value().map_or(0, Blob::len));
        self.keys().map(Blob::len).sum::<usize>() + expected.sum::<usize>() + values.sum::<usize>()
    }
}

/// What a write that was decided did.
///
/// It lies in session rows on disk: variants and fields are only added at the end, and none may
/// need more bytes than [`Outcome::Number`], the longest of the first format.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Outcome {
    /// Written at this version. `existed`: a key that a condition names, or that a lone delete
    /// removes, had a value.
    Done { version: Timestamp, existed: bool },
    /// The number after a batch with one addition.
    Number { version: Timestamp, value: i64 },
    /// A condition did not hold; nothing was written.
    ConditionFailed {
        /// The version of the present value of its key, if there is one.
        current: Option<Timestamp>,
        /// Its place among the batch's conditions, from 0.
        condition: u32,
    },
    /// An addition met a value that is no number; nothing was written.
    NotANumber,
    /// An addition would have left the signed 64 bits; nothing was written.
    NumberOverflow,
    /// The epoch was stale at apply, or a key lay outside the range; nothing was written.
    Moved,
    /// The write can no longer be distinguished from one that was applied; nothing was written now.
    SessionExpired,
    /// The numbers after a batch with several additions, in the order of its mutations.
    Numbers {
        version: Timestamp,
        values: Box<[i64]>,
    },
}

impl Outcome {
    /// The version under which something was written.
    pub fn version(&self) -> Option<Timestamp> {
        match self {
            Outcome::Done { version, .. }
            | Outcome::Number { version, .. }
            | Outcome::Numbers { version, .. } => Some(*version),
            Outcome::ConditionFailed { .. }
            | Outcome::NotANumber
            | Outcome::NumberOverflow
            | Outcome::Moved
            | Outcome::SessionExpired => None,
        }
    }
}

/// What a read gives at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read<R> {
    /// What it was asked for.
    Done(R),
    /// Nothing yet: the caller must wait for this, then look again.
    Wait(Wait),
}

/// What a read must wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The leader's lease has run out for the moment: a majority must confirm that it still leads.
    Confirmation,
    /// This block of a table is being read from the disk.
    Block(ColdBlock),
}

/// A value and its version.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Versioned {
    /// The bytes; empty differs from absent.
    pub value: Blob,
    /// Its commit timestamp.
    pub version: Timestamp,
}

/// A scan within one range.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct ScanRequest {
    /// First key, inclusive; absent: from the beginning.
    pub start: Option<Blob>,
    /// End, exclusive; absent: to the end.
    pub end: Option<Blob>,
    /// Descending order: begins with the last key before `end`.
    pub reverse: bool,
    /// Values are not read out: those of the reply are empty, and do not count as its bytes.
    pub keys_only: bool,
    /// Most rows of the reply; 0 and more than the limit mean the limit.
    pub rows_max: usize,
    /// Most bytes of the reply; 0 and more than the limit mean the limit.
    pub bytes_max: usize,
    /// The snapshot to read, from a continuation; absent: the latest.
    pub at: Option<Timestamp>,
    /// Where the keys end that were in one range when `at` was chosen, exclusive; in reverse their first one.
    /// Beyond it another snapshot is read. Absent: there are no keys beyond it.
    pub until: Option<Blob>,
}

impl ScanRequest {
    /// The key whose range serves the scan: the first one that the scan may show.
    pub fn first_key(&self) -> Blob {
        if self.reverse {
            last_key_before(self.end.as_deref()).into()
        } else {
            self.start.clone().unwrap_or_default()
        }
    }
}

/// Rows of a scan.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct ScanReply {
    /// In key order, descending if the scan is in reverse. There may be none although the scan goes on: a
    /// page ends too when so many tombstones and old versions were passed over.
    pub rows: Rows,
    /// The snapshot read.
    pub at: Timestamp,
    /// What to ask to go on: in this range with the same snapshot, or in the next one, which has a
    /// snapshot of its own. `None`: the interval is exhausted.
    pub next: Option<ScanRequest>,
}
