//! Real processes with a network each: one-way cuts, lost packets, links
//! that flap, and nodes that die and freeze meanwhile. Clients check that what they see is
//! linearizable; after each fault the cluster has to serve again.
//!
//! Where the rights or tools for namespaces are missing, each test says `skipped:` and passes.
//! With `RANGEDB_SOAK_SECONDS` the faults go on for that long, from the seed `RANGEDB_SEED`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rangedb_tests::cluster::{
    Isolated, conclude, leader, ranges, variable, wait_for, wait_until_alike,
};
use rangedb_tests::net::netns::Fault;
use rangedb_tests::process::{Home, command_in};

/// How long faults go on without `RANGEDB_SOAK_SECONDS`.
const SECONDS: u64 = 15;
/// The time that a check goes on after the last fault.
const SECONDS_AFTER: u64 = 4;
/// Service must be back within this time after a fault, even on a busy machine.
const BACK_WITHIN: Duration = Duration::from_secs(8);
/// The delay of each direction of a long link.
const ONE_WAY: Duration = Duration::from_millis(10);

/// How long bits are changed if nobody says so, and in which part of what passes.
const DAMAGE_SECONDS: u64 = 8;
const DAMAGE_ONE_IN: u64 = 1000;

/// The table that leads connections through the relay.
const RELAY_TABLE: &str = "add table ip relay
add chain ip relay leaving { type nat hook output priority -100; }
";

fn soak_seconds() -> u64 {
    variable("RANGEDB_SOAK_SECONDS").map_or(SECONDS, |seconds| seconds.max(SECONDS))
}

fn random() -> StdRng {
    StdRng::seed_from_u64(variable("RANGEDB_SEED").unwrap_or(1))
}

/// Makes a random fault of the network; returns its description.
fn disturb(cluster: &mut Isolated, random: &mut StdRng) -> String {
    let one = random.random_range(0..cluster.homes.len());
    let others = cluster.others(one);
    let other = others[random.random_range(0..others.len())];
    let caller = cluster.caller_space();
    let net = &mut cluster.net;
    match random.random_range(0..8) {
        0 => {
            net.set(one, other, Some(Fault::Cut));
            format!("{other} does not hear {one}")
        }
        1 => {
            net.set_both(one, &[other], Some(Fault::Cut));
            format!("{one} and {other} do not hear each other")
        }
        2 => {
            net.set_both(one, &others, Some(Fault::Cut));
            format!("{one} is cut off from the nodes")
        }
        3 => {
            net.set_both(one, &others, Some(Fault::Cut));
            net.set_both(one, &[caller], Some(Fault::Cut));
            format!("{one} is cut off from all")
        }
        4 => {
            others
                .iter()
                .for_each(|&other| net.set(other, one, Some(Fault::Cut)));
            format!("{one} hears no node")
        }
        5 => {
            others
                .iter()
                .for_each(|&other| net.set(one, other, Some(Fault::Cut)));
            format!("no node hears {one}")
        }
        6 => {
            let percent = random.random_range(5..40);
            net.set_both(one, &others, Some(Fault::Lose(percent)));
            format!("{percent} of 100 packets of {one} are lost")
        }
        _ => {
            let percent = random.random_range(2..15);
            for node in 0..cluster.homes.len() {
                net.set_both(node, &[caller], Some(Fault::Lose(percent)));
                let others: Vec<usize> = (0..node).collect();
                net.set_both(node, &others, Some(Fault::Lose(percent)));
            }
            format!("{percent} of 100 packets are lost")
        }
    }
}

/// Ends the faults, and waits until every range takes writes.
fn heal(cluster: &mut Isolated, what: &str) -> Duration {
    cluster.net.heal();
    let took = cluster.caller.first_writes();
    println!("{what}: written again {took:?} after it");
    assert!(took < BACK_WITHIN, "{what}: {took:?}");
    cluster.assert_alive();
    took
}

fn pause(random: &mut StdRng, millis: std::ops::Range<u64>) {
    std::thread::sleep(Duration::from_millis(random.random_range(millis)));
}

