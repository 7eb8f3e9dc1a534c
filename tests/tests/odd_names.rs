//! Odd names in a real node: keys, settings, paths and addresses with markup, quotes, line breaks, 4 KiB, and bytes that
//! are no UTF-8. They stand as text in JSON, metrics and logs; `page.rs` looks at them on the page.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;

use rangedb_tests::http::{exchange, request};
use rangedb_tests::process::{Home, Node, command};
use serde_json::{Value, json};

/// Markup, both quotes, a backslash, and what ends lines.
const NASTY: &str = "<script>window.hacked=1</script>\"'&\\\r\n\u{2028}end";
/// Longest keys and values of settings.
const LONG: usize = 4096;

fn names() -> Vec<Vec<u8>> {
    let no_utf8 = [NASTY.as_bytes(), b"\xff\xfe\0"].concat();
    let long = NASTY.repeat(LONG / NASTY.len());
    vec![
        NASTY.as_bytes().to_vec(),
        no_utf8,
        long.into_bytes(),
        b"\0\x1b[31m\x7f".to_vec(),
    ]
}

/// Bytes as a part of a path.
fn percent(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "%{byte:02x}");
        text
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A member of a row: text, or hexadecimal digits under another name.
fn bytes(row: &Value, name: &str) -> Vec<u8> {
    match (row[name].as_str(), row[format!("{name}_hex")].as_str()) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(digits)) => (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("digits"))
            .collect(),
        _ => panic!("{name} of {row}"),
    }
}

/// What JSON says comes back as it is, by the path, in the body, and by the command line.
fn json_is_valid_in_both_directions(home: &Home) {
    let wanted: BTreeSet<Vec<u8>> = names().into_iter().collect();
    for name in &wanted {
        let put = request(home, "PUT", &format!("kv/{}", percent(name)), name);
        assert_eq!(put.status, 200, "{}", String::from_utf8_lossy(&put.body));
    }
    let scanned = request(home, "GET", "scan", b"").json();
    let rows = scanned["rows"].as_array().expect("rows");
    let keys: BTreeSet<Vec<u8>> = rows.iter().map(|row| bytes(row, "key")).collect();
    assert_eq!(keys, wanted);
    assert!(
        rows.iter()
            .all(|row| bytes(row, "key") == bytes(row, "value"))
    );
    // What was told is taken.
    let member = |row: &Value, name: &str| match row[name].is_null() {
        true => (format!("{name}_hex"), row[format!("{name}_hex")].clone()),
        false => (name.to_owned(), row[name].clone()),
    };
    let puts = rows.iter().map(|row| {
        let members = [
            member(row, "key"),
            member(row, "value"),
            ("op".to_owned(), json!("put")),
        ];
        Value::Object(members.into_iter().collect())
    });
    let batch = json!({ "mutations": puts.collect::<Vec<Value>>() });
    let written = request(home, "POST", "batch", batch.to_string().as_bytes());
    assert_eq!(written.status, 200, "{}", written.json());
    let keys = rows
        .iter()
        .map(|row| Value::Object([member(row, "key")].into_iter().collect()));
    let keys = json!({ "keys": keys.collect::<Vec<Value>>() });
    let found = request(home, "POST", "get", keys.to_string().as_bytes()).json();
    let found = found["results"].as_array().expect("a list");
    assert_eq!(found.len(), wanted.len());
    for row in found {
        assert_eq!(
            (&row["found"], bytes(row, "key")),
            (&json!(true), bytes(row, "value"))
        );
    }
    let printed = home.cli(&["scan", "--format", "json"]);
    let printed: Value = serde_json::from_slice(&printed.stdout).expect("JSON");
    let rows = printed["rows"].as_array().expect("rows").iter();
    let keys: BTreeSet<Vec<u8>> = rows.map(|row| bytes(row, "key")).collect();
    assert_eq!(keys, wanted);
    let table = home.cli(&["scan"]);
    assert_eq!(
        String::from_utf8_lossy(&table.stdout).lines().count(),
        wanted.len()
    );
}

