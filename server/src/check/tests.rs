//! Checks of made-up machines.

use std::io::{self, ErrorKind};
use std::path::Path;

use super::*;
use crate::data_dir::{Birth, DataDir, FolderOptions};
use crate::env::discipline::Discipline;
use crate::env::kernel::Missing;

/// A root folder with these files.
fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (path, text) in files {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, text).expect("written");
    }
    let root = Root::at(folder.path());
    (folder, root)
}

/// What a check of a machine with these files comes to.
fn of(files: &[(&str, &str)], check: impl Fn(&Root) -> Check) -> State {
    let (_folder, root) = tree(files);
    let check = check(&root);
    assert_eq!(check.state == State::Ok, check.fix.is_none(), "{check:?}");
    assert!(!check.found.is_empty() && !check.wanted.is_empty());
    check.state
}

#[test]
fn old_kernels_and_forbidden_rings_fail() {
    let file = "proc/sys/kernel/osrelease";
    for (release, state) in [
        ("6.1.0-18-amd64\n", State::Ok),
        ("5.13.0\n", State::Ok),
        ("5.4.0-1\n", State::Fail),
        ("strange\n", State::Fail),
    ] {
        assert_eq!(of(&[(file, release)], kernel::release), state, "{release}");
    }
    assert_eq!(of(&[], |root| kernel::io_uring(root, Ok(()))), State::Ok);
    let refused = || Err(Missing::IoUring(io::Error::from_raw_os_error(libc::EPERM)));
    let (_folder, root) = tree(&[("proc/sys/kernel/io_uring_disabled", "2\n")]);
    let fix = kernel::io_uring(&root, refused()).fix.expect("a fix");
    assert!(fix.contains("io_uring_disabled = 0"), "{fix}");
    let (_folder, root) = tree(&[("proc/self/status", "Name:\tx\nSeccomp:\t2\n")]);
    let fix = kernel::io_uring(&root, refused()).fix.expect("a fix");
    assert!(fix.contains("seccomp"), "{fix}");
}

#[test]
fn limits_of_the_process_are_read_as_they_are_used() {
    let of_files = |files: &str, memory: &str| {
        format!(
            "Limit                     Soft Limit           Hard Limit           Units\n\
             Max open files            1024                 {files}               files\n\
             Max locked memory         {memory}              unlimited              bytes\n"
        )
    };
    let needs = Needs {
        shards: 2,
        tables: 0,
        has_peers: true,
    };
    for (files, state) in [
        ("1048576", State::Ok),
        ("4096", State::Warn),
        ("64", State::Fail),
        ("unlimited", State::Ok),
    ] {
        let text = of_files(files, "0");
        let found = of(&[("proc/self/limits", &text)], |root| {
            limits::descriptors(root, needs)
        });
        assert_eq!(found, state, "{files}");
    }
    for (memory, state) in [
        ("unlimited", State::Ok),
        ("1048576", State::Ok),
        ("524288", State::Warn),
        ("65536", State::Fail),
    ] {
        let text = of_files("1", memory);
        let found = of(&[("proc/self/limits", &text)], |root| {
            limits::locked_memory(root, 2)
        });
        assert_eq!(found, state, "{memory}");
    }
}

#[test]
fn swap_warns_unless_the_group_forbids_it() {
    let swap = ("proc/meminfo", "SwapTotal:   2097148 kB\n");
    let none = ("proc/meminfo", "SwapTotal:   0 kB\n");
    assert_eq!(of(&[none], memory::swap), State::Ok);
    assert_eq!(of(&[swap], memory::swap), State::Warn);
    let group = [
        swap,
        ("proc/self/cgroup", "0::/a\n"),
        ("sys/fs/cgroup/a/memory.swap.max", "0\n"),
    ];
    assert_eq!(of(&group, memory::swap), State::Ok);
}

