//! Scans: rows of one range as of one timestamp, in ascending or descending order of their keys, in
//! turns short enough for other tasks to run.
//!
//! Work is counted by the versions that are read, not by the rows that are returned: tombstones and old
//! versions may be far more than rows. A turn ends after some work, at the end of a key, and a page after
//! many turns, possibly without a row; the next turn or page goes on at the next key. Rows are copied once,
//! from where they lie into the page.
//!
//! A first scan reads at the range's last applied timestamp: everything acknowledged is at or below
//! it, and every later write comes above it, so nothing has to wait. A continuation names its
//! timestamp. If that lies above what is applied (a client may send anything), it is served only
//! after an entry above it was applied, which also raises the ceiling. Then what was served stays
//! true whichever replica leads next.
//!
//! The timestamp is that of one range. So a scan continues at it only in keys that were in that range when
//! the scan began: keys that a range has taken over later begin at one of its
//! [borders](crate::range::state::merged_borders). There the page ends, and the next page has a timestamp of its
//! own. A continuation names where the range ended when the scan came to it ([`ScanRequest::until`]). So the
//! scan continues at its timestamp also in keys that were split off that range since: a child has the versions
//! of its parent, and its writes come above all of these.
//!
//! A turn also ends where the scan needs a block of a table that is not in memory. The block is fetched beside
//! the shard's thread, with a few that come next, and the scan's task waits for it
//! ([`crate::tree::cold_scans`]). Where the shard cannot wait for more blocks, the page ends with what it has.
//!
//! After each turn the scan looks again at what it reads: versions that it needs may have been collected,
//! the replica may be gone, and the range may have other bounds. If the range has become smaller, the page
//! ends at its new end.

#[cfg(test)]
mod tests;

use std::ops::Bound;
use std::rc::Rc;

use openraft::async_runtime::{Oneshot, OneshotSender};
use rangedb_limits::check_bounds;

use crate::boot_time::BootTime;
use crate::env::{AsyncRuntime, Env, TimeSlice, yield_now};
use crate::error::Error;
use crate::limits::{
    SCAN_BYTES_MAX, SCAN_BYTES_PER_TURN, SCAN_ROWS_MAX, SCAN_STEPS_MAX, SCAN_STEPS_PER_TURN,
};
use crate::lsm::{ColdStop, Direction, Scan, ScanStop, Step, TableStore, keys};
use crate::mutant::{self, Mutant};
use crate::range::Descriptor;
use crate::range::command::RangeOrder;
use crate::range::proposer::sink::Once;
use crate::range::proposer::{Proposal, ProposalKind};
use crate::range::replica::Replica;
use crate::request::{Row, RowsBuilder, ScanReply, ScanRequest, Target};
use crate::shard::Shard;
use crate::tree::cold_scans::ScanBlocks;
use crate::types::{Blob, KeyRange, Timestamp};

/// Rows for which a page has room at once.
const ROWS_EXPECTED: usize = 64;

impl<E: Env> Shard<E> {
    /// Reads rows of the range that serves the scan's first key. At the range's border it stops, and the
    /// reply says where to go on.
    ///
    /// # Errors
    /// [`Error::SnapshotTooOld`], [`Error::ClockOutOfBounds`], [`Error::Invalid`], and the errors
    /// of [`Shard::get`].
    pub async fn scan(
        &self,
        scan: ScanRequest,
        target: Option<Target>,
        deadline: Option<BootTime>,
    ) -> Result<ScanReply, Error> {
        check_bounds(scan.start.as_deref(), scan.end.as_deref())?;
        let key = scan.first_key();
        self.confirm_at(&key, target).await?;
        let replica = self.find(&key)?;
        let at = match scan.at {
            None => replica.with_state(|state| state.last_ts),
            Some(at) => snapshot(&replica, at, deadline).await?,
        };
        if self.find(&key)?.group != replica.group {
            return Err(Error::Moved(Vec::new()));
        }
        let threshold = replica.with_state(|state| state.gc_threshold);
        if at <= threshold && threshold > Timestamp::ZERO {
            return Err(Error::SnapshotTooOld { at, threshold });
        }
        let start = scan.start.as_deref().unwrap_or_default();
        if scan.end.as_deref().is_some_and(|end| end <= start) {
            return Ok(ScanReply {
                at,
                ..ScanReply::default()
            });
        }
        replica.usage.has_scanned();
        self.read(&replica, scan, at).await
    }

