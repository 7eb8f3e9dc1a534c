//! Moves of replicas that an operator has ordered and the range's leader has accepted. Pure.
//!
//! A change of members may fail on its way because its leader is lost or the new replica cannot be made in
//! time. Then [`placement`](super), which knows nothing of the move, takes it back. So the manager remembers
//! the move, and orders it again until the replica has left its old place.
//!
//! Before a leader's replica moves, another replica takes over the leadership. Where the leadership is to go
//! with the replica, it is handed to the new replica once that is there ([`Moves::lead_after`]).
//!
//! Moves are in memory only: when another shard becomes the leader of the system range, its manager does not
//! know them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Node, Range, Slot, Step};
use crate::boot_time::BootTime;
use crate::cluster::message::LedRange;
use crate::range::ReplicaPlace;
use crate::types::{Location, RangeId, ReplicaId};

/// How long a move is ordered again. A replica that has not moved by then cannot be moved now.
const RETRY_MAX: Duration = Duration::from_mins(10);

struct Move {
    replica: ReplicaId,
    to: Location,
    until: BootTime,
}

/// The moves that are not done yet, one of each range at most.
pub struct Moves {
    of_range: BTreeMap<RangeId, Move>,
    /// Where ranges must be led once a replica has come there, and until when.
    leads: BTreeMap<RangeId, (Location, BootTime)>,
}

impl Moves {
    pub(in crate::cluster) fn new() -> Moves {
        Moves {
            of_range: BTreeMap::new(),
            leads: BTreeMap::new(),
        }
    }

    /// Remembers a move that the range's leader has begun. It replaces an earlier one.
    pub(in crate::cluster) fn accepted(
        &mut self,
        range: RangeId,
        replica: ReplicaId,
        to: Location,
        now: BootTime,
    ) {
        let until = now + RETRY_MAX;
        let accepted = Move { replica, to, until };
        self.of_range.insert(range, accepted);
    }

    /// How many moves are not done yet.
    pub fn under_way(&self) -> usize {
        self.of_range.len()
    }

    /// Whether anything is remembered of a range.
    pub(in crate::cluster) fn has(&self, range: RangeId) -> bool {
        self.of_range.contains_key(&range) || self.leads.contains_key(&range)
    }

    /// Remembers that the replica which is about to come to a shard must lead its range.
    pub(in crate::cluster) fn lead_after(&mut self, range: RangeId, to: Location, now: BootTime) {
        self.leads.insert(range, (to, now + RETRY_MAX));
    }

    /// Whether a range's leadership is to go with a replica.
    pub(in crate::cluster) fn leads_after(&self, range: RangeId) -> bool {
        self.leads.contains_key(&range)
    }

    /// Where a range's leadership is to go with a replica.
    pub(in crate::cluster) fn leads_to(&self, range: RangeId) -> Option<Location> {
        self.leads.get(&range).map(|(to, _)| *to)
    }

    /// Forgets that a range must be led elsewhere.
    pub(in crate::cluster) fn stays(&mut self, range: RangeId) {
        self.leads.remove(&range);
    }

    /// Forgets what is done: the range's move if the replica is no longer a member, and where it must be
    /// led if it is led there, or was not for too long.
    pub(in crate::cluster) fn take_range(&mut self, led: &LedRange, now: BootTime) {
        let range = led.descriptor.range;
        if let Some((to, until)) = self.leads.get(&range)
            && (led.descriptor.location(led.leader) == Some(*to) || now >= *until)
        {
            self.leads.remove(&range);
        }
        if let Some(accepted) = self.of_range.get(&range)
            && led.descriptor.location(accepted.replica).is_none()
        {
            self.of_range.remove(&range);
        }
    }

    /// The changes that carry the moves on, and the new leaders. The ranges they are of get no other order.
    pub(in crate::cluster) fn steps(
        &self,
        nodes: &[Node],
        ranges: &mut [Range],
        now: BootTime,
    ) -> Vec<Step> {
        let mut steps = Vec::new();
        let accepts_new = |at: Location| {
            let mut nodes = nodes.iter();
            nodes.any(|node| node.id == at.node && node.accepts_new && at.shard.0 < node.shards)
        };
        for range in ranges.iter_mut().filter(|range| !range.busy) {
            if let Some(Move { replica, to, until }) = self.of_range.get(&range.id)
                && accepts_new(*to)
                && now < *until
            {
                steps.push(step(range, *replica, *to));
                range.busy = true;
            } else if let Some((to, _)) = self.leads.get(&range.id)
                && accepts_new(*to)
                && let Some(replica) = range.ready_at(*to)
            {
                steps.push(Step::Lead {
                    range: range.id,
                    to: replica,
                });
                range.busy = true;
            }
        }
        steps
    }
}

/// The change of members that moves a replica of a range.
pub fn step(range: &Range, replica: ReplicaId, to: Location) -> Step {
    let is_at_goal = |place: &&ReplicaPlace| place.location == to;
    let learner = range.learners.iter().find(is_at_goal).copied();
    // A change that was left half done may have made it a voter already: then the other one only goes.
    let goal = match range.voters.iter().any(|place| is_at_goal(&place)) {
        true => None,
        // A learner that is there already was made by a try that failed, and has the data.
        false => Some(learner.map_or(Slot::New(to), Slot::Here)),
    };
    let slot = |place: &ReplicaPlace| match place.replica == replica {
        true => goal,
        false => Some(Slot::Here(*place)),
    };
    let voters = range.voters.iter().filter_map(slot).collect();
    let others = range.learners.iter().filter(|place| !is_at_goal(place));
    let learners = others.filter_map(slot).collect();
    Step::Change {
        range: range.id,
        voters,
        learners,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NodeId, ShardId};

    fn place(replica: u64) -> ReplicaPlace {
        let location = Location {
            node: NodeId(replica),
            shard: ShardId(0),
        };
        ReplicaPlace {
            replica: ReplicaId(replica),
            location,
        }
    }

    fn range(voters: &[u64], learners: &[u64]) -> Range {
        let places = |replicas: &[u64]| replicas.iter().map(|replica| place(*replica)).collect();
        Range {
            id: RangeId(7),
            voters: places(voters),
            learners: places(learners),
            given_up: None,
            not_on: None,
            leader: Some(ReplicaId(1)),
            caught_up: Vec::new(),
            bytes: 0,
            is_joint: false,
            busy: false,
        }
    }

    fn here(replicas: &[u64]) -> Vec<Slot> {
        let slots = replicas.iter().map(|replica| Slot::Here(place(*replica)));
        slots.collect()
    }

    #[test]
    fn a_move_that_was_left_half_done_is_ended() {
        let half_done = Range {
            is_joint: true,
            ..range(&[1, 2, 3, 4], &[])
        };
        let wanted = Step::Change {
            range: RangeId(7),
            voters: here(&[2, 3, 4]),
            learners: Vec::new(),
        };
        assert_eq!(step(&half_done, ReplicaId(1), place(4).location), wanted);
    }

    #[test]
    fn a_learner_that_is_there_already_takes_the_place_once() {
        let range = range(&[1, 2], &[3, 4, 5]);
        let to = place(5).location;
        for (moved, voters, learners) in
            [(1, &[5, 2][..], &[3, 4][..]), (3, &[1, 2][..], &[5, 4][..])]
        {
            let wanted = Step::Change {
                range: RangeId(7),
                voters: here(voters),
                learners: here(learners),
            };
            assert_eq!(step(&range, ReplicaId(moved), to), wanted);
        }
    }
}
