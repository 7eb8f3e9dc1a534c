//! Splits as the manager orders them, and what its view shows meanwhile. There are no shards: a [`Case`]
//! answers and reports in their place.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::boot_time::BootTime;
use crate::boot_time::test_clock;
use crate::cluster::manager::Manager;
use crate::cluster::message::{Follower, HeldReplica, HighestIds, LedRange, ReplicaFault, Report};
use crate::cluster::placement::{Slot, Step};
use crate::cluster::record::{self, MembershipRecord, MembershipStatus, NodeRecord};
use crate::cluster::test_reports::Reporters;
use crate::cluster::{RangeStats, RangeView, ShardStats, SplitReason, View};
use crate::range::ReplicaPlace;
use crate::types::{Epoch, NodeId, SYSTEM_RANGE, ShardId};

#[path = "merge_tests.rs"]
mod merges;

const REPORT: Duration = Duration::from_millis(500);
const USERS: RangeId = RangeId(2);

fn at(node: u64) -> Location {
    Location {
        node: NodeId(node),
        shard: ShardId(0),
    }
}

/// Three nodes with a shard each. Node 1 leads every range, unless the case says otherwise.
struct Case {
    manager: Manager,
    reporters: Reporters,
    now: BootTime,
    /// The ranges as they are.
    ranges: BTreeMap<RangeId, Descriptor>,
    /// Ranges that other nodes lead.
    led_by: BTreeMap<RangeId, u64>,
    /// Replicas that their shard does not have.
    missing: BTreeSet<ReplicaId>,
    /// Ranges that have a change of members under way.
    changing: BTreeSet<RangeId>,
    /// The bytes of ranges that are not empty.
    bytes: BTreeMap<RangeId, u64>,
    /// The CPU time of ranges that take some, in milliseconds a second.
    cpu_of_range: BTreeMap<RangeId, u32>,
    /// The CPU time of shards that use some, in thousandths of a core.
    cpu: BTreeMap<Location, u32>,
    /// How many shards each node has; replicas are on the first one.
    shards: u16,
    /// Replicas that lack many entries.
    lagging: BTreeSet<ReplicaId>,
    /// Every id that a split has named.
    used: BTreeSet<(bool, u64)>,
}

impl Case {
    fn new() -> Case {
        let now = test_clock::now();
        let replicas = |first: u64| {
            let place = |node| ReplicaPlace {
                replica: ReplicaId(first + node),
                location: at(node),
            };
            (1..=3).map(place).collect()
        };
        let range = |range, keyspace, first| Descriptor {
            range,
            epoch: Epoch {
                version: 1,
                conf: 1,
            },
            keyspace,
            keys: KeyRange::all(),
            replicas: replicas(first),
        };
        let ranges = [
            range(SYSTEM_RANGE, Keyspace::System, 0),
            range(USERS, Keyspace::User, 10),
        ];
        let mut case = Case {
            manager: Manager::new(1, at(1), &[], std::iter::empty(), now),
            reporters: Reporters::default(),
            now,
            ranges: ranges.map(|range| (range.range, range)).into(),
            led_by: BTreeMap::new(),
            missing: BTreeSet::new(),
            changing: BTreeSet::new(),
            bytes: BTreeMap::new(),
            cpu_of_range: BTreeMap::new(),
            cpu: BTreeMap::new(),
            shards: 1,
            lagging: BTreeSet::new(),
            used: BTreeSet::new(),
        };
        case.pass(5);
        case
    }

    fn leader(&self, range: RangeId) -> u64 {
        self.led_by.get(&range).copied().unwrap_or(1)
    }

    fn replica_on(descriptor: &Descriptor, node: u64) -> Option<ReplicaId> {
        let mut replicas = descriptor.replicas.iter();
        let place = replicas.find(|place| place.location == at(node))?;
        Some(place.replica)
    }

