//! The table by which a write is applied at most once.
//!
//! Part of a range's replicated state: changed only by applied commands, in log order, and decided
//! only by what it holds and by log time (`last_ts`), so that every replica agrees. A pair is
//! remembered with its outcome until its client says that it was answered (`lowest_unanswered`) or
//! [`SESSION_WINDOW_MS`] of log time have passed. What can no longer be told apart is refused.
//!
//! In the tree the pairs lie at the first key of their request, so that they move with the keys at
//! a split; a client's marks lie by range id. Rows are written when a memtable freezes, and before,
//! when there come to be many: [`Sessions::save`] yields what changed since the last time.
//!
//! The table is bounded by the bytes that it counts for, which are reckoned from what it holds alone:
//! replicas push the same clients out at the same entry. Nothing goes through all of it in one turn:
//! it is forgotten, saved, exported ([`super::session_export`]) and loaded a few clients at a time.

use std::collections::{BTreeSet, HashMap, VecDeque};

use rustc_hash::FxBuildHasher;
use slab::Slab;

use crate::limits::{
    SESSION_CLIENT_LEN_MAX, SESSION_PAIRS_OF_CLIENT_MAX, SESSION_WINDOW_MS, SESSIONS_LEN_MAX,
};
use crate::mutant::{self, Mutant};
pub use crate::range::session_export::SessionExport;
use crate::range::session_export::{ExportedClient, Exports};
pub use crate::range::session_row::{ClientMarks, SavedPair, SessionRow};
use crate::request::{Outcome, SessionPair};
use crate::types::{Blob, ClientId, Timestamp};

/// A client is forgotten this much later than its last write, in log time: clients count time by
/// their own clocks, which may run a little fast.
const CLIENT_WINDOW_MS: u64 = SESSION_WINDOW_MS + 60_000;

/// A client that says it first tried a write further ahead of the range's time than a day makes it up.
const TRIED_AHEAD_MAX_MS: u64 = 24 * 3_600_000;

/// Bytes that a client counts for, about what it takes in memory.
const CLIENT_LEN: usize = 256;
/// And a pair, besides its first key.
const PAIR_LEN: usize = 160;
/// Clients that one write has forgotten, at most: each write adds one, so more catch up.
const FORGOTTEN_AT_ONCE_MAX: usize = 16;

/// What the table says of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not applied yet.
    Fresh,
    /// Applied before, with this outcome.
    Seen(Outcome),
    /// It may have been applied and forgotten.
    Expired,
}

#[derive(Debug)]
struct Pair {
    sequence: u64,
    first_key: Blob,
    saved: SavedPair,
    in_tree: bool,
}

#[derive(Debug)]
struct Client {
    id: ClientId,
    marks: ClientMarks,
    /// By rising sequence.
    pairs: VecDeque<Pair>,
    /// Bytes that the pairs count for.
    len: usize,
    in_tree: bool,
    changed: bool,
}

/// The table of one range.
#[derive(Debug, Default)]
pub struct Sessions {
    /// Where in `clients` each is.
    places: HashMap<ClientId, usize, FxBuildHasher>,
    clients: Slab<Client>,
    /// Clients by their last write: the first to be forgotten stands first.
    by_last_seen: BTreeSet<(Timestamp, ClientId)>,
    /// A client that is not in the table and first tried a write at or before this may have been
    /// pushed out by others.
    horizon: Timestamp,
    /// Bytes that clients and pairs count for.
    len: usize,
    pairs: usize,
    /// Clients of which not all is in the tree, the longest waiting first. May name some that have
    /// gone, or are saved.
    changed: VecDeque<ClientId>,
    /// Rows in the tree whose pair or client is gone.
    to_delete: VecDeque<SessionRow>,
    /// Rows that a save would write now, at most.
    unsaved: usize,
    exports: Exports,
}

impl Sessions {
    /// A table as of a recovered state.
    pub fn new(horizon: Timestamp) -> Sessions {
        Sessions {
            horizon,
            ..Sessions::default()
        }
    }

    /// Up to when clients may have been pushed out.
    pub fn horizon(&self) -> Timestamp {
        self.horizon
    }

    /// Clients and pairs remembered.
    pub fn len(&self) -> (usize, usize) {
        (self.clients.len(), self.pairs)
    }

    /// Bytes that they count for.
    pub fn bytes(&self) -> usize {
        self.len
    }

    /// Rows that a save would write now, at most.
    pub fn unsaved(&self) -> usize {
        self.unsaved
    }

