//! Flags and arguments of the client commands. As usual, `--` must come before a key or value that
//! begins with a dash and is not a number.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use rangedb_client::ClusterId;

/// The format of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Lines for people.
    Table,
    /// One JSON object on one line.
    Json,
}

/// Flags that every command has.
#[derive(Clone, Debug, Args)]
pub struct ConnectionArgs {
    /// Addresses of nodes; they are tried one after the other.
    #[arg(
        long = "addr",
        env = "RANGEDB_ADDR",
        default_value = "127.0.0.1:7400",
        value_name = "HOST:PORT[,HOST:PORT...]",
        value_delimiter = ',',
        value_parser = parse_address
    )]
    pub addresses: Vec<String>,
    /// The id of the cluster that the nodes must belong to; nodes of other clusters are not used.
    /// By default the cluster of the first node that answers.
    #[arg(long, env = "RANGEDB_CLUSTER", value_name = "ID")]
    pub cluster: Option<ClusterId>,
    /// The longest time for the command, such as 500ms, 1.5s or 1m; a number without a unit counts
    /// seconds.
    #[arg(
        long,
        env = "RANGEDB_TIMEOUT",
        default_value = "5s",
        value_parser = parse_timeout,
        value_name = "TIME"
    )]
    pub timeout: Duration,
    /// The format of results.
    #[arg(long, env = "RANGEDB_FORMAT", default_value = "table", value_enum)]
    pub format: Format,
    /// Arguments and results have keys and values as hexadecimal digits.
    #[arg(long)]
    pub hex: bool,
}

/// [`ConnectionArgs`] in front of the command. The names are the same, so clap hands the values on to
/// the command.
#[derive(Clone, Debug, Args)]
pub struct GlobalArgs {
    #[arg(
        long = "addr",
        global = true,
        hide = true,
        value_delimiter = ',',
        value_parser = parse_address
    )]
    addresses: Option<Vec<String>>,
    #[arg(long, global = true, hide = true)]
    cluster: Option<ClusterId>,
    #[arg(long, global = true, hide = true, value_parser = parse_timeout)]
    timeout: Option<Duration>,
    #[arg(long, global = true, hide = true, value_enum)]
    format: Option<Format>,
    #[arg(long, global = true, hide = true)]
    hex: bool,
}

impl GlobalArgs {
    /// A flag that was given and means nothing to a command that asks no node. Such a command may
    /// have a format.
    pub fn meaningless(&self, has_format: bool) -> Option<&'static str> {
        let flags = [
            ("--addr", self.addresses.is_some()),
            ("--cluster", self.cluster.is_some()),
            ("--timeout", self.timeout.is_some()),
            ("--format", self.format.is_some() && !has_format),
            ("--hex", self.hex),
        ];
        let given = flags.into_iter().find(|(_, is_given)| *is_given);
        given.map(|(flag, _)| flag)
    }
}

