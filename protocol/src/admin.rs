//! The commands of admin requests and their answers, in JSON. A node writes the answers and clients read
//! them. A reader ignores unknown members and reads an unknown word of a state as
//! [`Unknown`](Health::Unknown), so that a client can read the answers of a newer node. Members are added
//! but never renamed, since other tools read them, too. Pure.

mod balance;
mod hex;
mod hex_or_null;
mod history;
mod leaving;
mod node_settings;
mod ranges;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::json;

pub use balance::{Balance, Decision, Scattered};
pub use history::{NodeEvent, NodeHistory, Period, Step};
pub use leaving::{BlockedRange, Departure, Leaving};
pub use node_settings::{NodeConfig, NodeSetting, Reloaded, SettingDifference, SettingRefused};
pub use ranges::{
    BlockReason, Borders, BoundsState, HOLD_MS_DEFAULT, HOT_RANGES_DEFAULT, HotKey, HotRange,
    HotRanges, Merged, RangeRates, RangeStats, Split, SplitBlocked, SplitFailure, SplitPart,
};

/// An admin command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Shows the nodes. [`Nodes`] is the answer.
    Nodes {},
    /// Shows the ranges. [`Ranges`] is the answer.
    Ranges {},
    /// Shows the state of the cluster. [`ClusterStatus`] is the answer.
    Status {},
    /// Has another node lead a range. [`Done`] is the answer.
    TransferLeader {
        /// The range whose leader changes.
        range: u64,
        /// The node; any other than the present leader's if none is given.
        to: Option<u64>,
    },
    /// Moves a replica of a range to another node or shard. [`Done`] is the answer.
    MoveReplica {
        /// The range whose replica moves.
        range: u64,
        /// The node that has the replica.
        from: u64,
        /// The node that gets it.
        to_node: u64,
        /// The shard of that node; the one with the fewest replicas if none is given.
        to_shard: Option<u16>,
    },
    /// Splits a range at keys, in any order. [`Split`] is the answer.
    SplitRange {
        /// The range to split.
        range: u64,
        /// The keys at which new ranges begin.
        #[serde(with = "ranges::hexes")]
        at: Vec<Vec<u8>>,
        /// How long the new borders are held against merging, in milliseconds: [`HOLD_MS_DEFAULT`] if it is not
        /// given, for ever if it is `u64::MAX`.
        #[serde(default)]
        hold_ms: Option<u64>,
    },
    /// Has a range take over its right neighbour. [`Merged`] is the answer.
    MergeRange {
        /// The left range, which takes over the other.
        range: u64,
    },
    /// Splits a range into parts of about the same size. [`Split`] is the answer.
    SplitInto {
        /// The range to split.
        range: u64,
        /// How many parts.
        parts: u32,
        /// See [`Command::SplitRange`].
        #[serde(default)]
        hold_ms: Option<u64>,
    },
    /// Shows the ranges with most CPU time, and their hottest keys. [`HotRanges`] is the answer.
    HotRanges {
        /// How many ranges.
        #[serde(default = "hot_ranges_default")]
        top: u32,
    },
    /// Has a range be no longer held against merging. [`Done`] is the answer.
    ReleaseRange {
        /// The range that may be merged again.
        range: u64,
    },
    /// Shows settings of the cluster. [`Setting`] is the answer if a name is given, else [`Settings`].
    ConfigGet {
        /// The setting; all if none is given.
        name: Option<String>,
    },
    /// Has other nodes lead what a node leads, so that it can stop. [`Done`] is the answer.
    DrainNode {
        /// The node that is to lead nothing.
        node: u64,
    },
    /// Takes a drain or a decommissioning back. [`Done`] is the answer.
    UndrainNode {
        /// The node that is to stay.
        node: u64,
    },
    /// Moves all replicas of a node to others. [`Done`] is the answer.
    DecommissionNode {
        /// The node that is to hold nothing.
        node: u64,
    },
    /// Forgets a node that is dead or decommissioned; its id is refused from then on. [`Done`] is the
    /// answer.
    RemoveNode {
        /// The node to forget.
        node: u64,
    },
    /// Shows what still keeps a node from leaving. [`Leaving`] is the answer.
    NodeLeaving {
        /// The node that leaves.
        node: u64,
        /// Shows what its decommissioning would do, instead.
        #[serde(default)]
        dry_run: bool,
    },
    /// Changes a setting of the cluster. [`Done`] is the answer.
    ConfigSet {
        /// The setting.
        name: String,
        /// Its new value, as typed.
        value: String,
    },
    /// Shows all changes of settings. [`History`] is the answer.
    ConfigHistory {},
    /// Shows the settings of the node that answers. [`NodeConfig`] is the answer.
    NodeConfig {},
    /// Has the node that answers read its settings again. [`Reloaded`] is the answer.
    Reload {},
    /// Shows what a node has kept of its past; it tells its own only. [`NodeHistory`] is the answer.
    History {
        /// The node that is meant; another one refuses. The one that is asked if none is given.
        node: Option<u64>,
        /// The earliest time, in milliseconds since 1970 of the node's wall clock; none: all of it.
        from_ms: Option<u64>,
        /// The latest time.
        to_ms: Option<u64>,
        /// How work is summed up.
        #[serde(default)]
        step: Step,
        /// Whether the histograms of latencies are wanted, too. Servers of an earlier version do not know it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        histograms: bool,
    },
    /// Shows the last decisions of the manager. [`Balance`] is the answer.
    Balance {},
    /// Spreads leaders and replicas of the users' ranges with keys in an interval evenly. [`Scattered`] is
    /// the answer.
    ScatterRanges {
        /// The first key of the interval.
        #[serde(default, with = "hex")]
        start: Vec<u8>,
        /// The key at which it ends, which is not in it; none: it has no end.
        #[serde(default, with = "hex_or_null")]
        end: Option<Vec<u8>>,
    },
}

