//! Why an order about the cluster (another leader, another place for a replica, a setting) was
//! refused: the obstacle passes by itself, somebody must remove it first, the order is wrong, or a
//! thing that it names does not exist.

#![allow(
    missing_docs,
    reason = "what rkyv derives for enums has fields without docs"
)]

use std::time::Duration;

use super::Fatal;

/// What stands in the way of an order usually takes longer than this. Shards report as often to the
/// manager, so an earlier retry would find the same.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Why an order was refused.
#[derive(
    Clone, Debug, PartialEq, Eq, thiserror::Error, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub enum OrderError {
    /// Nothing was done because of a state that passes by itself. The same order may succeed later.
    #[error("{reason}; try again in {retry_after_ms} ms")]
    Busy {
        /// The state.
        reason: String,
        /// When to try again.
        retry_after_ms: u32,
    },
    /// Nothing was done: the order is wrong and stays wrong. The text says what is wrong.
    #[error("{0}")]
    Invalid(String),
    /// Nothing was done: the state of the cluster forbids the order until somebody changes that
    /// state. The text says what must change.
    #[error("{0}")]
    Conflict(String),
    /// Nothing was done: the range, node, replica or setting that the text names does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The order may have been carried out, or may be yet.
    #[error("it is not known whether the order was carried out: {0}")]
    Unknown(String),
}

impl OrderError {
    /// A state that usually passes within seconds.
    pub fn busy(reason: impl Into<String>) -> OrderError {
        OrderError::busy_for(reason, RETRY_AFTER)
    }

    /// A state that is not expected to pass before this time is over.
    pub fn busy_for(reason: impl Into<String>, retry_after: Duration) -> OrderError {
        OrderError::Busy {
            reason: reason.into(),
            retry_after_ms: u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX),
        }
    }
}

impl From<Fatal> for OrderError {
    fn from(fatal: Fatal) -> OrderError {
        OrderError::Unknown(fatal.to_string())
    }
}
