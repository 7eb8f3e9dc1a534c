//! `layers`: imports between the modules of a crate go one way, down the lists below.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::Outcome;
use crate::imports::{self, Crate, Import};
use crate::tidy::project_files;

/// The modules of a crate, lowest first, one line a layer: names, a dash, what it is. A module imports
/// what is on its own line and on the lines above it in the list. A name stands for a file, or for a
/// folder with all in it that has no line of its own.
///
/// Modules of one line do not import each other in circles either; but a module may import the
/// modules within it and be imported by them, as a hub may on any line ([`Order::hubs`]). Only where several names share a line are circles let
/// be.
struct Order {
    package: &'static str,
    list: &'static str,
    /// Folders whose own file has the state to which the modules within them add methods. So that file
    /// and these modules import each other, and the list orders only the modules.
    hubs: &'static [&'static str],
    exceptions: &'static [Exception],
}

/// An import that breaks the order: from which module, of which, and why it is still there. One
/// that is no longer needed must go from the list.
type Exception = (&'static str, &'static str, &'static str);

const ORDERS: [Order; 4] = [
    Order {
        package: "engine",
        list: "
            mutant - deliberate bugs that the simulator must find
            limits - every bound
            words - numbers with their nouns, for people
            notify - an event that tasks of one thread wait for
            fair_share - how ranges share what there is a limit on
            boot_time - points in time
            types - ids and small values
            codec - the bytes of messages between shards and of records
            memory - budgets of memory and what is used of them
            byte_size - sizes as people type them
            distribution - recorded values and their exact sum
            disk_fault - faults of the disk, as log and tables report them
            request - reads and writes as they are asked
            frame - frames between nodes
            lsm - memtables, tables, scans, collection; knows no environment
            env - the door to the world
            line_limit - a limit on log lines of one kind
            wal - the shard's log
            error - why a request or a process fails
            hlc - the node's clock
            tree - the shard's tree as its ranges use it
            raft - Raft groups, each of which replicates a state machine
            range/descriptor - the interval, the epoch and the replicas of a range
            range/command - commands in the log, and the formats of entries
            range/sessions - the session table, by which a write is applied at most once
            range/rows - rows as apply sees them, and where they lie in the tree
            range/state - the replicated state of a range besides its rows
            range/split_merge - how splits and merges change states, and which replicas they concern
            range/apply - applies an entry of the log
            range/digest - what replicas of a range compare
            range/usage - how busy a range is, and with which keys
            range/proposer - a leader's queue of writes, and their admission
            range/replica - a replica of a range on a shard
            range/storage - a replica in the tree: state rows, recovery, snapshots, rewrites
            range/raft_adapter - a replica and its Raft group: proposals, and the state machine
            range - all of a range
            cluster/backoff - the pause before what has failed is tried again
            cluster/settings - the settings of the cluster
            cluster/record - the rows of the system range
            cluster/message - what shards and the manager tell each other
            cluster/reporter - what a shard has reported, and must report again
            cluster/placement - where replicas and leaders should be
            cluster/manager - what the manager knows, and how it learns it
            cluster/operator_orders - which orders of operators the manager accepts
            cluster/view - the view that the manager makes of what it knows
            cluster/split_merge - which ranges are split and merged, and how far that is
            cluster/leaving - nodes and shards that leave the cluster
            cluster/planning - what the manager orders next, and what becomes of it
            cluster - all of the cluster's manager
            shard/range_map - the ranges of a shard, by key and by id
            shard/cluster_time - the time of the cluster
            shard/gc - which rows of the tree are live, and which old versions go
            shard/reads - gets, multi-gets and scans
            shard/writes - the checks of a write before its range queues it
            shard/liveness - heartbeats, slow disks, and whether ranges can be served
            shard/split_merge - splits and merges, as leaders carry them out
            shard/replicas - replicas that are made, moved, compared and removed
            shard/snapshots - snapshots that are received, and logs that are kept for receivers
            shard/manager_orders - orders, on the shard that hosts the manager
            shard/cluster_agent - reports to the manager, the view, and requests about the cluster
            shard/peer_requests - requests of other shards
            shard/status - what status requests and metrics see
            shard/contents - what tests see
            shard/lifecycle - opening, background tasks, closing
            shard - what all of that shares, on one thread
            gateway - the requests of clients: answered here, forwarded, or told the route
        ",
        hubs: &["shard"],
        exceptions: &[],
    },
    Order {
        package: "server",
        list: "
            env - the runtime, the clock, disks
            config - settings
            data_dir - the data folder, and which node of which cluster it belongs to
            history - what the node did and what happened to it
            logging - log lines
            node_settings - the node's settings as they are now, and their reload
            fatal - how a node ends that cannot go on
            descriptors - shares of file descriptors
            check - whether machine and settings are fit for a node
            operation - kinds of requests, and what is kept of one until its reply
            probe - a shard's counters
            mesh - the channels between the shards of the node
            net/buffers - the memory of connections
            net/input - incomplete frames
            net/pending_handshakes - connections before their handshake
            net/port - the ports of the node
            peers - the links to other nodes
            glommio_env - the environment of the engine's shards
            context - what the tasks of a shard's thread share
            peers/enroll - how a node joins the cluster
            peers/serve - connections from other nodes
            net - connections of clients; knows no handler
            handler - frames into calls of the gateway
            shard - a shard, with all of that, on its thread
            admin - pages and the API over HTTP
            cli - the command line
            node - starts and stops it all
        ",
        hubs: &[],
        exceptions: &[],
    },
    Order {
        package: "client",
        list: "
            error - why an operation failed
            limits - bounds of requests
            batch - conditions and mutations of a write
            cluster - which cluster a client belongs to
            tls - what a client trusts, and its encrypted connections
            flags - flags of command lines that stand for it
            options - how a client is set up
            stagger - attempts that overlap
            core - what a call does next; knows no runtime, no socket and no clock
            connection - one connection
            opening - making a connection
            pool - connections to all nodes
            client - the client
            seeds - the first node that answers
            retry_loop - carries out what the core decides, until a call has its result
            operations - what users call
            get_many - what users call to read several keys
            scan - what users call to read many keys
            admin - what operators call
            blocking - the same for programs without a runtime
        ",
        hubs: &[],
        exceptions: &[],
    },
    Order {
        package: "loadgen",
        list: "
            distribution - which keys are asked for
            keys - how keys look
            workload - the operations
            stop - signals that end a run
            pace - when each is due
            probe - what is measured
            series - what is measured in each second
            hdr - files of histograms
            database - what is measured against
            driver - runs the workload
            check - whether a history is linearizable
            report - results in words
            compare - two results
            client - RangeDB
            etcd - etcd
            memory - a database in memory
            args - the command line
        ",
        hubs: &[],
        exceptions: &[],
    },
];

/// Checks every crate that has an order.
pub fn run(root: &Path) -> Outcome {
    let paths = project_files(root)?;
    let mut complaints = Vec::new();
    for order in &ORDERS {
        let source = format!("{}/src/", order.package);
        let files: Vec<_> = paths
            .iter()
            .filter(|path| path.ends_with(".rs"))
            .filter_map(|path| {
                let name = path.strip_prefix(&source)?;
                Some((
                    name.to_owned(),
                    std::fs::read_to_string(root.join(path)).ok()?,
                ))
            })
            .collect();
        let read = imports::read(&files);
        let count = read.imports.len();
        let found = check(order, &read);
        if found.is_empty() {
            let exceptions = order.exceptions.len();
            eprintln!(
                "layers: {count} imports within {} go one way, but for {exceptions} exceptions",
                order.package
            );
        }
        complaints.extend(found);
    }
    if complaints.is_empty() {
        return Ok(());
    }
    Err(format!("layers:\n  {}", complaints.join("\n  ")))
}

impl Order {
    /// The layers, each with its names.
    fn layers(&self) -> impl Iterator<Item = &'static str> {
        let lines = self.list.lines().map(str::trim);
        lines
            .filter(|line| !line.is_empty())
            .map(|line| line.split_once(" - ").map_or(line, |(names, _)| names))
    }
}

