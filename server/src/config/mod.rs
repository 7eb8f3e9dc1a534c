//! The node's settings: the raw text of each ([`raw`]), and the validated values ([`Config`]), with
//! the budgets of memory ([`ShardMemory`]). The rest of the node sees only [`Config`]. The settings of the
//! whole cluster, which `rangedb config` shows and changes, are in [`rangedb_engine::cluster::settings`].
//!
//! Flags override `RANGEDB_*` variables, which override the TOML file, which overrides the
//! defaults. An unknown key is refused, and the message names the nearest known one.

mod memory;
pub mod raw;
mod tls;
mod units;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rangedb_engine::byte_size::{parse_size, size};

use crate::env::root::Root;
use crate::env::threads;
pub use memory::ShardMemory;
use raw::{BadConfig, Key, RawConfig};
pub use tls::Tls;
pub use units::parse_keys;

/// The longest time that a node goes on serving after it was told to stop: service managers wait longer.
const DRAIN_WAIT_MAX: Duration = Duration::from_mins(1);
/// A node with less than this in memory, in bytes, uses small pages only.
const HUGE_PAGES_FROM_MIN: u64 = 256 << 20;
/// What an address looks like, for messages.
const EXAMPLE_ADDRESS: &str = "127.0.0.1:7400";
/// The largest number of shards that a node accepts; more is taken for a typing mistake.
pub const SHARDS_MAX: usize = 512;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object for each line.
    Json,
}

/// A setting whose value breaks a rule.
#[derive(Debug, thiserror::Error)]
#[error("{key} = {value:?} (from {source_name}): {rule}")]
pub struct BadSetting {
    /// The setting's name.
    pub key: &'static str,
    /// The value as it was typed.
    pub value: String,
    /// The file, variable or flag it comes from.
    pub source_name: String,
    /// The line of the file, if it comes from a file.
    pub line: Option<usize>,
    /// The rule that the value breaks.
    pub rule: String,
}

/// How a node with an empty folder becomes part of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joining {
    /// Addresses of the cluster's other nodes, sorted. If there are none, the node makes a cluster
    /// of its own.
    pub others: Vec<String>,
    /// Whether this node makes the cluster if all of the others are empty, too.
    pub founds: bool,
    /// Why a node with an empty folder cannot take part in forming the cluster, if it cannot.
    pub objection: Option<String>,
}

/// Where and for whom the HTTP pages are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// The address on which the server listens for HTTP.
    pub address: SocketAddr,
    /// The names of this node, which requests may have in `Host`, beside addresses and `localhost`.
    pub hosts: Vec<String>,
    /// The origins of other sites whose pages may send requests.
    pub origins: Vec<String>,
    /// How long the node goes on serving after it was told to stop, so that whoever asks `/readyz`
    /// notices it.
    pub drain_wait: Duration,
}

impl Http {
    /// Pages at this address, for a node without a name.
    pub fn only(address: SocketAddr) -> Http {
        Http {
            address,
            hosts: Vec::new(),
            origins: Vec::new(),
            drain_wait: Duration::ZERO,
        }
    }
}

/// Where clients and other nodes connect, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address, HOST:PORT.
    pub address: String,
    /// For encrypted connections of clients; `None` if there are none.
    pub tls: Option<Arc<Tls>>,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logs {
    /// The format of log lines.
    pub format: LogFormat,
    /// The filter of log lines, in the syntax of `tracing`'s filters.
    pub level: String,
    /// A request that takes as long is logged; zero for none.
    pub slow_request: Duration,
}

/// Validated settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The folder of all data.
    pub data_dir: PathBuf,
    /// Where clients and other nodes connect, and how.
    pub listen: Listen,
    /// Where the HTTP pages are served, and for which sites.
    pub http: Http,
    /// The address that other nodes use to reach this one, HOST:PORT.
    pub advertise: String,
    /// How the node becomes part of a cluster if its folder is empty.
    pub joining: Joining,
    /// The secret that proves that a node belongs to the cluster.
    pub cluster_secret: String,
    /// The number of shards: as given, or one for each processor. A folder that has another number
    /// overrides the latter, and adds those that it gives up.
    pub shards: u16,
    /// How many of them, the last ones, are given up.
    pub leaving_shards: u16,
    /// Whether the number of shards was given.
    pub shards_given: bool,
    /// The processors that all threads stay on.
    pub cpus: Vec<usize>,
    /// The memory to use, in bytes.
    pub memory: u64,
    /// The part of the memory that holds rows which were read lately, in bytes, if it was given.
    pub row_cache: Option<u64>,
    /// Borders of a new cluster's first ranges.
    pub split_at: Vec<Vec<u8>>,
    /// What is logged, and how.
    pub logs: Logs,
    /// How long old versions of values are kept.
    pub gc_retention: Duration,
}

