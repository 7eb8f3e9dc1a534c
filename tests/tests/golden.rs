//! Golden scripts: commands to real nodes and what they print, in `tests/golden`, for people to read.
//!
//! `RANGEDB_GOLDEN=update` writes what is printed into the scripts; read the difference before it is
//! committed. Lines that begin with `#` and empty lines are for the reader. What stands after `$ ` is a line of
//! shell, or one of these:
//!
//! | command | |
//! |---|---|
//! | `start N [FLAGS]` | starts node N, with the flags of its first start if none are given; from 2 on it joins node 1 |
//! | `stop N`, `kill N` | SIGTERM, which must end it with exit code 0; SIGKILL |
//! | `eventually COMMAND` | repeats a command until it prints what the script shows |
//!
//! What differs from run to run has a name instead: versions `v1`, `v2` in the order in which they appear, and
//! addresses `node1`, `http1`. Commands may use them: `$v1`, `$node1`. The columns `epoch` and `applied` of a
//! table show `*`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rangedb_tests::cluster::SECRET;
use rangedb_tests::console::{Shell, transcript};
use rangedb_tests::process::{Home, Node};
use tempfile::TempDir;

/// An `eventually` that does not print the expected output within this time fails.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long an `eventually` waits for things to settle when scripts are updated.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Versions have 18 digits; a number with as many as this is one.
const VERSION_DIGITS_MIN: usize = 16;
/// Digits of a cluster's id.
const CLUSTER_ID_DIGITS: usize = 32;
/// Columns of tables that depend on time.
const MASKED_COLUMNS: [&str; 4] = ["epoch", "applied", "size", "ops/s"];

/// A part of a script.
enum Item {
    /// A comment or an empty line.
    Text(String),
    /// A command, and the lines that it shows.
    Command(String, Vec<String>),
}

fn parse(script: &str) -> Vec<Item> {
    let mut items = Vec::new();
    for line in script.lines() {
        match (items.last_mut(), line.strip_prefix("$ ")) {
            (_, Some(command)) => items.push(Item::Command(command.to_owned(), Vec::new())),
            (Some(Item::Command(_, shown)), None) if !line.is_empty() && !line.starts_with('#') => {
                shown.push(line.to_owned());
            }
            _ => items.push(Item::Text(line.to_owned())),
        }
    }
    items
}

fn render(items: &[Item]) -> String {
    let mut text = String::new();
    for item in items {
        // Writing to a string cannot fail.
        let _ = match item {
            Item::Text(line) => writeln!(text, "{line}"),
            Item::Command(command, shown) => {
                let shown = shown.iter().map(|line| format!("{line}\n"));
                write!(text, "$ {command}\n{}", shown.collect::<String>())
            }
        };
    }
    text
}

/// Nodes of a script, and what is known of them.
struct Stage {
    // Nodes go before the folder that they live in.
    nodes: Vec<Option<Node>>,
    homes: Vec<Home>,
    shell: Shell,
    versions: Vec<String>,
    folder: TempDir,
}

impl Stage {
    fn new() -> Stage {
        let folder = tempfile::tempdir().expect("a folder");
        Stage {
            nodes: Vec::new(),
            homes: Vec::new(),
            shell: Shell::new(folder.path()),
            versions: Vec::new(),
            folder,
        }
    }

    fn start(&mut self, index: usize, flags: &[&str]) {
        if index == self.homes.len() {
            let folder = self.folder.path().join(format!("node{}", index + 1));
            std::fs::create_dir(&folder).expect("a folder");
            let mut all = vec!["--shards", "1", "--cluster-secret", SECRET];
            if let Some(first) = self.homes.first() {
                all.extend(["--join", &first.listen]);
            }
            if flags.contains(&"--shards") {
                all.drain(..2);
            }
            let home = Home::new(&folder, &[&all, flags].concat());
            self.shell.set(&format!("node{}", index + 1), &home.listen);
            self.shell.set(&format!("http{}", index + 1), &home.http);
            self.homes.push(home);
            self.nodes.push(None);
            let addresses: Vec<&str> = self.homes.iter().map(|home| home.listen.as_str()).collect();
            self.shell.set("RANGEDB_ADDR", &addresses.join(","));
        }
        self.nodes[index] = Some(self.homes[index].start());
    }