    fn client(&self, id: ClientId) -> Option<&Client> {
        self.clients.get(*self.places.get(&id)?)
    }

    /// Whether a pair may be applied when the log's time is `last`.
    pub fn check(&self, pair: &SessionPair, last: Timestamp) -> Verdict {
        let too_old = pair.first_tried.plus_ms(SESSION_WINDOW_MS) < last
            || pair.first_tried > last.plus_ms(TRIED_AHEAD_MAX_MS);
        let Some(client) = self.client(pair.client) else {
            let pushed_out = pair.first_tried <= self.horizon;
            return if too_old || pushed_out {
                Verdict::Expired
            } else {
                Verdict::Fresh
            };
        };
        if let Some(seen) = client.pair(pair.sequence) {
            return Verdict::Seen(seen.saved.outcome.clone());
        }
        if too_old || pair.sequence < client.marks.lowest_unanswered {
            return Verdict::Expired;
        }
        Verdict::Fresh
    }

    /// Remembers a pair that [`Sessions::check`] called fresh, decided at `decided`.
    pub fn record(
        &mut self,
        pair: &SessionPair,
        first_key: Blob,
        decided: Timestamp,
        outcome: Outcome,
    ) {
        self.forget_clients(decided);
        let place = self.place_of(pair.client);
        self.exports.keep(place, self.clients.get(place));
        let Some(client) = self.clients.get_mut(place) else {
            return;
        };
        // As long as a try could come that is not too old, its client is remembered.
        let seen = client.marks.last_seen.max(decided).max(pair.first_tried);
        self.by_last_seen
            .remove(&(client.marks.last_seen, pair.client));
        self.by_last_seen.insert((seen, pair.client));
        client.marks.last_seen = seen;
        client.marks.lowest_unanswered = client.marks.lowest_unanswered.max(pair.lowest_unanswered);
        let new = Pair {
            sequence: pair.sequence,
            first_key,
            saved: SavedPair { decided, outcome },
            in_tree: false,
        };
        self.len += new.len();
        client.len += new.len();
        let at = client.pairs.partition_point(|p| p.sequence < pair.sequence);
        client.pairs.insert(at, new);
        self.pairs += 1;
        self.unsaved += 1;
        if !client.changed {
            client.changed = true;
            self.changed.push_back(pair.client);
            self.unsaved += 1;
        }
        self.forget_pairs(place, decided);
        for _ in 0..FORGOTTEN_AT_ONCE_MAX {
            if self.len <= SESSIONS_LEN_MAX {
                break;
            }
            let Some((last_seen, oldest)) = self.by_last_seen.pop_first() else {
                break;
            };
            self.horizon = self.horizon.max(last_seen);
            self.remove(oldest);
        }
    }

    /// The place of a client, which is made if it is new.
    fn place_of(&mut self, id: ClientId) -> usize {
        if let Some(place) = self.places.get(&id) {
            return *place;
        }
        let marks = ClientMarks {
            lowest_unanswered: 0,
            last_seen: Timestamp::ZERO,
        };
        self.add_client(id, marks, false)
    }

    fn add_client(&mut self, id: ClientId, marks: ClientMarks, in_tree: bool) -> usize {
        let place = self.clients.vacant_key();
        // It was not there when an export began that has not come so far.
        self.exports.keep(place, None::<&Client>);
        self.clients.insert(Client {
            id,
            marks,
            pairs: VecDeque::new(),
            len: 0,
            in_tree,
            changed: false,
        });
        self.places.insert(id, place);
        self.len += CLIENT_LEN;
        place
    }

    /// Few at a time: after a long rest of the range many may be due.
    fn forget_clients(&mut self, now: Timestamp) {
        for _ in 0..FORGOTTEN_AT_ONCE_MAX {
            let Some((last_seen, client)) = self.by_last_seen.first().copied() else {
                break;
            };
            if last_seen.plus_ms(CLIENT_WINDOW_MS) >= now {
                break;
            }
            self.by_last_seen.pop_first();
            self.remove(client);
        }
    }

    fn remove(&mut self, id: ClientId) {
        let Some(place) = self.places.remove(&id) else {
            return;
        };
        self.exports.keep(place, self.clients.get(place));
        let Some(client) = self.clients.try_remove(place) else {
            return;
        };
        self.len -= CLIENT_LEN;
        self.unsaved -= usize::from(client.changed);
        for pair in client.pairs {
            self.left(id, pair);
        }
        if client.in_tree {
            self.delete(SessionRow::Client(id, None));
        }
    }

