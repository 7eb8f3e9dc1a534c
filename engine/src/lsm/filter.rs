//! The filter of a memtable. It answers most lookups of keys that the memtable does not hold, and
//! costs one cache line where a search of the memtable costs a dozen.
//!
//! It is a blocked Bloom filter: the hash of a key names one line of 64 bytes, and six bits in it. A
//! key that was added has all its bits set, so a clear bit proves that the key was never added. With
//! ten bits for each key the filter errs on 1.0 % of the keys that were not added, as the test below
//! measures.
//!
//! The filter is sized for rows of 160 bytes. If the rows are smaller, a memtable takes more keys, and
//! the filter doubles: all lines are copied behind themselves, and from then on one more bit of the
//! hash chooses between the two. A key that was added before finds its bits in either copy. The
//! copies stay as full as they were, so the filter errs more often from then on: on 5 % of the keys
//! when it has doubled once and has filled up again, and on 13 % after the second time. Doubling copies
//! some hundred KiB and allocates; adding a key does neither.
//!
//! A filter lives with its memtable: the shard's thread adds keys, any thread may read a frozen one.

/// Bits of a line.
const LINE_BITS: usize = 512;
/// Keys that are added for each line before the filter doubles: ten bits for each.
const KEYS_OF_LINE: usize = LINE_BITS / 10;
/// Bytes of a memtable for each line of its filter at the start: fifty rows of 160 bytes.
const MEMTABLE_BYTES_OF_LINE: usize = 8 << 10;
/// How often the filter can double: a row takes at least 40 bytes of its memtable.
const DOUBLINGS_MAX: u32 = 2;
/// Bits that are set for a key. With ten bits for each key, six or seven err least.
const BITS_OF_KEY: u32 = 6;

#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Line([u64; LINE_BITS / 64]);

/// A set of keys, by their hashes, that may say yes to a key that it does not hold.
pub(super) struct Filter {
    /// Their number is a power of two.
    lines: Vec<Line>,
    /// The number of lines of an empty filter.
    lines_at_first: usize,
    /// About how many different keys were added.
    keys: usize,
}

/// The bits of a key in its line. The ten lowest bits of the hash, and more of them in a large
/// filter, choose the line.
fn bits(hash: u64) -> impl Iterator<Item = usize> {
    (0..BITS_OF_KEY).map(move |at| (hash >> (10 + 9 * at)) as usize % LINE_BITS)
}

impl Filter {
    /// The number of lines of an empty filter for a memtable of this many bytes.
    const fn lines_at_first(memtable_bytes: usize) -> usize {
        (memtable_bytes / MEMTABLE_BYTES_OF_LINE).next_power_of_two()
    }

    /// The most bytes that a filter for a memtable of this many bytes grows to.
    pub(super) const fn len_max(memtable_bytes: usize) -> usize {
        (Filter::lines_at_first(memtable_bytes) << DOUBLINGS_MAX) * size_of::<Line>()
    }

    /// An empty filter for a memtable of this many bytes.
    pub(super) fn new(memtable_bytes: usize) -> Filter {
        let lines = Filter::lines_at_first(memtable_bytes);
        Filter {
            lines: vec![Line::default(); lines],
            lines_at_first: lines,
            keys: 0,
        }
    }

    /// Removes all keys and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.lines.truncate(self.lines_at_first);
        self.lines.fill(Line::default());
        self.keys = 0;
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    fn line(&self, hash: u64) -> usize {
        hash as usize & (self.lines.len() - 1)
    }

    /// Adds a key.
    pub(super) fn add(&mut self, hash: u64) {
        if self.keys == self.lines.len() * KEYS_OF_LINE {
            self.lines.extend_from_within(..);
        }
        let line = self.line(hash);
        let Some(Line(words)) = self.lines.get_mut(line) else {
            unreachable!("the hash is cut down to the number of lines");
        };
        // Another version of a key sets no bits, and is not counted.
        let mut clear = 0;
        for bit in bits(hash) {
            let mask = 1 << (bit % 64);
            let word = &mut words[bit / 64];
            clear |= !*word & mask;
            *word |= mask;
        }
        self.keys += usize::from(clear != 0);
    }

    /// Whether the key may have been added; if not, it certainly was not.
    #[inline]
    pub(super) fn may_contain(&self, hash: u64) -> bool {
        let Some(Line(words)) = self.lines.get(self.line(hash)) else {
            unreachable!("the hash is cut down to the number of lines");
        };
        // Without a branch for each bit: which one is clear cannot be foreseen.
        bits(hash).fold(1, |all, bit| all & words[bit / 64] >> (bit % 64)) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsm::keys::row_hash;
    use crate::lsm::tests::Random;

    const LINES: usize = 256;

    fn filter() -> Filter {
        let filter = Filter::new(LINES * MEMTABLE_BYTES_OF_LINE);
        assert_eq!(filter.lines.len(), LINES);
        filter
    }

    fn hash(key: u64) -> u64 {
        row_hash(&key.to_be_bytes())
    }

    #[test]
    fn a_key_that_was_added_is_never_denied() {
        let mut filter = filter();
        for seed in 1..=3 {
            let mut random = Random::new(seed);
            let mut keys = Vec::new();
            // Enough for the filter to double three times.
            while keys.len() < LINES * KEYS_OF_LINE * 5 {
                let key = random.below(1 << 31);
                filter.add(hash(key));
                keys.push(key);
            }
            assert_eq!(filter.lines.len(), LINES * 8);
            assert!(keys.iter().all(|key| filter.may_contain(hash(*key))));
            filter.clear();
            assert_eq!(filter.len(), LINES * size_of::<Line>());
            assert!(!keys.iter().any(|key| filter.may_contain(hash(*key))));
        }
    }

    /// How often, of a million, the filter says yes to a key that was not added.
    fn errors(filter: &Filter, added: u64) -> usize {
        let absent = (added..added + 1_000_000).map(hash);
        absent.filter(|hash| filter.may_contain(*hash)).count()
    }

    #[test]
    fn it_seldom_errs_and_more_often_after_it_has_doubled() {
        let mut filter = filter();
        let mut added = 0;
        // The filter doubles when the key after these comes.
        for (lines, least, most) in [
            (LINES, 7_000, 13_000),
            (LINES * 2, 40_000, 60_000),
            (LINES * 4, 110_000, 145_000),
        ] {
            while filter.keys < lines * KEYS_OF_LINE {
                filter.add(hash(added));
                added += 1;
            }
            assert_eq!(filter.lines.len(), lines);
            let errors = errors(&filter, added);
            assert!((least..=most).contains(&errors), "{lines}: {errors}");
        }
    }

    #[test]
    fn versions_of_one_key_do_not_make_it_grow() {
        let mut filter = filter();
        (0..LINES * KEYS_OF_LINE * 2).for_each(|_| filter.add(hash(7)));
        assert_eq!((filter.keys, filter.lines.len()), (1, LINES));
    }
}
