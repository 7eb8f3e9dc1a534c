//! The memtable: versions of rows that are not in tables yet, ordered by key and, within a key,
//! from the newest version to the oldest.
//!
//! Entries are appended to one arena and keep their offsets in it. Their order is kept in blocks of
//! slots. A slot has the first bytes of an entry's key and the entry's offset, and an array holds
//! the first slot of every block. So most steps of a lookup compare only two integers. A
//! [`filter`](super::filter) answers most lookups of keys that the memtable does not hold. Clearing a
//! memtable keeps its memory, so that inserts into a reused memtable seldom allocate. Only the
//! shard writes to a memtable. A frozen one is read-only and may be read by other threads.

use std::cmp::{Ordering, Reverse};
use std::ops::Bound;

use crate::lsm::filter::Filter;
use crate::lsm::size::{Interval, Samples};
use crate::lsm::{Bounds, prefetch, row};
use crate::types::Timestamp;

/// Slots that a block has room for.
const BLOCK: usize = 128;
/// Bytes of an entry before its key: length of the key (4), length of the value and [`LIVE`] (4),
/// version (8), all little endian.
const HEADER_LEN: usize = 16;
/// So many entries that lie together in the order are brought into the processor's caches together.
const PREFETCHED: usize = 8;
/// Set in the length field of a value; clear for a tombstone.
const LIVE: u32 = 1 << 31;

/// Identifies a memtable of a shard while the process runs. Newer memtables have greater ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemtableId(pub u64);

/// One position in the order: the first sixteen bytes of an entry's key, and the entry's offset in the
/// arena. The bytes are two numbers, because the alignment of one 128-bit number would make a slot a
/// third longer.
#[derive(Clone, Copy)]
struct Slot {
    high: u64,
    low: u64,
    at: u32,
}

impl Slot {
    /// The first bytes of the key. Two numbers of 128 bits are compared without a branch, two pairs of
    /// numbers are not.
    #[inline]
    fn prefix(&self) -> u128 {
        u128::from(self.high) << 64 | u128::from(self.low)
    }
}

/// A version of a row in a memtable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The row's key.
    pub key: &'a [u8],
    /// The commit timestamp of this version.
    pub version: Timestamp,
    /// The value, or `None` for a tombstone.
    pub value: Option<&'a [u8]>,
}

/// A place in the order. The place after a block's last slot is the first slot of the next block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SlotIndex {
    block: usize,
    slot: usize,
}

/// Iterates over the entries of an interval of keys, from either end: all versions, the newest of a
/// key first. The end from which nothing is taken is never sought: the keys are compared with it.
pub struct Range<'a> {
    memtable: &'a Memtable,
    bounds: Bounds<'a>,
    /// The place of the first entry, once it is known.
    front: Option<SlotIndex>,
    /// The place after the last entry, once it is known.
    back: Option<SlotIndex>,
    /// The block and the group in it of the entries that were prefetched last.
    prefetched: Option<(usize, usize)>,
}

impl Range<'_> {
    /// Brings the entries at and around a place into the processor's caches. They lie in the arena in the order
    /// in which they came, so that each would be waited for; here the processor waits for all at once.
    fn prefetch(&mut self, place: SlotIndex) {
        let group = (place.block, place.slot / PREFETCHED);
        if self.prefetched.replace(group) != Some(group) {
            self.memtable.prefetch(group);
        }
    }

    /// Leaves out all versions of a key and what comes before them.
    pub fn start_after(&mut self, key: &[u8]) {
        self.front = Some(self.memtable.seek_after(key));
    }

    /// Leaves out all versions of a key and what comes after them.
    pub fn end_before(&mut self, key: &[u8]) {
        self.back = Some(self.memtable.seek(key, Timestamp::MAX));
    }
}

impl<'a> Iterator for Range<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let memtable = self.memtable;
        let front = self
            .front
            .unwrap_or_else(|| memtable.first_place(self.bounds.0));
        self.front = Some(front);
        if self.back.is_some_and(|back| front >= back) {
            return None;
        }
        let slot = memtable.slot(front)?;
        if self.back.is_none() && !memtable.is_below(slot, self.bounds.1) {
            self.back = Some(front);
            return None;
        }
        self.front = Some(memtable.after(front));
        self.prefetch(front);
        Some(memtable.entry_at(slot.at))
    }
}