#[test]
fn huge_pages_are_to_be_had_but_never_waited_for() {
    let enabled = "sys/kernel/mm/transparent_hugepage/enabled";
    let defrag = "sys/kernel/mm/transparent_hugepage/defrag";
    let meminfo = |reserved: u64| {
        format!("MemTotal: 1048576 kB\nHugePages_Total: {reserved}\nHugepagesize: 2048 kB\n")
    };
    for (on, how, reserved, state) in [
        (
            "[always] madvise never",
            "always [madvise] never",
            0,
            State::Ok,
        ),
        (
            "always [madvise] never",
            "always [madvise] never",
            10,
            State::Ok,
        ),
        (
            "always madvise [never]",
            "always [madvise] never",
            0,
            State::Warn,
        ),
        (
            "[always] madvise never",
            "[always] madvise never",
            0,
            State::Warn,
        ),
        (
            "[always] madvise never",
            "always [madvise] never",
            256,
            State::Warn,
        ),
    ] {
        let meminfo = meminfo(reserved);
        let files = [(enabled, on), (defrag, how), ("proc/meminfo", &meminfo)];
        assert_eq!(of(&files, memory::huge_pages), state, "{on}, {how}");
    }
}

#[test]
fn limits_of_groups_count_at_every_level() {
    let check = |limit: &str, quota: &str, threads: &str| {
        let files = [
            ("proc/meminfo", "MemTotal: 16777216 kB\n"),
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.max", limit),
            ("sys/fs/cgroup/a/cpu.max", quota),
            ("sys/fs/cgroup/a/pids.max", threads),
        ];
        [
            of(&files, |root| memory::cgroup(root, 1 << 30)),
            of(&files, |root| cpu::cgroup(root, 2)),
            of(&files, |root| limits::cgroup_threads(root, 2)),
            of(&files, disk::cgroup),
        ]
    };
    let (ok, warn, fail) = (State::Ok, State::Warn, State::Fail);
    assert_eq!(check("max", "max 100000", "max"), [ok, ok, ok, ok]);
    assert_eq!(
        check("1100000000", "150000 100000", "10"),
        [warn, warn, fail, ok]
    );
    assert_eq!(
        check("500000000", "300000 100000", "99"),
        [fail, ok, ok, ok]
    );
    let files = [
        ("proc/self/cgroup", "0::/a\n"),
        ("sys/fs/cgroup/io.max", "8:0 wbps=1048576\n"),
    ];
    assert_eq!(of(&files, disk::cgroup), warn);
}

#[test]
fn processors_that_save_power_warn() {
    let file = |cpu: &'static str| format!("sys/devices/system/cpu/{cpu}/cpufreq/scaling_governor");
    let (first, second) = (file("cpu0"), file("cpu1"));
    assert_eq!(of(&[], cpu::governor), State::Ok);
    let mixed = [(first.as_str(), "performance\n"), (&second, "powersave\n")];
    assert_eq!(of(&mixed, cpu::governor), State::Warn);
    let fast = [
        (first.as_str(), "performance\n"),
        (&second, "performance\n"),
    ];
    assert_eq!(of(&fast, cpu::governor), State::Ok);
}

#[test]
fn clocks_are_to_be_kept_and_quick() {
    let kept = |is_synchronized, millis| {
        let error_max = Duration::from_millis(millis);
        let found = Discipline {
            is_synchronized,
            error_max,
        };
        clock::discipline(Ok(found)).state
    };
    assert_eq!(kept(true, 20), State::Ok);
    assert_eq!(kept(true, 2000), State::Warn);
    assert_eq!(kept(false, 20), State::Warn);
    let refused = |kind: ErrorKind| clock::discipline(Err(kind.into()));
    assert_eq!(refused(ErrorKind::Unsupported).state, State::Warn);
    // As in a service, whose unit allows no call for the clock.
    let denied = refused(ErrorKind::PermissionDenied);
    assert_eq!(denied.state, State::Ok);
    assert!(denied.found.starts_with("not known"), "{}", denied.found);
    let file = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    assert_eq!(of(&[(file, "tsc\n")], clock::source), State::Ok);
    assert_eq!(of(&[(file, "hpet\n")], clock::source), State::Warn);
}

