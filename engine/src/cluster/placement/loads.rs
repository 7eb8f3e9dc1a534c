//! The CPU loads of shards as the balancer compares them: what was reported, and what is expected of the
//! orders that are under way. No I/O here.
//!
//! There are two kinds of loads ([`Span`]). The *short* load is the reported one, over about the last 10 s.
//! After the leadership of a range has moved, reports still show its load at the old place for a while.
//! Therefore the load that an order moves ([`Loads::begin`]) is subtracted at its old place and added at its
//! new one as long as the order is under way. After its end the same is done with the part that reports do
//! not show yet. The loads of several orders add up; no order replaces what is known of another.
//!
//! The *long* load of a shard is a sum of means over 5 minutes ([`super::load_mean`]): the means of the
//! ranges that it leads, or will lead after the orders that are under way, and the mean of everything else
//! that it does. So it follows a leadership at once, and jumps for no other reason.
//!
//! A difference between two shards counts only if every round has seen it for a while. Then it counts for a
//! minute, so that the moves that it causes go on while it shrinks ([`Loads::exceeded`]).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::load_mean::Mean;
use crate::boot_time::BootTime;
use crate::types::{Location, RangeId};

/// How long a difference of long loads must have been there.
const STEADY: Duration = Duration::from_secs(30);
/// The same of short loads.
const STEADY_SHORT: Duration = Duration::from_secs(15);
/// How long rounds are remembered.
const REMEMBERED: Duration = Duration::from_mins(1);
/// Rounds further apart say nothing about the time between them.
const BREAK: Duration = Duration::from_secs(5);
/// The time over which the reported CPU time forgets.
const REPORTED_OVER: Duration = Duration::from_secs(10);
/// After so long nothing is left of what reports do not show.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(40);

/// The load of shards, in thousandths of a core.
pub(super) type ShardCpu = BTreeMap<Location, i64>;

/// The time over which a load is the mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster) enum Span {
    /// About 10 s.
    Short,
    /// 5 minutes.
    Long,
}

/// What a range takes at its leader, in thousandths of a core.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::cluster) struct Cpu {
    pub short: u32,
    pub long: u32,
}

impl Cpu {
    pub fn of(self, span: Span) -> u32 {
        match span {
            Span::Short => self.short,
            Span::Long => self.long,
        }
    }
}

/// The loads of shards that are expected, over both times.
#[derive(Clone, Debug, Default)]
pub(in crate::cluster) struct Expected {
    short: ShardCpu,
    long: ShardCpu,
}

impl Expected {
    pub fn of(&self, span: Span) -> &ShardCpu {
        match span {
            Span::Short => &self.short,
            Span::Long => &self.long,
        }
    }

    /// Counts a load as gone from one shard to another.
    pub fn shift(&mut self, route: (Location, Location), load: Cpu) {
        shift(&mut self.short, route, load.short.into());
        shift(&mut self.long, route, load.long.into());
    }
}

/// Counts a load as gone from one shard to another.
pub(super) fn shift(cpu: &mut ShardCpu, (from, to): (Location, Location), load: i64) {
    cpu.entry(from).and_modify(|cpu| *cpu -= load);
    cpu.entry(to).and_modify(|cpu| *cpu += load);
}

/// A load that goes from one shard to another.
struct Flight {
    range: RangeId,
    from: Location,
    to: Location,
    cpu: u32,
    ended: Option<BootTime>,
}

impl Flight {
    /// How much of it reports do not show.
    fn unseen(&self, now: BootTime) -> i64 {
        let left = self.ended.map_or(1.0, |ended| {
            (-(now - ended).as_secs_f64() / REPORTED_OVER.as_secs_f64()).exp()
        });
        (f64::from(self.cpu) * left).round() as i64
    }
}

/// The loads of the last rounds.
struct Rounds {
    rounds: VecDeque<(BootTime, ShardCpu)>,
    /// How long a difference must be there.
    steady: Duration,
}

impl Rounds {
    /// No rounds yet. A difference counts once it has lasted for `steady`.
    fn new(steady: Duration) -> Rounds {
        Rounds {
            rounds: VecDeque::new(),
            steady,
        }
    }

