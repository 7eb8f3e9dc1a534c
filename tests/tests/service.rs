//! A node under systemd: what it tells the service manager, and that it lives with the rights, limits
//! and system calls that its unit leaves it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rangedb_tests::net::available;
use rangedb_tests::process::{Home, Node, binary, free_port, without_settings};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long the node may leave the manager without the message that it waits for.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest time between two beats.
const WATCHDOG: Duration = Duration::from_millis(300);
/// A user without any right.
const NOBODY: u32 = 65_534;

/// The socket on which a service manager hears its services.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(folder: &Path) -> Manager {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).expect("it is free");
        socket.set_read_timeout(Some(TIMEOUT)).expect("it is valid");
        Manager { socket, path }
    }

    /// Starts a node that has this manager.
    fn start(&self, home: &Home) -> Node {
        let mut command = home.start_command();
        // It would override the file.
        command.env_remove("RANGEDB_LOG_LEVEL");
        command.env("NOTIFY_SOCKET", &self.path);
        command.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        Node::spawn(&mut command, home.log_file())
    }

    fn next(&self) -> String {
        let mut message = [0; 4096];
        let len = self
            .socket
            .recv(&mut message)
            .expect("the node says something");
        String::from_utf8_lossy(&message[..len]).into_owned()
    }

    /// Waits for a message with this line; gives all messages up to it.
    fn until(&self, line: &str) -> Vec<String> {
        let begun = Instant::now();
        let mut messages = Vec::new();
        loop {
            messages.push(self.next());
            if messages
                .last()
                .is_some_and(|last| last.lines().any(|other| other == line))
            {
                return messages;
            }
            assert!(begun.elapsed() < TIMEOUT, "no {line} in {messages:?}");
        }
    }
}

#[test]
fn the_manager_hears_of_the_start_of_beats_of_a_reload_and_of_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = folder.path().join("rangedb.toml");
    fs::write(&settings, "log-level = \"info\"\n").expect("it is written");
    let path = settings.to_str().expect("a name");
    let home = Home::new(folder.path(), &["--shards", "2", "--config", path]);
    let manager = Manager::new(folder.path());
    let node = manager.start(&home);

    let before = manager.until("READY=1");
    assert!(before[0].contains("STATUS=starting"), "{before:?}");
    assert!(before[0].contains("EXTEND_TIMEOUT_USEC="), "{before:?}");
    assert_eq!(home.page("/readyz").0, 200, "it serves when it says so");
    let beats = manager.until("WATCHDOG=1");
    assert!(!beats.concat().contains("EXTEND_TIMEOUT_USEC"), "{beats:?}");
    manager.until("STATUS=ready");

    fs::write(&settings, "log-level = \"debug\"\n").expect("it is written");
    node.signal("HUP");
    manager.until("RELOADING=1");
    manager.until("READY=1");
    // A file that cannot be read changes nothing, and ends no node.
    fs::write(&settings, "log-level = \n").expect("it is written");
    node.signal("HUP");
    manager.until("RELOADING=1");
    manager.until("READY=1");

    // A process that stands still does not beat. What it had sent is read first.
    node.signal("STOP");
    manager.socket.set_nonblocking(true).expect("it is valid");
    let mut message = [0; 4096];
    while manager.socket.recv(&mut message).is_ok() {}
    manager.socket.set_nonblocking(false).expect("it is valid");
    let silence = Some(3 * WATCHDOG);
    manager
        .socket
        .set_read_timeout(silence)
        .expect("it is valid");
    manager
        .socket
        .recv(&mut message)
        .expect_err("it does not run");
    manager
        .socket
        .set_read_timeout(Some(TIMEOUT))
        .expect("it is valid");
    node.signal("CONT");
    manager.until("WATCHDOG=1");

    node.signal("TERM");
    let end = manager.until("STOPPING=1");
    assert!(end.concat().contains("STATUS=stopping"), "{end:?}");
    assert_eq!(node.wait().code(), Some(0));
    let log = home.log();
    for event in ["setting_changed", "reloaded", "reload_refused"] {
        assert!(
            log.contains(&format!("event=\"{event}\"")),
            "{event}: {log}"
        );
    }
}

#[test]
fn a_node_that_serves_on_for_a_while_asks_for_time_to_stop() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::new(folder.path(), &["--shards", "1", "--drain-wait", "3s"]);
    let manager = Manager::new(folder.path());
    let node = manager.start(&home);
    manager.until("READY=1");
    node.signal("TERM");
    let until_told = manager.until("STOPPING=1");
    let told = until_told.last().expect("a message");
    assert!(told.contains("EXTEND_TIMEOUT_USEC="), "{told}");
    // It asks again while it serves on.
    for _ in 0..5 {
        let message = manager.next();
        assert!(message.contains("EXTEND_TIMEOUT_USEC="), "{message}");
        assert!(message.contains("WATCHDOG=1"), "{message}");
    }
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn a_node_that_waits_for_its_cluster_asks_for_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let nobody = format!("127.0.0.1:{}", free_port());
    let flags = ["--join", &nobody, "--cluster-secret", "some words"];
    let home = Home::new(folder.path(), &flags);
    let manager = Manager::new(folder.path());
    let node = manager.start(&home);
    for _ in 0..5 {
        let message = manager.next();
        assert!(message.contains("EXTEND_TIMEOUT_USEC="), "{message}");
        assert!(!message.contains("READY=1"), "{message}");
    }
    node.signal("TERM");
    manager.until("STOPPING=1");
    assert_eq!(node.wait().code(), Some(0));
}