#[test]
fn histories_are_linearizable_while_the_network_is_cut_and_lossy() {
    let Some(mut cluster) = Isolated::new(3, "1") else {
        return;
    };
    cluster.start();
    let (mut random, seconds) = (random(), soak_seconds());
    let checking = cluster.caller.check(seconds + SECONDS_AFTER, 8, 1);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut slowest = Duration::ZERO;
    while Instant::now() < until {
        let what = disturb(&mut cluster, &mut random);
        pause(&mut random, 300..4_000);
        slowest = slowest.max(heal(&mut cluster, &what));
        pause(&mut random, 0..1_000);
    }
    conclude(checking);
    let alike = wait_until_alike(&cluster.homes);
    println!("slowest first writes {slowest:?}, all alike {alike:?} after the last");
}

#[test]
fn histories_are_linearizable_while_two_of_five_are_cut_killed_or_frozen() {
    let Some(mut cluster) = Isolated::new(5, "1") else {
        return;
    };
    cluster.start();
    let (mut random, seconds) = (random(), soak_seconds());
    let checking = cluster.caller.check(seconds + SECONDS_AFTER, 4, 2);
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        // A fault of the network may be of one more node; a majority is left.
        let what = disturb(&mut cluster, &mut random);
        let victim = random.random_range(0..5);
        let what = if random.random_bool(0.5) {
            let node = cluster.nodes[victim].as_ref().expect("it runs");
            node.signal("STOP");
            // From less than a lease to much more.
            pause(&mut random, 300..3_000);
            cluster.nodes[victim]
                .as_ref()
                .expect("it runs")
                .signal("CONT");
            format!("{what}, {victim} was frozen")
        } else {
            cluster.take(victim).kill();
            pause(&mut random, 0..2_000);
            cluster.restart(victim);
            format!("{what}, {victim} was killed")
        };
        pause(&mut random, 0..1_000);
        heal(&mut cluster, &what);
    }
    conclude(checking);
    println!(
        "all alike {:?} after the last",
        wait_until_alike(&cluster.homes)
    );
}

#[test]
fn a_link_that_flaps_stops_nobody_for_long() {
    let Some(mut cluster) = Isolated::new(3, "1") else {
        return;
    };
    cluster.start();
    let mut random = random();
    let seconds = soak_seconds().max(10);
    let checking = cluster.caller.check(seconds + SECONDS_AFTER, 4, 3);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut slowest = Duration::ZERO;
    while Instant::now() < until {
        let one = leader(&cluster.homes, "d");
        let others = cluster.others(one);
        let flapping = std::thread::scope(|scope| {
            let caller = cluster.caller.clone();
            let writes = scope.spawn(move || caller.first_writes());
            while !writes.is_finished() {
                cluster.net.set_both(one, &others, Some(Fault::Cut));
                pause(&mut random, 50..400);
                cluster.net.set_both(one, &others, None);
                pause(&mut random, 50..400);
            }
            writes.join().expect("written")
        });
        slowest = slowest.max(flapping);
        assert!(flapping < BACK_WITHIN, "while links flapped: {flapping:?}");
    }
    println!("slowest write of every range while links flapped: {slowest:?}");
    heal(&mut cluster, "links flapped");
    conclude(checking);
}

