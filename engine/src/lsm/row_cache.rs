//! The row cache of a shard: whole rows that were read lately, by row key, each in its newest version.
//!
//! A read of the newest version ([`super::Lsm::newest`]) looks here before the memtables. The cache always
//! agrees with memtables and tables:
//!
//! - A read that has found a row in the tables fills it in ([`RowCache::fill`]), in the same
//!   synchronous call, so that no write comes between. A row that it has found in a memtable is filled in
//!   only while that pushes out no other ([`RowCache::fill_spare`]): memtables are in memory themselves,
//!   but a search in one costs several times as much.
//! - Apply, the replay of the log and a received snapshot all insert rows into the tree by
//!   [`super::Lsm::insert`]. There the new version replaces the cached one
//!   ([`RowCache::update`]). A row that is not cached stays so: writes push out nothing that is read.
//! - Flushes, compactions and the collection of old versions change no newest version, so they need not
//!   notify the cache. A tombstone is cached as a tombstone; when it has been collected, the cached one
//!   still says that there is no value.
//! - Data ids are never used again, and a row key begins with one. So the rows of a replica that was
//!   removed, or that has installed a snapshot, are never found for another replica, and are evicted as
//!   others come in.
//!
//! It does not serve reads at a timestamp, scans, or the rows of states and sessions, and it does not
//! remember keys that have no row: the filters of the tables answer those.
//!
//! Rows lie in two [rings](ring) of bytes, as in S3-FIFO (Yang et al. 2023). New rows come into the
//! small ring, a tenth of the bytes. A row that is read again while it is there moves on to the main
//! ring. Any other leaves the cache, which remembers its hash: a row that comes back soon goes to the
//! main ring at once. So rows that are asked for once push out none that are asked for often. In the
//! main ring a row that was read goes round once more. One [table of slots](slots) finds the rows of
//! both.
//!
//! All memory is taken at the start and nothing is allocated later. Most of a hit's time is a wait for
//! memory, so requests that arrive together are [prefetched](RowCache::prefetch) together. Lives on the
//! shard's thread.

mod ring;
mod slots;
#[cfg(test)]
mod tests;

use crate::lsm::keys;
use crate::lsm::prefetch::prefetch;
use crate::lsm::row::Row;
use crate::memory::MemoryUse;
use crate::mutant::{self, Mutant};
use ring::{Header, Ring, entry_len};
use slots::{Queue, RowRef, Slots};

/// A cache with fewer bytes is none.
const BYTES_MIN: usize = 2 << 10;
/// A cache uses at most this many bytes: the place of a row has 31 bits.
const BYTES_MAX: usize = 16 << 30;
/// There is one slot for so many bytes. As three quarters may be filled, the rings are full when
/// entries have 128 bytes or more on average; with shorter ones the slots are the bound.
const BYTES_PER_SLOT: usize = 96;
/// Keys and values longer than this together are not cached.
const ROW_LEN_MAX: usize = 4 << 10;
/// So many rows are prefetched at once. A processor waits for ten to twenty lines of memory at a time.
pub const PREFETCH_MAX: usize = 16;
/// A put moves at most this many rows on because they were read.
const MOVES_MAX: u32 = 8;

/// A row cache; see the module's chapter.
pub struct RowCache {
    slots: Slots,
    small: Ring,
    main: Ring,
    /// Hashes of rows that have left the small ring without being read again.
    ghosts: Vec<u32>,
    /// The longest entry that is cached; 0 if the cache is off.
    entry_len_max: usize,
    /// Its bytes in all.
    bytes: usize,
    /// Reads that it has answered, and reads that it could not answer.
    hits: u64,
    misses: u64,
    /// Rows that have left because others came.
    evictions: u64,
}

/// Whether a cached row is the one that is asked for.
#[inline]
fn answers(cached: &[u8], key: &[u8]) -> bool {
    let forgets_data_id = || keys::after_data_id(cached) == keys::after_data_id(key);
    cached == key || (mutant::is(Mutant::RowOfRemovedReplica) && forgets_data_id())
}

