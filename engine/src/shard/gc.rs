//! Garbage collection: which rows of the shard's tree are live, and which old versions nobody reads any more.
//!
//! [`rules`] is made anew whenever a replica or its bounds change, in the same turn, so no compaction drops
//! what somebody owns. The [`Collector`] raises the thresholds of the ranges that are led here, by an order in
//! their logs, and has the tree collect where nobody writes. What a compaction drops by these rules is decided
//! in `lsm/version_gc.rs`. Lives on the shard's thread.

use std::rc::Rc;

use crate::env::Env;
use crate::error::Fatal;
use crate::lsm::{GcRules, LiveData};
use crate::mutant::{self, Mutant};
use crate::range::command::RangeOrder;
use crate::range::proposer::sink::Once;
use crate::range::proposer::{Proposal, ProposalKind};
use crate::range::replica::Replica;
use crate::range::split_merge::newborns::Child;
use crate::shard::ShardInner;
use crate::types::{KeyRange, Timestamp};

/// Collection thresholds move in steps of this fraction of the retention.
const GC_STEPS: u64 = 10;

/// Which rows of the tree are live now.
pub(super) fn rules<E: Env>(inner: &ShardInner<E>) -> GcRules {
    // Newborn replicas own their rows before they run.
    let mut replicas = inner.ranges.replicas();
    let newborns = inner.home.newborns.all();
    replicas.extend(newborns.iter().map(|newborn| newborn.replica.clone()));
    if mutant::is(Mutant::CollectorToldBetweenTurns) {
        let has_leader = |replica: &Replica<E>| replica.leadership.leader().is_some();
        replicas.retain(|replica| replica.is_flushed() || has_leader(replica));
    }
    let absorbed = inner.home.absorption.absorbed();
    let taken_over = absorbed.iter().map(|absorbed| &absorbed.replica);
    // What only a start would need after a rewrite or a split, and where rows are written anew.
    let rewrites = replicas.iter().chain(taken_over).flat_map(rewritten);
    let rewrites: Vec<LiveData> = rewrites.collect();
    // Those that were taken over have no keys any more, but their own rows, until the log forgets them.
    let absorbed = absorbed.iter().map(|absorbed| LiveData {
        replica: absorbed.replica.group.replica,
        data_id: absorbed.replica.data_id(),
        keys: KeyRange {
            start: Vec::new(),
            end: Some(Vec::new()),
        },
        threshold: Timestamp::ZERO,
    });
    let live = replicas.into_iter().flat_map(|replica| {
        let threshold = replica.droppable_below();
        let intervals = replica.intervals().into_iter();
        intervals.map(move |(data_id, keys)| LiveData {
            replica: replica.group.replica,
            data_id,
            keys,
            threshold,
        })
    });
    GcRules {
        live: live
            .chain(absorbed)
            .chain(inner.staged())
            .chain(rewrites)
            .collect(),
    }
}

/// The rows that a replica needs beside those that it reads.
fn rewritten<E: Env>(replica: &Rc<Replica<E>>) -> Vec<LiveData> {
    let mut rows = replica.outlived_rows();
    let copies = replica.rewrites_to();
    rows.extend(copies.map(|data_id| (data_id, KeyRange::all())));
    let live = rows.into_iter().map(|(data_id, keys)| LiveData {
        replica: replica.group.replica,
        data_id,
        keys,
        threshold: Timestamp::ZERO,
    });
    live.collect()
}

/// Collects old versions, even where nobody writes.
#[derive(Default)]
pub(super) struct Collector {
    /// The thresholds that compactions last got, and of how many intervals a start alone needs the rows.
    told: (Vec<Timestamp>, usize),
    /// Everything at or below this has been through a full compaction.
    collected: Timestamp,
}

impl Collector {
    /// One look at all replicas.
    ///
    /// # Errors
    /// The tree cannot be written.
    pub(super) fn step<E: Env>(&mut self, inner: &ShardInner<E>) -> Result<(), Fatal> {
        let replicas = inner.ranges.replicas();
        for replica in &replicas {
            propose_threshold(inner, replica);
        }
        let thresholds: Vec<Timestamp> = replicas.iter().map(|r| r.droppable_below()).collect();
        let outlived = replicas.iter().map(|r| r.outlived_count()).sum();
        let now = (thresholds, outlived);
        if now != self.told {
            inner.store.set_gc(rules(inner));
            self.told = now;
        }
        // Without writes no compaction starts by itself: ask for one when the last write of every
        // range is old enough to collect what it replaced.
        let newest = replicas
            .iter()
            .map(|r| r.last_write())
            .max()
            .unwrap_or_default();
        let quiet = replicas.iter().all(|r| {
            let last = r.last_write();
            last <= self.collected || r.droppable_below() >= last
        });
        if quiet && newest > self.collected {
            self.collected = newest;
            inner.store.freeze()?;
            inner.store.collect_garbage();
        }
        Ok(())
    }
}

/// Raises a range's threshold, if old versions may exist and a step is due.
fn propose_threshold<E: Env>(inner: &ShardInner<E>, replica: &Rc<Replica<E>>) {
    if replica.leading().is_none() {
        return;
    }
    let (threshold, version) =
        replica.with_state(|state| (state.gc_threshold, state.descriptor.epoch.version));
    let due = replica.timestamps.now().minus_ms(inner.gc_retention_ms);
    let step = inner.gc_retention_ms / GC_STEPS;
    if replica.last_write() <= threshold || due <= threshold.plus_ms(step) {
        return;
    }
    let order = ProposalKind::Order(RangeOrder::SetGcThreshold { threshold: due.0 });
    // If the queue is full, the next look tries again.
    let sink = Rc::new(Once::new(drop));
    let proposal = Proposal::new(order, version, None, (sink, 0));
    replica.proposer.push(proposal);
}