impl<'a> DoubleEndedIterator for Range<'a> {
    fn next_back(&mut self) -> Option<Entry<'a>> {
        let memtable = self.memtable;
        let back = self
            .back
            .unwrap_or_else(|| memtable.place_after_last(self.bounds.1));
        self.back = Some(back);
        if self.front.is_some_and(|front| front >= back) {
            return None;
        }
        let last = memtable.before(back)?;
        let slot = memtable.slot(last)?;
        if self.front.is_none() && !memtable.is_above(slot, self.bounds.0) {
            self.front = Some(back);
            return None;
        }
        self.back = Some(last);
        self.prefetch(last);
        Some(memtable.entry_at(slot.at))
    }
}

/// Versions of rows, ordered by key and version.
pub struct Memtable {
    /// Its id, which is set when it is frozen.
    pub id: MemtableId,
    capacity: usize,
    arena: Vec<u8>,
    /// The blocks in the order in which they were made; those that `order` does not name are spare.
    blocks: Vec<Vec<Slot>>,
    /// The blocks in the order of their keys. A new block moves these numbers, not the blocks.
    order: Vec<u32>,
    /// The first slot of each block, in the order of their keys.
    heads: Vec<Slot>,
    /// About how many bytes of rows each block has, in the order of their keys: when a block is split,
    /// each part gets its share by the number of its slots.
    lens: Vec<u32>,
    rows: usize,
    filter: Filter,
}

/// The first sixteen bytes of a key, padded with zeros. Keys sort as these numbers do, where the numbers
/// differ.
#[inline]
pub(super) fn prefix(key: &[u8]) -> u128 {
    let bytes = key.first_chunk().copied().unwrap_or_else(|| {
        let mut bytes = [0; 16];
        let filled = bytes.iter_mut().zip(key);
        filled.for_each(|(to, from)| *to = *from);
        bytes
    });
    u128::from_be_bytes(bytes)
}

impl Memtable {
    /// An empty memtable with an arena of `capacity` bytes. The kernel provides the pages of the
    /// arena only as they are filled, so a memtable that is hardly used costs almost nothing.
    pub fn new(capacity: usize) -> Memtable {
        Memtable {
            id: MemtableId(0),
            capacity,
            arena: Vec::with_capacity(capacity),
            blocks: Vec::new(),
            order: Vec::new(),
            heads: Vec::new(),
            lens: Vec::new(),
            rows: 0,
            filter: Filter::new(capacity),
        }
    }

