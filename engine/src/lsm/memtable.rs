//! The memtable: versions of rows that are not in tables yet, ordered by key and, within a key,
//! from the newest version to the oldest.
//!
//! Entries are appended to one arena and keep their offsets in it. Their order is kept in blocks of
//! slots, and the first entries of all blocks in another such [`Node`]. A
//! [`filter`](super::filter) answers most lookups of keys that the memtable does not hold. Clearing a
//! memtable keeps its memory, so that inserts into a reused memtable seldom allocate. Only the
//! shard writes to a memtable. A frozen one is read-only and may be read by other threads.

mod entry;
mod node;

use std::ops::Bound;

use crate::lsm::filter::Filter;
use crate::lsm::size::{Interval, Samples};
use crate::lsm::{Bounds, prefetch, row};
use crate::types::Timestamp;
pub use entry::Entry;
use entry::HEADER_LEN;
pub(super) use node::prefix;
use node::{Node, Slot};

/// Slots that a block has room for.
const BLOCK: usize = 128;
/// So many entries that lie together in the order are brought into the processor's caches together.
const PREFETCHED: usize = 8;

/// Identifies a memtable of a shard while the process runs. Newer memtables have greater ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemtableId(pub u64);

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
        self.prefetch(front);
        if self.back.is_none() && !memtable.is_below(slot, self.bounds.1) {
            self.back = Some(front);
            return None;
        }
        self.front = Some(memtable.after(front));
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
        self.prefetch(last);
        if self.front.is_none() && !memtable.is_above(slot, self.bounds.0) {
            self.front = Some(back);
            return None;
        }
        self.back = Some(last);
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
    blocks: Vec<Node>,
    /// The blocks in the order of their keys. A new block moves these numbers, not the blocks.
    order: Vec<u32>,
    /// The first entry of each block, in the order of their keys.
    heads: Node,
    /// About how many bytes of rows each block has, in the order of their keys: when a block is split,
    /// each part gets its share by the number of its slots.
    lens: Vec<u32>,
    rows: usize,
    filter: Filter,
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
            heads: Node::default(),
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
        self.blocks.iter_mut().for_each(Node::clear);
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
        Entry::at(&self.arena, at)
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
        self.node(at).map_or(&[], Node::slots)
    }

    fn node(&self, at: usize) -> Option<&Node> {
        self.blocks.get(*self.order.get(at)? as usize)
    }

    fn slot(&self, place: SlotIndex) -> Option<&Slot> {
        self.block(place.block).get(place.slot)
    }

    /// The entry at a place.
    fn entry(&self, place: SlotIndex) -> Option<Entry<'_>> {
        self.slot(place).map(|slot| self.entry_at(slot.at))
    }

    /// The first place at or after (key, version); a newer version comes before an older one.
    fn seek(&self, key: &[u8], version: Timestamp) -> SlotIndex {
        let after = self.heads.count_before(&self.arena, key, version);
        let Some(block) = after.checked_sub(1) else {
            return SlotIndex { block: 0, slot: 0 };
        };
        let node = self.node(block);
        let slot = node.map_or(0, |node| node.count_before(&self.arena, key, version));
        if slot == self.block(block).len() {
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

    /// Whether a slot's key lies above a lower bound.
    fn is_above(&self, slot: &Slot, low: Bound<&[u8]>) -> bool {
        match low {
            Bound::Unbounded => true,
            Bound::Included(start) => self.entry_at(slot.at).key.cmp(start).is_ge(),
            Bound::Excluded(start) => self.entry_at(slot.at).key.cmp(start).is_gt(),
        }
    }

    /// Whether a slot's key lies below an upper bound.
    fn is_below(&self, slot: &Slot, high: Bound<&[u8]>) -> bool {
        match high {
            Bound::Unbounded => true,
            Bound::Included(end) => self.entry_at(slot.at).key.cmp(end).is_le(),
            Bound::Excluded(end) => self.entry_at(slot.at).key.cmp(end).is_lt(),
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
        let entry = Entry {
            key,
            version,
            value,
        };
        let after = self.heads.count_before(&self.arena, key, version);
        let block = after.saturating_sub(1);
        let slot =
            (self.node(block)).map_or(0, |node| node.count_before(&self.arena, key, version));
        let at = entry.append_to(&mut self.arena);
        self.filter.add(hash);
        self.rows += 1;
        let len = row::len(key, value.unwrap_or_default());
        self.insert_at(SlotIndex { block, slot }, at, len);
    }

    /// Puts an empty block into the order, which will begin with the entry at an offset.
    fn add_block(&mut self, place: usize, at: u32) {
        let number = self.order.len();
        if number == self.blocks.len() {
            self.blocks.push(Node::with_capacity(BLOCK));
        }
        self.order.insert(place, number as u32);
        self.heads.insert(&self.arena, place, at);
        self.lens.insert(place, 0);
    }

    /// Inserts a slot of the entry at an offset, which has a row of `len` bytes. A full block is split first.
    fn insert_at(&mut self, mut place: SlotIndex, at: u32, len: u32) {
        if self.order.is_empty() {
            self.add_block(0, at);
        }
        if self.block(place.block).len() == BLOCK {
            place = self.split_block(place, at);
        }
        if place.slot == 0 {
            self.heads.replace(&self.arena, place.block, at);
        }
        if let Some(of_block) = self.lens.get_mut(place.block) {
            *of_block = of_block.saturating_add(len);
        }
        let block = self.order.get(place.block);
        if let Some(node) = block.and_then(|block| self.blocks.get_mut(*block as usize)) {
            node.insert(&self.arena, place.slot, at);
        }
    }

    /// Splits a full block into which the entry at an offset is to come at a place; gives its place after that.
    fn split_block(&mut self, place: SlotIndex, at: u32) -> SlotIndex {
        let SlotIndex { block, slot } = place;
        // Ascending keys leave full blocks behind; any other full block is split in half.
        let is_last = block + 1 == self.order.len();
        let cut = if is_last && slot == BLOCK {
            BLOCK
        } else {
            BLOCK / 2
        };
        let head = self.block(block).get(cut).map_or(at, |head| head.at);
        self.add_block(block + 1, head);
        if let Some([left, right]) = self.lens.get_mut(block..block + 2) {
            *right = (u64::from(*left) * (BLOCK - cut) as u64 / BLOCK as u64) as u32;
            *left -= *right;
        }
        if let Some([left, right]) = self.order.get(block..block + 2) {
            let pair = self
                .blocks
                .get_disjoint_mut([*left as usize, *right as usize]);
            if let Ok([left, right]) = pair {
                left.split_to(&self.arena, cut, right);
            }
        }
        if slot > cut || cut == BLOCK {
            return SlotIndex {
                block: block + 1,
                slot: slot - cut,
            };
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BTreeMap;

    use super::*;
    use crate::lsm::keys::row_hash;

    /// Keys that share much with many others, a little with some, nothing with one, and all of it with longer ones.
    fn key(round: u64, number: u64) -> Vec<u8> {
        let long = format!("key-with-a-long-prefix-{number:04}");
        let key = match (round, number % 7) {
            (0, _) => long,
            (_, 0) => long[..long.len() - (number % 27) as usize].to_owned(),
            (_, 1) => format!("key-with-a-longer-prefix-than-{number}"),
            (_, 2) => format!("another-{number}"),
            (_, 3) => format!("{}{number}", "key-with-".repeat(1 + (number % 5) as usize)),
            (_, 4) => "\0".repeat((number % 31) as usize),
            _ => long,
        };
        key.into_bytes()
    }

    fn insert(memtable: &mut Memtable, key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        memtable.insert(key, row_hash(key), version, value);
    }

    #[test]
    fn agrees_with_a_map() {
        let mut memtable = Memtable::new(1 << 20);
        for round in 0..3u64 {
            let mut map = BTreeMap::new();
            let mut x = 0x9e37_79b9 + round;
            for version in 1..5000u64 {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let key = key(round, (x >> 33) % 700);
                let value = (x >> 40).to_string();
                let value = (x >> 60 != 0).then_some(value.into_bytes());
                insert(&mut memtable, &key, Timestamp(version), value.as_deref());
                map.insert((key, Reverse(version)), value);
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
                    .get(b"no key", row_hash(b"no key"), Timestamp::MAX)
                    .is_none()
            );
            ranges_agree(&memtable, &map, round, x);
            memtable.clear();
            assert_eq!((memtable.rows(), memtable.iter().count()), (0, 0));
        }
    }

    type Map = BTreeMap<(Vec<u8>, Reverse<u64>), Option<Vec<u8>>>;

    /// Checks intervals with every kind of bound, read forward, backward, and alternately from both
    /// ends.
    fn ranges_agree(memtable: &Memtable, map: &Map, round: u64, mut x: u64) {
        let bound = |x: u64| {
            let key = key(round, (x >> 33) % 720);
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
