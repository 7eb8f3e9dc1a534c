//! The session table when its range takes over its right neighbour.

use super::Sessions;
use super::row::{ClientMarks, SessionRow};

impl Sessions {
    /// Takes over the table of the right neighbour: its requests, whose rows stay where they are, and its
    /// marks. Of a client that both know, the higher marks count: it numbers its writes to all ranges
    /// through, and what one table has forgotten must be refused.
    pub fn absorb(&mut self, right: Sessions) {
        self.horizon = self.horizon.max(right.horizon);
        for (_, other) in right.clients {
            let slot = match self.slots.get(&other.id) {
                Some(slot) => *slot,
                None => {
                    self.add_unsaved(other.id, other.marks);
                    let Some(slot) = self.slots.get(&other.id) else {
                        continue;
                    };
                    *slot
                }
            };
            self.exports.keep(slot, self.clients.get(slot));
            let Some(client) = self.clients.get_mut(slot) else {
                continue;
            };
            let marks = ClientMarks {
                lowest_unanswered: (client.marks.lowest_unanswered)
                    .max(other.marks.lowest_unanswered),
                last_seen: client.marks.last_seen.max(other.marks.last_seen),
            };
            self.by_last_seen
                .remove(&(client.marks.last_seen, client.id));
            self.by_last_seen.insert((marks.last_seen, client.id));
            client.marks = marks;
            if !client.changed {
                client.changed = true;
                self.changed.push_back(client.id);
                self.unsaved += 1;
            }
            client.len += other.len;
            self.len += other.len;
            self.requests += other.requests.len();
            self.unsaved += other.requests.iter().filter(|p| !p.in_tree).count();
            client.requests.extend(other.requests);
            let requests = client.requests.make_contiguous();
            requests.sort_unstable_by_key(|request| request.sequence);
        }
        for row in right.to_delete {
            // The marks go with the right replica.
            if matches!(row, SessionRow::Request { .. }) {
                self.delete(row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::range::sessions::{SessionRow, Sessions, Verdict};
    use crate::request::{Outcome, RequestId};
    use crate::types::{Blob, ClientId, Timestamp};

    const NOW: Timestamp = Timestamp::from_ms(2_000);

    fn request(client: u128, sequence: u64) -> RequestId {
        RequestId {
            client: ClientId(client),
            sequence,
            lowest_unanswered: 1,
            first_tried: Timestamp::from_ms(1_000),
        }
    }

    fn record(table: &mut Sessions, request: &RequestId, key: &str) {
        let outcome = Outcome::Done {
            version: NOW,
            existed: false,
        };
        let key = Blob::copy_from_slice(key.as_bytes());
        table.record(request, key, NOW, outcome);
    }

    fn sorted(table: &Sessions) -> Vec<String> {
        let mut rows: Vec<String> = table.rows().map(|row| format!("{row:?}")).collect();
        rows.sort();
        rows
    }

    #[test]
    fn what_was_split_and_is_merged_again_is_what_it_was() {
        let mut whole = Sessions::default();
        for number in 0..300u64 {
            let key = ["a", "k", "m", "q"][number as usize % 4];
            record(&mut whole, &request(u128::from(number % 7), number), key);
            if number == 90 {
                whole.save(usize::MAX);
            }
        }
        let (before, counted) = (sorted(&whole), (whole.len(), whole.bytes()));
        let right = whole.split_off(b"m");
        whole.absorb(right);
        assert_eq!(sorted(&whole), before);
        assert_eq!((whole.len(), whole.bytes()), counted);
        let unsaved = whole.unsaved();
        assert!(whole.save(usize::MAX).len() <= unsaved);
        assert_eq!(whole.unsaved(), 0);
    }

    #[test]
    fn requests_of_both_are_seen_and_what_one_has_forgotten_is_refused() {
        let (mut left, mut right) = (Sessions::default(), Sessions::default());
        record(&mut left, &request(1, 4), "a");
        record(&mut right, &request(1, 3), "m");
        let answered = RequestId {
            lowest_unanswered: 3,
            ..request(1, 5)
        };
        record(&mut right, &answered, "z");
        record(&mut right, &request(2, 1), "z");
        left.absorb(right);
        for (client, sequence) in [(1, 3), (1, 4), (1, 5), (2, 1)] {
            let seen = left.check(&request(client, sequence), NOW);
            assert!(matches!(seen, Verdict::Seen(_)), "{client} {sequence}");
        }
        assert_eq!(left.check(&request(1, 2), NOW), Verdict::Expired);
        assert_eq!(left.check(&request(1, 6), NOW), Verdict::Fresh);
    }

    #[test]
    fn the_rights_rows_that_are_to_be_deleted_still_are_but_for_its_marks() {
        let (mut left, mut right) = (Sessions::default(), Sessions::default());
        record(&mut right, &request(1, 1), "z");
        right.save(usize::MAX);
        let answered = RequestId {
            lowest_unanswered: 2,
            ..request(1, 2)
        };
        record(&mut right, &answered, "y");
        right.save(0);
        left.absorb(right);
        let rows = left.save(usize::MAX);
        let deleted = rows.iter().filter(|row| {
            matches!(row, SessionRow::Request { saved: None, first_key, .. } if first_key.as_ref() == b"z")
        });
        assert_eq!(deleted.count(), 1, "{rows:?}");
    }
}