/// A command that a running node carries out.
#[derive(Clone, Debug, Subcommand)]
pub enum CliCommand {
    /// Prints the value of a key, then a newline; of several keys those that have a value, each with
    /// its value on a line.
    Get {
        /// The keys.
        #[arg(allow_negative_numbers = true, required = true, value_name = "KEY")]
        keys: Vec<String>,
        /// Prints the bytes of the value and nothing else, no newline either, whatever --format says;
        /// of one key.
        #[arg(long)]
        raw: bool,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Sets a key.
    Put(PutArgs),
    /// Removes a key; it is no error if there is none.
    Delete {
        /// The key.
        #[arg(allow_negative_numbers = true)]
        key: String,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Sets or removes a key if a condition holds.
    Cas(CasArgs),
    /// Adds to a number (signed 64 bits, decimal text; a missing key counts as 0) and prints the
    /// sum.
    Incr {
        /// The key.
        #[arg(allow_negative_numbers = true)]
        key: String,
        /// The number to add.
        #[arg(
            long,
            default_value_t = 1,
            allow_negative_numbers = true,
            value_name = "N"
        )]
        by: i64,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Prints keys and values in key order, ascending or descending.
    Scan(ScanArgs),
    /// Carries out several puts and deletes within one range, all or nothing.
    Write(WriteArgs),
    /// Prints the health of the cluster and the state of the node. The exit code is 0 if the cluster
    /// is whole, 1 if it is degraded, and 3 if a range is unavailable.
    Status {
        /// Prints what the node's budgets of memory have in use, instead.
        #[arg(long)]
        memory: bool,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Shows the nodes, shards and ranges of the cluster live: operations, latencies and memory. Ends
    /// with q or Ctrl-C.
    Top(TopArgs),
    /// Prints what a node did and what happened to it: its requests and latencies by the minute, which
    /// are kept for a day, or by the hour, which are kept for 90 days, and its events.
    History(HistoryArgs),
    /// Shows the nodes of the cluster, and takes nodes out of it.
    Node {
        /// The command.
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Shows and changes the settings of the cluster.
    Config {
        /// The command.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Has the node that is asked read its file of settings again: all of it is checked, then taken over
    /// or not at all.
    Reload {
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Shows the ranges and moves them.
    Range {
        /// The command.
        #[command(subcommand)]
        command: RangeCommand,
    },
}

/// The commands about nodes.
#[derive(Clone, Debug, Subcommand)]
pub enum NodeCommand {
    /// Lists the nodes.
    Ls {
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Has other nodes lead what a node leads, so that it can be stopped without a failed request. It
    /// stays so until `undrain`, also while the node is stopped and started.
    #[command(mut_arg("timeout", |arg| arg.default_value("5m")))]
    Drain {
        /// The node's id.
        node: u64,
        /// Waits until the node leads nothing, and prints each second what is left.
        #[arg(long)]
        wait: bool,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Takes a drain or a decommissioning back.
    Undrain {
        /// The node's id.
        node: u64,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Moves all replicas of a node to other nodes.
    #[command(mut_arg("timeout", |arg| arg.default_value("5m")))]
    Decommission {
        /// The node's id.
        node: u64,
        /// Waits until the node holds nothing, and prints each second what is left.
        #[arg(long)]
        wait: bool,
        /// Changes nothing: prints what would move, and what could not.
        #[arg(long, conflicts_with = "wait")]
        dry_run: bool,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Forgets a node that is dead or decommissioned. Its id is refused if it comes back.
    Remove {
        /// The node's id.
        node: u64,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
}

/// The commands about ranges.
#[derive(Clone, Debug, Subcommand)]
pub enum RangeCommand {
    /// Lists the ranges.
    Ls {
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

/// The commands about settings of the cluster.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Prints one setting, or all of them.
    Get {
        /// The setting's name.
        name: Option<String>,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Sets a setting.
    Set {
        /// The setting's name.
        name: String,
        /// The setting's new value.
        value: String,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Prints all values that were ever set, oldest first.
    History {
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
}

/// Arguments of `put`.
#[derive(Clone, Debug, Args)]
pub struct PutArgs {
    /// The key.
    #[arg(allow_negative_numbers = true)]
    pub key: String,
    /// The value; may be empty.
    #[arg(allow_negative_numbers = true, required_unless_present_any = ["stdin", "file"],
          conflicts_with_all = ["stdin", "file"])]
    pub value: Option<String>,
    /// Reads the value from standard input, unchanged.
    #[arg(long, conflicts_with = "file")]
    pub stdin: bool,
    /// Reads the value from a file, unchanged.
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// The node to connect to, and the format of results.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// Arguments of `cas`.
#[derive(Clone, Debug, Args)]
#[command(group = clap::ArgGroup::new("condition").required(true))]
pub struct CasArgs {
    /// The key.
    #[arg(allow_negative_numbers = true)]
    pub key: String,
    /// The new value.
    #[arg(
        allow_negative_numbers = true,
        required_unless_present = "delete",
        conflicts_with = "delete",
        value_name = "NEWVALUE"
    )]
    pub value: Option<String>,
    /// Removes the key instead of setting it.
    #[arg(long)]
    pub delete: bool,
    /// Only if the key has no value.
    #[arg(long, group = "condition")]
    pub if_absent: bool,
    /// Only if this is the key's value.
    #[arg(
        long,
        group = "condition",
        allow_hyphen_values = true,
        value_name = "V"
    )]
    pub if_value: Option<String>,
    /// Only if the value has this version.
    #[arg(long, group = "condition", value_name = "N")]
    pub if_version: Option<u64>,
    /// The node to connect to, and the format of results.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// Arguments of `history`.
#[derive(Clone, Debug, Args)]
pub struct HistoryArgs {
    /// How long ago it begins, such as 90s, 30m or 2h. Beyond 24h work is summed up by the hour.
    #[arg(long, default_value = "2h", value_parser = parse_timeout, value_name = "TIME")]
    pub from: Duration,
    /// How long ago it ends [default: now].
    #[arg(long, value_parser = parse_timeout, value_name = "TIME")]
    pub to: Option<Duration>,
    /// The node [default: the one that is asked].
    #[arg(long, value_name = "N")]
    pub node: Option<u64>,
    /// The node to connect to, and the format of results.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// Arguments of `scan`.
#[derive(Clone, Debug, Args)]
pub struct ScanArgs {
    /// The first key [default: from the beginning].
    #[arg(long, allow_hyphen_values = true, value_name = "K")]
    pub start: Option<String>,
    /// The key to stop before, which must not be empty [default: to the end].
    #[arg(long, allow_hyphen_values = true, value_name = "K")]
    pub end: Option<String>,
    /// Only keys that begin with this.
    #[arg(
        long,
        allow_hyphen_values = true,
        conflicts_with_all = ["start", "end"],
        value_name = "K"
    )]
    pub prefix: Option<String>,
    /// Begins with the last key, in descending order.
    #[arg(long)]
    pub reverse: bool,
    /// Prints keys without their values, which are not sent.
    #[arg(long)]
    pub keys_only: bool,
    /// The largest number of rows to print [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// The node to connect to, and the format of results.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// Arguments of `top`.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// Prints one picture as plain text after one interval, and ends; for scripts.
    #[arg(long)]
    pub once: bool,
    /// The time between two pictures, over which rates and latencies are taken.
    #[arg(long, default_value = "1s", value_parser = parse_timeout, value_name = "TIME")]
    pub interval: Duration,
    /// The node to connect to, and the format of results.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// Arguments of `write`.
#[derive(Clone, Debug, Args)]
pub struct WriteArgs {
    /// Operations one after another: `put KEY VALUE`, `delete KEY`, `add KEY N`.
    #[arg(
        allow_negative_numbers = true,
        required_unless_present = "stdin",
        conflicts_with = "stdin",
        value_name = "put KEY VALUE | delete KEY | add KEY N"
    )]
    pub operations: Vec<String>,
    /// Only if the key has no value. Every condition may be given several times; if one fails
    /// nothing is written. They are counted in the order --if-absent, --if-exists, --if-value,
    /// --if-version.
    #[arg(
        long,
        conflicts_with = "stdin",
        allow_hyphen_values = true,
        value_name = "K"
    )]
    pub if_absent: Vec<String>,
    /// Only if the key has a value.
    #[arg(
        long,
        conflicts_with = "stdin",
        allow_hyphen_values = true,
        value_name = "K"
    )]
    pub if_exists: Vec<String>,
    /// Only if the key has this value.
    #[arg(
        long,
        num_args = 2,
        conflicts_with = "stdin",
        allow_hyphen_values = true,
        value_names = ["K", "V"]
    )]
    pub if_value: Vec<String>,
    /// Only if the key's value has this version.
    #[arg(
        long,
        num_args = 2,
        conflicts_with = "stdin",
        allow_hyphen_values = true,
        value_names = ["K", "N"]
    )]
    pub if_version: Vec<String>,
    /// Operations are read from standard input, one JSON object a line:
    /// {"op":"put","key":"k","value":"v"}, {"op":"delete","key":"k"} or
    /// {"op":"add","key":"k","delta":1}; conditions are {"if":"absent","key":"k"}, `exists`,
    /// {"if":"value","key":"k","value":"v"} and {"if":"version","key":"k","version":7}. `key_hex`
    /// and `value_hex` take hexadecimal digits.
    #[arg(long)]
    pub stdin: bool,
    /// The node to connect to, and the format of results.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

impl CliCommand {
    /// The flags of the command's connection.
    pub fn connection(&self) -> &ConnectionArgs {
        match self {
            CliCommand::Get { connection, .. }
            | CliCommand::Delete { connection, .. }
            | CliCommand::Incr { connection, .. }
            | CliCommand::Status { connection, .. }
            | CliCommand::Reload { connection } => connection,
            CliCommand::Node { command } => match command {
                NodeCommand::Ls { connection }
                | NodeCommand::Drain { connection, .. }
                | NodeCommand::Undrain { connection, .. }
                | NodeCommand::Decommission { connection, .. }
                | NodeCommand::Remove { connection, .. } => connection,
            },
            CliCommand::Range { command } => match command {
                RangeCommand::Ls { connection }
                | RangeCommand::TransferLeader { connection, .. }
                | RangeCommand::MoveReplica { connection, .. } => connection,
            },
            CliCommand::Config { command } => match command {
                ConfigCommand::Get { connection, .. }
                | ConfigCommand::Set { connection, .. }
                | ConfigCommand::History { connection } => connection,
            },
            CliCommand::Put(args) => &args.connection,
            CliCommand::Cas(args) => &args.connection,
            CliCommand::History(args) => &args.connection,
            CliCommand::Scan(args) => &args.connection,
            CliCommand::Top(args) => &args.connection,
            CliCommand::Write(args) => &args.connection,
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

/// An address with a port, without the blanks around it, such as stand in a list after its commas.
fn parse_address(text: &str) -> Result<String, String> {
    let address = text.trim();
    let rule = |typed: String| format!("an address is HOST:PORT, such as {typed}");
    if address.contains("://") || address.contains('/') {
        return Err(rule(
            "127.0.0.1:7400, without a scheme or a path".to_owned(),
        ));
    }
    let port = address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(_)) => Ok(address.to_owned()),
        _ if address.is_empty() => Err(rule("127.0.0.1:7400".to_owned())),
        _ => Err(rule(format!("{}:7400", address.trim_end_matches(':')))),
    }
}

/// A duration above zero.
fn parse_timeout(text: &str) -> Result<Duration, String> {
    let timeout = rangedb_duration::parse_or_seconds(text).map_err(|bad| bad.to_string())?;
    if timeout.is_zero() {
        return Err("the time must not be 0".to_owned());
    }
    Ok(timeout)
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
    fn addresses_have_a_port() {
        for good in ["localhost:7400", " 10.0.0.1:1 ", "[::1]:7400"] {
            assert_eq!(parse_address(good).as_deref(), Ok(good.trim()));
        }
        for bad in [
            "",
            " ",
            "localhost",
            "localhost:",
            "127.0.0.1",
            ":7400",
            "http://x:1",
            "x:1/",
            "x:99999",
        ] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
        let message = parse_address("localhost").expect_err("no port");
        assert!(message.contains("localhost:7400"), "{message}");
    }

    #[test]
    fn timeouts_have_units_or_count_seconds() {
        for (text, duration) in [
            ("5s", Duration::from_secs(5)),
            ("2", Duration::from_secs(2)),
            ("0.5", Duration::from_millis(500)),
            ("250ms", Duration::from_millis(250)),
            ("1.5m", Duration::from_secs(90)),
            ("2h", Duration::from_hours(2)),
        ] {
            assert_eq!(parse_timeout(text), Ok(duration), "{text}");
        }
        for bad in [
            "",
            "s",
            "5d",
            "-1s",
            "0s",
            "0",
            "1e400s",
            "5 s",
            "99999999999h",
        ] {
            assert!(parse_timeout(bad).is_err(), "{bad}");
        }
        let message = parse_timeout("5d").expect_err("no unit");
        assert!(
            message.contains("5d") && message.contains("1.5s"),
            "{message}"
        );
    }
}