/// A unit, as it is in the package.
fn unit(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace");
    let unit = root.join("server/packaging/systemd").join(name);
    fs::read_to_string(unit).expect("a unit")
}

/// The values of a setting of the unit, in their order.
fn values<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    let assignments = unit.lines().filter_map(|line| line.split_once('='));
    let named = assignments.filter(|(other, _)| *other == name);
    named.map(|(_, value)| value).collect()
}

/// Runs a tool of systemd; gives what it prints, or why it cannot.
fn systemd_analyze(words: &[&str]) -> Result<String, String> {
    let output = Command::new("systemd-analyze").args(words).output();
    let output = output.map_err(|error| format!("systemd-analyze: {error}"))?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    match output.status.success() {
        true => Ok(text),
        false => Err(format!("systemd-analyze {}: {text}", words.join(" "))),
    }
}

#[test]
fn the_units_are_valid_alike_and_confined() {
    let (one, many) = (unit("rangedb.service"), unit("rangedb@.service"));
    let instance = one
        .replace("Description=RangeDB node", "Description=RangeDB node %i")
        .replace("/etc/rangedb/rangedb.", "/etc/rangedb/%i.")
        .replace("%S/rangedb", "%S/rangedb-%i")
        .replace("StateDirectory=rangedb\n", "StateDirectory=rangedb-%i\n");
    assert_eq!(many, instance);
    if available(systemd_analyze(&["--version"])).is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for (name, unit) in [("rangedb.service", one), ("rangedb@1.service", many)] {
        // The binary is where the tests have it, and no user needs to exist.
        let program = binary("rangedb").display().to_string();
        let unit = unit.replace("/usr/bin/rangedb", &program);
        let path = folder.path().join(name);
        fs::write(&path, unit).expect("it is written");
        let path = path.to_str().expect("a name");
        systemd_analyze(&["verify", "--man=no", path]).expect("the unit is valid");
        // The exposure is at most 2.0 of 10.
        let words = [
            "security",
            "--no-pager",
            "--offline=yes",
            "--threshold=20",
            path,
        ];
        let report = systemd_analyze(&words).expect("the unit is confined");
        println!("{}", report.lines().last().unwrap_or_default());
    }
}

/// The names of the system calls that the unit allows, with its groups resolved.
fn allowed_calls(unit: &str) -> Result<Vec<String>, String> {
    let mut allowed: Vec<String> = Vec::new();
    for value in values(unit, "SystemCallFilter") {
        let (denies, names) = match value.strip_prefix('~') {
            Some(names) => (true, names),
            None => (false, value),
        };
        let mut waiting: Vec<String> = names.split(' ').map(str::to_owned).collect();
        while let Some(name) = waiting.pop() {
            if name.starts_with('@') {
                let group = systemd_analyze(&["syscall-filter", "--no-pager", &name])?;
                let lines = group.lines().skip(1).map(str::trim);
                waiting.extend(
                    lines
                        .filter(|line| !line.starts_with('#'))
                        .map(str::to_owned),
                );
            } else if denies {
                allowed.retain(|other| *other != name);
            } else {
                allowed.push(name);
            }
        }
    }
    allowed.sort();
    allowed.dedup();
    Ok(allowed)
}

/// The rule of seccompiler that allows a call as the unit does; more than one if any of them may hold.
fn rules(call: &str) -> Vec<Value> {
    let only = |index: u32, op: Value, value: u32| {
        let argument = json!({ "index": index, "type": "dword", "op": op, "val": value });
        json!({ "syscall": call, "args": [argument] })
    };
    let without = |flag: u32| only(2, json!({ "masked_eq": flag }), 0);
    const WRITE: u32 = 2;
    const EXECUTE: u32 = 4;
    match call {
        // RestrictAddressFamilies: AF_UNIX, AF_INET, AF_INET6.
        "socket" => [1, 2, 10]
            .map(|family| only(0, json!("eq"), family))
            .to_vec(),
        // MemoryDenyWriteExecute.
        "mmap" => vec![without(WRITE), without(EXECUTE)],
        "mprotect" | "pkey_mprotect" => vec![without(EXECUTE)],
        call => vec![json!({ "syscall": call })],
    }
}

fn filter(rules: &[Value]) -> Value {
    json!({ "node": {
        "mismatch_action": { "errno": 1 },
        "match_action": "allow",
        "filter": rules,
    } })
}

