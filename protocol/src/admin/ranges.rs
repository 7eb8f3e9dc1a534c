//! Answers about splits of ranges, and the change of bounds that is under way at a range.

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
    /// The id of this part; the first part keeps the id of the range that was split.
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

/// When a range was made, and what is decided about its borders.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Borders {
    /// When it was born, in milliseconds since 1970 of the wall clock of the node that managed the cluster then;
    /// 0 if that is not known, because an older release made it.
    pub born_ms: u64,
    /// Until when the border on its left must not be merged away, in milliseconds since 1970; 0 if it may be,
    /// `u64::MAX` if it never must.
    pub held_until_ms: u64,
    /// Why the range was not split although it is too large or too hot; `None`: nothing is known to stand
    /// in the way.
    pub split_blocked: Option<SplitBlocked>,
}

/// What stands in the way of a split that should be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SplitBlocked {
    /// The obstacle.
    pub reason: BlockReason,
    /// When it was first found, in milliseconds since 1970 of the manager's wall clock.
    pub since_ms: u64,
    /// The key that is too hot, if it is one.
    #[serde(with = "hex_or_null")]
    pub key: Option<Vec<u8>>,
}

/// Why a range is not split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BlockReason {
    /// All of its load is that of one key, which it has alone.
    SingleKey,
    /// There is no key at which it would become better.
    NoKey,
    /// Replicas lag behind the leader.
    Lagging,
    /// Another change of it was under way, or its leader was lost.
    Changing,
    /// The border would be longer than a key may be.
    Limit,
    /// A word that this release does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl fmt::Display for BlockReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// How many ranges [`Command::HotRanges`](super::Command::HotRanges) shows unless it says otherwise.
pub const HOT_RANGES_DEFAULT: u32 = 10;

/// The answer to [`Command::HotRanges`](super::Command::HotRanges).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HotRanges {
    /// The ranges of users' keys that take the most CPU time, the hottest first.
    pub ranges: Vec<HotRange>,
}

/// A range that takes much CPU time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HotRange {
    /// The id of the hot range.
    pub id: u64,
    /// CPU time, in milliseconds a second, over the last 10 s.
    pub cpu_millis_per_second: u32,
    /// The keys with the most requests, the hottest first; none if the range has little load, or if its
    /// leader did not answer.
    pub keys: Vec<HotKey>,
}

/// A key and its share of the requests of its range, from samples of the last 10 s, about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HotKey {
    /// The user's key.
    #[serde(with = "hex")]
    pub key: Vec<u8>,
    /// Its share, from 0 to 1. A scan, or a batch of several keys, counts half at each of its ends.
    pub share: f64,
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
    /// Bytes of keys and values that were read a second, likewise.
    pub read_bytes_per_second: u64,
    /// Bytes of keys and values that were written a second, likewise.
    pub written_bytes_per_second: u64,
    /// Writes that wait at the leader to be proposed.
    pub waiting: u32,
    /// The rates over the last 5 min.
    pub over_5m: RangeRates,
}

/// The load of a range at its leader over a longer time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RangeRates {
    /// Keys that were read and pages of scans a second.
    pub reads_per_second: u32,
    /// Batches that were written in one second, on average.
    pub writes_per_second: u32,
    /// CPU time, in milliseconds a second.
    pub cpu_millis_per_second: u32,
    /// Bytes of keys and values that were read a second.
    pub read_bytes_per_second: u64,
    /// Bytes of keys and values that were written a second.
    pub written_bytes_per_second: u64,
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
    fn what_stands_in_the_way_of_a_split_is_null_or_an_object() {
        let mut borders = Borders::default();
        let text = serde_json::to_string(&borders).expect("it has a text");
        assert_eq!(
            text,
            r#"{"born_ms":0,"held_until_ms":0,"split_blocked":null}"#
        );
        borders.split_blocked = Some(SplitBlocked {
            reason: BlockReason::SingleKey,
            since_ms: 7,
            key: Some(b"m".to_vec()),
        });
        let text = serde_json::to_string(&borders).expect("it has a text");
        let wanted = r#"{"reason":"single_key","since_ms":7,"key":"6d"}"#;
        assert!(
            text.ends_with(&format!(r#""split_blocked":{wanted}}}"#)),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Borders>(&text).ok(), Some(borders));
        let newer = text.replace("single_key", "too_cold");
        let read = serde_json::from_str::<Borders>(&newer).expect("it is read");
        let reason = read.split_blocked.map(|blocked| blocked.reason);
        assert_eq!(reason, Some(BlockReason::Unknown));
        assert_eq!(
            serde_json::from_str::<Borders>("{}").ok(),
            Some(Borders::default())
        );
    }

    #[test]
    fn hot_ranges_have_their_keys_and_shares() {
        let key = HotKey {
            key: b"m".to_vec(),
            share: 0.625,
        };
        let range = HotRange {
            id: 7,
            cpu_millis_per_second: 400,
            keys: vec![key],
        };
        let hot = HotRanges {
            ranges: vec![range],
        };
        let text = serde_json::to_string(&hot).expect("it has a text");
        let wanted = r#"{"ranges":[{"id":7,"cpu_millis_per_second":400,"keys":[{"key":"6d","share":0.625}]}]}"#;
        assert_eq!(text, wanted);
        assert_eq!(serde_json::from_str::<HotRanges>(&text).ok(), Some(hot));
        let asked = Command::parse(r#"{"command":"hot_ranges"}"#);
        let top = HOT_RANGES_DEFAULT;
        assert_eq!(asked, Ok(Command::HotRanges { top }));
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
