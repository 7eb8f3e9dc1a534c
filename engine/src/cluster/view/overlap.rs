//! Decides which range owns which keys while the reports of a split arrive one after another. No I/O here.
//!
//! Leaders report their ranges at different times, so the manager's knowledge of a range may be older than
//! that of its neighbours. If two ranges have keys in common, the one with the higher version is right,
//! because the other has been split meanwhile. The other's record is cut to the keys that the newer range
//! leaves it, until its own leader reports it. Conversely, a range that has become smaller keeps its old
//! bounds in the view until the range that took the rest is known. So each key is in exactly one range of the
//! view. Clients find a leader for every key, and a leader that no longer owns a key names the range that
//! does.
//!
//! There is one exception: a new range that is not reported for [`GAP_TIMEOUT`], because it has no leader.
//! Then no range of the view has its keys, and the view takes the bounds that its neighbours report.

use std::ops::Bound;
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::cluster::manager::Manager;
use crate::cluster::manager::bounds::{cut, has_keys_up_to, is_covered};
use crate::range::{Descriptor, Keyspace};
use crate::types::{KeyRange, RangeId};

/// How long the new bounds of a range wait for the report of the range that took the rest of its keys.
const GAP_TIMEOUT: Duration = Duration::from_secs(10);

impl Manager {
    /// Whether reports have told of other bounds of known ranges since this was asked last.
    pub fn take_new_bounds(&mut self) -> bool {
        std::mem::take(&mut self.bounds.have_changed)
    }

    /// The descriptor that the view has of a range which its leader has described as `new`: with other
    /// bounds if newer ranges have some of its keys, or if another range must be known first. `None`: no
    /// key is left to it, or it is new and another range must be known first.
    pub(in crate::cluster) fn with_bounds(
        &mut self,
        new: &Descriptor,
        now: BootTime,
    ) -> Option<Descriptor> {
        let known = self.ranges.get(&new.range);
        let before = known.map(|known| &known.record.descriptor);
        if before.is_some_and(|before| has_bounds_of(before, new)) {
            return Some(new.clone());
        }
        let mut settled = new.clone();
        for other in self.overlapping(new) {
            if other.epoch.version > new.epoch.version {
                settled.keys = cut(&settled.keys, &other.keys)?;
            }
        }
        if !self.leaves_gap(&settled) {
            self.bounds.postponed.remove(&new.range);
            return Some(settled);
        }
        let since = *self.bounds.postponed.entry(new.range).or_insert(now);
        if now >= since + GAP_TIMEOUT {
            return Some(settled);
        }
        let before = &self.ranges.get(&new.range)?.record.descriptor;
        settled.keys.clone_from(&before.keys);
        settled.epoch.version = before.epoch.version;
        Some(settled)
    }

    /// Makes room for the bounds that a range gets now: cuts the older ranges that have keys of it.
    pub(in crate::cluster) fn set_bounds(&mut self, new: &Descriptor) {
        let known = self.ranges.get(&new.range);
        let before = known.map(|known| known.record.descriptor.keys.clone());
        if before.as_ref() == Some(&new.keys) {
            return;
        }
        let older = self.overlapping(new);
        let older = older.filter(|other| other.epoch.version < new.epoch.version);
        let older: Vec<RangeId> = older.map(|other| other.range).collect();
        for range in older {
            self.cut_range(range, &new.keys);
        }
        if let Some(before) = before {
            self.bounds.have_changed = true;
            self.forget_start(new.range, &before.start);
        }
        self.bounds.gone.remove(&new.range);
        if new.keyspace == Keyspace::User {
            self.bounds
                .by_start
                .insert(new.keys.start.clone(), new.range);
        }
    }

    fn forget_start(&mut self, range: RangeId, start: &[u8]) {
        if self.bounds.by_start.get(start) == Some(&range) {
            self.bounds.by_start.remove(start);
        }
    }

