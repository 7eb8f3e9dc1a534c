//! Refusals in terms of the wire protocol: the only place where the engine's errors become codes,
//! fates and hints.

use rangedb_engine::error::{Error, Fate, OrderError};
use rangedb_engine::gateway::OrderFailure;
use rangedb_engine::limits::MAX_CLOCK_OFFSET_MS;
use rangedb_engine::range::Route;
use rangedb_protocol::frame::BadFrame;
use rangedb_protocol::limits::IN_FLIGHT_MAX;
use rangedb_protocol::{BadRequest, ErrorCode};

/// How long a client should wait if the state soon passes by itself.
const RETRY_SOON_MS: u32 = 5;
/// How long a client should wait if the state may last.
const RETRY_LATER_MS: u32 = 200;
/// If a timestamp is too far ahead by at most this, the client may retry after waiting.
const RETRY_TIME_MS: u64 = 1000;

/// Why a request is refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The code of the error.
    pub code: ErrorCode,
    /// The fate of the write.
    pub fate: rangedb_protocol::Fate,
    /// How long the client should wait before it retries; 0 if that is unknown.
    pub retry_after_ms: u32,
    /// The reason, for people.
    pub message: String,
    /// The routes that the error knows; the first is that of the key's range.
    pub routes: Vec<Route>,
}

impl Refusal {
    fn not_applied(code: ErrorCode, retry_after_ms: u32, message: String) -> Refusal {
        let fate = rangedb_protocol::Fate::NotApplied;
        Refusal {
            code,
            fate,
            retry_after_ms,
            message,
            routes: Vec::new(),
        }
    }

    /// The refusal of a frame whose table cannot be decoded.
    pub fn malformed() -> Refusal {
        let message = "the request's table cannot be read; the connection is closed";
        Refusal::not_applied(ErrorCode::MalformedFrame, 0, message.to_owned())
    }

    /// The refusal after an error of the node's own. Nothing was done.
    pub fn internal(message: String) -> Refusal {
        Refusal::not_applied(ErrorCode::Internal, 0, message)
    }

    /// The refusal of a command that cannot be carried out now. Nothing was done.
    pub fn busy(message: String) -> Refusal {
        Refusal::not_applied(ErrorCode::Busy, RETRY_LATER_MS, message)
    }

    /// The refusal of a request beyond the connection's limit.
    pub fn too_many_in_flight() -> Refusal {
        let message = format!("{IN_FLIGHT_MAX} requests are in flight on this connection already");
        Refusal::not_applied(ErrorCode::TooManyInFlight, RETRY_SOON_MS, message)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let message = error.to_string();
        let fate = match error.fate() {
            Fate::NotApplied => rangedb_protocol::Fate::NotApplied,
            Fate::Unknown => rangedb_protocol::Fate::Unknown,
        };
        let (code, retry_after_ms, routes) = match error {
            Error::Invalid(_) => (ErrorCode::Invalid, 0, Vec::new()),
            Error::Moved(routes) => (ErrorCode::Moved, 0, routes),
            Error::SeveralRanges => (ErrorCode::SeveralRanges, 0, Vec::new()),
            Error::NotLeader(route) => {
                let routes = route.map(|route| *route).into_iter().collect();
                (ErrorCode::NotLeader, RETRY_SOON_MS, routes)
            }
            Error::NoQuorum(_) => (ErrorCode::NoQuorum, RETRY_LATER_MS, Vec::new()),
            Error::Overloaded { retry_after_ms, .. } => {
                (ErrorCode::Overloaded, retry_after_ms, Vec::new())
            }
            Error::DeadlineExceeded => (ErrorCode::DeadlineExceeded, 0, Vec::new()),
            Error::Unknown(_) => (ErrorCode::Unknown, 0, Vec::new()),
            Error::SessionExpired => (ErrorCode::SessionExpired, 0, Vec::new()),
            Error::SnapshotTooOld { .. } => (ErrorCode::SnapshotTooOld, 0, Vec::new()),
            Error::ClockOutOfBounds { ahead_ms, .. } => (
                ErrorCode::ClockOutOfBounds,
                possible_in_ms(ahead_ms),
                Vec::new(),
            ),
            Error::NotANumber => (ErrorCode::NotANumber, 0, Vec::new()),
            Error::NumberOverflow => (ErrorCode::NumberOverflow, 0, Vec::new()),
            Error::ShuttingDown => (ErrorCode::ShuttingDown, RETRY_LATER_MS, Vec::new()),
            Error::Recovering => (ErrorCode::Recovering, RETRY_LATER_MS, Vec::new()),
            Error::Diverged(_) => (ErrorCode::Diverged, 0, Vec::new()),
            Error::DiskFull => (ErrorCode::DiskFull, RETRY_LATER_MS, Vec::new()),
            Error::Unreadable(_) => (ErrorCode::Unreadable, RETRY_LATER_MS, Vec::new()),
        };
        Refusal {
            code,
            fate,
            retry_after_ms,
            message,
            routes,
        }
    }
}

