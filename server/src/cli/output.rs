//! Formats keys and values for printing. Pure.
//!
//! In JSON, a key or value that is valid UTF-8 stands under its name (`"key"`, `"value"`).
//! Otherwise, and always with `--hex`, it stands as lower-case hexadecimal digits under its name
//! with `_hex` (`"key_hex"`). Exactly one of the two is present, so no binary data is lost.
//! Versions are whole numbers of up to 63 bits.

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

/// Formats a key or value so that it stays within its line and column: escapes what is not
/// printable.
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

/// Sets the field `name`, or `name_hex` if the bytes need it.
pub(super) fn set_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8], as_hex: bool) {
    match std::str::from_utf8(bytes) {
        Ok(text) if !as_hex => object.insert(name.to_owned(), Value::from(text)),
        _ => object.insert(format!("{name}_hex"), Value::from(hex(bytes))),
    };
}