    async fn read(
        &self,
        replica: &Replica<E>,
        scan: ScanRequest,
        at: Timestamp,
    ) -> Result<ScanReply, Error> {
        let mut page = Page::new(&scan);
        let mut blocks = ScanBlocks::default();
        let mut reach = Reach::of(&scan, replica, at);
        let Interval { start, end } = reach.interval.clone();
        let reverse = scan.reverse;
        let next = loop {
            let turn = self.turn(replica, &reach.interval, at, &mut page, &mut blocks)?;
            let (border, cold) = match turn {
                Turn::Exhausted => break reach.beyond(scan, at),
                Turn::Full(border) => break Some(reach.rest(scan, Some(border), at)),
                Turn::GoOn(border) => (Some(border), None),
                Turn::Cold(border, stop) => (border.or_else(|| reach.begin(reverse)), Some(stop)),
            };
            let is_unchecked = cold.is_some() && mutant::is(Mutant::ColdScanUnchecked);
            if page.is_done() || !self.pause(replica, cold, &mut blocks, &page).await? {
                break Some(reach.rest(scan, border, at));
            }
            if is_unchecked {
                reach.begin_at(border.as_ref(), reverse);
                continue;
            }
            self.check_still_readable(replica, at)?;
            let from = border.as_deref().unwrap_or_default();
            let now = bounds_at(replica, at, from, reverse);
            if !reach.go_on(border.as_ref(), &scan, &now) {
                break Some(reach.rest(scan, border, at));
            }
        };
        let goes_on_at = next.as_ref().and_then(|next| match reverse {
            true => next.end.clone(),
            false => next.start.clone(),
        });
        let (start, end) = match reverse {
            true => (goes_on_at.unwrap_or(start), end),
            false => (start, goes_on_at.or(end)),
        };
        replica.usage.has_scanned_keys(&start, end.as_deref());
        Ok(ScanReply {
            rows: page.rows.build(),
            at,
            next,
        })
    }

    /// Lets others run between two turns: until the block has come at which the scan has stopped, if that was
    /// why. `false`: the shard cannot wait for more blocks, and the page ends with what it has.
    async fn pause(
        &self,
        replica: &Replica<E>,
        cold: Option<Box<ColdStop>>,
        blocks: &mut ScanBlocks<E>,
        page: &Page,
    ) -> Result<bool, Error> {
        let Some(stop) = cold else {
            yield_now().await;
            return Ok(true);
        };
        let store = &self.inner.store;
        match store.fetch_for_scan(replica.group.range, blocks, &stop) {
            Err(_) if page.rows.count() > 0 => return Ok(false),
            begun => begun?,
        }
        let fetched = store.fetched(stop.block).await;
        fetched.map_err(|error| self.inner.unreadable(replica, error))?;
        Ok(true)
    }

    /// Refuses to go on with a scan at `at` of which rows may be gone.
    fn check_still_readable(&self, replica: &Replica<E>, at: Timestamp) -> Result<(), Error> {
        let here = self.inner.running(replica.group);
        if here.is_none_or(|here| here.raft.is_retired()) {
            return Err(Error::Moved(Vec::new()));
        }
        let threshold = replica.with_state(|state| state.gc_threshold);
        if at <= threshold {
            return Err(Error::SnapshotTooOld { at, threshold });
        }
        Ok(())
    }

    /// Looks at a bounded number of versions, for a bounded time.
    fn turn(
        &self,
        replica: &Replica<E>,
        interval: &Interval,
        at: Timestamp,
        page: &mut Page,
        blocks: &mut ScanBlocks<E>,
    ) -> Result<Turn, Error> {
        let (mut low, mut high) = (Vec::new(), Vec::new());
        let border = part_of(replica, interval, page.direction, (&mut low, &mut high));
        let bounds = (
            Bound::Included(low.as_slice()),
            Bound::Excluded(high.as_slice()),
        );
        let direction = page.direction;
        let began = E::now();
        let mut slice = TimeSlice::<E>::begin();
        let mut work = Work::new(|steps| slice.is_over_after(steps));
        let visit = |scan: &mut Scan<'_, E::Tables>| page.fill(scan, &mut work);
        let result = (self.inner.store).try_scan(direction, bounds, at, blocks, visit);
        replica.usage.has_scanned_for(work.read, began);
        match (result, border) {
            // The next turn goes on in the next part of the replica's rows.
            (Ok(Turn::Exhausted), Some(border)) => Ok(Turn::GoOn(border)),
            (Ok(turn), _) => Ok(turn),
            (Err(ScanStop::Cold(stop)), _) => {
                let next = stop.next.as_deref().map(keys::user_part);
                Ok(Turn::Cold(next.map(|key| page.border(key)), stop))
            }
            (Err(ScanStop::Failed(error)), _) => Err(self.inner.unreadable(replica, error)),
        }
    }
}

