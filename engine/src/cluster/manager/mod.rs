//! The cluster's manager: what the leader of the system range knows of the cluster.
//!
//! A new manager is made in each term, from the rows of the system range. What shards report comes on top of
//! that and stays in memory, except for new nodes, new epochs and settings: these are written down before
//! anything relies on them ([`Manager::unsaved`]). No I/O here. A manager lives on the thread of the shard
//! that leads the system range.
//!
//! This folder holds the knowledge: how reports are taken (`intake`), ids, health, bounds, and what is
//! remembered of orders and splits. What the manager does with it is in the folders beside this one:
//! `planning`, `split_merge`, `leaving` and `view`.

pub(in crate::cluster) mod bounds;
pub(in crate::cluster) mod decision_log;
pub(in crate::cluster) mod departure;
mod health;
pub(in crate::cluster) mod ids;
mod intake;
pub(in crate::cluster) mod known_shards;
pub mod planning_state;
mod published_view;
pub(in crate::cluster) mod split_watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::cluster::message::{ClusterRequest, HighestIds, LedRange, NodeHealth, ReplicaFault};
use crate::cluster::placement::load_mean::RangeMean;
use crate::cluster::placement::loads::Cpu;
use crate::cluster::placement::moves::Moves;
use crate::cluster::placement::{Range, Slot};
use crate::cluster::record::{
    self, HeldRecord, MembershipRecord, MembershipStatus, NodeRecord, RangeRecord, Row, Setting,
};
use crate::range::ReplicaPlace;
use crate::types::{Location, NodeId, RangeId, ReplicaId};
use bounds::{Bounds, Rest};
use departure::Departure;
use health::Health;
use ids::Ids;
use known_shards::KnownShards;
use planning_state::Planning;
use published_view::Published;
use split_watch::SplitWatch;

/// A node that has not reported for this long is silent.
pub(in crate::cluster) const SILENT_AFTER: Duration = Duration::from_secs(3);
/// How long a leader's report of its range counts.
const REPORT_TTL: Duration = Duration::from_secs(3);
/// How long a range gets no new order after an order, unless it has carried that out before.
pub(in crate::cluster) const ORDER_COOLDOWN: Duration = Duration::from_secs(6);
/// How long a node must be silent to be dead, unless a setting says otherwise.
const DEAD_AFTER: Duration = Duration::from_mins(5);
/// How many earlier processes of each node are remembered.
const PAST_LIVES: usize = 16;
/// How many voters a range should have, unless a setting says otherwise.
const FACTOR: usize = 3;

pub(in crate::cluster) struct KnownNode {
    pub(in crate::cluster) record: NodeRecord,
    pub(in crate::cluster) heard: BootTime,
    pub(in crate::cluster) saved: bool,
    /// Earlier processes with this node id, the newest first.
    past: VecDeque<u128>,
    /// How its leaving goes on, while it leaves.
    pub(in crate::cluster) departure: Option<Departure>,
}

pub(in crate::cluster) struct KnownRange {
    pub(in crate::cluster) record: RangeRecord,
    pub(in crate::cluster) saved: bool,
    pub(in crate::cluster) report: Option<LeaderReport>,
    pub(in crate::cluster) ordered: Option<(BootTime, Goal)>,
    /// Since when it has these bounds and little load.
    pub(in crate::cluster) rest: Rest,
    pub(in crate::cluster) watch: SplitWatch,
    pub(in crate::cluster) load: RangeMean,
}

impl KnownRange {
    /// A range of which its record alone is known.
    pub(in crate::cluster) fn new(record: RangeRecord, saved: bool, now: BootTime) -> KnownRange {
        KnownRange {
            saved,
            report: None,
            ordered: None,
            rest: Rest::new(record.descriptor.epoch.version, now),
            watch: SplitWatch::default(),
            load: RangeMean::new(),
            record,
        }
    }

    /// What it takes at its leader.
    pub(in crate::cluster) fn cpu(&self, now: BootTime) -> Cpu {
        let (short, long) = self.load.loads(now);
        Cpu { short, long }
    }
}

/// What the leader of a range has told of it.
pub(in crate::cluster) struct LeaderReport {
    /// The shard that leads it by its last report; `None`: that shard has reported since that it does not.
    pub(in crate::cluster) from: Option<Location>,
    /// When the shard last told that it leads the range, if it does so no more; else when it told this.
    pub(in crate::cluster) at: BootTime,
    pub(in crate::cluster) led: Rc<LedRange>,
}

/// What a range was ordered to become.
pub(in crate::cluster) enum Goal {
    /// Its members.
    Members {
        voters: Vec<ReplicaPlace>,
        learners: Vec<ReplicaPlace>,
    },
    /// The replica that must lead.
    Leader(ReplicaId),
    /// Other bounds than with this version.
    Bounds(u32),
}

