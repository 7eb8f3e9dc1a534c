//! The limits of this process's control groups, and of all groups above them: the kernel enforces
//! the limits of every one. Knows version 2 and version 1, side by side, too.

use super::root::Root;

/// A limit: the name of a file under version 2, and of a controller and its file under version 1.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    file: &'static str,
    old: Option<(&'static str, &'static str)>,
}

/// Bytes of memory beyond which processes of the group are killed.
pub const MEMORY_MAX: Limit = Limit {
    file: "memory.max",
    old: Some(("memory", "memory.limit_in_bytes")),
};
/// Bytes of memory beyond which the group is slowed down.
pub const MEMORY_HIGH: Limit = Limit {
    file: "memory.high",
    old: None,
};
/// Bytes of swap that the group may use.
pub const SWAP_MAX: Limit = Limit {
    file: "memory.swap.max",
    old: None,
};
/// Threads and processes of the group.
pub const PIDS_MAX: Limit = Limit {
    file: "pids.max",
    old: Some(("pids", "pids.max")),
};
/// Rates of reads and writes of the group, by disk.
pub const IO_MAX: Limit = Limit {
    file: "io.max",
    old: None,
};
const CPU_MAX: Limit = Limit {
    file: "cpu.max",
    old: Some(("cpu", "cpu.cfs_quota_us")),
};

/// The text of a limit in each group that has it, with the group's path: the own group first, then
/// those above it.
pub fn texts(root: &Root, limit: Limit) -> Vec<(String, String)> {
    let groups = root.text("proc/self/cgroup").unwrap_or_default();
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(own)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (folder, file) = match limit.old {
            _ if controllers.is_empty() => ("sys/fs/cgroup".to_owned(), limit.file),
            Some((controller, file)) if controllers.split(',').any(|c| c == controller) => {
                (format!("sys/fs/cgroup/{controller}"), file)
            }
            _ => continue,
        };
        let mut group = own.trim_end_matches('/');
        loop {
            if let Some(text) = root.word(&format!("{folder}{group}/{file}")) {
                let shown = if group.is_empty() { "/" } else { group };
                found.push((shown.to_owned(), text));
            }
            let Some((above, _)) = group.rsplit_once('/') else {
                break;
            };
            group = above;
        }
    }
    found
}

/// The lowest number that a limit has in any group, with the group's path; `None` if there is no
/// limit.
pub fn lowest(root: &Root, limit: Limit) -> Option<(u64, String)> {
    let texts = texts(root, limit).into_iter();
    let numbers = texts.filter_map(|(group, text)| Some((text.parse().ok()?, group)));
    numbers.min()
}

/// The fewest processors whose time any group may use, with the group's path; `None` if there is no
/// limit.
pub fn processors(root: &Root) -> Option<(f64, String)> {
    let old_periods = texts(
        root,
        Limit {
            file: "cpu.max",
            old: Some(("cpu", "cpu.cfs_period_us")),
        },
    );
    let quotas = texts(root, CPU_MAX).into_iter().zip(old_periods);
    let shares = quotas.filter_map(|((group, quota), (_, period))| {
        // Version 2 has both numbers in one file.
        let quota: f64 = quota.split_whitespace().next()?.parse().ok()?;
        let period: f64 = period.split_whitespace().last()?.parse().ok()?;
        (quota > 0.0 && period > 0.0).then_some((quota / period, group))
    });
    shares.min_by(|(a, _), (b, _)| a.total_cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, text).expect("written");
        }
        folder
    }

    #[test]
    fn the_lowest_limit_of_all_groups_counts() {
        let folder = tree(&[
            ("proc/self/cgroup", "0::/a.slice/b.service\n"),
            ("sys/fs/cgroup/a.slice/b.service/memory.max", "max\n"),
            ("sys/fs/cgroup/a.slice/memory.max", "1048576\n"),
            ("sys/fs/cgroup/a.slice/b.service/cpu.max", "400000 100000\n"),
            ("sys/fs/cgroup/a.slice/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/cpu.max", "max 100000\n"),
        ]);
        let root = Root::at(folder.path());
        let above = "/a.slice".to_owned();
        assert_eq!(lowest(&root, MEMORY_MAX), Some((1 << 20, above.clone())));
        assert_eq!(processors(&root), Some((1.5, above)));
        assert_eq!(lowest(&root, PIDS_MAX), None);
    }

    #[test]
    fn version_1_and_a_group_that_a_container_sees_as_its_root_are_known() {
        let folder = tree(&[
            (
                "proc/self/cgroup",
                "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2097152\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        let root = Root::at(folder.path());
        assert_eq!(lowest(&root, MEMORY_MAX), Some((2 << 20, "/".to_owned())));
        assert_eq!(processors(&root), Some((0.5, "/".to_owned())));
        std::fs::write(
            folder.path().join("sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
            "-1",
        )
        .expect("written");
        assert_eq!(processors(&root), None);
    }
}