/// The relay's process; killed when dropped.
struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        // Nothing else ends the process.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Leads the traffic between the nodes through a relay that delays each direction and may flip a bit in
/// one of this many pieces. Clients still reach the nodes directly. The cluster must not run yet.
fn relay_links(cluster: &Isolated, delay: Duration, damage_one_in: u64) -> Relay {
    let (nodes, spare) = (cluster.homes.len(), cluster.spare_space());
    let place = |node| format!("{}:{}", cluster.net.address(spare), 7000 + node);
    let routes = (0..nodes).map(|node| format!("{}={}", place(node), cluster.homes[node].listen));
    let mut relay = command_in(Some(&cluster.net.space(spare)), "relay")
        .args([delay.as_millis().to_string(), damage_one_in.to_string()])
        .args(routes)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the relay starts");
    let mut lines = BufReader::new(relay.stdout.take().expect("it is piped")).lines();
    let ready = lines.next().and_then(Result::ok);
    assert_eq!(ready.as_deref(), Some("ready"));
    for node in 0..nodes {
        let mut rules = RELAY_TABLE.to_owned();
        for other in cluster.others(node) {
            let (address, port) = cluster.homes[other].listen.split_once(':').expect("a port");
            rules += &format!(
                "add rule ip relay leaving ip daddr {address} tcp dport {port} dnat to {}\n",
                place(other)
            );
        }
        let accepted = cluster.net.nft(node, &rules);
        accepted.expect("the kernel takes the rules");
    }
    Relay(relay)
}

/// The terms of all groups, as their leaders report them.
fn terms(cluster: &Isolated) -> BTreeMap<u64, u64> {
    let mut terms = BTreeMap::new();
    for home in &cluster.homes {
        for (id, range) in ranges(home).expect("it answers") {
            let term: &mut u64 = terms.entry(id).or_default();
            *term = range.term.max(*term);
        }
    }
    terms
}

#[test]
fn over_links_of_20_ms_a_put_takes_one_round_trip_and_nobody_is_elected() {
    let Some(mut cluster) = Isolated::new(3, "1") else {
        return;
    };
    let _relay = relay_links(&cluster, ONE_WAY, 0);
    cluster.start();
    // Leaders that are spread over the nodes come to lead in new terms, too.
    cluster.caller.set("balance", "off");
    let mut last = BTreeMap::new();
    // They stay if two looks with some time between them find the same terms.
    let before = wait_for("leaders that stay", || {
        std::thread::sleep(Duration::from_secs(2));
        let now = terms(&cluster);
        (std::mem::replace(&mut last, now.clone()) == now).then_some(now)
    });
    let seconds = soak_seconds().max(20).to_string();
    let run = command_in(cluster.caller.space.as_deref(), "loadgen")
        .args([
            "run",
            "--addr",
            &cluster.caller.addresses,
            "--format",
            "json",
        ])
        .args([
            "--workload",
            "write",
            "--records",
            "1000",
            "--connections",
            "1",
        ])
        .args(["--warmup", "1", "--duration", &seconds])
        .output()
        .expect("loadgen runs");
    assert!(run.status.success(), "{run:?}");
    let result: serde_json::Value = serde_json::from_slice(&run.stdout).expect("JSON");
    println!("20 ms: {}", result["latency_us"]["all"]);
    assert_eq!(result["errors"], serde_json::json!({}), "{result}");
    let median = Duration::from_micros(
        result["latency_us"]["all"]["p50"]
            .as_f64()
            .expect("a number") as u64,
    );
    // The rest is for processors and disks that are busy.
    assert!((ONE_WAY * 2..ONE_WAY * 7 / 2).contains(&median), "{result}");
    assert_eq!(terms(&cluster), before, "there was an election");
}

#[test]
fn single_bits_that_change_between_nodes_do_no_harm() {
    let Some(mut cluster) = Isolated::new(3, "1") else {
        return;
    };
    let one_in = variable("RANGEDB_DAMAGE_ONE_IN").unwrap_or(DAMAGE_ONE_IN);
    let _relay = relay_links(&cluster, Duration::ZERO, one_in);
    cluster.start();
    let seconds = variable("RANGEDB_SOAK_SECONDS").unwrap_or(DAMAGE_SECONDS);
    let checking = cluster.caller.check(seconds, 8, 4);
    conclude(checking);
    cluster.assert_alive();
    let alike = wait_until_alike(&cluster.homes);
    let seen = |home: &Home| home.log().matches("was damaged on its way").count();
    let damaged: usize = cluster.homes.iter().map(seen).sum();
    println!("{damaged} damaged frames were refused, all alike {alike:?} after the last");
    assert!(damaged > 0, "no frame was damaged");
}
