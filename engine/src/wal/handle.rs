//! A shard's log as the shard holds it.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use crate::boot_time::BootTime;
use crate::disk_fault::Lack;
use crate::env::{AsyncRuntime, Disk, Env};
use crate::limits::ENTRY_LEN_MAX;
use crate::mutant::{self, Mutant};
use crate::types::{DataId, RangeId, ReplicaId};
use crate::wal::group_log::GroupLog;
use crate::wal::log::Log;
use crate::wal::record::Record;
use crate::wal::shared::{Done, SharedWal};
use crate::wal::{
    Birth, Created, Group, LogId, LogState, Position, Recovered, Space, WalError, WalOptions,
    WalStats, WriteSpeed, clean_mark, recovery,
};

/// A shard's log. Clones are the same log.
pub struct Wal<E: Env> {
    pub(super) shared: Rc<SharedWal<E>>,
}

impl<E: Env> Clone for Wal<E> {
    fn clone(&self) -> Wal<E> {
        Wal {
            shared: self.shared.clone(),
        }
    }
}

impl<E: Env> Wal<E> {
    /// Opens the log in a disk's folder, or makes a new one.
    ///
    /// # Errors
    /// The disk refuses, or its log is damaged or of another version.
    pub async fn open(
        disk: E::Disk,
        options: WalOptions,
    ) -> Result<(Wal<E>, Recovered<E>), WalError> {
        let found = recovery::read::<E>(&disk, &options).await?;
        let clean = found.clean;
        let shared = Rc::new(SharedWal::new(disk, options, found));
        let (writer, segment_manager) = (shared.clone(), shared.clone());
        drop(E::Runtime::spawn(async move { writer.run().await }));
        drop(E::Runtime::spawn(async move {
            segment_manager.manage_segments().await
        }));
        let wal = Wal { shared };
        let recovered = wal.recovered(clean);
        Ok((wal, recovered))
    }

    fn recovered(&self, clean: bool) -> Recovered<E> {
        let logs = self.shared.contents.logs.borrow();
        let replicas = logs.iter().map(|(group, log)| {
            let created = log.borrow().created.clone();
            (
                created,
                GroupLog::new(*group, log.clone(), self.shared.clone()),
            )
        });
        Recovered {
            clean,
            replicas: replicas.collect(),
            removed: self.shared.contents.removed.borrow().groups().collect(),
            data_ids_reserved: self.shared.contents.data_ids.get(),
            mark: self.shared.contents.mark.get(),
            last_batch: self.last_batch(),
            begins: Position(0),
        }
    }

    /// Creates a replica; it is durable when this returns. For a birth the split's entry must have been
    /// added before.
    ///
    /// # Errors
    /// Its name was used before, or the log has failed.
    pub async fn create_replica(&self, created: Created) -> Result<GroupLog<E>, WalError> {
        let group = created.group;
        if created.birth.is_some() {
            // A checkpoint names every replica, and may be written before what is added now. It must not
            // name a birth before the entry that is the split.
            self.shared.flush().await?;
        }
        // A shard has at most one replica of a range at a time.
        let known = self.holds(group.range) || self.shared.contents.removed.borrow().has(group);
        if known {
            return Err(WalError::ReplicaNameUsed(group));
        }
        let highest = self
            .shared
            .contents
            .highest_replica
            .get()
            .max(group.replica);
        self.shared.contents.highest_replica.set(highest);
        let log = Rc::new(RefCell::new(Log::new(created.clone())));
        self.shared
            .contents
            .logs
            .borrow_mut()
            .insert(group, log.clone());
        if let Some(Birth { parent, split }) = created.birth
            && let Some(parent) = self.shared.contents.logs.borrow().get(&parent)
        {
            // A start replays the parent's log at least up to the split.
            parent.borrow_mut().set_committed(split);
        }
        match created.birth.is_some() && mutant::is(Mutant::BirthNotDurable) {
            true => self.shared.append_lazily(&Record::Created(created)),
            false => {
                self.shared
                    .append_durably(&Record::Created(created))
                    .await?
            }
        }
        Ok(GroupLog::new(group, log, self.shared.clone()))
    }

    /// Whether the log has a replica of a range.
    pub fn holds(&self, range: RangeId) -> bool {
        let first = Group {
            range,
            replica: ReplicaId(0),
        };
        let logs = self.shared.contents.logs.borrow();
        logs.range(first..)
            .next()
            .is_some_and(|(group, _)| group.range == range)
    }

    /// Whether the log has this replica, and it was made by a message, not born in a split.
    pub fn was_made(&self, group: Group) -> bool {
        let logs = self.shared.contents.logs.borrow();
        logs.get(&group)
            .is_some_and(|log| log.borrow().created.birth.is_none())
    }

    /// Removes a replica for good; that is durable when this returns.
    ///
    /// # Errors
    /// The log has failed.
    pub async fn remove_replica(&self, group: Group) -> Result<(), WalError> {
        let log = self.shared.contents.logs.borrow_mut().remove(&group);
        self.shared.contents.removed.borrow_mut().add(group);
        self.shared.append_lazily(&Record::Removed(group));
        if let Some(log) = log {
            let left = log.borrow_mut().truncate(None);
            self.shared.complete(Done::Leave(left));
        }
        self.shared.flush().await
    }

