//! The log of one group: its index in memory, and its state while it is read back. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::wal::record::Record;
use crate::wal::{Created, InstalledSnapshot, LogEntry, LogId, LogState, Payload, Vote};

/// Entries within this many bytes are read together.
const PAGE_LEN: u64 = 1 << 20;

/// Where an entry's record lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLocation {
    /// Generation of the segment.
    pub generation: u64,
    /// Offset of the record in it.
    pub offset: u64,
    /// Length of the record.
    pub len: usize,
}

struct Slot {
    id: LogId,
    /// Where it lies on disk; `None` until it is durable.
    location: Option<RecordLocation>,
    /// Its content; `None` when only the disk has it.
    payload: Option<Payload>,
}

/// The index of one group's log.
pub struct Log {
    /// How the replica began.
    pub created: Created,
    /// The snapshot that the replica installed last.
    installed: Option<InstalledSnapshot>,
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    /// Index of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    /// Bytes of payloads in memory.
    cached_bytes: usize,
    /// Bytes of the entries' records on disk.
    disk_bytes: u64,
    /// Slots below this index have no payload in memory.
    cached_from: u64,
}

impl Log {
    /// The log of a replica that was just created.
    pub fn new(created: Created) -> Log {
        // A vote for nobody in the term of the log's start: no leader of an earlier term can win.
        let vote = created.first.map(|first| Vote {
            term: first.term,
            leader: first.leader,
            committed: false,
        });
        let first = created.first.map_or(0, |first| first.index + 1);
        Log {
            installed: None,
            vote,
            purged: created.first,
            committed: created.first,
            first,
            slots: VecDeque::new(),
            cached_bytes: 0,
            disk_bytes: 0,
            cached_from: first,
            created,
        }
    }

    /// The Raft state of the log.
    pub fn state(&self) -> LogState {
        LogState {
            last: self.slots.back().map(|slot| slot.id).or(self.purged),
            purged: self.purged,
            vote: self.vote,
            committed: self.committed,
        }
    }

    /// Bytes of payloads in memory.
    pub fn cached_bytes(&self) -> usize {
        self.cached_bytes
    }

    /// How many entries are not purged, and how many bytes their records take on disk.
    pub fn size(&self) -> (usize, u64) {
        (self.slots.len(), self.disk_bytes)
    }

    /// The snapshot that the replica installed last.
    pub fn installed_snapshot(&self) -> Option<&InstalledSnapshot> {
        self.installed.as_ref()
    }

    /// The entries after the installed snapshot no longer depend on its record.
    pub fn keep_later(&mut self) {
        if let Some(installed) = &mut self.installed {
            installed.keeps_later = true;
        }
    }

    /// The part of an interval of indexes of which there are entries.
    pub fn within(&self, from: u64, to: u64) -> (u64, u64) {
        (from.max(self.first), to.min(self.end()))
    }