#[test]
fn the_mount_nearest_to_the_folder_counts() {
    let mounts = "22 1 8:1 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/x\n\
                  23 22 8:2 / /data rw - ext4 /dev/sdb rw\n\
                  24 22 0:9 / /data/scratch rw - tmpfs tmpfs rw\n\
                  25 22 8:3 / /old\\040disk ro - ext4 /dev/sdc rw\n\
                  26 22 8:4 / /fast rw - xfs /dev/sdd rw,nobarrier\n\
                  27 22 8:5 / /cow rw - btrfs /dev/sde rw\n";
    let files = [("proc/self/mountinfo", mounts)];
    let state = |folder: &str| of(&files, |root| disk::file_system(root, Path::new(folder)));
    assert_eq!(state("/data/node"), State::Ok);
    assert_eq!(state("/database"), State::Warn);
    assert_eq!(state("/data/scratch/x"), State::Fail);
    assert_eq!(state("/old disk/node"), State::Fail);
    assert_eq!(state("/fast"), State::Fail);
    assert_eq!(state("/cow"), State::Warn);
    assert_eq!(
        of(&[], |root| disk::file_system(root, Path::new("/"))),
        State::Warn
    );
    let docker = [files[0], (".dockerenv", "")];
    let kind = |files: &[(&str, &str)], folder: &str| {
        of(files, |root| container::kind(root, Path::new(folder)))
    };
    assert_eq!(kind(&docker, "/database"), State::Fail);
    assert_eq!(kind(&docker, "/data"), State::Ok);
    assert_eq!(kind(&files, "/database"), State::Ok);
    let lxc = [("proc/1/environ", "a=b\0container=lxc\0")];
    let (_folder, root) = tree(&lxc);
    assert_eq!(container::kind(&root, Path::new("/")).found, "lxc");
}

#[test]
fn room_is_judged_by_what_is_free() {
    let gib = 1 << 30;
    assert_eq!(disk::room(50 * gib, 100 * gib).state, State::Ok);
    assert_eq!(disk::room(50 * gib, 1000 * gib).state, State::Warn);
    assert_eq!(disk::room(5 * gib, 10 * gib).state, State::Warn);
    assert_eq!(disk::room(gib / 2, gib).state, State::Fail);
    assert_eq!(disk::inodes(1 << 20, 1 << 22).state, State::Ok);
    assert_eq!(disk::inodes(5_000, 1 << 22).state, State::Warn);
    assert_eq!(disk::inodes(5, 1 << 22).state, State::Fail);
    assert_eq!(disk::inodes(0, 0).state, State::Ok);
}

#[test]
fn durable_writes_are_measured_and_leave_nothing_behind() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let victim = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(victim.path(), b"precious").expect("written");
    let link = folder.path().join("durable-write.probe");
    std::os::unix::fs::symlink(victim.path(), &link).expect("linked");
    let measured = durable_write::measure(folder.path(), Duration::from_millis(20));
    let measured = measured.expect("it can be written");
    assert_eq!(std::fs::read(victim.path()).expect("read"), b"precious");
    std::fs::remove_file(&link).expect("it is still there");
    assert!(
        measured.writes > 0 && measured.p50 <= measured.p99,
        "{measured:?}"
    );
    let left = std::fs::read_dir(folder.path()).expect("it is there");
    assert_eq!(left.count(), 0);
    let gone = folder.path().join("gone");
    assert!(durable_write::measure(&gone, Duration::ZERO).is_err());
    let verdict = |p50, p99| {
        durable_write::verdict(Ok(durable_write::Latency {
            writes: 100,
            p50: Duration::from_micros(p50),
            p99: Duration::from_micros(p99),
        }))
        .state
    };
    assert_eq!(verdict(60, 900), State::Ok);
    assert_eq!(verdict(60, 90_000), State::Warn);
    assert_eq!(verdict(200_000, 900_000), State::Fail);
    assert_eq!(verdict(1, 2), State::Fail);
    let refused = durable_write::verdict(Err(ErrorKind::PermissionDenied.into()));
    assert_eq!(refused.state, State::Fail);
}

#[test]
fn a_folder_that_a_start_refuses_fails() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let check = |name: &str| {
        let mut raw = crate::config::raw::RawConfig::new();
        let path = folder.path().join(name).display().to_string();
        raw.add_flag(crate::config::raw::Key::DataDir, Some(&path));
        data_dir(&Config::validate(&raw).expect("valid"))
    };
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("file"), b"x").expect("written");
    std::fs::create_dir(path("foreign")).expect("made");
    std::fs::write(path("foreign/photo.jpg"), b"x").expect("written");
    std::fs::create_dir(path("empty")).expect("made");
    let options = FolderOptions {
        shards: Some(1),
        shards_if_new: 1,
        split_at: Vec::new(),
    };
    let made = DataDir::open(&path("made"), &options, |_| Ok(Birth::Founder)).expect("made");
    for (name, state, words) in [
        ("file", State::Fail, "is a file"),
        ("foreign", State::Fail, "photo.jpg"),
        ("empty", State::Ok, "new"),
        ("absent", State::Ok, "new"),
        ("made", State::Ok, "node 1"),
    ] {
        let check = check(name);
        assert_eq!(check.state, state, "{check:?}");
        assert!(check.found.contains(words), "{check:?}");
    }
    drop(made);
    let json = std::fs::read_to_string(path("made/node.json")).expect("read");
    let newer = json.replace("\"format\": 3", "\"format\": 99");
    assert_ne!(newer, json);
    std::fs::write(path("made/node.json"), newer).expect("written");
    assert_eq!(check("made").state, State::Fail);
    assert!(!path("absent").exists() && !path("empty/LOCK").exists());
}

