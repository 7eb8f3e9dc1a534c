//! The history that a node has kept, in answers to [`super::Command::History`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The time for which a history sums up work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// By the minute, which is kept for a day.
    #[default]
    Minute,
    /// By the hour, which is kept for 90 days.
    Hour,
}

/// The answer to [`super::Command::History`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NodeHistory {
    /// The node whose history it is.
    pub node: u64,
    /// Its work by the minute, oldest first; empty if hours were asked for.
    pub minutes: Vec<Period>,
    /// Its work by the hour, oldest first; empty if minutes were asked for.
    pub hours: Vec<Period>,
    /// What happened, oldest first.
    pub events: Vec<NodeEvent>,
    /// What was not kept since the node started, as the history did not keep up or could not be written.
    pub dropped: u64,
}

/// The work of a node in some time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Period {
    /// When it began, in milliseconds since 1970 of the node's wall clock.
    pub t: u64,
    /// The number of answered requests.
    pub ops: u64,
    /// The number of refused requests.
    pub errors: u64,
    /// Half of the requests were answered within so many microseconds.
    pub p50_us: u64,
    /// Of a hundred requests 99 were.
    pub p99_us: u64,
    /// Of a thousand requests 999 were.
    pub p999_us: u64,
    /// The number of answered requests, by operation.
    #[serde(default)]
    pub operations: BTreeMap<String, u64>,
    /// The number of refused requests, by error code.
    #[serde(default)]
    pub refused: BTreeMap<String, u64>,
    /// The histogram, if it was asked for: how many requests took at most so many microseconds, and more than
    /// the bucket before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub latency_us: BTreeMap<u64, u64>,
}

/// Something that happened on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEvent {
    /// When, in milliseconds since 1970 of the node's wall clock.
    pub t: u64,
    /// The node on which it happened.
    pub node: u64,
    /// Its kind, such as `node_started`.
    pub kind: String,
    /// What happened, for people.
    pub text: String,
}
