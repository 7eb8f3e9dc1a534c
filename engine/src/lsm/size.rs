//! How many bytes an interval of keys has in the tree, and the keys that cut it into parts of about
//! the same size. Both come from what is in memory anyway: the indexes of the tables
//! ([`super::tables`]) and the order of the memtables. Nothing is read from the disk, so the shard's
//! thread may ask at any time.
//!
//! A row counts with its row key, its header of 9 bytes and its value, before compression. Tables are
//! exact to a few of their blocks of 4 KiB, see `tables/block_sizes.rs`; memtables to their blocks of
//! 128 rows. A version counts until a flush or a compaction has dropped it.
//!
//! Live bytes are those of the newest version of each key. They are an upper estimate. Of each table it is
//! known how many of its versions are the newest of their key in that table. A key that has versions in
//! several tables, or in a memtable, counts once for each, and a tombstone counts as live, until a
//! compaction has merged them.

use crate::lsm::{Lsm, TableStore};

/// The bytes of rows in an interval of keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Of all versions.
    pub bytes: u64,
    /// Of the newest version of each key, at most.
    pub live_bytes: u64,
}

impl Size {
    /// The size of rows that are all live.
    pub(super) fn all_live(bytes: u64) -> Size {
        let live_bytes = bytes;
        Size { bytes, live_bytes }
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Size) -> Size {
        Size {
            bytes: self.bytes + other.bytes,
            live_bytes: self.live_bytes + other.live_bytes,
        }
    }

    /// What is left of it without another, which is not larger.
    #[must_use]
    pub(super) fn minus(self, other: Size) -> Size {
        Size {
            bytes: self.bytes.saturating_sub(other.bytes),
            live_bytes: self.live_bytes.saturating_sub(other.live_bytes),
        }
    }
}

/// Row keys from `.0` on and below `.1`.
pub type Interval<'a> = (&'a [u8], &'a [u8]);

/// Keys of an interval, and how many bytes lie before each of them.
pub struct Samples<'a> {
    interval: Interval<'a>,
    /// About how many bytes lie between two samples.
    pub(super) step: u64,
    /// Row keys; each with the bytes that lie before it and not before the sample before it, which is
    /// of the same run or memtable.
    taken: Vec<(Vec<u8>, u64)>,
    /// A row key of which there is a row, with none before it that is known.
    lowest: Option<Vec<u8>>,
}

impl<'a> Samples<'a> {
    fn new(interval: Interval<'a>, step: u64) -> Samples<'a> {
        Samples {
            interval,
            step: step.max(1),
            taken: Vec::new(),
            lowest: None,
        }
    }

    /// The interval from which samples are wanted.
    pub(super) fn interval(&self) -> Interval<'a> {
        self.interval
    }

    /// Takes a row key of the interval.
    pub(super) fn take(&mut self, key: Vec<u8>, bytes: u64) {
        self.taken.push((key, bytes));
    }

    /// Takes the key of a row in the interval that is the first one of its run or memtable, as far as
    /// that is known.
    pub(super) fn begin(&mut self, key: &[u8]) {
        if self.lowest.as_deref().is_none_or(|lowest| key < lowest) {
            self.lowest = Some(key.to_vec());
        }
    }

    /// The keys that cut the interval into so many parts: fewer if the samples are too few. Each has a
    /// row before it in the interval.
    fn cut(mut self, pieces: usize) -> Vec<Vec<u8>> {
        self.taken.sort_unstable();
        let total: u64 = self.taken.iter().map(|(_, bytes)| bytes).sum();
        let part = |cut: usize| (u128::from(total) * cut as u128 / pieces as u128) as u64;
        let lowest = self.lowest.unwrap_or_default();
        let (mut before, mut cuts) = (0, Vec::<Vec<u8>>::new());
        let mut next = 1;
        for (key, bytes) in self.taken {
            before += bytes;
            if next >= pieces || before < part(next) || key <= lowest {
                continue;
            }
            while next < pieces && before >= part(next) {
                next += 1;
            }
            if cuts.last() != Some(&key) {
                cuts.push(key);
            }
        }
        cuts
    }
}

/// Samples between two cuts: a part is at most so much too large.
const SAMPLES_OF_PIECE: u64 = 64;

impl<T: TableStore> Lsm<T> {
    /// About how many bytes of rows an interval has.
    pub fn size_of(&self, interval: Interval<'_>) -> Size {
        if interval.0 >= interval.1 {
            return Size::default();
        }
        let memtables = self.memtables();
        let in_memory = memtables.map(|memtable| memtable.bytes_in(interval)).sum();
        self.store.size_of(interval).plus(Size::all_live(in_memory))
    }

    /// Row keys that cut an interval into `pieces` parts of about the same size, in ascending order.
    /// Fewer if the interval has too few keys.
    pub fn split_keys(&self, interval: Interval<'_>, pieces: usize) -> Vec<Vec<u8>> {
        let total = self.size_of(interval).bytes;
        if pieces < 2 || interval.0 >= interval.1 {
            return Vec::new();
        }
        let step = total / (pieces as u64).saturating_mul(SAMPLES_OF_PIECE);
        let mut samples = Samples::new(interval, step);
        self.store.sample(&mut samples);
        for memtable in self.memtables() {
            memtable.sample(&mut samples);
        }
        samples.cut(pieces)
    }
}

#[cfg(test)]
#[path = "size_tests.rs"]
mod tests;
