//! Clusters that are being formed, or come back elsewhere, as real processes: a node that waits for
//! its cluster is alive, says why it is not ready, and can be stopped; silent connections delay no
//! node; all nodes may return at new addresses; a node that others refuse says so; of a name with
//! several addresses all are tried.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rangedb_tests::cluster::{
    Caller, SECRET, homes, start_all, wait_for, wait_until_alike, wait_until_replicated,
};
use rangedb_tests::process::{Home, free_port, wait};

/// Starts a node that is not ready before others are, with its log in a file.
fn start_waiting(home: &Home, mut command: Command) -> Child {
    let log = std::fs::File::create(home.folder.with_extension("log")).expect("a log");
    let started = command.stdout(Stdio::null()).stderr(log).spawn();
    started.expect("the node starts")
}

fn wait_for_page(home: &Home, path: &str, status: u16, words: &str) {
    wait_for(&format!("{path} with {status} and {words}"), || {
        TcpStream::connect(&home.http).ok()?;
        let (found, body) = home.page(path);
        (found == status && body.contains(words)).then_some(())
    });
}

fn signal(name: &str, process: u32) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &process.to_string()])
        .status();
    assert!(sent.is_ok_and(|status| status.success()), "kill -{name}");
}

#[test]
fn a_node_that_waits_for_its_cluster_is_alive_and_says_why_and_stops() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut complaints = Vec::new();
    for home in homes(temp.path()) {
        let mut node = start_waiting(&home, home.start_command());
        wait_for_page(&home, "/livez", 200, "ok");
        let why = "waiting for a place in the cluster: 127.0.0.1:";
        wait_for_page(&home, "/readyz", 503, why);
        let (status, _) = home.page("/api/v1/status");
        assert_eq!(status, 503);
        // The scraper is told that the node runs and does not serve.
        let (status, metrics) = home.page("/metrics");
        assert_eq!(status, 200);
        for line in ["rangedb_node_ready 0\n", "process_start_time_seconds "] {
            assert!(metrics.contains(line), "{metrics}");
        }
        let asked = home.cli(&["status", "--timeout", "1s"]);
        let words = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert!(!words.contains("ShuttingDown"), "{words}");
        complaints.push(words);
        signal("TERM", node.id());
        assert!(wait(&mut node).success(), "{}", home.log());
    }
    // Only the founder listens before there is a cluster.
    let waits = "the node takes no requests now: it waits for its cluster";
    let found = complaints.iter().any(|words| words.contains(waits));
    assert!(found, "{complaints:?}");
}

/// The first child of a process, once there is one.
fn child_of(process: u32) -> u32 {
    wait_for("a child process", || {
        let path = format!("/proc/{process}/task/{process}/children");
        let children = std::fs::read_to_string(path).ok()?;
        children.split_whitespace().next()?.parse().ok()
    })
}

/// A command in namespaces of its own; `None`, after saying why, where there can be none.
fn unshared(flags: &str, home: &Home, before: &str) -> Option<Command> {
    let tried = Command::new("unshare").args([flags, "true"]).output();
    match tried {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr);
            println!("skipped: unshare {flags}: {}", why.trim());
            return None;
        }
        Err(error) => {
            println!("skipped: unshare: {error}");
            return None;
        }
    }
    let node = home.start_command();
    let mut command = Command::new("unshare");
    command.args([flags, "sh", "-c", &format!("{before} exec \"$@\""), "sh"]);
    command.arg(node.get_program()).args(node.get_args());
    Some(command)
}

#[test]
fn a_waiting_node_that_is_process_one_takes_sigterm() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = homes(temp.path()).remove(0);
    let Some(command) = unshared("-pf", &home, "") else {
        return;
    };
    let mut node = start_waiting(&home, command);
    wait_for_page(&home, "/livez", 200, "ok");
    signal("TERM", child_of(node.id()));
    assert!(wait(&mut node).success(), "{}", home.log());
}

