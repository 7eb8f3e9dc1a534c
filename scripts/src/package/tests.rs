//! The packages, made of the binaries that tests use, are installed by dpkg into a folder of their
//! own, upgraded, removed and purged.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::*;

#[test]
fn the_c_library_is_the_newest_that_is_named() {
    assert_eq!(libc_needed(b"..GLIBC_2.9\0..GLIBC_2.34\0GLIBC_2.4"), 34);
    assert_eq!(libc_needed(b"GLIBC_2."), 0);
}

/// A root folder that dpkg installs into, on a machine that seems to run systemd.
struct Machine {
    root: TempDir,
    /// Stand-ins for programs of the system; they write down how they are called.
    programs: TempDir,
}

impl Machine {
    /// An error says why there can be none here.
    fn new() -> Result<Machine, String> {
        let is_root = output("id", &["-u"])?.trim() == "0";
        if !is_root {
            return Err("dpkg installs packages for root only".to_owned());
        }
        output("dpkg", &["--version"])?;
        output("dpkg-deb", &["--version"])?;
        let machine = Machine {
            root: tempfile::tempdir().expect("a folder"),
            programs: tempfile::tempdir().expect("a folder"),
        };
        for folder in [
            "var/lib/dpkg/info",
            "var/lib/dpkg/updates",
            "run/systemd/system",
        ] {
            fs::create_dir_all(machine.path(folder)).expect("it is made");
        }
        fs::write(machine.path("var/lib/dpkg/status"), "").expect("it is written");
        for name in ["systemctl", "systemd-sysusers"] {
            let program = machine.programs.path().join(name);
            let calls = machine.path("calls");
            let script = format!("#!/bin/sh\necho {name} \"$@\" >> {}\n", calls.display());
            fs::write(&program, script).expect("it is written");
            fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("it is ours");
        }
        Ok(machine)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// Runs dpkg, and gives the programs that the scripts of the packages have called.
    fn dpkg(&self, words: &[&str]) -> String {
        let _ = fs::remove_file(self.path("calls"));
        let root = self.root.path().display();
        let programs = self.programs.path().display();
        let path = std::env::var("PATH").unwrap_or_default();
        let output = Command::new("dpkg")
            .arg(format!("--root={root}"))
            .arg(format!("--log={root}/log"))
            // The root has no shell for the scripts and none of the packages that these depend on.
            .args(["--force-script-chrootless", "--force-depends"])
            .args(words)
            .env("PATH", format!("{programs}:{path}:/usr/sbin:/sbin"))
            .stdin(Stdio::null())
            .output()
            .expect("dpkg runs");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "dpkg {words:?}: {complaint}");
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }
}

/// Makes the packages of a revision; gives the folder.
fn packages(folder: &Path, revision: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test is a file");
    let binaries = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    let binaries = binaries.to_str().expect("a name");
    let out = folder.join(revision);
    let path = out.to_str().expect("a name");
    let words = ["--bin-dir", binaries, "--out", path, "--revision", revision];
    // These binaries are large.
    run(&[&words[..], &["--compression", "none"]].concat()).expect("the packages");
    out
}

fn package(folder: &Path, name: &str) -> String {
    let found = files_in(folder).expect("a folder");
    let is_named = |path: &&String| path.contains(&format!("/{name}_")) && path.ends_with(".deb");
    found.iter().find(is_named).expect("the package").clone()
}

#[test]
fn dpkg_installs_upgrades_removes_and_purges_without_touching_nodes_and_data() {
    let machine = match Machine::new() {
        Ok(machine) => machine,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (packages(folder.path(), "1"), packages(folder.path(), "2"));
    let checked = Command::new("sha256sum")
        .args(["--check", "--strict", "--quiet", "SHA256SUMS"])
        .current_dir(&first)
        .status();
    assert!(checked.is_ok_and(|status| status.success()));

    let calls = machine.dpkg(&[
        "--install",
        &package(&first, "rangedb"),
        &package(&first, "rangedb-tools"),
    ]);
    assert!(
        calls.contains("systemd-sysusers --root=") && calls.contains("rangedb.conf"),
        "{calls}"
    );
    assert!(calls.contains("systemctl daemon-reload"), "{calls}");
    assert_eq!(
        calls.lines().count(),
        2,
        "an installation starts nothing: {calls}"
    );
    for file in [
        "usr/bin/rangedb",
        "usr/bin/loadgen",
        "usr/lib/systemd/system/rangedb.service",
        "usr/lib/systemd/system/rangedb@.service",
        "usr/lib/sysusers.d/rangedb.conf",
        "usr/share/man/man1/rangedb.1.gz",
        "usr/share/man/man1/rangedb-start.1.gz",
        "usr/share/man/man1/rangedb-range-move-replica.1.gz",
        "usr/share/man/man1/loadgen-run.1.gz",
        "usr/share/bash-completion/completions/rangedb",
        "usr/share/bash-completion/completions/loadgen",
        "usr/share/zsh/vendor-completions/_rangedb",
        "usr/share/fish/vendor_completions.d/rangedb.fish",
        "usr/share/doc/rangedb/copyright",
        "usr/share/doc/rangedb/OPERATING.md",
        "usr/share/rangedb/monitoring/rules.yml",
        "usr/share/rangedb/monitoring/grafana/dashboards/rangedb-overview.json",
    ] {
        assert!(machine.path(file).is_file(), "{file}");
    }
    let mode = |file: &str| {
        let metadata = fs::metadata(machine.path(file)).expect(file);
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(
        (
            mode("etc/rangedb/rangedb.toml"),
            mode("etc/rangedb/rangedb.env")
        ),
        (0o644, 0o600)
    );

    // The operator changes the settings and enables the unit, and the node writes data.
    let settings = machine.path("etc/rangedb/rangedb.toml");
    fs::write(&settings, "shards = 1\n").expect("it is written");
    let enabled = machine.path("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&enabled).expect("it is made");
    fs::write(enabled.join("rangedb.service"), "").expect("it is written");
    let data = machine.path("var/lib/rangedb/node.json");
    fs::create_dir_all(machine.path("var/lib/rangedb")).expect("it is made");
    fs::write(&data, "{}").expect("it is written");

    let calls = machine.dpkg(&["--install", &package(&second, "rangedb")]);
    assert!(calls.contains("systemctl daemon-reload"), "{calls}");
    assert_eq!(
        calls.lines().count(),
        2,
        "an upgrade restarts nothing: {calls}"
    );
    assert_eq!(
        fs::read_to_string(&settings).expect("it is there"),
        "shards = 1\n"
    );
    let calls = machine.dpkg(&["--remove", "rangedb"]);
    assert!(
        calls.contains("systemctl stop rangedb.service rangedb@*.service"),
        "{calls}"
    );
    assert!(!machine.path("usr/bin/rangedb").exists());
    assert!(data.is_file() && settings.is_file() && enabled.join("rangedb.service").exists());
    machine.dpkg(&["--purge", "rangedb"]);
    assert!(!settings.exists() && !enabled.join("rangedb.service").exists());
    assert!(data.is_file(), "data stays");
}