/// Ranges that begin at odd keys.
fn ranges_have_one_line_each(home: &Home) {
    let at: Vec<String> = names().iter().map(|name| hex(name)).collect();
    let split = json!({ "at_hex": at }).to_string();
    let split = request(home, "POST", "ranges/2/split", split.as_bytes());
    assert_eq!(split.status, 200, "{}", split.json());
    let shown = request(home, "GET", "ranges", b"").json();
    let starts = shown["ranges"].as_array().expect("ranges").iter();
    let starts: BTreeSet<&str> = starts.filter_map(|range| range["start"].as_str()).collect();
    assert!(
        at.iter().all(|start| starts.contains(start.as_str())),
        "{starts:?}"
    );
    let table = home.cli(&["range", "ls"]);
    let table = String::from_utf8(table.stdout).expect("text");
    assert_eq!(table.lines().count(), 1 + 2 + at.len(), "{table}");
    assert!(
        !table.contains(|letter: char| letter.is_control() && letter != '\n'),
        "{table}"
    );
}

/// Settings of the cluster with odd names and values are refused, by what they are called.
fn settings_are_refused(home: &Home) {
    for name in names() {
        let refused = request(home, "PUT", &format!("config/{}", percent(&name)), b"on");
        assert!((400..500).contains(&refused.status), "{}", refused.status);
        assert!(refused.json()["message"].is_string());
        let refused = request(home, "PUT", "config/balance", &name);
        assert!((400..500).contains(&refused.status), "{}", refused.status);
        assert!(refused.json()["message"].is_string());
        for words in [
            ["config", "set"].map(OsStr::new),
            ["config", "get"].map(OsStr::new),
        ] {
            // A word of the command line has no zero byte.
            let name: Vec<u8> = name.iter().copied().filter(|byte| *byte != 0).collect();
            let mut rangedb = command("rangedb");
            rangedb.args(words).arg(OsStr::from_bytes(&name));
            if words[1] == "set" {
                rangedb.arg(OsStr::from_bytes(&name));
            }
            let refused = rangedb
                .args(["--addr", &home.listen])
                .output()
                .expect("it runs");
            let complaint = String::from_utf8(refused.stderr).expect("text");
            assert!(
                [Some(1), Some(2), Some(3)].contains(&refused.status.code()),
                "{complaint}"
            );
            assert!(
                !complaint.contains("panicked") && !complaint.is_empty(),
                "{complaint}"
            );
        }
    }
    assert_eq!(request(home, "GET", "config", b"").status, 200);
}

/// Heads with odd hosts and paths get answers that are text.
fn odd_heads_are_answered(home: &Home) {
    let plain = "<script>window.hacked=1</script>";
    for (line, host) in [
        ("GET /readyz", plain),
        ("GET /api/v1/nodes", plain),
        ("GET /<script>alert(1)</script>", "localhost"),
        ("GET /api/v1/<script>", "localhost"),
        ("GET /api/v1/history?from=<script>", "localhost"),
        ("GET /api/v1/scan?<script>=1", "localhost"),
    ] {
        let head = format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = exchange(home, &head, b"");
        assert!(
            (400..500).contains(&answer.status),
            "{line}: {}",
            answer.head
        );
        let kind = answer.header("content-type").unwrap_or("none");
        assert!(!kind.contains("html"), "{line}: {kind}");
    }
}

/// A line of Prometheus' text format: `name{label="value",...} number`.
fn is_sample(line: &str) -> bool {
    let is_name = |name: &str| {
        let letters = name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_:".contains(&b));
        letters && name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
    };
    let is_value = |text: &str| text.parse::<f64>().is_ok();
    let Some((name, mut rest)) = line.split_once('{') else {
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        return is_name(name) && is_value(value);
    };
    if !is_name(name) {
        return false;
    }
    loop {
        let Some((label, value)) = rest.split_once("=\"") else {
            return false;
        };
        let mut escapes = false;
        let end = value.bytes().position(|byte| {
            let ends = byte == b'"' && !escapes;
            escapes = byte == b'\\' && !escapes;
            ends
        });
        let Some(end) = end.filter(|_| is_name(label)) else {
            return false;
        };
        rest = &value[end + 1..];
        if let Some(value) = rest.strip_prefix("} ") {
            return is_value(value);
        }
        let Some(more) = rest.strip_prefix(',') else {
            return false;
        };
        rest = more;
    }
}

fn metrics_are_valid(home: &Home) {
    let (status, text) = home.page("/metrics");
    assert_eq!(status, 200);
    let samples: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("# "))
        .collect();
    assert!(samples.len() > 100);
    for line in samples {
        assert!(is_sample(line), "{line:?}");
    }
}

