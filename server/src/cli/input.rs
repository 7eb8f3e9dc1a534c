//! Parses arguments and lines of standard input into bytes and operations. Pure.

use serde::Deserialize;

use super::Trouble;

/// One operation of `write`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) key: Vec<u8>,
    /// The new value; `None` removes the key.
    pub(super) value: Option<Vec<u8>>,
}

/// The bytes of an argument: its text, or the bytes that hexadecimal digits stand for.
pub(super) fn bytes(text: &str, hex: bool) -> Result<Vec<u8>, Trouble> {
    if !hex {
        return Ok(text.as_bytes().to_vec());
    }
    let wrong = || Trouble::usage(format!("'{text}' is not pairs of hexadecimal digits"));
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return Err(wrong());
    }
    let pair = |start: usize| u8::from_str_radix(&text[start..start + 2], 16).ok();
    let is_digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(pair).collect();
    bytes.filter(|_| is_digits).ok_or_else(wrong)
}

/// Parses `put KEY VALUE` and `delete KEY`, one after the other.
pub(super) fn changes(words: &[String], hex: bool) -> Result<Vec<Change>, Trouble> {
    let mut changes = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut next = |what: &str| {
            let missing = || Trouble::usage(format!("{word} needs a {what}"));
            bytes(words.next().ok_or_else(missing)?, hex)
        };
        changes.push(match word.as_str() {
            "put" => Change {
                key: next("key")?,
                value: Some(next("value")?),
            },
            "delete" => Change {
                key: next("key")?,
                value: None,
            },
            other => {
                return Err(Trouble::usage(format!(
                    "expected put or delete, not '{other}'"
                )));
            }
        });
    }
    Ok(changes)
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Op {
    Put,
    Delete,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    op: Op,
    key: Option<String>,
    key_hex: Option<String>,
    value: Option<String>,
    value_hex: Option<String>,
}

/// Parses one JSON object per line; empty lines are skipped.
pub(super) fn json_changes(text: &str, hex: bool) -> Result<Vec<Change>, Trouble> {
    let mut changes = Vec::new();
    for (index, text) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let at = |message: String| Trouble::usage(format!("line {}: {message}", index + 1));
        let line: Line = serde_json::from_str(text).map_err(|error| at(error.to_string()))?;
        let one = |plain: Option<String>, hexed: Option<String>, what: &str| match (plain, hexed) {
            (Some(text), None) => bytes(&text, hex).map(Some).map_err(|t| at(t.message)),
            (None, Some(text)) => bytes(&text, true).map(Some).map_err(|t| at(t.message)),
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(at(format!("give {what} or {what}_hex, not both"))),
        };
        let key = one(line.key, line.key_hex, "key")?.ok_or_else(|| at("no key".to_owned()))?;
        let value = one(line.value, line.value_hex, "value")?;
        match (&line.op, &value) {
            (Op::Put, None) => return Err(at("put needs a value".to_owned())),
            (Op::Delete, Some(_)) => return Err(at("delete takes no value".to_owned())),
            _ => changes.push(Change { key, value }),
        }
    }
    Ok(changes)
}
