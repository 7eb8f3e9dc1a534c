//! Forward scans: rows of one range as of one timestamp, in turns short enough for other tasks to
//! run.
//!
//! A first scan reads at the range's last applied timestamp: everything acknowledged is at or below
//! it, and every later write comes above it, so nothing has to wait. A continuation names its
//! timestamp. If that lies above what is applied (a client may send anything), it is served only
//! after an entry above it was applied, which also raises the ceiling. Then what was served stays
//! true whichever replica leads next.

use std::ops::Bound;
use std::rc::Rc;

use openraft::async_runtime::{Oneshot, OneshotSender};

use super::{Shard, check_bound};
use crate::env::{AsyncRuntime, Env, Now, yield_now};
use crate::error::Error;
use crate::limits::{SCAN_BYTES_MAX, SCAN_ROWS_MAX, SCAN_STEPS_PER_TURN};
use crate::lsm::keys;
use crate::mutant::{self, Mutant};
use crate::range::command::RangeOrder;
use crate::range::proposer::{Proposal, ProposalKind, WriteSink};
use crate::range::replica::Replica;
use crate::request::{Outcome, ScanNext, ScanReply, ScanRequest, Target, Versioned};
use crate::types::{Blob, Timestamp};

impl<E: Env> Shard<E> {
    /// Reads rows in key order. At the range's end it stops, and the reply says where to go on.
    ///
    /// # Errors
    /// [`Error::SnapshotTooOld`], [`Error::ClockOutOfBounds`], [`Error::Invalid`], and the errors
    /// of [`Shard::get`].
    pub async fn scan(
        &self,
        scan: ScanRequest,
        target: Option<Target>,
        deadline: Option<Now<E>>,
    ) -> Result<ScanReply, Error> {
        let start = scan.start.clone().unwrap_or_default();
        check_bound(&start)?;
        scan.end.as_deref().map_or(Ok(()), check_bound)?;
        let empty = scan.end.as_ref().is_some_and(|end| *end <= start);
        let replica = self.find(&start)?;
        self.confirm_at(&start, target).await?;
        let at = match scan.at {
            None => replica.with_state(|state| state.last_ts),
            Some(at) => snapshot(&replica, at, deadline).await?,
        };
        let threshold = replica.with_state(|state| state.gc_threshold);
        if at <= threshold && threshold > Timestamp::ZERO {
            return Err(Error::SnapshotTooOld { at, threshold });
        }
        if empty {
            return Ok(ScanReply {
                at,
                ..ScanReply::default()
            });
        }
        self.read(&replica, scan, start, at).await
    }

    async fn read(
        &self,
        replica: &Replica<E>,
        scan: ScanRequest,
        start: Blob,
        at: Timestamp,
    ) -> Result<ScanReply, Error> {
        let range_end = replica.with_state(|state| state.descriptor.keys.end.clone());
        let range_end = range_end.map(Blob::from);
        let (end, ends_with_range) = match (scan.end, &range_end) {
            (Some(end), Some(last)) if *last < end => (Some(last.clone()), true),
            (None, Some(last)) => (Some(last.clone()), true),
            (end, _) => (end, false),
        };
        let mut page = Page::new(scan.rows_max, scan.bytes_max);
        let mut from = start;
        loop {
            let turn = self.turn(replica, &from, end.as_ref(), at, &mut page)?;
            match turn {
                Turn::Exhausted => {
                    let next = ends_with_range.then_some(range_end).flatten();
                    let next = next.map(|start| ScanNext { start, at: None });
                    return Ok(ScanReply {
                        rows: page.rows,
                        at,
                        next,
                    });
                }
                Turn::Full(start) => {
                    let next = Some(ScanNext {
                        start,
                        at: Some(at),
                    });
                    return Ok(ScanReply {
                        rows: page.rows,
                        at,
                        next,
                    });
                }
                Turn::GoOn(key) => from = key,
            }
            yield_now().await;
            // Versions that this snapshot needs may have been collected meanwhile.
            let threshold = replica.with_state(|state| state.gc_threshold);
            if at <= threshold {
                return Err(Error::SnapshotTooOld { at, threshold });
            }
        }
    }