    /// The index after the last entry.
    fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get(index.checked_sub(self.first)? as usize)
    }

    fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        self.slots.get_mut(index.checked_sub(self.first)? as usize)
    }

    /// Adds an entry at the end.
    pub fn push(&mut self, entry: LogEntry) {
        if self.slots.is_empty() {
            self.first = entry.id.index;
            self.cached_from = self.first;
        }
        assert_eq!(entry.id.index, self.end(), "a log has no gap");
        self.cached_bytes += entry.payload.len();
        self.slots.push_back(Slot {
            id: entry.id,
            location: None,
            payload: Some(entry.payload),
        });
    }

    pub fn set_vote(&mut self, vote: Vote) {
        self.vote = Some(vote);
    }

    pub fn set_committed(&mut self, id: LogId) {
        self.committed = self.committed.max(Some(id));
    }

    /// Drops the entries after `after`, or all of them; gives the places that become free.
    pub fn truncate(&mut self, after: Option<u64>) -> Vec<RecordLocation> {
        let keep = after.map_or(0, |after| (after + 1).saturating_sub(self.first));
        let dropped = self.slots.split_off((keep as usize).min(self.slots.len()));
        self.cached_from = self.cached_from.min(self.end());
        self.leave(dropped)
    }

    /// Starts the log after a snapshot; gives the places that become free.
    pub fn install_snapshot(&mut self, installed: InstalledSnapshot) -> Vec<RecordLocation> {
        let mut left = Vec::new();
        if !installed.keeps_later {
            left = self.truncate(None);
        }
        left.extend(self.purge(installed.last));
        self.committed = self.committed.max(Some(installed.last));
        self.installed = Some(installed);
        left
    }

    /// Drops the entries up to `id`; gives the places that become free.
    pub fn purge(&mut self, id: LogId) -> Vec<RecordLocation> {
        let count = (id.index + 1).saturating_sub(self.first) as usize;
        let rest = self.slots.split_off(count.min(self.slots.len()));
        let dropped = std::mem::replace(&mut self.slots, rest);
        self.first = self.first.max(id.index + 1);
        self.cached_from = self.cached_from.max(self.first);
        self.purged = self.purged.max(Some(id));
        self.leave(dropped)
    }

    fn leave(&mut self, dropped: VecDeque<Slot>) -> Vec<RecordLocation> {
        for slot in &dropped {
            self.cached_bytes -= slot.payload.as_ref().map_or(0, Payload::len);
            self.disk_bytes -= slot.location.map_or(0, |location| location.len as u64);
        }
        dropped
            .into_iter()
            .filter_map(|slot| slot.location)
            .collect()
    }

    /// An entry's record is durable at `place`. Gives its earlier place, and if the log has it.
    pub fn located(
        &mut self,
        id: LogId,
        location: RecordLocation,
    ) -> (Option<RecordLocation>, bool) {
        let Some(slot) = self.slot_mut(id.index).filter(|slot| slot.id == id) else {
            return (None, false);
        };
        let left = slot.location.replace(location);
        self.disk_bytes += location.len as u64;
        self.disk_bytes -= left.map_or(0, |left| left.len as u64);
        (left, true)
    }

    /// Frees payloads that the disk has too, oldest first, until it has freed `wanted` bytes.
    pub fn evict(&mut self, wanted: usize) -> usize {
        let mut freed = 0;
        while freed < wanted && self.cached_from < self.end() {
            let at = self.cached_from;
            let Some(slot) = self.slot_mut(at).filter(|slot| slot.location.is_some()) else {
                break;
            };
            let len = slot.payload.take().map_or(0, |payload| payload.len());
            freed += len;
            self.cached_bytes -= len;
            self.cached_from += 1;
        }
        freed
    }

    /// The ids of the entries.
    pub fn ids(&self) -> impl Iterator<Item = LogId> {
        self.slots.iter().map(|slot| slot.id)
    }

    /// Whether the log still has an entry.
    pub fn has(&self, id: LogId) -> bool {
        self.slot(id.index).is_some_and(|slot| slot.id == id)
    }

    /// Whether these entries still lie in these places.
    pub fn holds(&self, locations: &[(LogId, RecordLocation)]) -> bool {
        locations.iter().all(|(id, location)| {
            let slot = self.slot(id.index);
            slot.is_some_and(|slot| slot.id == *id && slot.location == Some(*location))
        })
    }

    /// An entry, if the log still has it and memory has its payload.
    pub fn entry(&self, id: LogId) -> Option<LogEntry> {
        let slot = self.slot(id.index).filter(|slot| slot.id == id)?;
        Some(LogEntry {
            id,
            payload: slot.payload.clone()?,
        })
    }

    /// The entries that lie in a segment, and where.
    pub fn locations_in(&self, generation: u64) -> Vec<(LogId, RecordLocation)> {
        let located = self
            .slots
            .iter()
            .filter_map(|slot| slot.location.map(|location| (slot.id, location)));
        located
            .filter(|(_, location)| location.generation == generation)
            .collect()
    }

    /// The records of this log in a segment's checkpoint.
    pub fn checkpoint(&self) -> Vec<Record> {
        let group = self.created.group;
        let mut records = vec![Record::Created(self.created.clone())];
        let installed = self.installed.clone();
        records.extend(installed.map(|installed| Record::InstalledSnapshot(group, installed)));
        records.extend(self.vote.map(|vote| Record::Vote(group, vote)));
        records.extend(self.purged.map(|purged| Record::Purge(group, purged)));
        records.extend(
            self.committed
                .map(|committed| Record::Commit(group, committed)),
        );
        records
    }
}

