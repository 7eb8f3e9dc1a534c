//! Batch: every write. Its keys and values are copied out of the shard's receive buffer, into one
//! buffer. Those of a long frame, which did not arrive at once, stay in the connection's buffer in which
//! it was gathered.

use bytes::Bytes;
use rangedb_engine::error::Error;
use rangedb_engine::request;
use rangedb_engine::types::{Blob, Timestamp};
use rangedb_protocol::{Batch, Change, Condition, Expected, Mutation};

use crate::net::input::OwnBuffer;
use crate::net::refusal::Refusal;

/// The engine's batch, if it keeps the limits: they are checked before anything is copied.
pub(super) fn of(batch: &Batch<'_>, own: Option<OwnBuffer<'_>>) -> Result<request::Batch, Refusal> {
    batch.check().map_err(Error::from)?;
    let mut blobs = Blobs::of(batch.parts(), own);
    Ok(request::Batch {
        conditions: batch
            .conditions
            .iter()
            .map(|c| blobs.condition(c))
            .collect(),
        mutations: batch.mutations.iter().map(|m| blobs.mutation(m)).collect(),
    })
}

/// The keys and values of one batch.
enum Blobs<'a> {
    /// They stay in the buffer in which the frame lies.
    Shared(OwnBuffer<'a>),
    /// Copies of those that come next, all in one buffer: the place where the frame lies is read into
    /// again.
    Copied(Bytes),
}

impl<'a> Blobs<'a> {
    fn of<'b>(
        parts: impl Iterator<Item = &'b [u8]> + Clone,
        own: Option<OwnBuffer<'a>>,
    ) -> Blobs<'a> {
        let len = parts.clone().map(<[u8]>::len).sum();
        if let Some(own) = own.filter(|own| own.may_be_kept(len)) {
            return Blobs::Shared(own);
        }
        let mut bytes = Vec::with_capacity(len);
        parts.for_each(|part| bytes.extend_from_slice(part));
        Blobs::Copied(bytes.into())
    }

    /// The next part.
    fn next(&mut self, part: &[u8]) -> Blob {
        match self {
            Blobs::Shared(own) => own.share(part),
            Blobs::Copied(bytes) => bytes.split_to(part.len()),
        }
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

#[cfg(test)]
mod tests {
    use rangedb_protocol::{FlatBufferBuilder, Request, RequestBody, Session, frame};

    use super::*;
    use crate::net::buffers::Buffers;
    use crate::net::input::{Input, Taken};

    /// Appends the frame of a put.
    fn put(value: &[u8], to: &mut Vec<u8>) {
        let request = Request {
            body: RequestBody::put(b"key", value, Session::default()),
            target: None,
            deadline_ms: 0,
            token: 0,
        };
        request.encode(1, &mut FlatBufferBuilder::new(), to);
    }

    /// The batches of the frames that were gathered in a connection's own buffer, each with whether it
    /// shares that buffer.
    fn gathered(bytes: &[u8]) -> Vec<(request::Batch, bool)> {
        let buffers = Buffers::new(64 << 20, 0);
        let mut input = Input::default();
        for piece in bytes.chunks(10_000) {
            input.add(&buffers, piece);
        }
        let mut batches = Vec::new();
        input.handle(&buffers, |bytes, own| {
            let within = bytes.as_ptr_range();
            let mut rest = bytes;
            while let Some(found) = frame::decode(rest).expect("good") {
                let request = Request::decode(found.kind, found.body).expect("good");
                let RequestBody::Batch { batch, .. } = request.body else {
                    panic!("no write: {:?}", request.body);
                };
                let batch = of(&batch, own).unwrap_or_else(|_| panic!("within the limits"));
                let key = batch.first_key().expect("a key").as_ptr();
                batches.push((batch, within.contains(&key)));
                rest = &rest[found.len..];
            }
            Taken {
                len: bytes.len(),
                more: false,
            }
        });
        assert_eq!(buffers.frames_len(), 0);
        batches
    }

    #[test]
    fn a_long_write_stays_in_its_buffer_and_a_short_one_beside_it_does_not_keep_that() {
        let (long, short) = (vec![1; 300_000], vec![2; 200]);
        let mut bytes = Vec::new();
        put(&long, &mut bytes);
        put(&short, &mut bytes);
        let expected = |value: &[u8]| request::Batch::put(b"key"[..].into(), value.to_vec().into());
        let batches = gathered(&bytes);
        assert_eq!(
            batches,
            [(expected(&long), true), (expected(&short), false)]
        );
    }
}
