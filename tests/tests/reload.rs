//! A node that reads its settings again while clients use it: good files, broken ones, and other things
//! at the file's place.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rangedb_client::blocking::Client;
use rangedb_client::{ClientOptions, Error};
use rangedb_tests::http::request;
use rangedb_tests::process::{Home, Node};
use serde_json::Value;

const GOOD: &str = "gc-retention = \"20m\"\nslow-request = \"1h\"\nlog-level = \"info\"\n";

struct Place {
    home: Home,
    path: PathBuf,
    _node: Node,
}

impl Place {
    fn new(folder: &Path) -> Place {
        let path = folder.join("rangedb.toml");
        std::fs::write(&path, GOOD).expect("it is written");
        let flags = ["--shards", "1", "--config", path.to_str().expect("a name")];
        let home = Home::new(folder, &flags);
        let mut command = home.start_command();
        // It would override the file.
        command.env_remove("RANGEDB_LOG_LEVEL");
        let mut node = Node::spawn(&mut command, home.log_file());
        assert!(node.becomes_ready(), "{}", home.log());
        Place {
            home,
            path,
            _node: node,
        }
    }

    /// Writes the file anew and has the node read it; the exit code and the answer.
    fn reload(&self, text: &[u8]) -> (Option<i32>, Value) {
        std::fs::write(&self.path, text).expect("it is written");
        self.ask(&["reload"])
    }

    fn ask(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let output = self.home.cli(&[arguments, &["--format", "json"]].concat());
        let answer = serde_json::from_slice(&output.stdout);
        let answer = answer.unwrap_or_else(|error| panic!("{error}: {output:?}"));
        (output.status.code(), answer)
    }

    fn settings(&self) -> Value {
        let (_, mut answer) = self.ask(&["config", "get"]);
        answer["node_settings"].take()
    }
}

