//! Reads of several keys at once: those of one range at one moment.
//!
//! A [`Moment`] of a range is the timestamp of the last entry that the leader had applied when its lease
//! was checked, or right after a majority had confirmed that it leads. Everything that was acknowledged by
//! then is at or below it, and what is applied later gets a higher timestamp. So the keys of a range can be
//! read at its moment in as many turns of the shard's thread as it takes, and with waits for the disk
//! between them: what they had at that moment never changes. That holds even if another replica becomes the
//! leader meanwhile, so the lease is checked once for a range and not again.
//!
//! A turn lasts one [`TimeSlice`]. The first one, [`Shard::multi_get`], reads from all ranges; most
//! multi-gets need no other. The keys that it leaves unread are read by [`Shard::multi_get_at`]. Cutting
//! between ranges alone would not do: all keys of a request may lie in one range. Reading the keys of a
//! range anew after each wait would not do either, since a block that was there may be gone again.
//!
//! A moment ends when its versions may be collected, when the replica is removed or installs a snapshot,
//! and when a key leaves the range. Then the remaining keys get an error upon which the client asks for
//! them again.

use std::cell::RefCell;
use std::rc::Rc;

use rangedb_limits::check_key;
use rustc_hash::FxHashMap;

use crate::env::{Env, TimeSlice, yield_now};
use crate::error::Error;
use crate::lsm::PREFETCH_MAX;
use crate::mutant::{self, Mutant};
use crate::range::replica::Replica;
use crate::request::Read;
use crate::shard::{RangeHandle, Shard};
use crate::types::{Blob, DataId, RangeId, Timestamp};
use crate::wal::Group;

/// When a client asks again for the keys whose moment has ended.
const RETRY_AFTER_MS: u32 = 1;

/// A moment at which the keys of a range are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Moment {
    group: Group,
    /// The first data id of the replica: another one after a snapshot.
    data_id: DataId,
    at: Timestamp,
}

impl Moment {
    /// The moment of a range now, which the caller may read.
    fn of<E: Env>(running: &RangeHandle<E>) -> Moment {
        let replica = &running.replica;
        Moment {
            group: replica.group,
            data_id: replica.data_id(),
            at: replica.with_state(|state| state.last_ts),
        }
    }

    /// Refuses a key of a range that can no longer be read at this moment.
    fn check<E: Env>(&self, running: &RangeHandle<E>) -> Result<(), Error> {
        let replica = &running.replica;
        replica.check(None)?;
        if (replica.group, replica.data_id()) != (self.group, self.data_id) {
            return Err(Error::Moved(Vec::new()));
        }
        if self.at <= replica.with_state(|state| state.gc_threshold) {
            let reason = "the multi-get took longer than old versions are kept";
            return Err(Error::overloaded(reason, RETRY_AFTER_MS));
        }
        Ok(())
    }
}

