//! The error of a call, the fate of a write, and [`Reason`]: why a connection or a try failed.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rangedb_protocol::ErrorReply;
pub use rangedb_protocol::{ErrorCode, Fate};

/// The error of a call.
///
/// The client has retried what it can within the call's time. What a caller needs next is mostly
/// whether the write was applied: [`Error::may_have_been_applied`], and whether it makes sense to
/// make the call again: [`Error::is_retryable`].
///
/// If a system call failed, that error is the [source](std::error::Error::source), an
/// [`io::Error`]: its kind tells a refused connection from one that timed out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Error {
    /// What went wrong; [`ErrorCode::Unreachable`] if no server was reached.
    pub code: ErrorCode,
    /// Whether the write was applied. A read always has [`Fate::NotApplied`].
    pub fate: Fate,
    /// How long to wait before another try makes sense, if known.
    pub retry_after: Option<Duration>,
    /// An explanation for people.
    pub message: String,
    source: Option<Arc<io::Error>>,
}

impl Error {
    /// Whether the same call may simply be made again: it was not applied, and the reason may pass
    /// by itself. The client has tried again for as long as the call's time allowed.
    ///
    /// If a write [may have been applied](Error::may_have_been_applied), this is false, since
    /// another call is another write: read first whether it happened, or make it one that may
    /// happen twice.
    pub fn is_retryable(&self) -> bool {
        self.fate == Fate::NotApplied && passes(self.code)
    }

    /// Whether the write happened or may yet happen. Always false for reads.
    pub fn may_have_been_applied(&self) -> bool {
        self.fate != Fate::NotApplied
    }

    /// An error as the client gives it, for tests of code that handles errors. The reason is a text
    /// or an [`io::Error`].
    pub fn new(code: ErrorCode, fate: Fate, reason: impl Into<Reason>) -> Error {
        let Reason { text, source } = reason.into();
        Error {
            code,
            fate,
            retry_after: None,
            message: text,
            source,
        }
    }

    pub(crate) fn unreachable(reason: impl Into<Reason>) -> Error {
        Error::new(ErrorCode::Unreachable, Fate::NotApplied, reason)
    }
}

impl From<ErrorReply> for Error {
    fn from(reply: ErrorReply) -> Error {
        let code = match reply.code {
            // The client itself is wrong, or newer than the node: its caller can only read why.
            Ok(ErrorCode::MalformedFrame | ErrorCode::FrameTooLarge | ErrorCode::UnknownKind)
            | Err(_) => ErrorCode::Internal,
            Ok(code) => code,
        };
        let mut error = Error::new(code, reply.fate, reply.message);
        error.retry_after = Some(Duration::from_millis(u64::from(reply.retry_after_ms)))
            .filter(|after| !after.is_zero());
        error
    }
}

/// Whether a reason may pass by itself.
pub(crate) fn passes(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::TooManyInFlight
            | ErrorCode::Moved
            | ErrorCode::NotLeader
            | ErrorCode::Recovering
            | ErrorCode::Overloaded
            | ErrorCode::DeadlineExceeded
            | ErrorCode::Unknown
            | ErrorCode::Busy
            | ErrorCode::ShuttingDown
            | ErrorCode::Unreachable
            | ErrorCode::NoQuorum
            | ErrorCode::ClockOutOfBounds
    )
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fate = match self.fate {
            Fate::NotApplied => "not applied",
            Fate::Unknown => "fate unknown",
            Fate::Applied => "applied",
        };
        write!(f, "{} ({}, {fate})", self.message, self.code)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The source does not count: the message contains its text.
impl PartialEq for Error {
    fn eq(&self, other: &Error) -> bool {
        let parts = |error: &Error| (error.code, error.fate, error.retry_after);
        parts(self) == parts(other) && self.message == other.message
    }
}

impl Eq for Error {}

/// Why something failed: a text for people, and the error of the system, if it was one.
#[derive(Clone, Debug)]
pub struct Reason {
    text: String,
    source: Option<Arc<io::Error>>,
}

impl Reason {
    /// The reason with the place where it happened.
    #[must_use]
    pub fn at(self, place: &str) -> Reason {
        Reason {
            text: format!("{place}: {}", self.text),
            source: self.source,
        }
    }

    /// Several reasons as one, after an introduction. The source is the first that there is.
    pub fn all(introduction: &str, reasons: Vec<Reason>, between: &str) -> Reason {
        let mut texts: Vec<&str> = reasons.iter().map(|reason| &*reason.text).collect();
        texts.dedup();
        Reason {
            text: format!("{introduction}{}", texts.join(between)),
            source: reasons.iter().find_map(|reason| reason.source.clone()),
        }
    }

    /// The same failure in other words.
    #[must_use]
    pub fn worded(self, text: impl Into<String>) -> Reason {
        Reason {
            text: text.into(),
            source: self.source,
        }
    }

    /// Something did not happen in time.
    pub fn timed_out(text: impl Into<String>) -> Reason {
        Reason {
            text: text.into(),
            source: Some(Arc::new(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Reason {
        Reason { text, source: None }
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Reason {
        text.to_owned().into()
    }
}

impl From<io::Error> for Reason {
    fn from(error: io::Error) -> Reason {
        Reason {
            text: error.to_string(),
            source: Some(Arc::new(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_call_may_be_made_again_if_it_was_not_applied_and_the_reason_passes() {
        let error = |code, fate| Error::new(code, fate, "why");
        for (code, fate, is_retryable) in [
            (ErrorCode::Overloaded, Fate::NotApplied, true),
            (ErrorCode::Unreachable, Fate::NotApplied, true),
            (ErrorCode::NoQuorum, Fate::NotApplied, true),
            (ErrorCode::NoQuorum, Fate::Unknown, false),
            (ErrorCode::Unknown, Fate::Unknown, false),
            (ErrorCode::Invalid, Fate::NotApplied, false),
            (ErrorCode::SeveralRanges, Fate::NotApplied, false),
            (ErrorCode::DiskFull, Fate::NotApplied, false),
            (ErrorCode::Diverged, Fate::NotApplied, false),
        ] {
            let error = error(code, fate);
            assert_eq!(error.is_retryable(), is_retryable, "{error}");
            assert_eq!(error.may_have_been_applied(), fate == Fate::Unknown);
        }
    }

    #[test]
    fn the_source_is_the_system_s_error() {
        let refused = || Reason::from(io::Error::from(io::ErrorKind::ConnectionRefused));
        let reasons = vec![
            "no RangeDB server".into(),
            refused().at("here:1"),
            refused(),
        ];
        let reason = Reason::all("no node answers: ", reasons, "; ");
        let error = Error::unreachable(reason);
        let message = "no node answers: no RangeDB server; here:1: connection refused; \
                       connection refused (unreachable, not applied)";
        assert_eq!(error.to_string(), message);
        let source = error.source().and_then(|source| source.downcast_ref());
        let kind = source.map(io::Error::kind);
        assert_eq!(kind, Some(io::ErrorKind::ConnectionRefused));
        assert!(Error::unreachable("why").source().is_none());
    }
}
