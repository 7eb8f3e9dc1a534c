//! The size of an interval of users' keys, and the keys that cut it into equal parts; see
//! [`crate::lsm::Size`]. Rows of users alone are counted, not those of sessions. No I/O.

use super::Store;
use crate::env::Env;
use crate::lsm::{Size, keys};
use crate::types::{DataId, KeyRange};

impl<E: Env> Store<E> {
    /// About how many bytes intervals of data ids' keys have here. The parts into which an interval is
    /// cut have as many as it has itself.
    pub fn size_of(&self, intervals: &[(DataId, KeyRange)]) -> Size {
        let (mut low, mut high) = (Vec::new(), Vec::new());
        let size = intervals.iter().map(|(data_id, keys)| {
            keys::users_of(*data_id, keys.interval(), &mut low, &mut high);
            self.lsm.borrow().size_of((&low, &high))
        });
        size.fold(Size::default(), Size::plus)
    }

    /// Keys that cut the intervals of a range into `pieces` parts of about the same size, in
    /// ascending order. Each is a whole key of a user, with rows before it in the range. There are
    /// fewer if the range has too few rows, or if one key has most of its bytes.
    pub fn split_keys(&self, intervals: &[(DataId, KeyRange)], pieces: usize) -> Vec<Vec<u8>> {
        let [(data_id, keys)] = intervals else {
            return self.split_keys_of_several(intervals, pieces);
        };
        let (mut low, mut high) = (Vec::new(), Vec::new());
        keys::users_of(*data_id, keys.interval(), &mut low, &mut high);
        let found = self.lsm.borrow().split_keys((&low, &high), pieces);
        let found = found.iter().map(|key| keys::user_part(key).to_vec());
        found.filter(|key| *key > keys.start).collect()
    }

    /// Cuts each interval into as many parts as are wished of all, and takes of these borders those that
    /// come nearest to equal parts of the whole.
    fn split_keys_of_several(
        &self,
        intervals: &[(DataId, KeyRange)],
        pieces: usize,
    ) -> Vec<Vec<u8>> {
        let mut cuts: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut before = 0;
        for interval in intervals {
            let interval = std::slice::from_ref(interval);
            let bytes = self.size_of(interval).bytes;
            let inside = self.split_keys(interval, pieces);
            let parts = inside.len() as u64 + 1;
            if before > 0 {
                cuts.extend(
                    interval
                        .iter()
                        .map(|(_, keys)| (before, keys.start.clone())),
                );
            }
            let inside = (1..).zip(inside);
            cuts.extend(inside.map(|(part, key)| (before + bytes * part / parts, key)));
            before += bytes;
        }
        let wished = (1..pieces as u64).map(|part| before * part / pieces as u64);
        let nearest = wished.filter_map(|at| cuts.iter().min_by_key(|(cut, _)| cut.abs_diff(at)));
        let mut keys: Vec<Vec<u8>> = nearest.map(|(_, key)| key.clone()).collect();
        keys.dedup();
        keys
    }
}
