//! The log's writer: gathers records, writes one batch at a time, and completes waiters in order.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::Bytes;
use openraft::async_runtime::{Oneshot, OneshotSender};

use crate::disk_fault::Lack;
use crate::env::{AsyncRuntime, Disk, Env, File, Instant, Now};
use crate::limits::BLOCK_LEN;
use crate::types::{DataId, ReplicaId};
use crate::wal::batch::{self, RECORDS_LEN_MAX};
use crate::wal::log::{Log, Place};
use crate::wal::record::{self, Record};
use crate::wal::segment::{self, Segments};
use crate::wal::stats::Counters;
use crate::wal::{Group, LogEntry, LogId, LogMark, WalError, WalOptions, recovery};

/// What happens when the records of a chunk are durable, or the log has failed.
pub(super) enum Done {
    /// Calls back with the result.
    Call(Box<dyn FnOnce(Result<(), WalError>)>),
    /// Releases places on disk: entries were dropped or moved by one of the records.
    Leave(Vec<Place>),
}

/// A payload that is at least this long is copied once, from the entry into the batch. A shorter one
/// costs less when it is copied to the other records first.
const LONG_PAYLOAD_LEN: usize = 4 << 10;

/// Pending records that become one batch.
#[derive(Default)]
struct Chunk {
    /// The records without the long payloads of entries.
    bytes: Vec<u8>,
    /// The long payloads. Each belongs before this offset in `bytes`.
    payloads: Vec<(usize, Bytes)>,
    payloads_len: usize,
    records: u64,
    /// The entries among the records, and where each begins and ends among their bytes.
    entries: Vec<(Group, LogId, usize, usize)>,
    done: Vec<Done>,
    /// Whether somebody waits for it. A chunk that nobody waits for is written with the next one.
    urgent: bool,
}

impl Chunk {
    /// Bytes of the records.
    fn len(&self) -> usize {
        self.bytes.len() + self.payloads_len
    }

    /// The bytes of the records, in pieces.
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut from = 0;
        let payloads = self.payloads.iter().flat_map(move |(at, payload)| {
            let before = self.bytes.get(from..*at).unwrap_or_default();
            from = *at;
            [before, &**payload]
        });
        let last = self.payloads.last().map_or(0, |(at, _)| *at);
        payloads.chain(self.bytes.get(last..))
    }

    fn append_entry(&mut self, group: Group, entry: &LogEntry) {
        let begin = self.len();
        match record::encode_entry_head(group, entry, &mut self.bytes) {
            Some(payload) if payload.len() >= LONG_PAYLOAD_LEN => {
                self.payloads_len += payload.len();
                let payload = payload.bytes().clone();
                self.payloads.push((self.bytes.len(), payload));
            }
            Some(payload) => self.bytes.extend_from_slice(payload),
            None => {}
        }
        self.entries.push((group, entry.id, begin, self.len()));
    }
}

/// Where the next batch will be written.
pub(super) struct Head<F> {
    pub(super) generation: u64,
    pub(super) file: Rc<F>,
    /// The secret of the segment's batches.
    pub(super) secret: u64,
    pub(super) offset: u64,
    pub(super) number: u64,
}

type FileOf<E> = <<E as Env>::Disk as Disk>::File;

/// Called once when the log has failed.
type OnFailure = Box<dyn Fn(WalError)>;

