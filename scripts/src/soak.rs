//! `soak SECONDS SEED`: the simulator, kills of the real binary, faults of three nodes and the
//! watchdog's stress, for as long as one likes; and the mutants, each until the simulator finds it,
//! however long that takes. The tests take their length and first seed from the environment; without
//! them they run as in `test`.

use crate::Outcome;
use crate::process::command;

/// Which tests run for long, and their shares of the time.
const PARTS: [(&str, f64); 4] = [
    ("simulator", 0.5),
    ("kills", 0.2),
    ("cluster", 0.2),
    ("watchdog", 0.1),
];

/// Runs each part for its time.
fn run_for(seconds: f64, seed: u64) -> Outcome {
    for (name, share) in PARTS {
        let seconds = (seconds * share).ceil();
        println!("{name}: {seconds} s from seed {seed}");
        let arguments = [
            "test",
            "--release",
            "-p",
            "rangedb-tests",
            "--test",
            name,
            "--",
            "--nocapture",
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

/// Has the simulator find every deliberate bug, from a seed on.
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

/// Builds and runs it.
pub fn run(seconds: &str, seed: &str) -> Outcome {
    let seconds: f64 = seconds
        .parse()
        .map_err(|_| format!("{seconds} is no number of seconds"))?;
    let seed: u64 = seed.parse().map_err(|_| format!("{seed} is no seed"))?;
    crate::process::run(
        "cargo",
        &[
            "build",
            "--release",
            "-p",
            "rangedb-server",
            "-p",
            "rangedb-loadgen",
        ],
    )?;
    run_for(seconds, seed)
}
