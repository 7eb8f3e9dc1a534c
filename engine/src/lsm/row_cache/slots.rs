//! The index of the row cache: from the hash of a key to the places of the rows that have it.
//!
//! One table of 8-byte slots with linear probing, without marks for what was removed: a removal
//! moves later slots back. It never grows. At most three quarters of the slots are filled, and a row
//! lies at most [`PROBES_MAX`] slots behind the one that its hash names, so that keys which collide,
//! by chance or by design, cost a lookup a bounded time.

/// A slot that names no row.
const EMPTY: u64 = 0;
/// A lookup looks at this many slots at most.
pub(super) const PROBES_MAX: usize = 256;
const IN_MAIN: u32 = 1 << 31;

/// One of the two rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// For rows that are new.
    Small,
    /// For rows that were read again.
    Main,
}

/// The place of a row: its ring, and where it begins there, in units of
/// [`ALIGNMENT`](super::ring::ALIGNMENT) bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowRef(u32);

impl RowRef {
    /// The place at byte `at` of a ring, which has less than 16 GiB.
    pub(super) fn new(queue: Queue, at: usize) -> RowRef {
        let unit = (at / super::ring::ALIGNMENT) as u32;
        RowRef(match queue {
            Queue::Small => unit,
            Queue::Main => unit | IN_MAIN,
        })
    }

    /// The ring.
    #[inline]
    pub(super) fn queue(self) -> Queue {
        match self.0 & IN_MAIN {
            0 => Queue::Small,
            _ => Queue::Main,
        }
    }

    /// The byte at which the row begins.
    #[inline]
    pub(super) fn at(self) -> usize {
        (self.0 & !IN_MAIN) as usize * super::ring::ALIGNMENT
    }
}

/// The slots.
pub(super) struct Slots {
    /// The hash in the high half, the place plus one in the low half.
    words: Vec<u64>,
    filled: usize,
}

fn word(hash: u32, place: RowRef) -> u64 {
    (u64::from(hash) << 32) | u64::from(place.0 + 1)
}

fn hash_in(word: u64) -> u32 {
    (word >> 32) as u32
}

fn row_ref_in(word: u64) -> RowRef {
    RowRef(word as u32 - 1)
}

impl Slots {
    /// So many empty slots: none, or at least four.
    pub(super) fn new(count: usize) -> Slots {
        Slots {
            words: vec![EMPTY; count],
            filled: 0,
        }
    }

    /// Whether no more rows may be added.
    pub(super) fn is_full(&self) -> bool {
        (self.filled + 1) * 4 > self.words.len() * 3
    }

    #[inline]
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.words.len() as u64) >> 32) as usize
    }

    #[inline]
    fn after(&self, slot: usize) -> usize {
        let next = slot + 1;
        if next == self.words.len() { 0 } else { next }
    }

    /// How many slots lie between two, going forward.
    fn distance(&self, from: usize, to: usize) -> usize {
        match to.checked_sub(from) {
            Some(distance) => distance,
            None => to + self.words.len() - from,
        }
    }

    #[inline]
    fn word_at(&self, slot: usize) -> u64 {
        self.words.get(slot).copied().unwrap_or(EMPTY)
    }

    fn set(&mut self, slot: usize, word: u64) {
        if let Some(there) = self.words.get_mut(slot) {
            *there = word;
        }
    }

    /// The slot of a row with this hash for which `is_it` holds, and the row's place.
    #[inline]
    pub(super) fn find(
        &self,
        hash: u32,
        mut is_it: impl FnMut(RowRef) -> bool,
    ) -> Option<(usize, RowRef)> {
        let mut slot = self.home(hash);
        for _ in 0..PROBES_MAX {
            let word = self.word_at(slot);
            if word == EMPTY {
                return None;
            }
            if hash_in(word) == hash && is_it(row_ref_in(word)) {
                return Some((slot, row_ref_in(word)));
            }
            slot = self.after(slot);
        }
        None
    }

    /// The row in the slot that a hash names, if it has this hash. It is where most rows are.
    #[inline]
    pub(super) fn at_home(&self, hash: u32) -> Option<RowRef> {
        let word = self.word_at(self.home(hash));
        (hash_in(word) == hash && word != EMPTY).then(|| row_ref_in(word))
    }

    /// Adds a row; `false` if too many others have a hash like it.
    pub(super) fn insert(&mut self, hash: u32, place: RowRef) -> bool {
        let mut slot = self.home(hash);
        for _ in 0..PROBES_MAX {
            if self.word_at(slot) == EMPTY {
                self.set(slot, word(hash, place));
                self.filled += 1;
                return true;
            }
            slot = self.after(slot);
        }
        false
    }

    /// Notes that a row has moved.
    pub(super) fn moved(&mut self, hash: u32, from: RowRef, to: RowRef) {
        if let Some((slot, _)) = self.find(hash, |place| place == from) {
            self.set(slot, word(hash, to));
        }
    }

    /// Removes the row at a place.
    pub(super) fn remove(&mut self, hash: u32, place: RowRef) {
        let Some((mut hole, _)) = self.find(hash, |there| there == place) else {
            return;
        };
        self.filled -= 1;
        let mut slot = self.after(hole);
        // There is an empty slot, since not all are ever filled.
        while self.word_at(slot) != EMPTY {
            let word = self.word_at(slot);
            let home = self.home(hash_in(word));
            // A row is not found before its home, but at it or anywhere behind it.
            if self.distance(home, slot) >= self.distance(hole, slot) {
                self.set(hole, word);
                hole = slot;
            }
            slot = self.after(slot);
        }
        self.set(hole, EMPTY);
    }

    /// All rows: hash and place.
    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, RowRef)> {
        let filled = self.words.iter().filter(|word| **word != EMPTY);
        filled.map(|word| (hash_in(*word), row_ref_in(*word)))
    }
}
