//! What the shard that leads the system range knows of the cluster, and what it concludes.
//!
//! Made anew in each term from the rows of the system range; what shards report comes on top and is
//! kept in memory alone, but for new nodes, new epochs and settings, which are written down before
//! anybody relies on them ([`Manager::unsaved`]). No I/O here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::message::{Ask, LedRange, NodeState, NodeView, RangeView, Report, Told, View};
use super::placement::{self, Node, Range, Slot, Step};
use super::record::{self, NodeRecord, RangeRecord, Row, Setting};
use super::settings;
use crate::env::{Env, Now};
use crate::range::{Descriptor, ReplicaPlace};
use crate::types::{Location, NodeId, RangeId, ReplicaId, SYSTEM_RANGE};

/// A node that has said nothing for so long is silent.
const SILENT_AFTER: Duration = Duration::from_secs(3);
/// A leader's word counts for so long.
const REPORT_COUNTS: Duration = Duration::from_secs(3);
/// After an order a range is left alone for so long, unless it has done what it was told before.
const ORDER_TAKES: Duration = Duration::from_secs(6);
/// Silent nodes are dead after this, if no setting says otherwise.
const DEAD_AFTER: Duration = Duration::from_mins(5);
/// The node that makes a cluster has the id before this.
const FIRST_JOINED: u64 = 2;
/// Processes of one node that are remembered.
const PAST_LIVES: usize = 16;
/// Voters of a range, if no setting says otherwise.
const FACTOR: usize = 3;

struct KnownNode<E: Env> {
    record: NodeRecord,
    heard: Now<E>,
    saved: bool,
    /// Whether this manager has heard it itself.
    reported: bool,
    /// Processes that had this id before, the newest first.
    past: VecDeque<u128>,
}

struct KnownRange<E: Env> {
    record: RangeRecord,
    saved: bool,
    report: Option<(Now<E>, LedRange)>,
    ordered: Option<(Now<E>, Goal)>,
}

/// What a range was told to become.
enum Goal {
    /// All its members, and those of them that vote.
    Members(BTreeSet<ReplicaId>, BTreeSet<ReplicaId>),
    /// Its leader.
    Leader(ReplicaId),
}

impl Goal {
    fn is_reached(&self, led: &LedRange) -> bool {
        match self {
            Goal::Members(all, voters) => {
                let replicas = led.descriptor.replicas.iter();
                !led.changing
                    && !led.is_joint
                    && replicas.map(|place| place.replica).eq(all.iter().copied())
                    && led.voters.iter().copied().collect::<BTreeSet<_>>() == *voters
            }
            Goal::Leader(leader) => led.leader == *leader,
        }
    }
}

/// See the module.
pub struct Manager<E: Env> {
    /// The term of the system range in which it was made.
    pub term: u64,
    here: Location,
    nodes: BTreeMap<NodeId, KnownNode<E>>,
    ranges: BTreeMap<RangeId, KnownRange<E>>,
    settings: Vec<Setting>,
    /// Which node was given its id for which token.
    tokens: BTreeMap<u128, NodeId>,
    /// Ids whose rows are being made durable, by token: a node may ask at several addresses at once.
    offered: BTreeMap<u128, u64>,
    /// The first ids that were never given.
    next_node: u64,
    next_replica: u64,
    /// What shards are told, as of the last [`Manager::refresh`].
    view: View,
}

impl<E: Env> Manager<E> {
    /// A manager that knows the rows of the system range, and on which nodes that range is placed:
    /// those that have not reported yet may have no rows. Nodes count as just heard of.
    pub fn new(
        term: u64,
        here: Location,
        rows: &[Row],
        placed: impl Iterator<Item = NodeId>,
        now: Now<E>,
    ) -> Manager<E> {
        let mut manager = Manager {
            term,
            here,
            nodes: BTreeMap::new(),
            ranges: BTreeMap::new(),
            settings: Vec::new(),
            tokens: BTreeMap::new(),
            offered: BTreeMap::new(),
            next_node: FIRST_JOINED,
            next_replica: record::FIRST_NEW_REPLICA,
            view: View {
                version: term << 32,
                ..View::default()
            },
        };
        for (key, value) in rows {
            manager.learn(key, value, now);
        }
        let last = placed.map(|node| node.0).max().unwrap_or(0);
        manager.next_node = manager.next_node.max(last + 1);
        manager.refresh(now);
        manager
    }

