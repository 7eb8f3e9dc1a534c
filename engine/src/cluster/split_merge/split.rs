//! Splits as the manager orders them: what it checks, the ids that it gives out, and the order in which a
//! range is split at several keys. Which ranges carry too much load is decided in [`super::load_splits`]. No
//! I/O here.
//!
//! A leader splits its range at one key: the range keeps the keys before it, and a new range gets the others.
//! An order for many keys is carried out by halves: first at the middle key, then both halves at theirs, so
//! that n keys take about log2 n rounds. The shard that hosts the manager carries it out.
//!
//! A child is led where its parent is led. So an operator's order for many keys first makes a few coarse
//! parts ([`Manager::begin_bulk`]), which are scattered over nodes and shards. Then the other keys follow,
//! and the ranges that these make need not move: balance by number waits until the order has ended.
//!
//! A range that an operator's order has made is held until a given time: before that, its left neighbour does
//! not take it over ([`HeldRecord`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::boot_time::BootTime;
use crate::byte_size::parse_size;
use crate::cluster::manager::{KnownRange, Manager};
use crate::cluster::message::{ClusterRequest, ClusterResponse, LedRange, SplitPart, SplitReason};
use crate::cluster::operator_orders::no_range;
use crate::cluster::record::{HeldRecord, Row};
use crate::cluster::settings;
use crate::error::OrderError;
use crate::limits::SPLIT_KEYS_MAX;
use crate::range::{Descriptor, Keyspace};
use crate::types::{KeyRange, Location, RangeId, ReplicaId};

/// A message shows so many bytes of a key.
const SHOWN_LEN_MAX: usize = 64;
/// Coarse parts of a range for each shard: as many as are needed for numbers that hardly differ.
const COARSE_PER_SHARD: usize = 4;
/// Ranges that a coarse part becomes, at least. With fewer it is cheaper to spread them afterwards.
const OF_COARSE_MIN: usize = 2;
/// So many times what a shard leads on average are few ranges to make.
const LITTLE_BESIDE: usize = 2;

/// A key at which a range is to be split, and the ids of the range that begins there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The first key of the new range.
    pub key: Vec<u8>,
    /// The new range.
    pub child: RangeId,
    /// Ids for its replicas.
    replicas: Vec<ReplicaId>,
}

/// A range, and the keys at which it is to be split, in their order: at least one.
#[derive(Debug)]
pub struct Piece {
    /// The range to split.
    pub range: RangeId,
    /// Whether a split of the same order has made it.
    pub is_new: bool,
    cuts: Vec<Cut>,
}

impl Piece {
    fn of(range: RangeId, is_new: bool, cuts: Vec<Cut>) -> Option<Piece> {
        let piece = Piece {
            range,
            is_new,
            cuts,
        };
        (!piece.cuts.is_empty()).then_some(piece)
    }

    /// Where it is to be split first.
    pub fn cut(&self) -> &Cut {
        &self.cuts[self.cuts.len() / 2]
    }

    fn cut_mut(&mut self) -> &mut Cut {
        let middle = self.cuts.len() / 2;
        &mut self.cuts[middle]
    }

    /// The halves that are left to be split after that.
    fn halves(mut self) -> [Option<Piece>; 2] {
        let right = self.cuts.split_off(self.cuts.len() / 2 + 1);
        let child = self.cuts.pop().map_or(self.range, |cut| cut.child);
        [
            // What is left can be split once the other part is reported.
            Piece::of(self.range, true, self.cuts),
            Piece::of(child, true, right),
        ]
    }
}

/// An order to split a range, as far as it has been carried out.
#[derive(Debug)]
pub struct SplitOrder {
    waiting: VecDeque<Piece>,
    /// Where the coarse parts are to be split, in the order of the keys.
    later: Vec<Cut>,
    /// The end of the range.
    end: Option<Vec<u8>>,
    /// The ranges that there are now, by their first keys.
    parts: BTreeMap<Vec<u8>, RangeId>,
    failed: Option<OrderError>,
}

impl SplitOrder {
    /// Has a new order make only so many parts of about as many keys each, until [`SplitOrder::go_on`].
    fn begin_coarse(&mut self, parts: usize) {
        let Some(piece) = self.waiting.front_mut() else {
            return;
        };
        let ranges = piece.cuts.len() + 1;
        // The last cut before each part but the first.
        let coarse: BTreeSet<usize> = (1..parts).map(|part| part * ranges / parts - 1).collect();
        for (at, cut) in std::mem::take(&mut piece.cuts).into_iter().enumerate() {
            match coarse.contains(&at) {
                true => piece.cuts.push(cut),
                false => self.later.push(cut),
            }
        }
    }

