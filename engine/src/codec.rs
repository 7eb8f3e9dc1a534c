//! The one encoding of messages between shards, and of the records that the cluster keeps: a byte
//! for the version of the kind of value, then rkyv's bytes.
//!
//! Nothing that is read is trusted: rkyv checks all bytes before any is used, and a reader knows one
//! version. A message may hold long values (entries of a log, rows of a snapshot). They are written
//! to its bytes once, and what [`decode_shared`] gives holds them as slices of the message:
//! [`Shared`] marks the fields. Pure.

use bytes::Bytes;
use rkyv::api::high::{HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::{Error, Fallible, Strategy};
use rkyv::ser::allocator::ArenaHandle;
use rkyv::ser::{Allocator, Writer};
use rkyv::vec::{ArchivedVec, VecResolver};
use rkyv::with::{ArchiveWith, DeserializeWith, SerializeWith};
use rkyv::{Archive, Deserialize, Place, Serialize};

/// The bytes of a value. Room for `len` bytes is made at once.
pub fn encode<T>(version: u8, value: &T, len: usize) -> Vec<u8>
where
    T: for<'a> Serialize<HighSerializer<Vec<u8>, ArenaHandle<'a>, Error>>,
{
    let mut bytes = Vec::with_capacity(1 + len);
    bytes.push(version);
    // Numbers, texts and lists can always be encoded.
    rkyv::api::high::to_bytes_in(value, bytes).unwrap_or_default()
}

/// Reads what [`encode`] wrote; `None` if the bytes are not a value of this version.
pub fn decode<T>(version: u8, bytes: &[u8]) -> Option<T>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, Error>>
        + for<'a> Deserialize<T, Strategy<Whole<'a>, Error>>,
{
    read(version, bytes, Whole(None))
}

/// The same; fields that are marked as [`Shared`] are not copied.
pub fn decode_shared<T>(version: u8, bytes: &Bytes) -> Option<T>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, Error>>
        + for<'a> Deserialize<T, Strategy<Whole<'a>, Error>>,
{
    read(version, bytes, Whole(Some(bytes)))
}

fn read<'b, T>(version: u8, bytes: &[u8], mut whole: Whole<'b>) -> Option<T>
where
    T: Archive,
    T::Archived:
        for<'a> CheckBytes<HighValidator<'a, Error>> + Deserialize<T, Strategy<Whole<'b>, Error>>,
{
    let value = bytes.strip_prefix(&[version])?;
    let archived = rkyv::access::<T::Archived, Error>(value).ok()?;
    rkyv::api::deserialize_using::<T, _, Error>(archived, &mut whole).ok()
}

/// What a value is read from, if its fields may share it.
pub struct Whole<'a>(Option<&'a Bytes>);

/// Gives the bytes of a field.
pub trait Share {
    /// The bytes of a field, which are part of what is read.
    fn share(&self, field: &[u8]) -> Bytes;
}

impl<E> Share for Strategy<Whole<'_>, E> {
    fn share(&self, field: &[u8]) -> Bytes {
        let Whole(whole) = **self;
        whole.map_or_else(
            || Bytes::copy_from_slice(field),
            |whole| whole.slice_ref(field),
        )
    }
}

/// Marks a field whose bytes are a slice of the message that it was read from. The encoding is that
/// of [`Bytes`] without the mark.
pub struct Shared;

impl ArchiveWith<Bytes> for Shared {
    type Archived = ArchivedVec<u8>;
    type Resolver = VecResolver;

    fn resolve_with(field: &Bytes, resolver: VecResolver, out: Place<ArchivedVec<u8>>) {
        ArchivedVec::resolve_from_len(field.len(), resolver, out);
    }
}

impl<S: Fallible + Allocator + Writer + ?Sized> SerializeWith<Bytes, S> for Shared {
    fn serialize_with(field: &Bytes, to: &mut S) -> Result<VecResolver, S::Error> {
        ArchivedVec::<u8>::serialize_from_slice(field.as_ref(), to)
    }
}

impl<D: Fallible + Share + ?Sized> DeserializeWith<ArchivedVec<u8>, Bytes, D> for Shared {
    fn deserialize_with(field: &ArchivedVec<u8>, from: &mut D) -> Result<Bytes, D::Error> {
        Ok(from.share(field.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
    struct Value {
        number: u64,
        #[rkyv(with = Shared)]
        body: Bytes,
    }

    fn value(body: &'static [u8]) -> Value {
        Value {
            number: 7,
            body: Bytes::from_static(body),
        }
    }

    #[test]
    fn values_are_read_back_and_parts_and_other_versions_are_not() {
        for body in [&b"some bytes"[..], b""] {
            let bytes = encode(3, &value(body), 0);
            assert_eq!(decode(3, &bytes), Some(value(body)));
            assert_eq!(decode::<Value>(4, &bytes), None);
            for len in 0..bytes.len() {
                assert_eq!(decode::<Value>(3, &bytes[..len]), None, "cut to {len}");
            }
        }
    }

    #[test]
    fn a_shared_field_lies_in_the_bytes_that_it_was_read_from() {
        let bytes = Bytes::from(encode(3, &value(b"some bytes"), 64));
        let whole = bytes.as_ptr_range();
        let read: Value = decode_shared(3, &bytes).expect("a value");
        assert_eq!(read, value(b"some bytes"));
        assert!(whole.contains(&read.body.as_ptr()));
        let copied: Value = decode(3, &bytes).expect("a value");
        assert!(!whole.contains(&copied.body.as_ptr()));
    }
}
