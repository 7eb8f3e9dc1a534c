//! Formats keys and values for printing. Pure.

use std::fmt::Write as _;

use rangedb_server::admin::json::hex;

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
