//! Every command that a README shows is run, in the order in which the page has them.
//!
//! Blocks of the languages `sh` and `console` are run line by line, each block in a folder of its own. In a
//! `console` block a command stands after `$ `, and what follows is what it prints, where `...` stands for
//! anything. A block that starts a node has that node to itself; for any other one a node runs. What a page
//! calls 127.0.0.1:7400, 127.0.0.1:7480 or 10.0.0.N:7400 is an address with a free port here. Words after the
//! language, which no reader sees, say what else the block needs:
//!
//! | after the language | |
//! |---|---|
//! | `on: cluster` | four nodes, and a range 7 on nodes 1 to 3; `systemctl` stops or restarts a node there |
//! | `on: cluster without node 3` | the same; node 3 is lost with its disk |
//! | `on: machines` | the block is run on three machines, with each machine's own address after `--listen` |
//! | `on: a new host` | a machine of its own with systemd, where the block runs as root, and what it starts must work |
//! | `on: the host` | the same machine as for the block before; Grafana, which Debian lacks, is a stand-in there |
//! | `not run: REASON` | the block is not run; its scripts must exist |
//!
//! A block that says none of that is run, and so is every line of it. The programs of the client's page are
//! run by `programs.rs`.

mod on_host;
mod programs;

use std::path::Path;

use rangedb_tests::cluster::{
    SECRET, addresses, nodes, start_all, status, wait_for, wait_until_replicated,
};
use rangedb_tests::console::{Shell, matches, steps, transcript};
use rangedb_tests::net::available;
use rangedb_tests::process::{Home, Node, binary, free_port};
use tempfile::TempDir;

/// Languages of blocks that hold no commands.
const NO_COMMANDS: [&str; 3] = ["rust,no_run", "text", "toml"];
/// Programs of the workspace that a page may name. Their words and flags are checked.
const PROGRAMS: [&str; 2] = ["rangedb", "loadgen"];
/// Files that commands on the pages read.
const FILES: [(&str, &[u8]); 3] = [
    ("a.png", b"\x89PNG\0\xff"),
    ("photo.png", b"\x89PNG\0\xff"),
    ("borders.txt", b"ba\nbb\nuser/7\n"),
];
/// Sizes and times on the pages, and those of the test.
const SMALLER: [(&str, &str); 4] = [
    ("--records 1000000", "--records 2000"),
    ("--duration 10", "--duration 1"),
    ("--duration 60", "--duration 1"),
    ("--rate 50000", "--rate 500"),
];
/// Machines of `on: machines`.
const MACHINES: usize = 3;

/// A fenced block of a page.
#[derive(Debug)]
struct Block {
    /// `PAGE:LINE`, for messages.
    place: String,
    language: String,
    /// What stands after the language.
    needs: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("it is in the workspace")
}

fn read(page: &str) -> String {
    std::fs::read_to_string(root().join(page)).expect("the page")
}

/// The fenced blocks of a page, and its text without them.
fn blocks(page: &str) -> (Vec<Block>, String) {
    let (mut blocks, mut open, mut prose) = (Vec::new(), None::<Block>, String::new());
    for (number, line) in (1..).zip(read(page).lines()) {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => {
                let (language, needs) = info.split_once(' ').unwrap_or((info, ""));
                open = Some(Block {
                    place: format!("{page}:{number}"),
                    language: language.to_owned(),
                    needs: needs.to_owned(),
                    text: String::new(),
                });
            }
            (Some(_), Some("")) => blocks.extend(open.take()),
            (Some(block), _) => block.text.extend([line, "\n"]),
            (None, None) => prose.extend([line, "\n"]),
        }
    }
    assert!(open.is_none(), "{page}: a block does not end");
    (blocks, prose)
}

/// A block's commands, each with what the page says that it prints, if it says so.
fn commands(block: &Block) -> Vec<(String, Option<Vec<String>>)> {
    if block.language == "console" {
        let steps = steps(&block.text).unwrap_or_else(|why| panic!("{}: {why}", block.place));
        let shown = steps
            .into_iter()
            .map(|step| (step.command, Some(step.output)));
        return shown.collect();
    }
    let text = block.text.replace("\\\n", "");
    let lines = text.lines().map(str::trim);
    let commands = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    commands.map(|line| (line.to_owned(), None)).collect()
}

/// A machine of a cluster.
struct Machine {
    /// The node's id.
    id: u64,
    home: Home,
    node: Option<Node>,
}

