//! What `flatc` makes of `schema/client.fbs`, and the mark by which a test sees that it is fresh.

#![allow(
    missing_docs,
    unsafe_code,
    unused_imports,
    dead_code,
    non_snake_case,
    mismatched_lifetime_syntaxes,
    clippy::all
)]

#[rustfmt::skip]
mod client_generated;

pub use client_generated::rangedb::wire;

/// FNV-1a of the schema that the code was made from.
pub const SCHEMA_HASH: u64 = 0x923d92c3e1e25795;
