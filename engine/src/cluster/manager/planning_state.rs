//! What the manager remembers from one round of planning to the next: the orders under way, their reasons,
//! limits and pauses. No I/O here. The rounds themselves are in [`crate::cluster::planning`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::ORDER_COOLDOWN;
use super::decision_log::Decisions;
use crate::boot_time::BootTime;
use crate::cluster::backoff::{Backoff, Limits};
use crate::cluster::message::DecisionKind;
use crate::cluster::placement::Step;
use crate::cluster::placement::loads::Loads;
use crate::cluster::placement::room::{CHANGES_PER, Room};
use crate::cluster::placement::scatter::Scatter;
use crate::types::{Location, RangeId};

/// The most orders of balance in [`ORDERS_PER`], without those that cost next to nothing.
pub(in crate::cluster) const ORDERS_MAX: usize = 16;
pub(in crate::cluster) const ORDERS_PER: Duration = Duration::from_secs(10);
/// How long a range that is not idle is led where balance has moved it.
const REST: Duration = Duration::from_mins(5);
/// How long balance leaves a range alone after its order failed.
const PAUSES: Limits = Limits {
    first: Duration::from_secs(10),
    longest: Duration::from_mins(5),
};
/// A pause that ended twice its length ago is forgotten.
const FORGOTTEN_AFTER: u32 = 2;

/// Whose an order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster) enum Origin {
    /// It is necessary, or an operator's.
    Duty,
    Balance,
    /// It goes on with an order that was noted.
    Continued,
}

/// Why an order is given.
#[derive(Clone, Debug)]
pub struct Why {
    pub(in crate::cluster) reason: String,
    pub(in crate::cluster) expected: String,
    pub(in crate::cluster) origin: Origin,
    /// Whether it costs next to nothing, and so does not count for the limit of orders.
    pub(in crate::cluster) is_cheap: bool,
}

impl Why {
    /// An operator wants it.
    pub fn operator() -> Why {
        Why::necessary("an operator ordered it".to_owned(), String::new())
    }

    /// It is necessary for something else, for this reason; and what is expected of it.
    pub fn necessary(reason: String, expected: String) -> Why {
        Why {
            reason,
            expected,
            origin: Origin::Duty,
            is_cheap: false,
        }
    }
}

/// A step, and why.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What is to be done.
    pub step: Step,
    /// Why it is done, and what it is expected to improve.
    pub why: Why,
}

/// An order that is under way.
pub(in crate::cluster) struct UnderWay {
    pub decision: u64,
    pub kind: DecisionKind,
    pub to: Option<Location>,
    pub origin: Origin,
    pub since: BootTime,
    /// What it takes of the room for changes of small ranges.
    pub weight: u64,
    /// When the members were what they should be.
    pub reached: Option<BootTime>,
    /// Since when nothing is being done to the range, by its leaders' reports.
    pub quiet: Option<BootTime>,
}

/// What the manager remembers of its orders.
pub struct Planning {
    /// The last decisions.
    pub decisions: Decisions,
    pub(in crate::cluster) loads: Loads,
    pub(in crate::cluster) scatter: Scatter,
    pub(in crate::cluster) under_way: BTreeMap<RangeId, UnderWay>,
    /// When balance has had ranges led elsewhere.
    pub(in crate::cluster) moved: BTreeMap<RangeId, BootTime>,
    /// The ranges that balance leaves alone for a while, or did a short while ago.
    pub(in crate::cluster) paused: BTreeMap<RangeId, Backoff>,
    /// Ranges that are being merged, with their right neighbours: their replicas are being brought onto the
    /// same shards.
    pub(in crate::cluster) merging: Vec<[RangeId; 2]>,
    /// The ranges that orders are splitting into many, and until when each order may take. Balance by number
    /// waits meanwhile: numbers that differ because one part is split before the other come right by
    /// themselves.
    pub(in crate::cluster) bulk_splits: BTreeMap<RangeId, BootTime>,
    /// When balance gave its last orders that were not cheap.
    pub(in crate::cluster) given: VecDeque<BootTime>,
    /// When the last changes of members of large ranges were ordered, but for those of balance.
    pub(in crate::cluster) changes: VecDeque<BootTime>,
    /// Whether an order has ended since this was last asked.
    pub(in crate::cluster) has_ended: bool,
}

impl Planning {
    /// Of a manager of this term.
    pub(in crate::cluster) fn new(term: u64) -> Planning {
        Planning {
            decisions: Decisions::new(term),
            loads: Loads::new(),
            scatter: Scatter::new(),
            under_way: BTreeMap::new(),
            moved: BTreeMap::new(),
            paused: BTreeMap::new(),
            merging: Vec::new(),
            bulk_splits: BTreeMap::new(),
            given: VecDeque::new(),
            changes: VecDeque::new(),
            has_ended: false,
        }
    }

    /// What an order under way does to its range.
    pub fn kind_of(&self, range: RangeId) -> Option<DecisionKind> {
        self.under_way.get(&range).map(|order| order.kind)
    }

    /// What may still be ordered to complete the members of ranges. An order that has not ended when another one
    /// might be given takes no room: a range that is stuck holds up no other.
    pub(in crate::cluster) fn room(&self, now: BootTime) -> Room {
        let orders = self.under_way.values();
        let recent = orders.filter(|order| now < order.since + ORDER_COOLDOWN);
        let large = self.changes.iter();
        let large = large.filter(|at| now < **at + CHANGES_PER).count();
        Room::beside(recent.map(|order| order.weight).sum(), large)
    }

    /// How many leaderships are on their way to each shard.
    pub(in crate::cluster) fn leads(&self) -> BTreeMap<Location, usize> {
        let mut leads = BTreeMap::new();
        let orders = self.under_way.values();
        let orders = orders.filter(|order| order.kind == DecisionKind::MoveLeader);
        for to in orders.filter_map(|order| order.to) {
            *leads.entry(to).or_default() += 1;
        }
        leads
    }

    /// Whether balance leaves a range alone now.
    pub(in crate::cluster) fn is_paused(&self, range: RangeId, now: BootTime) -> bool {
        if self
            .merging
            .iter()
            .flatten()
            .any(|merging| *merging == range)
        {
            return true;
        }
        let paused = self.paused.get(&range);
        paused.is_some_and(|pause| pause.lasts(now))
    }

    /// Whether an order is splitting a range into many now.
    pub(in crate::cluster) fn splits_into_many(&self, now: BootTime) -> bool {
        self.bulk_splits.values().any(|until| now < *until)
    }

    pub(in crate::cluster) fn pause(&mut self, range: RangeId, now: BootTime) {
        let pause = Backoff::after(self.paused.get(&range), PAUSES, now);
        self.paused.insert(range, pause);
    }

    pub(in crate::cluster) fn forget_old(&mut self, now: BootTime) {
        self.given.retain(|at| now < *at + ORDERS_PER);
        self.changes.retain(|at| now < *at + CHANGES_PER);
        self.moved.retain(|_, at| now < *at + REST);
        self.bulk_splits.retain(|_, until| now < *until);
        self.paused
            .retain(|_, pause| !pause.is_forgotten(FORGOTTEN_AFTER, now));
    }
}
