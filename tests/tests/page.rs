//! The page at `/`: its files and their headers, its stream of events, and how it looks and behaves in
//! headless Chromium, with a real node and with a made-up cluster of 10,000 ranges.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rangedb_tests::cluster::{homes, start_all, wait_until_replicated};
use rangedb_tests::http::{Response, exchange};
use rangedb_tests::process::Home;
use serde_json::Value;

/// A viewer that hears nothing for this long has failed.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A page's end of the stream.
struct Viewer(BufReader<TcpStream>);

impl Viewer {
    /// Opens the stream; the status is that of the response.
    fn open(home: &Home) -> (u16, Viewer) {
        let mut stream = TcpStream::connect(&home.http).expect("the node is there");
        let timeout = stream.set_read_timeout(Some(TIMEOUT));
        timeout.expect("a time limit");
        // In HTTP/1.0 there are no chunks: the body is the events as they are.
        let head = "GET /api/v1/stream HTTP/1.0\r\nHost: localhost\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("it is sent");
        let mut viewer = Viewer(BufReader::new(stream));
        let first = viewer.line();
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        while !viewer.line().is_empty() {}
        (status.expect("a status"), viewer)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line in time");
        assert!(!line.is_empty(), "the stream has ended");
        line.trim_end().to_owned()
    }

    /// The next event of this name.
    fn event(&mut self, name: &str) -> Value {
        let head = format!("event: {name}");
        while self.line() != head {}
        let data = self.line();
        let data = data.strip_prefix("data: ").expect("the data of the event");
        let parsed = serde_json::from_str(data).expect("JSON");
        assert_eq!(self.line(), "", "an event ends with an empty line");
        parsed
    }
}

fn file(home: &Home, method: &str, path: &str) -> Response {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    exchange(home, &head, b"")
}

#[test]
fn the_files_of_the_page_have_their_types_and_a_strict_policy() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = home.start();
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
        (
            "/vendor/uPlot.iife.min.js",
            "text/javascript; charset=utf-8",
        ),
        ("/vendor/uPlot.min.css", "text/css; charset=utf-8"),
    ] {
        let found = file(&home, "GET", path);
        assert_eq!(
            (found.status, found.header("content-type")),
            (200, Some(kind)),
            "{path}"
        );
        assert!(!found.body.is_empty(), "{path}");
        let policy = found.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; "), "{policy}");
        assert!(
            !policy.contains("-inline") && !policy.contains("-eval"),
            "{policy}"
        );
        assert!(file(&home, "HEAD", path).body.is_empty(), "{path}");
        assert_eq!(file(&home, "POST", path).status, 405, "{path}");
    }
    for absent in [
        "/index.html",
        "/vendor/",
        "/page/mod.rs",
        "//",
        "/../page.js",
    ] {
        assert_eq!(file(&home, "GET", absent).status, 404, "{absent}");
    }
}

#[test]
fn the_stream_tells_each_second_what_the_node_did() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2", "--split-at", "m"]);
    let _node = home.start();
    let (status, mut viewer) = Viewer::open(&home);
    assert_eq!(status, 200);
    // The first event has nothing to compare with.
    viewer.event("second");
    for key in ["apple", "pear"] {
        assert!(home.cli(&["put", key, "x"]).status.success());
        assert!(home.cli(&["get", key]).status.success());
    }
    let (mut gets, mut reads, mut writes) = (0, 0, 0);
    let sum = |second: &Value, of: fn(&Value) -> u64| -> u64 {
        let shards = second["shards"].as_array().expect("shards");
        shards.iter().map(of).sum()
    };
    while gets < 2 || reads < 2 || writes < 2 {
        let second = viewer.event("second");
        assert_eq!(second["node"], 1, "{second}");
        assert_eq!(second["ready"], true, "{second}");
        gets += sum(&second, |shard| {
            let ops = shard["ops"].as_array().expect("operations");
            let gets = ops.iter().filter(|op| op[0] == "get");
            let buckets = gets.filter_map(|op| op[1].as_array());
            let counts = buckets.flat_map(|pairs| pairs.chunks(2).map(|pair| pair[1].as_u64()));
            counts.map(|count| count.expect("a count")).sum()
        });
        let load = |shard: &Value, at: usize| -> u64 {
            let load = shard["load"].as_array().expect("loads");
            load.iter()
                .map(|range| range[at].as_u64().expect("a count"))
                .sum()
        };
        let shards = second["shards"].as_array().expect("shards");
        reads += shards.iter().map(|shard| load(shard, 1)).sum::<u64>();
        writes += shards.iter().map(|shard| load(shard, 2)).sum::<u64>();
    }
    assert_eq!((gets, reads), (2, 2));
    // A manager that has just begun has not heard of all ranges yet.
    let view = loop {
        let view = viewer.event("view");
        if view["ranges"].as_array().map(Vec::len) == Some(3) {
            break view;
        }
    };
    assert_eq!(view["status"]["nodes"][0]["id"], 1, "{view}");
    assert_eq!(view["ranges"][2][2], "m", "{view}");
    assert_eq!(view["ranges"][2][8].as_array().map(Vec::len), Some(5));
    // Who comes later gets the last view at once.
    let (_, mut later) = Viewer::open(&home);
    assert_eq!(later.line(), "retry: 2000");
    assert_eq!(later.event("view")["status"], view["status"]);
    let head = file(&home, "HEAD", "/api/v1/stream");
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    assert_eq!(file(&home, "POST", "/api/v1/stream").status, 405);
}

