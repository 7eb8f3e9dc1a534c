//! Departures: the ranges of a shard propose their entries together, in the same turn.
//!
//! What an entry costs beside its commands (a wake-up, a write of the log, a message to each follower
//! and its answer) is paid once for all entries that depart in one turn. So a range whose entry has
//! arrived waits a moment for the entries of the other ranges and for the clients that were just
//! answered ([`Departures::are_all_there`]), and as soon as one of them departs, all do. Each range
//! bounds its own wait ([`Gathering::until`]); a range that nobody wrote to lately does not wait.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::boot_time::{BootClock, BootTime};
use crate::notify::Notify;

/// What a range waits for between two entries.
#[derive(Debug)]
pub struct Gathering {
    /// Clients that were answered and have not written again.
    pub(crate) missing: Cell<usize>,
    /// Until when they are waited for.
    until: Cell<BootTime>,
}

impl Gathering {
    /// Nothing is waited for.
    pub fn new() -> Rc<Gathering> {
        Rc::new(Gathering {
            missing: Cell::new(0),
            until: Cell::default(),
        })
    }

    /// Until when the range waits at the latest.
    pub fn until(&self) -> BootTime {
        self.until.get()
    }
}

/// The departures of a shard.
#[derive(Debug)]
pub struct Departures {
    clock: BootClock,
    /// Entries of all ranges that are in flight.
    in_flight: Cell<usize>,
    /// Entries that have departed.
    departed: Cell<u64>,
    /// The ranges that may miss clients.
    gathering: RefCell<Vec<Rc<Gathering>>>,
    /// How long the entry that has arrived last was on its way.
    pub(crate) last_flight: Cell<Duration>,
    /// Notified when a range that waits may go on.
    pub news: Notify,
}

impl Departures {
    /// No entry is in flight, and no client is waited for.
    pub fn new(clock: BootClock) -> Departures {
        Departures {
            clock,
            in_flight: Cell::new(0),
            departed: Cell::new(0),
            gathering: RefCell::default(),
            last_flight: Cell::default(),
            news: Notify::default(),
        }
    }

    /// The time now.
    pub fn now(&self) -> BootTime {
        (self.clock)()
    }

    /// How many entries have departed. A range that waits goes on when this changes.
    pub fn departed(&self) -> u64 {
        self.departed.get()
    }

    /// Whether no entry is in flight and no client is waited for.
    pub fn are_all_there(&self) -> bool {
        if self.in_flight.get() > 0 {
            return false;
        }
        let mut gathering = self.gathering.borrow_mut();
        if !gathering.is_empty() {
            let now = self.now();
            gathering.retain(|range| range.missing.get() > 0 && range.until.get() > now);
        }
        gathering.is_empty()
    }

    /// An entry of this range departs: so do those of the ranges that wait.
    pub fn depart(&self, range: &Gathering) {
        range.missing.set(0);
        self.in_flight.set(self.in_flight.get() + 1);
        self.departed.set(self.departed.get() + 1);
        self.news.notify();
    }

    /// An entry of this range has arrived: the next writes of the clients that it answered are waited
    /// for, until this time.
    pub fn arrive(&self, range: &Rc<Gathering>, answered: usize, until: BootTime) {
        range.missing.set(range.missing.get() + answered);
        range.until.set(until);
        let mut gathering = self.gathering.borrow_mut();
        if !gathering.iter().any(|other| Rc::ptr_eq(other, range)) {
            gathering.push(range.clone());
        }
        drop(gathering);
        self.lose();
    }

    /// An entry in flight has arrived, or nobody waits for it any more.
    pub fn lose(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.look();
    }

    /// A client of this range writes.
    pub fn written(&self, range: &Gathering) {
        if let Some(missing) = range.missing.get().checked_sub(1) {
            range.missing.set(missing);
            if missing == 0 {
                self.look();
            }
        }
    }

    fn look(&self) {
        if self.are_all_there() {
            self.news.notify();
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::boot_time::test_clock;

    #[test]
    fn ranges_wait_for_each_others_entries_and_clients() {
        let departures = Departures::new(test_clock::now);
        let [one, other] = [(); 2].map(|()| Gathering::new());
        let later = test_clock::now() + Duration::from_hours(1);
        assert!(departures.are_all_there());
        departures.depart(&one);
        departures.depart(&other);
        departures.arrive(&one, 2, later);
        departures.written(&one);
        departures.written(&one);
        assert!(!departures.are_all_there(), "the other entry is in flight");
        departures.arrive(&other, 1, later);
        assert!(!departures.are_all_there(), "its client is missing");
        departures.written(&other);
        departures.written(&other);
        assert!(departures.are_all_there());
        assert_eq!(departures.departed(), 2);
    }

    #[test]
    fn a_range_whose_clients_stay_away_holds_up_no_other() {
        let departures = Departures::new(test_clock::now);
        let [one, other] = [(); 2].map(|()| Gathering::new());
        let later = test_clock::now() + Duration::from_hours(1);
        departures.depart(&one);
        departures.arrive(&one, 5, test_clock::now());
        assert!(departures.are_all_there());
        // What departs without them waits for them no longer.
        departures.depart(&other);
        departures.arrive(&other, 5, later);
        assert!(!departures.are_all_there());
        departures.depart(&other);
        departures.lose();
        assert!(departures.are_all_there());
    }
}
