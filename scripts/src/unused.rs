//! `unused`: dependencies and public items that no code names.
//!
//! The compiler reports neither: it knows no manifest's other crates, and a public item of a library may
//! have users elsewhere. Here all users are in this workspace, except those of the client library.
//! The check goes by names, so an unused item that shares its name with a used one is not found.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::Outcome;
use crate::tidy::{production_lines, project_files};

/// Dependencies that no source names, with the manifest, and why each of them stays.
const UNNAMED_DEPENDENCIES: [(&str, &str, &str); 1] = [(
    "engine/Cargo.toml",
    "openraft-macros",
    "keeps a crate of openraft at the version of the others",
)];
/// Where versions are chosen for all crates.
const WORKSPACE: &str = "Cargo.toml";
/// Its users are programs outside of this workspace.
const CLIENT: &str = "client/src/";
const GENERATED: &str = "protocol/src/generated/";
/// The kinds of items that are looked for.
const KINDS: [&str; 8] = [
    "fn", "struct", "enum", "trait", "type", "const", "static", "union",
];

/// A source file: its path and its text.
type Source = (String, String);

/// Checks all manifests and sources and lists what is unused.
pub fn run(root: &Path) -> Outcome {
    let mut sources: Vec<Source> = Vec::new();
    let mut manifests: Vec<Source> = Vec::new();
    for path in project_files(root)? {
        let to = match path.as_str() {
            path if path.ends_with(".rs") => &mut sources,
            path if path.ends_with("Cargo.toml") => &mut manifests,
            _ => continue,
        };
        let text = std::fs::read_to_string(root.join(&path));
        let text = text.map_err(|error| format!("cannot read {path}: {error}"))?;
        to.push((path, text));
    }
    let mut complaints = unused_dependencies(&manifests, &sources);
    complaints.extend(unused_items(&sources));
    if complaints.is_empty() {
        eprintln!("unused: every dependency and every public item has a user");
        return Ok(());
    }
    Err(format!("unused:\n  {}", complaints.join("\n  ")))
}

/// Lines that are not comments.
fn is_code(line: &&str) -> bool {
    !line.trim_start().starts_with("//")
}

/// The words of a line that may be names.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    line.split(move |character| !is_part(character))
        .filter(|word| !word.is_empty())
}

/// Dependencies of each manifest that no source beside it names as a path or a macro; of the
/// workspace's manifest, those that no crate asks for.
fn unused_dependencies(manifests: &[Source], sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, manifest) in manifests {
        if path == WORKSPACE {
            let members = manifests.iter().filter(|(path, _)| path != WORKSPACE);
            let asked: Vec<&str> = members.flat_map(|(_, text)| dependencies(text)).collect();
            let unasked = dependencies(manifest);
            let unasked = unasked.iter().filter(|name| !asked.contains(name));
            complaints.extend(unasked.map(|name| format!("{path}: no crate depends on {name}")));
            continue;
        }
        let folder = path.trim_end_matches("Cargo.toml");
        let own = sources.iter().filter(|(path, _)| path.starts_with(folder));
        let code: Vec<&str> = own
            .flat_map(|(_, text)| text.lines().filter(is_code))
            .collect();
        for name in dependencies(manifest) {
            let excepted = UNNAMED_DEPENDENCIES
                .iter()
                .any(|(of, excepted, _)| of == path && *excepted == name);
            let is_named = code.iter().any(|line| names_crate(line, name));
            if is_named && excepted {
                complaints.push(format!(
                    "{path}: {name} is used: take it off the list in scripts/src/unused.rs"
                ));
            } else if !is_named && !excepted {
                complaints.push(format!(
                    "{path}: no source in {folder} names {name}: remove the dependency"
                ));
            }
        }
    }
    complaints
}

/// The dependencies that a manifest lists for normal use, tests and the build.
fn dependencies(manifest: &str) -> Vec<&str> {
    let mut is_in_dependencies = false;
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            is_in_dependencies = line.ends_with("dependencies]");
        } else if is_in_dependencies && !line.starts_with('#') {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            found.extend((!name.is_empty() && line.contains('=')).then_some(name));
        }
    }
    found
}

/// Whether a line names a crate: `name::`, `name!`, `use name` or `extern crate name`.
fn names_crate(line: &str, dependency: &str) -> bool {
    let name = dependency.replace('-', "_");
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(name.as_str()).any(|(start, _)| {
        let (before, after) = (&line[..start], &line[start + name.len()..]);
        let is_inside = before.ends_with("::") && !before.ends_with(" ::");
        if before.ends_with(is_part) || before.ends_with('.') || is_inside {
            return false;
        }
        let is_declared = before.ends_with("use ") || before.ends_with("extern crate ");
        let is_whole = !after.starts_with(is_part);
        after.starts_with("::") || after.starts_with('!') || (is_declared && is_whole)
    })
}