impl Machine {
    /// Does what a command of `systemctl` does to the node.
    fn service(&mut self, verb: &str, at: &str) {
        let node = self.node.take().expect("it runs");
        node.signal("TERM");
        assert_eq!(node.wait().code(), Some(0), "{at}\n{}", self.home.log());
        match verb {
            "disable" | "stop" => {}
            "restart" => self.node = Some(self.home.start()),
            verb => panic!("{at}: what is {verb}?"),
        }
    }
}

/// Where the commands of a block run, and what runs there.
struct Place<'a> {
    block: &'a Block,
    // Nodes go before the folder that they live in.
    nodes: Vec<Node>,
    /// The machines of a cluster, of which one may be restarted.
    machines: Vec<Machine>,
    shell: Shell,
    /// What a page says, and what it is here.
    names: Vec<(String, String)>,
    /// Whether a command may be refused for a while, until a change before it is done.
    is_patient: bool,
    folder: TempDir,
}

impl<'a> Place<'a> {
    fn new(block: &'a Block) -> Place<'a> {
        let folder = tempfile::tempdir().expect("a folder");
        for (file, bytes) in FILES {
            std::fs::write(folder.path().join(file), bytes).expect("written");
        }
        let owned = |(from, to): (&str, &str)| (from.to_owned(), to.to_owned());
        let mut place = Place {
            block,
            nodes: Vec::new(),
            machines: Vec::new(),
            shell: Shell::new(folder.path()),
            names: SMALLER.map(owned).to_vec(),
            is_patient: false,
            folder,
        };
        place.live_at(&Home::new(place.folder.path(), &[]));
        place
    }

    /// Has the addresses of the page be those of this home.
    fn live_at(&mut self, home: &Home) {
        self.shell.set("RANGEDB_ADDR", &home.listen);
        self.shell.set("RANGEDB_LISTEN", &home.listen);
        self.shell.set("RANGEDB_HTTP", &home.http);
        self.names
            .push(("127.0.0.1:7400".to_owned(), home.listen.clone()));
        self.names
            .push(("127.0.0.1:7480".to_owned(), home.http.clone()));
    }

    /// A line of the page with the names of this place.
    fn localized(&self, line: &str) -> String {
        let replaced = |line: String, (from, to): &(String, String)| line.replace(from, to);
        self.names.iter().fold(line.to_owned(), replaced)
    }

    /// Begins to start a node as a line says.
    fn spawn(&self, line: &str) -> Node {
        let line = line.split(" #").next().unwrap_or(line).trim();
        let line = format!("exec {}", line.trim_end_matches('&'));
        let log = std::fs::File::options();
        let log = log.clone().create(true).append(true).open(self.log());
        Node::spawn(&mut self.shell.command(&line), log.expect("a log"))
    }

    fn log(&self) -> std::path::PathBuf {
        self.folder.path().join("nodes.log")
    }

    fn wait_until_ready(&mut self, mut started: Vec<Node>) {
        for node in &mut started {
            let log = || std::fs::read_to_string(self.log()).unwrap_or_default();
            assert!(
                node.becomes_ready(),
                "{}: no node:\n{}",
                self.block.place,
                log()
            );
        }
        self.nodes.append(&mut started);
    }

    fn run(&mut self, line: &str, shown: Option<&Vec<String>>) {
        let line = self.localized(line);
        let at = format!("{}: {line}", self.block.place);
        if let Some((name, value)) = line
            .strip_prefix("export ")
            .and_then(|set| set.split_once('='))
        {
            return self.shell.set(name, value.trim_matches('"'));
        }
        if line.starts_with("rangedb start ") {
            let node = self.spawn(&line);
            return self.wait_until_ready(vec![node]);
        }
        if let Some(order) = line.strip_prefix("systemctl ") {
            let id = order.rsplit_once("# on the machine of node ");
            let id = id.and_then(|(_, id)| id.trim().parse::<u64>().ok());
            let mut machines = self.machines.iter_mut();
            let machine = machines.find(|machine| Some(machine.id) == id);
            let verb = order.split(' ').next().unwrap_or_default();
            return machine.expect(&at).service(verb, &at);
        }
        let mut output = self.shell.run(&line);
        if self.is_patient && !output.status.success() {
            wait_for(&at, || {
                output = self.shell.run(&line);
                output.status.success().then_some(())
            });
        }
        let text = transcript(&output);
        assert!(output.status.success(), "{at}\n{text}");
        if let Some(shown) = shown {
            let found: Vec<&str> = text.lines().collect();
            assert!(
                matches(shown, &found),
                "{at}\nthe page shows {shown:#?}\nit prints {found:#?}"
            );
        }
    }
}

fn run_with_a_node(block: &Block) {
    let mut place = Place::new(block);
    let commands = commands(block);
    if !commands
        .iter()
        .any(|(line, _)| line.starts_with("rangedb start "))
    {
        let node = place.spawn("rangedb start --data-dir data --shards 1");
        place.wait_until_ready(vec![node]);
    }
    for (line, shown) in &commands {
        place.run(line, shown.as_ref());
    }
}

/// Runs the block on three machines at once, each with its own address.
fn run_on_machines(block: &Block) {
    let mut place = Place::new(block);
    let mut homes = Vec::new();
    for number in 1..=MACHINES {
        let home = Home::new(place.folder.path(), &[]);
        place
            .names
            .push((format!("10.0.0.{number}:7400"), home.listen.clone()));
        homes.push(home);
    }
    let mut started = Vec::new();
    for (line, shown) in &commands(block) {
        if !line.starts_with("rangedb start ") {
            place.run(line, shown.as_ref());
            continue;
        }
        for (number, home) in (1..).zip(&homes) {
            place.shell.set("RANGEDB_HTTP", &home.http);
            let own = line.replace("--listen 10.0.0.1:", &format!("--listen 10.0.0.{number}:"));
            let own = own.replace("--data-dir DIR", &format!("--data-dir machine-{number}"));
            assert!(
                number == 1 || own != *line,
                "{}: no --listen 10.0.0.1",
                block.place
            );
            started.push(place.spawn(&place.localized(&own)));
        }
    }
    place.wait_until_ready(started);
    wait_for("a cluster of all machines", || {
        let alive = nodes(&homes[0])?
            .into_values()
            .filter(|(state, _)| state == "alive");
        (alive.count() == MACHINES).then_some(())
    });
}

/// Runs the block on a cluster of four nodes that moves nothing by itself, perhaps after one was lost.
fn run_on_a_cluster(block: &Block, lost: Option<u64>) {
    let mut place = Place::new(block);
    let listen = [(); 4].map(|()| format!("127.0.0.1:{}", free_port()));
    let home = |number: usize, flags: &[&str]| {
        let folder = place.folder.path().join(number.to_string());
        std::fs::create_dir(&folder).expect("a folder");
        let always = ["--shards", "1", "--cluster-secret", SECRET, "--join"];
        let list = listen[..3].join(",");
        let mut home = Home::new(&folder, &[&always, &[list.as_str()][..], flags].concat());
        home.listen.clone_from(&listen[number]);
        home
    };
    let flags = ["--bootstrap-expect", "3", "--split-at", "b,c,d,e,f"];
    let mut homes: Vec<Home> = (0..3).map(|number| home(number, &flags)).collect();
    homes.push(home(3, &[]));
    let started = start_all(&homes[..3]);
    wait_until_replicated(&homes[..3]);
    homes[0].set("balance", "off");
    let fourth = Some(homes[3].start());
    wait_for("nodes that all know where the fourth one is", || {
        let known = |home: &Home| std::fs::read_to_string(home.folder.join("node.json"));
        let mut known = homes.iter().map(known);
        known
            .all(|text| text.is_ok_and(|text| text.contains("\"4\":")))
            .then_some(())
    });
    place.shell.set("RANGEDB_ADDR", &addresses(&homes));
    place.is_patient = true;
    let rows = "loadgen load --records 20000 --depth 16 --addr $RANGEDB_ADDR";
    assert!(place.shell.run(rows).status.success(), "{}", block.place);
    for (home, node) in homes.iter().zip(started.into_iter().chain([fourth])) {
        let id = status(home)["node"].as_u64().expect("an id");
        let (home, node) = (home.clone(), node.filter(|_| lost != Some(id)));
        place.machines.push(Machine { id, home, node });
    }
    if lost.is_some() {
        let soon = place.shell.run("rangedb config set dead-after 4s");
        assert!(soon.status.success(), "{soon:?}");
    }
    for (line, shown) in &commands(block) {
        place.run(line, shown.as_ref());
    }
}

/// A block that is not run names scripts that exist, and uses of them that their help has.
fn look_at(block: &Block) {
    for (line, _) in commands(block) {
        for part in line.split("&&") {
            let word = part.split_whitespace().next().unwrap_or_default();
            let is_ours = word.starts_with("scripts/") || word.starts_with(".ci/");
            assert!(
                !is_ours || root().join(word).is_file(),
                "{}: {word}",
                block.place
            );
        }
    }
}

/// Runs a page's blocks; the number of those that were run.
fn run_page(page: &str) -> usize {
    let (blocks, prose) = blocks(page);
    let (mut count, mut host) = (0, None);
    for block in &blocks {
        if NO_COMMANDS.contains(&block.language.as_str()) {
            continue;
        }
        let is_shell = ["sh", "console"].contains(&block.language.as_str());
        assert!(is_shell, "{}: what is {:?}?", block.place, block.language);
        count += 1;
        match block.needs.split_once(": ") {
            _ if block.needs.is_empty() => run_with_a_node(block),
            Some(("on", "machines")) => run_on_machines(block),
            Some(("on", "cluster")) => run_on_a_cluster(block, None),
            Some(("on", "cluster without node 3")) => run_on_a_cluster(block, Some(3)),
            Some(("on", place @ ("a new host" | "the host"))) => {
                if place == "a new host" {
                    host = available(on_host::new());
                }
                if let Some(host) = &host {
                    on_host::run(block, host);
                }
            }
            Some(("not run", reason)) if !reason.is_empty() => {
                look_at(block);
                count -= 1;
            }
            _ => panic!("{}: what is {:?}?", block.place, block.needs),
        }
    }
    check_prose(page, &prose);
    count
}

/// What the programs say about themselves and all their commands, and what the scripts do.
fn help() -> String {
    let mut text = String::new();
    for program in PROGRAMS {
        let mut waiting = vec![vec![program.to_owned()]];
        while let Some(words) = waiting.pop() {
            let mut asked = std::process::Command::new(binary(program));
            let output = asked
                .args(&words[1..])
                .arg("--help")
                .output()
                .expect("it runs");
            let help = String::from_utf8_lossy(&output.stdout).into_owned();
            let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
            let listed = listed.take_while(|line| !line.is_empty());
            for name in listed.filter_map(|line| line.split_whitespace().next()) {
                if name != "help" {
                    waiting.push([&words[..], &[name.to_owned()]].concat());
                }
            }
            text.extend([words.join(" ").as_str(), "\n", help.as_str()]);
        }
    }
    text + &read("scripts/src/main.rs")
}

/// Commands and flags that stand in the text of a page exist.
fn check_prose(page: &str, prose: &str) {
    let help = help();
    let has = |word: &str| {
        let mut found = help.match_indices(word);
        let is_end = |after: char| !after.is_ascii_alphanumeric() && after != '-';
        found.any(|(at, _)| help[at + word.len()..].chars().next().is_none_or(is_end))
    };
    for span in prose.split('`').skip(1).step_by(2) {
        let mut words = span.split_whitespace();
        let first = words.next().unwrap_or_default();
        let is_command = PROGRAMS.contains(&first);
        let lower = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        let names = words
            .clone()
            .take_while(|word| !word.starts_with('-'))
            .take_while(lower);
        if is_command {
            let command = [first]
                .into_iter()
                .chain(names)
                .collect::<Vec<_>>()
                .join(" ");
            assert!(has(&command), "{page}: there is no command `{command}`");
        }
        let flags = [first]
            .into_iter()
            .chain(words)
            .filter(|word| word.starts_with("--"));
        for flag in flags.filter(|flag| flag.len() > 2) {
            let flag = flag.split(['=', '[', ']']).next().unwrap_or(flag);
            assert!(has(flag), "{page}: there is no flag {flag}");
        }
    }
}

#[test]
fn the_front_page() {
    run_page("README.md");
}

#[test]
fn the_page_for_operators() {
    assert!(run_page("server/README.md") >= 3);
}

#[test]
fn the_page_for_operation() {
    assert!(run_page("server/OPERATING.md") >= 4);
}

#[test]
fn the_page_of_metrics() {
    run_page("server/METRICS.md");
}

#[test]
fn the_page_of_the_client() {
    run_page("client/README.md");
    programs::are_those_of("client/README.md");
    programs::are_those_of_the_documentation();
}

#[test]
fn the_page_of_the_engine() {
    run_page("engine/README.md");
}

#[test]
fn the_page_of_the_tests() {
    run_page("tests/README.md");
}

#[test]
fn the_page_about_measuring() {
    assert!(run_page("loadgen/README.md") >= 1);
}
