//! A node of a memtable's order: slots, which name entries in the arena, sorted by key and version.
//!
//! A slot has sixteen bytes of its entry's key, so that most steps of a search compare two integers, and do not wait
//! for the entry's memory. Where the keys of a node share so much that few of the first sixteen bytes would tell them
//! apart, as in `orders/2026/...`, these bytes are taken from behind what they share (prefix truncation: Bayer and
//! Unterauer, "Prefix B-Trees", 1977). A key that shares less has the slots of its node made anew, which seldom happens
//! twice.

use std::cmp::{Ordering, Reverse};

use super::entry::Entry;
use crate::types::Timestamp;

/// Keys that share fewer bytes differ early enough in the first sixteen.
const SHARED_MIN: usize = 12;

/// The first sixteen bytes of a key, padded with zeros. Keys sort as these numbers do, where the numbers
/// differ.
#[inline]
pub(in crate::lsm) fn prefix(key: &[u8]) -> u128 {
    let bytes = key.first_chunk().copied().unwrap_or_else(|| {
        let mut bytes = [0; 16];
        let filled = bytes.iter_mut().zip(key);
        filled.for_each(|(to, from)| *to = *from);
        bytes
    });
    u128::from_be_bytes(bytes)
}

/// One position in the order: sixteen bytes of an entry's key, and the entry's offset in the arena. The bytes
/// are two numbers, because the alignment of one 128-bit number would make a slot a third longer.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    high: u64,
    low: u64,
    /// The entry's offset.
    pub(super) at: u32,
}

impl Slot {
    /// A slot of the entry at an offset, in a node whose keys share so many bytes.
    fn new(arena: &[u8], at: u32, shared: usize) -> Slot {
        let key = Entry::at(arena, at).key;
        let prefix = prefix(key.get(shared..).unwrap_or_default());
        Slot {
            high: (prefix >> 64) as u64,
            low: prefix as u64,
            at,
        }
    }

    /// The bytes of the key. Two numbers of 128 bits are compared without a branch, two pairs of
    /// numbers are not.
    #[inline]
    fn prefix(&self) -> u128 {
        u128::from(self.high) << 64 | u128::from(self.low)
    }
}

/// With how many bytes two keys begin alike; 0 if that is few.
fn shared_len(key: &[u8], other: &[u8]) -> usize {
    let same = key.iter().zip(other).take_while(|(a, b)| a == b);
    let len = same.count();
    if len < SHARED_MIN { 0 } else { len }
}

/// Slots in ascending order of keys and, within a key, from the newest version to the oldest.
#[derive(Default)]
pub(super) struct Node {
    /// With how many bytes all keys begin alike; the slots have what comes behind them. 0 if that is few.
    shared: usize,
    slots: Vec<Slot>,
}

impl Node {
    /// An empty one with room for so many slots.
    pub(super) fn with_capacity(slots: usize) -> Node {
        Node {
            shared: 0,
            slots: Vec::with_capacity(slots),
        }
    }

    /// The slots in ascending order.
    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Removes all slots and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.slots.clear();
    }

    /// How many slots come before (key, version).
    #[inline]
    pub(super) fn count_before(&self, arena: &[u8], key: &[u8], version: Timestamp) -> usize {
        let mut rest = key;
        if self.shared > 0
            && let Some(first) = self.slots.first()
        {
            let first = Entry::at(arena, first.at).key;
            let same = first.get(..self.shared).unwrap_or(first);
            let own = key.get(..self.shared).unwrap_or(key);
            match own.cmp(same) {
                Ordering::Less => return 0,
                Ordering::Greater => return self.slots.len(),
                Ordering::Equal => rest = key.get(self.shared..).unwrap_or_default(),
            }
        }
        let wanted = prefix(rest);
        self.slots.partition_point(|slot| {
            let order = slot.prefix().cmp(&wanted);
            order.is_lt()
                || (order.is_eq() && {
                    let entry = Entry::at(arena, slot.at);
                    (entry.key, Reverse(entry.version)) < (key, Reverse(version))
                })
        })
    }

    /// Inserts a slot of the entry at an offset.
    pub(super) fn insert(&mut self, arena: &[u8], slot: usize, at: u32) {
        self.share_with(arena, at);
        self.slots.insert(slot, Slot::new(arena, at, self.shared));
    }

    /// Replaces a slot by that of the entry at an offset.
    pub(super) fn replace(&mut self, arena: &[u8], slot: usize, at: u32) {
        self.share_with(arena, at);
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = Slot::new(arena, at, self.shared);
        }
    }

    /// Makes the slots fit for an entry whose key shares less with the others than they share so far.
    fn share_with(&mut self, arena: &[u8], at: u32) {
        let key = Entry::at(arena, at).key;
        match self.slots.first() {
            None => self.shared = shared_len(key, key),
            Some(first) if self.shared > 0 => {
                let shared = shared_len(Entry::at(arena, first.at).key, key);
                if shared < self.shared {
                    self.share(arena, shared);
                }
            }
            Some(_) => {}
        }
    }

    /// Moves the slots from `cut` on to an empty node on the right.
    pub(super) fn split_to(&mut self, arena: &[u8], cut: usize, right: &mut Node) {
        right.slots.extend(self.slots.drain(cut..));
        right.shared = self.shared;
        self.share_more(arena);
        right.share_more(arena);
    }

    /// Takes the bytes of the slots from further behind, if the keys share more than before.
    fn share_more(&mut self, arena: &[u8]) {
        if let [first, .., last] = self.slots.as_slice() {
            let key = |slot: &Slot| Entry::at(arena, slot.at).key;
            let shared = shared_len(key(first), key(last));
            if shared > self.shared {
                self.share(arena, shared);
            }
        }
    }

    /// Makes the slots anew with what comes behind so many bytes of their keys.
    fn share(&mut self, arena: &[u8], shared: usize) {
        self.shared = shared;
        for slot in &mut self.slots {
            *slot = Slot::new(arena, slot.at, shared);
        }
    }
}
