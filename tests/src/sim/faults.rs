//! The faults of a run. The seed fixes the whole list before the run begins, so that a run can be
//! repeated without some of them.

use std::time::Duration;

use rangedb_engine::types::SYSTEM_RANGE;

use super::directed::Scenario;
use super::random::Random;

/// The largest drift of a machine's clock, in millionths: less than the margin of the leases
/// allows.
const DRIFT_MAX: u64 = 40_000;
const HOUR_MS: u64 = 3_600_000;

/// A fault. `node` is the number of a machine: the fault hits the node that runs there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named for what they are")]
pub enum Fault {
    /// The machine's clock runs too fast by this many millionths, from the start of the run.
    Drift { node: u16, millionths: i64 },
    /// The power fails and returns. It may fail once more while the node starts.
    Crash {
        node: u16,
        down_ms: u64,
        again_after_us: Option<u64>,
    },
    /// The node stops cleanly and starts again.
    Stop { node: u16 },
    /// The process is paused.
    Pause { node: u16, ms: u64 },
    /// The machine and all its clocks stand still, like a virtual machine that is migrated; then
    /// its wall clock is set. If the node leads a range, its boot-time clock runs on: otherwise its
    /// lease would last longer than the others assume, which no machine can notice.
    StandStill { node: u16, ms: u64 },
    /// The wall clock jumps.
    ClockJump { node: u16, by_ms: i64 },
    /// A write of the log fails after this many others.
    WriteError { node: u16, after: u64 },
    /// A read of the log fails after this many others.
    ReadError { node: u16, after: u64 },
    /// The next write of the tables fails.
    TableError { node: u16 },
    /// The tables' disk becomes full, or has room again.
    FullDisk { node: u16, full: bool },
    /// The log's disk becomes full, or has room again.
    FullLog { node: u16, full: bool },
    /// For the manager each byte of a row counts so many times.
    LargeRows { times: u64 },
    /// Operations on the log's disks take up to this long.
    SlowDisk { node: u16, latency_us: u64 },
    /// Links are cut, each in one direction.
    Cut { links: Vec<(u16, u16)> },
    /// All cut links work again.
    Mend,
    /// One message in `one_in` is lost; messages may also be delivered twice.
    Loss { one_in: u64, duplicates: bool },
    /// In one message in `one_in`, a bit is flipped on the way.
    Damage { one_in: u64 },
    /// Messages on these links take up to this long.
    SlowLinks {
        links: Vec<(u16, u16)>,
        delay_max_us: u64,
    },
    /// Leaders on the node stop using their leases, or use them again.
    NoLease { node: u16, off: bool },
    /// After the node's next answer of this kind has left, something else happens.
    AtAnswer {
        node: u16,
        answer: Telling,
        then: Then,
    },
    /// A shard transfers all its leaderships.
    TransferLeadership { node: u16, shard: u16 },
    /// The machine loses its disk for good. After a while another node starts there with an empty
    /// one.
    LoseDisk { node: u16, down_ms: u64 },
    /// A part of a shard's folder is lost during a restart. The node must refuse to start; then
    /// another one starts on its machine.
    LosePart {
        node: u16,
        shard: u16,
        part: Part,
        down_ms: u64,
    },
    /// See [`install`](super::install): the machine whose power fails, and the number of polls
    /// after which it does.
    Install { crash: Option<(u16, u64)> },
    /// See [`split`](super::split): as [`Fault::Install`].
    Split { crash: Option<(u16, u64)> },
    /// See [`merge`](super::merge): as [`Fault::Install`].
    Merge { crash: Option<(u16, u64)> },
    /// See [`directed`](super::directed).
    Directed(Scenario),
    /// A person gives the cluster's manager an order, through a node.
    Order { by: u16, order: Order },
}

/// A part of a shard's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are named for what they are")]
pub enum Part {
    Log,
    Tables,
}

/// A kind of answer from one replica to another that a fault can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Telling {
    /// A vote for the other.
    Voted,
    /// An answer after the replica dropped entries, so that its log is shorter than before.
    Truncated,
}

/// The consequence of an awaited answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named for what they are")]
pub enum Then {
    /// The node's power fails and returns.
    Crash { down_ms: u64 },
    /// The same; also, the node that received the answer is cut off, and all other links work.
    CrashAndPart { down_ms: u64 },
    /// All cut links work again.
    Mend,
}

