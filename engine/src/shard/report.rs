//! The shard's report to the manager, and how the manager's records are read and written.

use std::ops::Bound;
use std::rc::Rc;

use openraft::async_runtime::{Oneshot, OneshotSender};

use super::availability::majority_is_there;
use super::{Inner, Running, load};
use crate::cluster::message::{Follower, HeldReplica, HighestIds, LedRange, Report, ShardStats};
use crate::cluster::record::Row;
use crate::env::{AsyncRuntime, Env, Instant, Now};
use crate::error::{Error, Fatal};
use crate::lsm::{LsmError, keys};
use crate::raft;
use crate::range::leadership::Leading;
use crate::range::proposer::{Proposal, ProposalKind};
use crate::range::replica::Replica;
use crate::range::sink::Once;
use crate::range::{RaftGroup, ReplicaPlace};
use crate::request::{Batch, RequestId};
use crate::types::{ClientId, NodeId, Timestamp};

/// Most rows in one write.
const ROWS_OF_WRITE: usize = 256;
/// Time limit of a write.
const WRITE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// The report of a shard that has the view of version `known`.
pub(super) fn of<E: Env>(inner: &Inner<E>, known: u64) -> Report {
    let mut report = Report {
        from: inner.location,
        node: inner.management.node.clone(),
        known,
        led: Vec::new(),
        held: Vec::new(),
        highest: highest(inner),
        peers: Vec::new(),
        in_flight: 0,
        slow_disk: false,
        stats: ShardStats::default(),
    };
    let now = Now::<E>::now();
    report.stats = load::measure(inner, now);
    report.peers = inner.liveness.peers(now);
    report.slow_disk = inner.liveness.slow_disk.stays_away(now);
    inner.ranges.for_each(|Running { replica, raft }| {
        report.in_flight += replica.proposer.in_flight() as u64;
        match replica.leading() {
            Some(leading) => report.led.push(led(inner, replica, raft, leading, now)),
            None => report.held.push(held(replica, raft, now)),
        }
    });
    report
}

impl<E: Env> Inner<E> {
    /// Ends this process, because another one, with `seen` starts, has its node id.
    pub(super) fn end_superseded(&self, seen: u64) {
        let node = self.location.node;
        // A process that was accepted until now is the older one of two.
        self.store.fail(match self.management.was_accepted.get() {
            true => Fatal::Superseded(node),
            false => Fatal::OldFolder {
                node,
                start: self.management.node.starts(),
                seen,
            },
        });
    }
}

/// The highest ids that the shard knows.
fn highest<E: Env>(inner: &Inner<E>) -> HighestIds {
    let view = inner.management.view();
    let nodes = view.nodes.iter().map(|node| node.record.id);
    let seen = inner.management.seen;
    let mut highest = HighestIds {
        node: nodes.fold(seen.node, NodeId::max),
        replica: inner.wal.highest_replica().max(seen.replica),
        ..seen
    };
    view.ranges
        .iter()
        .for_each(|range| highest.see(&range.descriptor));
    inner.ranges.for_each(|running| {
        running
            .replica
            .with_state(|state| highest.see(&state.descriptor));
    });
    highest
}

fn led<E: Env>(
    inner: &Inner<E>,
    replica: &Replica<E>,
    raft: &RaftGroup<E>,
    leading: Leading,
    now: Now<E>,
) -> LedRange {
    let me = replica.group.replica;
    let stats = load::of_range(inner, replica);
    replica.with_state(|state| {
        let descriptor = state.descriptor.clone();
        // The applied membership was encoded here, or was checked when it was received.
        let (voters, is_joint) = raft::voters(&state.membership.body).unwrap_or_default();
        let takes_snapshot = raft
            .part_taken()
            .is_some_and(|at| now < at + raft::PART_TIMEOUT);
        let others = descriptor.replicas.iter();
        let others = others.filter(|place| place.replica != me);
        let follower = |place: &ReplicaPlace| Follower {
            replica: place.replica,
            matched: raft.matched(place.replica),
            lag: raft.lag(place.replica),
            answers: inner.liveness.answers(place.location, now),
            lost: raft.has_lost(place.replica),
            takes_snapshot,
        };
        LedRange {
            followers: others.map(follower).collect(),
            changing: raft.is_changing(),
            phase: inner.phase(replica),
            is_joint,
            has_quorum: !replica.is_halted()
                && (raft.has_lease()
                    || majority_is_there(inner, raft, (me, &voters, &descriptor), now)),
            leader: me,
            term: leading.term,
            applied: state.applied.map_or(0, |id| id.index),
            voters,
            descriptor,
            stats,
        }
    })
}

