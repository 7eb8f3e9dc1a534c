//! What the manager plans, and what it remembers of its orders. No I/O here.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::backoff::{Backoff, Limits};
use super::decisions::{DecisionKind, Decisions};
use super::loads::Loads;
use super::placement::Step;
use super::scatter::Scatter;
use crate::boot_time::BootTime;
use crate::types::{Location, RangeId};

/// The most orders of balance in [`ORDERS_PER`], without those that cost next to nothing.
pub(super) const ORDERS_MAX: usize = 16;
pub(super) const ORDERS_PER: Duration = Duration::from_secs(10);
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
pub(super) enum Origin {
    /// It is necessary, or an operator's.
    Duty,
    Balance,
    /// It goes on with an order that was noted.
    Continued,
}

/// Why an order is given.
#[derive(Clone, Debug)]
pub struct Why {
    pub(super) reason: String,
    pub(super) expected: String,
    pub(super) origin: Origin,
    /// Whether it costs next to nothing, and so does not count for the limit of orders.
    pub(super) is_cheap: bool,
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
pub(super) struct UnderWay {
    pub decision: u64,
    pub kind: DecisionKind,
    pub to: Option<Location>,
    pub origin: Origin,
    pub since: BootTime,
    /// When the members were what they should be.
    pub reached: Option<BootTime>,
    /// Since when nothing is being done to the range, by its leaders' reports.
    pub quiet: Option<BootTime>,
}

/// What the manager remembers of its orders.
pub struct Planning {
    /// The last decisions.
    pub decisions: Decisions,
    pub(super) loads: Loads,
    pub(super) scatter: Scatter,
    pub(super) under_way: BTreeMap<RangeId, UnderWay>,
    /// When balance has had ranges led elsewhere.
    pub(super) moved: BTreeMap<RangeId, BootTime>,
    /// The ranges that balance leaves alone for a while, or did a short while ago.
    pub(super) paused: BTreeMap<RangeId, Backoff>,
    /// Ranges that are being merged, with their right neighbours: their replicas are being brought onto the
    /// same shards.
    pub(super) merging: Vec<[RangeId; 2]>,
    /// When balance gave its last orders that were not cheap.
    pub(super) given: VecDeque<BootTime>,
}

impl Planning {
    /// Of a manager of this term.
    pub(super) fn new(term: u64) -> Planning {
        Planning {
            decisions: Decisions::new(term),
            loads: Loads::new(),
            scatter: Scatter::new(),
            under_way: BTreeMap::new(),
            moved: BTreeMap::new(),
            paused: BTreeMap::new(),
            merging: Vec::new(),
            given: VecDeque::new(),
        }
    }

    /// What an order under way does to its range.
    pub fn kind_of(&self, range: RangeId) -> Option<DecisionKind> {
        self.under_way.get(&range).map(|order| order.kind)
    }

    /// How many leaderships are on their way to each shard.
    pub(super) fn leads(&self) -> BTreeMap<Location, usize> {
        let mut leads = BTreeMap::new();
        let orders = self.under_way.values();
        let orders = orders.filter(|order| order.kind == DecisionKind::MoveLeader);
        for to in orders.filter_map(|order| order.to) {
            *leads.entry(to).or_default() += 1;
        }
        leads
    }

    /// Whether balance leaves a range alone now.
    pub(super) fn is_paused(&self, range: RangeId, now: BootTime) -> bool {
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

    pub(super) fn pause(&mut self, range: RangeId, now: BootTime) {
        let pause = Backoff::after(self.paused.get(&range), PAUSES, now);
        self.paused.insert(range, pause);
    }

    pub(super) fn forget_old(&mut self, now: BootTime) {
        self.given.retain(|at| now < *at + ORDERS_PER);
        self.moved.retain(|_, at| now < *at + REST);
        self.paused
            .retain(|_, pause| !pause.is_forgotten(FORGOTTEN_AFTER, now));
    }
}
