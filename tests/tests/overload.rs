//! One range never takes the others along: two ranges on one shard, one of which is flooded with writes,
//! and a range on a full disk.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rangedb_protocol::{Batch, Change, ErrorCode, Reply, RequestBody, Session, frame};
use rangedb_tests::cluster::{ranges, wait_for};
use rangedb_tests::net::available;
use rangedb_tests::net::small_disk::SmallDisk;
use rangedb_tests::process::{Home, succeeded};
use rangedb_tests::raw::{RawClient, request};

/// Connections that flood the range of small keys.
const FLOODS: u64 = 8;
/// Puts in flight on each, and the length of their values: together more than a range's queue takes.
const FLOOD_DEPTH: u64 = 128;
const FLOOD_VALUE_LEN: usize = 64 << 10;
/// Puts to the other range while the flood is refused.
const OTHER_PUTS: u64 = 100;

/// A client without retries.
struct Writer {
    raw: RawClient,
    session: Session,
}

impl Writer {
    fn new(home: &Home, client: u128) -> Writer {
        let mut raw = RawClient::connect(&home.listen).expect("it listens");
        let get = request(0, RequestBody::Get { key: b"none" });
        raw.stream.write_all(&get).expect("it is sent");
        let (_, bytes) = raw.receive().expect("a reply");
        let found = frame::decode(&bytes).expect("a frame").expect("whole");
        let (_, now) = Reply::decode(found.kind, found.body).expect("a reply");
        let session = Session {
            client,
            sequence: 0,
            lowest_unanswered: 1,
            first_tried: now,
        };
        Writer { raw, session }
    }

    fn send(&mut self, key: &[u8], value: &[u8]) {
        self.session.sequence += 1;
        let body = RequestBody::Batch {
            batch: Batch::of(key, Change::Put(value)),
            session: self.session,
        };
        let bytes = request(self.session.sequence, body);
        self.raw.stream.write_all(&bytes).expect("it is sent");
    }

