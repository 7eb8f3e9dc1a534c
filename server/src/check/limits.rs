//! Limits of the process: open files, locked memory, and threads of its control groups.

use super::{Check, bytes};
use crate::descriptors::{Needs, Shares};
use crate::env::cgroup;
use crate::env::kernel::MEMLOCK_MIN;
use crate::env::root::Root;

/// With fewer open files than these a node serves few connections, or few tables.
const FILES_WANTED: usize = 16_384;
/// Threads of a node besides those of its shards.
const NODE_THREADS: u64 = 16;
/// Threads of a shard: its own, its helper, and workers of the kernel's ring.
const SHARD_THREADS: u64 = 8;

/// The most that a limit in `/proc/self/limits` can be raised to without privileges.
fn hard(root: &Root, name: &str) -> Option<u64> {
    let text = root.text("proc/self/limits")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// The limit in force.
fn soft(root: &Root, name: &str) -> Option<u64> {
    let text = root.text("proc/self/limits")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

pub(super) fn descriptors(root: &Root, needs: Needs) -> Check {
    let name = "descriptors";
    // A node raises its limit by itself as far as it may.
    let Some(files) = hard(root, "Max open files") else {
        return Check::new(name, "unknown", "a limit that is known")
            .warn_if(true, "make /proc/self/limits readable");
    };
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let needed = Shares::new(files, needs).map_or_else(|few| few.needed, |_| 0);
    let wanted = FILES_WANTED.max(needed);
    let fix = format!("LimitNOFILE={wanted} in the systemd unit, or `ulimit -Hn {wanted}`");
    Check::new(
        name,
        format!("{files} open files"),
        format!("at least {wanted}"),
    )
    .fail_if(needed > 0, fix.clone())
    .warn_if(files < FILES_WANTED, fix)
}

pub(super) fn locked_memory(root: &Root, shards: usize) -> Check {
    let wanted = MEMLOCK_MIN * shards as u64;
    let found = soft(root, "Max locked memory");
    let limit = found.unwrap_or_default();
    let shown = match found {
        None => "unknown".to_owned(),
        Some(u64::MAX) => "no limit".to_owned(),
        Some(limit) => bytes(limit),
    };
    let fix = "LimitMEMLOCK=infinity in the systemd unit, or `ulimit -l unlimited`";
    Check::new(
        "memlock",
        shown,
        format!("at least {}, 512 KiB for each shard", bytes(wanted)),
    )
    .fail_if(limit < MEMLOCK_MIN, fix)
    .warn_if(limit < wanted, fix)
}

pub(super) fn cgroup_threads(root: &Root, shards: usize) -> Check {
    let wanted = NODE_THREADS + SHARD_THREADS * shards as u64;
    let limit = cgroup::lowest(root, cgroup::PIDS_MAX);
    let found = match &limit {
        None => "no limit".to_owned(),
        Some((limit, group)) => format!("{limit} threads (group {group})"),
    };
    Check::new("cgroup_threads", found, format!("at least {wanted}")).fail_if(
        limit.is_some_and(|(limit, _)| limit < wanted),
        format!(
            "TasksMax={wanted} or more in the systemd unit, or the container's limit of processes"
        ),
    )
}
