//! `cluster up [--monitoring]|down|kill N|status`: three nodes on loopback to try things with. They keep
//! running after the command has ended. `target/cluster` holds their data, logs and process ids. With
//! `--monitoring`, a Prometheus with the alerts of `server/monitoring` scrapes them, if it is installed.
//!
//! A node has a place, 1 to 3, which decides its ports and folder, and the id that the cluster gave it, by
//! which all tables name it. A person names nodes by their ids.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::{self, release_binary};
use crate::{Outcome, root};

const NODES: u16 = 3;
/// Where Prometheus answers.
const PROMETHEUS: &str = "127.0.0.1:9090";
/// The port of the node in place N is this plus N.
const LISTEN_BASE: u16 = 7400;
/// The port of the admin pages of the node in place N is this plus N.
const HTTP_BASE: u16 = 7480;
/// Words that show how the commands are used.
const USAGE: &str = "usage: cluster up [--monitoring] | down | kill N | status";
/// How many ranges a new cluster has.
const RANGES: &str = "3";
/// Safe enough on loopback.
const SECRET: &str = "loopback";
const READY_WITHIN: Duration = Duration::from_secs(20);
const STOP_WITHIN: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

fn folder() -> PathBuf {
    root().join("target").join("cluster")
}

fn addresses() -> String {
    let all = (1..=NODES).map(|node| format!("127.0.0.1:{}", LISTEN_BASE + node));
    all.collect::<Vec<_>>().join(",")
}

/// The process id of the node in this place, if it runs.
fn running(place: u16) -> Option<u32> {
    let text = std::fs::read_to_string(folder().join(format!("{place}.pid"))).ok()?;
    let id: u32 = text.trim().parse().ok()?;
    is_of(id, &data_dir(place)).then_some(id)
}

/// Whether a process was started with this folder. By now its id may belong to another one.
fn is_of(id: u32, data: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).contains(&data.display().to_string())
}

fn data_dir(place: u16) -> PathBuf {
    folder().join(format!("node-{place}"))
}

/// The id of the node in this place; `None`: it has not joined yet.
fn id_of(place: u16) -> Option<u64> {
    id_in(&std::fs::read(data_dir(place).join("node.json")).ok()?)
}

/// The id in a folder's `node.json`.
fn id_in(identity: &[u8]) -> Option<u64> {
    let identity: serde_json::Value = serde_json::from_slice(identity).ok()?;
    identity["node"].as_u64()
}

/// The place of the node that the tables call so.
fn place_of(id: &str) -> Result<u16, String> {
    let wanted: Option<u64> = id.parse().ok();
    let found = (1..=NODES).find(|place| wanted.is_some() && id_of(*place) == wanted);
    found.ok_or_else(|| format!("there is no node {id}; scripts/cluster status lists the nodes"))
}

fn signal(id: u32, name: &str) -> Outcome {
    process::run("kill", &[&format!("-{name}"), &id.to_string()])
}

