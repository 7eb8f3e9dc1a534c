//! Why a call failed, and what became of a write.

use std::time::Duration;

pub use rangedb_protocol::{ErrorCode, Fate};

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code}, {})", fate_text(.fate))]
pub struct Error {
    /// What went wrong; [`ErrorCode::Unreachable`] if no server could be reached.
    pub code: ErrorCode,
    /// What became of the write. Reads are never applied.
    pub fate: Fate,
    /// When another try makes sense, if that is known.
    pub retry_after: Option<Duration>,
    /// For people.
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
