//! Settings: as typed ([`raw`]), then validated ([`Config`]), which is all that the node sees.
//!
//! Flags stand above `RANGEDB_*` variables, these above the TOML file, this above the defaults. A
//! key that nobody knows is refused, with the nearest known one named.

pub mod raw;
mod units;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use crate::env::threads;
use raw::{Key, RawConfig};
pub use units::{parse_duration, parse_keys, parse_size};

/// Fewer bytes do not carry one shard.
const SHARD_MEMORY_MIN: u64 = 64 << 20;
/// More shards than this are a mistake.
/// Shards of a node.
pub const SHARDS_MAX: usize = 512;

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A setting that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{key} = {value:?} (from {source_name}): {rule}")]
pub struct BadSetting {
    /// The setting's name.
    pub key: &'static str,
    /// As typed.
    pub value: String,
    /// Where it was typed.
    pub source_name: String,
    /// What it should be.
    pub rule: String,
}

/// How an empty folder becomes part of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joining {
    /// Where nodes of the cluster listen, without this one, sorted. None: it makes a cluster.
    pub others: Vec<String>,
    /// Whether this node makes the cluster when all of the others are empty, too.
    pub founds: bool,
    /// Why an empty folder cannot take part in forming the cluster, if it cannot.
    pub objection: Option<String>,
}

/// Validated settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where everything lies.
    pub data_dir: PathBuf,
    /// Where clients connect, HOST:PORT.
    pub listen: String,
    /// Where the admin pages are.
    pub http: SocketAddr,
    /// Where other nodes reach this one, HOST:PORT.
    pub advertise: String,
    /// The cluster that an empty folder becomes part of.
    pub joining: Joining,
    /// What proves that a node belongs to the cluster.
    pub cluster_secret: String,
    /// Shards of the node: as given, or one for each processor, until the folder says what it was made
    /// with.
    pub shards: u16,
    /// Whether the number of shards was given.
    pub shards_given: bool,
    /// Processors that all threads stay on.
    pub cpus: Vec<usize>,
    /// Memory to be used, in bytes.
    pub memory: u64,
    /// Borders of the initial ranges.
    pub split_at: Vec<Vec<u8>>,
    /// How logs are written.
    pub log: LogFormat,
    /// Which log lines are written, as `tracing`'s filters say it.
    pub log_level: String,
    /// How long old versions are kept.
    pub gc_retention: Duration,
}

/// What a shard may use of the node's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardMemory {
    /// One memtable; there are up to seven.
    pub memtable: usize,
    /// Blocks of tables.
    pub block_cache: u64,
    /// Entries of the log.
    pub entry_cache: usize,
    /// Requests of clients that have not come whole.
    pub frames: usize,
    /// Replies that clients have not taken.
    pub unsent: usize,
}

impl Config {
    /// Checks what was typed.
    ///
    /// # Errors
    /// The first setting that makes no sense.
    pub fn validate(raw: &RawConfig) -> Result<Config, BadSetting> {
        let cpus = cpus(raw)?;
        let split_at = raw.parse(Key::SplitAt, parse_keys)?;
        let shards = raw.parse(Key::Shards, |text| match text {
            "" => Ok(cpus.len()),
            text => match text.parse() {
                Ok(count) if (1..=SHARDS_MAX).contains(&count) => Ok(count),
                _ => Err(format!("a number of shards is 1 to {SHARDS_MAX}")),
            },
        })?;
        let listen = raw.parse(Key::Listen, |text| Ok(text.to_owned()))?;
        let advertise = advertise(raw, &listen)?;
        let config = Config {
            joining: joining(raw, &advertise)?,
            advertise,
            cluster_secret: raw.parse(Key::ClusterSecret, |text| match text.len() {
                0..=1024 => Ok(text.to_owned()),
                _ => Err("a secret has at most 1024 bytes".to_owned()),
            })?,
            data_dir: raw.parse(Key::DataDir, |text| match text {
                "" => Err("the folder of the data must be given: --data-dir DIR".to_owned()),
                text => Ok(PathBuf::from(text)),
            })?,
            listen,
            http: raw.parse(Key::Http, address)?,
            shards: shards as u16,
            shards_given: raw.parse(Key::Shards, |text| Ok(!text.is_empty()))?,
            cpus,
            memory: raw.parse(Key::Memory, |text| match text {
                "" => Ok(units::machine_memory() / 2),
                text => parse_size(text),
            })?,
            split_at,
            log: raw.parse(Key::Log, |text| match text {
                "text" => Ok(LogFormat::Text),
                "json" => Ok(LogFormat::Json),
                _ => Err("it is text or json".to_owned()),
            })?,
            log_level: raw.parse(Key::LogLevel, |text| Ok(text.to_owned()))?,
            gc_retention: raw.parse(Key::GcRetention, |text| match parse_duration(text)? {
                retention if retention < Duration::from_secs(1) => {
                    Err("old versions are kept for at least 1s".to_owned())
                }
                retention => Ok(retention),
            })?,
        };
        // How many shards there are is not known yet if nobody has said it.
        let shards = if config.shards_given {
            config.shards
        } else {
            1
        };
        check_memory(config.memory, shards).map_err(|rule| raw.bad(Key::Memory, rule))?;
        Ok(config)
    }

