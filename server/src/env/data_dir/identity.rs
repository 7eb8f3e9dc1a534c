//! `node.json`: what a data folder says of itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rangedb_engine::shard::{FolderMark, Opened};
use serde::{Deserialize, Serialize};

use super::fault::{BadFolder, advice};
use super::look::denied;
use crate::config::SHARDS_MAX;

/// The format of the folder that this version writes.
pub const FORMAT: u32 = 3;
/// One whose parts do not name each other; this version opens it and gives them their names.
const FORMAT_UNMARKED: u32 = 2;
/// One of which folders of a cluster of one can be opened, too.
const FORMAT_OF_ONE: u32 = 1;
/// The file.
pub const IDENTITY: &str = "node.json";
/// The file before it has its name.
pub const DRAFT: &str = "node.json.draft";

/// What a folder says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Format version.
    pub format: u32,
    /// The cluster's id, in hex.
    pub cluster: String,
    /// The node's id.
    pub node: u64,
    /// Shards that the folder was made with.
    pub shards: u16,
    /// Borders of the ranges that it was made with, in hex.
    pub split_at: Vec<String>,
    /// Where nodes of the cluster listen, by id, as far as is known.
    #[serde(default)]
    pub addresses: BTreeMap<u64, String>,
    /// Node and shard of each replica of the system range, as far as is known.
    #[serde(default)]
    pub system: Vec<(u64, u16)>,
    /// How often a process was started on it. One that is used by two counts on in each.
    #[serde(default)]
    pub starts: u64,
    /// The newest process of each other node that was seen, in hex: see `NodeRecord::life`. One that
    /// comes with an older folder is refused by it.
    #[serde(default)]
    pub lives: BTreeMap<u64, String>,
    /// The log of each shard.
    #[serde(default)]
    pub logs: Vec<LogName>,
    /// Why no node may run on the folder any more. Without it the next starts would count on until
    /// the folder looks newer than the one that it is older than.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<String>,
}

/// What the folder remembers of a shard's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogName {
    /// Its random id, in hex. The log and the tables of the shard carry it, too.
    pub id: String,
    /// The start at which it was last opened. 0: it was never made. None: by a version that did not
    /// write this down.
    pub opened: Option<u64>,
}

impl LogName {
    /// Of a log that is yet to be made.
    fn new(opened: Option<u64>) -> LogName {
        LogName {
            id: format!("{:032x}", rand::random::<u128>()),
            opened,
        }
    }
}

impl Identity {
    /// Gives each shard's log a name; `opened` is what is known of it.
    pub(super) fn name_logs(&mut self, opened: Option<u64>) {
        self.logs = (0..self.shards).map(|_| LogName::new(opened)).collect();
    }

    /// What the engine is told of a shard's folder.
    pub fn mark(&self, shard: u16) -> FolderMark {
        let log = self.logs.get(usize::from(shard));
        FolderMark {
            log: log.map_or(0, |log| u128::from_str_radix(&log.id, 16).unwrap_or(0)),
            opened: match log.and_then(|log| log.opened) {
                None => Opened::Unmarked,
                Some(0) => Opened::Never,
                Some(start) => Opened::At(start),
            },
            start: self.starts,
        }
    }

    /// Whether the folder's cluster has other nodes, as far as is known.
    pub fn is_of_cluster(&self) -> bool {
        let others = self.addresses.keys().any(|node| *node != self.node);
        others || self.node != super::FOUNDER || self.system.iter().any(|at| at.0 != self.node)
    }
}

/// What a folder's file says, in this version's format.
pub(super) struct Found {
    pub identity: Identity,
    /// The file is of an older format.
    pub is_older: bool,
}

/// Reads a folder's file; `None`: it has none. Changes nothing.
pub(super) fn read(path: &Path) -> Result<Option<Found>, BadFolder> {
    let name = path.join(IDENTITY);
    let text = match fs::read(&name) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(denied(path, "read", IDENTITY)(error)),
    };
    let shown = || path.display().to_string();
    let damaged = |why: String| BadFolder::Lost {
        path: shown(),
        what: format!("node.json is damaged or was not made by rangedb ({why})"),
        advice: advice(None),
    };
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    let format = value.get("format").and_then(serde_json::Value::as_u64);
    let format = format.ok_or_else(|| damaged("it names no format".to_owned()))?;
    match u32::try_from(format) {
        Ok(FORMAT_OF_ONE) => Ok(Some(Found {
            identity: of_format_1(&shown(), value)?,
            is_older: true,
        })),
        Ok(known @ (FORMAT | FORMAT_UNMARKED)) => {
            let identity = serde_json::from_value::<Identity>(value);
            let mut identity = identity.map_err(|e| damaged(e.to_string()))?;
            let is_older = known == FORMAT_UNMARKED;
            if is_older {
                identity.format = FORMAT;
                identity.name_logs(None);
            }
            if !(1..=SHARDS_MAX).contains(&identity.shards.into()) {
                let shards = identity.shards;
                return Err(damaged(format!("it names {shards} shards")));
            }
            let is_named = |log: &LogName| u128::from_str_radix(&log.id, 16).is_ok();
            let are_named = identity.logs.iter().all(is_named);
            if identity.logs.len() != usize::from(identity.shards) || !are_named {
                return Err(damaged("it does not name the log of each shard".to_owned()));
            }
            if let Some(why) = identity.given_up {
                return Err(BadFolder::GivenUp { path: shown(), why });
            }
            Ok(Some(Found { identity, is_older }))
        }
        _ => Err(BadFolder::OtherFormat {
            path: shown(),
            found: format.to_string(),
        }),
    }
}

/// What a folder of format 1 would say in this one.
fn of_format_1(path: &str, mut value: serde_json::Value) -> Result<Identity, BadFolder> {
    let path = path.to_owned();
    let of_several = value.get("nodes").and_then(serde_json::Value::as_array);
    if of_several.is_some_and(|nodes| !nodes.is_empty()) {
        return Err(BadFolder::OldCluster { path });
    }
    if let Some(fields) = value.as_object_mut() {
        fields.remove("nodes");
        fields.remove("enrolled");
    }
    let identity = serde_json::from_value::<Identity>(value);
    let mut identity = identity.map_err(|e| BadFolder::Lost {
        path,
        what: format!("node.json is damaged ({e})"),
        advice: advice(Some(false)),
    })?;
    identity.format = FORMAT;
    identity.system = vec![(identity.node, 0)];
    identity.name_logs(None);
    Ok(identity)
}

/// Has a folder say that no node may run on it any more, unless another process has started on it since.
///
/// # Errors
/// The system refuses.
pub fn give_up(path: &Path, identity: &Identity, why: &str) -> io::Result<()> {
    let found = read(path).map_err(io::Error::other)?;
    match found {
        Some(found) if found.identity.starts == identity.starts => {
            let mut identity = identity.clone();
            identity.given_up = Some(why.to_owned());
            write_identity(path, &identity)
        }
        _ => Ok(()),
    }
}

/// Writes what a folder says of itself; durable when this returns.
///
/// # Errors
/// The system refuses.
pub fn write_identity(path: &Path, identity: &Identity) -> io::Result<()> {
    let draft = path.join(DRAFT);
    let mut file = File::create(&draft)?;
    file.write_all(serde_json::to_string_pretty(identity)?.as_bytes())?;
    file.sync_all()?;
    fs::rename(draft, path.join(IDENTITY))?;
    File::open(path)?.sync_all()
}
