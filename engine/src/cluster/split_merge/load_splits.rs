//! Splits because of load: which ranges the manager has split, and where the new part goes. No I/O here.
//!
//! A split alone costs CPU time, since the parts need more log entries than the whole range did. So a range
//! is split only if it is hot, the shard that leads it is busy, and another shard that may take a part has
//! much less load. The part is moved there at once. In one round a shard gives or takes at most one part.
//! After that it is left out for a while, until its new load has been measured.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::boot_time::BootTime;
use crate::cluster::manager::split_watch::FailedSplit;
use crate::cluster::manager::{KnownRange, Manager};
use crate::cluster::message::{BlockReason, CAUGHT_UP, LedRange, SplitBlocked, SplitReason};
use crate::cluster::placement::{Node, Range};
use crate::cluster::settings;
use crate::range::Keyspace;
use crate::types::{Location, NodeId, RangeId, ShardId};

/// A shard is busy above this CPU use, in thousandths of a core.
const BUSY_MILLIS: u32 = 600;
/// The taker's CPU use is below the giver's by at least this, in thousandths of a core.
const IDLER_MILLIS: u32 = 200;

/// How the part that is split off comes to another shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The voter there is to lead it.
    Lead(NodeId),
    /// The leader's replica moves there, from this node.
    Move(NodeId),
}

/// A range that is to be split because of its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooHot {
    /// The range to split.
    pub range: RangeId,
    /// The version of its bounds.
    pub version: u32,
    /// The shard that leads it.
    pub leader: Location,
    /// The CPU time that it takes, in milliseconds a second.
    pub cpu_millis: u32,
    /// The shard that is to lead the part that is split off.
    pub to: Location,
    /// How it comes there.
    pub way: Way,
}

impl Manager {
    /// The ranges that are to be split now because of their load. Shards that have just given or taken a
    /// part (`is_settling`) give and take nothing.
    pub fn too_hot(&self, now: BootTime, is_settling: impl Fn(Location) -> bool) -> Vec<TooHot> {
        if !self.splits_by_load() {
            return Vec::new();
        }
        let hot = self.ranges.values().filter(|known| {
            let paused = known
                .watch
                .load
                .as_ref()
                .is_some_and(|load| load.pause.lasts(now));
            known.watch.is_hot(now) && !paused
        });
        let hot = hot.filter_map(|known| {
            let (leader, report) = self.splittable(known.record.descriptor.range, now).ok()?;
            (self.cpu_of(leader)? > BUSY_MILLIS).then_some((known, leader, report))
        });
        let mut hot: Vec<(&KnownRange, Location, &LedRange)> = hot.collect();
        if hot.is_empty() {
            return Vec::new();
        }
        hot.sort_by_key(|(.., report)| Reverse(report.stats.cpu_millis_per_second));
        let (nodes, _) = self.placed(now);
        let mut taken = BTreeSet::new();
        let mut found = Vec::new();
        for (known, leader, report) in hot {
            let is_free = |at: Location| !is_settling(at) && !taken.contains(&at);
            if !is_free(leader) {
                continue;
            }
            let range = self.range(known, now);
            let Some((to, way)) = self.idler(&nodes, &range, leader, is_free) else {
                continue;
            };
            taken.extend([leader, to]);
            found.push(TooHot {
                range: range.id,
                version: report.descriptor.epoch.version,
                leader,
                cpu_millis: report.stats.cpu_millis_per_second,
                to,
                way,
            });
        }
        found
    }

    fn splits_by_load(&self) -> bool {
        let name = "split-by-load";
        let default = || settings::rule(name).map(|rule| rule.default).ok();
        self.setting(name).or_else(default) == Some("on")
    }

    /// What a shard last reported of its CPU time, in thousandths of a core.
    fn cpu_of(&self, at: Location) -> Option<u32> {
        self.shards.known.get(&at).map(|shard| shard.stats.cpu)
    }