    /// The settings of a node whose folder has so many shards.
    ///
    /// # Errors
    /// The memory does not suffice for them.
    pub fn with_shards(mut self, shards: u16) -> Result<Config, String> {
        check_memory(self.memory, shards)?;
        self.shards = shards;
        Ok(self)
    }

    /// What each shard may use.
    pub fn shard_memory(&self) -> ShardMemory {
        let share = self.memory / u64::from(self.shards);
        ShardMemory {
            memtable: (share / 32).clamp(2 << 20, 32 << 20) as usize,
            block_cache: share / 2,
            entry_cache: (share / 16).clamp(4 << 20, 64 << 20) as usize,
            // At least a frame of the longest.
            frames: (share / 16).clamp(12 << 20, 256 << 20) as usize,
            unsent: (share / 8).clamp(16 << 20, 256 << 20) as usize,
        }
    }
}

fn check_memory(memory: u64, shards: u16) -> Result<(), String> {
    let least = SHARD_MEMORY_MIN * u64::from(shards);
    if memory < least {
        let (least, found) = (least >> 20, memory >> 20);
        return Err(format!(
            "{shards} shards need at least {least} MiB of memory, not {found} MiB"
        ));
    }
    Ok(())
}

/// Where other nodes reach this one. Nobody but a node that is alone may listen on a wildcard
/// without saying that.
fn advertise(raw: &RawConfig, listen: &str) -> Result<String, BadSetting> {
    let alone = raw.parse(Key::ClusterSecret, |text| Ok(text.is_empty()))?
        && raw.parse(Key::Join, |text| Ok(text.is_empty()))?;
    raw.parse(Key::Advertise, |text| {
        let me = if text.is_empty() { listen } else { text };
        let (host, port) = me.rsplit_once(':').unwrap_or((me, ""));
        if !alone && is_wildcard(host) {
            return Err(format!(
                "other nodes cannot reach {me}: give --advertise HOST:PORT"
            ));
        }
        match port.parse::<u16>() {
            Ok(_) => Ok(me.to_owned()),
            Err(_) => Err("it is HOST:PORT".to_owned()),
        }
    })
}

/// Whether a host is none that others could reach: one that stands for all addresses, in any spelling.
fn is_wildcard(host: &str) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let bare = bare.unwrap_or(host);
    if ["", "*"].contains(&bare) {
        return true;
    }
    // The system knows more spellings of an address than the standard library, such as 0 and 0x0. A name
    // that is not known here may be known to others.
    let found = (bare, 0).to_socket_addrs().into_iter().flatten();
    found
        .map(|at| at.ip().to_canonical())
        .any(|ip| ip.is_unspecified())
}

/// The cluster that an empty folder becomes part of.
fn joining(raw: &RawConfig, me: &str) -> Result<Joining, BadSetting> {
    let mut nodes = raw.parse(Key::Join, |text| {
        let nodes = text.split(',').map(|node| node.trim().to_owned());
        Ok(nodes.filter(|node| !node.is_empty()).collect::<Vec<_>>())
    })?;
    nodes.sort();
    nodes.dedup();
    let expected = raw.parse(Key::BootstrapExpect, |text| match text {
        "" => Ok(None),
        text => match text.parse::<usize>() {
            Ok(count) if count > 0 => Ok(Some(count)),
            _ => Err("it is a number of nodes, from 1".to_owned()),
        },
    })?;
    if let Some(expected) = expected.filter(|count| *count != nodes.len().max(1)) {
        let rule = format!(
            "--join must name all {expected} nodes; it names {}",
            nodes.len()
        );
        return Err(raw.bad(Key::Join, rule));
    }
    // A node that has its folder may have moved since.
    let unnamed = expected.is_some() && !nodes.is_empty() && !nodes.iter().any(|node| node == me);
    let objection =
        unnamed.then(|| format!("--join does not name this node, {me}; see --advertise"));
    if !nodes.is_empty() && raw.parse(Key::ClusterSecret, |text| Ok(text.is_empty()))? {
        let rule = "nodes of a cluster share a secret: the same words on all of them, best in the \
                    variable RANGEDB_CLUSTER_SECRET or the configuration file";
        return Err(raw.bad(Key::ClusterSecret, rule.to_owned()));
    }
    let founds = expected.is_some() && nodes.first().is_some_and(|first| first == me);
    nodes.retain(|node| node != me);
    Ok(Joining {
        others: nodes,
        founds,
        objection,
    })
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut addresses = text
        .to_socket_addrs()
        .map_err(|e| format!("it is HOST:PORT ({e})"))?;
    addresses
        .next()
        .ok_or_else(|| "the name has no address".to_owned())
}

fn cpus(raw: &RawConfig) -> Result<Vec<usize>, BadSetting> {
    let allowed = threads::allowed_cpus().unwrap_or_else(|_| vec![0]);
    raw.parse(Key::Cpus, |text| {
        if text.is_empty() {
            return Ok(allowed.clone());
        }
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let range = part.split_once('-').unwrap_or((part, part));
            let (Ok(first), Ok(last)) = (
                range.0.trim().parse::<usize>(),
                range.1.trim().parse::<usize>(),
            ) else {
                return Err("it is a list of processors such as 0,2-3".to_owned());
            };
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            Some(cpu) => Err(format!("this process may not run on processor {cpu}")),
            None if cpus.is_empty() => Err("it names no processor".to_owned()),
            None => Ok(cpus),
        }
    })
}

#[cfg(test)]
mod tests;
