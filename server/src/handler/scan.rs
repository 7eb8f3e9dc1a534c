//! Scan: rows of one range in key order.
//!
//! A scan runs as a task, since it lets other tasks run between its steps. As its reply may be
//! large, a connection runs one scan after the other, and the number of scans on a shard has a
//! limit.

use std::rc::Rc;

use rangedb_engine::error::Error;
use rangedb_engine::request::{ScanRequest, Target};
use rangedb_engine::types::Timestamp;
use rangedb_protocol::continuation::Continuation;

use crate::env::Now;
use crate::handler::refusal::Refusal;
use crate::handler::{Call, Origin, elsewhere, reply};
use crate::shard::context::Context;
use crate::shard::router::Place;

/// A scan within a range of this shard.
#[derive(Debug)]
pub struct LocalScan {
    /// The token of the request to answer.
    pub token: u64,
    request: ScanRequest,
    target: Option<Target>,
    deadline: Option<Now>,
}

impl LocalScan {
    /// Runs the scan and answers it.
    pub async fn run<O: Origin>(self, context: &Rc<Context>, origin: &O) {
        let result = match context.begin_scan() {
            Ok(_running) => {
                context
                    .shard
                    .scan(self.request, self.target, self.deadline)
                    .await
            }
            Err(error) => Err(error),
        };
        let Some(asked) = origin.release(self.token) else {
            return;
        };
        origin.send(|to| match &result {
            Ok(scanned) => reply::rows(context, &asked, scanned, to),
            Err(error) => reply::refusal(context, asked.request, &error.clone().into(), to),
        });
    }
}

/// The scan that a continuation stands for, with the limits that are asked for now.
pub(super) fn continued(
    token: &[u8],
    (rows_max, bytes_max): (u32, u32),
) -> Result<ScanRequest, Refusal> {
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
    })
}

/// The token of a scan that goes on.
pub(super) fn continuation(rest: &ScanRequest) -> Vec<u8> {
    let continuation = Continuation {
        start: rest.start.as_deref().unwrap_or_default().to_vec(),
        end: rest.end.as_deref().map(<[u8]>::to_vec),
        at: rest.at.map(|at| at.0),
        reverse: rest.reverse,
        keys_only: rest.keys_only,
    };
    continuation.encode()
}

pub(super) fn handle<O: Origin>(
    context: &Rc<Context>,
    origin: &Rc<O>,
    call: &Call<'_>,
    request: ScanRequest,
) -> Result<(), Refusal> {
    context.check_unsent()?;
    let place = super::place(context, origin.as_ref(), &request.first_key());
    if !matches!(place, Place::Here) {
        return elsewhere(context, origin, call, place);
    }
    let token = origin.hold(call.asked)?;
    origin.scan(LocalScan {
        token,
        request,
        target: call.target,
        deadline: call.deadline,
    });
    Ok(())
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
