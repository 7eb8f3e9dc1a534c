//! The session table of a range, by which a write is applied at most once.
//!
//! A write carries a request id, a *pair* of its client's id and a sequence number. The table is
//! part of the range's replicated state. Only applied commands change it, in log order, and only
//! its own content and log time (`last_ts`) decide, so that all replicas agree. A pair is
//! remembered with its outcome until its client says that it got the answer (`lowest_unanswered`,
//! RIFL's first incomplete) or [`SESSION_WINDOW_MS`] of log time have passed. What may have been
//! forgotten is refused.
//!
//! In the tree a pair lies at the first key of its request, so that it moves with the keys at a
//! split; a client's marks lie by range id. The rows are written when a memtable freezes, and
//! earlier if they become many: [`Sessions::save`] gives what has changed since the last time.
//!
//! The table is bounded by a count of bytes that depends on its content alone, so all replicas drop
//! the same clients at the same entry. No turn goes through the whole table: forgetting, saving,
//! exporting ([`super::session_export`]) and loading take a few clients at a time.

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

/// A client is forgotten this long after its last write, in log time. A little more than the
/// window, because clients count time by their own clocks, which may run fast.
const CLIENT_WINDOW_MS: u64 = SESSION_WINDOW_MS + 60_000;

/// A client's first try may lie at most this far ahead of the range's time, a day; more is not
/// believed.
const TRIED_AHEAD_MAX_MS: u64 = 24 * 3_600_000;

/// Bytes that a client counts for, about what it takes in memory.
const CLIENT_LEN: usize = 256;
/// Bytes that a pair counts for besides its first key.
const PAIR_LEN: usize = 160;
/// Most clients that one write forgets. A write adds one at most, so the table still shrinks.
const FORGOTTEN_AT_ONCE_MAX: usize = 16;

/// What the table knows of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not applied before.
    Fresh,
    /// Applied before, with this outcome.
    Seen(Outcome),
    /// Perhaps applied and forgotten: it must be refused.
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
    /// Bytes that its pairs count for.
    len: usize,
    in_tree: bool,
    changed: bool,
}

/// The table of one range.
#[derive(Debug, Default)]
pub struct Sessions {
    /// The place of each client in `clients`.
    places: HashMap<ClientId, usize, FxBuildHasher>,
    clients: Slab<Client>,
    /// Clients by their last write; the first is the next to be forgotten.
    by_last_seen: BTreeSet<(Timestamp, ClientId)>,
    /// A client that is not in the table may have been dropped for lack of room if it first tried
    /// its write at or before this.
    horizon: Timestamp,
    /// Bytes that all clients and pairs count for.
    len: usize,
    pairs: usize,
    /// Clients that are not wholly in the tree, those that wait longest first. Some may be gone or
    /// saved already.
    changed: VecDeque<ClientId>,
    /// Rows in the tree whose pair or client is gone.
    to_delete: VecDeque<SessionRow>,
    /// At most how many rows a save would write now.
    unsaved: usize,
    exports: Exports,
}

impl Sessions {
    /// An empty table with the horizon of a recovered state.
    pub fn new(horizon: Timestamp) -> Sessions {
        Sessions {
            horizon,
            ..Sessions::default()
        }
    }

    /// Clients whose last write was at or before this may have been dropped for lack of room.
    pub fn horizon(&self) -> Timestamp {
        self.horizon
    }

    /// How many clients and pairs are remembered.
    pub fn len(&self) -> (usize, usize) {
        (self.clients.len(), self.pairs)
    }

    /// Bytes that they count for.
    pub fn bytes(&self) -> usize {
        self.len
    }

    /// At most how many rows a save would write now.
    pub fn unsaved(&self) -> usize {
        self.unsaved
    }

    fn client(&self, id: ClientId) -> Option<&Client> {
        self.clients.get(*self.places.get(&id)?)
    }

    /// Whether a pair may be applied when log time is `last`.
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

    /// Remembers a pair that [`Sessions::check`] called fresh, with the outcome decided at
    /// `decided`.
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
        // While a try may still come that is not too old, its client must be remembered.
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
        // Over the limit: the clients that have been silent longest go, and the horizon tells so.
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

    /// The place of a client; a new client gets one.
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
        // An export that has not come to this place yet must not see the new client.
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

    /// Forgets clients that were silent for too long. A few at a time: after a long rest many may
    /// be due.
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

    /// Counts a pair that is no longer in the table, and has its row deleted.
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

    /// Forgets pairs of a client that were answered, are too old, or are too many.
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
            // A retry of a forgotten pair must be refused, not applied again.
            client.marks.lowest_unanswered = client.marks.lowest_unanswered.max(pair.sequence + 1);
            let id = client.id;
            self.left(id, pair);
        }
    }

    /// Gives about `rows_max` rows that have changed and are not saved, those that have waited
    /// longest first; none when all is saved. The caller writes them into the memtable that gets
    /// the state's next row, or into an earlier one.
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

    /// What to write for a row that is to be deleted. If its pair or client is in the table again,
    /// the new row is written instead, since both would have the same version.
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
            // Its marks are written later. If it is forgotten before that, its old row must still
            // be deleted.
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

    /// All rows, each client's marks before its pairs.
    pub fn rows(&self) -> impl Iterator<Item = SessionRow> + '_ {
        self.clients.iter().flat_map(|(_, client)| client.rows())
    }

    /// Begins an export of the table as it is now; the table may go on changing.
    pub fn export(&self) -> SessionExport {
        let places = self
            .clients
            .iter()
            .next_back()
            .map_or(0, |(last, _)| last + 1);
        self.exports.begin(places)
    }

    /// The next rows of an export, about `rows_max`; empty at its end, `None` if it is an export of
    /// another table.
    pub fn next_rows(&self, export: &SessionExport, rows_max: usize) -> Option<Vec<SessionRow>> {
        let known = self.exports.know(export);
        known.then(|| export.next_rows(rows_max, |place| self.clients.get(place)))
    }

    /// Makes this table, which came with a snapshot, replace another: rows that the tree has of
    /// clients which this table does not know are deleted. Looks at about `clients_max` of the
    /// other's clients, from place `from` on; gives the place at which to go on.
    pub fn inherit(&mut self, other: &Sessions, from: usize, clients_max: usize) -> Option<usize> {
        if from == 0 {
            // Clients that the other has forgotten, but not yet deleted from the tree.
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
            // Even a client that is not in the tree: it may be saved before the switch.
            self.was_there(client.id);
        }
        (until < places).then_some(until)
    }

    /// Notes that the tree may have marks of this client from before a snapshot was installed: they
    /// are deleted or overwritten.
    pub fn was_there(&mut self, id: ClientId) {
        let place = self.places.get(&id).copied();
        match place.and_then(|place| self.clients.get_mut(place)) {
            Some(client) => client.in_tree = true,
            None => self.delete(SessionRow::Client(id, None)),
        }
    }

    /// Loads a row of the tree, at recovery or from a snapshot. A client comes before its pairs.
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

    /// Loads a client of a snapshot; the tree does not have its marks under the replica's id yet.
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

    /// Adds rows that are not in the tree until there are `rows_max`; gives whether these are all.
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
    /// The row of this pair, which belongs to `client`.
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
        let numbers = match &self.saved.outcome {
            Outcome::Numbers { values, .. } => size_of_val(&**values),
            _ => 0,
        };
        PAIR_LEN + self.first_key.len() + numbers
    }
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