impl Goal {
    pub(in crate::cluster) fn is_reached(&self, led: &LedRange) -> bool {
        match self {
            Goal::Members { voters, learners } => {
                let ids = |place: &ReplicaPlace| place.replica;
                let all: BTreeSet<ReplicaId> = voters.iter().chain(learners).map(ids).collect();
                let voters: BTreeSet<ReplicaId> = voters.iter().map(ids).collect();
                let replicas = led.descriptor.replicas.iter();
                !led.changing
                    && !led.is_joint
                    && replicas.map(ids).eq(all.iter().copied())
                    && led.voters.iter().copied().collect::<BTreeSet<_>>() == voters
            }
            Goal::Leader(leader) => led.leader == *leader,
            Goal::Bounds(version) => led.descriptor.epoch.version > *version,
        }
    }
}

/// The manager's knowledge; see the module's chapter.
pub struct Manager {
    /// The term of the system range for which it was made.
    pub term: u64,
    pub(in crate::cluster) here: Location,
    pub(in crate::cluster) nodes: BTreeMap<NodeId, KnownNode>,
    pub(in crate::cluster) ranges: BTreeMap<RangeId, KnownRange>,
    pub(in crate::cluster) settings: Vec<Setting>,
    /// What operators have decided about nodes; others are active.
    pub(in crate::cluster) memberships: BTreeMap<NodeId, MembershipStatus>,
    /// Until when a change of a membership is being written down.
    pub(in crate::cluster) deciding: Option<BootTime>,
    /// What each shard has reported to this manager.
    pub(in crate::cluster) shards: KnownShards,
    /// Until when ranges must not be merged, in milliseconds since 1970, for those that are held.
    pub(in crate::cluster) held: BTreeMap<RangeId, u64>,
    pub(in crate::cluster) bounds: Bounds,
    pub(in crate::cluster) ids: Ids,
    /// The moves that operators have ordered.
    pub moves: Moves,
    /// The decisions, and what became of them.
    pub planning: Planning,
    pub(in crate::cluster) health: Health,
    /// The view that shards get, as of the last [`Manager::refresh`].
    pub(in crate::cluster) published: Published,
}

impl Manager {
    /// A manager with the rows of the system range. `placed` are the nodes that hold that range:
    /// those that have not reported yet may have no rows. All nodes count as just heard of.
    pub fn new(
        term: u64,
        here: Location,
        rows: &[Row],
        placed: impl Iterator<Item = NodeId>,
        now: BootTime,
    ) -> Manager {
        let mut manager = Manager {
            term,
            here,
            nodes: BTreeMap::new(),
            ranges: BTreeMap::new(),
            settings: Vec::new(),
            memberships: BTreeMap::new(),
            deciding: None,
            shards: KnownShards::new(),
            held: BTreeMap::new(),
            bounds: Bounds::new(),
            ids: Ids::new(),
            moves: Moves::new(),
            planning: Planning::new(term),
            health: Health::new(),
            published: Published::new(term),
        };
        for (key, value) in rows {
            manager.learn(key, value, now);
        }
        manager.cut_all();
        // Any id that is named somewhere was given, whether or not its own row is there.
        let ranges = manager
            .ranges
            .values()
            .map(|known| &known.record.descriptor);
        let mut seen = HighestIds::default();
        ranges.for_each(|descriptor| seen.see(descriptor));
        let held = manager.held.keys().copied().max().unwrap_or_default();
        seen.range = seen.range.max(held);
        let last = manager.nodes.keys().copied().chain(placed).max();
        seen.node = seen.node.max(last.unwrap_or_default());
        manager.ids.raise(seen);
        manager.refresh(now);
        manager
    }

    fn learn(&mut self, key: &[u8], value: &[u8], now: BootTime) {
        let is = |kind: &str| key.starts_with(kind.as_bytes());
        if let Some(record) = NodeRecord::of_row(key, value) {
            let known = KnownNode {
                heard: now,
                saved: true,
                past: VecDeque::new(),
                departure: None,
                record,
            };
            self.nodes.insert(known.record.id, known);
        } else if is(record::RANGE)
            && let Some(record) = RangeRecord::of_value(value)
        {
            let range = record.descriptor.range;
            self.ranges
                .insert(range, KnownRange::new(record, true, now));
        } else if is(record::SETTING)
            && let Some(setting) = record::decode::<Setting>(value)
        {
            self.settings.push(setting);
        } else if let Some(MembershipRecord { node, status }) = MembershipRecord::of_row(key, value)
        {
            self.memberships.insert(node, status);
        } else if let Some(record) = HeldRecord::of_row(key, value) {
            self.held(record);
        } else {
            self.ids.learn(key, value);
        }
    }

