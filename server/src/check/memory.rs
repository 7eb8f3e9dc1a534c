//! Swap, huge pages, and the memory that control groups allow.

use super::{Check, bytes};
use crate::env::cgroup;
use crate::env::root::Root;

/// Of a group's limit, a node may use four fifths by its own setting: the rest is for what has no
/// budget, and for the page cache.
const GROUP_PART: (u64, u64) = (4, 5);

pub(super) fn swap(root: &Root) -> Check {
    let total = root.memory("SwapTotal").unwrap_or_default();
    let allowed = cgroup::lowest(root, cgroup::SWAP_MAX);
    let is_forbidden = allowed.is_some_and(|(allowed, _)| allowed == 0);
    let found = match total {
        0 => "none".to_owned(),
        _ if is_forbidden => "forbidden by the control group".to_owned(),
        total => bytes(total),
    };
    Check::new("swap", found, "none for the node: it waits for every page").warn_if(
        total > 0 && !is_forbidden,
        "MemorySwapMax=0 in the systemd unit, or `swapoff -a` and no swap in /etc/fstab",
    )
}

pub(super) fn huge_pages(root: &Root) -> Check {
    let folder = "sys/kernel/mm/transparent_hugepage";
    let chosen = |name: &str| {
        let text = root.text(&format!("{folder}/{name}"))?;
        let (_, rest) = text.split_once('[')?;
        Some(rest.split_once(']')?.0.to_owned())
    };
    let (enabled, defrag) = (chosen("enabled"), chosen("defrag"));
    let reserved = root.text("proc/meminfo").and_then(|text| {
        let mut lines = text.lines();
        let line = lines.find_map(|line| line.strip_prefix("HugePages_Total:"))?;
        line.trim().parse::<u64>().ok()
    });
    let reserved = reserved.unwrap_or_default() * root.memory("Hugepagesize").unwrap_or_default();
    let total = root.memory("MemTotal").unwrap_or_default();
    let found = format!(
        "{}, defrag {}, {} reserved",
        enabled.as_deref().unwrap_or("not there"),
        defrag.as_deref().unwrap_or("unknown"),
        bytes(reserved)
    );
    let wanted =
        "transparent huge pages on `always` or `madvise`, defrag not on `always`, none reserved";
    Check::new("huge_pages", found, wanted)
        .warn_if(
            reserved > total / 10,
            "vm.nr_hugepages = 0 with sysctl: a node cannot use reserved pages",
        )
        .warn_if(
            defrag.as_deref() == Some("always"),
            format!("echo defer+madvise > /{folder}/defrag: otherwise threads wait for the kernel to move pages"),
        )
        .warn_if(
            enabled.as_deref().is_none_or(|enabled| enabled == "never"),
            format!("echo madvise > /{folder}/enabled: reads are 7 to 25 % cheaper with huge pages"),
        )
}

/// Whether the groups allow the memory that the settings give to the node.
pub(super) fn cgroup(root: &Root, memory: u64) -> Check {
    let limits = [cgroup::MEMORY_MAX, cgroup::MEMORY_HIGH];
    let limits = limits.map(|limit| cgroup::lowest(root, limit));
    let total = root.memory("MemTotal").unwrap_or(u64::MAX);
    let limit = limits.into_iter().flatten().min();
    // Version 1 writes a very large number for no limit.
    let limit = limit.filter(|(limit, _)| *limit < total);
    let found = match &limit {
        None => "no limit".to_owned(),
        Some((limit, group)) => format!("{} (group {group})", bytes(*limit)),
    };
    let limit = limit.map_or(total, |(limit, _)| limit);
    let most = limit / GROUP_PART.1 * GROUP_PART.0;
    let fix = format!(
        "--memory {}MiB or less, or a higher limit (MemoryMax= and MemoryHigh= in the systemd unit)",
        most >> 20
    );
    Check::new(
        "cgroup_memory",
        found,
        format!(
            "more than a quarter above the node's memory, {}",
            bytes(memory)
        ),
    )
    .fail_if(memory > limit, fix.clone())
    .warn_if(memory > most, fix)
}
