//! The encoded content of an entry, with its checksum.

use std::ops::Deref;

use bytes::Bytes;

use crate::codec::Shared;

/// The bytes to which a batch of commands or a membership is encoded. The leader that makes the
/// entry computes the checksum (CRC-32C) once. It goes with the bytes through every log and every
/// message, and is compared where the bytes come in and where they are applied. So a change on the
/// way, in a memory, on a disk or on a link, is found before it has an effect.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Body {
    #[rkyv(with = Shared)]
    bytes: Bytes,
    checksum: u32,
}

impl Body {
    /// A body that has just been encoded.
    pub fn seal(bytes: Bytes) -> Body {
        let checksum = crc32c::crc32c(&bytes);
        Body { bytes, checksum }
    }

    /// A body that was read or received with this checksum. [`Body::is_intact`] says whether they
    /// agree.
    pub fn with_checksum(bytes: Bytes, checksum: u32) -> Body {
        Body { bytes, checksum }
    }

    /// The checksum that the leader computed.
    pub fn checksum(&self) -> u32 {
        self.checksum
    }

    /// The encoded bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether the bytes are those that the leader encoded.
    pub fn is_intact(&self) -> bool {
        crc32c::crc32c(&self.bytes) == self.checksum
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}
