//! The CPU loads of shards as the balancer counts them: what was reported, and what is expected of the
//! orders that are under way. No I/O here.
//!
//! Reports tell a shard's CPU time over about the last 10 s. So for a while after a range was led elsewhere
//! they still tell the old story. The load that an order takes along ([`Loads::begin`]) is therefore taken
//! from where it goes away and added to where it comes, as long as it is under way; after its end the rest
//! of it that reports do not show yet. What several orders take along is added up; none of them replaces
//! what is known of another.
//!
//! Loads jump. A difference between two shards counts only if it was there in every round of the last
//! [`STEADY`] ([`Loads::exceeds`]).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::env::Instant;
use crate::types::{Location, RangeId};

/// How long a difference must have been there.
const STEADY: Duration = Duration::from_secs(30);
/// Rounds further apart say nothing about the time between them.
const BREAK: Duration = Duration::from_secs(5);
/// The time over which the reported CPU time forgets.
const REPORTED_OVER: Duration = Duration::from_secs(10);
/// After so long nothing is left of what reports do not show.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(40);

/// The load of shards, in thousandths of a core.
pub(super) type ShardCpu = BTreeMap<Location, i64>;

/// A load that goes from one shard to another.
struct Flight<T> {
    range: RangeId,
    from: Location,
    to: Location,
    cpu: u32,
    ended: Option<T>,
}

impl<T: Instant> Flight<T> {
    /// How much of it reports do not show.
    fn unseen(&self, now: T) -> i64 {
        let left = self.ended.map_or(1.0, |ended| {
            (-(now - ended).as_secs_f64() / REPORTED_OVER.as_secs_f64()).exp()
        });
        (f64::from(self.cpu) * left).round() as i64
    }
}

/// See the module's chapter.
pub(super) struct Loads<T> {
    rounds: VecDeque<(T, ShardCpu)>,
    flights: Vec<Flight<T>>,
}

impl<T: Instant> Loads<T> {
    /// Nothing is known yet.
    pub fn new() -> Loads<T> {
        Loads {
            rounds: VecDeque::new(),
            flights: Vec::new(),
        }
    }

    /// Takes what all shards that are there last reported, in thousandths of a core.
    pub fn observe(&mut self, reported: impl Iterator<Item = (Location, u32)>, now: T) {
        self.flights.retain(|flight| {
            flight
                .ended
                .is_none_or(|ended| now < ended + FORGOTTEN_AFTER)
        });
        let mut cpu: ShardCpu = reported.map(|(at, cpu)| (at, i64::from(cpu))).collect();
        for flight in &self.flights {
            let unseen = flight.unseen(now);
            cpu.entry(flight.from).and_modify(|cpu| *cpu -= unseen);
            cpu.entry(flight.to).and_modify(|cpu| *cpu += unseen);
        }
        let is_late = |(at, _): &(T, ShardCpu)| now >= *at + BREAK;
        if self.rounds.back().is_some_and(is_late) {
            self.rounds.clear();
        }
        // One that is as old as can be is kept: the rounds span the whole time.
        while self.rounds.len() > 1 && now >= self.rounds[1].0 + STEADY {
            self.rounds.pop_front();
        }
        self.rounds.push_back((now, cpu));
    }

    /// The loads that are expected now.
    pub fn expected(&self) -> ShardCpu {
        self.rounds
            .back()
            .map_or_else(ShardCpu::new, |(_, cpu)| cpu.clone())
    }

    /// Whether one shard's load has exceeded another's by more than this for the whole time.
    pub fn exceeds(&self, busy: Location, idle: Location, by: i64) -> bool {
        let (Some((first, _)), Some((last, _))) = (self.rounds.front(), self.rounds.back()) else {
            return false;
        };
        let differs = |cpu: &ShardCpu| match (cpu.get(&busy), cpu.get(&idle)) {
            (Some(busy), Some(idle)) => busy - idle > by,
            _ => false,
        };
        *last >= *first + STEADY && self.rounds.iter().all(|(_, cpu)| differs(cpu))
    }

    /// Notes that the load of a range is about to go from one shard to another.
    pub fn begin(&mut self, range: RangeId, (from, to): (Location, Location), cpu: u32) {
        if cpu > 0 && from != to {
            self.flights.push(Flight {
                range,
                from,
                to,
                cpu,
                ended: None,
            });
        }
    }

    /// Notes that a range's load has gone, or that it stays where it was.
    pub fn ended(&mut self, range: RangeId, has_gone: bool, now: T) {
        let open = |flight: &Flight<T>| flight.range == range && flight.ended.is_none();
        if has_gone {
            let flights = self.flights.iter_mut().filter(|flight| open(flight));
            flights.for_each(|flight| flight.ended = Some(now));
        } else {
            self.flights.retain(|flight| !open(flight));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant as StdInstant;

    use super::*;
    use crate::types::{NodeId, ShardId};

    fn at(shard: u16) -> Location {
        Location {
            node: NodeId(1),
            shard: ShardId(shard),
        }
    }

    #[test]
    fn expected_loads_are_added_and_none_overwrites_another() {
        let (mut loads, now) = (Loads::new(), StdInstant::now());
        let reported = [(at(0), 900), (at(1), 100)];
        loads.begin(RangeId(1), (at(0), at(1)), 200);
        loads.begin(RangeId(2), (at(0), at(1)), 100);
        loads.observe(reported.into_iter(), now);
        assert_eq!(loads.expected(), [(at(0), 600), (at(1), 400)].into());
        // One fails, the other one ends: reports do not show that yet.
        loads.ended(RangeId(1), false, now);
        loads.ended(RangeId(2), true, now);
        loads.observe(reported.into_iter(), now);
        assert_eq!(loads.expected(), [(at(0), 800), (at(1), 200)].into());
        // Ten seconds later they show two thirds of it.
        loads.observe(reported.into_iter(), now + REPORTED_OVER);
        assert_eq!(loads.expected(), [(at(0), 863), (at(1), 137)].into());
        loads.observe(reported.into_iter(), now + FORGOTTEN_AFTER);
        assert_eq!(
            loads.expected(),
            reported.map(|(at, cpu)| (at, i64::from(cpu))).into()
        );
    }

    #[test]
    fn a_difference_counts_only_if_it_was_there_all_the_time() {
        let (mut loads, mut now) = (Loads::new(), StdInstant::now());
        let mut pass = |seconds: u64, busy: u32, idle: u32| {
            for _ in 0..seconds * 2 {
                now += Duration::from_millis(500);
                loads.observe([(at(0), busy), (at(1), idle)].into_iter(), now);
            }
            loads.exceeds(at(0), at(1), 150)
        };
        assert!(!pass(29, 800, 100));
        assert!(pass(2, 800, 100));
        assert!(!pass(1, 200, 100));
        assert!(!pass(29, 800, 100), "it was away for a second");
        assert!(pass(3, 800, 100));
        // The manager was held up: nothing is known of the time between.
        now += Duration::from_mins(1);
        loads.observe([(at(0), 800), (at(1), 100)].into_iter(), now);
        assert!(!loads.exceeds(at(0), at(1), 150));
        assert!(!loads.exceeds(at(0), at(2), 150), "nothing is known of it");
    }
}
