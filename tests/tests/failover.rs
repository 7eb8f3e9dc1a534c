//! What clients notice when nodes of three leave: restarted one after the other, killed while they
//! lead, out of disk, on a slow disk. Loopback, through the real client, with figures.
//!
//! With `RANGEDB_SOAK_SECONDS` each goes on for that long, from the seed `RANGEDB_SEED`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rangedb_tests::cluster::{
    self, KEYS, leader, start_all, variable, wait_for, wait_until_alike, wait_until_replicated,
};
use rangedb_tests::load::{Load, TIMEOUT, client, run};
use rangedb_tests::net::available;
use rangedb_tests::net::small_disk::SmallDisk;
use rangedb_tests::process::{Home, Node};

/// Number of leader kills without `RANGEDB_SOAK_SECONDS`.
const KILLS: usize = 5;
const DISK_MIB: u64 = 512;

fn until() -> Instant {
    Instant::now() + Duration::from_secs(variable("RANGEDB_SOAK_SECONDS").unwrap_or(0))
}

fn started(homes: &[Home]) -> Vec<Option<Node>> {
    let nodes = start_all(homes);
    wait_until_replicated(homes);
    nodes
}

#[test]
fn a_rolling_restart_under_load_fails_no_request() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = cluster::homes(temp.path());
    let mut nodes = started(&homes);
    run(async {
        let load = Load::begin(&homes, 100).await;
        load.goes_on();
        let (until, mut restarts) = (until(), 0);
        while restarts < homes.len() || Instant::now() < until {
            let place = restarts % homes.len();
            let node = nodes[place].take().expect("it runs");
            node.signal("TERM");
            assert_eq!(node.wait().code(), Some(0), "{}", homes[place].log());
            nodes[place] = Some(homes[place].start());
            wait_until_replicated(&homes);
            restarts += 1;
            load.goes_on();
        }
        let seen = load.end().await;
        seen.assert_unharmed(&format!("{restarts} restarts"));
    });
}

#[test]
fn a_killed_leader_is_replaced() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = cluster::homes(temp.path());
    let mut nodes = started(&homes);
    run(async {
        let client = client(&homes).await;
        let (until, mut times) = (until(), Vec::new());
        while times.len() < KILLS || Instant::now() < until {
            wait_until_alike(&homes);
            let victim = leader(&homes, KEYS[times.len() % KEYS.len()]);
            for key in KEYS {
                client.put(key, "before").await.expect("it is written");
            }
            nodes[victim].take().expect("it runs").kill();
            let begun = Instant::now();
            let writes = KEYS.map(|key| client.put(key, "after"));
            for write in futures_util::future::join_all(writes).await {
                write.expect("the deadline is long");
            }
            times.push(begun.elapsed());
            nodes[victim] = Some(homes[victim].start());
        }
        times.sort_unstable();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        println!(
            "{} kills of a leader: every range written again after {median:?}, at worst {worst:?}",
            times.len()
        );
        assert!(worst < TIMEOUT, "{times:?}");
    });
}

fn is_full(home: &Home) -> bool {
    let status = cluster::status(home);
    let shards = status["shards"].as_array().expect("shards");
    shards.iter().any(|shard| shard["disk_full"] == true)
}

#[test]
fn a_node_whose_disk_is_full_harms_nobody_and_recovers() {
    let temp = tempfile::tempdir().expect("a folder");
    let Some(disk) = available(SmallDisk::new(&temp.path().join("disk"), DISK_MIB)) else {
        return;
    };
    let mut homes = cluster::homes(temp.path());
    for home in &mut homes {
        // Small memtables: they need room for tables soon.
        let memory = ["--memory".to_owned(), "64MiB".to_owned()];
        home.flags.extend(memory);
    }
    homes[0].folder = disk.folder().join("data");
    let mut nodes = started(&homes);
    run(async {
        let load = Load::begin(&homes, 4_000).await;
        load.goes_on();
        disk.fill();
        let begun = Instant::now();
        wait_for("a full disk", || is_full(&homes[0]).then_some(()));
        println!("full after {:?}", begun.elapsed());
        // Clients use the other nodes for this long while the disk is full.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let seen = load.end().await;
        println!(
            "on a full disk: {} writes, the worst second {}, the longest call {:?}, failed {:?}",
            seen.acknowledged.len(),
            seen.worst_second(),
            seen.slowest,
            seen.errors
        );
        disk.make_room();
        let begun = Instant::now();
        wait_for("room", || (!is_full(&homes[0])).then_some(()));
        println!("room is seen after {:?}", begun.elapsed());
        let load = Load::begin(&homes, 100).await;
        load.goes_on();
        let seen = load.end().await;
        assert!(
            seen.errors.is_empty(),
            "after room was made: {:?}",
            seen.errors
        );
    });
    println!("alike after {:?}", wait_until_alike(&homes));
    for node in nodes.iter_mut().flatten() {
        assert!(node.is_running());
    }
    // The nodes must end before their disk is unmounted.
    drop(nodes);
    drop(disk);
}

