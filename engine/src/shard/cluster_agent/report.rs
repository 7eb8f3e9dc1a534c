//! The shard's report to the manager, and how the manager's records are read and written.

use std::cell::{Cell, RefCell};
use std::ops::Bound;
use std::rc::Rc;

use openraft::async_runtime::{Oneshot, OneshotSender};

use crate::boot_time::BootTime;
use crate::cluster::message::{Follower, HeldReplica, HighestIds, LedRange, Report, ShardStats};
use crate::cluster::record::Row;
use crate::cluster::reporter::Reporter;
use crate::env::{AsyncRuntime, Env};
use crate::error::{Error, Fatal};
use crate::lsm::{LsmError, keys};
use crate::notify::Count;
use crate::raft::{self, Role};
use crate::range::proposer::sink::Once;
use crate::range::proposer::{Proposal, ProposalKind};
use crate::range::replica::Replica;
use crate::range::replica::leadership::Leading;
use crate::range::{Descriptor, RaftGroup, ReplicaPlace};
use crate::request::{Batch, RequestId};
use crate::shard::cluster_agent::load;
use crate::shard::liveness::availability::majority_is_there;
use crate::shard::{RangeHandle, ShardInner};
use crate::types::{ClientId, ReplicaId, Timestamp};

/// Most rows in one write.
const ROWS_OF_WRITE: usize = 256;
/// Time limit of a write.
const WRITE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// A shard's reporting, and what has come of it.
#[derive(Default)]
pub(in crate::shard) struct Reporting {
    /// What the manager was told.
    pub reporter: RefCell<Reporter>,
    /// Whether the manager has accepted this process as its node.
    pub was_accepted: Cell<bool>,
    /// How many responses in a row said that the node was not reached at its address.
    pub unmet: Cell<u32>,
    /// How many reasons there are to report before the next interval.
    pub due: Rc<Count>,
}

/// The next report of a shard. Of its ranges it names those of which the manager must be told something.
pub(in crate::shard) fn next<E: Env>(inner: &ShardInner<E>) -> Report {
    let mut report = Report {
        from: inner.location,
        node: inner.agent.node.clone(),
        known: inner.agent.view.borrow().version,
        number: 0,
        since: None,
        led: Vec::new(),
        held: Vec::new(),
        gone: Vec::new(),
        highest: highest(inner),
        peers: Vec::new(),
        in_flight: 0,
        slow_disk: false,
        unreadable: Vec::new(),
        stats: ShardStats::default(),
    };
    let now = E::now();
    report.stats = load::measure(inner, now);
    report.peers = inner.liveness.peers(now);
    report.slow_disk = inner.liveness.slow_disk.stays_away(now);
    let mut reporter = inner.agent.reporting.reporter.borrow_mut();
    let mut round = reporter.begin(now);
    inner.ranges.for_each(|running| {
        let RangeHandle { replica, raft } = running;
        report.in_flight += replica.proposer.in_flight() as u64;
        report
            .unreadable
            .extend(replica.is_unreadable().then_some(replica.group.replica));
        match replica.leading() {
            Some(leading) => round.lead(replica.group.range, |before| {
                led(inner, running, leading, before, now)
            }),
            None => round.hold(held(replica, raft, now)),
        }
    });
    round.end(&mut report);
    report
}

impl<E: Env> ShardInner<E> {
    /// Ends this process, because another one, with `seen` starts, has its node id.
    pub(super) fn end_superseded(&self, seen: u64) {
        let node = self.location.node;
        // A process that was accepted until now is the older one of two.
        self.store
            .fail(match self.agent.reporting.was_accepted.get() {
                true => Fatal::Superseded(node),
                false => Fatal::OldFolder {
                    node,
                    start: self.agent.node.starts(),
                    seen,
                },
            });
    }
}

/// The highest ids that the shard knows.
fn highest<E: Env>(inner: &ShardInner<E>) -> HighestIds {
    let mut highest = inner.agent.seen.get();
    highest.replica = highest.replica.max(inner.wal.highest_replica());
    inner.ranges.for_each(|running| {
        running
            .replica
            .with_state(|state| highest.see(&state.descriptor));
    });
    highest
}