    fn led(&self, descriptor: &Descriptor) -> LedRange {
        let leader = Case::replica_on(descriptor, self.leader(descriptor.range));
        let leader = leader.expect("the leader's node has a replica");
        let voters: Vec<ReplicaId> = descriptor.replicas.iter().map(|p| p.replica).collect();
        let others = voters.iter().filter(|voter| **voter != leader);
        let follower = |replica: &ReplicaId| Follower {
            replica: *replica,
            matched: Some(9),
            stalls: self.lagging.contains(replica),
            lag: if self.lagging.contains(replica) {
                1000
            } else {
                0
            },
            answers: true,
            lost: false,
            takes_snapshot: false,
        };
        LedRange {
            stats: RangeStats {
                bytes: self.bytes.get(&descriptor.range).copied().unwrap_or(0),
                cpu_millis_per_second: self
                    .cpu_of_range
                    .get(&descriptor.range)
                    .copied()
                    .unwrap_or(0),
                ..RangeStats::default()
            },
            followers: others.map(follower).collect(),
            descriptor: descriptor.clone(),
            voters,
            changing: self.changing.contains(&descriptor.range),
            phase: Default::default(),
            is_joint: false,
            has_quorum: true,
            leader,
            term: 3,
            applied: 9,
            parts: 1,
        }
    }

