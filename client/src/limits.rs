//! Checks the limits of a request before it is sent: a frame that is too long would end the
//! connection, and with it the requests of other callers.

use rangedb_protocol::limits::{
    ADMIN_COMMAND_LEN_MAX, BATCH_ADDITIONS_MAX, BATCH_LEN_MAX, BATCH_OPS_MAX, KEY_LEN_MAX,
    MULTI_GET_KEYS_LEN_MAX, MULTI_GET_KEYS_MAX, VALUE_LEN_MAX,
};
use rangedb_protocol::{Batch, Change, Expected, Mutation, RequestBody};

use crate::error::{Error, ErrorCode, Fate};

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::Invalid, Fate::NotApplied, message)
}

/// Checks the length of a key.
///
/// # Errors
/// [`ErrorCode::Invalid`], not applied.
pub fn key(key: &[u8]) -> Result<(), Error> {
    match key.len() {
        0 => Err(invalid("the key is empty".to_owned())),
        len if len > KEY_LEN_MAX => {
            let message = format!("the key has {len} bytes; a key has at most {KEY_LEN_MAX}");
            Err(invalid(message))
        }
        _ => Ok(()),
    }
}

fn value(value: &[u8]) -> Result<(), Error> {
    if value.len() <= VALUE_LEN_MAX {
        return Ok(());
    }
    let len = value.len();
    let message = format!("the value has {len} bytes; a value has at most {VALUE_LEN_MAX}");
    Err(invalid(message))
}

fn multi_get(keys: &[&[u8]]) -> Result<(), Error> {
    let count = keys.len();
    if !(1..=MULTI_GET_KEYS_MAX).contains(&count) {
        let message = format!("the request has {count} keys, of 1 to {MULTI_GET_KEYS_MAX}");
        return Err(invalid(message));
    }
    keys.iter().try_for_each(|k| key(k))?;
    let len: usize = keys.iter().map(|k| k.len()).sum();
    if len > MULTI_GET_KEYS_LEN_MAX {
        let message = format!("the keys have {len} bytes, of {MULTI_GET_KEYS_LEN_MAX} at most");
        return Err(invalid(message));
    }
    Ok(())
}

fn batch(batch: &Batch<'_>) -> Result<(), Error> {
    if batch.mutations.is_empty() {
        return Err(invalid("the write has no operation".to_owned()));
    }
    let count = batch.operations();
    if count > BATCH_OPS_MAX {
        let message = format!("the write has {count} operations, of {BATCH_OPS_MAX} at most");
        return Err(invalid(message));
    }
    let adds = |m: &&Mutation<'_>| matches!(m.change, Change::Add(_));
    let count = batch.mutations.iter().filter(adds).count();
    if count > BATCH_ADDITIONS_MAX {
        let message = format!("the write has {count} additions, of {BATCH_ADDITIONS_MAX} at most");
        return Err(invalid(message));
    }
    for condition in &batch.conditions {
        key(condition.key)?;
        if let Expected::Value(expected) = condition.expected {
            value(expected)?;
        }
    }
    for mutation in &batch.mutations {
        key(mutation.key)?;
        mutation.change.value().map_or(Ok(()), value)?;
    }
    let len: usize = batch.parts().map(<[u8]>::len).sum();
    if len > BATCH_LEN_MAX {
        let message = format!("the write has {len} bytes, of {BATCH_LEN_MAX} at most");
        return Err(invalid(message));
    }
    Ok(())
}

/// Checks a request against the protocol's limits.
///
/// # Errors
/// [`ErrorCode::Invalid`], not applied.
pub fn check(body: &RequestBody<'_>) -> Result<(), Error> {
    match body {
        RequestBody::Get { key: k } => key(k),
        RequestBody::MultiGet { keys } => multi_get(keys),
        RequestBody::Batch { batch: b, .. } => batch(b),
        // A bound may be as long as a key, and one byte longer: just after the longest key.
        RequestBody::Scan { start, end, .. } => {
            let bounds = [start, end].into_iter().flatten();
            match bounds.map(|bound| bound.len()).max() {
                Some(len) if len > KEY_LEN_MAX + 1 => Err(invalid(format!(
                    "a scan's bound has {len} bytes; a key has at most {KEY_LEN_MAX}"
                ))),
                _ => Ok(()),
            }
        }
        RequestBody::Admin { command } if command.len() > ADMIN_COMMAND_LEN_MAX => {
            let len = command.len();
            let message =
                format!("the command has {len} bytes, of {ADMIN_COMMAND_LEN_MAX} at most");
            Err(invalid(message))
        }
        RequestBody::Directory | RequestBody::Status | RequestBody::Admin { .. } => Ok(()),
    }
}
