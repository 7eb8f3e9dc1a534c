//! Follows the progress of the nodes that leave, and says why a range is still on one. No I/O here.

use std::time::Duration;

use crate::boot_time::BootTime;
use crate::cluster::manager::departure::Departure;
use crate::cluster::manager::{KnownRange, Manager};
use crate::cluster::message::{BoundsPhase, LedRange};
use crate::cluster::record::MembershipStatus;
use crate::types::{NodeId, RangeId};
use crate::words::counted;

/// At most so many ranges are named in a log line.
const NAMED_MAX: usize = 10;

impl Manager {
    /// Follows the nodes that leave; does this before anything is decided about them.
    pub(in crate::cluster) fn follow_departures(&mut self, now: BootTime) {
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        for node in nodes {
            let membership = self.membership(node);
            let left = match membership {
                MembershipStatus::Draining => self.led_by(node, now).len(),
                MembershipStatus::Decommissioning => self.ranges_on(node, now).len(),
                _ => {
                    if let Some(known) = self.nodes.get_mut(&node) {
                        known.departure = None;
                    }
                    continue;
                }
            };
            let quiet = self
                .ranges
                .iter()
                .filter(|(_, known)| self.is_quiet(known, now));
            let quiet: Vec<RangeId> = quiet.map(|(range, _)| *range).collect();
            let Some(known) = self.nodes.get_mut(&node) else {
                continue;
            };
            let departure = known.departure.take();
            let departure = departure.filter(|departure| departure.membership == membership);
            let mut departure = departure.unwrap_or_else(|| Departure::new(membership, left, now));
            departure.rested.extend(quiet);
            departure.note(left, now);
            let tells = departure.tells(left, now);
            known.departure = Some(departure);
            if tells {
                self.tell_stuck(node, left, now);
            }
        }
    }

    /// Logs that a node which leaves stands still.
    fn tell_stuck(&self, node: NodeId, left: usize, now: BootTime) {
        let Ok(leaving) = self.leaving(node, false, now) else {
            return;
        };
        let named = leaving.blocked.iter().take(NAMED_MAX);
        let named: Vec<String> = named
            .map(|(range, why)| format!("range {range}: {why}"))
            .collect();
        tracing::warn!(
            event = "leaving_stuck",
            "node {node} is {}, and nothing has left it for {} s; {} left: {}",
            leaving.membership.name(),
            leaving.stuck_ms / 1000,
            counted(left as u64, "range"),
            named.join("; ")
        );
    }

    /// Whether each range has rested since the node was to be decommissioned.
    pub(super) fn all_have_rested(&self, node: NodeId) -> bool {
        let departure = self
            .nodes
            .get(&node)
            .and_then(|known| known.departure.as_ref());
        departure.is_some_and(|departure| {
            let mut ranges = self.ranges.keys();
            ranges.all(|range| departure.rested.contains(range))
        })
    }

    /// How many ranges leave a node in a minute, and how long none has left.
    pub(super) fn progress(&self, node: NodeId, left: usize, now: BootTime) -> (u64, Duration) {
        let departure = self
            .nodes
            .get(&node)
            .and_then(|known| known.departure.as_ref());
        departure.map_or((0, Duration::ZERO), |departure| {
            let rate = departure.per_minute(left, now);
            (rate, departure.stuck_for(now))
        })
    }

    /// Why a replica that nothing forbids to leave a node is still there.
    pub(super) fn why_replica_stays(&self, range: RangeId, node: NodeId, now: BootTime) -> String {
        let Some(known) = self.ranges.get(&range) else {
            return "the manager does not know the range; its replica was left over there"
                .to_owned();
        };
        let mut at = known.record.descriptor.locations();
        if at.all(|at| at.node != node) {
            return "its replica is no member any more, and is about to be removed".to_owned();
        }
        if let Some(why) = self.why_busy(known, now) {
            return why;
        }
        let takers = self.takers(node, now);
        let failed = self.health.avoided(now);
        let failed: Vec<String> = failed
            .iter()
            .filter(|at| takers.contains(&at.node))
            .map(ToString::to_string)
            .collect();
        match failed.is_empty() {
            true => "it waits for its turn".to_owned(),
            false => format!(
                "shards that were to take its replica did not make it: {}",
                failed.join(", ")
            ),
        }
    }

    /// Why a leadership that nothing forbids to leave a node is still there.
    pub(super) fn why_leader_stays(&self, known: &KnownRange, now: BootTime) -> String {
        let why = self.why_busy(known, now);
        why.unwrap_or_else(|| "it waits for its turn".to_owned())
    }

    /// What a range is busy with.
    fn why_busy(&self, known: &KnownRange, now: BootTime) -> Option<String> {
        let report = self.fresh(known, now)?;
        let why = if let Some(change) = change_of_bounds(report.phase) {
            change.to_owned()
        } else if report.changing {
            being_changed(report)
        } else if self.is_ordered(known, now) {
            "its leader was ordered a moment ago to change it".to_owned()
        } else {
            return None;
        };
        Some(why)
    }
}

/// A change of bounds that is under way, in words.
fn change_of_bounds(phase: BoundsPhase) -> Option<&'static str> {
    match phase {
        BoundsPhase::None => None,
        BoundsPhase::Splitting => Some("it is being split"),
        BoundsPhase::Freezing | BoundsPhase::Frozen => {
            Some("it is about to become a part of its left neighbour")
        }
        BoundsPhase::Merging => Some("it takes over its right neighbour"),
    }
}

/// A change of members that is under way, in words.
fn being_changed(report: &LedRange) -> String {
    let behind = report
        .followers
        .iter()
        .filter(|other| !other.has_caught_up());
    let behind: Vec<String> = behind
        .map(|other| {
            let at = report.descriptor.location(other.replica);
            let at = at.map_or_else(String::new, |at| format!(" at {at}"));
            let state = match (other.answers, other.takes_snapshot, other.lag) {
                (false, ..) => "does not answer".to_owned(),
                (true, true, _) => "takes over its data".to_owned(),
                (true, false, u64::MAX) => "has not begun to take over its data".to_owned(),
                (true, false, lag) => format!("lacks {lag} entries"),
            };
            format!("replica {}{at} {state}", other.replica)
        })
        .collect();
    match behind.is_empty() {
        true => "a change of its members is under way".to_owned(),
        false => format!(
            "a change of its members is under way: {}",
            behind.join(", ")
        ),
    }
}