    fn report_of(&self, node: u64, ranges: &[&Descriptor]) -> Report {
        let (mut led, mut held) = (Vec::new(), Vec::new());
        for descriptor in ranges {
            let Some(replica) = Case::replica_on(descriptor, node) else {
                continue;
            };
            if self.leader(descriptor.range) == node {
                led.push(self.led(descriptor));
            } else if !self.missing.contains(&replica) {
                held.push(HeldReplica {
                    range: descriptor.range,
                    replica,
                    conf: descriptor.epoch.conf,
                    left: false,
                    is_empty: false,
                    bounds: None,
                    parts: 1,
                });
            }
        }
        Report {
            stats: self.stats_of(at(node)),
            from: at(node),
            node: NodeRecord {
                id: NodeId(node),
                address: format!("node-{node}"),
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
        }
    }

    fn report(&mut self, node: u64) {
        let ranges: Vec<&Descriptor> = self.ranges.values().collect();
        let report = self.report_of(node, &ranges);
        let (manager, now) = (&mut self.manager, self.now);
        let response = self.reporters.send(manager, &report, true, now);
        assert!(
            matches!(&response, ClusterResponse::Synced { remove, .. } if remove.is_empty()),
            "no replica is to go: {response:?}"
        );
        self.check_tiling();
    }

    fn stats_of(&self, at: Location) -> ShardStats {
        ShardStats {
            cpu: self.cpu.get(&at).copied().unwrap_or(0),
            ..ShardStats::default()
        }
    }

    /// Reports of the shards of a node that have no replica.
    fn report_idle_shards(&mut self, node: u64) {
        for shard in (1..self.shards).map(ShardId) {
            let mut report = self.report_of(node, &[]);
            report.from.shard = shard;
            report.stats = self.stats_of(report.from);
            let (manager, now) = (&mut self.manager, self.now);
            self.reporters.send(manager, &report, true, now);
        }
    }

    /// Lets this much time pass, in which all nodes report.
    fn pass(&mut self, seconds: u32) {
        for _ in 0..seconds * 2 {
            self.now += REPORT;
            for node in 1..=3 {
                self.report(node);
                self.report_idle_shards(node);
            }
        }
    }

    fn view(&self) -> View {
        self.manager.view(self.now)
    }

    fn range(&self, range: RangeId) -> Option<RangeView> {
        let mut ranges = self.view().ranges.into_iter();
        ranges.find(|found| found.descriptor.range == range)
    }

    /// The first keys and versions of users' ranges in the view, with their ids, in their order.
    fn starts(&self) -> Vec<(String, u64, u32)> {
        let ranges = self.view().ranges.into_iter();
        let ranges = ranges.map(|range| range.descriptor);
        let users = ranges.filter(|descriptor| descriptor.keyspace == Keyspace::User);
        let mut starts: Vec<(String, u64, u32)> = users
            .map(|d| {
                let start = d.keys.start.escape_ascii().to_string();
                (start, d.range.0, d.epoch.version)
            })
            .collect();
        starts.sort();
        starts
    }

    /// The view has each key in one range.
    fn check_tiling(&self) {
        let ranges = self.view().ranges.into_iter().map(|range| range.descriptor);
        let users = ranges.filter(|descriptor| descriptor.keyspace == Keyspace::User);
        let mut keys: Vec<KeyRange> = users.map(|descriptor| descriptor.keys).collect();
        keys.sort_by(|one, other| one.start.cmp(&other.start));
        let mut next = Some(Vec::new());
        for keys in &keys {
            assert_eq!(Some(&keys.start), next.as_ref(), "{keys:?}");
            next.clone_from(&keys.end);
        }
        assert!(next.is_none() || keys.is_empty(), "{keys:?}");
    }

    /// Has the fake leader of a range split it.
    fn apply(&mut self, request: &ClusterRequest) -> Result<(), OrderError> {
        let ClusterRequest::Split {
            range,
            version,
            key,
            child,
            reason: _,
            replicas,
        } = request
        else {
            panic!("no split: {request:?}");
        };
        let parent = self.ranges.get_mut(range).expect("it is there");
        assert_eq!(parent.epoch.version, *version);
        assert!(parent.keys.contains(key) && parent.keys.start != *key);
        let parents = parent.replicas.iter().map(|place| place.replica);
        assert!(parents.eq(replicas.iter().map(|(of_parent, _)| *of_parent)));
        parent.epoch.version += 1;
        let mut born = parent.clone();
        born.range = *child;
        born.keys.start.clone_from(key);
        parent.keys.end = Some(key.clone());
        for (place, (_, of_child)) in born.replicas.iter_mut().zip(replicas) {
            place.replica = *of_child;
            assert!(self.used.insert((false, of_child.0)), "an id twice");
        }
        assert!(self.used.insert((true, child.0)), "an id twice");
        self.ranges.insert(*child, born);
        // The child is led beside its parent.
        if let Some(node) = self.led_by.get(range).copied() {
            self.led_by.insert(*child, node);
        }
        Ok(())
    }

    fn begin(&mut self, range: RangeId, keys: &[&str]) -> Result<SplitOrder, OrderError> {
        let keys = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
        self.manager.begin_split(range, keys, self.now)
    }

    /// Carries an order out. Gives the keys of each round; `refuses` is what a leader refuses.
    fn carry_out(
        &mut self,
        order: &mut SplitOrder,
        refuses: impl Fn(&[u8]) -> Option<OrderError>,
    ) -> Vec<Vec<String>> {
        let mut rounds = Vec::new();
        loop {
            let mut pieces: Vec<Piece> = std::iter::from_fn(|| order.next_piece()).collect();
            if pieces.is_empty() {
                return rounds;
            }
            let keys = pieces.iter().map(|piece| piece.cut().key.clone());
            let keys = keys.map(|key| String::from_utf8(key).expect("it is text"));
            rounds.push(keys.collect());
            for piece in &mut pieces {
                let step = self
                    .manager
                    .split_step(piece, SplitReason::Manual, self.now);
                let (to, request, _) = step.expect("it can be split");
                assert_eq!(to, at(self.leader(piece.range)));
                let busy = self
                    .manager
                    .split_step(piece, SplitReason::Manual, self.now);
                assert!(matches!(busy, Err(OrderError::Conflict(_))), "{busy:?}");
                let result = match refuses(&piece.cut().key) {
                    Some(why) => {
                        self.manager.refused(piece.range);
                        Err(why)
                    }
                    None => self.apply(&request),
                };
                let piece = std::mem::replace(
                    piece,
                    Piece {
                        range: piece.range,
                        is_new: false,
                        cuts: Vec::new(),
                    },
                );
                order.ended(piece, result);
            }
            (1..=3).for_each(|node| self.report(node));
        }
    }

    fn split(&mut self, range: RangeId, key: &str) -> RangeId {
        let mut order = self.begin(range, &[key]).expect("it can be split");
        let mut piece = order.next_piece().expect("one");
        let step = self
            .manager
            .split_step(&mut piece, SplitReason::Manual, self.now);
        let (_, request, _) = step.expect("it can be split");
        self.apply(&request).expect("it is split");
        piece.cut().child
    }
}

/// A range's id, first key and end.
type Part = (u64, String, Option<String>);

fn parts(response: ClusterResponse) -> (Vec<Part>, Option<OrderError>) {
    let ClusterResponse::Split { ranges, failed } = response else {
        panic!("{response:?}");
    };
    let text = |key: &[u8]| key.escape_ascii().to_string();
    let ranges = ranges.iter().map(|part| {
        let (start, end) = part.keys.interval();
        (part.range.0, text(start), end.map(text))
    });
    (ranges.collect(), failed)
}

#[test]
fn an_order_for_many_keys_is_carried_out_by_halves_and_the_left_part_keeps_the_id() {
    let mut case = Case::new();
    let keys = ["g", "a", "c", "b", "e", "d", "f"];
    let mut order = case.begin(USERS, &keys).expect("it can be split");
    let rounds = case.carry_out(&mut order, |_| None);
    assert_eq!(
        rounds,
        [vec!["d"], vec!["b", "f"], vec!["a", "c", "e", "g"]]
    );
    let (ranges, failed) = parts(order.response());
    assert_eq!(failed, None);
    let first = record::FIRST_NEW_RANGE;
    let starts: Vec<&str> = ranges.iter().map(|(_, start, _)| &**start).collect();
    assert_eq!(starts, ["", "a", "b", "c", "d", "e", "f", "g"]);
    let ids: Vec<u64> = ranges.iter().map(|(id, ..)| *id).collect();
    assert_eq!(ids, [vec![2], (first..first + 7).collect()].concat());
    assert_eq!(ranges[0].2.as_deref(), Some("a"));
    assert_eq!(ranges[7].2, None);
    assert_eq!(case.starts().len(), 8);
    // The ids of a manager that reads the rows are others.
    let rows = case.manager.next_rows();
    let mut next = Manager::new(2, at(1), &rows, std::iter::empty(), case.now);
    assert!(next.ids.range().0 > first + 6);
    assert!(case.used.iter().all(|(_, id)| next.ids.replica().0 > *id));
}

#[test]
fn a_key_that_is_refused_in_the_middle_is_named_and_what_was_split_is_told() {
    let mut case = Case::new();
    let mut order = case
        .begin(USERS, &["b", "d", "f"])
        .expect("it can be split");
    let refuses =
        |key: &[u8]| (key == b"b").then(|| OrderError::Conflict("it has no room".to_owned()));
    case.carry_out(&mut order, refuses);
    let (ranges, failed) = parts(order.response());
    let starts: Vec<&str> = ranges.iter().map(|(_, start, _)| &**start).collect();
    assert_eq!(starts, ["", "d", "f"]);
    assert_eq!(
        failed,
        Some(OrderError::Conflict(
            "range 2 was not split at \"b\": it has no room".to_owned()
        ))
    );
    // Nothing was split: the order is refused.
    let id = RangeId(ranges[1].0);
    let mut order = case.begin(id, &["e"]).expect("it can be split");
    let refuses = |_: &[u8]| Some(OrderError::Unknown("it is silent".to_owned()));
    case.carry_out(&mut order, refuses);
    let refused = order.response();
    assert!(
        matches!(&refused, ClusterResponse::Refused(OrderError::Unknown(why)) if why.contains("\"e\"")),
        "{refused:?}"
    );
}

#[test]
fn a_leader_that_is_another_one_meanwhile_is_asked_and_new_replicas_get_ids() {
    let mut case = Case::new();
    let mut order = case.begin(USERS, &["m"]).expect("it can be split");
    let mut piece = order.next_piece().expect("one");
    let (to, ..) = case
        .manager
        .split_step(&mut piece, SplitReason::Manual, case.now)
        .expect("it can");
    assert_eq!(to, at(1));
    case.manager.refused(USERS);
    case.led_by.insert(USERS, 3);
    let range = case.ranges.get_mut(&USERS).expect("it is there");
    range.epoch.conf += 1;
    range.replicas.push(ReplicaPlace {
        replica: ReplicaId(99),
        location: at(4),
    });
    case.report(3);
    let step = case
        .manager
        .split_step(&mut piece, SplitReason::Manual, case.now);
    let (to, request, has_new_ids) = step.expect("it can");
    assert_eq!((to, has_new_ids), (at(3), true));
    case.apply(&request).expect("it is split");
    assert_eq!(case.ranges[&piece.cut().child].replicas.len(), 4);
}

#[test]
fn orders_that_make_no_sense_are_refused_with_the_range_and_what_would_be_right() {
    let mut case = Case::new();
    let middle = case.split(USERS, "m");
    case.pass(1);
    let long = "k".repeat(5000);
    let refused = |case: &mut Case, range: u64, keys: &[&str]| {
        let error = case.begin(RangeId(range), keys).expect_err("it is refused");
        let kind = match error {
            OrderError::Busy { .. } => "busy",
            OrderError::Invalid(_) => "invalid",
            OrderError::Conflict(_) => "conflict",
            OrderError::NotFound(_) => "not found",
            OrderError::Unknown(_) => "unknown",
        };
        let words = error.to_string();
        assert!(words.contains(&format!("range {range}")), "{words}");
        (kind, words)
    };
    for (range, keys, kind, says) in [
        (9, &["k"][..], "not found", "range ls"),
        (1, &["k"], "invalid", "users' keys"),
        (2, &[], "invalid", "1 to 1024"),
        (2, &["a", ""], "invalid", "\"\""),
        (2, &[&long], "invalid", "kkk...\""),
        (2, &["a", "x"], "conflict", "before \"m\""),
        (
            middle.0,
            &["a"],
            "conflict",
            "from \"m\" on, to the last one",
        ),
        (middle.0, &["m"], "conflict", "begins at \"m\""),
        (2, &["a", "b", "a"], "invalid", "\"a\""),
    ] {
        let (found, words) = refused(&mut case, range, keys);
        assert_eq!(found, kind, "{words}");
        assert!(words.contains(says), "{words}");
    }
    case.changing.insert(USERS);
    case.pass(1);
    assert_eq!(refused(&mut case, 2, &["a"]).0, "conflict");
    case.changing.clear();
    case.pass(1);
    case.now += Duration::from_secs(4);
    assert_eq!(refused(&mut case, 2, &["a"]).0, "busy");
}

#[test]
fn ranges_that_a_person_has_split_are_held_until_they_are_released() {
    let mut case = Case::new();
    let hold = |case: &mut Case, parts: &[RangeId], until| {
        let part = |range: &RangeId| SplitPart {
            range: *range,
            keys: KeyRange::all(),
        };
        let parts: Vec<SplitPart> = parts.iter().map(part).collect();
        let held = case.manager.hold(&parts, until);
        let rows: Vec<Row> = held.iter().map(HeldRecord::row).collect();
        held.into_iter().for_each(|held| case.manager.held(held));
        rows
    };
    let held = |case: &Case, range| case.range(range).expect("it is known").held_until_ms;
    let first = case.split(USERS, "m");
    case.pass(1);
    assert_eq!(held(&case, USERS), 0);
    assert!(hold(&mut case, &[USERS, first], None).is_empty());
    let mut rows = hold(&mut case, &[USERS, first], Some(u64::MAX));
    // The range is held for the border on its left; no person has made the one left of its parent.
    assert_eq!((held(&case, USERS), held(&case, first)), (0, u64::MAX));
    // A new border is held for as long as is wished, whatever holds the one left of it.
    let second = case.split(first, "t");
    case.pass(1);
    rows.extend(hold(&mut case, &[first, second], Some(7)));
    assert_eq!((held(&case, first), held(&case, second)), (u64::MAX, 7));
    let third = case.split(second, "w");
    case.pass(1);
    assert!(
        hold(&mut case, &[second, third], None).is_empty(),
        "no person has made it"
    );
    assert!(hold(&mut case, &[second, third], Some(0)).is_empty());
    assert_eq!((held(&case, second), held(&case, third)), (7, 0));
    let released = case.manager.release(first).expect("it is there");
    rows.push(released.row());
    case.manager.held(released);
    assert_eq!(held(&case, first), 0);
    assert!(matches!(
        case.manager.release(RangeId(9)),
        Err(OrderError::NotFound(_))
    ));
    assert!(matches!(
        case.manager.release(SYSTEM_RANGE),
        Err(OrderError::Invalid(_))
    ));
    // They are rows.
    case.manager = Manager::new(2, at(1), &rows, std::iter::empty(), case.now);
    (1..=3).for_each(|node| case.report(node));
    assert_eq!(
        [USERS, first, second].map(|range| held(&case, range)),
        [0, 0, 7]
    );
}

#[path = "../view/overlap_tests.rs"]
mod overlap;

#[path = "load_splits_tests.rs"]
mod load_splits;

#[path = "bulk_tests.rs"]
mod bulk;