    /// The output of a command, with names in place of values that differ from run to run.
    fn run(&mut self, command: &str) -> Vec<String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        let index = || words[1].parse::<usize>().expect("a node's number") - 1;
        match words[0] {
            "start" => self.start(index(), &words[2..]),
            "kill" => self.nodes[index()].take().expect("it runs").kill(),
            "stop" => {
                let node = self.nodes[index()].take().expect("it runs");
                node.signal("TERM");
                assert_eq!(node.wait().code(), Some(0), "{}", self.homes[index()].log());
            }
            _ => return self.named(&transcript(&self.shell.run(command))),
        }
        Vec::new()
    }

    /// Repeats the command until it prints this, or until the time is over; returns its last output.
    fn run_until(&mut self, command: &str, shown: &[String], timeout: Duration) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let known = self.versions.len();
            let found = self.run(command);
            if shown == found || begun.elapsed() > timeout {
                return found;
            }
            self.versions.truncate(known);
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn named(&mut self, text: &str) -> Vec<String> {
        let mut text = text.replace(&self.folder.path().display().to_string(), "FOLDER");
        for (number, home) in (1..).zip(&self.homes) {
            text = text.replace(&home.listen, &format!("node{number}"));
            text = text.replace(&home.http, &format!("http{number}"));
        }
        text = text.replace(&format!("  {}", env!("CARGO_PKG_VERSION")), "  RELEASE");
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let lines: Vec<String> = lines.map(|line| self.with_numbers_named(line)).collect();
        without_columns(lines)
    }

    fn with_numbers_named(&mut self, line: &str) -> String {
        let is_word = |c: char| c.is_ascii_alphanumeric();
        let mut named = String::new();
        let mut rest = line.trim_end();
        while let Some(first) = rest.chars().next() {
            let end = rest
                .find(|c: char| is_word(c) != is_word(first))
                .unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            rest = after;
            let are_all = |is: fn(&u8) -> bool| word.as_bytes().iter().all(is);
            if word.len() >= VERSION_DIGITS_MIN && are_all(u8::is_ascii_digit) {
                named.push_str(&self.version_name(word));
            } else if word.len() == CLUSTER_ID_DIGITS && are_all(u8::is_ascii_hexdigit) {
                named.push_str("CLUSTER");
            } else {
                named.push_str(word);
            }
        }
        named
    }

    fn version_name(&mut self, version: &str) -> String {
        let known = self.versions.iter().position(|known| known == version);
        let index = known.unwrap_or_else(|| {
            self.versions.push(version.to_owned());
            self.versions.len() - 1
        });
        let name = format!("v{}", index + 1);
        self.shell.set(&name, version);
        name
    }
}

/// The cells of a line of a table. Columns are at least two spaces apart.
fn cells(line: &str) -> impl Iterator<Item = &str> {
    let cells = line.split("  ").map(str::trim);
    cells.filter(|cell| !cell.is_empty())
}

/// A table's lines with `*` in the columns that depend on time, and the columns two spaces apart.
fn without_columns(mut lines: Vec<String>) -> Vec<String> {
    let Some((heading, rows)) = lines.split_first_mut() else {
        return lines;
    };
    let masked: Vec<bool> = cells(heading)
        .map(|name| MASKED_COLUMNS.contains(&name))
        .collect();
    if masked.contains(&true) {
        *heading = cells(heading).collect::<Vec<&str>>().join("  ");
        for row in rows {
            let cells = cells(row)
                .enumerate()
                .map(|(index, cell)| match masked.get(index) {
                    Some(true) => "*",
                    _ => cell,
                });
            *row = cells.collect::<Vec<&str>>().join("  ");
        }
    }
    lines
}

fn run(name: &str) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(name);
    let before = std::fs::read_to_string(&path).expect("the script");
    let is_update = std::env::var("RANGEDB_GOLDEN").is_ok_and(|mode| mode == "update");
    let mut stage = Stage::new();
    let mut items = parse(&before);
    for item in &mut items {
        let Item::Command(command, shown) = item else {
            continue;
        };
        let timeout = if is_update { SETTLES_WITHIN } else { TIMEOUT };
        let found = match command.strip_prefix("eventually ") {
            Some(command) => stage.run_until(command, shown, timeout),
            None => stage.run(command),
        };
        let (shown_text, found_text) = (shown.join("\n"), found.join("\n"));
        let logs: String = stage.homes.iter().map(Home::log).collect();
        assert!(
            is_update || *shown == found,
            "{name}: $ {command}\nthe script shows:\n{shown_text}\nit prints:\n{found_text}\n\
             If that is right, run the test with RANGEDB_GOLDEN=update.\nlogs:\n{logs}"
        );
        *shown = found;
    }
    if is_update {
        std::fs::write(&path, render(&items)).expect("written");
    }
}

/// A script whose commands are only written down would pass.
#[test]
fn a_script_that_shows_something_else_fails() {
    let items = parse("# one\n$ a\n1\n2\n\n$ b\n");
    assert_eq!(render(&items), "# one\n$ a\n1\n2\n\n$ b\n");
    let mut stage = Stage::new();
    let first = stage.run("echo version 116837000000000001 116837000000000002");
    assert_eq!(first, ["version v1 v2"]);
    assert_eq!(stage.run("echo $v2; echo; exit 4"), ["v2", "[exit 4]"]);
    let table = ["id  epoch  end", "1   1.3    z"]
        .map(str::to_owned)
        .to_vec();
    assert_eq!(without_columns(table)[1], "1  *  z");
}

#[test]
fn recovery() {
    run("recovery.txt");
}

#[test]
fn conditional_writes() {
    run("conditions.txt");
}

#[test]
fn batches() {
    run("batches.txt");
}

#[test]
fn splits() {
    run("splits.txt");
}

#[test]
fn routing() {
    run("routing.txt");
}

#[test]
fn leadership() {
    run("leadership.txt");
}

#[test]
fn moved_replicas() {
    run("moved.txt");
}