fn start(place: u16) -> Result<Child, String> {
    let file = |name: String| {
        let path = folder().join(name);
        File::create(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let (listen, http) = (LISTEN_BASE + place, HTTP_BASE + place);
    let mut command = Command::new(release_binary("rangedb")?);
    if id_of(place).is_none() {
        // Equal ranges of the keys of loadgen.
        let ranges = process::output(&release_binary("loadgen")?, &["split-keys", RANGES])?;
        command.env("RANGEDB_SPLIT_AT", ranges.trim());
    }
    let child = command
        .arg("start")
        .arg("--data-dir")
        .arg(data_dir(place))
        .args(["--listen", &format!("127.0.0.1:{listen}")])
        .args(["--http", &format!("127.0.0.1:{http}")])
        .args([
            "--join",
            &addresses(),
            "--bootstrap-expect",
            &NODES.to_string(),
        ])
        .args(["--shards", "1"])
        .env("RANGEDB_CLUSTER_SECRET", SECRET)
        .stdin(Stdio::null())
        .stdout(file(format!("{place}.ready"))?)
        .stderr(file(format!("{place}.log"))?)
        .spawn()
        .map_err(|error| format!("cannot start {}: {error}", data_dir(place).display()))?;
    let path = folder().join(format!("{place}.pid"));
    std::fs::write(&path, child.id().to_string())
        .map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(child)
}

/// Whether every range has a leader and all its voters, so that one node can be killed.
fn is_replicated() -> bool {
    let list = ["range", "ls", "--addr", &addresses(), "--format", "json"];
    let ranges = release_binary("rangedb").and_then(|rangedb| process::output(&rangedb, &list));
    ranges.is_ok_and(|text| are_replicated(&text))
}

fn are_replicated(ranges: &str) -> bool {
    let known: serde_json::Value = serde_json::from_str(ranges).unwrap_or_default();
    let ranges = known["ranges"].as_array().filter(|all| !all.is_empty());
    let is_whole = |range: &serde_json::Value| {
        range["unavailable"] == false && range["under_replicated"] == false
    };
    ranges.is_some_and(|ranges| ranges.iter().all(is_whole))
}

/// The folder of Prometheus: its settings, data, log and process id.
fn monitoring() -> PathBuf {
    folder().join("monitoring")
}

/// The process id of Prometheus, if it runs.
fn prometheus() -> Option<u32> {
    let text = std::fs::read_to_string(monitoring().join("pid")).ok()?;
    let id = text.trim().parse().ok()?;
    is_of(id, &monitoring()).then_some(id)
}

/// Starts Prometheus, unless it runs or is not installed.
fn start_monitoring() -> Outcome {
    if prometheus().is_some() {
        return Ok(());
    }
    let (from, to) = (root().join("server/monitoring"), monitoring());
    let failed = |error: std::io::Error| format!("{}: {error}", to.display());
    std::fs::create_dir_all(&to).map_err(failed)?;
    for name in ["prometheus.yml", "rules.yml"] {
        std::fs::copy(from.join(name), to.join(name)).map_err(failed)?;
    }
    std::fs::write(to.join("targets.yml"), targets()).map_err(failed)?;
    let started = Command::new("prometheus")
        .arg(format!(
            "--config.file={}",
            to.join("prometheus.yml").display()
        ))
        .arg(format!("--storage.tsdb.path={}", to.join("data").display()))
        .arg(format!("--web.listen-address={PROMETHEUS}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(to.join("log")).map_err(failed)?)
        .spawn();
    match started {
        Ok(child) => {
            println!("monitoring: http://{PROMETHEUS}/alerts");
            std::fs::write(to.join("pid"), child.id().to_string()).map_err(failed)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("monitoring: prometheus is not installed (apt-get install prometheus)");
            Ok(())
        }
        Err(error) => Err(format!("cannot start prometheus: {error}")),
    }
}

/// The admin pages of all nodes, as Prometheus reads it.
fn targets() -> String {
    let all = (1..=NODES).map(|node| format!("    - 127.0.0.1:{}\n", HTTP_BASE + node));
    let all: String = all.collect();
    format!("- targets:\n{all}")
}

/// Starts the nodes that do not run; waits until all are ready and every range has its replicas.
fn up() -> Outcome {
    process::build_programs()?;
    std::fs::create_dir_all(folder()).map_err(|error| error.to_string())?;
    let mut started = Vec::new();
    for place in (1..=NODES).filter(|place| running(*place).is_none()) {
        started.push((place, start(place)?));
    }
    let begun = Instant::now();
    for (place, child) in &mut started {
        let ready = folder().join(format!("{place}.ready"));
        while !std::fs::read_to_string(&ready).is_ok_and(|text| text.contains("ready")) {
            // Whether it runs is asked of the kernel by the child itself: what /proc tells of a process
            // that was just started is not complete.
            let has_ended = !matches!(child.try_wait(), Ok(None));
            if has_ended || begun.elapsed() > READY_WITHIN {
                let log = folder().join(format!("{place}.log"));
                let log = std::fs::read_to_string(log).unwrap_or_default();
                let data = data_dir(*place);
                return Err(format!("{} is not ready:\n{log}", data.display()));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
    while !is_replicated() {
        if begun.elapsed() > READY_WITHIN {
            return Err("the ranges are not replicated: see scripts/cluster status".to_owned());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    println!("export RANGEDB_ADDR={}", addresses());
    println!(
        "metrics: http://127.0.0.1:{}/metrics and the next two",
        HTTP_BASE + 1
    );
    println!("data and logs: {}", folder().display());
    status()
}

/// Stops all nodes, and Prometheus, and keeps their data.
fn down() -> Outcome {
    if let Some(process) = prometheus() {
        signal(process, "TERM")?;
    }
    for place in 1..=NODES {
        if let Some(process) = running(place) {
            signal(process, "TERM")?;
        }
    }
    let begun = Instant::now();
    while (1..=NODES).any(|place| running(place).is_some()) {
        if begun.elapsed() > STOP_WITHIN {
            return Err("a node does not stop".to_owned());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

fn status() -> Outcome {
    for place in 1..=NODES {
        let id = id_of(place).map_or_else(|| "?".to_owned(), |id| id.to_string());
        let state = match running(place) {
            Some(process) => format!("process {process}"),
            None => "not running".to_owned(),
        };
        let (listen, http) = (LISTEN_BASE + place, HTTP_BASE + place);
        println!("node {id}: 127.0.0.1:{listen}, http://127.0.0.1:{http}, {state}");
    }
    let rangedb = release_binary("rangedb")?;
    for table in ["node", "range"] {
        process::run(&rangedb, &[table, "ls", "--addr", &addresses()])?;
    }
    Ok(())
}

/// Runs one command about the cluster.
pub fn run(words: &[&str]) -> Outcome {
    match words {
        ["up"] => up(),
        ["up", "--monitoring"] => {
            up()?;
            start_monitoring()
        }
        ["down"] => down(),
        ["status"] => status(),
        ["kill", id] => {
            let process = running(place_of(id)?);
            signal(
                process.ok_or_else(|| format!("node {id} does not run"))?,
                "KILL",
            )
        }
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => Err(USAGE.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{are_replicated, id_in};

    #[test]
    fn a_node_is_named_by_the_id_that_its_folder_has() {
        assert_eq!(
            id_in(br#"{ "format": 3, "node": 2, "shards": 1 }"#),
            Some(2)
        );
        assert_eq!(id_in(b"{}"), None);
        assert_eq!(id_in(b"{ \"node\":"), None);
    }

    #[test]
    fn every_range_must_be_whole() {
        let list = |unavailable: bool, under_replicated: bool| {
            let whole = serde_json::json!({ "unavailable": false, "under_replicated": false });
            let other = serde_json::json!({
                "unavailable": unavailable,
                "under_replicated": under_replicated,
            });
            serde_json::json!({ "ranges": [whole, other] }).to_string()
        };
        assert!(are_replicated(&list(false, false)));
        assert!(!are_replicated(&list(true, false)));
        assert!(!are_replicated(&list(false, true)));
        assert!(!are_replicated(r#"{ "ranges": [] }"#) && !are_replicated("no JSON"));
    }
}
