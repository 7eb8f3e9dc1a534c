//! Several real nodes as one cluster, and who calls them: what tests on loopback and in network
//! namespaces share.
//!
//! Nothing here knows which node has which id, or leads: that is asked (`range ls`, `status`).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::net::available;
use crate::net::netns::Net;
use crate::process::{Home, Node, cli_in, command_in, free_port};

/// The secret of all clusters of tests.
pub const SECRET: &str = "a secret of the test";
/// Borders of the first ranges: the second holds the keys of `loadgen check`, most of them.
pub const BORDERS: &str = "check-4,m";
/// A key of each range.
pub const KEYS: [&str; 3] = ["a", "d", "z"];
/// Service that is not back by now never comes back.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_EVERY: Duration = Duration::from_millis(20);
/// The ports of nodes that each have a network of their own.
const LISTEN_PORT: u16 = 7400;
const HTTP_PORT: u16 = 7480;

/// The number that an environment variable holds.
pub fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The homes of the nodes of one cluster, by where they listen, with so many shards each.
pub fn homes_at(folder: &Path, listen: &[String], shards: &str) -> Vec<Home> {
    let (list, count) = (listen.join(","), listen.len().to_string());
    let home = |(number, listen): (usize, &String)| {
        let folder = folder.join(number.to_string());
        std::fs::create_dir(&folder).expect("a folder");
        let flags = ["--shards", shards, "--split-at", BORDERS];
        let cluster = ["--join", &list, "--bootstrap-expect", &count];
        let secret = ["--cluster-secret", SECRET];
        let mut home = Home::new(&folder, &[&flags[..], &cluster, &secret].concat());
        home.listen.clone_from(listen);
        home
    };
    listen.iter().enumerate().map(home).collect()
}

/// The homes of three nodes of one cluster on loopback, with a shard each.
pub fn homes(folder: &Path) -> Vec<Home> {
    homes_of(folder, "1")
}

/// The same with so many shards.
pub fn homes_of(folder: &Path, shards: &str) -> Vec<Home> {
    let listen = [(); 3].map(|()| format!("127.0.0.1:{}", free_port()));
    homes_at(folder, &listen, shards)
}

/// Starts all nodes at once: none is ready before the cluster is formed.
pub fn start_all(homes: &[Home]) -> Vec<Option<Node>> {
    std::thread::scope(|scope| {
        let start = |home| scope.spawn(move || Some(Home::start(home)));
        let starts: Vec<_> = homes.iter().map(start).collect();
        let nodes = starts
            .into_iter()
            .map(|start| start.join().expect("it starts"));
        nodes.collect()
    })
}

/// The addresses of all nodes, for `--addr`.
pub fn addresses(homes: &[Home]) -> String {
    let listen: Vec<&str> = homes.iter().map(|home| home.listen.as_str()).collect();
    listen.join(",")
}

/// A range as the cluster's manager knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The id of the node that leads.
    pub leader: Option<u64>,
    /// The term in which it leads.
    pub term: u64,
    /// The first key of the range, in hexadecimal digits.
    pub start: String,
    /// The nodes of its voters.
    pub voters: Vec<u64>,
    /// Entries that the replica most behind lacks; `None`: it is not known.
    pub lag: Option<u64>,
}

fn json(output: &Output) -> Option<Value> {
    let value = serde_json::from_slice(&output.stdout).ok();
    value.filter(|_| output.status.success())
}

/// The ranges of users, and the system's, by id, as a node is told; `None` if it does not answer.
pub fn ranges(home: &Home) -> Option<BTreeMap<u64, Range>> {
    let value = json(&home.cli(&["range", "ls", "--format", "json", "--timeout", "2s"]))?;
    let range = |range: &Value| {
        let replicas = range["replicas"].as_array()?;
        let voters = replicas.iter().filter(|replica| replica["voter"] == true);
        let lags = replicas.iter().map(|replica| replica["lag"].as_u64());
        let found = Range {
            leader: range["leader_node"].as_u64(),
            term: range["term"].as_u64()?,
            start: range["start"].as_str()?.to_owned(),
            voters: voters
                .filter_map(|replica| replica["node"].as_u64())
                .collect(),
            lag: lags.collect::<Option<Vec<u64>>>()?.into_iter().max(),
        };
        Some((range["id"].as_u64()?, found))
    };
    value["ranges"].as_array()?.iter().map(range).collect()
}

