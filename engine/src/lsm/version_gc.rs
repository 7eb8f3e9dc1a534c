//! Decides which versions of rows a flush or a compaction may drop. This module does no I/O.
//!
//! The versions of a key are judged from the newest to the oldest, against the threshold of the
//! key. Versions above the threshold are kept. The first one at or below it is kept, too, because a
//! read just above the threshold needs it, except for a tombstone in the last level, which hides
//! nothing. Older versions are dropped. A row that no live replica owns is dropped with all its
//! versions.

use std::collections::BTreeMap;

use crate::lsm::keys::{self, Collected, Owner};
use crate::types::{DataId, KeyRange, ReplicaId, Timestamp};

/// The rows that one live replica owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveData {
    /// The replica. It owns the rows that are stored by its id.
    pub replica: ReplicaId,
    /// The data id under which its other rows are stored.
    pub data_id: DataId,
    /// The interval of user keys within which it owns rows that are stored by user key.
    pub keys: KeyRange,
    /// Reads at or below this timestamp are no longer served.
    pub threshold: Timestamp,
}

/// The live rows. A flush or a compaction uses the rules that are set when it begins.
#[derive(Clone, Debug, Default)]
pub struct GcRules {
    /// Every live replica of the shard.
    pub live: Vec<LiveData>,
}

/// Judges the versions that one flush or compaction goes through, in their order.
pub struct VersionFilter {
    /// If it is `None`, everything is kept.
    by_data_id: Option<BTreeMap<DataId, Vec<LiveData>>>,
    /// The key of the version that was judged last.
    key: Vec<u8>,
    /// The threshold of `key`; `None` if no live replica owns it.
    threshold: Option<Timestamp>,
    /// Whether a version of `key` at or below the threshold has been judged already.
    covered: bool,
}

impl VersionFilter {
    /// A filter that uses these rules. Without rules it keeps everything.
    pub fn new(rules: Option<&GcRules>) -> VersionFilter {
        let by_data_id = rules.map(|rules| {
            let mut by_data_id: BTreeMap<DataId, Vec<LiveData>> = BTreeMap::new();
            for live in &rules.live {
                by_data_id
                    .entry(live.data_id)
                    .or_default()
                    .push(live.clone());
            }
            by_data_id
        });
        VersionFilter {
            by_data_id,
            key: Vec::new(),
            threshold: None,
            covered: false,
        }
    }

    /// Whether a version is kept. `last_level` says that there are no older versions in lower
    /// levels.
    pub fn keeps(
        &mut self,
        key: &[u8],
        version: Timestamp,
        is_value: bool,
        last_level: bool,
    ) -> bool {
        let Some(by_data_id) = &self.by_data_id else {
            return true;
        };
        if self.key != key {
            self.key.clear();
            self.key.extend_from_slice(key);
            self.covered = false;
            self.threshold = threshold(by_data_id, key);
        }
        let Some(threshold) = self.threshold else {
            return false;
        };
        if version > threshold {
            return true;
        }
        let newest = !std::mem::replace(&mut self.covered, true);
        newest && (is_value || !last_level)
    }
}

/// The timestamp up to which old versions of a key may be dropped; `None` if no live replica owns
/// it.
fn threshold(by_data_id: &BTreeMap<DataId, Vec<LiveData>>, key: &[u8]) -> Option<Timestamp> {
    let Some((kind, owner)) = keys::parse(key) else {
        // A row of an unknown kind may be from another version of RangeDB: keep all of it.
        return Some(Timestamp::ZERO);
    };
    let (owned, read_above) = match owner {
        Owner::Tree => (true, Timestamp::MAX),
        Owner::Replica(replica) => {
            let mut live = by_data_id.values().flatten();
            (live.any(|live| live.replica == replica), Timestamp::MAX)
        }
        Owner::Data(data_id) => (by_data_id.contains_key(&data_id), Timestamp::MAX),
        Owner::Key(data_id, key) => {
            let mut live = by_data_id.get(&data_id)?.iter();
            let live = live.find(|live| live.keys.contains(&key))?;
            (true, live.threshold)
        }
    };
    owned.then_some(match kind.rule().collected {
        Collected::BelowThreshold => read_above,
        Collected::AllButNewest => Timestamp::MAX,
        Collected::WithData => Timestamp::ZERO,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &[u8]) -> Vec<u8> {
        let mut row = Vec::new();
        keys::user_key(DataId(1), key, &mut row);
        row
    }

    fn filter() -> VersionFilter {
        let keys = KeyRange {
            start: b"b".to_vec(),
            end: None,
        };
        let live = LiveData {
            replica: ReplicaId(4),
            data_id: DataId(1),
            keys,
            threshold: Timestamp(50),
        };
        VersionFilter::new(Some(&GcRules { live: vec![live] }))
    }

    #[test]
    fn keeps_what_a_read_above_the_threshold_needs() {
        let mut filter = filter();
        let key = row(b"k");
        let kept = [90, 51, 50, 40, 30].map(|v| filter.keeps(&key, Timestamp(v), true, false));
        assert_eq!(kept, [true, true, true, false, false]);
        let other = row(b"l");
        assert!(
            filter.keeps(&other, Timestamp(10), true, false),
            "the only version stays"
        );
    }

    #[test]
    fn a_delete_mark_goes_on_the_last_level_only() {
        let key = row(b"k");
        assert!(filter().keeps(&key, Timestamp(40), false, false));
        assert!(!filter().keeps(&key, Timestamp(40), false, true));
        assert!(
            filter().keeps(&key, Timestamp(60), false, true),
            "a read below needs it"
        );
    }

    #[test]
    fn rows_that_nothing_owns_go() {
        let mut filter = filter();
        assert!(!filter.keeps(&row(b"a"), Timestamp(90), true, false));
        let mut state = Vec::new();
        keys::state_key(ReplicaId(4), &mut state);
        assert!(filter.keeps(&state, Timestamp(9), true, true));
        assert!(!filter.keeps(&state, Timestamp(8), true, true));
        keys::state_key(ReplicaId(5), &mut state);
        assert!(!filter.keeps(&state, Timestamp(9), true, true));
    }

    #[test]
    fn without_rules_everything_stays() {
        let mut filter = VersionFilter::new(None);
        assert!(filter.keeps(b"anything", Timestamp(1), false, true));
    }
}