fn hot_ranges_default() -> u32 {
    HOT_RANGES_DEFAULT
}

impl Command {
    /// Parses a command.
    ///
    /// # Errors
    /// It is no command; the text says what is wrong, where, and how a command looks.
    pub fn parse(text: &str) -> Result<Command, String> {
        json::object(text.as_bytes(), "an object such as {\"command\":\"nodes\"}")
            .map_err(|wrong| format!("this is no admin command: {wrong}"))
    }
}

/// The answer to [`Command::Nodes`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nodes {
    /// The nodes, by their ids.
    pub nodes: Vec<Node>,
}

/// The answer to [`Command::Ranges`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges {
    /// The ranges, by their ids.
    pub ranges: Vec<Range>,
}

/// The answer to [`Command::ConfigGet`] without a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// All settings that there are.
    pub settings: Vec<Setting>,
}

/// The answer to [`Command::ConfigHistory`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The changes, oldest first.
    pub history: Vec<SettingChange>,
}

/// The answer to a command that changes the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Whether it was carried out; a node that refuses says why by an error.
    pub done: bool,
}

/// The answer of the command line to an order that goes on after it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Whether it has begun.
    pub started: bool,
    /// Whether its end was waited for and has come.
    pub done: bool,
}

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Node {
    /// The node's id, never used for another one.
    pub id: u64,
    /// Where it listens for clients.
    pub address: String,
    /// Where it listens for HTTP; empty if it does not.
    pub http: String,
    /// Whether it is heard from.
    #[serde(rename = "state")]
    pub liveness: Liveness,
    /// What operators have decided about it.
    #[serde(default)]
    pub membership: Membership,
    /// Whether it leads nothing for a while, because its disk was slow.
    #[serde(default)]
    pub slow_disk: bool,
    /// The number of its shards.
    pub shards: u16,
    /// The number of ranges that it leads.
    pub leaders: u64,
    /// The number of its replicas.
    pub replicas: u64,
    /// When it started, in milliseconds since 1970 of its wall clock.
    pub started_ms: u64,
    /// The release of its server.
    pub version: String,
    /// The CPU time of its shards' threads over the last 10 s, in thousandths of a core.
    #[serde(default)]
    pub cpu: u32,
    /// The same of each shard, by their numbers.
    #[serde(default)]
    pub shards_cpu: Vec<u32>,
    /// About how many bytes the rows of its replicas have, before compression.
    #[serde(default)]
    pub bytes: u64,
    /// What it tells of itself.
    #[serde(flatten)]
    pub stats: NodeStats,
}

