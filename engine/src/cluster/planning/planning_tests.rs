//! Balance over a made-up cluster: shards report loads as real ones do, orders take a while, and time passes.
//! No cluster runs.

use super::*;
use crate::boot_time::BootTime;
use crate::boot_time::test_clock;
use crate::cluster::message::{
    ClusterRequest, DecisionKind, Follower, HeldReplica, HighestIds, LedRange, Outcome, RangeStats,
    Report, ShardStats,
};
use crate::cluster::placement::load_balance::{LEADS_MAX, SMALL_MOVES_MAX};
use crate::cluster::record::{NodeRecord, Setting};
use crate::cluster::test_reports::Reporters;
use crate::range::Descriptor;
use crate::types::{Epoch, ShardId};

const ROUND: Duration = Duration::from_millis(500);
/// How long a leadership transfer and a move take.
const TRANSFER: Duration = Duration::from_millis(500);
const MOVE: Duration = Duration::from_secs(4);
/// What the thread of a shard uses besides, in thousandths of a core.
const IDLE_CPU: f64 = 20.0;

fn at(node: u64, shard: u16) -> Location {
    Location {
        node: NodeId(node),
        shard: ShardId(shard),
    }
}

/// What is being done to a range, and when it ends.
enum Doing {
    Lead(ReplicaId),
    Members(Vec<ReplicaPlace>),
}

struct ModelRange {
    replicas: Vec<ReplicaPlace>,
    leader: ReplicaId,
    conf: u32,
    /// CPU time in thousandths of a core: what it is, and what its leader has measured.
    load: f64,
    measured: f64,
    doing: Option<(BootTime, Doing)>,
    bytes: u64,
    /// A change of it never ends.
    is_stuck: bool,
    /// It refuses all orders.
    refuses: bool,
}

impl ModelRange {
    fn led_at(&self) -> Location {
        let mut replicas = self.replicas.iter();
        let leader = replicas.find(|place| place.replica == self.leader);
        leader.expect("its leader is a member").location
    }
}

/// An order, as it was given.
struct Given {
    at: BootTime,
    range: u64,
    is_move: bool,
    is_cheap: bool,
}

struct Model {
    manager: Manager,
    reporters: Reporters,
    now: BootTime,
    nodes: u64,
    shards: u16,
    ranges: BTreeMap<u64, ModelRange>,
    measured: BTreeMap<Location, f64>,
    move_takes: Duration,
    /// How many bytes new ranges have.
    bytes: u64,
    given: Vec<Given>,
}

impl Model {
    fn new(nodes: u64, shards: u16) -> Model {
        let now = test_clock::now();
        let manager = Manager::new(1, at(1, 0), &[], std::iter::empty(), now);
        Model {
            manager,
            reporters: Reporters::default(),
            now,
            nodes,
            shards,
            ranges: BTreeMap::new(),
            measured: BTreeMap::new(),
            move_takes: MOVE,
            bytes: 0,
            given: Vec::new(),
        }
    }

    fn set(&mut self, name: &str, value: &str) {
        let setting = self.manager.new_setting(name, value, 0);
        let setting: Setting = setting.expect("it may be so");
        self.manager.set(setting);
    }

    /// A range on these shards, led by the first, with so much load.
    fn range(&mut self, places: &[(u64, u16)], load: f64) -> u64 {
        let id = 2 + self.ranges.len() as u64;
        let replicas = places.iter().zip(0..).map(|((node, shard), index)| {
            let replica = ReplicaId(id * 10 + index);
            let location = at(*node, *shard);
            ReplicaPlace { replica, location }
        });
        let replicas: Vec<ReplicaPlace> = replicas.collect();
        let range = ModelRange {
            leader: replicas[0].replica,
            replicas,
            conf: 1,
            load,
            measured: load,
            doing: None,
            bytes: self.bytes,
            is_stuck: false,
            refuses: false,
        };
        self.ranges.insert(id, range);
        id
    }

