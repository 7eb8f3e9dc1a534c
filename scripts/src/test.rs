//! `test`: everything that must pass before a commit; the steps that fail fastest come first. Ends
//! with a line `N passed, N failed`.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::process::{self, command};
use crate::{Outcome, deps, generated, layers, root, sizes, tidy, unused};

/// Runs all checks that are not tests.
fn run_checks() -> Outcome {
    process::run("cargo", &["fmt", "--all", "--check"])?;
    tidy::run(&root())?;
    layers::run(&root())?;
    sizes::run(&root())?;
    deps::run(&root())?;
    unused::run(&root())?;
    generated::run(&root())?;
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ];
    process::run("cargo", &clippy)?;
    eprintln!("+ cargo doc, warnings denied");
    let status = command(
        "cargo",
        &["doc", "--workspace", "--no-deps", "--locked", "--quiet"],
    )
    .env("RUSTDOCFLAGS", "-D warnings")
    .status()
    .map_err(|error| format!("cannot run cargo: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err("the documentation has warnings".to_owned())
    }
}

/// The counts of a test run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    passed: u64,
    failed: u64,
}

/// Runs all checks and then all tests.
pub fn run() -> Outcome {
    run_checks()?;
    // Tests of the real processes start these binaries.
    process::run(
        "cargo",
        &[
            "build",
            "--locked",
            "-p",
            "rangedb-server",
            "-p",
            "rangedb-loadgen",
        ],
    )?;
    let (mut counted, succeeded) = if has_nextest() {
        let arguments = [
            "nextest",
            "run",
            "--workspace",
            "--locked",
            "--no-fail-fast",
        ];
        run_tests(&arguments, count_nextest)?
    } else {
        let arguments = [
            "test",
            "--workspace",
            "--locked",
            "--no-fail-fast",
            "--lib",
            "--bins",
            "--tests",
            // A skipped test must be visible; for nextest `.config/nextest.toml` says so.
            "--",
            "--show-output",
        ];
        run_tests(&arguments, count_libtest)?
    };
    // nextest does not run the examples in the documentation.
    let (examples, examples_succeeded) = run_tests(
        &["test", "--workspace", "--locked", "--doc", "--no-fail-fast"],
        count_libtest,
    )?;
    counted.passed += examples.passed;
    counted.failed += examples.failed;
    println!("{} passed, {} failed", counted.passed, counted.failed);
    if succeeded && examples_succeeded && counted.failed == 0 && counted.passed > 0 {
        return Ok(());
    }
    Err("tests failed".to_owned())
}

fn has_nextest() -> bool {
    let mut probe = Command::new("cargo");
    probe
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

/// Runs tests, shows their output, and counts results in it.
fn run_tests(
    arguments: &[&str],
    count: fn(&str) -> Option<Counted>,
) -> Result<(Counted, bool), String> {
    eprintln!("+ cargo {}", arguments.join(" "));
    // nextest reports on standard error, libtest on standard output; the shell joins both.
    let script = format!("exec cargo {} 2>&1", arguments.join(" "));
    let mut child = command("sh", &["-c", &script])
        .env("CARGO_TERM_COLOR", "never")
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    let mut counted = Counted::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            println!("{line}");
            if let Some(more) = count(&line) {
                counted.passed += more.passed;
                counted.failed += more.failed;
            }
        }
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    Ok((counted, status.success()))
}

/// The number before a word, as in `12 passed`.
fn number_before(line: &str, word: &str) -> u64 {
    let words: Vec<&str> = line
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let place = words.iter().position(|other| *other == word);
    place
        .and_then(|place| words.get(place.checked_sub(1)?)?.parse().ok())
        .unwrap_or(0)
}

/// Parses `     Summary [   0.022s] 5 tests run: 4 passed (1 slow), 1 failed, 0 skipped`.
fn count_nextest(line: &str) -> Option<Counted> {
    let rest = line
        .trim_start()
        .strip_prefix("Summary [")?
        .split_once("run:")?
        .1;
    let failed = number_before(rest, "failed") + number_before(rest, "timed");
    Some(Counted {
        passed: number_before(rest, "passed"),
        failed,
    })
}

/// Parses `test result: FAILED. 4 passed; 1 failed; 0 ignored; ...`.
fn count_libtest(line: &str) -> Option<Counted> {
    let rest = line.strip_prefix("test result: ")?;
    let (passed, failed) = (number_before(rest, "passed"), number_before(rest, "failed"));
    Some(Counted { passed, failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let nextest = "     Summary [   1.5s] 7 tests run: 4 passed (1 slow), 2 failed, 1 timed out, 0 skipped";
        assert_eq!(
            count_nextest(nextest),
            Some(Counted {
                passed: 4,
                failed: 3
            })
        );
        let libtest = "test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured";
        assert_eq!(
            count_libtest(libtest),
            Some(Counted {
                passed: 4,
                failed: 1
            })
        );
        assert_eq!(count_libtest("test a ... ok"), None);
        assert_eq!(count_nextest("test a ... ok"), None);
    }
}