/// An order to the manager. Nodes are given by their machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named for what they are")]
pub enum Order {
    /// Make another node the leader of a range: this one, or any.
    Lead { range: u64, to: Option<u16> },
    /// Move a range's replica to another node, or to another shard of its own node.
    Move {
        range: u64,
        from: u16,
        to: u16,
        shard: u16,
    },
    /// The same with the range that holds a key.
    MoveAt {
        at: [u8; 3],
        from: u16,
        to: u16,
        shard: u16,
    },
    /// Make another node the leader of the range that holds a key.
    LeadAt { at: [u8; 3], to: u16 },
    /// Change a setting of the cluster.
    Set {
        name: &'static str,
        value: &'static str,
    },
    /// Split the range that holds a key, at the key.
    Split { at: [u8; 3] },
    /// Merge the range that holds a key with its right neighbour.
    Merge { at: [u8; 3] },
    /// Count nodes as dead after this silence, so that their replicas are replaced.
    DeadAfter { seconds: u64 },
    /// Have others lead what a node leads.
    Drain { node: u16 },
    /// Take that back.
    Undrain { node: u16 },
    /// Move all replicas of a node away, for good.
    Decommission { node: u16 },
}

/// One entry of the list of faults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The pause after the entry before.
    pub after: Duration,
    /// What happens after the pause.
    pub fault: Fault,
}

/// All faults of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The entries, in order.
    pub steps: Vec<Step>,
}

/// The kinds that a random fault is drawn from. Some stand twice to be drawn more often.
const KINDS: [fn(&Random, u16, u16) -> Fault; 27] = [
    crash,
    crash,
    stop,
    pause,
    pause,
    stand_still,
    clock_jump,
    write_error,
    read_error,
    table_error,
    full_disk,
    full_log,
    slow_disk,
    cut,
    ring,
    loss,
    damage,
    slow_links,
    no_lease,
    no_lease,
    crash_at_answer,
    crash_at_answer,
    transfer_to,
    lead,
    move_replica,
    move_replica,
    dead_after,
];

/// The number of kinds, from the first one, that need no other node.
const ALONE: usize = 13;

impl Faults {
    /// The faults of a seed: it chooses some of the kinds first, then faults of these.
    pub fn of(random: &Random, nodes: u16, shards: u16) -> Faults {
        let mut steps = Vec::new();
        if nodes > 1 && random.once_in(2) {
            for node in 1..=nodes {
                let millionths = random.below(2 * DRIFT_MAX) as i64 - DRIFT_MAX as i64;
                steps.push(Step {
                    after: Duration::ZERO,
                    fault: Fault::Drift { node, millionths },
                });
            }
        }
        let mut kinds: Vec<_> = KINDS.iter().filter(|_| random.once_in(2)).collect();
        if nodes == 1 {
            // A cluster of one node has only the kinds that need no other.
            kinds = KINDS[..ALONE]
                .iter()
                .filter(|_| random.once_in(2))
                .collect();
        }
        if nodes > 2 {
            match random.below(6) {
                0 | 1 => steps.extend(lonely_restart(random, nodes)),
                2 => steps.extend(crash_of_a_voter(random, nodes)),
                3 => steps.extend(crash_of_a_shortened(random, nodes)),
                _ => {}
            }
        }
        for _ in 0..random.between(3, 12) {
            let pick = random.below(kinds.len() as u64) as usize;
            let Some(kind) = kinds.get(pick) else { break };
            let after = Duration::from_millis(random.between(1, 1_200));
            let fault = kind(random, nodes, shards);
            let is_cut = matches!(fault, Fault::Cut { .. });
            steps.push(Step { after, fault });
            // Links that stay cut would leave little to test in the rest of the run.
            if is_cut && !random.once_in(3) {
                let after = Duration::from_millis(random.between(100, 2_000));
                let fault = Fault::Mend;
                steps.push(Step { after, fault });
            }
        }
        // At most one disk is lost: a second loss might take the last copies.
        if nodes > 2 && random.once_in(5) {
            let at = random.below(steps.len() as u64 + 1) as usize;
            let after = Duration::from_millis(random.between(1, 1_200));
            let fault = match random.once_in(2) {
                true => lose_disk(random, nodes),
                false => lose_part(random, nodes, shards),
            };
            steps.insert(at, Step { after, fault });
        }
        Faults { steps }
    }