/// What a node tells of itself: how it was a few seconds ago. What is not known is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NodeStats {
    /// The median of the times from requests of clients to their replies over the last five seconds, in
    /// microseconds; `None` if there were none.
    pub p50_us: Option<u64>,
    /// The 99th percentile of them.
    pub p99_us: Option<u64>,
    /// Free bytes on the disk of its data folder.
    pub disk_free: Option<u64>,
    /// All bytes of that disk.
    pub disk_total: Option<u64>,
    /// The largest error that its wall clock may have, in microseconds.
    pub clock_error_us: Option<u64>,
    /// Whether a time service keeps its clock.
    pub clock_kept: Option<bool>,
    /// How many of its shards it gives up, the last ones.
    pub shards_leaving: u16,
}

/// A range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Range {
    /// The range's id, never used for another one.
    pub id: u64,
    /// Whether it is the range of the cluster's own records, whose keys are no client's.
    pub system: bool,
    /// The first key.
    #[serde(with = "hex")]
    pub start: Vec<u8>,
    /// The key at which it ends, which is not in it; `None`: it has no end.
    #[serde(with = "hex_or_null")]
    pub end: Option<Vec<u8>>,
    /// Which of its descriptors this is.
    pub epoch: Epoch,
    /// The node that leads it, if one is known.
    pub leader_node: Option<u64>,
    /// The shard of that node.
    pub leader_shard: Option<u16>,
    /// Voters and learners.
    pub replicas: Vec<Replica>,
    /// The leader's term.
    pub term: u64,
    /// The index of the last entry that the leader has applied.
    pub applied: u64,
    /// Whether fewer voters are alive and up to date than there should be.
    pub under_replicated: bool,
    /// Whether it has no leader, or its leader reaches no majority.
    pub unavailable: bool,
    /// What its bounds are doing.
    #[serde(default)]
    pub state: BoundsState,
    /// When it was made, and what is decided about its borders.
    #[serde(flatten)]
    pub borders: Borders,
    /// Its load and its size.
    #[serde(flatten)]
    pub stats: RangeStats,
}

/// The epoch of a range. Neither number ever goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Epoch {
    /// Rises when its borders change.
    pub version: u32,
    /// Rises when its replicas change.
    pub conf: u32,
}

/// A replica of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Replica {
    /// Its id.
    pub replica: u64,
    /// The node that has the replica.
    pub node: u64,
    /// Its shard of that node.
    pub shard: u16,
    /// Whether it votes; a replica that is new does not yet.
    pub voter: bool,
    /// How many entries of the leader's log it lacks, if that is known.
    pub lag: Option<u64>,
    /// Under how many data ids its rows lie, if that is known: more than 1 after merges, until they are rewritten.
    #[serde(default)]
    pub parts: Option<u16>,
    /// Whether it does its part.
    pub state: ReplicaState,
}

/// The state of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClusterStatus {
    /// The worst that is known.
    pub health: Health,
    /// The cluster's id.
    pub cluster: String,
    /// The number of ranges.
    pub ranges: u64,
    /// The number of ranges with fewer voters than there should be.
    pub under_replicated: u64,
    /// The number of ranges that serve nothing.
    pub unavailable: u64,
    /// What keeps the cluster from being whole: ranges first, then nodes.
    #[serde(default)]
    pub reasons: Vec<HealthReason>,
    /// The replicas that cannot do their part.
    pub replicas_in_trouble: Vec<ReplicaInTrouble>,
    /// The shard that leads the system range.
    pub system_leader: SystemLeader,
    /// The nodes, by their ids.
    pub nodes: Vec<Node>,
}

/// Why a cluster is not whole: a range, or a node, that is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HealthReason {
    /// How bad it is.
    pub health: Health,
    /// The range; without one it is the node.
    pub range: Option<u64>,
    /// The nodes that are not well: those with replicas of the range, or the one node.
    pub nodes: Vec<u64>,
    /// What is wrong, as a sentence without its subject.
    pub reason: String,
}

