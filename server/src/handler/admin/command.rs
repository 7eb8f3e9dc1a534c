//! The admin commands. Pure.

use serde::Deserialize;

/// An admin command; the protocol's documentation describes each.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Command {
    Nodes {},
    Ranges {},
    Status {},
    TransferLeader {
        range: u64,
        to: Option<u64>,
    },
    MoveReplica {
        range: u64,
        from: u64,
        to_node: u64,
        to_shard: Option<u16>,
    },
    ConfigGet {
        name: Option<String>,
    },
    ConfigSet {
        name: String,
        value: String,
    },
    ConfigHistory {},
}

impl Command {
    /// Parses a command.
    pub fn parse(text: &str) -> Result<Command, String> {
        serde_json::from_str(text).map_err(|error| format!("this is not an admin command: {error}"))
    }
}
