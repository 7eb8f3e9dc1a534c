//! Increment: adds to a number in decimal text.

use rangedb_engine::request::Write;

use crate::handler::Blobs;

pub(super) fn of(key: &[u8], delta: i64) -> Write {
    Write::Increment {
        key: Blobs::copy([key].into_iter()).next(key),
        delta,
    }
}
