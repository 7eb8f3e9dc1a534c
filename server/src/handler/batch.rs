//! Batch: every write. Its keys and values are copied out of the frame once, into one buffer.

use bytes::Bytes;
use rangedb_engine::error::Error;
use rangedb_engine::request;
use rangedb_engine::types::{Blob, Timestamp};
use rangedb_protocol::{Batch, Change, Condition, Expected, Mutation};

use crate::handler::refusal::Refusal;

/// The engine's batch, if it keeps the limits: they are checked before anything is copied.
pub(super) fn of(batch: &Batch<'_>) -> Result<request::Batch, Refusal> {
    batch.check().map_err(Error::from)?;
    let mut blobs = Blobs::copy(batch.parts());
    Ok(request::Batch {
        conditions: batch
            .conditions
            .iter()
            .map(|c| blobs.condition(c))
            .collect(),
        mutations: batch.mutations.iter().map(|m| blobs.mutation(m)).collect(),
    })
}

/// Copies of the keys and values of one batch, all in one buffer: the place where the frame lies
/// is read into again.
struct Blobs(Bytes);

impl Blobs {
    fn copy<'a>(parts: impl Iterator<Item = &'a [u8]> + Clone) -> Blobs {
        let mut bytes = Vec::with_capacity(parts.clone().map(<[u8]>::len).sum());
        parts.for_each(|part| bytes.extend_from_slice(part));
        Blobs(bytes.into())
    }

    /// The copy of the next part.
    fn next(&mut self, part: &[u8]) -> Blob {
        self.0.split_to(part.len())
    }

    fn condition(&mut self, condition: &Condition<'_>) -> request::Condition {
        request::Condition {
            key: self.next(condition.key),
            expected: match condition.expected {
                Expected::Absent => request::Expected::Absent,
                Expected::Value(value) => request::Expected::Value(self.next(value)),
                Expected::Version(version) => request::Expected::Version(Timestamp(version)),
                Expected::Exists => request::Expected::Exists,
            },
        }
    }

    fn mutation(&mut self, mutation: &Mutation<'_>) -> request::Mutation {
        request::Mutation {
            key: self.next(mutation.key),
            change: match mutation.change {
                Change::Put(value) => request::Change::to(Some(self.next(value))),
                Change::Delete => request::Change::Delete,
                Change::Add(delta) => request::Change::Add { delta },
            },
        }
    }
}
