//! Looks at what lies in a data folder, and makes its parts.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::fault::{BadFolder, advice, denied, failed};
use super::identity::{DRAFT, read};
use super::{DAMAGED_HISTORY, HISTORY, LOCK, TOKEN};

/// Every new ext4 volume has this folder.
const LOST_AND_FOUND: &str = "lost+found";
/// The parts of a shard's folder, and what they hold.
const PARTS: [(&str, &str); 2] = [
    (
        "wal",
        "the log, with what this node has acknowledged and voted",
    ),
    ("tables", "the tables, with the rows"),
];

/// The folder of a part of a shard.
pub fn part(path: &Path, shard: u16, part: &str) -> PathBuf {
    path.join(format!("shard-{shard}")).join(part)
}

/// Whether there is a folder at the path. If there is, it is ours or empty. Touches nothing.
///
/// # Errors
/// It belongs to something else, is not a folder, or has lost its `node.json`.
pub fn is_ours(path: &Path) -> Result<bool, BadFolder> {
    let shown = || path.display().to_string();
    let no_folder = |what| BadFolder::NoFolder {
        path: shown(),
        what,
    };
    match fs::symlink_metadata(path) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(path, "look at")(error)),
    }
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(no_folder("is a file, not a folder")),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(no_folder(
                "is a symbolic link to something that is not there",
            ));
        }
        Err(error) => return Err(failed(path, "look at")(error)),
    }
    if read(path)?.is_some() {
        return Ok(true);
    }
    // Without `node.json` a folder is ours only if its making was cut off: its shards have no
    // files.
    let mut used = None;
    for name in names(path).map_err(denied(path, "read", ""))? {
        if [LOCK, DRAFT, TOKEN, LOST_AND_FOUND].contains(&name.as_str()) {
            continue;
        }
        let is_used = match history_is_used(path, &name) {
            Ok(None) => shard_is_used(path, &name),
            known => known,
        };
        match is_used.map_err(denied(path, "read", ""))? {
            None => {
                return Err(BadFolder::Foreign {
                    path: shown(),
                    found: name,
                });
            }
            Some(true) => used = Some(name),
            Some(false) => {}
        }
    }
    match used {
        None => Ok(true),
        Some(part) => Err(BadFolder::Lost {
            path: shown(),
            what: format!(
                "node.json is missing, but {part} has files: the folder was used, and says no \
                 longer by which node of which cluster"
            ),
            advice: advice(None),
        }),
    }
}

/// If this is the history, or a part of one that was put aside: whether it has files.
fn history_is_used(path: &Path, name: &str) -> io::Result<Option<bool>> {
    let is_number = |text: &str| text.parse::<u64>().is_ok();
    let aside = name.strip_prefix(DAMAGED_HISTORY);
    let is_aside = aside
        .and_then(|rest| rest.strip_prefix('-'))
        .is_some_and(is_number);
    if !is_aside && name != HISTORY {
        return Ok(None);
    }
    let found = match names(&path.join(name)) {
        Err(error) if error.kind() == ErrorKind::NotADirectory => return Ok(None),
        found => found?,
    };
    let is_known =
        |name: &String| is_number(name) || ["running", "making"].contains(&name.as_str());
    if !is_aside && !found.iter().all(is_known) {
        return Ok(None);
    }
    Ok(Some(!found.is_empty()))
}

/// If this is a shard's folder: whether its parts have files.
fn shard_is_used(path: &Path, name: &str) -> io::Result<Option<bool>> {
    let number = name.strip_prefix("shard-");
    let number = number.and_then(|number| number.parse::<u16>().ok());
    let Some(shard) = number.filter(|number| name == format!("shard-{number}")) else {
        return Ok(None);
    };
    let names_of = |path: &Path| match names(path) {
        Err(error) if error.kind() == ErrorKind::NotADirectory => Ok(None),
        found => found.map(Some),
    };
    let Some(found) = names_of(&path.join(name))? else {
        return Ok(None);
    };
    let mut is_used = false;
    for name in found.iter().filter(|name| *name != LOST_AND_FOUND) {
        if !PARTS.iter().any(|(part, _)| part == name) {
            return Ok(None);
        }
        let Some(files) = names_of(&part(path, shard, name))? else {
            return Ok(None);
        };
        is_used |= has_files(&files);
    }
    Ok(Some(is_used))
}

fn names(path: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(path)?;
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    names.map(|entry| entry.map(name)).collect()
}

fn has_files(names: &[String]) -> bool {
    names.iter().any(|name| name != LOST_AND_FOUND)
}

/// Makes a folder and its parents; they are durable when this returns.
///
/// # Errors
/// The system refuses.
pub fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    make_folder(parent)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

/// Makes the folders of a shard that has written nothing yet.
///
/// # Errors
/// The system refuses.
pub fn make_parts(path: &Path, shard: u16) -> Result<(), BadFolder> {
    for (name, _) in PARTS {
        let folder = part(path, shard, name);
        make_folder(&folder).map_err(denied(path, "make folders", ""))?;
    }
    Ok(())
}

/// Removes the folders of a shard that held nothing; that is durable when this returns.
///
/// # Errors
/// The system refuses.
pub fn remove_shard(path: &Path, shard: u16) -> Result<(), BadFolder> {
    let folder = path.join(format!("shard-{shard}"));
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(denied(path, "remove the folders of a shard", "")(error));
        }
        _ => {}
    }
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(failed(path, "sync"))
}

/// Checks that the folders of a shard that was used exist and have files.
///
/// # Errors
/// A part is lost.
pub fn check_parts(path: &Path, shard: u16, in_cluster: bool) -> Result<(), BadFolder> {
    for (name, held) in PARTS {
        let found = names(&part(path, shard, name));
        let is = match found {
            Ok(names) if has_files(&names) => continue,
            Ok(_) => "is empty",
            Err(error) if error.kind() == ErrorKind::NotFound => "is missing",
            Err(error) if error.kind() == ErrorKind::NotADirectory => "is not a folder",
            Err(error) => return Err(denied(path, "read", name)(error)),
        };
        return Err(BadFolder::Lost {
            path: path.display().to_string(),
            what: format!("shard-{shard}/{name} {is}. It held {held}"),
            advice: advice(Some(in_cluster)),
        });
    }
    Ok(())
}
