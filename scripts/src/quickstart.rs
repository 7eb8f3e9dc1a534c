//! `quickstart [--seconds N] [--data-dir DIR]`: builds the binaries, starts a node with one shard
//! per core, and loads and measures it through the real client. With `--seconds` it stops the node
//! and ends; without, the node runs until Ctrl-C.

use std::path::PathBuf;

use crate::Outcome;
use crate::node::Node;
use crate::process::{self, output, release_binary, stop_children_on_signals};

const RECORDS: &str = "100000";
/// The default length of one measurement, in seconds.
const SECONDS: f64 = 10.0;
const SECONDS_MIN: f64 = 1.0;
const WARMUP_SECONDS: &str = "1";

struct Options {
    seconds: Option<f64>,
    data_dir: Option<PathBuf>,
}

fn parse(options: &[&str]) -> Result<Options, String> {
    let mut parsed = Options {
        seconds: None,
        data_dir: None,
    };
    for pair in options.chunks(2) {
        match pair {
            ["--seconds", number] => {
                let time = rangedb_duration::parse(number);
                let time = time.map_err(|bad| bad.to_string())?;
                if time.is_zero() {
                    return Err("--seconds must be above 0".to_owned());
                }
                parsed.seconds = Some(time.as_secs_f64());
            }
            ["--data-dir", path] => parsed.data_dir = Some(PathBuf::from(path)),
            _ => return Err("usage: quickstart [--seconds N] [--data-dir DIR]".to_owned()),
        }
    }
    Ok(parsed)
}

fn run_built(options: &Options) -> Outcome {
    let temporary = match options.data_dir {
        Some(_) => None,
        None => Some(tempfile::tempdir().map_err(|error| error.to_string())?),
    };
    let data_dir = match (&options.data_dir, &temporary) {
        (Some(given), _) => std::path::absolute(given).map_err(|error| error.to_string())?,
        (None, Some(folder)) => folder.path().join("data"),
        (None, None) => return Err("there is no data folder".to_owned()),
    };
    let shards = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .to_string();
    let loadgen = release_binary("loadgen")?;
    let split_at = output(&loadgen, &["split-keys", &shards, "--records", RECORDS])?;
    let mut flags = vec!["--shards", shards.as_str()];
    if !split_at.trim().is_empty() {
        flags.extend(["--split-at", split_at.trim()]);
    }
    let mut node = Node::start(&data_dir, &flags)?;
    println!(
        "a node with {shards} shards is ready; its data lies in {}",
        data_dir.display()
    );
    measure(&loadgen, &node, options.seconds)?;
    let (listen, http) = (&node.listen, &node.http);
    println!(
        "\ndatabase {listen}, page http://{http}/, metrics http://{http}/metrics, health http://{http}/readyz"
    );
    if options.seconds.is_none() {
        let rangedb = release_binary("rangedb")?;
        println!("try: {rangedb} put greeting hello --addr {listen}");
        println!("     {rangedb} get greeting --addr {listen}");
        println!("     {rangedb} status --addr {listen}");
        println!("Ctrl-C stops the node.");
        // A signal ends this process; it is an error if the node ends by itself.
        return node.wait();
    }
    node.stop()
}

fn measure(loadgen: &str, node: &Node, seconds: Option<f64>) -> Outcome {
    let each = seconds
        .map_or(SECONDS, |seconds| seconds / 2.0)
        .max(SECONDS_MIN)
        .to_string();
    let common = [
        "--addr",
        node.listen.as_str(),
        "--records",
        RECORDS,
        "--connections",
        "16",
    ];
    println!("\nload: {RECORDS} records, each durable before it is acknowledged");
    process::run(
        loadgen,
        &[&["load"][..], &common, &["--depth", "16"]].concat(),
    )?;
    for (words, workload, depth) in [
        ("95 % reads, 5 % durable writes, zipfian", "b", "16"),
        ("durable writes alone", "write", "4"),
    ] {
        println!("\n{words}, 16 connections, {depth} in flight on each");
        let more = [
            "--workload",
            workload,
            "--depth",
            depth,
            "--duration",
            each.as_str(),
        ];
        process::run(
            loadgen,
            &[&["run"][..], &common, &more, &["--warmup", WARMUP_SECONDS]].concat(),
        )?;
    }
    Ok(())
}

/// Builds the binaries and runs the quick start.
pub fn run(options: &[&str]) -> Outcome {
    let options = parse(options)?;
    process::build_programs()?;
    stop_children_on_signals()?;
    run_built(&options)
}
