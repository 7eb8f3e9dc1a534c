//! The formats of an entry's payload, which its last byte tells apart. Pure.

use std::borrow::Cow;

use crate::error::Fatal;
use crate::range::command::v1;
use crate::range::command::{FORMAT, FORMAT_MERGE, FORMAT_SPLIT};

/// The bytes of an entry in today's format: those given, or those of an older entry written anew.
///
/// # Errors
/// The bytes are no entry of any known format.
pub fn current(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Fatal> {
    match bytes.last() {
        Some(&(FORMAT | FORMAT_SPLIT | FORMAT_MERGE)) => Ok(Cow::Borrowed(bytes)),
        Some(0) => v1::convert(bytes).map(Cow::Owned),
        Some(other) => Err(Fatal::Inconsistent(format!(
            "a log entry has format {other}; this release reads formats 1 to {FORMAT_MERGE}"
        ))),
        None => Err(Fatal::Inconsistent("a log entry is empty".to_owned())),
    }
}
