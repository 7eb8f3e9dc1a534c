//! The history on real files: what is kept, what goes, and what becomes of damage.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::record::{HOUR_MS, MINUTE_MS, raise};
use super::store::{Kind, Store};
use super::*;

const NODE: u64 = 3;
/// A time at the beginning of an hour.
const BEGIN: u64 = 1_700_002_800_000 / HOUR_MS * HOUR_MS;

fn place(data_dir: &Path) -> Place {
    Place {
        data_dir: data_dir.to_owned(),
        node: NODE,
    }
}

fn work(gets: u64) -> Work {
    let mut work = Work::default();
    raise(&mut work.operations, "get", gets);
    work.latency.insert(100, gets);
    work
}

fn tell(recorder: &mut Recorder, step: Step) -> NodeHistory {
    let query = Query {
        step,
        ..Query::default()
    };
    recorder.tell(&query).expect("it is told")
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("listed") {
        let path = entry.expect("listed").path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

fn disk_use(folder: &Path) -> u64 {
    let blocks = |path: &PathBuf| fs::metadata(path).expect("is there").blocks();
    files(folder).iter().map(blocks).sum::<u64>() * 512
}

/// How many databases were put aside in a data folder.
fn aside(data_dir: &Path) -> usize {
    let entries = fs::read_dir(data_dir).expect("listed");
    let names = entries.map(|entry| entry.expect("listed").file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("history.damaged-"))
        .count()
}

#[test]
fn minutes_hours_and_events_survive_a_restart() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let (killed, restarted) = (temp.path().join("killed"), temp.path().join("restarted"));
    let mut recorder = Recorder::new(place(&killed));
    for minute in 0..61 {
        recorder.minute(BEGIN + minute * MINUTE_MS, &work(minute + 1));
    }
    recorder.event(BEGIN + 7, &Event::new("stall", "shard 0 stood still"));
    // What lies on the disk now is what a process leaves that is killed.
    copy(&killed, &restarted);
    let mut recorder = Recorder::new(place(&restarted));
    recorder.minute(BEGIN + 61 * MINUTE_MS, &work(10));
    let told = tell(&mut recorder, Step::Minute);
    assert_eq!((told.node, told.minutes.len()), (NODE, 62));
    assert_eq!(
        (told.minutes[4].t, told.minutes[4].ops),
        (BEGIN + 4 * MINUTE_MS, 5)
    );
    assert_eq!(told.minutes[4].p99_us, 100);
    let [event] = told.events.as_slice() else {
        panic!("{:?}", told.events);
    };
    assert_eq!((event.t, event.node), (BEGIN + 7, NODE));
    assert_eq!(
        (&*event.kind, &*event.text),
        ("stall", "shard 0 stood still")
    );
    let told = tell(&mut recorder, Step::Hour);
    let hours: Vec<_> = told.hours.iter().map(|hour| (hour.t, hour.ops)).collect();
    assert_eq!(hours, [(BEGIN, 60 * 61 / 2), (BEGIN + HOUR_MS, 61 + 10)]);
    let query = Query {
        from_ms: Some(BEGIN + MINUTE_MS),
        to_ms: Some(BEGIN + 2 * MINUTE_MS),
        step: Step::Minute,
        histograms: false,
    };
    let told = recorder.tell(&query).expect("it is told");
    assert_eq!((told.minutes.len(), told.events.len()), (2, 0));
    assert!(
        told.minutes
            .iter()
            .all(|minute| minute.latency_us.is_empty())
    );
    let query = Query {
        histograms: true,
        ..query
    };
    let with_histograms = recorder.tell(&query).expect("it is told");
    for (minute, told) in told.minutes.iter().zip(with_histograms.minutes) {
        assert_eq!(told.latency_us.values().sum::<u64>(), minute.ops);
        assert_eq!(
            Work::from(told).period(minute.t),
            *minute,
            "all of it is told"
        );
    }
}

#[test]
fn a_crash_lies_between_the_run_that_it_ended_and_the_next() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let mut recorder = Recorder::new(place(temp.path()));
    for (t, kind) in [(0, "node_started"), (5 * MINUTE_MS, "stall")] {
        recorder.event(BEGIN + t, &Event::new(kind, ""));
    }
    drop(recorder);
    let mut recorder = Recorder::new(place(temp.path()));
    recorder.event(BEGIN + 9 * MINUTE_MS, &Event::new("node_started", ""));
    // The killed run had touched its file before it wrote its last event.
    drop(recorder);
    let mut recorder = Recorder::new(place(temp.path()));
    let crash = |t| last_words::Crash {
        t,
        words: String::new(),
    };
    tell_of(&crash(BEGIN + 4 * MINUTE_MS), &mut recorder);
    let told = tell(&mut recorder, Step::Minute);
    let last = told.events.last().expect("the crash");
    assert_eq!((&*last.kind, last.t), ("crash", BEGIN + 9 * MINUTE_MS));
    // An event that is recorded late is told in its place.
    recorder.event(BEGIN + MINUTE_MS, &Event::new("late", ""));
    let told = tell(&mut recorder, Step::Minute);
    let kinds: Vec<&str> = told.events.iter().map(|event| &*event.kind).collect();
    assert_eq!(
        kinds,
        ["node_started", "late", "stall", "node_started", "crash"]
    );
}

