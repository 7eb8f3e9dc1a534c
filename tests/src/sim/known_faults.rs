//! The faults that other systems had when ranges were split and merged (etcd-based and Raft-based stores,
//! from their public reports), each as a scenario: orders of an operator, and what happened to the nodes and
//! the network in that moment. The seed moves the moments and chooses the nodes.

use std::time::Duration;

use super::faults::{Fault, Faults, Order, Step};
use super::node::Sizes;
use super::random::Random;
use super::run::{Report, run_drawn};

/// By then the cluster has formed and holds rows.
const BEGINS_AFTER_MS: u64 = 700;
const NODES: u16 = 3;
const CLIENTS: u32 = 3;
/// Three nodes of one shard that keep almost nothing of their logs, and old versions for a short time.
const SIZES: Sizes = Sizes {
    shards: 1,
    nodes: NODES,
    grows: false,
    memtable_bytes: 1 << 13,
    // A segment begins with what is known of each of up to a hundred ranges.
    segment_bytes: 1 << 18,
    entry_cache_bytes: 1 << 12,
    row_cache_bytes: 1 << 13,
    entries_kept: 4,
    gc_retention_ms: 400,
    small_append_bytes: 1 << 10,
    has_very_slow_reads: true,
};
/// Registers that clients write begin with these digits, so that both sides of a split have load.
const BORDER: [u8; 3] = *b"cr2";
const LEFT: [u8; 3] = *b"cr1";

/// A fault of another system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownFault {
    /// A replica is made by a message of the new range's leader, and then by the split that its node
    /// applies late.
    BornByMessageAndAgainBySplit,
    /// A replica that was away takes a snapshot of the range as it was before the split beside one of the
    /// new range, with keys in both.
    SnapshotsOfParentAndChildOverlap,
    /// A majority confirms a read before the split, and it is answered after it.
    ReadConfirmedBeforeTheSplit,
    /// The new range is led elsewhere before the old range's leader has applied the split.
    ChildLedBeforeTheParentsLeaderApplies,
    /// Followers learn late that the split is committed.
    CommitIsLearnedLate,
    /// A range is split a hundred times while one replica is 30 s behind.
    ChainOfSplitsWithOneFarBehind,
    /// Old versions are collected while their range is split.
    CollectionDuringTheSplit,
    /// The leadership is transferred at the moment of the split.
    TransferDuringTheSplit,
    /// A merge fails because a replica lags; a second one succeeds.
    FailedMergeBeforeAGoodOne,
    /// The right range goes on although the merge can still be committed.
    ThawWhileTheMergeMayCommit,
    /// The right range's leader was paused and reads by its lease while it is merged.
    LeaseOfThePausedRightLeader,
    /// The node stops between taking over the rows and making that durable.
    PowerLostWhileTheNeighbourIsTakenOver,
    /// The replica that was taken over is collected too early, or never.
    MergedReplicaIsMoved,
    /// What the right range has served is forgotten by the merge, with clocks that run apart.
    ClocksApartDuringTheMerge,
    /// A merge waits for a request of its own: its node drains meanwhile.
    MergeOnANodeThatDrains,
}

/// All of them.
pub const ALL: [KnownFault; 15] = [
    KnownFault::BornByMessageAndAgainBySplit,
    KnownFault::SnapshotsOfParentAndChildOverlap,
    KnownFault::ReadConfirmedBeforeTheSplit,
    KnownFault::ChildLedBeforeTheParentsLeaderApplies,
    KnownFault::CommitIsLearnedLate,
    KnownFault::ChainOfSplitsWithOneFarBehind,
    KnownFault::CollectionDuringTheSplit,
    KnownFault::TransferDuringTheSplit,
    KnownFault::FailedMergeBeforeAGoodOne,
    KnownFault::ThawWhileTheMergeMayCommit,
    KnownFault::LeaseOfThePausedRightLeader,
    KnownFault::PowerLostWhileTheNeighbourIsTakenOver,
    KnownFault::MergedReplicaIsMoved,
    KnownFault::ClocksApartDuringTheMerge,
    KnownFault::MergeOnANodeThatDrains,
];

/// The entries of a scenario, and the numbers that it draws.
struct Scenario {
    random: Random,
    steps: Vec<Step>,
}

impl Scenario {
    /// Something happens so many milliseconds after the entry before.
    fn then(&mut self, after_ms: u64, fault: Fault) -> &mut Scenario {
        let after = Duration::from_millis(after_ms);
        self.steps.push(Step { after, fault });
        self
    }

