//! Why an HTTP request failed: the only place where errors become status codes.
//!
//! The body is JSON. `error` is a code of the wire protocol or one of this module's own names,
//! `fate` says what became of a write (`not_applied`, `unknown`, `applied`), `message` is for
//! people. Pure.

use hyper::header::{ALLOW, CONNECTION, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use rangedb_client::{Error, ErrorCode, Fate};
use rangedb_engine::words::listed;
use serde_json::json;

use super::body::{Text, json_response};

/// A failed request, ready to become a response.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    error: &'static str,
    fate: Fate,
    message: String,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Failure {
    pub(super) fn new(
        status: StatusCode,
        error: &'static str,
        message: impl Into<String>,
    ) -> Failure {
        Failure {
            status,
            error,
            fate: Fate::NotApplied,
            message: message.into(),
            header: None,
        }
    }

    pub fn invalid(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    pub fn no_such_page() -> Failure {
        let message = "there are batch, get, nodes, ranges, ranges/hot, status, balance, config, config/history, \
                       config/NAME, node-config, reload, history, history/all, ranges/scatter, \
                       ranges/ID/transfer-leader, ranges/ID/move-replica, ranges/ID/split, \
                       ranges/ID/merge, ranges/ID/release, nodes/ID/drain, nodes/ID/undrain, \
                       nodes/ID/decommission, nodes/ID/remove, nodes/ID/leaving, stream, kv/KEY and scan";
        Failure::new(StatusCode::NOT_FOUND, "no_such_page", message)
    }

    pub fn no_such_key() -> Failure {
        Failure::new(StatusCode::NOT_FOUND, "not_found", "there is no such key")
    }

    pub fn method(methods: &'static str) -> Failure {
        let message = format!("this path takes only {methods}");
        let mut failure = Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method", message);
        failure.header = Some((ALLOW, HeaderValue::from_static(methods)));
        failure
    }

    pub fn too_long(len_max: usize) -> Failure {
        let message = format!("the body has more than {len_max} bytes");
        Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_long", message)
    }

    /// The rest of the body does not come.
    pub fn too_late() -> Failure {
        let message = "the rest of the body did not arrive in time";
        let mut failure = Failure::new(StatusCode::REQUEST_TIMEOUT, "too_late", message);
        failure.header = Some((CONNECTION, HeaderValue::from_static("close")));
        failure
    }

    /// The host or the origin of the request is not served.
    pub fn foreign(status: StatusCode, message: String) -> Failure {
        Failure::new(status, "foreign", message)
    }

    /// The history cannot be read now.
    pub fn unavailable(message: String) -> Failure {
        let mut failure = Failure::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message);
        failure.header = Some((RETRY_AFTER, HeaderValue::from(1)));
        failure
    }

    /// The node is not ready yet, or is stopping.
    pub fn not_serving() -> Failure {
        let message = "the node is starting or stopping";
        let mut failure = Failure::new(StatusCode::SERVICE_UNAVAILABLE, "not_serving", message);
        failure.header = Some((RETRY_AFTER, HeaderValue::from(1)));
        failure
    }

    /// So many watch the page that another would cost the node too much.
    pub fn too_many_viewers(max: usize) -> Failure {
        let message =
            format!("{max} pages are open on this node, which is the most that it serves");
        let mut failure =
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_viewers", message);
        failure.header = Some((RETRY_AFTER, HeaderValue::from(5)));
        failure
    }

    /// Whether it may have failed because nothing has answered.
    pub fn is_silence(&self) -> bool {
        let codes = [
            ErrorCode::DeadlineExceeded,
            ErrorCode::Unreachable,
            ErrorCode::Unknown,
        ];
        codes.map(ErrorCode::name).contains(&self.error)
    }

    /// The same, where these shards of the node do not answer.
    pub fn beside_silent(mut self, shards: &[usize]) -> Failure {
        let known = match shards {
            [] => return self,
            [one] => format!("shard {one} of this node does not answer"),
            several => format!("shards {} of this node do not answer", listed(several)),
        };
        let help = "the node's log says what holds it up; restart the node if that lasts";
        self.message += &format!("; {known}: {help}");
        self
    }

    pub fn response(self) -> Response<Text> {
        let fate = match self.fate {
            Fate::NotApplied => "not_applied",
            Fate::Unknown => "unknown",
            Fate::Applied => "applied",
        };
        let body = json!({ "error": self.error, "fate": fate, "message": self.message });
        let mut response = json_response(self.status, body.to_string());
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// The status code for an error.
fn status(error: &Error) -> StatusCode {
    match (error.fate, error.code) {
        (Fate::Unknown, ErrorCode::DeadlineExceeded | ErrorCode::Unknown | ErrorCode::NoQuorum) => {
            StatusCode::GATEWAY_TIMEOUT
        }
        (Fate::Unknown | Fate::Applied, _) => StatusCode::INTERNAL_SERVER_ERROR,
        (_, code) => match code {
            ErrorCode::Invalid
            | ErrorCode::SeveralRanges
            | ErrorCode::NotANumber
            | ErrorCode::NumberOverflow => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Conflict => StatusCode::CONFLICT,
            ErrorCode::SnapshotTooOld => StatusCode::GONE,
            ErrorCode::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
            ErrorCode::Moved
            | ErrorCode::NotLeader
            | ErrorCode::NoQuorum
            | ErrorCode::ClockOutOfBounds
            | ErrorCode::Recovering
            | ErrorCode::Overloaded
            | ErrorCode::Busy
            | ErrorCode::TooManyInFlight
            | ErrorCode::DeadlineExceeded
            | ErrorCode::ShuttingDown
            | ErrorCode::Unreadable
            | ErrorCode::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let status = status(&error);
        let mut failure = Failure::new(status, error.code.name(), error.message);
        failure.fate = error.fate;
        if status == StatusCode::SERVICE_UNAVAILABLE {
            let after = error.retry_after.unwrap_or_default().as_millis();
            // The header counts whole seconds; at least one, so that no client retries at once.
            let seconds = u64::try_from(after.div_ceil(1000)).unwrap_or(u64::MAX);
            failure.header = Some((RETRY_AFTER, HeaderValue::from(seconds.max(1))));
        }
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn orders_fail_with_the_status_that_says_what_helps() {
        for (code, status) in [
            (ErrorCode::Busy, 503),
            (ErrorCode::NotLeader, 503),
            (ErrorCode::Invalid, 400),
            (ErrorCode::NotFound, 404),
            (ErrorCode::Conflict, 409),
        ] {
            let failure = Failure::from(Error::new(code, Fate::NotApplied, "why"));
            assert_eq!(failure.response().status().as_u16(), status, "{code}");
        }
    }

    #[test]
    fn what_may_have_happened_is_never_told_as_retryable() {
        for code in ErrorCode::ALL {
            let error = |fate| {
                let mut error = Error::new(*code, fate, "why");
                error.retry_after = Some(Duration::from_millis(1200));
                error
            };
            let unknown = Failure::from(error(Fate::Unknown)).response();
            assert!(
                matches!(unknown.status().as_u16(), 500 | 504),
                "{code}: {}",
                unknown.status()
            );
            assert!(unknown.headers().get(RETRY_AFTER).is_none());
            let refused = Failure::from(error(Fate::NotApplied)).response();
            let retry = refused.headers().get(RETRY_AFTER);
            assert_eq!(refused.status().as_u16() == 503, retry.is_some());
            assert!(retry.is_none_or(|after| after == "2"));
        }
    }
}
