//! The view that shards get, and what has changed in it since an older version. Pure.
//!
//! A shard's report names the version of its view. If this manager has published that version, the answer
//! contains the ranges that have changed since, and all nodes and settings, which are few. A shard that has
//! no view, or one of another manager, gets the whole view.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::message::{RangeView, View, ViewNews};
use crate::types::RangeId;

/// How many ranges that are no more are remembered. A shard whose view is older gets a whole one.
const GONE_MAX: usize = 1000;

impl View {
    /// Takes news; gives whether they were for this view. If not, it stays as it was, and the next report asks
    /// again.
    pub fn take(&mut self, news: ViewNews) -> bool {
        let ViewNews { since, view, gone } = news;
        let mut ranges = match since {
            None => Vec::new(),
            Some(since) if since == self.version => std::mem::take(&mut self.ranges),
            Some(_) => return false,
        };
        let gone: BTreeSet<RangeId> = gone.into_iter().collect();
        ranges.retain(|range| !gone.contains(&range.descriptor.range));
        for range in view.ranges {
            match find(&ranges, range.descriptor.range) {
                Ok(at) => ranges[at] = range,
                Err(at) => ranges.insert(at, range),
            }
        }
        *self = View { ranges, ..view };
        true
    }
}

/// Where a range is in a list that is sorted by id, or where it belongs.
fn find(ranges: &[RangeView], range: RangeId) -> Result<usize, usize> {
    ranges.binary_search_by_key(&range, |known| known.descriptor.range)
}

/// The view that shards get, and when each range of it last changed.
pub(in crate::cluster) struct Published {
    pub view: View,
    /// The version with which each range came to be as it is.
    changed: BTreeMap<RangeId, u64>,
    /// The version with which ranges were no more.
    gone: BTreeMap<RangeId, u64>,
    /// The oldest version from which on all changes are known.
    oldest: u64,
}

impl Published {
    /// The view of a manager of this term, which knows nothing yet. Its versions are higher than those of all
    /// managers before.
    pub fn new(term: u64) -> Published {
        let version = term << 32;
        Published {
            view: View {
                version,
                ..View::default()
            },
            changed: BTreeMap::new(),
            gone: BTreeMap::new(),
            oldest: version,
        }
    }

    /// Takes the next view, which gets the next version.
    pub fn publish(&mut self, mut view: View) {
        let version = self.view.version + 1;
        view.version = version;
        for range in &view.ranges {
            let id = range.descriptor.range;
            let before = find(&self.view.ranges, id).map(|at| &self.view.ranges[at]);
            if before != Ok(range) {
                self.changed.insert(id, version);
                self.gone.remove(&id);
            }
        }
        for range in &self.view.ranges {
            let id = range.descriptor.range;
            if find(&view.ranges, id).is_err() {
                self.changed.remove(&id);
                self.gone.insert(id, version);
            }
        }
        if self.gone.len() > GONE_MAX {
            self.gone.clear();
            self.oldest = version;
        }
        self.view = view;
    }

    /// What is new for a shard that has the view of version `known`; `None`: nothing.
    pub fn news(&self, known: u64) -> Option<ViewNews> {
        let now = self.view.version;
        if known == now {
            return None;
        }
        if !(self.oldest..now).contains(&known) {
            return Some(ViewNews {
                since: None,
                view: self.view.clone(),
                gone: Vec::new(),
            });
        }
        let is_new = |version: &u64| *version > known;
        let changed = |range: &&RangeView| {
            let version = self.changed.get(&range.descriptor.range);
            version.is_none_or(is_new)
        };
        let ranges = self.view.ranges.iter().filter(changed);
        let gone = self.gone.iter().filter(|(_, version)| is_new(version));
        Some(ViewNews {
            since: Some(known),
            gone: gone.map(|(range, _)| *range).collect(),
            view: View {
                version: now,
                leader: self.view.leader,
                system: self.view.system.clone(),
                nodes: self.view.nodes.clone(),
                ranges: ranges.cloned().collect(),
                settings: self.view.settings.clone(),
            },
        })
    }
}

#[cfg(test)]
#[path = "published_view_tests.rs"]
mod tests;