/// The log of one group while it is read back.
///
/// Entries may come in any order: those of an old segment that were written again stand behind
/// later ones. Only a truncation removes the entries that follow one.
pub struct RecoveringLog {
    log: Log,
    slots: BTreeMap<u64, Slot>,
    /// Entries that were marked as committed and were not there when the mark was read. They come later, if they
    /// were written again, or never: a checkpoint may name an entry that was not durable yet.
    committed_elsewhere: Vec<LogId>,
}

impl RecoveringLog {
    /// The log of a replica as it was created.
    pub fn new(created: Created) -> RecoveringLog {
        RecoveringLog {
            log: Log::new(created),
            slots: BTreeMap::new(),
            committed_elsewhere: Vec::new(),
        }
    }

    /// Takes an entry; gives the place that becomes free, its own if it was purged before.
    pub fn entry(
        &mut self,
        entry: LogEntry,
        location: RecordLocation,
        keep: bool,
    ) -> Option<RecordLocation> {
        let index = entry.id.index;
        if self.log.purged.is_some_and(|purged| index <= purged.index) {
            return Some(location);
        }
        let payload = keep.then_some(entry.payload);
        let slot = Slot {
            id: entry.id,
            location: Some(location),
            payload,
        };
        self.slots.insert(index, slot).and_then(|old| old.location)
    }

    /// Drops the entries after `after`, or all of them; gives the places that become free.
    pub fn truncate(&mut self, after: Option<u64>) -> Vec<RecordLocation> {
        let dropped = self.slots.split_off(&after.map_or(0, |after| after + 1));
        dropped
            .into_values()
            .filter_map(|slot| slot.location)
            .collect()
    }

    /// Drops the entries up to `id`; gives the places that become free.
    pub fn purge(&mut self, id: LogId) -> Vec<RecordLocation> {
        self.log.purge(id);
        let rest = self.slots.split_off(&(id.index + 1));
        let dropped = std::mem::replace(&mut self.slots, rest);
        dropped
            .into_values()
            .filter_map(|slot| slot.location)
            .collect()
    }

    /// Starts the log after a snapshot; gives the places that become free.
    pub fn install_snapshot(&mut self, installed: InstalledSnapshot) -> Vec<RecordLocation> {
        let mut left = Vec::new();
        if !installed.keeps_later {
            left = self.truncate(None);
        }
        left.extend(self.purge(installed.last));
        self.log.set_committed(installed.last);
        self.log.installed = Some(installed);
        left
    }

    pub fn set_vote(&mut self, vote: Vote) {
        self.log.set_vote(vote);
    }

    pub fn set_committed(&mut self, id: LogId) {
        let slot = self.slots.get(&id.index);
        match slot.is_some_and(|slot| slot.id == id) {
            true => self.log.set_committed(id),
            false => self.committed_elsewhere.push(id),
        }
    }

    /// The finished log.
    ///
    /// # Errors
    /// The index of the first entry that is missing.
    pub fn finish(self) -> Result<Log, u64> {
        let RecoveringLog {
            mut log,
            slots,
            committed_elsewhere,
        } = self;
        let first = slots.first_key_value().map(|(first, _)| *first);
        let expected = log.purged.map(|purged| purged.index + 1).or(first);
        let expected = expected.unwrap_or(log.first);
        for (slot, index) in slots.values().zip(expected..) {
            if slot.id.index != index {
                return Err(index);
            }
        }
        // All entries that are left came after the record: a checkpoint must not drop them.
        log.keep_later();
        log.first = expected;
        log.slots = slots.into_values().collect();
        let locations = log.slots.iter().filter_map(|slot| slot.location);
        log.disk_bytes = locations.map(|location| location.len as u64).sum();
        // A mark whose entry is lost says only that what was purged is committed, and hides no older one.
        let marks = committed_elsewhere.into_iter().chain(log.committed);
        let purged = log.purged;
        let holds = |id| match log.has(id) || purged >= Some(id) {
            true => Some(id),
            false => purged,
        };
        log.committed = marks.filter_map(holds).max();
        // Only an unbroken end of the log stays in memory: `cached_from` says where it begins.
        log.cached_from = log.end();
        let mut in_memory = true;
        for slot in log.slots.iter_mut().rev() {
            in_memory &= slot.payload.is_some();
            if !in_memory {
                slot.payload = None;
                continue;
            }
            log.cached_bytes += slot.payload.as_ref().map_or(0, Payload::len);
            log.cached_from -= 1;
        }
        Ok(log)
    }
}

