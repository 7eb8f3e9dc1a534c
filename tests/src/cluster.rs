//! A cluster of several real nodes, and its callers, for tests on loopback and in network
//! namespaces.
//!
//! Nothing here assumes which node has which id or leads a range: tests ask the cluster (`range
//! ls`, `status`).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::net::available;
use crate::net::netns::Net;
use crate::process::{Home, Node, cli_in, command_in, free_port, succeeded};

/// The secret of all test clusters.
pub const SECRET: &str = "a secret of the test";
/// Borders of the first ranges. The second range holds most keys of `loadgen check`.
pub const BORDERS: &str = "check-4,m";
/// One key of each range.
pub const KEYS: [&str; 3] = ["a", "d", "z"];
/// How long a test waits for a condition, for example for service after a fault.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The ports of a node that has a network namespace of its own.
const LISTEN_PORT: u16 = 7400;
const HTTP_PORT: u16 = 7480;

/// The number in an environment variable.
pub fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The homes of a cluster's nodes, which listen on these addresses and have this number of shards
/// each.
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

/// The homes of a cluster of three nodes on loopback with one shard each.
pub fn homes(folder: &Path) -> Vec<Home> {
    homes_of(folder, "1")
}

/// The homes of a cluster of three nodes on loopback with this number of shards each.
pub fn homes_of(folder: &Path, shards: &str) -> Vec<Home> {
    let listen = [(); 3].map(|()| format!("127.0.0.1:{}", free_port()));
    homes_at(folder, &listen, shards)
}

/// A home of a node that joins the cluster of the others.
///
/// # Panics
/// The folder cannot be made.
pub fn joining(folder: &Path, name: &str, others: &[Home]) -> Home {
    let folder = folder.join(name);
    std::fs::create_dir(&folder).expect("a folder");
    let list: Vec<&str> = others.iter().map(|home| home.listen.as_str()).collect();
    let flags = ["--shards", "1", "--cluster-secret", SECRET, "--join"];
    Home::new(&folder, &[&flags[..], &[&list.join(",")]].concat())
}

/// Starts all nodes at the same time, since none is ready before the cluster is formed.
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

/// The addresses of all nodes, as `--addr` takes them.
pub fn addresses(homes: &[Home]) -> String {
    let listen: Vec<&str> = homes.iter().map(|home| home.listen.as_str()).collect();
    listen.join(",")
}

/// A range in the view of the cluster's manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The id of the node that leads the range.
    pub leader: Option<u64>,
    /// The term of its leader.
    pub term: u64,
    /// The first key of the range, in hexadecimal digits.
    pub start: String,
    /// The nodes of its voters.
    pub voters: Vec<u64>,
    /// Entries that the slowest replica lacks; `None` if that is unknown for one of them.
    pub lag: Option<u64>,
}

fn json(output: &Output) -> Option<Value> {
    let value = serde_json::from_slice(&output.stdout).ok();
    value.filter(|_| output.status.success())
}

const LIST_RANGES: [&str; 6] = ["range", "ls", "--format", "json", "--timeout", "2s"];

/// All ranges by id, the system range included, asked through a node; `None` if there is no answer.
pub fn ranges(home: &Home) -> Option<BTreeMap<u64, Range>> {
    ranges_in(&home.cli(&LIST_RANGES))
}

fn ranges_in(output: &Output) -> Option<BTreeMap<u64, Range>> {
    let Some(value) = json(output) else {
        // A test that waits in vain shows why.
        eprintln!("{}", String::from_utf8_lossy(&output.stderr).trim());
        return None;
    };
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

/// State and address of all nodes by id, asked through a node; `None` if there is no answer.
pub fn nodes(home: &Home) -> Option<BTreeMap<u64, (String, String)>> {
    let value = json(&home.cli(&["node", "ls", "--format", "json", "--timeout", "2s"]))?;
    let node = |node: &Value| {
        let text = |name: &str| node[name].as_str().map(str::to_owned);
        Some((node["id"].as_u64()?, (text("state")?, text("address")?)))
    };
    value["nodes"].as_array()?.iter().map(node).collect()
}

/// The status that a node reports, whatever the health of the cluster is.
///
/// # Panics
/// The node does not answer.
pub fn status(home: &Home) -> Value {
    let output = home.cli(&["status", "--format", "json"]);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no status: {output:?}\n{}", home.log()))
}

/// The index in `homes` of the node that leads the range of a key.
///
/// # Panics
/// The range has no leader within a minute.
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

/// Forbids the manager to spread leaders, and waits until those of all ranges have stayed for two
/// seconds: for tests that stop a leader, or ask a node because it leads. What the manager shows is
/// as old as the last report, and a transfer that has begun still ends.
///
/// # Panics
/// This takes longer than a minute.
pub fn hold_leaders(homes: &[Home]) {
    homes[0].set("balance", "off");
    let leaders = || -> Option<BTreeMap<u64, (u64, u64)>> {
        let of = |(id, range): (u64, Range)| Some((id, (range.leader?, range.term)));
        ranges(homes.first()?)?.into_iter().map(of).collect()
    };
    let mut held = (leaders(), Instant::now());
    wait_for("leaders that stay", || {
        let now = leaders();
        if now.is_none() || now != held.0 {
            held = (now, Instant::now());
        }
        (held.1.elapsed() > Duration::from_secs(2)).then_some(())
    });
}

/// Waits until every range has a leader and three voters, and every node belongs to the cluster. A
/// fault before that would hit a cluster that is still being formed.
///
/// # Panics
/// This takes longer than a minute.
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
        // The ranges of users and the system range.
        (all_there && formed && ranges.len() > KEYS.len()).then_some(())
    });
}