    fn all_shards(&self) -> Vec<Location> {
        let nodes = 1..=self.nodes;
        nodes
            .flat_map(|node| (0..self.shards).map(move |shard| at(node, shard)))
            .collect()
    }

    /// What a shard uses.
    fn cpu(&self, shard: Location) -> f64 {
        let led = self.ranges.values().filter(|range| range.led_at() == shard);
        IDLE_CPU + led.map(|range| range.load).sum::<f64>()
    }

    fn leaders(&self, node: u64) -> usize {
        let ranges = self.ranges.values();
        ranges
            .filter(|range| range.led_at().node == NodeId(node))
            .count()
    }

    fn replicas(&self, shard: Location) -> usize {
        let all = self.ranges.values().flat_map(|range| &range.replicas);
        all.filter(|place| place.location == shard).count()
    }

    fn led(&self, id: u64) -> LedRange {
        let range = &self.ranges[&id];
        let followers = range.replicas.iter();
        let followers = followers.filter(|place| place.replica != range.leader);
        let follower = |place: &ReplicaPlace| Follower {
            replica: place.replica,
            matched: Some(9),
            lag: 0,
            stalls: false,
            answers: true,
            lost: false,
            takes_snapshot: false,
        };
        let key = |id: u64| format!("{id:05}").into_bytes();
        LedRange {
            descriptor: Descriptor {
                range: RangeId(id),
                epoch: Epoch {
                    version: 1,
                    conf: range.conf,
                },
                keyspace: Keyspace::User,
                keys: KeyRange {
                    start: if id == 2 { Vec::new() } else { key(id) },
                    end: self.ranges.contains_key(&(id + 1)).then(|| key(id + 1)),
                },
                replicas: range.replicas.clone(),
            },
            voters: range.replicas.iter().map(|place| place.replica).collect(),
            changing: range.is_stuck || matches!(range.doing, Some((_, Doing::Members(_)))),
            phase: crate::cluster::BoundsPhase::None,
            is_joint: false,
            has_quorum: true,
            leader: range.leader,
            term: 3,
            applied: 9,
            followers: followers.map(follower).collect(),
            stats: RangeStats {
                cpu_millis_per_second: range.measured.round() as u32,
                bytes: range.bytes,
                ..RangeStats::default()
            },
            parts: 1,
        }
    }

    fn report(&mut self, from: Location) {
        let of_shard = |range: &ModelRange| {
            let mut replicas = range.replicas.iter();
            replicas.find(|place| place.location == from).copied()
        };
        let (mut led, mut held) = (Vec::new(), Vec::new());
        for (id, range) in &self.ranges {
            match of_shard(range) {
                Some(place) if place.replica == range.leader => led.push(self.led(*id)),
                Some(place) => held.push(HeldReplica {
                    range: RangeId(*id),
                    replica: place.replica,
                    conf: range.conf,
                    left: false,
                    is_empty: false,
                    bounds: None,
                    parts: 1,
                }),
                None => {}
            }
        }
        let report = Report {
            from,
            node: NodeRecord {
                id: from.node,
                address: format!("node-{}", from.node),
                shards: self.shards,
                ..NodeRecord::default()
            },
            known: 0,
            number: 1,
            since: None,
            gone: Vec::new(),
            led,
            held,
            highest: HighestIds::default(),
            peers: Vec::new(),
            in_flight: 0,
            slow_disk: false,
            unreadable: Vec::new(),
            stats: ShardStats {
                cpu: self.measured[&from].round() as u32,
                ..ShardStats::default()
            },
        };
        let (manager, now) = (&mut self.manager, self.now);
        self.reporters.send(manager, &report, true, now);
    }