/// Gives the row keys of the first rows of an interval that lie together, or in reverse of the last ones;
/// and the key at which the others begin or end, if there are others.
fn part_of<E: Env>(
    replica: &Replica<E>,
    interval: &Interval,
    direction: Direction,
    (low, high): (&mut Vec<u8>, &mut Vec<u8>),
) -> Option<Blob> {
    let parts = replica.parts();
    let (start, end) = (&*interval.start, interval.end.as_deref());
    if parts.others().is_empty() {
        keys::users_of(parts.first(), (start, end), low, high);
        return None;
    }
    let mut pieces = parts.within(&KeyRange {
        start: start.to_vec(),
        end: end.map(<[u8]>::to_vec),
    });
    let is_last = pieces.len() == 1;
    let (data_id, keys) = match direction {
        Direction::Forward => pieces.swap_remove(0),
        Direction::Reverse => pieces.swap_remove(pieces.len() - 1),
    };
    keys::users_of(data_id, keys.interval(), low, high);
    let border = match direction {
        Direction::Forward => keys.end.unwrap_or_default(),
        Direction::Reverse => keys.start,
    };
    (!is_last).then(|| border.into())
}

/// Why a turn ended. The border is where the scan goes on: the first key that is left, or in reverse
/// the end of what is left.
enum Turn {
    /// The interval has no more rows.
    Exhausted,
    /// The page is full.
    Full(Blob),
    /// Other tasks must run.
    GoOn(Blob),
    /// A block is not in memory. Without a border nothing was read.
    Cold(Option<Blob>, Box<ColdStop>),
}

/// The keys from `start` to before `end`.
#[derive(Clone)]
struct Interval {
    start: Blob,
    end: Option<Blob>,
}

/// What a scan has still to read in a range.
struct Reach {
    /// The version of the range's bounds.
    version: u32,
    /// The keys that are left.
    interval: Interval,
    /// The range's border, if the scan goes on beyond it.
    border: Option<Blob>,
    /// See [`ScanRequest::until`].
    until: Option<Blob>,
}

impl Reach {
    /// What the scan reads in a range whose leader may have closed keys: those that are being split off. The
    /// other leader may have acknowledged writes to them before the scan began, which are above its
    /// timestamp. So a scan that begins now goes on there at another one.
    fn of<E: Env>(scan: &ScanRequest, replica: &Replica<E>, at: Timestamp) -> Reach {
        let mut open = replica.with_state(|state| state.descriptor.clone());
        open.keys = replica.open_keys();
        let from = match scan.reverse {
            true => scan.end.as_deref(),
            false => scan.start.as_deref(),
        };
        let from = from.unwrap_or_default();
        replica.with_state(|state| state.borders.cut(&mut open.keys, at, from, scan.reverse));
        let mut reach = Reach::new(scan, &open);
        if mutant::is(Mutant::ScanGoesOnInClosedKeys) && replica.is_splitting() {
            reach.until = None;
        }
        reach
    }

    fn new(scan: &ScanRequest, descriptor: &Descriptor) -> Reach {
        let keys = &descriptor.keys;
        let (interval, border) = within(scan, keys);
        let until = match (scan.at, scan.reverse) {
            (Some(_), _) => scan.until.clone(),
            (None, false) => keys.end.as_deref().map(Blob::copy_from_slice),
            (None, true) => Some(Blob::copy_from_slice(&keys.start)).filter(|key| !key.is_empty()),
        };
        Reach {
            version: descriptor.epoch.version,
            interval,
            border,
            until,
        }
    }

    /// The scan of what is left from a border on, at its timestamp; without a border, of everything.
    fn rest(&self, scan: ScanRequest, border: Option<Blob>, at: Timestamp) -> ScanRequest {
        let rest = ScanRequest {
            at: Some(at),
            until: self.until.clone(),
            ..scan
        };
        from_border(rest, border)
    }