    /// Adds a node that leaves: it drains, perhaps for a while, or is decommissioned.
    pub fn add_leaving(&mut self, random: &Random, nodes: u16) {
        if nodes < 3 || !random.once_in(4) {
            return;
        }
        let leaves = node(random, nodes);
        let mut orders = vec![Order::Drain { node: leaves }];
        if random.once_in(2) {
            orders.push(Order::Undrain { node: leaves });
        }
        if nodes > 3 && random.once_in(2) {
            orders.push(Order::Decommission { node: leaves });
        }
        let mut at = 0;
        for order in orders {
            let left = (self.steps.len() - at) as u64;
            at += random.below(left + 1) as usize;
            let after = Duration::from_millis(random.between(1, 1_200));
            let by = node(random, nodes);
            let fault = Fault::Order { by, order };
            self.steps.insert(at, Step { after, fault });
            at += 1;
        }
    }

    /// Adds splits at keys that clients use, some of them close together.
    pub fn add_splits(&mut self, random: &Random, nodes: u16) {
        if random.once_in(3) {
            return;
        }
        for _ in 0..random.between(1, 6) {
            let at = key(random, [b'c', b'c', b'g', b'x']);
            let fault = Fault::Order {
                by: node(random, nodes),
                order: Order::Split { at },
            };
            let at = random.below(self.steps.len() as u64 + 1) as usize;
            let after = Duration::from_millis(random.between(0, 600));
            self.steps.insert(at, Step { after, fault });
        }
    }

    /// Adds merges of ranges that hold keys which clients use.
    pub fn add_merges(&mut self, random: &Random, nodes: u16) {
        if random.once_in(3) {
            return;
        }
        for _ in 0..random.between(1, 5) {
            let at = key(random, [b'c', b'c', b'g', b'a']);
            let fault = Fault::Order {
                by: node(random, nodes),
                order: Order::Merge { at },
            };
            // Most come late, when there is something to merge.
            let half = self.steps.len() as u64 / 2;
            let at = half * u64::from(!random.once_in(4)) + random.below(half + 1);
            let after = Duration::from_millis(random.between(0, 900));
            self.steps.insert(at as usize, Step { after, fault });
        }
    }

    /// The entries with these numbers, each at the time at which it comes in the whole list.
    pub fn only(&self, numbers: &[usize]) -> Faults {
        let mut steps = Vec::new();
        let mut after = Duration::ZERO;
        for (number, step) in self.steps.iter().enumerate() {
            after += step.after;
            if numbers.contains(&number) {
                let fault = step.fault.clone();
                steps.push(Step { after, fault });
                after = Duration::ZERO;
            }
        }
        Faults { steps }
    }
}

/// A key that clients use, at one of these places.
pub(super) fn key(random: &Random, places: [u8; 4]) -> [u8; 3] {
    let place = places[random.below(4) as usize];
    let kind = [b'a', b'q', b'r', b'r'][random.below(4) as usize];
    let number = b'0' + random.below(8) as u8;
    [place, kind, number]
}

fn node(random: &Random, nodes: u16) -> u16 {
    random.between(1, u64::from(nodes)) as u16
}

fn crash(random: &Random, nodes: u16, _: u16) -> Fault {
    // Some outages are too short to be noticed, some long enough that the others purge entries
    // which the node has not received.
    let most = [50, 500, 8_000][random.below(3) as usize];
    let again = random.once_in(4);
    Fault::Crash {
        node: node(random, nodes),
        down_ms: random.between(0, most),
        again_after_us: again.then(|| random.between(0, 30_000)),
    }
}

/// The steps that lead to two leaders if leases are forgotten at a restart. A leader is cut off
/// from one other node until that one wants to lead. Then it is also cut off from the third node,
/// whose answers its lease rests on, and that one restarts at once. The other two must elect no
/// leader before the lease has ended.
fn lonely_restart(random: &Random, nodes: u16) -> Vec<Step> {
    let leader = node(random, nodes);
    let other = leader % nodes + 1;
    let third = other % nodes + 1;
    let step = |ms: u64, fault: Fault| Step {
        after: Duration::from_millis(ms),
        fault,
    };
    let cut = |from: u16, to: u16| Fault::Cut {
        links: vec![(from, to), (to, from)],
    };
    let crash = Fault::Crash {
        node: third,
        down_ms: random.between(0, 20),
        again_after_us: None,
    };
    vec![
        step(random.between(500, 1_500), cut(leader, other)),
        step(random.between(550, 1_200), cut(leader, third)),
        step(0, crash),
        step(random.between(300, 900), Fault::Mend),
    ]
}

