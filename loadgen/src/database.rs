//! The operations that the load generator needs of a database.
//!
//! `client` implements them over the real client, `etcd` over etcd, and `memory` in memory: with
//! the last, pacing, counting and the consistency check are tested against a store that can be made
//! to misbehave.

use std::borrow::Cow;
use std::future::Future;

/// Why an operation failed, as far as the load generator needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The stable name of the error.
    pub code: Cow<'static, str>,
    /// Whether it is certain that nothing was written.
    pub is_not_applied: bool,
}

/// The result of a read that found the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<V> {
    /// The value that was read.
    pub value: V,
    /// The version of the value.
    pub version: u64,
}

/// The condition under which a compare-and-swap writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition<'a> {
    /// The key is absent.
    Absent,
    /// The key has this value.
    Value(&'a [u8]),
    /// The key's value has this version.
    Version(u64),
}

/// A client of a database. Cheap to clone; a clone shares the connections.
pub trait Database: Clone + 'static {
    /// The type of a value that was read.
    type Value: AsRef<[u8]>;

    /// Reads a key.
    fn get(&self, key: &[u8]) -> impl Future<Output = Result<Option<Found<Self::Value>>, Failure>>;
    /// Reads several keys; returns how many have no value.
    fn get_many(&self, keys: &[Vec<u8>]) -> impl Future<Output = Result<u64, Failure>> {
        async move {
            let mut absent = 0;
            for key in keys {
                absent += u64::from(self.get(key).await?.is_none());
            }
            Ok(absent)
        }
    }
    /// Sets a key.
    fn put(&self, key: &[u8], value: &[u8]) -> impl Future<Output = Result<(), Failure>>;
    /// Removes a key; returns whether it had a value.
    fn delete(&self, key: &[u8]) -> impl Future<Output = Result<bool, Failure>>;
    /// Sets or removes a key if the condition holds; returns whether it did.
    fn compare_and_swap(
        &self,
        key: &[u8],
        condition: Condition<'_>,
        new: Option<&[u8]>,
    ) -> impl Future<Output = Result<bool, Failure>>;
    /// Reads up to `rows` rows from `start` on; returns how many there were.
    fn scan(&self, start: &[u8], rows: usize) -> impl Future<Output = Result<usize, Failure>>;
}
