//! Rounds of random damage: three nodes under load, of which one loses a random part of its folder, or
//! has it put back from an older copy, while it is stopped.
//!
//! `RANGEDB_ROUNDS` sets how many rounds, `RANGEDB_SEED` the first one's seed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rangedb_client::{Client, ClientOptions};
use rangedb_tests::cluster::{
    Caller, homes_of, nodes, ranges, start_all, variable, wait_for, wait_until_alike,
};
use rangedb_tests::process::{Home, Node};

use crate::{copy, files};

const ROUNDS: u64 = 3;
/// Keys of the load, in all ranges.
const KEYS: u64 = 30;
/// A damaged node that serves gets this long to be whole again before it is replaced by hand.
const HEALS_WITHIN: Duration = Duration::from_secs(20);

fn key(number: u64) -> String {
    let range = ["a", "d", "z"][(number % 3) as usize];
    format!("{range}-{}", number % KEYS)
}

/// Of each key: the last number that was acknowledged, and the last that may have been written.
type Written = BTreeMap<String, (u64, u64)>;

/// A client that writes rising numbers.
struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<Mutex<Written>>,
    thread: JoinHandle<()>,
}

impl Load {
    fn start(addresses: Vec<String>, from: &Written) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(Mutex::new(from.clone()));
        let (stopped, to) = (stop.clone(), written.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(write(addresses, &stopped, &to));
        });
        Load {
            stop,
            written,
            thread,
        }
    }

    fn stop(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load ends");
        let written = self.written.lock().expect("not poisoned");
        written.clone()
    }
}

async fn write(addresses: Vec<String>, stop: &AtomicBool, to: &Mutex<Written>) {
    let options = ClientOptions::new(addresses).timeout(Duration::from_secs(2));
    let client = Client::connect(options).await.expect("a client");
    let last = |written: &Written| written.values().map(|(_, last)| *last).max();
    let mut number = last(&to.lock().expect("not poisoned")).unwrap_or(0);
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let key = key(number);
        let note = |is_acknowledged: bool| {
            let mut written = to.lock().expect("not poisoned");
            let entry = written.entry(key.clone()).or_default();
            entry.1 = number;
            if is_acknowledged {
                entry.0 = number;
            }
        };
        note(false);
        if client.put(&key, number.to_string()).await.is_ok() {
            note(true);
        }
    }
}

/// Every key has its acknowledged number or one that was tried later.
fn check(homes: &[Home], acknowledged: &Written, tried: &Written) {
    let caller = Caller::new(homes);
    for (key, (least, _)) in acknowledged {
        let most = tried.get(key).map_or(*least, |(_, most)| *most);
        let found = wait_for("an answer", || {
            let got = caller.cli(&["get", key, "--timeout", "2s"]);
            match got.status.code() {
                Some(0) => String::from_utf8_lossy(&got.stdout)
                    .trim()
                    .parse::<u64>()
                    .ok(),
                Some(1) => Some(0),
                _ => None,
            }
        });
        assert!(
            (*least..=most).contains(&found),
            "{key}: {found}, but {least} was acknowledged and {most} tried last"
        );
    }
}

/// A damage to a part of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Remove,
    Empty,
    Truncate(u64),
    SetBack,
}

/// A part of a folder and its damage.
fn draw(random: &mut StdRng, folder: &Path) -> (PathBuf, Action) {
    let folders = [
        "",
        "shard-0",
        "shard-1",
        "shard-0/wal",
        "shard-1/wal",
        "shard-0/tables",
    ];
    if random.random_bool(0.5) {
        let part = folders.choose(random).expect("there are some");
        let actions = [Action::Remove, Action::Empty, Action::SetBack];
        let action = *actions.choose(random).expect("there are some");
        return (part.into(), action);
    }
    let mut files = files(folder);
    let is_probe = |file: &Path| file.to_string_lossy().contains(".rangedb-probe-");
    files.retain(|file| !file.ends_with("LOCK") && !is_probe(file));
    let file = files.choose(random).expect("there are some").clone();
    let actions = [
        Action::Remove,
        Action::Truncate(0),
        Action::Truncate(2),
        Action::SetBack,
    ];
    (file, *actions.choose(random).expect("there are some"))
}

fn remove(path: &Path) {
    let removed = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    removed.expect("removed");
}

fn damage(folder: &Path, old: &Path, part: &Path, action: Action) {
    let (at, from) = (folder.join(part), old.join(part));
    match action {
        Action::Remove => remove(&at),
        Action::Empty => {
            for entry in fs::read_dir(&at).expect("it is listed") {
                remove(&entry.expect("an entry").path());
            }
        }
        Action::Truncate(part) => {
            let len = fs::metadata(&at).expect("is there").len();
            let file = fs::OpenOptions::new().write(true).open(&at);
            let len = len.checked_div(part).unwrap_or(0);
            file.and_then(|file| file.set_len(len)).expect("cut");
        }
        Action::SetBack => {
            remove(&at);
            // Files that were missing in the copy are removed.
            if from.exists() {
                copy(&from, &at);
            }
        }
    }
}