    /// Begins to split the coarse parts, after they were made. Gives whether any is to be split.
    pub fn go_on(&mut self) -> bool {
        let parts: Vec<SplitPart> = self.parts();
        let mut later = std::mem::take(&mut self.later).into_iter().peekable();
        for part in parts {
            let cuts = std::iter::from_fn(|| later.next_if(|cut| part.keys.contains(&cut.key)));
            let piece = Piece::of(part.range, true, cuts.collect());
            self.waiting.extend(piece);
        }
        self.failed.is_none() && !self.waiting.is_empty()
    }

    /// Whether keys are left for [`SplitOrder::go_on`], and nothing has failed.
    pub fn is_coarse(&self) -> bool {
        self.failed.is_none() && !self.later.is_empty()
    }

    /// The range that must be split next. After a failure there is none.
    pub fn next_piece(&mut self) -> Option<Piece> {
        match self.failed {
            None => self.waiting.pop_front(),
            Some(_) => None,
        }
    }

    /// Notes that a range was split at its [`Piece::cut`], or why it was not.
    pub fn ended(&mut self, piece: Piece, result: Result<(), OrderError>) {
        match result {
            Ok(()) => {
                let Cut { key, child, .. } = piece.cut().clone();
                self.parts.insert(key, child);
                self.waiting.extend(piece.halves().into_iter().flatten());
            }
            Err(why) => {
                let key = shown(&piece.cut().key);
                let range = piece.range;
                self.fail(in_words(why, |why| {
                    format!("range {range} was not split at {key}: {why}")
                }));
            }
        }
    }

    /// Notes a failure. The first one counts, but one whose end is not known before all others.
    pub fn fail(&mut self, why: OrderError) {
        let is_worse = matches!(why, OrderError::Unknown(_));
        if self.failed.is_none() || is_worse {
            self.failed = Some(why);
        }
    }

    /// The ranges that there are now, in the order of their keys.
    pub fn parts(&self) -> Vec<SplitPart> {
        let ends = self.parts.keys().skip(1).cloned().map(Some);
        let ends = ends.chain([self.end.clone()]);
        let parts = self.parts.iter().zip(ends);
        let part = |((start, range), end): ((&Vec<u8>, &RangeId), _)| SplitPart {
            range: *range,
            keys: KeyRange {
                start: start.clone(),
                end,
            },
        };
        parts.map(part).collect()
    }

    /// Whether any split was made.
    pub fn has_split(&self) -> bool {
        self.parts.len() > 1
    }

    /// The answer to the operator.
    pub fn response(self) -> ClusterResponse {
        let ranges = self.parts();
        match (self.failed, ranges.len()) {
            (Some(why), 1) => ClusterResponse::Refused(why),
            (failed, _) => ClusterResponse::Split { ranges, failed },
        }
    }
}

/// A range that is to be split because of its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// The range to split.
    pub range: RangeId,
    /// The version of its bounds.
    pub version: u32,
    /// The shard that leads it.
    pub leader: Location,
    /// Its size.
    pub bytes: u64,
    /// Into how many parts.
    pub parts: u16,
}

/// Into how many parts a range that is larger than `max` bytes is split: each is then about half as large
/// as a range may be, so that it is not split again soon.
fn parts_of(bytes: u64, max: u64) -> u16 {
    let parts = (bytes / (max / 2).max(1)).clamp(2, SPLIT_KEYS_MAX as u64);
    u16::try_from(parts).unwrap_or(u16::MAX)
}

/// The same error with other words.
fn in_words(why: OrderError, words: impl FnOnce(String) -> String) -> OrderError {
    match why {
        OrderError::Busy {
            reason,
            retry_after_ms,
        } => OrderError::Busy {
            reason: words(reason),
            retry_after_ms,
        },
        OrderError::Invalid(why) => OrderError::Invalid(words(why)),
        OrderError::Conflict(why) => OrderError::Conflict(words(why)),
        OrderError::NotFound(why) => OrderError::NotFound(words(why)),
        OrderError::Unknown(why) => OrderError::Unknown(words(why)),
    }
}

impl Manager {
    /// Checks an order to split a range, and gives ids to the ranges and replicas that it makes.
    /// [`Manager::next_rows`] must be durable before they are used.
    ///
    /// # Errors
    /// Why the range cannot be split at these keys; nothing was changed.
    pub fn begin_split(
        &mut self,
        range: RangeId,
        keys: Vec<Vec<u8>>,
        now: BootTime,
    ) -> Result<SplitOrder, OrderError> {
        let descriptor = &self.users_range(range)?.record.descriptor;
        let keys = checked(descriptor, keys)?;
        let (bounds, replicas) = (descriptor.keys.clone(), descriptor.replicas.len());
        self.splittable(range, now)?;
        let mut cut = |key| Cut {
            key,
            child: self.ids.range(),
            replicas: (0..replicas).map(|_| self.ids.replica()).collect(),
        };
        let cuts = keys.into_iter().map(&mut cut).collect();
        Ok(SplitOrder {
            waiting: Piece::of(range, false, cuts).into_iter().collect(),
            later: Vec::new(),
            end: bounds.end,
            parts: BTreeMap::from([(bounds.start, range)]),
            failed: None,
        })
    }

