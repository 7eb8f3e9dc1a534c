//! A digest of all that a replica holds: replicas that have applied the same entries must have the
//! same one.
//!
//! The leader asks for a digest by a command in the log, so every replica makes it of the same
//! state: the one right after that command's entry. The rows are read later, off the shard's
//! thread, while more entries are applied. Versions newer than the entry are left out, and until
//! the rows are read no version is collected that could not have been collected then
//! ([`Digesting::threshold`]).
//!
//! Replicas collect old versions at different times, so the same state lies in their tables in
//! different forms. A digest counts only what no collection may touch: all versions above the
//! threshold at that entry, and of those at or below it the newest of each key. A tombstone among
//! these counts as nothing, since tables drop it when nothing older is left.
//!
//! Of the state, the descriptor, the membership, the last entry and the ceiling count. The session
//! table does not: it may be large, and clients that were forgotten just before a restart come back
//! in it.
//!
//! A replica that has restarted or installed a snapshot since the entry gives no digest: its tables
//! may hold more than the entry knew. Pure.

use xxhash_rust::xxh3::Xxh3;

use crate::error::Fatal;
use crate::lsm::{Bounds, LsmError, Part, TableStore, keys};
use crate::range::state::RangeState;
use crate::types::Timestamp;

/// The digest of what a replica held.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct Digest {
    /// The threshold of collection as this replica knew it. Digests with different thresholds
    /// cannot be compared: a replica that has just installed a snapshot may know a later one.
    pub threshold: Timestamp,
    /// The digest of the rows.
    pub rows: u128,
    /// The digest of the state, without rows and session table.
    pub state: u128,
}

/// A digest that is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digesting {
    /// The number under which the leader asked for it.
    pub number: u64,
    /// The timestamp of the entry that asked for it.
    pub at: Timestamp,
    /// Versions at or below this may be gone already. No others may go until the digest is made.
    pub threshold: Timestamp,
    /// The digest of the state.
    state: u128,
    /// Whether the rows are being read.
    pub is_read: bool,
    /// The result; `None` while the rows are not all read.
    pub made: Option<Digest>,
}

impl Digesting {
    /// Begins a digest of a replica that has just reached `state`.
    ///
    /// # Errors
    /// The state cannot be encoded.
    pub fn of(number: u64, state: &RangeState) -> Result<Digesting, Fatal> {
        let failed = |e: rkyv::rancor::Error| {
            Fatal::Inconsistent(format!("state of range {}: {e}", state.range()))
        };
        let mut hash = Xxh3::new();
        hash.update(&state.descriptor.encode().map_err(failed)?);
        for id in [state.applied, state.membership.log_id] {
            let id = id.map_or([u64::MAX; 3], |id| [id.term, id.leader.0, id.index]);
            id.iter().for_each(|part| hash.update(&part.to_le_bytes()));
        }
        hash.update(&state.membership.body);
        hash.update(&state.ceiling.0.to_le_bytes());
        Ok(Digesting {
            number,
            at: state.last_ts,
            threshold: state.gc_threshold,
            state: hash.digest128(),
            is_read: false,
            made: None,
        })
    }

    /// The digest, after all rows were read.
    pub fn end(&self, rows: &Rows) -> Digest {
        Digest {
            threshold: self.threshold,
            rows: rows.value(),
            state: self.state,
        }
    }
}

/// The digest of the rows read so far.
pub struct Rows {
    at: Timestamp,
    threshold: Timestamp,
    hash: Box<Xxh3>,
    key: Vec<u8>,
    /// The last version of `key` that was taken.
    last: Timestamp,
    /// Whether the newest version of `key` at or below the threshold was taken.
    is_covered: bool,
}

impl Rows {
    /// A digest of no rows yet, as of `at`, with this threshold of collection.
    pub fn new(at: Timestamp, threshold: Timestamp) -> Rows {
        Rows {
            at,
            threshold,
            hash: Box::new(Xxh3::new()),
            key: Vec::new(),
            last: Timestamp::MAX,
            is_covered: false,
        }
    }

