//! What the load generator asks of a database, and the one implementation over the real client.
//!
//! The only module that names the client library. The seam exists so that pacing, counting and the
//! consistency check are tested against a store in memory that can be made to misbehave.

use std::borrow::Cow;
use std::future::Future;

/// Why an operation failed, as far as a load generator cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Stable name of the error.
    pub code: Cow<'static, str>,
    /// Whether it is certain that nothing was written.
    pub is_not_applied: bool,
}

/// A value that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<V> {
    /// The bytes.
    pub value: V,
    /// Its version.
    pub version: u64,
}

/// When a compare-and-swap writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition<'a> {
    /// The key is absent.
    Absent,
    /// The key has this value.
    Value(&'a [u8]),
    /// The key's value has this version.
    Version(u64),
}

/// One connection's worth of a database. Cheap to clone; a clone shares the connection.
pub trait Database: Clone + 'static {
    /// What a read gives.
    type Value: AsRef<[u8]>;

    /// Reads a key.
    fn get(&self, key: &[u8]) -> impl Future<Output = Result<Option<Found<Self::Value>>, Failure>>;
    /// Sets a key.
    fn put(&self, key: &[u8], value: &[u8]) -> impl Future<Output = Result<(), Failure>>;
    /// Removes a key; tells whether there was a value.
    fn delete(&self, key: &[u8]) -> impl Future<Output = Result<bool, Failure>>;
    /// Sets or removes a key if the condition holds; tells whether it did.
    fn compare_and_swap(
        &self,
        key: &[u8],
        condition: Condition<'_>,
        new: Option<&[u8]>,
    ) -> impl Future<Output = Result<bool, Failure>>;
    /// Reads up to `rows` rows from `start` on; tells how many there were.
    fn scan(&self, start: &[u8], rows: usize) -> impl Future<Output = Result<usize, Failure>>;
}
