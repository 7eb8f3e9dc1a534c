//! The segment manager: prepares a spare segment, takes it into use, recycles segments
//! that nothing needs, and writes the live entries of the oldest segment again when there are too
//! many segments. This file also keeps the entries in memory within their budget, and pending
//! records within their bound.
//!
//! The segment manager is a task beside the writer. The writer waits for it when it needs a spare segment,
//! so the segment manager never waits for the writer.

use std::rc::Rc;

use rand::Rng;

use crate::env::{AsyncRuntime, Disk, Env};
use crate::limits::{BLOCK_LEN, WAL_WAITING_LEN_MAX};
use crate::wal::WalError;
use crate::wal::batch::FORMAT;
use crate::wal::record::Record;
use crate::wal::segment::{self, Beginning};
use crate::wal::shared::{Done, SharedWal};

impl<E: Env> SharedWal<E> {
    /// The segment manager's task.
    pub(super) async fn manage_segments(self: Rc<SharedWal<E>>) {
        // Records appended before the log was closed may still need a segment.
        while !self.events.has_ended.get() && self.health.dead.borrow().is_none() {
            match self.keep_once().await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    // The writer gets the error only if it needs the segment: until then this is a
                    // warning.
                    tracing::warn!(%error, "no spare log segment");
                    if self.events.needs_spare.get() {
                        self.die(error);
                        self.wake_spare();
                        return;
                    }
                }
            }
            // A call that came during this step is not lost: it left the flag set.
            let was_called = || self.events.is_called.replace(false);
            self.events.call.until(was_called).await;
        }
    }

    /// The records of a checkpoint: everything but entries, so that older segments can go.
    pub(super) fn checkpoint_records(&self) -> Vec<Record> {
        let mut records: Vec<Record> = self
            .contents
            .mark
            .get()
            .into_iter()
            .map(Record::Mark)
            .collect();
        records.push(Record::DataIds(self.contents.data_ids.get()));
        records.extend(self.contents.removed.borrow().groups().map(Record::Removed));
        records.extend(
            self.contents
                .logs
                .borrow()
                .values()
                .flat_map(|log| log.borrow().checkpoint()),
        );
        records
    }

    fn wake_spare(&self) {
        self.events.needs_spare.set(false);
        self.events.spare.notify();
    }

    /// Switches to a spare segment; waits for the segment manager if there is none.
    pub(super) async fn next_segment(&self) -> Result<(), WalError> {
        let mut spare = None;
        let look = || {
            spare = self.spares.names.borrow_mut().pop_front();
            let must_wait = spare.is_none() && self.health.dead.borrow().is_none();
            if must_wait {
                self.events.needs_spare.set(true);
                self.wake_segment_manager();
            }
            !must_wait
        };
        self.events.spare.until(look).await;
        let Some(spare) = spare else {
            return Err(self.dead().unwrap_or(WalError::Closed));
        };
        let (generation, first) = {
            let head = self.head.borrow();
            (head.generation + 1, head.number)
        };
        let secret = E::Runtime::thread_rng().next_u64();
        let beginning = Beginning {
            secret,
            first,
            format: FORMAT,
        };
        let begin = || segment::begin(&self.disk, &spare, generation, beginning);
        let file = Rc::new(self.with_retries(begin).await?);
        self.has_checkpoint.set(false);
        self.segments.borrow_mut().add(generation, file.clone());
        {
            let mut head = self.head.borrow_mut();
            head.generation = generation;
            head.file = file;
            head.secret = secret;
            head.offset = BLOCK_LEN as u64;
        }
        self.wake_segment_manager();
        Ok(())
    }

    /// One step of the segment manager; gives whether there may be more to do.
    async fn keep_once(&self) -> Result<bool, WalError> {
        let mut unneeded = Vec::new();
        // Until the checkpoint is durable, nothing repeats what the older segments say besides
        // entries.
        if self.has_checkpoint.get() {
            unneeded = self.segments.borrow_mut().take_unneeded();
        }
        for generation in unneeded {
            self.recycle(&segment::name(generation)).await?;
        }
        if self.spares.names.borrow().len() < segment::SPARES {
            let name = self.spare_name();
            match self.disk.create(&name, self.options.segment_bytes).await {
                Ok(_) => {
                    self.goes_on();
                    self.spares.names.borrow_mut().push_back(name);
                    self.wake_spare();
                }
                // Another step follows first: an older segment may have become free meanwhile.
                Err(error) => {
                    let error = WalError::io(&name, "create", &error);
                    self.pause_for_lack(error).await?;
                }
            }
            return Ok(true);
        }
        let oldest = {
            let segments = self.segments.borrow();
            let space = segments.len() as u64 * self.options.segment_bytes;
            // Where most of the log is live, as while it is kept for a replica that catches up,
            // writing it again frees nothing and makes the log longer.
            let wasteful = segments.live_bytes() * 2 < space;
            let too_many = segments.len() > self.options.segments_max && wasteful;
            let fresh = |oldest: &u64| too_many && *oldest > self.carried.get();
            segments.oldest_full().filter(fresh)
        };
        if let Some(oldest) = oldest {
            self.carried.set(oldest);
            self.carry_forward(oldest).await?;
        }
        Ok(false)
    }

    fn spare_name(&self) -> String {
        self.spares.made.set(self.spares.made.get() + 1);
        segment::spare_name(self.spares.made.get())
    }

    async fn recycle(&self, name: &str) -> Result<(), WalError> {
        if self.spares.names.borrow().len() > segment::SPARES {
            let remove = || async {
                let removed = self.disk.remove(name).await;
                removed.map_err(|e| WalError::io(name, "remove", &e))
            };
            return self.with_retries(remove).await;
        }
        let spare = self.spare_name();
        let rename = || async {
            let renamed = self.disk.rename(name, &spare).await;
            renamed.map_err(|e| WalError::io(name, "rename", &e))
        };
        self.with_retries(rename).await?;
        self.spares.names.borrow_mut().push_back(spare);
        self.wake_spare();
        Ok(())
    }

    /// Writes the live entries of a segment again at the end of the log, so that the segment can
    /// go.
    async fn carry_forward(&self, generation: u64) -> Result<(), WalError> {
        let logs: Vec<_> = self
            .contents
            .logs
            .borrow()
            .iter()
            .map(|(g, log)| (*g, log.clone()))
            .collect();
        for (group, log) in logs {
            let locations = log.borrow().locations_in(generation);
            for (id, location) in locations {
                let cached = log.borrow().entry(id);
                let entry = match cached {
                    Some(entry) => entry,
                    None => {
                        let page = self.read_page((group, &log), &[(id, location)]).await?;
                        match page.and_then(|mut page| page.pop()) {
                            Some(entry) => entry,
                            None => continue,
                        }
                    }
                };
                // An entry that was purged or overwritten while it was read must not come back.
                if log.borrow().has(id) {
                    self.append_entry(group, &entry);
                }
            }
        }
        // The segment manager does not wait for this write: the writer may itself wait for the segment manager's next
        // spare segment.
        self.complete(Done::Leave(Vec::new()));
        Ok(())
    }

    pub(super) fn has_room(&self) -> bool {
        self.pending.bytes.get() <= WAL_WAITING_LEN_MAX || self.health.dead.borrow().is_some()
    }

    /// Wakes the tasks that wait for room, if there is some.
    pub(super) fn wake_for_room(&self) {
        if self.has_room() {
            self.events.room.notify();
        }
    }

    /// Notes that `appended` bytes of entries came into memory. After every sixteenth of the budget
    /// this frees, oldest first, entries that the disk has too, down to the budget. It is not done
    /// more often because it goes through the logs of all groups.
    pub(super) fn trim_cache(&self, appended: usize) {
        let untrimmed = self.untrimmed.get() + appended;
        if untrimmed <= self.options.entry_cache_bytes / 16 {
            self.untrimmed.set(untrimmed);
            return;
        }
        self.untrimmed.set(0);
        let logs = self.contents.logs.borrow();
        let cached: usize = logs.values().map(|log| log.borrow().cached_bytes()).sum();
        let mut wanted = cached.saturating_sub(self.options.entry_cache_bytes);
        for log in logs.values() {
            if wanted == 0 {
                break;
            }
            wanted -= log.borrow_mut().evict(wanted).min(wanted);
        }
    }
}