#[test]
fn a_clock_that_is_set_loses_nothing() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let mut recorder = Recorder::new(place(temp.path()));
    let day = 24 * HOUR_MS;
    for t in [
        BEGIN,
        BEGIN + day,
        BEGIN + day + MINUTE_MS,
        BEGIN + MINUTE_MS,
        BEGIN,
    ] {
        recorder.minute(t, &work(1));
    }
    let told = tell(&mut recorder, Step::Minute);
    let minutes: Vec<_> = told
        .minutes
        .iter()
        .map(|minute| (minute.t, minute.ops))
        .collect();
    let expected = [
        (BEGIN, 2),
        (BEGIN + MINUTE_MS, 1),
        (BEGIN + day, 1),
        (BEGIN + day + MINUTE_MS, 1),
    ];
    assert_eq!(minutes, expected);
    let told = tell(&mut recorder, Step::Hour);
    let hours: Vec<_> = told.hours.iter().map(|hour| (hour.t, hour.ops)).collect();
    assert_eq!(hours, [(BEGIN, 3), (BEGIN + day, 2)]);
}

#[test]
fn events_of_one_kind_are_bounded() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let mut recorder = Recorder::new(place(temp.path()));
    for number in 0..1000 {
        recorder.event(number, &Event::new("slow_request", "get took 200 ms"));
    }
    recorder.event(1000, &Event::new("stall", "shard 0 stood still"));
    let told = tell(&mut recorder, Step::Minute);
    let slow = told
        .events
        .iter()
        .filter(|event| event.kind == "slow_request");
    assert_eq!(slow.count(), 20);
    assert_eq!(told.events.len(), 21);
}

#[test]
fn the_oldest_rows_go_and_the_folder_stays_small() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let mut store = Store::open(temp.path()).expect("it opens");
    let mut random = StdRng::seed_from_u64(1);
    let mut largest = 0;
    for number in 0..4000 {
        let mut value = vec![0; 20_000];
        random.fill(&mut value[..]);
        store.add(Kind::Hour, number, &value).expect("written");
        store
            .add(Kind::Event, number, &value[..2000])
            .expect("written");
        store.add(Kind::Minute, number, b"{}").expect("written");
        if store.is_due() {
            store = store.renew().expect("renewed");
            assert!(!store.is_due(), "it would be renewed for ever");
            largest = largest.max(disk_use(temp.path()));
        }
    }
    // While it is renewed there are two databases.
    assert!(2 * largest < 64 << 20, "{largest} bytes");
    drop(store);
    let store = Store::open(temp.path()).expect("it opens");
    for (kind, at_most) in [
        (Kind::Hour, 2160),
        (Kind::Event, 20_000),
        (Kind::Minute, 4000),
    ] {
        let rows = store.rows(kind, 0, |_| true).expect("read");
        assert!(rows.len() <= at_most, "{kind:?}: {} rows", rows.len());
        let times: Vec<u64> = rows.iter().map(|row| row.t).collect();
        let first = 4000 - rows.len() as u64;
        assert_eq!(times, (first..4000).collect::<Vec<_>>(), "{kind:?}");
    }
}

