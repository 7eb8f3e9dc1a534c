//! What goes wrong in a run: a list drawn from the seed before the run begins, so that a run can be
//! repeated without some of it.

use std::time::Duration;

use rangedb_engine::types::SYSTEM_RANGE;

use super::random::Random;

/// How far the clocks of machines drift apart at most, in millionths: less than what the leases'
/// margin allows.
const DRIFT_MAX: u64 = 40_000;
const HOUR_MS: u64 = 3_600_000;

/// One thing that goes wrong; nodes by their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named for what they are")]
pub enum Fault {
    /// The node's clock runs too fast by so many millionths, from the beginning.
    Drift { node: u16, millionths: i64 },
    /// The power goes, comes again, and may go while the node starts.
    Crash {
        node: u16,
        down_ms: u64,
        again_after_us: Option<u64>,
    },
    /// A clean stop, and a start.
    Stop { node: u16 },
    /// The process does not run.
    Pause { node: u16, ms: u64 },
    /// The machine stands still with all its clocks, as a virtual one that is moved. Its wall clock is
    /// set when it goes on. One that leads a range stands still without its boot-time clock: its lease
    /// would outlive the clock, which nothing on the machine can notice.
    StandStill { node: u16, ms: u64 },
    /// The wall clock is set.
    ClockJump { node: u16, by_ms: i64 },
    /// A write of the log fails.
    WriteError { node: u16, after: u64 },
    /// A read of the log fails.
    ReadError { node: u16, after: u64 },
    /// The next write of the tables fails.
    TableError { node: u16 },
    /// The tables' disk is full, or has room again.
    FullDisk { node: u16, full: bool },
    /// The log's disk is full, or has room again.
    FullLog { node: u16, full: bool },
    /// Operations of the node's disks take so long.
    SlowDisk { node: u16, latency_us: u64 },
    /// Links are cut, each in one direction.
    Cut { links: Vec<(u16, u16)> },
    /// All cuts are mended.
    Mend,
    /// Messages are lost, one of so many, and come twice.
    Loss { one_in: u64, duplicates: bool },
    /// In one message of so many, a bit is changed on the way.
    Damage { one_in: u64 },
    /// Messages on links take so long.
    SlowLinks {
        links: Vec<(u16, u16)>,
        delay_max_us: u64,
    },
    /// Leaders on the node may not read alone, or may again.
    NoLease { node: u16, off: bool },
    /// Something happens right after the node's next answer of a kind went out.
    AtAnswer {
        node: u16,
        answer: Telling,
        then: Then,
    },
    /// A shard's leaderships are handed over.
    HandOver { node: u16, shard: u16 },
    /// The machine's disk is gone for good; after a while another node begins there with an empty one.
    LoseDisk { node: u16, down_ms: u64 },
    /// A part of a shard's folder is gone at a restart: the node must refuse to start, and another one
    /// begins on its machine.
    LosePart {
        node: u16,
        shard: u16,
        part: Part,
        down_ms: u64,
    },
    /// See [`install`](super::install): the machine that loses its power, and after how many polls.
    Install { crash: Option<(u16, u64)> },
    /// A person orders something of the cluster's manager, by way of a node.
    Order { by: u16, order: Order },
}

/// A part of a shard's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are named for what they are")]
pub enum Part {
    Log,
    Tables,
}

/// An answer of one replica to another after which something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Telling {
    /// It votes for the other.
    Voted,
    /// It took entries of the other, and its log is shorter than before.
    Truncated,
}

/// What happens right after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named for what they are")]
pub enum Then {
    /// The power of the node goes, and comes again.
    Crash { down_ms: u64 },
    /// The same, and the one that was answered is cut off, and nobody else is.
    CrashAndPart { down_ms: u64 },
    /// All cuts are mended.
    Mend,
}

/// An order of a person; nodes by their machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named for what they are")]
pub enum Order {
    /// Another node, or any other, shall lead a range.
    Lead { range: u64, to: Option<u16> },
    /// A range's replica shall move to another node, or to another shard of its own.
    Move {
        range: u64,
        from: u16,
        to: u16,
        shard: u16,
    },
    /// Nodes that are silent for so long are dead, and their replicas are replaced.
    DeadAfter { seconds: u64 },
}

/// A fault, and how long after the one before it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The pause before it.
    pub after: Duration,
    /// What goes wrong.
    pub fault: Fault,
}

/// All that goes wrong in a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// In order.
    pub steps: Vec<Step>,
}

/// Which kinds of faults a seed has.
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
    hand_over,
    lead,
    move_replica,
    move_replica,
    dead_after,
];

/// The first of them need no other node.
const ALONE: usize = 13;

impl Faults {
    /// The faults of a seed: of each kind whether it has them at all, then which when.
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
            // What needs others is left out.
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
            // Cuts that last make the rest of the run dull.
            if is_cut && !random.once_in(3) {
                let after = Duration::from_millis(random.between(100, 2_000));
                let fault = Fault::Mend;
                steps.push(Step { after, fault });
            }
        }
        // A second one might take what the first has left.
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

    /// Those with these numbers, at the times at which they come with all.
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

fn node(random: &Random, nodes: u16) -> u16 {
    random.between(1, u64::from(nodes)) as u16
}

fn crash(random: &Random, nodes: u16, _: u16) -> Fault {
    // Now and then short enough that nobody notices, or long enough for the others to purge what it
    // has not seen.
    let most = [50, 500, 8_000][random.below(3) as usize];
    let again = random.once_in(4);
    Fault::Crash {
        node: node(random, nodes),
        down_ms: random.between(0, most),
        again_after_us: again.then(|| random.between(0, 30_000)),
    }
}

/// The way to two leaders, if leases were forgotten at a restart: a leader is cut off from one other for
/// as long as it takes that one to want to lead. Then it is cut off from the third, too, whose answers
/// its lease rests on, and which restarts at once: the two must elect nobody before the lease is over.
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

/// A leader is cut off, in most cases the first one; gives it and the others.
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

/// The way to two leaders, if votes were forgotten at a restart: a leader is cut off, another one is
/// elected, and of those who voted for it one loses its power at once. Then that one is left with the old
/// leader, which has more than it, and both are without the new one.
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

/// The way to entries that come back after they were dropped: a leader that is cut off takes more of them
/// than the next one has when it meets it, and loses its power right after it has dropped them.
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
    Fault::SlowDisk {
        node: node(random, nodes),
        latency_us: random.between(100, 30_000),
    }
}

/// A node is cut off from others, in one direction or both.
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

/// Each node reaches its neighbours in a ring alone, or one of them.
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

/// All links are slow, or those to a node, or those from it.
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

fn hand_over(random: &Random, nodes: u16, shards: u16) -> Fault {
    Fault::HandOver {
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

/// One of the ranges that a cluster begins with.
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