    fn end_what_is_done(&mut self) {
        for range in self.ranges.values_mut() {
            if range.is_stuck || range.doing.as_ref().is_none_or(|(end, _)| self.now < *end) {
                continue;
            }
            match range.doing.take() {
                Some((_, Doing::Lead(to))) => {
                    range.leader = to;
                    range.measured = 0.0;
                }
                Some((_, Doing::Members(replicas))) => {
                    let stays = |id| replicas.iter().any(|place| place.replica == id);
                    if !stays(range.leader) {
                        // Another one that was there already leads meanwhile.
                        let old = range.replicas.iter().map(|place| place.replica);
                        let other = old.filter(|id| stays(*id)).min();
                        let new = replicas.iter().map(|place| place.replica).max();
                        range.leader = other.or(new).expect("there is one");
                        range.measured = 0.0;
                    }
                    range.replicas = replicas;
                    range.conf += 1;
                }
                None => {}
            }
        }
    }

    /// Measures over ten seconds, as shards do.
    fn measure(&mut self) {
        let kept = (-ROUND.as_secs_f64() / 10.0).exp();
        for shard in self.all_shards() {
            let cpu = self.cpu(shard);
            let measured = self.measured.entry(shard).or_insert(cpu);
            *measured = cpu + (*measured - cpu) * kept;
        }
        for range in self.ranges.values_mut() {
            range.measured = range.load + (range.measured - range.load) * kept;
        }
    }

    fn round(&mut self) {
        self.now += ROUND;
        self.end_what_is_done();
        self.measure();
        for shard in self.all_shards() {
            self.report(shard);
        }
        self.order();
    }

    /// Has the manager give its next orders.
    fn order(&mut self) {
        self.manager.observe(self.now);
        for Planned { step, why } in self.manager.plan(self.now) {
            let (range, is_move) = (step.range().0, matches!(step, Step::Change { .. }));
            let (request, doing, takes) = match step {
                Step::Lead { range, to } => {
                    let request = ClusterRequest::TransferLeadership { range, to };
                    (request, Doing::Lead(to), TRANSFER)
                }
                Step::Change {
                    range,
                    voters,
                    learners,
                } => {
                    assert_eq!(learners, [], "no range has learners here");
                    let voters = self.manager.place(&voters);
                    let mut replicas = voters.clone();
                    replicas.sort_by_key(|place| place.replica);
                    let request = ClusterRequest::Change {
                        range,
                        voters,
                        learners: Vec::new(),
                    };
                    (request, Doing::Members(replicas), self.move_takes)
                }
            };
            let is_new = why.origin != Origin::Continued;
            let is_cheap = why.is_cheap || why.origin != Origin::Balance;
            self.manager.order(&request, self.now);
            self.manager.note(&request, why, self.now);
            let model = self.ranges.get_mut(&range).expect("it is known");
            if model.refuses {
                let range = RangeId(range);
                self.manager.not_followed(range, "it is busy", self.now);
            } else {
                assert!(model.doing.is_none(), "range {range} has an order already");
                model.doing = Some((self.now + takes, doing));
            }
            if is_new {
                let at = self.now;
                self.given.push(Given {
                    at,
                    range,
                    is_move,
                    is_cheap,
                });
            }
        }
        self.check_limits();
    }

    fn check_limits(&self) {
        let recent = self.given.iter().rev();
        let recent = recent.take_while(|given| self.now < given.at + ORDERS_PER);
        let costly = recent.filter(|given| !given.is_cheap);
        assert!(costly.count() <= ORDERS_MAX, "a storm of orders");
        let mut leads: BTreeMap<Location, usize> = BTreeMap::new();
        for range in self.ranges.values() {
            if let Some((_, Doing::Lead(to))) = &range.doing {
                let place = range.replicas.iter().find(|place| place.replica == *to);
                let to = place.expect("it is a member").location;
                *leads.entry(to).or_default() += 1;
            }
        }
        let most = leads.values().max().copied().unwrap_or_default();
        assert!(most <= LEADS_MAX + ORDERS_MAX, "{leads:?}");
        let mut coming: BTreeMap<Location, [usize; 2]> = BTreeMap::new();
        for range in self.ranges.values() {
            let Some((_, Doing::Members(replicas))) = &range.doing else {
                continue;
            };
            // One that is completed is not held back.
            if range.replicas.len() < replicas.len() {
                continue;
            }
            let is_new = |place: &&ReplicaPlace| !range.replicas.contains(place);
            for place in replicas.iter().filter(is_new) {
                let of_size = usize::from(range.bytes > 0);
                coming.entry(place.location).or_default()[of_size] += 1;
            }
        }
        for [small, large] in coming.values() {
            assert!(*large <= self.manager.moves_max(), "{coming:?}");
            assert!(*small <= SMALL_MOVES_MAX, "{coming:?}");
        }
        for range in self.ranges.values() {
            let mut nodes: Vec<NodeId> = range.replicas.iter().map(|p| p.location.node).collect();
            nodes.sort();
            nodes.dedup();
            assert_eq!(nodes.len(), range.replicas.len(), "two on one node");
        }
    }