#[test]
fn what_is_damaged_is_put_aside() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let made = temp.path().join("made");
    let mut store = Store::open(&made.join("history")).expect("it opens");
    for number in 0..2000 {
        let value = serde_json::to_vec(&work(number)).expect("JSON");
        store
            .add(Kind::Minute, number * MINUTE_MS, &value)
            .expect("written");
        if number == 1000 {
            store = store.renew().expect("renewed");
        }
    }
    drop(store);
    // This cuts the journal, which is 64 MiB of nothing, to its length.
    drop(Store::open(&made.join("history")).expect("it opens"));
    let mut random = StdRng::seed_from_u64(7);
    let (mut damaged, mut put_aside) = (0, 0);
    for file in files(&made) {
        for _ in 0..4 {
            let data_dir = temp.path().join("damaged");
            copy(&made, &data_dir);
            damage(
                &data_dir.join(file.strip_prefix(&made).expect("below it")),
                &mut random,
            );
            damaged += 1;
            let history = History::new();
            history.start(&data_dir, NODE);
            history.minute(BEGIN, work(1));
            // The call that meets the damage fails, and loses what was in the database.
            let again = |_| {
                history.minute(BEGIN, work(1));
                ask(&history)
            };
            let told = ask(&history).or_else(again).expect("it is told");
            let last = told.minutes.last().expect("the last minute");
            assert_eq!((last.t, last.ops), (BEGIN, 1), "{}", file.display());
            history.stop();
            put_aside += aside(&data_dir);
            fs::remove_dir_all(&data_dir).expect("removed");
        }
    }
    assert!(
        damaged >= 20 && put_aside > 0,
        "{damaged} damaged, {put_aside} put aside"
    );
}

fn ask(history: &History) -> Result<NodeHistory, String> {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.build().expect("a runtime");
    runtime.block_on(history.ask(Query::default()))
}

/// Changes some bytes of a file at a random place.
fn damage(path: &Path, random: &mut StdRng) {
    let mut bytes = fs::read(path).expect("read");
    let end = bytes.len().min(1 << 20);
    if end == 0 {
        bytes = vec![7; 40];
    } else {
        let at = random.random_range(0..end);
        let end = (at + 8).min(end);
        random.fill(&mut bytes[at..end]);
    }
    fs::write(path, bytes).expect("written");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).expect("below it"));
        fs::create_dir_all(target.parent().expect("a folder")).expect("made");
        fs::copy(&file, &target).expect("copied");
    }
}

#[test]
fn a_crash_is_told_at_the_next_start_and_a_clean_stop_is_not() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let folder = temp.path().join("history");
    fs::create_dir(&folder).expect("made");
    fs::write(folder.join("running"), "fatal: shard 0: the disk is gone\n").expect("written");
    for crashes in [1, 1] {
        let history = History::new();
        history.start(temp.path(), NODE);
        let told = ask(&history).expect("it is told");
        let told: Vec<_> = told
            .events
            .iter()
            .filter(|event| event.kind == "crash")
            .collect();
        assert_eq!(told.len(), crashes);
        assert_eq!(told[0].text, "fatal: shard 0: the disk is gone");
        history.stop();
    }
}

#[test]
fn after_a_panic_another_thread_goes_on_with_an_empty_database() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    Recorder::new(place(temp.path())).minute(BEGIN, &work(1));
    let history = History::new();
    history.0.place.set(place(temp.path())).expect("it is new");
    for _ in 1..PANICS_MAX {
        history.spawn(|_| panic!("a fault of the library"));
        history.minute(BEGIN + MINUTE_MS, work(2));
        let told = ask(&history).expect("it is told");
        let [minute] = told.minutes.as_slice() else {
            panic!("{:?}", told.minutes);
        };
        assert_eq!((minute.t, minute.ops), (BEGIN + MINUTE_MS, 2));
        history.stop();
    }
    assert_eq!(aside(temp.path()), 1, "only the last one is kept");
    history.spawn(|_| panic!("a fault of the library"));
    // Whether the call comes before the end or after it, it gets an answer.
    ask(&history).expect_err("it ended");
}

#[test]
fn a_journal_that_was_cut_off_gives_what_is_whole() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let made = temp.path().join("made");
    let mut store = Store::open(&made.join("history")).expect("it opens");
    for number in 0..50 {
        let value = serde_json::to_vec(&work(number)).expect("JSON");
        store
            .add(Kind::Minute, number * MINUTE_MS, &value)
            .expect("written");
    }
    drop(store);
    drop(Store::open(&made.join("history")).expect("it opens"));
    let journal = Path::new("history/1/0.jnl");
    let len = fs::metadata(made.join(journal)).expect("is there").len();
    for cut in 1..40 {
        let killed = temp.path().join(cut.to_string());
        copy(&made, &killed);
        let file = fs::OpenOptions::new()
            .write(true)
            .open(killed.join(journal));
        file.expect("opens").set_len(len * cut / 40).expect("cut");
        let store = Store::open(&killed.join("history")).expect("it opens");
        let rows = store.rows(Kind::Minute, 0, |_| true).expect("read");
        let numbers: Vec<u64> = rows.iter().map(|row| row.number).collect();
        assert_eq!(numbers, (0..rows.len() as u64).collect::<Vec<_>>());
        let whole = 50 * cut / 40;
        assert!(
            rows.len() as u64 + 1 >= whole,
            "{} of {whole} rows",
            rows.len()
        );
    }
}
