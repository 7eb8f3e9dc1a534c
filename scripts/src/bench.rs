//! `bench [FILTER...] [OPTION...]`: builds the benchmarks of parts in the release profile and runs
//! them one after the other on one core. They print the fastest and the slowest sample, the median
//! and the mean. The words go to divan: a filter picks benchmarks by name, `--sample-count N` sets
//! how many samples each has.

use crate::Outcome;
use crate::process::{self, release_binary};

/// The core on which they run.
const CPU: &str = "0";

/// Builds and runs the benchmarks.
pub fn run(words: &[&str]) -> Outcome {
    process::build_release(&["rangedb-benches"])?;
    // Without its first word the program runs each benchmark once, as a test.
    let pinned = ["-c", CPU, &release_binary("benches")?, "--bench"];
    process::run("taskset", &[&pinned[..], words].concat())
}