    fn learn(&mut self, key: &[u8], value: &[u8], now: Now<E>) {
        let is = |kind: &str| key.starts_with(kind.as_bytes());
        if is(record::NODE)
            && let Some(record) = record::decode::<NodeRecord>(value)
        {
            let known = KnownNode {
                heard: now,
                saved: true,
                reported: false,
                past: VecDeque::new(),
                record,
            };
            self.nodes.insert(known.record.id, known);
        } else if is(record::RANGE)
            && let Some(record) = record::decode::<RangeRecord>(value)
        {
            let known = KnownRange {
                saved: true,
                report: None,
                ordered: None,
                record,
            };
            self.ranges.insert(known.record.descriptor.range, known);
        } else if is(record::SETTING)
            && let Some(setting) = record::decode::<Setting>(value)
        {
            self.settings.push(setting);
        } else if let Some(token) = record::token_of(key)
            && let Some(node) = record::decode::<u64>(value)
        {
            self.tokens.insert(token, NodeId(node));
        } else if let Some(next) = record::decode::<u64>(value) {
            match key {
                _ if key == record::NEXT_NODE.as_bytes() => self.next_node = next,
                _ if key == record::NEXT_REPLICA.as_bytes() => self.next_replica = next,
                _ => {}
            }
        }
    }

    /// The id of the node that asks with this token, and the rows that must be durable before it
    /// is told.
    pub fn give_node_id(&mut self, token: u128) -> (NodeId, Vec<Row>) {
        if let Some(node) = self.tokens.get(&token) {
            return (*node, Vec::new());
        }
        let id = self.offered.get(&token).copied().unwrap_or_else(|| {
            let id = self.next_node.max(self.last_node() + 1);
            self.next_node = id + 1;
            self.offered.insert(token, id);
            id
        });
        let rows = vec![
            (record::NEXT_NODE.into(), record::encode(&self.next_node)),
            (record::token_key(token), record::encode(&id)),
        ];
        (NodeId(id), rows)
    }

    /// A token's row is durable.
    pub fn gave_node_id(&mut self, token: u128, node: NodeId) {
        self.offered.remove(&token);
        self.tokens.insert(token, node);
    }

    /// Gives each new slot of a step an id; the row must be durable before they are used.
    pub fn place(&mut self, slots: &[Slot]) -> Vec<ReplicaPlace> {
        let place = |slot: &Slot| match slot {
            Slot::Here(place) => *place,
            Slot::New(location) => {
                let replica = ReplicaId(self.next_replica);
                self.next_replica += 1;
                ReplicaPlace {
                    replica,
                    location: *location,
                }
            }
        };
        slots.iter().map(place).collect()
    }

    /// The row that keeps ids of replicas from being given again.
    pub fn replica_row(&self) -> Row {
        let next = record::encode(&self.next_replica);
        (record::NEXT_REPLICA.into(), next)
    }

    /// The value of a setting, if it was ever set.
    fn setting(&self, name: &str) -> Option<&str> {
        let mut newest = self.settings.iter().rev();
        let found = newest.find(|setting| setting.name == name)?;
        Some(&found.value)
    }

    fn factor(&self) -> usize {
        let factor = self.setting("replication-factor");
        factor.and_then(|text| text.parse().ok()).unwrap_or(FACTOR)
    }

    fn dead_after(&self) -> Duration {
        let set = self.setting("dead-after").and_then(settings::parse_time);
        set.unwrap_or(DEAD_AFTER)
    }

    /// All settings ever set, oldest first.
    pub fn history(&self) -> &[Setting] {
        &self.settings
    }

    /// The row of a new setting.
    ///
    /// # Errors
    /// There is no such setting, or it cannot be that.
    pub fn new_setting(&self, name: &str, value: &str, at_ms: u64) -> Result<Setting, String> {
        settings::check(name, value)?;
        Ok(Setting {
            version: self.settings.last().map_or(0, |last| last.version) + 1,
            name: name.to_owned(),
            value: value.to_owned(),
            at_ms,
        })
    }

