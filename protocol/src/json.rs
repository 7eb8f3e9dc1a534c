//! Reads JSON that people and other programs write. An error says what is wrong, at which line and column,
//! and what is expected, without names of Rust's types. Pure.

use serde::Deserialize;
use serde_json::error::Category;

/// Bytes of a text that a message shows where it is no JSON.
const SHOWN_LEN_MAX: usize = 20;

/// Reads an object, which must be the whole text. `shape` is how it should look, for messages.
///
/// # Errors
/// The text is something else; the message says what is wrong with it, where, and what is expected.
pub fn object<'a, T: Deserialize<'a>>(text: &'a [u8], shape: &str) -> Result<T, String> {
    // serde reads structs from lists, too.
    let wrong = match text.trim_ascii_start().first() {
        None => "it is empty".to_owned(),
        Some(b'{') => match serde_json::from_slice(text) {
            Ok(object) => return Ok(object),
            Err(error) => fault(text, &error),
        },
        Some(_) => format!(
            "it begins with {}, not with {{",
            shown(text.trim_ascii_start())
        ),
    };
    Err(format!("{wrong}; expected is {shape}"))
}

/// What is wrong with a text, in the words of this project.
fn fault(text: &[u8], error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    let place = format!("line {line}, column {column}");
    match error.classify() {
        Category::Io | Category::Eof => "it ends before the object does".to_owned(),
        Category::Syntax => {
            let found = text
                .split(|byte| *byte == b'\n')
                .nth(line.saturating_sub(1));
            let found = found.and_then(|found| found.get(column.saturating_sub(1)..));
            match found.unwrap_or_default() {
                b"" => format!("it is no JSON at {place}"),
                found => format!("it is no JSON at {place}: {}", shown(found)),
            }
        }
        Category::Data => {
            let message = error.to_string();
            let words = message
                .rsplit_once(" at line ")
                .map_or(&*message, |(words, _)| words);
            format!("{} at {place}", in_words(words))
        }
    }
}

/// The beginning of a text, in quotes.
fn shown(text: &[u8]) -> String {
    let part = text.get(..SHOWN_LEN_MAX).unwrap_or(text);
    let part = part.split(|byte| *byte == b'\n').next().unwrap_or(part);
    format!("'{}'", String::from_utf8_lossy(part))
}

/// What serde says of a value that does not fit, without its names of Rust's types.
fn in_words(message: &str) -> String {
    let of_value = ["invalid type: ", "invalid value: "];
    let of_value = of_value.iter().find_map(|head| message.strip_prefix(head));
    let Some((found, wanted)) = of_value.and_then(|rest| rest.rsplit_once(", expected ")) else {
        return match message.strip_prefix("missing field ") {
            Some(field) => format!("the field {field} is missing"),
            None => message.replace("unknown variant", "unknown word"),
        };
    };
    let found = match found {
        "map" => "an object",
        "sequence" => "a list",
        other => other,
    };
    let wanted = match wanted {
        "u64" | "usize" => "a whole number from 0 on",
        "u32" => "a whole number from 0 to 4294967295",
        "u16" => "a whole number from 0 to 65535",
        "i64" => "a whole number of 64 bits with a sign",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "map" => "an object",
        "a string" => "a text",
        wanted if wanted.starts_with("struct ") => "an object",
        other => other,
    };
    format!("{found} stands where {wanted} is expected")
}
