//! The file system of the data folder: its kind, its options, its room, direct I/O, and limits of
//! control groups on disks.

use std::path::{Path, PathBuf};

use super::{Check, bytes};
use crate::config::Config;
use crate::data_dir::{DataDir, FolderOptions};
use crate::env::root::Root;
use crate::env::{cgroup, kernel};

/// File systems that nodes run on every day.
const TRUSTED: [&str; 2] = ["ext4", "xfs"];
/// File systems that forget everything when the machine stops.
const VOLATILE: [&str; 2] = ["tmpfs", "ramfs"];
/// Options that let the file system lose what it has confirmed.
const UNSAFE_OPTIONS: [&str; 3] = ["nobarrier", "barrier=0", "eatmydata"];
/// With less room in bytes a node cannot begin.
const ROOM_MIN: u64 = 1 << 30;
/// With less room in bytes a busy node is soon full: logs, and tables that are being merged.
const ROOM_WANTED: u64 = 10 << 30;
const INODES_MIN: u64 = 1_000;
const INODES_WANTED: u64 = 10_000;

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub kind: String,
    source: String,
    options: Vec<String>,
}

/// The file system of a folder, by `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
pub(super) fn mount(root: &Root, folder: &Path) -> Option<Mount> {
    let text = root.text("proc/self/mountinfo")?;
    let mounts = text.lines().filter_map(|line| {
        let (of_mount, of_system) = line.split_once(" - ")?;
        let mut fields = of_mount.split(' ').skip(4);
        let (at, options) = (unescaped(fields.next()?), fields.next()?);
        let mut fields = of_system.split(' ');
        let (kind, source) = (fields.next()?.to_owned(), unescaped(fields.next()?));
        let of_system = fields.next().unwrap_or_default();
        let options = options.split(',').chain(of_system.split(','));
        let mount = Mount {
            kind,
            source: source.display().to_string(),
            options: options.map(str::to_owned).collect(),
        };
        folder.starts_with(&at).then_some((at, mount))
    });
    // Of two at one place, the later one hides the earlier one.
    let nearest = mounts.max_by_key(|(at, _)| at.components().count());
    nearest.map(|(_, mount)| mount)
}

/// A path in which spaces, tabs, newlines and backslashes are octal numbers.
fn unescaped(text: &str) -> PathBuf {
    let mut path = text.to_owned();
    for (code, character) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        path = path.replace(code, character);
    }
    PathBuf::from(path)
}

/// Looks at the data folder as a start of the node does, which refuses what this fails.
pub fn data_dir(config: &Config) -> Check {
    let name = "data_dir";
    let wanted = "the folder of a node, an empty folder, or one that is not there yet";
    match DataDir::look(&config.data_dir, &FolderOptions::of(config)) {
        Ok(None) => Check::new(name, "new: the first start makes it", wanted),
        Ok(Some(found)) => {
            let (node, cluster, shards) = (found.node, found.cluster, found.shards);
            let found = format!("of node {node} of cluster {cluster}, with {shards} shards");
            Check::new(name, found, wanted)
        }
        Err(bad) => Check::new(name, bad.to_string(), wanted).fail_if(
            true,
            "a start refuses this folder: do what the message says, or give another --data-dir",
        ),
    }
}

pub(super) fn file_system(root: &Root, folder: &Path) -> Check {
    let name = "file_system";
    let wanted = "ext4 or XFS on a local disk, writable, with barriers";
    let Some(mount) = mount(root, folder) else {
        return Check::new(name, "unknown", wanted)
            .warn_if(true, "make /proc/self/mountinfo readable");
    };
    let has = |option: &str| mount.options.iter().any(|known| known == option);
    let loose = UNSAFE_OPTIONS.into_iter().find(|option| has(option));
    let found = format!(
        "{} on {} for {}",
        mount.kind,
        mount.source,
        folder.display()
    );
    Check::new(name, found, wanted)
        .fail_if(
            has("ro"),
            "mount it for writing, or choose another --data-dir",
        )
        .fail_if(
            VOLATILE.contains(&mount.kind.as_str()),
            "choose a --data-dir on a disk: this file system lives in memory",
        )
        .fail_if(
            loose.is_some(),
            format!("mount it without {}", loose.unwrap_or_default()),
        )
        .warn_if(
            !TRUSTED.contains(&mount.kind.as_str()),
            "put --data-dir on ext4 or XFS: no other file system is tested",
        )
}

pub(super) fn free_space(folder: &Path) -> Check {
    match rustix::fs::statvfs(folder) {
        Ok(found) => room(
            found.f_bavail.saturating_mul(found.f_frsize),
            found.f_blocks.saturating_mul(found.f_frsize),
        ),
        Err(error) => unknown("free_space", folder, error),
    }
}

fn unknown(name: &'static str, folder: &Path, error: rustix::io::Errno) -> Check {
    let found = format!("unknown: {error}");
    let fix = format!("let this user read {}", folder.display());
    Check::new(name, found, "a folder that can be read").fail_if(true, fix)
}

pub(super) fn room(free: u64, total: u64) -> Check {
    let found = format!("{} of {}", bytes(free), bytes(total));
    let fix = "make room, or choose a larger disk: writes are refused when it is full";
    Check::new(
        "free_space",
        found,
        format!("at least {}, and a tenth of the disk", bytes(ROOM_WANTED)),
    )
    .fail_if(free < ROOM_MIN, fix)
    .warn_if(free < ROOM_WANTED || free < total / 10, fix)
}

pub(super) fn free_inodes(folder: &Path) -> Check {
    match rustix::fs::statvfs(folder) {
        Ok(found) => inodes(found.f_favail, found.f_files),
        Err(error) => unknown("free_inodes", folder, error),
    }
}

pub(super) fn inodes(free: u64, total: u64) -> Check {
    // Some file systems make inodes as they need them.
    let is_counted = total > 0;
    let found = if is_counted {
        format!("{free} of {total}")
    } else {
        "as many as are needed".to_owned()
    };
    let fix = "remove small files, or make the file system with more inodes";
    Check::new("free_inodes", found, format!("at least {INODES_WANTED}"))
        .fail_if(is_counted && free < INODES_MIN, fix)
        .warn_if(is_counted && free < INODES_WANTED, fix)
}

/// Tries whether a file in the folder can be written directly.
pub(super) fn direct_io(folder: &Path) -> Check {
    let wanted = "files that can be opened with O_DIRECT";
    match kernel::check_direct_io(folder) {
        Ok(()) => Check::new("direct_io", "available", wanted),
        Err(missing) => Check::new("direct_io", missing.to_string(), wanted).fail_if(
            true,
            "put --data-dir on ext4 or XFS, in a folder that this user may write to",
        ),
    }
}

pub(super) fn cgroup(root: &Root) -> Check {
    let limits = cgroup::texts(root, cgroup::IO_MAX);
    let found = match limits.first() {
        None => "no limit".to_owned(),
        Some((group, text)) => format!("{} (group {group})", text.replace('\n', "; ")),
    };
    Check::new("cgroup_io", found, "no limit on reads and writes of disks").warn_if(
        !limits.is_empty(),
        "no IOReadBandwidthMax= and the like in the systemd unit: writes wait for the limit",
    )
}
