//! The session table of a range, by which a write is applied at most once.
//!
//! A write carries a request id: its client's id and a sequence number. The table is
//! part of the range's replicated state. Only applied commands change it, in log order, and only
//! its own content and log time (`last_ts`) decide, so that all replicas agree. A request is
//! remembered with its outcome until its client says that it got the answer (`lowest_unanswered`,
//! RIFL's first incomplete) or [`SESSION_WINDOW_MS`] of log time have passed. What may have been
//! forgotten is refused.
//!
//! In the tree a request is recorded at its first key, so that it moves with the keys at a
//! split; a client's marks lie by range id. The rows are written when a memtable freezes, and
//! earlier if they become many: [`Sessions::save`] gives what has changed since the last time.
//!
//! The table is bounded by a count of bytes that depends on its content alone, so all replicas drop
//! the same clients at the same entry. No turn goes through the whole table: forgetting, saving,
//! exporting ([`export`]) and loading take a few clients at a time.

mod absorb;
mod export;
mod row;
mod split;

use std::collections::{BTreeSet, HashMap, VecDeque};

use rustc_hash::FxBuildHasher;
use slab::Slab;

use crate::limits::{
    SESSION_CLIENT_LEN_MAX, SESSION_REQUESTS_OF_CLIENT_MAX, SESSION_WINDOW_MS, SESSIONS_LEN_MAX,
};
use crate::mutant::{self, Mutant};
use crate::request::{Outcome, RequestId};
use crate::types::{Blob, ClientId, Timestamp};
pub use export::SessionExport;
use export::{ExportedClient, Exports};
pub use row::{ClientMarks, SavedRequest, SessionRow};

/// A client is forgotten this long after its last write, in log time. A little more than the
/// window, because clients count time by their own clocks, which may run fast.
const CLIENT_WINDOW_MS: u64 = SESSION_WINDOW_MS + 60_000;

/// A client's first try may lie at most this far ahead of the range's time, a day; more is not
/// believed.
const TRIED_AHEAD_MAX_MS: u64 = 24 * 3_600_000;

/// Bytes that a client counts for, about what it takes in memory.
const CLIENT_LEN: usize = 256;
/// Bytes that a request counts for besides its first key.
const REQUEST_LEN: usize = 160;
/// Most clients that one write forgets. A write adds one at most, so the table still shrinks.
const FORGOTTEN_AT_ONCE_MAX: usize = 16;

/// What the table knows of a request.
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
struct Request {
    sequence: u64,
    first_key: Blob,
    saved: SavedRequest,
    in_tree: bool,
}

#[derive(Debug)]
struct Client {
    id: ClientId,
    marks: ClientMarks,
    /// By rising sequence.
    requests: VecDeque<Request>,
    /// Bytes that its requests count for.
    len: usize,
    in_tree: bool,
    changed: bool,
}

/// The table of one range.
#[derive(Debug, Default)]
pub struct Sessions {
    /// The slot of each client in `clients`.
    slots: HashMap<ClientId, usize, FxBuildHasher>,
    clients: Slab<Client>,
    /// Clients by their last write; the first is the next to be forgotten.
    by_last_seen: BTreeSet<(Timestamp, ClientId)>,
    /// A client that is not in the table may have been dropped for lack of room if it first tried
    /// its write at or before this.
    horizon: Timestamp,
    /// Bytes that all clients and requests count for.
    len: usize,
    requests: usize,
    /// Clients that are not wholly in the tree, those that wait longest first. Some may be gone or
    /// saved already.
    changed: VecDeque<ClientId>,
    /// Rows in the tree whose request or client is gone.
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

    /// How many clients and requests are remembered.
    pub fn len(&self) -> (usize, usize) {
        (self.clients.len(), self.requests)
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
        self.clients.get(*self.slots.get(&id)?)
    }

