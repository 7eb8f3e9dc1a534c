//! A decision of the manager as it is shown to people: what it ordered, why, and how it ended. Pure.

#![allow(
    missing_docs,
    reason = "what rkyv derives for enums has fields without docs"
)]

use crate::types::{Location, RangeId};

/// The kind of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum DecisionKind {
    /// Another replica must lead.
    MoveLeader,
    /// A replica must go elsewhere.
    MoveReplica,
    /// A range gets another replica, or a replica another part to play.
    AddReplica,
    /// A range has a replica too many.
    RemoveReplica,
    /// A range is split.
    Split,
    /// A range takes its right neighbour over.
    Merge,
}

impl DecisionKind {
    /// The kinds that move something.
    pub const MOVES: [DecisionKind; 4] = [
        DecisionKind::MoveLeader,
        DecisionKind::MoveReplica,
        DecisionKind::AddReplica,
        DecisionKind::RemoveReplica,
    ];

    /// The word for it, in metrics and answers.
    pub fn name(self) -> &'static str {
        match self {
            DecisionKind::MoveLeader => "move_leader",
            DecisionKind::MoveReplica => "move_replica",
            DecisionKind::AddReplica => "add_replica",
            DecisionKind::RemoveReplica => "remove_replica",
            DecisionKind::Split => "split",
            DecisionKind::Merge => "merge",
        }
    }
}

/// What became of a decision.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Outcome {
    /// It is being carried out.
    UnderWay,
    /// It was carried out.
    Done,
    /// It failed, as far as the manager knows, for this reason, in words for people. An order of whose end
    /// nothing was heard may have been carried out all the same.
    Failed(String),
}

/// A decision, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Decision {
    /// Rises from one decision to the next, also from one manager to the next.
    pub id: u64,
    /// When it was decided, in milliseconds since 1970 of the manager's wall clock.
    pub at_ms: u64,
    /// The range whose leader, replica or bounds change.
    pub range: RangeId,
    /// What is changed, such as a leader or a replica.
    pub kind: DecisionKind,
    /// Why, for people.
    pub reason: String,
    /// Where it moves from, if it does.
    pub from: Option<Location>,
    /// Where it moves to, if it does.
    pub to: Option<Location>,
    /// What is expected of it, for people.
    pub expected: String,
    /// How it ended, if it has.
    pub outcome: Outcome,
}