    /// The scan of what is left beyond the range's border: at its timestamp if the keys there were in the range
    /// when it was chosen. `None`: nothing is left.
    fn beyond(&self, scan: ScanRequest, at: Timestamp) -> Option<ScanRequest> {
        let border = self.border.as_ref()?;
        let holds = self.until.as_ref().is_none_or(|until| match scan.reverse {
            true => until < border,
            false => border < until,
        });
        if holds {
            return Some(self.rest(scan, Some(border.clone()), at));
        }
        let rest = ScanRequest {
            at: None,
            until: None,
            ..scan
        };
        Some(from_border(rest, Some(border.clone())))
    }

    /// Where the scan goes on: the first key that is left, or in reverse the end of what is left, if it has
    /// one.
    fn begin(&self, reverse: bool) -> Option<Blob> {
        match reverse {
            true => self.interval.end.clone(),
            false => Some(self.interval.start.clone()),
        }
    }

    fn begin_at(&mut self, border: Option<&Blob>, reverse: bool) {
        match (reverse, border) {
            (true, border) => self.interval.end = border.cloned(),
            (false, Some(border)) => self.interval.start = border.clone(),
            (false, None) => {}
        }
    }

    /// Goes on at a border, without what the range has lost meanwhile. `false` if what comes next is no
    /// longer in the range.
    fn go_on(
        &mut self,
        border: Option<&Blob>,
        scan: &ScanRequest,
        descriptor: &Descriptor,
    ) -> bool {
        self.begin_at(border, scan.reverse);
        if descriptor.epoch.version == self.version {
            return true;
        }
        let now = Reach::new(scan, descriptor);
        (self.version, self.border) = (now.version, now.border);
        let KeyRange { start, end } = &descriptor.keys;
        if scan.reverse {
            self.interval.start = now.interval.start;
            match (border, end.as_deref()) {
                (Some(border), end) => {
                    start.as_slice() < &**border && end.is_none_or(|end| &**border <= end)
                }
                (None, end) => end.is_none(),
            }
        } else {
            self.interval.end = now.interval.end;
            descriptor.keys.contains(&self.interval.start)
        }
    }
}

/// The bounds of a range for a scan at a timestamp that has come to a border: without the keys of ranges that
/// were others then.
fn bounds_at<E: Env>(
    replica: &Replica<E>,
    at: Timestamp,
    border: &[u8],
    reverse: bool,
) -> Descriptor {
    replica.with_state(|state| {
        let mut bounds = state.descriptor.clone();
        state.borders.cut(&mut bounds.keys, at, border, reverse);
        bounds
    })
}

/// The part of a scan's interval that lies in a range, and the range's border if the scan goes on
/// beyond it.
fn within(scan: &ScanRequest, range: &KeyRange) -> (Interval, Option<Blob>) {
    let start = scan.start.clone().unwrap_or_default();
    let end = scan.end.clone();
    if scan.reverse {
        if range.start.as_slice() <= &*start {
            return (Interval { start, end }, None);
        }
        let start = Blob::copy_from_slice(&range.start);
        let border = start.clone();
        return (Interval { start, end }, Some(border));
    }
    match &range.end {
        Some(last) if end.as_deref().is_none_or(|end| last.as_slice() < end) => {
            let border = Blob::copy_from_slice(last);
            let end = Some(border.clone());
            (Interval { start, end }, Some(border))
        }
        _ => (Interval { start, end }, None),
    }
}

/// The scan of what is left beyond a border; without one, of everything.
fn from_border(scan: ScanRequest, border: Option<Blob>) -> ScanRequest {
    match scan.reverse {
        true => ScanRequest {
            end: border,
            ..scan
        },
        false => ScanRequest {
            start: border,
            ..scan
        },
    }
}

/// The work of a turn.
struct Work<L> {
    /// Counts steps that were done; gives whether the time of the turn is up.
    is_late: L,
    /// Versions that were looked at.
    looked: usize,
    /// Bytes of the rows that were read, whether they are sent or not.
    read: usize,
}

impl<L: FnMut(usize) -> bool> Work<L> {
    fn new(is_late: L) -> Work<L> {
        Work {
            is_late,
            looked: 0,
            read: 0,
        }
    }

    /// Whether the turn must end now that so many versions were looked at in it.
    fn is_over(&mut self, looked: usize) -> bool {
        let steps = looked - std::mem::replace(&mut self.looked, looked);
        (self.is_late)(steps) || looked >= SCAN_STEPS_PER_TURN || self.read >= SCAN_BYTES_PER_TURN
    }
}

