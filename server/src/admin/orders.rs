//! The bodies of orders to the API: JSON objects whose fields are checked before anything is ordered. Pure.

use serde::Deserialize;

use super::batch::from_hex;
use super::failure::Failure;
use super::json;

/// The fields of the body of an order for another leader.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferLeader {
    pub to: Option<u64>,
}

/// The fields of the body of an order to move a replica.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveReplica {
    pub from: u64,
    pub to_node: u64,
    pub to_shard: Option<u16>,
}

/// The fields of the body of an order to split a range.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitRange {
    #[serde(default)]
    pub at: Vec<String>,
    /// Keys as hexadecimal digits.
    #[serde(default)]
    pub at_hex: Vec<String>,
    /// How many parts of about the same size, instead of keys.
    pub into: Option<u32>,
    pub hold_ms: Option<u64>,
}

impl SplitRange {
    pub fn keys(&self) -> Result<Vec<Vec<u8>>, Failure> {
        let hex = self.at_hex.iter().map(|digits| from_hex(digits));
        let texts = self.at.iter().map(|key| Ok(key.as_bytes().to_vec()));
        let keys: Result<Vec<Vec<u8>>, String> = texts.chain(hex).collect();
        keys.map_err(Failure::invalid)
    }
}

/// The fields of the body of an order to scatter ranges.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScatterRanges {
    pub start: Option<String>,
    pub end: Option<String>,
    /// Keys as hexadecimal digits.
    pub start_hex: Option<String>,
    pub end_hex: Option<String>,
}

impl ScatterRanges {
    pub fn interval(self) -> Result<(Vec<u8>, Option<Vec<u8>>), Failure> {
        let key = |text: Option<String>, hex: Option<String>, name| match (text, hex) {
            (Some(_), Some(_)) => Err(Failure::invalid(format!(
                "give {name} or {name}_hex, not both"
            ))),
            (text, None) => Ok(text.map(String::into_bytes)),
            (None, Some(hex)) => from_hex(&hex).map(Some).map_err(Failure::invalid),
        };
        let start = key(self.start, self.start_hex, "start")?;
        let end = key(self.end, self.end_hex, "end")?;
        Ok((start.unwrap_or_default(), end))
    }
}

/// The fields of the body of an order to decommission a node.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecommissionNode {
    #[serde(default)]
    pub dry_run: bool,
}

/// The body of an order that has no fields.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoFields {}

/// The body of an order.
pub trait Body: for<'a> Deserialize<'a> {
    /// How it looks, for messages.
    const SHAPE: &str;
}

impl Body for TransferLeader {
    const SHAPE: &str = "{\"to\":NODE}, or nothing for whichever node";
}

impl Body for MoveReplica {
    const SHAPE: &str =
        "{\"from\":NODE,\"to_node\":NODE,\"to_shard\":SHARD}; to_shard may be left out";
}

impl Body for SplitRange {
    const SHAPE: &str = "{\"at\":[\"KEY\",..]}, {\"at_hex\":[\"00ff\",..]} or {\"into\":PARTS}, each with \
                         \"hold_ms\":N or without";
}

impl Body for ScatterRanges {
    const SHAPE: &str = "{\"start\":\"KEY\",\"end\":\"KEY\"}, with start_hex and end_hex for bytes, or nothing for all";
}

impl Body for DecommissionNode {
    const SHAPE: &str = "{\"dry_run\":true}, or nothing";
}

impl Body for NoFields {
    const SHAPE: &str = "{} or nothing";
}

/// The fields of the body of an order that may have none.
pub fn fields_or_none<T: Default + Body>(body: &[u8]) -> Result<T, Failure> {
    match body {
        b"" => Ok(T::default()),
        body => fields(body),
    }
}

/// The fields of the body of an order.
pub fn fields<T: Body>(body: &[u8]) -> Result<T, Failure> {
    json::object(body, T::SHAPE).map_err(|wrong| {
        Failure::invalid(format!("the body is not the object of this order: {wrong}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_takes_its_range_from_the_path_alone() {
        let order = |body: &str| fields::<TransferLeader>(body.as_bytes()).ok();
        assert_eq!(order(r#"{"to":2}"#), Some(TransferLeader { to: Some(2) }));
        assert_eq!(order(" {}"), Some(TransferLeader { to: None }));
        for bad in [
            "[]",
            "[2]",
            "7",
            "{",
            "",
            r#"{"range":8}"#,
            r#"{"command":"nodes"}"#,
        ] {
            assert_eq!(order(bad), None, "{bad}");
        }
        assert!(fields::<MoveReplica>(br#"{"from":1,"to_node":2}"#).is_ok());
        assert!(fields::<MoveReplica>(br#"{"from":1}"#).is_err());
    }

    #[test]
    fn keys_at_which_a_range_is_split_are_text_or_hexadecimal_digits() {
        let keys = |body: &str| {
            let split = fields::<SplitRange>(body.as_bytes()).ok()?;
            split.keys().ok()
        };
        let body = r#"{"at":["m","é"],"at_hex":["00ff"],"hold_ms":0}"#;
        let wanted = vec![b"m".to_vec(), "é".into(), vec![0, 0xff]];
        assert_eq!(keys(body), Some(wanted));
        assert_eq!(keys(r#"{"at":["m"]}"#), Some(vec![b"m".to_vec()]));
        let into = fields::<SplitRange>(br#"{"into":4}"#).ok();
        assert_eq!(into.and_then(|split| split.into), Some(4));
        for bad in [
            r#"{"at":"m"}"#,
            r#"{"at_hex":["m"]}"#,
            r#"{"at":[],"hold":1}"#,
            r#"{"into":-1}"#,
            "",
        ] {
            assert_eq!(keys(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_interval_to_scatter_is_text_or_hexadecimal_digits_and_may_be_open() {
        let interval = |body: &str| {
            let scatter = fields_or_none::<ScatterRanges>(body.as_bytes()).ok()?;
            scatter.interval().ok()
        };
        assert_eq!(interval(""), Some((vec![], None)));
        assert_eq!(interval(r#"{"start":"a"}"#), Some((b"a".to_vec(), None)));
        let both = interval(r#"{"start_hex":"00ff","end":"m"}"#);
        assert_eq!(both, Some((vec![0, 0xff], Some(b"m".to_vec()))));
        for bad in [
            r#"{"start":"a","start_hex":"61"}"#,
            r#"{"end_hex":"m"}"#,
            r#"{"begin":"a"}"#,
            "[]",
        ] {
            assert_eq!(interval(bad), None, "{bad}");
        }
    }
}
