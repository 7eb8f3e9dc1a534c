//! The data ids under which the rows of a replica are stored.
//!
//! A replica begins with one data id: its own, its parent's if it was born of a split, or a new one after
//! a snapshot. When two ranges are merged no row is copied: the replica that stays takes over the data ids
//! of the other, each with its interval. So a replica has a short list of parts, cut at keys. The list is
//! local to the replica: another one of the same range may have other parts. It is kept in the replica's
//! state row and never sent. A replica with too many parts for a merge writes its rows anew under one data id
//! (`range/storage/rewrite.rs`). Pure.

use std::rc::Rc;

use crate::types::{DataId, KeyRange};

/// A range is not merged if the result would have more parts than this.
pub const PARTS_MAX: usize = 8;

/// The first key of a part that is not the first one, and its data id.
pub type LaterPart = (Vec<u8>, DataId);

/// The data ids of a replica's rows, by intervals of keys. Clones share the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataParts {
    /// That of the first part, which begins where the range does. The log says which one it is.
    first: DataId,
    /// The first keys of the other parts in ascending order, and their data ids; `None` if there are no
    /// others, as in nearly all replicas. After a rewrite the first of them begins where the range does, and
    /// no key is left for the part before it.
    others: Option<Rc<[LaterPart]>>,
}

impl DataParts {
    /// All rows under one data id.
    pub fn one(data_id: DataId) -> DataParts {
        DataParts {
            first: data_id,
            others: None,
        }
    }

    /// The parts from the first data id, and the first keys and data ids of the others in ascending order.
    pub fn new(first: DataId, others: Vec<LaterPart>) -> DataParts {
        let mut last = first;
        let mut kept = others;
        kept.retain(|(_, data_id)| std::mem::replace(&mut last, *data_id) != *data_id);
        DataParts {
            first,
            others: (!kept.is_empty()).then(|| kept.into()),
        }
    }

    /// The data id of the first part.
    pub fn first(&self) -> DataId {
        self.first
    }

    /// The first keys and the data ids of the other parts.
    pub fn others(&self) -> &[LaterPart] {
        self.others.as_deref().unwrap_or_default()
    }

    /// How many parts there are in a range with this first key.
    pub fn count(&self, start: &[u8]) -> usize {
        let others = self.others().iter();
        1 + others
            .filter(|(border, _)| border.as_slice() > start)
            .count()
    }

    /// The parts of a replica with this first key after all its rows were written anew under `data_id`.
    pub fn rewritten(&self, start: &[u8], data_id: DataId) -> DataParts {
        DataParts::new(self.first, vec![(start.to_vec(), data_id)])
    }

    /// The data id of a key's rows.
    pub fn of(&self, key: &[u8]) -> DataId {
        let others = self.others();
        let before = others.partition_point(|(start, _)| start.as_slice() <= key);
        before
            .checked_sub(1)
            .and_then(|at| others.get(at))
            .map_or(self.first, |(_, data_id)| *data_id)
    }

    /// An interval of the replica's keys, cut into those that lie under one data id each, in order.
    pub fn within(&self, keys: &KeyRange) -> Vec<(DataId, KeyRange)> {
        let mut pieces = Vec::with_capacity(1 + self.others().len());
        let (mut start, mut data_id) = (keys.start.clone(), self.of(&keys.start));
        let inside = self.others().iter().filter(|(border, _)| {
            *border > keys.start && keys.end.as_ref().is_none_or(|end| border < end)
        });
        for (border, next) in inside {
            let end = Some(border.clone());
            pieces.push((data_id, KeyRange { start, end }));
            (start, data_id) = (border.clone(), *next);
        }
        let end = keys.end.clone();
        pieces.push((data_id, KeyRange { start, end }));
        pieces
    }

    /// These parts, and those of a range that begins at `border`, where this one ends.
    pub fn joined(&self, border: &[u8], right: &DataParts) -> DataParts {
        let mut others = self.others().to_vec();
        others.push((border.to_vec(), right.of(border)));
        let rights = right.others().iter();
        others.extend(
            rights
                .filter(|(start, _)| start.as_slice() > border)
                .cloned(),
        );
        DataParts::new(self.first, others)
    }

    /// The parts before a key, and those from it on.
    pub fn split_at(&self, key: &[u8]) -> (DataParts, DataParts) {
        let all = self.others();
        let (before, after): (Vec<_>, Vec<_>) = all
            .iter()
            .filter(|(start, _)| start.as_slice() != key)
            .cloned()
            .partition(|(start, _)| start.as_slice() < key);
        (
            DataParts::new(self.first, before),
            DataParts::new(self.of(key), after),
        )
    }
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

    fn parts(first: u64, others: &[(&str, u64)]) -> DataParts {
        let others = others
            .iter()
            .map(|(start, id)| ((*start).into(), DataId(*id)));
        DataParts::new(DataId(first), others.collect())
    }

    #[test]
    fn each_key_lies_in_the_part_that_begins_last_before_it() {
        let parts = parts(1, &[("m", 2), ("t", 1)]);
        for (key, data_id) in [("a", 1), ("l", 1), ("m", 2), ("s", 2), ("t", 1), ("z", 1)] {
            assert_eq!(parts.of(key.as_bytes()), DataId(data_id), "{key}");
        }
        assert_eq!(
            parts.within(&keys("c", "")),
            [
                (DataId(1), keys("c", "m")),
                (DataId(2), keys("m", "t")),
                (DataId(1), keys("t", "")),
            ]
        );
        assert_eq!(parts.within(&keys("n", "t")), [(DataId(2), keys("n", "t"))]);
        assert_eq!(
            parts.within(&keys("m", "u")),
            [(DataId(2), keys("m", "t")), (DataId(1), keys("t", "u"))]
        );
    }

    #[test]
    fn what_is_split_and_joined_again_has_the_parts_that_it_had() {
        let all = parts(1, &[("m", 2), ("t", 3)]);
        for at in ["b", "m", "n", "t", "z"] {
            let (left, right) = all.split_at(at.as_bytes());
            assert_eq!(left.joined(at.as_bytes(), &right), all, "{at}");
            assert_eq!(right.first(), all.of(at.as_bytes()), "{at}");
        }
        // Parts side by side with the same data id are one.
        let one = DataParts::one(DataId(7));
        assert_eq!(one.joined(b"m", &one), one);
        assert_eq!(one.joined(b"m", &parts(8, &[("t", 7)])).count(b"a"), 3);
    }

    #[test]
    fn what_was_rewritten_is_one_part_that_can_be_split_and_joined() {
        let rewritten = parts(1, &[("m", 2), ("t", 3)]).rewritten(b"b", DataId(9));
        assert_eq!((rewritten.first(), rewritten.count(b"b")), (DataId(1), 1));
        let whole = keys("b", "z");
        assert_eq!(rewritten.within(&whole), [(DataId(9), whole.clone())]);
        let (left, right) = rewritten.split_at(b"k");
        assert_eq!(left.within(&keys("b", "k")), [(DataId(9), keys("b", "k"))]);
        assert_eq!(right.within(&keys("k", "z")), [(DataId(9), keys("k", "z"))]);
        assert_eq!(
            left.joined(b"k", &right).within(&whole),
            [(DataId(9), whole)]
        );
        // It is taken over by its left neighbour.
        let joined = parts(5, &[]).joined(b"b", &rewritten);
        let expected = [(DataId(5), keys("a", "b")), (DataId(9), keys("b", "z"))];
        assert_eq!(joined.within(&keys("a", "z")), expected);
        assert_eq!(joined.count(b"a"), 2);
    }
}
