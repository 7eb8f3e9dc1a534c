//! What the modules of one crate import of each other: `use` lines and paths within the code.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{self, Token};

/// A module's name as its path under `src`, without `.rs` and `/mod`: `raft/group`, `raft`.
pub type Module = String;

/// The root module, `lib.rs` and `main.rs`: it names all others, so nothing is asked of it.
const ROOT: &str = "";

/// One module's first import of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    pub from: Module,
    pub to: Module,
    /// What is imported; empty for the module itself.
    pub name: String,
    /// The file of `from`, under the crate's `src`.
    pub file: String,
    pub line: usize,
}

/// The modules of a crate with their imports.
pub struct Crate {
    pub modules: BTreeSet<Module>,
    pub imports: Vec<Import>,
}

/// A path in a file, as it is written there.
#[derive(Debug, PartialEq, Eq)]
struct Written {
    segments: Vec<String>,
    line: usize,
    is_reexport: bool,
}

/// Reads the files of a crate: their paths under `src`, and their texts.
pub fn read(files: &[(String, String)]) -> Crate {
    let files: Vec<_> = files
        .iter()
        .filter(|(path, _)| !source::is_test_file(path))
        .collect();
    let modules: BTreeSet<Module> = files.iter().map(|(path, _)| module(path)).collect();
    let mut found = Vec::new();
    // Where a module hands on what another defines.
    let mut reexports = BTreeMap::new();
    for (path, text) in files {
        let from = module(path);
        for written in paths(&source::production(text)) {
            let Some((to, name)) = resolve(&modules, &from, &written.segments) else {
                continue;
            };
            if written.is_reexport {
                reexports.insert((from.clone(), name.clone()), (to.clone(), name.clone()));
                if to.starts_with(&format!("{from}/")) {
                    continue; // The face of a folder shows what is in it.
                }
            }
            found.push(Import {
                from: from.clone(),
                to,
                name,
                file: path.clone(),
                line: written.line,
            });
        }
    }
    let mut seen = BTreeSet::new();
    let imports = found
        .into_iter()
        .map(|import| defined(import, &reexports))
        .filter(|import| import.from != ROOT && import.to != ROOT && import.from != import.to)
        .filter(|import| seen.insert((import.from.clone(), import.to.clone())))
        .collect();
    Crate {
        modules: modules.into_iter().filter(|name| name != ROOT).collect(),
        imports,
    }
}

/// Follows re-exports to the module that defines the name.
fn defined(mut import: Import, reexports: &BTreeMap<(Module, String), (Module, String)>) -> Import {
    // More steps than there are re-exports would be a ring, which the compiler refuses.
    for _ in 0..reexports.len() {
        let Some((to, name)) = reexports.get(&(import.to.clone(), import.name.clone())) else {
            break;
        };
        (import.to, import.name) = (to.clone(), name.clone());
    }
    import
}

fn module(path: &str) -> Module {
    let name = path.strip_suffix(".rs").unwrap_or(path);
    let name = name.strip_suffix("/mod").unwrap_or(name);
    let is_root = ["lib", "main"].contains(&name);
    if is_root { ROOT } else { name }.to_owned()
}

/// The module that a path leads to, and the name that it takes from there.
fn resolve(
    modules: &BTreeSet<Module>,
    from: &str,
    segments: &[String],
) -> Option<(Module, String)> {
    let within = |parent: &str, child: &str| match parent {
        ROOT => child.to_owned(),
        _ => format!("{parent}/{child}"),
    };
    let mut at = from.to_owned();
    let mut rest = segments;
    match rest.first()?.as_str() {
        "crate" => {
            at.clear();
            rest = &rest[1..];
        }
        "self" | "super" => {
            while let Some(word @ ("self" | "super")) = rest.first().map(String::as_str) {
                if word == "super" {
                    at.truncate(at.rfind('/').unwrap_or(0));
                }
                rest = &rest[1..];
            }
        }
        child => {
            if !modules.contains(&within(from, child)) {
                return None; // Another crate, or a name of this file.
            }
        }
    }
    while let Some((child, after)) = rest.split_first() {
        let deeper = within(&at, child);
        if !modules.contains(&deeper) {
            break;
        }
        (at, rest) = (deeper, after);
    }
    Some((at, rest.first().cloned().unwrap_or_default()))
}

/// Every path of two or more words, and every one under `use`.
fn paths(tokens: &[Token]) -> Vec<Written> {
    let mut found = Vec::new();
    let mut index = 0;
    while let Some(token) = tokens.get(index) {
        if token.text == "use" {
            let is_reexport = is_public(tokens, index);
            index += 1;
            use_tree(tokens, &mut index, &[], &mut |segments, line| {
                found.push(Written {
                    segments,
                    line,
                    is_reexport,
                });
            });
            continue;
        }
        if is_visibility(tokens, index) {
            (_, index) = plain_path(tokens, index + 1);
            continue;
        }
        let (segments, after) = plain_path(tokens, index);
        if segments.len() > 1 {
            found.push(Written {
                segments,
                line: token.line,
                is_reexport: false,
            });
        }
        index = after.max(index + 1);
    }
    found
}