#[test]
fn many_may_look_and_one_too_many_is_refused() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = home.start();
    let mut open = Vec::new();
    let refused = loop {
        let (status, viewer) = Viewer::open(&home);
        if status != 200 {
            break status;
        }
        open.push(viewer);
        assert!(open.len() < 100, "there is no limit");
    };
    assert_eq!(refused, 503);
    assert!(open.len() >= 16, "{}", open.len());
    for viewer in &mut open {
        viewer.event("second");
    }
    // The rest of HTTP answers, too.
    assert_eq!(file(&home, "GET", "/livez").status, 200);
    assert_eq!(file(&home, "GET", "/metrics").status, 200);
}

/// Looks at a page in Chromium, or prints why there is none. Screenshots are in the folder.
fn look(how: &str, what: &str, folder: &Path) -> Option<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/page.py");
    let output = Command::new("python3")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(script)
        .args([how, what])
        .arg(folder)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: python3: {error}");
            return None;
        }
    };
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    if let Some(reason) = found["skipped"].as_str() {
        println!("skipped: {reason}");
        return None;
    }
    assert_eq!(
        found["errors"],
        serde_json::json!([]),
        "the console is empty"
    );
    for name in ["light", "dark", "phone"] {
        let shot = std::fs::metadata(folder.join(format!("{name}.png")));
        assert!(shot.expect("a screenshot").len() > 10_000, "{name}");
    }
    // Nothing makes the page wider than the window.
    let widths = serde_json::json!({ "light": 1360, "dark": 1360, "phone": 390 });
    assert_eq!(found["widths"], widths);
    println!(
        "{how}: first paint {} ms, script {} ms an update, at most {} ms",
        found["first_paint_ms"], found["last_ms"], found["worst_ms"]
    );
    Some(found)
}

#[test]
fn a_browser_shows_a_cluster_of_three_nodes_without_an_error() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let _nodes = start_all(&homes);
    wait_until_replicated(&homes);
    assert!(homes[0].cli(&["put", "k", "v"]).status.success());
    let url = format!("http://{}/", homes[0].http);
    let Some(found) = look("look", &url, temp.path()) else {
        return;
    };
    let text = found["text"].as_str().expect("text");
    for word in [
        "this one",
        "● alive",
        "The cluster is whole",
        "● live",
        "row cache",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
    for home in &homes {
        assert!(text.contains(&home.listen), "{} in {text}", home.listen);
    }
}

#[test]
fn a_browser_shows_ten_thousand_ranges_and_foreign_text_as_text() {
    let temp = tempfile::tempdir().expect("a folder");
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/src/admin/page");
    let files = files.to_str().expect("a path");
    let Some(found) = look("made-up", files, temp.path()) else {
        return;
    };
    assert_eq!(
        found["hacked"],
        Value::Null,
        "no foreign text became a script"
    );
    assert_eq!(
        found["foreign_elements"], 0,
        "no foreign text became an element"
    );
    let text = found["text"].as_str().expect("text");
    let nasty = "<script>window.hacked=1</script>\"'&";
    assert!(text.matches(nasty).count() >= 4, "it is shown: {text}");
    assert!(text.contains("10,001 in the cluster"), "{text}");
    assert!(text.contains("✕ dead"), "{text}");
    assert!(
        text.contains("288 KiB"),
        "the size of the last range of the first page is shown: {text}"
    );
    assert_eq!(found["filtered"], "10,001 in the cluster, 5,000 shown");
    assert_eq!(found["page_before"], "page 1 of 250");
    assert_eq!(found["page_after"], "page 2 of 250");
    let read = found["read"].as_str().expect("text");
    assert!(
        read.contains("ranges, "),
        "the arrow keys read out the map: {read}"
    );
}
