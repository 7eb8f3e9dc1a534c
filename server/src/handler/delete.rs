//! Delete: removes a key.

use rangedb_engine::request::Write;

use crate::handler::Blobs;

pub(super) fn of(key: &[u8]) -> Write {
    Write::Delete {
        key: Blobs::copy([key].into_iter()).next(key),
    }
}