    /// Removes all rows and keeps the memory.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.order.clear();
        self.heads.clear();
        self.lens.clear();
        self.rows = 0;
        self.filter.clear();
        self.blocks.iter_mut().for_each(Vec::clear);
    }

    /// How many versions it holds.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that its entries and slots take. They count for its capacity.
    pub fn size(&self) -> usize {
        self.arena.len() + self.order.len() * BLOCK * size_of::<Slot>()
    }

    /// Bytes of entries and slots for which it is made.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// All memory in use: that of the entries, the slots and the filter.
    pub fn memory_len(&self) -> usize {
        self.size() + self.filter.len()
    }

    /// Whether `rows` more versions with `bytes` of keys and values fit. An empty memtable has room
    /// for anything.
    pub fn has_room(&self, rows: usize, bytes: usize) -> bool {
        let more = bytes + rows * (HEADER_LEN + size_of::<Slot>());
        self.rows == 0 || self.size() + more <= self.capacity
    }

    fn entry_at(&self, at: u32) -> Entry<'_> {
        let entry = self.arena.get(at as usize..).unwrap_or_default();
        let Some((header, rest)) = entry.split_first_chunk::<HEADER_LEN>() else {
            unreachable!("a slot names an entry");
        };
        let field = |from: usize| -> u32 {
            let bytes = header.get(from..from + 4).and_then(|b| b.try_into().ok());
            bytes.map_or(0, u32::from_le_bytes)
        };
        let (key, rest) = rest.split_at(field(0) as usize);
        let len = field(4);
        let version = u64::from(field(8)) | u64::from(field(12)) << 32;
        let value = (len & LIVE != 0).then(|| rest.split_at((len & !LIVE) as usize).0);
        Entry {
            key,
            version: Timestamp(version),
            value,
        }
    }

    /// Brings the entries of a group of slots in a block into the processor's caches.
    fn prefetch(&self, (block, group): (usize, usize)) {
        let slots = self.block(block).iter();
        let slots = slots.skip(group * PREFETCHED).take(PREFETCHED);
        prefetch::prefetch(
            slots.flat_map(|slot| prefetch::first_lines(&self.arena, slot.at as usize)),
        );
    }

    /// The slots of a block, by its place in the order.
    fn block(&self, at: usize) -> &[Slot] {
        let block = self
            .order
            .get(at)
            .and_then(|at| self.blocks.get(*at as usize));
        block.map_or(&[], Vec::as_slice)
    }

    fn block_mut(&mut self, at: usize) -> Option<&mut Vec<Slot>> {
        let at = *self.order.get(at)?;
        self.blocks.get_mut(at as usize)
    }

    fn slot(&self, place: SlotIndex) -> Option<&Slot> {
        self.block(place.block).get(place.slot)
    }

    /// The entry at a place.
    fn entry(&self, place: SlotIndex) -> Option<Entry<'_>> {
        self.slot(place).map(|slot| self.entry_at(slot.at))
    }

    /// Whether a slot comes before (key, version).
    #[inline]
    fn is_before(&self, slot: &Slot, wanted: u128, key: &[u8], version: Timestamp) -> bool {
        match slot.prefix().cmp(&wanted) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => {
                let entry = self.entry_at(slot.at);
                (entry.key, Reverse(entry.version)) < (key, Reverse(version))
            }
        }
    }

    /// The first place at or after (key, version); a newer version comes before an older one.
    fn seek(&self, key: &[u8], version: Timestamp) -> SlotIndex {
        let wanted = prefix(key);
        let after = self
            .heads
            .partition_point(|s| self.is_before(s, wanted, key, version));
        let Some(block) = after.checked_sub(1) else {
            return SlotIndex { block: 0, slot: 0 };
        };
        let slots = self.block(block);
        let slot = slots.partition_point(|s| self.is_before(s, wanted, key, version));
        if slot == slots.len() {
            return SlotIndex {
                block: block + 1,
                slot: 0,
            };
        }
        SlotIndex { block, slot }
    }

    /// The first place after all versions of a key.
    fn seek_after(&self, key: &[u8]) -> SlotIndex {
        // The key with a zero byte appended is the next key in the order.
        self.seek(&[key, &[0]].concat(), Timestamp::MAX)
    }

    /// The place after a place that has an entry.
    fn after(&self, place: SlotIndex) -> SlotIndex {
        let len = self.block(place.block).len();
        if place.slot + 1 < len {
            return SlotIndex {
                block: place.block,
                slot: place.slot + 1,
            };
        }
        SlotIndex {
            block: place.block + 1,
            slot: 0,
        }
    }

    /// The place before a place; `None` at the first one.
    fn before(&self, place: SlotIndex) -> Option<SlotIndex> {
        if let Some(slot) = place.slot.checked_sub(1) {
            return Some(SlotIndex { slot, ..place });
        }
        let block = place.block.checked_sub(1)?;
        let slot = self.block(block).len().checked_sub(1)?;
        Some(SlotIndex { block, slot })
    }

    /// The place of the first entry at or above a lower bound.
    fn first_place(&self, low: Bound<&[u8]>) -> SlotIndex {
        match low {
            Bound::Unbounded => SlotIndex { block: 0, slot: 0 },
            Bound::Included(start) => self.seek(start, Timestamp::MAX),
            Bound::Excluded(start) => self.seek_after(start),
        }
    }

    /// The place after the last entry at or below an upper bound.
    fn place_after_last(&self, high: Bound<&[u8]>) -> SlotIndex {
        match high {
            Bound::Unbounded => SlotIndex {
                block: self.order.len(),
                slot: 0,
            },
            Bound::Included(end) => self.seek_after(end),
            Bound::Excluded(end) => self.seek(end, Timestamp::MAX),
        }
    }

    /// The order of a slot's key and another key.
    #[inline]
    fn key_order(&self, slot: &Slot, key: &[u8]) -> Ordering {
        let order = slot.prefix().cmp(&prefix(key));
        order.then_with(|| self.entry_at(slot.at).key.cmp(key))
    }

    /// Whether a slot's key lies above a lower bound.
    fn is_above(&self, slot: &Slot, low: Bound<&[u8]>) -> bool {
        match low {
            Bound::Unbounded => true,
            Bound::Included(start) => self.key_order(slot, start).is_ge(),
            Bound::Excluded(start) => self.key_order(slot, start).is_gt(),
        }
    }

    /// Whether a slot's key lies below an upper bound.
    fn is_below(&self, slot: &Slot, high: Bound<&[u8]>) -> bool {
        match high {
            Bound::Unbounded => true,
            Bound::Included(end) => self.key_order(slot, end).is_le(),
            Bound::Excluded(end) => self.key_order(slot, end).is_lt(),
        }
    }

    /// The bytes of rows in the part of a block before a slot.
    fn bytes_before(&self, place: SlotIndex) -> u64 {
        let len = self.lens.get(place.block).map_or(0, |len| u64::from(*len));
        len * place.slot as u64 / self.block(place.block).len().max(1) as u64
    }

    /// About how many bytes of rows lie in an interval of keys.
    pub fn bytes_in(&self, (low, high): Interval<'_>) -> u64 {
        let (from, to) = (
            self.seek(low, Timestamp::MAX),
            self.seek(high, Timestamp::MAX),
        );
        let blocks = self.lens.get(from.block..to.block).unwrap_or_default();
        let bytes: u64 = blocks.iter().map(|len| u64::from(*len)).sum();
        (bytes + self.bytes_before(to)).saturating_sub(self.bytes_before(from))
    }

    /// Passes on keys of the rows in the interval of `samples`.
    pub fn sample(&self, samples: &mut Samples<'_>) {
        let (low, high) = samples.interval();
        let from = self.seek(low, Timestamp::MAX);
        let to = self.seek(high, Timestamp::MAX);
        if from >= to {
            return;
        }
        if let Some(first) = self.entry(from) {
            samples.begin(first.key);
        }
        let mut bytes = 0;
        let mut place = from;
        while place < to {
            // The next place from which a sample is wanted: half a block on, or in the next block.
            let len = self.block(place.block).len();
            let next = match place.slot < len / 2 {
                true => SlotIndex {
                    slot: len / 2,
                    ..place
                },
                false => SlotIndex {
                    block: place.block + 1,
                    slot: 0,
                },
            };
            let next = next.min(to);
            let rest = match next.block > place.block {
                true => self.lens.get(place.block).map_or(0, |len| u64::from(*len)),
                false => self.bytes_before(next),
            };
            bytes += rest - self.bytes_before(place).min(rest);
            let entry = if next < to { self.entry(next) } else { None };
            if let Some(entry) = entry.filter(|_| bytes >= samples.step) {
                samples.take(entry.key.to_vec(), bytes);
                bytes = 0;
            }
            place = next;
        }
    }

    /// The entries of an interval of keys.
    pub fn range<'a>(&'a self, bounds: Bounds<'a>) -> Range<'a> {
        Range {
            memtable: self,
            bounds,
            front: None,
            back: None,
            prefetched: None,
        }
    }

    /// The newest version of a key at or below `at`. `hash` is the key's
    /// [`row_hash`](super::keys::row_hash).
    pub fn get(&self, key: &[u8], hash: u64, at: Timestamp) -> Option<Entry<'_>> {
        if !self.filter.may_contain(hash) {
            return None;
        }
        self.entry(self.seek(key, at))
            .filter(|entry| entry.key == key)
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        (0..self.order.len())
            .flat_map(move |at| self.block(at))
            .map(move |slot| self.entry_at(slot.at))
    }

    /// Adds a version. Each pair of key and version may be added only once. `hash` is the key's
    /// [`row_hash`](super::keys::row_hash).
    pub fn insert(&mut self, key: &[u8], hash: u64, version: Timestamp, value: Option<&[u8]>) {
        let wanted = prefix(key);
        // Find the place of the new entry in the order: the block, and the slot within it.
        let block = self
            .heads
            .partition_point(|s| self.is_before(s, wanted, key, version))
            .saturating_sub(1);
        let slots = self.block(block);
        let slot = slots.partition_point(|s| self.is_before(s, wanted, key, version));
        let at = self.arena.len();
        assert!(
            at + key.len() < u32::MAX as usize / 2,
            "an arena is far smaller than 4 GiB"
        );
        // Append the entry to the arena, then insert its slot.
        let bytes = value.unwrap_or(&[]);
        let live = if value.is_some() { LIVE } else { 0 };
        self.arena
            .extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.arena
            .extend_from_slice(&(bytes.len() as u32 | live).to_le_bytes());
        self.arena.extend_from_slice(&version.0.to_le_bytes());
        self.arena.extend_from_slice(key);
        self.arena.extend_from_slice(bytes);
        self.filter.add(hash);
        self.rows += 1;
        self.insert_at(
            SlotIndex { block, slot },
            Slot {
                high: (wanted >> 64) as u64,
                low: wanted as u64,
                at: at as u32,
            },
            row::len(key, bytes),
        );
    }

    /// Puts an empty block into the order.
    fn add_block(&mut self, at: usize, head: Slot) {
        let number = self.order.len();
        if number == self.blocks.len() {
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        self.order.insert(at, number as u32);
        self.heads.insert(at, head);
        self.lens.insert(at, 0);
    }

    /// Inserts a slot of a row of `len` bytes at a place. A full block is split first.
    fn insert_at(&mut self, mut place: SlotIndex, slot: Slot, len: u32) {
        if self.order.is_empty() {
            self.add_block(0, slot);
        }
        if self.block(place.block).len() == BLOCK {
            let is_last = place.block + 1 == self.order.len();
            // Ascending keys leave full blocks behind; any other full block is split in half.
            let cut = if is_last && place.slot == BLOCK {
                BLOCK
            } else {
                BLOCK / 2
            };
            let head = self.block(place.block).get(cut).copied().unwrap_or(slot);
            self.add_block(place.block + 1, head);
            if let Some([left, right]) = self.lens.get_mut(place.block..place.block + 2) {
                *right = (u64::from(*left) * (BLOCK - cut) as u64 / BLOCK as u64) as u32;
                *left -= *right;
            }
            let left = self.block_mut(place.block).map(std::mem::take);
            if let (Some(mut left), Some(right)) = (left, self.block_mut(place.block + 1)) {
                right.extend(left.drain(cut..));
                if let Some(block) = self.block_mut(place.block) {
                    *block = left;
                }
            }
            if place.slot > cut || cut == BLOCK {
                place = SlotIndex {
                    block: place.block + 1,
                    slot: place.slot - cut,
                };
            }
        }
        if place.slot == 0
            && let Some(head) = self.heads.get_mut(place.block)
        {
            *head = slot;
        }
        if let Some(of_block) = self.lens.get_mut(place.block) {
            *of_block = of_block.saturating_add(len);
        }
        if let Some(slots) = self.block_mut(place.block) {
            slots.insert(place.slot, slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::lsm::keys::row_hash;

    fn insert(memtable: &mut Memtable, key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        memtable.insert(key, row_hash(key), version, value);
    }

    #[test]
    fn agrees_with_a_map() {
        let mut memtable = Memtable::new(1 << 20);
        for round in 0..2u64 {
            let mut map = BTreeMap::new();
            let mut x = 0x9e37_79b9 + round;
            for version in 1..5000u64 {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let key = format!("key-with-a-long-prefix-{:04}", (x >> 33) % 700);
                let value = (x >> 40).to_string();
                let value = (x >> 60 != 0).then_some(value.into_bytes());
                insert(
                    &mut memtable,
                    key.as_bytes(),
                    Timestamp(version),
                    value.as_deref(),
                );
                map.insert((key.into_bytes(), Reverse(version)), value);
            }
            let all: Vec<_> = memtable.iter().collect();
            assert_eq!(all.len(), map.len());
            for (entry, ((key, version), value)) in all.iter().zip(&map) {
                let found = (entry.key, entry.version.0, entry.value);
                assert_eq!(found, (key.as_slice(), version.0, value.as_deref()));
            }
            for ((key, version), value) in &map {
                let found = memtable
                    .get(key, row_hash(key), Timestamp(version.0))
                    .expect("was inserted");
                assert_eq!(found.value, value.as_deref());
            }
            assert!(
                memtable
                    .get(b"key", row_hash(b"key"), Timestamp::MAX)
                    .is_none()
            );
            ranges_agree(&memtable, &map, x);
            memtable.clear();
            assert_eq!((memtable.rows(), memtable.iter().count()), (0, 0));
        }
    }

    type Map = BTreeMap<(Vec<u8>, Reverse<u64>), Option<Vec<u8>>>;

    /// Checks intervals with every kind of bound, read forward, backward, and alternately from both
    /// ends.
    fn ranges_agree(memtable: &Memtable, map: &Map, mut x: u64) {
        let bound = |x: u64| {
            let key = format!("key-with-a-long-prefix-{:04}", (x >> 33) % 720).into_bytes();
            match (x >> 61) % 3 {
                0 => Bound::Unbounded,
                1 => Bound::Included(key),
                _ => Bound::Excluded(key),
            }
        };
        let mut draw = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            x
        };
        for _ in 0..100 {
            let (low, high) = (bound(draw()), bound(draw()));
            let bounds = || {
                (
                    low.as_ref().map(Vec::as_slice),
                    high.as_ref().map(Vec::as_slice),
                )
            };
            let inside = |key: &[u8]| {
                let above = match bounds().0 {
                    Bound::Unbounded => true,
                    Bound::Included(low) => key >= low,
                    Bound::Excluded(low) => key > low,
                };
                above
                    && match bounds().1 {
                        Bound::Unbounded => true,
                        Bound::Included(high) => key <= high,
                        Bound::Excluded(high) => key < high,
                    }
            };
            let keys = map.keys().filter(|(key, _)| inside(key));
            let wanted: Vec<_> = keys
                .map(|(key, version)| (key.as_slice(), version.0))
                .collect();
            let name = |entry: Entry<'_>| (entry.key.to_vec(), entry.version.0);
            let named = |found: &[(Vec<u8>, u64)]| {
                let found = found
                    .iter()
                    .map(|(key, version)| (key.as_slice(), *version));
                assert!(found.eq(wanted.iter().copied()), "{:?}", bounds());
            };
            named(&memtable.range(bounds()).map(name).collect::<Vec<_>>());
            let mut found: Vec<_> = memtable.range(bounds()).rev().map(name).collect();
            found.reverse();
            named(&found);
            let (mut front, mut back) = (Vec::new(), Vec::new());
            let mut range = memtable.range(bounds());
            loop {
                let from_front = draw() >> 63 == 0;
                let entry = if from_front {
                    range.next()
                } else {
                    range.next_back()
                };
                let Some(entry) = entry else { break };
                if from_front {
                    front.push(name(entry));
                } else {
                    back.push(name(entry));
                }
            }
            assert!(range.next().is_none() && range.next_back().is_none());
            front.extend(back.into_iter().rev());
            named(&front);
        }
    }

    #[test]
    fn rising_keys_and_all_places() {
        let mut memtable = Memtable::new(1 << 16);
        for i in 0..1000u32 {
            insert(&mut memtable, &i.to_be_bytes(), Timestamp(7), Some(&[]));
        }
        let mut place = memtable.seek(&500u32.to_be_bytes(), Timestamp::MAX);
        let mut seen = 0;
        while let Some(entry) = memtable.entry(place) {
            assert_eq!(entry.key, (500 + seen as u32).to_be_bytes());
            assert_eq!(entry.value, Some(&[][..]));
            seen += 1;
            place = memtable.after(place);
        }
        assert_eq!(seen, 500);
    }
}
