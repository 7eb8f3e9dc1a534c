//! `compare redis`: reads, scans and writes of one node, beside redis-server. The server runs on the
//! first core, the load generator on the second.
//!
//! `loadgen` drives RangeDB, `redis-benchmark` drives Redis. In each round both start anew and are
//! loaded; reads are measured before writes. RangeDB's first row begins when the load ends. Before
//! the other reads every record has been read several times, so that the row cache holds what it can.
//! Redis serves gets without persistence, and puts with `appendfsync always`. The rows of the group
//! `large` have ten times as many records, in one node for all rounds. The medians of all rounds are
//! printed, with the least and the most; a ratio is that of one round.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Figures, Options, Spread, VALUE_SIZE, cpu_seconds, figures_of_loadgen};
use crate::Outcome;
use crate::node::{Node, free_port};
use crate::process::{self, Background, output, release_binary, stop_children_on_signals};

const SERVER_CPU: &str = "0";
const CLIENT_CPU: &str = "1";
const READY_WITHIN: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Seconds of a run that comes before the measured one.
const WARMUP: &str = "1";
/// How long reads are measured that begin when the load ends.
const FIRST_SECONDS: &str = "10";
/// How often each record is read, on average, before reads are measured.
const PASSES: f64 = 5.0;
/// How many times as many records the group `large` has, and how often each is read before.
const LARGE_TIMES: u64 = 10;
const LARGE_PASSES: f64 = 1.0;
const GROUPS: [&str; 5] = ["get", "multi-get", "scan", "put", "large"];
const USAGE: &str = "usage: compare redis [--rows get,scan,multi-get,put,large] [--records N] \
                     [--seconds N] [--rounds N] [--memory SIZE]";

