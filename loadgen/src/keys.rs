//! The layout of keys: from a record's number to its key, and to the keys that split all records
//! evenly.
//!
//! Pure. A key is the record's number after a permutation (so that neighbouring numbers lie far
//! apart, as in YCSB's hashed order), in hexadecimal digits; longer keys are filled up with `x`. So
//! keys are printable, of one size, distinct, and spread evenly over `0..f` for any number of
//! records: N equal ranges have the same borders for every number of records. Ordered keys are the numbers
//! without the permutation.

/// Shortest key: enough for 65,536 records.
pub const KEY_SIZE_MIN: usize = 4;
/// Longest key: the database's limit.
pub const KEY_SIZE_MAX: usize = 4 << 10;

const DIGIT_BITS: u32 = 4;
const DIGITS_MAX: usize = 16;
const DIGITS: &[u8; 16] = b"0123456789abcdef";
const FILLER: u8 = b'x';

/// Makes keys from record numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLayout {
    size: usize,
    is_ordered: bool,
}

impl KeyLayout {
    /// Keys of `size` bytes with room for `records` of them, in the order of the records' numbers or not.
    pub fn new(size: usize, records: u64, is_ordered: bool) -> Result<KeyLayout, String> {
        if !(KEY_SIZE_MIN..=KEY_SIZE_MAX).contains(&size) {
            return Err(format!(
                "a key has {KEY_SIZE_MIN} to {KEY_SIZE_MAX} bytes, not {size}"
            ));
        }
        let layout = KeyLayout { size, is_ordered };
        if records > 0 && records - 1 > layout.mask() {
            return Err(format!(
                "keys of {size} bytes are too short for {records} records"
            ));
        }
        Ok(layout)
    }

    /// Bytes of each key.
    pub fn size(&self) -> usize {
        self.size
    }

    fn digits(&self) -> usize {
        self.size.min(DIGITS_MAX)
    }

    fn bits(&self) -> u32 {
        self.digits() as u32 * DIGIT_BITS
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (u64::BITS - self.bits())
    }

    /// Writes the key of record `number` over `out`, which has the key's size.
    pub fn write(&self, number: u64, out: &mut [u8]) {
        assert_eq!(out.len(), self.size);
        let digits = self.digits();
        let mut rest = match self.is_ordered {
            true => number,
            false => self.permute(number),
        };
        for place in out[..digits].iter_mut().rev() {
            *place = DIGITS[(rest & 0xf) as usize];
            rest >>= DIGIT_BITS;
        }
        out[digits..].fill(FILLER);
    }

    /// The key of record `number`.
    pub fn key(&self, number: u64) -> Vec<u8> {
        let mut key = vec![0; self.size];
        self.write(number, &mut key);
        key
    }

    /// Maps the numbers that fit the digits onto themselves, one to one: multiplying by an odd
    /// number and folding the upper half into the lower one are both reversible.
    fn permute(&self, number: u64) -> u64 {
        const ROUNDS: [u64; 3] = [
            0x9e37_79b9_7f4a_7c15,
            0xbf58_476d_1ce4_e5b9,
            0x94d0_49bb_1331_11eb,
        ];
        let (mask, half) = (self.mask(), self.bits() / 2);
        let mut mixed = number & mask;
        for factor in ROUNDS {
            mixed ^= mixed >> half;
            mixed = mixed.wrapping_mul(factor) & mask;
        }
        mixed ^ (mixed >> half)
    }

    /// The keys between `ranges` equal ranges, in order, without trailing zeros: the shorter key
    /// sorts before all keys that begin with it.
    pub fn split_keys(&self, ranges: u64, records: u64) -> Vec<String> {
        let all = match self.is_ordered {
            true => u128::from(records),
            false => 1u128 << self.bits(),
        };
        let digits = self.digits();
        let border = |index: u64| (all * u128::from(index)).div_ceil(u128::from(ranges));
        (1..ranges)
            .map(|index| {
                format!("{:0digits$x}", border(index))
                    .trim_end_matches('0')
                    .to_owned()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn keys_are_distinct_printable_and_of_one_size() {
        for size in [4, 5, 8, 16, 24] {
            let layout = KeyLayout::new(size, 60_000, false).unwrap();
            let keys: HashSet<Vec<u8>> = (0..60_000).map(|number| layout.key(number)).collect();
            assert_eq!(keys.len(), 60_000);
            assert!(keys.iter().all(|key| key.len() == size && key.is_ascii()));
        }
    }

    #[test]
    fn split_keys_make_ranges_of_equal_size() {
        let cases = [2, 3, 8, 48].map(|ranges| [(ranges, false), (ranges, true)]);
        for (ranges, is_ordered) in cases.into_iter().flatten() {
            let layout = KeyLayout::new(16, 200_000, is_ordered).unwrap();
            let borders = layout.split_keys(ranges, 200_000);
            assert_eq!(borders.len() as u64, ranges - 1);
            assert!(borders.is_sorted());
            let mut counts = vec![0u64; ranges as usize];
            for number in 0..200_000 {
                let key = String::from_utf8(layout.key(number)).unwrap();
                counts[borders.partition_point(|border| *border <= key)] += 1;
            }
            let even = 200_000 / ranges;
            assert!(
                counts.iter().all(|count| count.abs_diff(even) < even / 10),
                "{counts:?}"
            );
        }
        let layout = KeyLayout::new(16, 1, false).unwrap();
        assert_eq!(layout.split_keys(2, 1), ["8"]);
        assert!(layout.split_keys(1, 1).is_empty());
    }

    #[test]
    fn ordered_keys_are_in_the_order_of_their_numbers() {
        for size in [5, 16, 24] {
            let layout = KeyLayout::new(size, 60_000, true).unwrap();
            let keys = (0..60_000).map(|number| layout.key(number));
            assert!(keys.is_sorted_by(|one, next| one < next && next.len() == size));
        }
    }

    #[test]
    fn too_short_keys_are_refused() {
        assert!(KeyLayout::new(4, 65_536, false).is_ok());
        assert!(KeyLayout::new(4, 65_537, false).is_err());
        assert!(KeyLayout::new(3, 1, false).is_err());
        assert!(KeyLayout::new(4097, 1, false).is_err());
    }
}
