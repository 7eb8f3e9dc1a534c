//! The data folder: whose it is, what made it, and that only one process uses it.
//!
//! | name | what |
//! |---|---|
//! | `LOCK` | locked by the process that uses the folder; its process id |
//! | `node.json` | format version, cluster, node, shards, borders, where others are; written last |
//! | `enrolling` | the token by which the cluster knows this folder |
//! | `shard-N/wal/` | the log of shard N |
//! | `shard-N/tables/` | its tables |
//!
//! Format 1 had no cluster that grows: its folders of a cluster of one are taken over, those of
//! several nodes are refused.
//!
//! A folder without `node.json` is not finished: a start begins it anew, unless there is
//! something in it that is not ours.

#![expect(unsafe_code, reason = "std's file locks came later than flock's users")]

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::peers::enroll::Place;

/// The format of the folder that this version writes.
pub const FORMAT: u32 = 2;
/// An older one, of which folders of a cluster of one can be taken over.
const FORMAT_OF_ONE: u32 = 1;
/// The id of the node that makes a cluster.
pub const FOUNDER: u64 = 1;
const IDENTITY: &str = "node.json";
const DRAFT: &str = "node.json.draft";
const LOCK: &str = "LOCK";
const TOKEN: &str = "enrolling";

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
}

/// What a new folder becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Birth {
    /// The first node of a new cluster.
    Founder,
    /// A node of a cluster that is there.
    Member(Place),
}

/// Why a folder is not used.
#[derive(Debug, thiserror::Error)]
pub enum BadFolder {
    /// The system refuses.
    #[error("data folder {path}: {action}: {error}")]
    Io {
        /// What was touched.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The system's words.
        error: io::Error,
    },
    /// Another process uses it.
    #[error(
        "data folder {path} is in use by process {owner}; stop that process, or start this one \
         with another --data-dir"
    )]
    InUse {
        /// The folder.
        path: String,
        /// The process.
        owner: String,
    },
    /// Another version made it.
    #[error(
        "data folder {path} has format {found}, this version of rangedb knows format {FORMAT}; \
         start the version that made it, or move the data with that version's tools"
    )]
    OtherFormat {
        /// The folder.
        path: String,
        /// Its format.
        found: String,
    },
    /// It was made with other settings.
    #[error(
        "data folder {path} was made with {setting} {made}, not {given}: that is fixed when a \
         folder is made; start with {setting} {made}, or with a new --data-dir"
    )]
    OtherSetting {
        /// The folder.
        path: String,
        /// Which setting.
        setting: &'static str,
        /// What the folder has.
        made: String,
        /// What was asked.
        given: String,
    },
    /// A folder of several nodes that were formed before clusters could grow.
    #[error(
        "data folder {path} belongs to a cluster of several nodes of format 1, whose replicas this \
         version cannot read; start the version that made it, copy the data with `rangedb scan`, \
         and form a new cluster of empty nodes"
    )]
    OldCluster {
        /// The folder.
        path: String,
    },
    /// It belongs to another cluster than the nodes of --join.
    #[error(
        "data folder {path} belongs to cluster {cluster}, but {address} of --join belongs to {other}; \
         give the list of its own cluster, or an empty folder"
    )]
    OtherCluster {
        /// The folder.
        path: String,
        /// Its cluster.
        cluster: String,
        /// A node of the list.
        address: String,
        /// That node's cluster.
        other: String,
    },
    /// The cluster refuses this node.
    #[error("data folder {path} cannot be part of the cluster: {why}")]
    NotEnrolled {
        /// The folder.
        path: String,
        /// The reason.
        why: String,
    },
    /// It holds something else.
    #[error(
        "data folder {path} is not empty and was not made by rangedb (it has `{found}`); give an \
         empty folder with --data-dir"
    )]
    Foreign {
        /// The folder.
        path: String,
        /// What is in it.
        found: String,
    },
}

