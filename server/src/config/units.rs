//! Parsers of lists of keys and of levels of log lines, and the machine's memory.

use crate::env::cgroup;
use crate::env::root::Root;

/// Reads which log lines are written: a level, or a list of levels and `MODULE=LEVEL` that commas
/// separate.
///
/// # Errors
/// A word is no level; the message names those that there are.
pub fn parse_log_level(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for part in text.split(',') {
        let (module, level) = part.split_once('=').unwrap_or(("rangedb", part));
        let is_module = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        if module.is_empty() || !module.chars().all(is_module) || !LEVELS.contains(&level) {
            return Err(format!(
                "{part:?} is no level; the levels are error, warn, info, debug and trace"
            ));
        }
    }
    Ok(text.to_owned())
}

/// Reads a list of keys that commas separate; `\xNN` stands for a byte, `\,` for a comma, `\\` for
/// a backslash.
///
/// # Errors
/// A key is empty or too long, the keys do not rise, or an escape is unknown.
pub fn parse_keys(text: &str) -> Result<Vec<Vec<u8>>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut keys = vec![Vec::new()];
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let byte = match byte {
            b',' => {
                keys.push(Vec::new());
                continue;
            }
            b'\\' => {
                let (byte, after) = unescape(rest)?;
                rest = after;
                byte
            }
            byte => *byte,
        };
        if let Some(key) = keys.last_mut() {
            key.push(byte);
        }
    }
    if keys
        .iter()
        .any(|key| key.is_empty() || key.len() > rangedb_protocol::limits::KEY_LEN_MAX)
    {
        return Err("a border has 1 to 4096 bytes".to_owned());
    }
    if !keys.is_sorted_by(|a, b| a < b) {
        return Err("borders must rise, each given once".to_owned());
    }
    Ok(keys)
}

fn unescape(rest: &[u8]) -> Result<(u8, &[u8]), String> {
    match rest {
        [b'x', high, low, rest @ ..] => {
            let digits = [*high, *low];
            let digits = std::str::from_utf8(&digits).unwrap_or("");
            let byte = u8::from_str_radix(digits, 16);
            byte.map(|byte| (byte, rest))
                .map_err(|_| "\\x takes two hex digits".to_owned())
        }
        [byte @ (b',' | b'\\'), rest @ ..] => Ok((*byte, rest)),
        _ => Err("a backslash stands before xNN, a comma or a backslash".to_owned()),
    }
}

/// The memory that this process may use: the machine's, or the lowest limit of its control groups if
/// that is less.
pub fn machine_memory() -> u64 {
    let root = Root::of_machine();
    let total = root.memory("MemTotal").unwrap_or(1 << 30);
    let limit = cgroup::lowest(&root, cgroup::MEMORY_MAX);
    limit.map_or(total, |(limit, _)| limit.min(total))
}