/// Reads and writes one key until it is told to stop; gives how often.
fn use_node(listen: String, stop: &AtomicBool, count: &AtomicU64) -> Result<(), Error> {
    let options = ClientOptions::from(listen).timeout(Duration::from_secs(10));
    let client = Client::connect(options)?;
    while !stop.load(Ordering::Relaxed) {
        client.put("key", "value")?;
        assert!(client.get("key")?.is_some());
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[test]
fn broken_files_change_nothing_and_no_request_fails() {
    let temp = tempfile::tempdir().expect("a folder");
    let place = Place::new(temp.path());
    let (stop, count) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let users: Vec<_> = (0..2)
        .map(|_| {
            let (listen, stop, count) = (place.home.listen.clone(), stop.clone(), count.clone());
            std::thread::spawn(move || use_node(listen, &stop, &count))
        })
        .collect();

    let before = place.settings();
    let name = place.path.display().to_string();
    // Each names another level of lines first, which must not be taken.
    let broken: [(&str, &str); 18] = [
        ("= 1", "line 2"),
        ("listen", "line 2"),
        ("listen = ", "line 2"),
        ("listen = \"x:1", "line 2"),
        ("listen = ['x:1'", "line 2"),
        ("listen = {}", "line 2: listen is not a text"),
        ("listen = 1979-05-27", "line 2: listen is not a text"),
        ("listen = true", "line 2: listen is not a text"),
        ("advertise = \"7400\"", "line 2): an address is HOST:PORT"),
        ("log-level = \"debug\"", "line 2"),
        (
            "liste = \"x:1\"",
            "line 2: liste: there is no such setting; did you mean listen?",
        ),
        (
            "colour = \"red\"",
            "line 2: colour: there is no such setting; the settings are",
        ),
        ("[node]", "line 2: node: there is no such setting"),
        ("slow-request = \"5 s\"", "line 2"),
        ("slow-request = \"-1s\"", "line 2"),
        (
            "memory = \"1MiB\"",
            "line 2): a shard needs at least 64 MiB",
        ),
        (
            "cpus = \"0-99999999999\"",
            "line 2): this process may not run on processor",
        ),
        ("http-origins = \"x\"", "line 2): an origin is http://HOST"),
    ];
    for (line, reason) in broken {
        let (code, answer) = place.reload(format!("log-level = \"debug\"\n{line}\n").as_bytes());
        assert_eq!(code, Some(3), "{answer}");
        let refused = &answer["refused"][0];
        assert_eq!(refused["line"], 2, "{line}: {answer}");
        let told = refused["reason"].as_str().expect("a text");
        assert!(
            told.contains(reason) && told.contains(&name),
            "{line}: {told}"
        );
        for none in ["applied", "needs_restart", "unchanged"] {
            assert_eq!(answer[none].as_array().map(Vec::len), Some(0), "{answer}");
        }
        assert_eq!(place.settings(), before, "{line}");
    }
    let no_text = place.reload(b"# \xff\n").1;
    assert!(
        no_text["refused"][0]["reason"]
            .to_string()
            .contains("UTF-8"),
        "{no_text}"
    );
    let too_long = place.reload(&vec![b'\n'; 3 << 20]).1;
    assert!(
        too_long["refused"][0]["reason"]
            .to_string()
            .contains("longer"),
        "{too_long}"
    );

    // Nothing at the file's place, and what cannot be read to an end.
    std::fs::remove_file(&place.path).expect("it is there");
    assert_eq!(place.ask(&["reload"]).0, Some(3));
    let made = Command::new("mkfifo").arg(&place.path).status();
    assert!(made.expect("mkfifo runs").success());
    assert_eq!(place.ask(&["reload"]).0, Some(3));
    std::fs::remove_file(&place.path).expect("it is there");
    std::os::unix::fs::symlink("/dev/zero", &place.path).expect("the place is free");
    assert_eq!(place.ask(&["reload"]).0, Some(3));
    std::fs::remove_file(&place.path).expect("it is there");
    assert_eq!(place.settings(), before);

    stop.store(true, Ordering::Relaxed);
    for user in users {
        let used = user.join().expect("it does not panic");
        assert!(used.is_ok(), "{used:?}");
    }
    println!(
        "{} reads and writes meanwhile",
        count.load(Ordering::Relaxed)
    );
    assert!(count.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_good_file_is_taken_over() {
    let temp = tempfile::tempdir().expect("a folder");
    let place = Place::new(temp.path());
    let new =
        "gc-retention = \"30m\"\nslow-request = \"1ms\"\nlog-level = \"warn\"\nlog = \"json\"\n";
    let (code, answer) = place.reload(new.as_bytes());
    assert_eq!(code, Some(0), "{answer}");
    let names = |list: &str| {
        let settings = answer[list].as_array().expect("a list").iter();
        let names = settings.map(|setting| setting["name"].as_str().unwrap_or_default().to_owned());
        names.collect::<Vec<String>>()
    };
    assert_eq!(
        names("applied"),
        ["log", "log-level", "slow-request"],
        "{answer}"
    );
    assert_eq!(names("needs_restart"), ["gc-retention"], "{answer}");
    assert_eq!(
        place.ask(&["config", "get", "gc-retention"]).1["in_force"],
        "20m"
    );
    assert_eq!(
        place.ask(&["config", "get", "slow-request"]).1["in_force"],
        "1ms"
    );
    // From now on a slow request is a line in JSON, with its steps; one that waits for a disk takes long
    // enough. So may any other request on a busy machine.
    let value = "v".repeat(100_000);
    let slow = (0..100).find_map(|_| {
        place.home.put("key", &value);
        let log = place.home.log();
        let lines = log.lines().filter(|line| line.contains("\"slow_request\""));
        let mut slow = lines.map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        slow.find(|line| line["operation"] == "put")
    });
    let slow = slow.expect("a slow put");
    let of = |name: &str| {
        slow[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name}: {slow}"))
    };
    let steps = of("received_ms") + of("queue_ms") + of("log_ms");
    assert!(of("total_ms") >= 1 && steps == of("total_ms"), "{slow}");
}

#[test]
fn a_reload_over_http_answers_as_the_command_does_and_refuses_a_bad_file_whole() {
    let temp = tempfile::tempdir().expect("a folder");
    let place = Place::new(temp.path());
    std::fs::write(&place.path, "slow-request = \"2h\"\n").expect("it is written");
    let done = request(&place.home, "POST", "reload", b"");
    assert_eq!(done.status, 200, "{}", done.json());
    let applied = &done.json()["applied"];
    let names: Vec<&str> = (applied.as_array().expect("a list").iter())
        .filter_map(|setting| setting["name"].as_str())
        .collect();
    assert!(names.contains(&"slow-request"), "{applied}");
    let before = request(&place.home, "GET", "node-config", b"").json();
    std::fs::write(&place.path, "slow-request = \"1s\"\ncolour = \"red\"\n").expect("written");
    let refused = request(&place.home, "POST", "reload", b"");
    let told = refused.json();
    assert_eq!(
        (refused.status, told["error"].as_str()),
        (400, Some("invalid")),
        "{told}"
    );
    let message = told["message"].as_str().expect("a text");
    assert!(
        message.contains("colour: there is no such setting"),
        "{message}"
    );
    let after = request(&place.home, "GET", "node-config", b"").json();
    assert_eq!(before, after);
    assert_eq!(request(&place.home, "GET", "reload", b"").status, 405);
    assert_eq!(
        request(&place.home, "POST", "reload", b"{\"x\":1}").status,
        400
    );
}