    fn push(&mut self, cpu: ShardCpu, now: BootTime) {
        let is_late = |(at, _): &(BootTime, ShardCpu)| now >= *at + BREAK;
        if self.rounds.back().is_some_and(is_late) {
            self.rounds.clear();
        }
        while self
            .rounds
            .front()
            .is_some_and(|(at, _)| now > *at + REMEMBERED)
        {
            self.rounds.pop_front();
        }
        self.rounds.push_back((now, cpu));
    }

    fn last(&self) -> ShardCpu {
        self.rounds
            .back()
            .map_or_else(ShardCpu::new, |(_, cpu)| cpu.clone())
    }

    /// See [`Loads::exceeded`].
    fn exceeded(&self, busy: Location, idle: Location, by: i64) -> bool {
        let mut since = None;
        self.rounds.iter().any(|(at, cpu)| {
            let differs = match (cpu.get(&busy), cpu.get(&idle)) {
                (Some(busy), Some(idle)) => busy - idle > by,
                _ => false,
            };
            since = since.or(Some(*at)).filter(|_| differs);
            since.is_some_and(|since| *at >= since + self.steady)
        })
    }
}

/// See the module's chapter.
pub(in crate::cluster) struct Loads {
    short: Rounds,
    long: Rounds,
    flights: Vec<Flight>,
    /// What each shard does beside the ranges that it leads.
    besides: BTreeMap<Location, Mean>,
}

impl Loads {
    /// Nothing is known yet.
    pub fn new() -> Loads {
        Loads {
            short: Rounds::new(STEADY_SHORT),
            long: Rounds::new(STEADY),
            flights: Vec::new(),
            besides: BTreeMap::new(),
        }
    }

    /// Takes what all shards that are there last reported, in thousandths of a core, and what the ranges take
    /// that are led there, or will be.
    pub fn observe(
        &mut self,
        reported: impl Iterator<Item = (Location, u32)>,
        ranges: impl Iterator<Item = (Location, Cpu)>,
        now: BootTime,
    ) {
        self.flights.retain(|flight| {
            flight
                .ended
                .is_none_or(|ended| now < ended + FORGOTTEN_AFTER)
        });
        let mut cpu: ShardCpu = reported.map(|(at, cpu)| (at, i64::from(cpu))).collect();
        for flight in &self.flights {
            shift(&mut cpu, (flight.from, flight.to), flight.unseen(now));
        }
        let (mut led, mut long) = (ShardCpu::new(), ShardCpu::new());
        for (at, of_range) in ranges {
            *led.entry(at).or_default() += i64::from(of_range.short);
            *long.entry(at).or_default() += i64::from(of_range.long);
        }
        self.besides.retain(|at, _| cpu.contains_key(at));
        long.retain(|at, _| cpu.contains_key(at));
        for (at, cpu) in &cpu {
            let besides = (cpu - led.get(at).copied().unwrap_or_default()) as f64;
            let mean = self.besides.entry(*at);
            let mean = mean.or_insert_with(|| Mean::new(besides, now));
            mean.take(besides, now);
            *long.entry(*at).or_default() += mean.until(now).max(0.0).round() as i64;
        }
        self.short.push(cpu, now);
        self.long.push(long, now);
    }

    /// The loads that are expected now.
    pub fn expected(&self) -> Expected {
        Expected {
            short: self.short.last(),
            long: self.long.last(),
        }
    }

