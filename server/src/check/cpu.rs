//! Processors: their frequency, and how much of their time control groups allow.

use std::collections::BTreeSet;

use super::Check;
use crate::env::cgroup;
use crate::env::root::Root;

pub(super) fn governor(root: &Root) -> Check {
    let names = std::fs::read_dir(root.path("sys/devices/system/cpu"));
    let names = names.into_iter().flatten().flatten();
    let governors = names.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        root.word(&format!(
            "sys/devices/system/cpu/{name}/cpufreq/scaling_governor"
        ))
    });
    let governors: BTreeSet<String> = governors.collect();
    let found = if governors.is_empty() {
        "none: the machine below decides".to_owned()
    } else {
        Vec::from_iter(governors.iter().map(String::as_str)).join(", ")
    };
    Check::new("governor", found, "performance on every processor").warn_if(
        governors.iter().any(|governor| governor != "performance"),
        "cpupower frequency-set -g performance",
    )
}

pub(super) fn cgroup(root: &Root, shards: usize) -> Check {
    let quota = cgroup::processors(root);
    let found = match &quota {
        None => "no limit".to_owned(),
        Some((processors, group)) => {
            format!("the time of {processors:.2} processors (group {group})")
        }
    };
    Check::new(
        "cgroup_cpu",
        found,
        format!("no limit, or more than {shards} processors for as many shards"),
    )
    .warn_if(
        quota.is_some_and(|(processors, _)| processors <= shards as f64),
        "fewer --shards in a new folder, or no CPUQuota= in the systemd unit: a group that has used up \
         its time stands still until the next period",
    )
}