#[test]
fn silent_connections_do_not_keep_a_cluster_from_being_formed() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut homes = homes(temp.path());
    // The founder is the first of the sorted list.
    homes.sort_by(|a, b| a.listen.cmp(&b.listen));
    let founder = start_waiting(&homes[0], homes[0].start_command());
    let connect = || TcpStream::connect(&homes[0].listen).ok();
    let mut silent = vec![wait_for("the founder's port", connect)];
    silent.extend((0..300).filter_map(|_| connect()));
    assert!(silent.len() > 250, "{} connections", silent.len());
    let others = start_all(&homes[1..]);
    wait_for_page(&homes[0], "/readyz", 200, "ready");
    drop((others, silent));
    let mut founder = founder;
    signal("KILL", founder.id());
    wait(&mut founder);
}

#[test]
fn all_nodes_return_at_new_addresses() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut homes = homes(temp.path());
    let nodes = start_all(&homes);
    wait_until_replicated(&homes);
    Caller::new(&homes).first_writes();
    for node in nodes.into_iter().flatten() {
        node.signal("TERM");
        assert!(node.wait().success());
    }
    for home in &mut homes {
        home.listen = format!("127.0.0.1:{}", free_port());
    }
    let list: Vec<String> = homes.iter().map(|home| home.listen.clone()).collect();
    for home in &mut homes {
        let join = home.flags.iter().position(|flag| flag == "--join");
        home.flags[join.expect("it joins") + 1] = list.join(",");
    }
    let nodes = start_all(&homes);
    Caller::new(&homes).first_writes();
    wait_until_alike(&homes);
    drop(nodes);
}

#[test]
fn a_node_with_another_secret_is_refused_and_says_so_once() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let mut nodes = start_all(&homes);
    wait_until_replicated(&homes);
    drop(nodes[2].take());
    let mut other = homes[2].clone();
    let secret = other.flags.iter().position(|flag| flag == SECRET);
    other.flags[secret.expect("it has one")] = "another secret".to_owned();
    let node = other.start();
    let why = "the cluster's secret is another one";
    wait_for_page(&other, "/readyz", 503, why);
    // Time for many attempts, of which only the first may be logged.
    std::thread::sleep(Duration::from_secs(3));
    for (home, words) in [
        (&homes[0], "was refused: the cluster's secret"),
        (&other, "refuses this one: "),
    ] {
        let log = home.log();
        let lines = log.lines().filter(|line| line.contains(words)).count();
        assert!((1..=4).contains(&lines), "{lines} lines:\n{log}");
    }
    drop(node);
    nodes[2] = Some(homes[2].start());
    wait_for_page(&homes[2], "/readyz", 200, "ready");
    wait_until_replicated(&homes);
}

#[test]
fn all_addresses_of_a_name_are_tried() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let nodes = start_all(&homes);
    wait_until_replicated(&homes);
    // Nothing listens at the first two addresses of the name.
    let hosts = temp.path().join("hosts");
    let lines = "127.0.0.1 localhost\n::1 database\n127.0.0.99 database\n127.0.0.1 database\n";
    std::fs::write(&hosts, lines).expect("a file");
    let joining = joining(temp.path(), &homes);
    let before = format!("mount --bind {} /etc/hosts;", hosts.display());
    let Some(command) = unshared("-m", &joining, &before) else {
        return;
    };
    let mut node = start_waiting(&joining, command);
    wait_for_page(&joining, "/readyz", 200, "ready");
    signal("KILL", node.id());
    wait(&mut node);
    drop(nodes);
}

/// The home of a node that joins by a name.
fn joining(folder: &Path, homes: &[Home]) -> Home {
    let folder = folder.join("joining");
    std::fs::create_dir(&folder).expect("a folder");
    let port = homes[0].listen.rsplit_once(':').expect("a port").1;
    let join = format!("database:{port}");
    let flags = ["--shards", "1", "--cluster-secret", SECRET, "--join", &join];
    Home::new(&folder, &flags)
}