fn held<E: Env>(replica: &Replica<E>, raft: &RaftGroup<E>, now: Now<E>) -> HeldReplica {
    let group = replica.group;
    // A replica right after a snapshot may not have applied its own addition yet.
    let is_led = raft.has_heard(now);
    replica.with_state(|state| HeldReplica {
        range: group.range,
        replica: group.replica,
        conf: state.descriptor.epoch.conf,
        is_empty: state.applied.is_none(),
        frozen: state.frozen.map(|_| {
            let descriptor = &state.descriptor;
            (descriptor.keys.start.clone(), descriptor.epoch.version)
        }),
        left: state.applied.is_some()
            && state.descriptor.location(group.replica).is_none()
            && !is_led,
    })
}

/// All rows of the system range, as far as they are applied here.
pub(super) fn system_rows<E: Env>(replica: &Replica<E>) -> Result<Vec<Row>, LsmError> {
    // The system range is never merged: it has one part.
    let data_id = replica.data_id();
    let (mut first, mut end) = (Vec::new(), Vec::new());
    replica.with_state(|state| {
        let keys = state.descriptor.keys.interval();
        keys::users_of(data_id, keys, &mut first, &mut end);
    });
    let bounds = (
        Bound::Included(first.as_slice()),
        Bound::Excluded(end.as_slice()),
    );
    replica.store.scan(bounds, Timestamp::MAX, |scan| {
        let mut rows = Vec::new();
        while let Some(row) = scan.next_row()? {
            rows.push((keys::user_part(row.key()).to_vec(), row.value().to_vec()));
        }
        Ok(rows)
    })
}

/// Writes rows of the system range; they are durable when this returns.
///
/// # Errors
/// This replica does not lead, or it is unknown whether they were written.
pub(super) async fn write_rows<E: Env>(
    replica: &Rc<Replica<E>>,
    rows: &[Row],
) -> Result<(), Error> {
    for part in rows.chunks(ROWS_OF_WRITE) {
        let changes = part.iter().map(|(key, value)| {
            let (key, value) = (key.clone(), value.clone());
            // A record is never empty: this one is to be deleted.
            (key.into(), (!value.is_empty()).then(|| value.into()))
        });
        let write = Batch::set_all(changes);
        write_one(replica, write).await?;
    }
    Ok(())
}

async fn write_one<E: Env>(replica: &Rc<Replica<E>>, write: Batch) -> Result<(), Error> {
    type Channel<E> = <<E as Env>::Runtime as AsyncRuntime>::Oneshot;
    replica.check(None)?;
    let (sender, receiver) = Channel::<E>::channel();
    // Each write has a client id of its own: it is never retried.
    let request_id = RequestId {
        client: ClientId(replica.timestamps.random_id()),
        sequence: 1,
        lowest_unanswered: 1,
        first_tried: replica.timestamps.now(),
    };
    let kind = ProposalKind::Write(write, request_id);
    let version = replica.with_state(|state| state.descriptor.epoch.version);
    let sink = Rc::new(Once::new(|result| drop(sender.send(result))));
    let proposal = Proposal::new(kind, version, None, (sink, 0));
    replica.proposer.push(proposal);
    let lost = Error::unknown("a record of the cluster");
    match E::Runtime::timeout(WRITE_TIMEOUT, receiver).await {
        Ok(Ok(result)) => result.map(drop),
        Ok(Err(_)) | Err(_) => Err(lost),
    }
}
