//! `compare redis`: reads, scans and writes of one node, beside redis-server. The server runs on the
//! first core, the load generator on the second.
//!
//! `loadgen` drives RangeDB, as [`one_node`](super::one_node) says, and `redis-benchmark` drives Redis. In each
//! round both start anew and are loaded. Redis serves gets without persistence, and puts with `appendfsync
//! always`. The medians of all rounds are printed, with the least and the most; a ratio is that of one round.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::one_node::{
    Build, CLIENT_CPU, Measured, OPTIONS, Plan, Programs, SERVER_CPU, WORKS, Work,
};
use super::{Figures, VALUE_SIZE, cpu_seconds, table};
use crate::Outcome;
use crate::node::free_port;
use crate::process::{self, Background, output, stop_children_on_signals};

const READY_WITHIN: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What a work is compared with.
#[derive(Clone, Copy)]
enum Beside {
    /// A work on Redis.
    Redis(&'static RedisWork),
    /// Another work of RangeDB.
    Work(&'static str),
    /// Nothing.
    Nothing,
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

/// What a work is compared with.
fn beside(work: &Work) -> Beside {
    match work.name {
        "get 16 x 32, at first" | "get 16 x 32" | "large get, zipfian" | "large get, uniform" => {
            Beside::Redis(&GET_MANY)
        }
        "get 16 x 1" => Beside::Redis(&GET_ONE),
        "key of a multi-get of 100" => Beside::Work("get 16 x 32"),
        "put 1 x 1" => Beside::Redis(&PUT_ALONE),
        "put 64 x 1" => Beside::Redis(&PUT_ONE),
        "put 16 x 32" => Beside::Redis(&PUT_MANY),
        _ => Beside::Nothing,
    }
}

fn parse(options: &[&str]) -> Result<Plan, String> {
    let mut plan = Plan::new();
    match options.chunks(2).all(|option| plan.take(option)) {
        true => Ok(plan),
        false => Err(format!("usage: compare redis {OPTIONS}")),
    }
}

/// The chosen works, and those that they are compared with.
fn works_of(plan: &Plan) -> Vec<&'static Work> {
    let is_beside = |work: &Work| {
        let mut chosen = WORKS.iter().filter(|other| plan.has(other));
        chosen.any(|other| matches!(beside(other), Beside::Work(name) if name == work.name))
    };
    let works = WORKS.iter();
    works
        .filter(|work| plan.has(work) || is_beside(work))
        .collect()
}

/// The works on Redis that these are compared with.
fn redis_works(works: &[&Work]) -> Vec<&'static RedisWork> {
    let mut all: Vec<&RedisWork> = Vec::new();
    for work in works {
        if let Beside::Redis(work) = beside(work)
            && all.iter().all(|other| other.name != work.name)
        {
            all.push(work);
        }
    }
    all
}

/// The figures of one round.
#[derive(Default)]
struct Round {
    rangedb: Measured,
    redis: Measured,
}

/// Builds the binaries, measures both servers in turn, and prints a table after each round.
pub fn run(options: &[&str]) -> Outcome {
    let plan = parse(options)?;
    let works = works_of(&plan);
    let redis_works = redis_works(&works);
    if !redis_works.is_empty() {
        check_installed("redis-server")?;
        check_installed("redis-benchmark")?;
    }
    process::build_programs()?;
    stop_children_on_signals()?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let large = folder.path().join("large");
    let build = Build::new(Programs::of_this()?, &large, &plan, &works)?;
    let mut rounds = Vec::new();
    for number in 1..=plan.common.rounds {
        let place = folder.path().join(format!("round-{number}"));
        std::fs::create_dir(&place).map_err(|error| error.to_string())?;
        let mut round = Round {
            rangedb: build.measure(&place.join("rangedb"), &plan)?,
            redis: BTreeMap::new(),
        };
        for is_read in [true, false] {
            let works = redis_works.iter().filter(|work| work.is_read == is_read);
            let works: Vec<&RedisWork> = works.copied().collect();
            if !works.is_empty() {
                round
                    .redis
                    .append(&mut measure_redis(&place, &plan, &works)?);
            }
        }
        std::fs::remove_dir_all(&place).map_err(|error| error.to_string())?;
        rounds.push(round);
        print(&plan, &works, &rounds);
    }
    build.stop()
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

/// Measures works that all read, or all write, on a Redis of their own.
fn measure_redis(
    folder: &Path,
    plan: &Plan,
    works: &[&'static RedisWork],
) -> Result<Measured, String> {
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
    let records = plan.records()? as f64 * 3.0;
    benchmark(records, &["-t", "set", "-c", "16", "-P", "64"])?;
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

fn print(plan: &Plan, works: &[&Work], rounds: &[Round]) {
    println!("\n{}", plan.describe(rounds.len()));
    println!("redis: gets without persistence, puts with appendfsync always");
    table::heading();
    for work in works {
        let ours = |round: &Round| round.rangedb.get(work.name).copied();
        table::figures(work.name, "rangedb", rounds, ours);
        match beside(work) {
            Beside::Redis(work) => {
                let theirs = |round: &Round| round.redis.get(work.name).copied();
                table::figures("", "redis", rounds, theirs);
                table::ratio(work.name, rounds, ours, theirs);
            }
            Beside::Work(name) => {
                let other = |round: &Round| round.rangedb.get(name).copied();
                table::ratio(name, rounds, ours, other);
            }
            Beside::Nothing => {}
        }
    }
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
        let works = works_of(&parse(options).expect("options"));
        works.iter().map(|work| work.name).collect()
    }

    #[test]
    fn works_are_chosen_with_those_that_they_are_compared_with() {
        assert_eq!(names(&[]).len(), WORKS.len());
        let chosen = names(&["--rows", "multi-get,scan"]);
        assert_eq!(chosen.len(), 4);
        assert!(chosen.contains(&"get 16 x 32"));
        for wrong in [&["--rows", "gets"][..], &["--rows", ""], &["--rows"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn works_are_compared_with_what_exists() {
        let mut with_redis = 0;
        for work in &WORKS {
            match beside(work) {
                Beside::Work(name) => {
                    assert!(WORKS.iter().any(|other| other.name == name), "{name}");
                }
                Beside::Redis(_) => with_redis += 1,
                Beside::Nothing => assert_eq!(work.group, "scan"),
            }
        }
        assert_eq!(with_redis, 8);
    }
}
