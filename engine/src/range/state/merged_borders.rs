//! The first keys of the ranges that a range has taken over, and the timestamps of these merges.
//!
//! A scan chooses its timestamp in one range, and goes on at it in later pages. Keys that were in another
//! range then must not be read at that timestamp: later writes to them may have been acknowledged before
//! the scan began. So a scan ends at such a border, as it would have without the merge, and goes on there
//! at a timestamp of its own.
//!
//! The borders are a part of the range's state: they are in its state row and in its snapshots, and a child
//! of a split has those of its keys. So they hold after a restart and whichever replica leads. A border
//! is forgotten when no scan may read below its merge any more. Pure and deterministic.

use crate::types::{KeyRange, Timestamp};

/// A range has at most this many; see [`MergedBorders::drop_oldest`].
const BORDERS_MAX: usize = 256;

/// The first key of a range that was taken over, and the timestamp of the merge.
pub type MergedBorder = (Vec<u8>, Timestamp);

/// The borders that a range had not long ago, in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MergedBorders(Vec<MergedBorder>);

impl MergedBorders {
    /// Those of a state row.
    pub fn new(borders: Vec<MergedBorder>) -> MergedBorders {
        let mut all = MergedBorders::default();
        all.add(borders);
        all
    }

    /// All of them.
    pub fn all(&self) -> &[MergedBorder] {
        &self.0
    }

    /// Takes in the border of a merge, or those of a range that was taken over.
    pub fn add(&mut self, borders: Vec<MergedBorder>) {
        self.0.extend(borders);
        // Of two merges at the same key the later one counts.
        self.0
            .sort_by(|(one, at), (other, then)| one.cmp(other).then(then.cmp(at)));
        self.0.dedup_by(|(one, _), (other, _)| one == other);
    }

    /// Takes out those of a range that begins at `key` and is split off. One at `key` is a border of ranges
    /// again.
    pub fn split_off(&mut self, key: &[u8]) -> MergedBorders {
        let at = self
            .0
            .partition_point(|(border, _)| border.as_slice() < key);
        let mut right = self.0.split_off(at);
        right.retain(|(border, _)| border.as_slice() != key);
        MergedBorders(right)
    }

    /// Forgets those that no read needs, since reads at or below `threshold` are refused.
    pub fn forget(&mut self, threshold: Timestamp) {
        self.0.retain(|(_, at)| *at > threshold);
    }

    /// If there are too many: drops those of the oldest merges, and gives the timestamp up to which reads
    /// must be refused from now on.
    pub fn drop_oldest(&mut self) -> Option<Timestamp> {
        let too_many = self.0.len().checked_sub(BORDERS_MAX + 1)?;
        let mut merges: Vec<Timestamp> = self.0.iter().map(|(_, at)| *at).collect();
        merges.sort_unstable();
        let newest_dropped = merges.get(too_many).copied()?;
        self.forget(newest_dropped);
        Some(newest_dropped)
    }

    /// Cuts keys of the range to those around a key that were in one range at a timestamp: those from `from`
    /// on, or in reverse those before it, if it is a key.
    pub fn cut(&self, keys: &mut KeyRange, at: Timestamp, from: &[u8], reverse: bool) {
        for (border, merged_at) in &self.0 {
            let is_later = *merged_at > at && keys.contains(border);
            match reverse {
                false if is_later && border.as_slice() > from => keys.end = Some(border.clone()),
                true if is_later && (from.is_empty() || border.as_slice() < from) => {
                    keys.start.clone_from(border);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn borders(of: &[(&str, u64)]) -> MergedBorders {
        let of = of.iter().map(|(key, at)| ((*key).into(), Timestamp(*at)));
        MergedBorders::new(of.collect())
    }

    #[test]
    fn a_scan_reads_at_its_timestamp_only_what_was_in_one_range_then() {
        let borders = borders(&[("t", 70), ("m", 50)]);
        let cut = |at: u64, from: &str, reverse: bool| {
            let mut keys = KeyRange {
                start: b"c".to_vec(),
                end: Some(b"z".to_vec()),
            };
            borders.cut(&mut keys, Timestamp(at), from.as_bytes(), reverse);
            let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
            (text(&keys.start), text(&keys.end.unwrap_or_default()))
        };
        let keys = |start: &str, end: &str| (start.to_owned(), end.to_owned());
        assert_eq!(cut(70, "d", false), keys("c", "z"));
        assert_eq!(cut(60, "d", false), keys("c", "t"));
        assert_eq!(cut(40, "d", false), keys("c", "m"));
        assert_eq!(cut(40, "m", false), keys("c", "t"));
        assert_eq!(cut(40, "t", false), keys("c", "z"));
        assert_eq!(cut(40, "", true), keys("t", "z"));
        assert_eq!(cut(40, "t", true), keys("m", "z"));
        assert_eq!(cut(40, "m", true), keys("c", "z"));
        assert_eq!(cut(60, "q", true), keys("c", "z"));
    }

    #[test]
    fn a_child_has_the_borders_of_its_keys() {
        let mut left = borders(&[("f", 10), ("m", 50), ("t", 70)]);
        let right = left.split_off(b"m");
        assert_eq!(
            (left, right),
            (borders(&[("f", 10)]), borders(&[("t", 70)]))
        );
    }

    #[test]
    fn of_two_merges_at_a_key_the_later_one_counts() {
        let mut all = borders(&[("m", 50), ("m", 90), ("m", 70)]);
        assert_eq!(all, borders(&[("m", 90)]));
        all.add(vec![
            (b"m".to_vec(), Timestamp(20)),
            (b"c".to_vec(), Timestamp(30)),
        ]);
        assert_eq!(all, borders(&[("c", 30), ("m", 90)]));
        all.forget(Timestamp(30));
        assert_eq!(all, borders(&[("m", 90)]));
    }

    #[test]
    fn the_oldest_borders_are_dropped_and_reads_before_them_refused() {
        let count = BORDERS_MAX + 3;
        let name = |number: usize| format!("{:05}", number * 5 % count).into_bytes();
        let all = (0..count).map(|number| (name(number), Timestamp(number as u64 + 1)));
        let mut all = MergedBorders::new(all.collect());
        assert_eq!(all.all().len(), count);
        assert_eq!(all.drop_oldest(), Some(Timestamp(3)));
        assert_eq!(all.all().len(), BORDERS_MAX);
        assert!(all.all().iter().all(|(_, at)| *at > Timestamp(3)));
        assert_eq!(all.drop_oldest(), None);
    }
}