/// How long leaders must stay where they are.
const STAYS: Duration = Duration::from_secs(8);
/// The words in the log of a shard whose disk is slow beside the others.
const SLOW_DISK: &str = "writes of the log take much longer here";

/// How many ranges the node of a home leads, the system range included.
fn led_by(homes: &[Home], index: usize) -> Option<usize> {
    let id = cluster::status(&homes[index])["node"].as_u64();
    let other = &homes[(index + 1) % homes.len()];
    let ranges = cluster::ranges(other)?;
    Some(ranges.values().filter(|range| range.leader == id).count())
}

#[test]
fn a_node_whose_disk_is_slow_or_hangs_leads_nothing_soon() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = cluster::homes(temp.path());
    let mut nodes = started(&homes);
    run(async {
        let load = Load::begin(&homes, 100).await;
        load.goes_on();
        let slow = leader(&homes, KEYS[0]);
        let leads_nothing = |what: &str| {
            let begun = Instant::now();
            wait_for(what, || (led_by(&homes, slow)? == 0).then_some(()));
            begun.elapsed()
        };
        homes[slow].set_disk_fault("200ms");
        let gone = leads_nothing("other leaders than the slow node");
        load.goes_on();
        let until = Instant::now() + STAYS;
        while Instant::now() < until {
            assert_eq!(led_by(&homes, slow).unwrap_or(0), 0, "it keeps away");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let log = homes[slow].log();
        let says = |line: &str| line.contains(SLOW_DISK) && line.contains("hands leaderships over");
        assert!(log.lines().any(says), "it says why");
        let seen = load.end().await;
        println!(
            "a disk with writes of 200 ms: led nothing after {gone:?}, the worst second {}, the longest \
             call {:?}, failed {:?}",
            seen.worst_second(),
            seen.slowest,
            seen.errors
        );
        assert!(seen.errors.is_empty(), "{:?}", seen.errors);
        homes[slow].set_disk_fault("hang");
        let hangs = Instant::now();
        let load = Load::begin(&homes, 100).await;
        load.goes_on();
        let ended = nodes[slow].take().expect("it runs").wait();
        println!(
            "a disk that hangs: the process ended after {:?}",
            hangs.elapsed()
        );
        assert!(!ended.success(), "{ended}");
        let log = homes[slow].log();
        assert!(log.contains("a write of the log has not ended"), "{log}");
        homes[slow].set_disk_fault("");
        nodes[slow] = Some(homes[slow].start());
        wait_until_replicated(&homes);
        assert!(load.end().await.errors.is_empty());
    });
}

#[test]
fn leaders_stay_on_disks_that_hiccup_or_are_all_slow() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = cluster::homes(temp.path());
    let _nodes = started(&homes);
    cluster::hold_leaders(&homes);
    run(async {
        let load = Load::begin(&homes, 100).await;
        load.goes_on();
        // One slow write, or two.
        homes[0].set_disk_fault("400ms");
        tokio::time::sleep(Duration::from_millis(100)).await;
        homes[0].set_disk_fault("");
        tokio::time::sleep(STAYS).await;
        for home in &homes {
            home.set_disk_fault("100ms");
        }
        tokio::time::sleep(STAYS).await;
        let seen = load.end().await;
        assert!(seen.errors.is_empty(), "{:?}", seen.errors);
    });
    for home in &homes {
        let log = home.log();
        assert!(!log.contains(SLOW_DISK), "{log}");
    }
}

/// The leader and the term of each range.
fn leaders(homes: &[Home]) -> BTreeMap<u64, (Option<u64>, u64)> {
    let ranges = wait_for("the ranges", || homes.iter().find_map(cluster::ranges));
    let of = |(id, range): (u64, cluster::Range)| (id, (range.leader, range.term));
    ranges.into_iter().map(of).collect()
}

/// Has other nodes lead all ranges of a node.
fn empty_of_leaders(homes: &[Home], index: usize) {
    let id = cluster::status(&homes[index])["node"].as_u64();
    let to = cluster::status(&homes[(index + 1) % homes.len()])["node"].to_string();
    wait_for("a node that leads nothing", || {
        let led = leaders(homes).into_iter();
        let led: Vec<u64> = led.filter(|(_, at)| at.0 == id).map(|(id, _)| id).collect();
        for range in &led {
            let range = range.to_string();
            let order = ["range", "transfer-leader", &range, "--to", &to];
            // What is refused for now is ordered again.
            let _ = homes[index].cli(&[&order[..], &["--wait", "--timeout", "5s"]].concat());
        }
        led.is_empty().then_some(())
    });
}

