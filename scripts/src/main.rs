//! Checks and tools for the project; the short scripts in this folder call them: `xtask
//! tidy|layers|sizes|deps|unused|generate|generated|test|package|soak|quickstart|cluster|bench|compare`.
//!
//! It uses only the binaries and files of the other crates. Every step prints the command that it
//! runs.

mod bench;
mod cluster;
mod compare;
mod deps;
mod field_comments;
mod generated;
mod imports;
mod layers;
mod node;
mod package;
mod process;
mod quickstart;
mod sizes;
mod soak;
mod source;
mod test;
mod tidy;
mod unused;

use std::path::PathBuf;
use std::process::ExitCode;

/// The result of a command; the error is text for people.
type Outcome = Result<(), String>;

const USAGE: &str = "usage: xtask COMMAND
  test                         everything that must pass before a commit
  tidy | layers | sizes | deps | unused | generated
                               one of its checks alone
  generate                     runs the schema compiler, which must be installed
  package [--bin-dir DIR] [--out DIR] [--revision N] [--compression xz|gzip|none]
                               Debian packages, a tar and their checksums
  soak SECONDS SEED            simulator and crash tests for a long time
  quickstart [--seconds N] [--data-dir DIR]
                               a node on every core, loaded and measured
  cluster up [--monitoring] | down | kill N | status
                               three nodes on loopback, to play with
  bench [FILTER...] [OPTION...]
                               benchmarks of parts; the words go to divan
  compare redis [--rows get,scan,multi-get,put,large] [--records N] [--seconds N]
          [--rounds N] [--memory SIZE]
                               the same work on redis-server, in the same run
  compare build PROGRAM [the same options]
                               the same work on another build of rangedb, in the same run
  compare etcd [--records N] [--seconds N] [--rounds N] [--programs DIR]
                               three nodes against three of etcd, in the same run";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["test"] => test::run(),
        ["tidy"] => tidy::run(&root()),
        ["layers"] => layers::run(&root()),
        ["sizes"] => sizes::run(&root()),
        ["deps"] => deps::run(&root()),
        ["unused"] => unused::run(&root()),
        ["generate"] => generated::generate(&root()),
        ["generated"] => generated::run(&root()),
        ["package", options @ ..] => package::run(options),
        ["soak", seconds, seed] => soak::run(seconds, seed),
        ["quickstart", options @ ..] => quickstart::run(options),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        ["cluster", words @ ..] => cluster::run(words),
        ["bench", words @ ..] => bench::run(words),
        ["compare", "redis", options @ ..] => compare::redis::run(options),
        ["compare", "build", options @ ..] => compare::build::run(options),
        ["compare", "etcd", options @ ..] => compare::etcd::run(options),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The root folder of the workspace.
fn root() -> PathBuf {
    let crate_dir = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let from_crate = crate_dir.and_then(|dir| dir.parent().map(PathBuf::from));
    from_crate
        .or_else(|| std::env::current_dir().ok())
        .unwrap_or_else(|| PathBuf::from("."))
}
