//! The real tables are tested in processes that end at any step. A process is killed at a random
//! moment or in the middle of a write, or runs out of disk space for a while, and the rules of
//! garbage collection change meanwhile. Afterwards the tables hold everything whose flush was
//! installed, and only whole memtables, and the next process goes on from there.
//!
//! A run is a list of inserts that is derived from a seed. Each of its processes opens the tables,
//! compares them with the list, inserts what a replay of the log would insert, and goes on.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::tests::{Random, table_options};
use super::*;
use crate::types::{DataId, KeyRange, ReplicaId};

const DATA_ID: DataId = DataId(3);
const SEEDS: u64 = 3;
/// Processes for each seed.
const LIVES: u64 = 16;
/// Inserts after which a process ends by itself.
const INSERTS_OF_LIFE: u64 = 4_000;
/// Environment variables for a process of a run: its seed and its folder.
const SEED: &str = "RANGEDB_TABLES_SEED";
const FOLDER: &str = "RANGEDB_TABLES_FOLDER";
/// Environment variables for what the processes before reported: the last version that was flushed,
/// and the threshold of garbage collection.
const FLUSHED: &str = "RANGEDB_TABLES_FLUSHED";
const COLLECTED: &str = "RANGEDB_TABLES_COLLECTED";

/// The insert with this version in the run of a seed.
fn insert(seed: u64, version: u64) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut random = Random::new(seed << 32 ^ version.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    random.below(2);
    let mut key = Vec::new();
    let user = format!("k{:03}", random.below(150));
    keys::user_key(DATA_ID, user.as_bytes(), &mut key);
    let len = random.below(300) as usize;
    let value = (random.below(6) > 0).then(|| vec![version as u8; len]);
    (key, value)
}

