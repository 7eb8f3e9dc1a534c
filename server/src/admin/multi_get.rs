//! `POST /api/v1/get`: several keys in one request. Pure, but for the reads.
//!
//! The body is `{"keys":[{"key":"a"},{"key_hex":"00ff"}]}`. The answer has one object for each key, in
//! their order, with the key and `"found"`: `true` with value and version, or `false`. A key that cannot
//! be read has `"error"` and `"message"` in its place.

use std::fmt::Write as _;

use hyper::{Response, StatusCode};
use rangedb_client::Client;
use rangedb_protocol::limits::MULTI_GET_KEYS_MAX;
use serde::{Deserialize, Deserializer};

use super::batch::from_hex;
use super::body::{Text, json_response};
use super::json;

/// Once the values have this many bytes, no more keys are requested.
const VALUES_LEN_MAX: usize = 16 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(deserialize_with = "bounded")]
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    key: Option<String>,
    key_hex: Option<String>,
}

/// Reads no more keys than a request of the wire protocol may have.
fn bounded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Key>, D::Error> {
    json::bounded_list::<MULTI_GET_KEYS_MAX, _, _>(deserializer)
}

/// The keys in a request's body.
///
/// # Errors
/// The body is not a list of keys; the error says where and why.
pub(super) fn of_body(body: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let body: Body = json::object(
        body,
        "{\"keys\":[{\"key\":\"a\"},{\"key_hex\":\"00ff\"},..]}",
    )
    .map_err(|wrong| format!("the body is not a list of keys: {wrong}"))?;
    if body.keys.is_empty() {
        return Err("there are no keys".to_owned());
    }
    let key = |(place, key): (usize, Key)| match (key.key, key.key_hex) {
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(digits)) => from_hex(&digits).map_err(|why| format!("key {place}: {why}")),
        _ => Err(format!("key {place}: give key or key_hex")),
    };
    body.keys.into_iter().enumerate().map(key).collect()
}

/// Reads the keys, and answers with what each has.
pub(super) async fn answer(client: &Client, keys: &[Vec<u8>]) -> Response<Text> {
    let found = client.get_many_within(keys, VALUES_LEN_MAX).await;
    let mut text = "{\"results\":[".to_owned();
    for (number, (key, found)) in keys.iter().zip(&found).enumerate() {
        let comma = if number == 0 { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(text, "{comma}{}", json::read_key(key, found, false));
    }
    text.push_str("]}");
    json_response(StatusCode::OK, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_a_list_of_keys() {
        let keys = of_body(br#"{"keys":[{"key":"a"},{"key_hex":"00ff"},{"key":""},{"key":"a"}]}"#);
        let wanted = [&b"a"[..], b"\x00\xff", b"", b"a"];
        assert_eq!(keys, Ok(wanted.map(<[u8]>::to_vec).to_vec()));
    }

    #[test]
    fn what_is_no_list_of_keys_is_refused_with_its_place() {
        for (bad, says) in [
            ("", "not a list of keys"),
            ("[]", "not a list of keys"),
            (
                r#"{"keys":["a"]}"#,
                "string \"a\" stands where an object is expected",
            ),
            (r#"{"keys":[]}"#, "no keys"),
            (r#"{"keys":[{}]}"#, "key 0: give key or key_hex"),
            (
                r#"{"keys":[{"key":"a"},{"key":"a","key_hex":"00"}]}"#,
                "key 1",
            ),
            (r#"{"keys":[{"key_hex":"0"}]}"#, "key 0: '0' is not pairs"),
            (r#"{"keys":[{"key":"a","value":"b"}]}"#, "value"),
        ] {
            let message = of_body(bad.as_bytes()).expect_err(bad);
            assert!(message.contains(says), "{bad}: {message}");
        }
        assert!(
            of_body(b"{\"keys\":[{\"key\":\"\xff\"}]}").is_err(),
            "not UTF-8"
        );
        let of = |count: usize| {
            let keys = vec![r#"{"key":"a"}"#; count].join(",");
            of_body(format!(r#"{{"keys":[{keys}]}}"#).as_bytes())
        };
        assert_eq!(of(MULTI_GET_KEYS_MAX).map(|keys| keys.len()), Ok(4096));
        let message = of(MULTI_GET_KEYS_MAX + 1).expect_err("too many");
        assert!(message.contains("at most 4096"), "{message}");
    }
}