/// A data folder that this process uses until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// What the folder says of itself.
    pub identity: Identity,
    _lock: File,
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> BadFolder {
    let path = path.display().to_string();
    move |error| BadFolder::Io {
        path,
        action,
        error,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl DataDir {
    /// Opens a folder, or makes one for these settings; `be_born` is then asked what it becomes,
    /// with a token made for this folder.
    ///
    /// # Errors
    /// See [`BadFolder`].
    pub fn open(
        path: &Path,
        shards: u16,
        split_at: &[Vec<u8>],
        be_born: impl FnOnce(&str) -> Result<Birth, String>,
    ) -> Result<DataDir, BadFolder> {
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed(path, "make"))?;
        // Others' eyes are kept out of a folder that was made before, too.
        let private = Permissions::from_mode(0o700);
        fs::set_permissions(path, private).map_err(failed(path, "make private"))?;
        let lock = lock(path)?;
        let split_at: Vec<String> = split_at.iter().map(|key| hex(key)).collect();
        let identity = match read(path)? {
            Some(identity) => count_start(path, check(path, identity, shards, &split_at)?),
            None => make(path, shards, split_at, be_born)?,
        };
        Ok(DataDir {
            path: path.to_owned(),
            identity,
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of a shard's log.
    pub fn wal(&self, shard: u16) -> PathBuf {
        self.path.join(format!("shard-{shard}")).join("wal")
    }

    /// The folder of a shard's tables.
    pub fn tables(&self, shard: u16) -> PathBuf {
        self.path.join(format!("shard-{shard}")).join("tables")
    }
}

fn lock(path: &Path) -> Result<File, BadFolder> {
    let name = path.join(LOCK);
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let mut file = options.open(&name).map_err(failed(&name, "open"))?;
    // SAFETY: no memory is involved; the descriptor is open.
    let locked = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0;
    if !locked {
        let mut owner = String::new();
        // The process id is only for the message.
        let _ = file.read_to_string(&mut owner);
        let owner = if owner.trim().is_empty() {
            "unknown".to_owned()
        } else {
            owner.trim().to_owned()
        };
        return Err(BadFolder::InUse {
            path: path.display().to_string(),
            owner,
        });
    }
    let write = |mut file: &File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&file).map_err(failed(&name, "write"))?;
    Ok(file)
}

fn read(path: &Path) -> Result<Option<Identity>, BadFolder> {
    let name = path.join(IDENTITY);
    let text = match fs::read_to_string(&name) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&name, "read")(error)),
    };
    let other = |found: String| BadFolder::OtherFormat {
        path: path.display().to_string(),
        found,
    };
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| other(format!("unreadable ({e})")))?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) if format == u64::from(FORMAT_OF_ONE) => {
            return take_over(path, value).map(Some);
        }
        Some(format) => return Err(other(format.to_string())),
        None => return Err(other("unknown".to_owned())),
    }
    let identity = serde_json::from_value(value);
    identity
        .map(Some)
        .map_err(|e| other(format!("{FORMAT}, but unreadable ({e})")))
}

/// Takes over a folder of format 1.
fn take_over(path: &Path, mut value: serde_json::Value) -> Result<Identity, BadFolder> {
    let shown = path.display().to_string();
    let of_several = value.get("nodes").and_then(serde_json::Value::as_array);
    if of_several.is_some_and(|nodes| !nodes.is_empty()) {
        return Err(BadFolder::OldCluster { path: shown });
    }
    if let Some(fields) = value.as_object_mut() {
        fields.remove("nodes");
        fields.remove("enrolled");
    }
    let identity = serde_json::from_value::<Identity>(value);
    let mut identity = identity.map_err(|e| BadFolder::OtherFormat {
        path: shown,
        found: format!("{FORMAT_OF_ONE}, but unreadable ({e})"),
    })?;
    identity.format = FORMAT;
    identity.system = vec![(identity.node, 0)];
    write_identity(path, &identity).map_err(failed(path, "write node.json"))?;
    tracing::info!(folder = %path.display(), "format 1 was taken over");
    Ok(identity)
}

fn count_start(path: &Path, mut identity: Identity) -> Identity {
    identity.starts += 1;
    if let Err(error) = write_identity(path, &identity) {
        // A full disk keeps no node from starting.
        tracing::warn!(%error, "node.json was not written: this start is not counted");
    }
    identity
}

fn check(
    path: &Path,
    identity: Identity,
    shards: u16,
    split_at: &[String],
) -> Result<Identity, BadFolder> {
    let path = path.display().to_string();
    if identity.shards != shards {
        let (made, given) = (identity.shards.to_string(), shards.to_string());
        return Err(BadFolder::OtherSetting {
            path,
            setting: "--shards",
            made,
            given,
        });
    }
    // Without borders given, those of the folder hold.
    if !split_at.is_empty() && identity.split_at != split_at {
        let borders = |keys: &[String]| {
            let keys: Vec<String> = keys.iter().map(|key| format!("0x{key}")).collect();
            if keys.is_empty() {
                "none".to_owned()
            } else {
                keys.join(",")
            }
        };
        let (made, given) = (borders(&identity.split_at), borders(split_at));
        return Err(BadFolder::OtherSetting {
            path,
            setting: "--split-at",
            made,
            given,
        });
    }
    Ok(identity)
}

