//! A node that is alone.

use std::fs;
use std::path::{Path, PathBuf};

use rangedb_tests::process::{Home, Node};

use crate::{copy, files, refused};

const ROWS: usize = 12;

fn put(home: &Home, at: usize) {
    // Rows for each of the two ranges.
    let (key, value) = (format!("{}{at}", ["a", "z"][at % 2]), format!("value {at}"));
    home.put(&key, &value);
}

fn check_rows(home: &Home, rows: usize) {
    for at in 0..rows {
        let key = format!("{}{at}", ["a", "z"][at % 2]);
        let got = home.cli(&["get", &key]);
        let value = String::from_utf8_lossy(&got.stdout);
        assert_eq!(value.trim(), format!("value {at}"), "{key}: {got:?}");
    }
}

fn stop(node: Node) {
    node.signal("TERM");
    assert_eq!(node.wait().code(), Some(0));
}

/// A node with rows in its tables and in its log alone, in two shards, that was killed.
fn used(temp: &Path) -> Home {
    let home = Home::new(temp, &["--shards", "2", "--split-at", "m"]);
    let node = home.start();
    for at in 0..ROWS / 2 {
        put(&home, at);
    }
    // A clean stop writes tables.
    stop(node);
    let node = home.start();
    for at in ROWS / 2..ROWS {
        put(&home, at);
    }
    node.kill();
    home
}

/// Expects a refusal that names all of this while a part is away, and that nothing was touched: the
/// node has everything when the part is back.
fn refused_without(home: &Home, away: &[&str], names: &[&str]) {
    let aside = home.folder.with_extension("aside");
    for (at, part) in away.iter().enumerate() {
        let to = aside.with_extension(at.to_string());
        fs::rename(home.folder.join(part), to).expect("moved");
    }
    let complaint = refused(home);
    for name in names {
        assert!(
            complaint.contains(name),
            "{away:?}: no {name} in: {complaint}"
        );
    }
    for (at, part) in away.iter().enumerate() {
        let to = aside.with_extension(at.to_string());
        fs::rename(to, home.folder.join(part)).expect("moved back");
    }
}

/// The files of a part of the folder.
fn files_of(home: &Home, part: &str) -> Vec<String> {
    let files = files(&home.folder.join(part)).into_iter();
    files
        .map(|file| format!("{part}/{}", file.display()))
        .collect()
}

#[test]
fn what_is_missing_is_named_and_nothing_begins_anew() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = used(temp.path());
    let helps = "restore a backup of the whole folder";
    for part in [
        "shard-0/wal",
        "shard-1/wal",
        "shard-0/tables",
        "shard-1/tables",
    ] {
        let missing = format!("{part} is missing");
        refused_without(&home, &[part], &[&missing, helps]);
        let empty = format!("{part} is empty");
        let all = files_of(&home, part);
        let mut all: Vec<&str> = all.iter().map(String::as_str).collect();
        // Folders in it are removed with their content.
        let inner = format!("{part}/tables");
        if home.folder.join(&inner).is_dir() {
            all.retain(|file| !file.starts_with(&format!("{inner}/")));
            all.push(&inner);
        }
        refused_without(&home, &all, &[&empty, helps]);
    }
    refused_without(&home, &["shard-1"], &["shard-1/wal is missing", helps]);
    refused_without(&home, &["shard-0"], &["shard-0/wal is missing", helps]);
    refused_without(&home, &["node.json"], &["node.json is missing", "shard-"]);
    refused_without(
        &home,
        &["node.json", "enrolling"],
        &["node.json is missing"],
    );
    // The segments alone: the spare ones are still there.
    for shard in 0..2 {
        let mut segments = files_of(&home, &format!("shard-{shard}/wal"));
        segments.retain(|name| name.ends_with(".wal"));
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        refused_without(&home, &segments, &["the log is missing", helps]);
    }
    let node = home.start();
    check_rows(&home, ROWS);
    stop(node);
    for part in ["shard-0/wal", "shard-1/tables"] {
        refused_without(&home, &[part], &["is missing", helps]);
    }
    let node = home.start();
    check_rows(&home, ROWS);
    stop(node);
}

/// Swaps two parts of the folder.
fn swap(home: &Home, one: &str, other: &str) {
    let (one, other) = (home.folder.join(one), home.folder.join(other));
    let aside = home.folder.with_extension("aside");
    fs::rename(&one, &aside).expect("moved");
    fs::rename(&other, &one).expect("moved");
    fs::rename(&aside, &other).expect("moved");
}

#[test]
fn parts_of_another_shard_or_time_are_refused() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = used(temp.path());
    for part in ["wal", "tables"] {
        let (one, other) = (format!("shard-0/{part}"), format!("shard-1/{part}"));
        swap(&home, &one, &other);
        let complaint = refused(&home);
        assert!(complaint.contains("not this shard's own"), "{complaint}");
        swap(&home, &one, &other);
    }
    // Older copies, from before a run that wrote log and tables.
    let copies: Vec<(&str, PathBuf)> = ["shard-0/wal", "shard-0/tables", "node.json"]
        .into_iter()
        .map(|part| (part, temp.path().join(part.replace('/', "-"))))
        .collect();
    for (part, to) in &copies {
        copy(&home.folder.join(part), to);
    }
    for _ in 0..2 {
        let node = home.start();
        put(&home, ROWS);
        put(&home, ROWS + 1);
        stop(node);
    }
    for (part, from) in &copies {
        let (at, aside) = (home.folder.join(part), temp.path().join("aside"));
        fs::rename(&at, &aside).expect("moved");
        copy(from, &at);
        let complaint = refused(&home);
        assert!(complaint.contains("older"), "{part}: {complaint}");
        if at.is_dir() {
            fs::remove_dir_all(&at).expect("removed");
        } else {
            fs::remove_file(&at).expect("removed");
        }
        fs::rename(&aside, &at).expect("moved back");
    }
    let node = home.start();
    check_rows(&home, ROWS + 2);
    stop(node);
}

