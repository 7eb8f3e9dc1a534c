//! From bytes to what is printed. Pure.
//!
//! In JSON a key or value stands under its name (`"key"`, `"value"`) if it is valid UTF-8, else,
//! and always with `--hex`, under the name with `_hex` (`"key_hex"`) as lower-case hexadecimal
//! digits. Exactly one of both is there, so binary data survives. Versions are whole numbers of up
//! to 63 bits.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A key or value as a word that keeps to its line and column: what is not printable is escaped.
pub(super) fn word(bytes: &[u8], as_hex: bool) -> String {
    if as_hex {
        return hex(bytes);
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                character if character.is_control() => {
                    let mut buffer = [0; 4];
                    escape(character.encode_utf8(&mut buffer).as_bytes(), &mut text);
                }
                character => text.push(character),
            }
        }
        escape(chunk.invalid(), &mut text);
    }
    text
}

fn escape(bytes: &[u8], text: &mut String) {
    for byte in bytes {
        let _ = write!(text, "\\x{byte:02x}");
    }
}

/// Sets `name` or `name_hex`.
pub(super) fn set_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8], as_hex: bool) {
    match std::str::from_utf8(bytes) {
        Ok(text) if !as_hex => object.insert(name.to_owned(), Value::from(text)),
        _ => object.insert(format!("{name}_hex"), Value::from(hex(bytes))),
    };
}