/// Where a module stands: the number of its layer, from the lowest, and the names of that.
type Layer = (usize, &'static str);

/// The layer that names the module or, of the folders above it, the nearest.
fn layer(order: &Order, module: &str) -> Option<Layer> {
    let mut name = module;
    loop {
        let mut layers = order.layers().enumerate();
        if let Some(layer) = layers.find(|(_, names)| names.split(' ').any(|word| word == name)) {
            return Some(layer);
        }
        name = &name[..name.rfind('/')?];
    }
}

fn check(order: &Order, read: &Crate) -> Vec<String> {
    let mut complaints = unlisted(order, read);
    let is_excepted = |import: &Import| {
        let mut exceptions = order.exceptions.iter();
        exceptions.any(|(from, to, _)| (*from, *to) == (import.from.as_str(), import.to.as_str()))
    };
    let (excepted, kept): (Vec<&Import>, Vec<&Import>) =
        read.imports.iter().partition(|import| is_excepted(import));
    let circles = Circles::new(order, &kept);
    for import in kept {
        if let Some(why) = broken(order, &circles, import) {
            complaints.push(format!(
                "{}/src/{}:{}: {} imports {} ({}), {why}",
                order.package, import.file, import.line, import.from, import.to, import.name,
            ));
        }
    }
    for (from, to, _) in order.exceptions {
        let found = excepted
            .iter()
            .find(|import| (import.from.as_str(), import.to.as_str()) == (*from, *to));
        if found.is_none_or(|import| broken(order, &circles, import).is_none()) {
            complaints.push(format!(
                "{}: the exception {from} -> {to} is no longer needed: remove it from the list",
                order.package
            ));
        }
    }
    complaints
}

/// Modules without a layer, and names that stand for no module.
fn unlisted(order: &Order, read: &Crate) -> Vec<String> {
    let package = order.package;
    let modules = read.modules.iter();
    let without_layer = modules
        .filter(|module| layer(order, module).is_none())
        .map(|module| format!("{package}: {module} has no line in the order: add it"));
    let names = order.layers().flat_map(|names| names.split(' '));
    let without_module = names
        .filter(|name| {
            let folder = format!("{name}/");
            let mut modules = read.modules.iter();
            !modules.any(|module| module == name || module.starts_with(&folder))
        })
        .map(|name| format!("{package}: {name} in the order is no module: remove it"));
    without_layer.chain(without_module).collect()
}

/// What is wrong with an import, if anything is.
fn broken(order: &Order, circles: &Circles, import: &Import) -> Option<String> {
    let (from, _) = layer(order, &import.from)?;
    let (to, line) = layer(order, &import.to)?;
    if is_of_hub(order, import) {
        return None;
    }
    if to > from {
        return Some(format!("which is above it, on the line of {line}"));
    }
    let back = circles.way(&import.to, &import.from)?;
    Some(format!("which imports it in turn: {}", back.join(" -> ")))
}

/// Whether one of the two modules is a hub, and the other is within it.
fn is_of_hub(order: &Order, Import { from, to, .. }: &Import) -> bool {
    let mut hubs = order.hubs.iter();
    hubs.any(|hub| (from == hub && is_within(to, hub)) || (to == hub && is_within(from, hub)))
}

/// The imports that may close a circle.
struct Circles<'a> {
    imported: BTreeMap<&'a str, BTreeSet<&'a str>>,
}