/// What a row of the table is compared with.
#[derive(Clone, Copy)]
enum Beside {
    /// A work on Redis.
    Redis(&'static RedisWork),
    /// Another row, of RangeDB.
    Row(&'static str),
    /// Nothing.
    Nothing,
}

/// How a row is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    /// By `loadgen run`, after a short run.
    Warm,
    /// By `loadgen run`, as soon as the records are loaded.
    AfterLoad,
    /// By `loadgen scan`.
    FullScan,
}

/// A row of the table.
struct Row {
    group: &'static str,
    name: &'static str,
    method: Method,
    /// The workload, as words of loadgen's command line.
    words: &'static str,
    beside: Beside,
}

const fn row(
    (group, name): (&'static str, &'static str),
    method: Method,
    words: &'static str,
    beside: Beside,
) -> Row {
    Row {
        group,
        name,
        method,
        words,
        beside,
    }
}

/// A work on Redis.
struct RedisWork {
    name: &'static str,
    is_read: bool,
    connections: &'static str,
    depth: &'static str,
    /// Redis's usual rate. The number of requests is this times the seconds to measure.
    rate: f64,
}

const fn redis_work(
    name: &'static str,
    is_read: bool,
    (connections, depth): (&'static str, &'static str),
    rate: f64,
) -> RedisWork {
    RedisWork {
        name,
        is_read,
        connections,
        depth,
        rate,
    }
}

static GET_MANY: RedisWork = redis_work("get 16 x 32", true, ("16", "32"), 5e5);
static GET_ONE: RedisWork = redis_work("get 16 x 1", true, ("16", "1"), 1e5);
static PUT_ALONE: RedisWork = redis_work("put 1 x 1", false, ("1", "1"), 2.7e3);
static PUT_ONE: RedisWork = redis_work("put 64 x 1", false, ("64", "1"), 5e4);
static PUT_MANY: RedisWork = redis_work("put 16 x 32", false, ("16", "32"), 2e5);

/// The rows in the order in which they are measured.
static ROWS: [Row; 11] = [
    row(
        ("get", "get 16 x 32, at first"),
        Method::AfterLoad,
        "--workload c --distribution uniform --connections 16 --depth 32",
        Beside::Redis(&GET_MANY),
    ),
    row(
        ("get", "get 16 x 32"),
        Method::Warm,
        "--workload c --distribution uniform --connections 16 --depth 32",
        Beside::Redis(&GET_MANY),
    ),
    row(
        ("get", "get 16 x 1"),
        Method::Warm,
        "--workload c --distribution uniform --connections 16 --depth 1",
        Beside::Redis(&GET_ONE),
    ),
    row(
        ("multi-get", "key of a multi-get of 100"),
        Method::Warm,
        "--workload c --distribution uniform --connections 16 --depth 1 --batch 100",
        Beside::Row("get 16 x 32"),
    ),
    row(
        ("scan", "scan of 50 rows (E)"),
        Method::Warm,
        "--workload e --distribution uniform --connections 16 --depth 1",
        Beside::Nothing,
    ),
    row(
        ("scan", "row of a scan of all"),
        Method::FullScan,
        "",
        Beside::Nothing,
    ),
    row(
        ("put", "put 1 x 1"),
        Method::Warm,
        "--workload write --distribution uniform --connections 1 --depth 1",
        Beside::Redis(&PUT_ALONE),
    ),
    row(
        ("put", "put 64 x 1"),
        Method::Warm,
        "--workload write --distribution uniform --connections 64 --depth 1",
        Beside::Redis(&PUT_ONE),
    ),
    row(
        ("put", "put 16 x 32"),
        Method::Warm,
        "--workload write --distribution uniform --connections 16 --depth 32",
        Beside::Redis(&PUT_MANY),
    ),
    row(
        ("large", "large get, zipfian"),
        Method::Warm,
        "--workload c --distribution zipfian --connections 16 --depth 32",
        Beside::Redis(&GET_MANY),
    ),
    row(
        ("large", "large get, uniform"),
        Method::Warm,
        "--workload c --distribution uniform --connections 16 --depth 32",
        Beside::Redis(&GET_MANY),
    ),
];

/// What is measured, and how.
struct Plan {
    common: Options,
    /// The budget of a node's memory, as `rangedb start --memory` takes it.
    memory: String,
    rows: Vec<&'static Row>,
}

fn parse(options: &[&str]) -> Result<Plan, String> {
    let mut plan = Plan {
        common: Options {
            records: "1000000".to_owned(),
            seconds: 5.0,
            rounds: 5,
        },
        memory: "2GiB".to_owned(),
        rows: rows_of(&GROUPS),
    };
    for pair in options.chunks(2) {
        match pair {
            ["--rows", groups] => {
                let groups: Vec<&str> = groups.split(',').collect();
                if !groups.iter().all(|group| GROUPS.contains(group)) {
                    return Err(USAGE.to_owned());
                }
                plan.rows = rows_of(&groups);
            }
            ["--memory", size] => plan.memory = (*size).to_owned(),
            option if plan.common.take(option) => {}
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(plan)
}

/// The rows of these groups, and those that they are compared with.
fn rows_of(groups: &[&str]) -> Vec<&'static Row> {
    let chosen = |row: &Row| groups.contains(&row.group);
    let is_beside = |row: &Row| {
        let mut others = ROWS.iter().filter(|other| chosen(other));
        others.any(|other| matches!(other.beside, Beside::Row(name) if name == row.name))
    };
    let rows = ROWS.iter();
    rows.filter(|row| chosen(row) || is_beside(row)).collect()
}

/// The works on Redis that the rows are compared with.
fn redis_works(rows: &[&Row]) -> Vec<&'static RedisWork> {
    let mut works: Vec<&RedisWork> = Vec::new();
    for row in rows {
        if let Beside::Redis(work) = row.beside
            && works.iter().all(|other| other.name != work.name)
        {
            works.push(work);
        }
    }
    works
}

/// The figures of one round by the names of rows and works.
#[derive(Default)]
struct Round {
    rangedb: BTreeMap<&'static str, Figures>,
    redis: BTreeMap<&'static str, Figures>,
}

/// Builds the binaries, measures both servers in turn, and prints a table after each round.
pub fn run(options: &[&str]) -> Outcome {
    let plan = parse(options)?;
    let works = redis_works(&plan.rows);
    if !works.is_empty() {
        check_installed("redis-server")?;
        check_installed("redis-benchmark")?;
    }
    process::build_programs()?;
    stop_children_on_signals()?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (large_rows, rows): (Vec<&Row>, Vec<&Row>) =
        plan.rows.iter().partition(|row| row.group == "large");
    let large = match large_rows.is_empty() {
        true => None,
        false => Some(start_large(&folder.path().join("large"), &plan)?),
    };
    let mut rounds = Vec::new();
    for number in 1..=plan.common.rounds {
        let place = folder.path().join(format!("round-{number}"));
        std::fs::create_dir(&place).map_err(|error| error.to_string())?;
        let mut round = Round::default();
        if !rows.is_empty() {
            round.rangedb = measure_rangedb(&place, &plan, &rows)?;
        }
        for is_read in [true, false] {
            let works = works.iter().filter(|work| work.is_read == is_read);
            let works: Vec<&RedisWork> = works.copied().collect();
            if !works.is_empty() {
                round
                    .redis
                    .append(&mut measure_redis(&place, &plan, &works)?);
            }
        }
        if let Some(server) = &large {
            let figures = large_rows.iter().map(|row| server.measure(row));
            for (row, figures) in large_rows.iter().zip(figures) {
                round.rangedb.insert(row.name, figures?);
            }
        }
        std::fs::remove_dir_all(&place).map_err(|error| error.to_string())?;
        rounds.push(round);
        print(&plan, &rounds);
    }
    large.map_or(Ok(()), |mut server| server.node.stop())
}

fn check_installed(program: &str) -> Outcome {
    let mut command = Command::new(program);
    let asked = command.arg("--version").stdout(Stdio::null()).status();
    asked.map(|_| ()).map_err(|error| {
        format!(
            "cannot run {program}: {error}; Debian's packages redis-server and redis-tools have it"
        )
    })
}

/// A node of RangeDB, and how it is driven.
struct Server {
    node: Node,
    loadgen: String,
    records: String,
    seconds: String,
}

impl Server {
    /// Starts a node with an empty folder and loads the records.
    fn start(data_dir: &Path, plan: &Plan, records: u64) -> Result<Server, String> {
        let flags = ["--shards", "1", "--cpus", SERVER_CPU, "--memory"];
        let node = Node::start(data_dir, &[&flags[..], &[&plan.memory]].concat())?;
        let server = Server {
            node,
            loadgen: release_binary("loadgen")?,
            records: records.to_string(),
            seconds: plan.common.seconds.to_string(),
        };
        server.drive("load", "--connections 16 --depth 32", &[])?;
        Ok(server)
    }