/// The state that all handles of the log, the writer and the keeper share.
pub struct Core<E: Env> {
    pub(super) disk: E::Disk,
    pub(super) options: WalOptions,
    pending: RefCell<VecDeque<Chunk>>,
    pub(super) pending_bytes: Cell<usize>,
    pub(super) logs: RefCell<BTreeMap<Group, Rc<RefCell<Log>>>>,
    pub(super) removed: RefCell<BTreeSet<Group>>,
    pub(super) data_ids: Cell<DataId>,
    pub(super) highest_replica: Cell<ReplicaId>,
    pub(super) mark: Cell<Option<LogMark>>,
    pub(super) segments: RefCell<Segments<FileOf<E>>>,
    pub(super) head: RefCell<Head<FileOf<E>>>,
    /// Whether the segment that is written to has a whole, durable checkpoint. Not known of a
    /// segment that was read back: a crash may have cut its checkpoint.
    pub(super) has_checkpoint: Cell<bool>,
    /// Bytes of entries appended since the cache was last trimmed.
    pub(super) untrimmed: Cell<usize>,
    pub(super) spares: RefCell<VecDeque<String>>,
    pub(super) spares_made: Cell<u64>,
    /// The live entries of segments up to this generation were written again further on.
    pub(super) carried: Cell<u64>,
    /// Bytes written so far, counted from the oldest segment at the start.
    pub(super) written: Cell<u64>,
    pub(super) dead: RefCell<Option<WalError>>,
    pub(super) on_failure: RefCell<Option<OnFailure>>,
    pub(super) closed: Cell<bool>,
    /// What the disk lacks while the log waits for it.
    pub(super) lack: Cell<Option<Lack>>,
    pub(super) writing_since: Cell<Option<Now<E>>>,
    pub(super) writer: RefCell<Option<Waker>>,
    pub(super) keeper: RefCell<Option<Waker>>,
    pub(super) keeper_called: Cell<bool>,
    pub(super) waiting_for_spare: RefCell<Option<Waker>>,
    pub(super) writer_ended: Cell<bool>,
    pub(super) waiting_for_end: RefCell<Option<Waker>>,
    pub(super) waiting_for_room: RefCell<Vec<Waker>>,
    pub(super) counters: RefCell<Counters>,
}

impl<E: Env> Core<E> {
    /// What a log that was read back goes on from.
    pub(super) fn new(disk: E::Disk, options: WalOptions, found: recovery::State<E>) -> Core<E> {
        let logs: BTreeMap<Group, Rc<RefCell<Log>>> = found
            .logs
            .into_iter()
            .map(|(group, log)| (group, Rc::new(RefCell::new(log))))
            .collect();
        let known = logs.keys().chain(&found.removed);
        let highest = known.map(|group| group.replica).max();
        Core {
            highest_replica: Cell::new(highest.unwrap_or_default()),
            disk,
            options,
            pending: RefCell::default(),
            pending_bytes: Cell::new(0),
            logs: RefCell::new(logs),
            removed: RefCell::new(found.removed),
            data_ids: Cell::new(found.data_ids),
            mark: Cell::new(found.mark),
            segments: RefCell::new(found.segments),
            head: RefCell::new(Head {
                generation: found.generation,
                file: found.file,
                secret: found.secret,
                offset: found.offset,
                number: found.number,
            }),
            has_checkpoint: Cell::new(false),
            untrimmed: Cell::new(0),
            spares: RefCell::new(found.spares),
            spares_made: Cell::new(found.spares_made),
            carried: Cell::new(0),
            written: Cell::new(found.bytes),
            dead: RefCell::new(None),
            on_failure: RefCell::new(None),
            closed: Cell::new(false),
            lack: Cell::new(None),
            writing_since: Cell::new(None),
            writer: RefCell::new(None),
            keeper: RefCell::new(None),
            keeper_called: Cell::new(true),
            waiting_for_spare: RefCell::new(None),
            writer_ended: Cell::new(false),
            waiting_for_end: RefCell::new(None),
            waiting_for_room: RefCell::default(),
            counters: RefCell::default(),
        }
    }