    /// Cuts what the rows of the system range say of ranges with keys in common: a split was written
    /// down in part.
    pub(in crate::cluster) fn cut_all(&mut self) {
        let known = self.ranges.values();
        let all = known.map(|known| &known.record.descriptor);
        let mut all: Vec<&Descriptor> = all.filter(|d| d.keyspace == Keyspace::User).collect();
        all.sort_by(|one, other| one.keys.start.cmp(&other.keys.start));
        let mut cuts = Vec::new();
        for (at, one) in all.iter().enumerate() {
            let behind = all[at + 1..].iter();
            for other in behind.take_while(|other| has_keys_up_to(&one.keys, &other.keys.start)) {
                let (older, newer) = match one.epoch.version < other.epoch.version {
                    true => (one, other),
                    false => (other, one),
                };
                cuts.push((newer.epoch.version, older.range, newer.keys.clone()));
            }
        }
        cuts.sort_by_key(|(version, ..)| std::cmp::Reverse(*version));
        for (_, older, keys) in cuts {
            self.cut_range(older, &keys);
        }
        let left = self.ranges.values().map(|known| &known.record.descriptor);
        let left = left.filter(|descriptor| descriptor.keyspace == Keyspace::User);
        let by_start = left.map(|descriptor| (descriptor.keys.start.clone(), descriptor.range));
        self.bounds.by_start = by_start.collect();
    }

    /// Takes keys from a range. One that has none left is not shown any more.
    fn cut_range(&mut self, range: RangeId, keys: &KeyRange) {
        let Some(known) = self.ranges.get_mut(&range) else {
            return;
        };
        let before = known.record.descriptor.keys.clone();
        let left = cut(&before, keys);
        if left.as_ref() == Some(&before) {
            return;
        }
        if let Some(left) = &left {
            known.record.descriptor.keys.clone_from(left);
            known.saved = false;
        } else {
            self.ranges.remove(&range);
            self.bounds.gone.insert(range);
        }
        self.bounds.have_changed = true;
        self.shards.records += 1;
        self.watch(range);
        self.forget_start(range, &before.start);
        if let Some(left) = left {
            self.bounds.by_start.insert(left.start, range);
        }
    }

    /// The ranges of users' keys with keys of this interval.
    fn with_keys_of(&self, keys: &KeyRange) -> impl Iterator<Item = &Descriptor> {
        let (start, end) = keys.interval();
        let mut first = self
            .bounds
            .by_start
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(start)));
        let first = first.next_back();
        let behind = match end {
            // No range begins within such an interval.
            Some(end) if end <= start => None,
            end => Some((
                Bound::Excluded(start),
                end.map_or(Bound::Unbounded, Bound::Excluded),
            )),
        };
        let behind = behind.map(|bounds| self.bounds.by_start.range::<[u8], _>(bounds));
        let found = first.into_iter().chain(behind.into_iter().flatten());
        let found = found.filter_map(|(_, range)| self.ranges.get(range));
        let found = found.map(|known| &known.record.descriptor);
        found.filter(move |descriptor| descriptor.keys.overlaps(keys))
    }

    /// The other ranges that have keys of this one.
    fn overlapping(&self, of: &Descriptor) -> impl Iterator<Item = &Descriptor> {
        let is_users = of.keyspace == Keyspace::User;
        let found = is_users.then(|| self.with_keys_of(&of.keys));
        let range = of.range;
        let found = found.into_iter().flatten();
        found.filter(move |other| other.range != range)
    }

    /// Whether keys that are in a range of the view would be in none if the view had this one, and the
    /// older ones were cut.
    fn leaves_gap(&self, new: &Descriptor) -> bool {
        let own = self.ranges.get(&new.range);
        let own = own.map(|known| &known.record.descriptor.keys);
        let is_older = |other: &Descriptor| other.epoch.version < new.epoch.version;
        let older = self.overlapping(new).filter(|other| is_older(other));
        let mut before = own.into_iter().chain(older.map(|older| &older.keys));
        let has_gap = |keys: &KeyRange| {
            let others = self
                .with_keys_of(keys)
                .filter(|other| other.range != new.range);
            let others = others.filter_map(|other| match is_older(other) {
                true => cut(&other.keys, &new.keys),
                false => Some(other.keys.clone()),
            });
            let mut after: Vec<KeyRange> = others.collect();
            after.push(new.keys.clone());
            after.sort_by(|one, other| one.start.cmp(&other.start));
            !is_covered(keys, &after)
        };
        before.any(has_gap)
    }
}

fn has_bounds_of(one: &Descriptor, other: &Descriptor) -> bool {
    one.keys == other.keys && one.epoch.version == other.epoch.version
}
