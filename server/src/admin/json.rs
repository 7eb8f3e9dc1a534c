//! Keys, values and rows in JSON, as the command line prints them and the API over HTTP sends them. Pure.
//!
//! A key or value stands under its name (`"key"`, `"value"`) if it is valid UTF-8, else, and always
//! if hexadecimal digits are asked for, under the name with `_hex` (`"key_hex"`) in lower case.
//! Exactly one of both is there, so binary data survives. Versions are whole numbers of up to 63 bits.

use std::fmt::Write as _;

use rangedb_client::Row;
use serde_json::{Map, Value};

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Sets `name` or `name_hex`.
pub fn set_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8], as_hex: bool) {
    match std::str::from_utf8(bytes) {
        Ok(text) if !as_hex => object.insert(name.to_owned(), Value::from(text)),
        _ => object.insert(format!("{name}_hex"), Value::from(hex(bytes))),
    };
}

/// A row of a scan; one of a scan of keys only has no value.
pub fn row(row: &Row, keys_only: bool, as_hex: bool) -> Value {
    let mut object = Map::new();
    set_bytes(&mut object, "key", &row.key, as_hex);
    if !keys_only {
        set_bytes(&mut object, "value", &row.value, as_hex);
    }
    object.insert("version".to_owned(), Value::from(row.version));
    Value::Object(object)
}
