//! The state that the handles of the log, its writer and its segment manager share. All on the shard's thread.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;

use crate::boot_time::BootTime;
use crate::disk_fault::Lack;
use crate::env::{Disk, Env};
use crate::notify::Notify;
use crate::types::{DataId, ReplicaId};
use crate::wal::log::{Log, RecordLocation};
use crate::wal::recent::RecentWrites;
use crate::wal::record;
use crate::wal::segment::Segments;
use crate::wal::stats::Counters;
use crate::wal::tombstones::Tombstones;
use crate::wal::{Group, LogEntry, LogId, LogMark, WalError, WalOptions, recovery};

/// What happens when the records of a chunk are durable, or the log has failed.
pub(super) enum Done {
    /// Calls back with the result.
    Call(Box<dyn FnOnce(Result<(), WalError>)>),
    /// Releases places on disk: entries were dropped or moved by one of the records.
    Leave(Vec<RecordLocation>),
}

/// Pending records that become one batch.
#[derive(Default)]
pub(super) struct Chunk {
    /// The records without the payloads of entries.
    pub bytes: Vec<u8>,
    /// The payloads, which are copied once, into the batch. Each belongs before this offset in `bytes`.
    payloads: Vec<(usize, Bytes)>,
    payloads_len: usize,
    pub records: u64,
    /// The entries among the records, and where each begins and ends among their bytes.
    pub entries: Vec<(Group, LogId, usize, usize)>,
    pub done: Vec<Done>,
    /// Whether a task waits for it. A chunk that no task waits for is written with the next one.
    pub urgent: bool,
}

impl Chunk {
    /// Bytes of the records.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.payloads_len
    }

    /// The bytes of the records, in pieces.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut from = 0;
        let payloads = self.payloads.iter().flat_map(move |(at, payload)| {
            let before = self.bytes.get(from..*at).unwrap_or_default();
            from = *at;
            [before, &**payload]
        });
        let last = self.payloads.last().map_or(0, |(at, _)| *at);
        payloads.chain(self.bytes.get(last..))
    }

    /// Adds the record of an entry.
    pub fn append_entry(&mut self, group: Group, entry: &LogEntry) {
        let begin = self.len();
        if let Some(payload) = record::encode_entry_head(group, entry, &mut self.bytes) {
            self.payloads_len += payload.len();
            let payload = payload.bytes().clone();
            self.payloads.push((self.bytes.len(), payload));
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

pub(super) type FileOf<E> = <<E as Env>::Disk as Disk>::File;

/// Called once when the log has failed.
type OnFailure = Box<dyn Fn(WalError)>;

/// What is appended and not yet being written.
#[derive(Default)]
pub(super) struct Pending {
    pub chunks: RefCell<VecDeque<Chunk>>,
    /// The bytes of all chunks, and of the one that is being written.
    pub bytes: Cell<usize>,
}

/// What the log holds, besides the entries on disk.
pub(super) struct Contents {
    pub logs: RefCell<BTreeMap<Group, Rc<RefCell<Log>>>>,
    pub removed: RefCell<Tombstones>,
    pub data_ids: Cell<DataId>,
    pub highest_replica: Cell<ReplicaId>,
    pub mark: Cell<Option<LogMark>>,
}

/// The segments that are made and not yet used.
pub(super) struct Spares {
    pub names: RefCell<VecDeque<String>>,
    /// How many were made, for the name of the next.
    pub made: Cell<u64>,
}

/// Whether the log goes on.
pub(super) struct Health {
    pub dead: RefCell<Option<WalError>>,
    pub on_failure: RefCell<Option<OnFailure>>,
    pub closed: Cell<bool>,
    /// What the disk lacks while the log waits for it.
    pub lack: Cell<Option<Lack>>,
    pub writing_since: Cell<Option<BootTime>>,
    /// How long the latest durable writes took.
    pub recent: RefCell<RecentWrites>,
}

/// The events that the tasks of the log, and those that use the log, wait for.
#[derive(Default)]
pub(super) struct Events {
    /// A chunk became urgent, or the log was closed: the writer looks.
    pub urgent: Notify,
    /// The segment manager was called.
    pub call: Notify,
    /// Whether the segment manager was called since its last step began.
    pub is_called: Cell<bool>,
    /// There is a spare segment, or the log has failed.
    pub spare: Notify,
    /// Whether the writer waits for a spare segment.
    pub needs_spare: Cell<bool>,
    /// The writer has ended, or the disk lacks something.
    pub end: Notify,
    /// Whether the writer has ended.
    pub has_ended: Cell<bool>,
    /// The pending records are within their bound, or the log has failed.
    pub room: Notify,
}

/// The state that all handles of the log, the writer and the segment manager share.
pub struct SharedWal<E: Env> {
    pub(super) disk: E::Disk,
    pub(super) options: WalOptions,
    pub(super) pending: Pending,
    pub(super) contents: Contents,
    pub(super) segments: RefCell<Segments<FileOf<E>>>,
    pub(super) head: RefCell<Head<FileOf<E>>>,
    /// Whether the segment that is written to has a whole, durable checkpoint. Not known of a
    /// segment that was read back: a crash may have cut its checkpoint.
    pub(super) has_checkpoint: Cell<bool>,
    /// Bytes of entries appended since the cache was last trimmed.
    pub(super) untrimmed: Cell<usize>,
    pub(super) spares: Spares,
    /// The live entries of segments up to this generation were written again further on.
    pub(super) carried: Cell<u64>,
    /// Bytes written so far, counted from the oldest segment at the start.
    pub(super) written: Cell<u64>,
    pub(super) health: Health,
    pub(super) events: Events,
    pub(super) counters: RefCell<Counters>,
}

impl<E: Env> SharedWal<E> {
    /// What a log that was read back goes on from.
    pub(super) fn new(
        disk: E::Disk,
        options: WalOptions,
        found: recovery::RecoveredState<E>,
    ) -> SharedWal<E> {
        let logs: BTreeMap<Group, Rc<RefCell<Log>>> = found
            .logs
            .into_iter()
            .map(|(group, log)| (group, Rc::new(RefCell::new(log))))
            .collect();
        let removed = found.removed.groups();
        let known = logs.keys().copied().chain(removed);
        let highest = known.map(|group| group.replica).max();
        SharedWal {
            disk,
            options,
            pending: Pending::default(),
            contents: Contents {
                logs: RefCell::new(logs),
                removed: RefCell::new(found.removed),
                data_ids: Cell::new(found.data_ids),
                highest_replica: Cell::new(highest.unwrap_or_default()),
                mark: Cell::new(found.mark),
            },
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
            spares: Spares {
                names: RefCell::new(found.spares),
                made: Cell::new(found.spares_made),
            },
            carried: Cell::new(0),
            written: Cell::new(found.bytes),
            health: Health {
                dead: RefCell::new(None),
                on_failure: RefCell::new(None),
                closed: Cell::new(false),
                lack: Cell::new(None),
                writing_since: Cell::new(None),
                recent: RefCell::default(),
            },
            events: Events {
                is_called: Cell::new(true),
                ..Events::default()
            },
            counters: RefCell::default(),
        }
    }
}