    /// A pause of random length comes before.
    fn within(&mut self, most_ms: u64, fault: Fault) -> &mut Scenario {
        let after = self.random.between(0, most_ms);
        self.then(after, fault)
    }

    fn node(&self) -> u16 {
        self.random.between(1, u64::from(NODES)) as u16
    }

    fn split(&self, at: [u8; 3]) -> Fault {
        let order = Order::Split { at };
        Fault::Order {
            by: self.node(),
            order,
        }
    }

    fn merge(&self) -> Fault {
        let order = Order::Merge { at: LEFT };
        Fault::Order {
            by: self.node(),
            order,
        }
    }

    /// Messages to a node take up to this long, so that they overtake each other.
    fn slow_to(node: u16, delay_max_us: u64) -> Fault {
        let links = others(node).map(|other| (other, node)).collect();
        Fault::SlowLinks {
            links,
            delay_max_us,
        }
    }

    /// Messages of a node take up to this long.
    fn slow_from(node: u16, delay_max_us: u64) -> Fault {
        let links = others(node).map(|other| (node, other)).collect();
        Fault::SlowLinks {
            links,
            delay_max_us,
        }
    }

    fn cut_off(node: u16) -> Fault {
        let links = others(node).flat_map(|other| [(node, other), (other, node)]);
        Fault::Cut {
            links: links.collect(),
        }
    }

    fn pause(node: u16, ms: u64) -> Fault {
        Fault::Pause { node, ms }
    }

    fn down(&self, node: u16, down_ms: u64) -> Fault {
        let again = self.random.once_in(2);
        Fault::Crash {
            node,
            down_ms,
            again_after_us: again.then(|| self.random.between(0, 60_000)),
        }
    }

    fn transfer(node: u16) -> Fault {
        Fault::TransferLeadership { node, shard: 0 }
    }
}

fn others(node: u16) -> impl Iterator<Item = u16> {
    (1..=NODES).filter(move |other| *other != node)
}

impl KnownFault {
    /// Whether ranges are merged in it.
    pub fn merges(self) -> bool {
        let first = ALL
            .iter()
            .position(|one| *one == KnownFault::FailedMergeBeforeAGoodOne);
        ALL.iter().position(|one| *one == self) >= first
    }

    /// Runs the scenario.
    ///
    /// # Errors
    /// No task could run any more, or the run took too many steps.
    pub fn run(self, seed: u64) -> Result<Report, String> {
        let mut scenario = Scenario {
            random: Random::new(seed, 20),
            steps: Vec::new(),
        };
        match self.merges() {
            false => self.split_steps(&mut scenario),
            true => self.merge_steps(&mut scenario),
        }
        // Without a first step the clients would begin only now.
        scenario.steps[0].after += Duration::from_millis(BEGINS_AFTER_MS);
        let faults = Faults {
            steps: scenario.steps,
        };
        let nodes = match self {
            KnownFault::MergedReplicaIsMoved => NODES + 1,
            _ => NODES,
        };
        run_drawn(seed, Sizes { nodes, ..SIZES }, CLIENTS, &faults)
    }