/// What there is to tell of a range that is led here; `None` if it is what was told `before`. A range that is
/// as it was costs no memory and no decoding: descriptor and voters change by entries that are applied.
fn led<E: Env>(
    inner: &ShardInner<E>,
    RangeHandle { replica, raft }: &RangeHandle<E>,
    leading: Leading,
    before: Option<&LedRange>,
    now: BootTime,
) -> Option<LedRange> {
    let (me, term) = (replica.group.replica, leading.term);
    let stats = load::of_range(inner, replica);
    let takes_snapshot = raft
        .part_taken()
        .is_some_and(|at| now < at + raft::PART_TIMEOUT);
    let follower = |place: &ReplicaPlace| {
        let before = before.map(|before| before.followers.iter());
        let before = before.and_then(|mut all| all.find(|f| f.replica == place.replica));
        let (matched, lag) = (raft.matched(place.replica), raft.lag(place.replica));
        let had = before.and_then(|before| before.matched);
        Follower {
            replica: place.replica,
            matched,
            lag,
            stalls: lag > 0 && (had.is_none() || matched <= had),
            answers: inner.liveness.answers(place.location, now),
            lost: raft.has_lost(place.replica),
            takes_snapshot,
        }
    };
    let has_quorum = |voters: &[ReplicaId], descriptor: &Descriptor| {
        let is_there = || majority_is_there(inner, raft, (me, voters, descriptor), now);
        !replica.is_halted() && (raft.has_lease() || is_there())
    };
    let (changing, phase) = (raft.is_changing(), inner.phase(replica));
    let parts = u16::try_from(replica.parts_count()).unwrap_or(u16::MAX);
    replica.with_state(|state| {
        let applied = state.applied.map_or(0, |id| id.index);
        let descriptor = &state.descriptor;
        let others = descriptor.replicas.iter();
        let mut others = others.filter(|place| place.replica != me).map(follower);
        if let Some(before) = before
            && (before.leader, before.term, before.applied) == (me, term, applied)
            && (before.changing, before.phase) == (changing, phase)
            && (before.parts, before.stats) == (parts, stats)
            && before.has_quorum == has_quorum(&before.voters, &before.descriptor)
            && before.followers.iter().copied().eq(others.by_ref())
        {
            return None;
        }
        // The applied membership was encoded here, or was checked when it was received.
        let (voters, is_joint) = raft::voters(&state.membership.body).unwrap_or_default();
        let others = descriptor.replicas.iter();
        let others = others.filter(|place| place.replica != me);
        Some(LedRange {
            followers: others.map(follower).collect(),
            changing,
            phase,
            is_joint,
            has_quorum: has_quorum(&voters, descriptor),
            leader: me,
            term,
            applied,
            voters,
            descriptor: descriptor.clone(),
            stats,
            parts,
        })
    })
}

fn held<E: Env>(replica: &Replica<E>, raft: &RaftGroup<E>, now: BootTime) -> HeldReplica {
    let group = replica.group;
    // A replica right after a snapshot may not have applied its own addition yet.
    let is_led = raft.has_heard(now);
    let lacks_quorum = replica.leadership.lacks_quorum();
    // One that does not vote, and never did, knows of no majority.
    let hears_nothing = raft.role() == Role::Learner && !is_led;
    replica.with_state(|state| HeldReplica {
        range: group.range,
        replica: group.replica,
        conf: state.descriptor.epoch.conf,
        is_empty: state.applied.is_none(),
        bounds: (state.frozen.is_some() || lacks_quorum || hears_nothing).then(|| {
            let descriptor = &state.descriptor;
            (descriptor.keys.start.clone(), descriptor.epoch.version)
        }),
        left: state.applied.is_some()
            && state.descriptor.location(group.replica).is_none()
            && !is_led,
        parts: u16::try_from(replica.parts_count()).unwrap_or(u16::MAX),
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