impl Config {
    /// Validates the raw settings.
    ///
    /// # Errors
    /// The first setting that breaks a rule.
    pub fn validate(raw: &RawConfig) -> Result<Config, BadSetting> {
        let cpus = cpus(raw)?;
        let split_at = raw.parse(Key::SplitAt, parse_keys)?;
        let shards = raw.parse(Key::Shards, |text| match text {
            "" => Ok(cpus.len()),
            text => match text.parse() {
                Ok(count) if (1..=SHARDS_MAX).contains(&count) => Ok(count),
                _ => Err(format!("the number of shards must be 1 to {SHARDS_MAX}")),
            },
        })?;
        let memory = raw.parse(Key::Memory, |text| match text {
            "" => Ok(units::machine_memory() / 2),
            text => parse_size(text),
        })?;
        let listen = raw.parse(Key::Listen, |text| match is_address(text) {
            true => Ok(text.to_owned()),
            false => Err(format!(
                "an address is HOST:PORT, such as {EXAMPLE_ADDRESS}"
            )),
        })?;
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
            http: http(raw, &listen)?,
            listen: Listen {
                address: listen,
                tls: Tls::of(raw)?,
            },
            shards: shards as u16,
            leaving_shards: 0,
            shards_given: raw.parse(Key::Shards, |text| Ok(!text.is_empty()))?,
            cpus,
            memory,
            row_cache: row_cache(raw, memory)?,
            split_at,
            logs: logs(raw)?,
            gc_retention: raw.parse(Key::GcRetention, |text| {
                let retention = rangedb_duration::parse(text).map_err(|bad| bad.to_string())?;
                if retention < Duration::from_secs(1) {
                    return Err("old versions are kept for at least 1s".to_owned());
                }
                Ok(retention)
            })?,
        };
        // The folder may say another number than the default: check the memory for one shard only.
        let shards = if config.shards_given {
            config.shards
        } else {
            1
        };
        check_memory(config.memory, shards).map_err(|rule| raw.bad(Key::Memory, rule))?;
        if config.listen.address == raw.text(Key::Http) && !config.listen.address.ends_with(":0") {
            let rule = "--listen has the same address: clients and the pages over HTTP need a port \
                        each";
            return Err(raw.bad(Key::Http, rule.to_owned()));
        }
        Ok(config)
    }

    /// Validates the raw settings as [`Config::validate`] does, and goes on after a fault.
    ///
    /// # Errors
    /// All settings that break a rule by themselves.
    pub fn validate_all(raw: &RawConfig) -> Result<Config, BadConfig> {
        let (mut rest, mut faults) = (raw.clone(), Vec::new());
        loop {
            let bad = match Config::validate(&rest) {
                Ok(config) => return BadConfig::of(faults).map_or(Ok(config), Err),
                Err(bad) => bad,
            };
            let key = Key::ALL.iter().find(|key| key.name() == bad.key);
            // A default is wrong only beside other settings, perhaps beside those that were forgotten.
            let Some(key) = key.filter(|key| rest.source(**key) != raw::Source::Default) else {
                return Err(BadConfig::of(faults).unwrap_or(bad.into()));
            };
            rest.forget(*key);
            if *key == Key::Memory {
                rest.forget(Key::RowCache);
            }
            faults.push(bad.into());
        }
    }

    /// Sets the number of shards to that of the folder, which gives up the last `leaving` of them.
    ///
    /// # Errors
    /// The memory is too small for this number of shards.
    pub fn with_shards(mut self, shards: u16, leaving: u16) -> Result<Config, String> {
        check_memory(self.memory, shards)?;
        self.shards = shards;
        self.leaving_shards = leaving;
        Ok(self)
    }

    /// The value in force of a setting, as people may see it. `raw` has the same settings as text.
    pub fn shown(&self, raw: &RawConfig, key: Key) -> String {
        match key {
            Key::Advertise => self.advertise.clone(),
            Key::Shards => (self.shards - self.leaving_shards).to_string(),
            Key::Memory => size(self.memory),
            Key::RowCache => {
                let rows = self.shard_memory().row_cache as u64 * u64::from(self.shards);
                // A part of the memory is no round number of bytes.
                size(self.row_cache.unwrap_or(rows >> 10 << 10))
            }
            Key::Cpus => {
                let cpus = self.cpus.iter().map(usize::to_string);
                cpus.collect::<Vec<_>>().join(",")
            }
            Key::Tls => match &self.listen.tls {
                None => "off".to_owned(),
                Some(tls) if tls.required => "required".to_owned(),
                Some(_) => "optional".to_owned(),
            },
            Key::TlsCert | Key::TlsCa => {
                let tls = self.listen.tls.as_ref();
                match tls.and_then(|tls| tls.fingerprint(key)) {
                    Some(digits) => format!("{} (SHA-256 {digits}...)", raw.shown(key)),
                    None => raw.shown(key).to_owned(),
                }
            }
            _ => raw.shown(key).to_owned(),
        }
    }

    /// With this many bytes in memory, a node holds enough data to use huge pages for it.
    pub fn huge_pages_from(&self) -> u64 {
        (self.memory / 4).max(HUGE_PAGES_FROM_MIN)
    }

    /// The budgets of each shard.
    pub fn shard_memory(&self) -> ShardMemory {
        let shards = u64::from(self.shards);
        let row_cache = self.row_cache.map(|bytes| bytes / shards);
        ShardMemory::of(self.memory / shards, row_cache)
    }
}

