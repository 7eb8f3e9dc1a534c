//! The error of a call, and the fate of a write.

use std::time::Duration;

pub use rangedb_protocol::{ErrorCode, Fate};

/// The error of a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code}, {})", fate_text(.fate))]
pub struct Error {
    /// What went wrong; [`ErrorCode::Unreachable`] if no server was reached.
    pub code: ErrorCode,
    /// Whether the write was applied. A read always has [`Fate::NotApplied`].
    pub fate: Fate,
    /// How long to wait before another try makes sense, if known.
    pub retry_after: Option<Duration>,
    /// An explanation for people.
    pub message: String,
}

fn fate_text(fate: &Fate) -> &'static str {
    match fate {
        Fate::NotApplied => "not applied",
        Fate::Unknown => "fate unknown",
        Fate::Applied => "applied",
    }
}

impl Error {
    pub(crate) fn new(code: ErrorCode, fate: Fate, message: impl Into<String>) -> Error {
        Error {
            code,
            fate,
            retry_after: None,
            message: message.into(),
        }
    }
}
