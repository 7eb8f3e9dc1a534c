//! `soak SECONDS SEED`: runs the long tests for a given time: the simulator, kills of the real
//! binary, faults of nodes and of the network between them, a thousand splits and merges, and the
//! stress of a stolen core. Then it runs the mutants, each until the simulator finds it, however long
//! that takes. The tests take their length and first seed from the environment; without these
//! variables they run as in `test`.

use crate::Outcome;
use crate::process::command;

/// The long tests: name, share of the time, and the number of tests in the file, which run one
/// after the other and divide the share.
const PARTS: [(&str, f64, f64); 8] = [
    ("simulator", 0.25, 1.0),
    ("kills", 0.1, 1.0),
    ("cluster", 0.1, 1.0),
    ("failover", 0.1, 2.0),
    ("bounds", 0.1, 2.0),
    ("many_splits", 0.05, 1.0),
    ("networks", 0.2, 3.0),
    ("stalls", 0.1, 1.0),
];

/// Runs each part for its share of the time.
fn run_for(seconds: f64, seed: u64) -> Outcome {
    for (name, share, tests) in PARTS {
        let seconds = (seconds * share / tests).ceil();
        println!("{name}: {seconds} s a test, from seed {seed}");
        // Tests of clusters need the machine for themselves.
        let threads = if tests > 1.0 {
            "--test-threads=1"
        } else {
            "--test-threads=2"
        };
        let arguments = [
            "test",
            "--release",
            "-p",
            "rangedb-tests",
            "--test",
            name,
            "--",
            "--nocapture",
            threads,
        ];
        let status = command("cargo", &arguments)
            .env("RANGEDB_SOAK_SECONDS", seconds.to_string())
            .env("RANGEDB_SEED", seed.to_string())
            .status()
            .map_err(|error| format!("cannot run cargo: {error}"))?;
        if !status.success() {
            return Err(format!("{name} tests failed from seed {seed}: {status}"));
        }
    }
    find_mutants(seed)
}

/// Makes the simulator find every deliberate bug, from a first seed on.
fn find_mutants(seed: u64) -> Outcome {
    let arguments = [
        "test",
        "--release",
        "-p",
        "rangedb-tests",
        "--features",
        "mutants",
        "--test",
        "mutants",
        "--",
        "--nocapture",
    ];
    let status = command("cargo", &arguments)
        .env("RANGEDB_SEED", seed.to_string())
        .status()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if status.success() {
        return Ok(());
    }
    Err(format!(
        "the simulator does not find a mutant from seed {seed}: {status}"
    ))
}

/// Builds the binaries and runs all parts.
pub fn run(seconds: &str, seed: &str) -> Outcome {
    let time = rangedb_duration::parse(seconds).map_err(|bad| bad.to_string())?;
    let seconds = time.as_secs_f64();
    let seed: u64 = seed.parse().map_err(|_| format!("{seed} is no seed"))?;
    crate::process::build_programs()?;
    run_for(seconds, seed)
}
