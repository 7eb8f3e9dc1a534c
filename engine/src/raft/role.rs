//! The role of a replica in its group, as openraft last reported it: leader, voter or learner.

use std::cell::Cell;

use openraft::ServerState;

use crate::raft::type_config::RaftMembership;
use crate::types::ReplicaId;

/// A replica's role in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The leader.
    Leader,
    /// A voter that does not lead.
    Voter,
    /// A replica without a vote, or one that is not a member.
    Learner,
}

/// A replica's standing in its group.
pub struct Standing {
    /// Leader, voter or learner, as openraft last said.
    pub role: Cell<Role>,
    /// Whether it is the only voter.
    pub alone: Cell<bool>,
    /// How many replicas the group has, voters and learners.
    pub members: Cell<usize>,
}

/// What is new in a replica's standing.
pub struct News {
    /// The group has another number of members.
    pub members: bool,
    /// The replica has another role.
    pub role: bool,
    /// The replica has become the leader.
    pub leads: bool,
}

impl Standing {
    /// That of a replica of which openraft has said nothing yet.
    pub fn new(alone: bool) -> Standing {
        Standing {
            role: Cell::new(Role::Learner),
            alone: Cell::new(alone),
            members: Cell::new(0),
        }
    }

    /// Takes the standing of a replica from openraft's metrics; gives what is new.
    pub fn take(&self, me: ReplicaId, state: ServerState, membership: &RaftMembership) -> News {
        // Until openraft has started, its metrics name no voters.
        if membership.voter_ids().next().is_none() {
            return News {
                members: false,
                role: false,
                leads: false,
            };
        }
        let is_voter = membership.voter_ids().any(|id| id == me);
        self.alone
            .set(is_voter && membership.voter_ids().count() == 1);
        let members = membership.nodes().count();
        let role = match state {
            ServerState::Leader => Role::Leader,
            _ if is_voter => Role::Voter,
            _ => Role::Learner,
        };
        let is_new = self.role.replace(role) != role;
        News {
            members: self.members.replace(members) != members,
            role: is_new,
            leads: is_new && role == Role::Leader,
        }
    }
}
