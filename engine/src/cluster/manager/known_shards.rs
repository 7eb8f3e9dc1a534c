//! What the manager knows of each shard from its reports: which ranges it leads, and which other replicas it
//! has. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::boot_time::BootTime;
use crate::cluster::message::{HeldReplica, LedRange, Report, ShardStats};
use crate::types::{Location, RangeId, ReplicaId};

/// What a shard has reported.
pub(in crate::cluster) struct KnownShard {
    /// The process of the reports.
    pub(in crate::cluster) incarnation: u128,
    /// The number of the last report.
    pub(in crate::cluster) number: u64,
    /// When that came.
    pub(in crate::cluster) heard: BootTime,
    /// The ranges that it leads.
    pub(in crate::cluster) led: BTreeMap<RangeId, Rc<LedRange>>,
    /// Its other replicas.
    pub(in crate::cluster) held: BTreeMap<RangeId, HeldReplica>,
    /// Those of the ranges it leads that are looked at with each report.
    pub(super) restless: BTreeSet<RangeId>,
    pub(in crate::cluster) membership: Option<Membership>,
    /// Writes that it has not answered.
    pub(in crate::cluster) in_flight: u64,
    /// Whether it accepts no leadership because of its disk.
    pub(in crate::cluster) slow_disk: bool,
    /// Its replicas of which a block cannot be read or is damaged.
    pub(in crate::cluster) unreadable: Vec<ReplicaId>,
    pub(in crate::cluster) stats: ShardStats,
}

/// Which of a shard's replicas are members, and which of its members are there. It is right as long as neither
/// the records of ranges nor the shard's replicas change.
pub(in crate::cluster) struct Membership {
    /// [`KnownShards::records`] when it was found.
    pub(in crate::cluster) records: u64,
    /// Members that the shard does not have.
    pub(super) absent: Vec<(RangeId, ReplicaId)>,
    /// The ranges of replicas that are no members, also because the manager does not know the range, that are
    /// frozen, or that know no majority: these replicas may have to go.
    pub(super) doubtful: Vec<RangeId>,
}

/// What all shards have reported.
pub(in crate::cluster) struct KnownShards {
    pub(in crate::cluster) known: BTreeMap<Location, KnownShard>,
    /// How often records of ranges have changed.
    pub(in crate::cluster) records: u64,
}

impl KnownShards {
    pub(in crate::cluster) fn new() -> KnownShards {
        KnownShards {
            known: BTreeMap::new(),
            records: 0,
        }
    }
}

impl KnownShard {
    /// A shard that has reported nothing yet.
    pub(in crate::cluster) fn new(incarnation: u128, now: BootTime) -> KnownShard {
        KnownShard {
            incarnation,
            number: 0,
            heard: now,
            led: BTreeMap::new(),
            held: BTreeMap::new(),
            restless: BTreeSet::new(),
            membership: None,
            in_flight: 0,
            slow_disk: false,
            unreadable: Vec::new(),
            stats: ShardStats::default(),
        }
    }

    /// The ranges of which it has a replica.
    pub(in crate::cluster) fn ranges(&self) -> impl Iterator<Item = RangeId> {
        self.led.keys().chain(self.held.keys()).copied()
    }

    /// Under how many data ids the rows of a replica lie, if the shard has it.
    pub(in crate::cluster) fn parts(&self, range: RangeId, replica: ReplicaId) -> Option<u16> {
        let led = self.led.get(&range).filter(|led| led.leader == replica);
        let held = self.held.get(&range).filter(|held| held.replica == replica);
        led.map(|led| led.parts).or(held.map(|held| held.parts))
    }

    /// Whether it has this replica.
    pub(in crate::cluster) fn has(&self, range: RangeId, replica: ReplicaId) -> bool {
        self.parts(range, replica).is_some()
    }

    /// Takes what a report tells of its replicas; gives the ranges that it leads no more.
    pub(in crate::cluster) fn take(
        &mut self,
        report: &Report,
        led: &[Rc<LedRange>],
    ) -> Vec<RangeId> {
        let mut left = Vec::new();
        if report.since.is_none() {
            left.extend(std::mem::take(&mut self.led).into_keys());
            self.held.clear();
            self.membership = None;
        }
        for led in led {
            let range = led.descriptor.range;
            self.held.remove(&range);
            let before = self.led.insert(range, led.clone());
            if before.is_none_or(|before| before.leader != led.leader) {
                self.membership = None;
            }
        }
        for range in &report.gone {
            self.held.remove(range);
            left.extend(self.led.remove(range).map(|_| *range));
            self.membership = None;
        }
        for held in &report.held {
            left.extend(self.led.remove(&held.range).map(|_| held.range));
            self.held.insert(held.range, held.clone());
            self.membership = None;
        }
        left.retain(|range| !self.led.contains_key(range));
        for range in &left {
            self.restless.remove(range);
        }
        left
    }
}
