//! Keeps track of what a shard has reported to the manager, and finds what the next report must contain.
//! Pure; lives on the shard's thread.
//!
//! Each report looks at all ranges ([`Round`]). A change is *news* and goes into the next report. In a range
//! that is in use, log indexes, loads and sizes change all the time. A report contains them only once in
//! [`STEADY_FOR`], unless a load or a size has changed much. So a range that nobody uses appears in one
//! report and then in none.
//!
//! Every fact is stored with the number of the first report that contained it. A report contains all facts
//! that are newer than the last report that the manager has answered. So the next report makes up for a lost
//! one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::message::{CAUGHT_UP, Follower, HeldReplica, LedRange, RangeStats, Report};
use crate::boot_time::BootTime;
use crate::types::RangeId;

/// A report has what changes all the time if it was in none for this long.
const STEADY_FOR: Duration = Duration::from_secs(5);
/// A rate that differs by less than this, or by less than a fifth, is about as it was.
const RATE_FLOOR: u32 = 20;
/// The same of CPU time, in milliseconds a second.
const CPU_FLOOR: u32 = 5;
/// A size that differs by less than this is about as it was, in bytes.
const SIZE_FLOOR: u64 = 1 << 20;
/// The same for bytes a second.
const BYTES_FLOOR: u64 = 16 << 10;

/// What a report last had of a range.
struct Reported {
    facts: Facts,
    /// The first report that had it.
    number: u64,
    at: BootTime,
    /// The last report that has looked at the range.
    looked: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Facts {
    Led(LedRange),
    Held(HeldReplica),
}

/// See the module's chapter.
#[derive(Default)]
pub struct Reporter {
    reported: BTreeMap<RangeId, Reported>,
    /// The ranges of which there is no replica any more, and the first report that said so.
    gone: BTreeMap<RangeId, u64>,
    /// The number of the last report.
    number: u64,
    /// The last report that the manager has answered; `None` if it must have a whole one.
    answered: Option<u64>,
}

impl Reporter {
    /// Begins the next report.
    pub fn begin(&mut self, now: BootTime) -> Round<'_> {
        self.number += 1;
        Round {
            led: Vec::new(),
            held: Vec::new(),
            now,
            reporter: self,
        }
    }

    /// Takes that the manager has answered a report. `wants_whole`: it could not take it, and asks for a whole
    /// one.
    pub fn answered(&mut self, number: u64, wants_whole: bool) {
        self.answered = (!wants_whole).then_some(number);
    }

    /// Whether the next report may leave out what is in this one.
    fn is_known(&self, number: u64) -> bool {
        self.answered.is_some_and(|answered| number <= answered)
    }
}

/// A report that is being made: every replica of the shard is looked at once.
pub struct Round<'a> {
    reporter: &'a mut Reporter,
    now: BootTime,
    led: Vec<LedRange>,
    held: Vec<HeldReplica>,
}

impl Round<'_> {
    /// Takes a range that is led. `look` gets what was reported of it, if it was led before, and gives what
    /// there is to report now; `None` if that is the same.
    pub fn lead(
        &mut self,
        range: RangeId,
        look: impl FnOnce(Option<&LedRange>) -> Option<LedRange>,
    ) {
        let reported = self
            .reporter
            .reported
            .get(&range)
            .map(|reported| &reported.facts);
        let before = match reported {
            Some(Facts::Led(before)) => Some(before),
            _ => None,
        };
        let facts = look(before).map(Facts::Led);
        self.take(range, facts);
    }

    /// Takes a replica that does not lead.
    pub fn hold(&mut self, held: HeldReplica) {
        let reported = self.reporter.reported.get(&held.range);
        let is_same = matches!(reported, Some(Reported { facts: Facts::Held(before), .. }) if *before == held);
        self.take(held.range, (!is_same).then_some(Facts::Held(held)));
    }

    fn take(&mut self, range: RangeId, facts: Option<Facts>) {
        let (number, now) = (self.reporter.number, self.now);
        let is_whole = self.reporter.answered.is_none();
        if let Some(facts) = facts {
            let reported = self.reporter.reported.get(&range);
            let is_due = reported.is_none_or(|reported| {
                is_whole || now >= reported.at + STEADY_FOR || is_news(&reported.facts, &facts)
            });
            if is_due {
                let (at, looked) = (now, number);
                let reported = Reported {
                    facts,
                    number,
                    at,
                    looked,
                };
                self.reporter.reported.insert(range, reported);
                self.reporter.gone.remove(&range);
            }
        }
        let Some(reported) = self.reporter.reported.get_mut(&range) else {
            return;
        };
        reported.looked = number;
        let number = reported.number;
        if !self.reporter.is_known(number)
            && let Some(reported) = self.reporter.reported.get(&range)
        {
            match &reported.facts {
                Facts::Led(led) => self.led.push(led.clone()),
                Facts::Held(held) => self.held.push(held.clone()),
            }
        }
    }

    /// Writes into the report what it must have; all ranges that were not looked at are gone.
    pub fn end(self, report: &mut Report) {
        let Round { reporter, .. } = self;
        let number = reporter.number;
        let gone = &mut reporter.gone;
        reporter.reported.retain(|range, reported| {
            let is_there = reported.looked == number;
            if !is_there {
                gone.insert(*range, number);
            }
            is_there
        });
        let answered = reporter.answered;
        reporter
            .gone
            .retain(|_, reported| answered.is_some_and(|answered| *reported > answered));
        report.number = number;
        report.since = answered;
        report.gone = reporter.gone.keys().copied().collect();
        report.led = self.led;
        report.held = self.held;
    }
}

/// Whether the next report must have a change.
fn is_news(before: &Facts, now: &Facts) -> bool {
    match (before, now) {
        (Facts::Led(before), Facts::Led(now)) => {
            !is_about(&before.stats, &now.stats) || outline(before) != outline(now) || {
                let mut lags = before.followers.iter().zip(&now.followers);
                lags.any(|(before, now)| before.lag > 0 && now.lag == 0)
            }
        }
        (before, now) => before != now,
    }
}

/// A range without what changes all the time.
fn outline(led: &LedRange) -> LedRange {
    let follower = |follower: &Follower| Follower {
        matched: None,
        lag: match follower.lag {
            0..=CAUGHT_UP => 0,
            u64::MAX => u64::MAX,
            _ => CAUGHT_UP + 1,
        },
        ..*follower
    };
    LedRange {
        applied: 0,
        stats: RangeStats::default(),
        followers: led.followers.iter().map(follower).collect(),
        ..led.clone()
    }
}

/// Whether load and size are about as they were.
fn is_about(before: &RangeStats, now: &RangeStats) -> bool {
    let rate = |before: u32, now: u32, floor: u32| before.abs_diff(now) < floor.max(before / 5);
    let bytes = |before: u64, now: u64| before.abs_diff(now) < BYTES_FLOOR.max(before / 5);
    let size = |before: u64, now: u64| before.abs_diff(now) < SIZE_FLOOR;
    rate(before.reads_per_second, now.reads_per_second, RATE_FLOOR)
        && rate(before.writes_per_second, now.writes_per_second, RATE_FLOOR)
        && rate(
            before.cpu_millis_per_second,
            now.cpu_millis_per_second,
            CPU_FLOOR,
        )
        && bytes(before.read_bytes_per_second, now.read_bytes_per_second)
        && bytes(
            before.written_bytes_per_second,
            now.written_bytes_per_second,
        )
        && size(before.bytes, now.bytes)
        && size(before.live_bytes, now.live_bytes)
}

#[cfg(test)]
#[path = "reporter_tests.rs"]
mod tests;