/// Rules that allow what the unit allows.
fn confinement(unit: &str) -> Result<Value, String> {
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(|_| "an unknown processor")?;
    let exists = |call: &String| {
        let text = filter(&[json!({ "syscall": call })]).to_string();
        seccompiler::compile_from_json(text.as_bytes(), arch).is_ok()
    };
    // Groups also name calls of other processors.
    let calls = allowed_calls(unit)?;
    let calls: Vec<String> = calls.into_iter().filter(exists).collect();
    for call in ["io_uring_setup", "io_uring_enter", "sched_setaffinity"] {
        assert!(calls.iter().any(|other| other == call), "{call}");
    }
    for call in ["mount", "ptrace", "setuid", "bpf", "reboot"] {
        assert!(!calls.iter().any(|other| other == call), "{call}");
    }
    let rules: Vec<Value> = calls.iter().flat_map(|call| rules(call)).collect();
    Ok(filter(&rules))
}

/// Whether a program may be run through these words.
fn can(through: &[String]) -> Result<(), String> {
    let mut command = Command::new(&through[0]);
    let output = command.args(&through[1..]).arg("true").output();
    let output = output.map_err(|error| format!("{}: {error}", through[0]))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// The words that set the unit's limits. Where this machine does not let its root raise a limit, the
/// lower one stays.
fn limits(unit: &str) -> Vec<String> {
    let named = [
        ("LimitNOFILE", "nofile"),
        ("LimitMEMLOCK", "memlock"),
        ("LimitCORE", "core"),
    ];
    let set = named.map(|(name, flag)| {
        let value = values(unit, name).concat();
        format!("--{flag}={}", value.replace("infinity", "unlimited"))
    });
    let prlimit = "prlimit".to_owned();
    let may = |limit: &String| can(&[prlimit.clone(), limit.clone()]).is_ok();
    let set = set.into_iter().filter(may).collect::<Vec<_>>();
    match set.is_empty() {
        true => Vec::new(),
        false => [vec![prlimit], set].concat(),
    }
}

/// A folder and binaries that belong to nobody, and the words that begin a command which runs as
/// nobody, confined like the unit.
struct Confined {
    folder: TempDir,
    through: Vec<String>,
}

impl Confined {
    /// An error says why nothing can be confined here.
    fn new(unit: &str) -> Result<Confined, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::write(at("rules"), confinement(unit)?.to_string()).expect("it is written");
        // The folder of the build may be closed to nobody.
        fs::copy(binary("confined"), at("confined")).expect("it is copied");
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("it is ours");
        chown(folder.path(), Some(NOBODY), Some(NOBODY))
            .map_err(|error| format!("chown: {error}"))?;
        let user = format!("--reuid={NOBODY}");
        let group = format!("--regid={NOBODY}");
        let rights = [
            "setpriv",
            &user,
            &group,
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
            "--no-new-privs",
        ];
        let mut through = limits(unit);
        through.extend(rights.map(str::to_owned));
        can(&through)?;
        let umask = format!("umask {}; exec \"$@\"", values(unit, "UMask").concat());
        through.extend(["sh", "-c", &umask, "sh"].map(str::to_owned));
        through.extend([at("confined"), at("rules")]);
        Ok(Confined { folder, through })
    }
}

#[test]
fn a_node_lives_with_what_its_unit_leaves_it() {
    let Some(confined) = available(Confined::new(&unit("rangedb.service"))) else {
        return;
    };
    let folder = confined.folder.path();
    let home = Home::new(
        folder,
        &["--shards", "1", "--cpus", "0", "--memory", "128MiB"],
    );
    let program = folder.join("rangedb");
    fs::copy(binary("rangedb"), &program).expect("it is copied");
    let start = home.start_command();
    let run = |program: &Path| {
        let mut command = Command::new(&confined.through[0]);
        command.args(&confined.through[1..]).arg(program);
        without_settings(&mut command);
        command
    };
    // Everybody may become what they are already, but the unit denies the calls of that.
    let myself = format!("--reuid={NOBODY}");
    let refused = run(Path::new("setpriv")).args([&myself, "true"]).output();
    assert!(!refused.expect("it runs").status.success());
    for round in 0..2 {
        let mut command = run(&program);
        command.args(start.get_args());
        let mut node = Node::spawn(&mut command, home.log_file());
        assert!(node.becomes_ready(), "{}", home.log());
        let status = fs::read_to_string(format!("/proc/{}/status", node.id())).expect("it runs");
        for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
            assert!(status.contains(line), "{line} is not in {status}");
        }
        let count = if round == 0 { "1\n" } else { "2\n" };
        assert_eq!(home.cli(&["incr", "visits"]).stdout, count.as_bytes());
        node.signal("TERM");
        assert_eq!(node.wait().code(), Some(0), "{}", home.log());
    }
    assert!(!home.log().contains("not permitted"), "{}", home.log());
}
