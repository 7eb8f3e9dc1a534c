//! `node.json`: the identity of a data folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rangedb_engine::shard::{FolderMark, Opened};
use serde::{Deserialize, Serialize};

use super::fault::{BadFolder, advice, denied};
use crate::config::SHARDS_MAX;

/// The folder format that this version writes.
pub const FORMAT: u32 = 3;
/// A format whose parts do not name each other; this version opens it and names them.
const FORMAT_UNMARKED: u32 = 2;
/// A format of which this version opens the folders of clusters of one node.
const FORMAT_OF_ONE: u32 = 1;
/// The file.
pub const IDENTITY: &str = "node.json";
/// The file before it has its name.
pub const DRAFT: &str = "node.json.draft";

/// The content of `node.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Format version.
    pub format: u32,
    /// The cluster's id, in hex.
    pub cluster: String,
    /// The node's id.
    pub node: u64,
    /// The number of shards that a start opens.
    pub shards: u16,
    /// The keys at which the first ranges were split, in hex.
    pub split_at: Vec<String>,
    /// The addresses of nodes of the cluster, by id, as far as known.
    #[serde(default)]
    pub addresses: BTreeMap<u64, String>,
    /// Node and shard of each replica of the system range, as far as known.
    #[serde(default)]
    pub system: Vec<(u64, u16)>,
    /// How many processes were started on this folder. Two copies of a folder count on separately.
    #[serde(default)]
    pub starts: u64,
    /// The latest process of each other node that was seen, in hex: see `NodeRecord::incarnation`. A
    /// process on an older folder is refused because of it.
    #[serde(default)]
    pub lives: BTreeMap<u64, String>,
    /// The log of each shard.
    #[serde(default)]
    pub logs: Vec<LogName>,
    /// Why no node may run on this folder any more. Without this, further starts would count up
    /// until the folder looked newer than the one it is older than.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<String>,
    /// How many of the shards are given up, the last ones: they are opened until they hold nothing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub leaving_shards: u16,
    /// The numbers of shards that held nothing and are no longer opened; the next start removes their
    /// folders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone_shards: Vec<u16>,
    /// The highest id of a replica that such a shard had. No shard takes a replica with an id up to this.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gone_replica: u64,
    /// The number of shards over which the first ranges were divided, if it is another than `shards`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_shards: Option<u16>,
}

fn is_zero(number: &(impl Default + PartialEq)) -> bool {
    *number == Default::default()
}

/// What a node must know of the cluster that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The cluster's id, in hex.
    pub cluster: String,
    /// The node's id.
    pub node: u64,
    /// The addresses of the other nodes, by id.
    pub addresses: BTreeMap<u64, String>,
    /// Node and shard of each replica of the system range.
    pub system: Vec<(u64, u16)>,
}

/// What the folder remembers of a shard's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogName {
    /// The log's random id, in hex. The shard's log and tables carry it, too.
    pub id: String,
    /// The number of the start at which the log was last opened. 0: the log was never made. None:
    /// written by a version that did not record this.
    pub opened: Option<u64>,
}

impl LogName {
    /// The name of a log that does not exist yet.
    fn new(opened: Option<u64>) -> LogName {
        LogName {
            id: format!("{:032x}", rand::random::<u128>()),
            opened,
        }
    }
}

impl Identity {
    /// Names each shard's log; `opened` is what is known of it.
    pub(super) fn name_logs(&mut self, opened: Option<u64>) {
        self.logs = (0..self.shards).map(|_| LogName::new(opened)).collect();
    }

    /// The number of shards over which the first ranges of a cluster that began here were divided.
    pub fn first_shards(&self) -> u16 {
        self.first_shards.unwrap_or(self.shards)
    }

    /// How many shards stay: those with the lowest numbers.
    pub fn staying_shards(&self) -> u16 {
        self.shards.saturating_sub(self.leaving_shards)
    }

    /// Sets how many shards stay: shards are added, or the last ones are given up, or stay after all.
    pub(super) fn keep_shards(&mut self, wanted: u16) {
        if wanted > self.shards {
            self.first_shards = Some(self.first_shards());
            let new = self.shards..wanted;
            self.logs.extend(new.map(|_| LogName::new(Some(0))));
            self.shards = wanted;
        }
        self.leaving_shards = self.shards - wanted;
    }

    /// Notes that a shard that is given up holds nothing, if it is the last one; gives whether it is.
    pub fn lose_last_shard(&mut self, shard: u16, highest_replica: u64) -> bool {
        if self.leaving_shards == 0 || shard + 1 != self.shards {
            return false;
        }
        self.first_shards = Some(self.first_shards());
        self.shards -= 1;
        self.leaving_shards -= 1;
        self.logs.truncate(usize::from(self.shards));
        self.gone_shards.push(shard);
        self.gone_replica = self.gone_replica.max(highest_replica);
        true
    }

    /// What the engine must know of a shard's folder.
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

    /// The cluster's id.
    pub fn cluster_id(&self) -> u128 {
        u128::from_str_radix(&self.cluster, 16).unwrap_or_default()
    }