    /// Runs the load generator to its end; gives what it printed.
    fn drive(&self, command: &str, words: &str, more: &[&str]) -> Result<String, String> {
        let pinned = ["-c", CLIENT_CPU, &self.loadgen, command];
        let common = ["--addr", &self.node.listen, "--format", "json"];
        let records = match command {
            "scan" => Vec::new(),
            _ => vec!["--records", &self.records, "--value-size", VALUE_SIZE],
        };
        let words: Vec<&str> = words.split_whitespace().collect();
        output(
            "taskset",
            &[&pinned[..], &common, &records, &words, more].concat(),
        )
    }

    fn run_for(&self, row: &Row, seconds: &str) -> Result<String, String> {
        let times = ["--warmup", "0", "--duration", seconds];
        self.drive("run", row.words, &times)
    }

    /// Reads records until each was read so often, on average.
    fn warm(&self, passes: f64) -> Outcome {
        let records: f64 = self.records.parse().map_err(|_| "no number of records")?;
        let words = "--workload c --distribution uniform --connections 16 --batch 100";
        let mut left = records * passes;
        while left > 0.0 {
            let text = self.drive("run", words, &["--warmup", "0", "--duration", "2"])?;
            let figures = figures_of_loadgen(&text, 0.0)?;
            left -= figures.rate.max(1.0) * 2.0;
        }
        Ok(())
    }