fn logs(raw: &RawConfig) -> Result<Logs, BadSetting> {
    Ok(Logs {
        format: raw.parse(Key::Log, |text| match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("the format is text or json".to_owned()),
        })?,
        level: raw.parse(Key::LogLevel, units::parse_log_level)?,
        slow_request: raw.parse(Key::SlowRequest, |text| {
            rangedb_duration::parse(text).map_err(|bad| bad.to_string())
        })?,
    })
}

/// Reads how much of the memory the row caches take, if that was given.
fn row_cache(raw: &RawConfig, memory: u64) -> Result<Option<u64>, BadSetting> {
    raw.parse(Key::RowCache, |text| {
        if text.is_empty() {
            return Ok(None);
        }
        let bytes = parse_size(text)?;
        if bytes > memory / 8 * 3 {
            let most = (memory / 8 * 3) >> 20;
            return Err(format!(
                "rows take at most three eighths of the memory, {most} MiB: blocks of tables need some, \
                 too"
            ));
        }
        Ok(Some(bytes))
    })
}

fn check_memory(memory: u64, shards: u16) -> Result<(), String> {
    let least = ShardMemory::SHARE_MIN * u64::from(shards);
    if memory < least {
        let (least, found) = (least >> 20, memory >> 20);
        let need = match shards {
            1 => "a shard needs".to_owned(),
            shards => format!("{shards} shards need"),
        };
        return Err(format!(
            "{need} at least {least} MiB of memory, not {found} MiB"
        ));
    }
    Ok(())
}

/// The address that other nodes use to reach this one. Only a node that is alone may advertise a
/// wildcard address.
fn advertise(raw: &RawConfig, listen: &str) -> Result<String, BadSetting> {
    let alone = raw.parse(Key::ClusterSecret, |text| Ok(text.is_empty()))?
        && raw.parse(Key::Join, |text| Ok(text.is_empty()))?;
    raw.parse(Key::Advertise, |text| {
        let me = if text.is_empty() { listen } else { text };
        let (host, _) = me.rsplit_once(':').unwrap_or((me, ""));
        if !alone && is_wildcard(host) {
            return Err(format!(
                "other nodes cannot reach {me}: give --advertise HOST:PORT"
            ));
        }
        match is_address(me) {
            true => Ok(me.to_owned()),
            false => Err(format!(
                "an address is HOST:PORT, such as {EXAMPLE_ADDRESS}"
            )),
        }
    })
}

/// Whether a text is a host, as names and addresses are spelt, and a port.
fn is_address(text: &str) -> bool {
    let of_host = |letter: char| letter.is_alphanumeric() || "-._:[]%*".contains(letter);
    let parts = text.rsplit_once(':');
    parts.is_some_and(|(host, port)| host.chars().all(of_host) && port.parse::<u16>().is_ok())
}

