//! `tidy`: the project's own rules, which the compiler does not check. Reads the files that git
//! does not ignore, so the result is the same on every machine.

use std::path::Path;

use crate::Outcome;
use crate::field_comments::repetitions;
use crate::process::output;

/// The largest number of lines of a file, without its tests.
const LINES_MAX: usize = 600;
/// Words that stay in a file only by mistake; each in two parts, so that this file passes.
const LEFTOVERS: [(&str, &str); 5] = [
    ("todo", "!("),
    ("dbg", "!("),
    ("FIX", "ME"),
    ("#[ign", "ore"),
    ("unimplemented", "!("),
];
/// The entries of the project's folder besides hidden files.
const TOP_LEVEL: [&str; 12] = [
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE",
    "README.md",
    "rust-toolchain.toml",
    "client",
    "engine",
    "loadgen",
    "protocol",
    "scripts",
    "server",
    "tests",
];
const GENERATED: &str = "protocol/src/generated/";
/// Places where a rule does not hold.
const UNSAFE_ALLOWED: &str = "server/src/env/";
const LSM_TREE_ALLOWED: &str = "engine/src/lsm/tables.rs";
const CLIENT_ALLOWED: [&str; 3] = ["server/src/admin/", "server/src/cli/", "server/src/main.rs"];

/// A file that git does not ignore.
struct File {
    path: String,
    text: String,
}

/// Where copies of other projects' code lie, for which this project's rules are not meant.
const VENDOR: &str = "engine/vendor/";

/// The files of the project, by their paths from its folder: those that git tracks, and new ones
/// that it does not ignore. Without the [copies](VENDOR) of others' code.
///
/// # Errors
/// git cannot be run.
pub fn project_files(root: &Path) -> Result<Vec<String>, String> {
    let listed = output(
        "git",
        &["ls-files", "--cached", "--others", "--exclude-standard"],
    )?;
    let own = listed.lines().filter(|path| !path.starts_with(VENDOR));
    let paths = own.filter(|path| root.join(path).is_file());
    Ok(paths.map(str::to_owned).collect())
}

/// Checks all rules and lists all violations.
pub fn run(root: &Path) -> Outcome {
    let mut complaints = Vec::new();
    let paths = project_files(root)?;
    for path in &paths {
        check_place(path, &mut complaints);
        let Ok(text) = std::fs::read_to_string(root.join(path)) else {
            continue;
        };
        let file = File {
            path: path.clone(),
            text,
        };
        if path.ends_with(".rs") && !path.starts_with(GENERATED) {
            check_source(&file, &mut complaints);
        }
        if path.ends_with("Cargo.toml") {
            check_manifest(&file, &mut complaints);
        }
    }
    if complaints.is_empty() {
        eprintln!("tidy: {} files keep the rules", paths.len());
        return Ok(());
    }
    Err(format!("tidy:\n  {}", complaints.join("\n  ")))
}

fn check_place(path: &str, complaints: &mut Vec<String>) {
    let top = path.split('/').next().unwrap_or(path);
    if !top.starts_with('.') && !TOP_LEVEL.contains(&top) {
        complaints.push(format!("{path}: does not belong into the project's folder"));
    }
}

fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// The lines of a file before its tests.
pub fn production_lines(text: &str) -> impl Iterator<Item = &str> {
    let is_start_of_tests = |window: &&str| window.trim() == "#[cfg(test)]";
    let end = text
        .lines()
        .collect::<Vec<_>>()
        .windows(2)
        .position(|lines| {
            is_start_of_tests(&lines[0]) && lines[1].trim_start().starts_with("mod tests {")
        });
    text.lines().take(end.unwrap_or(usize::MAX))
}