/// The nodes of the cluster: state and address by id, as a node is told.
pub fn nodes(home: &Home) -> Option<BTreeMap<u64, (String, String)>> {
    let value = json(&home.cli(&["node", "ls", "--format", "json", "--timeout", "2s"]))?;
    let node = |node: &Value| {
        let text = |name: &str| node[name].as_str().map(str::to_owned);
        Some((node["id"].as_u64()?, (text("state")?, text("address")?)))
    };
    value["nodes"].as_array()?.iter().map(node).collect()
}

/// What a node says of itself.
///
/// # Panics
/// It does not answer.
pub fn status(home: &Home) -> Value {
    let output = home.cli(&["status", "--format", "json"]);
    json(&output).unwrap_or_else(|| panic!("no status: {output:?}\n{}", home.log()))
}

/// The place in `homes` of the node that leads the range of a key.
///
/// # Panics
/// Nobody leads it for long.
pub fn leader(homes: &[Home], key: &str) -> usize {
    let key: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
    let ids: Vec<Option<u64>> = homes
        .iter()
        .map(|home| status(home)["node"].as_u64())
        .collect();
    wait_for("a leader", || {
        let ranges = homes.iter().find_map(ranges)?;
        let range = ranges.into_values().filter(|range| range.start <= key);
        let range = range.max_by(|a, b| a.start.cmp(&b.start))?;
        let leader = range.leader?;
        ids.iter().position(|id| *id == Some(leader))
    })
}

/// Waits until every range has three voters that have everything, each range is led, and every node
/// is a part of the cluster: faults that come before that meet a cluster that is still being formed.
///
/// # Panics
/// That never comes.
pub fn wait_until_replicated(homes: &[Home]) {
    wait_for("replication of every range", || {
        let known = homes.iter().map(nodes).collect::<Option<Vec<_>>>()?;
        let all_there = known.iter().all(|nodes| {
            let alive = nodes.values().filter(|(state, _)| state == "alive");
            alive.count() >= homes.len()
        });
        let ranges = ranges(homes.first()?)?;
        let formed = ranges
            .values()
            .all(|range| range.leader.is_some() && range.voters.len() == 3 && range.lag.is_some());
        // The ranges of the keys, and the system range.
        (all_there && formed && ranges.len() > KEYS.len()).then_some(())
    });
}

/// Waits until all replicas have all entries; nobody may write meanwhile. Gives how long that took.
///
/// # Panics
/// That never comes.
pub fn wait_until_alike(homes: &[Home]) -> Duration {
    let begun = Instant::now();
    wait_for("nodes that are alike", || {
        let ranges = ranges(homes.first()?)?;
        let alike = |range: &Range| range.leader.is_some() && range.lag == Some(0);
        ranges.values().all(alike).then_some(())
    });
    begun.elapsed()
}

/// Waits for a condition; gives what it gives.
///
/// # Panics
/// It never comes.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} does not come");
        std::thread::sleep(POLL_EVERY);
    }
}

/// Somebody who uses the cluster through the binaries.
#[derive(Clone, Debug)]
pub struct Caller {
    /// `--addr`.
    pub addresses: String,
    /// The network namespace that it lives in.
    pub space: Option<String>,
}

impl Caller {
    /// A caller on the network of the test.
    pub fn new(homes: &[Home]) -> Caller {
        Caller {
            addresses: addresses(homes),
            space: None,
        }
    }