    fn pass(&mut self, seconds: u32) {
        for _ in 0..seconds * 2 {
            self.round();
        }
    }

    /// How many orders were given in this time.
    fn orders_in(&mut self, seconds: u32) -> usize {
        let before = self.given.len();
        self.pass(seconds);
        self.given.len() - before
    }

    fn outcomes(&self) -> Vec<(DecisionKind, Outcome)> {
        let last = self.manager.planning.decisions.last();
        let last = last.into_iter();
        last.map(|decision| (decision.kind, decision.outcome))
            .collect()
    }
}

#[test]
fn one_hot_range_does_not_wander() {
    // Wherever it is, that shard is the busiest one.
    let mut model = Model::new(3, 2);
    let hot = model.range(&[(1, 0), (2, 0), (3, 0)], 600.0);
    for _ in 0..5 {
        model.range(&[(2, 1), (1, 1), (3, 1)], 0.0);
    }
    model.pass(600);
    let moves = model.given.iter().filter(|given| given.range == hot);
    assert_eq!(moves.count(), 0, "it would cross the middle");
    // One that helps moves once, and then stays.
    let mut model = Model::new(3, 1);
    let hot = model.range(&[(1, 0), (2, 0), (3, 0)], 250.0);
    let hotter = model.range(&[(1, 0), (2, 0), (3, 0)], 400.0);
    model.range(&[(2, 0), (1, 0), (3, 0)], 10.0);
    model.pass(900);
    let moves = |range| model.given.iter().filter(move |given| given.range == range);
    assert_eq!((moves(hot).count(), moves(hotter).count()), (1, 0));
}

#[test]
fn a_shard_of_two_takes_half_of_the_load_and_no_more_while_moves_are_under_way() {
    for ranges in [8_u16, 16] {
        let mut model = Model::new(1, 2);
        model.move_takes = Duration::from_secs(15);
        for _ in 0..ranges {
            model.range(&[(1, 0)], 800.0 / f64::from(ranges));
        }
        model.pass(14);
        assert_eq!(model.given.len(), 0, "it may pass by itself");
        model.pass(240);
        let (busy, idle) = (model.cpu(at(1, 0)), model.cpu(at(1, 1)));
        assert!(idle / busy > 0.6 && idle <= busy, "{idle} of {busy}");
        assert!(model.given.len() <= ranges as usize / 2);
        assert_eq!(model.orders_in(1800), 0, "it is balanced");
        let outcomes = model.outcomes();
        let done = (DecisionKind::MoveReplica, Outcome::Done);
        assert!(outcomes.iter().all(|found| *found == done), "{outcomes:?}");
    }
}