/// Cuts off a leader (in many cases the first one). Returns its number, those of the others, and
/// the step.
fn cut_off(random: &Random, nodes: u16) -> (u16, Vec<u16>, Step) {
    let leader = match random.once_in(2) {
        true => 1,
        false => node(random, nodes),
    };
    let others: Vec<u16> = (1..=nodes).filter(|other| *other != leader).collect();
    let links = others.iter();
    let links = links.flat_map(|other| [(leader, *other), (*other, leader)]);
    let step = Step {
        after: Duration::from_millis(random.between(300, 1_500)),
        fault: Fault::Cut {
            links: links.collect(),
        },
    };
    (leader, others, step)
}

fn at_answer(node: u16, answer: Telling, then: Then) -> Step {
    Step {
        after: Duration::ZERO,
        fault: Fault::AtAnswer { node, answer, then },
    }
}

/// The steps that lead to two leaders if votes are forgotten at a restart. A leader is cut off,
/// another one is elected, and one of its voters loses its power at once. That voter then reaches
/// only the old leader, whose log is longer than its own, and neither reaches the new one.
fn crash_of_a_voter(random: &Random, nodes: u16) -> Vec<Step> {
    let (_, others, cut) = cut_off(random, nodes);
    let mut steps = vec![cut];
    for node in others {
        let down_ms = random.between(0, 30);
        steps.push(at_answer(
            node,
            Telling::Voted,
            Then::CrashAndPart { down_ms },
        ));
    }
    steps.push(Step {
        after: Duration::from_millis(random.between(1_000, 2_500)),
        fault: Fault::Mend,
    });
    steps
}

/// The steps that lead to dropped entries that come back. A leader that is cut off takes more
/// entries than the next leader has when the two meet; it drops them and loses its power right
/// after that.
fn crash_of_a_shortened(random: &Random, nodes: u16) -> Vec<Step> {
    let (leader, others, cut) = cut_off(random, nodes);
    let mut steps = vec![cut];
    let down_ms = random.between(0, 100);
    steps.push(at_answer(
        leader,
        Telling::Truncated,
        Then::Crash { down_ms },
    ));
    let voters = others.into_iter();
    steps.extend(voters.map(|node| at_answer(node, Telling::Voted, Then::Mend)));
    steps.push(Step {
        after: Duration::from_millis(random.between(1_000, 2_500)),
        fault: Fault::Mend,
    });
    steps
}

fn stop(random: &Random, nodes: u16, _: u16) -> Fault {
    let node = node(random, nodes);
    Fault::Stop { node }
}

fn pause(random: &Random, nodes: u16, _: u16) -> Fault {
    let most = if random.once_in(2) { 700 } else { 3_000 };
    Fault::Pause {
        node: node(random, nodes),
        ms: random.between(20, most),
    }
}

fn stand_still(random: &Random, nodes: u16, _: u16) -> Fault {
    Fault::StandStill {
        node: node(random, nodes),
        ms: random.between(20, 3_000),
    }
}

fn clock_jump(random: &Random, nodes: u16, _: u16) -> Fault {
    let most = if random.once_in(2) { 3_000 } else { HOUR_MS };
    Fault::ClockJump {
        node: node(random, nodes),
        by_ms: random.below(2 * most) as i64 - most as i64,
    }
}

fn write_error(random: &Random, nodes: u16, _: u16) -> Fault {
    Fault::WriteError {
        node: node(random, nodes),
        after: random.below(50),
    }
}

fn read_error(random: &Random, nodes: u16, _: u16) -> Fault {
    Fault::ReadError {
        node: node(random, nodes),
        after: random.below(20),
    }
}

fn table_error(random: &Random, nodes: u16, _: u16) -> Fault {
    let node = node(random, nodes);
    Fault::TableError { node }
}

fn full_log(random: &Random, nodes: u16, _: u16) -> Fault {
    Fault::FullLog {
        node: node(random, nodes),
        full: random.once_in(2),
    }
}

fn full_disk(random: &Random, nodes: u16, _: u16) -> Fault {
    Fault::FullDisk {
        node: node(random, nodes),
        full: random.once_in(2),
    }
}

fn slow_disk(random: &Random, nodes: u16, _: u16) -> Fault {
    // A disk that is much slower than the others makes its node hand leaderships over.
    let most = if random.once_in(3) { 500_000 } else { 30_000 };
    Fault::SlowDisk {
        node: node(random, nodes),
        latency_us: random.between(100, most),
    }
}