#[test]
fn a_port_may_be_in_use_by_the_node_of_the_folder_only() {
    let tried = |kind: Option<ErrorKind>| {
        let bound = kind.map_or(Ok(()), |kind| Err(kind.into()));
        [("--listen", "127.0.0.1:7400".to_owned(), bound)]
    };
    let used = Some(ErrorKind::AddrInUse);
    assert_eq!(network::verdict(&tried(None), None).state, State::Ok);
    assert_eq!(network::verdict(&tried(used), None).state, State::Fail);
    assert_eq!(network::verdict(&tried(used), Some(7)).state, State::Ok);
    let foreign = network::verdict(&tried(Some(ErrorKind::AddrNotAvailable)), Some(7));
    assert_eq!(foreign.state, State::Fail);
    assert!(foreign.fix.is_some_and(|fix| fix.contains("--listen")));
    let taken = |flag| {
        let bound = Err(ErrorKind::AddrInUse.into());
        (flag, "127.0.0.1:7400".to_owned(), bound)
    };
    let both = network::verdict(&[taken("--listen"), taken("--http")], None);
    let fix = both.fix.expect("both are taken");
    assert!(fix.contains("--listen and --http"), "{fix}");
}

#[test]
fn own_names_must_be_known_and_others_should() {
    let look = |is_own, is_known, secs| network::Lookup {
        address: "db1:7400".to_owned(),
        is_own,
        found: match is_known {
            true => Ok(vec!["10.0.0.1:7400".parse().expect("an address")]),
            false => Err(io::Error::other("not known")),
        },
        took: Duration::from_secs(secs),
    };
    let state = |looked: &[network::Lookup]| network::resolved(looked).state;
    assert_eq!(
        state(&[look(true, true, 0), look(false, true, 0)]),
        State::Ok
    );
    assert_eq!(
        state(&[look(true, true, 0), look(false, false, 0)]),
        State::Warn
    );
    assert_eq!(state(&[look(true, true, 3)]), State::Warn);
    assert_eq!(
        state(&[look(true, false, 0), look(false, true, 0)]),
        State::Fail
    );
}

#[test]
fn a_report_names_each_check_once_and_its_worst_state() {
    let checks = [
        Check::new("a", "fine", "fine"),
        Check::new("b", "so so", "better")
            .warn_if(true, "try")
            .warn_if(true, "again"),
        Check::new("c", "bad", "good")
            .warn_if(true, "try")
            .fail_if(true, "do"),
    ];
    let json = to_json(&checks);
    assert_eq!(json["state"], "fail");
    assert_eq!(
        json["checks"][1],
        json!({ "name": "b", "state": "warn", "found": "so so", "wanted": "better", "fix": "try" })
    );
    assert_eq!(json["checks"][0]["fix"], Value::Null);
    assert_eq!(json["checks"][2]["fix"], "do");
    let text = to_text(&checks);
    assert!(
        text.starts_with("ok    a ") && text.contains("      fix: do\n"),
        "{text}"
    );
    assert!(text.ends_with("1 ok, 1 warn, 1 fail\n"), "{text}");
    assert_eq!(worst(&checks[..2]), State::Warn);
}

#[test]
fn this_machine_is_looked_at_in_every_respect() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut raw = crate::config::raw::RawConfig::new();
    let wanted = folder.path().join("not/there/yet").display().to_string();
    raw.add_flag(crate::config::raw::Key::DataDir, Some(&wanted));
    let config = Config::validate(&raw).expect("valid");
    let checks = all(&Root::of_machine(), &config, Duration::from_millis(1));
    let mut names: Vec<&str> = checks.iter().map(|check| check.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!((names.len(), checks.len()), (21, 21), "{names:?}");
    assert!(
        std::fs::read_dir(folder.path())
            .expect("there")
            .next()
            .is_none()
    );
}