    /// See [`Ids::give_node`].
    pub fn give_node_id(&mut self, token: u128) -> (NodeId, Vec<Row>) {
        let nodes = &self.nodes;
        self.ids.give_node(token, |node| nodes.contains_key(&node))
    }

    /// See [`Ids::gave_node`].
    pub fn gave_node_id(&mut self, token: u128, node: NodeId) {
        self.ids.gave_node(token, node);
    }

    /// See [`Ids::place`].
    pub fn place(&mut self, slots: &[Slot]) -> Vec<ReplicaPlace> {
        self.ids.place(slots)
    }

    /// The value of a setting, if it was ever set.
    pub(in crate::cluster) fn setting(&self, name: &str) -> Option<&str> {
        let mut newest = self.settings.iter().rev();
        let found = newest.find(|setting| setting.name == name)?;
        Some(&found.value)
    }

    pub(in crate::cluster) fn factor(&self) -> usize {
        let factor = self.setting("replication-factor");
        factor.and_then(|text| text.parse().ok()).unwrap_or(FACTOR)
    }

    pub(in crate::cluster) fn dead_after(&self) -> Duration {
        let set = self.setting("dead-after");
        let set = set.and_then(|text| rangedb_duration::parse(text).ok());
        set.unwrap_or(DEAD_AFTER)
    }

    /// Notes that a shard did not take the replica that it was ordered to make.
    pub fn target_failed(&mut self, at: Location, now: BootTime) {
        self.health.target_failed(at, now);
    }

    /// The nodes that have reported lately, whether or not others reach them.
    pub fn heard_nodes(&self, now: BootTime) -> impl Iterator<Item = NodeId> {
        let nodes = self.nodes.values();
        let heard = nodes.filter(move |known| now < known.heard + SILENT_AFTER);
        heard.map(|known| known.record.id)
    }

    /// The rows that must be written; when they are durable, call [`Manager::saved`] with them.
    pub fn unsaved(&mut self, now: BootTime) -> Vec<Row> {
        self.follow_departures(now);
        let emptied = self.decide_emptied(now);
        let nodes = self.nodes.values().filter(|known| !known.saved);
        let nodes = nodes.map(|known| known.record.row());
        // The ranges of a split in one write, if they fit. If not, the right part first: whatever is
        // written then, no key is missed, and what is there twice is cut.
        let ranges = self.ranges.values().filter(|known| !known.saved);
        let mut ranges: Vec<&RangeRecord> = ranges.map(|known| &known.record).collect();
        ranges.sort_by(|one, other| other.descriptor.keys.start.cmp(&one.descriptor.keys.start));
        let ranges = ranges.into_iter().map(RangeRecord::row);
        // Last: a range must be written down before the one that it has taken over is deleted.
        nodes
            .chain(ranges)
            .chain(emptied)
            .chain(self.gone_rows())
            .collect()
    }

    /// Notes that rows are durable.
    pub fn saved(&mut self, rows: &[Row]) {
        for (key, value) in rows {
            if let Some(decided) = MembershipRecord::of_row(key, value) {
                self.decided(decided);
            }
        }
        self.deleted(rows);
        let rows = rows.iter();
        let rows: BTreeMap<&[u8], &[u8]> = rows.map(|(key, value)| (&**key, &**value)).collect();
        let is_in = |key: Vec<u8>, value: Vec<u8>| rows.get(&*key) == Some(&&*value);
        for known in self.nodes.values_mut().filter(|known| !known.saved) {
            let (key, value) = known.record.row();
            known.saved = is_in(key, value);
        }
        for known in self.ranges.values_mut().filter(|known| !known.saved) {
            let (key, value) = known.record.row();
            known.saved = is_in(key, value);
        }
    }

