//! Checks the limits of a request before it is sent: a frame that is too long would end the
//! connection, and with it the requests of other callers.

use rangedb_limits::{check_bounds, check_key, check_multi_get};
use rangedb_protocol::limits::ADMIN_COMMAND_LEN_MAX;
use rangedb_protocol::{BadRequest, RequestBody};

use crate::error::{Error, ErrorCode, Fate};

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::Invalid, Fate::NotApplied, message)
}

/// Checks a request against the protocol's limits.
///
/// # Errors
/// [`ErrorCode::Invalid`], not applied.
pub fn check(body: &RequestBody<'_>) -> Result<(), Error> {
    let checked = match body {
        RequestBody::Get { key } => check_key(key),
        RequestBody::MultiGet { keys } => {
            check_multi_get(keys).and_then(|()| keys.iter().try_for_each(|key| check_key(key)))
        }
        RequestBody::Batch { batch, .. } => batch.check(),
        RequestBody::Scan { start, end, .. } => check_bounds(*start, *end),
        RequestBody::Admin { command } if command.len() > ADMIN_COMMAND_LEN_MAX => {
            let refused = BadRequest::LongCommand(command.len());
            return Err(invalid(refused.to_string()));
        }
        RequestBody::Directory | RequestBody::Status | RequestBody::Admin { .. } => Ok(()),
    };
    checked.map_err(|broken| invalid(broken.to_string()))
}