fn check_source(file: &File, complaints: &mut Vec<String>) {
    let File { path, text } = file;
    let mut complain = |message: String| complaints.push(format!("{path}: {message}"));
    if !text.starts_with("//!") {
        complain("does not open with //! and what it is".to_owned());
    }
    for (line, field) in repetitions(text) {
        complain(format!(
            "line {line}: the comment of the field {field} says no more than its name; say what it is of, its \
             unit, its bounds or its meaning"
        ));
    }
    let lines = production_lines(text).count();
    if !is_test(path) && lines > LINES_MAX {
        complain(format!(
            "{lines} lines without tests; {LINES_MAX} is the wall"
        ));
    }
    for (first, second) in LEFTOVERS {
        let word = format!("{first}{second}");
        if text.contains(&word) {
            complain(format!("{word} was left in"));
        }
    }
    let code = || {
        text.lines()
            .filter(|line| !line.trim_start().starts_with("//"))
    };
    let names = |word: &str| code().any(|line| has_word(line, word));
    if names("unsafe") && !path.starts_with(UNSAFE_ALLOWED) && path != "scripts/src/tidy.rs" {
        complain(format!("unsafe code lives in {UNSAFE_ALLOWED} alone"));
    }
    let is_engine = path.starts_with("engine/src/");
    if is_engine && names("lsm_tree") && path != LSM_TREE_ALLOWED {
        complain(format!("only {LSM_TREE_ALLOWED} names lsm_tree"));
    }
    let is_server = path.starts_with("server/src/");
    let may_use_client = CLIENT_ALLOWED
        .iter()
        .any(|allowed| path.starts_with(allowed));
    if is_server && names("rangedb_client") && !may_use_client {
        complain("the server does not use the client library".to_owned());
    }
}

/// Whether a line has the word without a letter, digit or underscore next to it.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

/// Checks that a comment stands above every dependency where its version is chosen.
fn check_manifest(file: &File, complaints: &mut Vec<String>) {
    let mut is_in_dependencies = false;
    let mut is_explained = false;
    for line in file.text.lines() {
        let line = line.trim();
        if line.starts_with('[') {
            is_in_dependencies = line.ends_with("dependencies]");
            is_explained = false;
        } else if line.starts_with('#') {
            is_explained = true;
        } else if line.is_empty() {
            is_explained = false;
        } else if is_in_dependencies {
            let is_shared = line.contains("workspace = true") || line.contains("path = ");
            if !is_explained && !is_shared {
                complaints.push(format!(
                    "{}: no comment says what it is for: {line}",
                    file.path
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints_about(path: &str, text: &str) -> Vec<String> {
        let mut complaints = Vec::new();
        let file = File {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        check_place(path, &mut complaints);
        if path.ends_with(".rs") {
            check_source(&file, &mut complaints);
        } else {
            check_manifest(&file, &mut complaints);
        }
        complaints
    }

    #[test]
    fn good_files_pass() {
        assert!(
            complaints_about("engine/src/a.rs", "//! Text about unsafe.\nfn a() {}\n").is_empty()
        );
        assert!(complaints_about("engine/src/lsm/tables.rs", "//! T.\nuse lsm_tree;\n").is_empty());
        assert!(complaints_about("server/src/env/a.rs", "//! T.\nunsafe {}\n").is_empty());
        assert!(
            complaints_about("server/src/cli/a.rs", "//! T.\nuse rangedb_client;\n").is_empty()
        );
        let manifest = "[dependencies]\n# Sums.\ncrc = \"1\"\n\nrand.workspace = true\n";
        assert!(complaints_about("engine/Cargo.toml", manifest).is_empty());
        let tests = "//! T.\n#[cfg(test)]\nmod tests {\n".to_owned() + &"\n".repeat(700);
        assert!(complaints_about("engine/src/a.rs", &tests).is_empty());
    }

    #[test]
    fn each_rule_finds_what_breaks_it() {
        let long = "//! T.\n".to_owned() + &"fn a() {}\n".repeat(600);
        for (path, text) in [
            ("engine/src/a.rs", "fn a() {}\n"),
            ("engine/src/a.rs", long.as_str()),
            ("engine/src/a.rs", concat!("//! T.\nto", "do!()\n")),
            ("engine/src/a.rs", concat!("//! T.\n#[ign", "ore]\n")),
            ("engine/src/a.rs", "//! T.\nunsafe {}\n"),
            ("engine/src/lsm/a.rs", "//! T.\nuse lsm_tree::Tree;\n"),
            ("server/src/a.rs", "//! T.\nuse rangedb_client::Client;\n"),
            (
                "engine/src/a.rs",
                "//! T.\nstruct A {\n    /// The b.\n    pub b: u8,\n}\n",
            ),
            ("notes/a.rs", "//! T.\n"),
            ("engine/Cargo.toml", "[dependencies]\nrand = \"1\"\n"),
        ] {
            assert_eq!(complaints_about(path, text).len(), 1, "{path}: {text:.40}");
        }
    }
}
