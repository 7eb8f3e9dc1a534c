//! What the manager knows of ranges' bounds besides their records, and functions on intervals of keys. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::boot_time::BootTime;
use crate::types::{KeyRange, RangeId};

/// Ranges are merged if they take less than this together, in milliseconds of CPU a second: an eighth of
/// a quarter of a core.
pub(in crate::cluster) const COLD_CPU_MILLIS: u32 = 31;
/// Since when a range is as it is, for the manager of now.
#[derive(Clone, Copy, Debug)]
pub(in crate::cluster) struct Rest {
    version: u32,
    pub since: BootTime,
}

impl Rest {
    pub(in crate::cluster) fn new(version: u32, now: BootTime) -> Rest {
        Rest {
            version,
            since: now,
        }
    }

    /// Begins anew if the range has other bounds or is not cold.
    pub(in crate::cluster) fn take(&mut self, version: u32, cpu_millis: u32, now: BootTime) {
        if version != self.version || cpu_millis >= COLD_CPU_MILLIS {
            *self = Rest::new(version, now);
        }
    }
}

/// What the manager knows of bounds besides the ranges' records.
pub(in crate::cluster) struct Bounds {
    /// The ranges of users' keys by their first keys, as the view has them.
    pub by_start: BTreeMap<Vec<u8>, RangeId>,
    /// Since when the new bounds of a range wait for another range to be known.
    pub postponed: BTreeMap<RangeId, BootTime>,
    /// Whether known ranges have got other bounds.
    pub have_changed: bool,
    /// Ranges that have no key any more, and rows that are to be deleted.
    pub gone: BTreeSet<RangeId>,
}

impl Bounds {
    pub(in crate::cluster) fn new() -> Bounds {
        Bounds {
            by_start: BTreeMap::new(),
            postponed: BTreeMap::new(),
            have_changed: false,
            gone: BTreeSet::new(),
        }
    }
}

/// Whether an interval ends after this key.
pub(in crate::cluster) fn has_keys_up_to(keys: &KeyRange, key: &[u8]) -> bool {
    keys.end.as_deref().is_none_or(|end| end > key)
}

/// What is left of an interval without the keys of another: of two parts the left one, since a split
/// leaves that to the range. `None`: nothing.
pub(in crate::cluster) fn cut(keys: &KeyRange, by: &KeyRange) -> Option<KeyRange> {
    if !keys.overlaps(by) {
        return Some(keys.clone());
    }
    if keys.start < by.start {
        return Some(KeyRange {
            start: keys.start.clone(),
            end: Some(by.start.clone()),
        });
    }
    let end = by.end.clone()?;
    has_keys_up_to(keys, &end).then(|| KeyRange {
        start: end,
        end: keys.end.clone(),
    })
}

/// Whether intervals that are sorted by their starts hold all keys of one.
pub(in crate::cluster) fn is_covered(keys: &KeyRange, by: &[KeyRange]) -> bool {
    let mut next = keys.start.clone();
    for interval in by {
        if interval.start > next {
            return false;
        }
        match &interval.end {
            None => return true,
            Some(end) if *end > next => next.clone_from(end),
            Some(_) => {}
        }
        if !has_keys_up_to(keys, &next) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(start: &str, end: &str) -> KeyRange {
        KeyRange {
            start: start.into(),
            end: (!end.is_empty()).then(|| end.into()),
        }
    }

    #[test]
    fn what_is_cut_is_no_longer_there_and_nothing_else_is_lost_but_a_right_part() {
        for (all, by, left) in [
            (keys("a", "z"), keys("m", "z"), Some(keys("a", "m"))),
            (keys("a", "z"), keys("m", ""), Some(keys("a", "m"))),
            (keys("", ""), keys("m", ""), Some(keys("", "m"))),
            (keys("a", "z"), keys("", "m"), Some(keys("m", "z"))),
            (keys("a", "z"), keys("c", "m"), Some(keys("a", "c"))),
            (keys("a", "m"), keys("m", "z"), Some(keys("a", "m"))),
            (keys("a", "m"), keys("a", "m"), None),
            (keys("b", "m"), keys("", ""), None),
        ] {
            assert_eq!(cut(&all, &by), left, "{all:?} {by:?}");
        }
    }

    #[test]
    fn intervals_cover_what_they_leave_no_hole_in() {
        for (all, by, covered) in [
            (keys("a", "z"), vec![keys("a", "m"), keys("m", "z")], true),
            (keys("a", "z"), vec![keys("", "p"), keys("m", "")], true),
            (keys("a", "z"), vec![keys("a", "l"), keys("m", "z")], false),
            (keys("a", "z"), vec![keys("b", "z")], false),
            (keys("a", ""), vec![keys("a", "z")], false),
            (keys("", ""), vec![keys("", "")], true),
            (keys("a", "b"), vec![], false),
        ] {
            assert_eq!(is_covered(&all, &by), covered, "{all:?} {by:?}");
        }
    }
}