    /// Has a new order make coarse parts first, if it makes many ranges of its range. Balance by number then
    /// waits for [`Manager::end_bulk`], but no longer than `until`.
    pub fn begin_bulk(&mut self, order: &mut SplitOrder, now: BootTime, until: BootTime) {
        let Some(piece) = order.waiting.front() else {
            return;
        };
        let (range, ranges) = (piece.range, piece.cuts.len() + 1);
        let parts = self.coarse_parts(ranges, now);
        if parts > 1 {
            order.begin_coarse(parts);
            self.planning.bulk_splits.insert(range, until);
        }
    }

    /// Notes that an order to split this range has ended.
    pub fn end_bulk(&mut self, range: RangeId) {
        self.planning.bulk_splits.remove(&range);
    }

    /// Into how many coarse parts an order splits a range first that makes so many ranges of it: as many of
    /// each shard, so that leaders are spread evenly. 1: it needs none. That holds for the later orders of
    /// one command, too: what they make is little beside what each shard leads by then.
    fn coarse_parts(&self, ranges: usize, now: BootTime) -> usize {
        let shards = self.open_shards(now);
        let is_little = ranges * shards <= self.bounds.by_start.len() * LITTLE_BESIDE;
        if shards < 2 || is_little || self.setting("balance") == Some("off") {
            return 1;
        }
        let per_shard = (ranges / (shards * OF_COARSE_MIN)).min(COARSE_PER_SHARD);
        (shards * per_shard).max(1)
    }

    /// The request that splits a range at its next key, the shard that gets it, and whether
    /// [`Manager::next_rows`] must be durable before. The range gets no other order meanwhile.
    ///
    /// # Errors
    /// The range cannot be split now.
    pub fn split_step(
        &mut self,
        piece: &mut Piece,
        reason: SplitReason,
        now: BootTime,
    ) -> Result<(Location, ClusterRequest, bool), OrderError> {
        let (at, report) = self.splittable(piece.range, now)?;
        let descriptor = &report.descriptor;
        let (version, parents) = (descriptor.epoch.version, descriptor.replicas.clone());
        let cut = piece.cut_mut();
        // Its replicas may have become more since it was ordered to be split.
        let is_short = cut.replicas.len() < parents.len();
        while cut.replicas.len() < parents.len() {
            cut.replicas.push(self.ids.replica());
        }
        let parents = parents.iter().map(|place| place.replica);
        let replicas = parents.zip(cut.replicas.iter().copied()).collect();
        let request = ClusterRequest::Split {
            range: piece.range,
            version,
            key: piece.cut().key.clone(),
            child: piece.cut().child,
            replicas,
            reason,
        };
        self.order(&request, now);
        Ok((at, request, is_short))
    }

    /// The ranges that are larger than `range-size-max` and can be split now, without those that could not be
    /// split a short while ago.
    pub fn too_large(&self, now: BootTime) -> Vec<TooLarge> {
        let Some(max) = self.range_size_max() else {
            return Vec::new();
        };
        let large = self.ranges.iter().filter_map(|(range, known)| {
            let size = known.watch.size.as_ref();
            if size.is_some_and(|failed| failed.pause.lasts(now)) {
                return None;
            }
            let (leader, report) = self.splittable(*range, now).ok()?;
            let bytes = report.stats.bytes;
            (bytes > max).then(|| TooLarge {
                range: *range,
                version: report.descriptor.epoch.version,
                leader,
                bytes,
                parts: parts_of(bytes, max),
            })
        });
        large.collect()
    }

    /// The setting `range-size-max`, in bytes.
    pub(super) fn range_size_max(&self) -> Option<u64> {
        let name = "range-size-max";
        let default = || settings::rule(name).map(|rule| rule.default).ok();
        parse_size(self.setting(name).or_else(default)?).ok()
    }

    /// Whether a range is known: its leader has reported it.
    pub fn knows(&self, range: RangeId) -> bool {
        self.ranges.contains_key(&range)
    }

    /// A range of users' keys.
    pub(super) fn users_range(&self, range: RangeId) -> Result<&KnownRange, OrderError> {
        let Some(known) = self.ranges.get(&range) else {
            return Err(no_range(range));
        };
        match known.record.descriptor.keyspace {
            Keyspace::User => Ok(known),
            Keyspace::System => {
                let why = format!(
                    "range {range} has the cluster's own records: only a range of users' keys is split, \
                     merged or held"
                );
                Err(OrderError::Invalid(why))
            }
        }
    }