/// Whether a module lies within another.
fn is_within(inner: &str, outer: &str) -> bool {
    let rest = inner.strip_prefix(outer);
    rest.is_some_and(|rest| rest.starts_with('/'))
}

impl<'a> Circles<'a> {
    fn new(order: &Order, imports: &[&'a Import]) -> Circles<'a> {
        let mut imported: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for import in imports {
            let is_shared = |(_, line): Layer| line.contains(' ');
            let layers = [&import.from, &import.to].map(|module| layer(order, module));
            if layers[0] == layers[1] && !layers[0].is_none_or(is_shared) {
                let (from, to) = (import.from.as_str(), import.to.as_str());
                if !is_within(from, to) && !is_within(to, from) {
                    imported.entry(from).or_default().insert(to);
                }
            }
        }
        Circles { imported }
    }

    /// The modules on a way along imports from one to another, both included.
    fn way(&self, from: &'a str, to: &str) -> Option<Vec<&'a str>> {
        let mut ways = vec![vec![from]];
        let mut seen = BTreeSet::from([from]);
        while let Some(way) = ways.pop() {
            let last = *way.last()?;
            if last == to {
                return Some(way);
            }
            for next in self.imported.get(last).into_iter().flatten() {
                if seen.insert(next) {
                    ways.push([way.as_slice(), &[next]].concat());
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(exceptions: &'static [Exception], files: &[(&str, &str)]) -> Vec<String> {
        let order = Order {
            package: "p",
            list: "
                low - what it is
                middle
                knot/a knot/b - with each other
                knot
                hub/a
                hub/b
                hub
            ",
            hubs: &["hub"],
            exceptions,
        };
        let ground = [
            ("lib.rs", ""),
            ("low.rs", ""),
            ("middle/mod.rs", ""),
            ("middle/a.rs", ""),
            ("middle/b.rs", ""),
            ("knot/mod.rs", ""),
            ("knot/a.rs", ""),
            ("knot/b.rs", ""),
            ("hub/mod.rs", ""),
            ("hub/a.rs", ""),
            ("hub/b.rs", ""),
        ];
        let mut texts = BTreeMap::from(ground);
        texts.extend(files.iter().copied());
        let files: Vec<_> = texts
            .into_iter()
            .map(|(path, text)| (path.to_owned(), text.to_owned()))
            .collect();
        check(&order, &imports::read(&files))
    }

    #[test]
    fn imports_downwards_pass() {
        let files = [
            ("middle/mod.rs", "pub use a::A; use crate::low::L;"),
            ("middle/a.rs", "use super::M; use crate::low::L;"),
            ("middle/b.rs", "use super::a::A;"),
            ("knot/a.rs", "use super::b::B;"),
            ("knot/b.rs", "use super::a::A;"),
            ("knot/mod.rs", "use crate::middle::A; use a::A;"),
        ];
        assert_eq!(complaints(&[], &files), [""; 0]);
    }

    #[test]
    fn an_import_upwards_fails_with_both_names_and_its_place() {
        let files = [("low.rs", "\nuse crate::middle::a::A;")];
        let expected = "p/src/low.rs:2: low imports middle/a (A), which is above it, on the line of \
                        middle";
        assert_eq!(complaints(&[], &files), [expected]);
        let files = [("knot/a.rs", "fn f() { super::g() }")];
        let expected = "p/src/knot/a.rs:1: knot/a imports knot (g), which is above it, on the line \
                        of knot";
        assert_eq!(complaints(&[], &files), [expected]);
    }

    #[test]
    fn a_hub_and_what_is_within_it_import_each_other_and_the_rest_keeps_the_order() {
        let files = [
            ("hub/mod.rs", "use a::A; use b::B;"),
            ("hub/a.rs", "use crate::hub::Hub;"),
            ("hub/b.rs", "use crate::hub::Hub; use super::a::A;"),
        ];
        assert_eq!(complaints(&[], &files), [""; 0]);
        let files = [("hub/a.rs", "use super::b::B;")];
        let expected =
            "p/src/hub/a.rs:1: hub/a imports hub/b (B), which is above it, on the line of hub/b";
        assert_eq!(complaints(&[], &files), [expected]);
    }

    #[test]
    fn a_circle_fails_at_each_of_its_imports() {
        let files = [
            ("middle/a.rs", "use super::b::B;"),
            ("middle/b.rs", "use super::a::A;"),
        ];
        let expected = [
            "p/src/middle/a.rs:1: middle/a imports middle/b (B), which imports it in turn: \
             middle/b -> middle/a",
            "p/src/middle/b.rs:1: middle/b imports middle/a (A), which imports it in turn: \
             middle/a -> middle/b",
        ];
        assert_eq!(complaints(&[], &files), expected);
        assert_eq!(
            complaints(&[("middle/a", "middle/b", "known")], &files),
            [""; 0]
        );
    }

    #[test]
    fn an_exception_lets_its_import_pass_and_no_other() {
        const KNOWN: &[Exception] = &[("low", "middle/a", "known")];
        let known = ("low.rs", "use crate::middle::a::A;");
        assert_eq!(complaints(KNOWN, &[known]), [""; 0]);
        let more = ("low.rs", "use crate::middle::{a::A, b::B};");
        assert_eq!(complaints(KNOWN, &[more]).len(), 1);
    }

    #[test]
    fn an_exception_that_is_not_needed_fails() {
        let unneeded = |from: &str, to: &str| {
            format!("p: the exception {from} -> {to} is no longer needed: remove it from the list")
        };
        const GONE: &[Exception] = &[("low", "middle/a", "gone from the code")];
        assert_eq!(complaints(GONE, &[]), [unneeded("low", "middle/a")]);
        const ALLOWED: &[Exception] = &[("middle/a", "low", "goes down")];
        let files = [("middle/a.rs", "use crate::low::L;")];
        assert_eq!(complaints(ALLOWED, &files), [unneeded("middle/a", "low")]);
    }

    #[test]
    fn list_and_modules_must_match() {
        let expected = "p: new has no line in the order: add it";
        assert_eq!(complaints(&[], &[("new.rs", "")]), [expected]);
        let order = Order {
            package: "p",
            list: "low\nold",
            hubs: &[],
            exceptions: &[],
        };
        let read = imports::read(&[("low.rs".to_owned(), String::new())]);
        assert_eq!(
            check(&order, &read),
            ["p: old in the order is no module: remove it"]
        );
    }
}