/// Where the next entries of a read are.
pub enum NextEntries {
    /// The next one is in memory.
    Memory(LogEntry),
    /// The next ones lie near each other in one segment.
    Disk(Vec<(LogId, RecordLocation)>),
    /// The next one no longer exists.
    Gone,
}

impl Log {
    /// The entries of an interval, as many as fit into `bytes_max` and at least one, if all that exist
    /// of them are in memory.
    pub fn cached(&self, from: u64, to: u64, bytes_max: usize) -> Option<Vec<LogEntry>> {
        let (from, to) = self.within(from, to);
        if from < to && from < self.cached_from {
            return None;
        }
        let mut entries = Vec::with_capacity(to.saturating_sub(from) as usize);
        let mut bytes = 0usize;
        for index in from..to {
            let slot = self.slot(index)?;
            bytes = bytes.saturating_add(slot.payload.as_ref()?.len());
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(LogEntry {
                id: slot.id,
                payload: slot.payload.clone()?,
            });
        }
        Some(entries)
    }

    /// Where the entries from `index` on are, those that can be read at once.
    pub fn next_entries(&self, index: u64, to: u64) -> NextEntries {
        let Some(slot) = self.slot(index) else {
            return NextEntries::Gone;
        };
        if let Some(payload) = slot.payload.clone() {
            return NextEntries::Memory(LogEntry {
                id: slot.id,
                payload,
            });
        }
        let Some(first) = slot.location else {
            return NextEntries::Gone;
        };
        let slots = (index..to).map_while(|index| self.slot(index));
        let on_disk = slots.take_while(|slot| slot.payload.is_none());
        let near = on_disk.map_while(|slot| slot.location.map(|location| (slot.id, location)));
        let page = near.take_while(|(_, location)| {
            let begins = first.offset.min(location.offset);
            let ends = (first.offset + first.len as u64).max(location.offset + location.len as u64);
            let in_reach = location.offset >= first.offset && ends - begins <= PAGE_LEN;
            *location == first || (location.generation == first.generation && in_reach)
        });
        NextEntries::Disk(page.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DataId, RangeId, ReplicaId};
    use crate::wal::Group;

    fn id(index: u64) -> LogId {
        LogId {
            term: 2,
            leader: ReplicaId(1),
            index,
        }
    }

    fn recovering() -> RecoveringLog {
        RecoveringLog::new(Created {
            group: Group {
                range: RangeId(1),
                replica: ReplicaId(1),
            },
            data_id: DataId(1),
            descriptor: Default::default(),
            membership: Default::default(),
            first: None,
            birth: None,
        })
    }

    fn add(log: &mut RecoveringLog, index: u64) {
        let entry = LogEntry {
            id: id(index),
            payload: Payload::Blank,
        };
        let location = RecordLocation {
            generation: 1,
            offset: index * 64,
            len: 64,
        };
        log.entry(entry, location, true);
    }

    #[test]
    fn a_checkpoint_that_names_a_lost_entry_does_not_hide_an_older_mark() {
        let mut log = recovering();
        for index in 1..=5 {
            add(&mut log, index);
        }
        log.set_committed(id(4));
        // The checkpoint of a later segment: the power failed before entry 7 was written.
        log.set_committed(id(7));
        let log = log.finish().expect("whole");
        assert_eq!(log.state().committed, Some(id(4)));
    }

    #[test]
    fn a_mark_counts_when_its_entry_comes_after_it() {
        let mut log = recovering();
        log.set_committed(id(3));
        for index in 1..=5 {
            add(&mut log, index);
        }
        let log = log.finish().expect("whole");
        assert_eq!(log.state().committed, Some(id(3)));
    }

    #[test]
    fn a_log_whose_only_mark_is_lost_is_committed_up_to_its_purge() {
        let mut log = recovering();
        for index in 1..=5 {
            add(&mut log, index);
        }
        log.purge(id(2));
        log.set_committed(id(7));
        let log = log.finish().expect("whole");
        assert_eq!(log.state().committed, Some(id(2)));
    }
}
