//! The table by which a write is applied at most once.
//!
//! Part of a range's replicated state: changed only by applied commands, in log order, and decided
//! only by what it holds and by log time (`last_ts`), so that every replica agrees. A pair is
//! remembered with its outcome until its client says that it was answered (`lowest_unanswered`) or
//! [`SESSION_WINDOW_MS`] of log time have passed. What can no longer be told apart is refused.
//!
//! In the tree the pairs lie at the first key of their request, so that they move with the keys at
//! a split; a client's marks lie by range id. Rows are written only when a memtable freezes:
//! [`Sessions::save`] yields what changed since the last time.

use std::collections::{BTreeSet, HashMap, VecDeque};

use rkyv::rancor;
use rustc_hash::FxBuildHasher;

use crate::limits::{SESSION_CLIENTS_MAX, SESSION_PAIRS_OF_CLIENT_MAX, SESSION_WINDOW_MS};
use crate::mutant::{self, Mutant};
use crate::request::{Outcome, SessionPair};
use crate::types::{Blob, ClientId, Timestamp};

/// A client is forgotten this much later than its last write, in log time: clients count time by
/// their own clocks, which may run a little fast.
const CLIENT_WINDOW_MS: u64 = SESSION_WINDOW_MS + 60_000;

/// A client that says it first tried a write further ahead of the range's time than a day makes it up.
const TRIED_AHEAD_MAX_MS: u64 = 24 * 3_600_000;

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

/// A client's marks, as they lie in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ClientMarks {
    /// The highest `lowest_unanswered` seen.
    pub lowest_unanswered: u64,
    /// The latest of the commit timestamps of the client's writes here, and of the times at which it
    /// says that it first tried them: it may have that time from a node that is ahead.
    pub last_seen: Timestamp,
}

/// A remembered pair, as it lies in the tree.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct SavedPair {
    /// The commit timestamp it was decided at.
    pub decided: Timestamp,
    /// What it did.
    pub outcome: Outcome,
}

/// A row to be written or deleted when a memtable freezes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named for what they are")]
pub enum SessionRow {
    /// A client's marks; `None` when it was forgotten.
    Client(ClientId, Option<ClientMarks>),
    /// A pair at its first key; `None` when it was forgotten.
    Pair {
        first_key: Blob,
        client: ClientId,
        sequence: u64,
        saved: Option<SavedPair>,
    },
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
    marks: ClientMarks,
    /// By rising sequence.
    pairs: VecDeque<Pair>,
    in_tree: bool,
    changed: bool,
}