    /// A setting is durable.
    pub fn set(&mut self, setting: Setting) {
        self.settings.push(setting);
    }

    /// The highest node id that was ever seen.
    pub fn last_node(&self) -> u64 {
        let ranges = self.ranges.values();
        let replicas = ranges.flat_map(|range| &range.record.descriptor.replicas);
        let placed = replicas.map(|place| place.location.node.0).max();
        let named = self.nodes.keys().map(|id| id.0).max();
        placed.max(named).unwrap_or(0)
    }

    /// Takes a shard's report.
    pub fn take(&mut self, report: Report, now: Now<E>) -> Told {
        let superseded = self.take_node(report.node, now);
        if superseded {
            return Told::Synced {
                view: None,
                remove: Vec::new(),
                superseded,
            };
        }
        for led in report.led {
            self.take_range(led, now);
        }
        let held = report.held.iter().filter(|held| {
            self.ranges.get(&held.range).is_some_and(|known| {
                let descriptor = &known.record.descriptor;
                let listed = descriptor.location(held.replica).is_some();
                // In the middle of a change one may just be on its way in.
                let left_over = (held.is_empty || held.left) && self.is_quiet(known, now);
                !listed && (descriptor.epoch.conf > held.conf || left_over)
            })
        });
        Told::Synced {
            remove: held.map(|held| (held.range, held.replica)).collect(),
            view: (report.known != self.view.version).then(|| self.view.clone()),
            superseded,
        }
    }

    /// Takes what a node says of itself; `true`: another process has its id by now. Of two processes
    /// the one stays whose folder was started more often, since a word of an earlier one may come late;
    /// of two copies of a folder the one that appeared later. Clocks are not asked.
    fn take_node(&mut self, record: NodeRecord, now: Now<E>) -> bool {
        let Some(known) = self.nodes.get_mut(&record.id) else {
            let known = KnownNode {
                heard: now,
                saved: false,
                reported: true,
                past: VecDeque::new(),
                record,
            };
            self.nodes.insert(known.record.id, known);
            return false;
        };
        let is_earlier = known.reported && record.starts() < known.record.starts();
        if is_earlier || known.past.contains(&record.life) {
            return true;
        }
        known.heard = now;
        known.reported = true;
        if known.record.life != record.life {
            known.past.truncate(PAST_LIVES - 1);
            known.past.push_front(known.record.life);
        }
        if known.record != record {
            known.record = record;
            known.saved = false;
        }
        false
    }

    fn take_range(&mut self, led: LedRange, now: Now<E>) {
        let record = || RangeRecord {
            descriptor: led.descriptor.clone(),
            voters: led.voters.clone(),
        };
        let known = self.ranges.entry(led.descriptor.range);
        let known = known.or_insert_with(|| KnownRange {
            record: record(),
            saved: false,
            report: None,
            ordered: None,
        });
        let newest = known.report.as_ref().map_or(0, |(_, report)| report.term);
        let epoch = |of: &Descriptor| (of.epoch.version, of.epoch.conf);
        let RangeRecord { descriptor, voters } = &known.record;
        if led.term < newest || epoch(&led.descriptor) < epoch(descriptor) {
            return;
        }
        if *descriptor != led.descriptor || *voters != led.voters {
            known.record = record();
            known.saved = false;
        }
        if known
            .ordered
            .as_ref()
            .is_some_and(|(_, goal)| goal.is_reached(&led))
        {
            known.ordered = None;
        }
        known.report = Some((now, led));
    }

    /// Rows that are to be written down, and what to call [`Manager::saved`] with then.
    pub fn unsaved(&self) -> Vec<Row> {
        let nodes = self.nodes.values().filter(|known| !known.saved);
        let nodes = nodes.map(|known| {
            let key = record::key(record::NODE, known.record.id.0);
            (key, record::encode(&known.record))
        });
        let ranges = self.ranges.values().filter(|known| !known.saved);
        let ranges = ranges.map(|known| {
            let key = record::key(record::RANGE, known.record.descriptor.range.0);
            (key, record::encode(&known.record))
        });
        nodes.chain(ranges).collect()
    }