/// Each file in turn is removed, emptied, or cut to half: the node refuses with the cause, or has
/// everything.
#[test]
fn a_damaged_file_is_refused_or_harmless() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = used(temp.path());
    let original = temp.path().join("original");
    copy(&home.folder, &original);
    for file in files(&original) {
        let name = file.display().to_string();
        for (what, keeps) in [("removed", None), ("emptied", Some(0)), ("halved", Some(2))] {
            fs::remove_dir_all(&home.folder).expect("removed");
            copy(&original, &home.folder);
            let path = home.folder.join(&file);
            match keeps {
                None => fs::remove_file(&path).expect("removed"),
                Some(part) => {
                    let len = fs::metadata(&path).expect("is there").len();
                    let file = fs::OpenOptions::new().write(true).open(&path);
                    let cut =
                        file.and_then(|file| file.set_len(len.checked_div(part).unwrap_or(0)));
                    cut.expect("cut");
                }
            }
            let harmless = ["LOCK", "enrolling"].contains(&name.as_str())
                || name.starts_with("history/")
                || name.ends_with(".spare")
                || name.ends_with(".draft");
            if harmless {
                let node = home.start();
                check_rows(&home, ROWS);
                node.kill();
                continue;
            }
            let complaint = refused(&home);
            println!("{name} {what}: {}", complaint.lines().last().unwrap_or(""));
            let helps = [
                "empty --data-dir",
                "backup of the whole folder",
                "empty data folder",
            ];
            assert!(
                helps.iter().any(|words| complaint.contains(words)),
                "{name} {what}: {complaint}"
            );
        }
    }
}

/// A node of an earlier release was killed before it had flushed anything: its rows are in the log
/// alone, in entries of the first format, one of every kind of write. They are applied, also by a
/// second start, and the log goes on with entries of today's.
#[test]
fn a_log_of_an_earlier_release_is_applied() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &[]);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/folder-log-2");
    copy(&fixture, &home.folder);
    let segment = home.folder.join("shard-0/wal/000000000001.wal");
    let file = fs::OpenOptions::new().write(true).open(&segment);
    file.and_then(|file| file.set_len(64 << 20))
        .expect("the zeros that were left out");
    let rows = || String::from_utf8_lossy(&home.cli(&["scan"]).stdout).into_owned();
    let node = home.start();
    assert_eq!(rows(), "c\ty\nn\t42\nw1\t1\nw2\t2\n");
    let write = ["write", "--if-value", "n", "42", "--if-absent", "q"];
    let changes = ["add", "n", "-2", "put", "q", "1", "delete", "w1"];
    let written = home.cli(&[&write[..], &changes[..]].concat());
    assert!(written.status.success(), "{written:?}");
    node.kill();
    let node = home.start();
    assert_eq!(rows(), "c\ty\nn\t40\nq\t1\nw2\t2\n");
    stop(node);
}

/// A folder of format 2, which an earlier release has written, opens with all of its rows and is
/// guarded from then on.
#[test]
fn a_folder_of_an_earlier_release_opens_and_is_marked() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &[]);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/folder-format-2");
    copy(&fixture, &home.folder);
    // The zeros at the end of the segment were left out.
    let segment = home.folder.join("shard-0/wal/000000000001.wal");
    let file = fs::OpenOptions::new().write(true).open(&segment);
    file.and_then(|file| file.set_len(64 << 20))
        .expect("filled up");
    let unopened = temp.path().join("unopened");
    copy(&home.folder, &unopened);
    let check = || {
        for (key, value) in [("a1", "v1"), ("a5", "v5"), ("z3", "v3")] {
            let got = home.cli(&["get", key]);
            assert_eq!(String::from_utf8_lossy(&got.stdout).trim(), value, "{key}");
        }
        assert_eq!(home.cli(&["get", "a3"]).status.code(), Some(1));
    };
    // Also when the first start is cut off after it has marked the log, but not `node.json`.
    let node = home.start();
    check();
    node.kill();
    let text = fs::read_to_string(home.folder.join("node.json")).expect("is there");
    assert!(text.contains("\"format\": 3"), "{text}");
    let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    value["logs"][0]["opened"] = serde_json::Value::Null;
    fs::write(home.folder.join("node.json"), value.to_string()).expect("written");
    stop(home.start());
    let node = home.start();
    check();
    stop(node);
    refused_without(&home, &["shard-0/wal"], &["shard-0/wal is missing"]);
    // One that has lost its log or tables before its first start with this release.
    for part in ["wal", "tables"] {
        fs::remove_dir_all(&home.folder).expect("removed");
        copy(&unopened, &home.folder);
        let part = home.folder.join("shard-0").join(part);
        fs::remove_dir_all(&part).expect("removed");
        fs::create_dir(&part).expect("made");
        assert!(refused(&home).contains("is empty"));
    }
    let complaint = {
        let spare = home.folder.join("shard-0/wal/000000000002.spare");
        fs::remove_dir_all(&home.folder).expect("removed");
        copy(&unopened, &home.folder);
        fs::rename(home.folder.join("shard-0/wal/000000000001.wal"), spare).expect("renamed");
        refused(&home)
    };
    assert!(complaint.contains("the log is missing"), "{complaint}");
}