impl RowCache {
    /// A cache that uses this many bytes in all. With 0 it is off.
    pub fn new(bytes: usize) -> RowCache {
        let bytes = match bytes {
            ..BYTES_MIN => 0,
            bytes => bytes.min(BYTES_MAX),
        };
        let slots = bytes / BYTES_PER_SLOT;
        let ghosts = slots / 2;
        let rings = bytes - slots * size_of::<u64>() - ghosts * size_of::<u32>();
        let small = Ring::new(rings / 10);
        RowCache {
            entry_len_max: entry_len(ROW_LEN_MAX).min(small.capacity() / 4),
            slots: Slots::new(slots),
            main: Ring::new(rings - small.capacity()),
            small,
            ghosts: vec![0; ghosts],
            bytes,
            hits: 0,
            misses: 0,
            evictions: 0,
        }
    }

    #[inline]
    fn ring(&self, queue: Queue) -> &Ring {
        match queue {
            Queue::Small => &self.small,
            Queue::Main => &self.main,
        }
    }

    fn ring_mut(&mut self, queue: Queue) -> &mut Ring {
        match queue {
            Queue::Small => &mut self.small,
            Queue::Main => &mut self.main,
        }
    }

    #[inline]
    fn find(&self, hash: u32, is_key: impl Fn(&[u8]) -> bool) -> Option<RowRef> {
        let is_it = |place: RowRef| is_key(self.ring(place.queue()).key(place.at()));
        self.slots.find(hash, is_it).map(|(_, place)| place)
    }