    /// Runs a command of the command line.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        cli_in(self.space.as_deref(), &self.addresses, arguments)
    }

    /// Writes until it works; gives how long that took.
    ///
    /// # Panics
    /// It never works.
    pub fn first_write(&self, key: &str) -> Duration {
        let begun = Instant::now();
        loop {
            let put = self.cli(&["put", key, "v", "--timeout", "2s"]);
            if put.status.success() {
                return begun.elapsed();
            }
            let complaint = String::from_utf8_lossy(&put.stderr).into_owned();
            assert!(begun.elapsed() < PATIENCE, "{complaint}");
        }
    }

    /// Writes to every range at once until it works; gives how long the slowest took.
    pub fn first_writes(&self) -> Duration {
        std::thread::scope(|scope| {
            let write = |key| scope.spawn(move || self.first_write(key));
            let writes = KEYS.map(write);
            let took = writes.map(|write| write.join().expect("it is written"));
            took.into_iter().max().expect("there are keys")
        })
    }

    /// Begins `loadgen check`; [`conclude`] ends it.
    pub fn check(&self, seconds: u64, clients: u32, seed: u64) -> Child {
        command_in(self.space.as_deref(), "loadgen")
            .args(["check", "--addr", &self.addresses, "--format", "json"])
            .args(["--keys", "8", "--seed", &seed.to_string()])
            .args(["--clients", &clients.to_string()])
            .args(["--duration", &seconds.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("loadgen starts")
    }
}

/// Waits for the end of a check.
///
/// # Panics
/// What the clients saw was not linearizable, or they saw too little.
pub fn conclude(check: Child) {
    let output = check.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}{complaint}");
    let result: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(result["violations"], 0, "{text}");
    assert!(result["operations"].as_u64() > Some(500), "{text}");
    println!("{}", text.trim());
}

/// A cluster whose nodes each have a network namespace of their own, and a caller in another one.
#[derive(Debug)]
pub struct Isolated {
    // In the order in which they go: nodes before what they live in.
    /// The nodes that run, by their place in `homes`.
    pub nodes: Vec<Option<Node>>,
    /// Where they live.
    pub homes: Vec<Home>,
    /// Who calls them.
    pub caller: Caller,
    /// The network: node N is in space N, behind them is the caller's, then the spare one.
    pub net: Net,
    /// Data and logs.
    pub folder: TempDir,
}

impl Isolated {
    /// The homes of a new cluster of so many nodes, none of which runs; `None`, after saying why,
    /// where there can be no namespaces.
    pub fn new(nodes: usize) -> Option<Isolated> {
        let net = available(Net::new(nodes + 2))?;
        let folder = tempfile::tempdir().expect("a folder");
        let listen = |index| format!("{}:{LISTEN_PORT}", net.address(index));
        let listen: Vec<String> = (0..nodes).map(listen).collect();
        let mut homes = homes_at(folder.path(), &listen, "1");
        for (index, home) in homes.iter_mut().enumerate() {
            home.http = format!("127.0.0.1:{HTTP_PORT}");
            home.space = Some(net.space(index));
        }
        let mut caller = Caller::new(&homes);
        caller.space = Some(net.space(nodes));
        Some(Isolated {
            nodes: homes.iter().map(|_| None).collect(),
            homes,
            caller,
            net,
            folder,
        })
    }

    /// Starts all nodes and waits until the cluster is whole.
    pub fn start(&mut self) {
        self.nodes = start_all(&self.homes);
        wait_until_replicated(&self.homes);
        self.caller.first_writes();
    }

    /// The space of the caller.
    pub fn caller_space(&self) -> usize {
        self.homes.len()
    }

    /// A space in which nothing runs yet.
    pub fn spare_space(&self) -> usize {
        self.homes.len() + 1
    }

    /// All nodes but one, by their place.
    pub fn others(&self, one: usize) -> Vec<usize> {
        (0..self.homes.len())
            .filter(|&other| other != one)
            .collect()
    }

    /// Takes a running node out, to end it.
    ///
    /// # Panics
    /// It does not run.
    pub fn take(&mut self, index: usize) -> Node {
        self.nodes[index].take().expect("it runs")
    }

    /// Starts a node again.
    pub fn restart(&mut self, index: usize) {
        self.nodes[index] = Some(self.homes[index].start());
    }

    /// Every node that should run does.
    ///
    /// # Panics
    /// One ended by itself.
    pub fn assert_alive(&mut self) {
        for (node, home) in self.nodes.iter_mut().zip(&self.homes) {
            let ended = node.as_mut().is_some_and(|node| !node.is_running());
            assert!(!ended, "a node ended by itself:\n{}", home.log());
        }
    }
}
