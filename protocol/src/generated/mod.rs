//! What `flatc` makes of `schema/client.fbs`. `files.sha256` holds the hashes of both.

#![allow(
    // The oldest Rust that the client supports does not know all lints below.
    unknown_lints,
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
