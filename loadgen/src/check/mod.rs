//! Checks that a history of single-key operations is linearizable: each operation seems to take
//! effect at one moment between its sending and its answer.
//!
//! The property holds for a whole history if it holds for each key alone, so every key has its own
//! checker ([`KeyChecker`]). Operations may be added while the history still grows:
//! [`Checker::advance`] decides all events before a moment, and no operation that was sent before
//! it may be added later. At quiescent points (nothing under way) the earlier operations are
//! forgotten and only the states that they allow are kept, so memory is bounded in a run of any
//! length.
//!
//! The check knows no client and no clock (see `clients`), and no transactions. Single-threaded.
//! The simulator uses it, too.
//!
//! Reading order: `history` (what is checked), `search` (how), `shrink` (what is shown).

pub mod clients;
pub mod history;
pub mod search;
pub mod shrink;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;

use history::{Moment, Operation, RegisterState};
use search::{CONFIGURATIONS_MAX, Configuration, OpId, Search, Stop};

/// How many operations of a key are kept at least, so that a failing history has context.
const WINDOW_OPERATIONS_MIN: usize = 64;

/// A set of operations that no order explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailingHistory {
    /// The states that the key may have had before `operations`, given everything earlier.
    pub before: Vec<RegisterState>,
    /// The operations, in the order in which they were sent.
    pub operations: Vec<Operation>,
    /// How many earlier operations the key had; `before` is what remains of them.
    pub earlier: u64,
    /// How many operations were left out because the rest fails whatever they did.
    pub left_out: usize,
}

impl fmt::Display for FailingHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let states: Vec<String> = self
            .before
            .iter()
            .map(|&state| history::show_register(state).to_string())
            .collect();
        writeln!(
            f,
            "  before: {} ({} earlier operations)",
            states.join(" or "),
            self.earlier
        )?;
        writeln!(f, "  {:>14} .. {:<14}", "sent, us", "answered, us")?;
        for operation in &self.operations {
            writeln!(f, "  {operation}")?;
        }
        write!(f, "  no order of these explains the answers")?;
        if self.left_out > 0 {
            write!(
                f,
                ", whatever became of {} more that are left out",
                self.left_out
            )?;
        }
        Ok(())
    }
}

/// The part of a key's history that is still kept.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// The configurations that explain everything before the window.
    base: Vec<Configuration>,
    /// The operations sent in the window, and older ones of unknown fate.
    operations: BTreeMap<OpId, Operation>,
    earlier: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EventKind {
    // At the same moment, sending comes before returning: the two operations count as concurrent.
    Sent,
    Returned,
}

/// Feeds one event to a search.
pub(crate) fn step(
    search: &mut Search,
    kind: EventKind,
    id: OpId,
    operation: &Operation,
) -> Result<(), Stop> {
    match kind {
        EventKind::Returned => search.complete(id),
        EventKind::Sent if operation.returned.is_some() => {
            search.invoke(id, operation.action);
            Ok(())
        }
        EventKind::Sent => {
            search.invoke_unknown(id, operation.action);
            Ok(())
        }
    }
}

/// The checker of one key.
#[derive(Clone, Debug)]
pub struct KeyChecker {
    search: Search,
    window: Window,
    /// Operations that were added but whose sending is not decided yet.
    ahead: BTreeMap<OpId, Operation>,
    events: BinaryHeap<Reverse<(Moment, EventKind, OpId)>>,
    decided_until: Moment,
    next_id: OpId,
    stopped: Option<Stop>,
}

impl KeyChecker {
    /// A key with the value `initial` before its first operation.
    pub fn new(initial: RegisterState) -> KeyChecker {
        let base = vec![Configuration::new(initial)];
        KeyChecker {
            search: Search::new(base.clone(), CONFIGURATIONS_MAX),
            window: Window {
                base,
                operations: BTreeMap::new(),
                earlier: 0,
            },
            ahead: BTreeMap::new(),
            events: BinaryHeap::new(),
            decided_until: 0,
            next_id: 0,
            stopped: None,
        }
    }

    /// Adds an operation whose fate is known, or will stay unknown. Reads without an answer and
    /// writes that were not applied must not be added.
    pub fn add(&mut self, mut operation: Operation) {
        assert!(
            operation.invoked >= self.decided_until,
            "the operation reaches back too far"
        );
        assert!(
            operation
                .returned
                .is_none_or(|returned| returned >= operation.invoked)
        );
        if self.stopped.is_some() || (operation.returned.is_none() && operation.action.is_read()) {
            return;
        }
        if operation.returned.is_none() {
            operation.action = operation.action.forget_answer();
        }
        let id = self.next_id;
        self.next_id += 1;
        self.ahead.insert(id, operation);
        self.events
            .push(Reverse((operation.invoked, EventKind::Sent, id)));
        if let Some(returned) = operation.returned {
            self.events
                .push(Reverse((returned, EventKind::Returned, id)));
        }
    }

