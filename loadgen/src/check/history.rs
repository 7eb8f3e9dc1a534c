//! The parts of a history: operations on one key, their answers, and the register on which they
//! act.
//!
//! Pure; no clock, no client. Every written value has its own number, so a value that is read names
//! the write that it came from.

use std::fmt;

/// Number of a written value, unique within the history of its key.
pub type ValueId = u64;

/// The state of a key: a value, or none.
pub type RegisterState = Option<ValueId>;

/// A moment on the history's clock, in nanoseconds.
pub type Moment = u64;

/// The condition of a compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// The key has no value.
    Absent,
    /// The key has this value. (A condition on its version means the same, since values are
    /// unique.)
    Value(ValueId),
}

impl Expected {
    fn holds(self, state: RegisterState) -> bool {
        match self {
            Expected::Absent => state.is_none(),
            Expected::Value(value) => state == Some(value),
        }
    }
}

/// An operation and its answer. Whatever is not known of the answer is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read the key.
    Get {
        /// The state that was read.
        found: RegisterState,
    },
    /// Set the key.
    Put {
        /// The new value.
        value: ValueId,
    },
    /// Removed the key.
    Delete {
        /// Whether the key had a value.
        existed: Option<bool>,
    },
    /// Set or removed the key if a condition held.
    CompareAndSwap {
        /// The condition.
        expected: Expected,
        /// The new value; `None` removes the key.
        new: RegisterState,
        /// Whether the condition held.
        swapped: Option<bool>,
    },
}

impl Action {
    /// The state after the operation, or `None` if it cannot have had its answer in `state`.
    ///
    /// A conditional write of unknown fate takes effect only if its condition holds. If it does not
    /// hold, the write is the same as one that never happened.
    pub fn apply(self, state: RegisterState) -> Option<RegisterState> {
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

    /// Whether the operation leaves every state as it is.
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

    /// The value that the operation found, or required.
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

    /// Whether a value that the operation does not name may explain its answer.
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

    /// The same write, without what is known of its answer.
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
    /// The client that sent it; shown to people only.
    pub client: u32,
    /// The operation and its answer.
    pub action: Action,
    /// When it was sent.
    pub invoked: Moment,
    /// When the answer came. `None`: the fate is unknown, and the operation may take effect at any
    /// time after `invoked`, or never.
    pub returned: Option<Moment>,
}

struct Shown(RegisterState);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => write!(f, "v{value}"),
            None => f.write_str("nothing"),
        }
    }
}

/// Shows a state.
pub fn show_register(state: RegisterState) -> impl fmt::Display {
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
