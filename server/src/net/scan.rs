//! Scan: rows of one range in ascending or descending order of keys, in pages. The token of a page says
//! where the next one goes on.

use rangedb_engine::error::Error;
use rangedb_engine::request::ScanRequest;
use rangedb_engine::types::{Blob, Timestamp};
use rangedb_protocol::continuation::Continuation;

use crate::net::refusal::Refusal;

/// The scan of a first page.
pub fn first(
    (start, end): (Option<&[u8]>, Option<&[u8]>),
    (rows_max, bytes_max): (u32, u32),
    (reverse, keys_only): (bool, bool),
) -> ScanRequest {
    ScanRequest {
        start: start.map(Blob::copy_from_slice),
        end: end.map(Blob::copy_from_slice),
        reverse,
        keys_only,
        rows_max: rows_max as usize,
        bytes_max: bytes_max as usize,
        at: None,
        until: None,
    }
}

/// The scan that a continuation stands for, with the limits that are asked for now.
pub fn continued(token: &[u8], (rows_max, bytes_max): (u32, u32)) -> Result<ScanRequest, Refusal> {
    let rest = Continuation::decode(token);
    let rest = rest.map_err(|bad| Error::Invalid(bad.to_string()))?;
    Ok(ScanRequest {
        start: Some(rest.start.into()),
        end: rest.end.map(Into::into),
        reverse: rest.reverse,
        keys_only: rest.keys_only,
        rows_max: rows_max as usize,
        bytes_max: bytes_max as usize,
        at: rest.at.map(Timestamp),
        until: rest.until.map(Into::into),
    })
}

/// The token of a scan that goes on.
pub fn continuation(rest: &ScanRequest) -> Vec<u8> {
    let continuation = Continuation {
        start: rest.start.as_deref().unwrap_or_default().to_vec(),
        end: rest.end.as_deref().map(<[u8]>::to_vec),
        at: rest.at.map(|at| at.0),
        until: rest.until.as_deref().map(<[u8]>::to_vec),
        reverse: rest.reverse,
        keys_only: rest.keys_only,
    };
    continuation.encode()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_goes_on_as_its_token_says_where_clients_look_for_it() {
        let longest = vec![b'k'; 4096];
        let after = [&longest[..], b"\0"].concat();
        let ends = [&b""[..], b"\0", b"b", b"b\0", b"b\0\x01", &longest, &after];
        for end in [None].into_iter().chain(ends.map(Some)) {
            for reverse in [false, true] {
                let rest = ScanRequest {
                    start: Some("a".into()),
                    end: end.map(|end| end.to_vec().into()),
                    reverse,
                    keys_only: end.is_none(),
                    rows_max: 7,
                    bytes_max: 9,
                    at: Some(Timestamp(5)),
                    until: end.map(|end| end.to_vec().into()),
                };
                let token = continuation(&rest);
                let decoded = Continuation::decode(&token).expect("a token");
                assert_eq!(decoded.first_key(), rest.first_key(), "{end:?}");
                let goes_on = continued(&token, (7, 9)).ok();
                assert_eq!(goes_on, Some(rest));
            }
        }
    }
}
