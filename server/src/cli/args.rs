//! Flags and arguments of the client commands. As usual, `--` must come before a key or value that
//! begins with a dash and is not a number.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::condition_args::ConditionArgs;
use super::connection_args::{ConnectionArgs, parse_timeout};
use super::range_args::RangeCommand;

/// A command that a running node carries out.
#[derive(Clone, Debug, Subcommand)]
pub enum CliCommand {
    /// Prints the value of a key, then a newline; of several keys those that have a value, each with
    /// its value on a line.
    Get {
        /// The keys to read.
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
        /// The key to remove.
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
        /// The key of the number.
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
    /// Carries out several puts, deletes and additions to numbers within one range, all or nothing.
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
        /// What to do with nodes.
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Shows and changes the settings of the cluster.
    Config {
        /// What to do with settings.
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
    /// Shows the ranges, splits them and moves them.
    Range {
        /// What to do with ranges.
        #[command(subcommand)]
        command: RangeCommand,
    },
    /// Prints the last decisions of the cluster's manager: which leaders and replicas it has moved and which
    /// ranges it has split, why, and what became of it.
    Balance {
        /// Prints decisions as they come, and again when they have ended, until a signal.
        #[arg(long)]
        watch: bool,
        /// The node to connect to, and the format of results.
        #[command(flatten)]
        connection: ConnectionArgs,
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
    /// Moves all replicas of a node, or of several, to other nodes.
    #[command(mut_arg("timeout", |arg| arg.default_value("5m")))]
    Decommission {
        /// The ids of the nodes.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<u64>,
        /// Waits until the nodes hold nothing, and prints each second what is left.
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
        #[arg(allow_hyphen_values = true)]
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
    /// The key to write.
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
    /// The key to change.
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
    /// Only if the key has a value.
    #[arg(long, group = "condition")]
    pub if_exists: bool,
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
    /// Only this node [default: all nodes of the cluster].
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
    /// What must hold.
    #[command(flatten)]
    pub conditions: ConditionArgs,
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
            | CliCommand::Balance { connection, .. }
            | CliCommand::Reload { connection } => connection,
            CliCommand::Node { command } => match command {
                NodeCommand::Ls { connection }
                | NodeCommand::Drain { connection, .. }
                | NodeCommand::Undrain { connection, .. }
                | NodeCommand::Decommission { connection, .. }
                | NodeCommand::Remove { connection, .. } => connection,
            },
            CliCommand::Range { command } => command.connection(),
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
