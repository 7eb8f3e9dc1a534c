//! The log's writer: gathers records, writes one batch at a time, and completes waiters in order.

use std::rc::Rc;

use openraft::async_runtime::{Oneshot, OneshotSender};

use crate::env::{AsyncRuntime, Env, File};
use crate::limits::BLOCK_LEN;
use crate::wal::batch::{self, RECORDS_LEN_MAX};
use crate::wal::log::RecordLocation;
use crate::wal::record::{self, Record};
use crate::wal::segment;
use crate::wal::shared::{Chunk, Done, FileOf, SharedWal};
use crate::wal::{Group, LogEntry, LogId, WalError};

impl<E: Env> SharedWal<E> {
    /// Adds a record of at most `len_max` bytes to the chunk that is gathering.
    fn add(&self, len_max: usize, encode: impl FnOnce(&mut Chunk)) {
        if self.health.closed.get() {
            return;
        }
        let mut pending = self.pending.chunks.borrow_mut();
        // Even the smallest segment has room for a checkpoint and some chunks.
        let most = RECORDS_LEN_MAX.min(self.options.segment_bytes as usize / 4);
        if pending
            .back()
            .is_none_or(|chunk| chunk.len() + len_max > most)
        {
            pending.push_back(Chunk::default());
        }
        if let Some(chunk) = pending.back_mut() {
            let before = chunk.len();
            encode(chunk);
            chunk.records += 1;
            let added = chunk.len() - before;
            self.pending.bytes.set(self.pending.bytes.get() + added);
        }
    }

    /// Adds an entry. The caller then adds with [`SharedWal::complete`] what happens when it is durable.
    pub(super) fn append_entry(&self, group: Group, entry: &LogEntry) {
        self.add(record::entry_len(entry), |chunk| {
            chunk.append_entry(group, entry);
        });
    }

    /// Adds a record that is written together with the next urgent one.
    pub(super) fn append_lazily(&self, record: &Record) {
        let mut bytes = Vec::new();
        record::encode(record, &mut bytes);
        self.add(bytes.len(), |chunk| chunk.bytes.append(&mut bytes));
    }

    /// Adds what happens once all records added so far are durable.
    pub(super) fn complete(&self, done: Done) {
        if let Some(error) = self.dead() {
            if let Done::Call(call) = done {
                call(Err(error));
            }
            return;
        }
        {
            let mut pending = self.pending.chunks.borrow_mut();
            if pending.is_empty() {
                pending.push_back(Chunk::default());
            }
            if let Some(chunk) = pending.back_mut() {
                chunk.urgent = true;
                chunk.done.push(done);
            }
        }
        self.wake_writer();
    }

    /// Adds a record and waits until it is durable.
    pub(super) async fn append_durably(&self, record: &Record) -> Result<(), WalError> {
        self.append_lazily(record);
        self.flush().await
    }

    /// Waits until everything added so far is durable.
    pub(super) async fn flush(&self) -> Result<(), WalError> {
        let (sender, receiver) = <E::Runtime as AsyncRuntime>::Oneshot::channel();
        self.complete(Done::Call(Box::new(move |result| {
            // The waiter may have gone meanwhile.
            let _ = sender.send(result);
        })));
        receiver.await.unwrap_or(Err(WalError::Closed))
    }

    pub(super) fn dead(&self) -> Option<WalError> {
        if self.health.closed.get() {
            return Some(WalError::Closed);
        }
        self.health.dead.borrow().clone()
    }

    /// Makes the log fail for good, and reports that once.
    pub(super) fn die(&self, error: WalError) {
        *self.health.dead.borrow_mut() = Some(error.clone());
        let on_failure = self.health.on_failure.borrow_mut().take();
        if let Some(tell) = on_failure {
            tell(error);
        }
    }

    pub(super) fn wake_writer(&self) {
        self.events.urgent.notify();
    }

    pub(super) fn wake_segment_manager(&self) {
        self.events.is_called.set(true);
        self.events.call.notify();
    }

    /// The writer's task: one batch after the other until the log is closed or has failed.
    pub(super) async fn run(self: Rc<SharedWal<E>>) {
        while let Some(chunk) = self.next_chunk().await {
            let bytes = chunk.len();
            let done = match self.write_next(&chunk).await {
                Ok(()) => {
                    self.pending.bytes.set(self.pending.bytes.get() - bytes);
                    chunk.done
                }
                Err(error) => {
                    self.die(error);
                    // Nothing after a failed write can be durable: all that waits fails with it.
                    let rest = std::mem::take(&mut *self.pending.chunks.borrow_mut());
                    chunk
                        .done
                        .into_iter()
                        .chain(rest.into_iter().flat_map(|c| c.done))
                        .collect()
                }
            };
            self.wake_for_room();
            self.finish(done);
        }
        self.events.has_ended.set(true);
        self.wake_segment_manager();
        self.events.end.notify();
    }