    /// Takes a version. Keys come in order, the versions of a key newest first.
    pub fn take(&mut self, key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        if self.key != key {
            self.key.clear();
            self.key.extend_from_slice(key);
            self.last = Timestamp::MAX;
            self.is_covered = false;
        }
        // A version that lies in two tables counts once.
        if version >= self.last {
            return;
        }
        self.last = version;
        if version <= self.threshold {
            let is_newest = !std::mem::replace(&mut self.is_covered, true);
            if !is_newest || value.is_none() {
                return;
            }
        }
        let hash = &mut self.hash;
        hash.update(&(key.len() as u64).to_le_bytes());
        hash.update(key);
        hash.update(&version.0.to_le_bytes());
        let len = value.map_or(u64::MAX, |value| value.len() as u64);
        hash.update(&len.to_le_bytes());
        hash.update(value.unwrap_or_default());
    }

    /// The digest of all that was taken.
    pub fn value(&self) -> u128 {
        self.hash.digest128()
    }

    /// Reads whole keys of a part of the tree until it has read `len_max` bytes. Gives how many
    /// bytes it has read, and the key of the row before which it stopped, if it did.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn read<T: TableStore>(
        &mut self,
        part: Part<T>,
        bounds: Bounds<'_>,
        len_max: usize,
    ) -> Result<(usize, Option<Vec<u8>>), LsmError> {
        let mut len = 0;
        let mut before: Vec<u8> = Vec::new();
        let mut stopped = None;
        part.scan(bounds, self.at, |scan| {
            loop {
                let more = scan.next_version(|key, version, value| {
                    if len >= len_max && before != key {
                        stopped = Some(key.to_vec());
                        return false;
                    }
                    if before != key {
                        before.clear();
                        before.extend_from_slice(key);
                    }
                    len += key.len() + value.map_or(0, <[u8]>::len);
                    self.take(keys::user_part(key), version, value);
                    true
                })?;
                if more != Some(true) {
                    return Ok(());
                }
            }
        })?;
        Ok((len, stopped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Version<'a> = (&'a [u8], u64, Option<&'a [u8]>);

    fn digest(threshold: u64, versions: &[Version<'_>]) -> u128 {
        let mut rows = Rows::new(Timestamp(100), Timestamp(threshold));
        for (key, version, value) in versions {
            rows.take(key, Timestamp(*version), *value);
        }
        rows.value()
    }

    #[test]
    fn what_collection_may_drop_does_not_count() {
        let whole: &[Version<'_>] = &[
            (b"a", 90, Some(b"new")),
            (b"a", 40, Some(b"old")),
            (b"a", 30, Some(b"older")),
            (b"b", 45, None),
            (b"b", 20, Some(b"gone")),
            (b"c", 80, None),
            (b"c", 50, Some(b"v")),
            (b"c", 10, None),
        ];
        let collected: &[Version<'_>] = &[
            (b"a", 90, Some(b"new")),
            (b"a", 40, Some(b"old")),
            (b"c", 80, None),
            (b"c", 50, Some(b"v")),
        ];
        assert_eq!(digest(50, whole), digest(50, collected));
        assert_ne!(digest(15, whole), digest(15, collected));
        // A version that is met twice counts once.
        let twice: Vec<_> = collected.iter().flat_map(|v| [*v, *v]).collect();
        assert_eq!(digest(50, collected), digest(50, &twice));
    }

    #[test]
    fn any_difference_that_a_read_could_see_counts() {
        let whole: &[Version<'_>] = &[
            (b"a", 90, Some(b"new")),
            (b"a", 40, Some(b"old")),
            (b"c", 80, None),
        ];
        let others: [&[Version<'_>]; 8] = [
            &whole[1..],
            &whole[..2],
            &[whole[0], (b"a", 40, Some(b"olD")), whole[2]],
            &[whole[0], (b"a", 41, Some(b"old")), whole[2]],
            &[(b"a", 90, None), whole[1], whole[2]],
            &[whole[0], whole[1], (b"c", 80, Some(b""))],
            &[whole[0], whole[1], (b"d", 80, None)],
            &[whole[0], whole[1], whole[2], (b"d", 3, Some(b""))],
        ];
        for other in others {
            assert_ne!(digest(50, whole), digest(50, other), "{other:?}");
        }
        // Lengths count: the same bytes in other places are other rows.
        let (one, two): ([Version<'_>; 1], [Version<'_>; 1]) =
            ([(b"ab", 60, Some(b"c"))], [(b"a", 60, Some(b"bc"))]);
        assert_ne!(digest(50, &one), digest(50, &two));
    }
}