/// Waits until all replicas have all entries, and returns how long that took. Nobody may write
/// meanwhile.
///
/// # Panics
/// This takes longer than a minute.
pub fn wait_until_alike(homes: &[Home]) -> Duration {
    let begun = Instant::now();
    wait_for("nodes that are alike", || {
        let ranges = ranges(homes.first()?)?;
        let alike = |range: &Range| range.leader.is_some() && range.lag == Some(0);
        ranges.values().all(alike).then_some(())
    });
    begun.elapsed()
}

/// Waits for a condition and returns its value.
///
/// # Panics
/// This takes longer than a minute.
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_for_within(TIMEOUT, what, condition)
}

/// The same with another time limit.
///
/// # Panics
/// This takes longer.
pub fn wait_for_within<T>(
    timeout: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(
            begun.elapsed() < timeout,
            "{what} does not come within {timeout:?}"
        );
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A user of the cluster, who runs the binaries.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The value of `--addr`.
    pub addresses: String,
    /// The network namespace that the binaries run in.
    pub space: Option<String>,
}

impl Caller {
    /// A user in the test's own network namespace.
    pub fn new(homes: &[Home]) -> Caller {
        Caller {
            addresses: addresses(homes),
            space: None,
        }
    }

    /// Runs a command of `rangedb`.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        cli_in(self.space.as_deref(), &self.addresses, arguments)
    }

    /// Sets a setting of the cluster.
    ///
    /// # Panics
    /// The order fails.
    pub fn set(&self, name: &str, value: &str) {
        succeeded(&self.cli(&["config", "set", name, value]));
    }

    /// Tries once, for at most two seconds, to write a key.
    pub fn try_put(&self, key: &str) -> Output {
        self.cli(&["put", key, "v", "--timeout", "2s"])
    }

    /// All ranges by id, the system range included; `None` if there is no answer.
    pub fn ranges(&self) -> Option<BTreeMap<u64, Range>> {
        ranges_in(&self.cli(&LIST_RANGES))
    }

    /// Writes a key until that succeeds, and returns how long it took.
    ///
    /// # Panics
    /// This takes longer than a minute.
    pub fn first_write(&self, key: &str) -> Duration {
        let begun = Instant::now();
        loop {
            let put = self.try_put(key);
            if put.status.success() {
                return begun.elapsed();
            }
            let complaint = String::from_utf8_lossy(&put.stderr).into_owned();
            assert!(begun.elapsed() < TIMEOUT, "{complaint}");
        }
    }

    /// Writes to all ranges at the same time, and returns how long the slowest first write took.
    pub fn first_writes(&self) -> Duration {
        std::thread::scope(|scope| {
            let write = |key| scope.spawn(move || self.first_write(key));
            let writes = KEYS.map(write);
            let took = writes.map(|write| write.join().expect("it is written"));
            took.into_iter().max().expect("there are keys")
        })
    }

    /// Starts `loadgen check`; [`conclude`] waits for it.
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
/// The check found a violation, or its clients did too few operations.
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

/// A cluster whose nodes have a network namespace each, and a user in another one.
#[derive(Debug)]
pub struct Isolated {
    // The order of the fields is the order of their destructors: nodes end before their namespaces.
    /// The running nodes, by index in `homes`.
    pub nodes: Vec<Option<Node>>,
    /// The homes of the nodes.
    pub homes: Vec<Home>,
    /// The user.
    pub caller: Caller,
    /// The network: node N is in space N; the next space is the user's, the last one is free.
    pub net: Net,
    /// The folder of data and logs.
    pub folder: TempDir,
}

impl Isolated {
    /// Makes the homes of a cluster, whose nodes have this number of shards each, and the network; no node
    /// runs yet. If there can be no namespaces, prints why and returns `None`.
    pub fn new(nodes: usize, shards: &str) -> Option<Isolated> {
        let net = available(Net::new(nodes + 2))?;
        let folder = tempfile::tempdir().expect("a folder");
        let listen = |index| format!("{}:{LISTEN_PORT}", net.address(index));
        let listen: Vec<String> = (0..nodes).map(listen).collect();
        let mut homes = homes_at(folder.path(), &listen, shards);
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

    /// Starts all nodes and waits until the cluster is formed and serves all ranges.
    pub fn start(&mut self) {
        self.nodes = start_all(&self.homes);
        wait_until_replicated(&self.homes);
        self.caller.first_writes();
    }

    /// The index of the user's space.
    pub fn caller_space(&self) -> usize {
        self.homes.len()
    }

    /// The index of the free space.
    pub fn spare_space(&self) -> usize {
        self.homes.len() + 1
    }

    /// The indexes of all other nodes.
    pub fn others(&self, one: usize) -> Vec<usize> {
        (0..self.homes.len())
            .filter(|&other| other != one)
            .collect()
    }

    /// Takes out a running node, to end it.
    ///
    /// # Panics
    /// The node does not run.
    pub fn take(&mut self, index: usize) -> Node {
        self.nodes[index].take().expect("it runs")
    }

    /// Starts a node again.
    pub fn restart(&mut self, index: usize) {
        self.nodes[index] = Some(self.homes[index].start());
    }

    /// Checks that no node has ended by itself.
    ///
    /// # Panics
    /// A node has ended.
    pub fn assert_alive(&mut self) {
        for (node, home) in self.nodes.iter_mut().zip(&self.homes) {
            let ended = node.as_mut().is_some_and(|node| !node.is_running());
            assert!(!ended, "a node ended by itself:\n{}", home.log());
        }
    }
}
