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
const SHARDS_MAX: usize = 512;

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

/// A cluster that is to be formed of empty nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formation {
    /// Where all of them listen, sorted.
    pub nodes: Vec<String>,
    /// The place of this one, counted from 1.
    pub me: u64,
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
    /// The cluster that an empty folder becomes part of; `None`: a cluster of one.
    pub formation: Option<Formation>,
    /// What proves that a node belongs to the cluster.
    pub cluster_secret: String,
    /// Shards of the node.
    pub shards: u16,
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
        let config = Config {
            formation: formation(raw, &listen)?,
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
        let least = SHARD_MEMORY_MIN * u64::from(config.shards);
        if config.memory < least {
            let rule = format!("{} shards need at least {} MiB", config.shards, least >> 20);
            return Err(raw.bad(Key::Memory, rule));
        }
        Ok(config)
    }

    /// What each shard may use.
    pub fn shard_memory(&self) -> ShardMemory {
        let share = self.memory / u64::from(self.shards);
        ShardMemory {
            memtable: (share / 32).clamp(2 << 20, 32 << 20) as usize,
            block_cache: share / 2,
            entry_cache: (share / 16).clamp(4 << 20, 64 << 20) as usize,
        }
    }
}

/// The cluster that is to be formed, if one is.
fn formation(raw: &RawConfig, listen: &str) -> Result<Option<Formation>, BadSetting> {
    let mut nodes = raw.parse(Key::Join, |text| {
        let nodes = text.split(',').map(|node| node.trim().to_owned());
        Ok(nodes.filter(|node| !node.is_empty()).collect::<Vec<_>>())
    })?;
    nodes.sort();
    nodes.dedup();
    let expected = raw.parse(Key::BootstrapExpect, |text| match text {
        "" => Ok(None),
        "1" | "3" | "5" => Ok(text.parse::<usize>().ok()),
        _ => Err("a cluster is formed of 1, 3 or 5 nodes; each holds every range".to_owned()),
    })?;
    let expected = match (expected, nodes.len()) {
        (None | Some(1), 0) => return Ok(None),
        (None, _) => {
            let rule = "to join a cluster that runs is not possible yet: form one of empty nodes \
                        with --bootstrap-expect N and the same list on all";
            return Err(raw.bad(Key::Join, rule.to_owned()));
        }
        (Some(expected), _) => expected,
    };
    if nodes.len() != expected {
        let rule = format!(
            "--join must name all {expected} nodes; it names {}",
            nodes.len()
        );
        return Err(raw.bad(Key::Join, rule));
    }
    let me = raw.parse(Key::Advertise, |text| {
        let me = if text.is_empty() { listen } else { text };
        let host = me.rsplit_once(':').map_or(me, |(host, _)| host);
        if ["0.0.0.0", "[::]", "*", ""].contains(&host) {
            return Err(format!(
                "other nodes cannot reach {me}: give --advertise HOST:PORT"
            ));
        }
        let place = nodes.iter().position(|node| node == me);
        place.ok_or_else(|| format!("--join does not name this node, {me}"))
    })?;
    if raw.parse(Key::ClusterSecret, |text| Ok(text.is_empty()))? {
        let rule = "nodes of a cluster share a secret: the same words on all of them, best in the \
                    variable RANGEDB_CLUSTER_SECRET or the configuration file";
        return Err(raw.bad(Key::ClusterSecret, rule.to_owned()));
    }
    let me = me as u64 + 1;
    Ok(Some(Formation { nodes, me }))
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
