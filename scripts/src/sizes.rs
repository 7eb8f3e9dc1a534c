//! `sizes`: how many fields a struct has, and how many lines a function.

use std::collections::BTreeSet;
use std::path::Path;

use crate::Outcome;
use crate::source::{self, Token};
use crate::tidy::project_files;

/// Most named fields of a struct.
const FIELDS_MAX: usize = 15;
/// Most lines of a function, from `fn` to its closing brace. Blank lines and comments do not count.
const LINES_MAX: usize = 70;

/// What is larger: its file, its name, and why. What has become smaller must go from the list.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("protocol/src/reply.rs", "decode", CODEC),
    ("protocol/src/reply.rs", "build", CODEC),
    ("protocol/src/request.rs", "build", CODEC),
    ("server/src/main.rs", "SettingsArgs", FLAGS),
    ("loadgen/src/args.rs", "DriveArgs", FLAGS),
];

const CODEC: &str = "one arm for each kind of message";
const FLAGS: &str = "a field for each flag of the command line";

/// A struct or function that is too large.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    name: String,
    line: usize,
    /// How large, in words.
    size: String,
}

/// Checks the production code of every crate.
pub fn run(root: &Path) -> Outcome {
    let files: Vec<_> = project_files(root)?
        .into_iter()
        .filter(|path| path.ends_with(".rs") && !path.contains("/generated/"))
        .filter(|path| !source::is_test_file(path))
        .filter_map(|path| {
            let text = std::fs::read_to_string(root.join(&path)).ok()?;
            Some((path, text))
        })
        .collect();
    let complaints = check(EXCEPTIONS, &files);
    if complaints.is_empty() {
        eprintln!(
            "sizes: {} files have structs of at most {FIELDS_MAX} fields and functions of at most \
             {LINES_MAX} lines, with {} exceptions",
            files.len(),
            EXCEPTIONS.len()
        );
        return Ok(());
    }
    Err(format!("sizes:\n  {}", complaints.join("\n  ")))
}

fn check(exceptions: &[(&str, &str, &str)], files: &[(String, String)]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut used = vec![false; exceptions.len()];
    for (path, text) in files {
        for found in too_large(&source::production(text)) {
            let mut named = exceptions.iter();
            let exception = named.position(|(file, name, _)| path == file && found.name == *name);
            match exception.and_then(|index| used.get_mut(index)) {
                Some(used) => *used = true,
                None => complaints.push(format!(
                    "{path}:{}: {} {}",
                    found.line, found.name, found.size
                )),
            }
        }
    }
    for ((file, name, _), used) in exceptions.iter().zip(used) {
        if !used {
            complaints.push(format!(
                "{file}: the exception for {name} is no longer needed: remove it from the list"
            ));
        }
    }
    complaints
}

fn too_large(tokens: &[Token]) -> Vec<Found> {
    let mut found = Vec::new();
    for (index, pair) in tokens.windows(2).enumerate() {
        let [keyword, name] = pair else { continue };
        let size = match keyword.text {
            "struct" => fields(tokens, index)
                .filter(|fields| *fields > FIELDS_MAX)
                .map(|fields| format!("has {fields} fields, more than {FIELDS_MAX}")),
            "fn" => lines(tokens, index)
                .filter(|lines| *lines > LINES_MAX)
                .map(|lines| format!("has {lines} lines, more than {LINES_MAX}")),
            _ => None,
        };
        if let Some(size) = size {
            found.push(Found {
                name: name.text.to_owned(),
                line: keyword.line,
                size,
            });
        }
    }
    found
}

/// The index of the brace that opens the body of the item; `None` if it has none.
fn body(tokens: &[Token], start: usize) -> Option<usize> {
    let mut index = start;
    loop {
        match tokens.get(index)?.text {
            "{" => return Some(index),
            ";" => return None,
            "(" | "[" => index = source::after_group(tokens, index),
            _ => index += 1,
        }
    }
}

/// The named fields of a struct: the single colons directly within its braces.
fn fields(tokens: &[Token], start: usize) -> Option<usize> {
    let open = body(tokens, start)?;
    let end = source::after_group(tokens, open);
    let mut count = 0;
    let mut index = open + 1;
    // Bounds within a field's type (`dyn Fn(A) -> B`, `for<'a>`) have no single colon outside
    // brackets.
    while index < end {
        match tokens.get(index)?.text {
            "(" | "[" | "{" => index = source::after_group(tokens, index),
            ":" => {
                count += 1;
                index += 1;
            }
            _ => index += 1,
        }
    }
    Some(count)
}

/// The lines of a function with a body that have code.
fn lines(tokens: &[Token], start: usize) -> Option<usize> {
    let end = source::after_group(tokens, body(tokens, start)?);
    let lines = tokens.get(start..end)?.iter().map(|token| token.line);
    Some(lines.collect::<BTreeSet<_>>().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structure(fields: usize) -> String {
        let fields: Vec<_> = (0..fields)
            .map(|index| format!("/// A: b.\n#[a(b: c)] pub f{index}: Map<(A, B), c::D>,"))
            .collect();
        format!("struct S<E: Env> where E: A {{ {} }}", fields.join("\n"))
    }

    fn function(lines: usize) -> String {
        let body = "// Why.\n\na();\n".repeat(lines - 2);
        format!("fn f<E: Env>(a: [u8; 2]) -> A {{\n{body}}}")
    }

    fn complaints(exceptions: &[(&str, &str, &str)], text: String) -> Vec<String> {
        check(exceptions, &[("a.rs".to_owned(), text)])
    }

    #[test]
    fn what_is_at_its_limit_passes() {
        for text in [
            structure(15),
            function(70),
            "struct S(A); struct T; trait A { fn f(); }".to_owned(),
            format!("#[cfg(test)] mod tests {{ {} }}", function(200)),
        ] {
            assert_eq!(complaints(&[], text), [""; 0]);
        }
    }

    #[test]
    fn what_is_larger_fails() {
        let expected = "a.rs:1: S has 16 fields, more than 15";
        assert_eq!(complaints(&[], structure(16)), [expected]);
        let expected = "a.rs:2: f has 71 lines, more than 70";
        assert_eq!(complaints(&[], format!("\n{}", function(71))), [expected]);
    }

    #[test]
    fn an_exception_must_be_needed() {
        let exceptions = [("a.rs", "f", "known")];
        assert_eq!(complaints(&exceptions, function(71)), [""; 0]);
        let expected = "a.rs: the exception for f is no longer needed: remove it from the list";
        assert_eq!(complaints(&exceptions, function(70)), [expected]);
    }
}
