//! Batches as JSON: the body of `POST /api/v1/batch`, and the lines that `rangedb write --stdin`
//! reads. Pure.
//!
//! A condition is `{"if":"absent","key":"k"}`, with `exists` in place of `absent`,
//! `{"if":"value","key":"k","value":"v"}` or `{"if":"version","key":"k","version":7}`. A change is
//! `{"op":"put","key":"k","value":"v"}`, `{"op":"delete","key":"k"}` or
//! `{"op":"add","key":"k","delta":-1}`. `key_hex` and `value_hex` take hexadecimal digits. Versions are read
//! as text or numbers and written as text.

use rangedb_client::{Batch, BatchOutcome};
use rangedb_protocol::limits::BATCH_OPS_MAX;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::json::{self, bounded_list, read_version};

/// How the body of a request looks.
const SHAPE: &str = "{\"conditions\":[{\"if\":\"absent\",\"key\":\"k\"},..],\"mutations\":[{\"op\":\"put\",\
                     \"key\":\"k\",\"value\":\"v\"},..]}; conditions may be left out";

/// A condition or a change.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    op: Option<Op>,
    r#if: Option<If>,
    key: Option<String>,
    key_hex: Option<String>,
    value: Option<String>,
    value_hex: Option<String>,
    #[serde(default, deserialize_with = "read_version")]
    version: Option<u64>,
    delta: Option<i64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Op {
    Put,
    Delete,
    Add,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum If {
    Absent,
    Exists,
    Value,
    Version,
}

/// The body of a request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(default, deserialize_with = "bounded")]
    conditions: Vec<Operation>,
    #[serde(deserialize_with = "bounded")]
    mutations: Vec<Operation>,
}

/// Reads no more operations than a batch may have.
fn bounded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Operation>, D::Error> {
    bounded_list::<BATCH_OPS_MAX, _, _>(deserializer)
}

/// The bytes of hexadecimal digits.
///
/// # Errors
/// The text is something else.
pub fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let wrong = || format!("'{text}' is not pairs of hexadecimal digits");
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return Err(wrong());
    }
    let pair = |start: usize| u8::from_str_radix(&text[start..start + 2], 16).ok();
    let is_digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(pair).collect();
    bytes.filter(|_| is_digits).ok_or_else(wrong)
}

/// The batch of a request's body.
///
/// # Errors
/// The body is not a batch; the error says where and why.
pub(super) fn of_body(body: &[u8]) -> Result<Batch, String> {
    let body: Body =
        json::object(body, SHAPE).map_err(|wrong| format!("the body is not a batch: {wrong}"))?;
    let mut batch = Batch::new();
    for (place, condition) in body.conditions.into_iter().enumerate() {
        let at = |message| format!("condition {place}: {message}");
        if condition.r#if.is_none() {
            return Err(at("it has no field 'if'".to_owned()));
        }
        batch = condition.add_to(batch, false).map_err(at)?;
    }
    for (place, mutation) in body.mutations.into_iter().enumerate() {
        let at = |message| format!("mutation {place}: {message}");
        if mutation.op.is_none() {
            return Err(at("it has no field 'op'".to_owned()));
        }
        batch = mutation.add_to(batch, false).map_err(at)?;
    }
    if batch.is_empty() {
        return Err("the batch has no mutation".to_owned());
    }
    Ok(batch)
}

/// The result of a batch, as JSON.
pub fn outcome(outcome: &BatchOutcome) -> Value {
    match outcome {
        BatchOutcome::Written { version, numbers } if numbers.is_empty() => {
            json!({ "version": json::version(*version) })
        }
        BatchOutcome::Written { version, numbers } => {
            json!({ "version": json::version(*version), "numbers": numbers })
        }
        BatchOutcome::Failed { condition, current } => {
            let current = current.map(json::version);
            json!({ "written": false, "condition": condition, "current": current })
        }
        _ => Value::Null,
    }
}

impl Operation {
    /// How one looks.
    pub const SHAPE: &str = "{\"op\":\"put\",\"key\":\"k\",\"value\":\"v\"}, {\"op\":\"delete\",\"key\":\"k\"}, \
                             {\"op\":\"add\",\"key\":\"k\",\"delta\":1} or a condition, such as \
                             {\"if\":\"absent\",\"key\":\"k\"}";

    /// Whether it is a condition, and no change.
    pub fn is_condition(&self) -> bool {
        self.r#if.is_some()
    }

    /// The batch with this operation. `hex`: plain keys and values are hexadecimal digits, too.
    ///
    /// # Errors
    /// A field is missing or does not belong to the operation.
    pub fn add_to(self, batch: Batch, hex: bool) -> Result<Batch, String> {
        let one = |plain: Option<String>, hexed: Option<String>, what: &str| match (plain, hexed) {
            (Some(text), None) if !hex => Ok(Some(text.into_bytes())),
            (Some(text), None) | (None, Some(text)) => from_hex(&text).map(Some),
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(format!("give {what} or {what}_hex, not both")),
        };
        let key = one(self.key, self.key_hex, "key")?.ok_or_else(|| "no key".to_owned())?;
        let value = one(self.value, self.value_hex, "value")?;
        let fields = (value, self.version, self.delta);
        match (self.r#if, self.op) {
            (Some(condition), None) => add_condition(batch, condition, key, fields),
            (None, Some(op)) => add_change(batch, op, key, fields),
            (Some(_), Some(_)) => Err("give if or op, not both".to_owned()),
            (None, None) => Err("give if (a condition) or op (a change)".to_owned()),
        }
    }
}

