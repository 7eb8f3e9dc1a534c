//! Benchmarks of parts, each alone and on one thread. `scripts/bench` runs them.
//!
//! They are a crate of their own, and not beside what they measure, because the unit tests of those
//! crates bring an allocator that counts. Inputs are made from a seed.

mod frames;
mod messages;
mod tree;

/// The allocator of the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Repetitions that are measured together, where one is too short for the clock.
const SAMPLE: u32 = 1000;
const SEED: u64 = 13;
const KEY_LEN: usize = 16;
const VALUE_LEN: usize = 128;
/// Keys of a multi-get.
const KEYS: usize = 100;

fn main() {
    divan::main();
}