/// Makes a folder, or finishes one whose making a crash has cut off.
fn make(
    path: &Path,
    shards: u16,
    split_at: Vec<String>,
    be_born: impl FnOnce(&str) -> Result<Birth, String>,
) -> Result<Identity, BadFolder> {
    let names = fs::read_dir(path).map_err(failed(path, "list"))?;
    for name in names {
        let name = name
            .map_err(failed(path, "list"))?
            .file_name()
            .to_string_lossy()
            .into_owned();
        let ours = [LOCK, DRAFT, TOKEN].contains(&name.as_str()) || name.starts_with("shard-");
        if !ours {
            let path = path.display().to_string();
            return Err(BadFolder::Foreign { path, found: name });
        }
    }
    for shard in 0..shards {
        for part in ["wal", "tables"] {
            let folder = path.join(format!("shard-{shard}")).join(part);
            let mut builder = DirBuilder::new();
            let made = builder.recursive(true).mode(0o700).create(&folder);
            made.map_err(failed(&folder, "make"))?;
        }
    }
    let token = token(path).map_err(failed(path, "write its token"))?;
    let birth = be_born(&token).map_err(|why| BadFolder::NotEnrolled {
        path: path.display().to_string(),
        why,
    })?;
    let place = match birth {
        Birth::Founder => Place {
            cluster: format!("{:032x}", rand::random::<u128>()),
            node: FOUNDER,
            addresses: BTreeMap::new(),
            system: vec![(FOUNDER, 0)],
        },
        Birth::Member(place) => place,
    };
    let identity = Identity {
        format: FORMAT,
        cluster: place.cluster,
        node: place.node,
        shards,
        split_at,
        addresses: place.addresses,
        system: place.system,
        starts: 1,
    };
    write_identity(path, &identity).map_err(failed(path, "write node.json"))?;
    Ok(identity)
}

/// The token by which this folder is known to the cluster; durable before it is used.
fn token(path: &Path) -> io::Result<String> {
    let name = path.join(TOKEN);
    match fs::read_to_string(&name) {
        Ok(token) if token.len() == 32 => return Ok(token),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let token = format!("{:032x}", rand::random::<u128>());
    let mut file = File::create(&name)?;
    file.write_all(token.as_bytes())?;
    file.sync_all()?;
    File::open(path)?.sync_all()?;
    Ok(token)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, shards: u16, split_at: &[&str]) -> Result<DataDir, BadFolder> {
        let keys: Vec<Vec<u8>> = split_at.iter().map(|key| key.as_bytes().to_vec()).collect();
        DataDir::open(path, shards, &keys, |_| Ok(Birth::Founder))
    }

    #[test]
    fn a_folder_is_made_once_and_private() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new");
        let first = open(&path, 2, &["m"]).expect("made");
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(first.wal(1).is_dir() && first.tables(0).is_dir());
        let mut identity = first.identity.clone();
        assert_eq!(identity.starts, 1);
        drop(first);
        identity.starts = 2;
        assert_eq!(open(&path, 2, &["m"]).expect("opens").identity, identity);
        identity.starts = 3;
        assert_eq!(open(&path, 2, &[]).expect("opens").identity, identity);
    }

    #[test]
    fn other_settings_and_owners_are_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new");
        let first = open(&path, 2, &["m"]).expect("made");
        let error = open(&path, 2, &["m"]).expect_err("in use");
        assert!(
            error.to_string().contains(&std::process::id().to_string()),
            "{error}"
        );
        drop(first);
        let error = open(&path, 3, &["m"]).expect_err("other shards");
        assert!(error.to_string().contains("--shards 2, not 3"), "{error}");
        let error = open(&path, 2, &["n"]).expect_err("other borders");
        assert!(
            error.to_string().contains("--split-at 0x6d, not 0x6e"),
            "{error}"
        );
    }

    #[test]
    fn other_formats_and_foreign_files_are_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("photo.jpg"), b"x").expect("written");
        assert!(matches!(
            open(folder.path(), 1, &[]),
            Err(BadFolder::Foreign { .. })
        ));
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join(IDENTITY), b"{\"format\": 9}").expect("written");
        let error = open(folder.path(), 1, &[]).expect_err("another format");
        assert!(error.to_string().contains("format 9"), "{error}");
        fs::write(folder.path().join(IDENTITY), b"garbage").expect("written");
        assert!(matches!(
            open(folder.path(), 1, &[]),
            Err(BadFolder::OtherFormat { .. })
        ));
    }

    #[test]
    fn folders_of_format_1_are_taken_over_unless_they_are_of_several_nodes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let old = r#"{"format":1,"cluster":"0a","node":1,"shards":2,"split_at":["6d"],"nodes":[],"enrolled":{}}"#;
        fs::write(folder.path().join(IDENTITY), old).expect("written");
        let opened = open(folder.path(), 2, &["m"]).expect("taken over");
        assert_eq!((opened.identity.format, opened.identity.node), (FORMAT, 1));
        drop(opened);
        let again = open(folder.path(), 2, &[]).expect("opens");
        assert_eq!(again.identity.system, [(1, 0)]);
        drop(again);
        let of_three = old.replace("\"nodes\":[]", "\"nodes\":[\"a:1\",\"b:1\",\"c:1\"]");
        fs::write(folder.path().join(IDENTITY), of_three).expect("written");
        let error = open(folder.path(), 2, &[]).expect_err("refused");
        assert!(error.to_string().contains("form a new cluster"), "{error}");
    }

    #[test]
    fn a_making_that_was_cut_off_is_finished() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("shard-0")).expect("made");
        fs::write(folder.path().join(DRAFT), b"{").expect("written");
        open(folder.path(), 2, &[]).expect("made");
    }
}