    /// Whether the folder's cluster has other nodes, as far as known.
    pub fn is_of_cluster(&self) -> bool {
        let others = self.addresses.keys().any(|node| *node != self.node);
        others || self.node != super::FOUNDER || self.system.iter().any(|at| at.0 != self.node)
    }
}

/// The content of a folder's `node.json`, in this version's format.
pub(super) struct Found {
    pub identity: Identity,
    /// Whether the file has an older format.
    pub is_older: bool,
}

/// Reads a folder's `node.json`; `None` if it has none. Changes nothing.
pub(super) fn read(path: &Path) -> Result<Option<Found>, BadFolder> {
    let name = path.join(IDENTITY);
    let text = match fs::read(&name) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(denied(path, "read", IDENTITY)(error)),
    };
    decode(path, &text).map(Some)
}

/// Reads what the file of the folder at `path` holds.
pub(super) fn decode(path: &Path, text: &[u8]) -> Result<Found, BadFolder> {
    let shown = || path.display().to_string();
    let damaged = |why: String| BadFolder::Lost {
        path: shown(),
        what: format!("node.json is damaged or was not made by rangedb ({why})"),
        advice: advice(None),
    };
    let value: serde_json::Value =
        serde_json::from_slice(text).map_err(|e| damaged(e.to_string()))?;
    let format = value.get("format").and_then(serde_json::Value::as_u64);
    let format = format.ok_or_else(|| damaged("it names no format".to_owned()))?;
    match u32::try_from(format) {
        Ok(FORMAT_OF_ONE) => Ok(Found {
            identity: of_format_1(&shown(), value)?,
            is_older: true,
        }),
        Ok(known @ (FORMAT | FORMAT_UNMARKED)) => {
            let identity = serde_json::from_value::<Identity>(value);
            let mut identity = identity.map_err(|e| damaged(e.to_string()))?;
            check_shards(&identity).map_err(damaged)?;
            let is_older = known == FORMAT_UNMARKED;
            if is_older {
                identity.format = FORMAT;
                identity.name_logs(None);
            }
            let is_named = |log: &LogName| u128::from_str_radix(&log.id, 16).is_ok();
            let are_named = identity.logs.iter().all(is_named);
            if identity.logs.len() != usize::from(identity.shards) || !are_named {
                return Err(damaged("it does not name the log of each shard".to_owned()));
            }
            if let Some(why) = identity.given_up {
                return Err(BadFolder::GivenUp { path: shown(), why });
            }
            Ok(Found { identity, is_older })
        }
        _ => Err(BadFolder::OtherFormat {
            path: shown(),
            found: format.to_string(),
            known: FORMAT,
        }),
    }
}

/// Refuses a number of shards that no folder has, before anything is made for each of them.
fn check_shards(identity: &Identity) -> Result<(), String> {
    match usize::from(identity.shards) {
        1..=SHARDS_MAX => {}
        shards => return Err(format!("it names {shards} shards")),
    }
    if identity.leaving_shards >= identity.shards {
        let leaving = identity.leaving_shards;
        return Err(format!(
            "it gives up {leaving} of {} shards",
            identity.shards
        ));
    }
    match identity
        .gone_shards
        .iter()
        .find(|gone| **gone < identity.shards)
    {
        Some(gone) => Err(format!("it has shard {gone}, and has given it up")),
        None => Ok(()),
    }
}

/// Converts the content of a `node.json` of format 1.
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
    let damaged = |why: String| BadFolder::Lost {
        path: path.clone(),
        what: format!("node.json is damaged ({why})"),
        advice: advice(Some(false)),
    };
    let identity = serde_json::from_value::<Identity>(value);
    let mut identity = identity.map_err(|e| damaged(e.to_string()))?;
    check_shards(&identity).map_err(damaged)?;
    identity.format = FORMAT;
    identity.system = vec![(identity.node, 0)];
    identity.name_logs(None);
    Ok(identity)
}

/// Records in the folder, and in what is later written to it, that no node may run on it any more,
/// unless another process has started on it since.
///
/// # Errors
/// The system refuses.
pub fn give_up(path: &Path, identity: &mut Identity, why: &str) -> io::Result<()> {
    if identity.given_up.is_some() {
        return Ok(());
    }
    let found = read(path).map_err(io::Error::other)?;
    match found {
        Some(found) if found.identity.starts == identity.starts => {
            identity.given_up = Some(why.to_owned());
            write_identity(path, identity)
        }
        _ => Ok(()),
    }
}

/// Writes `node.json`; it is durable when this returns.
///
/// # Errors
/// The system refuses.
pub fn write_identity(path: &Path, identity: &Identity) -> io::Result<()> {
    let draft = path.join(DRAFT);
    let mut file = super::create(&draft)?;
    file.write_all(serde_json::to_string_pretty(identity)?.as_bytes())?;
    file.sync_all()?;
    fs::rename(draft, path.join(IDENTITY))?;
    File::open(path)?.sync_all()
}
