//! Reads of several keys at once: those of one range at one moment.
//!
//! A multi-get is one turn of the shard's thread. What was acknowledged before a range's lease is
//! checked is applied, and nothing is applied in the middle of a turn: so what the turn reads of a
//! range is what the range held when its lease was checked.

use rangedb_limits::check_key;
use rustc_hash::FxHashMap;

use super::Shard;
use crate::env::Env;
use crate::error::Error;
use crate::mutant::{self, Mutant};
use crate::request::Wait;
use crate::types::{Blob, DataId, RangeId, Timestamp};

/// What a turn of the shard gives for one key.
#[derive(Debug)]
pub enum KeyTurn<'a> {
    /// The newest value and its version, if the key has a value.
    Found(Option<(&'a [u8], Timestamp)>),
    /// Reads of the key's range, which this is, must wait for something.
    Wait(RangeId, Wait),
    /// The key cannot be read here.
    Refused(&'a Error),
}

/// Whether a range may be read in this turn: the data id of its rows, or what its reads wait for.
type Verdict = Result<Result<DataId, Wait>, Error>;

impl<E: Env> Shard<E> {
    /// Reads the newest values of keys, linearizably, and passes what it finds to `take`, key by key.
    /// Synchronous. A key whose range must wait first is passed with its range: when
    /// [`Shard::wait`] has waited, [`Shard::multi_get_after`] reads the keys of that range. `take` must
    /// not call back into the shard.
    pub fn multi_get<'k>(&self, keys: &[&'k [u8]], mut take: impl FnMut(&'k [u8], KeyTurn<'_>)) {
        let mut verdicts = FxHashMap::default();
        for (place, key) in keys.iter().enumerate() {
            let is_late = mutant::is(Mutant::MultiGetAtTwoMoments) && place % 2 == 1;
            match self.range_to_read(key, &mut verdicts) {
                Ok((range, Ok(_))) if is_late => {
                    take(key, KeyTurn::Wait(range, Wait::Confirmation));
                }
                Ok((_, Ok(data_id))) => {
                    let looked = self.look(data_id, key, |found| take(key, KeyTurn::Found(found)));
                    if let Err(error) = looked {
                        take(key, KeyTurn::Refused(&error));
                    }
                }
                Ok((range, Err(wait))) => take(key, KeyTurn::Wait(range, wait)),
                Err(error) => take(key, KeyTurn::Refused(&error)),
            }
        }
    }

    /// Reads keys of one range right after [`Shard::wait`] for the first of them, and passes what it
    /// finds to `take`, key by key. Synchronous. `take` must not call back into the shard.
    ///
    /// # Errors
    /// See [`Shard::get`].
    pub fn multi_get_after(
        &self,
        waited: Wait,
        keys: &[Blob],
        mut take: impl FnMut(KeyTurn<'_>),
    ) -> Result<(), Error> {
        let Wait::Confirmation = waited;
        let Some(first) = keys.first() else {
            return Ok(());
        };
        // It led a moment ago, and nothing else has run on this thread since.
        let replica = self.find(first)?;
        replica.check(None)?;
        for key in keys {
            // The range may have become a smaller one meanwhile.
            if replica.with_state(|state| state.descriptor.keys.contains(key)) {
                self.look(replica.data_id(), key, |found| take(KeyTurn::Found(found)))?;
            } else {
                take(KeyTurn::Refused(&Error::Moved(None)));
            }
        }
        Ok(())
    }

    /// The range of a key, and whether it may be read now, which is decided once for all its keys.
    fn range_to_read(
        &self,
        key: &[u8],
        verdicts: &mut FxHashMap<RangeId, Verdict>,
    ) -> Result<(RangeId, Result<DataId, Wait>), Error> {
        check_key(key)?;
        let range = self.with_running(key, |running| running.replica.group.range)?;
        let verdict = verdicts.entry(range).or_insert_with(|| {
            self.with_running(key, |running| {
                running.replica.check(None)?;
                Ok(match running.raft.has_lease() {
                    true => Ok(running.replica.data_id()),
                    false => Err(Wait::Confirmation),
                })
            })?
        });
        Ok((range, verdict.clone()?))
    }
}