    /// Rows are durable.
    pub fn saved(&mut self, rows: &[Row]) {
        let rows = rows.iter();
        let rows: BTreeMap<&[u8], &[u8]> = rows.map(|(key, value)| (&**key, &**value)).collect();
        let is_in = |key: Vec<u8>, value: Vec<u8>| rows.get(&*key) == Some(&&*value);
        for known in self.nodes.values_mut().filter(|known| !known.saved) {
            let key = record::key(record::NODE, known.record.id.0);
            known.saved = is_in(key, record::encode(&known.record));
        }
        for known in self.ranges.values_mut().filter(|known| !known.saved) {
            let key = record::key(record::RANGE, known.record.descriptor.range.0);
            known.saved = is_in(key, record::encode(&known.record));
        }
    }

    fn node_state(&self, node: &KnownNode<E>, now: Now<E>) -> NodeState {
        if now < node.heard + SILENT_AFTER {
            return NodeState::Alive;
        }
        // A node that lost its folder comes back as a new one, at the same address.
        let replaced = self.nodes.values().any(|other| {
            other.record.address == node.record.address
                && other.record.id > node.record.id
                && now < other.heard + SILENT_AFTER
        });
        if replaced || now >= node.heard + self.dead_after() {
            NodeState::Dead
        } else {
            NodeState::Silent
        }
    }

