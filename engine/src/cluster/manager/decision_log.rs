//! The last decisions of the manager, for people: what it ordered for which range, why, and how it ended.
//! They are in memory only; a new manager begins with none. No I/O here.
//!
//! The code that decides records the decision ([`Decisions::note`]) and later its end ([`Decisions::ended`]).
//! For orders that change members and leaders this happens in one place, where they are given
//! ([`crate::cluster::planning`]).

use std::collections::VecDeque;

use crate::boot_time::BootTime;
use crate::cluster::message::{Decision, DecisionKind, Outcome};
use crate::types::{Location, RangeId};

/// How many decisions are remembered.
const DECISIONS_MAX: usize = 100;

/// A decision that is about to be noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDecision {
    /// The range whose leader, replica or bounds change.
    pub range: RangeId,
    /// What is changed, such as a leader or a replica.
    pub kind: DecisionKind,
    /// Why, for people.
    pub reason: String,
    /// Where it moves from, if it does.
    pub from: Option<Location>,
    /// Where it moves to, if it does.
    pub to: Option<Location>,
    /// What is expected of it, for people.
    pub expected: String,
}

/// The last decisions; see the module's chapter.
pub struct Decisions {
    last: VecDeque<Decision>,
    next: u64,
    /// A time of the manager, and what the wall clock said then.
    clock: Option<(BootTime, u64)>,
}

impl Decisions {
    /// None yet. The ids of a manager with a higher term are higher.
    pub(in crate::cluster) fn new(term: u64) -> Decisions {
        Decisions {
            last: VecDeque::new(),
            next: term << 32,
            clock: None,
        }
    }

    /// Says what the wall clock shows now, in milliseconds since 1970. Before that, decisions are of 1970.
    pub fn set_clock(&mut self, now: BootTime, wall_ms: u64) {
        self.clock = Some((now, wall_ms));
    }

    /// What the wall clock shows at a time, in milliseconds since 1970.
    pub(in crate::cluster) fn wall_ms(&self, now: BootTime) -> u64 {
        self.clock.map_or(0, |(at, wall_ms)| {
            wall_ms + u64::try_from((now - at).as_millis()).unwrap_or(0)
        })
    }

    /// Notes a decision that is being carried out; gives its id, with which its end is told.
    pub fn note(&mut self, new: NewDecision, now: BootTime) -> u64 {
        let at_ms = self.wall_ms(now);
        self.next += 1;
        if self.last.len() == DECISIONS_MAX {
            self.last.pop_front();
        }
        self.last.push_back(Decision {
            id: self.next,
            at_ms,
            range: new.range,
            kind: new.kind,
            reason: new.reason,
            from: new.from,
            to: new.to,
            expected: new.expected,
            outcome: Outcome::UnderWay,
        });
        self.next
    }

    /// Says how a decision ended, or why it failed. The first word counts; what is forgotten is passed over.
    pub fn ended(&mut self, id: u64, result: Result<(), String>) {
        let mut last = self.last.iter_mut();
        if let Some(decision) = last.find(|decision| decision.id == id)
            && decision.outcome == Outcome::UnderWay
        {
            decision.outcome = match result {
                Ok(()) => Outcome::Done,
                Err(why) => Outcome::Failed(why),
            };
        }
    }

    /// The last decisions, oldest first.
    pub fn last(&self) -> Vec<Decision> {
        self.last.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::boot_time::test_clock;

    fn new(range: u64) -> NewDecision {
        NewDecision {
            range: RangeId(range),
            kind: DecisionKind::Split,
            reason: "why".to_owned(),
            from: None,
            to: None,
            expected: String::new(),
        }
    }

    #[test]
    fn the_last_hundred_decisions_are_known_with_their_times_and_ends() {
        let (mut decisions, now) = (Decisions::new(3), test_clock::now());
        decisions.set_clock(now, 5_000);
        let ids: Vec<u64> = (0..120)
            .map(|number| decisions.note(new(number), now + Duration::from_secs(number)))
            .collect();
        assert!(ids.is_sorted() && ids[0] > 3 << 32 && ids[119] < 4 << 32);
        decisions.ended(ids[119], Ok(()));
        decisions.ended(ids[118], Err("the disk is full".to_owned()));
        decisions.ended(ids[118], Ok(()));
        decisions.ended(ids[0], Ok(()));
        let last = decisions.last();
        assert_eq!(last.len(), DECISIONS_MAX);
        assert_eq!((last[0].id, last[0].at_ms), (ids[20], 25_000));
        assert_eq!(last[0].outcome, Outcome::UnderWay);
        let failed = Outcome::Failed("the disk is full".to_owned());
        assert_eq!(
            (&last[98].outcome, &last[99].outcome),
            (&failed, &Outcome::Done)
        );
    }
}
