//! A batch: conditions that must all hold, and changes that are then all made.

use bytes::Bytes;
use rangedb_protocol as wire;

/// A write of several keys of one range: if all its conditions hold, all its changes are made;
/// otherwise nothing is written.
///
/// Conditions look at the keys as they were before the batch. Changes take effect in
/// their order: if a key is changed twice, the last change counts, and an addition sees the changes
/// before it.
///
/// ```
/// use rangedb_client::Batch;
///
/// let transfer = Batch::new()
///     .if_exists("account/1")
///     .if_absent("transfer/99")
///     .add("account/1", -20)
///     .add("account/2", 20)
///     .put("transfer/99", "20 from 1 to 2");
/// # let _ = transfer;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    conditions: Vec<(Bytes, Expected)>,
    changes: Vec<(Bytes, Change)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    Absent,
    Exists,
    Value(Bytes),
    Version(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Put(Bytes),
    Delete,
    Add(i64),
}

/// The result of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BatchOutcome {
    /// All conditions held; everything is written.
    Written {
        /// The commit timestamp.
        version: u64,
        /// The numbers after the batch's additions, in their order.
        numbers: Vec<i64>,
    },
    /// A condition did not hold; nothing is written.
    Failed {
        /// The first condition that did not hold, counted from 0 in the order in which they were
        /// added.
        condition: usize,
        /// The version of the present value of its key; `None`: there is none.
        current: Option<u64>,
    },
}

fn copy(bytes: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(bytes.as_ref())
}

impl Batch {
    /// A batch without conditions and changes. It needs at least one change to be written.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Only if the key has no value.
    #[must_use]
    pub fn if_absent(self, key: impl AsRef<[u8]>) -> Batch {
        self.when(key, Expected::Absent)
    }

    /// Only if the key has a value.
    #[must_use]
    pub fn if_exists(self, key: impl AsRef<[u8]>) -> Batch {
        self.when(key, Expected::Exists)
    }

    /// Only if the key has exactly this value.
    #[must_use]
    pub fn if_value(self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Batch {
        let value = copy(value);
        self.when(key, Expected::Value(value))
    }

    /// Only if the key's value has this version.
    #[must_use]
    pub fn if_version(self, key: impl AsRef<[u8]>, version: u64) -> Batch {
        self.when(key, Expected::Version(version))
    }

    /// Sets a key.
    #[must_use]
    pub fn put(self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Batch {
        let value = copy(value);
        self.change(key, Change::Put(value))
    }

    /// Removes a key.
    #[must_use]
    pub fn delete(self, key: impl AsRef<[u8]>) -> Batch {
        self.change(key, Change::Delete)
    }

    /// Adds to a signed 64-bit number in decimal text; an absent key counts as 0.
    #[must_use]
    pub fn add(self, key: impl AsRef<[u8]>, delta: i64) -> Batch {
        self.change(key, Change::Add(delta))
    }

    /// The number of its changes.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether it has no change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn when(mut self, key: impl AsRef<[u8]>, expected: Expected) -> Batch {
        self.conditions.push((copy(key), expected));
        self
    }

    fn change(mut self, key: impl AsRef<[u8]>, change: Change) -> Batch {
        self.changes.push((copy(key), change));
        self
    }

    /// The key that decides to which range the batch goes.
    pub(crate) fn first_key(&self) -> Option<&[u8]> {
        self.changes.first().map(|(key, _)| &**key)
    }

    /// The batch as a request carries it.
    pub(crate) fn on_the_wire(&self) -> wire::Batch<'_> {
        let conditions = self
            .conditions
            .iter()
            .map(|(key, expected)| condition(key, expected));
        let changes = self
            .changes
            .iter()
            .map(|(key, change)| mutation(key, change));
        wire::Batch {
            conditions: conditions.collect(),
            mutations: changes.collect(),
        }
    }
}

fn condition<'a>(key: &'a Bytes, expected: &'a Expected) -> wire::Condition<'a> {
    wire::Condition {
        key,
        expected: match expected {
            Expected::Absent => wire::Expected::Absent,
            Expected::Exists => wire::Expected::Exists,
            Expected::Value(value) => wire::Expected::Value(value),
            Expected::Version(version) => wire::Expected::Version(*version),
        },
    }
}

fn mutation<'a>(key: &'a Bytes, change: &'a Change) -> wire::Mutation<'a> {
    wire::Mutation {
        key,
        change: match change {
            Change::Put(value) => wire::Change::Put(value),
            Change::Delete => wire::Change::Delete,
            Change::Add(delta) => wire::Change::Add(*delta),
        },
    }
}
