//! Tells the binary which commit it is built from, as the variable `RANGEDB_BUILD_COMMIT`.
//!
//! `scripts/package` names the commit in `RANGEDB_COMMIT`. Any other release build asks git, and
//! other builds do not: they would be made anew after every commit.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RANGEDB_COMMIT");
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = match std::env::var("RANGEDB_COMMIT") {
        Ok(commit) => Some(commit),
        Err(_) if is_release => commit_of_checkout(),
        Err(_) => None,
    };
    let commit = commit.unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=RANGEDB_BUILD_COMMIT={commit}");
}

/// The commit that is checked out; `None` outside of a git repository.
fn commit_of_checkout() -> Option<String> {
    // git appends a line to this file whenever the commit that is checked out changes.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(&log).exists() {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
