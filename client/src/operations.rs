//! The operations of a client: keys and values in, typed results out.

use std::borrow::Cow;

use bytes::Bytes;
use rangedb_protocol::continuation::{self, last_key_before, prefix_end};
use rangedb_protocol::{
    Change, Expected, Mutation as WireMutation, RangeState, Reply, RequestBody,
};

use crate::batch::{Batch, BatchOutcome};
use crate::calls::{Request, Take};
use crate::client::Client;
use crate::core::Kind;
use crate::error::Error;

/// A value and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The bytes; an empty value differs from an absent one.
    pub value: Bytes,
    /// The commit timestamp of the write that set it.
    pub version: u64,
}

/// The result of a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// The commit timestamp of the delete.
    pub version: u64,
    /// Whether the key had a value.
    pub existed: bool,
}

/// The condition under which a compare-and-swap writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition<'a> {
    /// The key has no value.
    Absent,
    /// The key has exactly this value.
    Value(&'a [u8]),
    /// The key's value has this version.
    Version(u64),
}

/// The result of a compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
pub struct Incremented {
    /// The new number.
    pub value: i64,
    /// The commit timestamp of the increment.
    pub version: u64,
}

/// One change of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// The key.
    pub key: Bytes,
    /// Its new value; `None` deletes it.
    pub value: Option<Bytes>,
}

impl Mutation {
    fn on_the_wire(&self) -> WireMutation<'_> {
        WireMutation {
            key: &self.key,
            change: Change::to(self.value.as_deref()),
        }
    }
}

/// The interval of a scan and the size of its pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// First key, inclusive; `None`: from the first key of all.
    pub start: Option<Bytes>,
    /// End, exclusive; `None`: to the last key of all.
    pub end: Option<Bytes>,
    /// Most rows in a page; 0: as many as the server sends at once.
    pub limit: usize,
    /// Descending order, from the last key before `end` down to `start`.
    pub reverse: bool,
    /// Gives keys and versions only; the server does not send the values.
    pub keys_only: bool,
}

impl ScanOptions {
    /// A scan of the keys that begin with `prefix`; with an empty prefix, of all keys.
    pub fn prefix(prefix: impl AsRef<[u8]>) -> ScanOptions {
        let prefix = prefix.as_ref();
        ScanOptions {
            start: Some(Bytes::copy_from_slice(prefix)),
            end: prefix_end(prefix).map(Bytes::from),
            ..ScanOptions::default()
        }
    }
}

/// A row of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// The key's value; empty if the scan asked for keys only.
    pub value: Bytes,
    /// The value's version.
    pub version: u64,
}

/// A page of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The rows, in key order: ascending, or descending if the scan goes in reverse.
    pub rows: Vec<Row>,
    /// Where the scan goes on; `None`: the interval has no more rows.
    pub continuation: Option<Continuation>,
}

/// Where a scan goes on, in the same direction. Opaque; valid until the versions of its snapshot are
/// collected, even after a restart of servers or of this client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    token: Bytes,
    limit: usize,
}

impl Continuation {
    /// The bytes, for a caller that goes on later or elsewhere.
    pub fn as_bytes(&self) -> &[u8] {
        &self.token
    }