/// Whether every range has three live voters that have everything, one of them on each of these.
fn are_whole(homes: &[Home]) -> bool {
    let (Some(known), Some(ranges)) = (nodes(&homes[0]), ranges(&homes[0])) else {
        return false;
    };
    let at = |home: &Home| {
        let mut alive = known.iter().filter(|(_, (state, _))| state == "alive");
        alive
            .find(|(_, (_, address))| *address == home.listen)
            .map(|(id, _)| *id)
    };
    let Some(ids) = homes.iter().map(at).collect::<Option<Vec<u64>>>() else {
        return false;
    };
    ranges.values().all(|range| {
        let voters = ids.iter().all(|id| range.voters.contains(id));
        voters && range.leader.is_some() && range.lag == Some(0)
    })
}

fn is_whole_within(homes: &[Home], timeout: Duration) -> bool {
    let until = Instant::now() + timeout;
    while Instant::now() < until {
        if are_whole(homes) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    false
}

/// The end of a node's complaint.
fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

fn round(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes_of(temp.path(), "2");
    let listen: Vec<String> = homes.iter().map(|home| home.listen.clone()).collect();
    let mut running = start_all(&homes);
    assert!(is_whole_within(&homes, Duration::from_secs(60)), "it forms");
    let one = random.random_range(0..homes.len());

    // Rows that all nodes have, then rows that a majority has; the copy is made in between.
    let load = Load::start(listen.clone(), &Written::new());
    std::thread::sleep(Duration::from_millis(random.random_range(500..1500)));
    let on_all = load.stop();
    wait_until_alike(&homes);
    let load = Load::start(listen.clone(), &on_all);
    let old = temp.path().join("old");
    if let Some(node) = &running[one] {
        node.signal("STOP");
        copy(&homes[one].folder, &old);
        node.signal("CONT");
    }
    std::thread::sleep(Duration::from_millis(random.random_range(500..2000)));
    if random.random_bool(0.5) {
        // So that the copy is from an earlier start than the last one.
        running[one].take().into_iter().for_each(Node::kill);
        running[one] = Some(homes[one].start());
    }
    // Some rows are written before the nodes stop.
    std::thread::sleep(Duration::from_millis(500));
    let all_stop = random.random_bool(0.5);
    for (at, node) in running.iter_mut().enumerate() {
        if at == one || all_stop {
            node.take().into_iter().for_each(Node::kill);
        }
    }

    let (part, action) = draw(&mut random, &homes[one].folder);
    println!("seed {seed}: node {one} of 3, {action:?} {part:?}, all stopped: {all_stop}");
    damage(&homes[one].folder, &old, &part, action);
    let alone = all_stop && random.random_bool(0.5);
    let others = || (0..homes.len()).filter(|at| *at != one);
    let start_others = |running: &mut Vec<Option<Node>>| {
        for at in others().filter(|_| all_stop) {
            running[at] = Some(homes[at].start());
        }
    };
    if !alone {
        start_others(&mut running);
    }
    // An empty folder waits for the others, since it is a new node.
    let is_new = files(&homes[one].folder).is_empty();
    if alone && is_new {
        start_others(&mut running);
    }
    let started = homes[one].try_start();
    if alone && !is_new {
        std::thread::sleep(Duration::from_millis(random.random_range(0..2000)));
        start_others(&mut running);
    }
    let refused = started.as_ref().err().cloned();
    running[one] = started.ok();
    if let Some(complaint) = &refused {
        println!("refused: {}", last_line(complaint));
        let names_the_help = ["--data-dir", "empty data folder"]
            .iter()
            .any(|words| complaint.contains(words));
        assert!(names_the_help, "{complaint}");
    }
    let healed = refused.is_none() && is_whole_within(&homes, HEALS_WITHIN);
    let tried = load.stop();
    let alive: Vec<Home> = others().map(|at| homes[at].clone()).collect();
    // Whatever a majority of nodes that kept their disks has acknowledged. A node that was refused
    // or is new has not voted, so the two others had to agree.
    let kept = if refused.is_some() || is_new {
        &tried
    } else {
        &on_all
    };
    check(&alive, kept, &tried);
    if !healed {
        println!("not whole by itself: it is started with an empty folder");
        running[one].take().into_iter().for_each(Node::kill);
        fs::remove_dir_all(&homes[one].folder).expect("removed");
        running[one] = Some(homes[one].start());
        assert!(
            is_whole_within(&homes, Duration::from_secs(60)),
            "it comes back"
        );
        check(&homes, kept, &tried);
    }
}

#[test]
fn random_damage_loses_nothing_that_a_majority_kept() {
    let first = variable("RANGEDB_SEED").unwrap_or(1);
    let rounds = variable("RANGEDB_ROUNDS").unwrap_or(ROUNDS);
    for seed in first..first + rounds {
        round(seed);
    }
}
