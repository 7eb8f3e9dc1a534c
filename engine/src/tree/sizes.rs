//! The size of an interval of users' keys, and the keys that cut it into equal parts; see
//! [`crate::lsm::Size`]. Rows of users alone are counted, not those of sessions. No I/O.

use super::Store;
use crate::env::Env;
use crate::lsm::{Size, keys};
use crate::types::{DataId, KeyRange};

impl<E: Env> Store<E> {
    /// About how many bytes an interval of a data id's keys has here. The parts into which an interval is
    /// cut have as many as it has itself.
    pub fn size_of(&self, data_id: DataId, keys: &KeyRange) -> Size {
        let (mut low, mut high) = (Vec::new(), Vec::new());
        keys::users_of(data_id, keys.interval(), &mut low, &mut high);
        self.lsm.borrow().size_of((&low, &high))
    }

    /// Keys that cut an interval of a data id's keys into `pieces` parts of about the same size, in
    /// ascending order. Each is a whole key of a user, with rows before it in the interval. There are
    /// fewer if the interval has too few rows, or if one key has most of its bytes.
    pub fn split_keys(&self, data_id: DataId, keys: &KeyRange, pieces: usize) -> Vec<Vec<u8>> {
        let (mut low, mut high) = (Vec::new(), Vec::new());
        keys::users_of(data_id, keys.interval(), &mut low, &mut high);
        let found = self.lsm.borrow().split_keys((&low, &high), pieces);
        let found = found.iter().map(|key| keys::user_part(key).to_vec());
        found.filter(|key| *key > keys.start).collect()
    }
}
