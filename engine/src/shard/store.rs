//! The shard's tree as its ranges use it, and the rule by which memtables freeze.
//!
//! One memtable serves all ranges of the shard. Before it freezes, each range that has changed
//! writes its state row and what changed of its session table, so that what a flush makes durable
//! speaks of exactly one position in each range's log. A log entry is applied into one memtable
//! whole: [`Store::make_room`] freezes before an entry that does not fit, never within it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::env::{AsyncRuntime, Env};
use crate::error::Fatal;
use crate::limits::{REPLAY_LEN_FREEZE, REPLAY_LEN_MAX};
use crate::lsm::{Bounds, GcRules, Lsm, LsmError, LsmStats, MemtableId, Scan, keys};
use crate::range::replica::{Durable, Replica, SavedRow};
use crate::range::sessions::SessionRow;
use crate::types::{DataId, ReplicaId, Timestamp};
use crate::wal::{Position, Wal};

/// Whoever waits for room looks at least this often.
const LOOK_FOR_ROOM_EVERY: Duration = Duration::from_millis(20);

/// Told of what must end the process.
pub type OnFatal = Rc<dyn Fn(Fatal)>;

/// A frozen memtable that is not in tables yet.
struct Frozen {
    id: MemtableId,
    /// What its flush makes durable.
    covers: Vec<(ReplicaId, Durable)>,
    /// Where the log stood: all before it is in this memtable or an older one.
    log: Position,
}

/// The shard's tree.
pub struct Store<E: Env> {
    lsm: RefCell<Lsm<E::Tables>>,
    wal: Wal<E>,
    replicas: RefCell<Vec<Weak<Replica<E>>>>,
    frozen: RefCell<VecDeque<Frozen>>,
    /// Where the log stood when the newest installed memtable froze: a start replays from here.
    replay_from: Cell<Position>,
    waiting_for_room: RefCell<Vec<Waker>>,
    key: RefCell<Vec<u8>>,
    on_fatal: OnFatal,
}

impl<E: Env> Store<E> {
    /// The tree of a shard whose replicas are yet to be added.
    pub fn new(lsm: Lsm<E::Tables>, wal: Wal<E>, on_fatal: OnFatal) -> Store<E> {
        let replay_from = wal.position();
        let told = on_fatal.clone();
        wal.on_failure(move |error| told(error.into()));
        Store {
            lsm: RefCell::new(lsm),
            wal,
            replicas: RefCell::default(),
            frozen: RefCell::default(),
            replay_from: Cell::new(replay_from),
            waiting_for_room: RefCell::default(),
            key: RefCell::default(),
            on_fatal,
        }
    }

    /// Adds a replica, whose state is saved from now on.
    pub fn add(&self, replica: &Rc<Replica<E>>) {
        self.replicas.borrow_mut().push(Rc::downgrade(replica));
    }

    /// Ends the process through the shard's owner.
    pub fn fail(&self, fatal: Fatal) {
        (self.on_fatal)(fatal);
    }