#[test]
fn leaders_stay_when_a_disk_is_a_little_slow_or_only_that_of_a_follower_is() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = cluster::homes(temp.path());
    let mut nodes = started(&homes);
    cluster::hold_leaders(&homes);
    run(async {
        let load = Load::begin(&homes, 100).await;
        load.goes_on();
        let slow = leader(&homes, KEYS[0]);
        let before = leaders(&homes);
        homes[slow].set_disk_fault("20ms");
        tokio::time::sleep(STAYS).await;
        assert_eq!(
            leaders(&homes),
            before,
            "a disk that is late by 20 ms for ever"
        );
        homes[slow].set_disk_fault("");
        for home in &homes {
            assert!(!home.log().contains(SLOW_DISK), "{}", home.log());
        }
        empty_of_leaders(&homes, slow);
        cluster::hold_leaders(&homes);
        let before = leaders(&homes);
        homes[slow].set_disk_fault("200ms");
        tokio::time::sleep(STAYS).await;
        assert_eq!(leaders(&homes), before, "the disk of a follower is slow");
        let log = homes[slow].log();
        let mut lines = log.lines().filter(|line| line.contains(SLOW_DISK));
        let last = lines.next_back().expect("it says that its disk is slow");
        assert!(
            last.contains("no leadership that another shard could take"),
            "{last}"
        );
        homes[slow].set_disk_fault("");
        let seen = load.end().await;
        seen.assert_unharmed("a disk that is late by 20 ms, and a slow one of a follower");
    });
    assert!(nodes.iter_mut().flatten().all(Node::is_running));
}

#[test]
fn where_two_of_three_disks_are_slow_the_third_leads_and_nothing_moves_on() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = cluster::homes(temp.path());
    let _nodes = started(&homes);
    cluster::hold_leaders(&homes);
    run(async {
        let load = Load::begin(&homes, 100).await;
        load.goes_on();
        for home in &homes[..2] {
            home.set_disk_fault("200ms");
        }
        let fast = cluster::status(&homes[2])["node"].as_u64();
        wait_for("leaders on the fast disk", || {
            leaders(&homes)
                .values()
                .all(|(leader, _)| *leader == fast)
                .then_some(())
        });
        let before = leaders(&homes);
        tokio::time::sleep(STAYS).await;
        assert_eq!(leaders(&homes), before, "they stay there");
        let seen = load.end().await;
        assert!(seen.errors.is_empty(), "{:?}", seen.errors);
    });
}

#[test]
fn one_write_of_five_seconds_has_the_shard_step_down_and_harms_nobody() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = cluster::homes(temp.path());
    let mut nodes = started(&homes);
    cluster::hold_leaders(&homes);
    run(async {
        let load = Load::begin(&homes, 100).await;
        load.goes_on();
        let late = leader(&homes, KEYS[0]);
        let id = cluster::status(&homes[late])["node"].as_u64();
        homes[late].set_disk_fault("5500ms");
        // The load has begun a write by then.
        tokio::time::sleep(Duration::from_millis(300)).await;
        homes[late].set_disk_fault("");
        wait_for("a node that leads nothing", || {
            leaders(&homes)
                .values()
                .all(|(leader, _)| leader.is_some() && *leader != id)
                .then_some(())
        });
        wait_for("the reason", || {
            homes[late].log().contains("has taken 5 s").then_some(())
        });
        load.goes_on();
        let before = leaders(&homes);
        tokio::time::sleep(STAYS).await;
        assert_eq!(leaders(&homes), before, "nothing else moves");
        let seen = load.end().await;
        println!(
            "one write of 5.5 s: the worst second {}, the longest call {:?}, failed {:?}",
            seen.worst_second(),
            seen.slowest,
            seen.errors
        );
        assert!(seen.errors.is_empty(), "{:?}", seen.errors);
    });
    for (node, home) in nodes.iter_mut().flatten().zip(&homes) {
        assert!(node.is_running(), "{}", home.log());
    }
    println!("alike after {:?}", wait_until_alike(&homes));
}

#[test]
fn a_node_whose_log_cannot_be_written_ends_with_a_sentence_and_loses_nothing() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = cluster::homes(temp.path());
    let mut nodes = started(&homes);
    run(async {
        let load = Load::begin(&homes, 100).await;
        load.goes_on();
        let broken = leader(&homes, KEYS[0]);
        homes[broken].set_disk_fault("fail");
        let ended = nodes[broken].take().expect("it runs").wait();
        assert!(!ended.success(), "{ended}");
        let log = homes[broken].log();
        let last = log
            .lines()
            .rfind(|line| line.contains("ERROR"))
            .unwrap_or_default();
        println!("EIO of log writes: {last}");
        assert!(last.contains("nput/output error"), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        load.goes_on();
        homes[broken].set_disk_fault("");
        nodes[broken] = Some(homes[broken].start());
        wait_until_replicated(&homes);
        load.goes_on();
        // The end finds every write that was acknowledged.
        let seen = load.end().await;
        assert!(seen.errors.is_empty(), "{:?}", seen.errors);
    });
    println!("alike after {:?}", wait_until_alike(&homes));
}