/// The threshold of garbage collection that is set before a version is inserted, if one is.
fn threshold(seed: u64, version: u64) -> Option<u64> {
    let kept = 20 + Random::new(seed ^ version).below(400);
    (version.is_multiple_of(97)).then(|| version.saturating_sub(kept))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Checks that the tables hold exactly the inserts up to some version, and returns that version.
fn check(lsm: &Lsm<LsmTables>, seed: u64, flushed: u64, collected: u64) -> u64 {
    let rows = super::tests::rows_in_tables(&lsm.store);
    let found = rows.iter().map(|row| row.version.0).max();
    let mut last = found.unwrap_or(0).max(flushed);
    while let Err(what) = compare(lsm, seed, last, collected) {
        // The last inserts may have been tombstones, which a compaction has dropped.
        last += 1;
        let is_gone = last <= collected && insert(seed, last).1.is_none();
        assert!(is_gone, "{what}");
    }
    last
}

/// Compares the rows in the tables with the inserts up to a version.
fn compare(lsm: &Lsm<LsmTables>, seed: u64, last: u64, collected: u64) -> Result<(), String> {
    let mut model: BTreeMap<Vec<u8>, BTreeMap<u64, Option<Vec<u8>>>> = BTreeMap::new();
    for version in 1..=last {
        let (key, value) = insert(seed, version);
        model.entry(key).or_default().insert(version, value);
    }
    let times = [u64::MAX >> 1, last, last.midpoint(collected), collected];
    for at in times.into_iter().filter(|at| *at >= collected) {
        for (key, versions) in &model {
            let newest = versions.range(..=at).next_back();
            let newest = newest.and_then(|(version, value)| Some((*version, value.clone()?)));
            let found = lsm.get(key, Timestamp(at)).expect("readable");
            let found = found.and_then(|found| Some((found.version().0, found.value()?.to_vec())));
            if found != newest {
                return Err(format!(
                    "{key:?} at {at}, of {last} inserts: {found:?}, not {newest:?}"
                ));
            }
        }
    }
    Ok(())
}

/// The body of one process of a run. Without the environment variables it does nothing.
#[test]
fn a_process_with_tables_that_may_end_at_any_step() {
    let (Some(seed), Some(folder)) = (number(SEED), std::env::var_os(FOLDER)) else {
        return;
    };
    let mut collected = number(COLLECTED).unwrap_or(0);
    // The parent may no longer read the output.
    let tell = |what: &str, version: u64| {
        let _ = writeln!(std::io::stdout(), "\n{what} {version}");
    };
    let Ok(tables) = LsmTables::open(table_options(Path::new(&folder))) else {
        // Opening the tables writes files, too, and fails on a full disk.
        return tell("full", 0);
    };
    let mut lsm = Lsm::new(tables, 0);
    let last = check(&lsm, seed, number(FLUSHED).unwrap_or(0), collected);
    tell("flushed", last);
    let mut ends: BTreeMap<MemtableId, u64> = BTreeMap::new();
    for version in last + 1..=last + INSERTS_OF_LIFE {
        if let Some(threshold) = threshold(seed, version) {
            collected = collected.max(threshold);
            tell("collected", collected);
            let live = LiveData {
                replica: ReplicaId(1),
                data_id: DATA_ID,
                keys: KeyRange::all(),
                threshold: Timestamp(collected),
            };
            lsm.set_gc(GcRules { live: vec![live] });
        }
        if version.is_multiple_of(1_009) {
            lsm.collect_garbage();
        }
        let (key, value) = insert(seed, version);
        let len = key.len() + value.as_ref().map_or(0, Vec::len);
        if !lsm.has_room(1, len) {
            let waits_since = Instant::now();
            while lsm.pressure().stopped {
                assert!(waits_since.elapsed() < Duration::from_secs(60), "no flush");
                poll(&mut lsm, &ends, tell);
                if lsm.pressure().disk_full {
                    tell("full", version);
                    make_room();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            ends.insert(lsm.freeze(), version - 1);
        }
        lsm.insert(&key, Timestamp(version), value.as_deref());
        poll(&mut lsm, &ends, tell);
    }
}

fn poll(lsm: &mut Lsm<LsmTables>, ends: &BTreeMap<MemtableId, u64>, tell: impl Fn(&str, u64)) {
    if let Some(installed) = lsm.poll().expect("writes are tried again")
        && let Some(version) = ends.get(&installed)
    {
        tell("flushed", *version);
    }
}

/// Lifts the limit on the size of this process's files.
fn make_room() {
    let process = std::process::id().to_string();
    let raised = Command::new("prlimit")
        .args(["--pid", &process, "--fsize=unlimited:"])
        .status();
    assert!(raised.is_ok_and(|status| status.success()), "no room");
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// After all inserts.
    ByItself,
    /// Killed after this many milliseconds.
    Killed(u64),
    /// After all inserts. After some of them files may not grow beyond this many bytes, as on a
    /// full disk, until the process is stuck and lifts the limit.
    NoRoom(u64),
    /// Killed at the first write beyond this many bytes of a file.
    KilledAtWrite(u64),
}

fn draw(random: &mut Random) -> End {
    match random.below(7) {
        0 => End::ByItself,
        1 | 2 => End::Killed(5 + random.below(150)),
        3 | 4 => End::NoRoom(64 + random.below(48 << 10)),
        _ => End::KilledAtWrite(64 + random.below(48 << 10)),
    }
}

/// The command that runs only the test above in a process of this test binary, with a limit on the
/// size of files if there is one.
fn life(end: End) -> Command {
    let me = std::env::current_exe().expect("a test is a file");
    let mut command = match end {
        End::ByItself | End::Killed(_) => Command::new(me),
        End::NoRoom(bytes) | End::KilledAtWrite(bytes) => {
            let mut limited = Command::new("env");
            if matches!(end, End::NoRoom(_)) {
                limited.arg("--ignore-signal=XFSZ");
            }
            limited.arg("prlimit").arg(format!("--fsize={bytes}:"));
            limited.args(["--core=0"]).arg(me);
            limited
        }
    };
    let test = "lsm::crash_tests::a_process_with_tables_that_may_end_at_any_step";
    command.args(["--exact", test, "--nocapture"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(Stdio::piped());
    command
}

#[test]
fn what_was_flushed_outlives_processes_that_end_at_any_step() {
    let has_tools = Command::new("env")
        .args(["--ignore-signal=XFSZ", "prlimit", "--fsize=64", "true"])
        .status();
    if !has_tools.is_ok_and(|status| status.success()) {
        println!("skipped: env --ignore-signal and prlimit are not there");
        return;
    }
    let mut ended: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 1..=SEEDS {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut random = Random::new(seed);
        let (mut flushed, mut collected) = (0, 0);
        for number in 0..LIVES {
            // The last process is not disturbed.
            let end = if number + 1 == LIVES {
                End::ByItself
            } else {
                draw(&mut random)
            };
            let mut process = life(end)
                .env(SEED, seed.to_string())
                .env(FOLDER, folder.path())
                .env(FLUSHED, flushed.to_string())
                .env(COLLECTED, collected.to_string())
                .spawn()
                .expect("it starts");
            let output = process.stdout.take().expect("it is piped");
            let reader = std::thread::spawn(move || {
                let lines = BufReader::new(output).lines();
                lines.map_while(Result::ok).collect::<Vec<String>>()
            });
            if let End::Killed(millis) = end {
                std::thread::sleep(Duration::from_millis(millis));
                // The process may have ended already.
                let _ = process.kill();
            }
            let lines = reader.join().expect("it is read");
            let complaint = process.wait_with_output().expect("it ends").stderr;
            let complaint = String::from_utf8_lossy(&complaint);
            assert!(
                !complaint.contains("panicked"),
                "seed {seed}: {end:?}: {complaint}"
            );
            for line in &lines {
                match line
                    .split_once(' ')
                    .map(|(what, n)| (what, n.parse::<u64>()))
                {
                    Some(("flushed", Ok(version))) => flushed = flushed.max(version),
                    Some(("collected", Ok(version))) => collected = collected.max(version),
                    Some(("full", Ok(_))) => *ended.entry("full").or_default() += 1,
                    _ => {}
                }
            }
            let how = match end {
                End::ByItself => "by itself",
                End::Killed(_) => "killed",
                End::NoRoom(_) => "no room",
                End::KilledAtWrite(_) => "killed at a write",
            };
            *ended.entry(how).or_default() += 1;
        }
        assert!(
            flushed > INSERTS_OF_LIFE / 2,
            "seed {seed}: {flushed} are flushed"
        );
    }
    println!("{ended:?}");
    assert!(
        ended.get("full").is_some_and(|count| *count > 0),
        "{ended:?}"
    );
}