    /// The shard that should take a part of a range, and how: a shard that has a voter of the range if
    /// there is one, as no data must be copied then; of several the one that uses the least CPU time.
    fn idler(
        &self,
        nodes: &[Node],
        range: &Range,
        leader: Location,
        is_free: impl Fn(Location) -> bool,
    ) -> Option<(Location, Way)> {
        let limit = self.cpu_of(leader)?.checked_sub(IDLER_MILLIS)?;
        let fits = |at: Location| {
            let cpu = self.cpu_of(at)?;
            (cpu <= limit && is_free(at)).then_some((cpu, at))
        };
        let accepts = |node: &&Node| node.accepts_new;
        let takes = |id: NodeId| nodes.iter().filter(accepts).any(|node| node.id == id);
        let voters = range.voters.iter().filter(|voter| {
            let is_other = voter.location.node != leader.node;
            is_other && takes(voter.location.node) && range.caught_up.contains(&voter.replica)
        });
        let voter = voters.filter_map(|voter| fits(voter.location)).min();
        if let Some((_, to)) = voter {
            return Some((to, Way::Lead(to.node)));
        }
        let all = || range.voters.iter().chain(&range.learners);
        let shards = nodes.iter().filter(accepts).flat_map(|node| {
            let votes = range
                .voters
                .iter()
                .any(|voter| voter.location.node == node.id);
            // Two voters on one node would be lost together.
            let shards = 0..if votes && node.id != leader.node {
                0
            } else {
                node.shards
            };
            let usable = shards
                .map(ShardId)
                .filter(|shard| !node.avoided.contains(shard));
            usable.map(|shard| Location {
                node: node.id,
                shard,
            })
        });
        let free = shards.filter(|at| all().all(|place| place.location != *at));
        let (_, to) = free.filter_map(fits).min()?;
        Some((to, Way::Move(leader.node)))
    }

    /// Whether a replica of a range lacks so much that a split should wait.
    fn lags(&self, known: &KnownRange, now: BootTime) -> bool {
        let report = self.fresh(known, now);
        report.is_some_and(|report| {
            let mut followers = report.followers.iter();
            followers.any(|follower| follower.takes_snapshot || follower.lag > CAUGHT_UP)
        })
    }

    /// Why a leader did not make a split that it was asked for.
    pub fn why_not_split(&self, range: RangeId, now: BootTime) -> BlockReason {
        let known = self.ranges.get(&range);
        match known.is_some_and(|known| self.lags(known, now)) {
            true => BlockReason::Lagging,
            false => BlockReason::Changing,
        }
    }

    /// Notes that a split wanted for size or load was not made. Gives the pause before the next try, in
    /// seconds.
    pub fn split_failed(
        &mut self,
        (range, by): (RangeId, SplitReason),
        (reason, key): (BlockReason, Option<Vec<u8>>),
        now: (BootTime, u64),
    ) -> Option<u64> {
        let watch = &mut self.ranges.get_mut(&range)?.watch;
        let place = match by {
            SplitReason::Load => &mut watch.load,
            SplitReason::Size | SplitReason::Manual => &mut watch.size,
        };
        let failed = FailedSplit::after(place.as_ref(), reason, key, now);
        let seconds = failed.pause.length().as_secs();
        *place = Some(failed);
        self.watch(range);
        Some(seconds)
    }

    /// What stands in the way of a split of a range that should be split.
    pub(in crate::cluster) fn split_blocked(
        &self,
        known: &KnownRange,
        now: BootTime,
    ) -> Option<SplitBlocked> {
        let watch = &known.watch;
        let size = watch.size.as_ref().filter(|_| {
            let bytes = self.fresh(known, now).map(|report| report.stats.bytes);
            bytes
                .zip(self.range_size_max())
                .is_some_and(|(bytes, max)| bytes > max)
        });
        watch
            .load
            .as_ref()
            .or(size)
            .map(|failed| failed.blocked.clone())
    }

    /// The ranges of users' keys that take the most CPU time, the hottest first, with what they take in
    /// milliseconds a second, and the shards that lead them.
    pub fn hottest(
        &self,
        ranges_max: usize,
        now: BootTime,
    ) -> Vec<(RangeId, u32, Option<Location>)> {
        let users = self.ranges.values().filter_map(|known| {
            let descriptor = &known.record.descriptor;
            let report = self.fresh(known, now)?;
            let cpu = report.stats.cpu_millis_per_second;
            let leader = descriptor.location(report.leader);
            (descriptor.keyspace == Keyspace::User).then_some((descriptor.range, cpu, leader))
        });
        let mut hottest: Vec<_> = users.collect();
        hottest.sort_by_key(|(range, cpu, _)| (Reverse(*cpu), *range));
        hottest.truncate(ranges_max);
        hottest
    }
}