/// The table of one range.
#[derive(Debug, Default)]
pub struct Sessions {
    clients: HashMap<ClientId, Client, FxBuildHasher>,
    /// Clients by their last write: the first to be forgotten stands first.
    by_last_seen: BTreeSet<(Timestamp, ClientId)>,
    /// A client that is not in the table and first tried a write at or before this may have been
    /// pushed out by others.
    horizon: Timestamp,
    changed: Vec<ClientId>,
    /// Rows in the tree whose pair or client is gone.
    to_delete: Vec<SessionRow>,
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
        (
            self.clients.len(),
            self.clients.values().map(|c| c.pairs.len()).sum(),
        )
    }

    /// Whether a pair may be applied when the log's time is `last`.
    pub fn check(&self, pair: &SessionPair, last: Timestamp) -> Verdict {
        let too_old = pair.first_tried.plus_ms(SESSION_WINDOW_MS) < last
            || pair.first_tried > last.plus_ms(TRIED_AHEAD_MAX_MS);
        let Some(client) = self.clients.get(&pair.client) else {
            let pushed_out = pair.first_tried <= self.horizon;
            return if too_old || pushed_out {
                Verdict::Expired
            } else {
                Verdict::Fresh
            };
        };
        if let Ok(at) = client
            .pairs
            .binary_search_by_key(&pair.sequence, |p| p.sequence)
            && let Some(seen) = client.pairs.get(at)
        {
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
        let client = self.clients.entry(pair.client).or_insert_with(|| Client {
            marks: ClientMarks {
                lowest_unanswered: 0,
                last_seen: Timestamp::ZERO,
            },
            pairs: VecDeque::new(),
            in_tree: false,
            changed: false,
        });
        // As long as a try could come that is not too old, its client is remembered.
        let seen = client.marks.last_seen.max(decided).max(pair.first_tried);
        self.by_last_seen
            .remove(&(client.marks.last_seen, pair.client));
        self.by_last_seen.insert((seen, pair.client));
        client.marks.last_seen = seen;
        client.marks.lowest_unanswered = client.marks.lowest_unanswered.max(pair.lowest_unanswered);
        let at = client.pairs.partition_point(|p| p.sequence < pair.sequence);
        let saved = SavedPair { decided, outcome };
        let new = Pair {
            sequence: pair.sequence,
            first_key,
            saved,
            in_tree: false,
        };
        client.pairs.insert(at, new);
        if !client.changed {
            client.changed = true;
            self.changed.push(pair.client);
        }
        forget_pairs(pair.client, client, decided, &mut self.to_delete);
        if self.clients.len() > SESSION_CLIENTS_MAX
            && let Some((last_seen, oldest)) = self.by_last_seen.pop_first()
        {
            self.horizon = self.horizon.max(last_seen);
            self.remove(oldest);
        }
    }

    fn forget_clients(&mut self, now: Timestamp) {
        while let Some((last_seen, client)) = self.by_last_seen.first().copied() {
            if last_seen.plus_ms(CLIENT_WINDOW_MS) >= now {
                break;
            }
            self.by_last_seen.pop_first();
            self.remove(client);
        }
    }

    fn remove(&mut self, id: ClientId) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        self.to_delete
            .extend(client.pairs.into_iter().filter_map(|pair| pair.gone(id)));
        if client.in_tree {
            self.to_delete.push(SessionRow::Client(id, None));
        }
    }

    /// The rows that changed since the last call. The caller writes them into the memtable that is
    /// about to freeze.
    pub fn save(&mut self) -> Vec<SessionRow> {
        let mut rows = std::mem::take(&mut self.to_delete);
        // What has come back since is written under the same version: one row, not two.
        rows.retain(|row| !self.is_back(row));
        for id in std::mem::take(&mut self.changed) {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            client.changed = false;
            client.in_tree = true;
            rows.push(SessionRow::Client(id, Some(client.marks)));
            for pair in client.pairs.iter_mut().filter(|p| !p.in_tree) {
                if mutant::is(Mutant::SessionPairForgotten) {
                    continue;
                }
                pair.in_tree = true;
                rows.push(SessionRow::Pair {
                    first_key: pair.first_key.clone(),
                    client: id,
                    sequence: pair.sequence,
                    saved: Some(pair.saved.clone()),
                });
            }
        }
        rows
    }

    /// Whether a row that is to be deleted stands for something that is in the table again.
    fn is_back(&self, row: &SessionRow) -> bool {
        match row {
            SessionRow::Client(id, _) => self.clients.contains_key(id),
            SessionRow::Pair {
                first_key,
                client,
                sequence,
                ..
            } => self.clients.get(client).is_some_and(|client| {
                let mut pairs = client.pairs.iter();
                pairs.any(|pair| pair.sequence == *sequence && pair.first_key == *first_key)
            }),
        }
    }

    /// The clients that are remembered.
    pub fn clients(&self) -> Vec<ClientId> {
        self.clients.keys().copied().collect()
    }

    /// All that is remembered, clients before their pairs.
    pub fn rows(&self) -> impl Iterator<Item = SessionRow> + '_ {
        let clients = self.clients.iter();
        clients.flat_map(|(id, client)| {
            let pairs = client.pairs.iter().map(|pair| SessionRow::Pair {
                first_key: pair.first_key.clone(),
                client: *id,
                sequence: pair.sequence,
                saved: Some(pair.saved.clone()),
            });
            std::iter::once(SessionRow::Client(*id, Some(client.marks))).chain(pairs)
        })
    }

    /// After a snapshot was loaded: its clients' marks do not lie by range id yet, those of clients
    /// that were there before do, and go.
    pub fn took_over(&mut self, before: impl Iterator<Item = ClientId>) {
        for (id, client) in &mut self.clients {
            client.in_tree = false;
            client.changed = true;
            self.changed.push(*id);
        }
        for id in before.filter(|id| !self.clients.contains_key(id)) {
            self.to_delete.push(SessionRow::Client(id, None));
        }
    }

    /// Takes a row of the tree into the table, at recovery. Clients come before their pairs.
    pub fn load(&mut self, row: SessionRow) {
        match row {
            SessionRow::Client(id, Some(marks)) => {
                self.by_last_seen.insert((marks.last_seen, id));
                let client = Client {
                    marks,
                    pairs: VecDeque::new(),
                    in_tree: true,
                    changed: false,
                };
                self.clients.insert(id, client);
            }
            SessionRow::Pair {
                first_key,
                client: id,
                sequence,
                saved: Some(saved),
            } => {
                let Some(client) = self.clients.get_mut(&id) else {
                    return;
                };
                let at = client.pairs.partition_point(|p| p.sequence < sequence);
                client.pairs.insert(
                    at,
                    Pair {
                        sequence,
                        first_key,
                        saved,
                        in_tree: true,
                    },
                );
            }
            SessionRow::Client(_, None) | SessionRow::Pair { saved: None, .. } => {}
        }
    }
}

