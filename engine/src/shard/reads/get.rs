//! Reads of one key: where the lease is checked, and what a leader without a lease does.
//!
//! A leader with a lease reads alone, in one turn of the shard's thread. Without a lease it asks a
//! majority first whether it still leads. Scans are in [`super::scan`], several keys at once in
//! [`super::multi_get`].
//!
//! A read that needs a block of a table which is not in memory ends its turn. When the block is there,
//! the read begins anew and checks the lease again: the lease may have run out while the disk was read,
//! and another leader may have written the key. Between a check, or a confirmation, and the read that
//! relies on it nothing else runs on the thread. The row cache takes in a row in the same turn in which
//! it is read, so the cache never takes in a row that a later write has replaced.

use std::time::Duration;

use rangedb_limits::check_key;

use crate::env::{AsyncRuntime, Env};
use crate::error::{Error, Fate};
use crate::mutant::{self, Mutant};
use crate::range::replica::Replica;
use crate::request::{Read, Target, Wait};
use crate::shard::{RangeHandle, Shard};
use crate::types::Timestamp;

/// Pause before a read that was not confirmed is tried again.
/// By time: [`RaftGroup::read_barrier`](crate::raft::RaftGroup::read_barrier) has just waited for
/// the event, an answer, in vain.
const CONFIRM_RETRY_INTERVAL: Duration = Duration::from_millis(25);

impl<E: Env> Shard<E> {
    /// Reads the newest value of a key, linearizably, and passes it with its version to `look`.
    /// Synchronous; copies nothing. `look` must not call back into the shard. If the read must wait,
    /// [`Shard::wait`] waits, and [`Shard::get_after`] looks again.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a key that breaks the limits; [`Error::Moved`] and
    /// [`Error::NotLeader`] if this replica must not answer for the key; [`Error::Overloaded`] if too
    /// many reads wait for the disk; [`Error::Unreadable`] if a block of a table cannot be read.
    pub fn get<R>(
        &self,
        key: &[u8],
        target: Option<Target>,
        look: impl FnOnce(Option<(&[u8], Timestamp)>) -> R,
    ) -> Result<Read<R>, Error> {
        check_key(key)?;
        let (replica, has_lease) = self.with_running(key, |running| {
            self.check(&running.replica, key, target)?;
            Ok::<_, Error>((running.replica.clone(), running.raft.has_lease()))
        })??;
        if !has_lease {
            if mutant::is(Mutant::ColdReadUnconfirmed) {
                let found = self.look(&replica, key, Timestamp::MAX, |_| ())?;
                if let Read::Wait(block) = found {
                    return Ok(Read::Wait(block));
                }
            }
            return Ok(Read::Wait(Wait::Confirmation));
        }
        // Nothing else runs on this thread between the check of the lease and the read. The first
        // entry of the leader's term is applied, and so is everything that it has acknowledged.
        self.look_newest(&replica, key, look)
    }