/// A replica that cannot do its part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReplicaInTrouble {
    /// The range that it is a replica of.
    pub range: u64,
    /// Its id.
    pub replica: u64,
    /// The node that has the replica.
    pub node: u64,
    /// Its shard of that node.
    pub shard: u16,
    /// What is wrong with it.
    pub state: ReplicaState,
}

/// The shard that leads the system range, and so manages the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SystemLeader {
    /// The node that has the shard.
    pub node: u64,
    /// Its number within the node.
    pub shard: u16,
}

/// A setting of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Setting {
    /// The name by which `config set` and `config get` know it.
    pub name: String,
    /// Its value, as typed; `None`: it was never set.
    pub value: Option<String>,
    /// The number of the change that set it, counted from 1 over all settings.
    pub version: Option<u64>,
    /// When it was set, in milliseconds since 1970 of the manager's wall clock.
    pub at_ms: Option<u64>,
    /// The values that it may have, for people.
    pub may_be: String,
    /// The value in force, whether it was ever set or not.
    #[serde(default)]
    pub in_force: String,
    /// Where that comes from: `default`, or `cluster` if it was set.
    #[serde(default)]
    pub source: String,
}

/// A change of a setting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SettingChange {
    /// The setting.
    pub name: String,
    /// Its value since then, as typed.
    pub value: String,
    /// The number of the change, counted from 1 over all settings.
    pub version: u64,
    /// When it was made, in milliseconds since 1970 of the manager's wall clock.
    pub at_ms: u64,
}