    /// The leader of a range of users' keys, and its report, if its bounds can be changed now.
    ///
    /// # Errors
    /// Why they cannot be.
    pub fn splittable(
        &self,
        range: RangeId,
        now: BootTime,
    ) -> Result<(Location, &LedRange), OrderError> {
        let known = self.users_range(range)?;
        let descriptor = &known.record.descriptor;
        let report = self.fresh(known, now);
        let leader = report.and_then(|report| descriptor.location(report.leader));
        let (Some(report), Some(leader)) = (report, leader) else {
            let why = format!("range {range} has no leader now");
            return Err(OrderError::busy(why));
        };
        if !report.has_quorum {
            let why = format!("the leader of range {range} reaches no majority now");
            return Err(OrderError::busy(why));
        }
        let is_changing = report.is_changing() || report.is_joint;
        if is_changing || self.is_ordered(known, now) || report.descriptor != *descriptor {
            let why = format!(
                "a change of range {range} is under way; give the order again when that has ended"
            );
            return Err(OrderError::Conflict(why));
        }
        Ok((leader, report))
    }

    /// The rows by which the borders that a split has made are held against merging for as long as is wished: a
    /// range is held for the border on its left, so the first part, which has an older one there, is held as it
    /// was. Call [`Manager::held`] when they are durable.
    pub fn hold(&self, parts: &[SplitPart], until_ms: Option<u64>) -> Vec<HeldRecord> {
        let until_ms = until_ms.unwrap_or(0);
        let parts = parts.iter().skip(1).map(|part| part.range);
        let parts = parts.filter(|range| self.held_until_ms(*range) != until_ms);
        parts.map(|range| HeldRecord { range, until_ms }).collect()
    }

    /// The row by which a range may be merged again. Call [`Manager::held`] when it is durable.
    ///
    /// # Errors
    /// There is no such range of users' keys.
    pub fn release(&self, range: RangeId) -> Result<HeldRecord, OrderError> {
        self.users_range(range)?;
        let until_ms = 0;
        Ok(HeldRecord { range, until_ms })
    }

    /// Notes until when a range is held; its row is durable.
    pub fn held(&mut self, HeldRecord { range, until_ms }: HeldRecord) {
        self.held.insert(range, until_ms);
    }

    /// Until when a range is held, in milliseconds since 1970; 0 if it is not.
    pub(in crate::cluster) fn held_until_ms(&self, range: RangeId) -> u64 {
        self.held.get(&range).copied().unwrap_or(0)
    }

    /// See [`Ids::next_rows`](crate::cluster::manager::ids::Ids::next_rows).
    pub fn next_rows(&self) -> Vec<Row> {
        self.ids.next_rows()
    }
}

/// The keys at which a range is to be split, sorted, if it can be split at all of them.
fn checked(descriptor: &Descriptor, mut keys: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, OrderError> {
    let (range, bounds) = (descriptor.range, &descriptor.keys);
    let invalid = |why: String| Err(OrderError::Invalid(why));
    let conflict = |why: String| Err(OrderError::Conflict(why));
    if !(1..=SPLIT_KEYS_MAX).contains(&keys.len()) {
        let count = keys.len();
        return invalid(format!(
            "range {range} was to be split at {count} keys; an order has 1 to {SPLIT_KEYS_MAX}"
        ));
    }
    for key in &keys {
        if let Err(broken) = rangedb_limits::check_key(key) {
            let key = shown(key);
            return invalid(format!("range {range} cannot be split at {key}: {broken}"));
        }
        if !bounds.contains(key) {
            let (key, start) = (shown(key), shown(&bounds.start));
            let end = match &bounds.end {
                Some(end) => format!("before {}", shown(end)),
                None => "to the last one".to_owned(),
            };
            return conflict(format!(
                "range {range} does not have the key {key}: it has the keys from {start} on, {end}; \
                 `rangedb range ls` shows which range has it"
            ));
        }
        if *key == bounds.start {
            let key = shown(key);
            return conflict(format!(
                "range {range} begins at {key} already; give a key that lies further right in it"
            ));
        }
    }
    keys.sort_unstable();
    if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
        let key = shown(&twice[0]);
        return invalid(format!(
            "the key {key}, at which range {range} was to be split, was given twice; give it once"
        ));
    }
    Ok(keys)
}

/// A key in a message.
pub fn shown(key: &[u8]) -> String {
    match key.get(..SHOWN_LEN_MAX) {
        Some(begin) if begin.len() < key.len() => format!("\"{}...\"", begin.escape_ascii()),
        _ => format!("\"{}\"", key.escape_ascii()),
    }
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