    /// A pair is not in the table any more.
    fn left(&mut self, client: ClientId, pair: Pair) {
        self.len -= pair.len();
        self.pairs -= 1;
        if !pair.in_tree {
            self.unsaved -= 1;
            return;
        }
        self.delete(SessionRow::Pair {
            first_key: pair.first_key,
            client,
            sequence: pair.sequence,
            saved: None,
        });
    }

    fn delete(&mut self, row: SessionRow) {
        self.to_delete.push_back(row);
        self.unsaved += 1;
    }

    /// Drops the pairs of a client that were answered, have grown too old, or are too many.
    fn forget_pairs(&mut self, place: usize, now: Timestamp) {
        loop {
            let Some(client) = self.clients.get_mut(place) else {
                return;
            };
            let Some(first) = client.pairs.front() else {
                return;
            };
            let answered = first.sequence < client.marks.lowest_unanswered;
            let too_old = first.saved.decided.plus_ms(CLIENT_WINDOW_MS) < now;
            let too_many = client.pairs.len() > SESSION_PAIRS_OF_CLIENT_MAX
                || client.len > SESSION_CLIENT_LEN_MAX;
            if !(answered || too_old || too_many) {
                return;
            }
            let Some(pair) = client.pairs.pop_front() else {
                return;
            };
            client.len -= pair.len();
            // A retry of what was pushed out must be refused, not applied again.
            client.marks.lowest_unanswered = client.marks.lowest_unanswered.max(pair.sequence + 1);
            let id = client.id;
            self.left(id, pair);
        }
    }

    /// Rows that changed and were not saved yet, those first that have waited longest: about
    /// `rows_max` of them, none when all is saved. The caller writes them into the memtable that the
    /// state's next row goes into, or an earlier one.
    pub fn save(&mut self, rows_max: usize) -> Vec<SessionRow> {
        let mut rows = Vec::new();
        while rows.len() < rows_max
            && let Some(row) = self.to_delete.pop_front()
        {
            self.unsaved -= 1;
            rows.extend(self.unless_back(row));
        }
        while rows.len() < rows_max
            && let Some(id) = self.changed.pop_front()
        {
            let place = self.places.get(&id).copied();
            let Some(client) = place.and_then(|place| self.clients.get_mut(place)) else {
                continue;
            };
            if client.changed {
                let is_saved = client.save(rows_max, &mut rows, &mut self.unsaved);
                if !is_saved {
                    self.changed.push_front(id);
                }
            }
        }
        rows
    }

    /// What is written for a row that is to be deleted. If it stands for something that is in the table
    /// again, that is written under the same version: one row, not two.
    fn unless_back(&mut self, row: SessionRow) -> Option<SessionRow> {
        let id = match &row {
            SessionRow::Client(id, _) => *id,
            SessionRow::Pair { client, .. } => *client,
        };
        let place = self.places.get(&id).copied();
        let Some(client) = place.and_then(|place| self.clients.get_mut(place)) else {
            return Some(row);
        };
        let SessionRow::Pair {
            first_key,
            sequence,
            ..
        } = &row
        else {
            // Its marks come later, and if it is forgotten before that the old ones must go.
            client.in_tree = true;
            return None;
        };
        let at = client.pairs.binary_search_by_key(sequence, |p| p.sequence);
        let pair = at.ok().and_then(|at| client.pairs.get_mut(at));
        let Some(pair) = pair.filter(|pair| pair.first_key == *first_key) else {
            return Some(row);
        };
        if std::mem::replace(&mut pair.in_tree, true) {
            return None;
        }
        self.unsaved -= 1;
        Some(pair.row(id))
    }