    /// The newest version of a row, if it is cached. `hash` is the key's [`keys::row_hash`].
    pub fn get(&mut self, hash: u64, key: &[u8]) -> Option<Row<'_>> {
        if self.entry_len_max == 0 {
            return None;
        }
        let Some(place) = self.find(hash as u32, |cached| answers(cached, key)) else {
            self.misses += 1;
            return None;
        };
        self.hits += 1;
        let ring = self.ring_mut(place.queue());
        let header = ring.header(place.at());
        if !header.is_visited() {
            ring.set_header(place.at(), header.visited(true));
        }
        Some(ring.row(place.at()))
    }

    /// Takes in a row that is not cached, as a read has just found it in the tables.
    pub fn fill(&mut self, hash: u64, key: &[u8], row: Row<'_>) {
        let hash = hash as u32;
        if !self.fits(key, row) {
            return;
        }
        let queue = match self.take_ghost(hash) {
            true => Queue::Main,
            false => Queue::Small,
        };
        self.put(queue, Header::of(hash, key, row), key, row.value);
    }

    /// Takes in a row that is not cached, as a read has just found it in a memtable, if no other leaves
    /// the cache for it.
    pub fn fill_spare(&mut self, hash: u64, key: &[u8], row: Row<'_>) {
        // Older rows of the small ring may move on to the main one to make room for this one.
        if self.main_has_room(4 * self.entry_len_max) {
            self.fill(hash, key, row);
        }
    }

    /// Brings the rows with these hashes, of which the first [`PREFETCH_MAX`] count, into the processor's
    /// caches. They are read soon, one after the other; here none has to wait for the one before.
    pub fn prefetch(&self, hashes: &[u64]) {
        let mut places = [None; PREFETCH_MAX];
        // Two loops whose turns do not depend on each other: so the processor waits for all at once.
        for (hash, place) in hashes.iter().zip(&mut places) {
            *place = self.slots.at_home(*hash as u32);
        }
        let rows = places.iter().flatten();
        prefetch(rows.flat_map(|row| self.ring(row.queue()).first_lines(row.at())));
    }

    /// Takes in a version that is inserted into the tree, if the row is cached.
    pub fn update(&mut self, hash: u64, key: &[u8], row: Row<'_>) {
        let hash = hash as u32;
        let Some(place) = self.find(hash, |cached| cached == key) else {
            return;
        };
        let (queue, at) = (place.queue(), place.at());
        let before = self.ring(queue).header(at);
        if row.version < before.version {
            return;
        }
        let header = Header::of(hash, key, row).visited(before.is_visited());
        let fits = self.fits(key, row);
        if fits && header.len() == before.len() {
            return self.ring_mut(queue).write(at, header, key, row.value);
        }
        self.ring_mut(queue).kill(at);
        self.slots.remove(hash, place);
        if fits {
            self.put(queue, header, key, row.value);
        }
    }

    /// Its memory. The table of slots counts as used from the start.
    pub fn memory(&self) -> MemoryUse {
        let rings = self.small.capacity() + self.main.capacity();
        MemoryUse {
            name: "row_cache",
            used: (self.bytes - rings + self.small.used() + self.main.used()) as u64,
            bound: self.bytes as u64,
            hits: self.hits,
            misses: self.misses,
        }
    }

    /// Rows that have left because others came.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Whether a row is short enough to be cached.
    fn fits(&self, key: &[u8], row: Row<'_>) -> bool {
        let len = key.len() + row.value.map_or(0, <[u8]>::len);
        len <= ROW_LEN_MAX && entry_len(len) <= self.entry_len_max
    }

    /// The ghost that a hash may be.
    fn ghost(&mut self, hash: u32) -> Option<&mut u32> {
        let at = (u64::from(hash) * self.ghosts.len() as u64) >> 32;
        self.ghosts.get_mut(at as usize)
    }

    /// Whether a row with this hash has left the small ring lately; forgets it.
    fn take_ghost(&mut self, hash: u32) -> bool {
        let ghost = self.ghost(hash).filter(|ghost| **ghost == hash);
        ghost.map(std::mem::take).is_some()
    }

    /// Puts a row that fits at the head of a ring.
    fn put(&mut self, queue: Queue, header: Header, key: &[u8], value: Option<&[u8]>) {
        let mut moves_left = MOVES_MAX;
        while self.slots.is_full() {
            let small_has_its_share = self.small.used() * 9 >= self.main.used();
            let from = match small_has_its_share && self.small.used() > 0 {
                true => Queue::Small,
                false => Queue::Main,
            };
            self.evict(from, &mut moves_left);
        }
        let at = self.make_room(queue, header.len(), &mut moves_left);
        self.ring_mut(queue).write(at, header, key, value);
        if !self.slots.insert(header.hash, RowRef::new(queue, at)) {
            self.ring_mut(queue).kill(at);
        }
    }

    /// Takes `len` bytes of a ring for a new entry, after as many evictions as that needs.
    fn make_room(&mut self, queue: Queue, len: usize, moves_left: &mut u32) -> usize {
        loop {
            if let Some(at) = self.ring_mut(queue).reserve(len) {
                return at;
            }
            self.evict(queue, moves_left);
        }
    }

    /// Whether the main ring takes another entry of this length, and no row leaves the cache for it.
    fn main_has_room(&self, len: usize) -> bool {
        !self.slots.is_full() && self.main.used() + 2 * len <= self.main.capacity()
    }

    /// Takes the oldest entry out of a ring. A row that was read since it came goes on to the head of
    /// the main ring, any other leaves the cache. While the main ring has room, all rows of the small
    /// one go on.
    fn evict(&mut self, queue: Queue, moves_left: &mut u32) {
        let Some((at, header)) = self.ring_mut(queue).oldest() else {
            return;
        };
        let len = header.len();
        if header.is_dead() {
            return self.ring_mut(queue).pop(len);
        }
        let place = RowRef::new(queue, at);
        if queue == Queue::Main || !self.main_has_room(len) {
            if !header.is_visited() || *moves_left == 0 {
                return self.drop_row(place, header);
            }
            *moves_left -= 1;
        }
        // The bytes of an entry stay where they are until another is written there.
        let to = match queue {
            Queue::Small => {
                let to = self.make_room(Queue::Main, len, moves_left);
                self.main.copy_from(&self.small, at, to, len);
                self.small.pop(len);
                to
            }
            Queue::Main => {
                self.main.pop(len);
                let to = self.make_room(Queue::Main, len, moves_left);
                self.main.copy_within(at, to, len);
                to
            }
        };
        self.main.set_header(to, header.visited(false));
        let to = RowRef::new(Queue::Main, to);
        self.slots.moved(header.hash, place, to);
    }

    /// Drops the oldest row of a ring.
    fn drop_row(&mut self, place: RowRef, header: Header) {
        self.ring_mut(place.queue()).pop(header.len());
        self.slots.remove(header.hash, place);
        self.evictions += 1;
        if place.queue() == Queue::Small
            && let Some(ghost) = self.ghost(header.hash)
        {
            *ghost = header.hash;
        }
    }
}