#[test]
fn a_replica_that_moves_to_another_shard_of_its_node_leads_again() {
    let mut model = Model::new(3, 2);
    for node in 1..=3 {
        for _ in 0..4 {
            let others = (1..=3).filter(|other| *other != node);
            let places: Vec<(u64, u16)> =
                [node].into_iter().chain(others).map(|n| (n, 0)).collect();
            model.range(&places, 200.0);
        }
    }
    model.pass(300);
    for shard in model.all_shards() {
        let cpu = model.cpu(shard);
        assert!((300.0..=500.0).contains(&cpu), "{shard}: {cpu}");
    }
    for node in 1..=3 {
        assert_eq!(model.leaders(node), 4);
    }
    let outcomes = model.outcomes();
    assert_eq!(outcomes.len(), 6, "{outcomes:?}");
    assert!(
        outcomes
            .iter()
            .all(|(_, outcome)| *outcome == Outcome::Done)
    );
    assert_eq!(model.orders_in(1800), 0, "it is balanced");
}

#[test]
fn a_leadership_that_is_refused_after_a_move_is_asked_for_again() {
    let mut model = Model::new(3, 2);
    for _ in 0..2 {
        model.range(&[(1, 0), (2, 0), (3, 0)], 200.0);
    }
    for node in [2, 3] {
        for _ in 0..2 {
            model.range(&[(node, 0), (1, 0), (5 - node, 0)], 200.0);
        }
    }
    let moving = |model: &Model| {
        let mut ranges = model.ranges.iter();
        let found = ranges.find(|(_, range)| matches!(range.doing, Some((_, Doing::Members(_)))));
        found.map(|(id, range)| (*id, range.led_at().node))
    };
    while moving(&model).is_none() {
        model.round();
    }
    let (id, node) = moving(&model).expect("one moves");
    let refuse = |model: &mut Model, refuses| {
        model.ranges.get_mut(&id).expect("it is there").refuses = refuses;
    };
    refuse(&mut model, true);
    model.pass(20);
    assert_ne!(model.ranges[&id].led_at().node, node);
    refuse(&mut model, false);
    model.pass(5);
    assert_eq!(model.ranges[&id].led_at(), at(node.0, 1));
    let last = model.manager.planning.decisions.last();
    let mut of_range = last.iter().filter(|decision| decision.range == RangeId(id));
    let decision = of_range.next_back().map(|decision| &decision.outcome);
    assert_eq!(decision, Some(&Outcome::Done));
}

#[test]
fn leaderships_are_handed_over_before_replicas_move() {
    let mut model = Model::new(3, 1);
    for _ in 0..3 {
        model.range(&[(1, 0), (2, 0), (3, 0)], 200.0);
    }
    // Numbers are even: these carry nothing.
    for node in [2, 2, 2, 3, 3, 3] {
        model.range(&[(node, 0), (1, 0), (5 - node, 0)], 0.0);
    }
    model.pass(120);
    assert!(model.given.iter().all(|given| !given.is_move));
    for node in 1..=3 {
        assert_eq!(model.cpu(at(node, 0)), 200.0 + IDLE_CPU);
        assert_eq!(model.leaders(node), 3, "cold ones went back");
    }
    assert_eq!(model.orders_in(1800), 0, "it is balanced");
}

#[test]
fn load_that_changes_sides_gives_few_orders() {
    for nodes in [2, 3] {
        let mut model = Model::new(nodes, 2);
        let mut sides = [Vec::new(), Vec::new()];
        for number in 0..8 {
            let side = number % 2;
            let mut places: Vec<(u64, u16)> = (1..=nodes).map(|node| (node, side as u16)).collect();
            places.rotate_left(number / 2 % nodes as usize);
            sides[side].push(model.range(&places, 0.0));
        }
        model.pass(60);
        let before = model.given.len();
        for turn in 0..30 {
            for (side, ranges) in sides.iter().enumerate() {
                let load = if turn % 2 == side { 150.0 } else { 0.0 };
                for range in ranges {
                    model.ranges.get_mut(range).expect("it is there").load = load;
                }
            }
            model.pass(20);
        }
        let orders = model.given.len() - before;
        assert!(orders <= 6, "{orders} orders with {nodes} nodes");
    }
}

#[path = "../placement/count_balance_tests.rs"]
mod count_balance;

#[path = "steadiness_tests.rs"]
mod steadiness;

#[path = "room_tests.rs"]
mod room;
