//! The operations of a client: keys and values in, typed results out.

use bytes::Bytes;
use rangedb_protocol::{Expected, Reply, RequestBody};

use crate::batch::{Batch, BatchOutcome};
use crate::client::Client;
use crate::core::Kind;
use crate::error::Error;
use crate::retry_loop::{Request, Take};

/// A value and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Versioned {
    /// The bytes; an empty value differs from an absent one.
    pub value: Bytes,
    /// The commit timestamp of the write that set it.
    pub version: u64,
}

/// The result of a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deleted {
    /// The commit timestamp of the delete.
    pub version: u64,
    /// Whether the key had a value.
    pub existed: bool,
}

/// The condition under which a compare-and-swap writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition<'a> {
    /// The key has no value.
    Absent,
    /// The key has a value, whatever it is.
    Exists,
    /// The key has exactly this value; see [`Condition::value`] for strings.
    Value(&'a [u8]),
    /// The key's value has this version.
    Version(u64),
}

impl<'a> Condition<'a> {
    /// The key has exactly this value.
    pub fn value(value: &'a (impl AsRef<[u8]> + ?Sized)) -> Condition<'a> {
        Condition::Value(value.as_ref())
    }

    fn on_the_wire(self) -> Expected<'a> {
        match self {
            Condition::Absent => Expected::Absent,
            Condition::Exists => Expected::Exists,
            Condition::Value(value) => Expected::Value(value),
            Condition::Version(version) => Expected::Version(version),
        }
    }
}

/// The result of a compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CasOutcome {
    /// The condition held, and the write was applied.
    Swapped {
        /// The commit timestamp.
        version: u64,
    },
    /// The condition did not hold; nothing was written.
    Failed {
        /// The version of the key's value; `None`: it has none.
        current: Option<u64>,
    },
}

/// The result of an increment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Incremented {
    /// The new number.
    pub value: i64,
    /// The commit timestamp of the increment.
    pub version: u64,
}

/// A slice of the frame in which a value was received.
fn part(of: &Bytes, slice: &[u8]) -> Bytes {
    of.slice_ref(slice)
}

fn version_of(reply: Reply<'_>, _: &Bytes) -> Option<u64> {
    match reply {
        Reply::Written { version, .. } => Some(version),
        _ => None,
    }
}

impl Client {
    /// Reads a key. The read is linearizable.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Versioned>, Error> {
        let key = key.as_ref();
        let take: Take<Option<Versioned>> = |reply, frame| match reply {
            Reply::Value { value, version } => Some(value.map(|value| Versioned {
                value: part(frame, value),
                version,
            })),
            _ => None,
        };
        let body = |_| RequestBody::Get { key };
        let deadline = self.deadline();
        self.call(Request {
            key: Some(key),
            body: &body,
            kind: Kind::Read,
            take,
            deadline,
        })
        .await
    }

    /// Sets a key; returns the new version.
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the write was applied.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<u64, Error> {
        let (key, value) = (key.as_ref(), value.as_ref());
        let body = |session| RequestBody::put(key, value, session);
        let deadline = self.deadline();
        let take = version_of;
        self.call(Request {
            key: Some(key),
            body: &body,
            kind: Kind::Write,
            take,
            deadline,
        })
        .await
    }

    /// Removes a key.
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the write was applied.
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<Deleted, Error> {
        let key = key.as_ref();
        let take: Take<Deleted> = |reply, _| match reply {
            Reply::Written {
                version, existed, ..
            } => Some(Deleted { version, existed }),
            _ => None,
        };
        let body = |session| RequestBody::delete(key, session);
        let deadline = self.deadline();
        self.call(Request {
            key: Some(key),
            body: &body,
            kind: Kind::Write,
            take,
            deadline,
        })
        .await
    }

    /// Sets a key, provided that the condition holds.
    ///
    /// ```no_run
    /// # use rangedb_client::{CasOutcome, Client, Condition, Error};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let swap = client.compare_and_swap("lock", Condition::value("free"), "mine");
    /// assert!(matches!(swap.await?, CasOutcome::Swapped { .. }));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the write was applied.
    pub async fn compare_and_swap(
        &self,
        key: impl AsRef<[u8]>,
        condition: Condition<'_>,
        value: impl AsRef<[u8]>,
    ) -> Result<CasOutcome, Error> {
        let value = Some(value.as_ref());
        self.change_if(key.as_ref(), condition, value).await
    }

    /// Removes a key, provided that the condition holds.
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the write was applied.
    pub async fn compare_and_delete(
        &self,
        key: impl AsRef<[u8]>,
        condition: Condition<'_>,
    ) -> Result<CasOutcome, Error> {
        self.change_if(key.as_ref(), condition, None).await
    }

    async fn change_if(
        &self,
        key: &[u8],
        condition: Condition<'_>,
        value: Option<&[u8]>,
    ) -> Result<CasOutcome, Error> {
        let expected = condition.on_the_wire();
        let take: Take<CasOutcome> = |reply, _| match reply {
            Reply::Written { version, .. } => Some(CasOutcome::Swapped { version }),
            Reply::ConditionFailed { current, .. } => Some(CasOutcome::Failed { current }),
            _ => None,
        };
        let body = |session| RequestBody::compare_and_swap(key, expected, value, session);
        let deadline = self.deadline();
        self.call(Request {
            key: Some(key),
            body: &body,
            kind: Kind::Write,
            take,
            deadline,
        })
        .await
    }

    /// Adds `delta` to a signed 64-bit number in decimal text; an absent key counts as 0.
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the write was applied.
    pub async fn increment(&self, key: impl AsRef<[u8]>, delta: i64) -> Result<Incremented, Error> {
        let key = key.as_ref();
        let take: Take<Incremented> = |reply, _| match reply {
            Reply::Written {
                version, numbers, ..
            } => {
                let value = *numbers.first()?;
                Some(Incremented { value, version })
            }
            _ => None,
        };
        let body = |session| RequestBody::add(key, delta, session);
        let deadline = self.deadline();
        self.call(Request {
            key: Some(key),
            body: &body,
            kind: Kind::Write,
            take,
            deadline,
        })
        .await
    }

    /// Writes a batch: if all its conditions hold, all its changes are made; otherwise none is.
    ///
    /// # Errors
    /// See [`Error`]; [`crate::ErrorCode::SeveralRanges`] if the keys lie in several ranges.
    pub async fn batch(&self, batch: &Batch) -> Result<BatchOutcome, Error> {
        let take: Take<BatchOutcome> = |reply, _| match reply {
            Reply::Written {
                version, numbers, ..
            } => Some(BatchOutcome::Written {
                version,
                numbers: numbers.into_owned(),
            }),
            Reply::ConditionFailed { current, condition } => Some(BatchOutcome::Failed {
                condition: usize::try_from(condition).ok()?,
                current,
            }),
            _ => None,
        };
        let body = |session| RequestBody::Batch {
            batch: batch.on_the_wire(),
            session,
        };
        let deadline = self.deadline();
        self.call(Request {
            key: batch.first_key(),
            body: &body,
            kind: Kind::Write,
            take,
            deadline,
        })
        .await
    }
}