/// Whether the cluster serves, and whether all of it is well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Health {
    /// All is well.
    Ok,
    /// All ranges serve, but a node or a replica is not well.
    Degraded,
    /// A range serves nothing.
    Unavailable,
    /// A word that this release does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Whether a node is heard from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Liveness {
    /// It reports to the manager.
    Alive,
    /// It has not reported for a while.
    Silent,
    /// It has been silent for so long that its replicas are replaced.
    Dead,
    /// It reports, but the leaders of its replicas do not reach it.
    Unreachable,
    /// A word that this release does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What operators have decided about a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Membership {
    /// It holds replicas and leads ranges.
    Active,
    /// It keeps its replicas, but leads nothing and gets no new ones.
    Draining,
    /// Its replicas are being moved to other nodes.
    Decommissioning,
    /// It holds no replica, and gets none.
    Decommissioned,
    /// A word that this release does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Whether a replica does its part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReplicaState {
    /// It does.
    Ok,
    /// It has lost entries that it had acknowledged.
    Lost,
    /// Its node does not have it.
    Missing,
    /// It takes no entries.
    Behind,
    /// A block of a table with its rows cannot be read or is damaged.
    Unreadable,
    /// Its node is [silent](Liveness::Silent).
    Silent,
    /// Its node is [dead](Liveness::Dead).
    Dead,
    /// Its node is [unreachable](Liveness::Unreachable).
    Unreachable,
    /// A word that this release does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl fmt::Display for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl fmt::Display for ReplicaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_a_closed_set_without_unknown_fields() {
        let good = [
            (r#"{"command":"nodes"}"#, Command::Nodes {}),
            (r#"{"command":"config_history"}"#, Command::ConfigHistory {}),
            (
                r#"{"command":"history","from_ms":7}"#,
                Command::History {
                    node: None,
                    from_ms: Some(7),
                    to_ms: None,
                    step: Step::Minute,
                    histograms: false,
                },
            ),
            (
                r#"{"command":"transfer_leader","range":2}"#,
                Command::TransferLeader { range: 2, to: None },
            ),
            (
                r#"{"command":"move_replica","range":2,"from":1,"to_node":3,"to_shard":0}"#,
                Command::MoveReplica {
                    range: 2,
                    from: 1,
                    to_node: 3,
                    to_shard: Some(0),
                },
            ),
            (
                r#"{"command":"merge_range","range":2}"#,
                Command::MergeRange { range: 2 },
            ),
            (
                r#"{"command":"release_range","range":2}"#,
                Command::ReleaseRange { range: 2 },
            ),
            (
                r#"{"command":"drain_node","node":3}"#,
                Command::DrainNode { node: 3 },
            ),
            (
                r#"{"command":"node_leaving","node":3}"#,
                Command::NodeLeaving {
                    node: 3,
                    dry_run: false,
                },
            ),
            (
                r#"{"command":"config_get"}"#,
                Command::ConfigGet { name: None },
            ),
        ];
        for (text, command) in good {
            let again = serde_json::to_string(&command).expect("a command has a text");
            assert_eq!(Command::parse(text).as_ref(), Ok(&command), "{text}");
            assert_eq!(Command::parse(&again), Ok(command), "{again}");
        }
        for (bad, wrong) in [
            ("", "it is empty"),
            ("nodes", "it begins with 'nodes', not with {"),
            ("{}", "the field `command` is missing"),
            (
                r#"{"command":"drop_all"}"#,
                "unknown word `drop_all`, expected one of `nodes`, `ranges`",
            ),
            (r#"{"command":"nodes","more":1}"#, "unknown field `more`"),
            (
                r#"{"command":"transfer_leader"}"#,
                "the field `range` is missing",
            ),
            (
                r#"{"command":"remove_node"}"#,
                "the field `node` is missing",
            ),
            (
                r#"{"command":"drain_node","node":1,"wait":true}"#,
                "unknown field `wait`",
            ),
            (
                r#"{"command":"transfer_leader","range":-1}"#,
                "integer `-1` stands where a whole number from 0 on is expected",
            ),
            (
                r#"{"command":"transfer_leader","range":1,"two":2}"#,
                "unknown field `two`",
            ),
            (
                r#"{"command":"move_replica","range":1,"from":1,"to_node":1,"to_shard":65536}"#,
                "integer `65536` stands where a whole number from 0 to 65535 is expected",
            ),
            (
                r#"{"command":"config_set","name":"x"}"#,
                "the field `value` is missing",
            ),
            (
                r#"{"command":"config_set","name":"x","value":1}"#,
                "integer `1` stands where a text is expected",
            ),
            (
                r#"{"command":"nodes"} {"command":"nodes"}"#,
                "it is no JSON at line 1, column 21",
            ),
        ] {
            let message = Command::parse(bad).expect_err(bad);
            let expected = format!("this is no admin command: {wrong}");
            assert!(message.starts_with(&expected), "{bad}: {message}");
            let ends = message.ends_with("; expected is an object such as {\"command\":\"nodes\"}");
            assert!(ends, "{bad}: {message}");
        }
    }

    #[test]
    fn what_a_newer_node_adds_is_passed_over() {
        let text = r#"{"nodes":[{"id":1,"address":"a:1","http":"","state":"asleep","shards":2,
            "leaders":0,"replicas":3,"started_ms":8,"version":"9","rack":"r1"}],"racks":["r1"]}"#;
        let read: Nodes = serde_json::from_str(text).expect("an answer");
        let node = &read.nodes[0];
        assert_eq!((node.id, node.liveness), (1, Liveness::Unknown));
        assert_eq!(node.membership, Membership::Unknown, "an older node's");
        // What was always there must be there.
        assert!(serde_json::from_str::<Nodes>("{}").is_err());
        assert!(serde_json::from_str::<Nodes>(r#"{"nodes":[{"id":1}]}"#).is_err());
    }

    #[test]
    fn keys_are_hexadecimal_digits() {
        for (start, end) in [(vec![], None), (vec![0, 0xff, 0x61], Some(vec![0xb0]))] {
            let range = Range {
                start,
                end,
                ..Range::default()
            };
            let text = serde_json::to_string(&range).expect("a range has a text");
            assert_eq!(serde_json::from_str::<Range>(&text).ok(), Some(range));
        }
        let text = serde_json::to_string(&Range::default()).expect("a range has a text");
        assert!(text.contains(r#""start":"","end":null"#), "{text}");
        for bad in [r#""start":"0""#, r#""start":"+f""#, r#""start":"é""#] {
            let text = text.replace(r#""start":"""#, bad);
            assert!(serde_json::from_str::<Range>(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn states_are_said_as_they_are_written() {
        assert_eq!(Health::Degraded.to_string(), "degraded");
        assert_eq!(Liveness::Alive.to_string(), "alive");
        assert_eq!(ReplicaState::Missing.to_string(), "missing");
    }
}