/// Drops the pairs that were answered, have grown too old, or are too many.
fn forget_pairs(
    id: ClientId,
    client: &mut Client,
    now: Timestamp,
    to_delete: &mut Vec<SessionRow>,
) {
    while let Some(first) = client.pairs.front() {
        let answered = first.sequence < client.marks.lowest_unanswered;
        let too_old = first.saved.decided.plus_ms(CLIENT_WINDOW_MS) < now;
        let too_many = client.pairs.len() > SESSION_PAIRS_OF_CLIENT_MAX;
        if !(answered || too_old || too_many) {
            break;
        }
        let Some(pair) = client.pairs.pop_front() else {
            break;
        };
        // A retry of what was pushed out must be refused, not applied again.
        client.marks.lowest_unanswered = client.marks.lowest_unanswered.max(pair.sequence + 1);
        to_delete.extend(pair.gone(id));
    }
}

impl Pair {
    fn gone(self, client: ClientId) -> Option<SessionRow> {
        self.in_tree.then_some(SessionRow::Pair {
            first_key: self.first_key,
            client,
            sequence: self.sequence,
            saved: None,
        })
    }
}

impl ClientMarks {
    /// The bytes of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16);
        bytes.extend_from_slice(&self.lowest_unanswered.to_le_bytes());
        bytes.extend_from_slice(&self.last_seen.0.to_le_bytes());
        bytes
    }

    /// Reads what [`ClientMarks::encode`] wrote; `None` if the bytes are something else.
    pub fn decode(bytes: &[u8]) -> Option<ClientMarks> {
        let (lowest, last_seen) = bytes.split_first_chunk::<8>()?;
        Some(ClientMarks {
            lowest_unanswered: u64::from_le_bytes(*lowest),
            last_seen: Timestamp(u64::from_le_bytes(last_seen.try_into().ok()?)),
        })
    }
}

impl SavedPair {
    /// The bytes of the row.
    ///
    /// # Errors
    /// The encoder failed, which no pair in memory can cause.
    pub fn encode(&self) -> Result<Vec<u8>, rancor::Error> {
        rkyv::to_bytes::<rancor::Error>(self).map(|bytes| bytes.to_vec())
    }

