//! What the swarm draws about ranges besides splits and merges by order: what the manager does by itself, with
//! low thresholds and short times, moves of ranges that were split off, and nodes that leave for good.

use std::time::Duration;

use super::faults::{Fault, Faults, Order, Step, key};
use super::random::Random;

/// For the manager a byte of a row counts as so many at least: a range is split by itself from 16 MiB on.
const BYTE_COUNTS_FROM: u64 = 1 << 11;
/// How often that may be doubled.
const DOUBLINGS: u64 = 3;

/// A part of the list of faults.
#[derive(Clone, Copy)]
enum Part {
    Any,
    First,
    Last,
}

impl Faults {
    /// Has the manager split ranges that have become large, and merge cold ones after a second.
    pub fn add_automatic(&mut self, random: &Random, nodes: u16) {
        let mut settings = Vec::new();
        if random.once_in(3) {
            let times = BYTE_COUNTS_FROM << random.below(DOUBLINGS + 1);
            let fault = Fault::LargeRows { times };
            self.insert(random, Part::Any, fault);
            settings.push(("range-size-max", "16MiB"));
        }
        if random.once_in(3) {
            settings.push(("merge-after", "1s"));
        }
        for (name, value) in settings {
            let order = Order::Set { name, value };
            let by = node(random, nodes);
            self.insert(random, Part::First, Fault::Order { by, order });
        }
    }

    /// Moves replicas and leaderships of ranges that hold keys which clients use, whichever these are by then.
    pub fn add_moves(&mut self, random: &Random, nodes: u16, shards: u16) {
        if random.once_in(2) {
            return;
        }
        for _ in 0..random.between(1, 5) {
            let at = key(random, [b'c', b'c', b'g', b'x']);
            let (from, to) = (node(random, nodes), node(random, nodes));
            let shard = random.below(u64::from(shards)) as u16;
            let order = match random.once_in(3) {
                true => Order::LeadAt { at, to },
                false => Order::MoveAt {
                    at,
                    from,
                    to,
                    shard,
                },
            };
            let by = node(random, nodes);
            self.insert(random, Part::Last, Fault::Order { by, order });
        }
    }

    /// Has an operator decommission a node of five.
    pub fn add_decommission(&mut self, random: &Random, nodes: u16) {
        if nodes < 5 || !random.once_in(3) {
            return;
        }
        let order = Order::Decommission {
            node: node(random, nodes),
        };
        let by = node(random, nodes);
        self.insert(random, Part::Any, Fault::Order { by, order });
    }

    /// Whether the manager does more by itself than with the settings of a new cluster.
    pub fn have_automatic(&self) -> bool {
        let is_one = |step: &Step| match step.fault {
            Fault::Order { order, .. } => matches!(order, Order::Set { .. }),
            _ => false,
        };
        self.steps.iter().any(is_one)
    }

    /// Inserts a fault somewhere into a part of the list.
    fn insert(&mut self, random: &Random, part: Part, fault: Fault) {
        let all = self.steps.len() as u64;
        let (first, end) = match part {
            Part::Any => (0, all),
            Part::First => (0, all / 2),
            Part::Last => (all / 2, all),
        };
        let at = first + random.below(end - first + 1);
        let after = Duration::from_millis(random.between(0, 900));
        self.steps.insert(at as usize, Step { after, fault });
    }
}

fn node(random: &Random, nodes: u16) -> u16 {
    random.between(1, u64::from(nodes)) as u16
}