    fn finish(&self, done: Vec<Done>) {
        let result = self.health.dead.borrow().clone().map_or(Ok(()), Err);
        let mut left = false;
        for done in done {
            match done {
                Done::Call(call) => call(result.clone()),
                // The record that dropped these entries was not written: the older records still
                // count.
                Done::Leave(_) if result.is_err() => {}
                Done::Leave(locations) => {
                    left |= !locations.is_empty();
                    let mut segments = self.segments.borrow_mut();
                    locations
                        .iter()
                        .for_each(|location| segments.release(location.generation, location.len));
                }
            }
        }
        if left {
            self.wake_segment_manager();
        }
    }

    /// Waits for a chunk to write; `None` if the log has failed, or is closed and all is written.
    async fn next_chunk(&self) -> Option<Chunk> {
        let mut chunk = None;
        let look = || {
            let mut pending = self.pending.chunks.borrow_mut();
            // A chunk that nobody waits for is written when the next chunk follows it, when
            // something urgent is added to it, or when the log is closed.
            let closed = self.health.closed.get();
            let due = pending.len() > 1 || pending.front().is_some_and(|c| c.urgent || closed);
            if self.health.dead.borrow().is_some() || (closed && !due) {
                return true;
            }
            if due {
                chunk = pending.pop_front();
            }
            due
        };
        self.events.urgent.until(look).await;
        chunk
    }

    /// Writes a chunk. A segment that has no room for it, or for its checkpoint, is followed by a
    /// new one.
    async fn write_next(&self, chunk: &Chunk) -> Result<(), WalError> {
        if chunk.len() == 0 {
            return Ok(());
        }
        let mut due = Vec::new();
        if !self.has_checkpoint.get() {
            due = self.checkpoint();
        }
        let chunks = due.iter().chain([chunk]);
        let len: usize = chunks.map(|c| batch::padded_len(c.len())).sum();
        let full = self.head.borrow().offset + len as u64 > self.options.segment_bytes;
        if full {
            self.next_segment().await?;
            due = self.checkpoint();
        }
        for checkpoint in &due {
            self.write(checkpoint).await?;
        }
        if !self.has_checkpoint.replace(true) {
            // The checkpoint repeats what older segments say besides entries: they may go now.
            self.wake_segment_manager();
        }
        self.write(chunk).await
    }

    /// A whole checkpoint, in chunks.
    fn checkpoint(&self) -> Vec<Chunk> {
        let mut chunks = vec![Chunk::default()];
        let mut bytes = Vec::new();
        for record in self.checkpoint_records() {
            record::encode(&record, &mut bytes);
            if chunks
                .last()
                .is_none_or(|c| c.len() + bytes.len() > RECORDS_LEN_MAX / 8)
            {
                chunks.push(Chunk::default());
            }
            if let Some(chunk) = chunks.last_mut() {
                chunk.bytes.append(&mut bytes);
                chunk.records += 1;
            }
        }
        chunks
    }

    /// Writes one batch durably and notes where its entries lie.
    async fn write(&self, chunk: &Chunk) -> Result<(), WalError> {
        let (generation, file, offset, number, secret) = {
            let head = self.head.borrow();
            let file = head.file.clone();
            (head.generation, file, head.offset, head.number, head.secret)
        };
        let len = batch::padded_len(chunk.len());
        let header = batch::Header {
            generation,
            number,
            len: chunk.len(),
        };
        let write = || {
            let mut buffer = file.buffer(len);
            batch::encode(secret, header, chunk.pieces(), buffer.as_mut());
            let written = file.write_at(buffer, offset);
            async move {
                let name = || segment::name(generation);
                written
                    .await
                    .map_err(|e| WalError::io(&name(), "durable write", &e))
            }
        };
        let began = E::now();
        self.health.writing_since.set(Some(began));
        // A write that failed or was cut short goes to the same place again.
        let result = self.with_retries(write).await;
        self.health.writing_since.set(None);
        result?;
        {
            let mut head = self.head.borrow_mut();
            head.offset += len as u64;
            head.number += 1;
        }
        self.written.set(self.written.get() + len as u64);
        let (now, took) = (E::now(), E::now() - began);
        self.health.recent.borrow_mut().count(took, now);
        let micros = took.as_micros() as u64;
        self.counters.borrow_mut().count(micros, chunk.records, len);
        let first = offset + batch::HEADER_LEN as u64;
        for (group, id, begin, end) in &chunk.entries {
            let location = RecordLocation {
                generation,
                offset: first + *begin as u64,
                len: end - begin,
            };
            self.located(*group, *id, location);
        }
        Ok(())
    }

    fn located(&self, group: Group, id: LogId, location: RecordLocation) {
        let log = self.contents.logs.borrow().get(&group).cloned();
        let Some(log) = log else { return };
        let (left, held) = log.borrow_mut().located(id, location);
        let mut segments = self.segments.borrow_mut();
        if held {
            segments.hold(location.generation, location.len);
        }
        if let Some(left) = left {
            segments.release(left.generation, left.len);
        }
    }

    pub(super) fn segment_file(&self, generation: u64) -> Option<Rc<FileOf<E>>> {
        self.segments.borrow().file(generation)
    }
}

const _: () = assert!(batch::HEADER_LEN < BLOCK_LEN);