/// Public items outside of tests whose name occurs in no code but their own definition and tests
/// beside it.
fn unused_items(sources: &[Source]) -> Vec<String> {
    let production = sources.iter().filter(|(path, _)| !is_test_file(path));
    let mut occurrences: HashMap<&str, usize> = HashMap::new();
    let mut defined: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (path, text) in production {
        let mut is_reexport = false;
        let mut is_for_tests = false;
        for line in production_lines(text).filter(is_code) {
            let start = line.trim_start();
            is_reexport |= start.starts_with("pub") && words(start).any(|word| word == "use");
            if !is_reexport {
                words(line).for_each(|word| *occurrences.entry(word).or_default() += 1);
            }
            is_reexport &= !line.contains(';');
            if start.starts_with("#[") {
                is_for_tests |= start.starts_with("#[cfg(test)]");
                continue;
            }
            let item = public_item(start).filter(|_| !is_for_tests);
            is_for_tests = false;
            if let Some(name) = item.filter(|_| !path.starts_with(GENERATED)) {
                defined.entry(name).or_default().push(path);
            }
        }
    }
    let mut complaints = Vec::new();
    for (name, paths) in defined {
        let used = occurrences.get(name).copied().unwrap_or_default();
        if used > paths.len() || paths.iter().any(|path| path.starts_with(CLIENT)) {
            continue;
        }
        let paths = paths.join(", ");
        complaints.push(format!("{paths}: nothing but tests uses {name}: remove it"));
    }
    complaints
}

/// Whether all of a file is unit tests or what they need. The crate of tests is a user as any other.
fn is_test_file(path: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or(path);
    let is_beside_code = !path.starts_with("tests/");
    is_beside_code
        && (file == "tests.rs" || file.ends_with("_tests.rs") || file.starts_with("test_"))
}

/// The name that a line defines for others to use.
fn public_item(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub")?;
    let rest = match rest.strip_prefix('(') {
        Some(restricted) => restricted.split_once(')')?.1,
        None => rest,
    };
    if !rest.starts_with(' ') {
        return None;
    }
    let mut words = words(rest).peekable();
    loop {
        let word = words.next()?;
        let is_const_fn = word == "const" && words.peek() == Some(&"fn");
        if word != "async" && !is_const_fn {
            return words.next().filter(|_| KINDS.contains(&word));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> Source {
        (path.to_owned(), text.to_owned())
    }

    #[test]
    fn a_dependency_needs_a_path_or_a_macro_in_its_crate() {
        let manifest = "[package]\nname = \"a\"\n[dependencies]\n# Sums.\ncrc-sum.workspace = true\n\
                        [dev-dependencies]\ntemp = { version = \"1\", features = [] }\n[lints]\nx = 1\n";
        assert_eq!(dependencies(manifest), ["crc-sum", "temp"]);
        let manifests = [file("a/Cargo.toml", manifest)];
        let used = [file("a/src/lib.rs", "use crc_sum::sum;\n  temp::dir();\n")];
        assert!(unused_dependencies(&manifests, &used).is_empty());
        for other in [
            file("b/src/lib.rs", "use crc_sum::sum;\ntemp::dir();\n"),
            file("a/src/lib.rs", "// crc_sum::sum()\nlet temp = 1;\n"),
            file("a/src/lib.rs", "my_crc_sum::sum(); self.temp::<u8>()\n"),
        ] {
            let complaints = unused_dependencies(&manifests, &[other]);
            assert_eq!(complaints.len(), 2, "{complaints:?}");
        }
    }

    #[test]
    fn a_version_is_chosen_for_some_crate() {
        let chosen = "[workspace.dependencies]\na = \"1\"\nb = { version = \"2\" }\n";
        let member = "[dependencies]\na.workspace = true\n";
        let manifests = [file("Cargo.toml", chosen), file("m/Cargo.toml", member)];
        let complaints = unused_dependencies(&manifests, &[file("m/src/lib.rs", "use a::A;\n")]);
        assert_eq!(complaints, ["Cargo.toml: no crate depends on b"]);
    }

    #[test]
    fn crates_are_named_in_every_way_that_rust_has() {
        for line in [
            "use serde;",
            "use serde::Serialize;",
            "pub use serde as s;",
            "#[derive(serde::Serialize)]",
            "let a: ::serde::Value = b;",
            "serde!(a)",
            "extern crate serde;",
        ] {
            assert!(names_crate(line, "serde"), "{line}");
        }
        for line in ["use serde_json::Value;", "a.serde", "crate::serde::a()"] {
            assert!(!names_crate(line, "serde"), "{line}");
        }
    }

    #[test]
    fn public_items_need_a_user_that_is_no_test_beside_them() {
        let defining = "//! T.\npub use a::{\n    Lost,\n};\npub struct Lost;\npub(crate) const fn found() {}\n\
                        #[cfg(test)]\npub fn helper() {}\n#[cfg(test)]\nmod tests {\n    Lost; helper()\n}\n";
        let sources = [
            file("engine/src/a.rs", defining),
            file("engine/src/a_tests.rs", "Lost;\n"),
            file("engine/src/b.rs", "// Lost\na::found();\n"),
            file("client/src/lib.rs", "pub fn for_users() {}\n"),
        ];
        let complaints = unused_items(&sources);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].contains("engine/src/a.rs") && complaints[0].contains("Lost"));
        let user = file("tests/src/sim.rs", "use engine::Lost;\n");
        let sources: Vec<Source> = sources.into_iter().chain([user]).collect();
        assert!(unused_items(&sources).is_empty());
    }

    #[test]
    fn definitions_are_told_from_other_lines() {
        for (line, name) in [
            ("pub fn a(b: C) -> D {", Some("a")),
            ("pub(super) async fn a() {", Some("a")),
            ("pub const A: u8 = 1;", Some("A")),
            ("pub const fn a() {", Some("a")),
            ("pub struct A<B> {", Some("A")),
            ("pub a: u8,", None),
            ("pub mod a;", None),
            ("public(a)", None),
            ("fn a() {", None),
        ] {
            assert_eq!(public_item(line), name, "{line}");
        }
    }
}
