//! Conversions between openraft's types and those of the log.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use openraft::raft::{VoteRequest as OpenraftVoteRequest, VoteResponse};
use openraft::{EntryPayload, Membership};
use rkyv::rancor;

use crate::raft::machine::Machine;
use crate::raft::message::{RaftResponse, VoteRequest};
use crate::raft::type_config::{Commands, Leader, RaftEntry, RaftLogId, RaftVote, TypeConfig};
use crate::types::{Location, ReplicaId, ReplicaPlace};
use crate::wal;

/// openraft's membership of our replicas.
pub type Members = Membership<ReplicaId, Location>;

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct MembershipBody {
    configs: Vec<Vec<ReplicaId>>,
    nodes: Vec<(ReplicaId, Location)>,
}

/// A candidate's request as openraft's.
pub fn vote_request<M: Machine>(vote_request: &VoteRequest) -> OpenraftVoteRequest<TypeConfig<M>> {
    OpenraftVoteRequest {
        vote: raft_vote(vote_request.vote),
        last_log_id: vote_request.last.map(raft_log_id),
        leadership_transfer: vote_request.transfer,
    }
}

/// openraft's response to a candidate as ours.
pub fn voted<M: Machine, F>(response: Result<VoteResponse<TypeConfig<M>>, F>) -> RaftResponse {
    match response {
        Ok(response) => RaftResponse::Voted {
            vote: vote(&response.vote),
            granted: response.vote_granted,
            last: response.last_log_id.as_ref().map(log_id),
        },
        Err(_) => RaftResponse::Refused,
    }
}

/// The bytes of a membership in the log and in the state row.
///
/// # Errors
/// The encoder failed, which no membership in memory can cause.
pub fn encode_membership(members: &Members) -> io::Result<Vec<u8>> {
    let body = MembershipBody {
        configs: members
            .get_joint_config()
            .iter()
            .map(|c| c.iter().copied().collect())
            .collect(),
        nodes: members.nodes().map(|(id, place)| (*id, *place)).collect(),
    };
    let bytes = rkyv::to_bytes::<rancor::Error>(&body).map_err(io::Error::other)?;
    Ok(bytes.to_vec())
}

/// Reads what [`encode_membership`] wrote. No bytes mean no members.
///
/// # Errors
/// The bytes are not a membership.
pub fn decode_membership(bytes: &[u8]) -> io::Result<Members> {
    if bytes.is_empty() {
        return Ok(Members::default());
    }
    let body =
        rkyv::from_bytes::<MembershipBody, rancor::Error>(bytes).map_err(io::Error::other)?;
    let configs: Vec<BTreeSet<ReplicaId>> = body
        .configs
        .into_iter()
        .map(|c| c.into_iter().collect())
        .collect();
    let nodes: BTreeMap<ReplicaId, Location> = body.nodes.into_iter().collect();
    Members::new(configs, nodes).map_err(io::Error::other)
}

/// A membership with these voters and no learners.
pub fn members(voters: &[ReplicaPlace]) -> Members {
    let places = voters.iter().map(|voter| (voter.replica, voter.location));
    Members::from(places.collect::<BTreeMap<_, _>>())
}

/// All replicas of an encoded membership, voters and learners.
///
/// # Errors
/// The bytes are not a membership.
pub fn replicas(membership: &[u8]) -> io::Result<Vec<ReplicaPlace>> {
    let members = decode_membership(membership)?;
    let nodes = members.nodes();
    let place = |(replica, location): (&ReplicaId, &Location)| ReplicaPlace {
        replica: *replica,
        location: *location,
    };
    Ok(nodes.map(place).collect())
}

/// The voters of an encoded membership, and whether a joint change is half done: then they are the
/// voters before and after.
///
/// # Errors
/// The bytes are not a membership.
pub fn voters(membership: &[u8]) -> io::Result<(Vec<ReplicaId>, bool)> {
    let members = decode_membership(membership)?;
    let is_joint = members.get_joint_config().len() > 1;
    Ok((members.voter_ids().collect(), is_joint))
}

/// An encoded membership with other ids of its replicas, at the same places and with the same rights.
/// `None` if a replica has no other id.
///
/// # Errors
/// The bytes are not a membership, or the encoder failed.
pub fn renamed(
    membership: &[u8],
    other: impl Fn(ReplicaId) -> Option<ReplicaId>,
) -> io::Result<Option<Vec<u8>>> {
    let members = decode_membership(membership)?;
    let configs = members.get_joint_config().iter().map(|config| {
        let renamed = config.iter().map(|id| other(*id));
        renamed.collect::<Option<BTreeSet<ReplicaId>>>()
    });
    let nodes = members
        .nodes()
        .map(|(id, place)| Some((other(*id)?, *place)));
    let configs: Option<Vec<BTreeSet<ReplicaId>>> = configs.collect();
    let nodes: Option<BTreeMap<ReplicaId, Location>> = nodes.collect();
    let Some((configs, nodes)) = configs.zip(nodes) else {
        return Ok(None);
    };
    let members = Members::new(configs, nodes).map_err(io::Error::other)?;
    encode_membership(&members).map(Some)
}

/// Our log id as openraft's.
pub fn raft_log_id(id: wal::LogId) -> RaftLogId {
    let leader = Leader {
        term: id.term,
        node_id: id.leader,
    };
    RaftLogId::new(leader, id.index)
}

/// openraft's log id as ours.
pub fn log_id(id: &RaftLogId) -> wal::LogId {
    let leader = id.committed_leader_id();
    wal::LogId {
        term: leader.term,
        leader: leader.node_id,
        index: id.index,
    }
}

/// Our vote as openraft's.
pub fn raft_vote(vote: wal::Vote) -> RaftVote {
    let leader_id = Leader {
        term: vote.term,
        node_id: vote.leader,
    };
    RaftVote {
        leader_id,
        committed: vote.committed,
    }
}

/// openraft's vote as ours.
pub fn vote(vote: &RaftVote) -> wal::Vote {
    wal::Vote {
        term: vote.leader_id.term,
        leader: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

/// Our entry as openraft's.
///
/// # Errors
/// The body of a membership entry is not a membership.
pub fn raft_entry(entry: wal::LogEntry) -> io::Result<RaftEntry> {
    let payload = match entry.payload {
        wal::Payload::Blank => EntryPayload::Blank,
        wal::Payload::Commands(body) => EntryPayload::Normal(Commands(body)),
        wal::Payload::Membership(body) => EntryPayload::Membership(decode_membership(&body)?),
    };
    Ok(RaftEntry {
        log_id: raft_log_id(entry.id),
        payload,
    })
}

/// openraft's entry as ours.
///
/// # Errors
/// The encoder failed, which no membership in memory can cause.
pub fn entry(entry: RaftEntry) -> io::Result<wal::LogEntry> {
    let payload = match entry.payload {
        EntryPayload::Blank => wal::Payload::Blank,
        EntryPayload::Normal(commands) => wal::Payload::Commands(commands.0),
        // openraft keeps the members, not the bytes that we received: they are encoded anew.
        EntryPayload::Membership(members) => {
            let bytes = encode_membership(&members)?;
            wal::Payload::Membership(wal::Body::seal(bytes.into()))
        }
    };
    Ok(wal::LogEntry {
        id: log_id(&entry.log_id),
        payload,
    })
}