    /// Reads a bounded number of rows.
    fn turn(
        &self,
        replica: &Replica<E>,
        from: &[u8],
        end: Option<&Blob>,
        at: Timestamp,
        page: &mut Page,
    ) -> Result<Turn, Error> {
        let (mut low, mut high) = (Vec::new(), Vec::new());
        keys::user_key(replica.data_id(), from, &mut low);
        match end {
            Some(end) => keys::user_key(replica.data_id(), end, &mut high),
            None => keys::user_end(replica.data_id(), &mut high),
        }
        let bounds = (
            Bound::Included(low.as_slice()),
            Bound::Excluded(high.as_slice()),
        );
        let result = self.inner.store.scan(bounds, at, |rows| {
            let mut steps = 0;
            loop {
                let Some(row) = rows.next_row()? else {
                    return Ok(Turn::Exhausted);
                };
                let key = Blob::copy_from_slice(keys::user_part(row.key()));
                if page.is_full_for(key.len() + row.value().len()) {
                    return Ok(Turn::Full(key));
                }
                if steps == SCAN_STEPS_PER_TURN {
                    return Ok(Turn::GoOn(key));
                }
                steps += 1;
                let value = Blob::copy_from_slice(row.value());
                page.push(
                    key,
                    Versioned {
                        value,
                        version: row.version(),
                    },
                );
            }
        });
        result.map_err(|error| self.lost(error.into()))
    }
}

enum Turn {
    /// The interval has no more rows.
    Exhausted,
    /// The page is full; this key comes next.
    Full(Blob),
    /// Other tasks must run; this key comes next.
    GoOn(Blob),
}

struct Page {
    rows: Vec<(Blob, Versioned)>,
    bytes: usize,
    rows_max: usize,
    bytes_max: usize,
}

impl Page {
    fn new(rows_max: usize, bytes_max: usize) -> Page {
        let or_limit =
            |asked: usize, limit: usize| if asked == 0 { limit } else { asked.min(limit) };
        Page {
            rows: Vec::new(),
            bytes: 0,
            rows_max: or_limit(rows_max, SCAN_ROWS_MAX),
            bytes_max: or_limit(bytes_max, SCAN_BYTES_MAX),
        }
    }

    /// Whether a row of `len` bytes must wait for the next page. The first row always fits.
    fn is_full_for(&self, len: usize) -> bool {
        self.rows.len() >= self.rows_max
            || (!self.rows.is_empty() && self.bytes + len > self.bytes_max)
    }

    fn push(&mut self, key: Blob, row: Versioned) {
        self.bytes += key.len() + row.value.len();
        self.rows.push((key, row));
    }
}

/// Makes sure that reads at `at` will always give the same result.
async fn snapshot<E: Env>(
    replica: &Rc<Replica<E>>,
    at: Timestamp,
    deadline: Option<Now<E>>,
) -> Result<Timestamp, Error> {
    if at <= replica.with_state(|state| state.last_ts) {
        return Ok(at);
    }
    replica.check_time("snapshot", at)?;
    // The floor comes first: whatever is proposed from now on gets a timestamp above the snapshot.
    replica.raise_floor(at);
    if mutant::is(Mutant::ServedTimestampsForgotten) {
        return Ok(at);
    }
    let (sender, receiver) = <E::Runtime as AsyncRuntime>::Oneshot::channel();
    let sink = Rc::new(Once {
        sender: std::cell::RefCell::new(Some(sender)),
    });
    let epoch = replica.with_state(|state| state.descriptor.epoch);
    let barrier = Proposal {
        kind: ProposalKind::Order(RangeOrder::NoOp),
        epoch,
        deadline,
        sink,
        token: 0,
    };
    replica.proposer.push(barrier);
    match receiver.await {
        Ok(result) => result.map(|_| at),
        Err(_) => Err(Error::ShuttingDown),
    }
}

/// A sink for one result.
struct Once<S> {
    sender: std::cell::RefCell<Option<S>>,
}

impl<S: OneshotSender<Result<Outcome, Error>>> WriteSink for Once<S> {
    fn complete(&self, _: u64, result: Result<Outcome, Error>) {
        let sender = self.sender.borrow_mut().take();
        if let Some(sender) = sender {
            // The receiver may have gone.
            let _ = sender.send(result);
        }
    }
}