    /// Whether a request may be applied when log time is `last`.
    pub fn check(&self, request: &RequestId, last: Timestamp) -> Verdict {
        let too_old = request.first_tried.plus_ms(SESSION_WINDOW_MS) < last
            || request.first_tried > last.plus_ms(TRIED_AHEAD_MAX_MS);
        let Some(client) = self.client(request.client) else {
            let pushed_out = request.first_tried <= self.horizon;
            return if too_old || pushed_out {
                Verdict::Expired
            } else {
                Verdict::Fresh
            };
        };
        if let Some(seen) = client.request(request.sequence) {
            return Verdict::Seen(seen.saved.outcome.clone());
        }
        if too_old || request.sequence < client.marks.lowest_unanswered {
            return Verdict::Expired;
        }
        Verdict::Fresh
    }

    /// Remembers a request that [`Sessions::check`] called fresh, with the outcome decided at
    /// `decided`.
    pub fn record(
        &mut self,
        request: &RequestId,
        first_key: Blob,
        decided: Timestamp,
        outcome: Outcome,
    ) {
        self.forget_clients(decided);
        let slot = self.slot_of(request.client);
        self.exports.keep(slot, self.clients.get(slot));
        let Some(client) = self.clients.get_mut(slot) else {
            return;
        };
        // While a try may still come that is not too old, its client must be remembered.
        let seen = client.marks.last_seen.max(decided).max(request.first_tried);
        self.by_last_seen
            .remove(&(client.marks.last_seen, request.client));
        self.by_last_seen.insert((seen, request.client));
        client.marks.last_seen = seen;
        client.marks.lowest_unanswered = client
            .marks
            .lowest_unanswered
            .max(request.lowest_unanswered);
        let new = Request {
            sequence: request.sequence,
            first_key,
            saved: SavedRequest { decided, outcome },
            in_tree: false,
        };
        self.len += new.len();
        client.len += new.len();
        let at = client
            .requests
            .partition_point(|p| p.sequence < request.sequence);
        client.requests.insert(at, new);
        self.requests += 1;
        self.unsaved += 1;
        if !client.changed {
            client.changed = true;
            self.changed.push_back(request.client);
            self.unsaved += 1;
        }
        self.forget_requests(slot, decided);
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

    /// The slot of a client; a new client gets one.
    fn slot_of(&mut self, id: ClientId) -> usize {
        if let Some(slot) = self.slots.get(&id) {
            return *slot;
        }
        let marks = ClientMarks {
            lowest_unanswered: 0,
            last_seen: Timestamp::ZERO,
        };
        self.add_client(id, marks, false)
    }

    fn add_client(&mut self, id: ClientId, marks: ClientMarks, in_tree: bool) -> usize {
        let slot = self.clients.vacant_key();
        // An export that has not come to this slot yet must not see the new client.
        self.exports.keep(slot, None::<&Client>);
        self.clients.insert(Client {
            id,
            marks,
            requests: VecDeque::new(),
            len: 0,
            in_tree,
            changed: false,
        });
        self.slots.insert(id, slot);
        self.len += CLIENT_LEN;
        slot
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
        let Some(slot) = self.slots.remove(&id) else {
            return;
        };
        self.exports.keep(slot, self.clients.get(slot));
        let Some(client) = self.clients.try_remove(slot) else {
            return;
        };
        self.len -= CLIENT_LEN;
        self.unsaved -= usize::from(client.changed);
        for request in client.requests {
            self.left(id, request);
        }
        if client.in_tree {
            self.delete(SessionRow::Client(id, None));
        }
    }

    /// Counts a request that is no longer in the table, and has its row deleted.
    fn left(&mut self, client: ClientId, request: Request) {
        self.len -= request.len();
        self.requests -= 1;
        if !request.in_tree {
            self.unsaved -= 1;
            return;
        }
        self.delete(SessionRow::Request {
            first_key: request.first_key,
            client,
            sequence: request.sequence,
            saved: None,
        });
    }

    fn delete(&mut self, row: SessionRow) {
        self.to_delete.push_back(row);
        self.unsaved += 1;
    }

    /// Forgets requests of a client that were answered, are too old, or are too many.
    fn forget_requests(&mut self, slot: usize, now: Timestamp) {
        loop {
            let Some(client) = self.clients.get_mut(slot) else {
                return;
            };
            let Some(first) = client.requests.front() else {
                return;
            };
            let answered = first.sequence < client.marks.lowest_unanswered;
            let too_old = first.saved.decided.plus_ms(CLIENT_WINDOW_MS) < now;
            let too_many = client.requests.len() > SESSION_REQUESTS_OF_CLIENT_MAX
                || client.len > SESSION_CLIENT_LEN_MAX;
            if !(answered || too_old || too_many) {
                return;
            }
            let Some(request) = client.requests.pop_front() else {
                return;
            };
            client.len -= request.len();
            // A retry of a forgotten request must be refused, not applied again.
            client.marks.lowest_unanswered =
                client.marks.lowest_unanswered.max(request.sequence + 1);
            let id = client.id;
            self.left(id, request);
        }
    }

    /// Has the rows of all requests saved again: they are to lie under another data id, where there is none to
    /// delete yet.
    pub fn rewrite_requests(&mut self) {
        let before = self.to_delete.len();
        self.to_delete
            .retain(|row| matches!(row, SessionRow::Client(..)));
        self.unsaved -= before - self.to_delete.len();
        for (_, client) in &mut self.clients {
            let mut saved = 0;
            for request in client.requests.iter_mut().filter(|one| one.in_tree) {
                request.in_tree = false;
                saved += 1;
            }
            self.unsaved += saved;
            if saved > 0 && !client.changed {
                client.changed = true;
                self.changed.push_back(client.id);
                self.unsaved += 1;
            }
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
            let slot = self.slots.get(&id).copied();
            let Some(client) = slot.and_then(|slot| self.clients.get_mut(slot)) else {
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

    /// What to write for a row that is to be deleted. If its request or client is in the table again,
    /// the new row is written instead, since both would have the same version.
    fn unless_back(&mut self, row: SessionRow) -> Option<SessionRow> {
        let id = match &row {
            SessionRow::Client(id, _) => *id,
            SessionRow::Request { client, .. } => *client,
        };
        let slot = self.slots.get(&id).copied();
        let Some(client) = slot.and_then(|slot| self.clients.get_mut(slot)) else {
            return Some(row);
        };
        let SessionRow::Request {
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
        let at = client
            .requests
            .binary_search_by_key(sequence, |p| p.sequence);
        let request = at.ok().and_then(|at| client.requests.get_mut(at));
        let Some(request) = request.filter(|request| request.first_key == *first_key) else {
            return Some(row);
        };
        if std::mem::replace(&mut request.in_tree, true) {
            return None;
        }
        self.unsaved -= 1;
        Some(request.row(id))
    }

    /// All rows, each client's marks before its requests.
    pub fn rows(&self) -> impl Iterator<Item = SessionRow> + '_ {
        self.clients.iter().flat_map(|(_, client)| client.rows())
    }

    /// Begins an export of the table as it is now; the table may go on changing.
    pub fn export(&self) -> SessionExport {
        let slots = self
            .clients
            .iter()
            .next_back()
            .map_or(0, |(last, _)| last + 1);
        self.exports.begin(slots)
    }

    /// The next rows of an export, about `rows_max`; empty at its end, `None` if it is an export of
    /// another table.
    pub fn next_rows(&self, export: &SessionExport, rows_max: usize) -> Option<Vec<SessionRow>> {
        let known = self.exports.know(export);
        known.then(|| export.next_rows(rows_max, |slot| self.clients.get(slot)))
    }

    /// Makes this table, which came with a snapshot, replace another: rows that the tree has of
    /// clients which this table does not know are deleted. Looks at about `clients_max` of the
    /// other's clients, from slot `from` on; gives the slot at which to go on.
    pub fn inherit(&mut self, other: &Sessions, from: usize, clients_max: usize) -> Option<usize> {
        if from == 0 {
            // Clients that the other has forgotten, but not yet deleted from the tree.
            for row in &other.to_delete {
                if let SessionRow::Client(id, _) = row {
                    self.was_there(*id);
                }
            }
        }
        let slots = other
            .clients
            .iter()
            .next_back()
            .map_or(0, |(last, _)| last + 1);
        let until = slots.min(from + clients_max);
        for client in (from..until).filter_map(|slot| other.clients.get(slot)) {
            // Even a client that is not in the tree: it may be saved before the switch.
            self.was_there(client.id);
        }
        (until < slots).then_some(until)
    }

    /// Notes that the tree may have marks of this client from before a snapshot was installed: they
    /// are deleted or overwritten.
    pub fn was_there(&mut self, id: ClientId) {
        let slot = self.slots.get(&id).copied();
        match slot.and_then(|slot| self.clients.get_mut(slot)) {
            Some(client) => client.in_tree = true,
            None => self.delete(SessionRow::Client(id, None)),
        }
    }

    /// Loads a row of the tree, at recovery or from a snapshot. A client comes before its requests.
    pub fn load(&mut self, row: SessionRow) {
        match row {
            SessionRow::Client(id, Some(marks)) => {
                self.by_last_seen.insert((marks.last_seen, id));
                self.add_client(id, marks, true);
            }
            SessionRow::Request {
                first_key,
                client: id,
                sequence,
                saved: Some(saved),
            } => {
                let slot = self.slots.get(&id).copied();
                let Some(client) = slot.and_then(|slot| self.clients.get_mut(slot)) else {
                    return;
                };
                let request = Request {
                    sequence,
                    first_key,
                    saved,
                    in_tree: true,
                };
                self.len += request.len();
                client.len += request.len();
                self.requests += 1;
                let at = client.requests.partition_point(|p| p.sequence < sequence);
                client.requests.insert(at, request);
            }
            SessionRow::Client(_, None) | SessionRow::Request { saved: None, .. } => {}
        }
    }

    /// Adds a client of a snapshot, or of the table of which this one is split off; the tree does not have
    /// its marks under the replica's id yet.
    pub fn add_unsaved(&mut self, id: ClientId, marks: ClientMarks) {
        self.load(SessionRow::Client(id, Some(marks)));
        let slot = self.slots.get(&id).copied();
        if let Some(client) = slot.and_then(|slot| self.clients.get_mut(slot)) {
            client.in_tree = false;
            client.changed = true;
            self.changed.push_back(id);
            self.unsaved += 1;
        }
    }
}

impl Client {
    fn request(&self, sequence: u64) -> Option<&Request> {
        let at = self
            .requests
            .binary_search_by_key(&sequence, |p| p.sequence);
        self.requests.get(at.ok()?)
    }

    /// Adds rows that are not in the tree until there are `rows_max`; gives whether these are all.
    fn save(&mut self, rows_max: usize, rows: &mut Vec<SessionRow>, unsaved: &mut usize) -> bool {
        rows.push(SessionRow::Client(self.id, Some(self.marks)));
        self.in_tree = true;
        for request in self.requests.iter_mut().filter(|p| !p.in_tree) {
            if rows.len() >= rows_max {
                return false;
            }
            request.in_tree = true;
            *unsaved -= 1;
            if mutant::is(Mutant::SessionRequestForgotten) {
                continue;
            }
            rows.push(request.row(self.id));
        }
        self.changed = false;
        *unsaved -= 1;
        true
    }
}

impl ExportedClient for Client {
    fn rows(&self) -> impl Iterator<Item = SessionRow> {
        let requests = self.requests.iter().map(|request| request.row(self.id));
        std::iter::once(SessionRow::Client(self.id, Some(self.marks))).chain(requests)
    }
}

impl Request {
    /// The row of this request, which belongs to `client`.
    fn row(&self, client: ClientId) -> SessionRow {
        SessionRow::Request {
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
        REQUEST_LEN + self.first_key.len() + numbers
    }
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
