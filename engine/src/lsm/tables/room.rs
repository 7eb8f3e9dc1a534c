//! The look at the free space of the tables' disk, before a flush meets its end.
//!
//! A shard takes puts only while the disk has room for all rows that memory holds: those of the memtables that
//! wait, and of one more, which is being filled. It looks itself, when a memtable freezes and at intervals,
//! because the flusher may tell too late: it has a low priority, and until it has tried, puts would fill the
//! memory that is kept for deletes, splits, merges and moves.
//!
//! Before that the disk is short of room: it would not be enough for all that memory can hold, or a flush makes
//! no progress, so nobody knows. Then puts wait before they take the memory that is kept. Otherwise nothing is
//! kept: a flush will make room, and puts that have to wait earlier would only be slower.
//!
//! A file system that does not tell, and a quota that it does not count, are found out by a flush, as any fault is.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Shared;
use crate::lsm::FROZEN_MAX;
use crate::lsm::memtable::{Memtable, MemtableId};

/// The bytes that one shard may still write to the disk that holds a folder. Called on the shard's thread, so
/// it must not wait for the disk: `statvfs` does not on a local file system, which has the figures in memory.
pub type FreeBytes = Arc<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>;

/// A disk without a bound, for tests that do not fill one.
pub fn unbounded() -> FreeBytes {
    Arc::new(|_| Ok(u64::MAX))
}

/// How often, at most, the shard looks without a freeze or the end of a flush.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// A flush that takes longer than this makes no progress. Even a slow disk writes a memtable faster.
const FLUSH_STALLS_AFTER: Duration = Duration::from_secs(3);
/// With room for less than this many memtables beside those that wait, the disk is short of room: the active
/// memtable, all that can follow it without a flush, and one for the log and for what others write meanwhile.
const SHORT_MEMTABLES: usize = FROZEN_MAX + 2;

/// What memory holds for the disk, and what the shard saw when it last looked whether that has room for it.
pub(super) struct Room {
    /// The memtables that wait for their flush, oldest first, and their bytes.
    waiting: VecDeque<(MemtableId, usize)>,
    /// Since when the oldest of them could be flushed.
    flushing_since: Instant,
    looked: Option<Instant>,
    is_short: bool,
}

impl Room {
    /// Nothing waits, and nobody has looked yet.
    pub(super) fn new() -> Room {
        Room {
            waiting: VecDeque::new(),
            flushing_since: Instant::now(),
            looked: None,
            is_short: false,
        }
    }

    /// Whether the disk may not have room for what memory can hold.
    pub(super) fn is_short(&self) -> bool {
        self.is_short
    }

    /// A memtable waits for its flush from now on.
    pub(super) fn frozen(&mut self, memtable: &Memtable, shared: &Shared) {
        if self.waiting.is_empty() {
            self.flushing_since = Instant::now();
        }
        self.waiting.push_back((memtable.id, memtable.size()));
        self.looked = None;
        self.look(shared);
    }

    /// The memtables up to this one are in tables.
    pub(super) fn flushed(&mut self, up_to: MemtableId) {
        while self.waiting.pop_front_if(|(id, _)| *id <= up_to).is_some() {
            self.flushing_since = Instant::now();
            self.looked = None;
        }
    }

    /// Looks whether the disk has room for what memory holds, unless that was done a moment ago.
    pub(super) fn look(&mut self, shared: &Shared) {
        let now = Instant::now();
        if self.looked.is_some_and(|at| now < at + LOOK_INTERVAL) {
            return;
        }
        self.looked = Some(now);
        let memtable = shared.options.memtable_bytes;
        let waiting: usize = self.waiting.iter().map(|(_, bytes)| bytes).sum();
        let free = (shared.options.free_bytes)(&shared.options.folder).unwrap_or(u64::MAX);
        let stalls = !self.waiting.is_empty() && now > self.flushing_since + FLUSH_STALLS_AFTER;
        self.is_short = stalls || free < (waiting + SHORT_MEMTABLES * memtable) as u64;
        shared.note_room(free, (waiting + memtable) as u64);
    }
}

impl Shared {
    /// Notes whether the disk has room for what memory holds, and logs it when that changes.
    fn note_room(&self, free: u64, needed: u64) {
        let lacks = free < needed;
        if self.lacks.room.swap(lacks, Ordering::SeqCst) == lacks
            || self.lacks.disk_full.load(Ordering::SeqCst)
        {
            return;
        }
        match lacks {
            true => tracing::error!(
                event = "disk_full",
                folder = %self.options.folder.display(),
                free,
                needed,
                "the disk of the tables has {free} bytes left for this shard, and the rows in memory need up to \
                 {needed}: writes are refused until there is room; deletes go on for a while"
            ),
            false => self.log_room(),
        }
    }

    /// Logs that the disk has room again.
    pub(super) fn log_room(&self) {
        tracing::info!(
            event = "disk_free",
            "the disk of the tables has room again: writes go on"
        );
    }
}
