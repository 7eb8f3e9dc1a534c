//! What a command asks for: its arguments, checked and parsed. Sends nothing; reads values from files
//! and standard input.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use super::args::{
    CasArgs, CliCommand, ConfigCommand, HistoryArgs, NodeCommand, PutArgs, ScanArgs, TopArgs,
    WriteArgs,
};
use super::connection_args::Format;
use super::input::{self, TypedBatch};
use super::range_args::{RangeCommand, parse_hold};
use super::split::{self, At};
use super::{CliError, Exit};
use rangedb_client::ScanOptions;
use rangedb_protocol::limits::VALUE_LEN_MAX;

/// Rows of one page of a scan.
const PAGE_ROWS: usize = 1000;
/// The longest text of operations on standard input, in bytes. Any batch within the database's
/// limits fits.
const OPERATIONS_LEN_MAX: usize = 32 << 20;

/// A command with checked arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Get {
        keys: Vec<Vec<u8>>,
    },
    /// The bytes of one value.
    GetRaw {
        key: Vec<u8>,
    },
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Delete {
        key: Vec<u8>,
    },
    Cas {
        key: Vec<u8>,
        condition: CasCondition,
        value: Option<Vec<u8>>,
    },
    Incr {
        key: Vec<u8>,
        by: i64,
    },
    Scan {
        options: ScanOptions,
        /// Most rows of all pages.
        limit: usize,
    },
    Write(TypedBatch),
    Status,
    Memory,
    Top(Top),
    History {
        /// How long ago it begins and ends.
        from: Duration,
        to: Option<Duration>,
        node: Option<u64>,
    },
    Query(ClusterQuery),
    Reload,
    Leave(Leave),
    /// Where ranges are to be split, and how long they are held against merging.
    Split(At, Duration),
    /// An order, and whether its end is waited for.
    Order(Order, bool),
    /// The last decisions of the manager; with `watch` those that come, too.
    Balance {
        watch: bool,
    },
}

/// How the live view is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Top {
    /// One picture as plain text.
    pub(super) once: bool,
    /// The time between two pictures.
    pub(super) interval: Duration,
}

/// The part of the cluster's state to show.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClusterQuery {
    Nodes,
    Ranges,
    /// The hottest ones, so many.
    HotRanges(u32),
    Range(u64),
    Setting(Option<String>),
    History,
}

/// An order that changes the cluster.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    TransferLeader {
        range: u64,
        to: Option<u64>,
    },
    MoveReplica {
        range: u64,
        from: u64,
        to: (u64, Option<u16>),
    },
    Merge {
        range: u64,
    },
    Release {
        range: u64,
    },
    Scatter {
        start: Vec<u8>,
        end: Option<Vec<u8>>,
    },
    Set {
        name: String,
        value: String,
    },
}

/// An order by which a node leaves the cluster, or stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    Drain { node: u64, wait: bool },
    Undrain { node: u64 },
    Decommission { nodes: Vec<u64>, wait: bool },
    DryRun { nodes: Vec<u64> },
    Remove { node: u64 },
}

/// The condition of `cas`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CasCondition {
    Absent,
    Exists,
    Value(Vec<u8>),
    Version(u64),
}

/// Parses a command's arguments.
pub(super) fn prepare(command: &CliCommand) -> Result<Request, CliError> {
    let hex = command.connection().hex;
    let bytes = |text: &String| input::bytes(text, hex);
    Ok(match command {
        CliCommand::Get { keys, raw, .. } => get(*raw, keys.iter().map(bytes))?,
        CliCommand::Put(args) => Request::Put {
            key: bytes(&args.key)?,
            value: put_value(args)?,
        },
        CliCommand::Delete { key, .. } => Request::Delete { key: bytes(key)? },
        CliCommand::Cas(args) => cas(args)?,
        CliCommand::Incr { key, by, .. } => Request::Incr {
            key: bytes(key)?,
            by: *by,
        },
        CliCommand::Scan(args) => scan_of(args)?,
        CliCommand::Write(args) => Request::Write(batch(args)?),
        CliCommand::Top(args) => top(args)?,
        CliCommand::History(args) => history(args)?,
        CliCommand::Status { memory: true, .. } => Request::Memory,
        CliCommand::Status { .. } => Request::Status,
        CliCommand::Reload { .. } => Request::Reload,
        CliCommand::Range {
            command:
                RangeCommand::Split {
                    range,
                    at,
                    at_file,
                    into,
                    hold,
                    ..
                },
        } => {
            let keys_or_parts = (at.as_slice(), *into);
            let at = split_at(*range, keys_or_parts, at_file.as_deref(), hex)?;
            let hold = parse_hold(hold).map_err(|message| CliError {
                exit: Exit::Refused,
                message,
            })?;
            Request::Split(at, hold)
        }
        CliCommand::Range {
            command: RangeCommand::Scatter { start, end, .. },
        } => {
            let start = start.as_ref().map(bytes).transpose()?.unwrap_or_default();
            let end = end.as_ref().map(bytes).transpose()?;
            Request::Order(Order::Scatter { start, end }, false)
        }
        CliCommand::Balance { watch, .. } => Request::Balance { watch: *watch },
        CliCommand::Node { .. } | CliCommand::Range { .. } | CliCommand::Config { .. } => {
            of_cluster(command)
        }
    })
}