    /// Reserves all data ids up to and including `up_to`; that is durable when this returns.
    ///
    /// # Errors
    /// The log has failed.
    pub async fn reserve_data_ids(&self, up_to: DataId) -> Result<(), WalError> {
        self.shared
            .contents
            .data_ids
            .set(self.shared.contents.data_ids.get().max(up_to));
        self.shared.append_durably(&Record::DataIds(up_to)).await
    }

    /// Has `tell` called once if the log fails for good.
    pub fn on_failure(&self, tell: impl Fn(WalError) + 'static) {
        *self.shared.health.on_failure.borrow_mut() = Some(Box::new(tell));
    }

    /// When the write in flight began; `None` if there is none.
    pub fn writing_since(&self) -> Option<BootTime> {
        self.shared.health.writing_since.get()
    }

    /// How long the latest durable writes took; `None` if there was none within two seconds.
    pub fn write_speed(&self, now: BootTime) -> Option<WriteSpeed> {
        self.shared.health.recent.borrow().speed(now)
    }

    /// What the disk lacks while the log waits for it.
    pub fn lack(&self) -> Option<Lack> {
        self.shared.health.lack.get()
    }

    /// Writes the pending records and the mark of a clean stop, unless the disk lacks something.
    /// Nothing can be appended afterwards.
    ///
    /// # Errors
    /// The log has failed.
    pub async fn close(&self) -> Result<(), WalError> {
        let shared = &self.shared;
        shared.health.closed.set(true);
        shared.wake_writer();
        // The writer first writes all pending records: the mark must name the very last batch.
        let is_over = || shared.events.has_ended.get() || shared.health.lack.get().is_some();
        shared.events.end.until(is_over).await;
        if let Some(error) = shared.health.dead.borrow().clone() {
            return Err(error);
        }
        if shared.health.lack.get().is_some() {
            return Ok(());
        }
        let (generation, number) = {
            let head = shared.head.borrow();
            (head.generation, head.number)
        };
        match clean_mark::write::<E>(&shared.disk, generation, number).await {
            // Without the mark the next start takes a bad end of the log for a torn tail, which is
            // safe.
            Err(error @ WalError::Io { lack: Some(_), .. }) => {
                tracing::warn!(%error, "the log is closed without the mark of a clean stop");
                Ok(())
            }
            marked => marked,
        }
    }

    /// Whether the pending records are within their bound.
    pub fn has_room(&self) -> bool {
        self.shared.has_room()
    }

    /// Waits until the pending records are within their bound, or the log has failed.
    pub async fn room(&self) {
        let has_room = || self.shared.has_room();
        self.shared.events.room.until(has_room).await;
    }
}

impl<E: Env> Wal<E> {
    /// Most bytes of an entry, except for an entry of a single write: several of them fit into a
    /// segment.
    pub fn entry_len_max(&self) -> usize {
        ENTRY_LEN_MAX.min(self.shared.options.segment_bytes as usize / 16)
    }

    /// The state of every group's log, and the ids of its entries.
    pub fn contents(&self) -> Vec<(Group, LogState, Vec<LogId>)> {
        let logs = self.shared.contents.logs.borrow();
        let contents = logs.iter().map(|(group, log)| {
            let log = log.borrow();
            (*group, log.state(), log.ids().collect())
        });
        contents.collect()
    }

    /// How many bytes the log's disk still has room for.
    ///
    /// # Errors
    /// The disk cannot tell.
    pub async fn free_bytes(&self) -> io::Result<u64> {
        self.shared.disk.free_bytes().await
    }

    /// Whether the log can go on for a while on a full disk: a quarter of a segment and more can be written
    /// before it needs another file.
    pub fn has_reserve(&self) -> bool {
        let segment = self.shared.options.segment_bytes;
        let spares = self.shared.spares.names.borrow().len() as u64;
        let rest = segment.saturating_sub(self.shared.head.borrow().offset);
        spares * segment + rest > segment / 4
    }

    /// The space that the log takes on its disk.
    pub fn space(&self) -> Space {
        let segments = self.shared.segments.borrow();
        Space {
            segments: segments.len(),
            segment_bytes: self.shared.options.segment_bytes,
            live_bytes: segments.live_bytes(),
        }
    }

    /// The counters and sizes of the log.
    pub fn stats(&self) -> WalStats {
        let cached: usize = self
            .shared
            .contents
            .logs
            .borrow()
            .values()
            .map(|log| log.borrow().cached_bytes())
            .sum();
        let mut stats = self.shared.counters.borrow().stats();
        stats.pending_bytes = self.shared.pending.bytes.get();
        {
            let segments = self.shared.segments.borrow();
            stats.segments = segments.len();
            stats.live_bytes = segments.live_bytes();
        }
        stats.cache.used = cached as u64;
        stats.cache.bound = self.shared.options.entry_cache_bytes as u64;
        stats
    }
}
