//! What shards report of their ranges, what the manager makes of it, and what it costs while nothing happens.

use super::*;
use crate::boot_time::BootTime;
use crate::boot_time::test_clock;
use crate::cluster::manager::Manager;
use crate::cluster::message::{BoundsPhase, ClusterResponse, HighestIds, Peer, ShardStats};
use crate::cluster::record::NodeRecord;
use crate::cluster::test_reports::Reporters;
use crate::range::{Descriptor, Keyspace, ReplicaPlace};
use crate::types::{Epoch, KeyRange, Location, NodeId, ReplicaId, ShardId};

const REPORT: Duration = Duration::from_millis(500);

fn at(node: u64) -> Location {
    Location {
        node: NodeId(node),
        shard: ShardId(0),
    }
}

/// A range with a replica on each of three nodes; the one on the node has the id of the range times ten, and
/// the number of the node more.
fn led(range: u64, node: u64) -> LedRange {
    let place = |node: u64| ReplicaPlace {
        replica: ReplicaId(range * 10 + node),
        location: at(node),
    };
    let follower = |other: u64| Follower {
        replica: place(other).replica,
        matched: Some(9),
        lag: 0,
        stalls: false,
        answers: true,
        lost: false,
        takes_snapshot: false,
    };
    LedRange {
        descriptor: Descriptor {
            range: RangeId(range),
            epoch: Epoch {
                version: 1,
                conf: 1,
            },
            keyspace: Keyspace::User,
            keys: KeyRange {
                start: format!("user{range:08}").into_bytes(),
                end: Some(format!("user{:08}", range + 1).into_bytes()),
            },
            replicas: (1..=3).map(place).collect(),
        },
        voters: (1..=3).map(|node| place(node).replica).collect(),
        changing: false,
        phase: BoundsPhase::None,
        is_joint: false,
        has_quorum: true,
        leader: place(node).replica,
        term: 3,
        applied: 9,
        followers: (1..=3)
            .filter(|other| *other != node)
            .map(follower)
            .collect(),
        stats: RangeStats::default(),
        parts: 1,
    }
}

fn replica(range: u64, node: u64) -> HeldReplica {
    HeldReplica {
        range: RangeId(range),
        replica: ReplicaId(range * 10 + node),
        conf: 1,
        left: false,
        is_empty: false,
        bounds: None,
        parts: 1,
    }
}

fn report(node: u64, known: u64, led: Vec<LedRange>, held: Vec<HeldReplica>) -> Report {
    let others = (1..=3).filter(|other| *other != node);
    Report {
        from: at(node),
        node: NodeRecord {
            id: NodeId(node),
            address: format!("10.0.0.{node}:7400"),
            http: format!("10.0.0.{node}:7480"),
            shards: 1,
            incarnation: 7,
            release: "0.1.0".to_owned(),
            ..NodeRecord::default()
        },
        known,
        number: 0,
        since: None,
        led,
        held,
        gone: Vec::new(),
        highest: HighestIds::default(),
        peers: others
            .map(|other| Peer {
                at: at(other),
                answers: true,
            })
            .collect(),
        in_flight: 0,
        slow_disk: false,
        unreadable: Vec::new(),
        stats: ShardStats::default(),
    }
}

/// A shard, and what it would report.
struct Shard {
    reporter: Reporter,
    now: BootTime,
}

impl Shard {
    fn new() -> Shard {
        Shard {
            reporter: Reporter::default(),
            now: test_clock::now(),
        }
    }

    fn next(&mut self, led: &[LedRange], held: &[HeldReplica]) -> Report {
        self.now += REPORT;
        let mut next = report(1, 0, Vec::new(), Vec::new());
        let mut round = self.reporter.begin(self.now);
        for led in led {
            round.lead(led.descriptor.range, |before| {
                (before != Some(led)).then(|| led.clone())
            });
        }
        held.iter().for_each(|held| round.hold(held.clone()));
        round.end(&mut next);
        next
    }

    /// The next report, which the manager answers.
    fn answered(&mut self, led: &[LedRange], held: &[HeldReplica]) -> Report {
        let report = self.next(led, held);
        self.reporter.answered(report.number, false);
        report
    }
}

/// The ranges that a report names: those that are led, the others, and those that are gone.
fn named(report: &Report) -> (Vec<u64>, Vec<u64>, Vec<u64>) {
    let led = report.led.iter().map(|led| led.descriptor.range.0);
    let held = report.held.iter().map(|held| held.range.0);
    let gone = report.gone.iter().map(|range| range.0);
    (led.collect(), held.collect(), gone.collect())
}