/// Builds the request of a command about the cluster.
fn of_cluster(command: &CliCommand) -> Request {
    match command {
        CliCommand::Node { command } => match command {
            NodeCommand::Ls { .. } => Request::Query(ClusterQuery::Nodes),
            &NodeCommand::Drain { node, wait, .. } => Request::Leave(Leave::Drain { node, wait }),
            &NodeCommand::Undrain { node, .. } => Request::Leave(Leave::Undrain { node }),
            NodeCommand::Decommission {
                nodes,
                wait,
                dry_run,
                ..
            } => {
                let mut nodes = nodes.clone();
                nodes.sort_unstable();
                nodes.dedup();
                Request::Leave(match (dry_run, *wait) {
                    (true, _) => Leave::DryRun { nodes },
                    (false, wait) => Leave::Decommission { nodes, wait },
                })
            }
            &NodeCommand::Remove { node, .. } => Request::Leave(Leave::Remove { node }),
        },
        CliCommand::Range { command } => match command {
            &RangeCommand::Hot { top, .. } => Request::Query(ClusterQuery::HotRanges(top)),
            &RangeCommand::Show { range, .. } => Request::Query(ClusterQuery::Range(range)),
            &RangeCommand::Merge { range, .. } => Request::Order(Order::Merge { range }, false),
            &RangeCommand::Release { range, .. } => Request::Order(Order::Release { range }, false),
            RangeCommand::Ls { .. } | RangeCommand::Split { .. } | RangeCommand::Scatter { .. } => {
                Request::Query(ClusterQuery::Ranges)
            }
            &RangeCommand::TransferLeader {
                range, to, wait, ..
            } => Request::Order(Order::TransferLeader { range, to }, wait),
            &RangeCommand::MoveReplica {
                range,
                from,
                to,
                wait,
                ..
            } => Request::Order(Order::MoveReplica { range, from, to }, wait),
        },
        CliCommand::Config { command } => match command {
            ConfigCommand::Get { name, .. } => Request::Query(ClusterQuery::Setting(name.clone())),
            ConfigCommand::Set { name, value, .. } => {
                let (name, value) = (name.clone(), value.clone());
                Request::Order(Order::Set { name, value }, false)
            }
            ConfigCommand::History { .. } => Request::Query(ClusterQuery::History),
        },
        _ => Request::Status,
    }
}

/// The live view, or one picture of it.
fn top(args: &TopArgs) -> Result<Request, CliError> {
    if args.connection.format == Format::Json {
        return Err(CliError::usage(
            "top shows tables only; with --format json use `rangedb status` and `rangedb range hot`, or read \
             /metrics of the nodes",
        ));
    }
    Ok(Request::Top(Top {
        once: args.once,
        interval: args.interval,
    }))
}

/// The part of the past that is asked for.
fn history(args: &HistoryArgs) -> Result<Request, CliError> {
    let HistoryArgs { from, to, node, .. } = *args;
    if to.is_some_and(|to| to >= from) {
        return Err(CliError::usage(
            "--from must be longer ago than --to, such as --from 2h --to 1h",
        ));
    }
    Ok(Request::History { from, to, node })
}

fn read_limited(
    source: impl std::io::Read,
    len_max: usize,
    what: &str,
) -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    source.take(len_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > len_max {
        return Err(CliError::usage(format!(
            "{what} is longer than {len_max} bytes"
        )));
    }
    Ok(bytes)
}