    /// Whether within the last minute one shard's load has exceeded another's by more than this, in every
    /// round for as long as it takes to count.
    pub fn exceeded(&self, span: Span, (busy, idle): (Location, Location), by: i64) -> bool {
        match span {
            Span::Short => self.short.exceeded(busy, idle, by),
            Span::Long => self.long.exceeded(busy, idle, by),
        }
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
    pub fn ended(&mut self, range: RangeId, has_gone: bool, now: BootTime) {
        let open = |flight: &Flight| flight.range == range && flight.ended.is_none();
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
    use std::iter;

    use super::*;
    use crate::boot_time::test_clock;
    use crate::types::{NodeId, ShardId};

    fn at(shard: u16) -> Location {
        Location {
            node: NodeId(1),
            shard: ShardId(shard),
        }
    }

    #[test]
    fn expected_loads_are_added_and_none_overwrites_another() {
        let (mut loads, now) = (Loads::new(), test_clock::now());
        let reported = [(at(0), 900), (at(1), 100)];
        loads.begin(RangeId(1), (at(0), at(1)), 200);
        loads.begin(RangeId(2), (at(0), at(1)), 100);
        loads.observe(reported.into_iter(), iter::empty(), now);
        assert_eq!(loads.expected().short, [(at(0), 600), (at(1), 400)].into());
        // One fails, the other one ends: reports do not show that yet.
        loads.ended(RangeId(1), false, now);
        loads.ended(RangeId(2), true, now);
        loads.observe(reported.into_iter(), iter::empty(), now);
        assert_eq!(loads.expected().short, [(at(0), 800), (at(1), 200)].into());
        // Ten seconds later they show two thirds of it.
        loads.observe(reported.into_iter(), iter::empty(), now + REPORTED_OVER);
        assert_eq!(loads.expected().short, [(at(0), 863), (at(1), 137)].into());
        loads.observe(reported.into_iter(), iter::empty(), now + FORGOTTEN_AFTER);
        assert_eq!(
            loads.expected().short,
            reported.map(|(at, cpu)| (at, i64::from(cpu))).into()
        );
    }

    #[test]
    fn a_difference_counts_for_a_minute_if_it_was_there_for_a_while() {
        let (mut loads, mut now) = (Loads::new(), test_clock::now());
        let mut pass = |seconds: u64, busy: u32, idle: u32| {
            for _ in 0..seconds * 2 {
                now += Duration::from_millis(500);
                let reported = [(at(0), busy), (at(1), idle)];
                loads.observe(reported.into_iter(), iter::empty(), now);
            }
            let exceeded = |span| loads.exceeded(span, (at(0), at(1)), 150);
            (exceeded(Span::Short), exceeded(Span::Long))
        };
        assert_eq!(pass(14, 800, 100), (false, false));
        assert_eq!(pass(2, 800, 100), (true, false));
        assert_eq!(pass(43, 250, 100), (true, true), "it is remembered");
        assert_eq!(pass(5, 250, 100), (false, true), "the mean still differs");
        assert_eq!(pass(14, 800, 100), (false, true));
        pass(1, 200, 100);
        assert_eq!(
            pass(14, 800, 100),
            (false, true),
            "it was away for a second"
        );
        assert_eq!(pass(2, 800, 100), (true, true));
        // The manager was held up: nothing is known of the time between.
        now += Duration::from_mins(1);
        let reported = [(at(0), 800), (at(1), 100)];
        loads.observe(reported.into_iter(), iter::empty(), now);
        assert!(!loads.exceeded(Span::Short, (at(0), at(1)), 150));
        assert!(!loads.exceeded(Span::Long, (at(0), at(1)), 150));
        let unknown = (at(0), at(2));
        assert!(
            !loads.exceeded(Span::Short, unknown, 150),
            "nothing is known of it"
        );
    }

    #[test]
    fn the_long_load_of_a_shard_follows_leaderships_and_does_not_jump() {
        let (mut loads, mut now) = (Loads::new(), test_clock::now());
        let cpu = |short, long| Cpu { short, long };
        let mut pass = |seconds: u64, led_at: u16, of_range: Cpu| {
            for _ in 0..seconds * 2 {
                now += Duration::from_millis(500);
                let besides = |shard: u16| if shard == led_at { of_range.short } else { 0 };
                let reported = [0, 1].map(|shard| (at(shard), 50 + besides(shard)));
                let ranges = [(at(led_at), of_range)];
                loads.observe(reported.into_iter(), ranges.into_iter(), now);
            }
            let expected = loads.expected();
            [0, 1].map(|shard| expected.of(Span::Long)[&at(shard)])
        };
        assert_eq!(pass(60, 0, cpu(300, 300)), [350, 50]);
        assert_eq!(pass(10, 0, cpu(900, 320)), [370, 50]);
        assert_eq!(pass(1, 1, cpu(900, 320)), [50, 370]);
    }
}
