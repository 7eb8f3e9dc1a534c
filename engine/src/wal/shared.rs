//! The state that the handles of the log, its writer and its segment manager share. All on the shard's thread.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::task::Waker;

use bytes::Bytes;

use crate::boot_time::BootTime;
use crate::disk_fault::Lack;
use crate::env::{Disk, Env};
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
    /// Whether somebody waits for it. A chunk that nobody waits for is written with the next one.
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

/// The tasks of the log, and those that wait for it.
#[derive(Default)]
pub(super) struct Wakers {
    pub writer: RefCell<Option<Waker>>,
    pub segment_manager: RefCell<Option<Waker>>,
    /// Whether the segment manager has something to do.
    pub segment_manager_called: Cell<bool>,
    /// The writer, while it waits for a spare segment.
    pub for_spare: RefCell<Option<Waker>>,
    pub writer_ended: Cell<bool>,
    /// The task that waits for the writer's end.
    pub for_end: RefCell<Option<Waker>>,
    /// The tasks that wait until less is pending.
    pub for_room: RefCell<Vec<Waker>>,
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
    pub(super) wakers: Wakers,
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
            wakers: Wakers {
                segment_manager_called: Cell::new(true),
                ..Wakers::default()
            },
            counters: RefCell::default(),
        }
    }
}
