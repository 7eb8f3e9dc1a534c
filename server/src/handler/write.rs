//! Write: several changes within one range, all or nothing.

use rangedb_engine::error::Error;
use rangedb_engine::limits::{BATCH_LEN_MAX, BATCH_OPS_MAX};
use rangedb_engine::request::{self, Write};
use rangedb_protocol::Mutation;

use crate::handler::Blobs;
use crate::handler::refusal::Refusal;

/// Builds the write. The limits are checked before anything is copied.
pub(super) fn of(mutations: &[Mutation<'_>]) -> Result<Write, Refusal> {
    let count = mutations.len();
    if count > BATCH_OPS_MAX {
        let rule = format!("the write has {count} operations; it may have {BATCH_OPS_MAX}");
        return Err(Error::Invalid(rule).into());
    }
    let parts = mutations
        .iter()
        .flat_map(|m| [m.key, m.value.unwrap_or_default()]);
    let len: usize = parts.clone().map(<[u8]>::len).sum();
    if len > BATCH_LEN_MAX {
        let rule =
            format!("the write has {len} bytes of keys and values; it may have {BATCH_LEN_MAX}");
        return Err(Error::Invalid(rule).into());
    }
    let mut blobs = Blobs::copy(parts);
    let copy = |m: &Mutation<'_>| request::Mutation {
        key: blobs.next(m.key),
        value: m.value.map(|value| blobs.next(value)),
    };
    Ok(Write::Multi {
        mutations: mutations.iter().map(copy).collect(),
    })
}