/// Whether a host stands for all addresses, in any spelling, so that no other node can use it.
fn is_wildcard(host: &str) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let bare = bare.unwrap_or(host);
    if ["", "*"].contains(&bare) {
        return true;
    }
    // The system knows more spellings of an address than the standard library, such as 0 and 0x0. A
    // name that this machine cannot resolve may be known to other machines.
    let found = (bare, 0).to_socket_addrs().into_iter().flatten();
    found
        .map(|at| at.ip().to_canonical())
        .any(|ip| ip.is_unspecified())
}

/// Reads how an empty folder becomes part of a cluster.
fn joining(raw: &RawConfig, me: &str) -> Result<Joining, BadSetting> {
    let mut nodes = raw.parse(Key::Join, |text| {
        let nodes = text.split(',').map(|node| node.trim().to_owned());
        let nodes: Vec<String> = nodes.filter(|node| !node.is_empty()).collect();
        match nodes.iter().find(|node| !is_address(node)) {
            Some(node) => Err(format!(
                "an address is HOST:PORT, such as {EXAMPLE_ADDRESS}, unlike {node:?}"
            )),
            None => Ok(nodes),
        }
    })?;
    nodes.sort();
    nodes.dedup();
    let expected = raw.parse(Key::BootstrapExpect, |text| match text {
        "" => Ok(None),
        text => match text.parse::<usize>() {
            Ok(count) if count > 0 => Ok(Some(count)),
            _ => Err("the number of nodes must be 1 or more".to_owned()),
        },
    })?;
    if let Some(expected) = expected.filter(|count| *count != nodes.len().max(1)) {
        let rule = format!(
            "--join must name all {expected} nodes; it names {}",
            nodes.len()
        );
        return Err(raw.bad(Key::Join, rule));
    }
    // This is no error yet: a node that has its folder may have moved to another address.
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

/// Reads where the pages are served. The node goes by the names in its own addresses, by that of the
/// machine, and by those of --http-hosts.
fn http(raw: &RawConfig, listen: &str) -> Result<Http, BadSetting> {
    let list = |text: &str| {
        let parts = text.split(',').map(str::trim);
        let parts = parts.filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect::<Vec<String>>()
    };
    let mut hosts = raw.parse(Key::HttpHosts, |text| {
        let hosts = list(text);
        match hosts.iter().find(|host| host.contains([':', '/', '*'])) {
            Some(host) => Err(format!("a host is a name without a port, unlike {host:?}")),
            None => Ok(hosts),
        }
    })?;
    let origins = raw.parse(Key::HttpOrigins, |text| {
        let origins = list(text);
        match origins.iter().find(|origin| !is_origin(origin)) {
            Some(origin) => Err(format!(
                "an origin is http://HOST or https://HOST, perhaps with a port, unlike {origin:?}"
            )),
            None => Ok(origins),
        }
    })?;
    let own = [listen, raw.text(Key::Advertise), raw.text(Key::Http)];
    let own = own.iter().filter_map(|address| address.rsplit_once(':'));
    hosts.extend(
        own.map(|(host, _)| host.to_owned())
            .filter(|host| !host.is_empty()),
    );
    hosts.extend(Root::of_machine().word("proc/sys/kernel/hostname"));
    Ok(Http {
        address: raw.parse(Key::Http, address)?,
        hosts,
        origins,
        drain_wait: raw.parse(Key::DrainWait, |text| {
            let wait = rangedb_duration::parse(text).map_err(|bad| bad.to_string())?;
            if wait > DRAIN_WAIT_MAX {
                return Err("a node goes on serving for at most 1m".to_owned());
            }
            Ok(wait)
        })?,
    })
}

fn is_origin(text: &str) -> bool {
    let host = text
        .strip_prefix("http://")
        .or(text.strip_prefix("https://"));
    host.is_some_and(|host| !host.is_empty() && !host.contains('/'))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut addresses = text
        .to_socket_addrs()
        .map_err(|e| format!("an address is HOST:PORT ({e})"))?;
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
                return Err("a list of processors looks like 0,2-3".to_owned());
            };
            // The list is looked at before it is built: it may name more than fit into memory.
            let outside = [first, last]
                .into_iter()
                .find(|cpu| *cpu > allowed.iter().copied().max().unwrap_or_default());
            if let Some(cpu) = outside {
                return Err(format!("this process may not run on processor {cpu}"));
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            Some(cpu) => Err(format!("this process may not run on processor {cpu}")),
            None if cpus.is_empty() => Err("the list names no processor".to_owned()),
            None => Ok(cpus),
        }
    })
}

#[cfg(test)]
mod tests;