/// What the first turn gives for one key.
#[derive(Debug)]
pub enum KeyTurn<'a> {
    /// The newest value and its version, if the key has a value.
    Found(Option<(&'a [u8], Timestamp)>),
    /// A majority must confirm first that this replica leads the key's range, which this is.
    Unconfirmed(RangeId),
    /// The key is left to a later turn, which reads it at this moment.
    Left(Moment),
    /// The key cannot be read here.
    Refused(&'a Error),
}

/// What one key has at a moment.
pub type KeyFound<'a> = Result<Option<(&'a [u8], Timestamp)>, &'a Error>;

/// The moment at which the keys of a range are read; `None`: leadership must be confirmed first.
type Verdict = Result<Option<Moment>, Error>;

impl<E: Env> Shard<E> {
    /// Reads the newest values of keys, linearizably, for one turn, and passes what it finds to `take`,
    /// key by key. Synchronous. What is left is read by [`Shard::multi_get_at`]; for a range of which
    /// leadership must be confirmed, [`Shard::wait`] and [`Shard::moment_confirmed`] come before.
    /// `take` must not call back into the shard.
    pub fn multi_get<'k>(&self, keys: &[&'k [u8]], mut take: impl FnMut(&'k [u8], KeyTurn<'_>)) {
        let mut verdicts = FxHashMap::default();
        let mut slice = TimeSlice::<E>::begin();
        let mut is_over = false;
        for (number, key) in keys.iter().enumerate() {
            if number.is_multiple_of(PREFETCH_MAX) && !is_over {
                self.prefetch(keys.iter().skip(number).copied());
            }
            match self.range_to_read(key, &mut verdicts) {
                Ok((replica, None)) => take(key, KeyTurn::Unconfirmed(replica.group.range)),
                Ok((_, Some(moment))) if is_over => take(key, KeyTurn::Left(moment)),
                Ok((replica, Some(moment))) => {
                    let began = replica.usage.begin();
                    let mut bytes = key.len();
                    let look = |found: Option<(&[u8], Timestamp)>| {
                        bytes += found.map_or(0, |(value, _)| value.len());
                        take(key, KeyTurn::Found(found));
                    };
                    match self.look(&replica, key, moment.at, look) {
                        Ok(Read::Done(())) => replica.usage.has_read(key, bytes, began),
                        Ok(Read::Wait(_)) => take(key, KeyTurn::Left(moment)),
                        Err(error) => take(key, KeyTurn::Refused(&error)),
                    }
                    is_over = slice.is_over();
                }
                Err(error) => take(key, KeyTurn::Refused(&error)),
            }
        }
    }

    /// The moment at which keys of the range that holds `key` are read, right after [`Shard::wait`]
    /// has waited for the confirmation that this replica leads.
    ///
    /// # Errors
    /// See [`Shard::get`].
    pub fn moment_confirmed(&self, key: &[u8]) -> Result<Moment, Error> {
        // It led a moment ago, and nothing else has run on this thread since.
        self.with_running(key, |running| {
            running.replica.check(None)?;
            Ok(Moment::of(running))
        })?
    }

    /// Reads keys of one range at a moment, in turns, and passes what it finds to `take`, key by key.
    /// `take` must not call back into the shard. The caller begins a new slice whenever it polls this,
    /// so that several ranges that are read at the same time share the slice of a turn.
    pub(crate) async fn multi_get_at(
        &self,
        moment: &Moment,
        keys: &[Blob],
        slice: &RefCell<TimeSlice<E>>,
        mut take: impl FnMut(KeyFound<'_>),
    ) {
        let mut has_fetched_ahead = false;
        for (place, key) in keys.iter().enumerate() {
            loop {
                let read = self.get_at(moment, key, |found| take(Ok(found)));
                let waited = match read {
                    Ok(Read::Done(())) => break,
                    Ok(Read::Wait(wait)) => {
                        if !std::mem::replace(&mut has_fetched_ahead, true) {
                            let rest = keys.get(place + 1..).unwrap_or_default();
                            self.fetch_ahead(moment, rest, slice).await;
                        }
                        self.wait(wait, key, None).await
                    }
                    Err(error) => Err(error),
                };
                if let Err(error) = waited {
                    take(Err(&error));
                    break;
                }
            }
            while slice.borrow_mut().is_over() {
                yield_now().await;
            }
        }
    }

    /// Has all blocks fetched that keys need which are to be read at a moment, so that the disk reads
    /// them at the same time.
    async fn fetch_ahead(&self, moment: &Moment, keys: &[Blob], slice: &RefCell<TimeSlice<E>>) {
        for key in keys {
            // What is wrong with a key is told when it is read.
            if self.get_at(moment, key, |_| ()).is_err() {
                return;
            }
            while slice.borrow_mut().is_over() {
                yield_now().await;
            }
        }
    }

    /// Reads a key at a moment, if that has not ended, and passes its value to `look`. Synchronous.
    fn get_at<R>(
        &self,
        moment: &Moment,
        key: &[u8],
        look: impl FnOnce(Option<(&[u8], Timestamp)>) -> R,
    ) -> Result<Read<R>, Error> {
        let replica = self.with_running(key, |running| {
            moment.check(running)?;
            Ok::<_, Error>(running.replica.clone())
        })??;
        let at = match mutant::is(Mutant::MultiGetAtTwoMoments) {
            true => Timestamp::MAX,
            false => moment.at,
        };
        let began = replica.usage.begin();
        let mut bytes = key.len();
        let look = |found: Option<(&[u8], Timestamp)>| {
            bytes += found.map_or(0, |(value, _)| value.len());
            look(found)
        };
        let read = self.look(&replica, key, at, look)?;
        if matches!(read, Read::Done(_)) {
            replica.usage.has_read(key, bytes, began);
        }
        Ok(read)
    }

    /// The replica of a key's range, and the range's moment, which is the same for all its keys.
    fn range_to_read(
        &self,
        key: &[u8],
        verdicts: &mut FxHashMap<RangeId, Verdict>,
    ) -> Result<(Rc<Replica<E>>, Option<Moment>), Error> {
        check_key(key)?;
        let replica = self.find(key)?;
        let verdict = verdicts.entry(replica.group.range).or_insert_with(|| {
            self.with_running(key, |running| {
                running.replica.check(None)?;
                Ok(running.raft.has_lease().then(|| Moment::of(running)))
            })?
        });
        Ok((replica, verdict.clone()?))
    }
}
