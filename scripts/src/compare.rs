//! `compare redis`: the same work on RangeDB and then on redis-server. The server runs on the first
//! core, the load generator on the second.
//!
//! `loadgen` drives RangeDB, `redis-benchmark` drives Redis. CPU is the time per operation, user
//! and system, that the server's process used: the most reliable figure on a shared machine.

pub mod etcd;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::node::{Node, free_port};
use crate::process::{self, Background, output, release_binary, stop_children_on_signals};

const SERVER_CPU: &str = "0";
const CLIENT_CPU: &str = "1";
const VALUE_SIZE: &str = "128";
const READY_WITHIN: Duration = Duration::from_secs(10);
/// The kernel's unit of CPU time in /proc, which is the same wherever Rust's binaries for Linux
/// run.
const TICKS_PER_SECOND: f64 = 100.0;

/// The work of one line of the comparison.
struct Work {
    name: &'static str,
    is_read: bool,
    connections: &'static str,
    depth: &'static str,
    /// Redis's usual rate. The number of requests is this times the seconds to measure.
    redis_rate: f64,
}

const WORKS: [Work; 5] = [
    Work {
        name: "get 16 x 32",
        is_read: true,
        connections: "16",
        depth: "32",
        redis_rate: 5e5,
    },
    Work {
        name: "get 16 x 1",
        is_read: true,
        connections: "16",
        depth: "1",
        redis_rate: 1e5,
    },
    Work {
        name: "put 1",
        is_read: false,
        connections: "1",
        depth: "1",
        redis_rate: 2.7e3,
    },
    Work {
        name: "put 64",
        is_read: false,
        connections: "64",
        depth: "1",
        redis_rate: 5e4,
    },
    Work {
        name: "put 16 x 32",
        is_read: false,
        connections: "16",
        depth: "32",
        redis_rate: 2e5,
    },
];

/// The results of one server.
#[derive(Clone, Copy, Debug)]
struct Figures {
    rate: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
}

/// The options of every comparison.
struct Options {
    records: String,
    seconds: f64,
}

impl Options {
    /// Takes an option and its value; `false` if the option is unknown or its value invalid.
    fn take(&mut self, option: &[&str]) -> bool {
        match option {
            ["--records", number] if number.parse::<u64>().is_ok_and(|number| number > 0) => {
                self.records = (*number).to_owned();
                true
            }
            ["--seconds", number] => {
                let time = rangedb_duration::parse_or_seconds(number).ok();
                let seconds = time.map(|time| time.as_secs_f64());
                let seconds = seconds.filter(|seconds| *seconds > 0.0);
                self.seconds = seconds.unwrap_or(self.seconds);
                seconds.is_some()
            }
            _ => false,
        }
    }
}

fn parse(options: &[&str]) -> Result<Options, String> {
    let mut parsed = Options {
        records: "1000000".to_owned(),
        seconds: 5.0,
    };
    match options.chunks(2).all(|option| parsed.take(option)) {
        true => Ok(parsed),
        false => Err("usage: compare redis [--records N] [--seconds N]".to_owned()),
    }
}

/// Builds the binaries, measures both servers, and prints a table.
pub fn run(options: &[&str]) -> Outcome {
    let options = parse(options)?;
    process::build_release(&["rangedb-server", "rangedb-loadgen"])?;
    stop_children_on_signals()?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let ours = measure_rangedb(folder.path(), &options)?;
    let redis_reads = measure_redis(folder.path(), &options, true)?;
    let redis_writes = measure_redis(folder.path(), &options, false)?;
    println!(
        "\n{} records, 16 byte keys, {VALUE_SIZE} byte values, uniform",
        options.records
    );
    println!("redis: gets without persistence, puts with appendfsync always");
    println!(
        "{:<13}{:<9}{:>12}{:>10}{:>10}{:>16}",
        "work", "server", "ops/s", "p50 us", "p99 us", "server us/op"
    );
    for (index, work) in WORKS.iter().enumerate() {
        let redis = redis_reads[index].or(redis_writes[index]);
        let rows = [("rangedb", ours[index]), ("redis", redis)];
        for (server, figures) in rows {
            let Some(Figures {
                rate,
                p50_us,
                p99_us,
                cpu_us,
            }) = figures
            else {
                continue;
            };
            println!(
                "{:<13}{server:<9}{rate:>12.0}{p50_us:>10.0}{p99_us:>10.0}{cpu_us:>16.2}",
                work.name
            );
        }
        if let (Some(ours), Some(redis)) = (ours[index], redis) {
            let (rate, cpu) = (ours.rate / redis.rate, ours.cpu_us / redis.cpu_us);
            println!("{:<13}ratio    {rate:>12.2}{:>36.2}", "", cpu);
        }
    }
    Ok(())
}

fn measure_rangedb(folder: &Path, options: &Options) -> Result<Vec<Option<Figures>>, String> {
    let data_dir = folder.join("rangedb");
    let mut node = Node::start(&data_dir, &["--shards", "1", "--cpus", SERVER_CPU])?;
    let loadgen = release_binary("loadgen")?;
    let address = node.listen.clone();
    let drive = |words: &[&str]| {
        let pinned = ["-c", CLIENT_CPU, &loadgen];
        let common = [
            "--addr",
            &address,
            "--records",
            &options.records,
            "--format",
            "json",
        ];
        let sizes = ["--value-size", VALUE_SIZE];
        output("taskset", &[&pinned[..], words, &common, &sizes].concat())
    };
    drive(&["load", "--connections", "16", "--depth", "32"])?;
    let seconds = options.seconds.to_string();
    let mut all = Vec::new();
    for work in &WORKS {
        let shape = ["--connections", work.connections, "--depth", work.depth];
        let workload = if work.is_read { "c" } else { "write" };
        let how = ["run", "--workload", workload, "--distribution", "uniform"];
        let timing = |seconds| ["--duration", seconds, "--warmup", "0"];
        drive(&[&how[..], &shape, &timing("1")].concat())?;
        let before = cpu_seconds(node.id())?;
        let text = drive(&[&how[..], &shape, &timing(&seconds)].concat())?;
        let used = cpu_seconds(node.id())? - before;
        all.push(Some(figures_of_loadgen(&text, used)?));
    }
    node.stop()?;
    Ok(all)
}