    /// Brings what gets of these keys need soon into the processor's caches. It pays for several keys, each
    /// of which would wait for memory by itself. The first [`PREFETCH_MAX`](crate::lsm::PREFETCH_MAX) keys count.
    pub fn prefetch<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) {
        let data_id = |key| {
            let of = |running: &RangeHandle<E>| running.replica.data_id_of(key);
            self.inner.ranges.with(key, of)
        };
        let keys = keys.filter_map(|key| Some((data_id(key)?, key)));
        self.inner.store.prefetch(keys);
    }

    /// Reads like [`Shard::get`], right after [`Shard::wait`] for the same.
    ///
    /// # Errors
    /// See [`Shard::get`].
    pub fn get_after<R>(
        &self,
        waited: Wait,
        key: &[u8],
        target: Option<Target>,
        look: impl FnOnce(Option<(&[u8], Timestamp)>) -> R,
    ) -> Result<Read<R>, Error> {
        match waited {
            // It led a moment ago, and nothing else has run on this thread since.
            Wait::Confirmation => self.get_confirmed(key, target, look),
            Wait::Block(_) if mutant::is(Mutant::ColdReadUnconfirmed) => {
                self.get_confirmed(key, target, look)
            }
            // Its lease may have run out while the disk was read.
            Wait::Block(_) => self.get(key, target, look),
        }
    }

    /// Reads a key right after a majority has confirmed that this replica leads.
    fn get_confirmed<R>(
        &self,
        key: &[u8],
        target: Option<Target>,
        look: impl FnOnce(Option<(&[u8], Timestamp)>) -> R,
    ) -> Result<Read<R>, Error> {
        let replica = self.find(key)?;
        self.check(&replica, key, target)?;
        self.look_newest(&replica, key, look)
    }

    /// Passes the newest value of a key to `look`, and counts the read once it is done.
    fn look_newest<R>(
        &self,
        replica: &Replica<E>,
        key: &[u8],
        look: impl FnOnce(Option<(&[u8], Timestamp)>) -> R,
    ) -> Result<Read<R>, Error> {
        let began = replica.usage.begin();
        let mut bytes = key.len();
        let look = |found: Option<(&[u8], Timestamp)>| {
            bytes += found.map_or(0, |(value, _)| value.len());
            look(found)
        };
        let read = self.look(replica, key, Timestamp::MAX, look)?;
        if matches!(read, Read::Done(_)) {
            replica.usage.has_read(key, bytes, began);
        }
        Ok(read)
    }

    /// Passes the newest value of a key at or below `at` to `look`. If a block of a table is not in
    /// memory, it is being fetched from now on, and the read must wait for it.
    pub(in crate::shard) fn look<R>(
        &self,
        replica: &Replica<E>,
        key: &[u8],
        at: Timestamp,
        look: impl FnOnce(Option<(&[u8], Timestamp)>) -> R,
    ) -> Result<Read<R>, Error> {
        let data_id = replica.data_id_of(key);
        let read = self.inner.store.try_newest(data_id, key, at, |found| {
            look(found.and_then(|(version, value)| value.map(|value| (value, version))))
        });
        match read.map_err(|error| self.inner.unreadable(replica, error))? {
            Ok(seen) => Ok(Read::Done(seen)),
            Err(block) => {
                self.inner.store.fetch(replica.group.range, block)?;
                Ok(Read::Wait(Wait::Block(block)))
            }
        }
    }

    /// Waits for what a read of the key must wait for.
    ///
    /// # Errors
    /// [`Error::NotLeader`] if this replica does not lead, [`Error::NoQuorum`] if it reaches no
    /// majority for a while, [`Error::Unreadable`] if the block cannot be read, and the errors of
    /// [`Shard::get`].
    pub async fn wait(&self, wait: Wait, key: &[u8], target: Option<Target>) -> Result<(), Error> {
        match wait {
            Wait::Confirmation => self.confirm_at(key, target).await,
            Wait::Block(block) => {
                let fetched = self.inner.store.fetched(block).await;
                let Err(error) = fetched else { return Ok(()) };
                let replica = self.find(key)?;
                Err(self.inner.unreadable(&replica, error))
            }
        }
    }

    /// After this wait a read sees everything committed before the call, if it follows at once and its
    /// key is in the range of `key`; an empty `key` means the first range. A leader without a lease
    /// reads this way.
    pub(super) async fn confirm_at(&self, key: &[u8], target: Option<Target>) -> Result<(), Error> {
        loop {
            let (replica, raft) = self.find_running(key)?;
            self.check(&replica, key, target)?;
            if let Err(fatal) = raft.renew_lease().await {
                return Err(self.lost(fatal));
            }
            let confirmed =
                raft.has_lease() || raft.read_barrier().await.map_err(|e| self.lost(e))?;
            // The key may lie in another range by now, of which nothing is confirmed.
            if self.find(key)?.group != replica.group {
                continue;
            }
            if confirmed {
                return self.check(&replica, key, target);
            }
            if replica.leadership.lacks_quorum() {
                return Err(Error::NoQuorum(Fate::NotApplied));
            }
            E::Runtime::sleep(CONFIRM_RETRY_INTERVAL).await;
        }
    }
}