    fn measure(&self, row: &Row) -> Result<Figures, String> {
        if row.method == Method::Warm {
            self.run_for(row, WARMUP)?;
        }
        let before = cpu_seconds(self.node.id())?;
        let text = match row.method {
            Method::Warm => self.run_for(row, &self.seconds),
            Method::AfterLoad => self.run_for(row, FIRST_SECONDS),
            Method::FullScan => self.drive("scan", row.words, &[]),
        }?;
        let used = cpu_seconds(self.node.id())? - before;
        figures_of_loadgen(&text, used)
    }
}

/// The node of the group `large`, with its records loaded and read.
fn start_large(data_dir: &Path, plan: &Plan) -> Result<Server, String> {
    let records: u64 = plan
        .common
        .records
        .parse()
        .map_err(|_| "no number of records")?;
    let server = Server::start(data_dir, plan, records * LARGE_TIMES)?;
    server.warm(LARGE_PASSES)?;
    Ok(server)
}

fn measure_rangedb(
    folder: &Path,
    plan: &Plan,
    rows: &[&'static Row],
) -> Result<BTreeMap<&'static str, Figures>, String> {
    let records = plan.common.records.parse();
    let records = records.map_err(|_| "no number of records")?;
    let mut server = Server::start(&folder.join("rangedb"), plan, records)?;
    let mut is_warm = false;
    let mut all = BTreeMap::new();
    for row in rows {
        if row.method != Method::AfterLoad && row.group != "put" && !is_warm {
            server.warm(PASSES)?;
            is_warm = true;
        }
        all.insert(row.name, server.measure(row)?);
    }
    server.node.stop()?;
    Ok(all)
}

/// Measures works that all read, or all write, on a Redis of their own.
fn measure_redis(
    folder: &Path,
    plan: &Plan,
    works: &[&'static RedisWork],
) -> Result<BTreeMap<&'static str, Figures>, String> {
    let is_read = works.iter().all(|work| work.is_read);
    let (name, append_only, test) = match is_read {
        true => ("redis-none", "no", "get"),
        false => ("redis-always", "yes", "set"),
    };
    let (mut server, port) = start_redis(&folder.join(name), append_only)?;
    let benchmark = |requests: f64, words: &[&str]| {
        let requests = format!("{requests:.0}");
        let pinned = ["-c", CLIENT_CPU, "redis-benchmark", "-p", &port, "--csv"];
        let keys = ["-r", &plan.common.records, "-d", VALUE_SIZE];
        let count = ["-n", requests.as_str()];
        output("taskset", &[&pinned[..], &keys, &count, words].concat())
    };
    // The keys are random: with three times as many requests as records, one key in twenty stays
    // absent.
    let records: f64 = plan
        .common
        .records
        .parse()
        .map_err(|_| "no number of records")?;
    benchmark(records * 3.0, &["-t", "set", "-c", "16", "-P", "64"])?;
    let mut all = BTreeMap::new();
    for work in works {
        let words = ["-t", test, "-c", work.connections, "-P", work.depth];
        let requests = (work.rate * plan.common.seconds).max(1000.0);
        benchmark(work.rate, &words)?;
        let before = cpu_seconds(server.id())?;
        let text = benchmark(requests, &words)?;
        let used = cpu_seconds(server.id())? - before;
        all.insert(work.name, figures_of_benchmark(&text, used / requests)?);
    }
    server.stop()?;
    Ok(all)
}

/// Starts a redis-server on a free port; gives the port, too.
fn start_redis(data_dir: &Path, append_only: &str) -> Result<(Background, String), String> {
    let port = free_port(6379)?.to_string();
    std::fs::create_dir(data_dir).map_err(|error| error.to_string())?;
    let mut command = Command::new("taskset");
    command
        .args(["-c", SERVER_CPU, "redis-server", "--port", &port])
        .args(["--save", "", "--appendonly", append_only])
        .args(["--appendfsync", "always", "--bind", "127.0.0.1", "--dir"])
        .arg(data_dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let server = Background::start(command, "redis-server")?;
    let begun = Instant::now();
    while std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_err() {
        if begun.elapsed() > READY_WITHIN {
            return Err("redis-server does not answer".to_owned());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok((server, port))
}

/// Parses a heading line and then `"test","rps","avg","min","p50","p95","p99","max"`; times are in
/// milliseconds.
fn figures_of_benchmark(text: &str, cpu_seconds_each: f64) -> Result<Figures, String> {
    let line = text
        .lines()
        .last()
        .ok_or("redis-benchmark printed nothing")?;
    let fields: Vec<f64> = line
        .split(',')
        .map(|field| field.trim_matches('"').parse().unwrap_or(f64::NAN))
        .collect();
    let &[_, rate, _, _, p50_ms, _, p99_ms, _] = fields.as_slice() else {
        return Err(format!("redis-benchmark printed: {line}"));
    };
    Ok(Figures {
        rate,
        p50_us: p50_ms * 1e3,
        p99_us: p99_ms * 1e3,
        cpu_us: cpu_seconds_each * 1e6,
    })
}

fn print(plan: &Plan, rounds: &[Round]) {
    let Plan { common, memory, .. } = plan;
    println!(
        "\nmedians of {} rounds of {} s (least-most); {} records ({LARGE_TIMES} times as many if \
         large), 16 byte keys, {VALUE_SIZE} byte values, --memory {memory}",
        rounds.len(),
        common.seconds,
        common.records
    );
    println!("redis: gets without persistence, puts with appendfsync always");
    line("work", ["", "ops/s", "p50 us", "p99 us", "server us/op"]);
    for row in &plan.rows {
        let ours = |round: &Round| round.rangedb.get(row.name).copied();
        print_figures(row.name, "rangedb", rounds, ours);
        match row.beside {
            Beside::Redis(work) => {
                let theirs = |round: &Round| round.redis.get(work.name).copied();
                print_figures("", "redis", rounds, theirs);
                print_ratio(work.name, rounds, ours, theirs);
            }
            Beside::Row(name) => {
                let other = |round: &Round| round.rangedb.get(name).copied();
                print_ratio(name, rounds, ours, other);
            }
            Beside::Nothing => {}
        }
    }
}

fn line(work: &str, [server, rate, p50, p99, cpu]: [&str; 5]) {
    println!("{work:<27}{server:<9}{rate:>26}{p50:>10}{p99:>10}{cpu:>26}");
}

/// Prints the figures of one server.
fn print_figures(
    work: &str,
    server: &str,
    rounds: &[Round],
    figures: impl Fn(&Round) -> Option<Figures>,
) {
    let spread = |figure: fn(Figures) -> f64| {
        let rounds = rounds.iter();
        Spread::of(rounds.filter_map(&figures).map(figure))
    };
    let (rate, cpu) = (spread(|f| f.rate).text(0), spread(|f| f.cpu_us).text(2));
    let p50 = format!("{:.0}", spread(|f| f.p50_us).median);
    let p99 = format!("{:.0}", spread(|f| f.p99_us).median);
    line(work, [server, &rate, &p50, &p99, &cpu]);
}

/// Prints what the figures are as multiples of others in the same round.
fn print_ratio(
    other: &str,
    rounds: &[Round],
    figures: impl Fn(&Round) -> Option<Figures>,
    others: impl Fn(&Round) -> Option<Figures>,
) {
    let spread = |figure: fn(Figures) -> f64| {
        let rounds = rounds.iter();
        Spread::of(rounds.filter_map(|round| {
            let (this, other) = (figures(round)?, others(round)?);
            Some(figure(this) / figure(other))
        }))
    };
    let (rate, cpu) = (spread(|f| f.rate).text(2), spread(|f| f.cpu_us).text(2));
    line(&format!("  / {other}"), ["ratio", &rate, "", "", &cpu]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_redis_benchmark_is_read() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\
                   \"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
                   \"GET\",\"500000.00\",\"0.9\",\"0.1\",\"0.923\",\"1.2\",\"1.5\",\"3.0\"\n";
        let figures = figures_of_benchmark(csv, 2e-6).expect("figures");
        assert_eq!((figures.rate, figures.p50_us.round()), (500_000.0, 923.0));
        assert!(figures_of_benchmark("", 0.0).is_err());
    }

    fn names(options: &[&str]) -> Vec<&'static str> {
        let plan = parse(options).expect("options");
        plan.rows.iter().map(|row| row.name).collect()
    }

    #[test]
    fn rows_are_chosen_with_those_that_they_are_compared_with() {
        assert_eq!(names(&[]).len(), ROWS.len());
        let chosen = names(&["--rows", "multi-get,scan"]);
        assert_eq!(chosen.len(), 4);
        assert!(chosen.contains(&"get 16 x 32"));
        for wrong in [&["--rows", "gets"][..], &["--rows", ""], &["--rows"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_row_is_of_a_group_and_compared_with_one_that_exists() {
        for row in &ROWS {
            assert!(GROUPS.contains(&row.group), "{}", row.name);
            if let Beside::Row(name) = row.beside {
                assert!(ROWS.iter().any(|other| other.name == name), "{name}");
            }
        }
    }
}
