//! Put: sets a key.

use rangedb_engine::request::Write;

use crate::handler::Blobs;

pub(super) fn of(key: &[u8], value: &[u8]) -> Write {
    let mut blobs = Blobs::copy([key, value].into_iter());
    Write::Put {
        key: blobs.next(key),
        value: blobs.next(value),
    }
}
