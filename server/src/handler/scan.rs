//! Scan: rows of one range in key order.
//!
//! A scan runs as a task, since it lets other tasks run between its steps. As its reply may be
//! large, a connection runs one scan after the other, and the number of scans on a shard has a
//! limit.

use std::rc::Rc;

use rangedb_engine::error::Error;
use rangedb_engine::request::{ScanRequest, Target};
use rangedb_engine::types::{Blob, Timestamp};
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
        let end = self.request.end.clone();
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
            Ok(scanned) => reply::rows(context, &asked, scanned, end.as_deref(), to),
            Err(error) => reply::refusal(context, asked.request, &error.clone().into(), to),
        });
    }
}

/// Builds the scan. A continuation replaces everything but the limits.
pub(super) fn request(
    (start, end): (Option<&[u8]>, Option<&[u8]>),
    (rows_max, bytes_max): (u32, u32),
    continuation: Option<&[u8]>,
) -> Result<ScanRequest, Refusal> {
    let (rows_max, bytes_max) = (rows_max as usize, bytes_max as usize);
    let Some(token) = continuation else {
        let start = start.map(Blob::copy_from_slice);
        let end = end.map(Blob::copy_from_slice);
        return Ok(ScanRequest {
            start,
            end,
            rows_max,
            bytes_max,
            at: None,
        });
    };
    let goes_on = Continuation::decode(token);
    let goes_on = goes_on.map_err(|bad| Error::Invalid(bad.to_string()))?;
    Ok(ScanRequest {
        start: Some(goes_on.next.into()),
        end: goes_on.end.map(Into::into),
        rows_max,
        bytes_max,
        at: goes_on.at.map(Timestamp),
    })
}

pub(super) fn handle<O: Origin>(
    context: &Rc<Context>,
    origin: &Rc<O>,
    call: &Call<'_>,
    request: ScanRequest,
) -> Result<(), Refusal> {
    context.check_unsent()?;
    let start = request.start.as_deref().unwrap_or_default();
    let place = super::place(context, origin.as_ref(), start);
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
