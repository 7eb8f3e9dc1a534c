//! Compare-and-swap: sets or removes a key if a condition holds.

use rangedb_engine::request::{self, Write};
use rangedb_engine::types::Timestamp;
use rangedb_protocol::Condition;

use crate::handler::Blobs;

pub(super) fn of(key: &[u8], condition: Condition<'_>, value: Option<&[u8]>) -> Write {
    let expected = match condition {
        Condition::Value(expected) => expected,
        Condition::Absent | Condition::Version(_) => &[],
    };
    let parts = [key, expected, value.unwrap_or_default()];
    let mut blobs = Blobs::copy(parts.into_iter());
    let key = blobs.next(key);
    let expected = blobs.next(expected);
    let condition = match condition {
        Condition::Absent => request::Condition::Absent,
        Condition::Value(_) => request::Condition::Value(expected),
        Condition::Version(version) => request::Condition::Version(Timestamp(version)),
    };
    Write::CompareAndSwap {
        key,
        condition,
        value: value.map(|value| blobs.next(value)),
    }
}