    /// The next reply: after what time to try again, if the write was refused as overloaded.
    fn receive(&mut self) -> Result<(), u32> {
        let (_, bytes) = self.raw.receive().expect("a reply");
        let found = frame::decode(&bytes).expect("a frame").expect("whole");
        match Reply::decode(found.kind, found.body).expect("a reply").0 {
            Reply::Written { .. } => Ok(()),
            Reply::Error(error) if error.code == Ok(ErrorCode::Overloaded) => {
                Err(error.retry_after_ms)
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Writes to the range of small keys until it is told to stop; counts what is refused.
fn flood(home: &Home, client: u64, stop: &AtomicBool, refused: &AtomicU64) {
    let mut writer = Writer::new(home, u128::from(client));
    let value = vec![b'v'; FLOOD_VALUE_LEN];
    while !stop.load(Ordering::SeqCst) {
        for number in 0..FLOOD_DEPTH {
            writer.send(format!("a{client}-{number}").as_bytes(), &value);
        }
        let replies = (0..FLOOD_DEPTH).filter_map(|_| writer.receive().err());
        let pauses: Vec<u32> = replies.collect();
        assert!(pauses.iter().all(|pause| *pause > 0), "{pauses:?}");
        refused.fetch_add(pauses.len() as u64, Ordering::SeqCst);
        writer.session.lowest_unanswered = writer.session.sequence + 1;
        let pause = pauses.into_iter().max().unwrap_or(0);
        std::thread::sleep(Duration::from_millis(pause.into()));
    }
}

#[test]
fn a_range_that_is_flooded_is_refused_and_the_other_range_of_its_shard_is_not() {
    let temp = tempfile::tempdir().expect("a folder");
    let flags = ["--shards", "1", "--split-at", "m", "--memory", "512MiB"];
    let home = Home::new(temp.path(), &flags);
    let mut node = home.start();
    let overloaded = || home.metric("rangedb_range_overloaded_total");
    assert_eq!(overloaded(), 0.0);
    let (stop, refused) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for client in 1..=FLOODS {
            let (home, stop, refused) = (&home, &stop, &refused);
            scope.spawn(move || flood(home, client, stop, refused));
        }
        wait_for("refusals", || {
            (refused.load(Ordering::SeqCst) > 0).then_some(())
        });
        let mut other = Writer::new(&home, 99);
        let mut longest = Duration::ZERO;
        for _ in 0..OTHER_PUTS {
            let began = Instant::now();
            other.send(b"z", b"value");
            let result = other.receive();
            other.session.lowest_unanswered = other.session.sequence + 1;
            longest = longest.max(began.elapsed());
            assert_eq!(result, Ok(()), "the other range is not overloaded");
        }
        stop.store(true, Ordering::SeqCst);
        println!("the longest of {OTHER_PUTS} puts beside the flood: {longest:?}");
    });
    println!("of the flood were refused: {refused:?}");
    assert_eq!(overloaded(), refused.load(Ordering::SeqCst) as f64);
    let log = home.log();
    let lines = log.lines().filter(|line| line.contains("range_overloaded"));
    let lines: Vec<&str> = lines.collect();
    assert!((1..=2).contains(&lines.len()), "once a minute: {lines:?}");
    assert!(lines[0].contains("range 2 "), "{lines:?}");
    // When it has drained, it goes on.
    let mut flooded = Writer::new(&home, 100);
    flooded.send(b"a", b"value");
    assert_eq!(flooded.receive(), Ok(()));
    assert!(node.is_running());
}

/// A disk of 512 MiB and the place of a node on it with one shard; nothing where such a disk cannot be made.
fn on_small_disk(temp: &Path, more: &[&str]) -> Option<(SmallDisk, Home)> {
    let disk = available(SmallDisk::new(&temp.join("disk"), 512))?;
    let arguments = [&["--shards", "1", "--memory", "64MiB"], more].concat();
    let mut home = Home::new(temp, &arguments);
    home.folder = disk.folder().join("data");
    Some((disk, home))
}

/// A file of 1 MiB.
fn megabyte(temp: &Path) -> String {
    let file = temp.join("megabyte");
    std::fs::write(&file, vec![b'v'; 1 << 20]).expect("it is written");
    file.display().to_string()
}

#[test]
fn on_a_full_disk_ranges_are_merged_and_split_and_a_restart_finds_what_they_were() {
    let temp = tempfile::tempdir().expect("a folder");
    let Some((disk, home)) = on_small_disk(temp.path(), &["--split-at", "m,t"]) else {
        return;
    };
    let node = home.start();
    wait_for("reports of all ranges", || {
        ranges(&home).filter(|all| all.len() == 4)
    });
    let keys = ["a", "n", "u"];
    for key in keys {
        home.put(key, "value");
    }
    disk.fill();
    // The second merge takes over a range of which nothing was ever flushed, and the right neighbour of a
    // range that has taken over one.
    for _ in 0..2 {
        let begun = Instant::now();
        succeeded(&home.cli(&["range", "merge", "2", "--timeout", "30s"]));
        assert!(begun.elapsed() < Duration::from_secs(5), "{begun:?}");
    }
    succeeded(&home.cli(&["range", "split", "2", "--at", "g", "--timeout", "10s"]));
    let all_there = |node: &str| {
        for key in keys {
            let found = home.cli(&["get", key]);
            assert!(found.status.success(), "{node}, {key}: {found:?}");
            let deleted = home.cli(&["delete", &format!("{key}-absent")]);
            assert!(deleted.status.success(), "{node}, {key}: {deleted:?}");
        }
        let here = ranges(&home).map(|all| all.len());
        assert_eq!(
            here,
            Some(3),
            "{node}: the system's, from the start, and from g"
        );
    };
    all_there("on the full disk");
    node.kill();
    let node = home.start();
    wait_for("reports of all ranges", || {
        ranges(&home).filter(|all| all.len() == 3)
    });
    all_there("after a restart on the full disk");
    disk.make_room();
    wait_for("a put with room", || {
        let put = home.cli(&["put", "b", "value", "--timeout", "5s"]);
        put.status.success().then_some(())
    });
    node.kill();
    let mut node = home.start();
    wait_for("reports of all ranges", || {
        ranges(&home).filter(|all| all.len() == 3)
    });
    all_there("after a restart with room");
    assert!(node.is_running(), "{}", home.log());
}

#[test]
fn puts_leave_memory_for_deletes_splits_and_merges_while_a_flush_makes_no_progress() {
    let temp = tempfile::tempdir().expect("a folder");
    let Some((disk, home)) = on_small_disk(temp.path(), &[]) else {
        return;
    };
    let mut node = home.start();
    let megabyte = megabyte(temp.path());
    let put = |key: &str| home.cli(&["put", key, "--file", &megabyte, "--timeout", "3s"]);
    assert!(home.cli(&["put", "kept", "value"]).status.success());
    // Memory is as full as puts may make it, and the flusher does not find out that the disk is full.
    home.set_disk_fault("tables=hang");
    for number in 0..3 {
        assert!(put(&format!("first-{number}")).status.success());
    }
    // By then the flush of the first memtable makes no progress.
    std::thread::sleep(Duration::from_secs(4));
    let mut accepted = 0;
    wait_for("puts that wait for a flush", || {
        let is_there = put(&format!("k{accepted}")).status.success();
        accepted += u64::from(is_there);
        (!is_there).then_some(())
    });
    println!("{accepted} puts of 1 MiB fit beside the reserve");
    disk.fill();
    let refused = wait_for("a full disk", || {
        let output = put("k0");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.contains("disk is full").then_some(said)
    });
    println!("{refused}");
    let order = |arguments: &[&str]| {
        let done = home.cli(arguments);
        assert!(done.status.success(), "{arguments:?}: {done:?}");
    };
    for number in 0..5 {
        order(&["delete", &format!("k{number}")]);
    }
    order(&["range", "split", "2", "--at", "k5", "--timeout", "10s"]);
    wait_for("reports of all ranges", || {
        ranges(&home).filter(|all| all.len() == 3)
    });
    order(&["range", "merge", "2", "--timeout", "30s"]);
    for number in 0..200 {
        order(&["delete", &format!("absent-{number}")]);
    }
    let still = put("k0");
    let said = String::from_utf8_lossy(&still.stderr).into_owned();
    assert!(said.contains("disk is full"), "{said}");
    disk.make_room();
    home.set_disk_fault("");
    wait_for("room", || put("k7").status.success().then_some(()));
    for (key, is_there) in [("kept", true), ("k0", false), ("k7", true)] {
        assert_eq!(home.cli(&["get", key]).status.success(), is_there, "{key}");
    }
    let log = home.log();
    let full = log.lines().filter(|line| line.contains("\"disk_full\""));
    assert_eq!(
        full.filter(|line| line.contains("rows in memory need"))
            .count(),
        1,
        "{log}"
    );
    assert!(node.is_running(), "{log}");
}

#[test]
fn on_a_full_disk_puts_are_refused_and_deletes_and_splits_go_on() {
    let temp = tempfile::tempdir().expect("a folder");
    let Some((disk, home)) = on_small_disk(temp.path(), &[]) else {
        return;
    };
    let mut node = home.start();
    let megabyte = megabyte(temp.path());
    let put = |key: &str| home.cli(&["put", key, "--file", &megabyte]);
    for number in 0..10 {
        assert!(put(&format!("k{number}")).status.success());
    }
    disk.fill();
    // Until the shard looks at the disk, or the next file of the log finds no room.
    let refused = wait_for("a full disk", || {
        let output = put("k0");
        (!output.status.success()).then_some(output)
    });
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("disk is full"), "{said}");
    for number in 5..10 {
        succeeded(&home.cli(&["delete", &format!("k{number}")]));
    }
    assert!(!put("k0").status.success(), "puts are still refused");
    succeeded(&home.cli(&["range", "split", "2", "--at", "k5", "--timeout", "10s"]));
    let all = wait_for("reports of all ranges", || ranges(&home));
    assert_eq!(all.len(), 3, "{all:?}");
    disk.make_room();
    wait_for("room", || put("k7").status.success().then_some(()));
    for (key, is_there) in [("k1", true), ("k5", false), ("k7", true), ("k9", false)] {
        assert_eq!(home.cli(&["get", key]).status.success(), is_there, "{key}");
    }
    assert!(node.is_running(), "{}", home.log());
}