#[test]
fn the_first_report_is_whole_and_the_next_ones_name_what_has_changed() {
    let mut shard = Shard::new();
    let (mut one, two) = (led(1, 1), led(2, 1));
    let first = shard.answered(&[one.clone(), two.clone()], &[replica(3, 1)]);
    assert_eq!((first.number, first.since), (1, None));
    assert_eq!(named(&first), (vec![1, 2], vec![3], vec![]));
    for _ in 0..100 {
        let next = shard.answered(&[one.clone(), two.clone()], &[replica(3, 1)]);
        assert_eq!(next.since, Some(next.number - 1));
        assert_eq!(named(&next), (vec![], vec![], vec![]));
    }
    one.has_quorum = false;
    let next = shard.answered(&[one.clone(), two.clone()], &[replica(3, 1)]);
    assert_eq!(named(&next), (vec![1], vec![], vec![]));
    // Another one leads, and a replica has gone.
    let next = shard.answered(&[one.clone()], &[replica(2, 1)]);
    assert_eq!(named(&next), (vec![], vec![2], vec![3]));
    let next = shard.answered(&[one], &[replica(2, 1)]);
    assert_eq!(named(&next), (vec![], vec![], vec![]));
}

#[test]
fn what_was_told_in_reports_that_were_not_answered_is_told_again() {
    let mut shard = Shard::new();
    let (mut one, two) = (led(1, 1), led(2, 1));
    shard.answered(&[one.clone(), two.clone()], &[replica(3, 1)]);
    one.term = 4;
    let lost = shard.next(&[one.clone(), two.clone()], &[replica(3, 1)]);
    assert_eq!((lost.since, named(&lost).0), (Some(1), vec![1]));
    let lost = shard.next(&[one.clone(), two.clone()], &[]);
    assert_eq!(
        (lost.since, named(&lost)),
        (Some(1), (vec![1], vec![], vec![3]))
    );
    // The replica that was gone is there again.
    let next = shard.answered(&[one.clone(), two.clone()], &[replica(3, 1)]);
    assert_eq!(
        (next.since, named(&next)),
        (Some(1), (vec![1], vec![3], vec![]))
    );
    let next = shard.next(&[one.clone(), two.clone()], &[replica(3, 1)]);
    assert_eq!(
        (next.since, named(&next)),
        (Some(4), (vec![], vec![], vec![]))
    );
    shard.reporter.answered(next.number, true);
    let whole = shard.next(&[one, two], &[replica(3, 1)]);
    assert_eq!(
        (whole.since, named(&whole)),
        (None, (vec![1, 2], vec![3], vec![]))
    );
}

#[test]
fn what_changes_all_the_time_is_told_after_a_while_and_a_large_change_at_once() {
    let mut shard = Shard::new();
    let mut range = led(1, 1);
    range.stats.cpu_millis_per_second = 100;
    shard.answered(&[range.clone()], &[]);
    let mut told = Vec::new();
    for report in 1..=40_u64 {
        range.applied += 1000;
        range.stats.cpu_millis_per_second = 100 + report as u32 % 19;
        range.followers[0].matched = Some(range.applied);
        range.followers[0].lag = 3;
        let next = shard.answered(&[range.clone()], &[]);
        told.extend(next.led.iter().map(|led| (report, led.applied)));
    }
    let seconds: Vec<u64> = told.iter().map(|(report, _)| report / 2).collect();
    assert_eq!(seconds, [5, 10, 15, 20]);
    assert_eq!(told[0].1, 9 + 10_000, "with what is true then");
    for change in [
        |range: &mut LedRange| range.stats.cpu_millis_per_second = 200,
        |range: &mut LedRange| range.stats.cpu_millis_per_second = 100,
        |range: &mut LedRange| range.stats.reads_per_second = 20,
        |range: &mut LedRange| range.stats.bytes += SIZE_FLOOR,
        |range: &mut LedRange| range.followers[0].stalls = true,
        |range: &mut LedRange| range.followers[0].lag = CAUGHT_UP + 1,
        |range: &mut LedRange| range.followers[0].lag = 0,
        |range: &mut LedRange| range.parts = 2,
        |range: &mut LedRange| range.phase = BoundsPhase::Splitting,
        |range: &mut LedRange| range.descriptor.epoch.conf += 1,
    ] {
        change(&mut range);
        let next = shard.answered(&[range.clone()], &[]);
        assert_eq!(next.led, [range.clone()], "told at once");
    }
    range.stats.reads_per_second += 4;
    assert!(
        shard.answered(&[range], &[]).led.is_empty(),
        "a fifth is no news"
    );
}

