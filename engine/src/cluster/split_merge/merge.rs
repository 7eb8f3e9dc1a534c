//! Merges of ranges: what the manager checks, what it does first, and which ranges it merges on its own. No
//! I/O here.
//!
//! A range takes over its right neighbour when the replicas of both are on the same shards. If they are not,
//! replicas of the right range move first. A replica that has taken over another has the rows of both under
//! their data ids. Before a replica would get too many data ids, its shard rewrites the rows under one
//! (`shard/split_merge/rewrites.rs`), and the merge waits for that.
//!
//! On its own the manager merges ranges that are small *and* cold, and only long after a change of their
//! bounds, so that ranges are not split and merged again and again. Together the two must have less than a
//! quarter of `range-size-max` and less than an eighth of the load at which a range is split. A border that a
//! person has made stays as long as the range to the right of it is held
//! ([`crate::cluster::record::HeldRecord`]). The borders with which the cluster began stay for good.

use std::time::Duration;

use crate::boot_time::BootTime;
use crate::cluster::manager::bounds::COLD_CPU_MILLIS;
use crate::cluster::manager::{KnownRange, Manager};
use crate::cluster::message::ClusterRequest;
use crate::cluster::record::{self, FIRST_NEW_RANGE, Row};
use crate::error::OrderError;
use crate::types::{Location, NodeId, RangeId};

/// A fraction of `range-size-max`: ranges are merged if they are smaller than that together.
const SMALL_PART: u64 = 4;
/// Most merges of its own that the manager has under way.
pub const MERGES_MAX: usize = 8;

/// What must be done next to merge a range with its right neighbour.
#[derive(Debug, PartialEq, Eq)]
pub enum MergeStep {
    /// A replica of this range, the right one, must move.
    Move {
        /// The range whose replica must move.
        range: RangeId,
        /// The node that has the replica.
        from: NodeId,
        /// Where it goes.
        to: Location,
    },
    /// The leader of the left range, which is here, gets this request.
    Merge(Location, Box<ClusterRequest>),
    /// Nothing: the right range was taken over.
    Done,
}

impl Manager {
    /// The right neighbour of a range of users' keys.
    ///
    /// # Errors
    /// There is no such range, or no neighbour.
    pub fn right_neighbour(&self, range: RangeId) -> Result<RangeId, OrderError> {
        let keys = &self.users_range(range)?.record.descriptor.keys;
        let Some(end) = &keys.end else {
            let why = format!(
                "range {range} has the last keys, so it has no right neighbour; `rangedb range ls` shows \
                 the ranges in the order of their keys"
            );
            return Err(OrderError::Conflict(why));
        };
        self.bounds.by_start.get(end).copied().ok_or_else(|| {
            let why = format!("the right neighbour of range {range} is not known now");
            OrderError::busy(why)
        })
    }

    /// Has balance leave two ranges alone while they are merged.
    pub fn begin_merge(&mut self, ranges: [RangeId; 2]) {
        self.planning.merging.push(ranges);
    }

    /// Ends what [`Manager::begin_merge`] began.
    pub fn end_merge(&mut self, ranges: [RangeId; 2]) {
        let merging = &mut self.planning.merging;
        if let Some(found) = merging.iter().position(|merging| *merging == ranges) {
            merging.swap_remove(found);
        }
    }

    /// What must be done next to merge a range with `right`, which was its right neighbour when the order came.
    /// The range gets no other order meanwhile.
    ///
    /// # Errors
    /// They cannot be merged, or not now.
    pub fn merge_step(
        &mut self,
        [range, right]: [RangeId; 2],
        now: BootTime,
    ) -> Result<MergeStep, OrderError> {
        if !self.knows(right) {
            return Ok(MergeStep::Done);
        }
        let now_right = self.right_neighbour(range)?;
        if now_right != right {
            let why = format!(
                "range {range} was to take over range {right}, but its right neighbour is range {now_right} \
                 now; give the order again if that is to be taken over"
            );
            return Err(OrderError::Conflict(why));
        }
        let (leader, left) = self.splittable(range, now)?;
        let (_, neighbour) = self.splittable(right, now)?;
        let places = |report: &crate::cluster::message::LedRange| {
            let mut places: Vec<Location> = report.descriptor.locations().collect();
            places.sort_unstable();
            places
        };
        let (wanted, found) = (places(left), places(neighbour));
        if wanted == found {
            let request = ClusterRequest::Merge {
                range,
                version: left.descriptor.epoch.version,
                right,
                right_version: neighbour.descriptor.epoch.version,
            };
            self.order(&request, now);
            return Ok(MergeStep::Merge(leader, Box::new(request)));
        }
        if wanted.len() != found.len() {
            let why = format!(
                "ranges {range} and {right} have {} and {} replicas; give the order again when each has \
                 all of its own",
                wanted.len(),
                found.len()
            );
            return Err(OrderError::Conflict(why));
        }
        let mut surplus = found.iter().filter(|at| !wanted.contains(at));
        let mut missing: Vec<Location> = wanted.clone();
        missing.retain(|at| !found.contains(at));
        // A replica moves within its node if it can.
        let within = surplus.clone().find_map(|from| {
            let to = missing.iter().find(|to| to.node == from.node)?;
            Some((*from, *to))
        });
        // Another one goes to a node that has none yet.
        let across = || {
            let to = missing
                .iter()
                .find(|to| found.iter().all(|at| at.node != to.node))?;
            Some((*surplus.next()?, *to))
        };
        let Some((from, to)) = within.or_else(across) else {
            let why =
                format!("the replicas of range {right} cannot move to those of range {range}");
            return Err(OrderError::Conflict(why));
        };
        Ok(MergeStep::Move {
            range: right,
            from: from.node,
            to,
        })
    }

