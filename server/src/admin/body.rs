//! Bodies of HTTP requests and responses, and paths of requests. Nothing here interprets them.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::time::Instant;

/// A body that is too long is still read to the end if at most this many bytes exceed the limit, so
/// that the client receives the refusal.
const DISCARDED_LEN_MAX: usize = 4 << 20;

/// A body of which less than [`PIECE_LEN`] comes within this time is given up, as on the node's own
/// port.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);
const PIECE_LEN: usize = 64 << 10;

/// Why a body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoBody {
    /// The body is longer than the limit.
    TooLong,
    /// The connection broke, or the bytes are no valid HTTP.
    Broken,
    /// The rest of the body does not come.
    Late,
}

/// Reads a whole body of at most `len_max` bytes.
pub(super) async fn read(mut body: Incoming, len_max: usize) -> Result<Vec<u8>, NoBody> {
    let told = body.size_hint().lower();
    if told > (len_max + DISCARDED_LEN_MAX) as u64 {
        return Err(NoBody::TooLong);
    }
    let (mut kept, mut len) = (Vec::new(), 0);
    let (mut piece_end, mut due) = (PIECE_LEN, Instant::now() + PIECE_TIMEOUT);
    loop {
        let frame = tokio::time::timeout_at(due, body.frame()).await;
        let Some(frame) = frame.map_err(|_| NoBody::Late)? else {
            break;
        };
        let frame = frame.map_err(|_| NoBody::Broken)?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        len += data.len();
        if len >= piece_end {
            (piece_end, due) = (len + PIECE_LEN, Instant::now() + PIECE_TIMEOUT);
        }
        if len <= len_max {
            kept.extend_from_slice(&data);
        } else if len > len_max + DISCARDED_LEN_MAX {
            break;
        }
    }
    if len > len_max {
        return Err(NoBody::TooLong);
    }
    Ok(kept)
}

/// Decodes percent signs in a part of a path; `None` if one stands without two hexadecimal digits.
pub(super) fn percent_decoded(part: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, more @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = more;
            continue;
        }
        let [high, low, more @ ..] = more else {
            return None;
        };
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        bytes.push((digit(high)? << 4 | digit(low)?) as u8);
        rest = more;
    }
    Some(bytes)
}

/// A response body in one piece.
pub(super) type Text = Full<Bytes>;

/// A response with a JSON body.
pub(super) fn json_response(status: StatusCode, json: String) -> Response<Text> {
    let mut response = Response::new(Text::new(json.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_any_bytes() {
        let bytes = |text| percent_decoded(text);
        assert_eq!(bytes("a+b/c"), Some(b"a+b/c".to_vec()));
        assert_eq!(bytes("%00%ff%FF%25"), Some(vec![0, 0xff, 0xff, b'%']));
        assert_eq!(bytes(""), Some(Vec::new()));
        for bad in ["%", "%0", "a%0", "%0g", "%g0", "%-1", "%+1", "% 1"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
