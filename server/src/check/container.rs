//! Whether the process is in a container, and whether the data outlives it.

use std::path::Path;

use super::{Check, disk};
use crate::env::root::Root;

/// Files that container engines leave in a container.
const MARKS: [(&str, &str); 2] = [(".dockerenv", "docker"), ("run/.containerenv", "podman")];

/// Whether a filter (seccomp) lies between the process and the system calls.
pub(super) fn has_filter(root: &Root) -> bool {
    let status = root.text("proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let mode = lines.find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_some_and(|mode| mode.trim() == "2")
}

fn name(root: &Root) -> Option<String> {
    let pods = root.path("var/run/secrets/kubernetes.io");
    if pods.exists() {
        return Some("kubernetes".to_owned());
    }
    let mut marks = MARKS.iter();
    if let Some((_, engine)) = marks.find(|(file, _)| root.path(file).exists()) {
        return Some((*engine).to_owned());
    }
    // systemd and LXC name the container in the environment of its first process.
    let variables = std::fs::read(root.path("proc/1/environ")).ok()?;
    let mut variables = variables.split(|byte| *byte == 0);
    let found = variables.find_map(|variable| variable.strip_prefix(b"container="))?;
    Some(String::from_utf8_lossy(found).into_owned())
}

pub(super) fn kind(root: &Root, folder: &Path) -> Check {
    let name = name(root);
    let filter = if has_filter(root) {
        ", system calls are filtered"
    } else {
        ""
    };
    let found = format!("{}{filter}", name.as_deref().unwrap_or("none"));
    let layer = disk::mount(root, folder).filter(|mount| mount.kind == "overlay");
    Check::new(
        "container",
        found,
        "none, or one whose data lies on a volume",
    )
    .fail_if(
        name.is_some() && layer.is_some(),
        "mount a volume at the data folder: otherwise the data goes when the container goes",
    )
}