#[test]
fn reports_that_are_lost_doubled_or_late_leave_the_manager_with_what_there_is() {
    let (mut shard, now) = (Shard::new(), test_clock::now());
    let mut manager = Manager::new(1, at(9), &[], std::iter::empty(), now);
    let mut take = |report: &Report| {
        let response = manager.take(report.clone(), true, now);
        let ClusterResponse::Synced { wants_whole, .. } = response else {
            panic!("it is taken or not: {response:?}");
        };
        wants_whole
    };
    let mut range = led(1, 1);
    let first = shard.next(&[range.clone()], &[]);
    assert!(!take(&first));
    shard.reporter.answered(first.number, false);
    range.term = 4;
    let second = shard.next(&[range.clone()], &[]);
    assert!(!take(&second), "its answer is lost");
    range.term = 5;
    let third = shard.next(&[range.clone()], &[]);
    assert_eq!(third.since, Some(1));
    assert!(!take(&third), "it goes on from what was taken");
    assert!(
        take(&second) && take(&third),
        "these come late, and a second time"
    );
    shard.reporter.answered(third.number, false);
    range.term = 6;
    let fourth = shard.next(&[range.clone()], &[]);
    let mut other = Manager::new(2, at(8), &[], std::iter::empty(), now);
    let response = other.take(fourth.clone(), true, now);
    let wants_whole = matches!(
        response,
        ClusterResponse::Synced {
            wants_whole: true,
            ..
        }
    );
    assert!(wants_whole, "another manager knows nothing: {response:?}");
    assert!(!take(&fourth));
    let terms = |manager: &Manager| {
        let ranges = manager.view(now).ranges;
        ranges.iter().map(|range| range.term).collect::<Vec<u64>>()
    };
    assert_eq!((terms(&manager), terms(&other)), (vec![6], vec![]));
    shard.reporter.answered(fourth.number, true);
    let whole = shard.next(&[range], &[]);
    other.take(whole, true, now);
    assert_eq!(terms(&other), [6]);
}

/// Three nodes with so many idle ranges; gives the bytes of all reports and answers in the first round, and
/// those in a second of the others, for each node.
fn idle(ranges: u64) -> (usize, usize) {
    let mut now = test_clock::now();
    let mut manager = Manager::new(1, at(1), &[], std::iter::empty(), now);
    let mut reporters = Reporters::default();
    let mut known = [0; 3];
    let mut round = |seconds: u64| {
        reporters.bytes = 0;
        for _ in 0..seconds * 2 {
            for node in 1..=3 {
                let is_led = |range: &u64| range % 3 + 1 == node;
                let all = || 2..ranges + 2;
                let led = all().filter(is_led).map(|range| led(range, node));
                let held = all().filter(|range| !is_led(range));
                let held = held.map(|range| replica(range, node));
                let view = &mut known[node as usize - 1];
                let report = report(node, *view, led.collect(), held.collect());
                let response = reporters.send(&mut manager, &report, true, now);
                if let ClusterResponse::Synced {
                    view: Some(news), ..
                } = response
                {
                    *view = news.view.version;
                }
            }
            manager.refresh(now);
            now += REPORT;
        }
        reporters.bytes
    };
    let first = round(3);
    let later = round(10) / 10 / 3;
    let view = manager.view(now);
    assert_eq!(view.ranges.len() as u64, ranges);
    let is_well = |range: &crate::cluster::RangeView| {
        range.leader.is_some() && !range.unavailable && range.parts.len() == 3
    };
    assert!(
        view.ranges.iter().all(is_well),
        "what is not told is still true"
    );
    (first, later)
}

#[test]
fn idle_ranges_are_told_once_and_then_cost_nothing() {
    let (whole, idle_bytes) = idle(1000);
    println!(
        "1,000 ranges: {whole} bytes at first, {idle_bytes} bytes a second and shard when idle"
    );
    let few = idle(3).1;
    assert_eq!(idle_bytes, few, "no byte for each range");
    assert!(idle_bytes < 2048, "{idle_bytes} bytes a second");
    assert!(whole > 100_000, "{whole}");
}
