//! Shards that a node gives up because it was started with fewer: their replicas move to shards that stay. No
//! I/O here.
//!
//! A node keeps running the shards that it gives up until they hold nothing
//! ([`NodeRecord::leaving_shards`](crate::cluster::record::NodeRecord::leaving_shards)). They get no replica
//! ([`crate::cluster::placement`] does not know them). Each replica that they have moves to another shard of
//! the same node, by a change of members like any other move. So a node can give up shards even if it is
//! alone. A member at a shard that no longer exists is replaced in the same way. If the node is
//! decommissioned, its replicas go to other nodes instead.

use crate::boot_time::BootTime;
use crate::cluster::manager::{KnownRange, Manager};
use crate::cluster::message::NodeHealth;
use crate::cluster::placement::moves;
use crate::cluster::placement::room::{Room, is_small};
use crate::cluster::placement::{self, Node, Range, Step};
use crate::range::ReplicaPlace;
use crate::types::Location;

/// Most large ranges of which such a change is under way at the same time. Of small ones it is as many as there
/// is room for ([`crate::cluster::placement::room`]).
const CHANGES_MAX: usize = 8;

impl Manager {
    /// Whether a replica must leave its shard, because its node gives the shard up.
    fn must_leave(&self, at: Location, now: BootTime) -> bool {
        let known = self.nodes.get(&at.node);
        known.is_some_and(|known| {
            known.record.gives_up(at.shard)
                && self.node_health(known, now) == NodeHealth::Alive
                && self.membership(at.node).keeps_replicas()
                && !self.has_slow_disk(at.node)
        })
    }

    /// The changes that move replicas away from shards that are given up. In `ranges` these replicas are
    /// counted where they will be, and the ranges get no other order.
    pub(in crate::cluster) fn leave_shards(
        &self,
        nodes: &[Node],
        ranges: &mut [Range],
        room: &mut Room,
        now: BootTime,
    ) -> Vec<Step> {
        let gives_up = |known: &crate::cluster::manager::KnownNode| known.record.leaving_shards > 0;
        let gone = |known: &KnownRange| {
            let mut at = known.record.descriptor.locations();
            at.any(|at| self.must_leave(at, now))
        };
        // Nearly always no node gives up a shard, and no shard is gone.
        if !self.nodes.values().any(gives_up) && !self.ranges.values().any(gone) {
            return Vec::new();
        }
        let changing = self
            .ranges
            .values()
            .filter(|known| !self.is_quiet(known, now));
        let is_large = |known: &&KnownRange| !is_small(self.bytes(known, now));
        let changing = changing.filter(is_large);
        let changing = changing.filter(|known| gone(known)).count();
        let mut own = Room {
            large: CHANGES_MAX.saturating_sub(changing),
            ..*room
        };
        let mut steps = Vec::new();
        for index in 0..ranges.len() {
            let bytes = ranges[index].bytes;
            if !own.has(bytes) {
                continue;
            }
            let Some(step) = self.leave_shard(nodes, ranges, index, now) else {
                continue;
            };
            steps.push(step);
            own.take(bytes);
        }
        room.small = own.small;
        steps
    }

    /// The change that moves one replica of a range away from such a shard.
    fn leave_shard(
        &self,
        nodes: &[Node],
        ranges: &mut [Range],
        index: usize,
        now: BootTime,
    ) -> Option<Step> {
        let range = ranges.get(index)?;
        // A change that was left half done is ended first, and a faulty replica is replaced first.
        if range.busy || range.is_joint || range.given_up.is_some() {
            return None;
        }
        let mut members = range.voters.iter().chain(&range.learners);
        let leaves = *members.find(|place| self.must_leave(place.location, now))?;
        let to = self.shard_that_stays(nodes, ranges, range, leaves.location)?;
        let step = moves::step(range, leaves.replica, to);
        let range = ranges.get_mut(index)?;
        let moved = |place: &&mut ReplicaPlace| place.replica == leaves.replica;
        let mut members = range.voters.iter_mut().chain(&mut range.learners);
        if let Some(place) = members.find(moved) {
            place.location = to;
        }
        range.busy = true;
        Some(step)
    }

    /// Where on its node a replica goes: to the learner that an earlier try has left there, or to the
    /// shard with the fewest replicas.
    fn shard_that_stays(
        &self,
        nodes: &[Node],
        ranges: &[Range],
        range: &Range,
        from: Location,
    ) -> Option<Location> {
        let stays = |at: &Location| {
            let known = self.nodes.get(&at.node);
            at.node == from.node && known.is_some_and(|known| !known.record.gives_up(at.shard))
        };
        let mut learners = range.learners.iter().map(|place| place.location);
        let to = learners.find(stays);
        let to = to.or_else(|| placement::least_loaded_shard(nodes, ranges, from.node))?;
        // Another voter of the range may be there, after a move that was ordered by hand.
        let taken = range.voters.iter().any(|place| place.location == to);
        (!taken).then_some(to)
    }
}

#[cfg(test)]
#[path = "shards_tests.rs"]
mod tests;