/// A value, a version, a delta.
type Fields = (Option<Vec<u8>>, Option<u64>, Option<i64>);

fn add_condition(
    batch: Batch,
    condition: If,
    key: Vec<u8>,
    fields: Fields,
) -> Result<Batch, String> {
    match (condition, fields) {
        (If::Absent, (None, None, None)) => Ok(batch.if_absent(key)),
        (If::Exists, (None, None, None)) => Ok(batch.if_exists(key)),
        (If::Value, (Some(value), None, None)) => Ok(batch.if_value(key, value)),
        (If::Version, (None, Some(version), None)) => Ok(batch.if_version(key, version)),
        (If::Absent | If::Exists, _) => {
            Err("the condition takes no value, version or delta".to_owned())
        }
        (If::Value, _) => Err("the condition needs a value and nothing else".to_owned()),
        (If::Version, _) => Err("the condition needs a version and nothing else".to_owned()),
    }
}

fn add_change(batch: Batch, op: Op, key: Vec<u8>, fields: Fields) -> Result<Batch, String> {
    match (op, fields) {
        (Op::Put, (Some(value), None, None)) => Ok(batch.put(key, value)),
        (Op::Delete, (None, None, None)) => Ok(batch.delete(key)),
        (Op::Add, (None, None, Some(delta))) => Ok(batch.add(key, delta)),
        (Op::Put, _) => Err("put needs a value and nothing else".to_owned()),
        (Op::Delete, _) => Err("delete takes no value, version or delta".to_owned()),
        (Op::Add, _) => Err("add needs a delta and nothing else".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_conditions_and_mutations() {
        let body = br#"{"conditions":[{"if":"absent","key":"a"},{"if":"exists","key_hex":"00"},
            {"if":"value","key":"b","value":""},{"if":"version","key":"c","version":7},
            {"if":"version","key":"d","version":"9223372036854775807"}],
            "mutations":[{"op":"put","key":"a","value_hex":"ff"},{"op":"delete","key":"b"},
            {"op":"add","key":"n","delta":-2}]}"#;
        let wanted = Batch::new()
            .if_absent("a")
            .if_exists([0])
            .if_value("b", "")
            .if_version("c", 7)
            .if_version("d", i64::MAX as u64)
            .put("a", [0xff])
            .delete("b")
            .add("n", -2);
        assert_eq!(of_body(body), Ok(wanted));
        let plain = br#"{"mutations":[{"op":"put","key":"a","value":"1"}]}"#;
        assert_eq!(of_body(plain), Ok(Batch::new().put("a", "1")));
    }

    #[test]
    fn what_is_no_batch_is_refused_with_its_place() {
        for (bad, says) in [
            ("", "not a batch"),
            ("[]", "not a batch"),
            (
                "nonsense",
                "it begins with 'nonsense', not with {; expected is {\"conditions\"",
            ),
            (r#"{"conditions":[]}"#, "the field `mutations` is missing"),
            (r#"{"mutations":[]}"#, "no mutation"),
            (
                r#"{"mutations":[{"op":"put","key":"a"}]}"#,
                "mutation 0: put",
            ),
            (r#"{"mutations":[{"if":"absent","key":"a"}]}"#, "mutation 0"),
            (
                r#"{"conditions":[{"op":"delete","key":"a"}],"mutations":[]}"#,
                "condition 0",
            ),
            (
                r#"{"conditions":[{"if":"value","key":"a"}],"mutations":[]}"#,
                "condition 0: the condition needs a value",
            ),
            (
                r#"{"mutations":[{"op":"add","key":"a","delta":1.5}]}"#,
                "`1.5` stands where a whole number",
            ),
            (
                r#"{"mutations":[{"op":"set","key":"a"}]}"#,
                "unknown word `set`, expected one of `put`, `delete`, `add`",
            ),
            (
                r#"{"mutations":[{"op":"put","key":"a","value":"b","ttl":1}]}"#,
                "ttl",
            ),
            (
                r#"{"conditions":[{"if":"version","key":"a","version":"x"}],"mutations":[]}"#,
                "'x' is not a version",
            ),
            (
                r#"{"mutations":[{"op":"delete","key_hex":"0"}]}"#,
                "hexadecimal",
            ),
        ] {
            let message = of_body(bad.as_bytes()).expect_err(bad);
            assert!(message.contains(says), "{bad}: {message}");
        }
        let many = format!(r#"{{"mutations":[{}{{}}]}}"#, "{},".repeat(BATCH_OPS_MAX));
        let message = of_body(many.as_bytes()).expect_err("too many");
        assert!(message.contains("at most 4096"), "{message}");
    }
}