    /// What the leader of a range said lately.
    fn fresh<'a>(&self, known: &'a KnownRange<E>, now: Now<E>) -> Option<&'a LedRange> {
        let (at, report) = known.report.as_ref()?;
        (now < *at + REPORT_COUNTS).then_some(report)
    }

    /// Whether no change of a range's members is under way, nor was one a while ago.
    fn is_quiet(&self, known: &KnownRange<E>, now: Now<E>) -> bool {
        let ordered = known.ordered.as_ref();
        ordered.is_none_or(|(at, _)| now >= *at + ORDER_TAKES)
            && self
                .fresh(known, now)
                .is_some_and(|report| !report.changing)
    }

    /// Everything, as of now.
    pub fn view(&self, now: Now<E>) -> View {
        let nodes = self.nodes.values().map(|known| NodeView {
            record: known.record.clone(),
            state: self.node_state(known, now),
        });
        let nodes: Vec<NodeView> = nodes.collect();
        let alive = |node: NodeId| {
            let mut nodes = nodes.iter();
            nodes.any(|view| view.record.id == node && view.state == NodeState::Alive)
        };
        let usable = nodes.iter().filter(|view| view.state != NodeState::Dead);
        let (wanted, _) = placement::wanted(usable.count(), self.factor());
        let ranges = self.ranges.values().map(|known| {
            let descriptor = known.record.descriptor.clone();
            let report = self.fresh(known, now);
            let live = known.record.voters.iter().filter(|voter| {
                let place = descriptor.location(**voter);
                place.is_some_and(|place| alive(place.node))
            });
            let wanted = wanted.max(known.record.voters.len());
            RangeView {
                under_replicated: live.count() < wanted,
                unavailable: report.is_none_or(|report| !report.has_quorum),
                leader: report.and_then(|report| descriptor.location(report.leader)),
                term: report.map_or(0, |report| report.term),
                applied: report.map_or(0, |report| report.applied),
                lag: report.map_or_else(Vec::new, |report| report.lag.clone()),
                voters: known.record.voters.clone(),
                descriptor,
            }
        });
        let ranges: Vec<RangeView> = ranges.collect();
        let system = ranges.iter().find(|r| r.descriptor.range == SYSTEM_RANGE);
        let system = system.map_or_else(Vec::new, |range| range.descriptor.locations().collect());
        let mut settings: BTreeMap<&str, &Setting> = BTreeMap::new();
        settings.extend(self.settings.iter().map(|s| (s.name.as_str(), s)));
        View {
            version: self.view.version,
            leader: self.here,
            system,
            nodes,
            ranges,
            settings: settings.into_values().cloned().collect(),
        }
    }

    /// Has shards told what has changed.
    pub fn refresh(&mut self, now: Now<E>) {
        let mut view = self.view(now);
        // What changes all the time is told to who asks.
        for range in &mut view.ranges {
            range.applied = 0;
            range.lag.clear();
        }
        if view != self.view {
            view.version += 1;
            self.view = view;
        }
    }

    /// The next steps.
    pub fn plan(&self, now: Now<E>) -> Vec<Step> {
        if self.setting("balance") == Some("off") {
            return Vec::new();
        }
        let nodes = self.nodes.values().map(|known| {
            let state = self.node_state(known, now);
            let node = Node {
                id: known.record.id,
                shards: known.record.shards,
                alive: state == NodeState::Alive,
            };
            (node, state != NodeState::Dead)
        });
        let nodes: Vec<Node> = nodes
            .filter(|(_, usable)| *usable)
            .map(|(n, _)| n)
            .collect();
        let ranges = self.ranges.values().map(|known| self.range(known, now));
        let ranges: Vec<Range> = ranges.collect();
        placement::plan(&nodes, &ranges, self.factor())
    }

    fn range(&self, known: &KnownRange<E>, now: Now<E>) -> Range {
        let report = self.fresh(known, now);
        let descriptor = &known.record.descriptor;
        let votes = |place: &&ReplicaPlace| known.record.voters.contains(&place.replica);
        let ordered = known.ordered.as_ref();
        let ordered = ordered.is_some_and(|(at, _)| now < *at + ORDER_TAKES);
        let busy = |report: &LedRange| report.changing || !report.has_quorum;
        Range {
            id: descriptor.range,
            voters: descriptor.replicas.iter().filter(votes).copied().collect(),
            learners: descriptor
                .replicas
                .iter()
                .filter(|place| !votes(place))
                .copied()
                .collect(),
            leader: report.map(|report| report.leader),
            is_joint: report.is_some_and(|report| report.is_joint),
            busy: ordered || report.is_none_or(busy),
        }
    }

    /// A range is told to do something; it is left alone until that is done, or for a while.
    pub fn order(&mut self, ask: &Ask, now: Now<E>) {
        let ids = |places: &[ReplicaPlace]| places.iter().map(|place| place.replica).collect();
        let (range, goal) = match ask {
            Ask::Change {
                range,
                voters,
                learners,
            } => {
                let (mut all, voters): (BTreeSet<_>, BTreeSet<_>) = (ids(learners), ids(voters));
                all.extend(&voters);
                (range, Goal::Members(all, voters))
            }
            Ask::HandOver { range, to } => (range, Goal::Leader(*to)),
            _ => return,
        };
        if let Some(known) = self.ranges.get_mut(range) {
            known.ordered = Some((now, goal));
        }
    }

    /// An order to a range was refused.
    pub fn refused(&mut self, range: RangeId) {
        if let Some(known) = self.ranges.get_mut(&range) {
            known.ordered = None;
        }
    }

    /// Where a range is led, and its members, for an order of a person.
    ///
    /// # Errors
    /// It is unknown, or cannot take an order now.
    pub fn orderable(&self, range: RangeId, now: Now<E>) -> Result<(Location, Range), String> {
        let known = self.ranges.get(&range);
        let known = known.ok_or_else(|| format!("there is no range {range}"))?;
        let found = self.range(known, now);
        let leader = found
            .leader
            .and_then(|id| known.record.descriptor.location(id));
        match leader {
            None => Err(format!("range {range} has no leader now")),
            Some(_) if found.busy => {
                Err(format!("a change of range {range} is under way; try again"))
            }
            Some(leader) => Ok((leader, found)),
        }
    }

    /// Where a range is led.
    pub fn leader_of(&self, range: RangeId, now: Now<E>) -> Option<Location> {
        let known = self.ranges.get(&range)?;
        let report = self.fresh(known, now)?;
        known.record.descriptor.location(report.leader)
    }

    /// Whether a node may be given replicas and leaders.
    ///
    /// # Errors
    /// It may not, and why.
    pub fn check_node(&self, node: NodeId, now: Now<E>) -> Result<&NodeRecord, String> {
        let known = self.nodes.get(&node);
        let known = known.ok_or_else(|| format!("there is no node {node}"))?;
        match self.node_state(known, now) {
            NodeState::Alive => Ok(&known.record),
            _ => Err(format!("node {node} does not answer")),
        }
    }
}

/// The voter of a range on a node.
pub fn voter_on(range: &Range, node: NodeId) -> Option<ReplicaId> {
    let mut voters = range.voters.iter();
    let found = voters.find(|place| place.location.node == node)?;
    Some(found.replica)
}