/// Each line of the log is a whole one.
fn lines_are_whole(home: &Home, is_json: bool) {
    let log = home.log();
    assert!(log.lines().count() > 10, "{log}");
    for line in log.lines() {
        let is_whole = match is_json {
            true => {
                serde_json::from_str::<Value>(line).is_ok_and(|line| line["timestamp"].is_string())
            }
            false => {
                let (time, rest) = line.split_once(' ').unwrap_or_default();
                let levels = ["ERROR", "WARN", "INFO", "DEBUG"];
                time.ends_with('Z')
                    && levels.contains(&rest.trim_start().split(' ').next().unwrap_or_default())
            }
        };
        let is_clean = !line.contains(|letter: char| letter.is_ascii_control());
        assert!(is_whole && is_clean, "{line:?} in\n{log}");
    }
}

/// A node whose folder, settings file and environment have odd names, and that logs every request.
fn start(home: &Home, format: &str, config: &OsStr) -> Node {
    let mut start = home.start_command();
    start
        .args(["--slow-request", "0.001ms", "--log", format, "--config"])
        .arg(config);
    start.env(
        OsStr::from_bytes(b"RANGEDB_<script>\n\"x\xff"),
        OsStr::from_bytes(b"\n<b>\xff"),
    );
    let mut node = Node::spawn(&mut start, home.log_file());
    assert!(node.becomes_ready(), "{}", home.log());
    node
}

#[test]
fn odd_names_are_text_in_json_metrics_and_logs() {
    for format in ["text", "json"] {
        let temp = tempfile::tempdir().expect("a folder");
        let folder = temp.path().join("<script>\"x'&\n\u{1b}[31m end");
        std::fs::create_dir(&folder).expect("a folder");
        let home = Home::new(&folder, &["--shards", "1"]);
        let config = folder.join("settings\n.toml");
        std::fs::write(&config, "log-level = \"info\"\n").expect("it is written");
        let node = start(&home, format, config.as_os_str());
        json_is_valid_in_both_directions(&home);
        ranges_have_one_line_each(&home);
        settings_are_refused(&home);
        odd_heads_are_answered(&home);
        metrics_are_valid(&home);
        let bad = format!("{:?} = 1\nlog-level = {:?}\n", NASTY, NASTY);
        std::fs::write(&config, bad).expect("it is written");
        let refused = home.cli(&["reload", "--format", "json"]);
        let told = String::from_utf8_lossy(&refused.stdout).into_owned();
        serde_json::from_str::<Value>(&told).unwrap_or_else(|error| panic!("{error}: {told}"));
        let status = home.cli(&["status", "--format", "json"]);
        serde_json::from_slice::<Value>(&status.stdout).expect("JSON");
        let history = home.cli(&["history", "--format", "json"]);
        let history: Value = serde_json::from_slice(&history.stdout).expect("JSON");
        assert!(
            history["events"]
                .as_array()
                .is_some_and(|events| !events.is_empty())
        );
        node.signal("TERM");
        assert_eq!(node.wait().code(), Some(0), "{}", home.log());
        lines_are_whole(&home, format == "json");
    }
}

#[test]
fn nodes_and_folders_with_names_that_cannot_be_are_refused_in_words() {
    let temp = tempfile::tempdir().expect("a folder");
    for flags in [
        &["--advertise", "<script>\n:7400"][..],
        &["--advertise", NASTY],
        &["--join", NASTY, "--cluster-secret", "words"],
        &["--http-hosts", NASTY],
        &["--log-level", NASTY],
    ] {
        let home = Home::new(temp.path(), flags);
        let (code, complaint) = home.refused();
        assert_eq!(code, 2, "{flags:?}: {complaint}");
        assert!(!complaint.contains("panicked"), "{complaint}");
        let name = flags[0].trim_start_matches("--");
        assert!(complaint.contains(name), "{flags:?}: {complaint}");
    }
    // Settings are text, and so is the name of the folder.
    let folder = temp.path().join(OsStr::from_bytes(b"d\xff\xfe"));
    let (code, complaint) = Home::new(&folder, &[]).refused();
    assert!(code == 2 && complaint.contains("UTF-8"), "{complaint}");
}
