//! The bytes of an entry, with the checksum that they got where they were encoded.

use std::ops::Deref;

use bytes::Bytes;

/// What a client's commands or a membership are encoded to. The checksum (CRC-32C) is computed
/// once, by the leader that makes the entry. It goes with the bytes through every log and every
/// message, and is compared where they come in and where they are applied: what changes them on
/// the way, in a memory, on a disk or on a link, is found before it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    bytes: Bytes,
    checksum: u32,
}

impl Body {
    /// A body that has just been encoded.
    pub fn seal(bytes: Bytes) -> Body {
        let checksum = crc32c::crc32c(&bytes);
        Body { bytes, checksum }
    }

    /// A body that was read or received with this checksum. Whether they agree
    /// [`Body::is_intact`] says.
    pub fn with_checksum(bytes: Bytes, checksum: u32) -> Body {
        Body { bytes, checksum }
    }

    /// The checksum that it got where it was encoded.
    pub fn checksum(&self) -> u32 {
        self.checksum
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether the bytes are those that were encoded.
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