    /// The report of a range's leader, if there is a recent one.
    pub(in crate::cluster) fn fresh<'a>(
        &self,
        known: &'a KnownRange,
        now: BootTime,
    ) -> Option<&'a LedRange> {
        let report = known.report.as_ref()?;
        let from = report.from.and_then(|from| self.shards.known.get(&from));
        let at = from.map_or(report.at, |shard| shard.heard);
        (now < at + REPORT_TTL).then_some(&*report.led)
    }

    /// The size of each replica of a range in bytes, by its leader's last report. It is 0 while the leader, which
    /// may have started just now, has not measured it.
    pub(in crate::cluster) fn bytes(&self, known: &KnownRange, now: BootTime) -> u64 {
        self.fresh(known, now)
            .map_or(0, |report| report.stats.bytes)
    }

    /// Whether a range has an order that it has not carried out yet, as far as is known.
    pub(in crate::cluster) fn is_ordered(&self, known: &KnownRange, now: BootTime) -> bool {
        let ordered = known.ordered.as_ref();
        ordered.is_some_and(|(at, _)| now < *at + ORDER_COOLDOWN)
    }

    /// Whether no change of a range's members or bounds is under way, or was a short while ago.
    pub(in crate::cluster) fn is_quiet(&self, known: &KnownRange, now: BootTime) -> bool {
        let report = self.fresh(known, now);
        !self.is_ordered(known, now) && report.is_some_and(|report| !report.is_changing())
    }

    pub(in crate::cluster) fn range(&self, known: &KnownRange, now: BootTime) -> Range {
        let report = self.fresh(known, now);
        let descriptor = &known.record.descriptor;
        let votes = |place: &&ReplicaPlace| known.record.voters.contains(&place.replica);
        let busy = |report: &LedRange| report.is_changing() || !report.has_quorum;
        let given_up = self.given_up(known, now);
        Range {
            id: descriptor.range,
            voters: descriptor.replicas.iter().filter(votes).copied().collect(),
            learners: descriptor
                .replicas
                .iter()
                .filter(|place| !votes(place))
                .copied()
                .collect(),
            given_up: given_up.map(|(replica, _)| replica),
            not_on: given_up
                .filter(|(_, fault)| *fault == ReplicaFault::Behind)
                .and_then(|(replica, _)| descriptor.location(replica))
                .map(|at| at.node),
            leader: report.map(|report| report.leader),
            caught_up: report.map_or_else(Vec::new, |report| {
                let followers = report.followers.iter();
                let ready = followers.filter(|follower| follower.has_caught_up());
                ready.map(|follower| follower.replica).collect()
            }),
            bytes: self.bytes(known, now),
            is_joint: report.is_some_and(|report| report.is_joint),
            busy: self.is_ordered(known, now) || report.is_none_or(busy),
        }
    }

    /// The member of a range that must be replaced although its node is alive. Only one at a time,
    /// only while most voters are well, and never the leader. One that cannot read all its rows votes and
    /// appends, so it stands in no other's way. It goes by itself once it may; then it is missing.
    fn given_up(&self, known: &KnownRange, now: BootTime) -> Option<(ReplicaId, ReplicaFault)> {
        let RangeRecord {
            descriptor, voters, ..
        } = &known.record;
        let leader = self.fresh(known, now).map(|report| report.leader);
        let mut faults = self.faults(known, now);
        faults.retain(|(replica, fault)| {
            Some(*replica) != leader && *fault != ReplicaFault::Unreadable
        });
        let is_well = |voter: &&ReplicaId| {
            let place = descriptor.location(**voter);
            let node = place.and_then(|place| self.nodes.get(&place.node));
            faults.iter().all(|(replica, _)| replica != *voter)
                && node.is_some_and(|node| self.node_health(node, now) == NodeHealth::Alive)
        };
        let well = voters.iter().filter(is_well).count();
        let worst = faults
            .iter()
            .min_by_key(|(_, fault)| *fault == ReplicaFault::Behind);
        worst.copied().filter(|_| well * 2 > voters.len())
    }

    /// Notes an order to a range: it gets no other until it has carried this one out, or for a
    /// while.
    pub fn order(&mut self, request: &ClusterRequest, now: BootTime) {
        let (range, goal) = match request {
            ClusterRequest::Change {
                range,
                voters,
                learners,
            } => {
                let (voters, learners) = (voters.clone(), learners.clone());
                (range, Goal::Members { voters, learners })
            }
            ClusterRequest::TransferLeadership { range, to } => (range, Goal::Leader(*to)),
            ClusterRequest::Split { range, version, .. }
            | ClusterRequest::Merge { range, version, .. } => (range, Goal::Bounds(*version)),
            _ => return,
        };
        if let Some(known) = self.ranges.get_mut(range) {
            known.ordered = Some((now, goal));
            self.watch(*range);
        }
    }

    /// Notes that a range has refused its order.
    pub fn refused(&mut self, range: RangeId) {
        if let Some(known) = self.ranges.get_mut(&range) {
            known.ordered = None;
        }
    }

    /// The shard that leads a range, if known.
    pub fn leader_of(&self, range: RangeId, now: BootTime) -> Option<Location> {
        let known = self.ranges.get(&range)?;
        let report = self.fresh(known, now)?;
        known.record.descriptor.location(report.leader)
    }
}

#[cfg(test)]
#[path = "manager_tests.rs"]
mod tests;