    /// Reads what [`SavedPair::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are no pair.
    pub fn decode(bytes: &[u8]) -> Result<SavedPair, rancor::Error> {
        rkyv::from_bytes::<SavedPair, rancor::Error>(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn pair(sequence: u64, lowest: u64, first_tried_ms: u64) -> SessionPair {
        SessionPair {
            client: ClientId(7),
            sequence,
            lowest_unanswered: lowest,
            first_tried: Timestamp::from_ms(first_tried_ms),
        }
    }

    fn done(ms: u64) -> Outcome {
        Outcome::Done {
            version: Timestamp::from_ms(ms),
            existed: false,
        }
    }

    fn record(table: &mut Sessions, pair: &SessionPair, ms: u64) {
        table.record(
            pair,
            Blob::from_static(b"k"),
            Timestamp::from_ms(ms),
            done(ms),
        );
    }

    #[test]
    fn a_retry_gets_the_first_outcome() {
        let mut table = Sessions::default();
        let first = pair(1, 1, 1000);
        assert_eq!(
            table.check(&first, Timestamp::from_ms(1000)),
            Verdict::Fresh
        );
        record(&mut table, &first, 1001);
        assert_eq!(
            table.check(&first, Timestamp::from_ms(2000)),
            Verdict::Seen(done(1001))
        );
    }

    #[test]
    fn what_was_answered_is_refused() {
        let mut table = Sessions::default();
        record(&mut table, &pair(1, 1, 1000), 1001);
        record(&mut table, &pair(3, 3, 1002), 1003);
        let now = Timestamp::from_ms(1004);
        assert_eq!(table.check(&pair(1, 1, 1000), now), Verdict::Expired);
        assert_eq!(table.check(&pair(2, 2, 1000), now), Verdict::Expired);
        assert_eq!(table.check(&pair(4, 3, 1000), now), Verdict::Fresh);
    }

    #[test]
    fn a_client_whose_time_is_ahead_is_remembered_until_its_tries_are_too_old() {
        let (hour, mut table) = (3_600_000, Sessions::default());
        // It has its time from a node that is an hour ahead of the range's leader.
        let first = pair(1, 1, 1000 + hour);
        record(&mut table, &first, 1000);
        // Then that node leads, and the range's time jumps.
        let other = SessionPair {
            client: ClientId(8),
            ..pair(1, 1, 2000 + hour)
        };
        record(&mut table, &other, 2000 + hour);
        assert_eq!(
            table.check(&first, Timestamp::from_ms(3000 + hour)),
            Verdict::Seen(done(1000))
        );
        let made_up = pair(2, 1, 3000 + 30 * hour);
        let now = Timestamp::from_ms(3000 + hour);
        assert_eq!(table.check(&made_up, now), Verdict::Expired);
    }

    #[test]
    fn a_client_that_was_forgotten_and_is_back_is_saved_once() {
        let mut table = Sessions::default();
        record(&mut table, &pair(1, 1, 1000), 1000);
        assert_eq!(table.save().len(), 2);
        let later = 1000 + 2 * CLIENT_WINDOW_MS;
        record(&mut table, &pair(1, 1, later), later);
        let saved = table.save();
        let mut keys = BTreeMap::new();
        for row in &saved {
            let (key, is_there) = match row {
                SessionRow::Client(id, marks) => ((*id, 0), marks.is_some()),
                SessionRow::Pair {
                    client,
                    sequence,
                    saved,
                    ..
                } => ((*client, *sequence), saved.is_some()),
            };
            assert!(keys.insert(key, is_there).is_none(), "twice: {saved:?}");
            assert!(is_there, "{saved:?}");
        }
        assert_eq!(keys.len(), 2);
    }

    #[test]
    fn what_was_first_tried_long_ago_is_refused() {
        let table = Sessions::default();
        let late = Timestamp::from_ms(1001 + SESSION_WINDOW_MS);
        assert_eq!(table.check(&pair(1, 1, 1000), late), Verdict::Expired);
        assert_eq!(table.check(&pair(1, 1, 1001), late), Verdict::Fresh);
    }

    #[test]
    fn a_forgotten_client_cannot_apply_an_old_write_again() {
        let mut table = Sessions::default();
        let old = pair(1, 1, 1000);
        record(&mut table, &old, 1001);
        let other = SessionPair {
            client: ClientId(8),
            ..pair(1, 1, 2_000_000)
        };
        record(&mut table, &other, 2_000_000);
        assert_eq!(table.len(), (1, 1));
        assert_eq!(
            table.check(&old, Timestamp::from_ms(2_000_001)),
            Verdict::Expired
        );
    }

    #[test]
    fn a_client_with_too_many_pairs_loses_the_oldest_for_good() {
        let mut table = Sessions::default();
        let count = SESSION_PAIRS_OF_CLIENT_MAX as u64 + 5;
        for sequence in 1..=count {
            record(&mut table, &pair(sequence, 1, 1000), 1000 + sequence);
        }
        let now = Timestamp::from_ms(1000 + count);
        assert_eq!(table.len().1, SESSION_PAIRS_OF_CLIENT_MAX);
        assert_eq!(table.check(&pair(5, 1, 1000), now), Verdict::Expired);
        assert!(matches!(
            table.check(&pair(6, 1, 1000), now),
            Verdict::Seen(_)
        ));
    }

    #[test]
    fn rows_saved_and_loaded_make_the_same_table() {
        let mut table = Sessions::default();
        record(&mut table, &pair(1, 1, 1000), 1001);
        record(&mut table, &pair(2, 1, 1000), 1002);
        let mut rows = table.save();
        assert_eq!(table.save(), vec![]);
        record(&mut table, &pair(3, 2, 1000), 1003);
        rows.extend(table.save());
        let deleted = rows.iter().any(|row| {
            matches!(
                row,
                SessionRow::Pair {
                    sequence: 1,
                    saved: None,
                    ..
                }
            )
        });
        assert!(deleted, "the answered pair leaves the tree");
        // The tree keeps the newest row of each key.
        let mut tree = BTreeMap::new();
        for row in rows {
            let key = match &row {
                SessionRow::Client(client, _) => (0, client.0, 0),
                SessionRow::Pair {
                    client, sequence, ..
                } => (1, client.0, *sequence),
            };
            tree.insert(key, row);
        }
        let mut again = Sessions::default();
        tree.into_values().for_each(|row| again.load(row));
        let now = Timestamp::from_ms(1004);
        for sequence in 1..5 {
            let asked = pair(sequence, 1, 1000);
            assert_eq!(table.check(&asked, now), again.check(&asked, now));
        }
    }

    #[test]
    fn rows_round_trip() {
        let marks = ClientMarks {
            lowest_unanswered: 3,
            last_seen: Timestamp(9),
        };
        assert_eq!(ClientMarks::decode(&marks.encode()), Some(marks));
        let saved = SavedPair {
            decided: Timestamp(4),
            outcome: done(1),
        };
        assert_eq!(
            SavedPair::decode(&saved.encode().expect("encodes")).ok(),
            Some(saved)
        );
    }
}
