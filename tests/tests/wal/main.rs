//! The shard's log by its bytes: what recovery makes of damage, crashes and recycled segments.
//!
//! All on the simulator's disk, where a crash loses or tears what was in flight. `WAL_SEED` sets
//! the first seed of the tests that try many, `WAL_CASES` how many.

mod bench;
mod births;
mod checkpoint;
mod damage;
mod fixture;
mod forged;
mod model;
mod space;
