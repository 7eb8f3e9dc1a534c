//! The session table when its range is split.

use std::collections::VecDeque;

use super::row::SessionRow;
use super::{Request, Sessions};
use crate::mutant::{self, Mutant};
use crate::types::{Blob, ClientId};

impl Sessions {
    /// Takes out what belongs to the keys from `key` on: the table of a range that is split off. Requests
    /// move to it, with their first keys; both tables have the marks of every client, because a client
    /// that writes to both ranges numbers its writes through. An export that is under way does not see
    /// this, and must be given up.
    pub fn split_off(&mut self, key: &[u8]) -> Sessions {
        let mut right = Sessions::new(self.horizon);
        let is_right = |first_key: &Blob| first_key.as_ref() >= key;
        for (_, client) in &mut self.clients {
            let id = client.id;
            right.add_unsaved(id, client.marks);
            let requests = std::mem::take(&mut client.requests);
            let (moved, kept) = requests
                .into_iter()
                .partition(|request| is_right(&request.first_key));
            client.requests = kept;
            if mutant::is(Mutant::SessionRequestCopied) {
                client.requests.extend(moved.iter().map(Request::copy));
            }
            let moved: VecDeque<Request> = moved;
            let len: usize = moved.iter().map(Request::len).sum();
            let unsaved = moved.iter().filter(|request| !request.in_tree).count();
            client.len -= len;
            self.len -= len;
            self.requests -= moved.len();
            self.unsaved -= unsaved;
            right.take_requests(id, moved, (len, unsaved));
        }
        let to_delete = std::mem::take(&mut self.to_delete);
        for row in to_delete {
            match &row {
                SessionRow::Request { first_key, .. } if is_right(first_key) => {
                    self.unsaved -= 1;
                    right.delete(row);
                }
                _ => self.to_delete.push_back(row),
            }
        }
        right
    }

    /// Gives a client that has none the requests of another table: they count for `len` bytes, and
    /// `unsaved` of them are not in the tree.
    fn take_requests(
        &mut self,
        id: ClientId,
        requests: VecDeque<Request>,
        (len, unsaved): (usize, usize),
    ) {
        let slot = self.slots.get(&id).copied();
        let Some(client) = slot.and_then(|slot| self.clients.get_mut(slot)) else {
            return;
        };
        self.len += len;
        client.len += len;
        self.requests += requests.len();
        self.unsaved += unsaved;
        client.requests = requests;
    }
}

impl Request {
    /// For the deliberate bug that keeps what moves.
    fn copy(&self) -> Request {
        Request {
            sequence: self.sequence,
            first_key: self.first_key.clone(),
            saved: self.saved.clone(),
            in_tree: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::sessions::Verdict;
    use crate::request::{Outcome, RequestId};
    use crate::types::Timestamp;

    fn request(client: u128, sequence: u64) -> RequestId {
        RequestId {
            client: ClientId(client),
            sequence,
            lowest_unanswered: 1,
            first_tried: Timestamp::from_ms(1_000),
        }
    }

    const NOW: Timestamp = Timestamp::from_ms(2_000);

    fn record(table: &mut Sessions, request: &RequestId, key: &'static str) {
        let outcome = Outcome::Done {
            version: NOW,
            existed: false,
        };
        table.record(request, Blob::from_static(key.as_bytes()), NOW, outcome);
    }

    fn sorted(rows: impl Iterator<Item = SessionRow>) -> Vec<String> {
        let mut rows: Vec<String> = rows.map(|row| format!("{row:?}")).collect();
        rows.sort();
        rows
    }

    #[test]
    fn requests_move_with_their_first_keys_and_both_tables_have_the_marks() {
        let mut left = Sessions::default();
        let (before, after) = (request(1, 4), request(1, 5));
        record(&mut left, &before, "k");
        record(&mut left, &after, "m");
        record(&mut left, &request(2, 1), "z");
        let right = left.split_off(b"m");
        let seen = |table: &Sessions, request: &RequestId| {
            matches!(table.check(request, NOW), Verdict::Seen(_))
        };
        assert!(seen(&left, &before) && !seen(&left, &after));
        assert!(seen(&right, &after) && !seen(&right, &before));
        assert_eq!((left.len(), right.len()), ((2, 1), (2, 2)));
        let told = RequestId {
            lowest_unanswered: 9,
            ..request(1, 9)
        };
        record(&mut left, &told, "a");
        assert_eq!(right.check(&request(1, 6), NOW), Verdict::Fresh);
    }

    #[test]
    fn what_is_counted_and_saved_is_that_of_tables_that_were_never_split() {
        let (mut whole, mut left, mut right) = (
            Sessions::default(),
            Sessions::default(),
            Sessions::default(),
        );
        for number in 0..200u64 {
            let key = ["a", "k", "m", "q"][number as usize % 4];
            let request = request(u128::from(number % 7), number);
            record(&mut whole, &request, key);
            record(
                if key < "m" { &mut left } else { &mut right },
                &request,
                key,
            );
            // Some is in the tree before the split, some is not.
            if number == 90 {
                whole.save(usize::MAX);
            }
        }
        let mut split = whole.split_off(b"m");
        for (table, alone) in [(&mut whole, &left), (&mut split, &right)] {
            assert_eq!(sorted(table.rows()), sorted(alone.rows()));
            assert_eq!((table.len(), table.bytes()), (alone.len(), alone.bytes()));
            let saved = table.save(usize::MAX);
            assert_eq!(table.unsaved(), 0);
            assert!(!saved.is_empty());
        }
    }

    #[test]
    fn rows_that_are_to_be_deleted_go_with_their_keys() {
        let mut left = Sessions::default();
        record(&mut left, &request(1, 1), "a");
        record(&mut left, &request(1, 2), "z");
        left.save(usize::MAX);
        let answered = RequestId {
            lowest_unanswered: 3,
            ..request(1, 3)
        };
        record(&mut left, &answered, "b");
        let mut right = left.split_off(b"m");
        let deleted = |table: &mut Sessions| {
            let saved = table.save(usize::MAX).into_iter();
            let keys = saved.filter_map(|row| match row {
                SessionRow::Request {
                    first_key,
                    saved: None,
                    ..
                } => Some(first_key),
                _ => None,
            });
            keys.collect::<Vec<Blob>>()
        };
        assert_eq!(deleted(&mut left), ["a"]);
        assert_eq!(deleted(&mut right), ["z"]);
        assert_eq!((left.unsaved(), right.unsaved()), (0, 0));
    }
}