    /// All that is remembered, clients before their pairs.
    pub fn rows(&self) -> impl Iterator<Item = SessionRow> + '_ {
        self.clients.iter().flat_map(|(_, client)| client.rows())
    }

    /// The table as it is now, to be taken part by part while it goes on changing.
    pub fn export(&self) -> SessionExport {
        let places = self
            .clients
            .iter()
            .next_back()
            .map_or(0, |(last, _)| last + 1);
        self.exports.begin(places)
    }

    /// The next rows of an export, about `rows_max`; empty at its end, `None` if it is of another
    /// table.
    pub fn next_rows(&self, export: &SessionExport, rows_max: usize) -> Option<Vec<SessionRow>> {
        let known = self.exports.know(export);
        known.then(|| export.next_rows(rows_max, |place| self.clients.get(place)))
    }

    /// This table, of a snapshot, takes the place of another: what is in the tree of clients that it
    /// does not know goes. About `clients_max` of the other's clients from the place `from` on are
    /// looked at; gives where to go on.
    pub fn take_over(
        &mut self,
        other: &Sessions,
        from: usize,
        clients_max: usize,
    ) -> Option<usize> {
        if from == 0 {
            // Clients that it has forgotten, and not deleted yet.
            for row in &other.to_delete {
                if let SessionRow::Client(id, _) = row {
                    self.was_there(*id);
                }
            }
        }
        let places = other
            .clients
            .iter()
            .next_back()
            .map_or(0, |(last, _)| last + 1);
        let until = places.min(from + clients_max);
        for client in (from..until).filter_map(|place| other.clients.get(place)) {
            // Also one that is not in the tree yet: until the switch it may be saved.
            self.was_there(client.id);
        }
        (until < places).then_some(until)
    }

    /// The tree has, or may have, marks of a client from before a snapshot was loaded: they go, or are
    /// written over.
    pub fn was_there(&mut self, id: ClientId) {
        let place = self.places.get(&id).copied();
        match place.and_then(|place| self.clients.get_mut(place)) {
            Some(client) => client.in_tree = true,
            None => self.delete(SessionRow::Client(id, None)),
        }
    }

    /// Takes a row of the tree into the table, at recovery or from a snapshot. Clients come before
    /// their pairs.
    pub fn load(&mut self, row: SessionRow) {
        match row {
            SessionRow::Client(id, Some(marks)) => {
                self.by_last_seen.insert((marks.last_seen, id));
                self.add_client(id, marks, true);
            }
            SessionRow::Pair {
                first_key,
                client: id,
                sequence,
                saved: Some(saved),
            } => {
                let place = self.places.get(&id).copied();
                let Some(client) = place.and_then(|place| self.clients.get_mut(place)) else {
                    return;
                };
                let pair = Pair {
                    sequence,
                    first_key,
                    saved,
                    in_tree: true,
                };
                self.len += pair.len();
                client.len += pair.len();
                self.pairs += 1;
                let at = client.pairs.partition_point(|p| p.sequence < sequence);
                client.pairs.insert(at, pair);
            }
            SessionRow::Client(_, None) | SessionRow::Pair { saved: None, .. } => {}
        }
    }

    /// Takes a client of a snapshot, whose marks do not lie by replica id yet.
    pub fn load_of_snapshot(&mut self, id: ClientId, marks: ClientMarks) {
        self.load(SessionRow::Client(id, Some(marks)));
        let place = self.places.get(&id).copied();
        if let Some(client) = place.and_then(|place| self.clients.get_mut(place)) {
            client.in_tree = false;
            client.changed = true;
            self.changed.push_back(id);
            self.unsaved += 1;
        }
    }
}

impl Client {
    fn pair(&self, sequence: u64) -> Option<&Pair> {
        let at = self.pairs.binary_search_by_key(&sequence, |p| p.sequence);
        self.pairs.get(at.ok()?)
    }

    /// Adds rows of what is not in the tree until there are `rows_max`; says whether that is all.
    fn save(&mut self, rows_max: usize, rows: &mut Vec<SessionRow>, unsaved: &mut usize) -> bool {
        rows.push(SessionRow::Client(self.id, Some(self.marks)));
        self.in_tree = true;
        for pair in self.pairs.iter_mut().filter(|p| !p.in_tree) {
            if rows.len() >= rows_max {
                return false;
            }
            pair.in_tree = true;
            *unsaved -= 1;
            if mutant::is(Mutant::SessionPairForgotten) {
                continue;
            }
            rows.push(pair.row(self.id));
        }
        self.changed = false;
        *unsaved -= 1;
        true
    }
}

impl ExportedClient for Client {
    fn rows(&self) -> impl Iterator<Item = SessionRow> {
        let pairs = self.pairs.iter().map(|pair| pair.row(self.id));
        std::iter::once(SessionRow::Client(self.id, Some(self.marks))).chain(pairs)
    }
}

impl Pair {
    /// Its row, under a client.
    fn row(&self, client: ClientId) -> SessionRow {
        SessionRow::Pair {
            first_key: self.first_key.clone(),
            client,
            sequence: self.sequence,
            saved: Some(self.saved.clone()),
        }
    }

    /// Bytes that it counts for.
    fn len(&self) -> usize {
        PAIR_LEN + self.first_key.len()
    }
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