    /// Hands the newest version of a user's key to `look`: its timestamp, and its value unless it
    /// is a delete mark.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn newest<R>(
        &self,
        data_id: DataId,
        key: &[u8],
        look: impl FnOnce(Option<(Timestamp, Option<&[u8]>)>) -> R,
    ) -> Result<R, LsmError> {
        let mut row_key = self.key.borrow_mut();
        keys::user_key(data_id, key, &mut row_key);
        let lsm = self.lsm.borrow();
        let found = lsm.get(&row_key, Timestamp::MAX)?;
        Ok(look(found.as_ref().map(|f| (f.version(), f.value()))))
    }

    /// Hands the newest value of a row that is not a user's to `look`.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn newest_row<R>(
        &self,
        row_key: &[u8],
        look: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<R, LsmError> {
        let lsm = self.lsm.borrow();
        let found = lsm.get(row_key, Timestamp::MAX)?;
        Ok(look(found.as_ref().and_then(|f| f.value())))
    }

    /// Has `call` called, from any thread, when the background has news for [`Store::poll`].
    pub fn on_install(&self, call: Arc<dyn Fn() + Send + Sync>) {
        self.lsm.borrow_mut().on_install(call);
    }

    /// Adds a version of a user's key; room was made before.
    pub fn insert(&self, data_id: DataId, key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        let mut row_key = self.key.borrow_mut();
        keys::user_key(data_id, key, &mut row_key);
        self.lsm.borrow_mut().insert(&row_key, version, value);
    }

    /// Adds a version of any row; room was made before.
    pub fn insert_row(&self, row_key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        self.lsm.borrow_mut().insert(row_key, version, value);
    }

    /// Rows of a range as of `at`, from `start` to before `end`, handed to `visit` until it says
    /// no. The tree is borrowed meanwhile: `visit` must not call back.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn scan<R>(
        &self,
        bounds: Bounds<'_>,
        at: Timestamp,
        visit: impl FnOnce(&mut Scan<'_, E::Tables>) -> Result<R, LsmError>,
    ) -> Result<R, LsmError> {
        let lsm = self.lsm.borrow();
        let mut scan = lsm.scan(bounds, at)?;
        visit(&mut scan)
    }

    /// Waits until the memtable can take an entry.
    ///
    /// # Errors
    /// A state row cannot be written, or the tree has failed.
    pub async fn make_room(&self, rows: usize, bytes: usize) -> Result<(), Fatal> {
        loop {
            let log_is_long = self.unfrozen_len() > REPLAY_LEN_FREEZE;
            let stopped = self.lsm.borrow().pressure().stopped;
            if self.lsm.borrow().has_room(rows, bytes) && (!log_is_long || stopped) {
                return Ok(());
            }
            if !stopped {
                self.freeze()?;
                continue;
            }
            // At a start the background does not run yet: whoever waits looks for himself, too.
            if !self.poll()? {
                let _ = E::Runtime::timeout(LOOK_FOR_ROOM_EVERY, self.news()).await;
            }
        }
    }

    /// Waits for the next install.
    async fn news(&self) {
        let mut registered = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut registered, true) {
                return Poll::Ready(());
            }
            self.waiting_for_room.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Freezes the memtable with the state of all ranges in it, and has it flushed.
    ///
    /// # Errors
    /// A state row cannot be encoded.
    pub fn freeze(&self) -> Result<MemtableId, Fatal> {
        let replicas: Vec<Rc<Replica<E>>> = self
            .replicas
            .borrow()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        let mut covers = Vec::new();
        let mut key = Vec::new();
        let mut failed = None;
        for replica in &replicas {
            let saved = replica.save(&mut |row| {
                if let Err(error) = self.put_saved(&mut key, row) {
                    failed.get_or_insert(error);
                }
            })?;
            covers.extend(saved.map(|durable| (replica.group.replica, durable)));
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let log = self.wal.position();
        let id = self.lsm.borrow_mut().freeze();
        self.frozen
            .borrow_mut()
            .push_back(Frozen { id, covers, log });
        Ok(id)
    }

    fn put_saved(&self, key: &mut Vec<u8>, row: SavedRow<'_>) -> Result<(), Fatal> {
        let mut lsm = self.lsm.borrow_mut();
        match row {
            SavedRow::State {
                replica,
                version,
                row,
            } => {
                keys::state_key(replica, key);
                lsm.insert(key, version, Some(row));
            }
            SavedRow::Session {
                replica,
                version,
                row: SessionRow::Client(id, marks),
                ..
            } => {
                keys::client_key(replica, *id, key);
                let row = marks.map(|marks| marks.encode());
                lsm.insert(key, version, row.as_deref());
            }
            SavedRow::Session {
                data_id,
                version,
                row,
                ..
            } => {
                let SessionRow::Pair {
                    first_key,
                    client,
                    sequence,
                    saved,
                } = row
                else {
                    return Ok(());
                };
                keys::pair_key(data_id, first_key, *client, *sequence, key);
                let row = saved.as_ref().map(|saved| saved.encode()).transpose();
                let row = row.map_err(|e| Fatal::Inconsistent(format!("a session pair: {e}")))?;
                lsm.insert(key, version, row.as_deref());
            }
        }
        Ok(())
    }

    /// Takes over what the background has done. Says whether there was news.
    ///
    /// # Errors
    /// The background has failed for good.
    pub fn poll(&self) -> Result<bool, Fatal> {
        let installed = self.lsm.borrow_mut().poll()?;
        let Some(installed) = installed else {
            return Ok(false);
        };
        loop {
            let mut frozen = self.frozen.borrow_mut();
            if frozen.front().is_none_or(|f| f.id > installed) {
                break;
            }
            let Some(done) = frozen.pop_front() else {
                break;
            };
            drop(frozen);
            self.replay_from.set(done.log);
            for (replica, durable) in done.covers {
                self.made_durable(replica, durable);
            }
        }
        self.wake_waiting();
        Ok(true)
    }

    /// Lets those who wait for room look again.
    pub fn wake_waiting(&self) {
        let waiting = std::mem::take(&mut *self.waiting_for_room.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    fn made_durable(&self, replica: ReplicaId, durable: Durable) {
        let replicas = self.replicas.borrow();
        let replica = replicas
            .iter()
            .filter_map(Weak::upgrade)
            .find(|r| r.group.replica == replica);
        if let Some(replica) = replica {
            replica.made_durable(durable);
        }
    }

    /// The longest entry but for one of a single write.
    pub fn entry_len_max(&self) -> usize {
        self.wal.entry_len_max()
    }

    /// Log bytes that a start would have to apply again.
    pub fn replay_len(&self) -> u64 {
        self.wal.bytes_since(self.replay_from.get())
    }

    /// Log bytes since the last freeze.
    fn unfrozen_len(&self) -> u64 {
        let from = self
            .frozen
            .borrow()
            .back()
            .map_or(self.replay_from.get(), |f| f.log);
        self.wal.bytes_since(from)
    }

    /// Freezes when the log since the last freeze has grown long.
    ///
    /// # Errors
    /// A state row cannot be encoded.
    pub fn freeze_if_log_is_long(&self) -> Result<(), Fatal> {
        if self.unfrozen_len() > REPLAY_LEN_FREEZE && !self.lsm.borrow().pressure().stopped {
            self.freeze()?;
        }
        Ok(())
    }

    /// How far the tree is behind its writers: 0 not at all, 1 as far as it may be.
    pub fn pressure(&self) -> f32 {
        let tree = self.lsm.borrow().pressure().level;
        // Beyond two freezes' worth of log the flusher is behind.
        let slack = (REPLAY_LEN_MAX - REPLAY_LEN_FREEZE) as f32;
        let log = self.replay_len().saturating_sub(REPLAY_LEN_FREEZE) as f32 / slack;
        tree.max((log * 2.0 - 1.0).clamp(0.0, 1.0))
    }

    /// Whether the log may be given more, of what others lead.
    pub fn log_has_room(&self) -> bool {
        self.wal.has_room()
    }

    /// Waits until it may.
    pub async fn room_in_log(&self) {
        self.wal.room().await;
    }

    /// Whether writes must be refused because the disk is full.
    pub fn disk_full(&self) -> bool {
        self.lsm.borrow().pressure().disk_full
    }

    /// Whether a memtable that was frozen is in tables.
    pub fn is_installed(&self, id: MemtableId) -> bool {
        self.frozen
            .borrow()
            .front()
            .is_none_or(|first| first.id > id)
    }

    /// Whether anything is in memtables only.
    pub fn is_flushed(&self) -> bool {
        self.frozen.borrow().is_empty()
    }

    /// Tells compactions which rows are live.
    pub fn set_gc(&self, rules: GcRules) {
        self.lsm.borrow_mut().set_gc(rules);
    }

    /// Has everything compacted, so that old versions go where nobody writes.
    pub fn collect_garbage(&self) {
        self.lsm.borrow_mut().collect_garbage();
    }

    /// Counters of the tree.
    pub fn stats(&self) -> LsmStats {
        self.lsm.borrow().stats()
    }
}
