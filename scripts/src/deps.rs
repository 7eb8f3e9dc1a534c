//! `deps`: checks that crates do not depend on forbidden ones, directly or indirectly.

use std::path::Path;

use crate::Outcome;
use crate::process::output;

/// Each crate with the dependencies that it must not have.
const FORBIDDEN: [(&str, &[&str]); 5] = [
    // The lowest crate: everything else may depend on it.
    (
        "rangedb-duration",
        &["rangedb-engine", "rangedb-protocol", "rangedb-client"],
    ),
    // Beneath the engine and the protocol, which do not know each other.
    (
        "rangedb-limits",
        &["rangedb-engine", "rangedb-protocol", "rangedb-client"],
    ),
    (
        "rangedb-engine",
        &[
            "glommio",
            "io-uring",
            "tokio",
            "socket2",
            "flatbuffers",
            "rangedb-protocol",
        ],
    ),
    (
        "rangedb-protocol",
        &["tokio", "glommio", "io-uring", "socket2", "rangedb-engine"],
    ),
    (
        "rangedb-client",
        &["glommio", "io-uring", "rangedb-engine", "rangedb-server"],
    ),
];

/// Checks the dependencies of each crate, as cargo lists them.
pub fn run(_root: &Path) -> Outcome {
    for (package, forbidden) in FORBIDDEN {
        let arguments = [
            "tree",
            "-p",
            package,
            "-e",
            "normal",
            "--prefix",
            "none",
            "--offline",
        ];
        let tree = output("cargo", &arguments)?;
        let mut names = tree
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        if let Some(found) = names.find(|name| forbidden.contains(name)) {
            return Err(format!("{package} must not depend on {found}"));
        }
        eprintln!(
            "deps: {package} depends on none of {}",
            forbidden.join(", ")
        );
    }
    Ok(())
}
