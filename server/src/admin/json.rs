//! Keys, values and rows in JSON, as the command line prints them and the API over HTTP sends them. Pure.
//!
//! A key or value stands under its name (`"key"`, `"value"`) if it is valid UTF-8, else, and always
//! if hexadecimal digits are asked for, under the name with `_hex` (`"key_hex"`) in lower case.
//! Exactly one of the two is present, so binary data survives. Versions are whole numbers of up to 63 bits, written
//! as text.

use std::fmt::{self, Write as _};
use std::marker::PhantomData;

use rangedb_client::{Error, ErrorCode, Fate, Row, Versioned};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// The state of the cluster, or a part of it, with its members sorted by their names.
///
/// # Errors
/// It cannot be said in JSON.
pub fn of_state(state: impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(state)
        .map_err(|error| Error::new(ErrorCode::Internal, Fate::NotApplied, error.to_string()))
}

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

/// A version. It is a text, since most tools read numbers of JSON into 53 bits.
pub fn version(version: u64) -> Value {
    Value::from(version.to_string())
}

/// Reads a version, which may be a number, too.
pub(super) fn read_version<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Version {
        Number(u64),
        Text(String),
    }
    match Option::<Version>::deserialize(from)? {
        None => Ok(None),
        Some(Version::Number(version)) => Ok(Some(version)),
        Some(Version::Text(text)) => match text.parse() {
            Ok(version) => Ok(Some(version)),
            Err(_) => Err(D::Error::custom(format!("'{text}' is not a version"))),
        },
    }
}

/// A row of a scan; one of a scan of keys only has no value.
pub fn row(row: &Row, keys_only: bool, as_hex: bool) -> Value {
    let mut object = Map::new();
    set_bytes(&mut object, "key", &row.key, as_hex);
    if !keys_only {
        set_bytes(&mut object, "value", &row.value, as_hex);
    }
    object.insert("version".to_owned(), version(row.version));
    Value::Object(object)
}

/// The result for one of several keys: its value and version, the absence of a value, or an error.
pub fn read_key(key: &[u8], found: &Result<Option<Versioned>, Error>, as_hex: bool) -> Value {
    let mut object = Map::new();
    set_bytes(&mut object, "key", key, as_hex);
    match found {
        Ok(Some(found)) => {
            object.insert("found".to_owned(), Value::from(true));
            set_bytes(&mut object, "value", &found.value, as_hex);
            object.insert("version".to_owned(), version(found.version));
        }
        Ok(None) => {
            object.insert("found".to_owned(), Value::from(false));
        }
        Err(error) => {
            object.insert("error".to_owned(), Value::from(error.code.name()));
            object.insert("message".to_owned(), Value::from(error.message.as_str()));
        }
    }
    Value::Object(object)
}

/// Reads a list of at most `MAX` entries: each takes far more memory than its text.
pub(super) fn bounded_list<'de, const MAX: usize, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    struct Entries<const MAX: usize, T>(PhantomData<T>);
    impl<'de, const MAX: usize, T: Deserialize<'de>> Visitor<'de> for Entries<MAX, T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX} entries")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = list.next_element()? {
                if entries.len() == MAX {
                    return Err(A::Error::invalid_length(MAX + 1, &self));
                }
                entries.push(entry);
            }
            Ok(entries)
        }
    }
    deserializer.deserialize_seq(Entries::<MAX, T>(PhantomData))
}