impl From<OrderFailure> for Refusal {
    fn from(failure: OrderFailure) -> Refusal {
        match failure {
            OrderFailure::Refused(error) => error.into(),
            OrderFailure::Unanswered(error) => error.into(),
            OrderFailure::Unreadable => Refusal::internal(failure.to_string()),
        }
    }
}

impl From<OrderError> for Refusal {
    fn from(error: OrderError) -> Refusal {
        let message = error.to_string();
        let (code, retry_after_ms) = match error {
            OrderError::Busy { retry_after_ms, .. } => (ErrorCode::Busy, retry_after_ms),
            OrderError::Conflict(_) => (ErrorCode::Conflict, 0),
            OrderError::Invalid(_) => (ErrorCode::Invalid, 0),
            OrderError::NotFound(_) => (ErrorCode::NotFound, 0),
            OrderError::Unknown(_) => {
                let mut refusal = Refusal::not_applied(ErrorCode::Unknown, 0, message);
                refusal.fate = rangedb_protocol::Fate::Unknown;
                return refusal;
            }
        };
        Refusal::not_applied(code, retry_after_ms, message)
    }
}

/// The wait until a timestamp this far ahead is allowed; 0 if that is too long.
fn possible_in_ms(ahead_ms: u64) -> u32 {
    let wait = ahead_ms.saturating_sub(MAX_CLOCK_OFFSET_MS);
    match u32::try_from(wait) {
        Ok(wait) if u64::from(wait) <= RETRY_TIME_MS => wait,
        _ => 0,
    }
}

impl From<BadRequest> for Refusal {
    fn from(bad: BadRequest) -> Refusal {
        let code = match &bad {
            BadRequest::UnknownKind(_) => ErrorCode::UnknownKind,
            BadRequest::BadTable(_) => ErrorCode::MalformedFrame,
            BadRequest::KeyLengths
            | BadRequest::UnknownCondition(_)
            | BadRequest::NoExpectedValue
            | BadRequest::UnknownChange(_)
            | BadRequest::NoValue
            | BadRequest::Expiry(_)
            | BadRequest::LongCommand(_) => ErrorCode::Invalid,
        };
        Refusal::not_applied(code, 0, bad.to_string())
    }
}

impl From<BadFrame> for Refusal {
    fn from(bad: BadFrame) -> Refusal {
        let code = match &bad {
            BadFrame::TooLarge { .. } => ErrorCode::FrameTooLarge,
            BadFrame::TooShort(_) => ErrorCode::MalformedFrame,
        };
        Refusal::not_applied(code, 0, bad.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rangedb_engine::types::Timestamp;
    use std::time::Duration;

    #[test]
    fn only_what_may_have_happened_is_unknown() {
        let errors = [
            Error::Invalid("rule".to_owned()),
            Error::Moved(Vec::new()),
            Error::SeveralRanges,
            Error::NotLeader(None),
            Error::NoQuorum(Fate::Unknown),
            Error::overloaded("queue", 7),
            Error::DeadlineExceeded,
            Error::unknown("why"),
            Error::SessionExpired,
            Error::SnapshotTooOld {
                at: Timestamp(1),
                threshold: Timestamp(2),
            },
            Error::ClockOutOfBounds {
                what: "token".into(),
                ahead_ms: 501,
            },
            Error::NotANumber,
            Error::NumberOverflow,
            Error::ShuttingDown,
            Error::Recovering,
            Error::Diverged(rangedb_engine::types::RangeId(2)),
            Error::DiskFull,
            Error::Unreadable(rangedb_engine::types::RangeId(2)),
        ];
        let mut codes = Vec::new();
        for error in errors {
            let unknown = error.fate() == Fate::Unknown;
            let refusal = Refusal::from(error);
            assert_eq!(
                refusal.fate == rangedb_protocol::Fate::Unknown,
                unknown,
                "{refusal:?}"
            );
            assert!(!refusal.message.is_empty());
            codes.push(refusal.code);
        }
        let count = codes.len();
        codes.sort();
        codes.dedup();
        assert_eq!(codes.len(), count, "each error has a code of its own");
    }

    #[test]
    fn orders_are_refused_by_what_helps() {
        let busy = OrderError::busy_for("a change is under way", Duration::from_millis(70));
        let refused = |error: OrderError| {
            let refusal = Refusal::from(error);
            assert!(refusal.message.contains("change"), "{refusal:?}");
            (refusal.code, refusal.fate, refusal.retry_after_ms)
        };
        let why = || "the change".to_owned();
        let not_applied = rangedb_protocol::Fate::NotApplied;
        assert_eq!(refused(busy), (ErrorCode::Busy, not_applied, 70));
        let invalid = refused(OrderError::Invalid(why()));
        assert_eq!(invalid, (ErrorCode::Invalid, not_applied, 0));
        let not_found = refused(OrderError::NotFound(why()));
        assert_eq!(not_found, (ErrorCode::NotFound, not_applied, 0));
        let unknown = refused(OrderError::Unknown(why()));
        let fate = rangedb_protocol::Fate::Unknown;
        assert_eq!(unknown, (ErrorCode::Unknown, fate, 0));
    }
}