    /// A continuation from its bytes, with at most `limit` rows in a page (0: as many as the server
    /// sends at once). Bytes that are not a continuation are refused when the scan goes on.
    pub fn from_bytes(bytes: impl Into<Bytes>, limit: usize) -> Continuation {
        let token = bytes.into();
        Continuation { token, limit }
    }
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

fn page(reply: Reply<'_>, frame: &Bytes) -> Option<Page> {
    let Reply::Rows {
        rows, continuation, ..
    } = reply
    else {
        return None;
    };
    let rows = rows.into_iter().map(|row| Row {
        key: part(frame, row.key),
        value: part(frame, row.value),
        version: row.version,
    });
    let continuation = continuation.map(|token| Continuation {
        token: part(frame, token),
        limit: 0,
    });
    Some(Page {
        rows: rows.collect(),
        continuation,
    })
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

    /// Sets a key; gives the new version.
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

    /// Sets a key, or removes it if there is no new value, provided that the condition holds.
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the write was applied.
    pub async fn compare_and_swap(
        &self,
        key: impl AsRef<[u8]>,
        condition: Condition<'_>,
        value: Option<&[u8]>,
    ) -> Result<CasOutcome, Error> {
        let key = key.as_ref();
        let expected = match condition {
            Condition::Absent => Expected::Absent,
            Condition::Value(value) => Expected::Value(value),
            Condition::Version(version) => Expected::Version(version),
        };
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

    /// Changes several keys of one range, all or none. If a key occurs twice, its last change
    /// counts. Gives the new version.
    ///
    /// # Errors
    /// See [`Error`]; [`crate::ErrorCode::SeveralRanges`] if the keys lie in several ranges.
    pub async fn write(&self, mutations: Vec<Mutation>) -> Result<u64, Error> {
        let first = mutations.first().map(|m| m.key.clone());
        let body =
            |session| RequestBody::write(mutations.iter().map(Mutation::on_the_wire), session);
        let deadline = self.deadline();
        let (key, take) = (first.as_deref(), version_of);
        self.call(Request {
            key,
            body: &body,
            kind: Kind::Write,
            take,
            deadline,
        })
        .await
    }

    /// Writes a batch: if all its conditions hold all its changes are made, or nothing is.
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

    /// Reads the first rows of an interval, or with `reverse` the last ones. A page is a snapshot within
    /// one range. It ends at the range's border; the next page begins there with a snapshot of its own.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn scan(&self, options: ScanOptions) -> Result<Page, Error> {
        let start = options.start.as_deref();
        let body = |_| RequestBody::Scan {
            start,
            end: options.end.as_deref(),
            rows_max: u32::try_from(options.limit).unwrap_or(u32::MAX),
            bytes_max: 0,
            continuation: None,
            reverse: options.reverse,
            keys_only: options.keys_only,
        };
        let deadline = self.deadline();
        let first_key = match options.reverse {
            false => Cow::Borrowed(start.unwrap_or_default()),
            true => Cow::Owned(last_key_before(options.end.as_deref())),
        };
        let request = Request {
            key: Some(&first_key),
            body: &body,
            kind: Kind::Read,
            take: page,
            deadline,
        };
        self.call(request)
            .await
            .map(|page| with_limit(page, options.limit))
    }

    /// Reads the next page of a scan.
    ///
    /// # Errors
    /// See [`Error`]; [`crate::ErrorCode::SnapshotTooOld`] if the versions of its snapshot were
    /// collected.
    pub async fn scan_next(&self, continuation: Continuation) -> Result<Page, Error> {
        let token = &continuation.token;
        // Any node refuses a token that cannot be read.
        let first_key = continuation::Continuation::decode(token)
            .map(|rest| rest.first_key())
            .unwrap_or_default();
        let body = |_| RequestBody::Scan {
            start: None,
            end: None,
            rows_max: u32::try_from(continuation.limit).unwrap_or(u32::MAX),
            bytes_max: 0,
            continuation: Some(token),
            reverse: false,
            keys_only: false,
        };
        let deadline = self.deadline();
        let request = Request {
            key: Some(&first_key),
            body: &body,
            kind: Kind::Read,
            take: page,
            deadline,
        };
        self.call(request)
            .await
            .map(|page| with_limit(page, continuation.limit))
    }

    /// The ranges that have a replica on a node, the system range among them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn ranges(&self) -> Result<Vec<RangeState>, Error> {
        let node = self.status().await?;
        Ok(node
            .shards
            .into_iter()
            .flat_map(|shard| shard.ranges)
            .collect())
    }
}

fn with_limit(mut page: Page, limit: usize) -> Page {
    if let Some(continuation) = &mut page.continuation {
        continuation.limit = limit;
    }
    page
}