    /// Adds a record of at most `len_max` bytes to the chunk that is gathering.
    fn add(&self, len_max: usize, encode: impl FnOnce(&mut Chunk)) {
        if self.closed.get() {
            return;
        }
        let mut pending = self.pending.borrow_mut();
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
            self.pending_bytes.set(self.pending_bytes.get() + added);
        }
    }

    /// Adds an entry. The caller then adds with [`Core::complete`] what happens when it is durable.
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
            let mut pending = self.pending.borrow_mut();
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
        if self.closed.get() {
            return Some(WalError::Closed);
        }
        self.dead.borrow().clone()
    }

    /// Makes the log fail for good, and reports that once.
    pub(super) fn die(&self, error: WalError) {
        *self.dead.borrow_mut() = Some(error.clone());
        let on_failure = self.on_failure.borrow_mut().take();
        if let Some(tell) = on_failure {
            tell(error);
        }
    }

    pub(super) fn wake_writer(&self) {
        let waker = self.writer.borrow_mut().take();
        waker.into_iter().for_each(Waker::wake);
    }

    pub(super) fn wake_keeper(&self) {
        self.keeper_called.set(true);
        let waker = self.keeper.borrow_mut().take();
        waker.into_iter().for_each(Waker::wake);
    }

    /// The writer's task: one batch after the other until the log is closed or has failed.
    pub(super) async fn run(self: Rc<Core<E>>) {
        while let Some(chunk) = self.next_chunk().await {
            let bytes = chunk.len();
            let done = match self.write_next(&chunk).await {
                Ok(()) => {
                    self.pending_bytes.set(self.pending_bytes.get() - bytes);
                    chunk.done
                }
                Err(error) => {
                    self.die(error);
                    // Nothing after a failed write can be durable: all that waits fails with it.
                    let rest = std::mem::take(&mut *self.pending.borrow_mut());
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
        self.writer_ended.set(true);
        self.wake_keeper();
        let waker = self.waiting_for_end.borrow_mut().take();
        waker.into_iter().for_each(Waker::wake);
    }

    fn finish(&self, done: Vec<Done>) {
        let result = self.dead.borrow().clone().map_or(Ok(()), Err);
        let mut left = false;
        for done in done {
            match done {
                Done::Call(call) => call(result.clone()),
                // The record that dropped these entries was not written: the older records still
                // count.
                Done::Leave(_) if result.is_err() => {}
                Done::Leave(places) => {
                    left |= !places.is_empty();
                    let mut segments = self.segments.borrow_mut();
                    places
                        .iter()
                        .for_each(|place| segments.release(place.generation, place.len));
                }
            }
        }
        if left {
            self.wake_keeper();
        }
    }

    async fn next_chunk(&self) -> Option<Chunk> {
        std::future::poll_fn(|cx| {
            let mut pending = self.pending.borrow_mut();
            // A chunk that nobody waits for is written when the next chunk follows it, when
            // something urgent is added to it, or when the log is closed.
            let closed = self.closed.get();
            let due = pending.len() > 1 || pending.front().is_some_and(|c| c.urgent || closed);
            if self.dead.borrow().is_some() || (closed && !due) {
                return Poll::Ready(None);
            }
            if due {
                return Poll::Ready(pending.pop_front());
            }
            *self.writer.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
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
            self.wake_keeper();
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
        let began = Now::<E>::now();
        self.writing_since.set(Some(began));
        // A write that failed or was cut short goes to the same place again.
        let result = self.patiently(write).await;
        self.writing_since.set(None);
        result?;
        {
            let mut head = self.head.borrow_mut();
            head.offset += len as u64;
            head.number += 1;
        }
        self.written.set(self.written.get() + len as u64);
        let micros = began.elapsed().as_micros() as u64;
        self.counters.borrow_mut().count(micros, chunk.records, len);
        let first = offset + batch::HEADER_LEN as u64;
        for (group, id, begin, end) in &chunk.entries {
            let place = Place {
                generation,
                offset: first + *begin as u64,
                len: end - begin,
            };
            self.placed(*group, *id, place);
        }
        Ok(())
    }

    fn placed(&self, group: Group, id: LogId, place: Place) {
        let log = self.logs.borrow().get(&group).cloned();
        let Some(log) = log else { return };
        let (left, held) = log.borrow_mut().placed(id, place);
        let mut segments = self.segments.borrow_mut();
        if held {
            segments.hold(place.generation, place.len);
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