fn figures_of_loadgen(text: &str, cpu_seconds: f64) -> Result<Figures, String> {
    let result: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("loadgen: {error}"))?;
    let number = |value: &serde_json::Value| value.as_f64().ok_or("loadgen: a figure is missing");
    let latency = &result["latency_us"]["all"];
    Ok(Figures {
        rate: number(&result["ops_per_second"])?,
        p50_us: number(&latency["p50"])?,
        p99_us: number(&latency["p99"])?,
        cpu_us: cpu_seconds * 1e6 / number(&result["operations"])?.max(1.0),
    })
}

fn measure_redis(
    folder: &Path,
    options: &Options,
    reads: bool,
) -> Result<Vec<Option<Figures>>, String> {
    let port = free_port(6379)?.to_string();
    let data_dir = folder.join(if reads { "redis-none" } else { "redis-always" });
    std::fs::create_dir(&data_dir).map_err(|error| error.to_string())?;
    let mut command = Command::new("taskset");
    command.args([
        "-c",
        SERVER_CPU,
        "redis-server",
        "--port",
        &port,
        "--save",
        "",
    ]);
    command.args([
        "--appendonly",
        if reads { "no" } else { "yes" },
        "--appendfsync",
        "always",
    ]);
    command
        .args(["--bind", "127.0.0.1", "--dir"])
        .arg(&data_dir);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = Background::start(command, "redis-server")?;
    wait_until_open(&port)?;
    let benchmark = |requests: f64, words: &[&str]| {
        let requests = format!("{requests:.0}");
        let pinned = ["-c", CLIENT_CPU, "redis-benchmark", "-p", &port, "--csv"];
        let keys = ["-r", &options.records, "-d", VALUE_SIZE, "-n", &requests];
        output("taskset", &[&pinned[..], &keys, words].concat())
    };
    // The keys are random: with three times as many requests as records, one key in twenty stays
    // absent.
    let records: f64 = options
        .records
        .parse()
        .map_err(|_| "no number of records")?;
    benchmark(records * 3.0, &["-t", "set", "-c", "16", "-P", "64"])?;
    let mut all = Vec::new();
    for work in &WORKS {
        if work.is_read != reads {
            all.push(None);
            continue;
        }
        let test = if reads { "get" } else { "set" };
        let words = ["-t", test, "-c", work.connections, "-P", work.depth];
        let requests = (work.redis_rate * options.seconds).max(1000.0);
        benchmark((requests / options.seconds).max(1000.0), &words)?;
        let before = cpu_seconds(server.id())?;
        let text = benchmark(requests, &words)?;
        let used = cpu_seconds(server.id())? - before;
        all.push(Some(figures_of_benchmark(&text, used / requests)?));
    }
    server.stop()?;
    Ok(all)
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
    let (p50_us, p99_us, cpu_us) = (p50_ms * 1e3, p99_ms * 1e3, cpu_seconds_each * 1e6);
    Ok(Figures {
        rate,
        p50_us,
        p99_us,
        cpu_us,
    })
}

fn wait_until_open(port: &str) -> Outcome {
    let begun = Instant::now();
    while std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_err() {
        if begun.elapsed() > READY_WITHIN {
            return Err("redis-server does not answer; is it installed?".to_owned());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The user and system time of all threads of a process.
fn cpu_seconds(id: u32) -> Result<f64, String> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat"))
        .map_err(|error| format!("process {id}: {error}"))?;
    // The name in parentheses may contain anything; the fields after it are numbers.
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<f64>().ok())
    };
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => Ok((user + system) / TICKS_PER_SECOND),
        _ => Err(format!(
            "process {id}: /proc has another form than expected"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_of_the_tools_are_read() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\
                   \"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
                   \"GET\",\"500000.00\",\"0.9\",\"0.1\",\"0.923\",\"1.2\",\"1.5\",\"3.0\"\n";
        let figures = figures_of_benchmark(csv, 2e-6).expect("figures");
        assert_eq!((figures.rate, figures.p50_us.round()), (500_000.0, 923.0));
        let json = r#"{"operations":1000,"ops_per_second":200.0,
                       "latency_us":{"all":{"p50":1.5,"p99":2.0}}}"#;
        let figures = figures_of_loadgen(json, 0.002).expect("figures");
        assert_eq!((figures.rate, figures.cpu_us), (200.0, 2.0));
        assert!(figures_of_loadgen("{}", 1.0).is_err());
    }

    #[test]
    fn options_are_taken_with_a_value_that_makes_sense() {
        let options = parse(&["--seconds", "0.5", "--records", "7"]).expect("options");
        assert_eq!((options.records.as_str(), options.seconds), ("7", 0.5));
        for wrong in [&["--seconds", "0"][..], &["--records", "x"], &["--records"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn cpu_time_of_this_process_is_found() {
        assert!(cpu_seconds(std::process::id()).is_ok());
    }
}
