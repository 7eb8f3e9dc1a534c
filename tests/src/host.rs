//! A host: a machine of its own for a test, in which systemd runs as the first process.
//!
//! It has the files of this machine, and keeps for itself what it changes: an overlay whose upper layer is a
//! temporary folder. Its processes, mounts, network, host name and control groups are its own, too. It has no
//! network but the loopback, on which every port is free. No unit of this machine starts in it by itself. What
//! belongs to the kernel, and so to this machine, stays as it is: settings in `/proc/sys` can only be read,
//! and nobody in the host can load modules or set the clock.
//!
//! Dropping a host ends its processes, and with them its mounts. If the test is killed, its processes end, too;
//! the next host removes the control groups that are left then.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::cluster::wait_for;
use crate::console::transcript;

/// The prefix of the names of control groups.
const NAME: &str = "rangedb-test";
/// The folder of the host in which commands run.
pub const WORKSPACE: &str = "/srv/workspace";
/// How long its processes may take to end when they are killed.
const ENDS_WITHIN: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The environment of commands.
const ENVIRONMENT: [&str; 2] = [
    "HOME=/root",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
];

/// Goes into the control group `$1`, takes namespaces, and runs the script `$3` with the folder `$2`. All of that
/// ends with the test.
const ENTER: &str = r#"
echo $$ > "$1/cgroup.procs"
exec setpriv --pdeathsig KILL unshare --mount --uts --ipc --net --cgroup --pid --fork --kill-child=KILL \
    sh -ec "$3" host "$2"
"#;

/// Puts the files of a host together in the folder `$1`, and becomes its first process. The overlay is volatile:
/// what it holds is thrown away, so nothing has to wait for the disk.
const BOOT: &str = r#"
root=$1/root
mount -t overlay -o lowerdir=/,upperdir=$1/upper,workdir=$1/work,volatile rangedb-test $root
mount -t proc proc $root/proc
mount -o bind,ro $root/proc/sys $root/proc/sys
mount -t sysfs -o ro sysfs $root/sys
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs $root/dev
for device in null zero full random urandom tty; do cp -a /dev/$device $root/dev/; done
mkdir $root/dev/pts $root/dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
ln -s /proc/self/fd $root/dev/fd
mount -t tmpfs tmpfs $root/dev/shm
mount -t tmpfs -o mode=755 tmpfs $root/run
mount -t tmpfs tmpfs $root/tmp
ip link set lo up

own=$root/etc/systemd/system
shipped=$root/usr/lib/systemd/system
rm -rf $root/etc/fstab $root/etc/crypttab $own/*.wants $own/*.requires $shipped/*.wants $shipped/*.requires
cat > $own/rangedb-test.target <<END
[Unit]
DefaultDependencies=no
Requires=sysinit.target systemd-journald.service
After=sysinit.target systemd-journald.service
END

mkdir $root/run/outside
cd $root
pivot_root . run/outside
umount -l /run/outside
exec env -i container=other \
    setpriv --bounding-set=-sys_module,-sys_time,-syslog,-audit_control,-audit_read \
    /lib/systemd/systemd --unit=rangedb-test.target
"#;

/// A machine of its own.
#[derive(Debug)]
pub struct Host {
    /// The parent of the first process; they end together.
    parent: Child,
    /// The id of the first process, as this machine sees it.
    init: u32,
    group: PathBuf,
    /// Its files.
    folder: TempDir,
}

impl Host {
    /// Starts a host, and waits until systemd runs in it.
    ///
    /// # Errors
    /// A right or a tool is missing.
    ///
    /// # Panics
    /// systemd does not come up.
    pub fn new() -> Result<Host, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let groups = groups()?;
        remove_left_over(&groups);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let group = groups.join(format!("{NAME}-{}-{number}", std::process::id()));
        fs::create_dir(&group).map_err(|error| format!("{}: {error}", group.display()))?;
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["upper", "work", "root"] {
            fs::create_dir(folder.path().join(name)).expect("it is made");
        }
        let log = File::create(folder.path().join("log")).expect("it is made");
        let parent = Command::new("sh")
            .args(["-ec", ENTER, "host"])
            .args([&group, folder.path()])
            .arg(BOOT)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("sh runs");
        // From here on dropping the host removes what was made.
        let mut host = Host {
            parent,
            init: 0,
            group,
            folder,
        };
        host.boot()?;
        Ok(host)
    }

    /// Waits until systemd runs.
    fn boot(&mut self) -> Result<(), String> {
        let id = self.parent.id();
        let children = format!("/proc/{id}/task/{id}/children");
        wait_for("the first process of a host", || {
            if !matches!(self.parent.try_wait(), Ok(None)) {
                let log = fs::read_to_string(self.folder.path().join("log"));
                return Some(Err(log.unwrap_or_default().replace('\n', " ")));
            }
            let child = fs::read_to_string(&children).ok()?.trim().parse().ok()?;
            // Before that it is the script, for which the files are still those of this machine.
            let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            self.init = child;
            (name.trim() == "systemd").then_some(Ok(()))
        })?;
        fs::create_dir_all(self.path(WORKSPACE)).expect("it is made");
        wait_for("the units of a host", || {
            let asked = self.run("systemctl is-active --quiet rangedb-test.target");
            asked.status.success().then_some(())
        });
        Ok(())
    }

    /// Runs a line of shell to its end, as root.
    ///
    /// # Panics
    /// There is no `nsenter`.
    pub fn run(&self, line: &str) -> Output {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.init));
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]);
        command.args(["--root", "env", "-i"]).args(ENVIRONMENT);
        command.args(["sh", "-ec", &format!("cd {WORKSPACE}\n{line}")]);
        command.stdin(Stdio::null());
        command.output().expect("nsenter runs")
    }

    /// Runs a line of shell that must succeed; gives what it prints, without the end of the last line.
    ///
    /// # Panics
    /// It does not succeed.
    pub fn ask(&self, line: &str) -> String {
        let output = self.run(line);
        let journal = || transcript(&self.run("journalctl --no-pager --lines 60"));
        assert!(
            output.status.success(),
            "{line}\n{}\nThe journal of the host:\n{}",
            transcript(&output),
            journal()
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Where this machine sees a file of the host.
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.init)).join(path.trim_start_matches('/'))
    }

    /// Writes a file of the host, which everybody may read and run. Makes its folder.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a file has a folder")).expect("it is made");
        fs::write(&path, text).expect("it is written");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("it is ours");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.parent.kill();
        let _ = self.parent.wait();
        // The kernel ends the first process and then all others, and lets go of their mounts.
        let init = PathBuf::from(format!("/proc/{}", self.init));
        let begun = Instant::now();
        // A second panic would hide the first one: what takes longer is left to the next host.
        while (init.exists() || self.group.exists()) && begun.elapsed() < ENDS_WITHIN {
            remove_group(&self.group);
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

/// The folder of all control groups.
fn groups() -> Result<PathBuf, String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let place = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let place = words.nth(1)?;
        (words.next() == Some("cgroup2")).then(|| PathBuf::from(place))
    });
    place.ok_or_else(|| "control groups of version 2 are not mounted".to_owned())
}

/// Removes a control group and those within it, if no process is left.
fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_group(&entry.path());
        }
    }
    // A process in it may still be ending.
    let _ = fs::remove_dir(group);
}

/// Removes the control groups of test processes that have ended.
fn remove_left_over(groups: &Path) {
    for entry in fs::read_dir(groups).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(NAME)
            .and_then(|rest| rest.strip_prefix('-'))
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            remove_group(&entry.path());
        }
    }
}