fn is_name(token: &Token) -> bool {
    token
        .text
        .starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The words joined by `::` from `start` on, and the index after them.
fn plain_path(tokens: &[Token], start: usize) -> (Vec<String>, usize) {
    let mut segments = Vec::new();
    let mut index = start;
    while let Some(token) = tokens.get(index).filter(|token| is_name(token)) {
        segments.push(token.text.to_owned());
        index += 1;
        if tokens.get(index).is_none_or(|token| token.text != "::") {
            break;
        }
        index += 1;
    }
    (segments, index)
}

/// Whether `pub` or `pub(...)` stands before the index.
fn is_public(tokens: &[Token], index: usize) -> bool {
    let before: Vec<&str> = tokens[..index]
        .iter()
        .rev()
        .take(4)
        .map(|t| t.text)
        .collect();
    matches!(before.as_slice(), ["pub", ..] | [")", _, "(", "pub"])
}

/// Whether `in` stands here in `pub(in a::b)`: the path after it says who sees an item, and imports nothing.
fn is_visibility(tokens: &[Token], index: usize) -> bool {
    let until = tokens.get(index.saturating_sub(2)..=index).unwrap_or(&[]);
    let words: Vec<&str> = until.iter().map(|token| token.text).collect();
    words == ["pub", "(", "in"]
}

/// Reads one tree of a `use` line, up to the `,`, `}` or `;` after it.
fn use_tree(
    tokens: &[Token],
    index: &mut usize,
    prefix: &[String],
    found: &mut impl FnMut(Vec<String>, usize),
) {
    let mut segments = prefix.to_vec();
    while let Some(token) = tokens.get(*index) {
        match token.text {
            "{" => {
                while tokens.get(*index).is_some_and(|t| t.text != "}") {
                    *index += 1;
                    if tokens.get(*index).is_some_and(|t| t.text != "}") {
                        use_tree(tokens, index, &segments, found);
                    }
                }
                *index += 1;
                return;
            }
            "," | "}" | ";" => return,
            "as" => *index += 2,
            "::" => *index += 1,
            word => {
                let ends = tokens.get(*index + 1).is_none_or(|t| t.text != "::");
                // `a::{self}` is `a`.
                if word != "self" || segments.is_empty() {
                    segments.push(word.to_owned());
                }
                if ends {
                    found(segments.clone(), token.line);
                }
                *index += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
            .collect();
        let told = |import: Import| {
            format!(
                "{}:{} {}>{} {}",
                import.file, import.line, import.from, import.to, import.name
            )
        };
        read(&files).imports.into_iter().map(told).collect()
    }

    const FILES: [(&str, &str); 5] = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", ""),
        ("b/mod.rs", "mod c; mod d; pub use c::C; pub struct B;"),
        ("b/c.rs", "pub struct C;"),
        ("b/d.rs", ""),
    ];

    fn imports_of(path: &str, text: &str) -> Vec<String> {
        let mut files = FILES.to_vec();
        files.push((path, text));
        imports(&files)
    }

    #[test]
    fn every_way_to_write_a_path_is_found() {
        for text in [
            "use crate::b::B;",
            "use crate::{a::{self, A}, b::{B as D}};",
            "fn f() -> crate::b::B {}",
            "use super::b::B;",
            "use ::std::x; use crate::b::{B};",
        ] {
            let found = imports_of("e.rs", text);
            assert!(
                found.contains(&"e.rs:1 e>b B".to_owned()),
                "{text}: {found:?}"
            );
        }
        assert_eq!(
            imports_of("b/e.rs", "\nuse super::d::x;"),
            ["b/e.rs:2 b/e>b/d x"]
        );
    }

    #[test]
    fn reexports_lead_to_what_they_show() {
        assert_eq!(imports_of("e.rs", "use crate::b::C;"), ["e.rs:1 e>b/c C"]);
        // Only the face of a folder may show what is in it without importing it.
        assert_eq!(imports_of("e.rs", "pub use crate::b::B;"), ["e.rs:1 e>b B"]);
    }

    #[test]
    fn others_crates_local_names_and_tests_are_no_imports() {
        for text in [
            "use std::a::A; use a; fn f() { B::new(); }",
            "#[cfg(test)] mod tests { use crate::b::B; }",
            "// use crate::b::B;",
            "pub(crate) fn f() { let s = \"crate::b::B\"; }",
            "pub(in crate::b) struct E { pub(in crate::b) e: u8 }",
        ] {
            assert_eq!(imports_of("e.rs", text), [""; 0], "{text}");
        }
        assert_eq!(imports_of("e/tests.rs", "use crate::b::B;"), [""; 0]);
    }
}