    fn split_steps(self, scenario: &mut Scenario) {
        let one = scenario.node();
        let split = scenario.split(BORDER);
        match self {
            KnownFault::BornByMessageAndAgainBySplit => {
                scenario.then(0, Scenario::slow_to(one, 400_000));
                scenario.within(50, split);
                scenario.then(1_500, Fault::Mend);
            }
            KnownFault::SnapshotsOfParentAndChildOverlap => {
                let down = scenario.down(one, 3_000);
                scenario.then(0, down).within(100, split);
                let next = scenario.split(*b"cr4");
                scenario.within(2_500, next);
            }
            KnownFault::ReadConfirmedBeforeTheSplit => {
                for node in 1..=NODES {
                    scenario.then(0, Fault::NoLease { node, off: true });
                    scenario.then(0, Scenario::slow_to(node, 60_000));
                }
                scenario.within(200, split);
                scenario.within(30, Scenario::transfer(one));
            }
            KnownFault::ChildLedBeforeTheParentsLeaderApplies => {
                scenario.then(0, split);
                scenario.within(12, Scenario::pause(one, 900));
                scenario.then(0, Scenario::slow_to(one, 500_000));
                scenario.then(1_500, Fault::Mend);
            }
            KnownFault::CommitIsLearnedLate => {
                for node in 1..=NODES {
                    scenario.then(0, Scenario::slow_from(node, 150_000));
                }
                scenario.within(100, split);
                let next = scenario.split(*b"cr5");
                scenario.within(400, next).then(1_000, Fault::Mend);
            }
            KnownFault::ChainOfSplitsWithOneFarBehind => {
                scenario.then(0, Scenario::cut_off(one));
                let by = one % NODES + 1;
                for number in 0..100_u8 {
                    let at_key = [b'c', b'a' + number / 10, b'0' + number % 10];
                    let order = Order::Split { at: at_key };
                    scenario.then(300, Fault::Order { by, order });
                }
                scenario.then(500, Fault::Mend);
            }
            KnownFault::CollectionDuringTheSplit => {
                for number in 0..8 {
                    let at = [b'c', [b'r', b'q'][number % 2], b'0' + number as u8];
                    let next = scenario.split(at);
                    scenario.within(600, next);
                }
                let down = scenario.down(one, 100);
                scenario.within(300, down);
            }
            _ => {
                // The transfer comes a little before the split, or a little after it.
                let ahead = scenario.random.between(0, 1) == 0;
                let transfers: Vec<Fault> = (1..=NODES).map(Scenario::transfer).collect();
                if ahead {
                    transfers.into_iter().for_each(|transfer| {
                        scenario.then(0, transfer);
                    });
                    scenario.within(4, split);
                } else {
                    scenario.then(0, split);
                    transfers.into_iter().for_each(|transfer| {
                        scenario.within(4, transfer);
                    });
                }
            }
        }
    }

    fn merge_steps(self, scenario: &mut Scenario) {
        let one = scenario.node();
        let split = scenario.split(BORDER);
        let merge = scenario.merge();
        scenario.then(0, split);
        // Clients write to both ranges before they are merged.
        let apart = 400;
        match self {
            KnownFault::FailedMergeBeforeAGoodOne => {
                scenario
                    .then(apart, Scenario::cut_off(one))
                    .within(20, merge);
                scenario.then(12_000, Fault::Mend);
                let again = scenario.merge();
                scenario.then(1_000, again);
            }
            KnownFault::ThawWhileTheMergeMayCommit => {
                scenario.then(apart, merge);
                scenario.within(120, Scenario::cut_off(one));
                scenario.then(13_000, Fault::Mend);
                let again = scenario.merge();
                scenario.then(500, again);
            }
            KnownFault::LeaseOfThePausedRightLeader => {
                scenario.then(apart, merge);
                scenario.within(100, Scenario::pause(one, 1_200));
                scenario.within(100, Scenario::transfer(one % NODES + 1));
            }
            KnownFault::PowerLostWhileTheNeighbourIsTakenOver => {
                scenario.then(apart, merge);
                let first = scenario.down(one, 300);
                scenario.within(200, first);
                let second = scenario.down(one % NODES + 1, 50);
                scenario.within(900, second);
            }
            KnownFault::MergedReplicaIsMoved => {
                scenario.then(apart, merge);
                // A replica that has taken another one over moves to the fourth node.
                let order = Order::MoveAt {
                    at: LEFT,
                    from: one,
                    to: NODES + 1,
                    shard: 0,
                };
                let by = scenario.node();
                scenario.within(300, Fault::Order { by, order });
                let again = scenario.split(*b"cr3");
                scenario.within(1_500, again);
                let once_more = scenario.merge();
                scenario.then(600, once_more);
                let down = scenario.down(one, 2_500);
                scenario.within(600, down);
                let at_last = scenario.split(*b"cq5");
                scenario.then(1_000, at_last);
            }
            KnownFault::ClocksApartDuringTheMerge => {
                for (node, by_ms) in [(one, 300), (one % NODES + 1, -300)] {
                    scenario.then(0, Fault::ClockJump { node, by_ms });
                }
                scenario.then(apart, merge);
                scenario.within(100, Scenario::transfer(one));
                let again = scenario.split(BORDER);
                scenario.then(500, again);
                let once_more = scenario.merge();
                scenario.then(300, once_more);
            }
            _ => {
                let order = Order::Drain { node: one };
                let by = scenario.node();
                scenario.then(apart, merge);
                scenario.within(60, Fault::Order { by, order });
                let order = Order::Undrain { node: one };
                scenario.then(3_000, Fault::Order { by, order });
            }
        }
    }
}
