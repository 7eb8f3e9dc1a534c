//! Answers about splits of ranges, and what a range's bounds are doing.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{hex, hex_or_null};

/// How long ranges are held against merging after an operator has split them, in milliseconds, unless the
/// command says otherwise: an hour.
pub const HOLD_MS_DEFAULT: u64 = 60 * 60 * 1000;

/// The answer to [`Command::SplitRange`](super::Command::SplitRange).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// The ranges into which the range was split, in the order of their keys. The first one has the id of
    /// the range; the others are new.
    pub ranges: Vec<SplitPart>,
    /// Why it was not split at all keys; absent if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<SplitFailure>,
}

/// One of the ranges into which a range was split.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitPart {
    /// Its id.
    pub id: u64,
    /// The first key.
    #[serde(with = "hex")]
    pub start: Vec<u8>,
    /// The key at which it ends, which is not in it; `None`: it has no end.
    #[serde(with = "hex_or_null")]
    pub end: Option<Vec<u8>>,
}

/// Why a range was split at some of the keys only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitFailure {
    /// A sentence that names the range, the key and what stood in the way.
    pub reason: String,
    /// Whether the split at that key may have been made nevertheless.
    pub unknown: bool,
}

/// The answer to [`Command::MergeRange`](super::Command::MergeRange).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merged {
    /// The range that has taken over its right neighbour.
    pub range: u64,
}

/// What a range's bounds are doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BoundsState {
    /// They stay as they are, and all keys within them are served.
    Serving,
    /// The range is being split: keys on the right wait for a moment.
    Splitting,
    /// The range is about to become a part of its left neighbour: its keys wait for a moment.
    Freezing,
    /// The same, and all its replicas know that by and by.
    Frozen,
    /// The range takes over its right neighbour.
    Merging,
    /// A word that this release does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl fmt::Display for BoundsState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// As [`hex`], of a list.
pub(super) mod hexes {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::hex;

    pub fn serialize<S: Serializer>(keys: &[Vec<u8>], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(keys.iter().map(|key| hex::digits(key)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let keys: Option<Vec<Vec<u8>>> = texts.iter().map(|text| hex::bytes(text)).collect();
        keys.ok_or_else(|| D::Error::custom("a key is not in hexadecimal digits"))
    }
}

/// The load and the size of a range at its leader. All are 0 if none has reported lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RangeStats {
    /// About how many bytes its rows have, in all versions, before compression.
    pub bytes: u64,
    /// About how many bytes the newest versions of its keys have, at most.
    pub live_bytes: u64,
    /// Keys that were read and pages of scans a second, over the last 10 s.
    pub reads_per_second: u32,
    /// Writes a second, likewise.
    pub writes_per_second: u32,
    /// CPU time, in milliseconds a second, likewise.
    pub cpu_millis_per_second: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Command;

    #[test]
    fn keys_at_which_a_range_is_split_are_hexadecimal_digits() {
        let text = r#"{"command":"split_range","range":2,"at":["00ff","6D"]}"#;
        let command = Command::SplitRange {
            range: 2,
            at: vec![vec![0, 0xff], b"m".to_vec()],
            hold_ms: None,
        };
        assert_eq!(Command::parse(text).as_ref(), Ok(&command));
        let again = serde_json::to_string(&command).expect("it has a text");
        assert_eq!(Command::parse(&again), Ok(command));
        for bad in [r#"["0"]"#, r#"["m"]"#, r#""6d""#, "[1]"] {
            let text = text.replace(r#"["00ff","6D"]"#, bad);
            assert!(Command::parse(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_answer_has_a_failure_only_if_there_was_one() {
        let part = SplitPart {
            id: 2,
            start: Vec::new(),
            end: Some(b"m".to_vec()),
        };
        let mut split = Split {
            ranges: vec![part],
            failed: None,
        };
        let text = serde_json::to_string(&split).expect("it has a text");
        assert_eq!(text, r#"{"ranges":[{"id":2,"start":"","end":"6d"}]}"#);
        split.failed = Some(SplitFailure {
            reason: "why".to_owned(),
            unknown: true,
        });
        let text = serde_json::to_string(&split).expect("it has a text");
        assert!(
            text.ends_with(r#""failed":{"reason":"why","unknown":true}}"#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Split>(&text).ok(), Some(split));
    }
}
