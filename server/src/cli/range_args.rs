//! Flags and arguments of `rangedb range`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use rangedb_protocol::admin::HOT_RANGES_DEFAULT;

use super::connection_args::ConnectionArgs;

/// The commands about ranges.
#[derive(Clone, Debug, Subcommand)]
pub enum RangeCommand {
    /// Lists the ranges.
    Ls {
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Lists the ranges that take the most CPU time, and the keys of each that have the most requests.
    Hot {
        /// How many ranges, from 1 to 100.
        #[arg(
            long,
            default_value_t = HOT_RANGES_DEFAULT,
            allow_negative_numbers = true,
            value_name = "N"
        )]
        top: u32,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Prints everything that is known of one range.
    Show {
        /// The range's id.
        range: u64,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Splits a range at keys, or into parts of about the same size, and prints the ranges into which it was
    /// split. The first of them keeps the id; each other one begins at a key.
    #[command(mut_arg("timeout", |arg| arg.default_value("1m")))]
    Split {
        /// The range's id.
        #[arg(required_unless_present = "at_file", conflicts_with = "at_file")]
        range: Option<u64>,
        /// A key at which a new range begins; may be given several times.
        #[arg(
            long,
            required_unless_present_any = ["at_file", "into"],
            conflicts_with_all = ["at_file", "into"],
            allow_hyphen_values = true,
            value_name = "KEY"
        )]
        at: Vec<String>,
        /// Reads the keys from a file, one a line, up to 10,000, of whatever ranges they are in; keys at
        /// which a range begins already are passed over, so the command may be repeated.
        #[arg(long, value_name = "FILE")]
        at_file: Option<PathBuf>,
        /// Splits the range into so many parts of about the same size, instead, from 2 to 1024.
        #[arg(
            long,
            conflicts_with = "at_file",
            allow_negative_numbers = true,
            value_name = "N"
        )]
        into: Option<u32>,
        /// How long the new borders must not be merged away again, such as 30m or 2h, 0, or `forever`.
        #[arg(
            long,
            default_value = "1h",
            allow_hyphen_values = true,
            value_name = "TIME"
        )]
        hold: String,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Merges a range with its right neighbour: it gets the neighbour's keys, and the neighbour is no more.
    #[command(mut_arg("timeout", |arg| arg.default_value("1m")))]
    Merge {
        /// The range's id.
        range: u64,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Lets the border on the left of a range be merged away that `split` holds.
    Release {
        /// The range's id.
        range: u64,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Spreads leaders and replicas of the users' ranges evenly over nodes and shards, whatever loads they
    /// carry. Prints how many orders that takes; they are given one after the other, and `rangedb balance`
    /// shows them.
    Scatter {
        /// The ranges that have this key or later ones [default: from the first range on].
        #[arg(long, allow_hyphen_values = true, value_name = "K")]
        start: Option<String>,
        /// And that begin before this key [default: to the last range].
        #[arg(long, allow_hyphen_values = true, value_name = "K")]
        end: Option<String>,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Makes another node the leader of a range.
    TransferLeader {
        /// The range's id.
        range: u64,
        /// The node that becomes the leader; by default any other node with a replica.
        #[arg(long, value_name = "NODE")]
        to: Option<u64>,
        /// Waits until it leads, for as long as --timeout says.
        #[arg(long)]
        wait: bool,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Moves a replica of a range from one node to another.
    MoveReplica {
        /// The range's id.
        range: u64,
        /// The node that gives up the replica.
        #[arg(long, value_name = "NODE")]
        from: u64,
        /// The node that receives the replica, and its shard; by default the shard with the fewest
        /// replicas.
        #[arg(long, value_name = "NODE[/SHARD]", value_parser = parse_location)]
        to: (u64, Option<u16>),
        /// Waits until the replica has moved, for as long as --timeout says.
        #[arg(long)]
        wait: bool,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
}

impl RangeCommand {
    /// The flags of the command's connection.
    pub fn connection(&self) -> &ConnectionArgs {
        match self {
            RangeCommand::Ls { connection }
            | RangeCommand::Hot { connection, .. }
            | RangeCommand::Show { connection, .. }
            | RangeCommand::Split { connection, .. }
            | RangeCommand::Merge { connection, .. }
            | RangeCommand::Release { connection, .. }
            | RangeCommand::Scatter { connection, .. }
            | RangeCommand::TransferLeader { connection, .. }
            | RangeCommand::MoveReplica { connection, .. } => connection,
        }
    }
}

/// Parses a node's id, with or without a slash and a shard's number.
fn parse_location(text: &str) -> Result<(u64, Option<u16>), String> {
    let (node, shard) = match text.split_once('/') {
        Some((node, shard)) => (node, Some(shard)),
        None => (text, None),
    };
    let bad = |_| "use a node's id, or NODE/SHARD such as 2/0".to_owned();
    let shard = shard.map(str::parse).transpose().map_err(bad)?;
    Ok((node.parse().map_err(bad)?, shard))
}

/// A duration, or the word for ever.
///
/// # Errors
/// Names the text, and what it may be.
pub(super) fn parse_hold(text: &str) -> Result<Duration, String> {
    if text == "forever" {
        return Ok(Duration::MAX);
    }
    let hold = rangedb_duration::parse(text);
    hold.map_err(|bad| format!("--hold: {bad}, or `forever`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_a_node_and_perhaps_a_shard() {
        assert_eq!(parse_location("2"), Ok((2, None)));
        assert_eq!(parse_location("2/1"), Ok((2, Some(1))));
        for bad in ["", "/", "2/", "/1", "2/x", "2/1/0", "-1", "2/70000"] {
            assert!(parse_location(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_are_held_for_a_time_or_for_ever() {
        assert_eq!(parse_hold("forever"), Ok(Duration::MAX));
        assert_eq!(parse_hold("90m"), Ok(Duration::from_mins(90)));
        assert_eq!(parse_hold("0"), Ok(Duration::ZERO));
        for bad in ["", "ever", "5d", "-1h", "100000000000h"] {
            let why = parse_hold(bad).expect_err(bad);
            assert!(why.contains("`forever`"), "{why}");
            assert!(why.contains(&format!("{bad:?}")), "{why}");
        }
    }
}