fn put_value(args: &PutArgs) -> Result<Vec<u8>, CliError> {
    if args.stdin {
        return read_limited(std::io::stdin().lock(), VALUE_LEN_MAX, "the value");
    }
    if let Some(path) = &args.file {
        let file = std::fs::File::open(path)
            .map_err(|error| CliError::usage(format!("{}: {error}", path.display())))?;
        return read_limited(file, VALUE_LEN_MAX, "the value");
    }
    input::bytes(
        args.value.as_deref().unwrap_or_default(),
        args.connection.hex,
    )
}

/// Where ranges are to be split: one of them at keys or into parts, or all at the keys of a file.
fn split_at(
    range: Option<u64>,
    (at, into): (&[String], Option<u32>),
    file: Option<&Path>,
    hex: bool,
) -> Result<At, CliError> {
    if let Some(path) = file {
        let no_file = |error| CliError::usage(format!("{}: {error}", path.display()));
        let file = std::fs::File::open(path).map_err(no_file)?;
        let text = read_limited(file, split::FILE_LEN_MAX, "the file of keys")?;
        return split::keys_of_file(path, &text, hex);
    }
    let Some(range) = range else {
        return Err(CliError::usage("give the range's id, or --at-file"));
    };
    if let Some(parts) = into {
        return Ok(At::Parts(range, parts));
    }
    let keys = at.iter().map(|key| input::bytes(key, hex));
    Ok(At::Range(range, keys.collect::<Result<_, _>>()?))
}

fn cas(args: &CasArgs) -> Result<Request, CliError> {
    let hex = args.connection.hex;
    let condition = match (&args.if_value, args.if_version) {
        (Some(value), _) => CasCondition::Value(input::bytes(value, hex)?),
        (None, Some(version)) => CasCondition::Version(version),
        (None, None) if args.if_exists => CasCondition::Exists,
        (None, None) => CasCondition::Absent,
    };
    let value = args
        .value
        .as_deref()
        .map(|value| input::bytes(value, hex))
        .transpose()?;
    Ok(Request::Cas {
        key: input::bytes(&args.key, hex)?,
        condition,
        value,
    })
}

fn get(
    raw: bool,
    mut keys: impl ExactSizeIterator<Item = Result<Vec<u8>, CliError>>,
) -> Result<Request, CliError> {
    if !raw {
        let keys = keys.collect::<Result<_, _>>()?;
        return Ok(Request::Get { keys });
    }
    match (keys.next(), keys.next()) {
        (Some(key), None) => Ok(Request::GetRaw { key: key? }),
        _ => Err(CliError::usage("--raw prints the value of one key")),
    }
}

fn scan_of(args: &ScanArgs) -> Result<Request, CliError> {
    // A script's variable that was never set would otherwise look like an empty database.
    if args.end.as_deref() == Some("") {
        return Err(CliError::usage(
            "--end is empty, and no key lies before it; leave --end out to scan to the last key",
        ));
    }
    let bytes = |text: &String| input::bytes(text, args.connection.hex);
    let mut options = match &args.prefix {
        Some(prefix) => ScanOptions::prefix(bytes(prefix)?),
        None => {
            let mut interval = ScanOptions::default();
            interval.start = args.start.as_ref().map(bytes).transpose()?.map(Into::into);
            interval.end = args.end.as_ref().map(bytes).transpose()?.map(Into::into);
            interval
        }
    };
    options.page_size = PAGE_ROWS;
    options.reverse = args.reverse;
    options.keys_only = args.keys_only;
    let limit = args
        .limit
        .map(|rows| usize::try_from(rows).unwrap_or(usize::MAX));
    Ok(Request::Scan {
        options,
        limit: limit.unwrap_or(usize::MAX),
    })
}

fn batch(args: &WriteArgs) -> Result<TypedBatch, CliError> {
    let typed = if args.stdin {
        let bytes = read_limited(std::io::stdin().lock(), OPERATIONS_LEN_MAX, "the input")?;
        let text = String::from_utf8(bytes)
            .map_err(|_| CliError::usage("standard input is not UTF-8; use key_hex, value_hex"))?;
        input::json_batch(&text, args.connection.hex)?
    } else {
        input::batch(args)?
    };
    if typed.batch.is_empty() {
        return Err(CliError::usage("there is nothing to write"));
    }
    Ok(typed)
}
