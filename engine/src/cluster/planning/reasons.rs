//! The reasons for changes of members and leaders, in words for people. No I/O here.

use crate::boot_time::BootTime;
use crate::cluster::manager::planning_state::{Origin, Why};
use crate::cluster::manager::{KnownRange, Manager};
use crate::cluster::message::NodeHealth;
use crate::cluster::placement::{Slot, Step};
use crate::cluster::record::MembershipStatus;
use crate::range::ReplicaPlace;
use crate::words::counted;

impl Manager {
    /// Why a step of [`crate::cluster::placement::plan`] is necessary.
    pub(super) fn why_necessary(&self, step: &Step, now: BootTime) -> Why {
        let (reason, expected) = match step {
            Step::Change {
                range,
                voters,
                learners,
            } => {
                let known = self.ranges.get(range);
                let reason = known.and_then(|known| self.why_changed(known, voters, learners, now));
                let expected = format!(
                    "the range has {} and {}",
                    counted(voters.len() as u64, "voter"),
                    counted(learners.len() as u64, "learner")
                );
                (reason, expected)
            }
            Step::Lead { range, .. } => {
                let at = self.leader_of(*range, now);
                let reason = at.map(|at| match self.membership(at.node) {
                    MembershipStatus::Active => {
                        format!("the disk of node {}, which leads it, is slow", at.node)
                    }
                    status => format!("node {}, which leads it, is {}", at.node, status.name()),
                });
                (reason, "another node leads it".to_owned())
            }
        };
        Why {
            is_cheap: false,
            reason: reason.unwrap_or_else(|| "its replicas are not what they should be".to_owned()),
            expected,
            origin: Origin::Duty,
        }
    }

    fn why_changed(
        &self,
        known: &KnownRange,
        voters: &[Slot],
        learners: &[Slot],
        now: BootTime,
    ) -> Option<String> {
        let wanted = || voters.iter().chain(learners);
        let stays = |place: &ReplicaPlace| wanted().any(|slot| *slot == Slot::Here(*place));
        let mut places = known.record.descriptor.replicas.iter();
        let gone = places.find(|place| !stays(place));
        if let Some(gone) = gone {
            let ReplicaPlace { replica, location } = gone;
            let node = location.node;
            let faults = self.faults(known, now);
            let fault = faults.iter().find(|(id, _)| id == replica);
            let state = self.nodes.get(&node).map(|n| self.node_health(n, now));
            return match (fault, self.membership(node)) {
                (Some((_, fault)), _) => {
                    let name = fault.name();
                    Some(format!("replica {replica} at {location} is {name}"))
                }
                (None, MembershipStatus::Active) => match state {
                    Some(NodeHealth::Alive) => {
                        Some("it has more replicas than `replication-factor` says".to_owned())
                    }
                    state => {
                        let name = state.map_or("unknown", NodeHealth::name);
                        Some(format!("node {node}, which has a replica, is {name}"))
                    }
                },
                (None, status) => {
                    let name = status.name();
                    Some(format!("node {node}, which has a replica, is {name}"))
                }
            };
        }
        let is_new = wanted().any(|slot| matches!(slot, Slot::New(_)));
        let is_joint = self.fresh(known, now).is_some_and(|report| report.is_joint);
        Some(match (is_new, is_joint) {
            (true, _) => {
                let has = counted(known.record.descriptor.replicas.len() as u64, "replica");
                let wanted = counted(voters.len() as u64, "voter");
                format!("it has {has}, and should have {wanted}")
            }
            (false, true) => "an earlier change was left half done".to_owned(),
            (false, false) => "a replica has another part to play".to_owned(),
        })
    }
}