/// The rows of a reply in the making.
struct Page {
    rows: RowsBuilder,
    /// Versions that were looked at in the turns before.
    looked: usize,
    rows_max: usize,
    bytes_max: usize,
    keys_only: bool,
    direction: Direction,
}

impl Page {
    fn new(scan: &ScanRequest) -> Page {
        let or_limit =
            |asked: usize, limit: usize| if asked == 0 { limit } else { asked.min(limit) };
        let rows_max = or_limit(scan.rows_max, SCAN_ROWS_MAX);
        Page {
            rows: RowsBuilder::with_capacity(rows_max.min(ROWS_EXPECTED)),
            looked: 0,
            rows_max,
            bytes_max: or_limit(scan.bytes_max, SCAN_BYTES_MAX),
            keys_only: scan.keys_only,
            direction: match scan.reverse {
                false => Direction::Forward,
                true => Direction::Reverse,
            },
        }
    }

    /// Takes rows for one turn.
    fn fill<T: TableStore>(
        &mut self,
        scan: &mut Scan<'_, T>,
        work: &mut Work<impl FnMut(usize) -> bool>,
    ) -> Result<Turn, ScanStop> {
        let turn = self.take_rows(scan, work);
        self.looked += scan.looked();
        turn
    }

    fn take_rows<T: TableStore>(
        &mut self,
        scan: &mut Scan<'_, T>,
        work: &mut Work<impl FnMut(usize) -> bool>,
    ) -> Result<Turn, ScanStop> {
        loop {
            match scan.next_row_until(|looked| work.is_over(looked))? {
                Step::End => return Ok(Turn::Exhausted),
                Step::Stopped => return Ok(self.turn_before(scan.next_key())),
                Step::Row(row) => {
                    let key = keys::user_part(row.key());
                    let (value, version) = (row.value(), row.version());
                    work.read += key.len() + value.len();
                    let value = if self.keys_only { &[] } else { value };
                    if self.is_full_for(key.len() + value.len()) {
                        return Ok(Turn::Full(self.border(key)));
                    }
                    self.rows.push(Row {
                        key,
                        value,
                        version,
                    });
                    if work.is_over(scan.looked()) {
                        return Ok(self.turn_before(scan.next_key()));
                    }
                }
            }
        }
    }

    /// Why a turn ends that has stopped before this row key.
    fn turn_before(&self, next: Option<&[u8]>) -> Turn {
        next.map_or(Turn::Exhausted, |key| {
            Turn::GoOn(self.border(keys::user_part(key)))
        })
    }

    /// Whether the page ends with the turn: another row would not fit, or it took much work already.
    fn is_done(&self) -> bool {
        self.rows.count() >= self.rows_max || self.looked >= SCAN_STEPS_MAX
    }

    /// Whether a row of `len` bytes must wait for the next page. The first row always fits.
    fn is_full_for(&self, len: usize) -> bool {
        self.rows.count() >= self.rows_max
            || (self.rows.count() > 0 && self.rows.bytes_len() + len > self.bytes_max)
    }

    /// The border before which a scan stopped when this key came next.
    fn border(&self, key: &[u8]) -> Blob {
        match self.direction {
            Direction::Forward => Blob::copy_from_slice(key),
            // The end is exclusive: the first key after this one.
            Direction::Reverse => [key, &[0]].concat().into(),
        }
    }
}

/// Makes sure that reads at `at` will always give the same result.
async fn snapshot<E: Env>(
    replica: &Rc<Replica<E>>,
    at: Timestamp,
    deadline: Option<BootTime>,
) -> Result<Timestamp, Error> {
    if at <= replica.with_state(|state| state.last_ts) {
        return Ok(at);
    }
    replica.timestamps.check("snapshot", at)?;
    // The floor comes first: whatever is proposed from now on gets a timestamp above the snapshot.
    replica.timestamps.raise_floor(at);
    if mutant::is(Mutant::ServedTimestampsForgotten) {
        return Ok(at);
    }
    let (sender, receiver) = <E::Runtime as AsyncRuntime>::Oneshot::channel();
    let sink = Rc::new(Once::new(|result| drop(sender.send(result))));
    let version = replica.with_state(|state| state.descriptor.epoch.version);
    let order = ProposalKind::Order(RangeOrder::NoOp);
    let barrier = Proposal::new(order, version, deadline, (sink, 0));
    replica.proposer.push(barrier);
    match receiver.await {
        Ok(result) => result.map(|_| at),
        Err(_) => Err(Error::ShuttingDown),
    }
}
