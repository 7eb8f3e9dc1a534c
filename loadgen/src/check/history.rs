//! What a history is made of: operations on one key, their answers, and the register they act on.
//!
//! Pure; no clock, no client. Every written value has a number of its own, so that a value that is
//! read names the write it came from.

use std::fmt;

/// Number of a written value, unique within the history of its key.
pub type ValueId = u64;

/// What a key holds: a value, or nothing.
pub type State = Option<ValueId>;

/// A moment on the one clock of the history, in nanoseconds.
pub type Moment = u64;

/// When a compare-and-swap writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// The key has no value.
    Absent,
    /// The key holds this value (asked for by content or by version: the same, for unique values).
    Value(ValueId),
}

impl Expected {
    fn holds(self, state: State) -> bool {
        match self {
            Expected::Absent => state.is_none(),
            Expected::Value(value) => state == Some(value),
        }
    }
}

/// An operation and its answer. What is not known of the answer is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read this.
    Get {
        /// What was read.
        found: State,
    },
    /// Set the key.
    Put {
        /// The new value.
        value: ValueId,
    },
    /// Removed the key.
    Delete {
        /// Whether there was a value.
        existed: Option<bool>,
    },
    /// Set or removed the key if a condition held.
    CompareAndSwap {
        /// The condition.
        expected: Expected,
        /// The new value; `None` removes the key.
        new: State,
        /// Whether the condition held.
        swapped: Option<bool>,
    },
}

impl Action {
    /// The state after the operation, or `None` if it cannot have had its answer in `state`.
    ///
    /// A conditional write of unknown fate takes effect only where its condition holds: where it
    /// does not, it is the same as one that never happened.
    pub fn apply(self, state: State) -> Option<State> {
        match self {
            Action::Get { found } => (found == state).then_some(state),
            Action::Put { value } => Some(Some(value)),
            Action::Delete { existed } => {
                let fits = existed.is_none_or(|existed| existed == state.is_some());
                fits.then_some(None)
            }
            Action::CompareAndSwap {
                expected,
                new,
                swapped,
            } => match (swapped, expected.holds(state)) {
                (Some(true) | None, true) => Some(new),
                (Some(false), false) => Some(state),
                (Some(true) | None, false) | (Some(false), true) => None,
            },
        }
    }

    /// Whether the operation leaves the state as it is, whatever that is.
    pub fn is_read(self) -> bool {
        matches!(
            self,
            Action::Get { .. }
                | Action::CompareAndSwap {
                    swapped: Some(false),
                    ..
                }
        )
    }

    /// The value that the operation writes if it takes effect.
    pub fn written(self) -> Option<ValueId> {
        match self {
            Action::Put { value } => Some(value),
            Action::CompareAndSwap { new, swapped, .. } if swapped != Some(false) => new,
            _ => None,
        }
    }

    /// The value whose presence the operation speaks of.
    pub fn observed(self) -> Option<ValueId> {
        match self {
            Action::Get { found } => found,
            Action::CompareAndSwap {
                expected: Expected::Value(value),
                ..
            } => Some(value),
            _ => None,
        }
    }

    /// Whether the answer may be owed to a value that the operation does not name.
    pub fn fits_any_other_value(self) -> bool {
        matches!(
            self,
            Action::Delete {
                existed: Some(true)
            } | Action::CompareAndSwap {
                swapped: Some(false),
                ..
            }
        )
    }

    /// The same write without what is known of its answer.
    pub fn forget_answer(self) -> Action {
        match self {
            Action::Delete { .. } => Action::Delete { existed: None },
            Action::CompareAndSwap { expected, new, .. } => Action::CompareAndSwap {
                expected,
                new,
                swapped: None,
            },
            other => other,
        }
    }
}

/// One operation of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operation {
    /// Who asked; only for people.
    pub client: u32,
    /// What was asked and answered.
    pub action: Action,
    /// When it was sent.
    pub invoked: Moment,
    /// When the answer came. `None`: the fate is unknown; it may take effect at any time after
    /// `invoked`, or never.
    pub returned: Option<Moment>,
}

struct Shown(State);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => write!(f, "v{value}"),
            None => f.write_str("nothing"),
        }
    }
}

/// Words for a state.
pub fn show_state(state: State) -> impl fmt::Display {
    Shown(state)
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Action::Get { found } => write!(f, "get -> {}", Shown(found)),
            Action::Put { value } => write!(f, "put v{value}"),
            Action::Delete { existed: None } => write!(f, "delete"),
            Action::Delete {
                existed: Some(true),
            } => write!(f, "delete -> a value was there"),
            Action::Delete {
                existed: Some(false),
            } => write!(f, "delete -> nothing was there"),
            Action::CompareAndSwap {
                expected,
                new,
                swapped,
            } => {
                match expected {
                    Expected::Absent => write!(f, "cas if absent")?,
                    Expected::Value(value) => write!(f, "cas if v{value}")?,
                }
                match new {
                    Some(value) => write!(f, " put v{value}")?,
                    None => write!(f, " delete")?,
                }
                match swapped {
                    Some(true) => write!(f, " -> done"),
                    Some(false) => write!(f, " -> condition failed"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let invoked_us = self.invoked as f64 / 1e3;
        match self.returned {
            Some(returned) => write!(f, "{invoked_us:>14.3} .. {:<14.3}", returned as f64 / 1e3)?,
            None => write!(f, "{invoked_us:>14.3} .. {:<14}", "unknown")?,
        }
        write!(f, " client {:<3} {}", self.client, self.action)
    }
}