/// Cuts links between a node and others, in one direction or both.
fn cut(random: &Random, nodes: u16, _: u16) -> Fault {
    let node = node(random, nodes);
    let (out, into) = (!random.once_in(4), !random.once_in(4));
    let mut links = Vec::new();
    for other in (1..=nodes).filter(|other| *other != node) {
        if random.once_in(4) {
            continue;
        }
        if out {
            links.push((node, other));
        }
        if into {
            links.push((other, node));
        }
    }
    Fault::Cut { links }
}

/// Each node reaches only its neighbours in a ring, or only one of them.
fn ring(random: &Random, nodes: u16, _: u16) -> Fault {
    let one_way = nodes < 4 || random.once_in(2);
    let next = |node: u16| node % nodes + 1;
    let mut links = Vec::new();
    for from in 1..=nodes {
        let others = (1..=nodes).filter(|to| *to != from);
        let others = others.filter(|to| next(from) != *to && (one_way || next(*to) != from));
        links.extend(others.map(|to| (from, to)));
    }
    Fault::Cut { links }
}

fn loss(random: &Random, _: u16, _: u16) -> Fault {
    Fault::Loss {
        one_in: random.between(2, 20),
        duplicates: random.once_in(2),
    }
}

fn damage(random: &Random, _: u16, _: u16) -> Fault {
    let one_in = random.between(5, 100);
    Fault::Damage { one_in }
}

/// Slows all links, or those to a node, or those from it, or both.
fn slow_links(random: &Random, nodes: u16, _: u16) -> Fault {
    let (node, which) = (node(random, nodes), random.below(4));
    let all = (1..=nodes).flat_map(|from| (1..=nodes).map(move |to| (from, to)));
    let links = all.filter(|(from, to)| match which {
        0 => true,
        1 => *from == node || *to == node,
        2 => *from == node,
        _ => *to == node,
    });
    Fault::SlowLinks {
        links: links.collect(),
        delay_max_us: random.between(100, 150_000),
    }
}

fn no_lease(random: &Random, nodes: u16, _: u16) -> Fault {
    Fault::NoLease {
        node: node(random, nodes),
        off: !random.once_in(4),
    }
}

fn crash_at_answer(random: &Random, nodes: u16, _: u16) -> Fault {
    let answers = [Telling::Voted, Telling::Truncated];
    let down_ms = random.between(0, 500);
    Fault::AtAnswer {
        node: node(random, nodes),
        answer: answers[random.below(2) as usize],
        then: Then::Crash { down_ms },
    }
}

fn transfer_to(random: &Random, nodes: u16, shards: u16) -> Fault {
    Fault::TransferLeadership {
        node: node(random, nodes),
        shard: random.below(u64::from(shards)) as u16,
    }
}

fn lose_disk(random: &Random, nodes: u16) -> Fault {
    let most = if random.once_in(2) { 500 } else { 10_000 };
    Fault::LoseDisk {
        node: node(random, nodes),
        down_ms: random.between(1, most),
    }
}

fn lose_part(random: &Random, nodes: u16, shards: u16) -> Fault {
    Fault::LosePart {
        node: node(random, nodes),
        shard: random.below(u64::from(shards)) as u16,
        part: [Part::Log, Part::Tables][random.below(2) as usize],
        down_ms: random.between(1, 2_000),
    }
}

/// One of a new cluster's ranges.
fn range(random: &Random, shards: u16) -> u64 {
    SYSTEM_RANGE.0 + random.below(u64::from(shards) + 1)
}

fn lead(random: &Random, nodes: u16, shards: u16) -> Fault {
    let to = (!random.once_in(3)).then(|| node(random, nodes));
    let range = range(random, shards);
    Fault::Order {
        by: node(random, nodes),
        order: Order::Lead { range, to },
    }
}

fn move_replica(random: &Random, nodes: u16, shards: u16) -> Fault {
    let from = node(random, nodes);
    let stays = shards > 1 && random.once_in(2);
    let to = if stays { from } else { node(random, nodes) };
    let order = Order::Move {
        range: range(random, shards),
        from,
        to,
        shard: random.below(u64::from(shards)) as u16,
    };
    let by = node(random, nodes);
    Fault::Order { by, order }
}

fn dead_after(random: &Random, nodes: u16, _: u16) -> Fault {
    let seconds = random.between(1, 8);
    Fault::Order {
        by: node(random, nodes),
        order: Order::DeadAfter { seconds },
    }
}