    /// Decides all events before `until`. Operations sent before it must have been added.
    pub fn advance(&mut self, until: Moment) -> Result<(), Stop> {
        self.decided_until = self.decided_until.max(until);
        while let Some(&Reverse((at, kind, id))) = self.events.peek()
            && at < until
        {
            self.events.pop();
            self.event(kind, id)?;
        }
        self.stopped.map_or(Ok(()), Err)
    }

    fn event(&mut self, kind: EventKind, id: OpId) -> Result<(), Stop> {
        if let Some(operation) = self.ahead.remove(&id) {
            self.window.operations.insert(id, operation);
        }
        let operation = self.window.operations[&id];
        if let Err(stop) = step(&mut self.search, kind, id, &operation) {
            self.stopped = Some(stop);
            // Other operations under way belong to the failing history; later ones do not.
            self.events.clear();
            self.ahead.clear();
            return Err(stop);
        }
        if self.search.is_quiescent() && self.window.operations.len() >= WINDOW_OPERATIONS_MIN {
            self.begin_window();
        }
        Ok(())
    }

    /// Forgets earlier operations: the states that they allow, and writes that may still take
    /// effect, remain.
    fn begin_window(&mut self) {
        let open: Vec<OpId> = self.search.unknown().collect();
        let before = self.window.operations.len();
        self.window
            .operations
            .retain(|id, _| open.binary_search(id).is_ok());
        self.window.earlier += (before - self.window.operations.len()) as u64;
        self.window.base = self.search.configurations().to_vec();
    }

    /// The smallest failing history found, if the key's history is not linearizable.
    pub fn failing_history(&self) -> Option<FailingHistory> {
        (self.stopped == Some(Stop::NotLinearizable)).then(|| shrink::shrink(&self.window))
    }
}

/// The result of a check.
#[derive(Clone, Debug)]
pub struct Verdict<K> {
    /// How many operations were checked.
    pub operations: u64,
    /// How many of them have an unknown fate.
    pub unknown: u64,
    /// Keys whose history is not linearizable, each with its smallest failing history found.
    pub violations: Vec<(K, FailingHistory)>,
    /// Keys with too many explanations at once to decide.
    pub undecided: Vec<K>,
}

impl<K> Verdict<K> {
    /// The smallest failing history of all keys.
    pub fn smallest(&self) -> Option<&(K, FailingHistory)> {
        self.violations
            .iter()
            .min_by_key(|(_, history)| history.operations.len())
    }
}

/// Checks a history of many keys.
#[derive(Clone, Debug)]
pub struct Checker<K> {
    keys: BTreeMap<K, KeyChecker>,
    operations: u64,
    unknown: u64,
}

impl<K: Ord + Clone> Default for Checker<K> {
    fn default() -> Self {
        Checker {
            keys: BTreeMap::new(),
            operations: 0,
            unknown: 0,
        }
    }
}

impl<K: Ord + Clone> Checker<K> {
    /// Adds an operation; see [`KeyChecker::add`]. Every key is absent at first.
    pub fn add(&mut self, key: &K, operation: Operation) {
        self.operations += 1;
        self.unknown += u64::from(operation.returned.is_none());
        if !self.keys.contains_key(key) {
            self.keys.insert(key.clone(), KeyChecker::new(None));
        }
        if let Some(checker) = self.keys.get_mut(key) {
            checker.add(operation);
        }
    }

    /// Decides all events before `until`; see [`KeyChecker::advance`]. Returns how many keys have
    /// failed so far.
    pub fn advance(&mut self, until: Moment) -> usize {
        let failed = |checker: &mut KeyChecker| checker.advance(until).is_err();
        self.keys
            .values_mut()
            .map(failed)
            .filter(|&failed| failed)
            .count()
    }

    /// Decides all remaining events.
    pub fn finish(mut self) -> Verdict<K> {
        self.advance(Moment::MAX);
        let mut violations = Vec::new();
        let mut undecided = Vec::new();
        for (key, checker) in &self.keys {
            match checker.stopped {
                None => {}
                Some(Stop::Undecided) => undecided.push(key.clone()),
                Some(Stop::NotLinearizable) => {
                    violations.extend(checker.failing_history().map(|f| (key.clone(), f)));
                }
            }
        }
        Verdict {
            operations: self.operations,
            unknown: self.unknown,
            violations,
            undecided,
        }
    }
}

/// Checks the history of one key with the value `initial` at its start.
pub fn check_key(
    initial: RegisterState,
    operations: &[Operation],
) -> Result<(), Option<Box<FailingHistory>>> {
    let mut checker = KeyChecker::new(initial);
    operations
        .iter()
        .for_each(|&operation| checker.add(operation));
    match checker.advance(Moment::MAX) {
        Ok(()) => Ok(()),
        Err(_) => Err(checker.failing_history().map(Box::new)),
    }
}