    /// The ranges that are to be merged now, each with its right neighbour: beside the pairs that are `merging`
    /// as many as may be under way, without ranges that are paused.
    pub fn mergeable(
        &self,
        (now, wall_ms): (BootTime, u64),
        merging: &[(RangeId, RangeId)],
        is_paused: impl Fn(RangeId) -> bool,
    ) -> Vec<(RangeId, RangeId)> {
        if self.value_of("merge") != Some("on") {
            return Vec::new();
        }
        let size_max = self.range_size_max().unwrap_or(u64::MAX) / SMALL_PART;
        let after = self.value_of("merge-after");
        let after = after.and_then(|text| rangedb_duration::parse(text).ok());
        let Some(after) = after else {
            return Vec::new();
        };
        let room = MERGES_MAX.saturating_sub(merging.len());
        let is_merging = |range: RangeId| {
            let mut pairs = merging.iter();
            pairs.any(|(left, right)| *left == range || *right == range)
        };
        let mut found = Vec::new();
        let mut taken = None;
        for range in self.bounds.by_start.values() {
            if found.len() == room {
                break;
            }
            let Ok(right) = self.right_neighbour(*range) else {
                continue;
            };
            // The right range of one pair is not the left one of the next.
            if taken != Some(*range)
                && !is_paused(*range)
                && !is_merging(*range)
                && !is_merging(right)
                && self.may_merge((*range, right), (size_max, after), now, wall_ms)
            {
                found.push((*range, right));
                taken = Some(right);
            }
        }
        found
    }

    fn may_merge(
        &self,
        pair: (RangeId, RangeId),
        (size_max, after): (u64, Duration),
        now: BootTime,
        wall_ms: u64,
    ) -> bool {
        let (left, right) = pair;
        let is_held = right.0 < FIRST_NEW_RANGE || self.held_until_ms(right) > wall_ms;
        if is_held {
            return false;
        }
        let stats = |range: RangeId| {
            let known = self.ranges.get(&range)?;
            let (_, report) = self.splittable(range, now).ok()?;
            (now >= known.rest.since + after).then_some(report.stats)
        };
        let Some((left, right)) = stats(left).zip(stats(right)) else {
            return false;
        };
        left.bytes + right.bytes < size_max
            && left.cpu_millis_per_second + right.cpu_millis_per_second < COLD_CPU_MILLIS
    }

    /// The value of a setting that is in force.
    fn value_of(&self, name: &str) -> Option<&str> {
        let default = || {
            crate::cluster::settings::rule(name)
                .map(|rule| rule.default)
                .ok()
        };
        self.setting(name).or_else(default)
    }

    /// The range that has a key, and the version of its bounds.
    fn holder_of(&self, key: &[u8]) -> Option<&KnownRange> {
        let upto = (std::ops::Bound::Unbounded, std::ops::Bound::Included(key));
        let mut before = self.bounds.by_start.range::<[u8], _>(upto);
        let (_, range) = before.next_back()?;
        let known = self.ranges.get(range)?;
        known.record.descriptor.keys.contains(key).then_some(known)
    }

    /// Whether a replica belongs to a range that is a part of another one by now. It may be frozen, or was no
    /// member any more and did not hear of that.
    pub(in crate::cluster) fn is_merged(
        &self,
        range: RangeId,
        (start, version): (&[u8], u32),
    ) -> bool {
        let holder = self.holder_of(start);
        !self.knows(range)
            && holder.is_some_and(|holder| holder.record.descriptor.epoch.version > version)
    }

    /// The rows of ranges that are no more, with empty values: they are deleted.
    pub(in crate::cluster) fn gone_rows(&self) -> impl Iterator<Item = Row> {
        let gone = self.bounds.gone.iter();
        gone.flat_map(|range| {
            [record::RANGE, record::HELD].map(|kind| (record::key(kind, range.0), Vec::new()))
        })
    }

    /// Notes which of them are deleted.
    pub(in crate::cluster) fn deleted(&mut self, rows: &[Row]) {
        let is_deleted = |range: &RangeId| {
            let key = record::key(record::RANGE, range.0);
            rows.iter()
                .any(|(row, value)| *row == key && value.is_empty())
        };
        let gone: Vec<RangeId> = self
            .bounds
            .gone
            .iter()
            .copied()
            .filter(is_deleted)
            .collect();
        for range in gone {
            self.bounds.gone.remove(&range);
            self.held.remove(&range);
        }
    }
}
